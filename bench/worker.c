/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process whose memory is merged. It carries out one order at a time and
 * answers with what it measured: wall clock, and CPU time of the whole process,
 * which includes the library's thread.
 *
 * Transparent huge pages are off for it, so that the data is the same pages
 * whatever the machine is set to.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "samepage.h"

struct range {
	uint8_t *mem;
	uint32_t pages;
	uint64_t seed;
	uint32_t *order; /* position -> page number */
};

struct worker {
	struct range range[BENCH_RANGES];
	struct samepage *handle;
	size_t page;
};

static double cpu_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void begin(struct bench_answer *a)
{
	a->cpu = -cpu_now();
	a->wall = -bench_now();
}

static void end(struct bench_answer *a)
{
	a->wall += bench_now();
	a->cpu += cpu_now();
}

static int fill(struct worker *w, const struct bench_order *o)
{
	struct range *r = &w->range[o->range];

	/* With a gap before and behind, so that no two ranges are one mapping. */
	r->mem = mmap(NULL, (o->pages + 2) * w->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r->mem == MAP_FAILED)
		return -errno;
	r->mem += w->page;
	if (mprotect(r->mem, o->pages * w->page, PROT_READ | PROT_WRITE) < 0)
		return -errno;
	r->pages = o->pages;
	r->seed = o->seed;
	r->order = bench_order(o->pages, o->run, o->seed);
	for (uint32_t i = 0; i < r->pages; i++)
		bench_page_fill(r->mem + i * w->page, r->seed, r->order[i]);
	return 0;
}

static int open_handle(struct worker *w, const struct bench_order *o)
{
	struct samepage_options options = { .size = sizeof(options), .domain = "bench" };

	if (w->handle)
		return 0;
	if (o->path[0]) {
		options.socket_path = o->path;
	} else {
		options.flags = SAMEPAGE_EMBEDDED;
		options.store_bytes = o->store_bytes;
	}
	return samepage_open(&w->handle, &options);
}

static int merge(struct worker *w, struct range *r, struct bench_answer *a)
{
	struct samepage_result res;
	int err;

	begin(a);
	err = samepage_merge(w->handle, r->mem, r->pages * w->page, 0, &res);
	end(a);
	a->looked = (double)res.pages_looked;
	a->merged = (double)res.pages_merged;
	a->frozen = (double)res.frozen_usec * 1e3;
	a->runs = (double)res.runs;
	a->vmas = (double)res.vmas_added;
	_Static_assert(BENCH_REASONS == SAMEPAGE_REASON_MAX, "as in samepage.h");
	memcpy(a->declined, res.pages_declined, sizeof(a->declined));
	return err;
}

static void read_all(struct worker *w, struct range *r, struct bench_answer *a)
{
	const volatile uint8_t *mem = r->mem;

	begin(a);
	for (uint32_t i = 0; i < r->pages; i++)
		(void)mem[i * w->page];
	end(a);
}

/* The sample: pages by number, the same ones whatever their order. */
static int frames(struct worker *w, struct range *r, struct bench_answer *a)
{
	uint32_t *position = calloc(r->pages, sizeof(*position));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t state = r->seed;
	int err = position && fd >= 0 ? 0 : -ENOMEM;

	for (uint32_t i = 0; position && i < r->pages; i++)
		position[r->order[i]] = i;
	for (unsigned s = 0; err == 0 && s < BENCH_SAMPLES; s++) {
		uint32_t number = (uint32_t)(bench_random(&state) % r->pages);
		const volatile uint8_t *at = r->mem + position[number] * w->page;
		uint64_t entry;

		(void)*at;
		if (pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)at / w->page * 8)) != 8)
			err = -errno;
		else
			a->frame[s] = entry >> 63 ? entry & ((1ull << 55) - 1) : 0;
	}
	if (fd >= 0)
		close(fd);
	free(position);
	return err;
}

static void write_some(struct worker *w, struct range *r, uint32_t pages, struct bench_answer *a)
{
	volatile uint8_t *mem = r->mem;

	begin(a);
	for (uint32_t i = 0; i < pages; i++)
		mem[i * w->page] ^= 0x5a;
	end(a);
	for (uint32_t i = 0; i < pages; i++)
		a->bad_pages += bench_page_is(r->mem + i * w->page, r->seed, r->order[i]);
	for (uint32_t i = 0; i < pages; i++)
		mem[i * w->page] ^= 0x5a;
}

static void check(struct worker *w, struct range *r, struct bench_answer *a)
{
	for (uint32_t i = 0; i < r->pages; i++)
		a->bad_pages += !bench_page_is(r->mem + i * w->page, r->seed, r->order[i]);
}

/* --- the longest wait of a reader ----------------------------------------- */

struct reader {
	struct worker *w;
	struct range *r;
	_Atomic bool stop;
	double longest;
};

static void *reader_main(void *arg)
{
	struct reader *rd = arg;
	uint64_t state = 1;
	double before = bench_now();

	while (!atomic_load_explicit(&rd->stop, memory_order_relaxed)) {
		uint32_t i = (uint32_t)(bench_random(&state) % rd->r->pages);
		double now;

		(void)*(const volatile uint8_t *)(rd->r->mem + i * rd->w->page);
		now = bench_now();
		if (now - before > rd->longest)
			rd->longest = now - before;
		before = now;
	}
	return NULL;
}

/* quiet: no merge, only the reader for a while, for comparison. */
static int stall(struct worker *w, struct range *r, bool quiet, struct bench_answer *a)
{
	struct reader rd = { .w = w, .r = r };
	pthread_t thread;
	int err = -pthread_create(&thread, NULL, reader_main, &rd);

	if (err < 0)
		return err;
	if (quiet)
		usleep(200000);
	else
		err = merge(w, r, a);
	atomic_store(&rd.stop, true);
	pthread_join(thread, NULL);
	a->longest = rd.longest;
	return err;
}

static int obey(struct worker *w, const struct bench_order *o, struct bench_answer *a)
{
	struct range *r = &w->range[o->range];

	switch ((enum bench_op)o->op) {
	case BENCH_OP_FILL:
		return fill(w, o);
	case BENCH_OP_OPEN:
		return open_handle(w, o);
	case BENCH_OP_MERGE:
		return merge(w, r, a);
	case BENCH_OP_ADVISE:
		return madvise(r->mem, r->pages * w->page, MADV_MERGEABLE) < 0 ? -errno : 0;
	case BENCH_OP_READ:
		read_all(w, r, a);
		return 0;
	case BENCH_OP_FRAMES:
		return frames(w, r, a);
	case BENCH_OP_WRITE:
		write_some(w, r, o->pages < r->pages ? o->pages : r->pages, a);
		return 0;
	case BENCH_OP_CHECK:
		check(w, r, a);
		return 0;
	case BENCH_OP_STALL:
		return stall(w, r, o->run != 0, a);
	case BENCH_OP_END:
		break;
	}
	return -EINVAL;
}

int bench_worker(int in, int out)
{
	static struct worker w;
	static struct bench_answer a;
	struct bench_order o;

	w.page = (size_t)sysconf(_SC_PAGESIZE);
	prctl(PR_SET_NAME, "bench-worker");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	while (bench_read_all(in, &o, sizeof(o))) {
		memset(&a, 0, sizeof(a));
		a.error = o.range < BENCH_RANGES ? obey(&w, &o, &a) : -EINVAL;
		if (!bench_write_all(out, &a, sizeof(a)))
			break;
	}
	_exit(0); /* the memory goes with the process */
}
