/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * MADV_MERGE as the merge primitive; kernel.h has the theory.
 *
 * Locks: `turn` is taken by engines' threads only, around a pass, and nothing else is
 * taken inside it but the memory lock.
 */
#include "proc/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "core/hash.h"
#include "sys/probe.h"

/* The kernel looks at so much before it is asked to close: a few tenths of a second. */
#define PIECE_BYTES (UINT64_C(1) << 30)

static _Atomic uint32_t turn;

/* --- choice --------------------------------------------------------------- */

int proc_primitive_parse(const char *text, enum proc_primitive *primitive)
{
	if (!text || !*text || strcmp(text, "auto") == 0)
		*primitive = PROC_PRIMITIVE_AUTO;
	else if (strcmp(text, "remap") == 0)
		*primitive = PROC_PRIMITIVE_REMAP;
	else if (strcmp(text, "kernel") == 0)
		*primitive = PROC_PRIMITIVE_KERNEL;
	else
		return -EINVAL;
	return 0;
}

bool proc_kernel_available(void)
{
	struct sys_features f;

	memset(&f, 0, sizeof(f));
	sys_probe_merge(&f);
	return sys_probe_kernel_merges(&f);
}

/* What the broker would be told of us (SO_PEERSEC): a domain ends there as well. */
static void read_label(char *to, size_t room)
{
	int fd = sys->open("/proc/thread-self/attr/current", O_RDONLY | O_CLOEXEC, 0);
	ssize_t got = fd < 0 ? 0 : sys->read(fd, to, room);

	if (fd >= 0)
		sys->close(fd);
	if (got > 0 && (to[got - 1] == '\n' || to[got - 1] == '\0'))
		to[got - 1] = '\0';
}

/*
 * The same number in every process of the domain, whatever version of ours: XXH3 over
 * the name and the label, each padded with zeros.
 */
uint64_t proc_scope_of(const char *domain)
{
	char text[512] = "";
	uint64_t cookie;

	strncpy(text, domain ? domain : "default", 255);
	read_label(text + 256, 255);
	cookie = core_hash_page(text, sizeof(text), UINT64_C(0x73616d6570616765));
	return cookie ? cookie : 1; /* 0 is the scope of those who say nothing */
}

static int try_kernel(struct proc_engine *e)
{
	int err;

	if (!proc_kernel_available())
		return -ENOSYS;
	err = sys->merge_scope_set(SYS_PR_MEMORY_MERGE_SCOPE_USER, e->params.scope);
	if (err < 0)
		return err;
	e->ksm_fd = sys_ksm_stat_open();
	if (e->ksm_fd < 0)
		return e->ksm_fd;
	e->mem_fd = sys->open("/proc/thread-self/mem", O_RDONLY | O_CLOEXEC, 0);
	err = sys_ksm_stat_read(e->ksm_fd, &e->ksm);
	if (err < 0)
		proc_kernel_end(e);
	return err;
}

int proc_kernel_start(struct proc_engine *e)
{
	int err;

	e->kernel = false;
	if (e->params.primitive == PROC_PRIMITIVE_REMAP)
		return 0;
	err = try_kernel(e);
	e->kernel = err == 0;
	return e->params.primitive == PROC_PRIMITIVE_KERNEL ? err : 0;
}

void proc_kernel_end(struct proc_engine *e)
{
	if (e->ksm_fd >= 0)
		sys->close(e->ksm_fd);
	if (e->mem_fd >= 0)
		sys->close(e->mem_fd);
	e->ksm_fd = e->mem_fd = -1;
}

void proc_kernel_forked(void)
{
	atomic_store(&turn, 0);
}

/* --- what can be merged ---------------------------------------------------- */

/*
 * Flags of memory that the kernel merges. Not locked memory, though it would do that as
 * well: who locks wants no fault at the next write.
 */
#define FLAGS_MERGED                                                                               \
	(SYS_VMF(rd) | SYS_VMF(wr) | SYS_VMF(ex) | SYS_VMF(mr) | SYS_VMF(mw) | SYS_VMF(me) |      \
	 SYS_VMF(ac) | SYS_VMF(nr) | SYS_VMF(sd) | SYS_VMF(hg) | SYS_VMF(nh) | SYS_VMF(mg) |      \
	 SYS_VMF(dc) | SYS_VMF(dd) | SYS_VMF(gd) | SYS_VMF(wf) | SYS_VMF(sr) | SYS_VMF(rr) |      \
	 SYS_VMF(gu))

enum samepage_reason proc_kernel_obstacle(const struct sys_vma *v)
{
	int policy = 0;

	if (v->shared || (!v->anonymous && v->inode == 0))
		return SAMEPAGE_REASON_VMA_KIND;
	if (!(v->prot & PROT_READ))
		return SAMEPAGE_REASON_PROTECTION;
	if (v->flags & (SYS_VMF(um) | SYS_VMF(uw) | SYS_VMF(ui)))
		return SAMEPAGE_REASON_UFFD_BUSY;
	if (v->flags & ~(uint64_t)FLAGS_MERGED)
		return SAMEPAGE_REASON_VMA_FLAGS;
	/* The page that stays may lie on another node than the policy asks for. */
	if (sys->get_mempolicy_at((void *)(uintptr_t)v->start, &policy) == 0 && policy != 0)
		return SAMEPAGE_REASON_POLICY;
	return SAMEPAGE_REASON_COUNT;
}

