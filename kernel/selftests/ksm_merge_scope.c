// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who may share with whom: two pages become one only if both are in one scope. What is
 * found out here from the outside - frames and counters - is what a stranger could find
 * out as well.
 */
#define _GNU_SOURCE
#include "ksm_merge_common.h"

#define PAGES 64

static int scope_set(long op, uint64_t cookie)
{
	return prctl(PR_SET_MEMORY_MERGE_SCOPE, op, cookie, 0, 0);
}

static int scope_get(uint64_t *cookie)
{
	return prctl(PR_GET_MEMORY_MERGE_SCOPE, cookie, 0, 0, 0);
}

/* How somebody merges: as which user, in which scope. */
struct who {
	uid_t uid;
	long op;		/* -1: says nothing */
	uint64_t cookie;
	bool ksmd;		/* lets ksmd do it */
	bool zeros;
};

static void become(const struct who *w)
{
	if (w->uid) {
		need(!setgid(w->uid) && !setuid(w->uid), "setuid: %s", strerror(errno));
		/* For /proc/self/ksm_stat. */
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	}
	if (w->op >= 0)
		need(!scope_set(w->op, w->cookie), "scope: %s", strerror(errno));
}

/*
 * A process of @w's with pages of @seed. It says how many of them are KSM's when it is
 * asked. Frames cannot be read without privilege, so counters have to do here, and the
 * mapcounts of whoever is privileged.
 */
static struct child actor(const struct who *w, uint64_t seed)
{
	struct child c = spawn();
	struct merge_stat s;
	char *a;

	if (c.pid)
		return c;
	become(w);
	a = w->zeros ? map_pages(PAGES) : map_filled(PAGES, seed);
	if (w->zeros)
		for (int i = 0; i < PAGES; i++)
			put_byte(a + i * page_size, 0);
	if (w->ksmd)
		need(!madvise(a, PAGES * page_size, MADV_MERGEABLE), "MADV_MERGEABLE");
	tell(c.to, 1);
	for (;;) {
		uint64_t what = hear(c.from);

		if (!what)
			break;
		if (!w->ksmd) {
			need(!madvise(a, PAGES * page_size, MADV_MERGE), "%s", strerror(errno));
			s = stat_of(getpid());
			check(s.looked == s.merged + s.already + s.zero + s.unique + s.busy +
			      s.skipped, "%s", stat_text(&s));
		}
		tell(c.to, stat_field(getpid(), "ksm_merging_pages") +
		     stat_field(getpid(), "ksm_zero_pages"));
	}
	if (!w->zeros)
		check(!differs(a, PAGES, seed), "contents");
	child_exit();
}

static uint64_t ask(struct child *c)
{
	tell(c->to, 1);
	return hear(c->from);
}

static void dismiss(struct child *c)
{
	tell(c->to, 0);
	reap(c);
}

/* Two processes with the same pages: how many of the second's are merged. */
static long together(struct who one, struct who two)
{
	uint64_t seed = new_seed();
	struct child a = actor(&one, seed), b;
	long n;

	hear(a.from);
	ask(&a);
	b = actor(&two, seed);
	hear(b.from);
	ask(&b);
	if (one.ksmd || two.ksmd)
		ksmd_scan();
	/* Once more, now that both have been seen. */
	ask(&a);
	n = ask(&b);
	dismiss(&a);
	dismiss(&b);
	return n;
}

#define SAYS_NOTHING -1
#define GLOBAL PR_MEMORY_MERGE_SCOPE_GLOBAL
#define USER PR_MEMORY_MERGE_SCOPE_USER

#define are_together(a, b, what) do {						\
	long __n = together((struct who)a, (struct who)b);			\
	check(__n == PAGES, "%s: %ld of %d are merged", what, __n, PAGES);	\
} while (0)
#define are_apart(a, b, what) do {						\
	long __n = together((struct who)a, (struct who)b);			\
	check(__n == 0, "%s: %ld of %d are merged", what, __n, PAGES);		\
} while (0)
#define WHO(...) { __VA_ARGS__ }

static void test_same(void)
{
	are_together(WHO(0, SAYS_NOTHING), WHO(0, SAYS_NOTHING), "nobody says anything");
	are_together(WHO(1000, SAYS_NOTHING), WHO(1000, SAYS_NOTHING), "one user");
	are_together(WHO(1000, USER, 77), WHO(1000, USER, 77), "one cookie");
	are_together(WHO(1000, USER, 0), WHO(1000, SAYS_NOTHING), "cookie 0 is the default");
	are_together(WHO(0, GLOBAL), WHO(0, GLOBAL), "global");
	are_together(WHO(0, GLOBAL), WHO(1000, GLOBAL), "global, two users");
}

