/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Promotion: from a client's ring into the store.
 *
 * The ring can change at any moment, so a page is copied out once and everything
 * is decided from the copy (I4): hash, lookup, comparison, and the bytes that go
 * into the slot, which therefore always match their tag. A page that is in the
 * store costs no slot. What is new gets the next slot of the open segment, in
 * the order of the submission, so that the client can map runs.
 *
 * New pages are collected into batches before they are written. A page whose tag
 * may be that of one still waiting makes the batch go out first, so that equal
 * pages of one submission find each other.
 *
 * What was published leaves the store's own mapping before the submission is
 * answered, so that nobody at all can write to it any more (I1).
 *
 * A slot counts as used only when its index entry is in: if the index has no
 * room for it, the bytes stay behind unpublished and the next new page takes
 * their place (I1 speaks of published slots; no client was told of this one).
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "broker/store_impl.h"
#include "core/hash.h"
#include "core/wire.h"
#include "samepage.h"
#include "sys/sys.h"

/* More than CORE_WIRE_SUBMIT_MAX insertions add to the index, but for a flood of crafted ones. */
#define INDEX_AHEAD_BYTES (UINT64_C(16) << 10)

/*
 * Without memory for a bucket, the first store to it would be a SIGBUS (strict
 * overcommit): ask for it while an error can still be reported. What was not asked for the
 * index does not touch, whatever is promoted (I4).
 */
int broker_index_back(struct broker_store *st)
{
	uint64_t want = core_index_used_bytes(&st->index) + INDEX_AHEAD_BYTES;
	int r;

	if (want > st->index_shm.bytes)
		want = st->index_shm.bytes;
	if (want <= st->index_backed)
		return 0;
	/* Some more at once, to be asked seldom. */
	want += INDEX_AHEAD_BYTES + st->page_bytes - 1;
	want &= ~(uint64_t)(st->page_bytes - 1);
	if (want > st->index_shm.bytes)
		want = st->index_shm.bytes;
	r = sys->madvise((uint8_t *)st->index_shm.mem + st->index_backed, want - st->index_backed,
			 MADV_POPULATE_WRITE);
	if (r < 0 && r != -EINVAL)
		return r;
	st->index_backed = want;
	core_index_limit(&st->index, want);
	return 0;
}

/*
 * New pages of one submission that have no slot yet, in scratch page 0, 1 ...:
 * written together, because copying them in costs less by the batch.
 */
struct batch {
	struct broker_store *st;
	uint32_t *slot;
	uint8_t *reason;
	uint64_t *budget_slots;
	unsigned pending;
	unsigned fresh;
	uint16_t which[BROKER_BATCH_PAGES]; /* place in the submission */
	uint32_t tag[BROKER_BATCH_PAGES];
	uint64_t seen[64]; /* a bit for some bits of each pending tag */
};

static uint8_t *scratch(const struct broker_store *st, unsigned i)
{
	return st->scratch + i * st->page_bytes;
}

static void refuse(struct batch *b, unsigned k, enum samepage_reason why)
{
	b->slot[b->which[k]] = CORE_SLOT_NONE;
	b->reason[b->which[k]] = (uint8_t)why;
	b->st->counted.quota_refusals += why == SAMEPAGE_REASON_QUOTA;
}

/* The index has no room for the page in slot seg->slots: the ones behind it move up. */
static void close_gap(struct broker_store *st, const struct broker_segment *seg, unsigned behind)
{
	uint8_t *at = st->window.map + seg->slots * st->page_bytes;

	memmove(at, at + st->page_bytes, behind * st->page_bytes);
}

