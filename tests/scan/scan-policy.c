/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is left alone. If this failed, pages would be merged only to be copied again, the
 * program would run out of mappings, the scanner would eat more CPU than it may, or huge
 * pages would be split for nothing; or, as bad, what became still would never be merged.
 */
#include "scantest.h"

#include <pthread.h>

#include "sys/maps.h"
#include "sys/sys.h"

/* --- volatile pages ----------------------------------------------------------------- */

#define HOT 64u
#define GAP_MSEC 300u /* a writer that was kept from running for longer proves nothing */

static void write_hot(char *p, uint64_t tick)
{
	for (unsigned i = 0; i < HOT; i++)
		((volatile uint64_t *)(p + i * pt_page()))[3] = tick;
}

/* The same words in all processes, so that pages are alike again and again. */
static void run_writer(unsigned self)
{
	char *p = st_memory(HOT);
	uint64_t last, now, tick = 0;

	pt_fill(p, HOT, 5);
	st_did(self, 1);
	last = sys_now_usec();
	while (atomic_load(&st_board->step) < 2) {
		write_hot(p, ++tick);
		now = sys_now_usec();
		if (now - last > atomic_load(&st_board->out[self][0]))
			atomic_store(&st_board->out[self][0], now - last);
		last = now;
		st_nap(3);
	}
	pt_fill(p, HOT, 6);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_differs(p, HOT, 6) == -1);
	st_did(self, 3);
}

/* While they are written at least every GAP_MSEC; false: they were not. */
static bool not_merged_for(unsigned msec)
{
	struct core_wire_report before[2], after[2];

	for (unsigned i = 0; i < 2; i++) {
		atomic_store(&st_board->out[i][0], 0);
		before[i] = st_report(i);
	}
	st_nap(msec);
	for (unsigned i = 0; i < 2; i++) {
		after[i] = st_report(i);
		if (atomic_load(&st_board->out[i][0]) > GAP_MSEC * 1000)
			return false;
		if (after[i].scan.pages_volatile_now != HOT)
			return false;
	}
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(after[i].scan.pages_merged, before[i].scan.pages_merged);
	return true;
}

static void volatile_pages(const char *tracker)
{
	st_open(NULL);
	st_env(tracker);
	st_start("writer");
	st_start("writer");
	st_step(1);
	ST_UNTIL(st_report(0).scan.pages_volatile_now == HOT &&
		 st_report(1).scan.pages_volatile_now == HOT);
	ST_UNTIL(not_merged_for(1500));
	st_step(2);
	/* They keep still now, and are merged after all. */
	ST_UNTIL(st_report(0).pages_sharing == HOT && st_report(1).pages_sharing == HOT);
	st_step(3);
	st_end(0);
	st_end(1);
	st_close();
}

static void volatile_pages_are_left_alone(void **state)
{
	(void)state;
	volatile_pages("SAMEPAGE_SCAN_TRACKER=wp-async");
}

static void volatile_pages_by_checksum(void **state)
{
	(void)state;
	volatile_pages("SAMEPAGE_SCAN_TRACKER=checksum");
}

/* The longer a page has been changing, the longer it waits; others beside it do not. */
static void run_two_kinds(unsigned self)
{
	char *p = st_memory(HOT * 2);
	uint64_t tick = 0;

	pt_fill(p, HOT, 15);
	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		write_hot(p, ++tick);
		st_nap(3);
	}
	pt_fill(p + HOT * pt_page(), HOT, 16); /* in the same chunk, as a rule */
	st_did(self, 2);
	while (atomic_load(&st_board->step) < 3) {
		write_hot(p, ++tick);
		st_nap(3);
	}
	PT_CHECK(pt_differs(p + HOT * pt_page(), HOT, 16) == -1);
	st_did(self, 3);
}

static void still_pages_beside_volatile_ones(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("two-kinds");
	st_start("two-kinds");
	st_step(1);
	ST_UNTIL(st_report(0).scan.pages_volatile_now == HOT &&
		 st_report(1).scan.pages_volatile_now == HOT);
	st_step(2);
	ST_UNTIL(st_report(0).pages_sharing >= HOT && st_report(1).pages_sharing >= HOT);
	st_step(3);
	st_close();
}

/* --- broken merges -------------------------------------------------------------------- */

#define BROKEN 100u

