/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Before a chunk's plan is carried out, with a freeze (freeze.c) or without one
 * (still.c): fetch what the plan needs, give up what there is no room for, and look
 * whether the range is still what was looked at. Nothing here changes memory of the
 * program; what is given up is written into the plan with its reason.
 */
#include <errno.h>
#include <sys/mman.h>

#include "proc/freeze_impl.h"

void proc_prepare_skip_all(struct freeze *f, enum samepage_reason why)
{
	for (uint32_t i = f->lo; i < f->hi; i++)
		if (f->plan[i].kind != CORE_PLAN_SKIP)
			proc_plan_skip(&f->plan[i], why);
}

/* Can the slot of this page be had? Fetches its segment. */
void proc_prepare_slots(struct freeze *f)
{
	for (uint32_t i = f->c->first; i < f->c->end; i++) {
		uint64_t offset;

		if (f->plan[i].kind != CORE_PLAN_SLOT)
			continue;
		if (proc_segments_fd(f->e, f->plan[i].slot, &offset) < 0)
			proc_plan_skip(&f->plan[i], f->e->link->connected
							    ? SAMEPAGE_REASON_FAILED
							    : SAMEPAGE_REASON_NO_BROKER);
	}
}

/* Narrow [lo, hi) to what is planned; false: nothing is. */
bool proc_prepare_narrow(struct freeze *f)
{
	f->lo = f->c->first;
	f->hi = f->c->end;
	while (f->lo < f->hi && f->plan[f->lo].kind == CORE_PLAN_SKIP)
		f->lo++;
	while (f->hi > f->lo && f->plan[f->hi - 1].kind == CORE_PLAN_SKIP)
		f->hi--;
	return f->hi > f->lo;
}

size_t proc_prepare_runs(struct freeze *f)
{
	return core_plan_runs(f->plan + f->lo, f->hi - f->lo,
			      f->e->link->index.header->segment_slots, f->e->work->runs,
			      PROC_CHUNK_PAGES);
}

int proc_prepare_run_flags(const struct freeze *f)
{
	return MAP_PRIVATE | (f->c->odd & PROC_ODD_NORESERVE ? MAP_NORESERVE : 0);
}

static int give_advice(struct freeze *f, void *at, size_t bytes)
{
	int err = 0;

	if (f->c->odd & PROC_ODD_DONTFORK)
		err = sys->madvise(at, bytes, MADV_DONTFORK);
	if (err == 0 && (f->c->odd & PROC_ODD_DONTDUMP))
		err = sys->madvise(at, bytes, MADV_DONTDUMP);
	return err;
}

static bool must_premap(const struct freeze *f)
{
	return f->c->still || (f->c->odd & PROC_ODD_CARRIED);
}

static bool is_premapped(const struct freeze *f, uint32_t pages)
{
	return pages >= PROC_PREMAP_PAGES || must_premap(f);
}

/*
 * A long run, or one that carries advice (which can fail, so it is given before
 * anybody can see it): the mapping that will be moved over the hole, populated.
 */
static uint8_t *premap(struct freeze *f, const struct core_plan_run *run)
{
	size_t bytes = bytes_of(f, run->pages);
	uint64_t offset = 0;
	int fd = proc_segments_fd(f->e, run->slot, &offset);
	intptr_t p;

	if (fd < 0)
		return NULL;
	p = sys->mmap(proc_far(bytes), bytes, f->c->prot, proc_prepare_run_flags(f), fd, (off_t)offset);
	if (p < 0)
		return NULL;
	if (give_advice(f, (void *)p, bytes) < 0 ||
	    sys->madvise((void *)p, bytes, MADV_POPULATE_READ) < 0) {
		sys->munmap((void *)p, bytes);
		return NULL;
	}
	return (uint8_t *)p;
}

/*
 * Where the slots' bytes can be compared, touched now: a fault taken while
 * frozen would make everybody wait. Under the memory lock, so that no fork
 * copies the mappings made here.
 */
void proc_prepare_bytes(struct freeze *f)
{
	struct proc_work *w = f->e->work;
	uint8_t touched = 0;
	size_t n = proc_prepare_runs(f);
	bool must = must_premap(f);

	for (size_t r = 0; r < n; r++) {
		uint32_t first = f->lo + w->runs[r].first, pages = w->runs[r].pages;
		uint8_t *long_run = NULL;

		w->premap[first] = NULL;
		if (w->runs[r].kind != CORE_PLAN_SLOT)
			continue;
		if (is_premapped(f, pages))
			long_run = premap(f, &w->runs[r]);
		if (!long_run && must) {
			for (uint32_t k = 0; k < pages; k++)
				proc_plan_skip(&f->plan[first + k], SAMEPAGE_REASON_NO_MEMORY);
			continue;
		}
		w->premap[first] = long_run;
		w->premap_pages[first] = pages;
		for (uint32_t k = 0; k < pages; k++) {
			const uint8_t *at = long_run ? long_run + bytes_of(f, k)
						     : proc_segments_slot(f->e, w->runs[r].slot + k);

			w->bytes[first + k] = at;
			if (at)
				touched |= *(const volatile uint8_t *)at;
			else
				proc_plan_skip(&f->plan[first + k], SAMEPAGE_REASON_NO_MEMORY);
		}
	}
	(void)touched;
}

