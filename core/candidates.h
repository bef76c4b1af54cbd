/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Candidate table: fingerprints of pages seen once, the counterpart of KSM's
 * unstable tree. In shared memory: the broker writes, clients only read.
 *
 * 64-byte buckets of sixteen 4-byte entries; a tag may live in either of two
 * buckets. An entry is 30 bits of the tag and a saturating count (1 or 2, 0 =
 * empty). A full pair of buckets loses the older entry at a clock hand: a lost
 * fingerprint means a page that is merged later, nothing worse. Growth: the
 * writer is told that the table is crowded (core_cand_crowded) and starts a
 * fresh, larger one; there is nothing in it worth moving.
 *
 * The count is per *look* of a round: a round (core_cand_clear) begins when
 * every client reports each of its pages once, so a count of 2 means two pages,
 * not one page seen twice.
 *
 * There are two such tables of a store, one behind the other in one file. The
 * second, "standing", is for scanners: its rounds last as long as the table has
 * room, what is promoted is removed from it, and `twins` tells who has reported a
 * page that now somebody else has reported the same.
 */
#ifndef SAMEPAGE_CORE_CANDIDATES_H
#define SAMEPAGE_CORE_CANDIDATES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORE_CAND_MAGIC 0x444e4143474d5053ull
#define CORE_CAND_HEADER_BYTES 4096
#define CORE_CAND_WAYS 16
#define CORE_CAND_BUCKET_BYTES (CORE_CAND_WAYS * sizeof(uint32_t))

struct core_cand_header {
	uint64_t magic;
	uint32_t version;
	uint32_t buckets; /* power of two */
	_Atomic uint64_t entries;
	_Atomic uint64_t dropped;
	_Atomic uint64_t round;
	_Atomic uint64_t twins; /* additions, ever, of what was there already */
	_Atomic uint32_t active; /* buckets in use, a power of two */
	uint32_t reserved;
};

struct core_cand {
	struct core_cand_header *header;
	_Atomic uint32_t *entries;
	uint32_t buckets;
};

size_t core_cand_bytes(uint64_t max_pages); /* room for about max_pages, load 75 % */
int core_cand_init(struct core_cand *ct, void *mem, size_t bytes);
int core_cand_attach(struct core_cand *ct, const void *mem, size_t bytes);
/* Writer: one more page with this tag; returns its count now (1 or 2). */
unsigned core_cand_add(struct core_cand *ct, uint32_t tag);
/* Writer: forget this tag (and those that the table cannot tell from it). */
void core_cand_remove(struct core_cand *ct, uint32_t tag);
/* The two buckets of the tag, CORE_CAND_BUCKET_BYTES each: all that add and remove touch. */
void core_cand_places(const struct core_cand *ct, uint32_t tag, const void *place[2]);
/* Hint to the CPU that this tag is looked up soon. */
void core_cand_prefetch(const struct core_cand *ct, uint32_t tag);
/* Reader: 0, 1 or 2 (two or more pages of this round). */
unsigned core_cand_count(const struct core_cand *ct, uint32_t tag);
void core_cand_clear(struct core_cand *ct);
/*
 * Writer: a table that follows the number of its entries. Begin with so many buckets (a
 * power of two), the rest untouched; grow doubles them, in place. full: it is time to.
 */
void core_cand_begin_small(struct core_cand *ct, uint32_t buckets);
bool core_cand_full(const struct core_cand *ct);
void core_cand_grow(struct core_cand *ct);
bool core_cand_crowded(const struct core_cand *ct);

#endif
