/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Freeze and commit: carry out a chunk's plan (I2, I3).
 *
 *   1. under the memory lock: is the range still what was looked at?
 *   2. register it with our userfaultfd, mode MISSING. What the scanner watches: stretch by
 *      stretch of what is planned, and in both modes; what lies between is tracked on without
 *      a gap. (MISSING alone would end the tracking and leave its marks in the page tables:
 *      a page that is written then never shows as written again)
 *   3. UFFDIO_MOVE the planned pages to the staging area; from here on every
 *      access to them, from user or kernel mode, waits; a page that is pinned for
 *      DMA or shared by fork does not move and stays as it is
 *   3b. one call that takes mmap_lock for writing and changes nothing: whoever
 *      got hold of a page without pinning it (ptrace, /proc/PID/mem) copies with
 *      that lock held for reading, so this waits until such a copy is over
 *   4. compare the staged bytes with the slots, byte for byte; what differs goes
 *      back at once
 *   5. mmap each run's slots over the hole; zero pages: nothing to map
 *   6. unregister (the VMAs become one again), or track again, and wake the waiters
 *   7. after the lock: drop the staged copies
 *
 * Between 3 and 6 nothing here allocates, takes a lock, or touches memory that
 * could be frozen: staging, plan and stack are the engine's own.
 *
 * A page that was moved out is in the staging area until it is mapped or moved
 * back; there is no path on which it is dropped before. When the kernel refuses
 * to take a page back (no memory), we try for as long as it takes: the program
 * waits, it does not go on with a hole.
 *
 * Staging stays registered all the time (UFFDIO_MOVE wants its destination
 * registered with the same descriptor).
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "core/hash.h"
#include "proc/freeze_impl.h"

/* --- 3: out to staging ---------------------------------------------------- */

/* Why did the kernel not move this page? */
static enum samepage_reason move_reason(struct freeze *f, uint32_t i, int err)
{
	uint64_t entry = 0;
	off_t at = (off_t)(((uintptr_t)page_at(f, i) >> f->e->page_shift) * sizeof(entry));

	switch (err) {
	case -ENOENT:
	case -EFAULT:
		return SAMEPAGE_REASON_VANISHED;
	case -ENOMEM:
		return SAMEPAGE_REASON_NO_MEMORY;
	case -EBUSY:
		/* Not exclusively ours, or pinned: bit 56 of pagemap tells which. */
		if (sys->pread(f->e->pagemap_fd, &entry, sizeof(entry), at) == sizeof(entry) &&
		    !(entry >> 56 & 1))
			return SAMEPAGE_REASON_FORK_SHARED;
		return SAMEPAGE_REASON_PINNED;
	case -EAGAIN:
		return SAMEPAGE_REASON_PINNED;
	default:
		return SAMEPAGE_REASON_FAILED;
	}
}

static void stage(struct freeze *f)
{
	uint32_t i = f->lo;

	while (i < f->hi) {
		uint32_t n = 0, done;
		size_t moved = 0;
		int err;

		if (f->plan[i].kind == CORE_PLAN_SKIP) {
			i++;
			continue;
		}
		while (i + n < f->hi && f->plan[i + n].kind != CORE_PLAN_SKIP)
			n++;
		err = sys->uffd_move(f->e->uffd, stage_at(f, i), page_at(f, i), bytes_of(f, n),
				     &moved);
		done = (uint32_t)(moved >> f->e->page_shift);
		memset(f->staged + i, 1, done);
		i += done;
		if (err < 0 && done < n) {
			proc_plan_skip(&f->plan[i], move_reason(f, i, err));
			i++;
		}
	}
}

/* Step 3b. MADV_DOFORK on memory that is not DONTFORK is that call. */
static int wait_for_unpinned(struct freeze *f)
{
	return sys->madvise(stage_at(f, f->lo), f->e->page_bytes, MADV_DOFORK);
}

/* --- 4: byte for byte ----------------------------------------------------- */

static bool same_as_planned(struct freeze *f, uint32_t i)
{
	if (f->plan[i].kind == CORE_PLAN_ZERO)
		return core_page_is_zero(stage_at(f, i), f->e->page_bytes);
	return memcmp(stage_at(f, i), f->e->work->bytes[i], f->e->page_bytes) == 0;
}

/*
 * Why do the bytes differ? If the page still has the tag that it was planned by,
 * nobody changed it: the slot is another page's with the same tag. pass.c then
 * looks at the page once more, this time at the bytes.
 */
