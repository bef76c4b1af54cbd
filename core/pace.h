/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much the scanner may do: a ceiling on CPU time, and how eager to be.
 *
 * The ceiling is a bucket that fills at the permitted share of one core and holds a
 * minute's worth, full at the start: a process that starts, or a burst of new pages, is
 * worked off at full speed. So one minute can have twice the share (what was in the bucket,
 * and what flows in), and over more of them the average holds.
 */
#ifndef SAMEPAGE_CORE_PACE_H
#define SAMEPAGE_CORE_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct core_pace {
	uint32_t permille; /* of one core */
	int64_t left_usec; /* in the bucket; below 0: spent ahead */
	uint64_t at_usec;  /* when that was so */
};

void core_pace_init(struct core_pace *p, uint32_t permille, uint64_t now_usec);
void core_pace_spend(struct core_pace *p, uint64_t now_usec, uint64_t cpu_usec);
bool core_pace_may(struct core_pace *p, uint64_t now_usec);
/* How long until there is room for so much; 0: there is. */
uint64_t core_pace_wait_usec(struct core_pace *p, uint64_t now_usec, uint64_t cpu_usec);

/* The machine's memory, in permille; pressure: the share of time that somebody waited
 * for memory (PSI, "some"), in hundredths of a percent. Unknown: UINT32_MAX and 0. */
struct core_pace_memory {
	uint32_t available_permille;
	uint32_t pressure;
};
/*
 * The longest time between looks: longer while memory is plentiful, shorter when it is
 * short. The shortest is not touched: what is new is always worked off at once.
 */
uint32_t core_pace_most_msec(const struct core_pace_memory *m, uint32_t most_msec,
			     uint32_t first_msec);

/*
 * The shortest run worth a mapping, when `used` of `limit` mappings are taken: 1 as long
 * as half of them are free, then longer and longer; 0: none at all.
 */
uint32_t core_pace_shortest_run(int64_t used, int64_t limit);

#endif
