/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store of one domain: append-only segments, the index over them, the
 * candidate tables. Used by the daemon (one per domain) and, embedded, inside a
 * single process; either way by exactly one thread, the store's only writer.
 *
 * A segment is a sparse memfd of segment_slots pages, sealed SHRINK | GROW |
 * FUTURE_WRITE from birth: the one shared writable mapping made before the seal
 * is the only way bytes get in. States:
 *
 *   open     the newest; mapped writable here; slots are appended
 *   full     mapping dropped, F_SEAL_WRITE added (retried while a pin delays it)
 *   adopted  came from a client of an earlier broker, fully sealed; read only
 *   gone     nobody maps it (a lease proves it) or the domain ended; fd closed,
 *            its entries out of the index; the kernel frees the memory when the
 *            last mapping anywhere is gone (I1). Its number is never used again.
 *
 * Promotion (I1, I4): the page is copied out of memory that a client can still
 * change into a private buffer; hash, lookup, comparison and slot are made from
 * that copy alone. The slot's bytes are written before its index entry is
 * published.
 */
#ifndef SAMEPAGE_BROKER_STORE_H
#define SAMEPAGE_BROKER_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "core/candidates.h"
#include "core/index.h"

#define BROKER_SEGMENT_SLOTS 8192u

struct broker_store;

struct broker_store_params {
	uint64_t max_slots;       /* quota of the domain */
	uint64_t max_cand_pages;  /* size of each candidate table; crowded, it drops some */
	uint64_t seed;            /* random */
	uint64_t generation;      /* random */
};

struct broker_store_stats {
	uint64_t slots;
	uint64_t segments;       /* not gone */
	uint64_t segments_freed;
	uint64_t store_bytes;    /* pages in use by segments that we still hold */
	uint64_t index_bytes;    /* index and candidates, in use */
	uint64_t candidates;
	uint64_t standing;       /* candidates of scanners */
	uint64_t submissions;
	uint64_t submissions_known;
	uint64_t quota_refusals;
};

/* -EINVAL, -ENOMEM, -EMFILE ... */
int broker_store_new(struct broker_store **out, const struct broker_store_params *params);
void broker_store_free(struct broker_store *st); /* mappings of clients live on */

/*
 * Promote count pages, page i at ring + ring_page[i] * page size (memory that
 * others may be writing). slot[i] is its slot, or CORE_SLOT_NONE with reason[i]
 * (QUOTA, NO_MEMORY); else reason[i] is CORE_WIRE_SLOT_NEW or _KNOWN.
 * *budget_slots, if given, limits new slots and is lowered. Pages that are in the
 * store already cost no budget. Consecutive new pages get consecutive slots
 * (runs!). Returns the number of new slots.
 */
unsigned broker_store_promote(struct broker_store *st, const uint8_t *ring,
			      const uint16_t *ring_page, unsigned count, uint32_t *slot,
			      uint8_t *reason, uint64_t *budget_slots);

/* Candidate fingerprints of one look. */
void broker_store_tags(struct broker_store *st, const uint32_t *tag, unsigned count);
/* A new round of looks begins. */
void broker_store_round(struct broker_store *st);
/* One more scanner: its number in the standing table, until it leaves. */
unsigned broker_store_standing_join(struct broker_store *st);
/* It is gone; so many it had reported in this round. */
void broker_store_standing_leave(struct broker_store *st, unsigned who, uint64_t tags);
/* Fingerprints of what it found still; the table may begin a new round for it. */
void broker_store_standing(struct broker_store *st, unsigned who, const uint32_t *tag,
			   unsigned count, uint64_t now_usec);
/* It may grow by so many pages from here on (no limit at first). */
void broker_store_standing_room(struct broker_store *st, uint64_t pages);
/* By how many it has grown. */
uint64_t broker_store_standing_pages(const struct broker_store *st);
uint64_t broker_store_standing_round(const struct broker_store *st);
/* All are gone. */
void broker_store_standing_end(struct broker_store *st);

/* A new read-only open file of a segment; the caller closes it. -ENOENT: gone or never. */
int broker_store_segment_fd(struct broker_store *st, uint32_t segment);
/* Read-only fds of index and of both candidate tables, of the store's; do not close. */
int broker_store_index_fd(const struct broker_store *st);
int broker_store_cand_fd(const struct broker_store *st);
/* The store's own views (embedded use reads them directly). */
const struct core_index *broker_store_index(const struct broker_store *st);
const struct core_cand *broker_store_cand(const struct broker_store *st);
const struct core_cand *broker_store_standing_cand(const struct broker_store *st);

/*
 * Take over a full segment of an earlier broker (I6). fd stays the caller's.
 * Checks everything: a memfd of the right size, F_SEAL_WRITE | SHRINK | GROW,
 * not one that we have (by inode). Every page is hashed and indexed unless its
 * bytes are in the store. 0 taken, 1 not needed, -EINVAL, -EDQUOT, -ENOMEM.
 */
int broker_store_adopt(struct broker_store *st, int fd);

/* Let go of full segments that nobody has open or mapped any more; how many. */
unsigned broker_store_collect(struct broker_store *st);
/*
 * Working memory that was used: is there any, and give it back. A broker to which nothing is
 * submitted does not keep it.
 */
bool broker_store_worked(const struct broker_store *st);
void broker_store_rest(struct broker_store *st);

void broker_store_stats(const struct broker_store *st, struct broker_store_stats *stats);

#endif
