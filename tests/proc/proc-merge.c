/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The merge itself. If this failed, pages that are called merged would not share a
 * frame, or would go on sharing after a write; zero pages would cost mappings; the
 * counts would not add up (I9); bad arguments would get through, or a hole in the
 * range would keep the rest from being merged.
 */
#include "proctest.h"

#include "sys/maps.h"

#define N 600u

static struct samepage *sp;

static int open_handle(void **state)
{
	(void)state;
	sp = NULL;
	return 0;
}

static int close_handle(void **state)
{
	(void)state;
	samepage_close(sp);
	sp = NULL;
	return 0;
}

static void need(void)
{
	pt_skip_unless_can_merge();
	sp = pt_open();
}

static char *at(char *p, size_t page)
{
	return p + page * pt_page();
}

static void twins_share_frames(void **state)
{
	char *a, *b;
	struct samepage_result r;

	(void)state;
	need();
	pt_skip_unless_root();
	a = pt_map(N);
	b = pt_map(N);
	pt_fill(a, N, 1);
	pt_fill(b, N, 1);
	assert_int_equal(pt_same_frames(a, b, N), 0);
	r = pt_merged(sp, a, N);
	assert_true(pt_complete(&r));
	assert_int_equal(r.pages_looked, N);
	assert_true(pt_kernel_merges() || r.pages_promoted == r.pages_merged);
	r = pt_merged(sp, b, N);
	assert_true(pt_complete(&r));
	assert_int_equal(r.pages_promoted, 0);
	assert_true(pt_same_frames(a, b, N) >= N - 2);
	assert_int_equal(pt_differs(a, N, 1), -1);
	assert_int_equal(pt_differs(b, N, 1), -1);
	pt_unmap(a, N);
	pt_unmap(b, N);
}

/* Equal pages inside one range, next to each other and far apart. */
static void equal_pages_of_one_range_share(void **state)
{
	char *a;
	struct samepage_result r;

	(void)state;
	need();
	pt_skip_unless_root();
	a = pt_map(N);
	for (size_t i = 0; i < N; i++)
		pt_fill_page(at(a, i), 2, i % 3 ? 0 : i);
	r = pt_merged(sp, a, N);
	assert_true(pt_complete(&r));
	assert_true(r.pages_promoted <= N / 3 + 1);
	/* The kernel lets 256 share one (max_page_sharing), then begins another. */
	for (size_t i = 4; i < N && !pt_kernel_merges(); i += 3)
		assert_int_equal(pt_same_frames(at(a, 1), at(a, i), 1), 1);
	for (size_t i = 0; i < N; i++)
		assert_true(pt_page_is(at(a, i), 2, i % 3 ? 0 : i));
	pt_unmap(a, N);
}

static void a_write_parts_them(void **state)
{
	char *part[3];

	(void)state;
	need();
	pt_skip_unless_root();
	for (int i = 0; i < 3; i++) {
		part[i] = pt_map(N);
		pt_fill(part[i], N, 3);
		pt_merged(sp, part[i], N);
	}
	for (size_t i = 0; i < N; i += 2)
		*(at(part[1], i) + 17) ^= 0x55;
	for (size_t i = 0; i < N; i += 2) {
		assert_int_equal(pt_same_frames(at(part[0], i), at(part[1], i), 1), 0);
		*(at(part[1], i) + 17) ^= 0x55;
	}
	for (int i = 0; i < 3; i++)
		assert_int_equal(pt_differs(part[i], N, 3), -1);
	assert_true(pt_same_frames(part[0], part[2], N) >= N - 2);
	for (int i = 0; i < 3; i++)
		pt_unmap(part[i], N);
}

static void zero_pages_are_given_back(void **state)
{
	char *a;
	struct samepage_result r;
	size_t vmas;
	uint64_t zero;

	(void)state;
	need();
	a = pt_map(N);
	memset(a, 1, N * pt_page());
	memset(a, 0, N * pt_page());
	pt_merged(sp, a, 1); /* so that the staging area is there */
	vmas = pt_vma_count();
	r = pt_merged(sp, a, N);
	if (!pt_kernel_merges()) {
		assert_int_equal(r.pages_zeroed, N - 1);
		assert_int_equal(r.pages_looked, N - 1);
	}
	assert_true(r.pages_zeroed >= N - 1);
	assert_int_equal(r.pages_merged + r.pages_promoted + r.runs, 0);
	assert_int_equal(r.vmas_added, 0);
	assert_int_equal(pt_vma_count(), vmas);
	/* Given back, or mapped to the zero page by the kernel. */
	for (size_t i = 0; i < N && !pt_kernel_merges(); i++)
		assert_false(pt_pagemap(at(a, i)) & PT_PM_PRESENT);
	assert_true(pt_is_zero(a, N));
	zero = pt_zero_pfn();
	for (size_t i = 0; zero && i < N; i++)
		assert_int_equal(pt_pfn(at(a, i)), zero);
	/* Pages that read as the zero page are not looked at again. */
	r = pt_merged(sp, a, N);
	assert_int_equal(r.pages_looked, r.pages_already);
	assert_true(pt_kernel_merges() || r.pages_looked == 0);
	for (size_t i = 0; i < N; i += 7)
		*at(a, i) = 1;
	r = pt_merged(sp, a, N);
	assert_int_equal(r.pages_looked - r.pages_already, (N + 6) / 7);
	assert_int_equal(r.pages_merged, (N + 6) / 7);
	pt_unmap(a, N);
}

