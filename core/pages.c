/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* States and waits of pages; pages.h has the theory. */
#include "core/pages.h"

#define STATE_MASK 7u
#define REPORTED 8u
#define LEVEL_SHIFT 4
#define WAIT_MAX_MSEC (60u * 60u * 1000u)
#define EIGHTHS 8u

_Static_assert(sizeof(struct core_pages_group) == 6 * CORE_PAGES_GROUP, "six bytes a page");

uint32_t core_pages_wait_msec(const struct core_pages_clock *c, unsigned level)
{
	uint64_t wait = (uint64_t)c->first_msec << level;

	return wait < WAIT_MAX_MSEC ? (uint32_t)wait : WAIT_MAX_MSEC;
}

static uint32_t unit_msec(const struct core_pages_clock *c, unsigned level)
{
	uint32_t unit = core_pages_wait_msec(c, level) / EIGHTHS;

	return unit ? unit : 1;
}

static void set(struct core_pages_group *g, unsigned i, enum core_page_state state, unsigned level)
{
	g->state[i] = (uint8_t)((unsigned)state | (g->state[i] & REPORTED) | level << LEVEL_SHIFT);
}

static void stamp(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	g->when[i] = (uint8_t)(c->now_msec / unit_msec(c, core_page_level(g, i)));
}

static unsigned eighths_since(const struct core_pages_group *g, unsigned i,
			      const struct core_pages_clock *c)
{
	uint32_t now = c->now_msec / unit_msec(c, core_page_level(g, i));

	return (uint8_t)(now - g->when[i]);
}

static unsigned level_up(unsigned level, unsigned by)
{
	return level + by < CORE_PAGES_LEVEL_MAX ? level + by : CORE_PAGES_LEVEL_MAX;
}

/* Does this change count? At level n every 2^n-th does. */
static unsigned level_after_change(const struct core_pages_group *g, unsigned i,
				   const struct core_pages_clock *c)
{
	unsigned level = core_page_level(g, i);

	return c->looks & ((1u << level) - 1) ? level : level_up(level, 1);
}

static void becomes_fresh(struct core_pages_group *g, unsigned i, unsigned level,
			  const struct core_pages_clock *c)
{
	set(g, i, CORE_PAGE_FRESH, level);
	stamp(g, i, c);
}

static void becomes_broken(struct core_pages_group *g, unsigned i, unsigned levels,
			   const struct core_pages_clock *c)
{
	set(g, i, CORE_PAGE_BROKEN, level_up(core_page_level(g, i), levels));
	g->state[i] &= (uint8_t)~REPORTED;
	g->tag[i] = 0;
	stamp(g, i, c);
}

static void note_broken(struct core_pages_group *g, unsigned i, const struct core_page_seen *seen,
			const struct core_pages_clock *c, struct core_pages_sum *sum)
{
	/* For how long it was seen to be. */
	uint32_t since_merge = c->now_msec - g->tag[i], unseen = c->now_msec - seen->before_msec;
	uint32_t merged_for = since_merge > unseen ? since_merge - unseen : 0;
	bool soon = merged_for < CORE_PAGES_SOON_MSEC;

	sum->broken++;
	sum->broken_soon += soon;
	sum->broken_msec += merged_for;
	becomes_broken(g, i, soon ? 2 : 1, c);
}

static void note_wait(struct core_pages_sum *sum, uint32_t msec)
{
	if (msec < sum->wait_msec)
		sum->wait_msec = msec;
}

/* Of a page that waits: is its time over? */
static bool waited(const struct core_pages_group *g, unsigned i, const struct core_pages_clock *c,
		   struct core_pages_sum *sum)
{
	unsigned since = eighths_since(g, i, c);

	if (since >= EIGHTHS)
		return true;
	note_wait(sum, (EIGHTHS - since) * unit_msec(c, core_page_level(g, i)));
	return false;
}

static void note_change(struct core_pages_group *g, unsigned i, const struct core_page_seen *seen,
			const struct core_pages_clock *c, struct core_pages_sum *sum)
{
	switch (core_page_state(g, i)) {
	case CORE_PAGE_GONE:
		sum->new_pages++;
		g->tag[i] = 0;
		g->state[i] = 0;
		becomes_fresh(g, i, 0, c);
		break;
	case CORE_PAGE_MERGED:
		/* It is present as a page of its own, whatever the tracker says. */
		note_broken(g, i, seen, c, sum);
		break;
	case CORE_PAGE_FRESH:
	case CORE_PAGE_KNOWN:
	case CORE_PAGE_ASIDE:
		if (!seen->changed)
			break;
		sum->changed_pages++;
		becomes_fresh(g, i, level_after_change(g, i, c), c);
		break;
	default:
		break;
	}
}

/* Anonymous memory that something is known of. */
static bool is_own(const struct core_pages_group *g, unsigned i)
{
	enum core_page_state state = core_page_state(g, i);

	return state == CORE_PAGE_FRESH || state == CORE_PAGE_KNOWN || state == CORE_PAGE_ASIDE ||
	       state == CORE_PAGE_BROKEN;
}

