// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of madvise(MADV_MERGE): what is merged, what must not be, what it tells of it,
 * and that no store is lost and nothing stays behind, with frames compared by their
 * numbers. ksm_merge_mm has the tests of reclaim, migration and failing memory,
 * ksm_merge_scope those of who may share with whom.
 */
#define _GNU_SOURCE
#include "ksm_merge_common.h"

#include <pthread.h>
#include <linux/userfaultfd.h>

#define PAGES 1000

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static size_t thp_size;

/*
 * What is merged
 */

static void test_mappings(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b, *c;

	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, &s);
	if (!use_ksmd)
		check(s.unique == PAGES && s.looked == PAGES, "%s", stat_text(&s));
	check(!count_ksm(a, PAGES), "merged with whom?");

	b = map_filled(PAGES, seed);
	merge_pages(b, PAGES, &s);
	if (!use_ksmd)
		check(s.merged == PAGES && s.looked == PAGES, "%s", stat_text(&s));
	check(count_same(a, b, PAGES) == PAGES, "%zu", count_same(a, b, PAGES));
	check(count_frames(a, PAGES) == PAGES, "%zu", count_frames(a, PAGES));

	/* With pages that are merged. */
	c = map_filled(PAGES, seed);
	merge_pages(c, PAGES, &s);
	if (!use_ksmd)
		check(s.merged == PAGES && s.looked == PAGES, "%s", stat_text(&s));
	check(count_same(a, c, PAGES) == PAGES, "%zu", count_same(a, c, PAGES));

	merge_pages(a, PAGES, &s);
	if (!use_ksmd)
		check(s.already == PAGES && s.looked == PAGES, "%s", stat_text(&s));
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed) && !differs(c, PAGES, seed),
	      "contents");
	check(stat_field(getpid(), "ksm_merging_pages") == 3 * PAGES, "%ld",
	      stat_field(getpid(), "ksm_merging_pages"));
	check(ksm_get("pages_shared") == PAGES, "%ld", ksm_get("pages_shared"));
	check(ksm_get("pages_sharing") == 2 * PAGES, "%ld", ksm_get("pages_sharing"));

	unmap_pages(b, PAGES);
	check(!differs(a, PAGES, seed) && !differs(c, PAGES, seed), "contents");
	check(count_same(a, c, PAGES) == PAGES, "%zu", count_same(a, c, PAGES));
}

static void test_processes(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	struct child c;
	size_t same = 0;
	char *a;

	c = spawn();
	if (!c.pid) {
		a = map_filled(PAGES, seed);
		merge_pages(a, PAGES, NULL);
		tell(c.to, 1);
		hear(c.from);
		for (int i = 0; i < PAGES; i++)
			tell(c.to, is_ksm(a + i * page_size) ? pfn_of(a + i * page_size) : 0);
		hear(c.from);
		check(!differs(a, PAGES, seed), "contents in the child");
		child_exit();
	}
	hear(c.from);
	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, &s);
	if (!use_ksmd)
		check(s.merged == PAGES, "%s", stat_text(&s));
	tell(c.to, 1);
	for (int i = 0; i < PAGES; i++)
		same += hear(c.from) == pfn_of(a + i * page_size) && is_ksm(a + i * page_size);
	check(same == PAGES, "%zu", same);
	tell(c.to, 1);
	reap(&c);
	check(!differs(a, PAGES, seed), "contents");
}

/* The same contents all over one range. */
static void test_one_range(void)
{
	long max = ksm_get("max_page_sharing");
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a;

	a = map_pages(PAGES);
	for (int i = 0; i < PAGES; i++)
		fill_page(a + i * page_size, seed);
	merge_pages(a, PAGES, &s);
	check(count_ksm(a, PAGES) == PAGES, "%zu", count_ksm(a, PAGES));
	check(count_frames(a, PAGES) <= (size_t)(PAGES / max + 2), "%zu frames",
	      count_frames(a, PAGES));
	for (int i = 0; i < PAGES; i++)
		check(page_is(a + i * page_size, seed), "page %d", i);
	/* What is merged stays so. */
	merge_pages(a, PAGES, &s);
	if (!use_ksmd)
		check(s.already == PAGES, "%s", stat_text(&s));
}

static void test_page_sharing(void)
{
	long max = ksm_get("max_page_sharing");
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a;

	need(!ksm_set_soon("max_page_sharing", 2), "max_page_sharing");
	a = map_pages(100);
	for (int i = 0; i < 100; i++)
		fill_page(a + i * page_size, seed);
	merge_pages(a, 100, &s);
	check(count_ksm(a, 100) >= 99, "%zu", count_ksm(a, 100));
	check(count_frames(a, 100) >= 50, "%zu", count_frames(a, 100));
	for (int i = 0; i < 100; i++)
		check(frame_mapcount(pfn_of(a + i * page_size)) <= 2, "page %d is mapped %ld times",
		      i, frame_mapcount(pfn_of(a + i * page_size)));
	/* Some go, others come. */
	for (int round = 0; round < 5; round++) {
		for (int i = round; i < 100; i += 3)
			flip_byte(a + i * page_size, 1);
		for (int i = round; i < 100; i += 3)
			flip_byte(a + i * page_size, 1);
		merge_pages(a, 100, &s);
	}
	for (int i = 0; i < 100; i++)
		check(page_is(a + i * page_size, seed), "page %d", i);
	unmap_pages(a, 100);
	/* It can be changed only while nothing is shared. */
	ksm_set("run", 2);
	ksm_set("run", 0);
	check(!ksm_set_soon("max_page_sharing", max), "max_page_sharing is stuck");
}

/*
 * Contents that change between calls. An ordered tree of pages that may change loses
 * those behind a changed one; nothing like it may happen here.
 */

/* Nobody's order may be upset by somebody's change: exactly the unchanged merge. */
static void test_mutate_half(void)
{
	uint64_t seed = new_seed(), other = new_seed(), changed = new_seed();
	struct merge_stat s;
	char *a, *b, *c;

	merged_pair(a, b, PAGES, seed);

	a = map_filled(PAGES, other);
	merge_pages(a, PAGES, NULL);
	for (int i = 0; i < PAGES; i += 2)
		fill_page(a + i * page_size, changed + i);
	b = map_filled(PAGES, other);
	merge_pages(b, PAGES, &s);
	check(s.merged == PAGES / 2 && s.unique == PAGES / 2, "%s", stat_text(&s));
	check(count_same(a, b, PAGES) == PAGES / 2, "%zu", count_same(a, b, PAGES));

	/* The changed ones are as good as any, when they have been looked at. */
	merge_pages(a, PAGES, NULL);
	c = map_pages(PAGES);
	memcpy(c, a, PAGES * page_size);
	merge_pages(c, PAGES, &s);
	check(s.merged == PAGES, "%s", stat_text(&s));
	check(count_same(a, c, PAGES) == PAGES, "%zu", count_same(a, c, PAGES));

	for (int i = 0; i < PAGES; i++) {
		check(page_is(a + i * page_size, (i % 2 ? other : changed) + i), "a %d", i);
		check(page_is(b + i * page_size, other + i), "b %d", i);
		check(page_is(c + i * page_size, (i % 2 ? other : changed) + i), "c %d", i);
	}
}

/* mutate(page, i, seed): after any change, another look, and a twin: all of them. */
static void mutate(const char *what, void (*fn)(char *a, int i, uint64_t seed))
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, NULL);
	for (int i = 0; i < PAGES; i++)
		fn(a, i, seed);
	merge_pages(a, PAGES, NULL);
	b = map_pages(PAGES);
	memcpy(b, a, PAGES * page_size);
	merge_pages(b, PAGES, &s);
	check(count_same(a, b, PAGES) == PAGES, "%s: %zu of %d; %s", what,
	      count_same(a, b, PAGES), PAGES, stat_text(&s));
	check(!memcmp(a, b, PAGES * page_size), "%s", what);
	unmap_pages(a, PAGES);
	unmap_pages(b, PAGES);
}

static void mutate_first_byte(char *a, int i, uint64_t seed)
{
	a[i * page_size] ^= 0x5a;
}

static void mutate_last_byte(char *a, int i, uint64_t seed)
{
	a[(i + 1) * page_size - 1] ^= 0x5a;
}

static void mutate_odd(char *a, int i, uint64_t seed)
{
	if (i % 2)
		fill_page(a + i * page_size, ~seed + i);
}

static void mutate_shift(char *a, int i, uint64_t seed)
{
	fill_page(a + i * page_size, seed + (i + 1) % PAGES);
}

static void mutate_reverse(char *a, int i, uint64_t seed)
{
	fill_page(a + i * page_size, seed + PAGES - 1 - i);
}

static void mutate_and_back(char *a, int i, uint64_t seed)
{
	fill_page(a + i * page_size, ~seed);
	fill_page(a + i * page_size, seed + i);
}

static void test_mutate_all(void)
{
	mutate("first byte", mutate_first_byte);
	mutate("last byte", mutate_last_byte);
	mutate("every second page", mutate_odd);
	mutate("each becomes its neighbour", mutate_shift);
	mutate("turned round", mutate_reverse);
	mutate("there and back", mutate_and_back);
}