static void note_mismatch(struct freeze *f, uint32_t i)
{
	struct proc_work *w = f->e->work;
	uint64_t hash;

	proc_plan_skip(&f->plan[i], SAMEPAGE_REASON_CHANGED);
	if (f->c->exact || f->plan[i].slot == CORE_SLOT_NONE)
		return;
	hash = core_hash_page(stage_at(f, i), f->e->page_bytes, f->e->link->index.header->seed);
	if (core_hash_tag(hash) != w->tag[i])
		return;
	w->collided[i] = 1;
	w->collisions++;
}

static void verify(struct freeze *f)
{
	uint32_t i = f->lo;

	while (i < f->hi) {
		uint32_t n = 0;

		if (!f->staged[i] || same_as_planned(f, i)) {
			i++;
			continue;
		}
		while (i + n < f->hi && f->staged[i + n] && !same_as_planned(f, i + n)) {
			note_mismatch(f, i + n);
			n++;
		}
		proc_freeze_put_back(f, i, n, false);
		i += n;
	}
}

/* --- 5: map --------------------------------------------------------------- */

static int map_run(struct freeze *f, const struct core_plan_run *run, uint32_t first)
{
	struct proc_work *w = f->e->work;
	size_t bytes = bytes_of(f, run->pages);
	uint64_t offset = 0;
	intptr_t p;
	int fd;

	/* Still the run that it was made for? */
	if (w->premap[first] && w->premap_pages[first] == run->pages) {
		p = sys->mremap(w->premap[first], bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				page_at(f, first));
		if (p >= 0)
			w->premap[first] = NULL;
		return p < 0 ? (int)p : 0;
	}
	/* The run that the advice was given to is not this one any more: next time. */
	if (f->c->odd & PROC_ODD_CARRIED)
		return -EAGAIN;
	fd = proc_segments_fd(f->e, run->slot, &offset);
	if (fd < 0)
		return fd;
	p = sys->mmap(page_at(f, first), bytes, f->c->prot, proc_prepare_run_flags(f) | MAP_FIXED, fd,
		      (off_t)offset);
	return p < 0 ? (int)p : 0;
}

static void map_runs(struct freeze *f)
{
	struct core_plan_run *runs = f->e->work->runs;
	size_t n = proc_prepare_runs(f);

	for (size_t r = 0; r < n; r++) {
		uint32_t first = f->lo + runs[r].first;
		int err;

		if (runs[r].kind != CORE_PLAN_SLOT)
			continue;
		err = map_run(f, &runs[r], first);
		if (err < 0) {
			proc_freeze_undo_run(f, first, runs[r].pages,
				 err == -ENOMEM	  ? SAMEPAGE_REASON_NO_MEMORY
				 : err == -EAGAIN ? SAMEPAGE_REASON_CHANGED
						  : SAMEPAGE_REASON_FAILED);
			continue;
		}
		f->res->runs++;
	}
}

/* --- 6 and 7: let go ------------------------------------------------------ */

/* EINVAL is believed only when it is said again. */
static int unregister(struct freeze *f, const void *start, size_t bytes)
{
	int err = -EINVAL;

	for (int tries = 0; tries < 5 && err == -EINVAL; tries++)
		err = sys->uffd_unregister(f->e->uffd, start, bytes);
	return err;
}

/* False: the userfaultfd is gone, and with it every registration. */
static bool thaw_range(struct freeze *f, uint32_t first, uint32_t end)
{
	uint8_t *start = page_at(f, first);
	size_t bytes = bytes_of(f, end - first);
	int err;

	/* A range that stays registered would make the program wait for ever. */
	while ((err = unregister(f, start, bytes)) < 0) {
		if (err == -EINVAL) {
			/* Somebody broke the promise and mapped something else there. */
			for (uint32_t i = first; i < end; i++)
				/* Page by page takes mappings: at the limit, wait for them. */
				while (unregister(f, page_at(f, i), f->e->page_bytes) == -ENOMEM)
					proc_freeze_pause();
			break;
		}
		if (err == -EPERM || err == -ENOSYS || err == -EACCES) {
			/* A filter forbids it now. Closing does the same, once and for all:
			 * every page is where it belongs by now. */
			sys->close(f->e->uffd);
			f->e->uffd = -1;
			return false;
		}
		proc_freeze_pause();
	}
	return true;
}

