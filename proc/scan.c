/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * When the scanner does what. scan.h has the theory.
 *
 * A slice: the machine's memory, if it is time; the regions, if something changed; memory
 * that became present; news; then the chunks that are due, until the slice is over, a call
 * or a request waits, or the bucket of CPU time is empty. The next slice is when the first
 * chunk is due again.
 *
 * A chunk is due when the first of its waiting pages has waited long enough; one in which
 * nothing waits, after a time that quadruples from look to look and starts anew when memory
 * is new or was merged.
 */
#include "proc/kernel.h"
#include "proc/scan.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SLICE_USEC 20000u
#define MEMORY_USEC 5000000u
#define DISCOVER_LATEST 7u
#define IDLE_LATEST 10u
#define VAIN_LATEST 5u
#define VAIN_PAGES 32u /* so many are worth a look */
/* Huge pages are hashed to find out whether they changed: much less often. */
#define HUGE_LATER 3u
#define CPU_SLACK_USEC 5000u /* worth waking up for, when the bucket was empty */
#define RETRY_USEC 1000000u
#define PEEK_USEC 1000000u /* how soon advice and new mappings are noticed at the latest */

static const struct core_scan_config defaults = {
	.tracker = CORE_SCAN_TRACKER_WP_ASYNC,
	.cpu_permille = 100,
	.map_percent = 50,
	.first_msec = CORE_SCAN_FIRST_MSEC,
	.most_msec = CORE_SCAN_MOST_MSEC,
	.huge_percent = 12,
};

static uint32_t chosen(uint32_t own, uint32_t brokers, uint32_t otherwise, uint32_t most)
{
	uint32_t value = own ? own : brokers ? brokers : otherwise;

	return value < most ? value : most;
}

/* The program's own wish, else the broker's, else ours. */
static void settle(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	const struct core_scan_config *o = &s->own, *b = &e->link->scan, *d = &defaults;

	s->set.flags = o->flags ? o->flags : b->flags;
	s->set.tracker = chosen(o->tracker, b->tracker, d->tracker, CORE_SCAN_TRACKER_CHECKSUM);
	s->set.cpu_permille = chosen(o->cpu_permille, b->cpu_permille, d->cpu_permille, 1000);
	s->set.map_percent = chosen(o->map_percent, b->map_percent, d->map_percent, 90);
	s->set.first_msec = chosen(o->first_msec, b->first_msec, d->first_msec, 60000);
	s->set.most_msec = chosen(o->most_msec, b->most_msec, d->most_msec, 3600000);
	s->set.huge_percent = chosen(o->huge_percent, b->huge_percent, d->huge_percent, 101);
	s->wp = s->set.tracker == CORE_SCAN_TRACKER_WP_ASYNC && s->wp_async && !e->kernel;
	s->pace.permille = s->set.cpu_permille;
}

/* --- life -------------------------------------------------------------------- */

int proc_scan_new(struct proc_engine *e, const struct core_scan_config *own)
{
	struct proc_scan *s = proc_arena_alloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->own = *own;
	s->began_usec = sys_now_usec();
	s->armed_uffd = -1;
	s->regions_generation = UINT64_MAX;
	s->memory.available_permille = UINT32_MAX;
	core_pace_init(&s->pace, defaults.cpu_permille, s->began_usec);
	scan_calm_reset(s);
	e->scan = s;
	return 0;
}

void proc_scan_free(struct proc_engine *e)
{
	struct proc_mem_guard guard;

	if (!e->scan)
		return;
	proc_mem_lock(&guard);
	if (e->scan->started)
		proc_mem_watch(NULL);
	proc_mem_unlock(&guard);
	scan_forget_all(e->scan);
	proc_arena_free(e->scan, sizeof(*e->scan));
	e->scan = NULL;
}

/*
 * What is known is about another store, or about another process. In a child of fork no
 * system call may be made here that the program does not make itself, not even for the
 * time: a filter may be in force by now.
 */
