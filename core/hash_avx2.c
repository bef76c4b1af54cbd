/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page hash once more, compiled with -mavx2: xxHash picks its vector code
 * when it is compiled. Same function, same values as hash.c's. Nothing else may
 * be put into this file: what is compiled here must never run on a CPU without
 * AVX2.
 *
 * gcc 12 leaves the upper halves of the vector registers in use when XXH3 is done; what
 * the caller does next with ordinary SSE is then slow, by as much as the hash itself.
 */
#include <immintrin.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/hash_impl.h"

uint64_t core_hash_page_avx2(const void *page, size_t page_bytes, uint64_t seed)
{
	uint64_t hash = XXH3_64bits_withSeed(page, page_bytes, seed);

	_mm256_zeroupper();
	return hash;
}
