/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-codepatch: the experiment of the RFC that proposed MADV_MERGE (SKSM, linux-mm,
 * February 2025): a thousand processes that each patch the text of libc, so that each
 * has a private copy of all of it, and then merge.
 *
 * Arms, one after the other in one execution: plain; after the copies; KSM unthrottled;
 * madvise(MADV_MERGE) under the preload library; the library's call. The RFC's
 * processes were `sleep`, patched by a preloaded constructor; here it is a program that
 * patches itself, so that the arms differ in nothing but what is said.
 *
 * To reach: of what the copies cost, at least 98.5 % is back when the last call
 * returns, all that samepage uses itself counted against it.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "codepatch.h"

#define TO_REACH 98.5
#define VMAS_TO_REACH 2.0

static const char *const names[CP_MODES] = {
	[CP_PLAIN] = "plain",
	[CP_COPIES] = "after the copies",
	[CP_KSM] = "KSM, unthrottled",
	[CP_MADVISE] = "madvise, preloaded",
	[CP_LIBRARY] = "the library's call",
};

static void usage(FILE *f)
{
	fprintf(f, "Usage: bench-codepatch [OPTION]...\n"
		   "1000 processes with patched libc text, merged. As root.\n\n"
		   "  --processes N    (default: 1000)\n"
		   "  --forked         forked by one process, which is executed; default: executed\n"
		   "  --by-page        one call a page; default: one call for all\n"
		   "  --only MODES     of 01234: plain, copies, KSM, madvise, library\n"
		   "  --output FILE    append the table there, as Markdown\n");
}

/* Beside us, or one folder up (the build folder). */
static const char *beside(const char *name)
{
	static const char *const places[] = { "", "../" };
	char self[BENCH_PATH], path[2 * BENCH_PATH];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *full;

	if (n <= 0)
		bench_die("no /proc");
	self[n] = '\0';
	*strrchr(self, '/') = '\0';
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s%s", self, places[i], name);
		full = realpath(path, NULL);
		if (full)
			return full;
	}
	bench_die("there is no %s", name);
}

static double recovered(const struct cp_result *r, enum cp_mode mode)
{
	double plain = r[CP_PLAIN].memory.sum, copies = r[CP_COPIES].memory.sum;

	return copies > plain ? 100 * (copies - r[mode].memory.sum) / (copies - plain) : 0;
}

static void table(struct bench_out *o, const struct cp_result *r, const bool *made)
{
	static const char *const head[] = { "", "anonymous", "shmem", "page tables", "mappings",
					    "sum", "recovered", "seconds", "CPU", "of broker, ksmd",
					    "VMAs each" };

	bench_head(o, sizeof(head) / sizeof(*head), head);
	for (int m = 0; m < CP_MODES; m++) {
		const struct cp_count *n = &r[m].memory;
		bool merges = m > CP_COPIES && made[CP_PLAIN] && made[CP_COPIES];

		if (!made[m])
			continue;
		bench_row(o, names[m], bench_cell("%.0f", n->anon), bench_cell("%.0f", n->shmem),
			  bench_cell("%.0f", n->tables), bench_cell("%.0f", n->vma_slab),
			  bench_cell("%.0f", n->sum),
			  merges ? bench_cell("%.2f %%", recovered(r, (enum cp_mode)m)) : "-",
			  m > CP_COPIES ? bench_cell("%.2f", r[m].seconds) : "-",
			  m > CP_COPIES ? bench_cell("%.2f", r[m].cpu_seconds) : "-",
			  m > CP_COPIES ? bench_cell("%.2f", r[m].cpu_broker) : "-",
			  bench_cell("%.2f", n->vmas), NULL);
	}
}

/* What is not in the sum, or makes it believable. */
static void beside_table(struct bench_out *o, const struct cp_result *r, const bool *made)
{
	static const char *const head[] = { "", "machine: anonymous", "shmem", "page tables",
					    "kernel stacks", "KSM's items", "CPU of all",
					    "frames a page", "most VMAs", "wrong pages" };

	bench_text(o, "\nBeside it: the whole machine's counters, kernel stacks (all of the "
		      "machine's) and KSM's own memory in pages, which are not in the sum; CPU "
		      "seconds of everything that ran; page frames behind one page of the text, "
		      "over all processes; pages that are not what the file says.\n\n");
	bench_head(o, sizeof(head) / sizeof(*head), head);
	for (int m = 0; m < CP_MODES; m++) {
		const struct cp_count *n = &r[m].memory;

		if (!made[m])
			continue;
		bench_row(o, names[m], bench_cell("%.0f", n->whole_anon),
			  bench_cell("%.0f", n->whole_shmem), bench_cell("%.0f", n->whole_tables),
			  bench_cell("%.0f", n->kernel_stacks), bench_cell("%.0f", n->ksm_items),
			  bench_cell("%.2f", r[m].cpu_machine), bench_cell("%.1f", n->frames),
			  bench_cell("%.0f", n->vmas_max), bench_cell("%u", r[m].bad_pages), NULL);
	}
}

