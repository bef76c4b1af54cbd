/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One pass: from an address range to chunks, mapping by mapping.
 *
 * The mappings are read from /proc/self/smaps (only smaps tells the VMA flags);
 * what is not private anonymous memory, or carries a flag, a
 * policy or a key that could not be kept, is declined as a whole, with its
 * reason (I5, I9). What is suitable is cut into chunks at multiples of the chunk
 * size in the address space, looked at (look.c) and committed (freeze.c). Every
 * present page ends up counted exactly once: the plan of its chunk is the only
 * place where that is decided.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "core/hash.h"
#include "proc/internal.h"

/* Flags that a store mapping has as well, or that we put back (enum proc_odd). */
#define FLAGS_KEPT                                                                                 \
	(SYS_VMF(rd) | SYS_VMF(wr) | SYS_VMF(ex) | SYS_VMF(mr) | SYS_VMF(mw) | SYS_VMF(me) |      \
	 SYS_VMF(ac) | SYS_VMF(nr) | SYS_VMF(sd) | SYS_VMF(hg) | SYS_VMF(nh) | SYS_VMF(mg) |      \
	 SYS_VMF(dc) | SYS_VMF(dd))

struct pass {
	struct proc_engine *e;
	uint64_t start, end;
	enum proc_mode mode;
	struct samepage_result *res;
	uint64_t cursor; /* mapped up to here so far */
	bool gap;
};

/* --- counting ------------------------------------------------------------- */

/* Present or swapped pages with the wanted categories among `mask`. */
static uint64_t count_pages(struct proc_engine *e, uint64_t start, uint64_t end, uint64_t mask,
			    uint64_t inverted)
{
	struct sys_page_region *regions = e->work->regions;
	uint64_t pages = 0;

	while (start < end) {
		struct sys_pm_scan_arg arg = {
			.size = sizeof(arg),
			.start = start,
			.end = end,
			.vec = (uintptr_t)regions,
			.vec_len = PROC_CHUNK_PAGES,
			.category_inverted = inverted,
			.category_mask = mask,
			.category_anyof_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
			.return_mask = SYS_PAGE_IS_PRESENT,
		};
		int n = sys->pagemap_scan(e->pagemap_fd, &arg);

		for (int i = 0; i < n; i++)
			pages += (regions[i].end - regions[i].start) >> e->page_shift;
		if (n < 0 || arg.walk_end <= start)
			break;
		start = arg.walk_end;
	}
	return pages;
}

uint64_t proc_pass_count_present(struct proc_engine *e, uint64_t start, uint64_t end)
{
	const uint64_t not = SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_FILE;

	return count_pages(e, start, end, not, not);
}

static void decline(struct pass *p, uint64_t start, uint64_t end, enum samepage_reason why)
{
	uint64_t pages = proc_pass_count_present(p->e, start, end);

	p->res->pages_looked += pages;
	core_result_decline(p->res, why, pages);
}

/* Store mappings: what still maps its slot, and what was written since. */
static void count_merged(struct pass *p, uint64_t start, uint64_t end)
{
	uint64_t pages = (end - start) >> p->e->page_shift;
	uint64_t broken = proc_pass_count_present(p->e, start, end);

	p->res->pages_looked += pages;
	p->res->pages_already += pages - broken;
	core_result_decline(p->res, SAMEPAGE_REASON_VMA_KIND, broken);
}

static void account(struct pass *p, const struct proc_chunk *c)
{
	const struct core_plan_page *plan = p->e->work->plan;

	for (uint32_t i = c->first; i < c->end; i++) {
		if (plan[i].kind == CORE_PLAN_SKIP && plan[i].reason == PROC_ABSENT)
			continue;
		p->res->pages_looked++;
		if (plan[i].kind == CORE_PLAN_SLOT)
			p->res->pages_merged++;
		else if (plan[i].kind == CORE_PLAN_ZERO)
			p->res->pages_zeroed++;
		else
			core_result_decline(p->res, plan[i].reason, 1);
	}
}

/* --- chunks --------------------------------------------------------------- */

/* Tags collide at the rate of slots / 2^32: such pages get a second, exact look. */
static void merge_collided(struct pass *p, const struct proc_chunk *c)
{
	uint8_t *collided = p->e->work->collided;
	struct proc_chunk one = *c;

	one.exact = true;
	for (uint32_t i = c->first; i < c->end; i++) {
		if (!collided[i])
			continue;
		collided[i] = 0;
		one.first = i;
		one.end = i + 1;
		if (proc_look(p->e, &one, p->res))
			proc_freeze_commit(p->e, &one, p->res);
	}
}

