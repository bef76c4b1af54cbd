/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs that do nothing but have memory. If this failed, equal pages would not be
 * merged by themselves, pages that only one has would go into the store, or what was
 * merged would not hold the bytes that were there.
 */
#include "scantest.h"

#include "sys/sys.h"
#include "tests/proc/ring.h"

#define PAGES 600u /* more than a chunk */
#define OWN 200u
#define SHARED_SEED 7u

/* PAGES that all have, OWN that nobody else has. in[0]: which tracker is no matter here. */
static void run_holder(unsigned self)
{
	char *p = st_memory(PAGES), *own = st_memory(OWN);

	pt_fill(p, PAGES, SHARED_SEED);
	pt_fill(own, OWN, 1000 + self);
	st_did(self, 1);
	for (unsigned step = 2; step < 6; step++) {
		st_wait_step(step);
		PT_CHECK(pt_differs(p, PAGES, SHARED_SEED) == -1);
		PT_CHECK(pt_differs(own, OWN, 1000 + self) == -1);
		st_note_pfns(self, 0, p, PAGES);
		st_note_pfns(self, PAGES, own, OWN);
		atomic_store(&st_board->out[self][0], st_store_pages(own, OWN));
		st_did(self, step);
	}
}

static bool all_share(unsigned actors, uint64_t pages)
{
	for (unsigned i = 0; i < actors; i++)
		if (st_report(i).pages_sharing < pages)
			return false;
	return true;
}

static void processes_with_identical_pages(unsigned count)
{
	struct core_wire_report r;

	for (unsigned i = 0; i < count; i++)
		st_start("holder");
	st_step(1);
	ST_UNTIL(all_share(count, PAGES));
	/* The kernel counts whatever else is merged as well. */
	if (pt_kernel_merges())
		st_nap(3000);
	st_step(2);
	for (unsigned i = 1; i < count; i++) {
		assert_int_equal(st_same_pfns(0, 0, i, 0, PAGES), PAGES);
		assert_int_equal(st_same_pfns(0, PAGES, i, PAGES, OWN), 0);
	}
	/* Candidates before the store: exactly the pages that two have. */
	assert_int_equal(st_totals().slots, pt_kernel_merges() ? 0 : PAGES);
	for (unsigned i = 0; i < count; i++) {
		r = st_report(i);
		assert_int_equal(atomic_load(&st_board->out[i][0]), 0);
		if (pt_kernel_merges())
			continue;
		assert_int_equal(r.pages_sharing, PAGES);
		assert_int_equal(r.scan.pages_merged_now, PAGES);
		/* What another's offer merged, the kernel counts as the other's. */
		if (!pt_kernel_merges())
			assert_int_equal(r.scan.pages_merged, PAGES);
		assert_int_equal(r.scan.pages_broken, 0);
	}
	ST_UNTIL(st_report(0).scan.pages_unshared_now <= OWN);
	for (unsigned i = 3; i < 6; i++)
		st_step(i);
	for (unsigned i = 0; i < count; i++)
		st_end(i);
}

static void two_processes(void **state)
{
	(void)state;
	st_open(NULL);
	processes_with_identical_pages(2);
	st_close();
}

static void three_processes(void **state)
{
	(void)state;
	st_open(NULL);
	processes_with_identical_pages(3);
	st_close();
}

static void three_processes_by_checksum(void **state)
{
	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_TRACKER=checksum");
	processes_with_identical_pages(3);
	st_close();
}

static void the_tracker_that_was_asked_for(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("holder");
	st_env("SAMEPAGE_SCAN_TRACKER=checksum");
	st_start("holder");
	st_env("SAMEPAGE_SCAN=off");
	st_start("holder");
	st_step(1);
	/* The kernel merges nothing that a userfaultfd watches, ours included. */
	assert_int_equal(st_report(0).scan.tracker, pt_kernel_merges() ? CORE_SCAN_TRACKER_CHECKSUM
								      : CORE_SCAN_TRACKER_WP_ASYNC);
	assert_int_equal(st_report(1).scan.tracker, CORE_SCAN_TRACKER_CHECKSUM);
	assert_int_equal(st_report(2).scan.tracker, 0);
	ST_UNTIL(all_share(2, PAGES));
	/* Off is off: nothing is merged there however long the others have been. */
	assert_int_equal(st_report(2).pages_sharing, 0);
	for (unsigned i = 2; i < 6; i++)
		st_step(i);
	st_close();
}

