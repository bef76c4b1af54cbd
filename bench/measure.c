/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One measurement, from fresh processes to their end.
 *
 * samepage: the first range is filled and merged (every page goes into the
 * store), then the twin is filled and merged, so that no more than three copies
 * of the data exist at any time. KSM: both are filled and advised, then ksmd
 * runs. What comes after is the same for all: memory is read off before anybody
 * touches the pages again; then the first read, the frames, Pss, the first
 * write, and every byte of both ranges.
 *
 * A page whose bytes are wrong ends the benchmark. So do frames that differ
 * where it was claimed that they are one.
 */
#include <string.h>
#include <unistd.h>

#include "bench.h"

/* Samples that may differ beyond what the share of merged pages explains. */
#define FRAMES_SLACK 0.03

struct run {
	struct bench_sample *s;
	struct bench_child child[BENCH_RANGES];
	pid_t broker;
	uint32_t pages;
	uint64_t seed;
	/* Memory of the workers before they had a handle. */
	double anon_before, tables_before;
	double vma_bytes_before, available_before;
	int64_t ksm_knew;
};

static struct bench_child *child_of(struct run *r, unsigned range)
{
	return &r->child[r->s->system == BENCH_EMBEDDED ? 0 : range];
}

static void ask(struct run *r, unsigned range, enum bench_op op, struct bench_answer *a)
{
	struct bench_order o = { .op = op, .range = range, .pages = r->pages, .seed = r->seed };

	if (op == BENCH_OP_FILL)
		o.run = range == 0 ? BENCH_WHOLE : r->s->run;
	if (op == BENCH_OP_WRITE)
		o.pages = BENCH_COW_PAGES;
	if (op == BENCH_OP_OPEN && r->s->system == BENCH_BROKER)
		snprintf(o.path, sizeof(o.path), "%s", bench_socket());
	o.store_bytes = r->s->bytes + (1ull << 30);
	bench_child_ask(child_of(r, range), &o, a);
}

static void begin(struct run *r)
{
	r->ksm_knew = bench_ksm_known();
	r->vma_bytes_before = bench_slab_of_mappings();
	r->available_before = bench_meminfo("MemAvailable");
	if (r->s->system == BENCH_BROKER)
		r->broker = bench_broker_start(r->s->bytes + (1ull << 30));
	bench_child_start(&r->child[0]);
	if (r->s->system != BENCH_EMBEDDED)
		bench_child_start(&r->child[1]);
}

static void end(struct run *r)
{
	for (unsigned i = 0; i < BENCH_RANGES; i++)
		if (r->child[i].pid)
			bench_child_end(&r->child[i]);
	if (r->broker)
		bench_broker_end(r->broker);
	if (r->s->system == BENCH_KSM)
		bench_ksm_drain(r->ksm_knew);
}

/* --- merging -------------------------------------------------------------- */

static double broker_cpu(struct run *r)
{
	return r->broker ? bench_cpu_of(r->broker) : 0;
}

static void merge_range(struct run *r, unsigned range, double *looked, struct bench_answer *a)
{
	struct bench_child *c = child_of(r, range);
	bool again = range > 0 && c == child_of(r, 0);
	struct bench_sample *s = r->s;
	double broker;

	ask(r, range, BENCH_OP_FILL, a);
	if (again)
		r->anon_before += (double)s->bytes;
	else
		r->anon_before += bench_smaps(c->pid, "Anonymous");
	r->tables_before += bench_page_tables(c->pid) - (again ? r->tables_before : 0);
	ask(r, range, BENCH_OP_OPEN, a);
	broker = broker_cpu(r);
	ask(r, range, BENCH_OP_MERGE, a);
	broker = broker_cpu(r) - broker;
	*looked += a->looked;
	s->pages += a->merged;
	s->frozen += a->frozen;
	for (unsigned i = 0; i < BENCH_REASONS; i++)
		s->declined[i] += a->declined[i];
	if (range == 0) {
		s->wall_first = a->wall;
		s->cpu_first = a->cpu + broker;
		s->broker_first = broker;
	} else {
		s->wall_twin = a->wall;
		s->cpu_twin = a->cpu + broker;
		s->broker_twin = broker;
		s->runs_mapped = a->runs;
		s->vmas = a->vmas;
	}
}

static void merge_samepage(struct run *r, struct bench_answer *a)
{
	struct bench_sample *s = r->s;
	double looked = 0;

	for (unsigned range = 0; range < BENCH_RANGES; range++)
		merge_range(r, range, &looked, a);
	s->wall = s->wall_first + s->wall_twin;
	s->cpu = s->cpu_first + s->cpu_twin;
	s->merged_share = s->pages / (2.0 * r->pages);
	if (looked < 2.0 * r->pages)
		bench_die("only %.0f of %u pages were looked at", looked, 2 * r->pages);
}

static void merge_ksm(struct run *r, struct bench_answer *a)
{
	for (unsigned range = 0; range < BENCH_RANGES; range++)
		ask(r, range, BENCH_OP_FILL, a);
	for (unsigned range = 0; range < BENCH_RANGES; range++)
		ask(r, range, BENCH_OP_ADVISE, a);
	bench_ksm_merge(r->s, r->pages);
}

/* --- memory --------------------------------------------------------------- */

