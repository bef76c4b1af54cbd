/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that nobody else has. If this failed, what a process had before, or another that is
 * gone, would pass for a second page: all of it would go into the store for nothing, and
 * with the first write memory would grow. Or, as bad, a real second page in the same process
 * would be taken for such a thing and never be merged.
 */
#include "scantest.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGES 200u

static bool unshared(unsigned actor, uint64_t pages)
{
	return st_report(actor).scan.pages_unshared_now == pages;
}

/* Once more the news, after all is known: what was to be promoted would be by now. */
static void nothing_promoted(unsigned actor)
{
	st_nap(1000);
	assert_int_equal(st_report(actor).scan.pages_promoted, 0);
	assert_int_equal(st_report(actor).pages_sharing, 0);
	assert_int_equal(st_totals().slots, 0);
}

static void run_idle(unsigned self)
{
	st_did(self, 1);
	st_wait_step(100);
}

static void run_worker(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, 7);
	st_did(self, 1);
	while (atomic_load(&st_board->in[self][0]) == 0)
		st_nap(5);
	PT_CHECK(pt_differs(p, PAGES, 7) == -1);
}

static void end_worker(unsigned actor)
{
	atomic_store(&st_board->in[actor][0], 1);
	st_end(actor);
}

/* One at a time, with the same data; somebody else keeps the domain alive. */
static void a_worker_that_is_restarted(void **state)
{
	unsigned last = 0;

	(void)state;
	st_open(NULL);
	st_start("idle");
	st_tell(1);
	st_wait_did(0, 1);
	for (unsigned i = 0; i < 3; i++) {
		if (last)
			end_worker(last);
		last = st_start("worker");
		st_wait_did(last, 1);
		ST_UNTIL(unshared(last, PAGES));
		nothing_promoted(last);
	}
	/* One beside it is another matter. */
	st_start("worker");
	st_wait_did(last + 1, 1);
	ST_UNTIL(st_report(last).pages_sharing == PAGES &&
		 st_report(last + 1).pages_sharing == PAGES);
	assert_int_equal(st_totals().slots, PAGES);
	end_worker(last);
	end_worker(last + 1);
	st_tell(100);
	st_end(0);
	st_close();
}

/* The same contents again and again, in one process alone. */
static void run_rebuilder(unsigned self)
{
	char *p = st_memory(PAGES), *q;

	pt_fill(p, PAGES, 8);
	st_did(self, 1);
	st_wait_step(2); /* freed, and seen to be gone */
	if (strcmp(getenv("REBUILD"), "discard") == 0)
		PT_CHECK(madvise(p, PAGES * pt_page(), MADV_DONTNEED) == 0);
	else
		munmap(p, PAGES * pt_page());
	st_did(self, 2);
	st_wait_step(3); /* built again, elsewhere */
	q = st_memory(PAGES + 1);
	PT_CHECK(q);
	pt_fill(q + pt_page(), PAGES, 8);
	st_did(self, 3);
	st_wait_step(4); /* written, and written back */
	pt_fill(q + pt_page(), PAGES, 9);
	st_did(self, 4);
	st_wait_step(5);
	pt_fill(q + pt_page(), PAGES, 8);
	st_did(self, 5);
	st_wait_step(6); /* and there it is a second time */
	p = st_memory(PAGES);
	pt_fill(p, PAGES, 8);
	st_did(self, 6);
	st_wait_step(7);
	PT_CHECK(pt_differs(q + pt_page(), PAGES, 8) == -1);
	PT_CHECK(pt_differs(p, PAGES, 8) == -1);
	st_note_pfns(self, 0, p, PAGES);
	st_note_pfns(self, PAGES, q + pt_page(), PAGES);
	st_did(self, 7);
}

static void rebuilt(const char *tracker, const char *how)
{
	st_open(NULL);
	st_env(tracker);
	st_env(how);
	st_start("rebuilder");
	st_step(1);
	ST_UNTIL(unshared(0, PAGES));
	st_step(2);
	ST_UNTIL(st_report(0).scan.pages_tracked_now == 0);
	st_step(3);
	ST_UNTIL(unshared(0, PAGES));
	nothing_promoted(0);
	st_step(4);
	st_nap(300);
	ST_UNTIL(unshared(0, PAGES));
	st_step(5);
	st_nap(300);
	ST_UNTIL(unshared(0, PAGES));
	nothing_promoted(0);
	st_step(6);
	ST_UNTIL(st_report(0).pages_sharing == 2 * PAGES);
	st_step(7);
	assert_int_equal(st_same_pfns(0, 0, 0, PAGES, PAGES), PAGES);
	assert_int_equal(st_totals().slots, PAGES);
	st_close();
}

