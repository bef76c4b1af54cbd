/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Does anything happen at all? The kernel counts page faults, and whoever writes to a page that
 * is protected, merged or not there yet takes one. So one number says that nothing in any
 * chunk has changed, where walking all mappings to see it costs milliseconds for a GiB.
 *
 *   calm      no fault since a chunk was looked at, and nothing waits there: passed by. When
 *             that is so of all, and of what was to be discovered, there is no slice at all
 *   stirred   the number moves after a pause: what is idle is looked at now, not when it is
 *             due. All of it, for the number says not where; but for chunks with huge
 *             pages, which would have to be read. Such looks out of turn take a thousandth
 *             of the time at most; if they lead to no merge, less and less
 *   news      what was published or reported meanwhile is read from the broker's files
 *             without mapping them
 *
 * Not counted are writes by others: process_vm_writev(2), debuggers, a child of vfork. So
 * calm is believed for so many looks, and then everything is looked at. Late is all that it
 * can be: what is merged was compared (I2).
 *
 * A fault is counted when it is done with, after the page table was changed and before the
 * write. Who sees the old number before a look, and the same later, has seen all writes.
 */
#include <sys/resource.h>

#include "proc/scan.h"

#define LOOKS_BELIEVED 8u
#define COST_FACTOR 1000u
#define PAUSE_LEAST_USEC 2000000u
#define IN_VAIN_MOST 5u

void scan_calm_reset(struct proc_scan *s)
{
	s->calm = (struct scan_calm){ .gen = 1, .pause_usec = PAUSE_LEAST_USEC };
}

static void not_calm(struct scan_calm *c)
{
	c->gen++;
	c->all = false;
}

/* Of the program. A fault of our own in between makes it more, and never less. */
static int faults_now(uint64_t *faults)
{
	uint64_t own, all;
	int err = sys->faults(RUSAGE_THREAD, &own);

	if (err == 0)
		err = sys->faults(RUSAGE_SELF, &all);
	if (err == 0)
		*faults = all - own;
	return err;
}

/* Have faults been counted since it was last asked? And for how long had there been none? */
static bool moved(struct scan_calm *c, uint64_t now, uint64_t *paused_usec)
{
	uint64_t faults = 0;
	int err = faults_now(&faults);

	if (err == 0 && faults == c->faults)
		return false;
	not_calm(c);
	*paused_usec = err == 0 ? now - c->moved_usec : 0; /* unknown: as if always */
	c->faults = faults;
	c->moved_usec = now;
	return true;
}

static void hurry(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	struct scan_calm *c = &s->calm;
	uint32_t now_msec = scan_now_msec(s, now);

	if (s->n.pages_merged != c->merged)
		c->in_vain = 0;
	else if (c->in_vain < IN_VAIN_MOST)
		c->in_vain++;
	c->merged = s->n.pages_merged;
	c->cpu_usec = s->n.cpu_usec;
	c->hurrying = true;
	for (uint32_t i = 0; i < s->chunks; i++)
		if (s->chunk[i].idling && !s->chunk[i].huge)
			scan_due_now(s, &s->chunk[i], now_msec);
	s->discover_at_usec = 0;
	s->due_usec = now; /* also if the ceiling on CPU time has none left now */
}

/* Between two rounds, for in the middle of one there is another slice soon enough. */
static bool ask(struct proc_engine *e, uint64_t now)
{
	struct scan_calm *c = &e->scan->calm;
	uint64_t paused;

	if (!moved(c, now, &paused))
		return false;
	if (e->scan->cursor == 0 && paused >= c->pause_usec && now >= c->hurry_usec)
		hurry(e, now);
	return true;
}

void scan_calm_slice(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	struct scan_calm *c = &s->calm;

	c->all = false; /* the slice may end before it came to what has news */
	if (!s->wp)
		return;
	(void)ask(e, now);
	if (now < c->trust_usec)
		return;
	not_calm(c);
	c->trust_usec = now + LOOKS_BELIEVED * scan_most_msec(s) * 1000ull;
}

void scan_calm_seen(struct proc_scan *s, struct scan_chunk *k)
{
	k->gen = s->calm.gen;
}

bool scan_calm_chunk(const struct proc_scan *s, const struct scan_chunk *k)
{
	return s->wp && k->gen == s->calm.gen && k->looks > 1 && k->idling && !k->whole &&
	       !k->news && !k->huge && !k->pages[CORE_PAGE_FRESH] && !k->pages[CORE_PAGE_ASIDE];
}

/* All that is due has been looked at. */
void scan_calm_round(struct proc_scan *s)
{
	struct scan_calm *c = &s->calm;

	c->all = c->discovered == c->gen && !s->suspects;
	c->known = false;
	for (uint32_t i = 0; i < s->chunks; i++) {
		const struct scan_chunk *k = &s->chunk[i];

		c->known |= k->pages[CORE_PAGE_KNOWN] > 0;
		c->all &= scan_calm_chunk(s, k) && !k->pages[CORE_PAGE_BROKEN];
	}
}

void scan_calm_spent(struct proc_scan *s, uint64_t now)
{
	struct scan_calm *c = &s->calm;
	uint64_t pause;

	if (!c->hurrying || s->cursor)
		return;
	c->hurrying = false;
	pause = (s->n.cpu_usec - c->cpu_usec) * COST_FACTOR;
	c->pause_usec = (pause > PAUSE_LEAST_USEC ? pause : PAUSE_LEAST_USEC) << c->in_vain;
	c->hurry_usec = now + c->pause_usec;
}

static bool has_news(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	uint64_t at = scan_reported_lately(s, now) ? s->news_at_usec : s->news_rest_usec;
	struct proc_glance g;

	if (!s->calm.known || now < at || e->kernel)
		return false;
	return proc_link_glance(e->link, &g) == 0 &&
	       (g.published != s->news_published || g.twins != s->news_twins || g.round != s->round);
}

bool scan_calm_stirs(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;

	if (!s->wp || s->cursor)
		return false;
	return (ask(e, now) && s->calm.hurrying) || has_news(e, now);
}

bool scan_calm_rests(struct proc_engine *e, uint64_t now)
{
	struct proc_scan *s = e->scan;
	struct scan_calm *c = &s->calm;

	if (!c->all || !s->wp || now >= c->trust_usec || ask(e, now) || has_news(e, now))
		return false;
	s->n.full_scans++;
	s->n.pages_skipped += (uint64_t)s->chunks * PROC_CHUNK_PAGES;
	s->due_usec = now + scan_most_msec(s) * 1000ull;
	return true;
}