/* Both halves of one process: a twin may live next door. */
static void run_twice(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES);

	pt_fill(p, PAGES, 30 + self);
	pt_fill(q, PAGES, 30 + self);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(pt_differs(p, PAGES, 30 + self) == -1);
	PT_CHECK(pt_differs(q, PAGES, 30 + self) == -1);
	st_note_pfns(self, 0, p, PAGES);
	st_note_pfns(self, PAGES, q, PAGES);
	st_did(self, 2);
}

static void one_process_with_itself(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("twice");
	st_step(1);
	ST_UNTIL(st_report(0).pages_sharing == 2 * PAGES);
	st_step(2);
	assert_int_equal(st_same_pfns(0, 0, 0, PAGES, PAGES), PAGES);
	assert_int_equal(st_totals().slots, pt_kernel_merges() ? 0 : PAGES);
	st_end(0);
	st_close();
}

/*
 * A page published later than it was scanned. The first has had its pages hashed and
 * reported, long since; then others come that have them too. It hears of it by its own
 * notes: no page of it is hashed again.
 */
static void published_later(void **state)
{
	struct core_wire_report before, after;

	(void)state;
	pt_skip_unless_remap();
	st_open(NULL);
	st_start("holder");
	st_step(1);
	ST_UNTIL(st_report(0).scan.pages_unshared_now == PAGES + OWN);
	st_nap(500);
	before = st_report(0);
	assert_int_equal(before.scan.pages_hashed, PAGES + OWN);
	assert_int_equal(st_totals().slots, 0);
	st_start("holder");
	st_start("holder");
	st_step(1);
	ST_UNTIL(all_share(3, PAGES));
	after = st_report(0);
	assert_int_equal(after.scan.pages_hashed, before.scan.pages_hashed);
	st_step(2);
	assert_int_equal(st_same_pfns(0, 0, 1, 0, PAGES), PAGES);
	for (unsigned i = 3; i < 6; i++)
		st_step(i);
	st_close();
}

/* Zero pages need no store. */
static void run_zeros(unsigned self)
{
	char *p = st_memory(PAGES);

	memset(p, 1, PAGES * pt_page());
	memset(p, 0, PAGES * pt_page());
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(pt_is_zero(p, PAGES));
	p[3 * pt_page()] = 5;
	PT_CHECK(p[3 * pt_page()] == 5 && pt_is_zero(p + 4 * pt_page(), PAGES - 4));
	st_did(self, 2);
}

static void zeros(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("zeros");
	st_step(1);
	ST_UNTIL(st_report(0).zero_pages >= PAGES);
	assert_int_equal(st_totals().slots, 0);
	st_step(2);
	st_end(0);
	st_close();
}

/* Pages that stop one after the other: each chunk again and again. */
#define TURNS 12u

static void run_grower(unsigned self)
{
	char *p = st_memory(TURNS * 64);

	for (unsigned i = 0; i < TURNS; i++) {
		st_wait_step(i);
		pt_fill(p + i * 64 * pt_page(), 64, 90 + i);
		st_did(self, i + 1);
	}
	st_wait_step(100);
	for (unsigned i = 0; i < TURNS; i++)
		PT_CHECK(pt_differs(p + i * 64 * pt_page(), 64, 90 + i) == -1);
	st_note_pfns(self, 0, p, TURNS * 64);
	st_did(self, 100);
}

static void memory_that_grows(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("grower");
	st_start("grower");
	for (unsigned i = 0; i < TURNS; i++) {
		st_tell(i);
		st_wait_did(0, i + 1);
		st_wait_did(1, i + 1);
		ST_UNTIL(all_share(2, (i + 1) * 64));
	}
	st_step(100);
	assert_int_equal(st_same_pfns(0, 0, 1, 0, TURNS * 64), TURNS * 64);
	assert_int_equal(st_totals().slots, pt_kernel_merges() ? 0 : TURNS * 64);
	st_close();
}

/* --- written while its neighbours merge ------------------------------------- */

#define BUSY_PAGES 3072u
#define BUSY_USEC 600000u

/* The first has it all; the others come to have it, odd pages one by one, in no order. */
static void run_comes_to_it(unsigned self)
{
	char *p = st_memory(BUSY_PAGES);
	uint64_t began, random = 5;
	unsigned order[BUSY_PAGES / 2], other;

	for (unsigned i = 0; i < BUSY_PAGES; i++)
		pt_fill_page(p + i * pt_page(), self && i % 2 ? 9 : SHARED_SEED, i);
	for (unsigned i = 0; i < BUSY_PAGES / 2; i++) {
		other = (unsigned)(pt_random(&random) % (i + 1));
		order[i] = order[other];
		order[other] = 2 * i + 1;
	}
	st_did(self, 1);
	began = sys_now_usec();
	for (unsigned i = 0; self && i < BUSY_PAGES / 2; i++) {
		pt_fill_page(p + order[i] * pt_page(), SHARED_SEED, order[i]);
		while (sys_now_usec() - began < (uint64_t)BUSY_USEC * i / (BUSY_PAGES / 2))
			;
	}
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_differs(p, BUSY_PAGES, SHARED_SEED) == -1);
	st_did(self, 3);
}

