/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The search for words that may be addresses, for the two builds of it (as with the
 * page hash, hash_impl.h): this text is compiled once plainly and once with -mavx2.
 */
#ifndef SAMEPAGE_CORE_FINGERPRINT_IMPL_H
#define SAMEPAGE_CORE_FINGERPRINT_IMPL_H

#include <string.h>

#include "core/fingerprint.h"

#define FP_LANES 4
typedef uint64_t fp_vec __attribute__((vector_size(8 * FP_LANES)));
typedef int64_t fp_mask __attribute__((vector_size(8 * FP_LANES)));

/*
 * Bit k of found[]: word k of the page lies in a cluster. Returns whether any does.
 * words: a multiple of 64.
 */
static inline __attribute__((always_inline)) bool fp_search(const struct core_fp_space *space,
							     const void *page, size_t words,
							     uint64_t *found)
{
	const unsigned char *p = page;
	fp_vec start[CORE_FP_CLUSTERS], bytes[CORE_FP_CLUSTERS];
	uint64_t any = 0;

	for (unsigned c = 0; c < CORE_FP_CLUSTERS; c++) {
		bool used = c < space->clusters;

		start[c] = (fp_vec){ 0 } + (used ? space->cluster[c].start : 0);
		bytes[c] = (fp_vec){ 0 } + (used ? space->cluster[c].bytes : 0);
	}
	for (size_t w = 0; w < words; w += 64) {
		uint64_t bits = 0;

		for (unsigned k = 0; k < 64; k += 2 * FP_LANES) {
			fp_vec a, b;
			fp_mask in_a = { 0 }, in_b = { 0 }, both;

			memcpy(&a, p + (w + k) * 8, sizeof(a));
			memcpy(&b, p + (w + k + FP_LANES) * 8, sizeof(b));
			for (unsigned c = 0; c < CORE_FP_CLUSTERS; c++) {
				in_a |= (a - start[c]) < bytes[c];
				in_b |= (b - start[c]) < bytes[c];
			}
			both = in_a | in_b;
			if (!(both[0] | both[1] | both[2] | both[3]))
				continue;
			for (unsigned i = 0; i < FP_LANES; i++) {
				bits |= (uint64_t)(in_a[i] & 1) << (k + i);
				bits |= (uint64_t)(in_b[i] & 1) << (k + FP_LANES + i);
			}
		}
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
