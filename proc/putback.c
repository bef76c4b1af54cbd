/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Out of staging again, for pages that were not to be merged after all: the part of a
 * freeze that must not fail (I2, I3). There is no path on which a staged page is
 * dropped before it is back; where the kernel has no memory, the program waits.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/freeze_impl.h"

void proc_freeze_pause(void)
{
	static _Atomic uint32_t never;

	sys_futex_wait(&never, 0, 1);
}

/*
 * Linux before 6.12 unmaps first when it maps over something, and may fail
 * afterwards: then there is a hole. A mapping like the one that was there is made
 * elsewhere, gets the pages, and is moved over the hole in one step, so that nobody
 * ever sees it empty. 0, or -errno: try again.
 */
static int fill_hole(struct freeze *f, uint32_t i, uint32_t n)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS |
		    (f->c->odd & PROC_ODD_NORESERVE ? MAP_NORESERVE : 0);
	size_t bytes = bytes_of(f, n), moved = 0;
	intptr_t p = sys->mmap(NULL, bytes, f->c->prot, flags, -1, 0), q;
	int err;

	if (p < 0)
		return (int)p;
	proc_mem_reapply_odd((uint64_t)p, (uint64_t)p + bytes, f->c->odd);
	err = sys->uffd_register(f->e->uffd, (void *)p, bytes, UFFDIO_REGISTER_MODE_MISSING);
	if (err == 0)
		err = sys->uffd_move(f->e->uffd, (void *)p, stage_at(f, i), bytes, &moved);
	if (err == 0) {
		q = sys->mremap((void *)p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				page_at(f, i));
		if (q >= 0)
			return 0;
		err = (int)q;
	}
	/* Back to staging with what got here; that cannot take less memory. */
	for (size_t back = 0, done; back < moved; back += done) {
		done = 0;
		sys->uffd_move(f->e->uffd, stage_at(f, i) + back, (void *)(p + (intptr_t)back),
			       moved - back, &done);
		if (!done)
			proc_freeze_pause();
	}
	sys->munmap((void *)p, bytes);
	return err;
}

/*
 * Move staged pages [i, i + n) back to where they came from. Does not return
 * before they are back, unless somebody else's mapping is there now (a broken
 * promise of the caller: then there is nothing to put them back into). hole: a call
 * of ours failed that may have left one.
 */
void proc_freeze_put_back(struct freeze *f, uint32_t i, uint32_t n, bool hole)
{
	uint32_t end = i + n;

	while (i < end) {
		size_t moved = 0, copied = 0;
		int err = sys->uffd_move(f->e->uffd, page_at(f, i), stage_at(f, i),
					 bytes_of(f, end - i), &moved);
		uint32_t done = (uint32_t)(moved >> f->e->page_shift);

		memset(f->staged + i, 0, done);
		i += done;
		if (i == end || err == 0)
			continue;
		if (err == -ENOENT && hole && fill_hole(f, i, end - i) == 0) {
			memset(f->staged + i, 0, end - i);
			return;
		}
		if (err != -EEXIST && !(err == -ENOENT && hole))
			err = sys->uffd_copy(f->e->uffd, page_at(f, i), stage_at(f, i),
					     f->e->page_bytes, &copied);
		if (err == 0 || err == -EEXIST || (err == -ENOENT && !hole)) {
			f->staged[i] = 0;
			i++;
			continue;
		}
		proc_freeze_pause();
	}
}

/* A run could not be mapped: its pages go home. */
void proc_freeze_undo_run(struct freeze *f, uint32_t i, uint32_t n, enum samepage_reason why)
{
	proc_freeze_put_back(f, i, n, true);
	for (uint32_t k = i; k < i + n; k++)
		proc_plan_skip(&f->plan[k], why);
}

void proc_freeze_put_all_back(struct freeze *f)
{
	for (uint32_t i = f->lo; i < f->hi; i++) {
		if (!f->staged[i])
			continue;
		proc_freeze_put_back(f, i, 1, false);
		proc_plan_skip(&f->plan[i], SAMEPAGE_REASON_FAILED);
	}
}
