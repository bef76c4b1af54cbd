/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage run: find or start a broker, put the library and the settings into
 * the environment, become the program. Process number, signals, terminal and
 * exit status are the program's own from there on.
 *
 * Whatever is amiss with merging, the program runs: unmerged, and one line on
 * stderr says why and what cures it. Only a program that cannot be run, and a
 * mistake on our own command line, end here.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "core/domain.h"
#include "core/scan_config.h"
#include "sys/raw.h"

#ifndef CLI_LIBDIR
#define CLI_LIBDIR "/usr/lib"
#endif
#define PRELOAD "libsamepage-preload.so"
#define RETRIES 40
#define OPT_SCAN 256 /* and as many as there are settings */
#define RETRY_NSEC 25000000L

struct run {
	const char *domain; /* NULL: of the environment */
	const char *scope;  /* NULL: likewise */
	bool shared_layout;
	bool ksm;
	bool start_broker;
	const char *socket_path; /* NULL: the usual places */
	const char *scan[CORE_SCAN_SETTINGS]; /* NULL: of the environment */
	struct core_scan_config scan_config;  /* what these say */
	char **command;
};

static void usage(FILE *out)
{
	fputs("usage: samepage run [OPTION...] -- COMMAND [ARGUMENT...]\n\n"
	      "Run COMMAND so that its memory can be merged with that of others.\n\n"
	      "  -d, --domain NAME            share only with programs of this domain (default:\n"
	      "                               $SAMEPAGE_DOMAIN, else \"default\")\n"
	      "  -s, --scope all|advised      all memory whose lifetime is known (default), or\n"
	      "                               only what the program advises (MADV_MERGEABLE)\n"
	      "  -l, --layout private|shared  shared: one random address layout for the whole\n"
	      "                               domain in place of one per process; merges far more\n"
	      "  -b, --broker auto|none|PATH  auto (default): start one if none listens; none:\n"
	      "                               start none; PATH: the one at this socket\n"
	      "  -k, --ksm                    the program's calls to KSM (madvise, prctl) go to the\n"
	      "                               kernel as well, and not only to samepage\n"
	      "  --scan on|off|auto           does it merge by itself, in the background (auto,\n"
	      "                               the default: unless the broker says off)\n"
	      "  --scan-cpu-percent N, --scan-map-percent N, --scan-first-msec N,\n"
	      "  --scan-most-msec N, --scan-tracker T, --scan-huge-percent N\n"
	      "                               how, in place of the broker's samepaged.conf(5)\n"
	      "  -h, --help                   print this\n\n"
	      "See samepage-run(1).\n", out);
}

static bool set_option(struct run *r, int c, const char *arg)
{
	switch (c) {
	case 'd':
		r->domain = arg;
		return core_domain_name_valid(arg);
	case 's':
		r->scope = arg;
		return strcmp(arg, "all") == 0 || strcmp(arg, "advised") == 0;
	case 'l':
		r->shared_layout = strcmp(arg, "shared") == 0;
		return r->shared_layout || strcmp(arg, "private") == 0;
	case 'k':
		r->ksm = true;
		return true;
	default:
		r->start_broker = strcmp(arg, "none") != 0;
		if (r->start_broker && strcmp(arg, "auto") != 0)
			r->socket_path = arg;
		return *arg && (!r->socket_path ||
				(*arg == '/' && strlen(arg) < SYS_PATH_BYTES));
	}
}

static bool set_scan(struct run *r, enum core_scan_setting setting, const char *arg)
{
	r->scan[setting] = arg;
	return core_scan_setting_set(&r->scan_config, setting, arg);
}

#define SCAN(name, setting) { name, required_argument, NULL, OPT_SCAN + (setting) }

/* -1: go on; else an exit status. */
static int parse(struct run *r, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "domain", required_argument, NULL, 'd' },
		{ "scope", required_argument, NULL, 's' },
		{ "layout", required_argument, NULL, 'l' },
		{ "broker", required_argument, NULL, 'b' },
		{ "ksm", no_argument, NULL, 'k' },
		CORE_SCAN_OPTIONS(SCAN),
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c, at = 0;

	opterr = 0;
	r->command = argv;
	r->start_broker = true;
	while ((c = getopt_long(argc, argv, "+:d:s:l:b:kh", longs, &at)) != -1) {
		if (c == 'h') {
			usage(stdout);
			return cli_finish(CLI_DONE);
		}
		if (c == ':')
			return cli_usage_error("run", "'%s' wants a value", argv[optind - 1]);
		if (c == '?')
			return cli_usage_error("run", "unknown option '%s'", argv[optind - 1]);
		if (c >= OPT_SCAN) {
			enum core_scan_setting setting = (enum core_scan_setting)(c - OPT_SCAN);

			if (!set_scan(r, setting, optarg))
				return cli_usage_error("run", "'%s' is no value for --%s (%s)", optarg,
						       longs[at].name,
						       core_scan_setting_allowed(setting));
			continue;
		}
		if (!set_option(r, c, optarg))
			return cli_usage_error("run", "'%s' is no value for %s", optarg,
					       c == 'd' ? "--domain (letters, digits, . _ -; at most 63)"
					       : c == 's' ? "--scope (all or advised)"
					       : c == 'l' ? "--layout (private or shared)"
					       : "--broker (auto, none or an absolute path)");
	}
	/* Of one alone the broker may have the other. */
	if (r->scan[CORE_SCAN_SETTING_FIRST] && r->scan[CORE_SCAN_SETTING_MOST] &&
	    !core_scan_config_fits(&r->scan_config))
		return cli_usage_error("run", "--scan-first-msec is more than --scan-most-msec");
	if (optind == argc)
		return cli_usage_error("run", "which program?");
	r->command = argv + optind;
	return -1;
}

