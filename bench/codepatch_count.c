/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much memory the processes and samepage use.
 *
 * The machine's own counters (/proc/meminfo) contain whatever else runs on it, so
 * the figures are sums over the processes and the broker, and the machine's are
 * shown beside them:
 *
 *   anon      Anonymous of smaps_rollup. A page of KSM's is in it once for each
 *             process that maps it: all but one are taken off again (pages_sharing).
 *             Forked processes share pages anyway: Pss_Anon, each process's part
 *   shmem     the broker's memfds, by their blocks, each inode once: segments, index,
 *             candidates, rings. The rings are those that the clients map; the broker
 *             has them mapped, too
 *   tables    VmPTE, which is all page tables of the process but the top
 *   vma_slab  mappings times the size of vm_area_struct, and the tree's nodes, of
 *             which one serves ten mappings or more
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "codepatch.h"

#define VMA_BYTES 192.0       /* where slabs cannot be read */
#define NODE_BYTES 256.0
#define VMAS_A_NODE 10.0
#define INODES_MAX 8192
#define FRAME_SAMPLES 16u
#define PFN_MASK ((1ull << 55) - 1)

static double page_bytes(void)
{
	return (double)sysconf(_SC_PAGESIZE);
}

static double vma_bytes(void)
{
	FILE *f = fopen("/proc/slabinfo", "re");
	double bytes = VMA_BYTES;
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		unsigned long active, total, size;

		if (sscanf(line, "vm_area_struct %lu %lu %lu", &active, &total, &size) == 3)
			bytes = (double)size;
	}
	if (f)
		fclose(f);
	return bytes + NODE_BYTES / VMAS_A_NODE;
}

static unsigned vmas_of(pid_t pid)
{
	char path[64], buf[65536];
	unsigned lines = 0;
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		bench_die("cannot read %s", path);
	while ((n = fread(buf, 1, sizeof(buf), f)) > 0)
		for (size_t i = 0; i < n; i++)
			lines += buf[i] == '\n';
	fclose(f);
	return lines - 1; /* vsyscall is none */
}

/* --- the broker's memfds ---------------------------------------------------- */

struct inodes {
	ino_t seen[INODES_MAX];
	unsigned count;
	double bytes;
};

static void add_memfd(struct inodes *all, const char *path)
{
	char target[64];
	struct stat st;
	ssize_t n = readlink(path, target, sizeof(target) - 1);

	if (n < 0 || strncmp(target, "/memfd:samepage", 15) != 0 || stat(path, &st) < 0)
		return;
	for (unsigned i = 0; i < all->count; i++)
		if (all->seen[i] == st.st_ino)
			return;
	if (all->count < INODES_MAX)
		all->seen[all->count++] = st.st_ino;
	all->bytes += (double)st.st_blocks * 512;
}

static void add_folder(struct inodes *all, pid_t pid, const char *folder)
{
	char path[400];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, folder);
	d = opendir(path);
	while (d && (e = readdir(d)) != NULL) {
		snprintf(path, sizeof(path), "/proc/%d/%s/%.255s", (int)pid, folder, e->d_name);
		add_memfd(all, path);
	}
	if (d)
		closedir(d);
}

static double shmem_of(pid_t broker)
{
	struct inodes all = { .count = 0 };

	add_folder(&all, broker, "fd");
	add_folder(&all, broker, "map_files");
	return all.bytes;
}

/* --- frames ----------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Distinct frames behind one text page of all processes; layouts differ, so each
 * process's text is looked for in its maps. */
static uint64_t text_of(pid_t pid, uint64_t pages)
{
	char path[64], line[512];
	uint64_t found = 0, was = 0, at = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	/* It may have been mapped over: it begins where the headers' mapping ends. */
	while (f && !found && fgets(line, sizeof(line), f)) {
		unsigned long long from, to;

		if (sscanf(line, "%llx-%llx", &from, &to) != 2)
			continue;
		if (was && from == at)
			found = from;
		was = strstr(line, "/libc.so") != NULL && strstr(line, " r--p 00000000 ") != NULL;
		at = to;
	}
	if (f)
		fclose(f);
	return pages ? found : 0;
}