/* Candidates changed after the last look: unchanged ones are found nevertheless. */
static void test_mutate_unseen(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	for (int round = 0; round < 6; round++, seed = new_seed()) {
		size_t kept = 0;

		a = map_filled(PAGES, seed);
		merge_pages(a, PAGES, NULL);
		for (int i = 0; i < PAGES; i++) {
			bool change = word_of(seed, i) % (round + 2) == 0;

			kept += !change;
			if (change)
				a[i * page_size + word_of(seed, i + PAGES) % page_size] ^= 1;
		}
		b = map_filled(PAGES, seed);
		merge_pages(b, PAGES, &s);
		check(count_same(a, b, PAGES) == kept && s.merged == (long)kept,
		      "%zu, not %zu; %s", count_same(a, b, PAGES), kept, stat_text(&s));
		check(!differs(b, PAGES, seed), "contents");
		unmap_pages(a, PAGES);
		unmap_pages(b, PAGES);
	}
}

/* Round after round, merged pages written again, then everything once more. */
static void test_mutate_rounds(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	a = map_filled(PAGES, seed);
	b = map_pages(PAGES);
	for (int round = 0; round < 10; round++) {
		uint64_t change = new_seed();

		for (int i = 0; i < PAGES; i++)
			if (word_of(change, i) & 1)
				fill_page(a + i * page_size, change + i);
		merge_pages(a, PAGES, NULL);
		memcpy(b, a, PAGES * page_size);
		merge_pages(b, PAGES, &s);
		check(count_same(a, b, PAGES) == PAGES, "round %d: %zu; %s", round,
		      count_same(a, b, PAGES), stat_text(&s));
		check(!memcmp(a, b, PAGES * page_size), "round %d", round);
	}
}

/* A candidate whose page has gone, moved or been replaced fails only itself. */
static void test_candidate_gone(void)
{
	uint64_t seed = new_seed(), other = new_seed();
	size_t len = 100 * page_size;
	struct merge_stat s;
	char *a, *b, *to;

	/* unmapped */
	a = map_filled(100, seed);
	merge_pages(a, 100, NULL);
	unmap_pages(a, 100);
	b = map_filled(100, seed);
	merge_pages(b, 100, &s);
	check(s.unique == 100 && !count_ksm(b, 100), "unmapped: %s", stat_text(&s));
	unmap_pages(b, 100);

	/* discarded */
	seed = new_seed();
	a = map_filled(100, seed);
	merge_pages(a, 100, NULL);
	madvise(a, len, MADV_DONTNEED);
	b = map_filled(100, seed);
	merge_pages(b, 100, &s);
	check(s.unique == 100 && !count_ksm(b, 100), "discarded: %s", stat_text(&s));
	check(!a[0] && !a[len - 1], "discarded memory reads as zeros");
	unmap_pages(a, 100);
	unmap_pages(b, 100);

	/* moved away, other contents in its place */
	seed = new_seed();
	a = map_filled(100, seed);
	merge_pages(a, 100, NULL);
	to = map_pages(100);
	need(mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
	need(mmap(a, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		  -1, 0) == a, "mmap");
	madvise(a, len, MADV_NOHUGEPAGE);
	fill(a, 100, other);
	b = map_filled(100, seed);
	merge_pages(b, 100, &s);
	check(s.merged + s.unique == 100, "moved: %s", stat_text(&s));
	check(!differs(a, 100, other) && !differs(b, 100, seed) && !differs(to, 100, seed),
	      "contents");
	unmap_pages(a, 100);
	unmap_pages(b, 100);
	unmap_pages(to, 100);

	/* replaced by a file's */
	seed = new_seed();
	a = map_filled(100, seed);
	merge_pages(a, 100, NULL);
	need(mmap(a, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
		  -1, 0) == a, "mmap");
	fill(a, 100, seed);
	b = map_filled(100, seed);
	merge_pages(b, 100, &s);
	check(s.unique == 100 && !count_ksm(a, 100), "shared: %s", stat_text(&s));
	a[0] ^= 1;
	check(page_is(b, seed), "contents");
	a[0] ^= 1;
	check(!differs(a, 100, seed), "contents");
}

/* The one process with the candidates exits: they are nobody's any more. */
static void test_candidate_exit(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	struct child c;
	char *a;

	c = spawn();
	if (!c.pid) {
		a = map_filled(PAGES, seed);
		merge_pages(a, PAGES, NULL);
		child_exit();
	}
	reap(&c);
	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, &s);
	check(s.unique == PAGES && !count_ksm(a, PAGES), "%s", stat_text(&s));
	c = spawn();
	if (!c.pid) {
		char *b = map_filled(PAGES, seed);

		merge_pages(b, PAGES, &s);
		check(s.merged == PAGES, "%s", stat_text(&s));
		check(count_ksm(b, PAGES) == PAGES, "%zu", count_ksm(b, PAGES));
		child_exit();
	}
	reap(&c);
	check(!differs(a, PAGES, seed), "contents");
}

/*
 * Zero pages
 */

static void test_zero(void)
{
	long old = ksm_get("use_zero_pages"), zeros;
	struct merge_stat s;
	char *a;

	ksm_set("use_zero_pages", 1);
	a = map_pages(PAGES);
	for (int i = 0; i < PAGES; i++)
		put_byte(a + i * page_size, 0);
	zeros = ksm_get("ksm_zero_pages");
	merge_pages(a, PAGES, &s);
	check(count_zero(a, PAGES) == PAGES, "%zu", count_zero(a, PAGES));
	if (!use_ksmd)
		check(s.zero == PAGES, "%s", stat_text(&s));
	check(ksm_get("ksm_zero_pages") == zeros + PAGES, "%ld", ksm_get("ksm_zero_pages"));
	check(stat_field(getpid(), "ksm_zero_pages") == PAGES, "%ld",
	      stat_field(getpid(), "ksm_zero_pages"));
	merge_pages(a, PAGES, &s);
	check(count_zero(a, PAGES) == PAGES, "%zu", count_zero(a, PAGES));
	for (int i = 0; i < PAGES; i += 2)
		a[i * page_size + 17] = 1;
	for (int i = 0; i < PAGES; i++) {
		char want[2] = { 0, i % 2 ? 0 : 1 };

		check(!memcmp(a + i * page_size + 16, want, 2), "page %d", i);
		check(is_zero_page(a + i * page_size) == (i % 2), "page %d", i);
	}
	check(ksm_get("ksm_zero_pages") == zeros + PAGES / 2, "%ld", ksm_get("ksm_zero_pages"));
	check(!madvise(a, PAGES * page_size, MADV_POPULATE_WRITE), "%s", strerror(errno));
	check(!count_zero(a, PAGES), "%zu", count_zero(a, PAGES));
	check(ksm_get("ksm_zero_pages") == zeros, "%ld", ksm_get("ksm_zero_pages"));
	merge_pages(a, PAGES, &s);
	unmap_pages(a, PAGES);
	check(ksm_get("ksm_zero_pages") == zeros, "%ld", ksm_get("ksm_zero_pages"));
	ksm_set("use_zero_pages", old);
}