/* One bit, at either end of the page and in the middle: no zero page. */
static void almost_zero_is_not_zero(void **state)
{
	char *a;
	struct samepage_result r;

	(void)state;
	need();
	a = pt_map(4);
	memset(a, 0, 4 * pt_page());
	*at(a, 0) = 1;
	*(at(a, 2) - 1) = 1;
	*(at(a, 2) + pt_page() / 2) = 1;
	*at(a, 3) = 0;
	r = pt_merged(sp, a, 4);
	assert_int_equal(r.pages_merged, 3);
	assert_int_equal(r.pages_zeroed, 1);
	assert_int_equal(*at(a, 0), 1);
	assert_int_equal(*(at(a, 2) - 1), 1);
	assert_int_equal(*(at(a, 2) + pt_page() / 2), 1);
	pt_unmap(a, 4);
}

static void second_call_finds_them_merged(void **state)
{
	char *a;
	struct samepage_result r, again;

	(void)state;
	need();
	a = pt_map(N);
	pt_fill(a, N, 4);
	r = pt_merged(sp, a, N);
	again = pt_merged(sp, a, N);
	assert_int_equal(again.pages_looked, N);
	assert_int_equal(again.pages_already, r.pages_merged);
	assert_int_equal(again.pages_merged + again.runs, 0);
	*at(a, 5) ^= 1;
	again = pt_merged(sp, a, N);
	assert_int_equal(again.pages_already, r.pages_merged - 1);
	/* Written since: again only on the caller's word (proc-still has more of it). */
	if (pt_kernel_merges())
		assert_int_equal(again.pages_merged, 1);
	else
		assert_int_equal(again.pages_declined[SAMEPAGE_REASON_WRITABLE], 1);
	pt_unmap(a, N);
}

static void pages_never_touched_are_not_looked_at(void **state)
{
	char *a;
	struct samepage_result r;

	(void)state;
	need();
	a = pt_map(N);
	for (size_t i = 100; i < 200; i++)
		pt_fill_page(at(a, i), 5, i);
	r = pt_merged(sp, a, N);
	assert_int_equal(r.pages_looked, 100);
	for (size_t i = 0; i < N; i++)
		if (i < 100 || i >= 200)
			assert_false(pt_pagemap(at(a, i)) & PT_PM_PRESENT);
	pt_unmap(a, N);
}

static void bad_arguments_are_refused(void **state)
{
	struct samepage_result r;
	char *a;

	(void)state;
	need();
	a = pt_map(4);
	pt_fill(a, 4, 6);
	memset(&r, 0x5a, sizeof(r));
	assert_int_equal(samepage_merge(sp, a + 1, pt_page(), 0, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, a, pt_page(), 2, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, a, pt_page(), 0x80000000u, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, a, SIZE_MAX, 0, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, a, SIZE_MAX - (uintptr_t)a, 0, &r), -EINVAL);
	assert_int_equal(samepage_merge(NULL, a, pt_page(), 0, &r), -EINVAL);
	assert_int_equal(samepage_unmerge(sp, a + 8, pt_page()), -EINVAL);
	assert_int_equal(samepage_unmerge(sp, a, SIZE_MAX), -EINVAL);
	assert_int_equal(samepage_unmerge(NULL, a, pt_page()), -EINVAL);
	assert_int_equal(samepage_discard(sp, a + 8, pt_page()), -EINVAL);
	assert_int_equal(samepage_discard(sp, a, SIZE_MAX), -EINVAL);
	assert_int_equal(samepage_discard(NULL, a, pt_page()), -EINVAL);
	assert_int_equal(pt_differs(a, 4, 6), -1);
	assert_int_equal(pt_file_pages(a, 4), 0);
	/* No bytes: nothing to do. A part of a page: the page. NULL for the result. */
	assert_int_equal(samepage_merge(sp, a, 0, 0, &r), 0);
	assert_int_equal(r.pages_looked, 0);
	assert_int_equal(samepage_merge(sp, a, 1, 0, &r), 0);
	assert_int_equal(r.pages_merged, 1);
	assert_int_equal(samepage_merge(sp, at(a, 1), pt_page() + 1, 0, NULL), 0);
	assert_int_equal(pt_file_pages(a, 4), 3);
	pt_unmap(a, 4);
}