/* --- merging ---------------------------------------------------------------- */

/* Of a file's mapping: pages of its own, which the kernel merges as any others. */
static int merge_own_pages(struct proc_engine *e, uint64_t start, uint64_t end)
{
	struct sys_page_region *r = e->work->regions;
	int result = 0;

	while (start < end && atomic_load(&e->state) != PROC_CLOSING) {
		uint64_t walk_end;
		int n = proc_present(e, start, end, &walk_end);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			int err = 0;

			if (r[i].categories & SYS_PAGE_IS_PRESENT)
				err = sys->merge((void *)r[i].start, r[i].end - r[i].start);
			if (err < 0 && err != -ENOMEM)
				result = err;
		}
		if (walk_end <= start)
			break;
		start = walk_end;
	}
	return result;
}

static int merge_pieces(struct proc_engine *e, uint64_t start, uint64_t end)
{
	int result = 0;

	while (start < end && atomic_load(&e->state) != PROC_CLOSING) {
		uint64_t until = end - start > PIECE_BYTES ? start + PIECE_BYTES : end;
		int err = sys->merge((void *)start, until - start);

		/* ENOMEM: part of it was unmapped meanwhile, the rest is done. */
		if (err < 0 && err != -ENOMEM)
			result = err;
		start = until;
	}
	return result;
}

/* What the kernel has counted since the last time. False: it cannot be read. */
static bool take_counts(struct proc_engine *e, struct sys_ksm_stat *d)
{
	struct sys_ksm_stat now;

	if (sys_ksm_stat_read(e->ksm_fd, &now) < 0)
		return false;
	*d = (struct sys_ksm_stat){
		.merged = now.merged - e->ksm.merged,
		.already = now.already - e->ksm.already,
		.zero = now.zero - e->ksm.zero,
		.unique = now.unique - e->ksm.unique,
		.busy = now.busy - e->ksm.busy,
		.skipped = now.skipped - e->ksm.skipped,
	};
	d->looked = d->merged + d->already + d->zero + d->unique + d->busy + d->skipped;
	e->ksm = now;
	return true;
}

static void count(struct samepage_result *res, const struct sys_ksm_stat *d,
		  const struct sys_vma *v)
{
	res->pages_looked += d->looked;
	res->pages_merged += d->merged;
	res->pages_zeroed += d->zero;
	res->pages_already += d->already;
	core_result_decline(res, SAMEPAGE_REASON_UNIQUE, d->unique);
	core_result_decline(res, SAMEPAGE_REASON_BUSY, d->busy);
	core_result_decline(res, v->anonymous ? SAMEPAGE_REASON_VMA_FLAGS
					      : SAMEPAGE_REASON_VMA_KIND, d->skipped);
}

void proc_kernel_span(struct proc_engine *e, const struct sys_vma *v, uint64_t start, uint64_t end,
		      struct samepage_result *res)
{
	uint64_t swapped = proc_pass_count_swapped(e, start, end), present;
	struct sys_ksm_stat d = { 0 };
	int err = v->anonymous ? merge_pieces(e, start, end) : merge_own_pages(e, start, end);
	bool counted = take_counts(e, &d);

	count(res, &d, v);
	res->pages_looked += swapped;
	core_result_decline(res, SAMEPAGE_REASON_SWAPPED, swapped);
	if (err == 0 && counted)
		return;
	present = proc_pass_count_present(e, start, end) - swapped;
	if (present > d.looked) {
		res->pages_looked += present - d.looked;
		core_result_decline(res,
				    err == -EINTR ? SAMEPAGE_REASON_STOPPED
				    : err == -EAGAIN ? SAMEPAGE_REASON_NO_MEMORY
						     : SAMEPAGE_REASON_FAILED,
				    present - d.looked);
	}
}

void proc_kernel_begins(struct proc_engine *e)
{
	struct sys_ksm_stat ignored;

	proc_lock(&turn);
	(void)take_counts(e, &ignored);
}

void proc_kernel_ends(struct proc_engine *e)
{
	proc_unlock(&turn);
}

/* --- and back ----------------------------------------------------------------- */

/* KSM's own way back; holes are told as ENOMEM when the rest is done. */
int proc_kernel_unmerge(uint64_t start, uint64_t end)
{
	int err = sys->madvise((void *)(uintptr_t)start, end - start, MADV_UNMERGEABLE);

	return err == -EAGAIN || err == -EINTR ? -ENOMEM : err;
}

/* Holes are no reason to have failed. */
int proc_kernel_home(uint64_t start, uint64_t end)
{
	int err = proc_kernel_unmerge(start, end);

	if (err == -ENOMEM) {
		proc_mem_lock_engine();
		if (proc_mem_has_gap(start, end))
			err = 0;
		proc_mem_unlock_engine();
	}
	return err;
}

uint64_t proc_kernel_sharing(const struct proc_engine *e)
{
	struct sys_ksm_stat now;

	return sys_ksm_stat_read(e->ksm_fd, &now) < 0 ? 0 : now.merging_pages;
}
