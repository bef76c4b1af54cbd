/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that were written since their merge come home, and merge again. If this failed, they
 * would be apart for ever, whatever they hold, and segments would stay for their sake; or a
 * program's advice would be lost on the way, or given to memory that never had it (I5).
 */
#include "scantest.h"

#include "sys/maps.h"

#define PAGES 600u
#define SEED 7u
#define ADVICE (SYS_VMF(dc) | SYS_VMF(dd))

static bool both_share(uint64_t pages)
{
	return st_report(0).pages_sharing >= pages && st_report(1).pages_sharing >= pages;
}

/* Like nothing that anybody else has. */
static void break_pages(char *p, size_t pages, unsigned self)
{
	for (size_t i = 0; i < pages; i++)
		p[i * pt_page()] += (char)(1 + self);
}

static void wait_for_home(const char *p, size_t pages)
{
	unsigned tries = 0;

	while (st_store_pages(p, pages)) {
		PT_CHECK(tries++ < ST_LIMIT * 50);
		st_nap(20);
	}
}

static void wait_for_merge(const char *p, size_t pages)
{
	unsigned tries = 0;

	while (st_store_pages(p, pages) < pages) {
		PT_CHECK(tries++ < ST_LIMIT * 50);
		st_nap(20);
	}
}

/* Mappings are read anew when there are others. */
static void change_mappings(unsigned msec)
{
	for (unsigned i = 0; i < msec / 20; i++) {
		char *q = st_memory(1);

		st_nap(20);
		pt_unmap(q, 1);
	}
}

/* --- advice of a neighbour ------------------------------------------------------ */

#define OWN 64u /* pages of one's own, before those that all have */

static void expect_advice(const char *p, size_t pages, uint64_t flags)
{
	for (size_t i = 0; i < pages; i++)
		PT_CHECK((pt_vm_flags(p + i * pt_page(), NULL) & ADVICE) == flags);
}

static void advise(char *p, size_t pages)
{
	PT_CHECK(madvise(p, pages * pt_page(), MADV_DONTFORK) == 0);
	PT_CHECK(madvise(p, pages * pt_page(), MADV_DONTDUMP) == 0);
}

/* The first has advice on what is merged, the second on the memory before it. */
static void run_neighbours(unsigned self)
{
	char *own = st_memory(OWN + PAGES), *p = own + OWN * pt_page();
	uint64_t mine = self ? ADVICE : 0;

	if (self)
		advise(own, OWN);
	else
		advise(p, PAGES);
	pt_fill(own, OWN, 100 + self);
	pt_fill(p, PAGES, SEED);
	wait_for_merge(p, PAGES);
	change_mappings(3000);
	st_did(self, 1);
	st_wait_step(2);
	break_pages(p, PAGES, self);
	wait_for_home(p, PAGES);
	expect_advice(p, PAGES, ADVICE & ~mine);
	pt_fill(p, PAGES, SEED);
	wait_for_merge(p, PAGES);
	expect_advice(p, PAGES, ADVICE & ~mine);
	expect_advice(own, OWN, mine);
	PT_CHECK(pt_differs(p, PAGES, SEED) == -1 && pt_differs(own, OWN, 100 + self) == -1);
	st_did(self, 2);
	st_wait_step(3);
}

static void a_neighbours_advice(void **state)
{
	(void)state;
	st_open(NULL);
	/* Whether a look out of turn comes soon depends on what lies in the same 2 MiB. */
	st_env("SAMEPAGE_SCAN_MOST=1000");
	st_start("neighbours");
	st_start("neighbours");
	st_step(1);
	assert_true(both_share(PAGES));
	st_step(2);
	st_tell(3);
	st_end(0);
	st_end(1);
	st_close();
}

/* --- many mappings ---------------------------------------------------------------- */

#define BLOCK 60u

/* The same pages in another order: where these are one run, those are ten. */
static void fill_blocks(char *p, bool backwards)
{
	for (unsigned i = 0; i < PAGES; i++) {
		unsigned block = i / BLOCK;

		if (backwards)
			block = PAGES / BLOCK - 1 - block;
		pt_fill_page(p + i * pt_page(), SEED, block * BLOCK + i % BLOCK);
	}
}