static void verdict(struct bench_out *o, const struct cp_result *r, const bool *made)
{
	for (int m = CP_MADVISE; m <= CP_LIBRARY; m++) {
		double vmas = r[m].memory.vmas - r[CP_COPIES].memory.vmas;

		if (!made[m] || !made[CP_PLAIN] || !made[CP_COPIES])
			continue;
		bench_text(o, "\n%s: %.2f %% recovered, to reach %.1f: %s; %.1f mappings more in "
			      "each process, to reach %.0f: %s.\n",
			   names[m], recovered(r, (enum cp_mode)m), TO_REACH,
			   recovered(r, (enum cp_mode)m) >= TO_REACH ? "reached" : "NOT REACHED",
			   vmas, VMAS_TO_REACH, vmas <= VMAS_TO_REACH ? "reached" : "NOT REACHED");
	}
}

static void report(const struct cp_options *o, const struct cp_result *r, const bool *made,
		   const char *path)
{
	struct bench_out out = { .file = path ? fopen(path, "ae") : NULL };

	if (path && !out.file)
		bench_die("cannot write %s", path);
	bench_text(&out, "\n## Patched code: %u processes, %s\n\n"
			 "Each copied the text of libc on write, page by page, and then merged it, "
			 "with %s. In pages, over all processes and the broker, when the last "
			 "call had returned (KSM: when it had merged all but 0.1 %% of what it "
			 "merges); what samepage uses itself is in it. Recovered: of the "
			 "difference that the copies make.\n\n",
		   o->processes, o->forked ? "forked by one" : "each executed",
		   o->by_page ? "one call a page" : "one call");
	table(&out, r, made);
	verdict(&out, r, made);
	beside_table(&out, r, made);
	if (out.file)
		fclose(out.file);
}

static void run_arm(const struct cp_options *o, enum cp_mode mode, struct cp_result *r)
{
	fprintf(stderr, "%-20s ", names[mode]);
	cp_arm(o, mode, r);
	fprintf(stderr, "%9.0f pages, %6.2f s, %6.2f s CPU\n", r->memory.sum, r->seconds,
		r->cpu_seconds);
	if (r->errors)
		fprintf(stderr, "%u processes had an error: %s\n", r->errors, strerror(r->error));
	if (r->bad_pages)
		bench_die("%u pages are not what they were", r->bad_pages);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "processes", required_argument, NULL, 'p' }, { "forked", no_argument, NULL, 'f' },
		{ "by-page", no_argument, NULL, 'b' },	       { "only", required_argument, NULL, 'o' },
		{ "output", required_argument, NULL, 'w' },    { "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct cp_options o = { .processes = 1000 };
	struct cp_result result[CP_MODES] = { 0 };
	const char *only = "01234", *output = NULL;
	bool made[CP_MODES] = { false };
	int id;

	while ((id = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (id == 'p')
			o.processes = (unsigned)strtoul(optarg, NULL, 10);
		else if (id == 'f')
			o.forked = true;
		else if (id == 'b')
			o.by_page = true;
		else if (id == 'o')
			only = optarg;
		else if (id == 'w')
			output = optarg;
		else
			return usage(id == 'h' ? stdout : stderr), id == 'h' ? 0 : 2;
	}
	if (o.processes < 2 || o.processes > CP_WORKERS_MAX)
		bench_die("between 2 and %u processes", CP_WORKERS_MAX);
	if (geteuid() != 0)
		bench_die("this needs root: KSM's settings, frame numbers");
	o.worker = beside("codepatch-worker");
	o.worker_library = beside("codepatch-worker-library");
	o.preload = beside("libsamepage-preload.so");
	bench_broker_path = beside("samepaged");
	bench_settings_guard();
	for (int m = 0; m < CP_MODES; m++) {
		made[m] = strchr(only, '0' + m) && (m != CP_KSM || bench_ksmd());
		if (made[m])
			run_arm(&o, (enum cp_mode)m, &result[m]);
	}
	if (bench_settings_restore())
		return 1;
	report(&o, result, made, output);
	return 0;
}
