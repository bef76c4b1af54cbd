/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage check: what this kernel and these permissions give, what each thing
 * that is missing costs, and what to do about it.
 *
 * Everything here was tried (sys_probe()), nothing concluded from a version
 * number. NEEDED features decide the verdict; of the userfaultfds that stop every
 * writer one is enough, and a privileged broker may lend one.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "sys/probe.h"
#include "sys/sys.h"

enum need { NEEDED, USEFUL, EXTRA };

static const struct feature {
	const char *name;
	size_t offset;
	enum need need;
	const char *what;
	const char *cost; /* of its absence */
	const char *cure;
} features[] = {
#define FEATURE(name, need, what, cost, cure)                                                      \
	{ #name, offsetof(struct sys_features, name), need, what, cost, cure }
	FEATURE(uffd_move, NEEDED, "UFFDIO_MOVE: take pages out of reach and put them back",
		"private memory cannot be merged", "run Linux 6.8 or newer"),
	FEATURE(process_vm_readv, NEEDED, "read own memory that may vanish meanwhile",
		"memory cannot be looked at safely",
		"CONFIG_CROSS_MEMORY_ATTACH; allow process_vm_readv in the seccomp profile"),
	FEATURE(memfd_seals, NEEDED, "sealed memfds: shared pages that nobody can change",
		"there can be no store", "run Linux 5.1 or newer"),
	FEATURE(pagemap_scan, NEEDED, "PAGEMAP_SCAN: which pages are there",
		"pages cannot be told apart cheaply", "run Linux 6.7 or newer"),
	FEATURE(populate, NEEDED, "MADV_POPULATE_READ and WRITE: fault in, unmerge",
		"merged pages cannot be given back their own copies", "run Linux 5.14 or newer"),
	FEATURE(uffd_syscall_full, USEFUL, "userfaultfd(2) that stops kernel-mode writers too",
		"a program needs one from /dev/userfaultfd, or from a privileged broker",
		"run samepaged as root, or sysctl vm.unprivileged_userfaultfd=1"),
	FEATURE(uffd_dev, USEFUL, "/dev/userfaultfd opens: the same, and can be lent",
		"this user's broker cannot lend one to its clients",
		"run samepaged as root, or give this user access to /dev/userfaultfd"),
	FEATURE(uffd_user_only, USEFUL, "userfaultfd for user-mode faults",
		"(the full kind is what merging needs)", "CONFIG_USERFAULTFD; seccomp profile"),
	FEATURE(uffd_wp_async, USEFUL, "asynchronous write protection: cheap tracking of changes",
		"the scanner hashes again what exists, not what changed", "run Linux 6.7 or newer"),
	FEATURE(procmap_query, USEFUL, "PROCMAP_QUERY: one mapping at a time",
		"mappings are looked up in /proc/PID/maps, more slowly", "run Linux 6.11 or newer"),
	FEATURE(memfd_noexec_seal, USEFUL, "memfds that are sealed against execution",
		"a store could be executed by a client of its own domain",
		"run Linux 6.3 or newer"),
	FEATURE(memfd_lease, USEFUL, "leases tell whether a store's memory is still in use",
		"memory of a dead store is given back later", "run as the owner of the broker"),
	FEATURE(close_range_unshare, USEFUL, "a descriptor table for the library's thread alone",
		"the library's descriptors show up in the program", "run Linux 5.9 or newer"),
	FEATURE(pidfd, EXTRA, "pidfds: processes that cannot be mistaken for others",
		"nothing today", "run Linux 5.3 or newer"),
	FEATURE(cap_sys_ptrace, EXTRA, "CAP_SYS_PTRACE: forks could be followed by userfaultfd",
		"nothing today: forks wait for the end of a freeze", "none needed"),
	FEATURE(cap_sys_admin, EXTRA, "CAP_SYS_ADMIN: page frame numbers",
		"the tests cannot prove sharing by page frames", "run the tests as root"),
	FEATURE(madv_merge, EXTRA, "madvise(MADV_MERGE): the kernel merges by itself",
		"nothing: merging is done from user space", "the kernel series, if you build kernels"),
	FEATURE(merge_scope, EXTRA, "merge scopes: the kernel keeps strangers' pages apart",
		"nothing: MADV_MERGE is not used then", "the kernel series, if you build kernels"),
	FEATURE(merge_counts, EXTRA, "ksm_stat says what became of each page of MADV_MERGE",
		"nothing: MADV_MERGE is not used then", "the kernel series, if you build kernels"),
	FEATURE(ksm, EXTRA, "the kernel's own KSM is built in",
		"nothing to compare with", "CONFIG_KSM, for the benchmarks only"),
#undef FEATURE
};

#define FEATURES (sizeof(features) / sizeof(features[0]))

struct check {
	struct sys_features have;
	int freeze_err;
	bool lent; /* a broker hands out userfaultfds */
	struct cli_broker broker;
	int broker_err;
	char broker_text[512];
};

static void usage(FILE *out)
{
	fputs("usage: samepage check [--json]\n\n"
	      "Does merging work on this machine, for this user? What is missing, what does that\n"
	      "cost, and what can be done about it. Exit status 0: it works; 1: it does not.\n\n"
	      "  -j, --json   print JSON\n"
	      "  -h, --help   print this\n\n"
	      "See samepage-check(1).\n", out);
}

static bool present(const struct check *c, const struct feature *f)
{
	return *(const bool *)((const char *)&c->have + f->offset);
}

/* What listens is of no use, and nobody starts another one beside it. */
static bool in_the_way(const struct check *c)
{
	return c->broker_err && c->broker_err != -ENOENT && c->broker_err != -ECONNREFUSED;
}

static bool works(const struct check *c)
{
	if (sys_probe_kernel_merges(&c->have))
		return !in_the_way(c);
	for (size_t i = 0; i < FEATURES; i++)
		if (features[i].need == NEEDED && !present(c, &features[i]))
			return false;
	return (c->freeze_err == 0 || c->lent) && !in_the_way(c);
}

static void gather(struct check *c)
{
	sys_probe(&c->have);
	c->freeze_err = sys_probe_can_freeze(&c->have);
	if (c->freeze_err < 0)
		c->freeze_err = -c->freeze_err;
	c->broker_err = cli_broker_open(&c->broker, NULL, CORE_WIRE_ROLE_CONTROL, cli_domain());
	cli_broker_reason(&c->broker, c->broker_err, c->broker_text, sizeof(c->broker_text));
	if (c->broker_err == 0) {
		cli_broker_close(&c->broker);
		c->broker_text[0] = '\0';
	}
	if (c->broker_err == 0 && c->freeze_err) {
		struct cli_broker as_client;

		/* The one way to know is to ask, as a client would. */
		if (cli_broker_open(&as_client, NULL, CORE_WIRE_ROLE_CLIENT, cli_domain()) == 0) {
			c->lent = as_client.welcome.flags & CORE_WIRE_WELCOME_HAS_UFFD;
			cli_broker_close(&as_client);
		}
	}
}

static const char *verdict(const struct check *c)
{
	if (works(c) && sys_probe_kernel_merges(&c->have))
		return "works, by the kernel's own MADV_MERGE";
	if (works(c))
		return c->freeze_err ? "works, with the broker's userfaultfd"
		       : c->broker_err ? "works; a broker is started on demand by `samepage run`"
				       : "works";
	for (size_t i = 0; i < FEATURES; i++)
		if (features[i].need == NEEDED && !present(c, &features[i]))
			return "does not work: the kernel (or a seccomp profile) lacks what is needed";
	if (in_the_way(c))
		return "does not work: with the broker that listens there is no sharing";
	return "does not work: no userfaultfd that can stop every writer";
}

/* Settings: values rather than yes or no ---------------------------------- */

static const char *setting_advice(const struct sys_features *f, const char *name, int64_t value)
{
	if (strcmp(name, "ksm_run") == 0 && value == 1)
		return "ksmd scans advised memory as well: harmless, but twice the work";
	if (strcmp(name, "max_map_count") == 0 && value >= 0 && value < 262144)
		return "merging stops short of it: sysctl vm.max_map_count=1048576 merges more";
	if (strcmp(name, "overcommit_memory") == 0 && value == 2)
		return "strict accounting: merged memory stays accounted, none is won for it";
	if (strcmp(name, "unprivileged_userfaultfd") == 0 && value == 0 && !f->uffd_dev &&
	    !f->uffd_syscall_full)
		return "0 is a good default: let a samepaged of root lend userfaultfds";
	return NULL;
}

static const struct setting {
	const char *name;
	size_t offset;
} settings[] = {
	{ "ksm_run", offsetof(struct sys_features, ksm_run) },
	{ "max_map_count", offsetof(struct sys_features, max_map_count) },
	{ "overcommit_memory", offsetof(struct sys_features, overcommit_memory) },
	{ "unprivileged_userfaultfd", offsetof(struct sys_features, unprivileged_userfaultfd) },
};

#define SETTINGS (sizeof(settings) / sizeof(settings[0]))

static int64_t setting_value(const struct check *c, const struct setting *s)
{
	return *(const int64_t *)((const char *)&c->have + s->offset);
}

/* Text -------------------------------------------------------------------- */

static void print_settings(const struct check *c)
{
	for (size_t i = 0; i < SETTINGS; i++) {
		int64_t value = setting_value(c, &settings[i]);
		const char *advice = setting_advice(&c->have, settings[i].name, value);

		if (value < 0)
			printf("  %-25s not to be read: %s\n", settings[i].name,
			       strerror((int)-value));
		else
			printf("  %-25s %lld%s%s\n", settings[i].name, (long long)value,
			       advice ? "; " : "", advice ? advice : "");
	}
	printf("  %-25s %s\n", "thp", c->have.thp[0] ? c->have.thp : "not to be read");
	printf("  %-25s %.0f MiB\n", "memory", cli_mib(c->have.memory_bytes));
}

static void print_text(const struct check *c)
{
	printf("Linux %s\n\n", c->have.release);
	for (size_t i = 0; i < FEATURES; i++) {
		const struct feature *f = &features[i];
		bool yes = present(c, f);

		printf("  %-3s %-20s %s\n", yes ? "yes" : f->need == NEEDED ? "NO" : "no", f->name,
		       f->what);
		if (!yes)
			printf("%27swithout it: %s\n%27swhat to do: %s\n", "", f->cost, "", f->cure);
	}
	printf("\n");
	print_settings(c);
	printf("\n  %-25s %s\n", "writers can be stopped",
	       c->freeze_err == 0 ? "yes" : c->lent ? "yes, with the broker's userfaultfd"
						     : strerror(c->freeze_err));
	if (c->broker_err == 0)
		printf("  %-25s at %s, process %u\n", "broker", c->broker.path,
		       c->broker.welcome.broker_pid);
	else
		printf("  %-25s %s\n", "broker", c->broker_text);
	printf("\nMerging %s.\n", verdict(c));
}

/* JSON -------------------------------------------------------------------- */

static struct json_object *feature_json(const struct check *c, const struct feature *f)
{
	struct json_object *o = json_object_new_object();
	bool yes = present(c, f);

	json_object_object_add(o, "present", json_object_new_boolean(yes));
	json_object_object_add(o, "needed", json_object_new_boolean(f->need == NEEDED));
	cli_json_str(o, "what", f->what);
	cli_json_str(o, "cost", yes ? NULL : f->cost);
	cli_json_str(o, "cure", yes ? NULL : f->cure);
	return o;
}

static struct json_object *broker_json(const struct check *c)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "reachable", json_object_new_boolean(c->broker_err == 0));
	cli_json_str(o, "socket", c->broker.path);
	if (c->broker_err == 0)
		cli_json_u64(o, "pid", c->broker.welcome.broker_pid);
	cli_json_str(o, "error", c->broker_err ? c->broker_text : NULL);
	json_object_object_add(o, "lends_userfaultfd", json_object_new_boolean(c->lent));
	return o;
}

