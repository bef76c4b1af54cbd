/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepaged.conf, and the command line beside it. If this fails, a broker runs with
 * other limits than its owner has written, or does not say which line is wrong.
 */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

static char dir[] = "/tmp/samepage-config-XXXXXX";
static char path[64];

static int start(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/samepaged.conf", dir);
	return 0;
}

static int stop(void **state)
{
	unlink(path);
	return rmdir(dir);
}

static void write_file(const char *text, size_t bytes)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, bytes, f), bytes);
	assert_int_equal(fclose(f), 0);
}

static struct core_scan_config scan_of(const char *const *args, uint32_t *sessions)
{
	struct core_scan_config scan;
	struct bt_client c[8];
	struct bt_daemon d;

	bt_daemon_start(&d, args);
	bt_open(&c[0], &d, "default");
	scan = c[0].welcome.scan;
	for (*sessions = 1; *sessions < 8; ++*sessions) {
		bt_raw(&c[*sessions], &d);
		if (bt_hello(&c[*sessions], CORE_WIRE_ROLE_CLIENT, "default", 0) != 0)
			break;
	}
	for (uint32_t i = 0; i < *sessions; i++)
		bt_close(&c[i]);
	if (*sessions < 8)
		bt_close(&c[*sessions]);
	bt_daemon_stop(&d);
	return scan;
}

static const char text[] = "# all of it\n"
			   "\n"
			   "scan = off # not here\n"
			   "  scan_cpu_percent=2.5\n"
			   "scan_map_percent\t=\t40\n"
			   "scan_first_msec = 200\n"
			   "scan_most_msec = 30000\r\n"
			   "scan_tracker = checksum\n"
			   "scan_huge_percent = 60\n"
			   "sessions_max = 5\n"
			   "sessions_max = 3\n"
			   "store_max = 64M\nstore_total = 1G\nclient_max = 32M\nlinger = 1\n"
			   "trim_interval = 5\nrequest_timeout = 7\nidle_exit = 100\n"
			   "lend_userfaultfd = no"; /* and no newline */

static void test_file(void **state)
{
	const char *const args[] = { "--config", path, NULL };
	struct core_scan_config scan;
	uint32_t sessions;

	write_file(text, strlen(text));
	scan = scan_of(args, &sessions);
	assert_int_equal(scan.flags, CORE_SCAN_OFF);
	assert_int_equal(scan.cpu_permille, 25);
	assert_int_equal(scan.map_percent, 40);
	assert_int_equal(scan.first_msec, 200);
	assert_int_equal(scan.most_msec, 30000);
	assert_int_equal(scan.tracker, CORE_SCAN_TRACKER_CHECKSUM);
	assert_int_equal(scan.huge_percent, 60);
	assert_int_equal(sessions, 3); /* the later line */
}

static void test_command_line_wins(void **state)
{
	/* Wherever it stands. */
	const char *const args[] = { "--scan", "on", "--config", path, "--scan-cpu-percent", "30",
				     "--sessions-max", "5", NULL };
	struct core_scan_config scan;
	uint32_t sessions;

	write_file(text, strlen(text));
	scan = scan_of(args, &sessions);
	assert_int_equal(scan.flags, 0); /* on is what clients do anyway */
	assert_int_equal(scan.cpu_permille, 300);
	assert_int_equal(scan.map_percent, 40);
	assert_int_equal(sessions, 5);
}

static void test_defaults(void **state)
{
	const char *const args[] = { "--config", "/dev/null", NULL };
	const struct core_scan_config none = { 0 };
	struct core_scan_config scan;
	uint32_t sessions;

	scan = scan_of(args, &sessions);
	assert_memory_equal(&scan, &none, sizeof(none));
	assert_int_equal(sessions, 8);
}

/* The example that is installed: what it says to be the defaults is allowed. */
static void test_example(void **state)
{
	const char *const args[] = { "--config", path, NULL };
	const char *example = getenv("SAMEPAGED_CONF");
	struct core_scan_config scan;
	char line[256], all[8192] = "";
	uint32_t sessions;
	unsigned n = 0;
	FILE *f;

	if (!example)
		skip();
	f = fopen(example, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		assert_int_equal(line[0] == '#' || line[0] == '\n', 1);
		n += line[0] == '#' && line[1] != ' ';
		if (line[0] == '#' && line[1] != ' ')
			strcat(all, line + 1);
	}
	fclose(f);
	assert_true(n >= 12);
	write_file(all, strlen(all));
	scan = scan_of(args, &sessions);
	assert_int_equal(scan.cpu_permille, 100); /* as proc/scan.c has it */
	assert_int_equal(scan.map_percent, 50);
	assert_int_equal(scan.first_msec, 100);
	assert_int_equal(scan.most_msec, 10000);
	assert_int_equal(scan.huge_percent, 12);
}

