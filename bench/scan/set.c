/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process with known memory:
 *
 *   scan-set NUMBER PAGES RUN
 *
 * Half of its pages are in every such process, a quarter in its partner (0 and 1, 2 and 3
 * ...), a quarter nowhere else; in blocks of RUN pages whose order is another in each
 * process. Behind them are pages not touched yet, for content that comes later.
 * "ready ADDRESS PAGE_BYTES" when it is filled; then, a line at a time:
 *
 *   check          "right PAGES" or "wrong PAGES": every byte
 *   new N SEED     fills the Nth page behind the set: "new ADDRESS"
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../bench.h"

#define BEHIND 1024u

static uint64_t seed_of(uint32_t page, uint32_t block, unsigned number)
{
	switch (page / block % 4) {
	case 0:
	case 2:
		return 1;
	case 1:
		return 100 + number / 2;
	default:
		return 10000 + number;
	}
}

int main(int argc, char **argv)
{
	size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	unsigned number = argc == 4 ? (unsigned)atoi(argv[1]) : 0;
	uint32_t pages = argc == 4 ? (uint32_t)atoi(argv[2]) : 0;
	uint32_t block = argc == 4 ? (uint32_t)atoi(argv[3]) : 0;
	uint32_t *order, n;
	unsigned long seed;
	char line[128];
	char *set;

	if (!pages || !block)
		return 2;
	set = mmap(NULL, (pages + BEHIND) * page_bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	order = bench_order(pages, block, number + 1);
	if (set == MAP_FAILED || !order)
		return 1;
	for (uint32_t i = 0; i < pages; i++)
		bench_page_fill(set + i * page_bytes, seed_of(order[i], block, number), order[i]);
	printf("ready %llx %zu\n", (unsigned long long)(uintptr_t)set, page_bytes);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		uint32_t wrong = 0;

		if (strncmp(line, "check", 5) == 0) {
			for (uint32_t i = 0; i < pages; i++)
				wrong += !bench_page_is(set + i * page_bytes,
							seed_of(order[i], block, number), order[i]);
			printf("%s %u\n", wrong ? "wrong" : "right", wrong ? wrong : pages);
		} else if (sscanf(line, "new %u %lu", &n, &seed) == 2 && n < BEHIND) {
			bench_page_fill(set + (pages + n) * page_bytes, seed, n);
			printf("new %llx\n",
			       (unsigned long long)(uintptr_t)(set + (pages + n) * page_bytes));
		}
		fflush(stdout);
	}
	return 0;
}
