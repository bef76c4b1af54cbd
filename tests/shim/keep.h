/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For programs that know nothing of samepage and say what they see of their memory:
 * keep-*.c, which keep.sh runs with and without samepage. Both runs must print the same.
 *
 * Memory of these programs holds each page's bytes twice, so that it is merged when
 * somebody says so. wait_merged() is the one place that is told (by KEEP_MERGED=1)
 * that samepage is there: it waits until the kernel shows mappings of a store in the
 * range, or pages that it has merged itself, for a case whose memory was never merged proves nothing.
 */
#ifndef SAMEPAGE_TESTS_KEEP_H
#define SAMEPAGE_TESTS_KEEP_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGES 64u
#define NEVER_MERGED 99
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

struct keep_case {
	const char *name;
	void (*run)(void);
};

static size_t page;

static inline bool with_samepage(void)
{
	return getenv("KEEP_MERGED") != NULL;
}

/* Pages of [p, p + bytes) that lie in mappings of a store. */
static inline size_t store_pages(const void *p, size_t bytes)
{
	uintptr_t lo = (uintptr_t)p, hi = lo + bytes, start, end;
	char line[512];
	size_t pages = 0;
	FILE *maps = fopen("/proc/self/maps", "re");

	while (maps && fgets(line, sizeof(line), maps)) {
		if (!strstr(line, "/memfd:samepage-store") ||
		    sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		if (start < lo)
			start = lo;
		if (end > hi)
			end = hi;
		if (start < end)
			pages += (end - start) / page;
	}
	if (maps)
		fclose(maps);
	return pages;
}

/* Of [p, p + bytes): pages that the kernel has merged (as root; else none are seen). */
static inline size_t kernel_pages(const void *p, size_t bytes)
{
	FILE *map = fopen("/proc/self/pagemap", "re"), *flags = fopen("/proc/kpageflags", "re");
	const uint64_t frame = (UINT64_C(1) << 55) - 1;
	size_t pages = 0;

	for (size_t i = 0; map && flags && i < bytes / page; i++) {
		uint64_t entry = 0, flag = 0;

		if (fseek(map, (long)(((uintptr_t)p / page + i) * 8), SEEK_SET) == 0 &&
		    fread(&entry, 8, 1, map) == 1 && entry >> 63 && (entry & frame) &&
		    fseek(flags, (long)((entry & frame) * 8), SEEK_SET) == 0 &&
		    fread(&flag, 8, 1, flags) == 1)
			pages += flag >> 21 & 1;
	}
	if (map)
		fclose(map);
	if (flags)
		fclose(flags);
	return pages;
}

static inline size_t merged_pages(const void *p, size_t bytes)
{
	return store_pages(p, bytes) + kernel_pages(p, bytes);
}

static inline void nap(unsigned msec)
{
	struct timespec t = { msec / 1000, msec % 1000 * 1000000L };

	nanosleep(&t, NULL);
}

static inline void wait_merged(const void *p, size_t bytes, size_t want_pages)
{
	if (!with_samepage())
		return;
	for (int i = 0; i < 3000; i++) {
		if (merged_pages(p, bytes) >= want_pages)
			return;
		nap(10);
	}
	fprintf(stderr, "never merged: %zu of %zu pages\n", merged_pages(p, bytes), want_pages);
	fflush(NULL);
	_exit(NEVER_MERGED);
}

/* Bytes that page i of generation `gen` holds; i and i + PAGES / 2 are alike. */
static inline void fill_page(void *at, unsigned i, unsigned gen)
{
	uint64_t x = (i % (PAGES / 2) + 1) * 0x9e3779b97f4a7c15u + gen * 0xbf58476d1ce4e5b9u;
	uint64_t *word = at;

	for (size_t k = 0; k < page / sizeof(*word); k++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		word[k] = x;
	}
}

static inline void fill(void *p, size_t pages, unsigned gen)
{
	for (size_t i = 0; i < pages; i++)
		fill_page((char *)p + i * page, (unsigned)i, gen);
}

static inline uint64_t hash(const void *p, size_t bytes)
{
	const uint64_t *word = p;
	uint64_t h = 14695981039346656037u;

	for (size_t i = 0; i < bytes / sizeof(*word); i++)
		h = (h ^ word[i]) * 1099511628211u;
	return h;
}

/* A line for a range: which pages are zero (0), as filled (=), else (#); and a hash. */
static inline void show(const char *what, const void *p, size_t pages, unsigned gen)
{
	static uint64_t want[65536 / 8];
	char map[4 * PAGES + 1];
	size_t i;

	for (i = 0; i < pages && i < 4 * PAGES; i++) {
		const char *at = (const char *)p + i * page;
		size_t k = 0;

		fill_page(want, (unsigned)i, gen);
		while (k < page && at[k] == 0)
			k++;
		map[i] = k == page ? '0' : memcmp(at, want, page) == 0 ? '=' : '#';
	}
	map[i] = '\0';
	printf("%s: %s %016lx\n", what, map, hash(p, pages * page));
}

static inline void said(const char *what, long ret)
{
	if (ret == -1)
		printf("%s: -1 %s\n", what, strerrorname_np(errno));
	else
		printf("%s: %ld\n", what, ret);
}

/* PAGES pages with the bytes of generation gen, a hole on both sides, merged. */
static inline char *memory(unsigned gen)
{
	char *p = mmap(NULL, 3 * PAGES * page, RW, ANON, -1, 0);

	if (p == MAP_FAILED)
		_exit(98);
	munmap(p, PAGES * page);
	munmap(p + 2 * PAGES * page, PAGES * page);
	p += PAGES * page;
	fill(p, PAGES, gen);
	return p;
}

static inline char *merged_memory(unsigned gen)
{
	char *p = memory(gen);

	wait_merged(p, PAGES * page, PAGES);
	return p;
}

static inline void end_of(const char *what, pid_t pid)
{
	int status = -1;

	waitpid(pid, &status, __WALL);
	if (WIFEXITED(status))
		printf("%s: exited %d\n", what, WEXITSTATUS(status));
	else
		printf("%s: signal %d\n", what, WTERMSIG(status));
}

static inline int keep_main(int argc, char **argv, const struct keep_case *cases, size_t count)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	for (size_t i = 0; i < count; i++) {
		if (argc < 2) {
			puts(cases[i].name);
		} else if (strcmp(argv[1], cases[i].name) == 0) {
			alarm(200);
			cases[i].run();
			fflush(stdout);
			return 0;
		}
	}
	return argc < 2 ? 0 : 2;
}

#endif
