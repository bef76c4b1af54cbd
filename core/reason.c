/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of the reasons and sums over results (I9).
 *
 * core_result_decline() counts under the reason only; pages_looked is counted
 * where pages are looked at. core_result_add() adds every field, pages_declined
 * up to SAMEPAGE_REASON_MAX, so that results of a newer library add up as well.
 */
#include "core/reason.h"


_Static_assert((int)SAMEPAGE_REASON_COUNT <= (int)SAMEPAGE_REASON_MAX,
	       "public arrays are too short for the reasons");

/* Switches: tables of pointers would be relocated, a private copy in each process. */
const char *core_reason_name(unsigned reason)
{
	switch (reason) {
#define REASON_NAME(id, name, text)                                                                \
	case SAMEPAGE_REASON_##id:                                                                 \
		return name;
		SAMEPAGE_REASONS(REASON_NAME)
#undef REASON_NAME
	}
	return NULL;
}

const char *core_reason_text(unsigned reason)
{
	switch (reason) {
#define REASON_TEXT(id, name, text)                                                                \
	case SAMEPAGE_REASON_##id:                                                                 \
		return text;
		SAMEPAGE_REASONS(REASON_TEXT)
#undef REASON_TEXT
	}
	return NULL;
}

void core_result_decline(struct samepage_result *r, enum samepage_reason why, uint64_t pages)
{
	unsigned n = why;

	/* Counted somewhere in any case: a page without a reason breaks I9. */
	if (n >= SAMEPAGE_REASON_MAX)
		n = SAMEPAGE_REASON_FAILED;
	r->pages_declined[n] += pages;
}

void core_result_add(struct samepage_result *sum, const struct samepage_result *r)
{
	unsigned i;

	sum->pages_looked += r->pages_looked;
	sum->pages_merged += r->pages_merged;
	sum->pages_zeroed += r->pages_zeroed;
	sum->pages_already += r->pages_already;
	for (i = 0; i < SAMEPAGE_REASON_MAX; i++)
		sum->pages_declined[i] += r->pages_declined[i];
	sum->pages_promoted += r->pages_promoted;
	sum->runs += r->runs;
	/* Through unsigned: what a client reports must not overflow a signed sum. */
	sum->vmas_added = (int64_t)((uint64_t)sum->vmas_added + (uint64_t)r->vmas_added);
	sum->wall_usec += r->wall_usec;
	sum->cpu_usec += r->cpu_usec;
	sum->frozen_usec += r->frozen_usec;
}

uint64_t core_result_declined(const struct samepage_result *r)
{
	uint64_t pages = 0;
	unsigned i;

	for (i = 0; i < SAMEPAGE_REASON_MAX; i++)
		pages += r->pages_declined[i];
	return pages;
}
