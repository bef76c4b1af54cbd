/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the scanner knows of each page, and when the page is worth looking at.
 *
 * Six bytes a page, in groups of 64 (a group exists only where pages are present):
 *
 *   gone      not present, or never seen
 *   fresh     new or changed; must stay unchanged for its wait before it is hashed
 *   known     hashed, its fingerprint reported; nobody has the same so far. Where the table
 *             has it of us already (another page of ours, or one that is gone), enum
 *             core_page_pair is kept in place of the time
 *   merged    maps a slot of the store (tag: when that was, in msec)
 *   aside     cannot be merged for now (pinned, shared by fork ...): asked again later
 *   broken    was merged, then written: stays in its mapping of the store
 *
 *              seen             changed             quiet for its wait
 *   gone    -> fresh
 *   fresh                    -> fresh, level up     -> HASH -> known, merged, aside, gone
 *   known                    -> fresh, level up     (news: LOOKUP -> merged)
 *   aside                    -> fresh               -> HASH
 *   merged                   -> broken, level up
 *   broken -> fresh, when it was brought home (anonymous memory again)
 *   any    -> merged or broken, when it turns out to lie in a mapping of the store (of another
 *             broker's time, inherited, or merged for a caller)
 *
 * A page in swap (or on its way from one place in memory to another) keeps what is known
 * of it: it comes back as it was.
 *
 * A page's level is how much longer than the shortest wait it must be still: each level
 * doubles the wait. At level n only every 2^n-th change that is seen counts, so the wait
 * comes to about as long as the page has been changing; and a merge that is broken soon
 * counts double. (When that was is not known exactly: after the last look that saw it
 * whole, which may be long ago. It counts from there.) A page that keeps changing is thus
 * left alone for longer and longer, and one that was written while its program started is
 * merged soon after.
 *
 * Times are in msec and may wrap around: only differences are used, and for fresh and
 * aside pages only eight bits of them, in eighths of the wait. A page that is looked at
 * much too late may have to wait once more; nothing else comes of it.
 */
#ifndef SAMEPAGE_CORE_PAGES_H
#define SAMEPAGE_CORE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#define CORE_PAGES_GROUP 64u
#define CORE_PAGES_LEVEL_MAX 15u
/* A page at this level has been changing for a minute, or was unmerged as often. */
#define CORE_PAGES_LEVEL_VOLATILE 5u
#define CORE_PAGES_SOON_MSEC 10000u

enum core_page_state {
	CORE_PAGE_GONE,
	CORE_PAGE_FRESH,
	CORE_PAGE_KNOWN,
	CORE_PAGE_MERGED,
	CORE_PAGE_ASIDE,
	CORE_PAGE_BROKEN,
	CORE_PAGE_STATES
};

struct core_pages_group {
	uint32_t tag[CORE_PAGES_GROUP];
	uint8_t when[CORE_PAGES_GROUP];
	uint8_t state[CORE_PAGES_GROUP]; /* 3 bits of state, 1 reported, 4 of level */
};

/* Of a known page: is there another of our own? */
enum core_page_pair {
	CORE_PAGE_ALONE,
	CORE_PAGE_SUSPECT, /* the table has it of us: to be looked for */
	CORE_PAGE_TWIN,    /* there is */
	CORE_PAGE_CHECKED, /* there was none, or it is that one's turn */
};

/* What one look of the tracker saw of a page. */
struct core_page_seen {
	bool present; /* anonymous, not the zero page, not in swap */
	bool swapped; /* in swap */
	bool changed; /* since the look before; with blind: not known */
	bool blind;   /* the tracker cannot tell: hash, and compare with the tag */
	uint32_t before_msec; /* when it was last looked at to see whether it is present */
};

enum core_page_want {
	CORE_PAGE_REST,
	CORE_PAGE_HASH,   /* read, hash, then core_page_hashed() */
};

struct core_pages_clock {
	uint32_t now_msec;
	uint32_t first_msec; /* the wait at level 0 */
	uint32_t looks;      /* number of this look at the chunk */
};

/* Sums over a chunk, and how long until one of its pages is worth another look. */
struct core_pages_sum {
	uint32_t pages[CORE_PAGE_STATES];
	uint32_t volatile_pages; /* of the fresh: at a high level */
	uint32_t new_pages, changed_pages, broken, broken_soon;
	uint64_t broken_msec;
	uint32_t wait_msec; /* UINT32_MAX: nothing waits */
};

static inline enum core_page_state core_page_state(const struct core_pages_group *g, unsigned i)
{
	return (enum core_page_state)(g->state[i] & 7);
}

static inline unsigned core_page_level(const struct core_pages_group *g, unsigned i)
{
	return g->state[i] >> 4;
}

static inline bool core_page_reported(const struct core_pages_group *g, unsigned i)
{
	return g->state[i] & 8;
}

static inline enum core_page_pair core_page_pair(const struct core_pages_group *g, unsigned i)
{
	return core_page_state(g, i) == CORE_PAGE_KNOWN ? (enum core_page_pair)g->when[i]
							: CORE_PAGE_ALONE;
}

uint32_t core_pages_wait_msec(const struct core_pages_clock *c, unsigned level);
/* One page of a look. Adds to *sum. */
enum core_page_want core_page_look(struct core_pages_group *g, unsigned i,
				   const struct core_page_seen *seen,
				   const struct core_pages_clock *c, struct core_pages_sum *sum);

/*
 * A page that was wanted has been hashed. True: it is the same as when it was hashed
 * before, or the tracker had said that it did not change: go on with it. False (blind
 * only): it changed, or was never hashed before; it stays fresh.
 */
bool core_page_hashed(struct core_pages_group *g, unsigned i, uint32_t tag, bool blind,
		      const struct core_pages_clock *c);
/* What became of it. */
void core_page_known(struct core_pages_group *g, unsigned i, bool reported);
void core_page_pair_is(struct core_pages_group *g, unsigned i, enum core_page_pair pair);
void core_page_merged(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
void core_page_aside(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
void core_page_changed(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
void core_page_home(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
void core_page_gone(struct core_pages_group *g, unsigned i);
/* It was to be merged, and lies in a mapping of the store: somebody wrote to it there. */
void core_page_broken(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
/*
 * When mappings are read anew: those that the store is still mapped for stay, the other
 * merged and broken ones have been given up by the program meanwhile. How many. True: it was
 * not known to be merged; since when, nobody knows, and the next look tells whether it is
 * written.
 */
bool core_page_stays(struct core_pages_group *g, unsigned i, uint32_t now_msec);
unsigned core_pages_sweep(struct core_pages_group *g);
/* For how long a fresh page has not changed, as far as eight bits tell. */
uint32_t core_page_still_msec(const struct core_pages_group *g, unsigned i,
			      const struct core_pages_clock *c);
/* Nobody has watched it for a while: what was known may have changed, and is hashed again. */
void core_page_unwatched(struct core_pages_group *g, unsigned i, const struct core_pages_clock *c);
/* A new round of the candidate table: everything is to be reported again. */
void core_pages_unreport(struct core_pages_group *g);

#endif