enum core_page_want core_page_look(struct core_pages_group *g, unsigned i,
				   const struct core_page_seen *seen,
				   const struct core_pages_clock *c, struct core_pages_sum *sum)
{
	enum core_page_want want = CORE_PAGE_REST;
	enum core_page_state state;

	if (seen->swapped && is_own(g, i)) {
		sum->pages[core_page_state(g, i)]++;
		return CORE_PAGE_REST;
	}
	if (!seen->present) {
		/* A merged page that nobody has written is none of its own. */
		if (core_page_state(g, i) != CORE_PAGE_MERGED)
			core_page_gone(g, i);
		sum->pages[core_page_state(g, i)]++;
		return CORE_PAGE_REST;
	}
	note_change(g, i, seen, c, sum);
	state = core_page_state(g, i);
	sum->pages[state]++;
	sum->volatile_pages += state == CORE_PAGE_FRESH &&
			       core_page_level(g, i) >= CORE_PAGES_LEVEL_VOLATILE;
	if ((state == CORE_PAGE_FRESH || state == CORE_PAGE_ASIDE) && waited(g, i, c, sum))
		want = CORE_PAGE_HASH;
	/* Only its bytes tell whether it has changed. */
	if (state == CORE_PAGE_KNOWN && seen->blind)
		want = CORE_PAGE_HASH;
	return want;
}

bool core_page_hashed(struct core_pages_group *g, unsigned i, uint32_t tag, bool blind,
		      const struct core_pages_clock *c)
{
	bool same = g->tag[i] == tag && tag != 0, first = g->tag[i] == 0;
	unsigned level = core_page_level(g, i);

	g->tag[i] = tag;
	if (!same) {
		g->state[i] &= (uint8_t)~REPORTED;
		core_page_pair_is(g, i, CORE_PAGE_ALONE);
	}
	if (same || !blind)
		return true;
	/* Asked only after its wait: each change that is found counts. */
	if (!first)
		level = core_page_state(g, i) == CORE_PAGE_KNOWN ? level_after_change(g, i, c)
								 : level_up(level, 1);
	becomes_fresh(g, i, level, c);
	return false;
}

void core_page_known(struct core_pages_group *g, unsigned i, bool reported)
{
	if (core_page_state(g, i) != CORE_PAGE_KNOWN)
		g->when[i] = CORE_PAGE_ALONE;
	set(g, i, CORE_PAGE_KNOWN, core_page_level(g, i));
	if (reported)
		g->state[i] |= REPORTED;
}

void core_page_pair_is(struct core_pages_group *g, unsigned i, enum core_page_pair pair)
{
	if (core_page_state(g, i) == CORE_PAGE_KNOWN)
		g->when[i] = (uint8_t)pair;
}

void core_page_merged(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	set(g, i, CORE_PAGE_MERGED, core_page_level(g, i));
	g->state[i] &= (uint8_t)~REPORTED;
	g->tag[i] = c->now_msec;
}

void core_page_aside(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	set(g, i, CORE_PAGE_ASIDE, level_up(core_page_level(g, i), 1));
	stamp(g, i, c);
}

void core_page_changed(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	becomes_fresh(g, i, level_after_change(g, i, c), c);
}

void core_page_home(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	becomes_fresh(g, i, core_page_level(g, i), c);
}

void core_page_gone(struct core_pages_group *g, unsigned i)
{
	g->state[i] = CORE_PAGE_GONE;
	g->tag[i] = 0;
}

/* Of merged and broken pages nothing is reported: the bit is free. */
static bool is_in_store(const struct core_pages_group *g, unsigned i)
{
	enum core_page_state state = core_page_state(g, i);

	return state == CORE_PAGE_MERGED || state == CORE_PAGE_BROKEN;
}

void core_page_broken(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	becomes_broken(g, i, 1, c);
}

bool core_page_stays(struct core_pages_group *g, unsigned i, uint32_t now_msec)
{
	bool news = !is_in_store(g, i);

	if (news) {
		set(g, i, CORE_PAGE_MERGED, core_page_level(g, i));
		/* Not soon, if it was written since. */
		g->tag[i] = now_msec - CORE_PAGES_SOON_MSEC;
	}
	g->state[i] |= REPORTED;
	return news;
}

unsigned core_pages_sweep(struct core_pages_group *g)
{
	unsigned gone = 0;

	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++) {
		if (!is_in_store(g, i))
			continue;
		if (g->state[i] & REPORTED) {
			g->state[i] &= (uint8_t)~REPORTED;
		} else {
			core_page_gone(g, i);
			gone++;
		}
	}
	return gone;
}

uint32_t core_page_still_msec(const struct core_pages_group *g, unsigned i,
			      const struct core_pages_clock *c)
{
	return eighths_since(g, i, c) * unit_msec(c, core_page_level(g, i));
}

void core_page_unwatched(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c)
{
	if (core_page_state(g, i) == CORE_PAGE_KNOWN || core_page_state(g, i) == CORE_PAGE_ASIDE)
		becomes_fresh(g, i, core_page_level(g, i), c);
}

void core_pages_unreport(struct core_pages_group *g)
{
	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++)
		g->state[i] &= (uint8_t)~REPORTED;
}
