/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is in the memory that is merged: page number n holds words that only
 * (seed, n) decide, so that every process can make it and check it by itself,
 * every page is unlike every other, and nothing of it is zero or repeats.
 *
 * The order decides the run length R: the first range holds pages 0, 1, 2 ...
 * and fills the store in that order; the second holds the same pages in blocks
 * of R, the blocks shuffled so that no block is followed by its successor. So
 * R is exactly the number of pages that one mapping can cover.
 */
#include <stdlib.h>
#include <unistd.h>

#include "bench.h"

uint64_t bench_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	/* splitmix64, Steele, Lea and Flood */
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t page_state(uint64_t seed, uint32_t number)
{
	uint64_t state = seed + (uint64_t)number * 0xd1342543de82ef95ull;

	return bench_random(&state);
}

void bench_page_fill(void *page, uint64_t seed, uint32_t number)
{
	uint64_t state = page_state(seed, number);
	uint64_t *word = page;
	size_t words = (size_t)sysconf(_SC_PAGESIZE) / sizeof(*word);

	for (size_t i = 0; i < words; i++)
		word[i] = bench_random(&state);
}

bool bench_page_is(const void *page, uint64_t seed, uint32_t number)
{
	uint64_t state = page_state(seed, number);
	const uint64_t *word = page;
	size_t words = (size_t)sysconf(_SC_PAGESIZE) / sizeof(*word);
	uint64_t differ = 0;

	for (size_t i = 0; i < words; i++)
		differ |= word[i] ^ bench_random(&state);
	return differ == 0;
}

static void swap(uint32_t *a, uint32_t *b)
{
	uint32_t t = *a;

	*a = *b;
	*b = t;
}

/* Shuffle the blocks; then break up what still is in order. */
static void shuffle(uint32_t *block, uint32_t blocks, uint64_t seed)
{
	uint64_t state = ~seed;

	for (uint32_t i = blocks; i > 1; i--)
		swap(&block[i - 1], &block[bench_random(&state) % i]);
	for (bool again = blocks > 3; again;) {
		again = false;
		for (uint32_t i = 0; i + 1 < blocks; i++)
			if (block[i + 1] == block[i] + 1) {
				swap(&block[i + 1], &block[bench_random(&state) % blocks]);
				again = true;
			}
	}
}

uint32_t *bench_order(uint32_t pages, uint32_t run, uint64_t seed)
{
	uint32_t blocks = run == BENCH_WHOLE ? 1 : pages / run;
	uint32_t length = run == BENCH_WHOLE ? pages : run;
	uint32_t *order = calloc(pages, sizeof(*order));
	uint32_t *block = calloc(blocks, sizeof(*block));

	if (!order || !block)
		bench_die("no memory for the order of %u pages", pages);
	for (uint32_t i = 0; i < blocks; i++)
		block[i] = i;
	shuffle(block, blocks, seed);
	for (uint32_t i = 0; i < blocks; i++)
		for (uint32_t k = 0; k < length; k++)
			order[i * length + k] = block[i] * length + k;
	free(block);
	return order;
}
