/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One look at one process.
 *
 * maps first, for what an address of it may look like; then smaps, mapping by mapping.
 * In a private mapping PAGEMAP_SCAN tells what is there at all: holes, pages of files,
 * what is swapped out and the kernel's zero page are not touched, so that nothing is
 * populated (but what is dropped between that and the read). pagemap tells which of the anonymous pages are mapped once (bit 56): the
 * others are one physical page already, by fork or by KSM (/proc/kpageflags says by
 * which, where it may be read; else smaps tells how many). What is left is read.
 *
 * The kernel hands the list out in pieces; where one ends and the next begins it looks for
 * the mapping at that address anew, and one that has grown downwards over its neighbour
 * comes again from its start. What was looked at is cut off then.
 *
 * All of it races with the process, which goes on. A page that is gone when it is read is
 * counted as such; one that changes meanwhile is taken as it was read.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "analyze/inner.h"
#include "sys/sys.h"

#define PM_PRESENT (UINT64_C(1) << 63)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_FRAME ((UINT64_C(1) << 55) - 1)
#define KPF_KSM (UINT64_C(1) << 21)

/* What an address points to, beside files, which have their number in the upper bits. */
#define WHAT_HEAP (UINT64_C(1) << 60)
#define WHAT_STACK (UINT64_C(2) << 60)
#define WHAT_ANONYMOUS (UINT64_C(3) << 60)

#define SCAN_REGIONS 256
#define PAGEMAP_PAGES 512
#define TRIES_MAX 3 /* of a process that begins another program while it is read */

struct look {
	struct analyze *a;
	struct analyze_process *p;
	unsigned number;
	int mem;
	int pagemap;
	size_t page_bytes;
	struct core_fp_space space;
	struct core_fp_range *range;
	uint32_t ranges, ranges_room;
	struct analyze_before before;
	/* the mapping being looked at */
	struct core_census_region region;
	uint32_t region_number; /* goes up with each mapping */
	uint32_t region_open;   /* the number of the one that the census has open */
	uint64_t vma_ksm, vma_shared, vma_swapped;
	uint64_t seen_end; /* of the list being read: what lies below has been looked at */
	bool check_ksm;
	struct analyze_job *job; /* being filled, or NULL */
	struct core_census_walk old; /* the same process in the look before */
	bool ended;
	int error;
};

/* Where this mapping begins to be new; its end or above: nowhere. */
static uint64_t unseen(struct look *l, const struct sys_vma *vma)
{
	uint64_t start = vma->start > l->seen_end ? vma->start : l->seen_end;

	if (vma->end > l->seen_end)
		l->seen_end = vma->end;
	return start;
}

/* what addresses look like ----------------------------------------------------- */

static int add_range(const struct sys_vma *vma, void *arg)
{
	struct look *l = arg;
	struct core_fp_range *r;
	uint64_t start = unseen(l, vma);

	if (start >= vma->end)
		return 0;
	l->p->vmas++;
	if (l->ranges == l->ranges_room) {
		uint32_t room = l->ranges_room ? 2 * l->ranges_room : 256;

		r = reallocarray(l->range, room, sizeof(*r));
		if (!r)
			return -ENOMEM;
		l->range = r;
		l->ranges_room = room;
	}
	if (strncmp(vma->name, "[v", 2) == 0) /* vdso, vvar, vsyscall */
		return 0;
	r = &l->range[l->ranges++];
	*r = (struct core_fp_range){ .start = start, .end = vma->end };
	if (vma->heap) {
		r->base = vma->start;
		r->mask = UINT64_MAX;
		r->what = WHAT_HEAP;
	} else if (vma->inode) {
		r->base = vma->start - vma->offset;
		r->mask = UINT64_MAX;
		r->what = vma->inode << 40 ^ (uint64_t)vma->dev_minor << 32;
	} else if (vma->stack) {
		r->what = WHAT_STACK;
	} else {
		r->mask = l->page_bytes - 1;
		r->what = WHAT_ANONYMOUS;
	}
	return 0;
}

static int learn_addresses(struct look *l)
{
	int err = sys_maps_each(l->p->pid, l->a->inner->buf, ANALYZE_MAPS_BUF_BYTES, add_range, l);

	if (!err)
		core_fp_space_init(&l->space, l->range, l->ranges);
	return err;
}

/* what has been read ----------------------------------------------------------- */

