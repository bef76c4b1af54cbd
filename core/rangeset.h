/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A set of address ranges, each with a 32-bit attribute; neighbours with equal
 * attributes are one. A sorted array, binary search; no lock of its own.
 *
 * Memory comes from the caller's function, because the shim's sets change inside
 * mmap(2) and munmap(2) of the program and must not call malloc there.
 */
#ifndef SAMEPAGE_CORE_RANGESET_H
#define SAMEPAGE_CORE_RANGESET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct core_range {
	uint64_t start;
	uint64_t end; /* exclusive */
	uint32_t attr;
	uint32_t reserved;
};

/* realloc(3)-like: ptr may be NULL, new_bytes 0 frees; NULL: no memory. */
typedef void *core_realloc_fn(void *ptr, size_t old_bytes, size_t new_bytes);

struct core_rangeset {
	struct core_range *ranges;
	size_t count;
	size_t capacity;
	core_realloc_fn *realloc;
};

void core_rangeset_init(struct core_rangeset *rs, core_realloc_fn *fn);
void core_rangeset_free(struct core_rangeset *rs);
/* Set [start, end) to attr, replacing what overlaps. -ENOMEM: nothing changed; -EINVAL. */
int core_rangeset_add(struct core_rangeset *rs, uint64_t start, uint64_t end, uint32_t attr);
/* Take [start, end) out. -ENOMEM (a split found no room): nothing changed. */
int core_rangeset_remove(struct core_rangeset *rs, uint64_t start, uint64_t end);
/*
 * As remove, but cannot fail: where a split finds no room, the shorter remainder
 * is taken out as well. For sets where forgetting is safe (owned ranges).
 */
void core_rangeset_remove_or_forget(struct core_rangeset *rs, uint64_t start, uint64_t end);
/* First range that ends after addr, or NULL. */
const struct core_range *core_rangeset_find(const struct core_rangeset *rs, uint64_t addr);
bool core_rangeset_intersects(const struct core_rangeset *rs, uint64_t start, uint64_t end);
/* Every byte of [start, end) is in the set. */
bool core_rangeset_covers(const struct core_rangeset *rs, uint64_t start, uint64_t end);
uint64_t core_rangeset_bytes(const struct core_rangeset *rs); /* sum of lengths */

#endif
