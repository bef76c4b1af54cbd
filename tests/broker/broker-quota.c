/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one user can take away from the others (I4). If this fails, one user with
 * many domains, many sessions, or segments in the hand after leaving fills root's
 * broker, forged figures spoil everybody's sums, or the options that say who may
 * connect and who gets /dev/userfaultfd do nothing.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/sys.h"

#define OTHER_ID 12345
#define STRANGER_ID 12346

/* How many of n new pages got a slot; a refusal must say quota. */
static unsigned promoted(struct bt_client *c, uint64_t salt, uint64_t first, unsigned n)
{
	unsigned given = 0;
	uint32_t slot[512];
	uint8_t reason[512];

	bt_promote(c, salt, first, n, slot, reason);
	for (unsigned i = 0; i < n; i++) {
		given += slot[i] != CORE_SLOT_NONE;
		assert_true(slot[i] != CORE_SLOT_NONE || reason[i] == SAMEPAGE_REASON_QUOTA);
	}
	return given;
}

static const char *pages_as_option(char *room, size_t bytes, unsigned pages)
{
	snprintf(room, bytes, "%zu", pages * sys_page_bytes());
	return room;
}

/* Run as another user; the function's answer must be 0. */
static void as_user(uid_t id, int (*run)(const struct bt_daemon *), const struct bt_daemon *d)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(setgid(id) != 0 || setuid(id) != 0 ? 99 : run(d));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* The quota is the user's: a second domain brings nothing. */
static void test_domains_share(void **state)
{
	char bytes[24];
	const char *args[] = { "--store-max", pages_as_option(bytes, sizeof(bytes), 300),
			       "--client-max", bytes, NULL };
	struct bt_client a, b;
	struct bt_daemon d;

	bt_daemon_start(&d, args);
	bt_open(&a, &d, "red");
	bt_open(&b, &d, "blue");
	assert_int_equal(promoted(&a, 1, 0, 200), 200);
	assert_int_equal(promoted(&b, 2, 0, 200), 100);
	bt_close(&b);
	assert_int_equal(promoted(&a, 3, 0, 200), 0); /* leaving frees nothing */
	bt_close(&a);
	bt_daemon_stop(&d);
}

/* Nor does coming back bring a new --client-max. */
static void test_reconnect(void **state)
{
	char all[24], one[24];
	const char *args[] = { "--store-max", pages_as_option(all, sizeof(all), 400),
			       "--client-max", pages_as_option(one, sizeof(one), 100), NULL };
	struct bt_client c, stay;
	struct bt_daemon d;

	bt_daemon_start(&d, args);
	bt_open(&stay, &d, "default");
	for (unsigned i = 0; i < 4; i++) {
		bt_open(&c, &d, "default");
		assert_int_equal(promoted(&c, i, 0, 60), i == 0 ? 60 : i == 1 ? 40 : 0);
		bt_close(&c);
	}
	bt_close(&stay);
	bt_daemon_stop(&d);
}

/* A segment's fd in the hand keeps domain and charge; without it both go. */
static void test_held(void **state)
{
	char bytes[24];
	const char *args[] = { "--store-max", pages_as_option(bytes, sizeof(bytes), 300),
			       "--client-max", bytes, "--linger", "0", "--trim-interval", "1",
			       NULL };
	struct core_wire_ctl_end end = { 0 };
	struct bt_client c, control;
	struct bt_daemon d;
	int fd;

	bt_daemon_start(&d, args);
	bt_control(&control, &d);
	bt_open(&c, &d, "red");
	assert_int_equal(promoted(&c, 1, 0, 300), 300);
	fd = bt_segment(&c, 0);
	assert_true(fd >= 0);
	bt_close(&c);
	usleep(1500000);
	bt_open(&c, &d, "blue");
	assert_int_equal(promoted(&c, 2, 0, 10), 0);
	bt_close(&c);
	close(fd);
	for (int i = 0; i < 100; i++) {
		bt_stats_end(&control, &end);
		if (end.domains == 0)
			break;
		usleep(100000);
	}
	assert_int_equal(end.domains, 0);
	bt_open(&c, &d, "blue");
	assert_int_equal(promoted(&c, 2, 0, 10), 10);
	bt_close(&c);
	bt_close(&control);
	bt_daemon_stop(&d);
}

