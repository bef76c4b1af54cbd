// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the rest of the memory management does with pages that MADV_MERGE has merged:
 * reclaim, migration, compaction, memory that fails or is taken away. All of it has to
 * find every mapping of a page, also when the mapping was moved, split, or inherited by
 * a process whose parent has gone. And how the mappings of a process look that has all
 * of its memory merged.
 */
#define _GNU_SOURCE
#include "ksm_merge_common.h"

#include <pthread.h>

#define PAGES 256

#ifndef MADV_FREE
#define MADV_FREE 8
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define MPOL_BIND_MODE 2
#define MOVE_ALL 4

static char group[128];

/*
 * A memory cgroup of one's own
 */

static void group_enter(void)
{
	char path[160];

	snprintf(group, sizeof(group), "/sys/fs/cgroup/ksm_merge_%d", (int)getpid());
	if (mkdir(group, 0755) && errno != EEXIST)
		skip("%s: %s", group, strerror(errno));
	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	if (access(path, F_OK))
		skip("no memory.reclaim");
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	need(!write_text(path, "0"), "cgroup.procs");
}

static void group_leave(void)
{
	need(!write_text("/sys/fs/cgroup/cgroup.procs", "0"), "cgroup.procs");
}

static int group_remove(void)
{
	double end = now() + 5;

	while (rmdir(group)) {
		if (errno != EBUSY || now() > end)
			return -errno;
		sleep_msec(10);
	}
	return 0;
}

static long group_pages(void)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/memory.current", group);
	return read_long(path) / (long)page_size;
}

static size_t count_swapped(const char *p, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += !!(entry_of(p + i * page_size) & PM_SWAP);
	return n;
}

/*
 * Ask for more than there is until @p is out. Reclaim goes by statistics that lag behind,
 * so it may take a while to see that all it has left is what it called active.
 */
static void group_reclaim(const char *p, size_t pages)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	for (int i = 0; i < 60; i++) {
		write_text(path, "32M");
		if (count_swapped(p, pages) == pages)
			break;
		sleep_msec(i < 5 ? 1 : 50);
	}
}

static void need_swap(void)
{
	char buf[1024], *line;

	if (read_text("/proc/swaps", buf, sizeof(buf)) <= 0)
		skip("no swap");
	line = strchr(buf, '\n');
	if (!line || !line[1])
		skip("no swap");
}

/* Out, and in again: @a and @b have the same frames and @seed's contents. */
static void out_and_in(char *a, char *b, size_t pages, uint64_t seed, const char *what)
{
	size_t out_a, out_b;

	group_reclaim(a, pages);
	group_reclaim(b, pages);
	out_a = count_swapped(a, pages);
	out_b = count_swapped(b, pages);
	check(out_a >= pages * 9 / 10 && out_b >= pages * 9 / 10,
	      "%s: %zu and %zu of %zu went out", what, out_a, out_b, pages);
	for (size_t i = 0; i < pages; i++) {
		bool gone_a = entry_of(a + i * page_size) & PM_SWAP;
		bool gone_b = entry_of(b + i * page_size) & PM_SWAP;

		check(gone_a == gone_b, "%s: page %zu went out of one only", what, i);
	}
	check(!differs(b, pages, seed), "%s: contents", what);
	/* Written to at once, not read first. */
	for (size_t i = 0; i < pages; i += 2)
		flip_byte(a + i * page_size, 0);
	check(!differs(a, pages, seed), "%s: contents", what);
}

