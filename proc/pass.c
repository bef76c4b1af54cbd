/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One pass: from an address range to chunks, mapping by mapping.
 *
 * The mappings are read from /proc/self/smaps (only smaps tells the VMA flags);
 * what is not private memory, can be neither frozen (freeze.c) nor taken for still
 * (still.c), or carries a flag, a policy or a key that could not be kept, is declined as
 * a whole, with its reason (I5, I9). What is suitable is cut into chunks at multiples of the chunk
 * size in the address space, looked at (look.c) and committed (freeze.c). Every
 * present page ends up counted exactly once: the plan of its chunk is the only
 * place where that is decided.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "core/hash.h"
#include "proc/internal.h"
#include "proc/kernel.h"

/* Flags that a store mapping has as well, or that we put back (enum proc_odd). */
#define FLAGS_KEPT                                                                                 \
	(SYS_VMF(rd) | SYS_VMF(wr) | SYS_VMF(ex) | SYS_VMF(mr) | SYS_VMF(mw) | SYS_VMF(me) |      \
	 SYS_VMF(ac) | SYS_VMF(nr) | SYS_VMF(sd) | SYS_VMF(hg) | SYS_VMF(nh) | SYS_VMF(mg) |      \
	 SYS_VMF(dc) | SYS_VMF(dd))

struct pass {
	struct proc_engine *e;
	uint64_t start, end;
	enum proc_mode mode;
	const struct proc_call *call; /* NULL: the engine's own pass */
	enum { UNKNOWN, ALONE, AMONG_OTHERS } company; /* asked once, and only if it matters */
	struct samepage_result *res;
	uint64_t cursor; /* mapped up to here so far */
	bool gap;
	struct proc_mem_flags flags; /* of the mappings around the range, if all alike */
	unsigned beyond;
	bool noted;
};

/* --- counting ------------------------------------------------------------- */

/* Of the process's own: with one of these categories. */
static uint64_t count_pages(struct proc_engine *e, uint64_t start, uint64_t end, uint64_t which)
{
	struct sys_page_region *regions = e->work->regions;
	uint64_t pages = 0;

	while (start < end) {
		uint64_t walk_end;
		int n = proc_present(e, start, end, &walk_end);

		for (int i = 0; i < n; i++)
			if (regions[i].categories & which)
				pages += (regions[i].end - regions[i].start) >> e->page_shift;
		if (n < 0 || walk_end <= start)
			break;
		start = walk_end;
	}
	return pages;
}

uint64_t proc_pass_count_present(struct proc_engine *e, uint64_t start, uint64_t end)
{
	return count_pages(e, start, end, SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED);
}

uint64_t proc_pass_count_swapped(struct proc_engine *e, uint64_t start, uint64_t end)
{
	return count_pages(e, start, end, SYS_PAGE_IS_SWAPPED);
}

static void decline(struct pass *p, uint64_t start, uint64_t end, enum samepage_reason why)
{
	uint64_t pages = proc_pass_count_present(p->e, start, end);

	p->res->pages_looked += pages;
	core_result_decline(p->res, why, pages);
}

/* Store mappings: what still maps its slot; how many pages were written since. */
static uint64_t count_merged(struct pass *p, uint64_t start, uint64_t end)
{
	uint64_t pages = (end - start) >> p->e->page_shift;
	uint64_t broken = proc_pass_count_present(p->e, start, end);

	p->res->pages_looked += pages - broken;
	p->res->pages_already += pages - broken;
	return broken;
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

static void look_and_commit(struct pass *p, const struct proc_chunk *c)
{
	if (!proc_look(p->e, c, p->res))
		return;
	if (c->still)
		proc_still_commit(p->e, c, p->res);
	else
		proc_freeze_commit(p->e, c, p->res);
}

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
		look_and_commit(p, &one);
	}
}