static void start_over(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;

	scan_forget_all(s);
	s->armed_uffd = -1;
	s->regions_generation = UINT64_MAX;
	scan_calm_reset(s);
	s->regions_at_usec = s->discover_at_usec = s->news_at_usec = s->news_rest_usec = 0;
	s->regions_idle = s->discover_idle = s->news_idle = 0;
	s->news_published = s->news_twins = 0;
	s->suspects = 0;
	s->pairs_at_usec = 0;
	s->home_at_usec = 0;
	s->home_idle = 0;
	s->home_from = 0;
	s->wake_usec = s->due_usec = 0;
}

void proc_scan_forked(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;

	if (!s)
		return;
	start_over(e);
	memset(&s->n, 0, sizeof(s->n));
	core_pace_init(&s->pace, s->pace.permille, s->began_usec);
	s->started = false;
	/* That was said to the parent; what holds for all, the broker says again. */
	s->paused = e->link->paused = false;
}

void proc_scan_uffd(struct proc_engine *e, bool wp_async)
{
	if (!e->scan)
		return;
	e->scan->wp_async = wp_async;
	e->scan->armed_uffd = -1;
}

/* Nobody would notice what is written there: the next reading of mappings does. */
void proc_scan_merged_by_call(struct proc_engine *e)
{
	if (e->scan)
		e->scan->regions_generation = UINT64_MAX;
}

/* What is registered is to be known: the program may want to register it itself. */
static void disarm_all(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;

	for (uint32_t i = 0; s->wp && i < s->regions; i++)
		scan_disarm(e, scan_region_armed(e, &s->region[i]), s->region[i].end);
}

void proc_scan_connected(struct proc_engine *e)
{
	if (!e->scan)
		return;
	disarm_all(e); /* the new settings may be to watch nothing, or in another way */
	settle(e);
	if (e->link->paused)
		e->scan->paused = true;
	start_over(e);
}

void proc_scan_pause(struct proc_engine *e, bool pause)
{
	struct proc_scan *s = e->scan;

	e->link->paused = pause;
	if (!s || s->paused == pause)
		return;
	if (pause)
		disarm_all(e);
	s->paused = pause;
	if (!pause)
		scan_unwatched(s, 0, UINT64_MAX, e->page_shift);
	/* Regions are read anew, and registered. */
	s->armed_uffd = -1;
	s->regions_at_usec = s->discover_at_usec = s->wake_usec = s->due_usec = 0;
}

void proc_scan_leave(struct proc_engine *e, uint64_t start, uint64_t end)
{
	uint64_t size = scan_chunk_bytes(e);

	if (!e->scan || !e->scan->started)
		return;
	scan_regions_cut(e, start, end);
	/* By what is known, not by address: the range may be all there is. Backwards, for
	 * the last one takes the place of one that goes. */
	for (uint32_t i = e->scan->chunks; i-- > 0;)
		if (e->scan->chunk[i].base < end && e->scan->chunk[i].base + size > start)
			scan_chunk_free(e->scan, i);
	e->scan->regions_at_usec = 0;
}

/* --- one chunk ----------------------------------------------------------------- */