/*
 * Mappings that a run takes for the moment of the freeze only. What the scanner watches is
 * frozen stretch by stretch, and each of those is a mapping of its own until it is let go.
 */
static int64_t passing_vmas(const struct freeze *f, const struct core_plan_run *run, bool watched)
{
	if (!watched)
		return 0;
	return run->kind == CORE_PLAN_ZERO ? 2 : is_premapped(f, run->pages);
}

/* I8: give up the runs that the mapping budget has no room for. */
void proc_prepare_budget(struct freeze *f)
{
	struct proc_engine *e = f->e;
	struct core_plan_run *runs = e->work->runs;
	bool watched = proc_scan_watched(e, (uintptr_t)page_at(f, f->lo));
	size_t n = proc_prepare_runs(f);
	int64_t upper = watched ? 3 * (int64_t)n : (int64_t)core_plan_vmas_upper(runs, n);
	int64_t passing = 2; /* the ends of what is frozen */

	if (e->vmas_now + passing + upper > e->vmas_limit) {
		/* The estimate only ever grows; look at the truth. */
		int64_t now = sys_map_count(0, e->work->count_buf, sizeof(e->work->count_buf));

		if (now >= 0)
			e->vmas_now = now;
	}
	for (size_t r = 0; r < n; r++) {
		int64_t stay = runs[r].kind == CORE_PLAN_SLOT ? 2 : 0;
		int64_t pass = passing_vmas(f, &runs[r], watched);

		if (e->vmas_now + passing + stay + pass <= e->vmas_limit) {
			e->vmas_now += stay;
			passing += pass;
			continue;
		}
		for (uint32_t i = 0; i < runs[r].pages; i++)
			proc_plan_skip(&f->plan[f->lo + runs[r].first + i],
				       SAMEPAGE_REASON_MAP_COUNT);
	}
}

/* Is q the mapping that the pass saw, or a part of it? */
static bool same_mapping(const struct freeze *f, const struct sys_procmap_query *q)
{
	const struct sys_vma *v = f->c->vma;
	uint64_t flags = (v->prot & PROT_READ ? SYS_PROCMAP_QUERY_VMA_READABLE : 0) |
			 (v->prot & PROT_WRITE ? SYS_PROCMAP_QUERY_VMA_WRITABLE : 0) |
			 (v->prot & PROT_EXEC ? SYS_PROCMAP_QUERY_VMA_EXECUTABLE : 0);

	if ((q->vma_flags & 0xf) != flags || q->inode != v->inode)
		return false;
	return v->anonymous ||
	       (q->dev_major == v->dev_major && q->dev_minor == v->dev_minor &&
		q->vma_offset - q->vma_start == v->offset - v->start);
}

/* Lock held. Is [lo, hi) still what the pass saw, in one mapping, ours to merge? */
bool proc_prepare_still_ours(struct freeze *f)
{
	struct proc_engine *e = f->e;
	uint64_t start = (uintptr_t)page_at(f, f->lo), end = (uintptr_t)page_at(f, f->hi);
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = start };

	if (e->no_freeze) {
		proc_prepare_skip_all(f, SAMEPAGE_REASON_NO_FREEZE);
		return false;
	}
	if (f->c->owned && !proc_mem_is_owned_still(start, end)) {
		proc_prepare_skip_all(f, SAMEPAGE_REASON_NOT_OWNED);
		return false;
	}
	if (f->c->scan ? proc_scan_touched(e, start, end) : proc_mem_is_stale(start, end)) {
		proc_prepare_skip_all(f, SAMEPAGE_REASON_CHANGED);
		return false;
	}
	if (!e->have_procmap_query)
		return true;
	if (sys->procmap_query(e->maps_fd, &q) < 0 || q.vma_start > start || q.vma_end < end ||
	    !same_mapping(f, &q)) {
		proc_prepare_skip_all(f, SAMEPAGE_REASON_VANISHED);
		return false;
	}
	return true;
}

/* Long runs that came to nothing, wholly or in part. */
void proc_prepare_drop(struct freeze *f)
{
	struct proc_work *w = f->e->work;

	for (uint32_t i = f->lo; i < f->hi; i++) {
		if (!w->premap[i])
			continue;
		sys->munmap(w->premap[i], bytes_of(f, w->premap_pages[i]));
		w->premap[i] = NULL;
	}
}