static int fill_as_user(const struct bt_daemon *d)
{
	struct bt_client c;

	bt_open(&c, d, "default");
	/* Seven eighths of 400; root's 200 are among them. */
	return promoted(&c, 9, 0, 300) == 150 ? 0 : 1;
}

static void test_total(void **state)
{
	char one[24], all[24];
	const char *args[] = { "--store-max", pages_as_option(one, sizeof(one), 400),
			       "--store-total", pages_as_option(all, sizeof(all), 400),
			       "--client-max", one, "--linger", "60", NULL };
	struct bt_client c;
	struct bt_daemon d;

	if (geteuid() != 0)
		skip(); /* only root can become somebody else */
	bt_daemon_start(&d, args);
	bt_open(&c, &d, "default");
	assert_int_equal(promoted(&c, 1, 0, 200), 200);
	as_user(OTHER_ID, fill_as_user, &d);
	assert_int_equal(promoted(&c, 2, 0, 200), 50); /* what is kept for root */
	bt_close(&c);
	bt_daemon_stop(&d);
}

static int many_domains(const struct bt_daemon *d)
{
	struct bt_client c;
	char name[16];

	for (unsigned i = 0; i < 33; i++) {
		int r;

		snprintf(name, sizeof(name), "d%u", i);
		bt_raw(&c, d);
		r = bt_hello(&c, CORE_WIRE_ROLE_CLIENT, name, 0);
		if (r != (i < 32 ? 0 : -EDQUOT))
			return (int)i + 1;
	}
	return strstr(((struct core_wire_error *)c.packet)->text, "domains") ? 0 : 50;
}

static void test_domains(void **state)
{
	struct bt_client c;
	struct bt_daemon d;

	if (geteuid() != 0)
		skip();
	bt_daemon_start(&d, NULL);
	as_user(OTHER_ID, many_domains, &d);
	bt_open(&c, &d, "default"); /* others are not concerned */
	bt_check_served(&c, 1);
	bt_close(&c);
	bt_daemon_stop(&d);
}

static void answer_with(struct bt_client *c, const struct core_wire_report *report)
{
	struct core_wire_result m = { .report = *report };

	core_wire_header_init(&m.h, CORE_WIRE_RESULT, sizeof(m),
			      ((struct core_wire_header *)c->packet)->seq);
	assert_int_equal(bt_send_raw(c, &m, sizeof(m), NULL, 0), sizeof(m));
}

