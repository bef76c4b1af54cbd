/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The search for words that may be addresses, for the two builds of it (as with the
 * page hash, hash_impl.h): this text is compiled once plainly and once with -mavx2.
 */
#ifndef SAMEPAGE_CORE_FINGERPRINT_IMPL_H
#define SAMEPAGE_CORE_FINGERPRINT_IMPL_H

#include <string.h>

#include "core/fingerprint.h"

#define FP_BLOCK 32 /* words that are looked at together */

/*
 * Which of FP_BLOCK words may lie in the 2^shift bytes from low on, as bits. One comparison
 * a vector: AVX2 has but one unit that tells the greater of two long numbers.
 */
#ifdef __AVX2__
#include <immintrin.h>

static inline uint64_t fp_block(const unsigned char *p, uint64_t low, unsigned shift)
{
	const __m256i first = _mm256_set1_epi64x((long long)low), zero = _mm256_setzero_si256();
	const __m128i bits = _mm_cvtsi32_si128((int)shift);
	__m256i in[FP_BLOCK / 4], any = zero;
	uint64_t found = 0;

	for (size_t k = 0; k < FP_BLOCK / 4; k++) {
		__m256i v = _mm256_loadu_si256((const void *)(p + k * 32));

		v = _mm256_srl_epi64(_mm256_sub_epi64(v, first), bits);
		in[k] = _mm256_cmpeq_epi64(v, zero);
		any = _mm256_or_si256(any, in[k]);
	}
	if (_mm256_testz_si256(any, any))
		return 0;
	for (unsigned k = 0; k < FP_BLOCK / 4; k++)
		found |= (uint64_t)(unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(in[k])) << (4 * k);
	return found;
}
#else
static inline uint64_t fp_block(const unsigned char *p, uint64_t low, unsigned shift)
{
	uint64_t found = 0;

	for (size_t k = 0; k < FP_BLOCK; k++) {
		uint64_t word;

		memcpy(&word, p + k * 8, sizeof(word));
		found |= (uint64_t)((word - low) >> shift == 0) << k;
	}
	return found;
}
#endif

/*
 * Bit k of found[]: word k of the page lies between the lowest and the highest mapping, or
 * not far behind. Returns whether any does. words: a multiple of 64; there is a cluster.
 */
static inline __attribute__((always_inline)) bool fp_search(const struct core_fp_space *space,
							     const void *page, size_t words,
							     uint64_t *found)
{
	const struct core_fp_cluster *last = &space->cluster[space->clusters - 1];
	uint64_t low = space->cluster[0].start;
	uint64_t span = last->start + last->bytes - low;
	unsigned shift = span > 1 ? 64u - (unsigned)__builtin_clzll(span - 1) : 1;
	const unsigned char *p = page;
	uint64_t any = 0;

	for (size_t w = 0; w < words; w += 64) {
		uint64_t bits = fp_block(p + w * 8, low, shift) |
				fp_block(p + (w + FP_BLOCK) * 8, low, shift) << FP_BLOCK;

		found[w / 64] = bits;
		any |= bits;
	}
	return any != 0;
}

bool core_fp_search_plain(const struct core_fp_space *space, const void *page, size_t words,
			  uint64_t *found);
/* x86-64 only, and only where the CPU has AVX2. */
bool core_fp_search_avx2(const struct core_fp_space *space, const void *page, size_t words,
			 uint64_t *found);

#endif