static void test_swap(void)
{
	uint64_t seed = new_seed();
	struct child c;
	char *a, *b;

	need_swap();
	group_enter();
	merged_pair(a, b, PAGES, seed);
	out_and_in(a, b, PAGES, seed, "two mappings");
	/* What has come back is as good as new. */
	merge_pages(a, PAGES, NULL);
	merge_pages(b, PAGES, NULL);
	check(count_same(a, b, PAGES) == PAGES, "%zu", count_same(a, b, PAGES));
	fill_page(a, ~seed);
	check(page_is(b, seed), "contents");
	fill_page(a, seed);
	merge_pages(a, PAGES, NULL);

	/* Three generations. */
	c = spawn();
	if (!c.pid) {
		struct child d = spawn();

		if (!d.pid) {
			tell(d.to, 1);
			hear(d.from);
			check(count_swapped(a, PAGES) >= PAGES * 9 / 10, "grandchild: %zu",
			      count_swapped(a, PAGES));
			check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
			child_exit();
		}
		hear(d.from);
		tell(c.to, 1);
		hear(c.from);
		check(count_swapped(b, PAGES) >= PAGES * 9 / 10, "child: %zu",
		      count_swapped(b, PAGES));
		tell(d.to, 1);
		reap(&d);
		check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
		child_exit();
	}
	hear(c.from);
	group_reclaim(a, PAGES);
	check(count_swapped(a, PAGES) >= PAGES * 9 / 10, "%zu", count_swapped(a, PAGES));
	tell(c.to, 1);
	reap(&c);
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	unmap_pages(a, PAGES);
	unmap_pages(b, PAGES);
	group_leave();
	check(!group_remove(), "the group stays: %s", strerror(errno));
}

/* Merged with what is in swap: not before it has come back. */
static void test_swap_then_merge(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	need_swap();
	group_enter();
	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, NULL);
	group_reclaim(a, PAGES);
	check(count_swapped(a, PAGES) >= PAGES * 9 / 10, "%zu", count_swapped(a, PAGES));
	b = map_filled(PAGES, seed);
	merge_pages(b, PAGES, &s);
	check(!differs(b, PAGES, seed), "contents");
	check(!differs(a, PAGES, seed), "contents");
	/* The swap cache may hold on to the pages a while: as long as they are clean. */
	for (int i = 0; i < PAGES; i++)
		flip_byte(a + i * page_size, 0);
	for (int i = 0; i < 20 && count_same(a, b, PAGES) < PAGES; i++) {
		merge_pages(a, PAGES, NULL);
		merge_pages(b, PAGES, NULL);
		sleep_msec(i);
	}
	check(count_same(a, b, PAGES) == PAGES, "%zu", count_same(a, b, PAGES));
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	group_leave();
}

/*
 * Given back with MADV_FREE, and merged before anybody took it: the one who did not give it
 * back keeps it. Who did, sees the contents or zeros.
 */
static void test_lazy_free(void)
{
	uint64_t seed = new_seed();
	char *a, *b, *c, zeros[64] = { 0 };

	need_swap();
	group_enter();
	merged_pair(b, c, PAGES, seed + 5000);
	a = map_filled(PAGES, seed);
	need(!madvise(a, PAGES * page_size, MADV_FREE), "MADV_FREE: %s", strerror(errno));
	merge_pages(a, PAGES, NULL);
	b = map_filled(PAGES, seed);
	merge_pages(b, PAGES, NULL);
	group_reclaim(b, PAGES);
	check(!differs(b, PAGES, seed), "contents");
	for (int i = 0; i < PAGES; i++)
		check(page_is(a + i * page_size, seed + i) ||
		      !memcmp(a + i * page_size, zeros, sizeof(zeros)), "page %d", i);
	/* The other way round. */
	seed = new_seed();
	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, NULL);
	b = map_filled(PAGES, seed);
	need(!madvise(b, PAGES * page_size, MADV_FREE), "MADV_FREE: %s", strerror(errno));
	merge_pages(b, PAGES, NULL);
	need(!madvise(b, PAGES * page_size, MADV_FREE), "MADV_FREE: %s", strerror(errno));
	group_reclaim(a, PAGES);
	check(!differs(a, PAGES, seed), "contents");
	for (int i = 0; i < PAGES; i++)
		check(page_is(b + i * page_size, seed + i) ||
		      !memcmp(b + i * page_size, zeros, sizeof(zeros)), "page %d", i);
	group_leave();
}

