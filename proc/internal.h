/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of this room share. See engine.h and mem.h for the theory. */
#ifndef SAMEPAGE_PROC_INTERNAL_H
#define SAMEPAGE_PROC_INTERNAL_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/candidates.h"
#include "core/index.h"
#include "core/plan.h"
#include "core/reason.h"
#include "core/wire.h"
#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/ksm.h"
#include "sys/maps.h"
#include "sys/sys.h"

/*
 * A chunk is what is looked at, planned and frozen together: one huge page's
 * worth where a page is 4 KiB, so that a huge page moves to staging and back
 * whole.
 */
#define PROC_CHUNK_PAGES 512u
/*
 * Runs from this length on are mapped elsewhere first, populated, compared
 * through that mapping and moved over the hole: cheaper by 0.2 us a page, and the
 * program's first read takes no fault. Shorter ones cost more that way (measured:
 * 1.0 against 0.5 us at runs of 8, 0.2 against 0.4 at 64).
 */
#define PROC_PREMAP_PAGES 32u
#define PROC_READ_PAGES 64u /* read, hashed and looked up together, while in the L2 cache */
/*
 * Of the ring: read before what waits in it is submitted (a broker on another CPU is woken
 * once for all of them); and all of it, where a whole chunk is read before anything is.
 */
#define PROC_TURN_PAGES 256u
#define PROC_RING_PAGES PROC_CHUNK_PAGES
#define PROC_OWNED_MAX 512u
#define PROC_PAIRS_ROOM 32768u
#define PROC_SEGMENTS_FEW 4u
#define PROC_ABSENT 0xff /* plan[].reason of a page that is not present: not looked at */

/* How the engine reaches the store; the fields are filled in by connect(). */
#define PROC_LINK_BYTES 400 /* of a broker's: room in the library's one page of data */
struct proc_link {
	const struct proc_link_ops *ops;
	bool connected;
	bool paused; /* the scanner is to rest; of the last PAUSE, UNMERGE, RESUME or WELCOME */
	struct core_index index;
	struct core_cand cand;     /* of rounds */
	struct core_cand standing; /* of scanners */
	unsigned who;              /* our number there */
	struct core_scan_config scan; /* what the broker says; all 0 without one */
	uint8_t *ring; /* PROC_RING_PAGES pages */
	int poll_fd;   /* readable when the broker wants something, or -1 */
	int uffd_dev;  /* an open /dev/userfaultfd from the broker, or -1 */
};

/* What of the store moves when others publish or report something. */
struct proc_glance {
	uint64_t published, twins, round;
};

int proc_link_glance(struct proc_link *link, struct proc_glance *glance);

enum proc_mode {
	PROC_MODE_LOOK,      /* report fingerprints, merge nothing */
	PROC_MODE_CANDIDATE, /* promote what was seen twice */
	PROC_MODE_SYNC,      /* promote at once */
	PROC_MODE_SCAN,      /* the scanner decides (scan_merge.c) */
};

/*
 * Pages on hold (hold.c): a pipe that can keep references to `pages` of them; 0: not
 * set up.
 */
struct proc_hold {
	unsigned pages;
	int pipe[2];
	int mem_fd; /* /proc/self/mem */
};

/* A segment of the store, as this client holds it. */
struct proc_segment {
	int fd; /* -1: not fetched */
	const uint8_t *map; /* read-only, for comparisons; NULL: not mapped */
};

/* One protection's staging area (UFFDIO_MOVE wants equal access flags). */
struct proc_staging {
	uint8_t *base; /* PROC_CHUNK_PAGES pages, aligned to the chunk's size */
	bool dirty;    /* a drop failed: try again before the next use */
};