static void run_breaker(unsigned self)
{
	char *p = st_memory(2 * BROKEN);

	pt_fill(p, 2 * BROKEN, 25);
	st_did(self, 1);
	st_wait_step(2);
	if (self == 0)
		for (unsigned i = 0; i < BROKEN; i++)
			p[i * pt_page() + 9] ^= 1;
	st_did(self, 2);
	st_wait_step(3);
	for (unsigned i = 0; self == 0 && i < BROKEN; i++)
		p[i * pt_page() + 9] ^= 1;
	PT_CHECK(pt_differs(p, 2 * BROKEN, 25) == -1);
	st_did(self, 3);
	st_wait_step(4);
	PT_CHECK(pt_differs(p, 2 * BROKEN, 25) == -1);
	st_note_pfns(self, 0, p, 2 * BROKEN);
	st_did(self, 4);
}

static void broken_merges_are_counted(void **state)
{
	struct core_wire_report r;

	(void)state;
	st_open(NULL);
	st_start("breaker");
	st_start("breaker");
	st_step(1);
	ST_UNTIL(st_report(0).pages_sharing == 2 * BROKEN &&
		 st_report(1).pages_sharing == 2 * BROKEN);
	st_step(2);
	ST_UNTIL(st_report(0).scan.pages_broken == BROKEN);
	r = st_report(0);
	assert_int_equal(r.scan.broken_soon, BROKEN);
	assert_true(r.scan.broken_msec < (uint64_t)BROKEN * 10000);
	assert_int_equal(r.scan.pages_merged_now, BROKEN);
	assert_int_equal(r.pages_sharing, BROKEN);
	assert_int_equal(st_report(1).scan.pages_broken, 0);
	/* Written again or not: they are the program's own now, and counted once. */
	st_step(3);
	st_nap(1000);
	assert_int_equal(st_report(0).scan.pages_broken, BROKEN);
	assert_int_equal(st_report(0).scan.pages_merged, 2 * BROKEN);
	st_step(4);
	assert_int_equal(st_same_pfns(0, 0, 1, 0, 2 * BROKEN), BROKEN);
	st_close();
}

/* --- mappings ----------------------------------------------------------------------------- */

#define SINGLES 6000u /* every other page of that */
#define RUNS 12u
#define RUN 64u

static void run_scattered(unsigned self)
{
	char *p = st_memory(SINGLES), *q = st_memory(RUNS * RUN);
	uint64_t most = 0, now;

	for (unsigned i = 0; i < SINGLES; i++)
		pt_fill_page(p + i * pt_page(), i % 2 ? 300 : 310 + self, i);
	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		now = pt_vma_count();
		most = now > most ? now : most;
		st_nap(3);
	}
	/* When mappings are short already. */
	pt_fill(q, RUNS * RUN, 301);
	st_did(self, 2);
	while (atomic_load(&st_board->step) < 3) {
		now = pt_vma_count();
		most = now > most ? now : most;
		st_nap(3);
	}
	for (unsigned i = 0; i < SINGLES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), i % 2 ? 300 : 310 + self, i));
	PT_CHECK(pt_differs(q, RUNS * RUN, 301) == -1);
	atomic_store(&st_board->out[self][0], most);
	atomic_store(&st_board->out[self][1], st_store_pages(q, RUNS * RUN));
	atomic_store(&st_board->out[self][2], st_store_pages(p, SINGLES));
	st_did(self, 3);
}

static void mapping_budget(void **state)
{
	uint64_t limit;
	int64_t max = sys_read_number("/proc/sys/vm/max_map_count");

	(void)state;
	if (max < 10000 || max > 1000000)
		SKIP("an odd vm.max_map_count");
	limit = (uint64_t)max / 100;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MAPS=1");
	st_start("scattered");
	st_start("scattered");
	st_step(1);
	/* Who is second to see a page knows that it has a twin, and holds back; often one for all. */
	ST_UNTIL(st_report(0).scan.held_maps > 0 || st_report(1).scan.held_maps > 0);
	st_step(2);
	ST_UNTIL(st_report(0).pages_sharing >= RUNS * RUN && st_report(1).pages_sharing >= RUNS * RUN);
	st_nap(1000);
	st_step(3);
	for (unsigned i = 0; i < 2; i++) {
		pt_note("limit %lu: at most %lu mappings, %lu single pages, %lu in runs", limit,
			atomic_load(&st_board->out[i][0]), atomic_load(&st_board->out[i][2]),
			atomic_load(&st_board->out[i][1]));
		assert_true(atomic_load(&st_board->out[i][0]) <= limit);
		assert_true(atomic_load(&st_board->out[i][2]) > 0);
		/* What is worth a mapping still gets one. */
		assert_true(atomic_load(&st_board->out[i][1]) >= RUNS * RUN * 9 / 10);
	}
	st_close();
}