/* A write that no look sees is a page that is never merged. */
static void no_write_is_missed(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("comes-to-it");
	st_start("comes-to-it");
	st_step(2);
	ST_UNTIL(all_share(2, BUSY_PAGES));
	st_step(3);
	st_close();
}

/* --- written after a freeze that did not take it --------------------------------- */

#define PINNED_PAGES 40u /* longer than a run that is mapped elsewhere first */

/* After step 1 this one maps nothing: that would have all mappings read, and registered, anew. */
static void run_pinned(unsigned self)
{
	char *p = st_memory(PINNED_PAGES);
	struct iovec buf = { p, PINNED_PAGES * pt_page() };
	struct ring ring;

	atomic_store(&st_board->out[self][0], ring_open(&ring));
	pt_fill(p, PINNED_PAGES, 50);
	if (!atomic_load(&st_board->out[self][0])) {
		st_did(self, 1);
		return;
	}
	PT_CHECK(!syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buf, 1));
	st_did(self, 1);
	st_wait_step(2);
	/* Another's content as long as it is pinned, so that it is not merged the moment it is not. */
	pt_fill(p, PINNED_PAGES, 51);
	PT_CHECK(!syscall(__NR_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0));
	st_did(self, 2);
	st_wait_step(3);
	pt_fill(p, PINNED_PAGES, 52);
	st_did(self, 3);
	st_wait_step(4);
	PT_CHECK(pt_differs(p, PINNED_PAGES, 52) == -1);
	st_note_pfns(self, 0, p, PINNED_PAGES);
	st_did(self, 4);
}

static void run_pinned_twin(unsigned self)
{
	char *p = st_memory(PINNED_PAGES), *q = st_memory(PINNED_PAGES);

	pt_fill(p, PINNED_PAGES, 50);
	st_did(self, 2);
	st_wait_step(3);
	pt_fill(q, PINNED_PAGES, 52);
	st_did(self, 3);
	st_wait_step(4);
	st_note_pfns(self, 0, q, PINNED_PAGES);
	st_did(self, 4);
}

/*
 * A freeze ends the tracking of what it takes, so what it has to give back is tracked again.
 * It is also hashed anew; so it is the write after that one that would be missed.
 */
static void a_write_after_a_refused_freeze(void **state)
{
	(void)state;
	pt_skip_unless_remap();
	st_open(NULL);
	st_start("pinned");
	st_wait_did(0, 1);
	if (!atomic_load(&st_board->out[0][0]))
		SKIP("no io_uring here");
	st_start("pinned-twin");
	st_wait_did(1, 2);
	ST_UNTIL(st_report(0).total.pages_declined[SAMEPAGE_REASON_PINNED] >= PINNED_PAGES);
	assert_int_equal(st_report(0).pages_sharing, 0);
	st_step(2);
	ST_UNTIL(st_report(0).scan.pages_unshared_now == PINNED_PAGES);
	st_step(3);
	ST_UNTIL(st_report(0).pages_sharing == PINNED_PAGES);
	ST_UNTIL(st_report(1).pages_sharing == 2 * PINNED_PAGES);
	assert_int_equal(st_report(0).scan.pages_broken, 0);
	st_step(4);
	assert_int_equal(st_same_pfns(0, 0, 1, 0, PINNED_PAGES), PINNED_PAGES);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "holder", run_holder },
						{ "twice", run_twice },
						{ "zeros", run_zeros },
						{ "grower", run_grower },
						{ "comes-to-it", run_comes_to_it },
						{ "pinned", run_pinned },
						{ "pinned-twin", run_pinned_twin },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_processes),
		cmocka_unit_test(three_processes),
		cmocka_unit_test(three_processes_by_checksum),
		cmocka_unit_test(the_tracker_that_was_asked_for),
		cmocka_unit_test(one_process_with_itself),
		cmocka_unit_test(published_later),
		cmocka_unit_test(zeros),
		cmocka_unit_test(memory_that_grows),
		cmocka_unit_test(no_write_is_missed),
		cmocka_unit_test(a_write_after_a_refused_freeze),
	};

	return ST_MAIN("scan-merge", tests, roles);
}
