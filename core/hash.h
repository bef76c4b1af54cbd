/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page hashes. A hash is only an index (I2): equal hashes never merge anything
 * by themselves.
 *
 * The index keeps 32 bits of the hash (the tag). Both buckets of a page are
 * derived from the tag alone, so that the index can grow from what it stores,
 * without reading a page again; a miss finds a wrong slot with a probability
 * of about slots / 2^32, which costs one failed comparison.
 */
#ifndef SAMEPAGE_CORE_HASH_H
#define SAMEPAGE_CORE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint64_t core_hash_page(const void *page, size_t page_bytes, uint64_t seed);

static inline uint32_t core_hash_tag(uint64_t hash)
{
	return (uint32_t)(hash >> 32);
}

/* Reads only; may be called on frozen pages' staged copies. */
bool core_page_is_zero(const void *page, size_t page_bytes);

#endif