/* Broker ------------------------------------------------------------------ */

static int open_broker(const struct run *r, struct cli_broker *b)
{
	return cli_broker_open(b, r->socket_path, CORE_WIRE_ROLE_CONTROL,
			       r->domain ? r->domain : cli_domain());
}

/*
 * Somebody else may be starting one at this very moment: ours then finds the
 * place taken, a little before the other one listens.
 */
static int retry_broker(const struct run *r, struct cli_broker *b)
{
	const struct timespec pause = { .tv_nsec = RETRY_NSEC };
	int err = -ENOENT;

	for (unsigned i = 0; i < RETRIES; i++) {
		err = open_broker(r, b);
		if (err != -ENOENT && err != -ECONNREFUSED)
			break;
		nanosleep(&pause, NULL);
	}
	return err;
}

static bool nobody_listens(int err)
{
	return err == -ENOENT || err == -ECONNREFUSED;
}

static int start_broker(const struct run *r, struct cli_broker *b)
{
	char path[SYS_PATH_BYTES], why[512];
	int err;

	if (r->socket_path)
		strcpy(path, r->socket_path);
	else if (sys_broker_own_path(path) < 0)
		return -ENAMETOOLONG;
	strcpy(why, "it ended as soon as it was ready");
	err = cli_broker_start(path, why, sizeof(why)) == 0 ? open_broker(r, b)
							    : retry_broker(r, b);
	if (nobody_listens(err))
		cli_error("run: unmerged: samepaged could not be started: %s "
			  "(start it yourself, see samepaged(8))", why);
	return err;
}

/* An open *b; or b->fd is -1, the user knows why, and the program goes unmerged. */
static void find_broker(const struct run *r, struct cli_broker *b)
{
	char reason[512];
	int err = open_broker(r, b);

	if (err < 0 && nobody_listens(err) && r->start_broker) {
		err = start_broker(r, b);
		if (nobody_listens(err))
			return; /* it was said */
	}
	if (err == 0)
		return;
	if (nobody_listens(err))
		snprintf(reason, sizeof(reason), "no broker listens on %s: start samepaged, or let "
			 "`samepage run` start one (--broker auto)", b->path);
	else
		cli_broker_reason(b, err, reason, sizeof(reason));
	cli_error("run: unmerged: %s", reason);
}

/* Environment ------------------------------------------------------------- */

static int find_library(char *path, size_t bytes)
{
	if (cli_beside(PRELOAD, path, bytes) == 0 && access(path, R_OK) == 0)
		return 0;
	snprintf(path, bytes, "%s/" PRELOAD, CLI_LIBDIR);
	return access(path, R_OK) == 0 ? 0 : -errno;
}

/* LD_PRELOAD is a list with blanks and colons between. */
static bool in_list(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *p = list; (p = strstr(p, word)); p += len)
		if ((p == list || strchr(" :", p[-1])) && strchr(" :", p[len]))
			return true;
	return false;
}

static int preload(const char *library)
{
	const char *old = getenv("LD_PRELOAD");
	char *list;
	int err;

	if (!old || !*old)
		return setenv("LD_PRELOAD", library, 1) < 0 ? -errno : 0;
	if (in_list(old, library))
		return 0;
	if (asprintf(&list, "%s:%s", old, library) < 0)
		return -ENOMEM;
	err = setenv("LD_PRELOAD", list, 1) < 0 ? -errno : 0;
	free(list);
	return err;
}

/* Will the library be there in the program? */
static bool set_library(void)
{
	char library[PATH_MAX];
	int err = find_library(library, sizeof(library));

	if (err < 0) {
		cli_error("run: unmerged: " PRELOAD " is neither beside this program nor in %s: "
			  "reinstall samepage", CLI_LIBDIR);
		return false;
	}
	if (strpbrk(library, " :")) {
		cli_error("run: unmerged: the dynamic linker takes no blank or colon in '%s': "
			  "move it", library);
		return false;
	}
	err = preload(library);
	if (err < 0)
		cli_error("run: unmerged: %s", strerror(-err));
	return err == 0;
}

