/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What census.c, census_sort.c and census_scope.c share. */
#ifndef SAMEPAGE_CORE_CENSUS_IMPL_H
#define SAMEPAGE_CORE_CENSUS_IMPL_H

#include "core/census.h"

enum census_key {
	CENSUS_BY_HASH,
	CENSUS_BY_MASKED,
	CENSUS_BY_RELATIVE,
};

static inline uint64_t census_hash(const struct core_census *c, uint64_t i)
{
	return c->hash[i] & ~CORE_CENSUS_FLAGS;
}

/* The key, in the upper bits: the order of the keys is that of the numbers. */
static inline uint64_t census_value(const struct core_census *c, enum census_key key, uint64_t i)
{
	switch (key) {
	case CENSUS_BY_MASKED: return (uint64_t)c->masked[i] << 32;
	case CENSUS_BY_RELATIVE: return (uint64_t)c->relative[i] << 32;
	case CENSUS_BY_HASH: break;
	}
	return census_hash(c, i);
}

/*
 * c->order becomes the numbers of the pages that have all of the flags and another one
 * with their key, sorted by (key, hash, number); returns how many. Uses c->index.
 */
uint64_t census_sort(struct core_census *c, enum census_key key, uint64_t flags);
/* The pages that have an equal one by their hash, and c->index for the next two. */
void census_sort_hash(struct core_census *c);
/* Fills c->index so that core_census_process_of() and census_region_of() work. */
void census_index_regions(struct core_census *c);
uint32_t census_region_of(const struct core_census *c, uint64_t i);
/* End of the class that begins at order[from]; count: length of order. */
uint64_t census_class_end(const struct core_census *c, enum census_key key, uint64_t from,
			  uint64_t count);

#endif
