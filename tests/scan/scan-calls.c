/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What programs do with memory that the scanner watches. If this failed, a guest that
 * balloons would see old bytes or never be merged again, pause would not stop anything,
 * and the library would keep what the program gave up long ago. Calls that must do the
 * same as without samepage: keep-*.c, which run with the scanner as well.
 */
#include "scantest.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define PAGES 300u
#define TURNS 6u

static bool both_share(uint64_t pages)
{
	return st_report(0).pages_sharing == pages && st_report(1).pages_sharing == pages;
}

/* --- balloon --------------------------------------------------------------------------- */

/* Odd steps: discarded; even ones: filled again at once, before anybody may have looked. */
static void run_balloon(unsigned self)
{
	char *p = st_memory(PAGES);

	for (unsigned turn = 0; turn < TURNS; turn++) {
		pt_fill(p, PAGES, turn);
		st_did(self, 1 + turn);
		st_wait_step(2 + turn);
		PT_CHECK(pt_differs(p, PAGES, turn) == -1);
		PT_CHECK(madvise(p, PAGES * pt_page(), MADV_DONTNEED) == 0);
		PT_CHECK(pt_is_zero(p, PAGES));
	}
	st_wait_step(90);
	st_did(self, 90);
}

static void refilled_memory(const char *tracker)
{
	st_open(NULL);
	st_env(tracker);
	st_start("balloon");
	st_start("balloon");
	for (unsigned turn = 0; turn < TURNS; turn++) {
		st_step(1 + turn);
		ST_UNTIL(both_share(PAGES));
		ST_UNTIL(st_report(0).scan.pages_merged_now == PAGES);
	}
	st_tell(1 + TURNS);
	/* Given up for good: nothing is known as merged any more. */
	ST_UNTIL(st_report(0).scan.pages_merged_now == 0 && both_share(0));
	st_step(90);
	st_close();
}

static void refilled_at_once(void **state)
{
	(void)state;
	refilled_memory("SAMEPAGE_SCAN_TRACKER=wp-async");
}

static void refilled_at_once_by_checksum(void **state)
{
	(void)state;
	refilled_memory("SAMEPAGE_SCAN_TRACKER=checksum");
}

/* Not merged, only watched: the same zeros. */
static void run_unmerged_balloon(unsigned self)
{
	char *p = st_memory(PAGES);
	unsigned turn = 0;

	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		pt_fill(p, PAGES, 100 * self + turn);
		st_nap(turn % 50);
		PT_CHECK(pt_differs(p, PAGES, 100 * self + turn) == -1);
		PT_CHECK(madvise(p, PAGES / 2 * pt_page(), MADV_DONTNEED) == 0);
		PT_CHECK(pt_is_zero(p, PAGES / 2));
		for (unsigned i = PAGES / 2; i < PAGES; i++)
			PT_CHECK(pt_page_is(p + i * pt_page(), 100 * self + turn, i));
		turn++;
	}
	st_did(self, 2);
}

static void unmerged_memory_discarded(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("unmerged-balloon");
	st_start("unmerged-balloon");
	st_step(1);
	st_nap(3000);
	assert_true(st_report(0).scan.pages_scanned > 0);
	st_step(2);
	st_close();
}

/* --- memory that comes and goes ------------------------------------------------------------ */

#define COMINGS 40u

static void run_nomad(unsigned self)
{
	static char *at[COMINGS];

	for (unsigned i = 0; i < COMINGS; i++) {
		/* Each in a place of its own, so that nothing is forgotten by being reused. */
		at[i] = mmap((char *)0x300000000000 + i * (64ull << 20), PAGES * pt_page(), RW,
			     ANON | MAP_FIXED_NOREPLACE, -1, 0);
		PT_CHECK(at[i] != MAP_FAILED);
		PT_CHECK(madvise(at[i], PAGES * pt_page(), MADV_MERGEABLE) == 0);
		/* Some are merged, others nobody else has. */
		pt_fill(at[i], PAGES, i % 2 ? 1000 + i : 5000 + i * ST_ACTORS + self);
		if (i % 4 == 3)
			for (unsigned n = 0; n < 400 && !st_store_pages(at[i], PAGES); n++)
				st_nap(10);
		else
			st_nap(60);
		PT_CHECK(pt_differs(at[i], PAGES, i % 2 ? 1000 + i : 5000 + i * ST_ACTORS + self) ==
			 -1);
		PT_CHECK(munmap(at[i], PAGES * pt_page()) == 0);
	}
	st_did(self, 1);
	st_wait_step(2);
	st_did(self, 2);
}