static void print_json(const struct check *c)
{
	struct json_object *o = json_object_new_object();
	struct json_object *list = json_object_new_object();
	struct json_object *values = json_object_new_object();

	cli_json_str(o, "version", SAMEPAGE_VERSION);
	cli_json_str(o, "release", c->have.release);
	json_object_object_add(o, "works", json_object_new_boolean(works(c)));
	cli_json_str(o, "verdict", verdict(c));
	cli_json_str(o, "primitive", !works(c) ? NULL
				     : sys_probe_kernel_merges(&c->have) ? "kernel" : "remap");
	json_object_object_add(o, "can_freeze", json_object_new_boolean(c->freeze_err == 0));
	for (size_t i = 0; i < FEATURES; i++)
		json_object_object_add(list, features[i].name, feature_json(c, &features[i]));
	json_object_object_add(o, "features", list);
	for (size_t i = 0; i < SETTINGS; i++)
		json_object_object_add(values, settings[i].name,
				       json_object_new_int64(setting_value(c, &settings[i])));
	cli_json_str(values, "thp", c->have.thp);
	cli_json_u64(values, "memory_bytes", c->have.memory_bytes);
	json_object_object_add(o, "settings", values);
	json_object_object_add(o, "broker", broker_json(c));
	cli_json_print(o);
	json_object_put(o);
}

int cli_check(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct check check = { 0 };
	bool json = false;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":jh", longs, NULL)) != -1) {
		if (c == 'j')
			json = true;
		else if (c == 'h') {
			usage(stdout);
			return cli_finish(CLI_DONE);
		} else
			return cli_usage_error("check", "unknown option '%s'", argv[optind - 1]);
	}
	if (optind < argc)
		return cli_usage_error("check", "'%s' is one word too many", argv[optind]);
	gather(&check);
	if (json)
		print_json(&check);
	else
		print_text(&check);
	return cli_finish(works(&check) ? CLI_DONE : CLI_FAILED);
}