/* Room for the pages of one more job, and their region. */
static int need(struct analyze *a)
{
	struct core_census *c = &a->census;
	struct analyze_inner *in = a->inner;
	int err;

	if (c->pages >= CORE_CENSUS_PAGES_MAX - ANALYZE_BATCH)
		return -EOVERFLOW;
	err = analyze_array_need(&in->hash, (c->pages + ANALYZE_BATCH) * sizeof(*c->hash));
	if (!err)
		err = analyze_array_need(&in->masked, (c->pages + ANALYZE_BATCH) * sizeof(*c->masked));
	if (!err)
		err = analyze_array_need(&in->relative, (c->pages + ANALYZE_BATCH) * sizeof(*c->relative));
	if (!err)
		err = analyze_array_need(&in->region, (c->regions + 1ul) * sizeof(*c->region));
	if (!err)
		err = analyze_array_need(&in->gaps, c->gaps_bytes + (uint64_t)ANALYZE_BATCH * CORE_CENSUS_GAP_BYTES_MAX);
	c->hash = in->hash.mem;
	c->masked = in->masked.mem;
	c->relative = in->relative.mem;
	c->region = in->region.mem;
	c->gaps = in->gaps.mem;
	return err;
}

/* What the look before says of this page. */
static uint64_t since(struct look *l, uint64_t vpn, uint64_t hash)
{
	const uint32_t *tag = l->a->inner->tag.mem;
	uint64_t flags;

	if (!core_census_walk_valid(&l->old))
		return 0;
	core_census_walk_seek(&l->old, vpn);
	if (!core_census_walk_valid(&l->old) || l->old.vpn != vpn)
		return 0;
	flags = core_census_since(tag[l->old.page], hash);
	l->p->stayed += (flags & CORE_CENSUS_STAYED) != 0;
	l->p->lasted += (flags & CORE_CENSUS_LASTED) != 0;
	return flags;
}

static void record(struct look *l, const struct analyze_job *job, unsigned i)
{
	const struct core_fp *fp = &job->fp[i];
	struct core_census *c = &l->a->census;
	uint64_t flags = job->flags[i];

	if (fp->addresses)
		flags |= CORE_CENSUS_ADDRESSES;
	flags |= since(l, job->vpn[i], fp->hash);
	if (l->region_open != job->region_number) {
		core_census_add_region(c, &job->region);
		l->region_open = job->region_number;
	}
	core_census_add_page(c, job->vpn[i], fp->hash, fp->masked, fp->relative, flags);
}

static int progress(struct look *l)
{
	const struct analyze_options *o = &l->a->options;
	struct analyze_inner *in = l->a->inner;

	if (!o->progress)
		return 0;
	return o->progress(o->progress_arg, in->pages_before + l->p->read, in->pages_expected,
			   l->p->command, l->p->pid);
}

/* Take over the results of the oldest job. */
static int collect(struct look *l)
{
	struct analyze_job *job = analyze_ring_collect(&l->a->inner->ring);
	int err;

	if (!job)
		return 0;
	err = need(l->a);
	l->ended = l->ended || job->ended;
	for (unsigned i = 0; i < job->pages && !err; i++) {
		if (job->result[i] == ANALYZE_PAGE_GONE) {
			l->p->vanished++;
			continue;
		}
		l->p->read++;
		l->p->huge += (job->flags[i] & CORE_CENSUS_HUGE) != 0;
		if (job->result[i] == ANALYZE_PAGE_ZERO)
			l->p->zero++;
		else
			record(l, job, i);
	}
	analyze_ring_release(&l->a->inner->ring);
	if (!err && l->ended)
		err = -ESRCH;
	if (!err && progress(l)) {
		l->a->interrupted = true;
		err = -EINTR;
	}
	return err;
}

static void submit(struct look *l)
{
	if (l->job && l->job->pages > 0)
		analyze_ring_submit(&l->a->inner->ring);
	l->job = NULL;
}

/* Everything that is under way, also after a failure: its memory is about to go. */
static int drain(struct look *l, int err)
{
	struct analyze_ring *ring = &l->a->inner->ring;

	submit(l);
	while (!err && ring->collected != ring->filled)
		err = collect(l);
	while (analyze_ring_collect(ring))
		analyze_ring_release(ring);
	return err;
}

/* One page to be read. */
static int add_page(struct look *l, uint64_t vpn, uint64_t flags)
{
	struct analyze_ring *ring = &l->a->inner->ring;
	struct analyze_job *job = l->job;
	int err;

	while (!job) {
		job = analyze_ring_fill(ring);
		if (job) {
			job->fd = l->mem;
			job->space = &l->space;
			job->region = l->region;
			job->region_number = l->region_number;
			job->pages = 0;
			l->job = job;
			break;
		}
		err = collect(l);
		if (err)
			return err;
	}
	job->vpn[job->pages] = vpn;
	job->flags[job->pages] = (uint8_t)flags;
	if (++job->pages == ANALYZE_BATCH)
		submit(l);
	return 0;
}