/* Zero pages cost no mapping in the end; but each that is frozen alone is one for the moment. */
#define ZEROS 1024u /* two chunks at least; every other page of that */
#define ZERO_ROOM 300u

static void run_zeros_apart(unsigned self)
{
	size_t limit = atomic_load(&st_board->in[0][0]), used;
	char *p = pt_map(ZEROS), *eaten = pt_map_as(2 * limit, PROT_NONE, ANON | MAP_NORESERVE);
	uint64_t most = 0, now;

	for (unsigned i = 0; i < ZEROS; i++) {
		if (i % 2)
			pt_fill_page(p + i * pt_page(), 320 + self, i);
		else
			memset(p + i * pt_page(), 0, pt_page());
	}
	used = pt_vma_count();
	for (size_t i = 1; used + ZERO_ROOM < limit; i += 2, used += 2)
		PT_CHECK(mprotect(eaten + i * pt_page(), pt_page(), PROT_READ) == 0);
	/* All at once: it is wanted from now on. */
	PT_CHECK(madvise(p, ZEROS * pt_page(), MADV_MERGEABLE) == 0);
	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		now = pt_vma_count();
		most = now > most ? now : most;
	}
	for (unsigned i = 0; i < ZEROS; i++)
		PT_CHECK(i % 2 ? pt_page_is(p + i * pt_page(), 320 + self, i)
			       : pt_is_zero(p + i * pt_page(), 1));
	atomic_store(&st_board->out[self][0], most);
	st_did(self, 2);
}

static void zero_pages_within_the_budget(void **state)
{
	int64_t max = sys_read_number("/proc/sys/vm/max_map_count");
	uint64_t limit = (uint64_t)max / 100;

	(void)state;
	if (max < 50000 || max > 1000000)
		SKIP("an odd vm.max_map_count");
	pt_skip_unless_remap();
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MAPS=1");
	atomic_store(&st_board->in[0][0], limit);
	st_start("zeros-apart");
	st_step(1);
	ST_UNTIL(st_report(0).zero_pages == ZEROS / 2);
	/* There were too many for once. */
	assert_true(st_report(0).total.pages_declined[SAMEPAGE_REASON_MAP_COUNT] > 0);
	st_step(2);
	pt_note("limit %lu: at most %lu mappings", limit, atomic_load(&st_board->out[0][0]));
	assert_true(atomic_load(&st_board->out[0][0]) <= limit);
	st_close();
}

/* --- CPU ------------------------------------------------------------------------------------ */

#define ENDLESS 4096u

static void run_endless(unsigned self)
{
	char *p = st_memory(ENDLESS);
	uint64_t gen = 0;

	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		gen++;
		/* New, and alike in both; it keeps still for as long as it takes. */
		for (unsigned i = 0; i < ENDLESS; i++)
			pt_fill_page(p + i * pt_page(), gen, i);
		st_nap(100);
		PT_CHECK(pt_differs(p, ENDLESS, gen) == -1);
		PT_CHECK(madvise(p, ENDLESS * pt_page(), MADV_DONTNEED) == 0);
	}
	st_did(self, 2);
}

static void cpu_ceiling(void **state)
{
	uint64_t began = sys_now_usec(), since;
	struct core_wire_report r;

	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_CPU=0.1");
	st_start("endless");
	st_start("endless");
	st_step(1);
	ST_UNTIL(st_report(0).scan.held_cpu > 0 && st_report(1).scan.held_cpu > 0);
	for (unsigned k = 0; k < 5; k++) {
		st_nap(1500);
		for (unsigned i = 0; i < 2; i++) {
			r = st_report(i);
			since = sys_now_usec() - began;
			/* A minute's worth, what flowed in, and the slices that were under way. */
			if (r.scan.cpu_usec > 60000 + since / 1000 + 100000)
				st_show(i);
			assert_true(r.scan.cpu_usec <= 60000 + since / 1000 + 100000);
			assert_true(r.scan.cpu_usec <= r.cpu_usec);
			assert_true(r.scan.pages_hashed > 0);
		}
	}
	st_step(2);
	st_close();
}

