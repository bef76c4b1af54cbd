/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The look: which pages of a chunk are worth freezing, and for which slots.
 *
 * Nothing is locked and nothing is frozen here; the program may write, unmap or
 * discard the pages at any moment. So memory is read with process_vm_readv on
 * oneself (a plain read of a page that another thread unmaps would crash the
 * program), only where PAGEMAP_SCAN says that a page is present (reading a hole
 * would populate it), and what comes out is a plan, verified under the freeze
 * (I2).
 *
 * The pages are read into the submission ring, page i of the chunk to page
 * i mod PROC_TURN_PAGES of the ring: a page that turns out to be the first of its
 * kind is where the broker takes it from, without another copy. What waits there is
 * submitted before other pages take its place. A dry look has a place for each page of
 * the chunk, so that those worth it are promoted later without another read.
 */
#include <errno.h>
#include <string.h>

#include "core/hash.h"
#include "proc/internal.h"

static uint64_t page_addr(const struct proc_engine *e, const struct proc_chunk *c, uint32_t i)
{
	return c->base + ((uint64_t)i << e->page_shift);
}

/* Which page of the ring is it read to? */
static uint32_t place(const struct proc_chunk *c, uint32_t i)
{
	return c->dry ? i : i % PROC_TURN_PAGES;
}

static uint8_t *ring_page(const struct proc_engine *e, const struct proc_chunk *c, uint32_t i)
{
	return e->link->ring + ((size_t)place(c, i) << e->page_shift);
}

/* Read n pages from page i of the chunk into the ring; how many could be read. */
static uint32_t read_batch(struct proc_engine *e, const struct proc_chunk *c, uint32_t i,
			   uint32_t n)
{
	struct iovec to = { ring_page(e, c, i), (size_t)n << e->page_shift };
	struct iovec from = { (void *)page_addr(e, c, i), to.iov_len };
	ssize_t got = sys->read_self(&to, 1, &from, 1);

	return got < 0 ? 0 : (uint32_t)((size_t)got >> e->page_shift);
}

static void hash_page(struct proc_engine *e, const struct proc_chunk *c, uint32_t i)
{
	const uint8_t *bytes = ring_page(e, c, i);
	uint64_t hash = core_hash_page(bytes, e->page_bytes, e->link->index.header->seed);

	e->work->tag[i] = core_hash_tag(hash);
	/* Under a file's mapping a hole is not zeros. */
	if (!c->still && hash == e->zero_hash && core_page_is_zero(bytes, e->page_bytes)) {
		e->work->plan[i].kind = CORE_PLAN_ZERO;
		return;
	}
	/* For now; lookup() decides. */
	e->work->plan[i].kind = CORE_PLAN_SLOT;
	e->work->plan[i].slot = CORE_SLOT_NONE;
	core_index_prefetch(&e->link->index, e->work->tag[i]);
	if (c->scan)
		core_cand_prefetch(&e->link->standing, e->work->tag[i]);
}

static bool report_tag(struct proc_engine *e, uint32_t tag)
{
	e->work->tags_out[e->tags_count++] = tag;
	if (e->tags_count == CORE_WIRE_TAGS_MAX)
		return proc_pass_flush_tags(e) == 0;
	return true;
}

/* A page that is in no slot yet: promote it, or say why not. */
static bool want_promotion(struct proc_engine *e, const struct proc_chunk *c, uint32_t i)
{
	enum proc_mode mode = c->mode;
	struct core_plan_page *p = &e->work->plan[i];

	if (mode == PROC_MODE_LOOK) {
		report_tag(e, e->work->tag[i]);
		proc_plan_skip(p, SAMEPAGE_REASON_UNIQUE);
		return false;
	}
	if (mode == PROC_MODE_CANDIDATE && core_cand_count(&e->link->cand, e->work->tag[i]) < 2) {
		proc_plan_skip(p, SAMEPAGE_REASON_UNIQUE);
		return false;
	}
	if (mode == PROC_MODE_SCAN && !proc_scan_has_twin(e, c->scan, i)) {
		proc_plan_skip(p, SAMEPAGE_REASON_UNIQUE);
		return false;
	}
	/* A slot that could not be mapped would be a page of store for nothing. */
	if (e->vmas_now + 2 > e->vmas_limit) {
		proc_plan_skip(p, SAMEPAGE_REASON_MAP_COUNT);
		return false;
	}
	if (c->dry) {
		proc_scan_twin(c->scan, i);
		proc_plan_skip(p, SAMEPAGE_REASON_UNIQUE);
		return false;
	}
	return true;
}

