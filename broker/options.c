/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line of samepaged; man/samepaged.8 explains it. */
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/broker.h"

#define SECONDS_MAX (UINT64_C(365) * 24 * 3600)

enum option_id {
	OPT_SOCKET = 1000,
	OPT_ON_DEMAND,
	OPT_IDLE_EXIT,
	OPT_READY_FD,
	OPT_STORE_MAX,
	OPT_STORE_TOTAL,
	OPT_CLIENT_MAX,
	OPT_SESSIONS_MAX,
	OPT_TRIM_INTERVAL,
	OPT_LINGER,
	OPT_REQUEST_TIMEOUT,
	OPT_LEND_USERFAULTFD,
	OPT_SOCKET_GROUP,
	OPT_FOREGROUND,
	OPT_HELP,
	OPT_VERSION,
};

static const struct option long_options[] = {
	{ "socket", required_argument, NULL, OPT_SOCKET },
	{ "on-demand", no_argument, NULL, OPT_ON_DEMAND },
	{ "idle-exit", required_argument, NULL, OPT_IDLE_EXIT },
	{ "ready-fd", required_argument, NULL, OPT_READY_FD },
	{ "store-max", required_argument, NULL, OPT_STORE_MAX },
	{ "store-total", required_argument, NULL, OPT_STORE_TOTAL },
	{ "client-max", required_argument, NULL, OPT_CLIENT_MAX },
	{ "sessions-max", required_argument, NULL, OPT_SESSIONS_MAX },
	{ "trim-interval", required_argument, NULL, OPT_TRIM_INTERVAL },
	{ "linger", required_argument, NULL, OPT_LINGER },
	{ "request-timeout", required_argument, NULL, OPT_REQUEST_TIMEOUT },
	{ "lend-userfaultfd", required_argument, NULL, OPT_LEND_USERFAULTFD },
	{ "socket-group", required_argument, NULL, OPT_SOCKET_GROUP },
	{ "foreground", no_argument, NULL, OPT_FOREGROUND },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ 0 },
};

static void help(void)
{
	printf("Usage: samepaged [OPTION]...\n"
	       "The broker of samepage: keeps the shared pages of its clients.\n\n"
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
	       "  --foreground             do not detach; the default\n"
	       "  --help, --version\n\n"
	       "BYTES may have a suffix K, M, G or T. See samepaged(8).\n");
}

/* The number and the text behind it, or false. */
static bool parse_number(const char *text, uint64_t max, uint64_t *value, const char **rest)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	*value = strtoull(text, &end, 10);
	*rest = end;
	return *value <= max;
}

static bool parse_plain(const char *text, uint64_t max, uint64_t *value)
{
	const char *rest;

	return parse_number(text, max, value, &rest) && *rest == '\0';
}

static bool parse_seconds(const char *text, uint64_t *usec)
{
	uint64_t seconds;

	if (!parse_plain(text, SECONDS_MAX, &seconds))
		return false;
	*usec = seconds * BROKER_SECOND_USEC;
	return true;
}

/* Bytes to slots, at least one. */
static bool parse_slots(const char *text, uint64_t *slots)
{
	static const char suffixes[] = "KMGT";
	const char *rest, *suffix;
	unsigned shift = 0;
	uint64_t n;

	if (!parse_number(text, UINT64_MAX >> 1, &n, &rest))
		return false;
	if (*rest != '\0') {
		suffix = strchr(suffixes, *rest);
		if (!suffix || rest[1] != '\0')
			return false;
		shift = 10 * (unsigned)(suffix - suffixes + 1);
	}
	if (n > (UINT64_MAX >> 1) >> shift)
		return false;
	*slots = (n << shift) / sys_page_bytes();
	if (*slots >= CORE_SLOT_NONE)
		*slots = CORE_SLOT_NONE - 1;
	return *slots > 0;
}

/* A name or a number. */
static bool parse_group(const char *text, int64_t *gid)
{
	const struct group *g = getgrnam(text);
	uint64_t n;

	if (g) {
		*gid = g->gr_gid;
		return true;
	}
	if (!parse_plain(text, UINT32_MAX - 1, &n))
		return false;
	*gid = (int64_t)n;
	return true;
}

static bool parse_lend(const char *text, int64_t *gid)
{
	if (strcmp(text, "yes") == 0)
		*gid = BROKER_LEND_ALL;
	else if (strcmp(text, "no") == 0)
		*gid = BROKER_LEND_NONE;
	else
		return parse_group(text, gid);
	return true;
}

static bool parse_one(struct broker_config *c, int id, const char *arg)
{
	uint64_t n;

	switch (id) {
	case OPT_SOCKET:
		if (strlen(arg) == 0 || strlen(arg) >= sizeof(c->socket_path))
			return false;
		strcpy(c->socket_path, arg);
		return true;
	case OPT_READY_FD:
		if (!parse_plain(arg, INT32_MAX, &n))
			return false;
		c->ready_fd = (int)n;
		return true;
	case OPT_SESSIONS_MAX:
		if (!parse_plain(arg, 1000000, &n) || n == 0)
			return false;
		c->sessions_per_uid_max = (uint32_t)n;
		return true;
	case OPT_STORE_MAX:
		return parse_slots(arg, &c->store_max_slots);
	case OPT_STORE_TOTAL:
		return parse_slots(arg, &c->store_total_slots);
	case OPT_LEND_USERFAULTFD:
		return parse_lend(arg, &c->lend_gid);
	case OPT_SOCKET_GROUP:
		return parse_group(arg, &c->socket_gid);
	case OPT_CLIENT_MAX:
		return parse_slots(arg, &c->client_max_slots);
	case OPT_IDLE_EXIT:
		return parse_seconds(arg, &c->idle_exit_usec);
	case OPT_TRIM_INTERVAL:
		return parse_seconds(arg, &c->trim_interval_usec) && c->trim_interval_usec > 0;
	case OPT_LINGER:
		return parse_seconds(arg, &c->linger_usec);
	case OPT_REQUEST_TIMEOUT:
		return parse_seconds(arg, &c->request_timeout_usec) && c->request_timeout_usec > 0;
	case OPT_ON_DEMAND:
		c->on_demand = true;
		return true;
	default:
		return id == OPT_FOREGROUND;
	}
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

/* Returns 0 to go on, 1 when all is done, -1 when the command line is wrong. */
int broker_options(struct broker_config *c, int argc, char **argv)
{
	int at = 0;
	int id;

	defaults(c);
	while ((id = getopt_long(argc, argv, "", long_options, &at)) != -1) {
		if (id == OPT_HELP) {
			help();
			return 1;
		}
		if (id == OPT_VERSION) {
			printf("samepaged %s\n", SAMEPAGE_VERSION);
			return 1;
		}
		if (id == '?')
			return -1;
		if (!parse_one(c, id, optarg)) {
			fprintf(stderr, "samepaged: --%s: bad value %s\n", long_options[at].name,
				optarg);
			return -1;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "samepaged: what is %s?\n", argv[optind]);
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