/* What samepaged says, and 2 as its status. */
static void refused(const char *options, char *said, size_t bytes)
{
	char command[512];
	size_t n;
	int status;
	FILE *p;

	snprintf(command, sizeof(command), "exec timeout 20 \"$SAMEPAGED\" --socket %s/s %s 2>&1",
		 dir, options);
	p = popen(command, "r");
	assert_non_null(p);
	n = fread(said, 1, bytes - 1, p);
	said[n] = '\0';
	status = pclose(p);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 2);
}

static const struct wrong {
	const char *text;
	const char *line;
	const char *word[2];
} wrongs[] = {
	{ "linger = 3\nscan_cpu_percent = 0\n", ":2:", { "scan_cpu_percent", "0.1 to 100" } },
	{ "scan_cpu_percent = 10.55", ":1:", { "10.55", "0.1 to 100" } },
	{ "scan_cpu_percent = 100.1", ":1:", { "100.1", "0.1 to 100" } },
	{ "scan_cpu_percent = 4294967306", ":1:", { "4294967306", "0.1 to 100" } },
	{ "scan_cpu_percent = .", ":1:", { "'.'", "0.1 to 100" } },
	{ "scan = maybe", ":1:", { "maybe", "on, off or auto" } },
	{ "scan = o", ":1:", { "'o'", "on, off or auto" } },
	{ "scan =", ":1:", { "''", "on, off or auto" } },
	{ "scan_map_percent = 91", ":1:", { "91", "1 to 90" } },
	{ "scan_first_msec = 9", ":1:", { "9", "10 to 60000" } },
	{ "scan_most_msec = -5", ":1:", { "-5", "10 to 3600000" } },
	{ "scan_tracker = soft-dirty", ":1:", { "soft-dirty", "wp-async or checksum" } },
	{ "scan_huge_percent = 102", ":1:", { "102", "1 to 101" } },
	{ "\n\n# x\nstore_max = lots", ":4:", { "lots", "bytes" } },
	{ "scan_cpu = 10", ":1:", { "'scan_cpu' is no setting", "scan_cpu_percent" } },
	{ "store-max = 4G", ":1:", { "'store-max' is no setting", "store_max" } },
	{ "foreground", ":1:", { "'foreground' is not of the form", "name = value" } },
	{ "= 7", ":1:", { "'' is no setting", "store_max" } },
};

static void test_wrong_lines(void **state)
{
	char options[128], said[2048];

	snprintf(options, sizeof(options), "--config %s", path);
	for (unsigned i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
		write_file(wrongs[i].text, strlen(wrongs[i].text));
		refused(options, said, sizeof(said));
		if (!strstr(said, path) || !strstr(said, wrongs[i].line) ||
		    !strstr(said, wrongs[i].word[0]) || !strstr(said, wrongs[i].word[1]))
			print_error("%s: %s", wrongs[i].text, said);
		assert_non_null(strstr(said, path));
		assert_non_null(strstr(said, wrongs[i].line));
		assert_non_null(strstr(said, wrongs[i].word[0]));
		assert_non_null(strstr(said, wrongs[i].word[1]));
		assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
	}
	write_file("scan = on\0off\n", 14);
	refused(options, said, sizeof(said));
	assert_non_null(strstr(said, ":1: this is no text"));
}

static void test_wrong_otherwise(void **state)
{
	char options[128], said[2048];

	snprintf(options, sizeof(options), "--config %s/none", dir);
	refused(options, said, sizeof(said));
	assert_non_null(strstr(said, "none: No such file"));
	snprintf(options, sizeof(options), "--config %s", dir);
	refused(options, said, sizeof(said));
	assert_non_null(strstr(said, "Is a directory"));
	/* Each is right, both together are not. */
	snprintf(options, sizeof(options), "--config %s --scan-most-msec 1000", path);
	write_file("scan_first_msec = 2000\n", 23);
	refused(options, said, sizeof(said));
	assert_non_null(strstr(said, "scan_first_msec (2000) is more than scan_most_msec (1000)"));
	/* Also with the default of the other. */
	refused("--config /dev/null --scan-most-msec 50", said, sizeof(said));
	assert_non_null(strstr(said, "scan_first_msec (100) is more than scan_most_msec (50)"));
	refused("--config /dev/null --scan-first-msec 20000", said, sizeof(said));
	assert_non_null(strstr(said, "scan_first_msec (20000) is more than scan_most_msec (10000)"));
	refused("--config /dev/null --scan-cpu-percent x", said, sizeof(said));
	assert_non_null(strstr(said, "--scan-cpu-percent: bad value x; allowed: 0.1 to 100"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_file),	    cmocka_unit_test(test_command_line_wins),
		cmocka_unit_test(test_defaults),    cmocka_unit_test(test_wrong_lines),
		cmocka_unit_test(test_example),
		cmocka_unit_test(test_wrong_otherwise),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