/* What an outer environment says stays, if it means anything. */
static bool set_scan_variable(const struct run *r, enum core_scan_setting setting)
{
	const char *variable = core_scan_setting_variable(setting);
	const char *value = r->scan[setting], *inherited = getenv(variable);
	struct core_scan_config unused = { 0 };

	if (value)
		return setenv(variable, value, 1) == 0;
	if (inherited && !core_scan_setting_set(&unused, setting, inherited)) {
		cli_error("run: %s=%s means nothing; allowed: %s", variable, inherited,
			  core_scan_setting_allowed(setting));
		unsetenv(variable);
	}
	return setting != CORE_SCAN_SETTING_SCAN || setenv(variable, "auto", 0) == 0;
}

static bool set_scanning(const struct run *r)
{
	for (unsigned i = 0; i < CORE_SCAN_SETTINGS; i++)
		if (!set_scan_variable(r, (enum core_scan_setting)i))
			return false;
	return true;
}

static void set_settings(const struct run *r, const struct cli_broker *b)
{
	const char *socket_path = b->fd >= 0 ? b->path : r->socket_path;

	if ((socket_path && setenv("SAMEPAGE_SOCKET", socket_path, 1) < 0) ||
	    (r->domain && setenv("SAMEPAGE_DOMAIN", r->domain, 1) < 0) ||
	    (r->scope && setenv("SAMEPAGE_SCOPE", r->scope, 1) < 0) ||
	    (r->ksm && setenv("SAMEPAGE_KSM", "1", 1) < 0) || !set_scanning(r) ||
	    /* A place for what the program may say; what was inherited stays. */
	    setenv("SAMEPAGE_MERGE_ANY", "0", 0) < 0) {
		cli_error("run: unmerged: %m");
		unsetenv("LD_PRELOAD"); /* rather than into the wrong domain */
	}
}

static void shared_layout(const struct cli_broker *b)
{
	int err;

	if (b->fd < 0) {
		cli_error("run: private layout: the shared one comes from the broker");
		return;
	}
	err = cli_layout_shared(b->welcome.layout_seed);
	if (err == -ERANGE)
		cli_error("run: private layout: the hard stack limit (ulimit -Hs) leaves no room "
			  "for a random one; raise it to 50331648 or more");
	else if (err == -EPERM)
		cli_error("run: private layout: personality(2) is forbidden here (a container's "
			  "seccomp profile?): allow ADDR_NO_RANDOMIZE");
	else if (err < 0)
		cli_error("run: private layout: %s", strerror(-err));
}

/*
 * The raw system call: with `samepage run` inside `samepage run` libc's is the
 * library's, which would give the program the outer one's layout.
 */
static int execute(const struct run *r, const char *path)
{
	long err = sys_raw(SYS_execve, path, r->command, environ);

	if (err == -ENOEXEC) { /* a script without #!, as execvp(3) does it */
		size_t n = 0;
		char **argv;

		while (r->command[n])
			n++;
		argv = calloc(n + 2, sizeof(*argv));
		if (argv) {
			argv[0] = (char *)"sh";
			argv[1] = (char *)path;
			memcpy(argv + 2, r->command + 1, n * sizeof(*argv));
			err = sys_raw(SYS_execve, "/bin/sh", argv, environ);
		}
		free(argv);
	}
	cli_error("run: %s: %s", r->command[0], strerror((int)-err));
	return err == -ENOENT ? CLI_NOT_FOUND : CLI_CANNOT_RUN;
}

int cli_run(int argc, char **argv)
{
	enum cli_program_kind kind;
	char path[PATH_MAX];
	struct cli_broker b = { .fd = -1 };
	struct run r = { 0 };
	const char *why;
	int status = parse(&r, argc, argv);
	int err;

	if (status >= 0)
		return status;
	err = cli_program_look(r.command[0], path, &kind);
	if (err < 0) {
		cli_error("run: %s: %s", r.command[0], err == -ENOENT ? "command not found"
							      : strerror(-err));
		return err == -ENOENT ? CLI_NOT_FOUND : CLI_CANNOT_RUN;
	}
	why = cli_program_why(kind);
	if (why)
		cli_error("run: %s is left alone: %s", r.command[0], why);
	cli_layout_private();
	if (!why && cli_filter_kills()) {
		cli_error("run: %s is left alone: a seccomp filter here kills for system calls "
			  "that samepage makes", r.command[0]);
		return execute(&r, path);
	}
	if (!cli_program_may_preload(kind) || !set_library())
		return execute(&r, path);
	if (!why)
		find_broker(&r, &b);
	else if (open_broker(&r, &b) < 0) /* for its children, which may be ordinary */
		b.fd = -1;
	set_settings(&r, &b);
	if (r.shared_layout && !why)
		shared_layout(&b);
	cli_broker_close(&b);
	return execute(&r, path);
}