/*
 * The slot among several with this tag whose bytes the page has: tags collide at
 * the rate of slots / 2^32, and planning the wrong one would fail each time.
 */
static uint32_t by_bytes(struct proc_engine *e, const struct proc_chunk *c, uint32_t i,
			 const uint32_t *slots, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		const uint8_t *bytes = proc_segments_slot(e, slots[k]);

		if (bytes && memcmp(bytes, ring_page(e, c, i), e->page_bytes) == 0)
			return slots[k];
	}
	return CORE_SLOT_NONE;
}

static uint32_t lookup(struct proc_engine *e, const struct proc_chunk *c, uint32_t i)
{
	const struct core_plan_page *p = &e->work->plan[i];
	uint32_t segment_slots = e->link->index.header->segment_slots;
	uint32_t slots[CORE_INDEX_MATCHES_MAX];
	unsigned n = core_index_lookup(&e->link->index, e->work->tag[i], slots,
				       CORE_INDEX_MATCHES_MAX);

	if (n == 0)
		return CORE_SLOT_NONE;
	if ((n > 1 || c->exact) && c->mode != PROC_MODE_LOOK)
		return by_bytes(e, c, i, slots, n);
	return core_plan_choose(slots, n, i > c->first ? p - 1 : NULL, segment_slots);
}

/* Pages [i, end) are hashed: which slot each shall map, or who waits for one. */
static void lookup_batch(struct proc_engine *e, const struct proc_chunk *c, uint32_t i,
			     uint32_t end)
{
	struct proc_work *w = e->work;

	for (; i < end; i++) {
		struct core_plan_page *p = &w->plan[i];

		if (c->scan && !proc_scan_still(e, c->scan, i))
			proc_plan_skip(p, PROC_ABSENT);
		if (p->kind != CORE_PLAN_SLOT)
			continue;
		p->slot = lookup(e, c, i);
		if (p->slot == CORE_SLOT_NONE) {
			if (want_promotion(e, c, i))
				w->miss[w->misses++] = (uint16_t)i;
		} else if (c->mode == PROC_MODE_LOOK) {
			proc_plan_skip(p, SAMEPAGE_REASON_UNIQUE);
		}
	}
}

static void promote(struct proc_engine *e, const struct proc_chunk *c, struct samepage_result *res)
{
	struct proc_work *w = e->work;
	uint32_t misses = w->misses;
	int err;

	if (!misses)
		return;
	w->misses = 0;
	for (uint32_t k = 0; k < misses; k++)
		w->ring_page[k] = (uint16_t)place(c, w->miss[k]);
	err = e->link->connected
		      ? e->link->ops->submit(e->link, w->ring_page, misses, w->miss_slot, w->miss_reason)
		      : -ENOTCONN;
	for (uint32_t k = 0; k < misses; k++) {
		struct core_plan_page *p = &w->plan[w->miss[k]];

		if (err) {
			proc_plan_skip(p, SAMEPAGE_REASON_NO_BROKER);
		} else if (w->miss_slot[k] == CORE_SLOT_NONE) {
			proc_plan_skip(p, w->miss_reason[k]);
		} else {
			p->slot = w->miss_slot[k];
			res->pages_promoted += w->miss_reason[k] == CORE_WIRE_SLOT_NEW;
		}
	}
}