/* Working memory of the engine's thread: own mapping, excluded from merging. */
struct proc_work {
	struct sys_page_region regions[PROC_CHUNK_PAGES];
	uint64_t entries[PROC_CHUNK_PAGES]; /* of /proc/self/pagemap */
	struct core_range owned[PROC_OWNED_MAX];
	struct core_plan_page plan[PROC_CHUNK_PAGES];
	struct core_plan_run runs[PROC_CHUNK_PAGES];
	uint32_t tag[PROC_CHUNK_PAGES];
	const uint8_t *bytes[PROC_CHUNK_PAGES]; /* the slot that a planned page shall map */
	uint8_t staged[PROC_CHUNK_PAGES];
	uint8_t collided[PROC_CHUNK_PAGES]; /* planned slot has the tag, not the bytes */
	uint32_t collisions;
	uint8_t *premap[PROC_CHUNK_PAGES]; /* of a run's first page: mapped beforehand */
	uint32_t premap_pages[PROC_CHUNK_PAGES];
	struct proc_stretch {
		uint16_t first, end;
	} stretch[PROC_CHUNK_PAGES / 2 + 1]; /* of planned pages */
	uint32_t misses; /* pages in the ring that wait to be submitted */
	uint16_t miss[PROC_RING_PAGES];
	uint16_t ring_page[PROC_RING_PAGES];
	uint32_t miss_slot[PROC_RING_PAGES];
	uint8_t miss_reason[PROC_RING_PAGES];
	uint32_t tags_out[CORE_WIRE_TAGS_MAX];
	uint32_t pair_tag[PROC_PAIRS_ROOM]; /* scan_pairs.c; 0: empty */
	uint8_t pair_seen[PROC_PAIRS_ROOM];
	char maps_buf[65536];
	char count_buf[16384]; /* for a walk inside a walk */
	_Alignas(8) uint8_t packet[CORE_WIRE_BYTES_MAX];
};

enum proc_call_kind {
	PROC_CALL_NONE,
	PROC_CALL_MERGE,
	PROC_CALL_STATS,
	PROC_CALL_STOP_FREEZING,
	PROC_CALL_HOME,
	PROC_CALL_LEAVE,
};

/* The mailbox: one call at a time, guarded by call_lock. */
struct proc_call {
	enum proc_call_kind kind;
	uint64_t start, end;
	uint32_t want; /* enum proc_want */
	union { /* by kind */
		struct samepage_result result;
		struct samepage_stats stats;
	};
	int error;
	_Atomic uint32_t done; /* futex: 1 when the answer is there */
};

enum proc_state { PROC_STARTING, PROC_IDLE, PROC_CLOSING, PROC_DEAD };

struct proc_engine {
	struct proc_engine_params params;
	struct proc_engine *next; /* registry, under the memory lock */

	_Atomic uint32_t state;     /* enum proc_state; futex while STARTING */
	_Atomic uint32_t call_lock; /* futex mutex over `call` */
	_Atomic uint32_t call_posted;
	_Atomic uint32_t may_end; /* nobody will send the thread a signal any more */
	struct proc_call call;
	pthread_t thread;
	pid_t tid;
	int start_error;
	bool joinable; /* the thread is there to be joined */
	_Atomic bool no_freeze; /* for good: proc_engine_stop_freezing() */
	_Atomic bool kernel;    /* MADV_MERGE is the primitive (kernel.h); written by the thread */
	bool retired;   /* for good: proc_engine_retire(); under call_lock */
	uint8_t *stack; /* of the thread: own mapping with a guard page */
	size_t stack_bytes;