/* Pending pages [k, k + n) are in the next n slots of seg: publish them. */
static void publish(struct batch *b, struct broker_segment *seg, unsigned k, unsigned n)
{
	struct broker_store *st = b->st;

	for (unsigned end = k + n; k < end; k++) {
		uint32_t number = seg->number * BROKER_SEGMENT_SLOTS + seg->slots;

		if (core_index_insert(&st->index, b->tag[k], number) < 0) {
			refuse(b, k, SAMEPAGE_REASON_QUOTA);
			close_gap(st, seg, end - k - 1);
			continue;
		}
		broker_cand_promoted(st, b->tag[k]);
		b->slot[b->which[k]] = number;
		b->reason[b->which[k]] = CORE_WIRE_SLOT_NEW;
		b->fresh++;
		if (b->budget_slots)
			--*b->budget_slots;
		broker_segment_advance(st, seg);
	}
}

static void flush(struct batch *b)
{
	struct broker_store *st = b->st;
	unsigned k = 0;

	while (k < b->pending) {
		struct broker_segment *seg;
		unsigned n = b->pending - k;
		int r = broker_segment_open(st, &seg);

		if (r == 0 && n > BROKER_SEGMENT_SLOTS - seg->slots)
			n = BROKER_SEGMENT_SLOTS - seg->slots;
		if (r == 0)
			r = broker_segment_write(st, seg, scratch(st, k), n);
		if (r < 0)
			break;
		publish(b, seg, k, n);
		k += n;
	}
	for (; k < b->pending; k++)
		refuse(b, k, SAMEPAGE_REASON_NO_MEMORY);
	b->pending = 0;
	memset(b->seen, 0, sizeof(b->seen));
}

static bool maybe_pending(const struct batch *b, uint32_t tag)
{
	return b->seen[tag >> 6 & 63] >> (tag & 63) & 1;
}

/* Take page i of the submission out of the ring; known, refused or pending afterwards. */
static void take(struct batch *b, unsigned i, const uint8_t *from, bool backed)
{
	struct broker_store *st = b->st;
	uint8_t *page = scratch(st, b->pending);
	uint32_t tag;

	memcpy(page, from, st->page_bytes);
	tag = core_hash_tag(core_hash_page(page, st->page_bytes, st->params.seed));
	if (maybe_pending(b, tag)) {
		flush(b);
		memmove(scratch(st, 0), page, st->page_bytes);
		page = scratch(st, 0);
	}
	b->slot[i] = broker_slot_find(st, tag, page, scratch(st, BROKER_BATCH_PAGES));
	b->reason[i] = CORE_WIRE_SLOT_KNOWN;
	if (b->slot[i] != CORE_SLOT_NONE) {
		broker_cand_promoted(st, tag); /* reported by who did not know of the slot yet */
		st->counted.submissions_known++;
		return;
	}
	b->which[b->pending] = (uint16_t)i;
	b->tag[b->pending] = tag;
	if (!backed) {
		refuse(b, b->pending, SAMEPAGE_REASON_NO_MEMORY);
		return;
	}
	if (st->slots + b->pending >= st->params.max_slots ||
	    (b->budget_slots && b->pending >= *b->budget_slots)) {
		refuse(b, b->pending, SAMEPAGE_REASON_QUOTA);
		return;
	}
	b->seen[tag >> 6 & 63] |= UINT64_C(1) << (tag & 63);
	if (++b->pending == BROKER_BATCH_PAGES)
		flush(b);
}

unsigned broker_store_promote(struct broker_store *st, const uint8_t *ring,
			      const uint16_t *ring_page, unsigned count, uint32_t *slot,
			      uint8_t *reason, uint64_t *budget_slots)
{
	struct batch b = { .st = st, .slot = slot, .reason = reason,
			   .budget_slots = budget_slots };
	bool backed = broker_index_back(st) == 0;

	st->scratch_used = true;
	for (unsigned i = 0; i < count; i++)
		take(&b, i, ring + ring_page[i] * st->page_bytes, backed);
	flush(&b);
	broker_segment_unmap_published(st);
	st->counted.submissions += count;
	atomic_store_explicit(&st->index.header->slots_published, st->slots, memory_order_relaxed);
	return b.fresh;
}