static bool frame_of(int fd, uint64_t addr, uint64_t *frame)
{
	uint64_t entry;

	if (pread(fd, &entry, sizeof(entry), (off_t)(addr / (uint64_t)page_bytes() * 8)) != 8)
		return false;
	*frame = entry & PFN_MASK;
	return entry >> 63;
}

static double distinct_frames(const struct cp_control *c, unsigned processes)
{
	uint64_t *frame = calloc((size_t)processes * FRAME_SAMPLES, sizeof(*frame));
	uint64_t pages = atomic_load(&c->text_pages);
	unsigned n = 0, distinct = 0;

	for (unsigned i = 0; frame && i < processes; i++) {
		uint64_t text = text_of(atomic_load(&c->worker[i].pid), pages);
		char path[64];
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/pagemap",
			 (int)atomic_load(&c->worker[i].pid));
		f = fopen(path, "re");
		for (unsigned k = 0; f && text && k < FRAME_SAMPLES; k++)
			n += frame_of(fileno(f), text + (pages - 1) * k / (FRAME_SAMPLES - 1) *
						 (uint64_t)page_bytes(), &frame[n]);
		if (f)
			fclose(f);
	}
	if (frame)
		qsort(frame, n, sizeof(*frame), compare);
	for (unsigned i = 0; i < n; i++)
		distinct += i == 0 || frame[i] != frame[i - 1];
	free(frame);
	return (double)distinct / FRAME_SAMPLES;
}

/* --- all of it -------------------------------------------------------------- */

static void count_process(struct cp_count *n, pid_t pid, bool forked)
{
	double vmas = vmas_of(pid);

	n->anon += bench_smaps(pid, forked ? "Pss_Anon" : "Anonymous") / page_bytes();
	n->tables += bench_page_tables(pid) / page_bytes();
	n->vmas += vmas;
	if (vmas > n->vmas_max)
		n->vmas_max = vmas;
}

void cp_count(const struct cp_control *c, unsigned processes, pid_t broker, struct cp_count *n)
{
	*n = (struct cp_count){ 0 };
	n->whole_anon = bench_meminfo("AnonPages") / page_bytes();
	n->whole_shmem = bench_meminfo("Shmem") / page_bytes();
	n->whole_tables = bench_meminfo("PageTables") / page_bytes();
	n->kernel_stacks = bench_meminfo("KernelStack") / page_bytes();
	for (unsigned i = 0; i < processes; i++)
		count_process(n, atomic_load(&c->worker[i].pid), c->children > 0);
	if (broker) {
		struct cp_count own = { 0 };

		count_process(&own, broker, false);
		n->anon += own.anon;
		n->tables += own.tables;
		n->shmem = shmem_of(broker) / page_bytes();
		n->vma_slab = own.vmas * vma_bytes() / page_bytes();
	}
	if (c->mode == CP_KSM) {
		n->anon -= c->children ? 0 : (double)bench_ksm_get("pages_sharing");
		n->ksm_items = bench_ksm_memory() / page_bytes();
	}
	n->vma_slab += n->vmas * vma_bytes() / page_bytes();
	n->vmas /= processes;
	n->sum = n->anon + n->shmem + n->tables + n->vma_slab;
	n->frames = distinct_frames(c, processes);
}

double cp_machine_cpu(void)
{
	unsigned long long v[8] = { 0 };
	char line[512];

	if (!bench_file_line("/proc/stat", line, sizeof(line)) ||
	    sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3],
		   &v[4], &v[5], &v[6], &v[7]) < 7)
		return 0;
	/* Idle and waiting for I/O are no work. */
	return (double)(v[0] + v[1] + v[2] + v[5] + v[6]) / (double)sysconf(_SC_CLK_TCK);
}