static void merge_span(struct pass *p, uint64_t start, uint64_t end, int prot, uint32_t odd)
{
	uint64_t chunk_bytes = (uint64_t)PROC_CHUNK_PAGES << p->e->page_shift;

	while (start < end) {
		uint64_t base = start & ~(chunk_bytes - 1);
		uint64_t until = base + chunk_bytes < end ? base + chunk_bytes : end;
		struct proc_chunk c = {
			.base = base,
			.first = (uint32_t)((start - base) >> p->e->page_shift),
			.end = (uint32_t)((until - base) >> p->e->page_shift),
			.prot = prot,
			.odd = odd,
			.mode = p->mode,
		};

		p->e->work->collisions = 0;
		if (proc_look(p->e, &c, p->res))
			proc_freeze_commit(p->e, &c, p->res);
		if (p->e->work->collisions)
			merge_collided(p, &c);
		account(p, &c);
		start = until;
	}
}

/* Leave out what is the library's own. */
static void merge_unexcluded(struct pass *p, uint64_t start, uint64_t end, int prot, uint32_t odd)
{
	uint64_t ex_start, ex_end;

	while (start < end && proc_mem_excluded(start, end, &ex_start, &ex_end)) {
		if (ex_start > start)
			merge_span(p, start, ex_start, prot, odd);
		ex_end = ex_end < end ? ex_end : end;
		decline(p, ex_start > start ? ex_start : start, ex_end, SAMEPAGE_REASON_EXCLUDED);
		start = ex_end;
	}
	if (start < end)
		merge_span(p, start, end, prot, odd);
}

/* In the background only what somebody vouches for. */
static void merge_owned(struct pass *p, uint64_t start, uint64_t end, int prot, uint32_t odd)
{
	struct core_range *owned = p->e->work->owned;
	uint32_t need = p->e->params.advised_only ? PROC_OWN_ADVISED : 0;

	while (start < end) {
		size_t n;

		proc_mem_lock_engine();
		n = proc_mem_owned_copy(start, owned, PROC_OWNED_MAX);
		proc_mem_unlock_engine();
		for (size_t i = 0; i < n && start < end && owned[i].start < end; i++) {
			uint64_t until = owned[i].end < end ? owned[i].end : end;

			if ((owned[i].attr & need) != need)
				continue;
			if (owned[i].start > start)
				decline(p, start, owned[i].start, SAMEPAGE_REASON_NOT_OWNED);
			merge_unexcluded(p, owned[i].start > start ? owned[i].start : start, until,
					 prot, odd);
			start = until;
		}
		if (n < PROC_OWNED_MAX || owned[n - 1].start >= end)
			break;
	}
	if (start < end)
		decline(p, start, end, SAMEPAGE_REASON_NOT_OWNED);
}

/* --- mappings ------------------------------------------------------------- */

static uint32_t odd_flags(uint64_t vmf)
{
	return (vmf & SYS_VMF(dc) ? PROC_ODD_DONTFORK : 0) |
	       (vmf & SYS_VMF(dd) ? PROC_ODD_DONTDUMP : 0) |
	       (vmf & SYS_VMF(hg) ? PROC_ODD_HUGEPAGE : 0) |
	       (vmf & SYS_VMF(nh) ? PROC_ODD_NOHUGEPAGE : 0) |
	       (vmf & SYS_VMF(nr) ? PROC_ODD_NORESERVE : 0) |
	       (vmf & SYS_VMF(mg) ? PROC_ODD_MERGEABLE : 0);
}

/* Why this mapping as a whole cannot be merged, or SAMEPAGE_REASON_COUNT. */
static enum samepage_reason vma_obstacle(struct proc_engine *e, const struct sys_vma *v)
{
	int policy = 0;

	if (!v->anonymous || v->shared)
		return SAMEPAGE_REASON_VMA_KIND;
	if (v->flags & (SYS_VMF(um) | SYS_VMF(uw) | SYS_VMF(ui)))
		return SAMEPAGE_REASON_UFFD_BUSY;
	if (v->stack || (v->flags & ~(uint64_t)FLAGS_KEPT))
		return SAMEPAGE_REASON_VMA_FLAGS;
	if ((v->prot & (PROT_READ | PROT_WRITE)) != (PROT_READ | PROT_WRITE))
		return SAMEPAGE_REASON_PROTECTION;
	/* MPOL_DEFAULT is 0; a kernel without NUMA says ENOSYS. */
	if (v->pkey ||
	    (sys->get_mempolicy_at((void *)(uintptr_t)v->start, &policy) == 0 && policy != 0))
		return SAMEPAGE_REASON_POLICY;
	if (e->uffd < 0 || e->no_freeze)
		return SAMEPAGE_REASON_NO_FREEZE;
	return SAMEPAGE_REASON_COUNT;
}