	/* All below: the engine's thread only. */
	struct proc_link *link;
	struct proc_work *work;
	bool rested; /* since it was awake last */
	bool have_procmap_query;
	int sigfd;
	int uffd; /* -1: no freeze is possible here */
	struct proc_scan *scan; /* NULL: no background scanning */
	int pagemap_fd;
	bool no_pagemap_scan; /* this kernel has none */
	int maps_fd; /* for PROCMAP_QUERY */
	int ksm_fd;  /* ksm_stat, with e->kernel; else -1 */
	int mem_fd;  /* the process's memory, read without pins; -1: it is not to be had */
	struct sys_ksm_stat ksm; /* as counted so far */
	struct proc_hold hold;
	struct proc_staging staging[2]; /* [0] rw-, [1] rwx */
	struct proc_segment *segments;
	uint32_t segments_count; /* numbers that there can be */
	uint32_t segments_room;  /* numbers that the table has room for */
	struct proc_segment segments_few[PROC_SEGMENTS_FEW];
	size_t segments_bytes; /* of each */
	uint64_t segments_changes; /* of the process's memory, when they were trimmed last */
	bool segments_fetched;     /* one more since then */
	uint32_t page_shift;
	uint32_t tags_count; /* in work->tags_out */
	uint32_t reconnect_wait_usec;
	uint64_t page_bytes;
	uint64_t zero_hash;
	uint64_t reconnect_at_usec;
	int64_t vmas_limit;    /* I8 */
	int64_t vmas_now;      /* upper estimate during a pass */
	uint64_t vmas_read_usec; /* when both were read */
	struct samepage_stats stats;
	struct samepage_result last;
};

/* A run of ours: a private mapping of a segment, written pages or not. */
static inline bool proc_vma_is_run(const struct sys_vma *vma)
{
	return !vma->anonymous && !vma->shared && sys_name_is_store(vma->name);
}

/* mem.c: for range sets; where our own static data is */
void proc_mem_find_own_data(int maps_fd);

/* arena.c: memory of our own, excluded from merging */
void *proc_arena_alloc(size_t bytes);
/* The same where the program maps nothing: for what is allocated while it runs. */
void *proc_arena_alloc_far(size_t bytes);
/* A hint for mmap: away from the program's mappings. NULL: there is no such place. */
void *proc_far(size_t bytes);
void proc_arena_free(void *ptr, size_t bytes);
/* The same for a few hundred bytes, from static memory where that is not taken. */
void *proc_arena_alloc_small(size_t bytes);
void proc_arena_free_small(void *ptr, size_t bytes);

/* futex mutex (lock.c) */
void proc_lock(_Atomic uint32_t *word);
void proc_unlock(_Atomic uint32_t *word);

/* segments.c */
int proc_segments_reset(struct proc_engine *e, uint32_t count);
const uint8_t *proc_segments_slot(struct proc_engine *e, uint32_t slot); /* NULL: not to be had */
void proc_segments_unmap(struct proc_engine *e); /* at the end of a pass */
int proc_segments_fd(struct proc_engine *e, uint32_t slot, uint64_t *offset);
void proc_segments_forget(struct proc_engine *e); /* in a forked child: they are not ours */
void proc_segments_offer(struct proc_engine *e);  /* to a new broker, then close all */
void proc_segments_trim(struct proc_engine *e);   /* close those without a mapping */

/*
 * pass.c: merge [start, end) of this process; *gap: part of it was not mapped.
 * call: whose it is, NULL: the engine's own pass.
 */
void proc_pass_range(struct proc_engine *e, uint64_t start, uint64_t end, enum proc_mode mode,
		     const struct proc_call *call, struct samepage_result *res, bool *gap);
/* All that the handle may merge on its own. */
void proc_pass_owned(struct proc_engine *e, enum proc_mode mode, struct samepage_result *res);
uint64_t proc_pass_count_present(struct proc_engine *e, uint64_t start, uint64_t end);
uint64_t proc_pass_count_swapped(struct proc_engine *e, uint64_t start, uint64_t end);
int proc_pass_flush_tags(struct proc_engine *e);
/* SAMEPAGE_REASON_COUNT: none. Of an anonymous mapping, by its flags and policy. */
enum samepage_reason proc_pass_obstacle(const struct sys_vma *v);
uint32_t proc_pass_odd_flags(uint64_t vmf);
bool proc_pass_wanted(const struct proc_engine *e, uint32_t attr); /* enum proc_own */
/* The scanner's share of the mappings, kept by the caller: the limit, and when it was read. */
struct proc_scan_budget {
	int64_t limit;
	uint64_t read_usec;
};
void proc_pass_scan_budget(struct proc_engine *e, struct proc_scan_budget *b, uint32_t percent,
			   uint64_t age_usec); /* a count that is older is taken again */
