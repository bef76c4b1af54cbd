/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where nothing happens nothing is looked at; and what happens is noticed nevertheless, by the
 * count of page faults, by the broker's counters, or, where neither moves, in the end. If this
 * failed, idle processes would cost CPU time for ever, or memory that changes after a
 * quiet time would stay unmerged.
 */
#include "scantest.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define COMMON 300u
#define OWN 100u
#define LATER 50u
#define SOON 18u /* seconds; by their schedule alone, looks would come later than that */

static bool merged(unsigned actor, uint64_t pages)
{
	return st_report(actor).scan.pages_merged_now == pages;
}

/* Does it come to two full scans in which not a page is asked for, before `msec` are over? */
static bool calm(unsigned actor, unsigned msec)
{
	struct core_scan_counters a = st_report(actor).scan, b;

	for (unsigned i = 0; i < msec / 50; i++) {
		st_nap(50);
		b = st_report(actor).scan;
		if (b.pages_scanned != a.pages_scanned)
			a = b;
		else if (b.full_scans >= a.full_scans + 2)
			return true;
	}
	return false;
}

/* Then LATER pages, of what it is told. */
static void run_holder(unsigned self)
{
	char *p = st_memory(COMMON + OWN + LATER), *later = p + (COMMON + OWN) * pt_page();
	uint64_t seed;

	pt_fill(p, COMMON, 1);
	pt_fill(p + COMMON * pt_page(), OWN, 100 + self);
	atomic_store(&st_board->out[self][0], (uintptr_t)p);
	st_did(self, 1);
	while ((seed = atomic_load(&st_board->in[self][0])) == 0)
		st_nap(5);
	pt_fill(later, LATER, seed);
	st_did(self, 2);
	st_wait_step(3);
	st_note_pfns(self, 0, p, COMMON + OWN + LATER);
	PT_CHECK(pt_differs(p, COMMON, 1) == -1);
	PT_CHECK(pt_differs(later, LATER, seed) == -1);
	st_did(self, 3);
	st_wait_step(100);
}

static void start_two(void)
{
	st_start("holder");
	st_start("holder");
	st_wait_did(0, 1);
	st_wait_did(1, 1);
	ST_UNTIL(merged(0, COMMON) && merged(1, COMMON));
}

/* Of what the first has, the last shares `pages` from `first` on. */
static void finish(unsigned actors, size_t first, size_t pages)
{
	for (unsigned i = 0; i < actors; i++)
		atomic_store(&st_board->in[i][0], 900);
	st_step(3);
	assert_int_equal(st_same_pfns(0, first, actors - 1, first, pages), pages);
	st_tell(100);
	for (unsigned i = 0; i < actors; i++)
		st_end(i);
	st_close();
}

static void needs_the_tracker(void)
{
	if (pt_kernel_merges()) {
		pt_note("skipped: the kernel merges, and scans by checksum");
		skip();
	}
}

static void at_rest_nothing_is_looked_at(void **state)
{
	(void)state;
	needs_the_tracker();
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MOST=300");
	start_two();
	assert_true(calm(0, ST_LIMIT * 1000));
	assert_true(calm(1, ST_LIMIT * 1000));
	finish(2, 0, COMMON);
}

/* Nothing tells of its changes but its bytes. */
static void by_checksum_everything_is(void **state)
{
	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MOST=300");
	st_env("SAMEPAGE_SCAN_TRACKER=checksum");
	start_two();
	assert_false(calm(0, 5000));
	finish(2, 0, COMMON);
}

static void soon(unsigned actor)
{
	unsigned tries = 0;

	while (!merged(actor, COMMON + LATER)) {
		if (++tries > SOON * 10) {
			st_show_all();
			fail_msg("actor %u has not merged what is new", actor);
		}
		st_nap(100);
	}
}

/* Times between looks: 2, 8, 32 s. */
static void start_two_slow_ones(void)
{
	needs_the_tracker();
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MOST=3600000");
	st_env("SAMEPAGE_SCAN_FIRST=1000");
	start_two();
}

