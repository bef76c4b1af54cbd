/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The run planner: from one decision per page to as few mappings as possible.
 *
 * A run is consecutive pages that map consecutive slots of one segment: one
 * mapping, one system call. Pages that read zero are runs of their own kind
 * (nothing is mapped). Where a page has several slots with its bytes' tag
 * (equal contents published twice, or a tag collision), the planner prefers the
 * slot that continues the run before it.
 */
#ifndef SAMEPAGE_CORE_PLAN_H
#define SAMEPAGE_CORE_PLAN_H

#include <stddef.h>
#include <stdint.h>

enum core_plan_kind {
	CORE_PLAN_SKIP = 0, /* leave the page alone */
	CORE_PLAN_ZERO,
	CORE_PLAN_SLOT,
};

struct core_plan_page {
	uint8_t kind;  /* enum core_plan_kind */
	uint8_t reason; /* why it is skipped, enum samepage_reason */
	uint16_t reserved;
	uint32_t slot; /* CORE_PLAN_SLOT */
};

struct core_plan_run {
	uint32_t first; /* page number in the planned array */
	uint32_t pages;
	uint32_t slot; /* of the first page; CORE_PLAN_SLOT */
	uint8_t kind;  /* ZERO or SLOT */
	uint8_t reserved[3];
};

/* Of the n slots that carry the tag, the one that continues prev's run, else the first. */
uint32_t core_plan_choose(const uint32_t *slots, unsigned n, const struct core_plan_page *prev,
			  uint32_t segment_slots);
/*
 * Cut pages[0..count) into runs; writes at most max_runs and returns how many
 * were written. A run never crosses a segment.
 */
size_t core_plan_runs(const struct core_plan_page *pages, size_t count, uint32_t segment_slots,
		      struct core_plan_run *runs, size_t max_runs);
/* Upper bound of the VMAs that mapping the runs adds: 2 for each CORE_PLAN_SLOT run (I8). */
size_t core_plan_vmas_upper(const struct core_plan_run *runs, size_t count);

#endif