void proc_pass_empty_ring(struct proc_engine *e);

/* look.c: fill work->plan for a chunk; false: nothing in it is to be frozen.
 * Whoever changes a decision later writes it into the plan; pass.c counts from
 * there when the chunk is done, so that every page is counted once (I9). */
struct proc_chunk {
	const struct sys_vma *vma; /* as the pass saw it */
	bool owned; /* only what is owned, looked at again under the lock */
	bool still; /* nobody can write it: no freeze (still.c) */
	uint64_t base;  /* address of plan[0], aligned to the chunk's size */
	uint32_t first; /* pages [first, end) of it are looked at */
	uint32_t end;
	int prot;
	uint32_t odd;
	enum proc_mode mode;
	bool exact; /* compare with the slot before planning it */
	struct scan_look *scan; /* MODE_SCAN: whose look it is */
	/* MODE_SCAN: promote nothing, keep what would be in the ring (SCAN_TWIN): all of it is used. */
	bool dry;
};
bool proc_look(struct proc_engine *e, const struct proc_chunk *c, struct samepage_result *res);
/* Only the pages with want[i] == which; the plan of all others stays as it is. */
void proc_look_wanted(struct proc_engine *e, const struct proc_chunk *c, const uint8_t *want,
		      uint8_t which, struct samepage_result *res);
/* After a dry look: pages with want[i] == which are promoted as they were read, or are there by now. */
void proc_look_again(struct proc_engine *e, const struct proc_chunk *c, const uint8_t *want,
		     uint8_t which, struct samepage_result *res);
static inline void proc_plan_skip(struct core_plan_page *p, enum samepage_reason why)
{
	p->kind = CORE_PLAN_SKIP;
	p->reason = why;
}

/*
 * present.c: into work->regions, what is there from start on, PRESENT or SWAPPED by its
 * categories; how many, or -errno. *walk_end: up to where; start: no further.
 */
int proc_present(struct proc_engine *e, uint64_t start, uint64_t end, uint64_t *walk_end);

/* hold.c */
int proc_hold_open(struct proc_hold *h, unsigned pages);
void proc_hold_close(struct proc_hold *h);
/*
 * Put the private mapping at `from` in the place of [to, to + pages), if and as far as
 * both hold the same bytes: how many pages, or -errno (then nothing changed). room: for
 * 2 * h->pages pages. *rewritten: pages that somebody wrote in that very moment; they
 * have what he wrote. Lock held.
 */
int proc_hold_replace(struct proc_hold *h, uint8_t *room, const uint8_t *from, uint8_t *to,
		      unsigned pages, unsigned *rewritten);

/* still.c: carry out work->plan where nobody can write */
void proc_still_commit(struct proc_engine *e, const struct proc_chunk *c,
		       struct samepage_result *res);

/* alone.c: does the program have no thread but the one that waits for us? */
bool proc_alone(bool locked); /* is the memory lock held? */

/* fork.c: is this thread between the hooks? */
bool proc_fork_under_way(void);

/* staging.c */
struct proc_staging *proc_staging_for(struct proc_engine *e, int prot); /* NULL: no memory */

/* freeze.c: carry out work->plan */
void proc_freeze_commit(struct proc_engine *e, const struct proc_chunk *c,
			struct samepage_result *res);
void proc_freeze_free_staging(struct proc_engine *e, struct proc_staging *st);
int proc_freeze_setup(struct proc_engine *e);
int proc_uffd_open(struct proc_engine *e); /* a full one, before UFFDIO_API; or -errno */
void proc_freeze_teardown(struct proc_engine *e);

/* retreat.c: merged memory back to anonymous memory */
int proc_retreat_range(struct proc_engine *e, uint64_t start, uint64_t end);
/* Part of one store mapping, or all of it. */
struct proc_piece {
	uint64_t start, end;
	int prot;
	bool locked, keyed;
	bool stopped; /* retreat.c's own */
};
/*
 * The same for these, which the scanner watches; what is none any more leaves the array. 0, or
 * the error of one that had to stay.
 */