/* which pages ------------------------------------------------------------------ */

static bool is_ksm(const struct look *l, uint64_t entry)
{
	uint64_t flags = 0;
	uint64_t frame = entry & PM_FRAME;

	if (!l->check_ksm || frame == 0)
		return false;
	return sys->pread(l->a->inner->kpageflags, &flags, sizeof(flags),
			  (off_t)(frame * sizeof(flags))) == sizeof(flags) && (flags & KPF_KSM);
}

static int sort_out(struct look *l, uint64_t entry, uint64_t vpn, uint64_t flags)
{
	if (!(entry & PM_PRESENT) || (entry & PM_FILE)) {
		l->p->vanished++; /* since the scan */
		return 0;
	}
	if (is_ksm(l, entry)) {
		l->vma_ksm++;
		return 0;
	}
	if (!(entry & PM_EXCLUSIVE)) {
		l->vma_shared++;
		return 0;
	}
	return add_page(l, vpn, flags);
}

/* Present anonymous pages [from, end). */
static int look_pages(struct look *l, uint64_t from, uint64_t end, uint64_t flags)
{
	uint64_t entry[PAGEMAP_PAGES];

	while (from < end) {
		uint64_t n = end - from < PAGEMAP_PAGES ? end - from : PAGEMAP_PAGES;
		ssize_t got = sys->pread(l->pagemap, entry, n * sizeof(*entry),
					 (off_t)(from * sizeof(*entry)));

		if (got <= 0)
			return got < 0 ? (int)got : -ESRCH;
		n = (uint64_t)got / sizeof(*entry);
		for (uint64_t i = 0; i < n; i++) {
			int err = sort_out(l, entry[i], from + i, flags);

			if (err)
				return err;
		}
		from += n;
	}
	return 0;
}

static int look_region(struct look *l, const struct sys_page_region *r)
{
	uint64_t from = r->start / l->page_bytes, end = r->end / l->page_bytes;

	if (r->categories & SYS_PAGE_IS_SWAPPED)
		l->vma_swapped += end - from;
	else if (r->categories & SYS_PAGE_IS_PFNZERO)
		l->p->zero_mapped += end - from;
	else if (!(r->categories & SYS_PAGE_IS_FILE))
		return look_pages(l, from, end,
				  r->categories & SYS_PAGE_IS_HUGE ? CORE_CENSUS_HUGE : 0);
	return 0;
}

static int scan(struct look *l, uint64_t start, uint64_t end)
{
	struct sys_page_region found[SCAN_REGIONS];
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)found,
		.vec_len = SCAN_REGIONS,
		.category_anyof_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
		.return_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED | SYS_PAGE_IS_FILE |
			       SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_HUGE,
	};

	while (arg.start < end) {
		int n = sys->pagemap_scan(l->pagemap, &arg);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			int err = look_region(l, &found[i]);

			if (err)
				return err;
		}
		if (arg.walk_end <= arg.start)
			break;
		arg.start = arg.walk_end;
	}
	return 0;
}

/* Bytes of a store that the mapping shows from start on; what was written since is its own. */
static uint64_t in_store(const struct sys_vma *vma, uint64_t start)
{
	uint64_t bytes = vma->end - start;

	return bytes > vma->anon_bytes ? bytes - vma->anon_bytes : 0;
}

static int look_vma(const struct sys_vma *vma, void *arg)
{
	struct look *l = arg;
	uint64_t start = unseen(l, vma);
	uint64_t ksm = vma->ksm_bytes / l->page_bytes, swapped = vma->swap_bytes / l->page_bytes;
	enum core_census_kind kind;
	int err;

	if (start >= vma->end)
		return 0;
	kind = analyze_kind(vma, l->p, &l->before);
	/* also where the process has not read since: a merged page need not be in its tables */
	if (sys_name_is_store(vma->name) && !vma->shared)
		l->p->merged += in_store(vma, start) / l->page_bytes;
	if (vma->flags & SYS_VMF(ht)) {
		l->p->hugetlb += (vma->end - start) / l->page_bytes;
		return 0;
	}
	if (vma->shared || vma->flags & (SYS_VMF(io) | SYS_VMF(pf)) ||
	    vma->anon_bytes + vma->swap_bytes + vma->rss_bytes + ksm == 0)
		return 0;
	submit(l);
	l->region = (struct core_census_region){
		.start_vpn = start / l->page_bytes,
		.end_vpn = vma->end / l->page_bytes,
		.process = l->number,
		.kind = (uint8_t)kind,
		.locked = (vma->flags & SYS_VMF(lo)) != 0,
	};
	l->region_number++;
	l->vma_ksm = l->vma_shared = l->vma_swapped = 0;
	l->check_ksm = ksm > 0 && l->a->inner->kpageflags >= 0;
	err = scan(l, start, vma->end);
	if (!l->check_ksm && ksm > 0) { /* which ones is not to be seen, but how many */
		l->vma_ksm = ksm < l->vma_shared ? ksm : l->vma_shared;
		l->vma_shared -= l->vma_ksm;
	}
	l->p->ksm += l->vma_ksm;
	l->p->forked += l->vma_shared;
	/* the scan takes guards (MADV_GUARD_INSTALL) for swap, too */
	l->p->swapped += l->vma_swapped < swapped ? l->vma_swapped : swapped;
	return err;
}