static void merge_span(struct pass *p, uint64_t start, uint64_t end, const struct proc_chunk *how)
{
	uint64_t chunk_bytes = (uint64_t)PROC_CHUNK_PAGES << p->e->page_shift;

	if (p->e->kernel) {
		proc_kernel_span(p->e, how->vma, start, end, p->res);
		return;
	}
	while (start < end) {
		uint64_t base = start & ~(chunk_bytes - 1);
		uint64_t until = base + chunk_bytes < end ? base + chunk_bytes : end;
		struct proc_chunk c = *how;

		c.base = base;
		c.first = (uint32_t)((start - base) >> p->e->page_shift);
		c.end = (uint32_t)((until - base) >> p->e->page_shift);
		p->e->work->collisions = 0;
		look_and_commit(p, &c);
		if (p->e->work->collisions)
			merge_collided(p, &c);
		account(p, &c);
		start = until;
	}
}

/* Leave out what is the library's own. */
static void merge_unexcluded(struct pass *p, uint64_t start, uint64_t end,
			     const struct proc_chunk *how)
{
	uint64_t ex_start, ex_end;

	while (start < end && proc_mem_excluded(start, end, &ex_start, &ex_end)) {
		if (ex_start > start)
			merge_span(p, start, ex_start, how);
		ex_end = ex_end < end ? ex_end : end;
		decline(p, ex_start > start ? ex_start : start, ex_end, SAMEPAGE_REASON_EXCLUDED);
		start = ex_end;
	}
	if (start < end)
		merge_span(p, start, end, how);
}

/* Neither refused by the program nor out of scope. */
bool proc_pass_wanted(const struct proc_engine *e, uint32_t attr)
{
	if (attr & PROC_OWN_REFUSED)
		return false;
	return !e->params.advised_only || (attr & PROC_OWN_ADVISED);
}

/* In the background only what somebody vouches for. */
static void merge_owned(struct pass *p, uint64_t start, uint64_t end, const struct proc_chunk *how)
{
	struct core_range *owned = p->e->work->owned;

	while (start < end) {
		size_t n;

		proc_mem_lock_engine();
		n = proc_mem_owned_copy(start, owned, PROC_OWNED_MAX);
		proc_mem_unlock_engine();
		for (size_t i = 0; i < n && start < end && owned[i].start < end; i++) {
			uint64_t from = owned[i].start > start ? owned[i].start : start;
			uint64_t until = owned[i].end < end ? owned[i].end : end;

			if (from > start)
				decline(p, start, from, SAMEPAGE_REASON_NOT_OWNED);
			/* Passed by all the same, or a batch of such ranges came back for ever. */
			if (p->call || proc_pass_wanted(p->e, owned[i].attr)) /* a call is advice enough */
				merge_unexcluded(p, from, until, how);
			else
				decline(p, from, until, SAMEPAGE_REASON_NOT_OWNED);
			start = until;
		}
		if (n < PROC_OWNED_MAX || owned[n - 1].start >= end)
			break;
	}
	if (start < end)
		decline(p, start, end, SAMEPAGE_REASON_NOT_OWNED);
}

/* --- mappings ------------------------------------------------------------- */

uint32_t proc_pass_odd_flags(uint64_t vmf)
{
	return (vmf & SYS_VMF(dc) ? PROC_ODD_DONTFORK : 0) |
	       (vmf & SYS_VMF(dd) ? PROC_ODD_DONTDUMP : 0) |
	       (vmf & SYS_VMF(hg) ? PROC_ODD_HUGEPAGE : 0) |
	       (vmf & SYS_VMF(nh) ? PROC_ODD_NOHUGEPAGE : 0) |
	       (vmf & SYS_VMF(nr) ? PROC_ODD_NORESERVE : 0) |
	       (vmf & SYS_VMF(mg) ? PROC_ODD_MERGEABLE : 0);
}

/* Flags and policies that the new mapping would not have. */
enum samepage_reason proc_pass_obstacle(const struct sys_vma *v)
{
	/* For writes: that may be our own scanner's. If not, registering says so. */
	const uint64_t kept = FLAGS_KEPT | SYS_VMF(uw);
	int policy = 0;

	if (v->flags & (SYS_VMF(um) | SYS_VMF(ui)))
		return SAMEPAGE_REASON_UFFD_BUSY;
	if (v->stack || (v->flags & ~kept))
		return SAMEPAGE_REASON_VMA_FLAGS;
	/* MPOL_DEFAULT is 0; a kernel without NUMA says ENOSYS. */
	if (v->pkey ||
	    (sys->get_mempolicy_at((void *)(uintptr_t)v->start, &policy) == 0 && policy != 0))
		return SAMEPAGE_REASON_POLICY;
	return SAMEPAGE_REASON_COUNT;
}

