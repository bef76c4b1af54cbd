/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The background scanner of one engine: ksmd's job, on the engine's thread, in slices
 * between calls and requests (scan.c). What it does:
 *
 *   regions   which memory: owned, wanted, of a kind and with flags that can be merged
 *             (region.c). Read anew when the program changed mappings or advice
 *   tracker   what changed: a look at a chunk of 512 pages (track.c). wp-async: the
 *             region's mappings are registered with the engine's userfaultfd in WP_ASYNC
 *             mode, PAGEMAP_SCAN tells which pages were written and protects them again,
 *             in one step. checksum: the pages are hashed and compared with last time
 *   pages     what is known of each page, and when it is worth a look (core/pages.h)
 *   merging   those that kept still are hashed and looked up; who finds his page in the
 *             standing table of candidates promotes it; who finds it in the index merges
 *             it; the rest is reported to the table and asked about again when somebody
 *             else has reported or published something ("news"). What the table has of us
 *             already is looked for among our own pages (scan_pairs.c)
 *   pace      a ceiling on CPU time, and how long to sleep (core/pace.h); what has not changed
 *             by the count of page faults is passed by (scan_calm.c)
 *
 * States of the scanner: off (e->scan is NULL: never), paused (nothing is registered or
 * looked at), running.
 *
 * No change is missed: what is written between a look and its hash shows in the next look,
 * a freeze leaves the tracking of all that it does not take alone, and what it took and gave
 * back is hashed anew.
 */
#ifndef SAMEPAGE_PROC_SCAN_H
#define SAMEPAGE_PROC_SCAN_H

#include "core/pace.h"
#include "core/pages.h"
#include "core/scan.h"
#include "proc/internal.h"

#define SCAN_GROUPS (PROC_CHUNK_PAGES / CORE_PAGES_GROUP)

/* Memory of one protection and one advice. Store mappings in it belong to it. */
struct scan_region {
	uint64_t start, end;
	uint16_t prot;
	uint16_t lead_pages; /* before start, registered with it (proc_mem_lead) */
	uint32_t odd;
};

struct scan_chunk {
	uint64_t base;
	uint32_t group[SCAN_GROUPS]; /* index + 1; 0: nothing is known, nothing is there */
	uint32_t due_msec;
	uint32_t looks;
	uint32_t seen_msec; /* when it was last asked what is present, so what is written of merged */
	uint16_t pages[CORE_PAGE_STATES];
	uint16_t volatile_pages;
	uint8_t idle; /* the time between looks, doubled so often */
	uint8_t round; /* of the candidate table, lowest bits */
	uint16_t gen;  /* of the calm, when it was last looked at */
	uint8_t vain;  /* looks that found few changes and no merge: the wait, doubled so often */
	bool news : 1;
	bool idling : 1; /* due because it was not looked at for long, and for nothing else */
	bool whole : 1; /* what is known may be of pages that are gone: ask what is present */
	bool huge : 1; /* had huge pages at the last look */
	bool epoch : 1; /* looked at in the full scan that is under way, if as scan->epoch */
};

_Static_assert(sizeof(struct scan_chunk) <= 72, "an eighth of a byte a page and a bit");

/* What the tracker saw of each page of a chunk. */
enum {
	SCAN_PRESENT = 1,
	SCAN_CHANGED = 2,
	SCAN_HUGE = 4,
	SCAN_SWAPPED = 8,
	SCAN_INSIDE = 16, /* of a region */
};

struct scan_look {
	struct scan_chunk *chunk;
	struct core_pages_clock clock;
	struct core_pages_sum sum;
	uint8_t seen[PROC_CHUNK_PAGES];
	uint8_t want[PROC_CHUNK_PAGES]; /* enum scan_want */
	uint32_t wanted, huge_pages, merged;
};

enum scan_want {
	SCAN_REST,
	SCAN_HASH,
	SCAN_PLANNED, /* known; the slot was found by its fingerprint */
	SCAN_TWIN,    /* hashed; would be promoted if its huge page were split */
	SCAN_OWN,     /* hashed; we have reported the same, of this page or another */
};

/*
 * How old the number of mappings may be when some are to be made: ours are added up in between,
 * so it is the program's that count. Where it was not seen to make any and less than half of
 * those that we may have are there (CALM), or when only a look is to be made (IDLE), longer.
 */
#define NEWS_SOON_USEC 2000000u /* after a report */
#define SCAN_COUNT_USEC 200000u
#define SCAN_COUNT_CALM_USEC 2000000u
#define SCAN_COUNT_IDLE_USEC 60000000u

