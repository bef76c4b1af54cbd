/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The scanner's regions: owned memory that is wanted, private, readable and writable, and
 * carries nothing that a merged page could not have.
 *
 * Only smaps tells a mapping's flags, and smaps costs a walk over all memory, so it is
 * read again only when the program changed something (proc_mem_watch), and not more
 * often than comes to a fiftieth of the time. What the program touched since is left
 * alone until then: a commit asks the watch (prepare.c). While a read is under way, the
 * program's own calls that change mappings wait. Each read walks one mapping, and after
 * some there is a pause; without one the program waits on, for a reader that comes back
 * at once gets the lock again before a writer has woken up.
 *
 * Mappings that are not registered for tracking yet are registered as they are found, each as
 * a whole as far as it is owned: a mapping that the program made stays one mapping.
 *
 * discover: memory of a region may become present where nothing was. Where no chunk is
 * known, PAGEMAP_SCAN is asked for the next page; it skips what has no page tables.
 */
#include <string.h>
#include <sys/mman.h>

#include "proc/kernel.h"
#include "proc/scan.h"

#define COST_FACTOR 50u
#define BUSY_USEC 1000u
#define PAUSE_MSEC 1
#define WAIT_LEAST_USEC 50000u
#define WAIT_MOST_USEC 10000000u
#define IDLE_LATEST 5u

struct reading {
	struct proc_engine *e;
	struct proc_scan *s;
	uint32_t old; /* s->old: how many. 0: of another userfaultfd */
	uint64_t reached; /* the end of the last mapping */
	uint64_t busy_since_usec;
	uint64_t paused_usec;
};

