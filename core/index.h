/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The index: page tag -> slot, in shared memory, one writer, any number of
 * readers who take no lock, make no system call and send no message.
 *
 * Linear hashing with two choices: 64-byte buckets of eight 8-byte entries,
 * each entry (tag << 32 | slot + 1), 0 when empty. A tag may live in either of
 * two buckets; the writer puts it into the emptier one and splits one bucket at
 * a time as the load passes CORE_INDEX_LOAD_PERCENT, so growing never stops
 * anybody and memory follows the number of slots (sparse file: untouched
 * buckets cost nothing).
 *
 * Readers may, while a split is under way, miss an entry that exists. That is
 * harmless: the broker looks again before it promotes. They never see half an
 * entry (entries are single 64-bit atomics). What they find is only a hint: the
 * bytes are compared later (I2), so the memory ordering needed is only that a
 * slot's bytes are written before its entry (release / acquire).
 *
 * A flood of crafted tags can fill two buckets; then insert says -ENOSPC and
 * the page stays unmerged (I4).
 */
#ifndef SAMEPAGE_CORE_INDEX_H
#define SAMEPAGE_CORE_INDEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORE_INDEX_MAGIC 0x58444e4947504d53ull /* "SMPGINDX" */
#define CORE_INDEX_VERSION 1
#define CORE_INDEX_WAYS 8
#define CORE_INDEX_LOAD_PERCENT 80
#define CORE_SLOT_NONE UINT32_MAX
#define CORE_INDEX_MATCHES_MAX 4

/* First page-aligned CORE_INDEX_HEADER_BYTES of the shared memory. */
#define CORE_INDEX_HEADER_BYTES 4096
struct core_index_header {
	uint64_t magic;
	uint32_t version;
	uint32_t page_bytes;
	uint32_t segment_slots;  /* slots per segment, a power of two */
	uint32_t max_slots;
	uint64_t seed;           /* of core_hash_page, per domain and broker life */
	uint64_t generation;     /* random per broker life: slot numbers mean nothing across */
	_Atomic uint64_t shape;  /* level << 32 | split: buckets in use = 2^level + split */
	_Atomic uint64_t slots_published;
	_Atomic uint64_t entries;
};

/* A view of the shared memory; the same struct serves writer and readers. */
struct core_index {
	struct core_index_header *header;
	_Atomic uint64_t *entries; /* bucket b: entries[b * WAYS .. + WAYS) */
	uint32_t max_buckets;
	uint32_t limit_buckets; /* of the writer: those it may use */
};

struct core_index_params {
	uint32_t page_bytes;
	uint32_t segment_slots;
	uint32_t max_slots;
	uint64_t seed;
	uint64_t generation;
};

/* Bytes of (sparse) shared memory for max_slots, a multiple of 64 KiB. */
size_t core_index_bytes(uint32_t max_slots);

/* Writer: lay out zeroed memory. -EINVAL: bytes too small or bad params. */
int core_index_init(struct core_index *ix, void *mem, size_t bytes,
		    const struct core_index_params *params);

/* Reader: check a mapping from a broker. -EPROTO: not an index of this version. */
int core_index_attach(struct core_index *ix, const void *mem, size_t bytes, uint32_t page_bytes);

/* Slots that carry the tag, at most max of them; returns how many. Lock-free. */
unsigned core_index_lookup(const struct core_index *ix, uint32_t tag, uint32_t *slots,
			   unsigned max);
/* Hint to the CPU that this tag is looked up soon. */
void core_index_prefetch(const struct core_index *ix, uint32_t tag);

/*
 * Writer only: whatever is inserted, nothing beyond the first `bytes` of the memory is written
 * to (until it has been asked for, say).
 */
void core_index_limit(struct core_index *ix, size_t bytes);
/* Writer only. -ENOSPC: both buckets full, or max_slots entries reached. */
int core_index_insert(struct core_index *ix, uint32_t tag, uint32_t slot);
/* Writer only: forget every entry of slots [first, first + count). Returns how many. */
uint64_t core_index_remove_slots(struct core_index *ix, uint32_t first, uint32_t count);
/* Bytes of shared memory in use (header and buckets), for the books. */
uint64_t core_index_used_bytes(const struct core_index *ix);

#endif