/* one process ------------------------------------------------------------------ */

static int open_of(int pid, const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return sys->open(path, O_RDONLY | O_CLOEXEC, 0);
}

static void find_before(struct look *l)
{
	struct analyze_inner *in = l->a->inner;

	for (unsigned i = 0; i < in->old_processes; i++) {
		const struct analyze_process *q = &in->old_process[i];

		if (q->pid == l->p->pid && q->started == l->p->started) {
			core_census_walk_begin(&l->old, &in->old, q->region_first, q->region_end);
			return;
		}
	}
}

static void forget(struct analyze *a, struct analyze_process *p)
{
	core_census_truncate(&a->census, p->region_first);
	p->read = p->zero = p->zero_mapped = p->ksm = p->forked = p->swapped = 0;
	p->huge = p->merged = p->hugetlb = p->stayed = p->lasted = p->vanished = 0;
}

static void set_state(struct analyze *a, struct analyze_process *p, int err)
{
	p->error = -err;
	if (err == -EACCES || err == -EPERM)
		p->state = ANALYZE_DENIED;
	else if (err == -ESRCH || err == -ENOENT)
		p->state = ANALYZE_EXITED;
	else if (err == -EINTR)
		p->state = ANALYZE_NOT_READ;
	else
		p->state = ANALYZE_FAILED;
	forget(a, p);
}

/* -EAGAIN: it has begun another program meanwhile. */
static int look_once(struct analyze *a, unsigned number)
{
	struct analyze_process *p = &a->process[number];
	struct look l = { .a = a, .p = p, .number = number, .mem = -1, .pagemap = -1,
			  .page_bytes = sys_page_bytes() };
	int err;

	p->region_first = p->region_end = a->census.regions;
	analyze_identify(p);
	if (p->state != ANALYZE_OK)
		return 0;
	p->shares_pid = analyze_shares_with(a, number);
	if (p->shares_pid) {
		p->state = ANALYZE_SHARES;
		p->locked_bytes = p->pinned_bytes = 0; /* counted there */
		return 0;
	}
	err = l.mem = open_of(p->pid, "mem");
	if (err >= 0)
		err = l.pagemap = open_of(p->pid, "pagemap");
	if (err >= 0)
		err = learn_addresses(&l);
	if (err < 0)
		goto out;
	find_before(&l);
	l.seen_end = 0;
	err = sys_smaps_each(p->pid, a->inner->buf, ANALYZE_MAPS_BUF_BYTES, look_vma, &l);
	err = drain(&l, err);
	/* an exit leaves the list of mappings empty and pagemap at its end, without an error */
	if (!err && !analyze_same(p))
		err = -ESRCH;
out:
	/* its memory has ended, but not it; the image may be at the same place, too */
	if (err == -ESRCH ? analyze_same(p) : !err && analyze_other_image(p))
		err = -EAGAIN;
	if (err < 0)
		set_state(a, p, err);
	p->region_end = a->census.regions;
	if (l.pagemap >= 0)
		sys->close(l.pagemap);
	if (l.mem >= 0)
		sys->close(l.mem);
	free(l.range);
	return err;
}

/* 0; what is wrong with the process is its state; -ENOMEM and -EOVERFLOW are ours. */
int analyze_process_look(struct analyze *a, unsigned number)
{
	struct analyze_process *p = &a->process[number];
	int err = -EAGAIN;

	for (unsigned i = 0; i < TRIES_MAX && err == -EAGAIN; i++) {
		p->state = ANALYZE_OK;
		p->error = 0;
		p->vmas = 0;
		err = look_once(a, number);
	}
	return err == -ENOMEM || err == -EOVERFLOW ? err : 0;
}