static void what_is_new_is_looked_at_out_of_turn(void **state)
{
	(void)state;
	start_two_slow_ones();
	st_nap(12500);
	atomic_store(&st_board->in[0][0], 900);
	atomic_store(&st_board->in[1][0], 900);
	soon(0);
	soon(1);
	finish(2, COMMON + OWN, LATER);
}

/* The one who has had it for long takes no fault: others report, and publish. */
static void what_another_one_has_now(void **state)
{
	(void)state;
	start_two_slow_ones();
	atomic_store(&st_board->in[0][0], 900);
	st_wait_did(0, 2);
	ST_UNTIL(st_report(0).scan.pages_unshared_now == OWN + LATER);
	st_nap(12500);
	st_env("SAMEPAGE_SCAN_MOST=10000");
	st_env("SAMEPAGE_SCAN_FIRST=100");
	st_start("holder");
	atomic_store(&st_board->in[2][0], 900);
	st_wait_did(2, 2);
	soon(0);
	finish(3, COMMON + OWN, LATER);
}

/* Written by another process: that one's faults are counted, not the owner's. */
static void write_into(unsigned actor, uint64_t seed)
{
	static char bytes[OWN * 65536];
	uint64_t at = atomic_load(&st_board->out[actor][0]) + COMMON * pt_page();
	struct iovec from = { bytes, OWN * pt_page() };
	struct iovec to = { (void *)(uintptr_t)at, OWN * pt_page() };

	pt_fill(bytes, OWN, seed);
	assert_int_equal(process_vm_writev(st_pid(actor), &from, 1, &to, 1, 0),
			 (ssize_t)from.iov_len);
}

static void what_others_write_is_found_in_the_end(void **state)
{
	(void)state;
	needs_the_tracker();
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MOST=300");
	start_two();
	assert_true(calm(0, ST_LIMIT * 1000) && calm(1, ST_LIMIT * 1000));
	write_into(0, 500);
	write_into(1, 500);
	ST_UNTIL(merged(0, COMMON + OWN) && merged(1, COMMON + OWN));
	finish(2, COMMON, OWN);
}

/* Filled when nobody wanted it, and advised without a page fault. */
static void run_adviser(unsigned self)
{
	char *p = mmap(NULL, COMMON * pt_page(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	PT_CHECK(p != MAP_FAILED);
	pt_fill(p, COMMON, 1);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(madvise(p, COMMON * pt_page(), MADV_MERGEABLE) == 0);
	st_did(self, 2);
	st_wait_step(100);
	PT_CHECK(pt_differs(p, COMMON, 1) == -1);
}

static void what_is_advised_later(void **state)
{
	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_MOST=3600000");
	st_env("SAMEPAGE_SCOPE=advised");
	st_start("adviser");
	st_start("adviser");
	st_wait_did(0, 1);
	st_wait_did(1, 1);
	st_nap(5000);
	st_step(2);
	/* Each question ends a slice: what had news and was not come to must not be passed by. */
	for (unsigned i = 0; i < 2000 && !(merged(0, COMMON) && merged(1, COMMON)); i++)
		st_nap(1);
	ST_UNTIL(merged(0, COMMON) && merged(1, COMMON));
	st_tell(100);
	st_end(0);
	st_end(1);
	st_close();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(at_rest_nothing_is_looked_at),
		cmocka_unit_test(by_checksum_everything_is),
		cmocka_unit_test(what_is_new_is_looked_at_out_of_turn),
		cmocka_unit_test(what_another_one_has_now),
		cmocka_unit_test(what_others_write_is_found_in_the_end),
		cmocka_unit_test(what_is_advised_later),
	};
	const struct st_role roles[] = { { "holder", run_holder }, { "adviser", run_adviser }, { NULL, NULL } };

	return ST_MAIN("scan-calm", tests, roles);
}