/* Which pages are worth a hash? Sums up what there is. */
static void look_at_pages(struct proc_engine *e, struct scan_look *look)
{
	struct proc_scan *s = e->scan;
	struct scan_chunk *k = look->chunk;

	look->sum = (struct core_pages_sum){ .wait_msec = UINT32_MAX };
	look->wanted = 0;
	memset(look->want, SCAN_REST, sizeof(look->want));
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		unsigned g = i / CORE_PAGES_GROUP;
		struct core_page_seen seen = {
			.present = look->seen[i] & SCAN_PRESENT,
			.swapped = look->seen[i] & SCAN_SWAPPED,
			.changed = look->seen[i] & SCAN_CHANGED,
			.before_msec = k->seen_msec,
			/* News is no reason to hash all again. */
			.blind = !k->news && (!s->wp || (look->seen[i] & SCAN_HUGE)),
		};
		struct core_pages_group *group = seen.present ? scan_group_make(s, k, g)
							      : scan_group(s, k, g);

		if (!group)
			continue;
		/* No longer watched: refused, or somebody else's. */
		if (!(look->seen[i] & SCAN_INSIDE))
			core_page_gone(group, i % CORE_PAGES_GROUP);
		if (core_page_look(group, i % CORE_PAGES_GROUP, &seen, &look->clock, &look->sum) ==
		    CORE_PAGE_HASH) {
			look->want[i] = SCAN_HASH;
			look->wanted++;
		}
	}
}

/* After merging: what is in the chunk now. Groups without anything are given back. */
static void count_pages(struct proc_scan *s, struct scan_chunk *k)
{
	memset(k->pages, 0, sizeof(k->pages));
	k->volatile_pages = 0;
	for (unsigned g = 0; g < SCAN_GROUPS; g++) {
		const struct core_pages_group *group = scan_group(s, k, g);
		unsigned gone = 0;

		if (!group)
			continue;
		for (unsigned i = 0; i < CORE_PAGES_GROUP; i++) {
			enum core_page_state state = core_page_state(group, i);

			k->pages[state]++;
			gone += state == CORE_PAGE_GONE;
			k->volatile_pages += state == CORE_PAGE_FRESH &&
					     core_page_level(group, i) >= CORE_PAGES_LEVEL_VOLATILE;
		}
		if (gone == CORE_PAGES_GROUP)
			scan_group_free(s, k, g);
	}
}

static void note_look(struct proc_scan *s, const struct scan_look *look)
{
	const struct core_pages_sum *sum = &look->sum;

	s->n.pages_changed += sum->new_pages + sum->changed_pages + sum->broken;
	s->n.pages_broken += sum->broken;
	s->n.broken_soon += sum->broken_soon;
	s->n.broken_msec += sum->broken_msec;
}

static void schedule(struct proc_scan *s, struct scan_chunk *k, uint32_t now, uint32_t wait,
		     bool busy)
{
	uint32_t most = scan_most_msec(s);
	uint64_t idle;

	if (busy)
		k->idle = 1;
	else if (k->idle < IDLE_LATEST + (k->huge ? HUGE_LATER : 0))
		k->idle += 2;
	if (k->huge)
		most = most > UINT32_MAX >> HUGE_LATER ? most : most << HUGE_LATER;
	idle = (uint64_t)s->set.first_msec << k->idle;
	if (idle > most)
		idle = most;
	k->idling = wait > idle;
	k->due_msec = now + (wait < idle ? wait : (uint32_t)idle);
}

static void count_epoch(struct proc_scan *s, struct scan_chunk *k)
{
	if (k->epoch != s->epoch) {
		k->epoch = s->epoch;
		s->epoch_seen++;
	}
	if (s->epoch_seen < s->chunks)
		return;
	s->n.full_scans++;
	s->epoch = !s->epoch;
	s->epoch_seen = 0;
}

/* A new round of the table: what was reported is forgotten there. */
static void check_round(struct proc_scan *s, struct scan_chunk *k)
{
	if (k->round == (uint8_t)s->round)
		return;
	k->round = (uint8_t)s->round;
	for (unsigned g = 0; g < SCAN_GROUPS; g++)
		if (k->group[g])
			core_pages_unreport(scan_group(s, k, g));
	k->news = true;
}

/*
 * Where single pages are written all over a large memory, each chunk always has one that waits,
 * though each page is hardly ever written. To look for it costs the whole chunk.
 */
