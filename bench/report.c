/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tables say. Each number is a median over the repetitions, with least
 * and most in parentheses; goals are compared with ratios of medians from this
 * one execution and only reported: a slow machine is no failure.
 */
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench.h"
#include "samepage.h"

#define USEC 1e3
#define MSEC 1e6
#define SIZES_RUN 64u
#define MEMORY_GOAL 16.0
#define FLAT_GOAL 1.25

struct report {
	const struct bench_set *set;
	const struct bench_plan *plan;
	struct bench_out out;
};

/* One field of samepage's or ksmd's samples at the main size. */
#define OURS(r, run, field, per_page)                                                              \
	BENCH_SPREAD((r)->set, (r)->plan->system, (r)->plan->bytes, run, field, per_page)
#define KSMS(r, run, field, per_page)                                                              \
	BENCH_SPREAD((r)->set, BENCH_KSM, (r)->plan->bytes, run, field, per_page)

#define HEAD(r, ...)                                                                               \
	do {                                                                                       \
		static const char *const names_[] = { __VA_ARGS__ };                               \
		bench_head(&(r)->out, sizeof(names_) / sizeof(*names_), names_);                   \
	} while (0)

static void gap(struct report *r)
{
	bench_text(&r->out, "%s", "");
}

static double goal_of(uint32_t run)
{
	return run == 1 ? 0.8 : run == 8 ? 0.4 : 0.33;
}

/* --- the machine ---------------------------------------------------------- */

static const char *first_line(const char *path)
{
	char line[64];

	return bench_file_line(path, line, sizeof(line)) ? bench_cell("%s", line) : "?";
}

static void cpu_model(char *model, size_t bytes)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256];

	snprintf(model, bytes, "?");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
			snprintf(model, bytes, "%.100s", strchr(line, ':') + 2);
			model[strcspn(model, "\n")] = '\0';
			break;
		}
	if (f)
		fclose(f);
}