static bool knows_nothing(unsigned actor)
{
	struct core_wire_report r = st_report(actor);

	return r.scan.pages_tracked_now == 0 && r.scan.pages_merged_now == 0 &&
	       r.scan.pages_unshared_now == 0 && r.pages_sharing == 0;
}

static void unmapped_memory_is_forgotten(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("nomad");
	st_start("nomad");
	st_step(1);
	ST_UNTIL(knows_nothing(0) && knows_nothing(1));
	assert_true(st_report(0).scan.pages_merged > 0);
	st_step(2);
	st_close();
}

/* --- pause --------------------------------------------------------------------------------- */

static void run_paused(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES), *own = st_memory(PAGES);

	pt_fill(p, PAGES, 61);
	pt_fill(own, PAGES, 600 + self); /* never merged, so registered while it is watched */
	st_did(self, 1);
	for (unsigned step = 2; step < 8; step++) {
		st_wait_step(step);
		if (step == 2)
			pt_fill(q, PAGES, 62);
		PT_CHECK(pt_differs(p, PAGES, 61) == -1);
		PT_CHECK(pt_differs(q, PAGES, 62) == -1);
		PT_CHECK(pt_differs(own, PAGES, 600 + self) == -1);
		atomic_store(&st_board->out[self][0], st_has_flag("uw"));
		atomic_store(&st_board->out[self][1], st_store_pages(p, PAGES));
		atomic_store(&st_board->out[self][2], st_store_pages(q, PAGES));
		st_did(self, step);
	}
}

static void expect(unsigned actors, uint64_t registered, uint64_t p_pages, uint64_t q_pages)
{
	for (unsigned i = 0; i < actors; i++) {
		assert_int_equal(atomic_load(&st_board->out[i][0]), registered);
		assert_int_equal(atomic_load(&st_board->out[i][1]), p_pages);
		assert_int_equal(atomic_load(&st_board->out[i][2]), q_pages);
	}
}

static void pause_and_resume(void **state)
{
	struct core_wire_report r;

	(void)state;
	st_open(NULL);
	st_start("paused");
	st_start("paused");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	assert_int_equal(st_all(CORE_WIRE_OP_PAUSE), 2);
	/* New memory is not merged, what is merged stays, nothing is registered. */
	st_step(2);
	st_nap(700);
	st_step(3);
	expect(2, 0, PAGES, 0);
	r = st_report(0);
	assert_int_equal(r.scan.paused, 1);
	assert_int_equal(r.scan.pages_tracked_now, 0);
	/* Newcomers rest as well. */
	st_start("paused");
	st_wait_did(2, 3);
	st_nap(500);
	assert_int_equal(st_report(2).scan.paused, 1);
	st_step(4);
	expect(2, 0, PAGES, 0);
	assert_int_equal(atomic_load(&st_board->out[2][0]), 0);
	assert_int_equal(atomic_load(&st_board->out[2][1]), 0);
	assert_int_equal(st_all(CORE_WIRE_OP_RESUME), 3);
	ST_UNTIL(both_share(2 * PAGES) && st_report(2).pages_sharing == 2 * PAGES);
	st_step(5);
	expect(3, 1, PAGES, PAGES);
	/* unmerge: all of it back, and the scanners rest. */
	assert_int_equal(st_all(CORE_WIRE_OP_UNMERGE), 3);
	st_nap(700);
	assert_true(both_share(0));
	st_step(6);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(atomic_load(&st_board->out[i][0]), 0);
	assert_int_equal(st_all(CORE_WIRE_OP_RESUME), 3);
	st_nap(300);
	st_step(7);
	st_close();
}

static void one_is_paused(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("paused");
	st_start("paused");
	st_start("paused");
	ST_UNTIL(st_all_connected());
	assert_int_equal(st_one(CORE_WIRE_OP_PAUSE, 2), 1);
	st_step(1);
	st_step(2);
	ST_UNTIL(both_share(2 * PAGES));
	assert_int_equal(st_report(2).scan.paused, 1);
	assert_int_equal(st_report(0).scan.paused, 0);
	st_step(3);
	assert_int_equal(atomic_load(&st_board->out[2][0]), 0);
	assert_int_equal(st_one(CORE_WIRE_OP_RESUME, 2), 1);
	ST_UNTIL(st_report(2).pages_sharing == 2 * PAGES);
	for (unsigned i = 4; i < 8; i++)
		st_step(i);
	st_close();
}