static void look_region(struct proc_engine *e, const struct proc_chunk *c, uint32_t i,
			uint32_t end, struct samepage_result *res)
{
	while (i < end) {
		/* Up to the next multiple: then a batch never wraps around in the ring. */
		uint32_t room = PROC_READ_PAGES - i % PROC_READ_PAGES;
		uint32_t want = end - i < room ? end - i : room;
		uint32_t got;

		/* The ring's next turn begins: what waits in it goes out first. */
		if (e->work->misses && i / PROC_TURN_PAGES != e->work->miss[0] / PROC_TURN_PAGES)
			promote(e, c, res);
		got = read_batch(e, c, i, want);
		for (uint32_t k = i; k < i + got; k++)
			hash_page(e, c, k);
		lookup_batch(e, c, i, i + got);
		i += got;
		if (got < want) {
			/* The read stopped here: unmapped or protected meanwhile. */
			proc_plan_skip(&e->work->plan[i], SAMEPAGE_REASON_VANISHED);
			i++;
		}
	}
}

/* Bit 56 of a pagemap entry: mapped here and nowhere else. */
static bool exclusive(uint64_t entry)
{
	return entry >> 56 & 1;
}

/*
 * Pages still shared with a parent or child since fork are not even read:
 * process_vm_readv pins what it reads, and the kernel gives such a page a private
 * copy first, which would undo the sharing that fork gave for nothing.
 */
static void look_unshared(struct proc_engine *e, const struct proc_chunk *c, uint32_t i,
			  uint32_t end, struct samepage_result *res)
{
	uint64_t *entry = e->work->entries;
	size_t bytes = (end - i) * sizeof(*entry);
	off_t at = (off_t)((page_addr(e, c, i) >> e->page_shift) * sizeof(*entry));
	uint32_t first = i;

	if (sys->pread(e->pagemap_fd, entry, bytes, at) != (ssize_t)bytes) {
		look_region(e, c, i, end, res);
		return;
	}
	while (i < end) {
		uint32_t until = i;

		while (until < end && exclusive(entry[until - first]))
			until++;
		look_region(e, c, i, until, res);
		for (i = until; i < end && !exclusive(entry[i - first]); i++)
			proc_plan_skip(&e->work->plan[i], SAMEPAGE_REASON_FORK_SHARED);
	}
}

void proc_look_wanted(struct proc_engine *e, const struct proc_chunk *c, const uint8_t *want,
		      uint8_t which, struct samepage_result *res)
{
	uint32_t i = c->first, end;

	while (i < c->end) {
		for (end = i; end < c->end && want[end] == which; end++)
			;
		if (end == i)
			end++;
		else
			look_unshared(e, c, i, end, res);
		i = end;
	}
	promote(e, c, res);
}

void proc_look_again(struct proc_engine *e, const struct proc_chunk *c, const uint8_t *want,
		     uint8_t which, struct samepage_result *res)
{
	struct proc_work *w = e->work;

	for (uint32_t i = c->first; i < c->end; i++) {
		if (want[i] != which)
			continue;
		w->plan[i].kind = CORE_PLAN_SLOT;
		w->plan[i].slot = lookup(e, c, i);
		if (w->plan[i].slot == CORE_SLOT_NONE)
			w->miss[w->misses++] = (uint16_t)i;
	}
	promote(e, c, res);
}

bool proc_look(struct proc_engine *e, const struct proc_chunk *c, struct samepage_result *res)
{
	struct proc_work *w = e->work;
	uint64_t walk_end;
	int regions;

	for (uint32_t i = c->first; i < c->end; i++)
		w->plan[i] = (struct core_plan_page){ .reason = PROC_ABSENT };
	regions = proc_present(e, page_addr(e, c, c->first), page_addr(e, c, c->end), &walk_end);
	for (int r = 0; r < regions; r++) {
		const struct sys_page_region *g = &w->regions[r];
		uint32_t i = (uint32_t)((g->start - c->base) >> e->page_shift);
		uint32_t end = (uint32_t)((g->end - c->base) >> e->page_shift);

		if (!(g->categories & SYS_PAGE_IS_SWAPPED))
			look_unshared(e, c, i, end, res);
		for (; g->categories & SYS_PAGE_IS_SWAPPED && i < end; i++)
			proc_plan_skip(&w->plan[i], SAMEPAGE_REASON_SWAPPED);
	}
	promote(e, c, res);
	for (uint32_t i = c->first; i < c->end; i++)
		if (w->plan[i].kind != CORE_PLAN_SKIP)
			return true;
	return false;
}
