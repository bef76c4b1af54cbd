/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The brk heap: owned from its start to the break, never beyond what is mapped,
 * through malloc_trim, holes and mallopt. If this failed, memory that malloc gave
 * back to the kernel could be merged.
 */
#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "shimtest.h"

#define BLOCK_BYTES 65536
#define BLOCKS 256

static size_t page;

static void refresh(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	shim_heap_refresh();
	proc_mem_unlock(&guard);
}

static void fill(void **block)
{
	for (int i = 0; i < BLOCKS; i++) {
		block[i] = malloc(BLOCK_BYTES);
		assert_non_null(block[i]);
		memset(block[i], i | 1, BLOCK_BYTES);
	}
}

static void drop(void **block)
{
	for (int i = 0; i < BLOCKS; i++)
		free(block[i]);
}

static void follows_the_break(void **state)
{
	void *block[BLOCKS];
	uint8_t *before, *after;

	fill(block);
	assert_false(owned_now(block[BLOCKS - 1], BLOCK_BYTES));
	refresh();
	assert_true(owned_now(block[0], BLOCK_BYTES));
	assert_true(owned_now(block[BLOCKS - 1], BLOCK_BYTES));
	assert_true(owned_is_real());
	/* Trimming is off: the break stays where it is. */
	before = sbrk(0);
	drop(block);
	after = sbrk(0);
	assert_ptr_equal(before, after);
	assert_true(owned_is_real());
}

static void trimmed(void **state)
{
	void *block[BLOCKS];
	uint8_t *before;

	fill(block);
	refresh();
	drop(block);
	before = sbrk(0);
	assert_int_equal(malloc_trim(0), 1);
	assert_true((uint8_t *)sbrk(0) < before);
	assert_true(owned_is_real());
	assert_false(any_owned_now((uint8_t *)sbrk(0) + page, (size_t)(before - (uint8_t *)sbrk(0))));
	fill(block);
	refresh();
	assert_true(owned_now(block[BLOCKS - 1], BLOCK_BYTES));
	for (int i = 0; i < BLOCKS; i++)
		assert_int_equal(*(uint8_t *)block[i], i | 1);
	drop(block);
}

/* The program unmaps a piece of its heap: it stays released. */
static void with_a_hole(void **state)
{
	uint8_t *top = sbrk(64 * (intptr_t)page), *hole;

	assert_ptr_not_equal(top, (void *)-1);
	hole = (uint8_t *)(((uintptr_t)top + page) & ~(page - 1)) + 8 * page;
	assert_int_equal(munmap(hole, 4 * page), 0);
	refresh();
	assert_false(any_owned_now(hole, 4 * page));
	assert_true(owned_now(hole + 4 * page, 16 * page));
	assert_true(owned_is_real());
	malloc_trim(0);
	refresh();
	assert_false(any_owned_now(hole, 4 * page));
	assert_true(owned_is_real());
}

static int mallopt_main(void)
{
	void *block[BLOCKS];
	bool before;

	fill(block);
	refresh();
	before = owned_now(block[0], BLOCK_BYTES);
	mallopt(M_TRIM_THRESHOLD, -1);
	before = before && owned_now(block[0], BLOCK_BYTES);
	mallopt(M_TRIM_THRESHOLD, 128 << 10);
	refresh();
	drop(block);
	return !(before && !any_owned_now(block[0], BLOCK_BYTES) && owned_is_real());
}

static void trimming_turned_on(void **state)
{
	must_do_in_child(mallopt_main);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(follows_the_break),
		cmocka_unit_test(trimmed),
		cmocka_unit_test(trimming_turned_on),
		cmocka_unit_test(with_a_hole),
	};

	page = sys_page_bytes();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
