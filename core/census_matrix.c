/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The matrix of pairs. Each content is counted once for each pair of processes that have
 * it, so the rows are limited to the processes with the most duplicate pages, as many as
 * bits in a word: one pass over the contents, one mask each.
 */
#include <string.h>

#include "core/census_impl.h"

/* The processes with the most duplicate pages, in the order of the census. */
static uint32_t choose(struct core_census *c, uint32_t member[CORE_CENSUS_MATRIX])
{
	uint32_t n = 0;

	for (uint32_t p = 0; p < c->processes; p++)
		c->process[p].matrix_at = 0;
	for (; n < CORE_CENSUS_MATRIX; n++) {
		struct core_census_process *best = NULL;

		for (uint32_t p = 0; p < c->processes; p++) {
			struct core_census_process *q = &c->process[p];

			if (!q->matrix_at && q->sums.duplicate > 0 &&
			    (!best || q->sums.duplicate > best->sums.duplicate))
				best = q;
		}
		if (!best)
			break;
		best->matrix_at = 1;
	}
	n = 0;
	for (uint32_t p = 0; p < c->processes; p++) {
		if (!c->process[p].matrix_at)
			continue;
		member[n++] = p;
		c->process[p].matrix_at = n;
	}
	return n;
}

static void count_pairs(uint64_t mask, uint64_t *cell)
{
	for (uint64_t rows = mask; rows; rows &= rows - 1) {
		unsigned a = (unsigned)__builtin_ctzll(rows);

		for (uint64_t rest = rows & (rows - 1); rest; rest &= rest - 1) {
			unsigned b = (unsigned)__builtin_ctzll(rest);

			cell[a * CORE_CENSUS_MATRIX + b]++;
			cell[b * CORE_CENSUS_MATRIX + a]++;
		}
	}
}

uint32_t core_census_matrix(struct core_census *c, uint32_t member[CORE_CENSUS_MATRIX],
			    uint64_t *cell)
{
	uint32_t n = choose(c, member);

	memset(cell, 0, sizeof(*cell) * CORE_CENSUS_MATRIX * CORE_CENSUS_MATRIX);
	if (!c->sorted_by_hash)
		census_sort_hash(c);
	for (uint64_t from = 0; from < c->sorted;) {
		uint64_t end = census_class_end(c, CENSUS_BY_HASH, from, c->sorted);
		uint64_t mask = 0;

		for (uint64_t k = from; k < end; k++) {
			uint32_t row = c->process[core_census_process_of(c, c->order[k])].matrix_at;
			uint64_t bit = row ? UINT64_C(1) << (row - 1) : 0;

			if (mask & bit)
				cell[(size_t)(row - 1) * (CORE_CENSUS_MATRIX + 1)]++;
			mask |= bit;
		}
		count_pairs(mask, cell);
		from = end;
	}
	return n;
}