/* Moved, split, inherited: reclaim finds the mapping all the same. */
static void test_swap_moved(void)
{
	size_t len = PAGES * page_size, half = len / 2;
	uint64_t seed = new_seed();
	struct child c;
	char *a, *b, *to, *room;
	int up[2];

	need_swap();
	group_enter();
	merged_pair(a, b, PAGES, seed);
	to = map_pages(PAGES);
	need(mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
	merge_pages(to, PAGES, NULL);
	merge_pages(b, PAGES, NULL);
	need(count_same(to, b, PAGES) == PAGES, "%zu", count_same(to, b, PAGES));
	out_and_in(to, b, PAGES, seed, "moved and merged again");

	/* Without another look at what was moved. */
	seed = new_seed();
	unmap_pages(to, PAGES);
	unmap_pages(b, PAGES);
	merged_pair(a, b, PAGES, seed);
	to = map_pages(PAGES);
	need(mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
	/* Others in the old place. */
	need(mmap(a, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		  -1, 0) == a, "mmap");
	madvise(a, len, MADV_NOHUGEPAGE);
	fill(a, PAGES, seed + 10000);
	out_and_in(to, b, PAGES, seed, "moved");
	check(!differs(a, PAGES, seed + 10000), "contents");
	unmap_pages(a, PAGES);
	unmap_pages(to, PAGES);
	unmap_pages(b, PAGES);

	/* Moved in two halves, that change places. */
	seed = new_seed();
	merged_pair(a, b, PAGES, seed);
	room = map_pages(PAGES);
	need(mremap(a, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, room + half) == room + half &&
	     mremap(a + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room, "mremap");
	group_reclaim(room, PAGES);
	group_reclaim(b, PAGES);
	check(count_swapped(room, PAGES) >= PAGES * 9 / 10 &&
	      count_swapped(b, PAGES) >= PAGES * 9 / 10, "halves: %zu %zu",
	      count_swapped(room, PAGES), count_swapped(b, PAGES));
	check(!differs(room, PAGES / 2, seed + PAGES / 2) &&
	      !differs(room + half, PAGES / 2, seed), "contents");
	unmap_pages(room, PAGES);
	unmap_pages(b, PAGES);

	/* Split, and one again. */
	seed = new_seed();
	merged_pair(a, b, PAGES, seed);
	mprotect(a + half, page_size, PROT_READ);
	group_reclaim(a, PAGES);
	check(count_swapped(a, PAGES) >= PAGES * 9 / 10, "split: %zu", count_swapped(a, PAGES));
	mprotect(a + half, page_size, PROT_READ | PROT_WRITE);
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	merge_pages(a, PAGES, NULL);
	merge_pages(b, PAGES, NULL);
	mprotect(a, page_size, PROT_READ);
	mprotect(a, page_size, PROT_READ | PROT_WRITE);
	out_and_in(a, b, PAGES, seed, "split and one again");
	unmap_pages(a, PAGES);
	unmap_pages(b, PAGES);

	/* The old place stays, and is filled anew. */
	seed = new_seed();
	merged_pair(a, b, PAGES, seed);
	to = mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	if (to != MAP_FAILED) {
		check(!a[0], "left behind");
		fill(a, PAGES, seed + 20000);
		out_and_in(to, b, PAGES, seed, "left standing");
		check(!differs(a, PAGES, seed + 20000), "contents");
	}

	/* An orphan. */
	need(!pipe(up), "pipe");
	c = spawn();
	if (!c.pid) {
		seed = new_seed();
		merged_pair(a, b, PAGES, seed);
		if (fork()) {
			fflush(stdout);
			_exit(0);
		}
		prctl(PR_SET_PDEATHSIG, 0);
		close(c.to);
		sleep_msec(200);
		out_and_in(a, b, PAGES, seed, "inherited");
		fflush(stdout);
		tell(up[1], failed);
		_exit(0);
	}
	close(up[1]);
	reap(&c);
	check(!hear(up[0]), "the orphan failed");
	group_leave();
}

/*
 * Nodes
 */

static int node_of(void *p)
{
	int status = -1000;

	if (syscall(__NR_move_pages, 0, 1ul, &p, NULL, &status, 0))
		return -errno;
	return status;
}

/* Move pages and whoever else maps them; how many got there. */
static size_t move_to(char *p, size_t pages, int node)
{
	void **at = calloc(pages, sizeof(*at));
	int *nodes = calloc(pages, sizeof(*nodes)), *status = calloc(pages, sizeof(*status));
	size_t n = 0;

	for (size_t i = 0; i < pages; i++) {
		at[i] = p + i * page_size;
		nodes[i] = node;
	}
	for (int try = 0; try < 10; try++) {
		syscall(__NR_move_pages, 0, (unsigned long)pages, at, nodes, status, MOVE_ALL);
		n = 0;
		for (size_t i = 0; i < pages; i++)
			n += node_of(at[i]) == node;
		if (n == pages)
			break;
		sleep_msec(5);
	}
	free(at);
	free(nodes);
	free(status);
	return n;
}

static void need_nodes(void)
{
	if (access("/sys/devices/system/node/node1", F_OK))
		skip("one node only");
}

static void bind_to(char *p, size_t pages, int node)
{
	unsigned long mask = 1ul << node;

	need(!syscall(__NR_mbind, p, pages * page_size, MPOL_BIND_MODE, &mask, 8ul, 0), "mbind: %s",
	     strerror(errno));
}

/* There and back: both mappings follow. */
static void there_and_back(char *a, char *b, size_t pages, uint64_t seed, const char *what)
{
	for (int node = 1; node >= 0; node--) {
		size_t n = move_to(node ? a : b, pages, node);

		check(n == pages, "%s: %zu of %zu are on node %d", what, n, pages, node);
		check(count_same(a, b, pages) == pages, "%s: %zu of %zu are one", what,
		      count_same(a, b, pages), pages);
		check(!differs(a, pages, seed) && !differs(b, pages, seed), "%s: contents", what);
	}
}

static void test_migrate(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	struct child c;
	size_t same = 0;
	char *a, *b, *d;

	need_nodes();
	merged_pair(a, b, PAGES, seed);
	there_and_back(a, b, PAGES, seed, "two mappings");
	move_to(a, PAGES, 1);
	d = map_filled(PAGES, seed);
	merge_pages(d, PAGES, &s);
	check(count_same(a, d, PAGES) == PAGES, "%zu; %s", count_same(a, d, PAGES), stat_text(&s));

	c = spawn();
	if (!c.pid) {
		for (int i = 0; i < PAGES; i++)
			tell(c.to, pfn_of(a + i * page_size));
		hear(c.from);
		for (int i = 0; i < PAGES; i++)
			tell(c.to, pfn_of(a + i * page_size));
		check(!differs(a, PAGES, seed), "contents");
		child_exit();
	}
	for (int i = 0; i < PAGES; i++)
		hear(c.from);
	move_to(a, PAGES, 0);
	tell(c.to, 1);
	for (int i = 0; i < PAGES; i++)
		same += hear(c.from) == pfn_of(b + i * page_size) && !node_of(b + i * page_size);
	check(same == PAGES, "child: %zu", same);
	reap(&c);
	fill(a, PAGES, ~seed);
	check(!differs(b, PAGES, seed) && !differs(d, PAGES, seed), "contents");
}

static void test_migrate_moved(void)
{
	size_t len = PAGES * page_size, half = len / 2;
	uint64_t seed = new_seed();
	char *a, *b, *to, *c;

	need_nodes();
	merged_pair(a, b, PAGES, seed);
	to = map_pages(PAGES);
	need(mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
	if (count_same(to, b, PAGES) == PAGES)
		there_and_back(to, b, PAGES, seed, "moved");
	merge_pages(to, PAGES, NULL);
	merge_pages(b, PAGES, NULL);
	there_and_back(to, b, PAGES, seed, "moved and merged again");

	/* Others in the old place, that are merged as well. */
	a = mmap(a, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	need(a != MAP_FAILED, "mmap");
	madvise(a, len, MADV_NOHUGEPAGE);
	fill(a, PAGES, seed + 10000);
	c = map_filled(PAGES, seed + 10000);
	merge_pages(a, PAGES, NULL);
	merge_pages(c, PAGES, NULL);
	merge_pages(to, PAGES, NULL);
	there_and_back(a, c, PAGES, seed + 10000, "in the old place");
	there_and_back(to, b, PAGES, seed, "beside the old place");
	there_and_back(a, c, PAGES, seed + 10000, "in the old place");

	/* Moved again, and back to where it once was. */
	need(mremap(a, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, map_pages(PAGES / 2)) !=
	     MAP_FAILED, "mremap");
	need(mremap(to, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, a) == a, "mremap");
	if (count_same(a, b, PAGES / 2) == PAGES / 2)
		there_and_back(a, b, PAGES / 2, seed, "back");
	check(!differs(a, PAGES / 2, seed), "contents");

	/* Split in two. */
	seed = new_seed();
	merged_pair(a, b, PAGES, seed);
	mprotect(a + half, page_size, PROT_READ);
	there_and_back(a, b, PAGES, seed, "split");
	mprotect(a + half, page_size, PROT_READ | PROT_WRITE);
	there_and_back(a, b, PAGES, seed, "one again");
	/* The lower half goes. */
	unmap_pages(a, PAGES / 2);
	there_and_back(a + half, b + half, PAGES / 2, seed + PAGES / 2, "half");
}

static void test_migrate_orphan(void)
{
	uint64_t seed = new_seed();
	struct child c;
	char *a, *b;
	int up[2];

	need_nodes();
	need(!pipe(up), "pipe");
	c = spawn();
	if (!c.pid) {
		merged_pair(a, b, PAGES, seed);
		if (fork()) {
			fflush(stdout);
			_exit(0);
		}
		prctl(PR_SET_PDEATHSIG, 0);
		close(c.to);
		sleep_msec(200);
		there_and_back(a, b, PAGES, seed, "inherited");
		fflush(stdout);
		tell(up[1], failed);
		_exit(0);
	}
	close(up[1]);
	reap(&c);
	check(!hear(up[0]), "the orphan failed");
}

/* Each node for itself. */
static void test_across_nodes(void)
{
	uint64_t seed = new_seed();
	char *a, *b, *c, *d;

	need_nodes();
	need(!ksm_set_soon("merge_across_nodes", 0), "merge_across_nodes");
	a = map_pages(PAGES);
	b = map_pages(PAGES);
	c = map_pages(PAGES);
	d = map_pages(PAGES);
	bind_to(a, PAGES, 0);
	bind_to(b, PAGES, 1);
	bind_to(c, PAGES, 0);
	bind_to(d, PAGES, 1);
	fill(a, PAGES, seed);
	fill(b, PAGES, seed);
	merge_pages(a, PAGES, NULL);
	merge_pages(b, PAGES, NULL);
	check(!count_same(a, b, PAGES), "%zu", count_same(a, b, PAGES));
	fill(c, PAGES, seed);
	merge_pages(c, PAGES, NULL);
	check(count_same(a, c, PAGES) == PAGES, "node 0: %zu", count_same(a, c, PAGES));
	fill(d, PAGES, seed);
	merge_pages(d, PAGES, NULL);
	check(count_same(b, d, PAGES) == PAGES, "node 1: %zu", count_same(b, d, PAGES));

	/* They change nodes, and so their trees. */
	move_to(a, PAGES, 1);
	check(count_same(a, c, PAGES) == PAGES, "moved: %zu", count_same(a, c, PAGES));
	for (int i = 0; i < 3; i++) {
		merge_pages(a, PAGES, NULL);
		merge_pages(c, PAGES, NULL);
	}
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed) && !differs(c, PAGES, seed) &&
	      !differs(d, PAGES, seed), "contents");
	check(count_same(a, c, PAGES) == PAGES, "moved: %zu", count_same(a, c, PAGES));
	unmap_pages(a, PAGES);
	unmap_pages(b, PAGES);
	unmap_pages(c, PAGES);
	unmap_pages(d, PAGES);
	ksm_set("run", 2);
	ksm_set("run", 0);
	check(!ksm_set_soon("merge_across_nodes", 1), "merge_across_nodes is stuck");
}

static void test_compact(void)
{
	uint64_t seed = new_seed();
	char *a, *b;

	merged_pair(a, b, PAGES * 4, seed);
	/* Holes. */
	for (int i = 0; i < PAGES * 4; i += 3)
		fill_page(a + i * page_size, seed + 100000 + i);
	if (write_text("/proc/sys/vm/compact_memory", "1"))
		skip("no compaction");
	for (int i = 0; i < PAGES * 4; i++)
		check(page_is(a + i * page_size, seed + i + (i % 3 ? 0 : 100000)), "page %d", i);
	check(!differs(b, PAGES * 4, seed), "contents");
	for (int i = 0; i < PAGES * 4; i++)
		if (i % 3)
			check(pfn_of(a + i * page_size) == pfn_of(b + i * page_size), "page %d", i);
}

/*
 * Memory cgroups
 */

static void test_memcg(void)
{
	uint64_t seed = new_seed();
	long before, after;
	char *a, *b;

	group_enter();
	a = map_filled(PAGES * 4, seed);
	b = map_filled(PAGES * 4, seed);
	before = group_pages();
	merge_pages(a, PAGES * 4, NULL);
	merge_pages(b, PAGES * 4, NULL);
	/* Freed, and not only said to be: the charge goes with the page. */
	for (int i = 0; i < 100; i++) {
		after = group_pages();
		if (after <= before - PAGES * 4 + 300)
			break;
		sleep_msec(20);
	}
	check(after <= before - PAGES * 4 + 300, "%ld pages, then %ld", before, after);
	check(count_same(a, b, PAGES * 4) == PAGES * 4, "%zu", count_same(a, b, PAGES * 4));
	unmap_pages(a, PAGES * 4);
	check(!differs(b, PAGES * 4, seed), "contents");
	unmap_pages(b, PAGES * 4);
	for (int i = 0; i < 100; i++) {
		after = group_pages();
		if (after <= before - PAGES * 8 + 300)
			break;
		sleep_msec(20);
	}
	check(after <= before - PAGES * 8 + 300, "%ld pages, then %ld", before, after);
	group_leave();
	check(!group_remove(), "the group stays");
}

/* The group that paid for it goes; the other goes on. */
static void test_memcg_goes(void)
{
	uint64_t seed = new_seed();
	struct child c;
	char *b;

	c = spawn();
	if (!c.pid) {
		char *a;

		group_enter();
		a = map_filled(PAGES, seed);
		merge_pages(a, PAGES, NULL);
		tell(c.to, 1);
		hear(c.from);
		child_exit();
	}
	hear(c.from);
	b = map_filled(PAGES, seed);
	merge_pages(b, PAGES, NULL);
	check(count_ksm(b, PAGES) == PAGES, "%zu", count_ksm(b, PAGES));
	tell(c.to, 1);
	snprintf(group, sizeof(group), "/sys/fs/cgroup/ksm_merge_%d", (int)c.pid);
	reap(&c);
	check(!group_remove(), "the group stays");
	check(!differs(b, PAGES, seed), "contents");
	if (!access("/sys/devices/system/node/node1", F_OK)) {
		move_to(b, PAGES, 1);
		check(move_to(b, PAGES, 0) == PAGES, "migration");
	}
	fill(b, PAGES / 2, ~seed);
	check(!differs(b + PAGES / 2 * page_size, PAGES / 2, seed + PAGES / 2), "contents");
}

/*
 * Failing memory
 */

static void test_soft_offline(void)
{
	uint64_t seed = new_seed();
	unsigned long pfn[8];
	char *a, *b;

	merged_pair(a, b, 8, seed);
	for (int i = 0; i < 8; i++)
		pfn[i] = pfn_of(a + i * page_size);
	for (int i = 0; i < 8; i++)
		if (madvise(a + i * page_size, page_size, MADV_SOFT_OFFLINE))
			skip("MADV_SOFT_OFFLINE: %s", strerror(errno));
	for (int i = 0; i < 8; i++) {
		check(pfn_of(a + i * page_size) != pfn[i], "page %d has not moved", i);
		check(pfn_of(a + i * page_size) == pfn_of(b + i * page_size), "page %d", i);
	}
	check(!differs(a, 8, seed) && !differs(b, 8, seed), "contents");
}

static void test_hwpoison(void)
{
	uint64_t seed = new_seed();
	struct child c, d;
	unsigned long pfn;
	bool concerned;
	char *b;
	int status;

	/* The one that owns the page first, in another process and moved. */
	c = spawn();
	if (!c.pid) {
		char *a = map_filled(4, seed), *to = map_pages(4);

		merge_pages(a, 4, NULL);
		tell(c.to, 1);
		hear(c.from);
		tell(c.to, is_ksm(a + page_size) ? pfn_of(a + page_size) : 0);
		if (!use_ksmd)
			need(mremap(a, 4 * page_size, 4 * page_size, MREMAP_MAYMOVE | MREMAP_FIXED,
				    to) == to, "mremap");
		else
			to = a;
		pfn = pfn_of(to + page_size);
		tell(c.to, pfn);
		/* What was unmerged when it was moved is not concerned. */
		if (pfn != hear(c.from)) {
			check(!differs(to, 4, seed), "contents");
			tell(c.to, 1);
			child_exit();
		}
		check(!pfn_of(to + page_size), "it maps the bad page still");
		check(page_is(to, seed) && !differs(to + 2 * page_size, 2, seed + 2), "contents");
		signal(SIGBUS, SIG_DFL);
		tell(c.to, 1);
		_exit(get_byte(to + page_size) & 0);
	}
	hear(c.from);
	b = map_filled(4, seed);
	merge_pages(b, 4, NULL);
	tell(c.to, 1);
	pfn = hear(c.from);
	need(pfn && pfn == pfn_of(b + page_size), "not merged");
	concerned = hear(c.from) == pfn;
	d = spawn();
	if (!d.pid) {
		signal(SIGBUS, SIG_IGN);
		_exit(madvise(b + page_size, page_size, MADV_HWPOISON) ? 2 : 0);
	}
	need(waitpid(d.pid, &status, 0) == d.pid, "waitpid");
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
		skip("no MADV_HWPOISON");
	check(!pfn_of(b + page_size), "the bad page is mapped still");
	tell(c.to, pfn);
	hear(c.from);
	need(waitpid(c.pid, &status, 0) == c.pid, "waitpid");
	if (concerned)
		check(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "status %#x", status);
	else
		check(!status, "status %#x", status);
	check(page_is(b, seed) && !differs(b + 2 * page_size, 2, seed + 2), "contents");
}

/* Blocks of memory are taken away and come back. */
static void test_hot_remove(void)
{
	uint64_t seed = new_seed();
	int blocks = 0, gone = 0;
	char *a, *b;

	merged_pair(a, b, PAGES * 4, seed);
	for (int i = 0; i < 64; i++) {
		char path[100], zones[100];

		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/valid_zones", i);
		if (read_text(path, zones, sizeof(zones)) <= 0 || !strstr(zones, "Movable"))
			continue;
		blocks++;
		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/online", i);
		if (write_text(path, "0")) {
			printf("# block %d: %s\n", i, strerror(errno));
			continue;
		}
		gone++;
		check(count_same(a, b, PAGES * 4) == PAGES * 4, "%zu", count_same(a, b, PAGES * 4));
		check(!differs(a, PAGES * 4, seed) && !differs(b, PAGES * 4, seed), "contents");
		merge_pages(a, PAGES * 4, NULL);
		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/state", i);
		check(!write_text(path, "online_movable"), "block %d does not come back", i);
	}
	if (!gone)
		skip("none of %d blocks can go", blocks);
	check(!differs(a, PAGES * 4, seed) && !differs(b, PAGES * 4, seed), "contents");
}

/*
 * All at once
 */

static bool stop;
static char *sides[2];
static unsigned long moves;

static void *mover(void *arg)
{
	int node = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		void *at[16];
		int nodes[16], status[16];
		int from = rand() % (PAGES - 16);

		for (int i = 0; i < 16; i++) {
			at[i] = sides[moves & 1] + (from + i) * page_size;
			nodes[i] = node;
		}
		node = !node;
		syscall(__NR_move_pages, 0, 16ul, at, nodes, status, MOVE_ALL);
		if (moves % 50 == 49)
			madvise(sides[0] + from * page_size, 16 * page_size, MADV_PAGEOUT);
		if (moves % 97 == 96)
			write_text("/proc/sys/vm/compact_memory", "1");
		moves++;
	}
	return NULL;
}

static void test_storm(void)
{
	uint64_t seed = new_seed(), *is[2];
	size_t len = PAGES * page_size;
	double end = now() + 5;
	unsigned long merged = 0;
	struct merge_stat s;
	pthread_t thread;
	char *spare;

	merged_pair(sides[0], sides[1], PAGES, seed);
	for (int i = 0; i < 2; i++) {
		is[i] = calloc(PAGES, sizeof(uint64_t));
		for (int j = 0; j < PAGES; j++)
			is[i][j] = seed + j;
	}
	spare = map_pages(PAGES);
	need(!pthread_create(&thread, NULL, mover, NULL), "pthread_create");
	while (now() < end) {
		int side = rand() % 2;

		for (int i = 0; i < 20; i++) {
			int at = rand() % PAGES;

			is[side][at] = seed + rand() % PAGES;
			fill_page(sides[side] + at * page_size, is[side][at]);
		}
		madvise(sides[side], len, MADV_MERGE);
		if (rand() % 8 == 0) {
			/* Under the mover's hands: it moves whatever is there. */
			char *old = sides[side];

			need(mremap(old, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == spare,
			     "mremap");
			sides[side] = spare;
			spare = old;
			need(mmap(spare, len, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == spare, "mmap");
			madvise(spare, len, MADV_NOHUGEPAGE);
		}
		for (int j = 0; j < PAGES; j++)
			check(page_is(sides[side] + j * page_size, is[side][j]), "side %d page %d",
			      side, j);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	s = stat_of(getpid());
	merged = s.merged;
	printf("# %lu moves, %lu merged\n", moves, merged);
	check(merged > PAGES, "%lu were merged", merged);
}

/*
 * Mappings of a process that has everything merged
 */

static int count_vmas(const char *from, const char *to)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char line[512];
	int n = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start < (uintptr_t)to &&
		    end > (uintptr_t)from)
			n++;
	if (f)
		fclose(f);
	return n;
}

static void test_vmas(void)
{
	char *area, *heap, *p;
	int fd, n = 1000;
	size_t len;

	if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		skip("PR_SET_MEMORY_MERGE: %s", strerror(errno));
	len = (n + 2) * page_size;
	area = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED, "mmap");
	munmap(area, len);
	for (int i = 0; i < n; i++) {
		p = mmap(area + (i + 1) * page_size, page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		need(p != MAP_FAILED, "mmap: %s", strerror(errno));
	}
	check(count_vmas(area + page_size, area + (n + 1) * page_size) == 1,
	      "anonymous: %d mappings", count_vmas(area + page_size, area + (n + 1) * page_size));
	munmap(area, len);

	/* Shared memory, one piece after another. */
	fd = memfd_create("vmas", 0);
	need(fd >= 0 && !ftruncate(fd, len), "memfd");
	for (int i = 0; i < n; i++) {
		p = mmap(area + (i + 1) * page_size, page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, i * page_size);
		need(p != MAP_FAILED, "mmap: %s", strerror(errno));
	}
	check(count_vmas(area + page_size, area + (n + 1) * page_size) == 1,
	      "memfd: %d mappings", count_vmas(area + page_size, area + (n + 1) * page_size));
	munmap(area, len);
	close(fd);

	/* The heap. */
	heap = sbrk(0);
	for (int i = 0; i < 100; i++)
		need(sbrk(page_size) != (void *)-1, "sbrk");
	check(count_vmas(heap, heap + 100 * page_size) == 1, "heap: %d mappings",
	      count_vmas(heap, heap + 100 * page_size));

	/* And they are merged all the same, by ksmd. */
	heap = (char *)(((uintptr_t)heap + page_size - 1) / page_size * page_size);
	fill_page(heap + page_size, 77);
	p = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(p != MAP_FAILED, "mmap");
	fill_page(p, 77);
	ksmd_scan();
	check(count_same(p, heap + page_size, 1) == 1, "ksmd does not merge them");
	check(page_is(p, 77) && page_is(heap + page_size, 77), "contents");

	/* Off again: nothing is merged, mappings still fit together. */
	check(!prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0), "%s", strerror(errno));
	check(!count_ksm(p, 1), "unmerged");
	check(page_is(p, 77) && page_is(heap + page_size, 77), "contents");
	/* ksmd alone drops what it knows of it, when it gets round. */
	ksm_set("run", 2);
	ksm_set("run", 0);
}

static const struct test tests[] = {
	{ "swap", test_swap, true },
	{ "swap, then merge", test_swap_then_merge },
	{ "swap of what was given back lazily", test_lazy_free, true },
	{ "swap of what was moved, split, inherited", test_swap_moved, true },
	{ "migration", test_migrate, true },
	{ "migration of what was moved and split", test_migrate_moved, true },
	{ "migration of what was inherited", test_migrate_orphan, true },
	{ "merge_across_nodes", test_across_nodes, true },
	{ "compaction", test_compact, true },
	{ "memory cgroup", test_memcg, true },
	{ "memory cgroup that goes", test_memcg_goes, true },
	{ "hot remove", test_hot_remove, true },
	{ "soft offline", test_soft_offline, true },
	{ "hardware poison", test_hwpoison, true },
	{ "storm", test_storm },
	{ "mappings of a process that merges all", test_vmas },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}
