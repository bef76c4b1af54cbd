/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the analyze room share.
 *
 * targets.c  which processes, and who they are
 * kind.c     what kind of mapping
 * look.c     one process: mappings, pages, what is read
 * job.c      reading and fingerprinting in batches, on several threads
 * memory.c   arrays that grow
 * result.c   looks in a row, answers, costs
 */
#ifndef SAMEPAGE_ANALYZE_INNER_H
#define SAMEPAGE_ANALYZE_INNER_H

#include <pthread.h>

#include "analyze/analyze.h"
#include "core/fingerprint.h"
#include "sys/maps.h"

#define ANALYZE_MAPS_BUF_BYTES 65536

/* targets.c ------------------------------------------------------------------- */

/* Fills a->process anew (the caller has freed the old). */
int analyze_targets(struct analyze *a);
/* Name, user, cgroup, program; sets state. Called when its turn comes. */
void analyze_identify(struct analyze_process *p);
/* Is the process with this number still the one that was identified? */
bool analyze_same(const struct analyze_process *p);
/* Is there a process with this number, and has it memory? */
bool analyze_alive(int pid);
/* Has it begun another program since? */
bool analyze_other_image(const struct analyze_process *p);
/* Process of this look, read before this one, that has the very same memory; 0: none. */
int analyze_shares_with(const struct analyze *a, unsigned number);

/* kind.c ---------------------------------------------------------------------- */

/* The mapping before the one asked about: guards, and data behind a file's mapping. */
struct analyze_before {
	uint64_t end;
	uint64_t bytes;
	bool none;    /* no access: may be the guard of a stack */
	bool library; /* writable private mapping of a file, or its continuation */
};

enum core_census_kind analyze_kind(const struct sys_vma *vma, const struct analyze_process *p,
				   struct analyze_before *before);

/* memory.c -------------------------------------------------------------------- */

/* Mapped memory that grows in place or moves; touched pages are what it costs. */
struct analyze_array {
	void *mem;
	size_t bytes;
};
int analyze_array_need(struct analyze_array *array, size_t bytes);
void analyze_array_free(struct analyze_array *array);

/* job.c ----------------------------------------------------------------------- */

#define ANALYZE_BATCH 32 /* pages: fits the second-level cache */
#define ANALYZE_RING 16

enum analyze_page {
	ANALYZE_PAGE_READ,
	ANALYZE_PAGE_ZERO,
	ANALYZE_PAGE_GONE,
};

struct analyze_job {
	int fd; /* /proc/PID/mem */
	const struct core_fp_space *space;
	struct core_census_region region; /* what the pages belong to */
	uint32_t region_number;
	unsigned pages;
	bool ended; /* the process has no memory any more */
	uint64_t vpn[ANALYZE_BATCH];
	uint8_t flags[ANALYZE_BATCH];
	uint8_t result[ANALYZE_BATCH];
	struct core_fp fp[ANALYZE_BATCH];
};

enum analyze_job_state { ANALYZE_JOB_FREE, ANALYZE_JOB_READY, ANALYZE_JOB_TAKEN, ANALYZE_JOB_DONE };

/*
 * Jobs in a ring: filled and collected in order by the one thread that looks, done by it
 * and by the others. lock protects state, taken, quit; a job itself belongs to
 * whoever its state says.
 */
struct analyze_ring {
	struct analyze_job job[ANALYZE_RING];
	enum analyze_job_state state[ANALYZE_RING];
	uint64_t filled, taken, collected; /* numbers of jobs so far */
	unsigned depth; /* jobs under way at most */
	uint64_t seed;
	size_t page_bytes;
	unsigned threads;
	pthread_t thread[ANALYZE_RING];
	char *buffer; /* these three: of the calling thread */
	struct core_fp_cache cache;
	const struct core_fp_space *space;
	pthread_mutex_t lock;
	pthread_cond_t ready;
	pthread_cond_t done;
	bool quit;
};

int analyze_ring_start(struct analyze_ring *r, unsigned threads, uint64_t seed);
void analyze_ring_stop(struct analyze_ring *r);
/* The job to fill next, or NULL: collect one first. */
struct analyze_job *analyze_ring_fill(struct analyze_ring *r);
void analyze_ring_submit(struct analyze_ring *r);
/* The oldest job, done (waits, works meanwhile), or NULL: none is under way. */
struct analyze_job *analyze_ring_collect(struct analyze_ring *r);
void analyze_ring_release(struct analyze_ring *r);

/* the whole -------------------------------------------------------------------- */

struct analyze_inner {
	struct analyze_ring ring;
	struct analyze_array hash, masked, relative, order, index, region, gaps;
	/* the look before */
	struct analyze_array tag;
	struct core_census old;
	struct analyze_array old_region, old_gaps;
	struct analyze_process *old_process;
	unsigned old_processes;
	int kpageflags; /* or -errno */
	uint64_t began_usec; /* the first look */
	uint64_t look_began_usec, look_usec;
	uint64_t pages_before; /* progress: pages of processes that are done */
	uint64_t pages_expected;
	char buf[ANALYZE_MAPS_BUF_BYTES];
};

/* look.c */
int analyze_process_look(struct analyze *a, unsigned number);

#endif
