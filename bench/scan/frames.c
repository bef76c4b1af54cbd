/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How processes share their private memory, by page frames: nobody's counters, neither
 * samepage's nor KSM's.
 *
 *   scan-frames PID...      prints one JSON object
 *
 * Looked at is what is private: anonymous pages (also those of file mappings that were
 * copied on write), and mappings of samepage's store. A page of the store is merged
 * whether or not it is mapped in yet; one that was written since is anonymous again.
 *
 *   mappings       of all processes
 *   anonymous      pages mapped there that are anonymous
 *   ksm            of these, KSM's (kpageflags)
 *   frames         frames behind the anonymous pages, each once; the zero page not
 *   store_pages    pages mapped from the store that are still the store's
 *   store_maps     mappings of the store
 *   runs           {length: how many}, powers of two that the length is at least: pages of
 *                  one mapping of the store, and of KSM pages that lie side by side
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PRESENT (1ull << 63)
#define FILE_PAGE (1ull << 61)
#define PFN_MASK ((1ull << 55) - 1)
#define KPF_KSM (1ull << 21)
#define KPF_ZERO (1ull << 24)
#define CHUNK 4096u
#define RUNS 32

static uint64_t *frame;
static size_t frames, room;
static uint64_t mappings, anonymous, ksm_pages, store_pages, store_maps, runs[RUNS];
static int kpageflags;

static void keep(uint64_t pfn)
{
	if (frames == room) {
		room = room ? room * 2 : 1u << 20;
		frame = realloc(frame, room * sizeof(*frame));
		if (!frame)
			abort();
	}
	frame[frames++] = pfn;
}

/* Neighbours' flags are read together: frames often are neighbours, too. */
static uint64_t flags_of(uint64_t pfn)
{
	static uint64_t at = UINT64_MAX, flags[256];

	if (pfn / 256 != at) {
		at = pfn / 256;
		memset(flags, 0, sizeof(flags));
		if (pread(kpageflags, flags, sizeof(flags), (off_t)(at * sizeof(flags))) < 0)
			at = UINT64_MAX;
	}
	return flags[pfn % 256];
}

static void end_run(uint64_t *run)
{
	if (*run)
		runs[63 - __builtin_clzll(*run)]++;
	*run = 0;
}

static void anonymous_page(uint64_t entry, uint64_t *run)
{
	uint64_t pfn = entry & PFN_MASK, flags = flags_of(pfn);

	if (flags & KPF_ZERO) {
		end_run(run);
		return;
	}
	anonymous++;
	keep(pfn);
	if (flags & KPF_KSM) {
		ksm_pages++;
		(*run)++;
	} else {
		end_run(run);
	}
}

static void range(int pagemap, uint64_t from, uint64_t to, bool store)
{
	static uint64_t entry[CHUNK];
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), run = 0;

	for (uint64_t at = from / page; at < to / page; at += CHUNK) {
		uint64_t n = to / page - at < CHUNK ? to / page - at : CHUNK;
		ssize_t got = pread(pagemap, entry, n * 8, (off_t)(at * 8));

		for (ssize_t i = 0; i < got / 8; i++)
			if ((entry[i] & PRESENT) && !(entry[i] & FILE_PAGE))
				anonymous_page(entry[i], &run);
			else if (store)
				store_pages++;
			else
				end_run(&run);
	}
	end_run(&run);
}

static void process(const char *pid)
{
	char path[64], line[1024];
	int pagemap;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	maps = fopen(path, "re");
	while (pagemap >= 0 && maps && fgets(line, sizeof(line), maps)) {
		unsigned long long from, to;
		char perms[8];
		bool store;

		if (sscanf(line, "%llx-%llx %4s", &from, &to, perms) != 3 ||
		    from >= 1ull << 63)
			continue;
		mappings++;
		store = strstr(line, "/memfd:samepage-store") != NULL && perms[3] == 'p';
		store_maps += store;
		if (store)
			runs[63 - __builtin_clzll((to - from) / (uint64_t)sysconf(_SC_PAGESIZE))]++;
		if (perms[3] == 'p')
			range(pagemap, from, to, store);
	}
	if (maps)
		fclose(maps);
	close(pagemap);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	const char *comma = "";
	uint64_t distinct = 0;

	kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	for (int i = 1; i < argc; i++)
		process(argv[i]);
	if (frames)
		qsort(frame, frames, sizeof(*frame), compare);
	for (size_t i = 0; i < frames; i++)
		distinct += i == 0 || frame[i] != frame[i - 1];
	printf("{\"mappings\": %llu, \"anonymous\": %llu, \"ksm\": %llu, \"frames\": %llu, "
	       "\"store_pages\": %llu, \"store_maps\": %llu, \"runs\": {",
	       (unsigned long long)mappings, (unsigned long long)anonymous,
	       (unsigned long long)ksm_pages, (unsigned long long)distinct,
	       (unsigned long long)store_pages, (unsigned long long)store_maps);
	for (unsigned i = 0; i < RUNS; i++)
		if (runs[i]) {
			printf("%s\"%llu\": %llu", comma, 1ull << i, (unsigned long long)runs[i]);
			comma = ", ";
		}
	printf("}}\n");
	return 0;
}