static void test_apart(void)
{
	/* With something that works, first. */
	are_together(WHO(1000, SAYS_NOTHING), WHO(1000, SAYS_NOTHING), "one user");
	are_apart(WHO(0, SAYS_NOTHING), WHO(1000, SAYS_NOTHING), "root and a user");
	are_apart(WHO(1000, SAYS_NOTHING), WHO(1001, SAYS_NOTHING), "two users");
	are_apart(WHO(1000, USER, 77), WHO(1000, USER, 78), "two cookies");
	are_apart(WHO(1000, USER, 77), WHO(1000, SAYS_NOTHING), "a cookie and none");
	are_apart(WHO(1000, USER, 77), WHO(1001, USER, 77), "one cookie, two users");
	are_apart(WHO(1000, USER, 77), WHO(0, USER, 77), "one cookie, a user and root");
	are_apart(WHO(1000, GLOBAL), WHO(1000, SAYS_NOTHING), "global and the user's");
	are_apart(WHO(1000, SAYS_NOTHING), WHO(1000, GLOBAL), "the user's and global");
	are_apart(WHO(1000, USER, 1), WHO(1000, USER, 1ull << 32 | 1),
		  "cookies whose lower halves are one");
	are_apart(WHO(1000, USER, 1ull << 63), WHO(1000, USER, 0), "the highest bit");
}

/* With pages that are merged already, not only with candidates. */
static void test_apart_merged(void)
{
	static const struct who strangers[] = {
		{ 1000, USER, 5 }, { 1000, USER, 6 }, { 1001, USER, 5 }, { 0, USER, 5 },
		{ 1000, GLOBAL }, { 1000, SAYS_NOTHING },
	};
	struct child c[ARRAY_SIZE(strangers)][2];
	uint64_t seed = new_seed();
	size_t n = ARRAY_SIZE(strangers);

	/* Two each, the same pages for all. */
	for (size_t i = 0; i < n; i++) {
		for (int j = 0; j < 2; j++) {
			c[i][j] = actor(&strangers[i], seed);
			hear(c[i][j].from);
			ask(&c[i][j]);
		}
	}
	for (size_t i = 0; i < n; i++)
		for (int j = 0; j < 2; j++)
			check(ask(&c[i][j]) == PAGES, "%zu, %d", i, j);
	/* A frame for each scope and page: no less would do, and no more is needed. */
	check(ksm_get("pages_shared") == (long)n * PAGES, "%ld frames, not %zu",
	      ksm_get("pages_shared"), n * PAGES);
	check(ksm_get("pages_sharing") == (long)n * PAGES, "%ld", ksm_get("pages_sharing"));
	for (size_t i = 0; i < n; i++)
		for (int j = 0; j < 2; j++)
			dismiss(&c[i][j]);
}

static void test_zeros(void)
{
	long old = ksm_get("use_zero_pages");

	ksm_set("use_zero_pages", 1);
	are_together(WHO(1000, USER, 1, .zeros = true), WHO(1001, USER, 2, .zeros = true),
		     "zero pages are everybody's");
	are_together(WHO(1000, GLOBAL, 0, .zeros = true), WHO(0, USER, 2, .zeros = true),
		     "zero pages are everybody's");
	ksm_set("use_zero_pages", old);
}

/* ksmd keeps to them as well; and who says nothing to it is where everybody was. */
static void test_ksmd(void)
{
	are_together(WHO(0, SAYS_NOTHING, 0, true), WHO(1000, SAYS_NOTHING, 0, true),
		     "as it has always been");
	are_together(WHO(1000, USER, 3, true), WHO(1000, USER, 3, true), "one scope");
	are_apart(WHO(1000, USER, 3, true), WHO(1000, USER, 4, true), "two cookies");
	are_apart(WHO(1000, USER, 3, true), WHO(1001, USER, 3, true), "two users");
	are_apart(WHO(1000, USER, 3, true), WHO(1000, SAYS_NOTHING, 0, true), "one and none");
	are_together(WHO(1000, USER, 3), WHO(1000, USER, 3, true), "by call, and by ksmd");
	are_together(WHO(1000, USER, 3, true), WHO(1000, USER, 3), "by ksmd, and by call");
	are_apart(WHO(1000, SAYS_NOTHING), WHO(1000, SAYS_NOTHING, 0, true),
		  "by call, and by ksmd, nobody says anything");
	are_apart(WHO(1000, USER, 3), WHO(1000, SAYS_NOTHING, 0, true), "by call, and by ksmd");
	are_apart(WHO(1000, SAYS_NOTHING, 0, true), WHO(1000, USER, 3), "by ksmd, and by call");
}