/* --- huge pages --------------------------------------------------------------------------------- */

static size_t huge_bytes(void)
{
	int64_t n = sys_read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");

	return n > 0 ? (size_t)n : 0;
}

static size_t huge_in(const char *p)
{
	char line[512];
	unsigned long from, to, kib, n = 0;
	bool here = false;
	FILE *f = fopen("/proc/self/smaps", "re");

	PT_CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &from, &to) == 2)
			here = (uintptr_t)p >= from && (uintptr_t)p < to;
		if (here && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
			n += kib * 1024;
	}
	fclose(f);
	return n;
}

static char *map_huge(void)
{
	size_t bytes = huge_bytes();
	char *p = pt_map_aligned(bytes, bytes);

	(void)madvise(p, bytes, MADV_HUGEPAGE);
	memset(p, 1, bytes);
	(void)madvise(p, bytes, 25 /* MADV_COLLAPSE */);
	return p;
}

/* in[0]: every how manyth page is alike. */
static void run_huge(unsigned self)
{
	unsigned every = (unsigned)atomic_load(&st_board->in[0][0]);
	size_t pages = huge_bytes() / pt_page();
	char *p = map_huge();

	for (unsigned i = 0; i < pages; i++)
		pt_fill_page(p + i * pt_page(), i % every ? 40 + self : 39, i);
	atomic_store(&st_board->out[self][0], huge_in(p));
	PT_CHECK(madvise(p, pages * pt_page(), MADV_MERGEABLE) == 0);
	st_did(self, 1);
	for (unsigned step = 2; step < 4; step++) {
		st_wait_step(step);
		for (unsigned i = 0; i < pages; i++)
			PT_CHECK(pt_page_is(p + i * pt_page(), i % every ? 40 + self : 39, i));
		atomic_store(&st_board->out[self][1], huge_in(p));
		st_did(self, step);
	}
}

static bool huge_world(uint64_t every)
{
	st_open(NULL);
	atomic_store(&st_board->in[0][0], every);
	st_start("huge");
	st_start("huge");
	st_step(1);
	return atomic_load(&st_board->out[0][0]) && atomic_load(&st_board->out[1][0]);
}

static void huge_pages_that_merge(void **state)
{
	size_t pages = huge_bytes() / pt_page();

	(void)state;
	if (!pages)
		SKIP("no transparent huge pages in this kernel");
	if (!huge_world(2))
		SKIP("no transparent huge page to be had");
	ST_UNTIL(st_report(0).pages_sharing == pages / 2 && st_report(1).pages_sharing == pages / 2);
	st_step(2);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(atomic_load(&st_board->out[i][1]), 0);
		assert_true(st_report(i).scan.huge_split >= 1);
	}
	assert_int_equal(st_totals().slots, pages / 2);
	st_step(3);
	st_close();
}

static void huge_pages_that_do_not(void **state)
{
	size_t pages = huge_bytes() / pt_page();

	(void)state;
	if (!pages)
		SKIP("no transparent huge pages in this kernel");
	if (!huge_world(100))
		SKIP("no transparent huge page to be had");
	ST_UNTIL(st_report(0).scan.huge_kept >= 2 && st_report(1).scan.huge_kept >= 2);
	st_step(2);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(atomic_load(&st_board->out[i][1]), huge_bytes());
		assert_int_equal(st_report(i).scan.huge_split, 0);
		assert_int_equal(st_report(i).pages_sharing, 0);
	}
	/* Nothing was promoted to find that out. */
	assert_int_equal(st_totals().slots, 0);
	st_step(3);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "writer", run_writer },
						{ "two-kinds", run_two_kinds },
						{ "breaker", run_breaker },
						{ "scattered", run_scattered },
						{ "zeros-apart", run_zeros_apart },
						{ "endless", run_endless },
						{ "huge", run_huge },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(volatile_pages_are_left_alone),
		cmocka_unit_test(volatile_pages_by_checksum),
		cmocka_unit_test(still_pages_beside_volatile_ones),
		cmocka_unit_test(broken_merges_are_counted),
		cmocka_unit_test(mapping_budget),
		cmocka_unit_test(zero_pages_within_the_budget),
		cmocka_unit_test(cpu_ceiling),
		cmocka_unit_test(huge_pages_that_merge),
		cmocka_unit_test(huge_pages_that_do_not),
	};

	return ST_MAIN("scan-policy", tests, roles);
}
