/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel's KSM on the same data, without its brakes: no sleep, a large
 * batch, no advisor. Settings that change what it does rather than how fast are
 * left alone (merge_across_nodes, use_zero_pages, smart_scan, max_page_sharing).
 *
 * The clock starts when ksmd does, on ranges that are advised already. It looks
 * at each page in two full scans before it merges anything (the checksum must
 * have held still for one): that is its cost and counts. It stops when 99 % of
 * the twins share; all pages that are then shared or sharing count as merged, so
 * that first copies and twins count alike, here and for samepage.
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

#define POLL_NSEC 2000000
#define ENOUGH 0.99
/* Far above anything seen (5 us a page and scan). */
#define PATIENCE_NSEC_A_PAGE 200e3
#define PATIENCE_NSEC 20e9
#define DRAIN_NSEC 8e9

static void pause_a_moment(void)
{
	const struct timespec t = { .tv_nsec = POLL_NSEC };

	nanosleep(&t, NULL);
}

pid_t bench_ksmd(void)
{
	DIR *d = opendir("/proc");
	struct dirent *entry;
	pid_t pid = 0;

	while (d && !pid && (entry = readdir(d)) != NULL) {
		char path[128], comm[64], cmdline[8];

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%.32s/comm", entry->d_name);
		if (!bench_file_line(path, comm, sizeof(comm)) || strcmp(comm, "ksmd") != 0)
			continue;
		/* A kernel thread has no command line. */
		snprintf(path, sizeof(path), "/proc/%.32s/cmdline", entry->d_name);
		if (!bench_file_line(path, cmdline, sizeof(cmdline)))
			pid = (pid_t)atoi(entry->d_name);
	}
	if (d)
		closedir(d);
	return pid;
}

int64_t bench_ksm_known(void)
{
	static const char *const names[] = { "pages_shared", "pages_sharing", "pages_unshared",
					     "pages_volatile" };
	int64_t sum = 0;

	for (unsigned i = 0; i < 4; i++) {
		int64_t n = bench_ksm_get(names[i]);

		if (n < 0)
			return -1;
		sum += n;
	}
	return sum;
}

/* One ksm_rmap_item a page looked at, one ksm_stable_node a shared one. */
double bench_ksm_memory(void)
{
	static const char *const paths[] = { "/sys/kernel/slab/ksm_rmap_item/slab_size",
					     "/sys/kernel/slab/ksm_stable_node/slab_size" };
	double count[] = { (double)bench_ksm_known(), (double)bench_ksm_get("pages_shared") };
	double bytes = 0;
	char line[32];

	for (unsigned i = 0; i < 2; i++) {
		double each = 64; /* as on x86-64, where slabs cannot be read */

		if (bench_file_line(paths[i], line, sizeof(line)))
			each = strtod(line, NULL);
		bytes += count[i] * each;
	}
	return bytes;
}

static void unthrottle(void)
{
	bench_ksm_set("advisor_mode", "none");
	bench_ksm_set("pages_to_scan", "100000");
	bench_ksm_set("sleep_millisecs", "0");
}

void bench_ksm_drain(int64_t known)
{
	double until = bench_now() + DRAIN_NSEC;

	unthrottle();
	bench_ksm_set("run", "1");
	while (bench_ksm_known() > known && bench_now() < until)
		pause_a_moment();
	bench_ksm_set("run", "0");
}

void bench_ksm_merge(struct bench_sample *s, uint64_t twins)
{
	pid_t ksmd = bench_ksmd();
	int64_t shared = bench_ksm_get("pages_shared"), sharing = bench_ksm_get("pages_sharing");
	int64_t scans = bench_ksm_get("full_scans");
	double until = bench_now() + PATIENCE_NSEC + (double)twins * PATIENCE_NSEC_A_PAGE;
	double merged, first;
	int64_t run = 1;

	unthrottle();
	s->cpu = -bench_cpu_of(ksmd);
	s->wall = -bench_now();
	bench_ksm_set("run", "1");
	do {
		pause_a_moment();
		merged = (double)(bench_ksm_get("pages_sharing") - sharing);
		run = bench_ksm_get("run");
	} while (merged < ENOUGH * (double)twins && bench_now() < until && run == 1);
	s->wall += bench_now();
	s->cpu += bench_cpu_of(ksmd);
	first = (double)(bench_ksm_get("pages_shared") - shared);
	bench_ksm_set("run", "0"); /* waits for the batch: more gets merged meanwhile */
	s->pages = merged + first;
	s->merged_share = merged / (double)twins;
	s->full_scans = (double)(bench_ksm_get("full_scans") - scans);
	s->interfered = merged < ENOUGH * (double)twins;
	if (s->interfered)
		fprintf(stderr, "bench-merge: KSM merged %.0f of %llu (%s)\n", merged,
			(unsigned long long)twins,
			run == 1 ? "no more came" : "somebody else stopped it");
}