/* A child of somebody who was told to rest was not told so; unless all were. */
static void child_of_paused(uint64_t seed, bool merges)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, seed);
	for (unsigned i = 0; merges && st_store_pages(p, PAGES) < PAGES; i++) {
		PT_CHECK(i < ST_LIMIT * 50);
		st_nap(20);
	}
	if (!merges)
		st_nap(1500);
	PT_CHECK(st_store_pages(p, PAGES) == (merges ? PAGES : 0));
	PT_CHECK(pt_differs(p, PAGES, seed) == -1);
	_exit(0);
}

static void run_paused_parent(unsigned self)
{
	char *p = st_memory(2 * PAGES), *q = p + PAGES * pt_page();

	pt_fill(p, PAGES, 91);
	pt_fill(q, PAGES, 92);
	st_did(self, 1);
	for (unsigned step = 2; step < 4; step++) {
		pid_t pid;

		st_wait_step(step);
		if (self == 0) {
			pid = fork();
			PT_CHECK(pid >= 0);
			if (pid == 0)
				child_of_paused(89 + step, step == 2);
			PT_CHECK(pt_wait(pid, 2 * ST_LIMIT) == 0);
			PT_CHECK(st_store_pages(p, 2 * PAGES) == 0);
		}
		st_did(self, step);
	}
}

static void a_paused_ones_child(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("paused-parent");
	ST_UNTIL(st_all_connected());
	assert_int_equal(st_one(CORE_WIRE_OP_PAUSE, 0), 1);
	st_start("paused-parent");
	st_step(1);
	st_step(2);
	assert_int_equal(st_report(0).scan.paused, 1);
	assert_true(st_all(CORE_WIRE_OP_PAUSE) >= 2);
	st_step(3);
	st_end(0);
	st_end(1);
	st_close();
}

/* --- advice ------------------------------------------------------------------------------------ */

/* Only what was advised; UNMERGEABLE ends it, and brings back what was merged. */
static void run_advised(unsigned self)
{
	char *p = st_memory(PAGES), *q = pt_map(PAGES), *r = st_memory(PAGES);

	pt_fill(p, PAGES, 71);
	pt_fill(q, PAGES, 72);
	pt_fill(r, PAGES, 73);
	PT_CHECK(madvise(r, PAGES * pt_page(), MADV_UNMERGEABLE) == 0);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(st_store_pages(p, PAGES) == PAGES);
	PT_CHECK(st_store_pages(q, PAGES) == 0 && st_store_pages(r, PAGES) == 0);
	PT_CHECK(madvise(p, PAGES * pt_page(), MADV_UNMERGEABLE) == 0);
	PT_CHECK(madvise(q, PAGES * pt_page(), MADV_MERGEABLE) == 0);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_file_pages(p, PAGES) == 0);
	PT_CHECK(st_store_pages(q, PAGES) == PAGES);
	PT_CHECK(pt_differs(p, PAGES, 71) == -1 && pt_differs(q, PAGES, 72) == -1);
	PT_CHECK(pt_differs(r, PAGES, 73) == -1);
	st_did(self, 3);
}

static void advised_memory_only(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("advised");
	st_start("advised");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_nap(700);
	st_step(2);
	ST_UNTIL(both_share(PAGES));
	st_nap(700);
	st_step(3);
	st_close();
}

/*
 * Written long before it is advised, in a stretch that the scanner knows already: nothing is
 * ever written there again, so no tracker tells of it.
 */
static void run_advised_later(unsigned self)
{
	size_t bytes = PAGES / 3 * pt_page();
	char *p = mmap((char *)0x310000000000, 3 * bytes, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);

	PT_CHECK(p != MAP_FAILED);
	pt_fill(p, PAGES / 3, 900 + self); /* nobody else has it, so it is known */
	pt_fill(p + bytes, PAGES / 3, 903);
	pt_fill(p + 2 * bytes, PAGES / 3, 904);
	PT_CHECK(madvise(p, bytes, MADV_MERGEABLE) == 0);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(madvise(p + bytes, bytes, MADV_MERGEABLE) == 0);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(st_store_pages(p + bytes, PAGES / 3) == PAGES / 3);
	PT_CHECK(madvise(p, 2 * bytes, MADV_UNMERGEABLE) == 0);
	st_did(self, 3);
	st_wait_step(4);
	PT_CHECK(madvise(p + 2 * bytes, bytes, MADV_MERGEABLE) == 0);
	st_did(self, 4);
	st_wait_step(5);
	PT_CHECK(st_store_pages(p + 2 * bytes, PAGES / 3) == PAGES / 3);
	PT_CHECK(pt_differs(p, PAGES / 3, 900 + self) == -1);
	PT_CHECK(pt_differs(p + bytes, PAGES / 3, 903) == -1);
	PT_CHECK(pt_differs(p + 2 * bytes, PAGES / 3, 904) == -1);
	st_did(self, 5);
}