static void around_a_gap(void **state)
{
	struct samepage_result r;
	char *a;

	(void)state;
	need();
	a = pt_map(N);
	pt_fill(a, N, 7);
	assert_int_equal(munmap(at(a, 100), 50 * pt_page()), 0);
	assert_int_equal(samepage_merge(sp, a, N * pt_page(), 0, &r), -ENOMEM);
	assert_true(pt_sums(&r));
	assert_int_equal(r.pages_looked, N - 50);
	assert_true(pt_complete(&r));
	assert_int_equal(pt_differs(a, 100, 7), -1);
	for (size_t i = 150; i < N; i++)
		assert_true(pt_page_is(at(a, i), 7, i));
	assert_int_equal(samepage_unmerge(sp, a, N * pt_page()), -ENOMEM);
	assert_int_equal(pt_file_pages(a, 100), 0);
	assert_int_equal(pt_file_pages(at(a, 150), N - 150), 0);
	/* Gaps at the start and at the end, and nothing but a gap. */
	assert_int_equal(samepage_merge(sp, at(a, 90), 20 * pt_page(), 0, &r), -ENOMEM);
	assert_int_equal(samepage_merge(sp, at(a, 140), 20 * pt_page(), 0, &r), -ENOMEM);
	assert_int_equal(samepage_merge(sp, at(a, 110), 20 * pt_page(), 0, &r), -ENOMEM);
	assert_int_equal(r.pages_looked, 0);
	assert_int_equal(samepage_unmerge(sp, at(a, 110), 20 * pt_page()), -ENOMEM);
	assert_int_equal(samepage_discard(sp, at(a, 90), 20 * pt_page()), -ENOMEM);
	assert_true(pt_is_zero(at(a, 90), 10));
	assert_int_equal(samepage_discard(sp, at(a, 110), 20 * pt_page()), -ENOMEM);
	assert_true(mmap(at(a, 100), 50 * pt_page(), RW, ANON | MAP_FIXED, -1, 0) == at(a, 100));
	pt_unmap(a, N);
}

static void unmerge_changes_no_byte(void **state)
{
	char *a, *b;
	struct samepage_stats st;

	(void)state;
	need();
	a = pt_map(N);
	b = pt_map(N);
	pt_fill(a, N, 8);
	pt_fill(b, N, 8);
	pt_merged(sp, a, N);
	pt_merged(sp, b, N);
	assert_int_equal(samepage_unmerge(sp, at(a, 100), 200 * pt_page()), 0);
	assert_int_equal(pt_file_pages(at(a, 100), 200), 0);
	assert_true(pt_file_pages(a, N) >= N - 202);
	assert_int_equal(pt_differs(a, N, 8), -1);
	assert_int_equal(pt_differs(b, N, 8), -1);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	/* The kernel notices late what was unmapped or discarded. */
	if (pt_kernel_merges())
		assert_true(st.pages_sharing >= pt_file_pages(a, N) + pt_file_pages(b, N));
	else
		assert_int_equal(st.pages_sharing, pt_file_pages(a, N) + pt_file_pages(b, N));
	assert_int_equal(samepage_unmerge(sp, a, N * pt_page()), 0);
	assert_int_equal(samepage_unmerge(sp, a, N * pt_page()), 0);
	assert_int_equal(pt_file_pages(a, N), 0);
	pt_unmap(a, N);
	pt_unmap(b, N);
}

/* The store has no room for more: the rest is counted, nothing is harmed. */
static void a_full_store_says_quota(void **state)
{
	char *a;
	struct samepage_result r;

	(void)state;
	pt_skip_unless_remap(); /* the kernel needs no store */
	pt_skip_unless_can_merge();
	sp = pt_open_sized(100 * pt_page());
	a = pt_map(N);
	pt_fill(a, N, 9);
	r = pt_merged(sp, a, N);
	assert_int_equal(r.pages_looked, N);
	assert_true(r.pages_merged <= 100 && r.pages_merged >= 98);
	assert_true(r.pages_declined[SAMEPAGE_REASON_QUOTA] >= N - 100);
	assert_int_equal(pt_differs(a, N, 9), -1);
	assert_int_equal(pt_file_pages(a, N), r.pages_merged);
	pt_unmap(a, N);
}

static void merged_memory_outlives_the_handle(void **state)
{
	char *a;

	(void)state;
	need();
	a = pt_map(N);
	pt_fill(a, N, 10);
	pt_merged(sp, a, N);
	samepage_close(sp);
	sp = NULL;
	assert_int_equal(pt_differs(a, N, 10), -1);
	pt_fill(a, N, 11);
	assert_int_equal(pt_differs(a, N, 11), -1);
	/* A later handle with a store of its own knows those mappings for what they are. */
	sp = pt_open();
	pt_fill(a, N, 10);
	assert_int_equal(samepage_discard(sp, a, N * pt_page()), 0);
	assert_true(pt_is_zero(a, N));
	pt_unmap(a, N);
}

#define T(f) cmocka_unit_test_setup_teardown(f, open_handle, close_handle)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(twins_share_frames),
		T(equal_pages_of_one_range_share),
		T(a_write_parts_them),
		T(zero_pages_are_given_back),
		T(almost_zero_is_not_zero),
		T(second_call_finds_them_merged),
		T(pages_never_touched_are_not_looked_at),
		T(bad_arguments_are_refused),
		T(around_a_gap),
		T(unmerge_changes_no_byte),
		T(a_full_store_says_quota),
		T(merged_memory_outlives_the_handle),
	};

	return PT_MAIN("proc-merge", tests);
}
