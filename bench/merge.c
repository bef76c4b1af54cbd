/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-merge: what a synchronous merge costs, against the kernel's KSM on the
 * same kind of data, in one execution on one machine.
 *
 * 1 GiB of unique random pages with a twin each, in two processes; the twin's
 * pages lie in runs of 1, 8, 64 pages, or all in the same order. Repetitions are
 * rounds over all layouts and both systems, so that whatever slows the machine
 * down for a while slows down all of them. Then the sizes, at runs of 64.
 *
 * bench.h says which file does what.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define SIZES_RUN 64u
/* Repetitions of sizes beyond this: two at most. */
#define LARGE (2 * GIB)

static const uint32_t all_runs[] = { 1, 8, 64, BENCH_WHOLE };
static const uint64_t all_sizes[] = { 64 * MIB, 256 * MIB, GIB, 4 * GIB, 8 * GIB };

struct options {
	bool quick, embedded;
	bool only_samepage, only_ksm;
	bool no_sizes;
	uint32_t run; /* 0: all */
	uint64_t bytes; /* 0: as quick says */
	unsigned repetitions;
	const char *output;
};

static void usage(FILE *f)
{
	fprintf(f,
		"Usage: bench-merge [OPTION]...\n"
		"What samepage_merge() costs, against the kernel's KSM. As root.\n\n"
		"  --quick             256 MiB, 2 repetitions (default: 1 GiB, 3)\n"
		"  --only samepage|ksm one of the two\n"
		"  --run 1|8|64|whole  one layout, and no table by size\n"
		"  --size BYTES        of one range, K, M or G may follow\n"
		"  --repetitions N\n"
		"  --no-sizes          no table by size\n"
		"  --embedded          no broker: both ranges in one process\n"
		"  --broker PATH       of samepaged (default: beside this program)\n"
		"  --output FILE       write the tables there too, as Markdown\n");
}

static uint64_t parse_bytes(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		return n << 30;
	case 'M':
		return n << 20;
	case 'K':
		return n << 10;
	}
	return n;
}

enum option_id { OPT_QUICK = 1000, OPT_ONLY, OPT_RUN, OPT_SIZE, OPT_REPETITIONS, OPT_NO_SIZES,
		 OPT_EMBEDDED, OPT_BROKER, OPT_OUTPUT, OPT_HELP };

static bool take_option(struct options *o, int id, const char *arg)
{
	switch (id) {
	case OPT_QUICK:
		o->quick = true;
		return true;
	case OPT_ONLY:
		o->only_samepage = strcmp(arg, "samepage") == 0;
		o->only_ksm = strcmp(arg, "ksm") == 0;
		return o->only_samepage || o->only_ksm;
	case OPT_RUN:
		o->run = strcmp(arg, "whole") == 0 ? BENCH_WHOLE : (uint32_t)strtoul(arg, NULL, 10);
		return o->run != 0;
	case OPT_SIZE:
		o->bytes = parse_bytes(arg);
		return o->bytes >= MIB;
	case OPT_REPETITIONS:
		o->repetitions = (unsigned)strtoul(arg, NULL, 10);
		return o->repetitions > 0;
	case OPT_NO_SIZES:
		o->no_sizes = true;
		return true;
	case OPT_EMBEDDED:
		o->embedded = true;
		return true;
	case OPT_BROKER:
		bench_broker_path = arg;
		return true;
	case OPT_OUTPUT:
		o->output = arg;
		return true;
	}
	return false;
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "quick", no_argument, NULL, OPT_QUICK },
		{ "only", required_argument, NULL, OPT_ONLY },
		{ "run", required_argument, NULL, OPT_RUN },
		{ "size", required_argument, NULL, OPT_SIZE },
		{ "repetitions", required_argument, NULL, OPT_REPETITIONS },
		{ "no-sizes", no_argument, NULL, OPT_NO_SIZES },
		{ "embedded", no_argument, NULL, OPT_EMBEDDED },
		{ "broker", required_argument, NULL, OPT_BROKER },
		{ "output", required_argument, NULL, OPT_OUTPUT },
		{ "help", no_argument, NULL, OPT_HELP },
		{ 0 },
	};
	int id;

	while ((id = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (id == OPT_HELP) {
			usage(stdout);
			exit(0);
		}
		if (!take_option(o, id, optarg)) {
			usage(stderr);
			exit(2);
		}
	}
	if (!o->bytes)
		o->bytes = o->quick ? 256 * MIB : GIB;
	if (!o->repetitions)
		o->repetitions = o->run ? 1 : o->quick ? 2 : 3;
	if (o->run || o->only_ksm)
		o->no_sizes = true;
}

