/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A userfaultfd of the program's own, by way of ioctl(2).
 *
 * Memory that is registered is declined by the engine (UFFD_BUSY). But memory that
 * was merged before is a file mapping to the kernel: discarded pages of it would
 * never be reported as missing, and making them anonymous (advise.c) would lose the
 * registration. So before UFFDIO_REGISTER the range is brought home: anonymous memory
 * with the same bytes (proc/retreat.c), and no longer owned, so that nothing is merged
 * there between that and the call. What cannot be brought home (pinned for DMA just
 * then) makes the registration fail with EBUSY, as memory does that somebody else
 * has registered.
 *
 * The registration can wait for nobody but the engine; the memory lock is not held
 * across that.
 *
 * One that is told of forks (UFFD_FEATURE_EVENT_FORK) would be told of ours, which wait,
 * under the memory lock, until the program has read that. So there are none from the first
 * such registration on.
 *
 * Whoever touches registered memory, or unmaps it, may have to wait for the program's thread
 * that serves it, and calls that we see (mlockall, mremap) wait with the lock. That thread must be
 * able to use malloc and free, so those do without the lock from the first userfaultfd on.
 */
#include "shim/shim.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

int shim_bring_home(const struct shim_range *range)
{
	struct proc_mem_guard guard;
	bool merged, watched;
	int err;

	proc_mem_lock(&guard);
	proc_mem_disown(range->start, range->end);
	proc_mem_touched(range->start, range->end);
	merged = proc_mem_maybe_merged(range->start, range->end);
	watched = proc_scan_watches(shim_engine());
	proc_mem_unlock(&guard);
	if (!merged && !watched)
		return 0;
	err = proc_engine_home(shim_engine(), range->start, range->end);
	/* A child without an engine has no registration of ours either. */
	if (err == -ECANCELED && !merged)
		return 0;
	return err == 0 || err == -ENOMEM ? err : -EBUSY;
}

/* Lock held. Could our scanner be at it? */
static bool wanted_there(const struct shim_range *range)
{
	struct core_range owned;
	uint64_t at = range->start;

	while (at < range->end && proc_mem_owned_copy(at, &owned, 1) && owned.start < range->end) {
		if (!(owned.attr & PROC_OWN_REFUSED))
			return true;
		at = owned.end;
	}
	return false;
}

/*
 * For libsamepage in the program (lib/samepage.c): an engine of its own is about to merge the
 * range. What our scanner watches is registered with our userfaultfd, so it would merge
 * nothing there. From here on the range is the handle's: to the scanner it is refused, until
 * the program advises it.
 */
SHIM_EXPORT void samepage_preload_leave(void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	bool watched;

	if (!shim_is_ready() || !shim_range_of(addr, bytes, &range))
		return;
	proc_mem_lock(&guard);
	watched = wanted_there(&range) && proc_scan_watches(shim_engine());
	if (watched) {
		proc_mem_own_attr(range.start, range.end, PROC_OWN_REFUSED, PROC_OWN_ADVISED);
		proc_mem_touched(range.start, range.end);
	}
	proc_mem_unlock(&guard);
	if (watched)
		(void)proc_engine_leave(shim_engine(), range.start, range.end);
}

/* Is, or was, a userfaultfd asked to tell of forks? */
static _Atomic bool tells_of_forks;

static void note_features(const void *arg)
{
	struct uffdio_api api;
	struct iovec to = { &api, sizeof(api) }, from = { (void *)(uintptr_t)arg, sizeof(api) };

	shim_big_stop();
	if (sys->read_self(&to, 1, &from, 1) == (ssize_t)sizeof(api) &&
	    (api.features & UFFD_FEATURE_EVENT_FORK))
		atomic_store(&tells_of_forks, true);
}

/* With the lock: a fork of ours that has begun is over. */
static void forbid_forks(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	proc_engine_without_fork();
	proc_mem_unlock(&guard);
}

long shim_ioctl(int fd, unsigned long request, long arg)
{
	struct uffdio_register reg;
	struct iovec to = { &reg, sizeof(reg) }, from = { (void *)arg, sizeof(reg) };
	struct shim_range range;

	if ((uint32_t)request == (uint32_t)UFFDIO_API && shim_is_ready())
		note_features((const void *)arg);
	/* The kernel takes 32 bits; one that was kept in an int comes sign-extended. */
	if ((uint32_t)request == (uint32_t)UFFDIO_REGISTER && shim_is_ready() &&
	    sys->read_self(&to, 1, &from, 1) == (ssize_t)sizeof(reg) &&
	    shim_range_of((void *)(uintptr_t)reg.range.start, reg.range.len, &range)) {
		int err = shim_bring_home(&range);

		if (err < 0)
			return err;
		if (atomic_load(&tells_of_forks))
			forbid_forks();
	}
	return sys_raw(SYS_ioctl, fd, request, arg);
}

SHIM_EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	long arg;

	va_start(args, request);
	arg = va_arg(args, long);
	va_end(args);
	return (int)shim_return(shim_ioctl(fd, request, arg));
}