/* Where the zero page is there already, or a huge one, or nothing. */
static void test_zero_read(void)
{
	struct merge_stat s;
	char *a, *p;
	char sum = 0;

	a = map_pages(PAGES);
	for (int i = 0; i < PAGES; i += 2)
		sum |= get_byte(a + i * page_size);
	merge_pages(a, PAGES, &s);
	for (int i = 0; i < PAGES; i++)
		check(!a[i * page_size + 5], "page %d", i);
	check(s.merged == 0 && s.unique == 0, "%s", stat_text(&s));
	memset(a, 1, PAGES * page_size);
	for (int i = 0; i < PAGES; i++)
		check(a[i * page_size + 5] == 1, "page %d", i);

	p = mmap(NULL, 3 * thp_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(p != MAP_FAILED, "mmap");
	p = (char *)(((uintptr_t)p + thp_size - 1) / thp_size * thp_size);
	madvise(p, 2 * thp_size, MADV_HUGEPAGE);
	sum |= get_byte(p);
	check(!sum, "zeros");
	merge_pages(p, 2 * thp_size / page_size, &s);
	for (size_t i = 0; i < 2 * thp_size; i += page_size)
		check(!p[i], "huge: %zu", i);
	memset(p, 1, thp_size);
	check(p[0] == 1 && !p[thp_size], "huge");
}

/*
 * Writing
 */

static void test_cow(void)
{
	uint64_t seed = new_seed(), other = new_seed();
	char *a, *b;
	int fd;

	merged_pair(a, b, PAGES, seed);
	for (int i = 0; i < PAGES; i += 2)
		fill_page(a + i * page_size, other + i);
	for (int i = 0; i < PAGES; i++) {
		check(page_is(a + i * page_size, (i % 2 ? seed : other) + i), "a %d", i);
		check(page_is(b + i * page_size, seed + i), "b %d", i);
		check(is_ksm(a + i * page_size) == i % 2, "a %d", i);
		check((pfn_of(a + i * page_size) == pfn_of(b + i * page_size)) == i % 2,
		      "a, b %d", i);
	}
	/* By the kernel, by force, and by another way in. */
	fd = open("/dev/zero", O_RDONLY);
	need(read(fd, a + page_size, page_size) == (ssize_t)page_size, "read");
	close(fd);
	check(!a[page_size] && page_is(b + page_size, seed + 1), "read(2) into a merged page");

	mprotect(b, PAGES * page_size, PROT_READ);
	fd = open("/proc/self/mem", O_RDWR);
	need(pwrite(fd, "x", 1, (uintptr_t)b + 3 * page_size) == 1, "pwrite");
	close(fd);
	check(b[3 * page_size] == 'x' && page_is(a + 3 * page_size, seed + 3),
	      "a store through /proc/self/mem");
	mprotect(b, PAGES * page_size, PROT_READ | PROT_WRITE);

	check(!madvise(b, PAGES * page_size, MADV_POPULATE_WRITE), "%s", strerror(errno));
	check(!count_ksm(b, PAGES), "%zu", count_ksm(b, PAGES));
	for (int i = 5; i < PAGES; i++)
		check(page_is(b + i * page_size, seed + i), "b %d", i);
}

/* Somebody else's page that one may only read is merged, and stays read-only. */
static void test_read_only(void)
{
	uint64_t seed = new_seed();
	size_t len = 100 * page_size;
	struct child c;
	char *a, *b;
	int status;

	a = map_filled(100, seed);
	mprotect(a, len, PROT_READ);
	merge_pages(a, 100, NULL);
	b = map_filled(100, seed);
	merge_pages(b, 100, NULL);
	check(count_same(a, b, 100) == 100, "%zu", count_same(a, b, 100));
	c = spawn();
	if (!c.pid) {
		signal(SIGSEGV, SIG_DFL);
		a[0] = 1;
		_exit(0);
	}
	need(waitpid(c.pid, &status, 0) == c.pid, "waitpid");
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %#x", status);
	mprotect(a, len, PROT_READ | PROT_WRITE);
	fill_page(a, seed + 1);
	check(page_is(b, seed) && page_is(a, seed + 1), "contents");
}

static void test_prot_none(void)
{
	uint64_t seed = new_seed();
	size_t len = 100 * page_size;
	struct child c;
	char *a, *b;
	int status;

	a = map_filled(100, seed);
	b = map_filled(100, seed);
	mprotect(a, len, PROT_NONE);
	merge_pages(a, 100, NULL);
	merge_pages(b, 100, NULL);
	c = spawn();
	if (!c.pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(get_byte(a) != 0);
	}
	need(waitpid(c.pid, &status, 0) == c.pid, "waitpid");
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %#x", status);
	mprotect(a, len, PROT_READ | PROT_WRITE);
	check(!differs(a, 100, seed) && !differs(b, 100, seed), "contents");
	fill_page(a, seed + 1);
	check(page_is(b, seed), "contents");
	merge_pages(a + page_size, 99, NULL);
	check(count_same(a + page_size, b + page_size, 99) == 99, "%zu",
	      count_same(a + page_size, b + page_size, 99));
}

/*
 * Huge pages
 */

static char *map_huge(size_t n, uint64_t seed)
{
	char *p = mmap(NULL, (n + 1) * thp_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(p != MAP_FAILED, "mmap");
	p = (char *)(((uintptr_t)p + thp_size - 1) / thp_size * thp_size);
	madvise(p, n * thp_size, MADV_HUGEPAGE);
	fill(p, n * thp_size / page_size, seed);
	if (!check_huge_anon(p, n, thp_size))
		skip("no huge pages");
	return p;
}

static void test_thp(void)
{
	size_t pages = 2 * thp_size / page_size;
	uint64_t seed = new_seed(), other = new_seed();
	struct merge_stat s;
	char *a, *b;

	a = map_huge(2, seed);
	b = map_huge(2, seed);
	merge_pages(a, pages, &s);
	merge_pages(b, pages, &s);
	check(count_same(a, b, pages) == pages, "%zu of %zu; %s", count_same(a, b, pages), pages,
	      stat_text(&s));
	check(!differs(a, pages, seed) && !differs(b, pages, seed), "contents");
	fill_page(a + 7 * page_size, other);
	check(page_is(b + 7 * page_size, seed + 7), "contents");

	/* A huge one with a small one. */
	seed = new_seed();
	unmap_pages(a, pages);
	unmap_pages(b, pages);
	a = map_huge(1, seed);
	b = map_filled(10, seed + 20);
	merge_pages(b, 10, NULL);
	merge_pages(a, thp_size / page_size, NULL);
	check(count_same(a + 20 * page_size, b, 10) == 10, "%zu",
	      count_same(a + 20 * page_size, b, 10));
	check(!differs(a, thp_size / page_size, seed) && !differs(b, 10, seed + 20), "contents");
}

/* Half a huge page of either; the rest is nobody's business. */
static void test_thp_part(void)
{
	size_t pages = thp_size / page_size, half = pages / 2;
	uint64_t seed = new_seed();
	char *a, *b;

	a = map_huge(1, seed);
	b = map_huge(1, seed);
	merge_pages(a, half, NULL);
	merge_pages(b + 10 * page_size, half, NULL);
	check(count_same(a + 10 * page_size, b + 10 * page_size, half - 10) == half - 10, "%zu",
	      count_same(a + 10 * page_size, b + 10 * page_size, half - 10));
	check(!differs(a, pages, seed) && !differs(b, pages, seed), "contents");
	check(!count_ksm(a + half * page_size, pages - half), "merged beyond the range");
}

/*
 * Fork and exit
 */

/* Each generation sees the contents, writes, and goes; the eldest may go first. */
static void descend(char *a, char *b, size_t pages, uint64_t seed, int depth, bool first)
{
	uint64_t mine = seed + depth * 100000;
	struct child c;

	check(!differs(a, pages, seed) && !differs(b, pages, seed), "generation %d", depth);
	fill_page(a + depth * page_size, mine);
	if (depth < 3) {
		c = spawn();
		if (!c.pid) {
			if (first)
				sleep_msec(100);
			check(page_is(a + depth * page_size, mine), "generation %d", depth);
			fill_page(a + depth * page_size, seed + depth);
			descend(a, b, pages, seed, depth + 1, first);
			merge_pages(a, pages, NULL);
			merge_pages(b, pages, NULL);
			check(!differs(b, pages, seed), "generation %d", depth);
			child_exit();
		}
		if (first && depth) {
			signal(SIGCHLD, SIG_IGN);
			child_exit();
		}
		reap(&c);
	}
	check(page_is(a + depth * page_size, mine), "generation %d", depth);
	fill_page(a + depth * page_size, seed + depth);
}

static void test_fork(void)
{
	uint64_t seed = new_seed();
	char *a, *b;

	merged_pair(a, b, PAGES, seed);
	descend(a, b, PAGES, seed, 0, false);
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	descend(a, b, PAGES, seed, 0, true);
	sleep_msec(600);
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	merge_pages(a, PAGES, NULL);
	check(count_same(a, b, PAGES) == PAGES, "%zu", count_same(a, b, PAGES));
}

/* Pages that only fork shares are merged all the same, for both. */
static void test_fork_then_merge(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	struct child c;
	char *a, *b;

	a = map_filled(100, seed);
	c = spawn();
	if (!c.pid) {
		merge_pages(a, 100, &s);
		tell(c.to, 1);
		hear(c.from);
		check(!differs(a, 100, seed), "contents in the child");
		fill_page(a, ~seed);
		child_exit();
	}
	hear(c.from);
	b = map_filled(100, seed);
	merge_pages(b, 100, &s);
	merge_pages(a, 100, &s);
	check(count_same(a, b, 100) == 100, "%zu; %s", count_same(a, b, 100), stat_text(&s));
	tell(c.to, 1);
	reap(&c);
	check(!differs(a, 100, seed) && !differs(b, 100, seed), "contents");
}

/* The one whose pages were merged is gone; its child still has them. */
static void test_fork_parent_gone(void)
{
	uint64_t seed = new_seed();
	struct child c;
	int up[2];
	char *b;

	need(!pipe(up), "pipe");
	c = spawn();
	if (!c.pid) {
		char *a, *a2;

		merged_pair(a, a2, 200, seed);
		if (fork()) {
			fflush(stdout);
			_exit(0);
		}
		prctl(PR_SET_PDEATHSIG, 0);
		close(c.to);
		sleep_msec(300);
		check(count_same(a, a2, 200) == 200, "%zu", count_same(a, a2, 200));
		merge_pages(a, 200, NULL);
		fill_page(a, ~seed);
		check(!differs(a + page_size, 199, seed + 1), "contents");
		check(!differs(a2, 200, seed), "contents");
		check(!madvise(a, 200 * page_size, MADV_POPULATE_WRITE), "populate");
		check(!differs(a + page_size, 199, seed + 1), "contents");
		check(!differs(a2, 200, seed), "contents");
		fflush(stdout);
		tell(up[1], failed);
		_exit(0);
	}
	close(up[1]);
	reap(&c);
	b = map_filled(200, seed);
	merge_pages(b, 200, NULL);
	check(!hear(up[0]), "the orphan failed");
	check(!differs(b, 200, seed), "contents");
}

static void test_exit(void)
{
	long items = slab_objects("ksm_rmap_item"), nodes = slab_objects("ksm_stable_node");
	long slots = slab_objects("ksm_mm_slot"), after;
	unsigned long pfn[100];
	struct merge_stat s;
	struct child c, d;
	double end;

	for (int round = 0; round < 12; round++) {
		uint64_t seed = new_seed();
		char *a;

		c = spawn();
		if (!c.pid) {
			/* Merged, candidates, and zeros. */
			a = map_filled(2000, seed);
			merge_pages(a, 2000, NULL);
			memset(a + 1900 * page_size, 0, 100 * page_size);
			tell(c.to, 1);
			hear(c.from);
			merge_pages(a, 2000, NULL);
			for (int i = 0; i < 100; i++)
				tell(c.to, pfn_of(a + i * page_size));
			if (round % 3 == 0)
				unmap_pages(a, 1000);
			if (round % 3 == 1)
				raise(SIGKILL);
			child_exit();
		}
		hear(c.from);
		d = spawn();
		if (!d.pid) {
			a = map_filled(1000, seed);
			merge_pages(a, 1000, &s);
			check(count_ksm(a, 1000) == 1000, "round %d: %zu; %s", round,
			      count_ksm(a, 1000), stat_text(&s));
			tell(d.to, 1);
			hear(d.from);
			child_exit();
		}
		hear(d.from);
		if (round % 2) {
			tell(d.to, 1);
			reap(&d);
		}
		tell(c.to, 1);
		for (int i = 0; i < 100; i++)
			pfn[i] = hear(c.from);
		if (round % 3 == 1)
			waitpid(c.pid, NULL, 0), close(c.to), close(c.from);
		else
			reap(&c);
		if (round % 2 == 0) {
			tell(d.to, 1);
			reap(&d);
		}
		end = now() + 5;
		do
			after = ksm_get("pages_shared") + ksm_get("pages_sharing");
		while (after && now() < end && !usleep(10000));
		check(!after, "round %d: %ld pages are still there", round, after);
		for (int i = 0; i < 100; i++)
			check(!is_ksm_frame(pfn[i]) || !frame_mapcount(pfn[i]),
			      "frame %#lx is still mapped", pfn[i]);
	}
	/* 36,000 items went through; a slab's last pages may keep some. */
	end = now() + 5;
	do
		after = slab_objects("ksm_rmap_item");
	while (after > items + 1000 && now() < end && !usleep(50000));
	check(after <= items + 1000, "rmap_items: %ld, then %ld", items, after);
	after = slab_objects("ksm_stable_node");
	check(after <= nodes + 1500, "stable nodes: %ld, then %ld", nodes, after);
	after = slab_objects("ksm_mm_slot");
	check(after <= slots + 60, "slots: %ld, then %ld", slots, after);
	check(ksm_get("run") == 0, "nobody started ksmd");
}

/* Whoever merges over and over does not grow. */
static void test_no_growth(void)
{
	uint64_t seed = new_seed();
	long items, after;
	char *a;

	a = map_filled(PAGES, seed);
	merge_pages(a, PAGES, NULL);
	items = stat_field(getpid(), "ksm_rmap_items");
	for (int i = 0; i < 30; i++) {
		fill(a, PAGES, new_seed());
		merge_pages(a, PAGES, NULL);
	}
	after = stat_field(getpid(), "ksm_rmap_items");
	check(after <= items + 16, "%ld items, then %ld", items, after);

	/* Nor by mapping ever new places. */
	for (int i = 0; i < 50; i++) {
		unmap_pages(a, PAGES);
		/* Elsewhere each time. */
		a = mmap((void *)(0x200000000000ull + i * 0x10000000ull), PAGES * page_size,
			 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		need(a != MAP_FAILED, "mmap");
		fill(a, PAGES, new_seed());
		merge_pages(a, PAGES, NULL);
	}
	after = stat_field(getpid(), "ksm_rmap_items");
	check(after <= items + 20 * PAGES, "%ld items, then %ld", items, after);
}

/*
 * Undoing it
 */

static void test_unmerge(void)
{
	uint64_t seed = new_seed();
	char *a, *b, *c, *d;
	struct merge_stat s;
	int ret;

	merged_pair(a, b, PAGES, seed);
	check(!madvise(a, PAGES / 2 * page_size, MADV_UNMERGEABLE), "%s", strerror(errno));
	check(!count_ksm(a, PAGES / 2), "%zu", count_ksm(a, PAGES / 2));
	check(count_ksm(a + PAGES / 2 * page_size, PAGES / 2) == PAGES / 2, "%zu",
	      count_ksm(a + PAGES / 2 * page_size, PAGES / 2));
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	merge_pages(a, PAGES, NULL);
	check(count_same(a, b, PAGES) == PAGES, "%zu", count_same(a, b, PAGES));

	/* Who does not want any more is no candidate either. */
	c = map_filled(100, seed + 5000);
	merge_pages(c, 100, NULL);
	check(!madvise(c, 100 * page_size, MADV_UNMERGEABLE), "%s", strerror(errno));
	d = map_filled(100, seed + 5000);
	merge_pages(d, 100, &s);
	check(!s.merged && !count_ksm(c, 100), "merged after MADV_UNMERGEABLE: %s", stat_text(&s));
	unmap_pages(d, 100);

	check(!ksm_set("run", 2), "run = 2");
	check(!stat_field(getpid(), "ksm_rmap_items"), "%ld items after run = 2",
	      stat_field(getpid(), "ksm_rmap_items"));
	check(!count_ksm(a, PAGES) && !count_ksm(b, PAGES), "%zu %zu", count_ksm(a, PAGES),
	      count_ksm(b, PAGES));
	check(!ksm_get("pages_shared"), "%ld", ksm_get("pages_shared"));
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
	ret = madvise(a, PAGES * page_size, MADV_MERGE);
	check(!ret || errno == EBUSY, "%s", strerror(errno));
	madvise(b, PAGES * page_size, MADV_MERGE);
	check(!count_ksm(a, PAGES) && !count_ksm(b, PAGES), "merged while run = 2");
	ksm_set("run", 0);
	merge_pages(a, PAGES, NULL);
	merge_pages(b, PAGES, &s);
	check(count_same(a, b, PAGES) == PAGES, "%zu; %s", count_same(a, b, PAGES), stat_text(&s));
	check(!differs(a, PAGES, seed) && !differs(b, PAGES, seed), "contents");
}

/*
 * Which ranges
 */

static void test_ranges(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	merged_pair(a, b, 10, seed);
	check(madvise(a + 1, page_size, MADV_MERGE) == -1 && errno == EINVAL, "unaligned");
	check(madvise(a + page_size / 2, page_size, MADV_MERGE) == -1 && errno == EINVAL,
	      "unaligned");
	check(madvise(a, -page_size, MADV_MERGE) == -1 && errno == EINVAL, "wraps");
	check(madvise(a, ULONG_MAX, MADV_MERGE) == -1 && errno == EINVAL, "wraps");
	check(!madvise(a, 0, MADV_MERGE), "nothing: %s", strerror(errno));
	check(madvise((void *)(-4096l * 1024), page_size, MADV_MERGE) == -1, "the kernel's own");

	/* The length is rounded up. */
	fill(a, 10, seed + 1000);
	fill(b, 10, seed + 1000);
	check(!merge(a, page_size + 1, &s), "%s", strerror(errno));
	check(s.looked == 2, "%s", stat_text(&s));
	check(!merge(b, 1, &s), "%s", strerror(errno));
	check(s.looked == 1 && s.merged == 1, "%s", stat_text(&s));
	check(!merge(b + page_size, page_size * 2 - 1, &s), "%s", strerror(errno));
	check(s.looked == 2 && s.merged == 1, "%s", stat_text(&s));
	check(count_same(a, b, 10) == 2, "%zu", count_same(a, b, 10));
}

static void test_gaps(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	/* holes in the middle, at the beginning and at the end */
	a = map_filled(30, seed);
	b = map_filled(30, seed);
	merge_pages(a, 30, NULL);
	unmap_pages(b + 10 * page_size, 5);
	unmap_pages(b + 20 * page_size, 1);
	check(merge(b, 30 * page_size, &s) == -1 && errno == ENOMEM, "%s", strerror(errno));
	check(s.merged == 24, "%s", stat_text(&s));
	check(count_same(a, b, 10) == 10 &&
	      count_same(a + 15 * page_size, b + 15 * page_size, 5) == 5 &&
	      count_same(a + 21 * page_size, b + 21 * page_size, 9) == 9, "the rest is done");

	seed = new_seed();
	fill(a, 30, seed);
	unmap_pages(b, 10);
	b = map_filled(30, seed);
	merge_pages(a, 30, NULL);
	unmap_pages(b, 5);
	unmap_pages(b + 25 * page_size, 5);
	check(merge(b, 30 * page_size, &s) == -1 && errno == ENOMEM, "%s", strerror(errno));
	check(s.merged == 20, "%s", stat_text(&s));

	unmap_pages(b + 5 * page_size, 20);
	check(merge(b + 8 * page_size, 3 * page_size, &s) == -1 && errno == ENOMEM, "%s",
	      strerror(errno));
	check(!s.looked, "%s", stat_text(&s));
	check(!differs(a, 30, seed), "contents");
}

static void map_at(char *at, size_t len, int prot, int flags, int fd)
{
	need(mmap(at, len, prot, flags | MAP_FIXED, fd, 0) == at, "mmap: %s", strerror(errno));
}

/* Whole of different VMAs, what is not eligible among them. */
static void test_eligible(void)
{
	size_t len = 10 * page_size;
	uint64_t seed = new_seed();
	char *a, *b, *area, *file, *shared;
	struct merge_stat s;
	int fd;

	merged_pair(a, b, 10, seed);

	area = mmap(NULL, 8 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(area != MAP_FAILED, "mmap");
	fd = memfd_create("merge", 0);
	need(fd >= 0 && !ftruncate(fd, 2 * len), "memfd: %s", strerror(errno));
	map_at(area + 0 * len, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	map_at(area + 1 * len, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	map_at(area + 2 * len, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	/* One that will be written to, and so is anonymous, and one that is the file's. */
	map_at(area + 3 * len, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	map_at(area + 4 * len, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	map_at(area + 5 * len, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	/* 6 was never touched, 7 is locked */
	map_at(area + 7 * len, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(area, 8 * len, MADV_NOHUGEPAGE);
	shared = area + len;
	file = area + 2 * len;
	for (int i = 0; i < 6; i++)
		if (i != 4)
			fill(area + i * len, 10, seed);
	fill(area + 7 * len, 10, seed);
	check(!mlock(area + 7 * len, len), "mlock: %s", strerror(errno));
	check(get_byte(area + 4 * len) == get_byte(file), "the file's page");

	check(!merge(area, 8 * len, &s), "%s", strerror(errno));
	check(count_same(a, area, 10) == 10, "anonymous: %zu", count_same(a, area, 10));
	check(count_same(a, area + 3 * len, 10) == 10, "private file: %zu",
	      count_same(a, area + 3 * len, 10));
	check(count_same(a, area + 5 * len, 10) == 10, "anonymous: %zu",
	      count_same(a, area + 5 * len, 10));
	check(!count_ksm(shared, 20), "shared memory was merged");
	check(!count_ksm(area + 4 * len, 10), "the file's own pages were merged");
	check(!differs(area + 7 * len, 10, seed), "locked: contents");
	check(s.merged >= 30, "%s", stat_text(&s));

	/* Shared memory is shared still, files are written to. */
	shared[0] ^= 1;
	fill(file, 10, seed + 50);
	check(!differs(area + 3 * len, 10, seed), "private file: contents");
	fill(area + 3 * len, 10, seed + 60);
	check(!differs(file, 10, seed + 50), "file: contents");
	check(!differs(a, 10, seed), "contents");
	close(fd);
}

/* All that a process has: its stack, its code, what the kernel maps. It lives on. */
static void merge_all_of_me(void)
{
	static char maps[65536];
	char *line = maps, *next;
	unsigned long from, to;

	need(read_text("/proc/self/maps", maps, sizeof(maps)) > 0, "maps");
	for (; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			next++;
		if (sscanf(line, "%lx-%lx", &from, &to) != 2)
			continue;
		if (madvise((void *)from, to - from, MADV_MERGE))
			check(errno == ENOMEM || errno == EINVAL, "%lx-%lx: %s", from, to,
			      strerror(errno));
	}
}

static void test_everything(void)
{
	struct child c[3];
	char *a, *b;

	merged_pair(a, b, 10, new_seed());
	/* Code of one's own, twice the same. */
	for (int i = 0; i < 3; i++) {
		c[i] = spawn();
		if (!c[i].pid) {
			unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };	/* return 42 */
			char *text = map_pages(2);
			int (*fn)(void);

			for (int j = 0; j < 2; j++)
				memcpy(text + j * page_size, code, sizeof(code));
			mprotect(text, 2 * page_size, PROT_READ | PROT_EXEC);
			for (int j = 0; j < 3; j++) {
				merge_all_of_me();
#ifdef __x86_64__
				for (int k = 0; k < 2; k++) {
					memcpy(&fn, &(char *){ text + k * page_size }, sizeof(fn));
					check(fn() == 42, "merged code");
				}
#endif
			}
			check(is_ksm(text) && is_ksm(text + page_size), "code is not merged");
			tell(c[i].to, 1);
			hear(c[i].from);
			child_exit();
		}
	}
	for (int i = 0; i < 3; i++)
		hear(c[i].from);
	merge_all_of_me();
	for (int i = 0; i < 3; i++) {
		tell(c[i].to, 1);
		reap(&c[i]);
	}
	merge_all_of_me();
}

/* A range so large that it cannot be walked page by page, and nothing in it. */
static void test_huge_range(void)
{
	size_t len = 1ull << 42, pages = 64;
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *area, *a, *b;
	double start;

	merged_pair(a, b, pages, seed);
	area = mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		skip("4 TiB: %s", strerror(errno));
	madvise(area, len, MADV_NOHUGEPAGE);
	fill(area + (1ull << 40), pages, seed);
	fill(area + (3ull << 40), pages, seed);
	start = now();
	check(!merge(area, len, &s), "%s", strerror(errno));
	check(now() - start < 20, "%.1f s", now() - start);
	check(count_same(a, area + (1ull << 40), pages) == pages &&
	      count_same(a, area + (3ull << 40), pages) == pages, "%s", stat_text(&s));
}

static void test_mremap(void)
{
	size_t len = 100 * page_size;
	uint64_t seed = new_seed();
	char *a, *b, *to, *c;

	merged_pair(a, b, 100, seed);
	to = map_pages(100);
	need(mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
	/* Either they are merged still, or they have been unmerged: not half of it. */
	for (int i = 0; i < 100; i++)
		check(pfn_of(to + i * page_size) == pfn_of(b + i * page_size) ||
		      !is_ksm(to + i * page_size), "page %d", i);
	/* Something else in the old place, that is merged with others. */
	need(mmap(a, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		  -1, 0) == a, "mmap");
	madvise(a, len, MADV_NOHUGEPAGE);
	fill(a, 100, seed + 1000);
	c = map_filled(100, seed + 1000);
	merge_pages(a, 100, NULL);
	merge_pages(c, 100, NULL);
	check(count_same(a, c, 100) == 100, "%zu", count_same(a, c, 100));
	check(!differs(to, 100, seed) && !differs(b, 100, seed), "contents");
	merge_pages(to, 100, NULL);
	merge_pages(b, 100, NULL);
	check(count_same(to, b, 100) == 100, "%zu", count_same(to, b, 100));
	fill(to, 50, seed + 2000);
	check(!differs(b, 100, seed) && !differs(to, 50, seed + 2000), "contents");
	unmap_pages(b, 100);
	check(!differs(to + 50 * page_size, 50, seed + 50) && !differs(a, 100, seed + 1000),
	      "contents");
	ksm_set("run", 2);
	ksm_set("run", 0);
	check(!differs(to + 50 * page_size, 50, seed + 50) && !differs(a, 100, seed + 1000) &&
	      !differs(c, 100, seed + 1000), "contents");
	check(!count_ksm(to, 100) && !count_ksm(a, 100) && !count_ksm(c, 100),
	      "unmerge does not find what has moved: %zu %zu %zu", count_ksm(to, 100),
	      count_ksm(a, 100), count_ksm(c, 100));
}

/*
 * Races
 */

#define RACE_PAGES 64
#define RACE_THREADS 3

static struct race {
	char *pages[2];
	int pipe[2];
	bool stop;
	unsigned long stores, lost;
} race;

static uint64_t *race_word(int side, int page, long thread)
{
	return (uint64_t *)(race.pages[side] + page * page_size) + thread * 64;
}

/* What was stored last has to be there. */
static void race_see(uint64_t *p, uint64_t mine)
{
	if (__atomic_load_n(p, __ATOMIC_RELAXED) != mine)
		__atomic_fetch_add(&race.lost, 1, __ATOMIC_RELAXED);
}

/*
 * Thread n owns word n of each page (as a counter) and nobody else stores there. Pages
 * look alike most of the time, so that they are merged all the time.
 */
static void *race_store(void *arg)
{
	long me = (long)arg;
	uint64_t mine[2][RACE_PAGES] = { };

	while (!__atomic_load_n(&race.stop, __ATOMIC_RELAXED)) {
		for (int s = 0; s < 2; s++) {
			for (int i = 0; i < RACE_PAGES; i++) {
				uint64_t *p = race_word(s, i, me);

				race_see(p, mine[s][i]);
				mine[s][i] = (mine[s][i] + 1) % 3;
				__atomic_store_n(p, mine[s][i], __ATOMIC_RELAXED);
				race_see(p, mine[s][i]);
				__atomic_fetch_add(&race.stores, 1, __ATOMIC_RELAXED);
			}
		}
		/* Long enough to be alike, and then not. */
		if (!(race.stores & 3))
			sched_yield();
		else
			usleep(race.stores % 700);
	}
	return NULL;
}

/* The same by the kernel's hand: read(2) and process_vm_writev. */
static void *race_read(void *arg)
{
	uint64_t mine[2][RACE_PAGES] = { };
	long me = (long)arg;
	int pipes[2];
	bool vm = true;

	if (pipe(pipes))
		return NULL;
	while (!__atomic_load_n(&race.stop, __ATOMIC_RELAXED)) {
		for (int s = 0; s < 2; s++) {
			for (int i = 0; i < RACE_PAGES; i++) {
				uint64_t *p = race_word(s, i, me);
				uint64_t next = (mine[s][i] + 1) % 2;
				struct iovec from = { &next, 8 }, to = { p, 8 };

				race_see(p, mine[s][i]);
				vm = !vm;
				if (!vm || process_vm_writev(getpid(), &from, 1, &to, 1, 0) != 8) {
					if (write(pipes[1], &next, 8) != 8 ||
					    read(pipes[0], p, 8) != 8)
						continue;
				}
				mine[s][i] = next;
				race_see(p, mine[s][i]);
				__atomic_fetch_add(&race.stores, 1, __ATOMIC_RELAXED);
			}
		}
		usleep(500);
	}
	return NULL;
}

static void race_writers(bool ksmd)
{
	pthread_t threads[RACE_THREADS + 1];
	struct merge_stat s, sum = { 0 };
	double end = now() + 4;
	long calls = 0;

	for (int i = 0; i < 2; i++) {
		race.pages[i] = map_pages(RACE_PAGES);
		for (int j = 0; j < RACE_PAGES; j++)
			memset(race.pages[i] + j * page_size + page_size / 2, 0x11,
			       page_size / 2);
	}
	if (ksmd)
		ksm_set("run", 1);
	for (long i = 0; i <= RACE_THREADS; i++)
		need(!pthread_create(&threads[i], NULL, i < RACE_THREADS ? race_store : race_read,
				     (void *)i), "pthread_create");
	/* On a slow machine as long as it takes to have tested something. */
	while (now() < end || (sum.merged < 200 && now() < end + 60)) {
		for (int i = 0; i < 2; i++) {
			merge_pages(race.pages[i], RACE_PAGES, &s);
			sum.merged += s.merged;
			sum.busy += s.busy;
			sum.unique += s.unique;
			calls++;
		}
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i <= RACE_THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("# %ld calls, %lu stores, %ld pages merged, %ld busy, %ld unique\n", calls,
	       race.stores, sum.merged, sum.busy, sum.unique);
	check(!race.lost, "%lu of %lu stores lost", race.lost, race.stores);
	check(sum.merged > 100, "only %ld were merged: nothing was tested", sum.merged);
	ksm_set("run", 0);
}

static void test_writers(void)
{
	race_writers(false);
}

static void test_writers_ksmd(void)
{
	race_writers(true);
}

/* Processes that merge, write, fork, map and exit, while ksmd runs and is stopped. */
static void storm_child(int me, double end)
{
	uint64_t common = 0x5eed, seeds[4][64];
	unsigned int rnd = me * 7919 + 1;
	char *p[4] = { };

	while (now() < end && !failed) {
		int r = rand_r(&rnd) % 4, what = rand_r(&rnd) % 16;
		pid_t pid;

		if (!p[r]) {
			p[r] = map_pages(64);
			for (int i = 0; i < 64; i++) {
				seeds[r][i] = common + rand_r(&rnd) % 40;
				fill_page(p[r] + i * page_size, seeds[r][i]);
			}
		}
		if (what < 6) {
			if (madvise(p[r], 64 * page_size, MADV_MERGE))
				check(errno == EBUSY || errno == EINTR, "%s", strerror(errno));
		} else if (what < 9) {
			for (int i = 0; i < 16; i++) {
				int at = rand_r(&rnd) % 64;

				seeds[r][at] = common + rand_r(&rnd) % 40;
				fill_page(p[r] + at * page_size, seeds[r][at]);
			}
		} else if (what == 9) {
			unmap_pages(p[r], 64);
			p[r] = NULL;
		} else if (what == 10) {
			char *to = map_pages(64);

			need(mremap(p[r], 64 * page_size, 64 * page_size,
				    MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
			p[r] = to;
		} else if (what == 11) {
			madvise(p[r], 64 * page_size, rand_r(&rnd) % 2 ? MADV_MERGEABLE :
				MADV_UNMERGEABLE);
		} else if (what == 12) {
			madvise(p[r], 32 * page_size, MADV_PAGEOUT);
		} else if (what == 13) {
			pid = fork();
			if (!pid) {
				madvise(p[r], 64 * page_size, MADV_MERGE);
				for (int i = 0; i < 64; i++)
					if (!page_is(p[r] + i * page_size, seeds[r][i]))
						_exit(1);
				fill_page(p[r], 1);
				_exit(0);
			}
			if (pid > 0) {
				int status;

				need(waitpid(pid, &status, 0) == pid && !status,
				     "a child: %#x", status);
			}
		} else if (what == 14) {
			mprotect(p[r] + 16 * page_size, 16 * page_size, PROT_READ);
			madvise(p[r], 64 * page_size, MADV_MERGE);
			mprotect(p[r], 64 * page_size, PROT_READ | PROT_WRITE);
		}
		if (!p[r])
			continue;
		for (int i = 0; i < 64; i++)
			check(page_is(p[r] + i * page_size, seeds[r][i]),
			      "process %d, after %d: page %d", me, what, i);
	}
}

static void test_storm(void)
{
	double end = now() + 8;
	struct child c[4];
	char *a, *b;
	int n = 0;

	merged_pair(a, b, 10, new_seed());
	for (int i = 0; i < 4; i++) {
		c[i] = spawn();
		if (!c[i].pid) {
			storm_child(i, end);
			child_exit();
		}
	}
	while (now() < end) {
		static const int runs[] = { 1, 1, 0, 1, 2, 0 };

		ksm_set("run", runs[n++ % 6]);
		sleep_msec(100);
	}
	ksm_set("run", 0);
	for (int i = 0; i < 4; i++)
		reap(&c[i]);
}

/* A fatal signal ends it at once, also in the middle of much. */
static void test_killed(void)
{
	size_t pages = 16384;
	uint64_t seed = new_seed();
	int ended_by_itself = 0;
	char *a, *b;

	merged_pair(a, b, 10, seed);
	for (int round = 0; round < 12; round++) {
		struct child c = spawn();
		double start;
		int status;

		if (!c.pid) {
			char *p = map_pages(pages);

			for (size_t i = 0; i < pages; i++)
				*(uint64_t *)(p + i * page_size) = seed + i / 2;
			tell(c.to, 1);
			madvise(p, pages * page_size, MADV_MERGE);
			_exit(0);
		}
		hear(c.from);
		sleep_msec(1 + round * 4);
		start = now();
		kill(c.pid, SIGKILL);
		need(waitpid(c.pid, &status, 0) == c.pid, "waitpid");
		check(now() - start < 3, "%.2f s to die", now() - start);
		ended_by_itself += WIFEXITED(status);
		close(c.to);
		close(c.from);
	}
	check(ended_by_itself < 6, "%d of 12 were not killed in time to test it",
	      ended_by_itself);
	check(!differs(a, 10, seed) && !differs(b, 10, seed), "contents");
}

/* A long call keeps neither ksmd, nor sysfs, nor another caller waiting for all of it. */
static void test_not_hogging(void)
{
	size_t pages = 32768;
	struct child c;
	double start, worst = 0, whole;
	char *a, *b;
	int n = 0;

	merged_pair(a, b, 10, new_seed());
	c = spawn();
	if (!c.pid) {
		char *p = map_pages(pages);

		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(p + i * page_size) = i;
		tell(c.to, 1);
		start = now();
		madvise(p, pages * page_size, MADV_MERGE);
		tell(c.to, (uint64_t)((now() - start) * 1e6));
		child_exit();
	}
	hear(c.from);
	start = now();
	for (;;) {
		double t = now();
		struct timespec zero = { 0, 1000000 };
		fd_set set;

		FD_ZERO(&set);
		FD_SET(c.from, &set);
		ksm_set("run", n++ % 2);
		fill(b, 10, new_seed());
		merge_pages(b, 10, NULL);
		if (now() - t > worst)
			worst = now() - t;
		if (pselect(c.from + 1, &set, NULL, NULL, &zero, NULL) > 0)
			break;
	}
	whole = hear(c.from) / 1e6;
	ksm_set("run", 0);
	printf("# %d calls during one of %.2f s, the longest took %.3f s\n", n, whole, worst);
	reap(&c);
	check(n >= 3 || whole < 0.5, "%d", n);
}

/*
 * Pins
 */

static void test_vmsplice(void)
{
	struct iovec iov;
	uint64_t seed = new_seed();
	char buf[16], *a, *b;
	struct merge_stat s;
	int pipes[2];

	merged_pair(a, b, 10, seed);
	fill(a, 10, seed + 100);
	fill(b, 10, seed + 100);
	need(!pipe(pipes), "pipe");
	iov = (struct iovec){ a, page_size };
	if (vmsplice(pipes[1], &iov, 1, 0) != (ssize_t)page_size)
		skip("vmsplice: %s", strerror(errno));
	merge_pages(a, 10, &s);
	merge_pages(b, 10, &s);
	check(!is_ksm(a) && is_ksm(a + page_size), "a page in a pipe was merged");
	check(count_same(a, b, 10) == 9, "%zu", count_same(a, b, 10));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
	/* The pipe has the page itself, not a copy. */
	a[3] ^= 0x55;
	need(read(pipes[0], buf, sizeof(buf)) == sizeof(buf), "read");
	check(buf[3] == a[3], "the pipe's page is not ours any more");
	a[3] ^= 0x55;
	close(pipes[0]);
	close(pipes[1]);
	merge_pages(a, 10, &s);
	merge_pages(b, 10, &s);
	check(count_same(a, b, 10) == 10, "%zu; %s", count_same(a, b, 10), stat_text(&s));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
}

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_register 427
#endif

/* A page that is pinned for long, as by a registered buffer, must stay where it is. */
static void test_pinned(void)
{
	unsigned int params[30] = { 0 };
	uint64_t seed = new_seed();
	struct merge_stat s;
	unsigned long pfn[10];
	struct iovec iov;
	char *a, *b;
	int ring;

	merged_pair(a, b, 10, seed);
	fill(a, 10, seed + 100);
	ring = syscall(__NR_io_uring_setup, 4, params);
	if (ring < 0)
		skip("io_uring: %s", strerror(errno));
	iov = (struct iovec){ a, 5 * page_size };
	need(!syscall(__NR_io_uring_register, ring, 0, &iov, 1), "register: %s",
	     strerror(errno));
	for (int i = 0; i < 5; i++)
		pfn[i] = pfn_of(a + i * page_size);
	merge_pages(a, 10, &s);
	fill(b, 10, seed + 100);
	merge_pages(b, 10, &s);
	merge_pages(a, 10, &s);
	check(s.busy == 5 && s.already == 5, "%s", stat_text(&s));
	check(count_same(a, b, 10) == 5, "%zu", count_same(a, b, 10));
	for (int i = 0; i < 5; i++)
		check(pfn_of(a + i * page_size) == pfn[i], "page %d has moved", i);
	/* Still writable without a copy. */
	fill(a, 10, seed + 200);
	for (int i = 0; i < 5; i++)
		check(pfn_of(a + i * page_size) == pfn[i], "page %d has moved", i);
	fill(a, 10, seed + 100);
	close(ring);
	sleep_msec(100);
	merge_pages(a, 10, &s);
	for (int i = 0; i < 50 && count_same(a, b, 10) < 10; i++) {
		sleep_msec(20);
		merge_pages(a, 10, &s);
	}
	check(count_same(a, b, 10) == 10, "%zu; %s", count_same(a, b, 10), stat_text(&s));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");

	/* And the other way: what is merged gets a page of its own before it is pinned. */
	ring = syscall(__NR_io_uring_setup, 4, params);
	need(ring >= 0 && !syscall(__NR_io_uring_register, ring, 0, &iov, 1), "register");
	check(!count_ksm(a, 5), "%zu merged pages are pinned", count_ksm(a, 5));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
	close(ring);
}

static bool dio_stop;
static char *dio_area;

static void *dio_merge(void *arg)
{
	char *twin = arg;

	while (!__atomic_load_n(&dio_stop, __ATOMIC_RELAXED)) {
		madvise(dio_area, 16 * page_size, MADV_MERGE);
		madvise(twin, 16 * page_size, MADV_MERGE);
	}
	return NULL;
}

/* The device writes into pages that are about to be merged. */
static void test_o_direct(void)
{
	static const char disk[] = "/dev/zram1";
	uint64_t seed = new_seed();
	char *a, *b, *twin;
	pthread_t thread;
	int fd;

	merged_pair(a, b, 16, seed);
	if (access("/sys/block/zram1", F_OK))
		skip("no second zram");
	write_text("/sys/block/zram1/disksize", "4M");
	fd = open(disk, O_RDWR | O_DIRECT);
	if (fd < 0)
		skip("%s: %s", disk, strerror(errno));
	/* Two pictures, that are read in turn. */
	dio_area = map_pages(16);
	for (int i = 0; i < 2; i++) {
		fill(dio_area, 16, seed + i * 100);
		need(pwrite(fd, dio_area, 16 * page_size, i * 16 * page_size) ==
		     (ssize_t)(16 * page_size), "%s", strerror(errno));
	}
	twin = map_filled(16, seed + 100);
	need(!pthread_create(&thread, NULL, dio_merge, twin), "pthread_create");
	for (int i = 0; i < 200; i++) {
		need(pread(fd, dio_area, 16 * page_size, i % 2 * 16 * page_size) ==
		     (ssize_t)(16 * page_size), "%s", strerror(errno));
		check(!differs(dio_area, 16, seed + i % 2 * 100), "read %d", i);
		check(!differs(a, 16, seed), "read %d: somebody else's page", i);
		check(!differs(twin, 16, seed + 100), "read %d: the twin's page", i);
	}
	__atomic_store_n(&dio_stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	close(fd);
}

/*
 * Other users of page table bits
 */

static int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		skip("userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api))
		skip("userfaultfd: %s", strerror(errno));
	return fd;
}

static void test_uffd_wp(void)
{
	struct uffdio_writeprotect wp;
	uint64_t seed = new_seed();
	size_t len = 10 * page_size, armed = 0;
	struct merge_stat s;
	char *a, *b;
	int fd;

	merged_pair(a, b, 10, seed);
	fill(a, 10, seed + 100);
	fill(b, 10, seed + 100);
	/* Asynchronous: a store clears the bit, and nobody need be there to hear of it. */
	fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | (1 << 15) /* WP_ASYNC */ |
		       (1 << 13) /* WP_UNPOPULATED */);
	need(!uffd_register(fd, a, len, false, true, false), "register: %s", strerror(errno));
	wp = (struct uffdio_writeprotect){
		.range = { (uintptr_t)a, len }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	need(!ioctl(fd, UFFDIO_WRITEPROTECT, &wp), "%s", strerror(errno));
	merge_pages(b, 10, &s);
	merge_pages(a, 10, &s);
	for (int i = 0; i < 10; i++)
		armed += !!(entry_of(a + i * page_size) & PM_UFFD_WP);
	check(armed == 10, "%zu of 10 are armed still; %s", armed, stat_text(&s));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
	a[0] ^= 1;
	check(!(entry_of(a) & PM_UFFD_WP), "a store is not seen");
	check(page_is(b, seed + 100), "contents");
	a[0] ^= 1;
	/* One that is not armed any more can be merged or not, but not harmed. */
	merge_pages(a, 10, &s);
	check(entry_of(a + page_size) & PM_UFFD_WP, "disarmed by a merge");
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
	close(fd);
	merge_pages(b, 10, &s);
	merge_pages(a, 10, &s);
	check(count_same(a, b, 10) == 10, "%zu; %s", count_same(a, b, 10), stat_text(&s));
}

static void test_soft_dirty(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	char *a, *b;

	merged_pair(a, b, 10, seed);
	if (!softdirty_supported())
		skip("no soft-dirty bits");
	fill(a, 10, seed + 100);
	fill(b, 10, seed + 100);
	clear_softdirty();
	/* Written to, and not. */
	for (int i = 0; i < 5; i++)
		flip_byte(a + i * page_size, 0);
	for (int i = 0; i < 10; i++)
		need(!!(entry_of(a + i * page_size) & PM_SOFT_DIRTY) == (i < 5), "page %d", i);
	merge_pages(b, 10, &s);
	merge_pages(a, 10, &s);
	for (int i = 0; i < 5; i++)
		check(entry_of(a + i * page_size) & PM_SOFT_DIRTY,
		      "page %d: a merge lost that it was written to; %s", i, stat_text(&s));
	check(!differs(a, 10, seed + 100) && !differs(b, 10, seed + 100), "contents");
}

static bool marks_stop;
static char *marks[2];

static void *marks_merge(void *arg)
{
	while (!__atomic_load_n(&marks_stop, __ATOMIC_RELAXED))
		for (int i = 0; i < 2; i++)
			madvise(marks[i], 32 * page_size, MADV_MERGE);
	return NULL;
}

/*
 * Armed and written to while others merge: whoever follows what is written to (a snapshot,
 * a checkpoint) misses nothing. @soft_dirty, or by userfaultfd.
 */
static void marks_race(bool soft_dirty)
{
	struct uffdio_writeprotect wp;
	uint64_t seed = new_seed();
	unsigned int rnd = 1;
	pthread_t thread;
	int fd = -1;
	char *a, *b;

	merged_pair(a, b, 32, seed);
	if (soft_dirty && !softdirty_supported())
		skip("no soft-dirty bits");
	for (int i = 0; i < 2; i++)
		marks[i] = map_filled(32, seed + 100);
	if (!soft_dirty) {
		fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | (1 << 15) | (1 << 13));
		need(!uffd_register(fd, marks[0], 32 * page_size, false, true, false),
		     "register: %s", strerror(errno));
	}
	need(!pthread_create(&thread, NULL, marks_merge, NULL), "pthread_create");
	for (int round = 0; round < 400 && !failed; round++) {
		uint32_t written = rand_r(&rnd) ^ rand_r(&rnd) << 16;

		if (soft_dirty) {
			clear_softdirty();
		} else {
			wp = (struct uffdio_writeprotect){
				.range = { (uintptr_t)marks[0], 32 * page_size },
				.mode = UFFDIO_WRITEPROTECT_MODE_WP,
			};
			need(!ioctl(fd, UFFDIO_WRITEPROTECT, &wp), "%s", strerror(errno));
		}
		for (int i = 0; i < 32; i++)
			if (written >> i & 1)
				flip_byte(marks[0] + i * page_size, 0);
		for (int i = 0; i < 32; i++) {
			uint64_t entry = entry_of(marks[0] + i * page_size);

			if (soft_dirty)
				check(!(written >> i & 1) || entry & PM_SOFT_DIRTY,
				      "round %d: page %d was written to", round, i);
			else
				check(!(written >> i & 1) == !!(entry & PM_UFFD_WP),
				      "round %d: page %d: written %d, armed %d", round, i,
				      written >> i & 1, !!(entry & PM_UFFD_WP));
		}
		/* For a while nothing is armed, so that there is something to merge. */
		if (!soft_dirty && round % 4 == 0) {
			wp.mode = 0;
			need(!ioctl(fd, UFFDIO_WRITEPROTECT, &wp), "%s", strerror(errno));
			usleep(500);
		}
	}
	__atomic_store_n(&marks_stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	check(!differs(marks[0], 32, seed + 100) && !differs(marks[1], 32, seed + 100),
	      "contents");
}

static void test_uffd_wp_race(void)
{
	marks_race(false);
}

static void test_soft_dirty_race(void)
{
	marks_race(true);
}

/*
 * From outside, and by number
 */

#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif
#ifndef __NR_process_madvise
#define __NR_process_madvise 440
#endif

static void test_process_madvise(void)
{
	uint64_t seed = new_seed();
	struct merge_stat s;
	struct iovec iov[2];
	struct child c, d;
	char *a, *b;
	ssize_t ret;
	int pidfd;

	a = map_filled(100, seed);
	merge_pages(a, 100, NULL);
	b = map_pages(100);
	c = spawn();
	if (!c.pid) {
		fill(b, 100, seed);
		tell(c.to, 1);
		hear(c.from);
		s = stat_of(getpid());
		check(s.merged == 100, "%s", stat_text(&s));
		check(count_ksm(b, 100) == 100, "%zu", count_ksm(b, 100));
		check(!differs(b, 100, seed), "contents");
		tell(c.to, 1);
		hear(c.from);
		child_exit();
	}
	hear(c.from);
	pidfd = syscall(__NR_pidfd_open, c.pid, 0);
	need(pidfd >= 0, "pidfd_open: %s", strerror(errno));
	iov[0] = (struct iovec){ b, 50 * page_size };
	iov[1] = (struct iovec){ b + 50 * page_size, 50 * page_size };

	/* Not by just anybody. */
	d = spawn();
	if (!d.pid) {
		need(!setgid(1000) && !setuid(1000), "setuid");
		ret = syscall(__NR_process_madvise, pidfd, iov, 2, MADV_MERGE, 0);
		check(ret == -1 && (errno == EPERM || errno == EACCES), "%zd %s", ret,
		      strerror(errno));
		child_exit();
	}
	reap(&d);

	ret = syscall(__NR_process_madvise, pidfd, iov, 2, MADV_MERGE, 0);
	check(ret == (ssize_t)(100 * page_size), "%zd %s", ret, strerror(errno));
	tell(c.to, 1);
	hear(c.from);
	check(count_ksm(a, 100) == 100, "%zu", count_ksm(a, 100));
	check(!differs(a, 100, seed), "contents");
	tell(c.to, 1);
	reap(&c);
	ret = syscall(__NR_process_madvise, pidfd, iov, 2, MADV_MERGE, 0);
	check(ret == -1 && errno == ESRCH, "%zd %s", ret, strerror(errno));
	close(pidfd);
}

static void test_counters(void)
{
	static const char * const names[] = {
		"merge_calls", "merge_looked", "merge_merged", "merge_already", "merge_zero",
		"merge_unique", "merge_busy", "merge_skipped",
	};
	long before[ARRAY_SIZE(names)], after[ARRAY_SIZE(names)];
	uint64_t seed = new_seed();
	struct merge_stat s, sum;
	char *a, *b;

	a = map_filled(20, seed);
	b = map_filled(20, seed);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		before[i] = ksm_get(names[i]);
	merge_pages(a, 20, &s);
	check(s.looked == 20 && s.unique == 20, "%s", stat_text(&s));
	merge_pages(b, 10, &s);
	check(s.looked == 10 && s.merged == 10, "%s", stat_text(&s));
	merge_pages(a, 20, &s);
	check(s.looked == 20 && s.already == 10 && s.unique == 10, "%s", stat_text(&s));
	sum = stat_of(getpid());
	check(sum.looked == 50 && sum.unique == 30 && sum.merged == 10 && sum.already == 10, "%s",
	      stat_text(&sum));
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		after[i] = ksm_get(names[i]) - before[i];
	check(after[0] == 3, "calls %ld", after[0]);
	check(after[1] == 50, "looked %ld", after[1]);
	check(after[2] == 10, "merged %ld", after[2]);
	check(after[3] == 10, "already %ld", after[3]);
	check(after[5] == 30, "unique %ld", after[5]);
	check(after[1] == after[2] + after[3] + after[4] + after[5] + after[6] + after[7],
	      "they do not add up");
	/* A child begins anew. */
	struct child c = spawn();

	if (!c.pid) {
		s = stat_of(getpid());
		check(!s.looked, "%s", stat_text(&s));
		child_exit();
	}
	reap(&c);
}

/* What was merged here is known to ksmd, and the other way round. */
static void test_beside_ksmd(void)
{
	uint64_t seed = new_seed();
	char *a, *b, *c, *d;
	struct merge_stat s;

	need(!prctl(PR_SET_MEMORY_MERGE_SCOPE, PR_MEMORY_MERGE_SCOPE_GLOBAL, 0, 0, 0) ||
	     errno == EINVAL, "%s", strerror(errno));
	merged_pair(a, b, 100, seed);
	c = map_filled(100, seed);
	madvise(c, 100 * page_size, MADV_MERGEABLE);
	ksmd_scan();
	check(count_same(a, c, 100) == 100, "ksmd with ours: %zu", count_same(a, c, 100));
	check(count_same(a, b, 100) == 100, "ksmd tore them down: %zu", count_same(a, b, 100));
	ksmd_scan();
	ksmd_scan();
	check(count_same(a, b, 100) == 100, "ksmd tore them down: %zu", count_same(a, b, 100));

	seed = new_seed();
	c = map_filled(100, seed);
	d = map_filled(100, seed);
	madvise(c, 100 * page_size, MADV_MERGEABLE);
	madvise(d, 100 * page_size, MADV_MERGEABLE);
	ksmd_scan();
	need(count_same(c, d, 100) == 100, "ksmd: %zu", count_same(c, d, 100));
	a = map_filled(100, seed);
	merge_pages(a, 100, &s);
	check(s.merged == 100 && count_same(a, c, 100) == 100, "ours with ksmd's: %s",
	      stat_text(&s));
	check(!differs(a, 100, seed) && !differs(c, 100, seed), "contents");

	/* MADV_MERGE of what ksmd has on its list, then ksmd again. */
	fill(c, 100, seed + 1000);
	fill(a, 100, seed + 1000);
	merge_pages(c, 100, &s);
	ksmd_scan();
	merge_pages(a, 100, &s);
	check(count_same(a, c, 100) == 100, "%zu", count_same(a, c, 100));
	ksmd_scan();
	check(count_same(a, c, 100) == 100, "%zu", count_same(a, c, 100));
	check(!differs(a, 100, seed + 1000) && !differs(c, 100, seed + 1000), "contents");
}

static const struct test tests[] = {
	{ "two mappings", test_mappings, true },
	{ "two processes", test_processes, true },
	{ "one range, all alike", test_one_range, true },
	{ "max_page_sharing", test_page_sharing, true },
	{ "mutate: half of the candidates", test_mutate_half },
	{ "mutate: all kinds", test_mutate_all },
	{ "mutate: unseen", test_mutate_unseen },
	{ "mutate: rounds", test_mutate_rounds },
	{ "candidates that have gone", test_candidate_gone },
	{ "candidates of a process that exits", test_candidate_exit },
	{ "zero pages", test_zero, true },
	{ "zero pages that were only read", test_zero_read },
	{ "copy on write", test_cow, true },
	{ "read-only pages", test_read_only, true },
	{ "PROT_NONE", test_prot_none, true },
	{ "huge pages", test_thp, true },
	{ "a part of a huge page", test_thp_part },
	{ "fork, three generations", test_fork },
	{ "fork, then merge", test_fork_then_merge },
	{ "fork, and the parent exits", test_fork_parent_gone },
	{ "exit while ksmd does not run", test_exit },
	{ "no growth", test_no_growth },
	{ "unmerge", test_unmerge },
	{ "ranges, unaligned", test_ranges },
	{ "ranges with gaps", test_gaps },
	{ "mappings of all kinds", test_eligible },
	{ "all of a process", test_everything },
	{ "a range of 4 TiB", test_huge_range },
	{ "mremap", test_mremap, true },
	{ "writers", test_writers },
	{ "writers, beside ksmd", test_writers_ksmd },
	{ "storm", test_storm },
	{ "killed", test_killed },
	{ "nobody waits for long", test_not_hogging },
	{ "pages in a pipe", test_vmsplice },
	{ "pinned pages", test_pinned },
	{ "O_DIRECT", test_o_direct },
	{ "userfaultfd write protection", test_uffd_wp },
	{ "userfaultfd write protection, racing", test_uffd_wp_race },
	{ "soft-dirty bits", test_soft_dirty },
	{ "soft-dirty bits, racing", test_soft_dirty_race },
	{ "process_madvise", test_process_madvise },
	{ "counters", test_counters },
	{ "beside ksmd", test_beside_ksmd },
};

int main(int argc, char **argv)
{
	thp_size = read_pmd_pagesize();
	if (!thp_size)
		thp_size = 2 << 20;
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}