static void test_prctl(void)
{
	uint64_t cookie = 99, seed = new_seed();
	struct child c;
	char *a;

	check(scope_get(NULL) == GLOBAL, "%d", scope_get(NULL));
	check(scope_set(2, 0) == -1 && errno == EINVAL, "no such op");
	check(scope_set(-1, 0) == -1 && errno == EINVAL, "no such op");
	check(prctl(PR_SET_MEMORY_MERGE_SCOPE, USER, 1, 1, 0) == -1 && errno == EINVAL, "arg4");
	check(prctl(PR_SET_MEMORY_MERGE_SCOPE, USER, 1, 0, 1) == -1 && errno == EINVAL, "arg5");
	check(prctl(PR_GET_MEMORY_MERGE_SCOPE, 8, 0, 0, 0) == -1 && errno == EFAULT, "EFAULT");
	check(!scope_set(USER, 0x123456789abcdefull), "%s", strerror(errno));
	check(scope_get(&cookie) == USER && cookie == 0x123456789abcdefull, "%#lx", (long)cookie);
	check(!scope_set(USER, 7), "it can be changed while nothing is merged");
	check(!scope_set(GLOBAL, 0), "and given up");
	check(!scope_set(USER, 7), "and taken");
	a = map_filled(PAGES, seed);
	need(!madvise(a, PAGES * page_size, MADV_MERGE), "%s", strerror(errno));
	check(scope_set(USER, 8) == -1 && errno == EBUSY, "with candidates: %s", strerror(errno));
	check(scope_set(GLOBAL, 0) == -1 && errno == EBUSY, "with candidates: %s",
	      strerror(errno));
	check(!scope_set(USER, 7), "the same again: %s", strerror(errno));
	check(scope_get(&cookie) == USER && cookie == 7, "%#lx", (long)cookie);

	/* Inherited by fork. */
	c = spawn();
	if (!c.pid) {
		cookie = 99;
		check(scope_get(&cookie) == USER && cookie == 7, "%#lx", (long)cookie);
		child_exit();
	}
	reap(&c);
	/* Not by exec. */
	c = spawn();
	if (!c.pid) {
		execl("/proc/self/exe", "ksm_merge_scope", "--scope", (char *)NULL);
		_exit(99);
	}
	reap(&c);

	/* The first call decides, if nobody has. */
	c = spawn();
	if (!c.pid) {
		execl("/proc/self/exe", "ksm_merge_scope", "--first", (char *)NULL);
		_exit(99);
	}
	reap(&c);
}

static int exec_scope(void)
{
	return scope_get(NULL) == GLOBAL ? 0 : 1;
}

static int exec_first(void)
{
	uint64_t cookie = 99;
	char *a;

	page_size = sysconf(_SC_PAGESIZE);
	a = map_filled(4, 1);
	if (madvise(a, 4 * page_size, MADV_MERGE))
		return 2;
	return scope_get(&cookie) == USER && cookie == 0 ? 0 : 1;
}

#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif
#ifndef __NR_process_madvise
#define __NR_process_madvise 440
#endif

/*
 * Root merges other people's memory: theirs stays theirs. If their scope came from who
 * makes the call, all whom a daemon of root's merges would be in one.
 */
static void test_by_root(void)
{
	struct who users[2] = { { 1000, SAYS_NOTHING }, { 1001, SAYS_NOTHING } };
	uint64_t seed = new_seed();
	struct child c[4];
	char *at[4];

	for (int i = 0; i < 4; i++) {
		c[i] = spawn();
		if (!c[i].pid) {
			char *a;

			become(&users[i / 2]);
			a = map_filled(PAGES, seed);
			tell(c[i].to, (uintptr_t)a);
			hear(c[i].from);
			tell(c[i].to, stat_field(getpid(), "ksm_merging_pages"));
			hear(c[i].from);
			check(!differs(a, PAGES, seed), "contents");
			child_exit();
		}
		at[i] = (char *)hear(c[i].from);
	}
	for (int i = 0; i < 4; i++) {
		struct iovec iov = { at[i], PAGES * page_size };
		int fd = syscall(__NR_pidfd_open, c[i].pid, 0);
		long ret = syscall(__NR_process_madvise, fd, &iov, 1, MADV_MERGE, 0);

		need(ret == (long)(PAGES * page_size), "%ld %s", ret, strerror(errno));
		close(fd);
	}
	check(ksm_get("pages_shared") == 2 * PAGES, "%ld frames for two users, not %d",
	      ksm_get("pages_shared"), 2 * PAGES);
	for (int i = 0; i < 4; i++) {
		tell(c[i].to, 1);
		check(hear(c[i].from) == PAGES, "%d", i);
	}
	for (int i = 0; i < 4; i++) {
		tell(c[i].to, 1);
		reap(&c[i]);
	}
}