/* samepaged beside us, or one folder up (the build folder). */
static void find_broker(void)
{
	static char path[BENCH_PATH];
	static const char *const places[] = { "samepaged", "../samepaged" };
	char self[BENCH_PATH - 32];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0 || strcmp(bench_broker_path, "samepaged") != 0)
		return;
	self[n] = '\0';
	*strrchr(self, '/') = '\0';
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", self, places[i]);
		if (access(path, X_OK) == 0) {
			bench_broker_path = path;
			return;
		}
	}
}

/* --- what is measured ----------------------------------------------------- */

static uint64_t next_seed = 1000;

static void once(struct bench_set *set, enum bench_system system, uint64_t bytes, uint32_t run)
{
	struct bench_sample s;

	fprintf(stderr, "%-8s %8s, runs %-5s ", system == BENCH_KSM ? "ksm" : "samepage",
		bench_size(bytes), bench_run(run));
	bench_measure(&s, system, bytes, run, next_seed++);
	if (s.interfered)
		bench_measure(&s, system, bytes, run, next_seed++);
	if (s.interfered)
		bench_die("KSM does not get its work done, so there is nothing to compare with");
	bench_set_add(set, &s);
	fprintf(stderr, "%6.2f us wall, %6.2f us CPU a page\n", s.wall / s.pages / 1e3,
		s.cpu / s.pages / 1e3);
}

static void by_run(struct bench_set *set, const struct bench_plan *plan, const struct options *o)
{
	for (unsigned rep = 0; rep < plan->repetitions; rep++)
		for (unsigned i = 0; i < plan->runs_count; i++) {
			uint32_t run = plan->runs[i];
			bool ends = i == 0 || i + 1 == plan->runs_count;

			if (!o->only_ksm)
				once(set, plan->system, plan->bytes, run);
			if (!o->only_samepage && ends)
				once(set, BENCH_KSM, plan->bytes, run);
		}
}

static void by_size(struct bench_set *set, const struct bench_plan *plan)
{
	for (unsigned rep = 0; rep < plan->repetitions; rep++)
		for (unsigned i = 0; i < plan->sizes_count; i++) {
			uint64_t bytes = plan->sizes[i];

			if (bytes > LARGE && rep > 1)
				continue;
			if (bench_meminfo("MemAvailable") < 2.2 * (double)bytes)
				fprintf(stderr, "%s: not enough memory, left out\n",
					bench_size(bytes));
			else
				once(set, plan->system, bytes, SIZES_RUN);
		}
}

static void make_ready(const struct options *o)
{
	uint64_t largest = o->no_sizes ? o->bytes : 8 * GIB / SIZES_RUN;
	uint64_t pages = (largest > o->bytes ? largest : o->bytes) /
			 (uint64_t)sysconf(_SC_PAGESIZE);

	if (geteuid() != 0)
		bench_die("this needs root: KSM's settings, frame numbers");
	if (!o->only_samepage && !bench_ksmd())
		bench_die("this kernel has no ksmd: --only samepage");
	bench_settings_guard();
	/* At worst a mapping per page; samepage leaves a tenth to the program. */
	bench_map_count_at_least((int64_t)(3 * pages) + 65536);
	if (bench_ksmd())
		bench_ksm_set("run", "0");
}

static void run_all(const struct options *o)
{
	struct bench_plan plan = {
		.bytes = o->bytes,
		.repetitions = o->repetitions,
		.system = o->embedded ? BENCH_EMBEDDED : BENCH_BROKER,
		.sizes = all_sizes,
		.sizes_count = o->no_sizes ? 0 : o->quick ? 3 : 5,
		.runs = o->run ? &o->run : all_runs,
		.runs_count = o->run ? 1 : 4,
		.quick = o->quick,
	};
	struct bench_set set = { 0 };
	struct bench_stall stall = { 0 };

	by_run(&set, &plan, o);
	by_size(&set, &plan);
	if (!o->only_ksm && !o->run)
		bench_measure_stall(&stall, plan.system, 256 * MIB);
	if (bench_settings_restore())
		exit(1);
	bench_report(&set, &plan, &stall, o->output);
	free(set.sample);
}

int main(int argc, char **argv)
{
	struct options o = { 0 };

	if (argc == 2 && strcmp(argv[1], "--worker") == 0)
		return bench_worker(3, 4);
	parse(&o, argc, argv);
	find_broker();
	make_ready(&o);
	run_all(&o);
	return 0;
}
