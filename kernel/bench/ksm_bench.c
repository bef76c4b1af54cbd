// SPDX-License-Identifier: GPL-2.0-only
/*
 * What merging costs in the guest, in one execution on one data set:
 *
 *   ksm_bench merge RUN PAGES   madvise(MADV_MERGE)
 *   ksm_bench ksmd RUN PAGES    ksmd, unthrottled, until all is merged
 *   ksm_bench remap RUN PAGES   libsamepage's remap, embedded store (if linked with it)
 *   ksm_bench walk [-k] VMAS    one reverse map walk; -k: merged by ksmd
 *   ksm_bench vmas N            mappings of a process that merges all, after N times mmap()
 *
 * Two ranges, PAGES unique random pages in the first, the same in the second, that takes
 * them in stretches of RUN in another order. Costs are of both ranges together: what is
 * spent on a first copy is spent for its twin.
 *
 * A walk is measured through page_idle: writing a page's bit makes the kernel visit every
 * mapping of it, once, to clear its accessed bits, and do nothing else.
 *
 * Each line is "bench NAME KEY VALUE".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_LIBRARY
#include <samepage.h>
#endif

#define MADV_MERGE 26
#define KSM "/sys/kernel/mm/ksm/"

static long page;

static void die(const char *what)
{
	printf("# %s: %s\n", what, strerror(errno));
	exit(1);
}

static long get(const char *path)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		die(path);
	close(fd);
	return atol(text);
}

static void set(const char *path, long value)
{
	char text[32];
	int fd = open(path, O_WRONLY);

	snprintf(text, sizeof(text), "%ld", value);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static double clock_of(clockid_t id)
{
	struct timespec ts;

	if (clock_gettime(id, &ts))
		die("clock_gettime");
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* The CPU clock of a process, as clock_getcpuclockid() would make it. */
static clockid_t cpu_clock(pid_t pid)
{
	return (clockid_t)(~(unsigned int)pid << 3 | 2);
}

static pid_t ksmd_pid(void)
{
	char path[64], name[32];

	for (pid_t pid = 2; pid < 400; pid++) {
		int fd, n;

		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		n = (int)read(fd, name, sizeof(name) - 1);
		close(fd);
		if (n == 5 && !memcmp(name, "ksmd\n", 5))
			return pid;
	}
	errno = ESRCH;
	die("ksmd");
	return 0;
}

static uint64_t rnd_state = 88172645463325252ull;

static uint64_t rnd(void)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return rnd_state;
}

static char *map(size_t pages)
{
	char *p = mmap(NULL, pages * (size_t)page, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, pages * (size_t)page, MADV_NOHUGEPAGE);
	return p;
}

static void fill(char *p, size_t pages)
{
	uint64_t *w = (uint64_t *)(void *)p;

	for (size_t i = 0; i < pages * (size_t)page / 8; i++)
		w[i] = rnd();
}

static void copy_in_runs(char *to, const char *from, size_t pages, size_t run)
{
	size_t blocks = pages / run, *order = malloc(blocks * sizeof(*order));

	for (size_t i = 0; i < blocks; i++)
		order[i] = i;
	for (size_t i = blocks - 1; i > 0; i--) {
		size_t j = rnd() % (i + 1), t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (size_t i = 0; i < blocks; i++)
		memcpy(to + i * run * (size_t)page, from + order[i] * run * (size_t)page,
		       run * (size_t)page);
	free(order);
}

static uint64_t pfn(const char *p)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, &entry, 8, (off_t)((uintptr_t)p / (size_t)page * 8)) != 8)
		die("pagemap");
	close(fd);
	return entry & ((1ull << 55) - 1);
}

static int cost(const char *how, size_t run, size_t pages)
{
	size_t len = pages * (size_t)page;
	char *a = map(pages), *b = map(pages);
	double wall, cpu, merged;
	clockid_t clock = CLOCK_PROCESS_CPUTIME_ID;
	const char *name = how;

	fill(a, pages);
	copy_in_runs(b, a, pages, run);
	if (!strcmp(how, "ksmd")) {
		clock = cpu_clock(ksmd_pid());
		set(KSM "sleep_millisecs", 0);
		set(KSM "pages_to_scan", 1000000);
		/* What the dead have left would be taken for ours. */
		set(KSM "run", 2);
		set(KSM "run", 0);
		if (madvise(a, len, MADV_MERGEABLE) || madvise(b, len, MADV_MERGEABLE))
			die("MADV_MERGEABLE");
	}
	wall = clock_of(CLOCK_MONOTONIC);
	cpu = clock_of(clock);
	if (!strcmp(how, "merge")) {
		long before = get(KSM "pages_sharing");

		if (madvise(a, len, MADV_MERGE) || madvise(b, len, MADV_MERGE))
			die("MADV_MERGE");
		merged = get(KSM "pages_sharing") - before;
	} else if (!strcmp(how, "ksmd")) {
		struct timespec ms = { 0, 1000000 };

		set(KSM "run", 1);
		while ((merged = get(KSM "pages_sharing")) < pages)
			nanosleep(&ms, NULL);
		set(KSM "run", 0);
#ifdef WITH_LIBRARY
	} else if (!strcmp(how, "remap")) {
		struct samepage_options options = {
			.size = sizeof(options), .flags = SAMEPAGE_EMBEDDED,
		};
		struct samepage_result result = { 0 };
		struct samepage *handle;

		if (samepage_open(&handle, &options) ||
		    samepage_merge(handle, a, len, 0, NULL) ||
		    samepage_merge(handle, b, len, 0, &result))
			die("samepage_merge");
		merged = (double)result.pages_merged;
		for (int i = 0; i < SAMEPAGE_REASON_MAX; i++)
			if (result.pages_declined[i])
				printf("# reason %d: %lu\n", i,
				       (unsigned long)result.pages_declined[i]);
#endif
	} else {
		die("not linked with it");
		return 1;
	}
	cpu = clock_of(clock) - cpu;
	wall = clock_of(CLOCK_MONOTONIC) - wall;
	printf("bench %s-%zu merged %.0f of %zu\n", name, run, merged, pages);
	printf("bench %s-%zu wall %.0f ns\n", name, run, wall / merged);
	printf("bench %s-%zu cpu %.0f ns\n", name, run, cpu / merged);
	return merged < pages;
}

