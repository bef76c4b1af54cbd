/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls over memory that is merged: store mappings stand where the program made
 * one anonymous mapping. The store is played by a memfd of that name.
 *
 * If this failed, a program would see the difference: EFAULT from mremap, another
 * program's bytes behind a grown mapping, old bytes in place of zeros (I5).
 */
#include <sys/mman.h>

#include "shimtest.h"
#include "sys/fault.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define PAGES 16

static size_t page;
static int store;

/* 16 pages, page i filled with i + 1; 3, 4, 5 and 9 (and 15) come from the store. */
static uint8_t *merged_range(bool last_too)
{
	uint8_t *p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	static const unsigned from_store[] = { 3, 4, 5, 9, 15 };
	struct proc_mem_guard guard;

	assert_ptr_not_equal(p, MAP_FAILED);
	for (unsigned i = 0; i < PAGES; i++)
		memset(p + i * page, (int)i + 1, page);
	proc_mem_lock(&guard);
	for (unsigned k = 0; k < (last_too ? 5 : 4); k++) {
		unsigned i = from_store[k];

		assert_int_equal(proc_mem_note_merged((uintptr_t)p + i * page,
						      (uintptr_t)p + (i + 1) * page, 0), 0);
		assert_int_equal(sys->mmap(p + i * page, page, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_FIXED, store, (off_t)(i * page)),
				 p + i * page);
	}
	proc_mem_unlock(&guard);
	return p;
}

static void check_bytes(const uint8_t *p, unsigned pages)
{
	for (unsigned i = 0; i < pages; i++) {
		assert_int_equal(p[i * page], i + 1);
		assert_int_equal(p[(i + 1) * page - 1], i + 1);
	}
}

static void check_zero(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += page / 4)
		assert_int_equal(p[i], 0);
}

static bool maybe_merged(const uint8_t *p, size_t bytes)
{
	struct proc_mem_guard guard;
	bool ret;

	proc_mem_lock(&guard);
	ret = proc_mem_maybe_merged((uintptr_t)p, (uintptr_t)p + bytes);
	proc_mem_unlock(&guard);
	return ret;
}

