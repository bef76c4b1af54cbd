/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/pace.h"

#define WINDOW_USEC 60000000

static int64_t room_usec(const struct core_pace *p)
{
	return (int64_t)p->permille * (WINDOW_USEC / 1000);
}

static void fill(struct core_pace *p, uint64_t now_usec)
{
	uint64_t since = now_usec > p->at_usec ? now_usec - p->at_usec : 0;

	/* Long enough to be full whatever was spent; and no overflow below. */
	if (since > 64ull * WINDOW_USEC)
		since = 64ull * WINDOW_USEC;
	p->left_usec += (int64_t)(since * p->permille / 1000);
	if (p->left_usec > room_usec(p))
		p->left_usec = room_usec(p);
	/* What is less than a microsecond of room is not lost. */
	if (p->permille && now_usec > p->at_usec)
		p->at_usec = now_usec - (since * p->permille % 1000) / p->permille;
}

void core_pace_init(struct core_pace *p, uint32_t permille, uint64_t now_usec)
{
	p->permille = permille;
	p->at_usec = now_usec;
	p->left_usec = room_usec(p);
}

void core_pace_spend(struct core_pace *p, uint64_t now_usec, uint64_t cpu_usec)
{
	fill(p, now_usec);
	p->left_usec -= (int64_t)cpu_usec;
}

bool core_pace_may(struct core_pace *p, uint64_t now_usec)
{
	fill(p, now_usec);
	return p->left_usec > 0;
}

uint64_t core_pace_wait_usec(struct core_pace *p, uint64_t now_usec, uint64_t cpu_usec)
{
	int64_t want = (int64_t)cpu_usec;

	fill(p, now_usec);
	if (want > room_usec(p))
		want = room_usec(p);
	if (p->left_usec >= want)
		return 0;
	if (!p->permille)
		return WINDOW_USEC;
	return (uint64_t)(want - p->left_usec) * 1000 / p->permille + 1;
}

#define PLENTY_PERMILLE 500u
#define SCARCE_PERMILLE 100u
#define PRESSED 100u /* one percent */

uint32_t core_pace_most_msec(const struct core_pace_memory *m, uint32_t most_msec,
			     uint32_t first_msec)
{
	uint32_t msec = most_msec;

	if (m->pressure >= PRESSED || m->available_permille < SCARCE_PERMILLE)
		msec /= 4;
	else if (m->available_permille >= PLENTY_PERMILLE && m->available_permille != UINT32_MAX)
		msec *= 2;
	return msec > first_msec ? msec : first_msec;
}

uint32_t core_pace_shortest_run(int64_t used, int64_t limit)
{
	int64_t left = limit - used;

	if (limit <= 0 || left < 4)
		return 0;
	if (left * 2 >= limit)
		return 1;
	if (left * 4 >= limit)
		return 2;
	if (left * 8 >= limit)
		return 4;
	return 16;
}
