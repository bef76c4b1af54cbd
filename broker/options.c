/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The command line of samepaged; man/samepaged.8 explains it. It is read twice: for the
 * name of the file with settings, and, after that file, again, so that it wins.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/settings.h"

enum option_id {
	OPT_SETTING = 1000, /* and as many more as there are settings */
	OPT_CONFIG = OPT_SETTING + BROKER_SETTINGS,
	OPT_ON_DEMAND,
	OPT_READY_FD,
	OPT_FOREGROUND,
	OPT_HELP,
	OPT_VERSION,
};

#define SETTING(name, setting) { name, required_argument, NULL, OPT_SETTING + (setting) }
#define SCAN(name, setting) SETTING(name, BROKER_SETTING_SCAN + (setting))

static const struct option long_options[] = {
	SETTING("socket", BROKER_SETTING_SOCKET),
	SETTING("socket-group", BROKER_SETTING_SOCKET_GROUP),
	SETTING("lend-userfaultfd", BROKER_SETTING_LEND),
	SETTING("store-max", BROKER_SETTING_STORE_MAX),
	SETTING("store-total", BROKER_SETTING_STORE_TOTAL),
	SETTING("client-max", BROKER_SETTING_CLIENT_MAX),
	SETTING("sessions-max", BROKER_SETTING_SESSIONS_MAX),
	SETTING("idle-exit", BROKER_SETTING_IDLE_EXIT),
	SETTING("trim-interval", BROKER_SETTING_TRIM_INTERVAL),
	SETTING("linger", BROKER_SETTING_LINGER),
	SETTING("request-timeout", BROKER_SETTING_REQUEST_TIMEOUT),
	CORE_SCAN_OPTIONS(SCAN),
	{ "config", required_argument, NULL, OPT_CONFIG },
	{ "on-demand", no_argument, NULL, OPT_ON_DEMAND },
	{ "ready-fd", required_argument, NULL, OPT_READY_FD },
	{ "foreground", no_argument, NULL, OPT_FOREGROUND },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ 0 },
};

static void help(void)
{
	printf("Usage: samepaged [OPTION]...\n"
	       "The broker of samepage: keeps the shared pages of its clients.\n\n"
	       "  --config FILE            settings (default " BROKER_CONFIG_PATH ", if there)\n"
	       "  --socket PATH            listen here instead of the usual place\n"
	       "  --on-demand              exit when nobody has been connected for a while\n"
	       "  --idle-exit SECONDS      how long a while is (default 5 with --on-demand)\n"
	       "  --ready-fd FD            write one byte to FD when listening, and close it\n"
	       "  --store-max BYTES        shared pages of one user (default: half of memory)\n"
	       "  --store-total BYTES      ... of all users (default: three quarters of memory)\n"
	       "  --client-max BYTES       pages that one process may add to a domain\n"
	       "                           (default: half of --store-max)\n"
	       "  --sessions-max N         sessions of one user (default 1024)\n"
	       "  --trim-interval SECONDS  between looks for unused segments (default 30)\n"
	       "  --linger SECONDS         a domain without clients is kept (default 10)\n"
	       "  --request-timeout SECONDS  a client may take for an operation (default 120)\n"
	       "  --lend-userfaultfd yes|no|GROUP  who may have /dev/userfaultfd (default yes)\n"
	       "  --socket-group GROUP     only root and GROUP may connect\n"
	       "  --scan on|off            do clients merge by themselves (default on)\n"
	       "  --scan-cpu-percent N, --scan-map-percent N, --scan-first-msec N,\n"
	       "  --scan-most-msec N, --scan-tracker T, --scan-huge-percent N\n"
	       "                           how: see samepaged.conf(5)\n"
	       "  --foreground             do not detach; the default\n"
	       "  --help, --version\n\n"
	       "BYTES may have a suffix K, M, G or T. See samepaged(8).\n");
}