static void run_blocks(unsigned self)
{
	char *p = st_memory(PAGES);

	fill_blocks(p, self);
	st_did(self, 1);
	for (unsigned step = 2; step < 4; step++) {
		st_wait_step(step);
		PT_CHECK(st_store_pages(p, PAGES) == PAGES);
		break_pages(p, PAGES, self);
		wait_for_home(p, PAGES);
		fill_blocks(p, self);
		wait_for_merge(p, PAGES);
		st_did(self, step);
	}
	st_wait_step(4);
	for (unsigned i = 0; i < PAGES; i++) {
		unsigned block = self ? PAGES / BLOCK - 1 - i / BLOCK : i / BLOCK;

		PT_CHECK(pt_page_is(p + i * pt_page(), SEED, block * BLOCK + i % BLOCK));
	}
}

static void many_mappings_come_home(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("blocks");
	st_start("blocks");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_step(2);
	ST_UNTIL(both_share(PAGES));
	st_step(3);
	st_tell(4);
	st_end(0);
	st_end(1);
	st_close();
}

/* Written alike, and then left alone: nothing tells of those pages but that they came home. */
static void run_alike(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, SEED);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(st_store_pages(p, PAGES) == PAGES);
	break_pages(p, PAGES, 0);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(st_store_pages(p, PAGES) == PAGES);
	for (unsigned i = 0; i < PAGES; i++)
		p[i * pt_page()]--;
	PT_CHECK(pt_differs(p, PAGES, SEED) == -1);
}

static void what_came_home_merges_by_itself(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("alike");
	st_start("alike");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_step(2);
	ST_UNTIL(both_share(PAGES));
	assert_true(st_report(0).scan.homecomings > 0 && st_report(1).scan.homecomings > 0);
	st_tell(3);
	st_end(0);
	st_end(1);
	st_close();
}

/* What was merged is unknown to the scanner, when it begins anew. */
static void merged_before_the_broker_died(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("blocks");
	st_start("blocks");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_kill_broker();
	st_restart_broker(NULL);
	ST_UNTIL(st_all_connected());
	st_nap(500);
	st_step(2);
	assert_true(st_report(0).scan.homecomings > 0 && st_report(1).scan.homecomings > 0);
	st_step(3);
	st_tell(4);
	st_end(0);
	st_end(1);
	st_close();
}

/* --- large programs ----------------------------------------------------------------- */

#define MANY 3500u
#define LARGE_BYTES (640ull << 20)

/* The first is so large that copying its page tables would be felt. */
static void run_large(unsigned self)
{
	char *p = st_memory(MANY);

	if (self == 0)
		memset(pt_map(LARGE_BYTES / pt_page()), 1, LARGE_BYTES);
	pt_fill(p, MANY, SEED);
	wait_for_merge(p, MANY);
	st_did(self, 1);
	st_wait_step(2);
	break_pages(p, MANY, self);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(self || st_store_pages(p, MANY) == MANY);
}

static void a_large_program_is_not_forked(void **state)
{
	(void)state;
	if (sysconf(_SC_AVPHYS_PAGES) < (long)(3 * LARGE_BYTES / pt_page()))
		SKIP("too little memory");
	st_open(NULL);
	st_start("large");
	st_start("large");
	st_step(1);
	st_step(2);
	ST_UNTIL(st_report(1).scan.homecomings > 0 && st_report(0).scan.pages_broken == MANY);
	/* All of it; and time for the first one to do the same. */
	st_nap(5000);
	assert_int_equal(st_report(0).scan.homecomings, 0);
	st_tell(3);
	st_end(0);
	st_end(1);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "neighbours", run_neighbours },
						{ "blocks", run_blocks },
						{ "alike", run_alike },
						{ "large", run_large },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_neighbours_advice),
		cmocka_unit_test(many_mappings_come_home),
		cmocka_unit_test(what_came_home_merges_by_itself),
		cmocka_unit_test(merged_before_the_broker_died),
		cmocka_unit_test(a_large_program_is_not_forked),
	};

	return ST_MAIN("scan-home", tests, roles);
}