/* One page of a mapping that is cut in many, with a twin elsewhere. */
static int walk(bool ksmd, size_t vmas)
{
	size_t pages = vmas * 2, times = vmas > 2000 ? 200 : 2000;
	size_t len = pages * (size_t)page;
	char *a = map(pages), *b = map(1);
	char *at = a + (pages / 2) * (size_t)page;
	uint64_t frame, bit;
	double start, ns;
	int fd;

	/* All in one anon_vma. */
	for (size_t i = 0; i < pages; i++)
		a[i * (size_t)page] = (char)(i | 1);
	fill(at, 1);
	memcpy(b, at, (size_t)page);
	if (ksmd) {
		set(KSM "run", 2);
		madvise(at, (size_t)page, MADV_MERGEABLE);
		madvise(b, (size_t)page, MADV_MERGEABLE);
		set(KSM "sleep_millisecs", 0);
		set(KSM "pages_to_scan", 1000);
		set(KSM "run", 1);
		while (get(KSM "pages_sharing") < 1)
			usleep(1000);
		set(KSM "run", 0);
	} else if (madvise(at, (size_t)page, MADV_MERGE) || madvise(b, (size_t)page, MADV_MERGE)) {
		die("MADV_MERGE");
	}
	frame = pfn(at);
	if (!frame || frame != pfn(b))
		die("not merged");
	for (size_t i = 0; vmas > 1 && i < pages; i += 2)
		if (mprotect(a + i * (size_t)page, (size_t)page, PROT_READ))
			die("mprotect");
	fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	if (fd < 0)
		die("page_idle");
	bit = 1ull << (frame % 64);
	if (pwrite(fd, &bit, 8, (off_t)(frame / 64 * 8)) != 8)
		die("page_idle");
	start = clock_of(CLOCK_MONOTONIC);
	for (size_t i = 0; i < times; i++)
		if (pwrite(fd, &bit, 8, (off_t)(frame / 64 * 8)) != 8)
			die("page_idle");
	ns = (clock_of(CLOCK_MONOTONIC) - start) / (double)times;
	/* The same of a page that only one maps: what is no walk. */
	printf("bench walk-%zu wall %.0f ns\n", vmas, ns);
	close(fd);
	munmap(a, len);
	return 0;
}

static int vmas(size_t n)
{
	char line[512], *area;
	unsigned long from, to;
	int count = 0;
	FILE *f;

	if (prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0))
		die("PR_SET_MEMORY_MERGE");
	area = mmap(NULL, (n + 2) * (size_t)page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		die("mmap");
	munmap(area, (n + 2) * (size_t)page);
	area += page;
	for (size_t i = 0; i < n; i++)
		if (mmap(area + i * (size_t)page, (size_t)page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
			die("mmap");
	f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from >= (uintptr_t)area &&
		    to <= (uintptr_t)area + n * (size_t)page)
			count++;
	printf("bench vmas-%zu count %d\n", n, count);
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	page = sysconf(_SC_PAGESIZE);
	if (argc == 4 && (!strcmp(argv[1], "merge") || !strcmp(argv[1], "ksmd") ||
			  !strcmp(argv[1], "remap")))
		return cost(argv[1], strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
	if (argc == 3 && !strcmp(argv[1], "walk"))
		return walk(false, strtoul(argv[2], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "walk"))
		return walk(true, strtoul(argv[3], NULL, 10));
	if (argc == 3 && !strcmp(argv[1], "vmas"))
		return vmas(strtoul(argv[2], NULL, 10));
	fprintf(stderr, "usage: ksm_bench merge|ksmd|remap RUN PAGES | walk [-k] VMAS | vmas N\n");
	return 2;
}