static bool alone(struct pass *p)
{
	if (p->company == UNKNOWN)
		p->company = proc_alone(false) ? ALONE : AMONG_OTHERS;
	return p->company == ALONE;
}

/* Is it, or was it before it was merged, a mapping of a file? */
static bool of_a_file(const struct sys_vma *v)
{
	bool known = !v->anonymous;

	if (proc_vma_is_run(v)) {
		proc_mem_lock_engine();
		proc_origin_span(v->start, v->end, &known);
		proc_mem_unlock_engine();
	}
	return known;
}

/*
 * Which way is this mapping merged: c->still, or by freezing; or why not at all. Only a
 * caller asks for what no freeze protects (still.c says when that is right).
 */
static enum samepage_reason kind_obstacle(struct pass *p, const struct sys_vma *v,
					  struct proc_chunk *c)
{
	bool file = !v->anonymous && v->inode != 0;

	/* Not frozen, so the registration is not noticed otherwise. */
	if (!v->anonymous && (v->flags & SYS_VMF(uw)))
		return SAMEPAGE_REASON_UFFD_BUSY;
	if (v->shared || (!v->anonymous && !file) || (file && !p->call && !proc_vma_is_run(v)))
		return SAMEPAGE_REASON_VMA_KIND;
	if (!(v->prot & PROT_READ))
		return SAMEPAGE_REASON_PROTECTION;
	if (v->prot & PROT_WRITE) {
		c->still = file || p->e->uffd < 0;
		if (!c->still)
			return SAMEPAGE_REASON_COUNT;
		if (p->call && (p->call->want & PROC_WANT_QUIET))
			return SAMEPAGE_REASON_COUNT;
		return file ? SAMEPAGE_REASON_WRITABLE : SAMEPAGE_REASON_NO_FREEZE;
	}
	c->still = true;
	return p->call && (v->prot & PROT_EXEC || of_a_file(v)) ? SAMEPAGE_REASON_COUNT
								  : SAMEPAGE_REASON_PROTECTION;
}

/*
 * May the range go away in the middle, for all that we know? Then only what is owned.
 * Who calls and is alone cannot unmap what he asks us to merge. With other threads about,
 * ld.so and libc map and unmap unseen, files as well (tests/shim/abi: unloading).
 */
static bool owned_only(struct pass *p)
{
	if (!p->e->params.owned_only || (p->call && (p->call->want & PROC_WANT_CONTRACT)))
		return false;
	/* Whatever becomes of the range, the kernel merges what is there. */
	if (p->e->kernel && p->call)
		return false;
	return !p->call || !alone(p);
}