/* What was planned there and is not mapped is tracked again. It waits to be hashed anew. */
static bool thaw_stretch(struct freeze *f, const struct proc_stretch *s)
{
	uint32_t i = s->first, end;

	for (; i < s->end; i = end) {
		for (end = i; end < s->end && f->plan[end].kind == CORE_PLAN_SLOT; end++)
			;
		for (i = end; end < s->end && f->plan[end].kind != CORE_PLAN_SLOT; end++)
			;
		if (i == end)
			continue;
		if (!thaw_range(f, i, end))
			return false;
		scan_rearm(f->e, (uintptr_t)page_at(f, i), (uintptr_t)page_at(f, end),
			   f->c->scan != NULL);
	}
	return true;
}

static void thaw(struct freeze *f)
{
	uint8_t *start = page_at(f, f->lo);
	size_t bytes = bytes_of(f, f->hi - f->lo);

	if (!f->watched && !thaw_range(f, f->lo, f->hi))
		return;
	for (uint32_t s = 0; s < f->stretches; s++)
		if (!thaw_stretch(f, &f->e->work->stretch[s]))
			return;
	for (int tries = 0; tries < 100 && sys->uffd_wake(f->e->uffd, start, bytes) < 0; tries++)
		proc_freeze_pause();
}

static void drop_staged(struct freeze *f)
{
	/* One call over all of it: what was not staged is not there. */
	if (sys->madvise(stage_at(f, f->lo), bytes_of(f, f->hi - f->lo), MADV_DONTNEED) < 0)
		f->staging->dirty = true;
}

/* --- 2: everybody waits --------------------------------------------------- */

static int freeze_range(struct freeze *f, uint32_t first, uint32_t end)
{
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING;
	int err;

	if (proc_scan_tracks(f->e))
		mode |= UFFDIO_REGISTER_MODE_WP;
	err = sys->uffd_register(f->e->uffd, page_at(f, first), bytes_of(f, end - first), mode);
	for (uint32_t i = first; err < 0 && i < end; i++)
		if (f->plan[i].kind != CORE_PLAN_SKIP)
			proc_plan_skip(&f->plan[i], err == -EBUSY    ? SAMEPAGE_REASON_UFFD_BUSY
						    : err == -ENOMEM ? SAMEPAGE_REASON_NO_MEMORY
								     : SAMEPAGE_REASON_FAILED);
	return err;
}

/* False: nothing is registered. */
static bool freeze(struct freeze *f)
{
	struct proc_stretch *stretch = f->e->work->stretch;
	uint32_t i = f->lo, end;

	f->stretches = 0;
	f->watched = proc_scan_watched(f->e, (uintptr_t)page_at(f, f->lo));
	if (!f->watched)
		return freeze_range(f, f->lo, f->hi) == 0;
	for (; i < f->hi; i = end + 1) {
		for (end = i; end < f->hi && f->plan[end].kind != CORE_PLAN_SKIP; end++)
			;
		if (end > i && freeze_range(f, i, end) == 0)
			stretch[f->stretches++] = (struct proc_stretch){ (uint16_t)i, (uint16_t)end };
	}
	return f->stretches > 0;
}

/* Lock held. Everything between the first and the last moment of a freeze. */
static void freeze_map_thaw(struct freeze *f)
{
	uint64_t since = sys_now_usec();

	if (!freeze(f))
		return;
	stage(f);
	if (wait_for_unpinned(f) == 0) {
		verify(f);
		map_runs(f);
	} else {
		proc_freeze_put_all_back(f);
	}
	thaw(f);
	f->res->frozen_usec += sys_now_usec() - since;
}

void proc_freeze_commit(struct proc_engine *e, const struct proc_chunk *c,
			struct samepage_result *res)
{
	struct freeze f = { .e = e, .c = c, .res = res, .plan = e->work->plan,
			    .staged = e->work->staged };

	memset(f.staged, 0, PROC_CHUNK_PAGES);
	proc_prepare_slots(&f);
	if (!proc_prepare_narrow(&f))
		return;
	proc_prepare_budget(&f);
	f.staging = proc_staging_for(e, c->prot);
	if (!f.staging) {
		proc_prepare_skip_all(&f, SAMEPAGE_REASON_NO_MEMORY);
		return;
	}
	proc_mem_lock_engine();
	if (!proc_prepare_still_ours(&f)) {
		proc_mem_unlock_engine();
		return;
	}
	memset(e->work->premap, 0, sizeof(e->work->premap));
	proc_prepare_bytes(&f);
	/* Noted first: a hull that says too much is safe. */
	(void)proc_mem_note_merged((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi),
				   c->odd);
	proc_origin_forget((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi));
	freeze_map_thaw(&f);
	proc_prepare_drop(&f);
	proc_mem_unlock_engine();
	drop_staged(&f);
}