static void grow_moving(void **state)
{
	for (int last = 0; last < 2; last++) {
		uint8_t *p = merged_range(last), *q;

		mmap(p + PAGES * page, page, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		assert_ptr_equal(mremap(p, PAGES * page, 2 * PAGES * page, 0), MAP_FAILED);
		assert_int_equal(errno, ENOMEM);
		q = mremap(p, PAGES * page, 2 * PAGES * page, MREMAP_MAYMOVE);
		assert_ptr_not_equal(q, MAP_FAILED);
		assert_ptr_not_equal(q, p);
		check_bytes(q, PAGES);
		check_zero(q + PAGES * page, PAGES * page);
		memset(q, 0xee, 2 * PAGES * page);
		assert_true(owned_now(q, 2 * PAGES * page));
		assert_true(maybe_merged(q, PAGES * page));
		assert_false(any_owned_now(p, PAGES * page));
		assert_int_equal(munmap(q, 2 * PAGES * page), 0);
		assert_false(maybe_merged(q, PAGES * page));
	}
}

static void grow_in_place(void **state)
{
	for (int last = 0; last < 2; last++) {
		uint8_t *room = mmap(NULL, 4 * PAGES * page, PROT_NONE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		uint8_t *p = merged_range(last);

		/* To the front of a range that is then free behind it. */
		assert_ptr_equal(mremap(p, PAGES * page, PAGES * page,
					MREMAP_MAYMOVE | MREMAP_FIXED, room), room);
		assert_int_equal(munmap(room + PAGES * page, 3 * PAGES * page), 0);
		check_bytes(room, PAGES);
		assert_ptr_equal(mremap(room, PAGES * page, (PAGES + 3) * page, 0), room);
		check_bytes(room, PAGES);
		check_zero(room + PAGES * page, 3 * page);
		room[(PAGES + 3) * page - 1] = 1;
		assert_true(owned_now(room, (PAGES + 3) * page));
		munmap(room, (PAGES + 3) * page);
	}
}

static void fixed_and_smaller(void **state)
{
	uint8_t *p = merged_range(false);
	uint8_t *to = mmap(NULL, PAGES * page, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_false(any_owned_now(to, page));
	assert_ptr_equal(mremap(p, PAGES * page, 10 * page, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	check_bytes(to, 10);
	assert_true(owned_now(to, 10 * page));
	assert_false(any_owned_now(p, PAGES * page));
	assert_int_equal(msync(p, page, MS_ASYNC), -1);
	assert_int_equal(errno, ENOMEM);
	munmap(to, PAGES * page);
}

static void shrink(void **state)
{
	uint8_t *p = merged_range(false);

	assert_ptr_equal(mremap(p, PAGES * page, 4 * page, 0), p);
	check_bytes(p, 4);
	assert_true(owned_now(p, 4 * page));
	assert_false(any_owned_now(p + 4 * page, 12 * page));
	assert_false(maybe_merged(p + 4 * page, 12 * page));
	munmap(p, 4 * page);
}

static void dont_unmap(void **state)
{
	uint8_t *p = merged_range(true), *q;

	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	assert_ptr_not_equal(q, MAP_FAILED);
	check_bytes(q, PAGES);
	check_zero(p, PAGES * page);
	memset(p, 1, PAGES * page);
	check_bytes(q, PAGES);
	assert_true(owned_now(p, PAGES * page));
	assert_true(owned_now(q, PAGES * page));
	assert_true(maybe_merged(q, PAGES * page));
	munmap(p, PAGES * page);
	munmap(q, PAGES * page);
}

/* Each of the moves fails once; the range must be as before. */
static void failing_move(void **state)
{
	for (unsigned nth = 1; nth < 8; nth++) {
		uint8_t *p = merged_range(true), *q;

		mmap(p + PAGES * page, page, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		sys_fault_arm(SYS_FAULT_mremap, nth, ENOMEM, 1);
		q = mremap(p, PAGES * page, 2 * PAGES * page, MREMAP_MAYMOVE);
		if (sys_fault_hits(SYS_FAULT_mremap) > 0) {
			assert_ptr_equal(q, MAP_FAILED);
			q = p;
		} else {
			assert_ptr_not_equal(q, MAP_FAILED);
		}
		sys_fault_reset();
		check_bytes(q, PAGES);
		assert_true(owned_is_real());
		munmap(q, PAGES * page);
	}
}

static void refused(void **state)
{
	uint8_t *p = merged_range(false);

	munmap(p + 7 * page, page);
	assert_ptr_equal(mremap(p, PAGES * page, 2 * PAGES * page, MREMAP_MAYMOVE), MAP_FAILED);
	assert_int_equal(errno, EFAULT);
	assert_ptr_equal(mremap(p, 6 * page, 0, MREMAP_MAYMOVE), MAP_FAILED);
	assert_int_equal(errno, EINVAL);
	assert_ptr_equal(mremap(p, 6 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, p + page),
			 MAP_FAILED);
	assert_int_equal(errno, EINVAL);
	assert_ptr_equal(mremap(p, 6 * page, 8 * page, 0x100), MAP_FAILED);
	assert_int_equal(errno, EINVAL);
	check_bytes(p, 6);
	munmap(p, PAGES * page);
}

static void discarded(void **state)
{
	static const int advice[] = { MADV_DONTNEED, 24 /* DONTNEED_LOCKED */ };

	for (unsigned k = 0; k < 2; k++) {
		uint8_t *p = merged_range(true);

		if (madvise(p, PAGES * page, advice[k]) < 0) {
			assert_int_equal(errno, EINVAL); /* a kernel without that advice */
			munmap(p, PAGES * page);
			continue;
		}
		check_zero(p, PAGES * page);
		assert_true(owned_now(p, PAGES * page));
		munmap(p, PAGES * page);
	}
}

static void guarded(void **state)
{
	uint8_t *p = merged_range(true);

	if (madvise(p, PAGES * page, 102) == 0) {
		assert_int_equal(madvise(p, PAGES * page, 103), 0);
		check_zero(p, PAGES * page);
	}
	munmap(p, PAGES * page);
}

static void other_advice(void **state)
{
	uint8_t *p = merged_range(true);

	assert_int_equal(madvise(p, PAGES * page, MADV_REMOVE), -1);
	assert_int_equal(errno, EINVAL);
	check_bytes(p, PAGES);
	assert_int_equal(madvise(p, PAGES * page, MADV_MERGEABLE), 0);
	assert_int_equal(madvise(p, PAGES * page, MADV_UNMERGEABLE), 0);
	check_bytes(p, PAGES);
	assert_int_equal(madvise(p + 1, page, MADV_MERGEABLE), -1);
	assert_int_equal(errno, EINVAL);
	munmap(p + page, page);
	assert_int_equal(madvise(p, PAGES * page, MADV_MERGEABLE), -1);
	assert_int_equal(errno, ENOMEM);
	munmap(p, PAGES * page);
}

/* Locked memory is the program's own: writing it must not need a new page. */
static void locked(void **state)
{
	uint8_t *p = merged_range(true);
	unsigned char present[PAGES];

	if (mlock(p, PAGES * page) < 0) {
		assert_true(errno == EPERM || errno == ENOMEM);
		skip();
	}
	check_bytes(p, PAGES);
	assert_int_equal(mincore(p, PAGES * page, present), 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_true(present[i] & 1);
	assert_int_equal(munlock(p, PAGES * page), 0);
	munmap(p, PAGES * page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(grow_moving),	  cmocka_unit_test(grow_in_place),
		cmocka_unit_test(fixed_and_smaller), cmocka_unit_test(shrink),
		cmocka_unit_test(dont_unmap),	  cmocka_unit_test(failing_move),
		cmocka_unit_test(refused),	  cmocka_unit_test(discarded),
		cmocka_unit_test(guarded),	  cmocka_unit_test(other_advice),
		cmocka_unit_test(locked),
	};
	uint8_t *fill;

	page = sys_page_bytes();
	store = memfd_create("samepage-store-test", MFD_CLOEXEC);
	fill = malloc(page);
	/* Longer than what is merged: a mapping that grew by itself would show it. */
	for (int i = 0; i < 4 * PAGES; i++) {
		memset(fill, i + 1, page);
		if (write(store, fill, page) != (ssize_t)page)
			return 1;
	}
	free(fill);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