static void a_process_that_builds_the_same_again(void **state)
{
	(void)state;
	rebuilt("SAMEPAGE_SCAN_TRACKER=wp-async", "REBUILD=unmap");
}

static void a_process_that_builds_the_same_again_by_checksum(void **state)
{
	(void)state;
	rebuilt("SAMEPAGE_SCAN_TRACKER=checksum", "REBUILD=unmap");
}

/* As allocators purge: no mapping changes, and no write tells. */
static void a_process_that_discards_and_builds_the_same_again(void **state)
{
	(void)state;
	rebuilt("SAMEPAGE_SCAN_TRACKER=wp-async", "REBUILD=discard");
}

/* --- records ----------------------------------------------------------------------------- */

#define MANY 16384u

static void run_hoarder(unsigned self)
{
	char *p = st_memory(MANY), *q = st_memory(PAGES);

	pt_fill(q, PAGES, 21);
	pt_fill(p, MANY, 22);
	st_did(self, 1);
	st_wait_step(2);
	munmap(p, MANY * pt_page());
	st_did(self, 2);
	st_wait_step(3);
	p = st_memory(MANY);
	pt_fill(p, MANY, 22);
	st_did(self, 3);
	st_wait_step(4);
	PT_CHECK(pt_differs(q, PAGES, 21) == -1);
	st_did(self, 4);
}

/* They go with the memory that they are about, and come again with it. */
static void records_that_are_not_needed_any_more(void **state)
{
	uint64_t many;

	(void)state;
	st_open(NULL);
	st_start("hoarder");
	st_step(1);
	ST_UNTIL(unshared(0, MANY + PAGES));
	many = st_report(0).scan.metadata_bytes;
	assert_true(many > 6 * MANY);
	st_step(2);
	ST_UNTIL(st_report(0).scan.metadata_bytes < many / 8);
	ST_UNTIL(unshared(0, PAGES));
	st_step(3);
	ST_UNTIL(unshared(0, MANY + PAGES));
	assert_true(st_report(0).scan.metadata_bytes < many + many / 8);
	st_step(4);
	st_close();
}

/* --- a handle of the library's -------------------------------------------------------- */

typedef int open_fn(struct samepage **, const struct samepage_options *);
typedef int merge_fn(struct samepage *, void *, size_t, uint32_t, struct samepage_result *);
typedef void close_fn(struct samepage *);

static void run_handle(unsigned self)
{
	char *p = st_memory(PAGES);
	void *lib = dlopen(getenv("SAMEPAGE_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
	struct samepage_result r = { 0 };
	struct samepage *handle;

	PT_CHECK(lib);
	pt_fill(p, PAGES, 20);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(((open_fn *)dlsym(lib, "samepage_open"))(&handle, NULL) == 0);
	PT_CHECK(((merge_fn *)dlsym(lib, "samepage_merge"))(handle, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(r.pages_declined[SAMEPAGE_REASON_UFFD_BUSY] == 0);
	PT_CHECK(r.pages_merged == PAGES);
	((close_fn *)dlsym(lib, "samepage_close"))(handle);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_differs(p, PAGES, 20) == -1);
	PT_CHECK(st_store_pages(p, PAGES) == PAGES);
	st_did(self, 3);
}

/* What the scanner watches, a handle in the same program can merge; then it is the handle's. */
static void a_handle_beside_the_scanner(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("handle");
	st_step(1);
	ST_UNTIL(unshared(0, PAGES));
	st_step(2);
	assert_int_equal(st_totals().slots, PAGES);
	st_nap(500);
	assert_int_equal(st_report(0).scan.pages_tracked_now, 0);
	st_step(3);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "idle", run_idle },
						{ "worker", run_worker },
						{ "rebuilder", run_rebuilder },
						{ "hoarder", run_hoarder },
						{ "handle", run_handle },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_worker_that_is_restarted),
		cmocka_unit_test(a_process_that_builds_the_same_again),
		cmocka_unit_test(a_process_that_builds_the_same_again_by_checksum),
		cmocka_unit_test(a_process_that_discards_and_builds_the_same_again),
		cmocka_unit_test(records_that_are_not_needed_any_more),
		cmocka_unit_test(a_handle_beside_the_scanner),
	};

	return ST_MAIN("scan-alone", tests, roles);
}
