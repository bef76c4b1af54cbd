/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many callers. If this failed, calls from several threads, on one handle or on
 * several, would race with each other inside the library, hang, or mix up their
 * results; or opening and closing would leak. Meant for ThreadSanitizer as well.
 */
#include "proctest.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 6u
#define PAGES 96u
#define ROUNDS (PT_SANITIZED ? 15u : 80u)

struct worker {
	pthread_t thread;
	unsigned number;
	struct samepage *sp; /* shared with others, or this thread's */
	struct samepage *passed_on; /* opened here, closed elsewhere */
	bool own_handle;
};

/* In one thread: what it asked for is what it gets, whatever the others do. */
static void one_round(struct worker *w, char *p, uint64_t seed)
{
	struct samepage_result r;
	struct samepage_stats st;

	pt_fill(p, PAGES, seed);
	memset(p, 0, pt_page());
	PT_CHECK(samepage_merge(w->sp, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_sums(&r));
	PT_CHECK(r.pages_looked == PAGES);
	PT_CHECK(pt_complete(&r));
	PT_CHECK(r.pages_zeroed == 1);
	PT_CHECK(pt_is_zero(p, 1));
	for (size_t i = 1; i < PAGES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), seed, i));
	PT_CHECK(samepage_stats(w->sp, &st, sizeof(st)) == 0);
	PT_CHECK(st.merges > 0 && st.total.pages_looked >= PAGES);
	PT_CHECK(samepage_unmerge(w->sp, p, PAGES / 2 * pt_page()) == 0);
	for (size_t i = 1; i < PAGES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), seed, i));
	PT_CHECK(samepage_discard(w->sp, p, PAGES * pt_page()) == 0);
	PT_CHECK(pt_is_zero(p, PAGES));
	/* Unmerged pages are in store mappings; discard made all anonymous again. */
}

static void *work(void *arg)
{
	struct worker *w = arg;
	char *p = pt_map(PAGES);

	for (unsigned i = 0; i < ROUNDS; i++) {
		if (w->own_handle)
			w->sp = pt_open_sized(8u << 20);
		/* Seeds repeat, within a thread and between threads. */
		one_round(w, p, 1 + (i + w->number) % 5);
		if (w->own_handle) {
			samepage_close(w->sp);
			w->sp = NULL;
		}
	}
	w->passed_on = pt_open_sized(8u << 20);
	PT_CHECK(samepage_merge(w->passed_on, p, PAGES * pt_page(), 0, NULL) == 0);
	pt_unmap(p, PAGES);
	return NULL;
}

static void *close_it(void *arg)
{
	PT_CHECK(samepage_merge(arg, NULL, 0, 0, NULL) == 0);
	samepage_close(arg);
	return NULL;
}

static void run(unsigned own_handles)
{
	struct worker w[THREADS] = { 0 };
	struct samepage *sp = pt_open_sized(64u << 20);
	pthread_t t;

	for (unsigned i = 0; i < THREADS; i++) {
		w[i].number = i;
		w[i].sp = sp;
		w[i].own_handle = i < own_handles;
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		if (i % 2) {
			samepage_close(w[i].passed_on);
			continue;
		}
		assert_int_equal(pthread_create(&t, NULL, close_it, w[i].passed_on), 0);
		pthread_join(t, NULL);
	}
	samepage_close(sp);
}

static void one_handle_for_all(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	run(0);
}

static void a_handle_each(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	run(THREADS);
}

static void some_of_each(void **state)
{
	size_t fds, vmas, after;

	(void)state;
	pt_skip_unless_can_merge();
	run(THREADS / 2); /* libc keeps stacks and arenas of as many threads */
	fds = pt_fd_count();
	vmas = pt_vma_count();
	run(THREADS / 2);
	run(THREADS / 2);
	assert_int_equal(pt_fd_count(), fds);
	after = pt_vma_count();
	if (after > vmas)
		pt_note("%zu mappings before, %zu after", vmas, after);
	assert_true(PT_SANITIZED || after <= vmas + 16); /* arenas come and go with their use */
}

/* Several threads merge, unmerge and read the very same range. */
static char *common;
static struct samepage *handles[3];
static _Atomic bool stop;

static void *same_range(void *arg)
{
	unsigned n = (unsigned)(uintptr_t)arg;
	uint64_t rnd = n;

	while (!atomic_load(&stop)) {
		struct samepage_result r;
		size_t first = pt_random(&rnd) % PAGES, pages = 1 + pt_random(&rnd) % (PAGES - first);
		char *at = common + first * pt_page();

		if (n % 3 == 0) {
			PT_CHECK(samepage_unmerge(handles[n % 2], at, pages * pt_page()) == 0);
		} else {
			PT_CHECK(samepage_merge(handles[n % 3], at, pages * pt_page(), 0, &r) == 0);
			PT_CHECK(pt_sums(&r));
		}
		PT_CHECK(pt_differs(common, PAGES, 9) == -1);
	}
	return NULL;
}

static void the_same_range(void **state)
{
	pthread_t t[THREADS];

	(void)state;
	pt_skip_unless_can_merge();
	common = pt_map(PAGES);
	for (unsigned i = 0; i < 3; i++)
		handles[i] = pt_open_sized(16u << 20);
	for (unsigned round = 0; round < (PT_SANITIZED ? 10u : 40u); round++) {
		assert_int_equal(samepage_discard(handles[0], common, PAGES * pt_page()), 0);
		pt_fill(common, PAGES, 9);
		atomic_store(&stop, false);
		for (unsigned i = 0; i < THREADS; i++)
			assert_int_equal(pthread_create(&t[i], NULL, same_range,
							(void *)(uintptr_t)i), 0);
		usleep(20000);
		atomic_store(&stop, true);
		for (unsigned i = 0; i < THREADS; i++)
			pthread_join(t[i], NULL);
		assert_int_equal(pt_differs(common, PAGES, 9), -1);
	}
	for (unsigned i = 0; i < 3; i++)
		samepage_close(handles[i]);
	pt_unmap(common, PAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_handle_for_all),
		cmocka_unit_test(a_handle_each),
		cmocka_unit_test(some_of_each),
		cmocka_unit_test(the_same_range),
	};

	return PT_MAIN("proc-threads", tests);
}