static uint32_t first_after(const struct scan_region *region, uint32_t n, uint64_t addr)
{
	uint32_t lo = 0, hi = n;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (region[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

uint32_t scan_region_after(const struct proc_scan *s, uint64_t addr)
{
	return first_after(s->region, s->regions, addr);
}

/*
 * Only what we registered: before Linux 6.17 anybody's userfaultfd could end anybody's
 * registration. What is cut out of the middle of a region takes the upper part along, until
 * the regions are read again.
 */
uint64_t scan_region_armed(const struct proc_engine *e, const struct scan_region *g)
{
	return g->start - g->lead_pages * e->page_bytes;
}

void scan_regions_cut(struct proc_engine *e, uint64_t start, uint64_t end)
{
	struct proc_scan *s = e->scan;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < s->regions; i++) {
		struct scan_region g = s->region[i];
		uint64_t from = scan_region_armed(e, &g), until = g.end < end ? g.end : end;

		if (from < end && start < g.end) {
			scan_disarm(e, g.start < start ? start : from, until);
			if (g.start < start)
				g.end = start;
			else if (g.start < until)
				g.start = until;
			if (g.start >= start)
				g.lead_pages = 0;
		}
		if (g.start < g.end)
			s->region[kept++] = g;
	}
	s->regions = kept;
}

static void look_whole(struct proc_scan *s, struct scan_chunk *k, uint32_t now)
{
	k->whole = true;
	scan_due_now(s, k, now);
}

/* --- what is merged -------------------------------------------------------------- */

static void note_chunk(struct proc_engine *e, struct scan_chunk *k, uint64_t at, uint64_t end,
		       bool all)
{
	struct proc_scan *s = e->scan;
	uint32_t now = scan_now_msec(s, sys_now_usec());
	unsigned news = 0;

	for (; at < end; at += e->page_bytes) {
		uint32_t i = (uint32_t)((at - k->base) >> e->page_shift);
		struct core_pages_group *g = all ? scan_group_make(s, k, i / CORE_PAGES_GROUP)
						 : scan_group(s, k, i / CORE_PAGES_GROUP);
		enum core_page_state was;

		if (!g)
			continue;
		was = core_page_state(g, i % CORE_PAGES_GROUP);
		if ((!all && was == CORE_PAGE_GONE) || !core_page_stays(g, i % CORE_PAGES_GROUP, now))
			continue;
		/* Counted at once: sweep() goes by it. */
		k->pages[was] -= k->pages[was] > 0;
		k->pages[CORE_PAGE_MERGED]++;
		news++;
	}
	if (news)
		look_whole(s, k, now);
}

/*
 * Mappings of the store: what is known as merged there is so still. What else is there was
 * merged for a caller, for the parent of a fork, or in another broker's time. `all`: it is
 * watched from now on, or nobody would notice what is written there.
 */
static void note_run(struct proc_engine *e, uint64_t start, uint64_t end, bool all)
{
	uint64_t size = scan_chunk_bytes(e), at = start;

	while (at < end) {
		uint64_t base = at & ~(size - 1), until = base + size < end ? base + size : end;
		struct scan_chunk *k = scan_chunk_at(e->scan, base);

		if (!k && all)
			k = scan_chunk_make(e->scan, base);
		if (k)
			note_chunk(e, k, at, until, all);
		at = until;
	}
}

/* False: no memory. */
static bool add_alike(struct proc_scan *s, uint64_t start, uint64_t end, int prot, uint32_t odd)
{
	struct scan_region *last = s->regions ? &s->region[s->regions - 1] : NULL;

	if (last && last->end == start && last->prot == prot && last->odd == odd) {
		last->end = end;
		return true;
	}
	if (!scan_room((void **)&s->region, s->regions, &s->regions_room, sizeof(*s->region)))
		return false;
	s->region[s->regions++] = (struct scan_region){ start, end, (uint16_t)prot, 0, odd };
	return true;
}

static void note_lead(struct reading *r, uint64_t start)
{
	struct scan_region *last = &r->s->region[r->s->regions - 1];
	uint64_t end;

	if (last->start != start)
		return;
	proc_mem_lock_engine();
	last->lead_pages = (uint16_t)(proc_mem_lead(start, &end) >> r->e->page_shift);
	proc_mem_unlock_engine();
}

/*
 * What is merged has the advice that it came with, and gets it back at home. The memory before
 * it may have another (I5).
 */
static bool add(struct reading *r, const struct sys_vma *v, uint64_t start, uint64_t end)
{
	bool added = true;

	if (!proc_vma_is_run(v)) {
		added = add_alike(r->s, start, end, v->prot, proc_pass_odd_flags(v->flags));
		if (added)
			note_lead(r, start);
		return added;
	}
	while (added && start < end) {
		uint64_t until;
		uint32_t odd;

		proc_mem_lock_engine();
		until = proc_mem_odd_span(start, end, &odd);
		proc_mem_unlock_engine();
		added = add_alike(r->s, start, until, v->prot, odd);
		if (added)
			note_run(r->e, start, until, true);
		start = until;
	}
	return added;
}

/*
 * Somebody has registered it for tracking writes. What was in a region before, we have. Else
 * we would be refused, if it was the program, in a way that we did not see; and then a look
 * would take from it what it wants to know.
 */
static bool registered_by_us(const struct reading *r, uint64_t start, uint64_t end)
{
	const struct scan_region *old = r->s->old;
	uint32_t i = first_after(old, r->old, start);

	if (i < r->old && old[i].start <= start && end <= old[i].end)
		return true;
	return scan_register(r->e, start, end) == 0;
}

static void take(struct reading *r, const struct sys_vma *v, uint64_t start, uint64_t end)
{
	uint64_t ex_start, ex_end;

	while (start < end && proc_mem_excluded(start, end, &ex_start, &ex_end)) {
		if (ex_start > start)
			take(r, v, start, ex_start);
		start = ex_end < end ? ex_end : end;
	}
	if (start >= end || ((v->flags & SYS_VMF(uw)) && !registered_by_us(r, start, end)))
		return;
	if (add(r, v, start, end) && r->s->wp && v->anonymous && !(v->flags & SYS_VMF(uw)) &&
	    scan_register(r->e, start, end) == 0) {
		scan_protect(r->e, start, end);
		scan_unwatched(r->s, start, end, r->e->page_shift);
	}
}

/* `from` on: what comes before is in the list already. */
static void take_owned(struct reading *r, const struct sys_vma *v, uint64_t from)
{
	struct core_range *owned = r->e->work->owned;
	uint64_t at = from;
	size_t n;

	do {
		proc_mem_lock_engine();
		n = proc_mem_owned_copy(at, owned, PROC_OWNED_MAX);
		proc_mem_unlock_engine();
		for (size_t i = 0; i < n && owned[i].start < v->end; i++) {
			uint64_t start = owned[i].start > at ? owned[i].start : at;

			at = owned[i].end < v->end ? owned[i].end : v->end;
			if (proc_pass_wanted(r->e, owned[i].attr))
				take(r, v, start, at);
		}
	} while (n == PROC_OWNED_MAX && owned[n - 1].end < v->end);
}

/* --- what was given up ------------------------------------------------------- */

/*
 * Merged memory that was discarded or unmapped is not merged any more, and what comes there
 * next is new. Chunks that lie in no region at all are looked at once more, and go.
 */
static void sweep(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t size = scan_chunk_bytes(e);
	uint32_t now = scan_now_msec(s, sys_now_usec());

	for (uint32_t c = 0; c < s->chunks; c++) {
		struct scan_chunk *k = &s->chunk[c];
		uint32_t r = scan_region_after(s, k->base);
		unsigned gone = 0;

		/* By the kernel it is merged where it is: the next look sees what became of it. */
		if (!e->kernel && (k->pages[CORE_PAGE_MERGED] || k->pages[CORE_PAGE_BROKEN]))
			for (unsigned i = 0; i < SCAN_GROUPS; i++)
				if (k->group[i])
					gone += core_pages_sweep(scan_group(s, k, i));
		if (r < s->regions && s->region[r].start < k->base + size && !gone)
			continue;
		look_whole(s, k, now);
	}
}

/* --- reading ---------------------------------------------------------- */

/* Between two reads. Who posted a call, or asks by way of the broker, has to wait in any case. */
static void let_others(struct reading *r)
{
	uint64_t now = sys_now_usec(), then = now;

	if (now - r->busy_since_usec < BUSY_USEC)
		return;
	if (!atomic_load(&r->e->call_posted)) {
		struct pollfd broker = { .fd = r->e->link->poll_fd, .events = POLLIN };

		(void)sys->poll(&broker, 1, PAUSE_MSEC);
		then = sys_now_usec();
	}
	r->paused_usec += then - now;
	r->busy_since_usec = then;
}

/*
 * The kernel lists mappings piece by piece, and one that has grown downwards between two pieces
 * begins before the end of the last one. The regions are in order, and do not overlap.
 */
static int each(const struct sys_vma *v, void *arg)
{
	struct reading *r = arg;
	bool run = proc_vma_is_run(v);
	uint64_t from = v->start > r->reached ? v->start : r->reached;

	let_others(r);
	if (atomic_load(&r->e->state) == PROC_CLOSING)
		return 1;
	if (v->end <= from)
		return 0;
	r->reached = v->end;
	if (run)
		note_run(r->e, v->start, v->end, false);
	if (v->shared || !(v->anonymous || run) ||
	    (v->prot & (PROT_READ | PROT_WRITE)) != (PROT_READ | PROT_WRITE))
		return 0;
	/* Of what is merged, too: homecoming gives back what advice says, no lock and no key. */
	if ((r->e->kernel ? proc_kernel_obstacle(v) : proc_pass_obstacle(v)) !=
	    SAMEPAGE_REASON_COUNT)
		return 0;
	take_owned(r, v, from);
	return 0;
}

/*
 * Lock held. Where the program has unmapped or discarded something, what is known may be of
 * pages that are gone; that nothing was written there says nothing. A whole look tells.
 */
static void look_again(struct proc_engine *e, struct core_rangeset *touched, bool *everything)
{
	struct proc_scan *s = e->scan;
	uint32_t now = scan_now_msec(s, sys_now_usec());
	uint64_t size = scan_chunk_bytes(e);
	uint64_t span = 0;
	bool all;

	/* By address where that is less than by what is known. */
	for (size_t i = 0; i < touched->count; i++)
		span += (touched->ranges[i].end - touched->ranges[i].start) / size + 1;
	all = *everything || span > s->chunks;
	for (uint32_t c = 0; all && c < s->chunks; c++)
		look_whole(s, &s->chunk[c], now);
	for (size_t i = 0; !all && i < touched->count; i++) {
		const struct core_range *r = &touched->ranges[i];

		for (uint64_t base = r->start & ~(size - 1); base < r->end; base += size) {
			struct scan_chunk *k = scan_chunk_at(s, base);

			if (k)
				look_whole(s, k, now);
		}
	}
	core_rangeset_free(touched);
	*everything = false;
}

/* Programs that purge (jemalloc's way) do so often: no reason to read all mappings again. */
static void take_discarded(struct proc_engine *e)
{
	struct proc_mem_watch *w = &e->scan->watch;

	proc_mem_lock_engine();
	if (w->discarded.count || w->all_discarded)
		look_again(e, &w->discarded, &w->all_discarded);
	proc_mem_unlock_engine();
}

/* Is it time, and is there a reason? Asks the heap how large it is by now. */
static bool due(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	bool changed;

	if (now < s->regions_at_usec)
		return false;
	proc_mem_lock_engine();
	proc_mem_pass_begins();
	proc_mem_pass_ends();
	changed = s->watch.generation != s->regions_generation || s->armed_uffd != e->uffd;
	if (changed) {
		s->regions_generation = s->watch.generation;
		look_again(e, &s->watch.touched, &s->watch.everything);
	}
	proc_mem_unlock_engine();
	s->regions_at_usec = now + WAIT_LEAST_USEC;
	return changed;
}

/* Different for different regions, but by accident. */
static uint64_t mark_of_regions(const struct proc_scan *s)
{
	uint64_t mark = s->regions;

	for (uint32_t i = 0; i < s->regions; i++)
		mark = (mark ^ s->region[i].start) * 0x9e3779b97f4a7c15ull ^ s->region[i].end;
	return mark;
}

/* The regions so far are s->old, and there are none. How many there were. */
static uint32_t set_aside(struct proc_scan *s)
{
	struct scan_region *empty = s->old;
	uint32_t room = s->old_room, n = s->regions;

	s->old = s->region;
	s->old_room = s->regions_room;
	s->region = empty;
	s->regions_room = room;
	s->regions = 0;
	return n;
}

/*
 * What was in a region and is in none any more is not ours to register: the program may
 * want to do that itself, and writes there would take a fault for nothing.
 */
static void disarm_left(struct proc_engine *e, uint32_t n)
{
	struct proc_scan *s = e->scan;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = scan_region_armed(e, &s->old[i]), end = s->old[i].end;

		while (at < end) {
			uint32_t r = scan_region_after(s, at);
			uint64_t next = r < s->regions ? scan_region_armed(e, &s->region[r]) : end;

			if (next > at)
				scan_disarm(e, at, next < end ? next : end);
			at = r < s->regions ? s->region[r].end : end;
		}
	}
}

void scan_regions_read(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t began = sys_now_usec(), before = mark_of_regions(s), wait;
	struct reading r = { .e = e, .s = s, .busy_since_usec = began };
	bool same_uffd = s->armed_uffd == e->uffd;

	take_discarded(e);
	if (!due(e, began))
		return;
	s->armed_uffd = e->uffd;
	r.old = set_aside(s);
	if (!same_uffd)
		r.old = 0;
	if (sys_smaps_each_gently(0, e->work->maps_buf, sizeof(e->work->maps_buf), each, &r) < 0) {
		s->regions = 0;
		s->regions_generation = UINT64_MAX; /* once more, also if nothing changes */
	} else {
		sweep(e);
	}
	if (s->wp)
		disarm_left(e, r.old);
	s->regions_cost_usec = sys_now_usec() - began - r.paused_usec;
	/* Programs that only move things about are asked less and less often. */
	if (mark_of_regions(s) != before) {
		s->regions_idle = 0;
		scan_all_due(s);
	} else if (s->regions_idle < IDLE_LATEST) {
		s->regions_idle++;
	}
	wait = s->regions_cost_usec * COST_FACTOR + ((uint64_t)WAIT_LEAST_USEC << s->regions_idle);
	s->regions_at_usec = began + r.paused_usec + (wait < WAIT_MOST_USEC ? wait : WAIT_MOST_USEC);
	/* What is a region from now on may have been present before, without a fault since. */
	s->discover_at_usec = 0;
	s->calm.discovered = (uint16_t)(s->calm.gen - 1);
}

/* --- discover ---------------------------------------------------------------- */

/* The first page in [start, end) that is present, or end. */
static uint64_t next_present(struct proc_engine *e, uint64_t start, uint64_t end)
{
	struct sys_page_region found;
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.max_pages = 1,
		.category_inverted = SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_FILE,
		.category_mask = SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_FILE | SYS_PAGE_IS_PRESENT,
		.return_mask = SYS_PAGE_IS_PRESENT,
	};

	return sys->pagemap_scan(e->pagemap_fd, &arg) == 1 ? found.start : end;
}

/*
 * Known chunks are passed by; from the first that is not on the kernel is asked, which
 * finds the next page over terabytes of nothing sooner than we step over them.
 */
static uint32_t discover_region(struct proc_engine *e, const struct scan_region *g)
{
	uint64_t size = scan_chunk_bytes(e), at = g->start;
	uint32_t made = 0;

	while (at < g->end) {
		uint64_t base = at & ~(size - 1);

		if (!scan_chunk_at(e->scan, base)) {
			at = next_present(e, at, g->end);
			base = at & ~(size - 1);
			if (at < g->end && !scan_chunk_at(e->scan, base)) {
				if (!scan_chunk_make(e->scan, base))
					return made;
				made++;
			}
		}
		at = base + size;
	}
	return made;
}

uint32_t scan_discover(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint32_t made = 0, now = scan_now_msec(s, sys_now_usec());
	uint32_t before = s->chunks;

	for (uint32_t i = 0; i < s->regions; i++)
		made += discover_region(e, &s->region[i]);
	for (uint32_t i = before; i < s->chunks; i++)
		scan_due_now(s, &s->chunk[i], now);
	return made;
}