static void pass_vma(struct pass *p, const struct sys_vma *v)
{
	struct proc_chunk how = { .vma = v, .prot = v->prot, .odd = proc_pass_odd_flags(v->flags),
				  .mode = p->mode };
	uint64_t start = v->start > p->cursor ? v->start : p->cursor;
	uint64_t end = v->end < p->end ? v->end : p->end;
	enum samepage_reason why;

	if (start > p->cursor)
		p->gap = true;
	p->cursor = end;
	if (proc_vma_is_run(v) && count_merged(p, start, end) == 0)
		return;
	/* LOOK asks for no freeze and no policy, but must not see what MERGE will skip. */
	why = p->e->kernel ? proc_kernel_obstacle(v) : kind_obstacle(p, v, &how);
	if (why == SAMEPAGE_REASON_COUNT && !p->e->kernel)
		why = p->e->no_freeze ? SAMEPAGE_REASON_NO_FREEZE : proc_pass_obstacle(v);
	if (why != SAMEPAGE_REASON_COUNT) {
		decline(p, start, end, why);
		return;
	}
	how.owned = owned_only(p);
	if (how.owned)
		merge_owned(p, start, end, &how);
	else
		merge_unexcluded(p, start, end, &how);
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

/* --- from mapping to mapping -------------------------------------------------- */

/* Without smaps: the flags are known, the rest PROCMAP_QUERY tells. False: not so. */
static bool walk_known(struct pass *p, const struct proc_mem_flags *known)
{
	uint64_t at = p->start;

	while (at < p->end) {
		struct sys_vma v;
		int err = sys_vma_query(p->e->maps_fd, at, SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
					&v);

		if (err == -ENOENT)
			return true;
		/* smaps goes on from where we are. */
		if (err < 0)
			return false;
		v.flags = known->flags;
		v.pkey = known->pkey;
		if (each_vma(&v, p))
			return true;
		at = v.end;
	}
	return true;
}

/* Flags that change with the protection, and decide nothing here. */
#define FLAGS_OF_PROTECTION                                                                        \
	(SYS_VMF(rd) | SYS_VMF(wr) | SYS_VMF(ex) | SYS_VMF(mr) | SYS_VMF(mw) | SYS_VMF(me) |      \
	 SYS_VMF(ac) | SYS_VMF(sd))
#define NOTE_BEYOND 16u /* mappings */

/*
 * The flags of the range, for the next call there: with its neighbours, for patching
 * leaves one mapping in pieces that differ in nothing else.
 */
static void note_flags(struct pass *p, const struct sys_vma *v)
{
	uint64_t flags = v->flags & ~(uint64_t)FLAGS_OF_PROTECTION;

	if (v->start == p->flags.end && flags == p->flags.flags && v->pkey == p->flags.pkey) {
		p->flags.end = v->end;
		return;
	}
	p->noted = v->start >= p->end;
	if (!p->noted)
		p->flags = (struct proc_mem_flags){ v->start, v->end, flags, v->pkey };
}

static int each_vma_noting(const struct sys_vma *v, void *arg)
{
	struct pass *p = arg;

	note_flags(p, v);
	if (v->start < p->end)
		return each_vma(v, arg);
	return p->noted || p->beyond++ == NOTE_BEYOND;
}

static void walk(struct pass *p)
{
	struct proc_engine *e = p->e;
	struct proc_mem_flags known;
	uint64_t changes;
	bool is_known;

	proc_mem_lock_engine();
	is_known = p->call && e->params.owned_only && e->have_procmap_query &&
		   proc_mem_flags_known(p->start, p->end, &known);
	changes = proc_mem_changes();
	proc_mem_unlock_engine();
	if (is_known && walk_known(p, &known))
		return;
	sys_smaps_each(0, e->work->maps_buf, sizeof(e->work->maps_buf), each_vma_noting, p);
	if (p->flags.start > p->start || p->flags.end < p->end)
		return;
	proc_mem_lock_engine();
	proc_mem_flags_note(&p->flags, changes);
	proc_mem_unlock_engine();
}

/* --- the mapping budget (I8) --------------------------------------------------- */

/* Counting all mappings costs more than merging a page: not more often than this. */
#define COUNT_USEC 100000u

static int64_t map_count(struct proc_engine *e)
{
	return sys_map_count(0, e->work->count_buf, sizeof(e->work->count_buf));
}

static void set_budget(struct proc_engine *e, bool now)
{
	uint64_t usec = sys_now_usec();
	int64_t max, count;

	if (!now && e->vmas_read_usec && usec - e->vmas_read_usec < COUNT_USEC)
		return;
	max = sys_read_number("/proc/sys/vm/max_map_count");
	count = map_count(e);
	/* A tenth is left to the program. */
	e->vmas_limit = max < 0 ? 0 : max - max / 10;
	e->vmas_now = count < 0 ? e->vmas_limit : count;
	e->vmas_read_usec = usec;
}

/* The scanner's share of the mappings is smaller. Counting them is dear. */
void proc_pass_scan_budget(struct proc_engine *e, struct proc_scan_budget *b, uint32_t percent,
			   uint64_t age_usec)
{
	uint64_t usec = sys_now_usec();

	if (!b->read_usec || usec - b->read_usec >= age_usec) {
		int64_t max = sys_read_number("/proc/sys/vm/max_map_count");
		int64_t count = map_count(e);

		b->limit = max < 0 ? 0 : max / 100 * percent;
		e->vmas_now = count < 0 ? b->limit : count;
		b->read_usec = usec;
	}
	e->vmas_limit = b->limit;
}

/* A small range: how many mappings lie in it and touch it, and remember its files. -1: ask
 * for all. */
static int64_t count_around(struct pass *p)
{
	uint64_t at = p->start - (p->start ? 1 : 0);
	int64_t n = 0;

	if (!p->call || !p->e->have_procmap_query ||
	    p->end - p->start > (uint64_t)PROC_CHUNK_PAGES << p->e->page_shift)
		return -1;
	while (at <= p->end) {
		struct sys_procmap_query q = {
			.size = sizeof(q),
			.query_flags = SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
			.query_addr = at,
		};

		if (sys->procmap_query(p->e->maps_fd, &q) < 0 || q.vma_start > p->end)
			break;
		n++;
		at = q.vma_end;
	}
	return n + proc_origin_count();
}

static int64_t count_vmas(struct pass *p, bool *all)
{
	int64_t n;

	if (p->e->kernel)
		return -1; /* none comes or goes */
	n = *all ? -1 : count_around(p);
	if (n >= 0)
		return n;
	*all = true;
	return map_count(p->e);
}

/* --- entry points --------------------------------------------------------- */

/* The ring's last contents are nobody's business, and memory. */
void proc_pass_empty_ring(struct proc_engine *e)
{
	if (e->link->ring)
		sys->madvise(e->link->ring, (size_t)PROC_RING_PAGES << e->page_shift,
			     proc_link_is_broker(e->link) ? MADV_REMOVE : MADV_DONTNEED);
}

void proc_pass_range(struct proc_engine *e, uint64_t start, uint64_t end, enum proc_mode mode,
		     const struct proc_call *call, struct samepage_result *res, bool *gap)
{
	struct pass p = { .e = e, .start = start, .end = end, .mode = mode, .call = call,
			  .res = res, .cursor = start };
	uint64_t wall = sys_now_usec(), cpu = sys_thread_cpu_usec();
	bool all = false;
	int64_t vmas_before = count_vmas(&p, &all), vmas_after;

	if (e->kernel && mode == PROC_MODE_LOOK)
		return; /* the kernel finds out by itself what is there twice */
	/* What refused it when the thread started may have been a moment's want. */
	if (e->uffd < 0 && mode != PROC_MODE_LOOK && !e->kernel)
		(void)proc_freeze_setup(e);
	/* A fork in the middle of a pass leaves the child with half of one. */
	e->work->misses = 0;
	memset(e->work->collided, 0, sizeof(e->work->collided));
	if (!e->kernel)
		set_budget(e, all);
	proc_mem_lock_engine();
	proc_mem_pass_begins();
	proc_mem_unlock_engine();
	if (e->kernel)
		proc_kernel_begins(e);
	walk(&p);
	if (e->kernel)
		proc_kernel_ends(e);
	proc_mem_lock_engine();
	proc_mem_pass_ends();
	proc_mem_unlock_engine();
	if (p.cursor < end)
		p.gap = true;
	if (mode == PROC_MODE_LOOK)
		proc_pass_flush_tags(e);
	proc_segments_unmap(e);
	proc_pass_empty_ring(e);
	vmas_after = count_vmas(&p, &all);
	if (vmas_before >= 0 && vmas_after >= 0)
		res->vmas_added += vmas_after - vmas_before;
	res->wall_usec += sys_now_usec() - wall;
	res->cpu_usec += sys_thread_cpu_usec() - cpu;
	if (gap)
		*gap = p.gap;
	if (res->pages_merged && !e->kernel)
		proc_scan_merged_by_call(e);
}

void proc_pass_owned(struct proc_engine *e, enum proc_mode mode, struct samepage_result *res)
{
	proc_pass_range(e, 0, (uint64_t)INTPTR_MAX & ~(e->page_bytes - 1), mode, NULL, res, NULL);
}

int proc_pass_flush_tags(struct proc_engine *e)
{
	int err = 0;

	if (e->tags_count && e->link->connected)
		err = e->link->ops->tags(e->link, e->work->tags_out, e->tags_count);
	e->tags_count = 0;
	return err;
}