static void note_vain(struct scan_chunk *k, const struct scan_look *look)
{
	if (look->sum.new_pages || look->merged)
		k->vain = 0;
	else if (!look->sum.changed_pages || look->sum.changed_pages >= VAIN_PAGES)
		k->vain /= 2;
	else if (k->vain < VAIN_LATEST)
		k->vain++;
}

/* False: the chunk is gone. */
static bool look_at_chunk(struct proc_engine *e, uint32_t number, uint32_t now)
{
	struct proc_scan *s = e->scan;
	struct scan_look *look = &s->look;
	struct scan_chunk *k = &s->chunk[number];
	uint32_t first = s->set.first_msec;
	bool tried;

	k->looks++;
	check_round(s, k);
	count_epoch(s, k);
	if (scan_calm_chunk(s, k)) {
		s->n.pages_skipped += PROC_CHUNK_PAGES;
		schedule(s, k, now, UINT32_MAX, false);
		return true;
	}
	look->chunk = k;
	look->clock = (struct core_pages_clock){ now, first, k->looks };
	look->merged = 0;
	s->n.pages_scanned += PROC_CHUNK_PAGES;
	if (!scan_see(e, look)) {
		schedule(s, k, now, UINT32_MAX, false);
		return true;
	}
	k->whole = false;
	look_at_pages(e, look);
	note_look(s, look);
	k->seen_msec = now;
	k->huge = look->huge_pages > 0;
	tried = look->wanted || k->news;
	if (tried && e->kernel)
		scan_kernel_merge(e, look);
	else if (tried)
		scan_merge(e, look);
	k->news = false;
	count_pages(s, k);
	if (k->pages[CORE_PAGE_GONE] == 0 && !k->pages[CORE_PAGE_FRESH] &&
	    !k->pages[CORE_PAGE_KNOWN] && !k->pages[CORE_PAGE_MERGED] &&
	    !k->pages[CORE_PAGE_ASIDE] && !k->pages[CORE_PAGE_BROKEN]) {
		scan_chunk_free(s, number);
		return false;
	}
	/* What was to be merged, or was hashed blindly for the first time, and waits now. */
	if (tried && look->sum.wait_msec > first &&
	    (k->pages[CORE_PAGE_FRESH] || k->pages[CORE_PAGE_ASIDE]))
		look->sum.wait_msec = first;
	note_vain(k, look);
	if (look->sum.wait_msec < first << k->vain)
		look->sum.wait_msec = first << k->vain;
	schedule(s, k, now, look->sum.wait_msec, look->sum.new_pages || look->merged);
	return true;
}

/* --- slices ------------------------------------------------------------------------ */

static void read_memory(struct proc_scan *s, uint64_t now)
{
	if (now < s->memory_at_usec)
		return;
	s->memory_at_usec = now + MEMORY_USEC;
	sys_memory_state(&s->memory.available_permille, &s->memory.pressure);
}

static void discover(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	uint64_t most = scan_most_msec(s), wait;

	if (now < s->discover_at_usec)
		return;
	/* Without a fault nothing becomes present. */
	if (s->wp && s->calm.discovered == s->calm.gen)
		s->discover_idle = DISCOVER_LATEST;
	else if (scan_discover(e))
		s->discover_idle = 0;
	else if (s->discover_idle < DISCOVER_LATEST)
		s->discover_idle++;
	wait = (uint64_t)s->set.first_msec << s->discover_idle;
	s->discover_at_usec = now + (wait < most ? wait : most) * 1000;
	s->calm.discovered = s->calm.gen;
}

static void new_round(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t round = atomic_load(&e->link->standing.header->round);

	if (round == s->round)
		return;
	s->round = round;
	scan_all_due(s);
}

/* What merges is there for us. */
static bool can_merge(const struct proc_engine *e)
{
	return e->kernel || (!e->no_freeze && e->uffd >= 0);
}