static void pass_vma(struct pass *p, const struct sys_vma *v)
{
	uint64_t start = v->start > p->cursor ? v->start : p->cursor;
	uint64_t end = v->end < p->end ? v->end : p->end;
	enum samepage_reason why;

	if (start > p->cursor)
		p->gap = true;
	p->cursor = end;
	if (proc_vma_is_run(v)) {
		count_merged(p, start, end);
		return;
	}
	/* LOOK asks for no freeze and no policy, but must not see what MERGE will skip. */
	why = vma_obstacle(p->e, v);
	if (why != SAMEPAGE_REASON_COUNT)
		decline(p, start, end, why);
	else if (p->e->params.owned_only)
		merge_owned(p, start, end, v->prot, odd_flags(v->flags));
	else
		merge_unexcluded(p, start, end, v->prot, odd_flags(v->flags));
}

/*
 * Called in the middle of reading smaps: the kernel goes on at the end of the
 * mapping that it showed last, whatever has become of it meanwhile.
 */
static int each_vma(const struct sys_vma *v, void *arg)
{
	struct pass *p = arg;

	if (v->start >= p->end || atomic_load(&p->e->state) == PROC_CLOSING)
		return 1;
	if (v->end > p->cursor && v->end > p->start)
		pass_vma(p, v);
	return 0;
}

/* --- entry points --------------------------------------------------------- */

static int64_t map_count(struct proc_engine *e)
{
	return sys_map_count(0, e->work->count_buf, sizeof(e->work->count_buf));
}

void proc_pass_range(struct proc_engine *e, uint64_t start, uint64_t end, enum proc_mode mode,
		     struct samepage_result *res, bool *gap)
{
	struct pass p = { .e = e, .start = start, .end = end, .mode = mode, .res = res,
			  .cursor = start };
	uint64_t wall = sys_now_usec(), cpu = sys_thread_cpu_usec();
	int64_t vmas_before = map_count(e);
	int64_t max = sys_read_number("/proc/sys/vm/max_map_count"), vmas_after;

	/* What refused it when the thread started may have been a moment's want. */
	if (e->uffd < 0 && mode != PROC_MODE_LOOK)
		(void)proc_freeze_setup(e);
	e->work_used = true;
	/* A fork in the middle of a pass leaves the child with half of one. */
	e->work->misses = 0;
	memset(e->work->collided, 0, sizeof(e->work->collided));
	/* A tenth is left to the program (I8). */
	e->vmas_limit = max < 0 ? 0 : max - max / 10;
	e->vmas_now = vmas_before < 0 ? e->vmas_limit : vmas_before;
	proc_mem_lock_engine();
	proc_mem_pass_begins();
	proc_mem_unlock_engine();
	sys_smaps_each(0, e->work->maps_buf, sizeof(e->work->maps_buf), each_vma, &p);
	proc_mem_lock_engine();
	proc_mem_pass_ends();
	proc_mem_unlock_engine();
	if (p.cursor < end)
		p.gap = true;
	if (mode == PROC_MODE_LOOK)
		proc_pass_flush_tags(e);
	proc_segments_unmap(e);
	/* The ring's last contents are nobody's business, and memory. */
	if (e->link->ring)
		sys->madvise(e->link->ring, (size_t)PROC_RING_PAGES << e->page_shift,
			     proc_link_is_broker(e->link) ? MADV_REMOVE : MADV_DONTNEED);
	vmas_after = map_count(e);
	if (vmas_before >= 0 && vmas_after >= 0)
		res->vmas_added += vmas_after - vmas_before;
	res->wall_usec += sys_now_usec() - wall;
	res->cpu_usec += sys_thread_cpu_usec() - cpu;
	if (gap)
		*gap = p.gap;
}

void proc_pass_owned(struct proc_engine *e, enum proc_mode mode, struct samepage_result *res)
{
	proc_pass_range(e, 0, (uint64_t)INTPTR_MAX & ~(e->page_bytes - 1), mode, res, NULL);
}

int proc_pass_flush_tags(struct proc_engine *e)
{
	int err = 0;

	if (e->tags_count && e->link->connected)
		err = e->link->ops->tags(e->link, e->work->tags_out, e->tags_count);
	e->tags_count = 0;
	return err;
}