/* Another user namespace's 0 is not root. */
static void test_user_namespace(void)
{
	uint64_t seed = new_seed();
	struct who root = { 0, SAYS_NOTHING };
	struct child a, c;
	char map[64];

	if (access("/proc/self/ns/user", F_OK))
		skip("no user namespaces");
	/* It works without. */
	are_together(WHO(0, SAYS_NOTHING), WHO(0, SAYS_NOTHING), "root");
	a = actor(&root, seed);
	hear(a.from);
	ask(&a);
	c = spawn();
	if (!c.pid) {
		struct merge_stat s;
		char *p;

		need(!setgid(1000) && !setuid(1000), "setuid");
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
		need(!unshare(CLONE_NEWUSER), "unshare: %s", strerror(errno));
		snprintf(map, sizeof(map), "0 1000 1\n");
		need(!write_text("/proc/self/uid_map", map), "uid_map");
		need(!getuid() && !geteuid(), "not 0");
		p = map_filled(PAGES, seed);
		need(!madvise(p, PAGES * page_size, MADV_MERGE), "%s", strerror(errno));
		s = stat_of(getpid());
		check(s.unique == PAGES, "%s", stat_text(&s));
		child_exit();
	}
	reap(&c);
	check(ask(&a) == 0, "root's pages were merged with a stranger's");
	dismiss(&a);
}

/* They are not kept longer than somebody is in them. */
static void test_many(void)
{
	long before = slab_objects("ksm_scope"), after;
	struct child c;

	are_together(WHO(1000, USER, 9), WHO(1000, USER, 9), "one scope");
	for (int i = 0; i < 300; i++) {
		c = spawn();
		if (!c.pid) {
			char *a = map_filled(4, i);
			char *b = map_filled(4, i);

			need(!scope_set(USER, i + 1), "%s", strerror(errno));
			need(!madvise(a, 4 * page_size, MADV_MERGE), "%s", strerror(errno));
			need(!madvise(b, 4 * page_size, MADV_MERGE), "%s", strerror(errno));
			need(count_same(a, b, 4) == 4, "%zu", count_same(a, b, 4));
			child_exit();
		}
		reap(&c);
	}
	for (int i = 0; i < 100; i++) {
		after = slab_objects("ksm_scope");
		if (after <= before + 100)
			break;
		sleep_msec(50);
	}
	check(after <= before + 100, "%ld scopes, then %ld", before, after);
}

/* max_page_sharing in each scope for itself; no chain leads into another. */
static void test_chains(void)
{
	long max = ksm_get("max_page_sharing");
	struct child c[4];
	uint64_t seed = new_seed();

	need(!ksm_set_soon("max_page_sharing", 2), "max_page_sharing");
	for (int i = 0; i < 4; i++) {
		c[i] = spawn();
		if (!c[i].pid) {
			char *a = map_pages(PAGES);

			need(!scope_set(USER, i / 2), "%s", strerror(errno));
			for (int j = 0; j < PAGES; j++)
				fill_page(a + j * page_size, seed);
			need(!madvise(a, PAGES * page_size, MADV_MERGE), "%s", strerror(errno));
			for (int j = 0; j < PAGES; j++)
				tell(c[i].to, pfn_of(a + j * page_size));
			hear(c[i].from);
			for (int j = 0; j < PAGES; j++)
				check(page_is(a + j * page_size, seed), "contents");
			child_exit();
		}
	}
	{
		unsigned long pfn[4][PAGES];
		int both = 0;

		for (int i = 0; i < 4; i++)
			for (int j = 0; j < PAGES; j++)
				pfn[i][j] = hear(c[i].from);
		for (int i = 0; i < 2; i++)
			for (int k = 2; k < 4; k++)
				for (int j = 0; j < PAGES; j++)
					for (int l = 0; l < PAGES; l++)
						both += pfn[i][j] == pfn[k][l];
		check(!both, "%d frames are in two scopes", both);
	}
	check(ksm_get("pages_sharing") > PAGES, "%ld", ksm_get("pages_sharing"));
	for (int i = 0; i < 4; i++) {
		tell(c[i].to, 1);
		reap(&c[i]);
	}
	ksm_set("run", 2);
	ksm_set("run", 0);
	check(!ksm_set_soon("max_page_sharing", max), "max_page_sharing is stuck");
}

static const struct test tests[] = {
	{ "scope: the same", test_same },
	{ "scope: apart", test_apart },
	{ "scope: apart when merged", test_apart_merged },
	{ "scope: zero pages", test_zeros },
	{ "scope: ksmd", test_ksmd },
	{ "scope: prctl", test_prctl },
	{ "scope: root merges for others", test_by_root },
	{ "scope: user namespace", test_user_namespace },
	{ "scope: many, one after another", test_many },
	{ "scope: max_page_sharing", test_chains },
};

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--scope"))
		return exec_scope();
	if (argc > 1 && !strcmp(argv[1], "--first"))
		return exec_first();
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}
