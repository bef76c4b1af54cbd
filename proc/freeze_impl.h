/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One freeze, as freeze.c and putback.c share it. */
#ifndef SAMEPAGE_PROC_FREEZE_IMPL_H
#define SAMEPAGE_PROC_FREEZE_IMPL_H

#include "proc/internal.h"

struct freeze {
	struct proc_engine *e;
	const struct proc_chunk *c;
	struct samepage_result *res;
	struct core_plan_page *plan;
	uint8_t *staged; /* of each page: is it in the staging area? */
	struct proc_staging *staging;
	uint32_t lo, hi; /* planned pages are within [lo, hi) of the chunk */
};

static inline uint8_t *page_at(const struct freeze *f, uint32_t i)
{
	return (uint8_t *)(f->c->base + ((uint64_t)i << f->e->page_shift));
}

static inline uint8_t *stage_at(const struct freeze *f, uint32_t i)
{
	return f->staging->base + ((size_t)i << f->e->page_shift);
}

static inline size_t bytes_of(const struct freeze *f, uint32_t pages)
{
	return (size_t)pages << f->e->page_shift;
}

/* putback.c */
void proc_freeze_pause(void); /* about a millisecond */
/*
 * Move staged pages [i, i + n) back to where they came from. hole: a call of ours
 * failed that may have left no mapping there.
 */
void proc_freeze_put_back(struct freeze *f, uint32_t i, uint32_t n, bool hole);
void proc_freeze_put_all_back(struct freeze *f);
/* A run could not be mapped: its pages go home, and are counted under why. */
void proc_freeze_undo_run(struct freeze *f, uint32_t i, uint32_t n, enum samepage_reason why);

#endif