struct proc_retreat_cost {
	uint64_t held_usec; /* how long the program was kept waiting */
	uint64_t fork_usec; /* of it for making the child; 0: there was none */
};
int proc_retreat_pieces(struct proc_engine *e, struct proc_piece *piece, unsigned *n,
			struct proc_retreat_cost *cost);
bool proc_retreat_can_fork(void); /* without, nothing that was written comes home */

/* scan.c; all but free and forked on the engine's thread */
int proc_scan_new(struct proc_engine *e, const struct core_scan_config *own);
void proc_scan_free(struct proc_engine *e); /* the thread has ended */
void proc_scan_forked(struct proc_engine *e);
void proc_scan_connected(struct proc_engine *e); /* to a store; perhaps another one */
void proc_scan_uffd(struct proc_engine *e, bool wp_async); /* e->uffd is a new one */
void proc_scan_merged_by_call(struct proc_engine *e);
void proc_scan_pause(struct proc_engine *e, bool pause);
void proc_scan_leave(struct proc_engine *e, uint64_t start, uint64_t end); /* no longer ours */
void proc_scan_slice(struct proc_engine *e); /* if it is time */
void proc_scan_rests(struct proc_engine *e); /* nothing of the working memory is needed */
uint64_t proc_scan_wake_usec(const struct proc_engine *e); /* UINT64_MAX: never */
uint64_t proc_scan_bytes(const struct proc_engine *e);
void proc_scan_count(const struct proc_engine *e, struct core_scan_counters *n);
/* For look.c (scan_merge.c). */
bool proc_scan_still(struct proc_engine *e, struct scan_look *look, uint32_t i);
bool proc_scan_has_twin(struct proc_engine *e, struct scan_look *look, uint32_t i);
/* Lock held: did the program change something there since the regions were read? */
bool proc_scan_touched(const struct proc_engine *e, uint64_t start, uint64_t end);
void proc_scan_twin(struct scan_look *look, uint32_t i);
/* Does the engine's userfaultfd track writes, and does the scanner have it track them there? */
bool proc_scan_tracks(const struct proc_engine *e);
bool proc_scan_watched(const struct proc_engine *e, uint64_t addr);
/*
 * Lock held. Frozen until now, and not merged: tracked again. known: that it is to be hashed
 * anew is noted, so what was written until now need not show.
 */
void scan_rearm(struct proc_engine *e, uint64_t start, uint64_t end, bool known);
void scan_protect(struct proc_engine *e, uint64_t start, uint64_t end);

/* serve.c: one message of the broker */
void proc_serve(struct proc_engine *e);
void proc_serve_report(struct proc_engine *e, struct core_wire_report *report);
int64_t proc_sharing_pages(struct proc_engine *e);
void proc_engine_lost_link(struct proc_engine *e);
int proc_engine_connect(struct proc_engine *e);

uint64_t proc_serve_own_bytes(struct proc_engine *e);

/* link_broker.c */
int proc_link_broker_recv(struct proc_link *link, void *packet, size_t room);
int proc_link_broker_send(struct proc_link *link, const void *packet, size_t bytes);
int proc_link_broker_offer(struct proc_link *link, int fd);
bool proc_link_is_broker(const struct proc_link *link);

/* call.c */
void proc_call_take(struct proc_engine *e); /* by the thread: what was posted, if anything */
void proc_call_enter(struct proc_engine *e, sigset_t *saved);
void proc_call_leave(struct proc_engine *e, const sigset_t *saved);

/* engine.c */
int proc_engine_wake(struct proc_engine *e); /* the thread; -ESRCH: it has ended */
void proc_engine_forked(struct proc_engine *e); /* in the child, lock held */
/* Before the link or the working memory is used: 0, or the link was lost. */
int proc_engine_awake(struct proc_engine *e);
void proc_engine_rest(struct proc_engine *e); /* gives both back, and the stack */
int proc_engine_revive(struct proc_engine *e);
struct proc_engine *proc_engines(void); /* registry head, lock held */

#endif
