// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does one reverse map walk of a KSM page cost, by the number of vmas that
 * share its anon_vma?
 *
 * One mapping is cut into vmas of a page each: they all keep the anon_vma.  Two
 * of them map the same KSM page, the rest have nothing to do with it.  Writing
 * the page's bit to the idle page bitmap has the kernel walk its reverse map
 * exactly once.
 *
 *   ksm_rmap_bench [vmas ...]	default: 1 100 1000 20000
 *
 * Prints a line for each: the quickest and the median of the walks, less what the
 * same write costs for a page that is not mapped by KSM and has one vma.  "1" is
 * two vmas really: a page is KSM only if two addresses have it; with 1 both lie
 * in the same vma.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KSM_SYSFS	"/sys/kernel/mm/ksm/"
#define WALKS		15

static size_t psz;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void write_str(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		die(path);
	close(fd);
}

static uint64_t read_u64(const char *path, off_t index)
{
	uint64_t value = 0;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || pread(fd, &value, sizeof(value), index * 8) < 0)
		die(path);
	close(fd);
	return value;
}

static uint64_t pfn_of(char *addr)
{
	uint64_t entry = read_u64("/proc/self/pagemap", (unsigned long)addr / psz);

	return entry >> 63 ? entry & ((1ull << 55) - 1) : 0;
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static int cmp(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Time of a walk, in ns: t[0] the quickest, t[1] the median. */
static void time_walk(uint64_t pfn, uint64_t t[2])
{
	uint64_t times[WALKS], bit = 1ull << (pfn % 64);
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_WRONLY);
	int i;

	if (fd < 0)
		die("page_idle");
	for (i = 0; i < WALKS; i++) {
		times[i] = now();
		if (pwrite(fd, &bit, 8, pfn / 64 * 8) != 8)
			die("page_idle");
		times[i] = now() - times[i];
	}
	close(fd);
	qsort(times, WALKS, sizeof(times[0]), cmp);
	t[0] = times[0];
	t[1] = times[WALKS / 2];
}

static void bench(long vmas)
{
	long pages = vmas < 2 ? 2 : vmas, i;
	uint64_t walk[2], other[2], pfn;
	int tries = 500;
	char *addr;

	addr = mmap(NULL, pages * psz, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (addr == MAP_FAILED)
		die("mmap");
	madvise(addr, pages * psz, MADV_NOHUGEPAGE);
	memset(addr, 0x5a, psz);
	addr[1] = (char)vmas;
	/* The other one as far away as it can be. */
	memcpy(addr + (pages - 1) * psz, addr, psz);

	if (madvise(addr, pages * psz, MADV_MERGEABLE))
		die("MADV_MERGEABLE");
	write_str(KSM_SYSFS "run", "1");
	while (--tries && (pfn_of(addr) != pfn_of(addr + (pages - 1) * psz)))
		usleep(10000);
	write_str(KSM_SYSFS "run", "0");
	if (!tries)
		die("not merged");

	for (i = 1; vmas > 1 && i < pages; i += 2)
		if (mprotect(addr + i * psz, psz, PROT_READ))
			die("mprotect");

	pfn = pfn_of(addr);
	if (!pfn || pfn_of(addr + (pages - 1) * psz) != pfn)
		die("not a KSM page");
	time_walk(pfn, walk);
	time_walk(pfn_of((char *)((unsigned long)&walk & -psz)), other);
	printf("ksm_rmap_bench vmas=%ld walk_min_us=%.1f walk_median_us=%.1f other_page_us=%.1f\n",
	       vmas, walk[0] / 1e3, walk[1] / 1e3, other[1] / 1e3);
	fflush(stdout);
	munmap(addr, pages * psz);
}

int main(int argc, char **argv)
{
	static const long counts[] = { 1, 100, 1000, 20000 };
	size_t i;

	psz = sysconf(_SC_PAGESIZE);
	write_str(KSM_SYSFS "pages_to_scan", "30000");
	write_str(KSM_SYSFS "sleep_millisecs", "0");
	/* Two pages that are skipped in turns would never meet. */
	write_str(KSM_SYSFS "smart_scan", "0");
	if (argc > 1)
		while (*++argv)
			bench(atol(*argv));
	else
		for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
			bench(counts[i]);
	return 0;
}
