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
 * mappings are plenty; and less and less often if it has to be done again and again. And it
 * is done for no more pieces at once than take a few msec; what is left comes next, after a
 * pause. What could not be brought home (pinned, say) stays broken, and has its turn again.
 */
#include "proc/scan.h"

#define PIECES_LEAST 64u
#define PIECES_MOST 4096u
#define PIECE_PAGES 32u /* on average, at most: long runs take their time as well */
/* The program's own calls and writes there wait for so long: not to be felt. */
#define SHORT_USEC 5000u
#define LONG_USEC 15000u
#define PAUSE_FACTOR 100u
#define REGIONS_FACTOR 50u /* they are read anew after each (region.c) */
#define LEAST_PAGES 64u
#define PART 64u
/* What a fork may take, and what it takes a page until we know better: 30 ms are 0.5 GiB. */
#define FORK_MOST_USEC 30000ull
#define FORK_NSEC_PAGE 230u
#define IDLE_LATEST 8u /* about ten minutes */

struct gather {
	struct proc_engine *e;
	struct proc_piece *piece;
	unsigned n, max;
	uint64_t pages; /* that may still be taken */
	bool full;
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

/*
 * The fork copies the tables of all that the program has, watched or not; and while it does,
 * the program's own calls and faults wait. So there is none where it would take too long.
 * What was measured is not believed for ever: the machine may have been busy.
 */
static bool worth_a_fork(struct proc_scan *s, uint64_t broken, uint64_t *all)
{
	int64_t pages = sys_anonymous_pages();

	if (!proc_retreat_can_fork() || pages < 0 || broken * PART < (uint64_t)pages)
		return false;
	if (!s->fork_nsec_page)
		s->fork_nsec_page = FORK_NSEC_PAGE;
	*all = (uint64_t)pages;
	if (*all * s->fork_nsec_page <= FORK_MOST_USEC * 1000)
		return true;
	if (s->fork_nsec_page > FORK_NSEC_PAGE)
		s->fork_nsec_page -= (s->fork_nsec_page - FORK_NSEC_PAGE + 3) / 4;
	return false;
}

static void note_fork(struct proc_scan *s, uint64_t all, uint64_t usec)
{
	uint64_t nsec = all ? usec * 1000 / all : 0;

	if (usec)
		s->fork_nsec_page = (uint32_t)(nsec < FORK_NSEC_PAGE / 4 ? FORK_NSEC_PAGE / 4
					       : nsec > UINT32_MAX	 ? UINT32_MAX
									 : nsec);
}

/* Each piece lies in one mapping, and not all mappings need to be those of one region. */
static void gather_page(struct gather *g, uint64_t at, const struct sys_vma *v)
{
	struct proc_piece *last = g->n ? &g->piece[g->n - 1] : NULL;
	uint64_t end = at + g->e->page_bytes;

	if (g->pages == 0) {
		g->full = true;
		return;
	}
	g->pages--;
	if (last && last->end == at && last->start >= v->start)
		last->end = end;
	else if (g->n < g->max)
		g->piece[g->n++] = (struct proc_piece){ .start = at, .end = end, .prot = v->prot };
	else
		g->full = true;
}

/* Broken pages of [at, end), which lies in one chunk. */
static void gather_chunk(struct gather *g, struct scan_chunk *k, uint64_t at, uint64_t end,
			 const struct sys_vma *v)
{
	struct proc_scan *s = g->e->scan;

	for (; at < end && !g->full; at += g->e->page_bytes) {
		uint32_t i = (uint32_t)((at - k->base) >> g->e->page_shift);
		struct core_pages_group *group = scan_group(s, k, i / CORE_PAGES_GROUP);
		uint32_t r;

		if (!group || core_page_state(group, i % CORE_PAGES_GROUP) != CORE_PAGE_BROKEN)
			continue;
		r = scan_region_after(s, at);
		if (r < s->regions && s->region[r].start <= at && s->region[r].prot == v->prot)
			gather_page(g, at, v);
	}
}

static int gather_run(const struct sys_vma *v, void *arg)
{
	struct gather *g = arg;
	uint64_t size = scan_chunk_bytes(g->e);
	uint64_t at = v->start > g->e->scan->home_from ? v->start : g->e->scan->home_from;

	while (proc_vma_is_run(v) && at < v->end && !g->full) {
		uint64_t base = at & ~(size - 1), until = base + size < v->end ? base + size : v->end;
		struct scan_chunk *k = scan_chunk_at(g->e->scan, base);

		if (k && k->pages[CORE_PAGE_BROKEN])
			gather_chunk(g, k, at, until, v);
		at = until;
	}
	return g->full;
}

static bool gather(struct gather *g)
{
	struct proc_work *w = g->e->work;
	int err = sys_maps_each(0, w->maps_buf, sizeof(w->maps_buf), gather_run, g);

	g->e->scan->home_from = err >= 0 && g->full ? g->piece[g->n - 1].end : 0;
	return err >= 0;
}

/* Of [at, end), which is anonymous again: how many pages that were broken. */
static uint64_t note_home(struct proc_engine *e, uint64_t at, uint64_t end)
{
	struct proc_scan *s = e->scan;
	uint64_t size = scan_chunk_bytes(e), pages = 0;
	uint32_t now = scan_now_msec(s, sys_now_usec());

	for (; at < end; at += e->page_bytes) {
		struct scan_chunk *k = scan_chunk_at(s, at & ~(size - 1));
		uint32_t i = (uint32_t)((at & (size - 1)) >> e->page_shift);
		struct core_pages_group *g = k ? scan_group(s, k, i / CORE_PAGES_GROUP) : NULL;
		struct core_pages_clock clock = { now, s->set.first_msec, k ? k->looks : 0 };

		if (!g || core_page_state(g, i % CORE_PAGES_GROUP) != CORE_PAGE_BROKEN)
			continue;
		core_page_home(g, i % CORE_PAGES_GROUP, &clock);
		/* Counted as what it is now, or nobody would look at the chunk. */
		k->pages[CORE_PAGE_BROKEN]--;
		k->pages[CORE_PAGE_FRESH]++;
		scan_due_now(s, k, now);
		pages++;
	}
	return pages;
}

/* What had to stay is broken as before. */
static uint64_t note_piece(struct proc_engine *e, const struct proc_piece *p)
{
	uint64_t at = p->start, pages = 0;
	struct sys_vma v;

	while (at < p->end && scan_vma_at(e, at, &v) == 0 && v.start < p->end) {
		uint64_t lo = v.start > at ? v.start : at;

		at = v.end < p->end ? v.end : p->end;
		if (v.anonymous && !v.shared)
			pages += note_home(e, lo, at);
	}
	return pages;
}

/* How long the program was kept waiting. */
static uint64_t bring(struct gather *g, uint64_t all)
{
	struct proc_scan *s = g->e->scan;
	struct proc_retreat_cost cost = { 0 };
	uint64_t pages = 0;

	(void)proc_retreat_pieces(g->e, g->piece, &g->n, &cost);
	note_fork(s, all, cost.fork_usec);
	for (unsigned i = 0; i < g->n; i++) {
		if (s->wp)
			scan_arm(g->e, g->piece[i].start, g->piece[i].end);
		pages += note_piece(g->e, &g->piece[i]);
	}
	g->e->vmas_now += 2 * (int64_t)g->n;
	s->n.homecomings += pages > 0;
	/* Before that they are not merged. */
	s->regions_at_usec = 0;
	return cost.held_usec;
}

/* How many at once, and when again. */
static void pace_homecoming(struct proc_scan *s, uint64_t now, uint64_t took, bool more)
{
	uint64_t wait = took * PAUSE_FACTOR, read = s->regions_cost_usec * REGIONS_FACTOR;

	if (wait < read)
		wait = read;
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
	uint64_t now = sys_now_usec(), broken, all, took;
	int64_t room;

	if (!s->home_at_usec)
		s->home_at_usec = now + SCAN_HOME_USEC;
	if (now < s->home_at_usec || !enough(s, &broken))
		return;
	proc_pass_scan_budget(e, &s->budget, s->set.map_percent, SCAN_COUNT_USEC);
	room = (e->vmas_limit / 2 - e->vmas_now) / 2;
	if (room < 1)
		return;
	if (!worth_a_fork(s, broken, &all)) {
		s->home_at_usec = now + SCAN_HOME_USEC;
		return;
	}
	if (!s->home_pieces)
		s->home_pieces = PIECES_LEAST;
	g.piece = proc_arena_alloc_far(PIECES_MOST * sizeof(*g.piece));
	if (!g.piece)
		return;
	g.max = room < s->home_pieces ? (unsigned)room : s->home_pieces;
	g.pages = (uint64_t)s->home_pieces * PIECE_PAGES;
	took = gather(&g) && g.n ? bring(&g, all) : 0;
	proc_arena_free(g.piece, PIECES_MOST * sizeof(*g.piece));
	pace_homecoming(s, now, took, g.full && g.max == s->home_pieces);
}
