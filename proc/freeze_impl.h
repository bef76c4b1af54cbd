/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One commit, with a freeze or without, as prepare.c, freeze.c, putback.c and still.c share it. */
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
	bool watched;       /* by the scanner: frozen are the stretches, not [lo, hi) */
	uint32_t stretches; /* in work->stretch */
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

/* prepare.c */
void proc_prepare_skip_all(struct freeze *f, enum samepage_reason why);
/* Can the slot of each planned page be had? Fetches its segment. */
void proc_prepare_slots(struct freeze *f);
/* Narrow [lo, hi) to what is planned; false: nothing is. */
bool proc_prepare_narrow(struct freeze *f);
size_t proc_prepare_runs(struct freeze *f); /* into work->runs */
int proc_prepare_run_flags(const struct freeze *f);
/* I8: give up the runs that the mapping budget has no room for. */
void proc_prepare_budget(struct freeze *f);
/* Lock held. Is [lo, hi) still the mapping that was looked at, ours to merge? */
bool proc_prepare_still_ours(struct freeze *f);
/* Lock held. Where the slots' bytes can be compared: work->bytes, work->premap. */
void proc_prepare_bytes(struct freeze *f);
/* Mappings made beforehand that came to nothing. */
void proc_prepare_drop(struct freeze *f);

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