static void advised_long_after_it_was_written(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("advised-later");
	st_start("advised-later");
	st_step(1);
	ST_UNTIL(st_report(0).scan.pages_unshared_now == PAGES / 3 &&
		 st_report(1).scan.pages_unshared_now == PAGES / 3);
	st_nap(700);
	st_step(2);
	ST_UNTIL(both_share(PAGES / 3));
	st_step(3);
	ST_UNTIL(both_share(0));
	st_nap(700);
	st_step(4);
	ST_UNTIL(both_share(PAGES / 3));
	st_step(5);
	st_close();
}

/* --- a userfaultfd of the program's own -------------------------------------------------------- */

static int own_uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	PT_CHECK(fd >= 0);
	PT_CHECK(ioctl(fd, UFFDIO_API, &api) == 0);
	return fd;
}

static void run_uffd(unsigned self)
{
	char *p = st_memory(PAGES);
	struct uffdio_register reg = {
		.range = { (uintptr_t)p, PAGES * pt_page() },
		.mode = self ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct uffdio_range all = reg.range;
	int fd = own_uffd(0);

	pt_fill(p, PAGES, 81);
	st_did(self, 1);
	st_wait_step(2); /* merged, or watched at least */
	PT_CHECK(ioctl(fd, UFFDIO_REGISTER, &reg) == 0);
	if (self == 0)
		PT_CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	PT_CHECK(pt_differs(p, PAGES, 81) == -1);
	st_did(self, 2);
	st_wait_step(3); /* the scanner goes on: the protection must hold */
	PT_CHECK(st_store_pages(p, PAGES) == 0);
	if (self == 0) {
		for (unsigned i = 0; i < PAGES; i++)
			PT_CHECK(pt_pagemap(p + i * pt_page()) & (1ull << 57));
		wp.mode = 0;
		PT_CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	}
	PT_CHECK(ioctl(fd, UFFDIO_UNREGISTER, &all) == 0);
	PT_CHECK(pt_differs(p, PAGES, 81) == -1);
	close(fd);
	st_did(self, 3);
}

/* With pages that are merged (first) or only watched, as the moment has it. */
static void own_registration(unsigned wait_msec)
{
	st_open(NULL);
	st_start("uffd");
	st_start("uffd");
	st_step(1);
	if (wait_msec)
		st_nap(wait_msec);
	else
		ST_UNTIL(both_share(PAGES));
	st_step(2);
	st_nap(700);
	st_all(CORE_WIRE_OP_PAUSE);
	st_all(CORE_WIRE_OP_RESUME);
	st_nap(300);
	st_step(3);
	st_close();
}

static void own_uffd_over_merged_memory(void **state)
{
	(void)state;
	own_registration(0);
}

static void own_uffd_over_watched_memory(void **state)
{
	(void)state;
	for (unsigned wait = 5; wait < 60; wait += 18)
		own_registration(wait);
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "balloon", run_balloon },
						{ "unmerged-balloon", run_unmerged_balloon },
						{ "nomad", run_nomad },
						{ "paused", run_paused },
						{ "paused-parent", run_paused_parent },
						{ "advised", run_advised },
						{ "advised-later", run_advised_later },
						{ "uffd", run_uffd },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refilled_at_once),
		cmocka_unit_test(refilled_at_once_by_checksum),
		cmocka_unit_test(unmerged_memory_discarded),
		cmocka_unit_test(unmapped_memory_is_forgotten),
		cmocka_unit_test(pause_and_resume),
		cmocka_unit_test(one_is_paused),
		cmocka_unit_test(a_paused_ones_child),
		cmocka_unit_test(advised_memory_only),
		cmocka_unit_test(advised_long_after_it_was_written),
		cmocka_unit_test(own_uffd_over_merged_memory),
		cmocka_unit_test(own_uffd_over_watched_memory),
	};

	return ST_MAIN("scan-calls", tests, roles);
}
