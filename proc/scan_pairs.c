/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages of one process that have the same contents.
 *
 * The standing table says who reported a fingerprint, so what we find there of ourselves is
 * another page of ours, or this one in an earlier life: freed and built again, moved, written
 * and written back. Only what we know of our pages can tell. Such pages are suspects; from
 * time to time, and for a twentieth of the time at most, fingerprints of some of them are put
 * into a small table and all known pages are held against it. The second one that has
 * the same is a twin, and promotes; the first finds it in the index.
 *
 * What is known of a page may be older than its end. Memory whose release we see is looked
 * at before what comes in its place has been still for long enough; else a page may be
 * promoted for one that is gone.
 */
#include <string.h>

#include "proc/scan.h"

#define PAIRS_MOST (PROC_PAIRS_ROOM / 2)
#define PAIRS_COST_FACTOR 20u

_Static_assert((PROC_PAIRS_ROOM & (PROC_PAIRS_ROOM - 1)) == 0, "a power of two");

void scan_suspect(struct proc_scan *s, struct core_pages_group *g, unsigned i)
{
	core_page_pair_is(g, i, CORE_PAGE_SUSPECT);
	s->suspects++;
}

/* Where it is, or the empty place where it belongs. */
static uint32_t place_of(const struct proc_work *w, uint32_t tag)
{
	uint32_t at = tag * 0x9e3779b1u >> 17;

	while (w->pair_tag[at] && w->pair_tag[at] != tag)
		at = (at + 1) & (PROC_PAIRS_ROOM - 1);
	return at;
}

typedef void page_fn(struct proc_engine *e, struct scan_chunk *k, struct core_pages_group *g,
		     unsigned i);

static void each_known(struct proc_engine *e, page_fn *fn)
{
	struct proc_scan *s = e->scan;

	for (uint32_t c = 0; c < s->chunks; c++) {
		struct scan_chunk *k = &s->chunk[c];

		for (unsigned j = 0; k->pages[CORE_PAGE_KNOWN] && j < SCAN_GROUPS; j++) {
			struct core_pages_group *g = scan_group(s, k, j);

			for (unsigned i = 0; g && i < CORE_PAGES_GROUP; i++)
				if (core_page_state(g, i) == CORE_PAGE_KNOWN)
					fn(e, k, g, i);
		}
	}
}

/* What does not fit is a suspect still, and has its turn next time. */
static void collect(struct proc_engine *e, struct scan_chunk *k, struct core_pages_group *g,
		    unsigned i)
{
	(void)k;
	if (core_page_pair(g, i) != CORE_PAGE_SUSPECT)
		return;
	if (e->scan->suspects < PAIRS_MOST)
		e->work->pair_tag[place_of(e->work, g->tag[i])] = g->tag[i];
	e->scan->suspects++;
}

static void decide(struct proc_engine *e, struct scan_chunk *k, struct core_pages_group *g,
		   unsigned i)
{
	struct proc_scan *s = e->scan;
	uint32_t at = place_of(e->work, g->tag[i]);

	if (e->work->pair_tag[at] == 0)
		return;
	if (e->work->pair_seen[at]++ == 0) {
		core_page_pair_is(g, i, CORE_PAGE_CHECKED);
		return;
	}
	e->work->pair_seen[at] = 1;
	core_page_pair_is(g, i, CORE_PAGE_TWIN);
	k->news = true;
	scan_due_now(s, k, scan_now_msec(s, sys_now_usec()));
}

void scan_pairs(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	struct proc_work *w = e->work;
	uint64_t began = sys_now_usec();

	if (!s->suspects || began < s->pairs_at_usec)
		return;
	memset(w->pair_tag, 0, sizeof(w->pair_tag));
	memset(w->pair_seen, 0, sizeof(w->pair_seen));
	s->suspects = 0;
	each_known(e, collect);
	each_known(e, decide);
	s->suspects = s->suspects > PAIRS_MOST ? s->suspects - PAIRS_MOST : 0;
	s->pairs_at_usec = began + (sys_now_usec() - began) * PAIRS_COST_FACTOR;
}