static void defaults(struct broker_config *c)
{
	uint64_t memory_pages = (uint64_t)sysconf(_SC_PHYS_PAGES);

	*c = (struct broker_config){
		.trim_interval_usec = 30 * BROKER_SECOND_USEC,
		.linger_usec = 10 * BROKER_SECOND_USEC,
		.idle_exit_usec = BROKER_NEVER,
		.request_timeout_usec = 120 * BROKER_SECOND_USEC,
		.hello_timeout_usec = 10 * BROKER_SECOND_USEC,
		.sessions_per_uid_max = 1024,
		.domains_per_uid_max = 32,
		.socket_gid = -1,
		.lend_gid = BROKER_LEND_ALL,
		.listen_fd = -1,
		.ready_fd = -1,
	};
	c->store_max_slots = memory_pages / 2 + 1;
	if (c->store_max_slots >= CORE_SLOT_NONE)
		c->store_max_slots = CORE_SLOT_NONE - 1;
	/* 4 bytes each and dense after one look; too few cost late merges only. */
	c->cand_max_pages = memory_pages / 4;
	if (c->cand_max_pages < 1u << 16)
		c->cand_max_pages = 1u << 16;
	if (c->cand_max_pages > 1u << 26)
		c->cand_max_pages = 1u << 26;
}

/* A total of its own, if need be so large that one user's quota fits beside root's part. */
static void fill_in_quotas(struct broker_config *c)
{
	uint64_t memory_pages = (uint64_t)sysconf(_SC_PHYS_PAGES);

	if (c->client_max_slots == 0)
		c->client_max_slots = c->store_max_slots / 2 + 1;
	if (c->store_total_slots > 0)
		return;
	c->store_total_slots = memory_pages / 4 * 3 + 1;
	if (c->store_total_slots < c->store_max_slots / 7 * 8 + 8)
		c->store_total_slots = c->store_max_slots / 7 * 8 + 8;
}

static bool set_ready_fd(struct broker_config *c, const char *text)
{
	char *end;
	long n = strtol(text, &end, 10);

	if (text[0] < '0' || text[0] > '9' || *end || n > INT32_MAX)
		return false;
	c->ready_fd = (int)n;
	return true;
}

static bool take_option(struct broker_config *c, int id, const char *name, const char *value)
{
	unsigned s = (unsigned)(id - OPT_SETTING);

	if (id == OPT_ON_DEMAND) {
		c->on_demand = true;
	} else if (id == OPT_READY_FD && !set_ready_fd(c, value)) {
		fprintf(stderr, "samepaged: --%s: bad value %s\n", name, value);
		return false;
	} else if (s < BROKER_SETTINGS && !broker_setting_set(c, (enum broker_setting)s, value)) {
		fprintf(stderr, "samepaged: --%s: bad value %s; allowed: %s\n", name, value,
			broker_setting_allowed((enum broker_setting)s));
		return false;
	}
	return true;
}

/* Once through the command line: 0, 1, -1 as broker_options(). */
static int take_options(struct broker_config *c, int argc, char **argv, const char **config)
{
	int at = 0;
	int id;

	optind = 0; /* glibc: from the beginning */
	while ((id = getopt_long(argc, argv, "", long_options, &at)) != -1) {
		if (id == OPT_HELP) {
			help();
			return 1;
		}
		if (id == OPT_VERSION) {
			printf("samepaged %s\n", SAMEPAGE_VERSION);
			return 1;
		}
		if (id == OPT_CONFIG)
			*config = optarg;
		if (id == '?' || !take_option(c, id, long_options[at].name, optarg))
			return -1;
	}
	if (optind < argc) {
		fprintf(stderr, "samepaged: what is %s?\n", argv[optind]);
		return -1;
	}
	return 0;
}

/* Returns 0 to go on, 1 when all is done, -1 when something is wrong. */
int broker_options(struct broker_config *c, int argc, char **argv)
{
	const char *config = NULL;
	int r;

	defaults(c);
	r = take_options(c, argc, argv, &config);
	if (r != 0)
		return r;
	defaults(c);
	if (!broker_settings_read(c, config) || take_options(c, argc, argv, &config) != 0)
		return -1;
	if (!core_scan_config_fits(&c->scan)) {
		fprintf(stderr, "samepaged: scan_first_msec (%u) is more than scan_most_msec (%u)\n",
			(unsigned)(c->scan.first_msec ?: CORE_SCAN_FIRST_MSEC),
			(unsigned)(c->scan.most_msec ?: CORE_SCAN_MOST_MSEC));
		return -1;
	}
	if (c->on_demand && c->idle_exit_usec == BROKER_NEVER)
		c->idle_exit_usec = 5 * BROKER_SECOND_USEC;
	fill_in_quotas(c);
	if (c->socket_path[0] == '\0' && sys_broker_own_path(c->socket_path) < 0) {
		fprintf(stderr, "samepaged: no place for a socket\n");
		return -1;
	}
	return 0;
}
