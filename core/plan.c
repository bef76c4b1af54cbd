/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The run planner: one pass over the pages, no state. What the planner is given
 * may be partly wrong (a slot number out of a hostile index): it only cuts,
 * every check of slot numbers is the caller's.
 */
#include "core/plan.h"

#include <stdbool.h>

#include "core/index.h"

/* A run may go from slot to slot + 1: same segment, and the number exists. */
static bool slot_has_next(uint32_t slot, uint32_t segment_slots)
{
	uint32_t next = slot + 1;

	if (slot >= CORE_SLOT_NONE - 1)
		return false;
	return segment_slots == 0 || next % segment_slots != 0;
}

uint32_t core_plan_choose(const uint32_t *slots, unsigned n, const struct core_plan_page *prev,
			  uint32_t segment_slots)
{
	unsigned i;

	if (n == 0)
		return CORE_SLOT_NONE;
	if (prev && prev->kind == CORE_PLAN_SLOT && slot_has_next(prev->slot, segment_slots)) {
		for (i = 0; i < n; i++) {
			if (slots[i] == prev->slot + 1)
				return slots[i];
		}
	}
	return slots[0];
}

static bool page_continues(const struct core_plan_page *prev, const struct core_plan_page *page,
			   uint32_t segment_slots)
{
	if (page->kind != prev->kind)
		return false;
	if (page->kind == CORE_PLAN_ZERO)
		return true;
	return slot_has_next(prev->slot, segment_slots) && page->slot == prev->slot + 1;
}

size_t core_plan_runs(const struct core_plan_page *pages, size_t count, uint32_t segment_slots,
		      struct core_plan_run *runs, size_t max_runs)
{
	size_t written = 0;
	size_t first, end;

	/* Page numbers of runs have 32 bits. */
	if (count > UINT32_MAX)
		count = UINT32_MAX;
	for (first = 0; first < count && written < max_runs; first = end) {
		const struct core_plan_page *page = &pages[first];

		end = first + 1;
		if (page->kind != CORE_PLAN_ZERO && page->kind != CORE_PLAN_SLOT)
			continue;
		while (end < count && page_continues(&pages[end - 1], &pages[end], segment_slots))
			end++;
		runs[written++] = (struct core_plan_run){
			.first = (uint32_t)first,
			.pages = (uint32_t)(end - first),
			.slot = page->kind == CORE_PLAN_SLOT ? page->slot : 0,
			.kind = page->kind,
		};
	}
	return written;
}

size_t core_plan_vmas_upper(const struct core_plan_run *runs, size_t count)
{
	size_t slot_runs = 0;
	size_t i;

	for (i = 0; i < count; i++)
		slot_runs += runs[i].kind == CORE_PLAN_SLOT;
	return 2 * slot_runs;
}
