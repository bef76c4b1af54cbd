/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that were written since their merge lie in mappings of the store, where no freeze
 * is possible, so they could never be merged again. When there are many, they are brought
 * home (retreat.c): anonymous memory again, with the same bytes, tracked as any other.
 *
 * That costs a fork (to find pages that are pinned for DMA), after which the program's
 * writes take a fault for each page, and two mappings for each run of such pages. So it
 * is done for a sixteenth of what is watched at least, while mappings are plenty, and less
 * and less often if it has to be done again and again.
 */
#include "proc/scan.h"

#define PIECES_MAX 4096u
#define LEAST_PAGES 64u
#define PART 16u
#define IDLE_LATEST 6u /* about ten minutes */

struct gather {
	struct proc_engine *e;
	struct proc_piece *piece;
	unsigned n, max;
	uint64_t pages; /* in the list; then: still to be noted */
};

static bool enough(const struct proc_scan *s)
{
	uint64_t broken = 0, all = 0;

	for (uint32_t i = 0; i < s->chunks; i++) {
		broken += s->chunk[i].pages[CORE_PAGE_BROKEN];
		for (unsigned state = CORE_PAGE_FRESH; state < CORE_PAGE_STATES; state++)
			all += s->chunk[i].pages[state];
	}
	return broken >= LEAST_PAGES && broken * PART >= all;
}

/* False: the list is full. */
static bool gather_page(struct gather *g, uint64_t at, int prot)
{
	struct proc_piece *last = g->n ? &g->piece[g->n - 1] : NULL;
	uint64_t end = at + g->e->page_bytes;

	if (last && last->end == at && last->prot == prot)
		last->end = end;
	else if (g->n < g->max)
		g->piece[g->n++] = (struct proc_piece){ .start = at, .end = end, .prot = prot };
	else
		return false;
	g->pages++;
	return true;
}

/*
 * Broken pages of a chunk: into the list, or (home) as many as there were in it fresh from
 * now on. False: that was all.
 */
static bool each_broken(struct gather *g, struct scan_chunk *k, bool home)
{
	struct proc_scan *s = g->e->scan;
	struct core_pages_clock clock = { scan_now_msec(s, sys_now_usec()), s->set.first_msec,
					  k->looks };

	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		struct core_pages_group *group = scan_group(s, k, i / CORE_PAGES_GROUP);
		uint64_t at = k->base + ((uint64_t)i << g->e->page_shift);
		uint32_t r;

		if (!group || core_page_state(group, i % CORE_PAGES_GROUP) != CORE_PAGE_BROKEN)
			continue;
		r = scan_region_after(s, at);
		if (r == s->regions || s->region[r].start > at)
			continue;
		if (!home && !gather_page(g, at, s->region[r].prot))
			return false;
		if (home && g->pages-- == 0)
			return false;
		if (home)
			core_page_home(group, i % CORE_PAGES_GROUP, &clock);
	}
	return true;
}

static void all_broken(struct gather *g, bool home)
{
	struct proc_scan *s = g->e->scan;
	uint32_t now = scan_now_msec(s, sys_now_usec());

	for (uint32_t i = 0; i < s->chunks; i++) {
		if (!s->chunk[i].pages[CORE_PAGE_BROKEN])
			continue;
		if (home)
			s->chunk[i].due_msec = now;
		if (!each_broken(g, &s->chunk[i], home))
			return;
	}
}

void scan_home(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	struct gather g = { .e = e };
	uint64_t now = sys_now_usec();
	int64_t room = (e->vmas_limit / 2 - e->vmas_now) / 2;
	unsigned n;

	if (!s->home_at_usec)
		s->home_at_usec = now + SCAN_HOME_USEC;
	if (now < s->home_at_usec || room < 1 || !enough(s))
		return;
	g.piece = proc_arena_alloc_at(proc_far(e, PIECES_MAX * sizeof(*g.piece)),
				      PIECES_MAX * sizeof(*g.piece));
	if (!g.piece)
		return;
	g.max = room < PIECES_MAX ? (unsigned)room : PIECES_MAX;
	all_broken(&g, false);
	n = g.n;
	(void)proc_retreat_pieces(e, g.piece, n);
	for (unsigned i = 0; s->wp && i < n; i++)
		scan_arm(e, g.piece[i].start, g.piece[i].end);
	/* What had to stay turns out as broken again at the next attempt to merge it: aside. */
	all_broken(&g, true);
	proc_arena_free(g.piece, PIECES_MAX * sizeof(*g.piece));
	e->vmas_now += 2 * (int64_t)n;
	s->n.homecomings++;
	/* Not needed for long: the writing is over. */
	if (now - s->home_at_usec > SCAN_HOME_USEC << s->home_idle)
		s->home_idle = 0;
	s->home_at_usec = now + (SCAN_HOME_USEC << s->home_idle);
	if (s->home_idle < IDLE_LATEST)
		s->home_idle++;
}