/* scan_calm.c */
struct scan_calm {
	uint64_t faults;     /* of the program's threads, when last asked */
	uint64_t moved_usec; /* when there were last seen to be new ones */
	uint64_t trust_usec; /* then nothing is taken for calm that is not looked at again */
	uint64_t hurry_usec; /* no look out of turn before, */
	uint64_t pause_usec; /* nor when there were faults within so long */
	uint64_t cpu_usec, merged; /* of the scanner, when the last one began */
	uint32_t in_vain;    /* looks out of turn that led to nothing, one after the other */
	uint16_t gen;        /* moves when something may have changed */
	uint16_t discovered; /* when memory was last looked for where there was none */
	bool hurrying;
	bool all;            /* all chunks are calm */
	bool known;          /* there are pages for which news matter */
};

struct proc_scan {
	struct core_scan_config own; /* the program's, by its environment */
	struct core_scan_config set; /* with the broker's and the defaults */
	struct core_scan_counters n;
	struct core_pace pace;
	struct core_pace_memory memory;
	struct proc_mem_watch watch;
	uint64_t began_usec;
	uint64_t wake_usec;     /* nothing to do before */
	uint64_t due_usec;      /* nor then, unless the program changed something */
	uint64_t slice_end_usec;
	uint64_t memory_at_usec; /* when to read `memory` again */
	struct proc_scan_budget budget;
	uint64_t counted_generation; /* of the watch, when mappings were counted */
	bool wp_async; /* the userfaultfd can track writes */
	bool paused, wp, started;
	bool ring_used, ring_kept; /* the ring, or the store, in this round; in one before */
	int armed_uffd; /* the descriptor that regions are registered with */

	struct scan_region *region;
	uint32_t regions, regions_room;
	struct scan_region *old; /* those of the reading before, while there is a new one */
	uint32_t old_room;
	uint64_t regions_generation; /* of the watch, when they were read */
	uint64_t regions_at_usec;    /* not read again before */
	uint64_t regions_cost_usec;
	uint32_t regions_idle;
	uint64_t discover_at_usec;
	uint32_t discover_idle;

	struct scan_chunk *chunk;
	uint32_t chunks, chunks_room;
	uint32_t *slot; /* hash table: chunk number + 1 */
	uint32_t slots;
	struct core_pages_group *group;
	uint32_t groups, groups_room, group_free; /* freed ones are linked through tag[0] */
	uint32_t groups_used;
	uint32_t cursor; /* next chunk of this round through all */
	uint32_t round_due_msec; /* earliest due of those passed in this round */
	uint32_t epoch_seen;
	bool epoch;

	uint64_t news_published, news_twins; /* up to which everything was asked */
	uint64_t news_at_usec;
	uint64_t news_rest_usec; /* not before, when nothing else is to be done */
	uint64_t reported_usec;  /* when we last had something to report */
	uint32_t news_idle;
	uint32_t suspects; /* known pages that may have another of our own; more or less */
	uint64_t pairs_at_usec; /* not looked for before */
	uint64_t home_at_usec; /* broken pages are not brought home before */
	uint32_t home_idle;
	uint32_t home_pieces; /* at most, at once */
	uint32_t fork_nsec_page; /* what a fork costs here; 0: not known yet */
	uint64_t home_from; /* those below have had their turn */
	uint64_t round; /* of the standing table */
	struct scan_calm calm;
	struct scan_look look;
};

static inline uint32_t scan_now_msec(const struct proc_scan *s, uint64_t now_usec)
{
	return (uint32_t)((now_usec - s->began_usec) / 1000);
}

/* The longest time between looks, as the machine's memory is now. */
static inline uint32_t scan_most_msec(const struct proc_scan *s)
{
	return core_pace_most_msec(&s->memory, s->set.most_msec, s->set.first_msec);
}

/* What we have reported others may have as well, and be about to say so. */
static inline bool scan_reported_lately(const struct proc_scan *s, uint64_t now_usec)
{
	return now_usec - s->reported_usec < NEWS_SOON_USEC;
}

static inline uint64_t scan_chunk_bytes(const struct proc_engine *e)
{
	return (uint64_t)PROC_CHUNK_PAGES << e->page_shift;
}

/* Also if this round through all has passed it already. */
static inline void scan_due_now(struct proc_scan *s, struct scan_chunk *k, uint32_t now_msec)
{
	k->due_msec = now_msec;
	if (s->cursor && (int32_t)(now_msec - s->round_due_msec) < 0)
		s->round_due_msec = now_msec;
}