/* What is ours: all that grew in the workers but for pages that stayed theirs. */
static void own_memory(struct run *r)
{
	struct bench_sample *s = r->s;
	double merged_bytes = s->pages * (double)sysconf(_SC_PAGESIZE);
	double anon = 0, tables = 0, ignored;

	for (unsigned i = 0; i < BENCH_RANGES; i++)
		if (r->child[i].pid) {
			anon += bench_smaps(r->child[i].pid, "Anonymous");
			tables += bench_page_tables(r->child[i].pid);
		}
	s->own_client = anon - (r->anon_before - merged_bytes);
	if (tables > r->tables_before)
		s->own_client += tables - r->tables_before;
	if (s->system == BENCH_BROKER)
		bench_memory_of(r->broker, &s->own_broker, &s->own_index);
	else
		bench_memory_of(r->child[0].pid, &ignored, &s->own_index);
}

static void memory(struct run *r)
{
	struct bench_sample *s = r->s;

	s->available_saved = 2.0 * (double)s->bytes -
			     (r->available_before - bench_meminfo("MemAvailable"));
	if (s->system == BENCH_KSM) {
		s->own_index = bench_ksm_memory();
	} else {
		own_memory(r);
		s->vma_bytes = bench_slab_of_mappings() - r->vma_bytes_before;
	}
	s->own = s->own_client + s->own_broker + s->own_index;
}

/* --- afterwards ----------------------------------------------------------- */

static void frames(struct run *r, struct bench_answer *a)
{
	static struct bench_answer first;
	unsigned same = 0;

	memset(&first, 0, sizeof(first));
	ask(r, 0, BENCH_OP_FRAMES, &first);
	ask(r, 1, BENCH_OP_FRAMES, a);
	for (unsigned i = 0; i < BENCH_SAMPLES; i++)
		same += first.frame[i] && first.frame[i] == a->frame[i];
	r->s->same_frames = (double)same / BENCH_SAMPLES;
	if (r->s->same_frames < r->s->merged_share - FRAMES_SLACK)
		bench_die("%.1f %% merged, it was said, but only %.1f %% of the frames are one",
			  100 * r->s->merged_share, 100 * r->s->same_frames);
}

static void pss(struct run *r)
{
	double sum = 0;

	for (unsigned i = 0; i < BENCH_RANGES; i++)
		if (r->child[i].pid)
			sum += bench_smaps(r->child[i].pid, "Pss");
	if (r->broker)
		sum += bench_smaps(r->broker, "Pss");
	r->s->pss_saved = 2.0 * (double)r->s->bytes - sum;
}

static void afterwards(struct run *r, struct bench_answer *a)
{
	ask(r, 1, BENCH_OP_READ, a);
	r->s->read_first = a->wall / r->pages;
	ask(r, 0, BENCH_OP_READ, a);
	frames(r, a);
	pss(r);
	ask(r, 1, BENCH_OP_WRITE, a);
	r->s->cow = a->wall / (r->pages < BENCH_COW_PAGES ? r->pages : BENCH_COW_PAGES);
	if (a->bad_pages)
		bench_die("%u pages did not keep what was written", a->bad_pages);
	for (unsigned range = 0; range < BENCH_RANGES; range++) {
		ask(r, range, BENCH_OP_CHECK, a);
		if (a->bad_pages)
			bench_die("%u pages of range %u have wrong contents", a->bad_pages, range);
	}
}

void bench_measure(struct bench_sample *s, enum bench_system system, uint64_t bytes, uint32_t run,
		   uint64_t seed)
{
	static struct bench_answer a;
	struct run r = { .s = s, .seed = seed };

	memset(s, 0, sizeof(*s));
	s->system = system;
	s->bytes = bytes;
	s->run = run;
	r.pages = (uint32_t)(bytes / (uint64_t)sysconf(_SC_PAGESIZE));
	begin(&r);
	if (system == BENCH_KSM)
		merge_ksm(&r, &a);
	else
		merge_samepage(&r, &a);
	memory(&r);
	afterwards(&r, &a);
	end(&r);
}

/* --- the longest wait ----------------------------------------------------- */

static double longest(struct run *r, bool quiet)
{
	struct bench_order o = { .op = BENCH_OP_STALL, .range = 1, .run = quiet };
	static struct bench_answer a;

	bench_child_ask(child_of(r, 1), &o, &a);
	return a.longest;
}

void bench_measure_stall(struct bench_stall *stall, enum bench_system system, uint64_t bytes)
{
	struct bench_sample s = { .system = system, .bytes = bytes, .run = 8 };
	static struct bench_answer a;
	struct run r = { .s = &s, .seed = 77 };

	r.pages = (uint32_t)(bytes / (uint64_t)sysconf(_SC_PAGESIZE));
	begin(&r);
	for (unsigned range = 0; range < BENCH_RANGES; range++) {
		ask(&r, range, BENCH_OP_FILL, &a);
		ask(&r, range, BENCH_OP_OPEN, &a);
	}
	ask(&r, 0, BENCH_OP_MERGE, &a);
	stall->bytes = bytes;
	stall->quiet = longest(&r, true);
	stall->longest = longest(&r, false);
	ask(&r, 1, BENCH_OP_CHECK, &a);
	if (a.bad_pages)
		bench_die("%u pages have wrong contents", a.bad_pages);
	end(&r);
}
