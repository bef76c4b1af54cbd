/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that were written since their merge lie in mappings of the store, where no freeze
 * is possible, so they could never be merged again. When there are many, they are brought
 * home (retreat.c): anonymous memory again, with the same bytes, tracked as any other.
 *
 * That costs a fork (to find pages that are pinned for DMA), after which the program's
 * writes take a fault for each page, and two mappings for each run of such pages. So it
 * is done for a 64th at least of what is watched, and of all anonymous memory that the
 * program has (copying the tables for 64 pages costs about as much as merging one); while
 * mappings are plenty; and less and less often if it has to be done again and again. And it is done for no more pieces at once than take a few msec; what is
 * left comes next, after a pause.
 */
#include "proc/scan.h"

#define PIECES_LEAST 64u
#define PIECES_MOST 4096u
/* The program's own calls and writes there wait for so long: not to be felt. */
#define SHORT_USEC 5000u
#define LONG_USEC 15000u
#define PAUSE_FACTOR 100u
#define LEAST_PAGES 64u
#define PART 64u
#define IDLE_LATEST 8u /* about ten minutes */

struct gather {
	struct proc_engine *e;
	struct proc_piece *piece;
	unsigned n, max;
};

static bool enough(const struct proc_scan *s, uint64_t *pages)
{
	uint64_t broken = 0, all = 0;

	for (uint32_t i = 0; i < s->chunks; i++) {
		broken += s->chunk[i].pages[CORE_PAGE_BROKEN];
		for (unsigned state = CORE_PAGE_FRESH; state < CORE_PAGE_STATES; state++)
			all += s->chunk[i].pages[state];
	}
	*pages = broken;
	return broken >= LEAST_PAGES && broken * PART >= all;
}

/* The fork copies the tables of all that the program has, watched or not. */
static bool worth_a_fork(uint64_t broken)
{
	int64_t all = sys_anonymous_pages();

	return proc_retreat_can_fork() && all >= 0 && broken * PART >= (uint64_t)all;
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
	return true;
}

/* Broken pages of a chunk, into the list. False: it is full. */
static bool gather_chunk(struct gather *g, const struct scan_chunk *k)
{
	struct proc_scan *s = g->e->scan;

	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		const struct core_pages_group *group = scan_group(s, k, i / CORE_PAGES_GROUP);
		uint64_t at = k->base + ((uint64_t)i << g->e->page_shift);
		uint32_t r;

		if (!group || core_page_state(group, i % CORE_PAGES_GROUP) != CORE_PAGE_BROKEN)
			continue;
		r = scan_region_after(s, at);
		if (r == s->regions || s->region[r].start > at)
			continue;
		if (!gather_page(g, at, s->region[r].prot))
			return false;
	}
	return true;
}

static void gather_broken(struct gather *g)
{
	struct proc_scan *s = g->e->scan;

	for (uint32_t i = 0; i < s->chunks; i++)
		if (s->chunk[i].pages[CORE_PAGE_BROKEN] && !gather_chunk(g, &s->chunk[i]))
			return;
}

/* Counted as what it is now, or nobody would look at the chunk. */
static void note_home(struct proc_engine *e, uint64_t at, uint32_t now)
{
	struct proc_scan *s = e->scan;
	struct scan_chunk *k = scan_chunk_at(s, at & ~(scan_chunk_bytes(e) - 1));
	uint32_t i = k ? (uint32_t)((at - k->base) >> e->page_shift) : 0;
	struct core_pages_group *group = k ? scan_group(s, k, i / CORE_PAGES_GROUP) : NULL;
	struct core_pages_clock clock = { now, s->set.first_msec, k ? k->looks : 0 };

	if (!group || core_page_state(group, i % CORE_PAGES_GROUP) != CORE_PAGE_BROKEN)
		return;
	core_page_home(group, i % CORE_PAGES_GROUP, &clock);
	k->pages[CORE_PAGE_BROKEN]--;
	k->pages[CORE_PAGE_FRESH]++;
	k->due_msec = now;
}

/*
 * Lets go of the list. How long the program was kept waiting. What the program has given
 * up meanwhile does not come home: that is new memory, found when mappings are read.
 */
static uint64_t bring(struct gather *g, unsigned n)
{
	struct proc_engine *e = g->e;
	uint32_t now;
	uint64_t took = 0;

	(void)proc_retreat_pieces(e, g->piece, &n, &took);
	now = scan_now_msec(e->scan, sys_now_usec());
	for (unsigned i = 0; i < n; i++) {
		const struct proc_piece *p = &g->piece[i];

		if (e->scan->wp)
			scan_arm(e, p->start, p->end);
		/* What had to stay is broken again at the next attempt to merge it: aside. */
		for (uint64_t at = p->start; at < p->end; at += e->page_bytes)
			note_home(e, at, now);
	}
	proc_arena_free(g->piece, PIECES_MOST * sizeof(*g->piece));
	return took;
}

/* How many at once, and when again. */
static void pace_homecoming(struct proc_scan *s, uint64_t now, uint64_t took, bool more)
{
	uint64_t wait = took * PAUSE_FACTOR;

	if (took > LONG_USEC && s->home_pieces > PIECES_LEAST)
		s->home_pieces /= 2;
	else if (took < SHORT_USEC && s->home_pieces < PIECES_MOST)
		s->home_pieces *= 2;
	/* Not needed for long: the writing is over. */
	if (now - s->home_at_usec > SCAN_HOME_USEC << s->home_idle)
		s->home_idle = 0;
	if (!more && wait < SCAN_HOME_USEC << s->home_idle)
		wait = SCAN_HOME_USEC << s->home_idle;
	s->home_at_usec = now + wait;
	if (!more && s->home_idle < IDLE_LATEST)
		s->home_idle++;
}

void scan_home(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	struct gather g = { .e = e };
	uint64_t now = sys_now_usec(), broken, took;
	int64_t room;
	unsigned n;

	if (!s->home_at_usec)
		s->home_at_usec = now + SCAN_HOME_USEC;
	if (now < s->home_at_usec || !enough(s, &broken))
		return;
	proc_pass_scan_budget(e, &s->budget, s->set.map_percent, SCAN_COUNT_USEC);
	room = (e->vmas_limit / 2 - e->vmas_now) / 2;
	if (room < 1)
		return;
	if (!worth_a_fork(broken)) {
		s->home_at_usec = now + SCAN_HOME_USEC;
		return;
	}
	if (!s->home_pieces)
		s->home_pieces = PIECES_LEAST;
	g.piece = proc_arena_alloc_far(PIECES_MOST * sizeof(*g.piece));
	if (!g.piece)
		return;
	g.max = room < s->home_pieces ? (unsigned)room : s->home_pieces;
	gather_broken(&g);
	n = g.n;
	took = bring(&g, n);
	e->vmas_now += 2 * (int64_t)n;
	s->n.homecomings++;
	pace_homecoming(s, now, took, n == s->home_pieces);
}