/* chunks.c: the memory of all that */
struct scan_chunk *scan_chunk_at(struct proc_scan *s, uint64_t base); /* NULL: none */
struct scan_chunk *scan_chunk_make(struct proc_scan *s, uint64_t base); /* NULL: no memory */
/* All of them are to be looked at now. */
void scan_all_due(struct proc_scan *s);
/* Nobody watched [start, end) until now: all that is present there is looked at, and soon. */
void scan_unwatched(struct proc_scan *s, uint64_t start, uint64_t end, uint32_t page_shift);
void scan_chunk_free(struct proc_scan *s, uint32_t number); /* the last one takes its place */
struct core_pages_group *scan_group(struct proc_scan *s, const struct scan_chunk *k, unsigned i);
struct core_pages_group *scan_group_make(struct proc_scan *s, struct scan_chunk *k, unsigned i);
void scan_group_free(struct proc_scan *s, struct scan_chunk *k, unsigned i);
/* Room for one more element of an array; false: no memory. */
bool scan_room(void **array, uint32_t count, uint32_t *room, size_t element_bytes);
/* What is hardly used any more goes back; no pointer to a chunk or a group holds after it. */
void scan_shrink(struct proc_scan *s);
void scan_forget_all(struct proc_scan *s);
uint64_t scan_bytes(const struct proc_scan *s);

/* region.c */
void scan_regions_read(struct proc_engine *e);
/* Where what is registered of it begins. */
uint64_t scan_region_armed(const struct proc_engine *e, const struct scan_region *g);
/* The range is not ours any more: no region, not registered. */
void scan_regions_cut(struct proc_engine *e, uint64_t start, uint64_t end);
/* First region that ends after addr; regions: none. */
uint32_t scan_region_after(const struct proc_scan *s, uint64_t addr);
/* Chunks for memory that has become present where there was none. How many. */
uint32_t scan_discover(struct proc_engine *e);

/* scan_home.c: written since their merge, so that they can be merged again */
#define SCAN_HOME_USEC 2000000ull /* not more often */
void scan_home(struct proc_engine *e);

/* track.c */
/* Register what is anonymous in [start, end) and protect it: changes count from here. */
void scan_arm(struct proc_engine *e, uint64_t start, uint64_t end);
/* -EBUSY: it is somebody else's. */
int scan_register(struct proc_engine *e, uint64_t start, uint64_t end);
void scan_disarm(struct proc_engine *e, uint64_t start, uint64_t end);
/* The mapping at addr, or the next one: 0, -ENOENT, -errno. */
int scan_vma_at(struct proc_engine *e, uint64_t addr, struct sys_vma *v);
/* Fill in look->seen. False: nothing changed, and nothing waits. */
bool scan_see(struct proc_engine *e, struct scan_look *look);

/* scan_merge.c: hash, look up, merge what look->want says, and note what came of it */
void scan_merge(struct proc_engine *e, struct scan_look *look);
/* scan_kernel.c: the same where the kernel merges */
void scan_kernel_see(struct proc_engine *e, struct scan_look *look);
void scan_kernel_merge(struct proc_engine *e, struct scan_look *look);
void scan_kernel_count(const struct proc_engine *e, struct core_scan_counters *n);
/* The fingerprints that wait to be reported. */
void scan_reports_send(struct proc_engine *e);
/* Tags that others have reported or published meanwhile. */
void scan_news(struct proc_engine *e);

/* scan_calm.c: whether anything happens */
void scan_calm_reset(struct proc_scan *s);
/* A slice begins: what it looks at is as new as this. */
void scan_calm_slice(struct proc_engine *e, uint64_t now);
/* All of the chunk was asked for, also whether what is merged was written. */
void scan_calm_seen(struct proc_scan *s, struct scan_chunk *k);
bool scan_calm_chunk(const struct proc_scan *s, const struct scan_chunk *k);
void scan_calm_round(struct proc_scan *s);
/* A slice is over, and what it took is counted. */
void scan_calm_spent(struct proc_scan *s, uint64_t now);
/* Nothing is due: is there something to do nevertheless? */
bool scan_calm_stirs(struct proc_engine *e, uint64_t now);
/* Something is due: is there nothing to do nevertheless? Then it is due later. */
bool scan_calm_rests(struct proc_engine *e, uint64_t now);

/* scan_pairs.c: pages of our own that have the same contents */
void scan_suspect(struct proc_scan *s, struct core_pages_group *g, unsigned i);
void scan_pairs(struct proc_engine *e);

#endif
