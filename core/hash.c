/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page hashes and the zero test.
 *
 * The hash is XXH3-64. On x86-64 a second build of it (hash_avx2.c) is chosen at
 * run time; which one runs never shows in the value, so processes on one machine
 * agree whatever each of them picked. __builtin_cpu_supports() reads a variable
 * that a constructor of libgcc sets: before that it says no, which is slower and
 * right.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "core/hash.h"
#include "core/hash_impl.h"

uint64_t core_hash_page_plain(const void *page, size_t page_bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, page_bytes, seed);
}

uint64_t core_hash_page(const void *page, size_t page_bytes, uint64_t seed)
{
#ifdef CORE_HASH_AVX2
	if (__builtin_cpu_supports("avx2"))
		return core_hash_page_avx2(page, page_bytes, seed);
#endif
	return core_hash_page_plain(page, page_bytes, seed);
}

/* One vector register of the baseline CPU; loads through memcpy need no alignment. */
typedef uint64_t zero_vec __attribute__((vector_size(16)));

#define ZERO_BLOCK_BYTES 128

static bool block_is_zero(const unsigned char *p)
{
	zero_vec v[ZERO_BLOCK_BYTES / sizeof(zero_vec)];
	zero_vec any;

	memcpy(v, p, sizeof(v));
	any = (v[0] | v[1]) | (v[2] | v[3]) | ((v[4] | v[5]) | (v[6] | v[7]));
	return (any[0] | any[1]) == 0;
}

bool core_page_is_zero(const void *page, size_t page_bytes)
{
	const unsigned char *p = page;
	const unsigned char *end = p + page_bytes;
	uint64_t word;

	/* Most pages that are not zero show it in their first word. */
	if (page_bytes >= sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		if (word != 0)
			return false;
	}
	for (; (size_t)(end - p) >= ZERO_BLOCK_BYTES; p += ZERO_BLOCK_BYTES) {
		if (!block_is_zero(p))
			return false;
	}
	for (; p < end; p++) {
		if (*p != 0)
			return false;
	}
	return true;
}