/* Figures that no process can have do not get through; the client does. */
static void test_forged(void **state)
{
	struct core_wire_report forged[] = {
		{ .pages_sharing = UINT64_MAX }, { .pss_before_bytes = UINT64_C(1) << 62 },
		{ .cpu_usec = UINT64_C(1) << 60 }, { .total.pages_looked = UINT64_MAX / 2 },
		{ .last.pages_declined[3] = UINT64_C(1) << 50 }, { .vmas = UINT32_MAX },
		{ .last.vmas_added = INT64_MIN },
		{ .scan.tracker = 3 }, { .scan.paused = 2 },
		{ .scan.pages_tracked_now = UINT64_C(1) << 60 },
		{ .scan.metadata_bytes = UINT64_MAX }, { .scan.full_scans = UINT64_C(1) << 50 },
		{ .scan.cpu_usec = UINT64_C(1) << 60 }, { .scan.broken_soon = UINT64_MAX },
		{ .scan.pages_skipped = UINT64_C(1) << 60 },
		{ .scan.stable_msec_max = UINT64_C(1) << 50 },
	};
	const struct core_wire_ctl_item *item;
	/* A terabyte looked at ten times a second, for years. */
	struct core_wire_report honest = { .pages_sharing = 77, .scan.tracker = 2,
					   .scan.pages_scanned = UINT64_C(1) << 57 };
	struct bt_client c, control;
	struct bt_daemon d;

	bt_daemon_start(&d, NULL);
	bt_control(&control, &d);
	bt_open(&c, &d, "default");
	for (unsigned i = 0; i <= sizeof(forged) / sizeof(forged[0]); i++) {
		bool bad = i < sizeof(forged) / sizeof(forged[0]);

		bt_ctl(&control, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
		bt_expect_request(&c, CORE_WIRE_OP_STATS);
		answer_with(&c, bad ? &forged[i] : &honest);
		item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
		assert_int_equal(item->report.error, bad ? -ERANGE : 0);
		assert_int_equal(item->report.pages_sharing, bad ? 0 : 77);
		assert_int_equal(item->report.pss_before_bytes, 0);
		bt_expect(&control, CORE_WIRE_CTL_END);
	}
	bt_close(&c);
	bt_close(&control);
	bt_daemon_stop(&d);
}

static int lent(const struct bt_daemon *d)
{
	struct bt_client c;
	int n;

	bt_raw(&c, d);
	if (bt_hello(&c, CORE_WIRE_ROLE_CLIENT, "default", CORE_WIRE_HELLO_WANT_UFFD) != 0)
		return -1;
	n = (c.welcome.flags & CORE_WIRE_WELCOME_HAS_UFFD) ? 1 : 0;
	bt_close(&c);
	return n;
}

static int is_lent(const struct bt_daemon *d)
{
	return lent(d) == 1 ? 0 : 1;
}

static int is_not_lent(const struct bt_daemon *d)
{
	return lent(d) == 0 ? 0 : 1;
}

static void test_lend(void **state)
{
	static const char *const options[] = { "yes", "no", "12345" };
	const char *args[] = { "--lend-userfaultfd", NULL, NULL };
	struct bt_daemon d;

	if (geteuid() != 0 || access("/dev/userfaultfd", R_OK | W_OK) < 0)
		skip(); /* nothing to lend, or nobody to lend to */
	for (unsigned i = 0; i < 3; i++) {
		args[1] = options[i];
		bt_daemon_start(&d, args);
		assert_int_equal(lent(&d), 1); /* root may in any case */
		as_user(OTHER_ID, i == 1 ? is_not_lent : is_lent, &d);
		as_user(STRANGER_ID, i == 0 ? is_lent : is_not_lent, &d);
		bt_daemon_stop(&d);
	}
}

static int gets_in(const struct bt_daemon *d)
{
	return bt_connect(d) >= 0 ? 0 : 1;
}

static int stays_out(const struct bt_daemon *d)
{
	return bt_connect(d) == -EACCES ? 0 : 1;
}

static void test_socket_group(void **state)
{
	static const char *const args[] = { "--socket-group", "12345", NULL };
	struct bt_daemon d;
	struct stat about;

	if (geteuid() != 0)
		skip();
	bt_daemon_start(&d, args);
	assert_int_equal(lstat(d.path, &about), 0);
	assert_int_equal(about.st_mode & 07777, 0660);
	assert_int_equal(about.st_uid, 0);
	assert_int_equal(about.st_gid, OTHER_ID);
	as_user(OTHER_ID, gets_in, &d);
	as_user(STRANGER_ID, stays_out, &d);
	bt_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_domains_share), cmocka_unit_test(test_reconnect),
		cmocka_unit_test(test_held),	      cmocka_unit_test(test_total),
		cmocka_unit_test(test_domains),	      cmocka_unit_test(test_forged),
		cmocka_unit_test(test_lend),	      cmocka_unit_test(test_socket_group),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
