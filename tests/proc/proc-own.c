/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the library costs. If this failed, merging would eat a good part of what it
 * saves: its own memory and the index would be more than 16 bytes for each page
 * looked at, or would grow with every pass.
 *
 * Measured as the growth of what the kernel calls private to the process, beyond
 * the data; the data, once merged with its twin, is shared and does not count.
 */
#include "proctest.h"

#define MIB (1024u * 1024u)
#define DATA_BYTES ((size_t)(PT_SANITIZED ? 64 : 256) * MIB)
/* A handle's fixed part: stacks, work, staging's page tables do not count. */
#define FIXED_BYTES (3u * MIB)

static void merge_all(struct samepage *sp, char *p, size_t pages)
{
	struct samepage_result r;

	PT_CHECK(samepage_merge(sp, p, pages * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_sums(&r));
	PT_CHECK(r.pages_looked == pages);
}

static int measure(void *arg)
{
	size_t pages = DATA_BYTES / pt_page();
	uint64_t before, after, later, per_page;
	char *a = pt_map(pages), *b = pt_map(pages);
	struct samepage_stats st;
	struct samepage *sp;

	(void)arg;
	before = pt_private_bytes();
	pt_fill(a, pages, 1);
	pt_fill(b, pages, 1);
	PT_CHECK(pt_private_bytes() >= before + 2 * DATA_BYTES);
	sp = pt_open_sized(2 * DATA_BYTES);
	merge_all(sp, a, pages);
	merge_all(sp, b, pages);
	PT_CHECK(pt_same_frames(a, b, pages) >= pages - 4);
	after = pt_private_bytes();
	PT_CHECK(samepage_stats(sp, &st, sizeof(st)) == 0);
	per_page = after > before ? (after - before) / (2 * pages) : 0;
	pt_note("%zu pages looked at: private memory grew by %lu KiB, %lu bytes a page; own_bytes %lu",
		2 * pages, (after - before) / 1024, per_page, st.own_bytes);
	PT_CHECK(after <= before + 16 * 2 * pages + FIXED_BYTES);
	PT_CHECK(st.own_bytes <= 16 * 2 * pages + FIXED_BYTES);
	PT_CHECK(st.pages_sharing >= 2 * pages - 4);
	PT_CHECK(st.store_pages <= pages);
	/* Looking again costs nothing more. */
	for (unsigned i = 0; i < 5; i++) {
		merge_all(sp, a, pages);
		merge_all(sp, b, pages);
	}
	later = pt_private_bytes();
	pt_note("and by %ld KiB in five more rounds", ((long)later - (long)after) / 1024);
	PT_CHECK(later <= after + MIB / 2);
	samepage_close(sp);
	PT_CHECK(pt_private_bytes() <= before + (PT_SANITIZED ? 8 : 1) * MIB); /* quarantine */
	PT_CHECK(pt_differs(a, pages, 1) == -1);
	PT_CHECK(pt_differs(b, pages, 1) == -1);
	return 0;
}

static void sixteen_bytes_a_page(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	pt_skip_unless_root();
	assert_int_equal(pt_child(measure, NULL, 200), 0);
}

/* Closed handles leave nothing: no memory, no descriptors, no mappings. */
static int open_and_close(void *arg)
{
	char *p = pt_map(600);
	size_t vmas = 0, fds = 0;
	uint64_t bytes = 0;

	(void)arg;
	for (unsigned i = 0; i < 40; i++) {
		struct samepage *sp = pt_open();

		PT_CHECK(samepage_discard(sp, p, 600 * pt_page()) == 0);
		pt_fill(p, 600, 2);
		merge_all(sp, p, 600);
		PT_CHECK(samepage_discard(sp, p, 600 * pt_page()) == 0);
		samepage_close(sp);
		if (i == 5) {
			vmas = pt_vma_count();
			fds = pt_fd_count();
			bytes = pt_private_bytes();
		}
	}
	PT_CHECK(pt_fd_count() == fds);
	/* A sanitizer keeps freed memory for a while. */
	PT_CHECK(PT_SANITIZED || pt_vma_count() <= vmas);
	PT_CHECK(PT_SANITIZED || pt_private_bytes() <= bytes + MIB / 4);
	return 0;
}

static void nothing_is_left_behind(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	assert_int_equal(pt_child(open_and_close, NULL, 100), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sixteen_bytes_a_page),
		cmocka_unit_test(nothing_is_left_behind),
	};

	return PT_MAIN("proc-own", tests);
}
