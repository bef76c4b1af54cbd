/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Three fingerprints of a page of somebody else's memory, for `samepage analyze`.
 *
 *   hash      of the bytes
 *   masked    of the bytes with every word that looks like an address replaced by
 *             one constant: equal in pages that differ in nothing but such words
 *   relative  of masked, and of what each such word points to, told in a way that moving
 *             the mapping does not change: equal in pages that are likely to be the
 *             same bytes if both processes had one layout
 *
 * A word looks like an address if it is aligned and its value lies in a mapping of
 * that process. A page without such a word has no masked and relative ones of its
 * own: they are cut from its hash.
 *
 * How the words are found quickly: a vector loop picks those between the lowest mapping and
 * the highest. Only those are looked up, through a small direct-mapped cache of answers;
 * what the cache does not know is searched for if it lies in one of a few clusters, for
 * mappings stand in a few, far apart.
 */
#ifndef SAMEPAGE_CORE_FINGERPRINT_H
#define SAMEPAGE_CORE_FINGERPRINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORE_FP_CLUSTERS 4
#define CORE_FP_CACHE 256
/* Larger pages are hashed, but not searched for addresses. */
#define CORE_FP_PAGE_BYTES_MAX 65536

/*
 * A mapping, and what is told of an address in it: (address - base) & mask, and what.
 * Files: which one and where in it. Heap: how far from its start. Anonymous mappings are
 * put where there is room, and not in the same order in all replicas: of those only the
 * offset in the page. The stack begins at a random place in a page: nothing.
 */
struct core_fp_range {
	uint64_t start;
	uint64_t end;
	uint64_t base;
	uint64_t mask;
	uint64_t what;
};

struct core_fp_cluster {
	uint64_t start;
	uint64_t bytes;
};

/* One process's mappings. range: ascending, disjoint, the caller's. */
struct core_fp_space {
	const struct core_fp_range *range;
	uint32_t ranges;
	uint32_t clusters;
	struct core_fp_cluster cluster[CORE_FP_CLUSTERS];
};

/* Answers of one thread about one space; all zero to begin with. */
struct core_fp_cache {
	uint32_t range_plus_1[CORE_FP_CACHE];
};

struct core_fp {
	uint64_t hash;
	uint32_t masked;
	uint32_t relative;
	uint32_t addresses; /* words that look like one */
};

/* Finds the clusters. */
void core_fp_space_init(struct core_fp_space *space, const struct core_fp_range *range,
			uint32_t ranges);
void core_fp_page(const struct core_fp_space *space, struct core_fp_cache *cache, const void *page,
		  size_t page_bytes, uint64_t seed, struct core_fp *fp);

#endif