static bool interrupted(struct proc_engine *e)
{
	struct pollfd p = { .fd = e->link->poll_fd, .events = POLLIN };

	if (atomic_load(&e->call_posted) || atomic_load(&e->state) == PROC_CLOSING ||
	    !e->link->connected || !can_merge(e))
		return true;
	return p.fd >= 0 && sys->poll(&p, 1, 0) > 0;
}

/*
 * Waking up costs more than a look, so what is due soon comes along: chunks in which
 * nothing happens are looked at together.
 */
static bool is_due(const struct proc_scan *s, const struct scan_chunk *k, uint32_t now)
{
	uint32_t early = k->idling && k->idle > 2 ? (s->set.first_msec << k->idle) / 4 : 0;

	if (early > s->set.most_msec / 4)
		early = s->set.most_msec / 4;
	return (int32_t)(k->due_msec - now) <= (int32_t)early;
}

/* Chunk by chunk from the cursor on. True: came to the end of the list. */
static bool look_at_chunks(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t usec = sys_now_usec();

	while (s->cursor < s->chunks) {
		uint32_t now = scan_now_msec(s, usec);
		struct scan_chunk *k = &s->chunk[s->cursor];

		if (!is_due(s, k, now)) {
			s->n.pages_skipped += PROC_CHUNK_PAGES;
		} else {
			if (usec >= s->slice_end_usec || interrupted(e))
				return false;
			if (!look_at_chunk(e, s->cursor, now))
				continue;
			usec = sys_now_usec(); /* a system call, on this thread */
			k = &s->chunk[s->cursor];
		}
		if ((int32_t)(k->due_msec - s->round_due_msec) < 0)
			s->round_due_msec = k->due_msec;
		s->cursor++;
	}
	return true;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t next_peek(const struct proc_scan *s, uint64_t now)
{
	return now + (scan_reported_lately(s, now) ? s->set.first_msec * 1000ull : PEEK_USEC);
}

/* When to come back, when all that is due has been looked at. */
static void sleep_until_due(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	/* msec since the start wrap after 49 days, so only the difference says something. */
	int32_t msec = (int32_t)(s->round_due_msec - scan_now_msec(s, now));

	s->wake_usec = least(now + (msec > 0 ? (uint64_t)msec : 0) * 1000, s->discover_at_usec);
	/* What is due a little sooner comes a little later. */
	if (s->wake_usec < now + (uint64_t)s->set.first_msec * 500)
		s->wake_usec = now + (uint64_t)s->set.first_msec * 500;
	s->due_usec = s->wake_usec;
	s->wake_usec = least(s->due_usec, next_peek(s, now));
	s->cursor = 0;
	scan_calm_round(s);
	s->round_due_msec = scan_now_msec(s, now) + s->set.most_msec;
}

void proc_scan_rests(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;

	if (!s)
		return;
	proc_segments_unmap(e);
	if (!s->ring_kept && !s->ring_used)
		return;
	s->ring_kept = s->ring_used = false;
	if (e->link->connected)
		proc_pass_empty_ring(e);
}

/*
 * While one round follows the other, the ring and what maps the store are not given back and
 * made again each time (that was a tenth of the CPU time until all was merged); at rest, or
 * after a round without them, they are.
 */
static void keep_working(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;

	if (!s->ring_used) {
		proc_scan_rests(e);
		return;
	}
	s->ring_kept = true;
	s->ring_used = false;
}

static void work(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	int64_t limit = e->vmas_limit;

	memset(e->work->collided, 0, sizeof(e->work->collided));
	scan_calm_slice(e, now);
	read_memory(s, now);
	scan_regions_read(e);
	discover(e, now);
	new_round(e);
	if (!e->kernel) {
		scan_news(e);
		scan_pairs(e);
		scan_home(e);
	}
	if (look_at_chunks(e)) {
		scan_shrink(s);
		sleep_until_due(e, sys_now_usec());
		keep_working(e);
	} else {
		s->wake_usec = s->due_usec = now;
	}
	scan_reports_send(e);
	e->vmas_limit = limit;
	e->vmas_read_usec = 0; /* that limit was the scanner's */
}

static bool ready(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	struct proc_mem_guard guard;

	if ((e->no_freeze && !e->kernel) || s->paused || !e->link->connected)
		return false;
	if (!can_merge(e) && proc_freeze_setup(e) < 0) {
		s->wake_usec = now + RETRY_USEC;
		return false;
	}
	settle(e);
	if (s->set.flags & CORE_SCAN_OFF)
		return false;
	if (s->started)
		return true;
	proc_mem_lock(&guard);
	proc_mem_watch(&s->watch);
	proc_mem_unlock(&guard);
	sys_give_way();
	s->started = true;
	return true;
}

void proc_scan_slice(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t now = sys_now_usec(), cpu = sys_thread_cpu_usec(), spent;

	if (!s || now < s->wake_usec || !ready(e, now))
		return;
	if (s->watch.generation == s->regions_generation && s->armed_uffd == e->uffd &&
	    (now < s->due_usec ? !scan_calm_stirs(e, now) : scan_calm_rests(e, now))) {
		s->wake_usec = least(s->due_usec, next_peek(s, now));
		return;
	}
	if (!core_pace_may(&s->pace, now)) {
		s->n.held_cpu++;
		s->wake_usec = now + core_pace_wait_usec(&s->pace, now, CPU_SLACK_USEC);
		return;
	}
	if (proc_engine_awake(e) < 0)
		return;
	s->slice_end_usec = now + SLICE_USEC;
	work(e, now);
	spent = sys_thread_cpu_usec() - cpu;
	s->n.cpu_usec += spent;
	core_pace_spend(&s->pace, sys_now_usec(), spent);
	scan_calm_spent(s, now);
}

uint64_t proc_scan_wake_usec(const struct proc_engine *e)
{
	const struct proc_scan *s = e->scan;

	if (!s || s->paused || (e->no_freeze && !e->kernel) || !e->link->connected ||
	    (s->set.flags & CORE_SCAN_OFF))
		return UINT64_MAX;
	return s->wake_usec;
}

void proc_scan_count(const struct proc_engine *e, struct core_scan_counters *n)
{
	const struct proc_scan *s = e->scan;

	memset(n, 0, sizeof(*n));
	n->paused = e->link->paused;
	if (!s || (s->set.flags & CORE_SCAN_OFF))
		return;
	*n = s->n;
	n->tracker = s->wp ? CORE_SCAN_TRACKER_WP_ASYNC : CORE_SCAN_TRACKER_CHECKSUM;
	n->paused = s->paused;
	for (uint32_t i = 0; i < s->chunks; i++) {
		const struct scan_chunk *k = &s->chunk[i];

		n->pages_merged_now += k->pages[CORE_PAGE_MERGED];
		if (s->paused) /* then nothing is watched */
			continue;
		n->pages_unshared_now += k->pages[CORE_PAGE_KNOWN];
		n->pages_volatile_now += k->volatile_pages;
		n->pages_waiting_now += k->pages[CORE_PAGE_FRESH] - k->volatile_pages;
		n->pages_tracked_now += k->pages[CORE_PAGE_FRESH] + k->pages[CORE_PAGE_KNOWN] +
					k->pages[CORE_PAGE_ASIDE] + k->pages[CORE_PAGE_BROKEN];
	}
	n->metadata_bytes = scan_bytes(s);
	if (e->kernel)
		scan_kernel_count(e, n);
}

uint64_t proc_scan_bytes(const struct proc_engine *e)
{
	return e->scan ? scan_bytes(e->scan) : 0;
}

bool proc_scan_touched(const struct proc_engine *e, uint64_t start, uint64_t end)
{
	return proc_mem_watch_touched(&e->scan->watch, start, end);
}

bool proc_scan_watches(const struct proc_engine *e)
{
	return e && e->scan;
}