static void machine(struct report *r)
{
	struct utsname u;
	char model[128];

	uname(&u);
	cpu_model(model, sizeof(model));
	bench_text(&r->out, "## Machine and settings\n");
	bench_text(&r->out, "- %s, %ld CPUs, %.1f GiB of memory, pages of %ld bytes", model,
		   sysconf(_SC_NPROCESSORS_ONLN), bench_meminfo("MemTotal") / (1 << 30),
		   sysconf(_SC_PAGESIZE));
	bench_text(&r->out, "- %s %s, transparent huge pages: %s (off in the processes measured)",
		   u.sysname, u.release, first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
	bench_text(&r->out,
		   "- libsamepage %s, %s; every measurement begins with fresh processes and an "
		   "empty store",
		   samepage_version(),
		   r->plan->system == BENCH_BROKER ? "two processes and samepaged" :
						     "embedded: both ranges in one process");
	bench_text(&r->out,
		   "- KSM: run 1, sleep_millisecs 0, pages_to_scan 100000, advisor none; left alone: "
		   "merge_across_nodes %s, use_zero_pages %s, smart_scan %s, max_page_sharing %s",
		   first_line("/sys/kernel/mm/ksm/merge_across_nodes"),
		   first_line("/sys/kernel/mm/ksm/use_zero_pages"),
		   first_line("/sys/kernel/mm/ksm/smart_scan"),
		   first_line("/sys/kernel/mm/ksm/max_page_sharing"));
	bench_text(&r->out, "- %u repetitions, interleaved; cells: median (least-most)\n",
		   r->plan->repetitions);
}

/* --- by run length -------------------------------------------------------- */

static struct bench_spread ksm_cpu(struct report *r, uint32_t run)
{
	struct bench_spread k = KSMS(r, run, cpu, true);

	/* Not measured at this layout: those that were. */
	return k.n ? k : KSMS(r, 0, cpu, true);
}

static void against_ksm(struct report *r)
{
	bench_text(&r->out, "## CPU and wall clock of a page: %s with a twin\n",
		   bench_size(r->plan->bytes));
	bench_text(&r->out,
		   "Microseconds a page, first copies and twins alike; CPU of samepage is the client's "
		   "and the broker's. KSM looks at every page in two full scans before it merges "
		   "one: that is its cost and counts. How the twin's pages are arranged is nothing "
		   "to KSM, so it is measured at both ends only, and stands for the layouts between "
		   "with all its samples.\n");
	HEAD(r, "run length", "CPU", "ksmd CPU", "ratio", "to reach", "", "wall", "ksmd wall");
	for (unsigned i = 0; i < r->plan->runs_count; i++) {
		uint32_t run = r->plan->runs[i];
		struct bench_spread s = OURS(r, run, cpu, true), k = ksm_cpu(r, run);
		double ratio = k.n && s.n ? s.mid / k.mid : 0;

		bench_row(&r->out, bench_run(run), bench_spread_cell(s, USEC),
			  bench_spread_cell(KSMS(r, run, cpu, true), USEC),
			  ratio > 0 ? bench_cell("%.2f", ratio) : "-",
			  bench_cell("<= %.2f", goal_of(run)),
			  ratio <= 0 ? "-" : ratio <= goal_of(run) ? "reached" : "NOT REACHED",
			  bench_spread_cell(OURS(r, run, wall, true), USEC),
			  bench_spread_cell(KSMS(r, run, wall, true), USEC), (const char *)NULL);
	}
	gap(r);
}

/* Half of the pages are first copies, half are twins. */
static const char *half(struct bench_spread s)
{
	return bench_spread_cell(s, USEC / 2);
}

static void by_part(struct report *r)
{
	bench_text(&r->out, "### Of which\n");
	bench_text(&r->out,
		   "Microseconds of CPU for one first copy and for one twin, of which in the broker; "
		   "and how long a page was frozen: the sum of the freezes, each of which holds up "
		   "to 512 pages at once, divided by all pages.\n");
	HEAD(r, "run length", "first copy", "in the broker", "twin", "in the broker", "frozen");
	for (unsigned i = 0; i < r->plan->runs_count; i++) {
		uint32_t run = r->plan->runs[i];

		bench_row(&r->out, bench_run(run), half(OURS(r, run, cpu_first, true)),
			  half(OURS(r, run, broker_first, true)),
			  half(OURS(r, run, cpu_twin, true)),
			  half(OURS(r, run, broker_twin, true)),
			  bench_spread_cell(OURS(r, run, frozen, true), USEC), (const char *)NULL);
	}
	gap(r);
}

/* --- by size -------------------------------------------------------------- */

static void by_size(struct report *r)
{
	double low = 0, high = 0, twin_low = 0, twin_high = 0;

	if (!r->plan->sizes_count)
		return;
	bench_text(&r->out, "## By size: runs of %u\n", SIZES_RUN);
	HEAD(r, "size", "CPU", "wall", "first copy", "twin", "own bytes");
	for (unsigned i = 0; i < r->plan->sizes_count; i++) {
		uint64_t bytes = r->plan->sizes[i];
#define AT(field) BENCH_SPREAD(r->set, r->plan->system, bytes, SIZES_RUN, field, true)
		struct bench_spread s = AT(cpu), twin = AT(cpu_twin);

		if (!s.n)
			continue;
		low = low <= 0 || s.mid < low ? s.mid : low;
		high = s.mid > high ? s.mid : high;
		twin_low = twin_low <= 0 || twin.mid < twin_low ? twin.mid : twin_low;
		twin_high = twin.mid > twin_high ? twin.mid : twin_high;
		bench_row(&r->out, bench_size(bytes), bench_spread_cell(s, USEC),
			  bench_spread_cell(AT(wall), USEC), half(AT(cpu_first)),
			  half(twin), bench_spread_cell(AT(own), 1), (const char *)NULL);
#undef AT
	}
	if (low > 0)
		bench_text(&r->out,
			   "\nCPU of a page, most / least: %.2f (of a twin: %.2f); to reach: flat, "
			   "<= %.2f: %s. A first copy passes from the client to the broker: whether "
			   "the scheduler keeps the two on one CPU or puts them on two changes its "
			   "cost from one measurement to the next; a twin's does not depend on it.\n",
			   high / low, twin_high / twin_low, FLAT_GOAL,
			   high / low <= FLAT_GOAL ? "reached" : "NOT REACHED");
}

/* --- memory --------------------------------------------------------------- */

static void memory(struct report *r)
{
	bench_text(&r->out, "## Memory that samepage needs itself\n");
	bench_text(&r->out,
		   "Bytes a page looked at, after the merge. Client: growth of anonymous memory "
		   "beyond the data, and of page tables. Broker: its private memory, program "
		   "included. Shared: index, candidates and rings, by the blocks of their memfds. "
		   "To reach: <= %.0f in sum. The kernel's memory for mappings comes on top and "
		   "depends on the runs. KSM's is 64 bytes an item it keeps.\n", MEMORY_GOAL);
	HEAD(r, "run length", "client", "broker", "shared", "sum", "", "mappings", "KSM");
	for (unsigned i = 0; i < r->plan->runs_count; i++) {
		uint32_t run = r->plan->runs[i];
		struct bench_spread own = OURS(r, run, own, true);
		struct bench_spread vma = OURS(r, run, vma_bytes, true);

		bench_row(&r->out, bench_run(run), bench_spread_cell(OURS(r, run, own_client, true), 1),
			  bench_spread_cell(OURS(r, run, own_broker, true), 1),
			  bench_spread_cell(OURS(r, run, own_index, true), 1),
			  bench_spread_cell(own, 1),
			  !own.n ? "-" : own.mid <= MEMORY_GOAL ? "reached" : "NOT REACHED",
			  bench_spread_cell(vma, 1),
			  bench_spread_cell(KSMS(r, run, own, true), 1), (const char *)NULL);
	}
	gap(r);
}

static const char *of_data(struct bench_spread s, const struct bench_plan *plan)
{
	return bench_spread_cell(s, (double)plan->bytes / 100);
}

static void saved_row(struct report *r, const char *name, enum bench_system system, uint32_t run)
{
#define OF(field, per) BENCH_SPREAD(r->set, system, r->plan->bytes, run, field, per)
	if (OF(cpu, false).n)
		bench_row(&r->out, name, bench_run(run), of_data(OF(available_saved, false), r->plan),
			  of_data(OF(pss_saved, false), r->plan),
			  bench_spread_cell(OF(merged_share, false), 0.01),
			  bench_spread_cell(OF(same_frames, false), 0.01),
			  (const char *)NULL);
#undef OF
}

static void saved(struct report *r)
{
	bench_text(&r->out, "## Memory that is saved\n");
	bench_text(&r->out,
		   "Percent of the twin. By MemAvailable of the whole machine right after the merge "
		   "(everything included, also what other programs did meanwhile) and by Pss of the "
		   "processes and the broker. Merged: of all pages (KSM: of the twins, when the "
		   "clock stopped). One frame: of %u pages drawn at random, in how many both "
		   "processes have the same page frame number afterwards.\n", BENCH_SAMPLES);
	HEAD(r, "", "run length", "MemAvailable", "Pss", "merged", "one frame");
	for (unsigned i = 0; i < r->plan->runs_count; i++)
		saved_row(r, "samepage", r->plan->system, r->plan->runs[i]);
	for (unsigned i = 0; i < r->plan->runs_count; i++)
		saved_row(r, "KSM", BENCH_KSM, r->plan->runs[i]);
	gap(r);
}

/* --- afterwards ----------------------------------------------------------- */

static void aftermath_row(struct report *r, const char *name, enum bench_system system, uint32_t run)
{
#define OF(field) BENCH_SPREAD(r->set, system, r->plan->bytes, run, field, false)
	if (OF(cpu).n)
		bench_row(&r->out, name, bench_run(run), bench_spread_cell(OF(read_first), USEC),
			  bench_spread_cell(OF(cow), USEC),
			  system == BENCH_KSM ? "-" : bench_cell("%.0f", OF(runs_mapped).mid),
			  system == BENCH_KSM ? "-" : bench_cell("%.0f", OF(vmas).mid),
			  (const char *)NULL);
#undef OF
}

static void aftermath(struct report *r)
{
	bench_text(&r->out, "## What a merge leaves behind\n");
	bench_text(&r->out,
		   "Microseconds a page: the first read after the merge (samepage: a minor fault), in "
		   "the order of addresses, and after that the first write (copy-on-write), of %u "
		   "pages. Mappings made for the twin, and by how many its process's count grew.\n",
		   BENCH_COW_PAGES);
	HEAD(r, "", "run length", "first read", "first write", "runs mapped", "mappings more");
	for (unsigned i = 0; i < r->plan->runs_count; i++)
		aftermath_row(r, "samepage", r->plan->system, r->plan->runs[i]);
	for (unsigned i = 0; i < r->plan->runs_count; i++)
		aftermath_row(r, "KSM", BENCH_KSM, r->plan->runs[i]);
	gap(r);
}

static void freeze(struct report *r, const struct bench_stall *stall)
{
	if (stall->bytes == 0)
		return;
	bench_text(&r->out, "### Frozen, as a thread feels it\n");
	bench_text(&r->out,
		   "A thread reads pages of %s at random while they are merged in runs of 8: the "
		   "longest time between two of its reads was %.2f ms; without a merge %.2f ms (the "
		   "scheduler's part).\n",
		   bench_size(stall->bytes), stall->longest / MSEC, stall->quiet / MSEC);
}

static void declined(struct report *r)
{
	unsigned long long pages = 0, of = 0;

	for (size_t i = 0; i < r->set->count; i++)
		if (r->set->sample[i].system != BENCH_KSM)
			pages += (unsigned long long)(2 * r->set->sample[i].bytes) /
				 (unsigned long long)sysconf(_SC_PAGESIZE);
	bench_text(&r->out, "## Verified\n");
	bench_text(&r->out,
		   "In every measurement: every byte of both ranges, after the merge and after the "
		   "writes; that the writes are there; the frames of the sample. Pages that samepage "
		   "declined, of %llu looked at:\n", pages);
	for (unsigned k = 0; k < SAMEPAGE_REASON_COUNT; k++) {
		unsigned long long n = 0;

		for (size_t i = 0; i < r->set->count; i++)
			n += r->set->sample[i].declined[k];
		if (n)
			bench_text(&r->out, "- %llu %s: %s", n, samepage_reason_name(k),
				   samepage_reason_text(k));
		of += n;
	}
	if (!of)
		bench_text(&r->out, "- none");
}

void bench_report(const struct bench_set *set, const struct bench_plan *plan,
		  const struct bench_stall *stall, const char *path)
{
	struct report r = { .set = set, .plan = plan };

	if (path) {
		r.out.file = fopen(path, "we");
		if (!r.out.file)
			bench_die("cannot write %s", path);
		fprintf(r.out.file, "# Benchmarks\n\nWritten by `make bench%s`. Ratios travel between "
			"machines, absolute figures do not.\n\n",
			plan->quick ? "` with `--quick" : "");
	}
	putchar('\n');
	machine(&r);
	against_ksm(&r);
	by_part(&r);
	by_size(&r);
	memory(&r);
	saved(&r);
	aftermath(&r);
	freeze(&r, stall);
	declined(&r);
	if (r.out.file && fclose(r.out.file) != 0)
		bench_die("cannot write %s", path);
}
