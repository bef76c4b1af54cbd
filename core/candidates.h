/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Candidate table: fingerprints of pages seen once, the counterpart of KSM's
 * unstable tree. In shared memory: the broker writes, clients only read.
 *
 * 64-byte buckets of sixteen 4-byte entries; a tag may live in either of two
 * buckets. An entry is a part of the tag (22 bits; its place tells nine of the others), who
 * reported it last, and whether somebody else had before (0: empty). A full pair of buckets
 * loses the older entry at a clock hand: a lost fingerprint means a page that is merged later,
 * nothing worse.
 *
 * Growth. The table is cut into rows of 1024 buckets; a tag's two places are in one row, and
 * which one that is follows from its tag and the number of rows in use, evenly for any number.
 * So memory follows the entries in steps of an eighth, and a step moves one old row at a time.
 * (Splitting one row into two, as in linear hashing, gains nothing here: until its turn
 * comes each row is twice as full as those split, and a row has no room for that.)
 *
 * There are two such tables of a store, one behind the other in one file. The
 * first is of rounds: a round (core_cand_clear) begins when every client reports each of
 * its pages once, so a count of 2 means two pages, not one page seen twice.
 *
 * The second, "standing", is for scanners: its rounds last as long as the table has
 * room, what is promoted is removed from it, and `twins` tells who has reported a
 * page that now somebody else has reported the same. Clients come and go in that time, and
 * report a page more than once (freed and built again, written and written back), so
 * counting says nothing: a second page is what another client has reported that is still
 * there. Each has a number (who) while it is; the header tells which are in use.
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
#define CORE_CAND_ROW 1024u         /* buckets */
#define CORE_CAND_ROW_BYTES (CORE_CAND_ROW * CORE_CAND_BUCKET_BYTES)
#define CORE_CAND_WHO_MAX 511u      /* clients that can be told apart: 1 to this */

struct core_cand_header {
	uint64_t magic;
	uint32_t version;
	uint32_t buckets; /* whole rows */
	_Atomic uint64_t entries;
	_Atomic uint64_t dropped;
	_Atomic uint64_t round;
	_Atomic uint64_t twins; /* additions, ever, of what was there already */
	_Atomic uint64_t shape; /* rows in use << 32 | those that a growth has not moved yet */
	_Atomic uint64_t here[(CORE_CAND_WHO_MAX + 1) / 64]; /* a bit for each who */
};

enum core_cand_seen {
	CORE_CAND_NOBODY, /* nobody who is still here */
	CORE_CAND_OWN,    /* the one who asks */
	CORE_CAND_OWN_TWICE, /* the one who asks, and not for the first time, or as the second */
	CORE_CAND_OTHER,
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
/*
 * Writer, standing table: `who` (1 to CORE_CAND_WHO_MAX) has a page with this tag. True: that
 * is news, for somebody has, or had, another.
 */
bool core_cand_report(struct core_cand *ct, uint32_t tag, unsigned who);
/* Writer: from now on what `who` has reported counts; or nothing of it does. */
void core_cand_here(struct core_cand *ct, unsigned who, bool here);
/* Writer: drop what is of nobody who is here, from bucket `first` on, `count` of them. */
void core_cand_sweep(struct core_cand *ct, uint32_t first, uint32_t count);
/* Reader, standing table: whose page with this tag is known, to one who is `who`? */
enum core_cand_seen core_cand_seen(const struct core_cand *ct, uint32_t tag, unsigned who);
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
 * Writer: an empty table that follows the number of its entries. It begins with one row, the
 * rest untouched. full: it is time for a step of growth. step: what grow will touch, false if
 * the table is as large as it gets. used: buckets that may have been touched so far.
 */
struct core_cand_step {
	uint32_t from;         /* the row at this bucket is moved */
	uint32_t to, to_count; /* to these buckets */
};
void core_cand_begin_small(struct core_cand *ct);
bool core_cand_full(const struct core_cand *ct);
bool core_cand_step(const struct core_cand *ct, struct core_cand_step *step);
void core_cand_grow(struct core_cand *ct);
uint32_t core_cand_used(const struct core_cand *ct);
bool core_cand_crowded(const struct core_cand *ct);

#endif
