/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page hash once more, compiled with -mavx2: xxHash picks its vector code
 * when it is compiled. Same function, same values as hash.c's. Nothing else may
 * be put into this file: what is compiled here must never run on a CPU without
 * AVX2.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/hash_impl.h"

uint64_t core_hash_page_avx2(const void *page, size_t page_bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, page_bytes, seed);
}
