/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: processes on one machine disagree about a page's hash (pages
 * that are equal are not found), domains with different seeds share hash values,
 * or a page that is not zero is thrown away as zero (the comparison of I2 would be
 * against nothing).
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "core/hash.h"
#include "core/hash_impl.h"
#include "unit.h"

static size_t page_bytes;
static unsigned char *memory; /* two pages, so that a page can be had at any offset */
static uint64_t random_state = 1;

static int setup(void **state)
{
	page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	memory = aligned_alloc(page_bytes, 2 * page_bytes);
	return memory ? 0 : -1;
}

static int teardown(void **state)
{
	free(memory);
	return 0;
}

static void fill_random(void)
{
	size_t i;

	for (i = 0; i < 2 * page_bytes; i++)
		memory[i] = (unsigned char)unit_random(&random_state);
}

/* Against the library's own code, which is neither of our two builds. */
static void test_hash_is_xxh3(void **state)
{
	uint64_t seed;
	size_t offset;

	for (offset = 0; offset < 200; offset++) {
		uint64_t expected;

		fill_random();
		seed = offset == 0 ? 0 : unit_random(&random_state);
		expected = XXH3_64bits_withSeed(memory + offset, page_bytes, seed);
		assert_true(core_hash_page(memory + offset, page_bytes, seed) == expected);
		assert_true(core_hash_page_plain(memory + offset, page_bytes, seed) == expected);
	}
}

static void test_hash_avx2_agrees(void **state)
{
#ifdef __x86_64__
	size_t bytes, offset;

	if (!__builtin_cpu_supports("avx2"))
		skip();
	fill_random();
	for (bytes = 0; bytes <= page_bytes; bytes += bytes < 1100 ? 1 : 127) {
		for (offset = 0; offset < 3; offset++) {
			uint64_t seed = unit_random(&random_state);

			assert_true(core_hash_page_avx2(memory + offset, bytes, seed) ==
				    core_hash_page_plain(memory + offset, bytes, seed));
		}
	}
#else
	skip();
#endif
}

static void test_hash_depends_on_seed_and_every_byte(void **state)
{
	uint64_t base;
	size_t i;

	fill_random();
	base = core_hash_page(memory, page_bytes, 7);
	assert_true(base != core_hash_page(memory, page_bytes, 8));
	assert_int_not_equal(core_hash_tag(base),
			     core_hash_tag(core_hash_page(memory, page_bytes, 8)));
	for (i = 0; i < page_bytes; i++) {
		memory[i] ^= 1;
		assert_true(base != core_hash_page(memory, page_bytes, 7));
		memory[i] ^= 1;
	}
	memory[page_bytes] ^= 1; /* not of this page */
	assert_true(base == core_hash_page(memory, page_bytes, 7));
}

static void test_zero_page(void **state)
{
	size_t offset, bit;

	memset(memory, 0, 2 * page_bytes);
	for (offset = 0; offset < 20; offset++)
		assert_true(core_page_is_zero(memory + offset, page_bytes));
	for (bit = 0; bit < page_bytes * 8; bit++) {
		memory[bit / 8] = (unsigned char)(1u << (bit % 8));
		assert_false(core_page_is_zero(memory, page_bytes));
		memory[bit / 8] = 0;
	}
	/* The page alone decides, not what stands before or behind it. */
	memory[0] = 1;
	memory[page_bytes + 1] = 1;
	assert_true(core_page_is_zero(memory + 1, page_bytes));
	assert_false(core_page_is_zero(memory + 2, page_bytes));
}

/* Lengths that are no multiple of the block, in buffers that end there (ASan). */
static void test_zero_short(void **state)
{
	size_t bytes;

	for (bytes = 1; bytes < 300; bytes++) {
		unsigned char *p = calloc(1, bytes);

		assert_non_null(p);
		assert_true(core_page_is_zero(p, bytes));
		p[bytes - 1] = 1;
		assert_false(core_page_is_zero(p, bytes));
		free(p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hash_is_xxh3),
		cmocka_unit_test(test_hash_avx2_agrees),
		cmocka_unit_test(test_hash_depends_on_seed_and_every_byte),
		cmocka_unit_test(test_zero_page),
		cmocka_unit_test(test_zero_short),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
