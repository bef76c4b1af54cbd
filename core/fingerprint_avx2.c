/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The search once more, compiled with -mavx2; nothing else may be put here (hash_avx2.c). */
#include "core/fingerprint_impl.h"

bool core_fp_search_avx2(const struct core_fp_space *space, const void *page, size_t words,
			 uint64_t *found)
{
	return fp_search(space, page, words, found);
}
