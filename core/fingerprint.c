/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fingerprints of pages, see fingerprint.h.
 *
 * masked: the page is copied, its address-like words are overwritten with a constant
 * that no user address can be, and the copy is hashed. relative: that hash, mixed with
 * a hash of the list of what they point to. Both depend on the positions of the words, so a page
 * with addresses never equals one without.
 */
#include <string.h>

#include "core/fingerprint.h"
#include "core/fingerprint_impl.h"
#include "core/hash.h"

#define WORD_BYTES 8
/* Not canonical: neither a user's nor the kernel's address on any machine of ours. */
#define MASK UINT64_C(0x5a3a5a3a5a3a5a3a)
/* Mappings further apart than this belong to different clusters, if there is room. */
#define CLUSTER_GAP_BYTES (UINT64_C(1) << 36)
#define CACHE_SHIFT 16

bool core_fp_search_plain(const struct core_fp_space *space, const void *page, size_t words,
			  uint64_t *found)
{
	return fp_search(space, page, words, found);
}

static bool search(const struct core_fp_space *space, const void *page, size_t words,
		   uint64_t *found)
{
#ifdef CORE_HASH_AVX2
	if (__builtin_cpu_supports("avx2"))
		return core_fp_search_avx2(space, page, words, found);
#endif
	return core_fp_search_plain(space, page, words, found);
}

void core_fp_space_init(struct core_fp_space *space, const struct core_fp_range *range,
			uint32_t ranges)
{
	struct core_fp_cluster *last = NULL;

	*space = (struct core_fp_space){ .range = range, .ranges = ranges };
	for (uint32_t i = 0; i < ranges; i++) {
		const struct core_fp_range *r = &range[i];

		if (!last || (r->start - (last->start + last->bytes) > CLUSTER_GAP_BYTES &&
			      space->clusters < CORE_FP_CLUSTERS)) {
			last = &space->cluster[space->clusters++];
			last->start = r->start;
		}
		last->bytes = r->end - last->start;
	}
}

static bool in_cluster(const struct core_fp_space *space, uint64_t word)
{
	for (unsigned c = 0; c < space->clusters; c++)
		if (word - space->cluster[c].start < space->cluster[c].bytes)
			return true;
	return false;
}

/* The mapping that the word points into, or NULL. */
static const struct core_fp_range *look_up(const struct core_fp_space *space,
					   struct core_fp_cache *cache, uint64_t word)
{
	uint32_t *cached = &cache->range_plus_1[(word >> CACHE_SHIFT) % CORE_FP_CACHE];
	const struct core_fp_range *r;
	uint32_t low = 0, high = space->ranges;

	if (*cached > 0 && *cached <= space->ranges) {
		r = &space->range[*cached - 1];
		if (word >= r->start && word < r->end)
			return r;
	}
	if (!in_cluster(space, word))
		return NULL;
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (space->range[mid].end <= word)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == space->ranges || word < space->range[low].start)
		return NULL;
	*cached = low + 1;
	return &space->range[low];
}

/* Masks the copy's addresses, lists what they point to; how many there were. */
static uint32_t mask_addresses(const struct core_fp_space *space, struct core_fp_cache *cache,
			       uint64_t *copy, size_t words, const uint64_t *found,
			       uint64_t *target)
{
	uint32_t n = 0;

	for (size_t w = 0; w < words; w += 64) {
		for (uint64_t bits = found[w / 64]; bits; bits &= bits - 1) {
			uint64_t *word = &copy[w + (size_t)__builtin_ctzll(bits)];
			const struct core_fp_range *r = look_up(space, cache, *word);

			if (!r)
				continue;
			target[n++] = ((*word - r->base) & r->mask) ^ r->what;
			*word = MASK;
		}
	}
	return n;
}

void core_fp_page(const struct core_fp_space *space, struct core_fp_cache *cache, const void *page,
		  size_t page_bytes, uint64_t seed, struct core_fp *fp)
{
	uint64_t found[CORE_FP_PAGE_BYTES_MAX / WORD_BYTES / 64];
	uint64_t copy[CORE_FP_PAGE_BYTES_MAX / WORD_BYTES];
	uint64_t target[CORE_FP_PAGE_BYTES_MAX / WORD_BYTES];
	size_t words = page_bytes / WORD_BYTES;
	uint64_t hash;

	fp->hash = core_hash_page(page, page_bytes, seed);
	fp->masked = fp->relative = (uint32_t)(fp->hash >> 32);
	fp->addresses = 0;
	if (space->clusters == 0 || words % 64 != 0 || page_bytes > CORE_FP_PAGE_BYTES_MAX ||
	    !search(space, page, words, found))
		return;
	memcpy(copy, page, page_bytes);
	fp->addresses = mask_addresses(space, cache, copy, words, found, target);
	if (fp->addresses == 0)
		return;
	hash = core_hash_page(copy, page_bytes, seed);
	fp->masked = (uint32_t)(hash >> 32);
	hash ^= core_hash_page(target, fp->addresses * sizeof(*target), seed);
	fp->relative = (uint32_t)(hash >> 32);
}
