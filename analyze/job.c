/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading and fingerprinting, a batch of pages at a time.
 *
 * Through /proc/PID/mem, not process_vm_readv: that one pins what it reads, for which
 * the kernel first copies a page that is shared since fork and unmerges one of KSM's.
 * pread here only takes references; it is a tenth slower and unshares nothing, however
 * the process behaves meanwhile. (What it drops just before the read is faulted in again.) The open file also stands for the memory that was
 * looked at, whatever becomes of the process's number.
 *
 * A page that cannot be read is gone, no more; a file that says "end" means that the
 * process has no memory any more.
 *
 * The thread that looks fills and collects the jobs in order, so the census is filled
 * in order however many threads work; while it waits, it works too.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "analyze/inner.h"
#include "core/hash.h"
#include "sys/sys.h"

/* Pages [at, end) are consecutive: read them; returns how many of them were dealt with. */
static unsigned read_stretch(struct analyze_job *job, size_t page_bytes, char *buffer, unsigned at,
			     unsigned end)
{
	ssize_t n = sys->pread(job->fd, buffer + at * page_bytes, (end - at) * page_bytes,
			       (off_t)(job->vpn[at] * page_bytes));
	unsigned pages = n > 0 ? (unsigned)((size_t)n / page_bytes) : 0;

	if (n == 0) {
		job->ended = true;
		pages = 0;
	}
	for (unsigned i = 0; i < pages; i++)
		job->result[at + i] = ANALYZE_PAGE_READ;
	if (pages == end - at)
		return pages;
	job->result[at + pages] = ANALYZE_PAGE_GONE;
	return pages + 1;
}

static void do_job(struct analyze_job *job, size_t page_bytes, char *buffer, uint64_t seed,
		   struct core_fp_cache *cache)
{
	unsigned end;

	job->ended = false;
	for (unsigned at = 0; at < job->pages;) {
		for (end = at + 1; end < job->pages && job->vpn[end] == job->vpn[end - 1] + 1;)
			end++;
		while (at < end)
			at += read_stretch(job, page_bytes, buffer, at, end);
	}
	for (unsigned i = 0; i < job->pages; i++) {
		const char *page = buffer + i * page_bytes;

		if (job->result[i] != ANALYZE_PAGE_READ)
			continue;
		if (core_page_is_zero(page, page_bytes))
			job->result[i] = ANALYZE_PAGE_ZERO;
		else
			core_fp_page(job->space, cache, page, page_bytes, seed, &job->fp[i]);
	}
}

/* Take the next job that is ready; the lock is held. NULL: there is none. */
static struct analyze_job *take(struct analyze_ring *r)
{
	unsigned at = (unsigned)(r->taken % ANALYZE_RING);

	if (r->taken == r->filled)
		return NULL;
	r->state[at] = ANALYZE_JOB_TAKEN;
	r->taken++;
	return &r->job[at];
}

/* Work on the job; the lock is held before and after, not meanwhile. */
static void work(struct analyze_ring *r, struct analyze_job *job, char *buffer,
		 struct core_fp_cache *cache, const struct core_fp_space **space)
{
	pthread_mutex_unlock(&r->lock);
	if (*space != job->space) {
		/* only a hint, checked when it is used: but of another process useless */
		memset(cache, 0, sizeof(*cache));
		*space = job->space;
	}
	do_job(job, r->page_bytes, buffer, r->seed, cache);
	pthread_mutex_lock(&r->lock);
	r->state[job - r->job] = ANALYZE_JOB_DONE;
	pthread_cond_signal(&r->done);
}

static void *worker(void *arg)
{
	struct analyze_ring *r = arg;
	struct core_fp_cache cache = { 0 };
	const struct core_fp_space *space = NULL;
	char *buffer = aligned_alloc(r->page_bytes, ANALYZE_BATCH * r->page_bytes);

	pthread_mutex_lock(&r->lock);
	while (buffer && !r->quit) {
		struct analyze_job *job = take(r);

		if (job)
			work(r, job, buffer, &cache, &space);
		else
			pthread_cond_wait(&r->ready, &r->lock);
	}
	pthread_mutex_unlock(&r->lock);
	free(buffer);
	return NULL;
}

int analyze_ring_start(struct analyze_ring *r, unsigned threads, uint64_t seed)
{
	sigset_t old;

	r->page_bytes = sys_page_bytes();
	r->seed = seed;
	r->buffer = aligned_alloc(r->page_bytes, ANALYZE_BATCH * r->page_bytes);
	if (!r->buffer)
		return -ENOMEM;
	if (threads > ANALYZE_RING / 2)
		threads = ANALYZE_RING / 2;
	r->depth = threads > 1 ? 2 * threads : 1;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->ready, NULL);
	pthread_cond_init(&r->done, NULL);
	sys_sigmask_block_all(&old); /* a Ctrl-C is for the thread that prints */
	while (r->threads + 1 < threads &&
	       pthread_create(&r->thread[r->threads], NULL, worker, r) == 0)
		r->threads++; /* fewer is slower, nothing else */
	sys_sigmask_restore(&old);
	return 0;
}

void analyze_ring_stop(struct analyze_ring *r)
{
	if (!r->buffer)
		return;
	pthread_mutex_lock(&r->lock);
	r->quit = true;
	pthread_cond_broadcast(&r->ready);
	pthread_mutex_unlock(&r->lock);
	while (r->threads > 0)
		pthread_join(r->thread[--r->threads], NULL);
	pthread_cond_destroy(&r->done);
	pthread_cond_destroy(&r->ready);
	pthread_mutex_destroy(&r->lock);
	free(r->buffer);
	r->buffer = NULL;
}

struct analyze_job *analyze_ring_fill(struct analyze_ring *r)
{
	if (r->filled - r->collected >= r->depth)
		return NULL;
	return &r->job[r->filled % ANALYZE_RING];
}

void analyze_ring_submit(struct analyze_ring *r)
{
	pthread_mutex_lock(&r->lock);
	r->state[r->filled++ % ANALYZE_RING] = ANALYZE_JOB_READY;
	pthread_cond_signal(&r->ready);
	pthread_mutex_unlock(&r->lock);
}

struct analyze_job *analyze_ring_collect(struct analyze_ring *r)
{
	unsigned at = (unsigned)(r->collected % ANALYZE_RING);

	if (r->collected == r->filled)
		return NULL;
	pthread_mutex_lock(&r->lock);
	while (r->state[at] != ANALYZE_JOB_DONE) {
		struct analyze_job *job = take(r);

		if (job)
			work(r, job, r->buffer, &r->cache, &r->space);
		else
			pthread_cond_wait(&r->done, &r->lock);
	}
	pthread_mutex_unlock(&r->lock);
	return &r->job[at];
}

void analyze_ring_release(struct analyze_ring *r)
{
	r->state[r->collected++ % ANALYZE_RING] = ANALYZE_JOB_FREE;
}
