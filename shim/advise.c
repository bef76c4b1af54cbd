/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * madvise and its relatives: merged memory must take advice as anonymous memory
 * does (I5).
 *
 *   DONTNEED, FREE, DONTNEED_LOCKED   where something may be merged:
 *                   proc_mem_discard(), or the merged bytes would come back
 *   GUARD_INSTALL   the same first: the bytes must not be back after GUARD_REMOVE
 *   REMOVE          the kernel refuses anonymous memory with EINVAL and keeps its
 *                   bytes; for a store mapping it says EACCES, the program gets EINVAL
 *   DONTFORK, DONTDUMP, HUGEPAGE and their opposites   the kernel's, and recorded
 *                   as odd flags: fresh memory that replaces merged needs them again
 *   WIPEONFORK      the kernel refuses it for store mappings: brought home first
 *                   (uffd.c); what cannot be is private copies, and refused
 *   MERGE (26, the SKSM proposal's)   merged now by the engine; 0, whatever came of it,
 *                   or ENOMEM for gaps, the rest done
 *   MERGEABLE, UNMERGEABLE   to us instead of KSM (SAMEPAGE_KSM=1: as well): what is
 *                   owned in the range becomes ADVISED, or REFUSED with private copies
 *                   made first (EAGAIN if they cannot be). Holes: the rest, then ENOMEM.
 *                   What is not owned is accepted and not merged: being advised does
 *                   not make us see its release
 *   anything else   the kernel's, and touched
 *
 * posix_madvise(POSIX_MADV_DONTNEED) does nothing, in glibc as here.
 *
 * process_madvise gives destructive advice only to the calling process itself;
 * only then it is of interest. Whether a pidfd is our own stands in its fdinfo.
 */
#include "shim/shim.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#define SHIM_MADV_GUARD_INSTALL 102
#define SHIM_MADV_MERGE 26
/* Kernels since 6.14 take these for the caller itself (two values were in use). */
#define SHIM_PIDFD_SELF_THREAD (-10000)
#define SHIM_PIDFD_SELF_GROUP (-10001)
#define SHIM_PIDFD_SELF_GROUP_OLD (-20000)

static int discard(void *addr, size_t bytes, const struct shim_range *range, int advice)
{
	int ret;

	if (proc_mem_maybe_merged(range->start, range->end))
		return proc_mem_discard(range->start, range->end, advice);
	ret = sys->madvise(addr, bytes, advice);
	/* What was known of pages there is not so any more, and no write says so. */
	if (ret == 0 || ret == -ENOMEM)
		proc_mem_discarded(range->start, range->end);
	return ret;
}

static int change_odd(void *addr, size_t bytes, const struct shim_range *range, int advice)
{
	uint32_t set = 0, clear = 0;
	int ret = sys->madvise(addr, bytes, advice);

	switch (advice) {
	case MADV_DONTFORK: set = PROC_ODD_DONTFORK; break;
	case MADV_DOFORK: clear = PROC_ODD_DONTFORK; break;
	case MADV_DONTDUMP: set = PROC_ODD_DONTDUMP; break;
	case MADV_DODUMP: clear = PROC_ODD_DONTDUMP; break;
	case MADV_HUGEPAGE: set = PROC_ODD_HUGEPAGE; clear = PROC_ODD_NOHUGEPAGE; break;
	default: set = PROC_ODD_NOHUGEPAGE; clear = PROC_ODD_HUGEPAGE; break;
	}
	/* ENOMEM: there was a hole, what is mapped did change. */
	if (ret == 0 || ret == -ENOMEM)
		proc_mem_set_odd(range->start, range->end, set, clear);
	proc_mem_touched(range->start, range->end);
	return ret;
}

static int wipe_on_fork(void *addr, size_t bytes, const struct shim_range *range)
{
	uint64_t pages;

	if (proc_mem_maybe_merged(range->start, range->end)) {
		int ret = proc_mem_unmerge(range->start, range->end, &pages);

		proc_mem_disown(range->start, range->end);
		if (ret == -ENOMEM)
			return ret;
	}
	proc_mem_touched(range->start, range->end);
	return sys->madvise(addr, bytes, MADV_WIPEONFORK);
}

static int mergeable(void *addr, size_t bytes, const struct shim_range *range, bool yes)
{
	/* Does nothing since Linux 2.6.19, except to say whether all of it is mapped. */
	int hole = (int)sys_raw(SYS_msync, addr, bytes, MS_ASYNC), ret = 0;

	if (hole < 0 && hole != -ENOMEM)
		return hole;
	if (yes)
		proc_mem_own_attr(range->start, range->end, PROC_OWN_ADVISED, PROC_OWN_REFUSED);
	/* The kernel has one error for private copies that cannot be had. */
	else if (shim_unregister(range->start, range->end) < 0)
		return -EAGAIN;
	/* KSM may have it from before our time, or from PR_SET_MEMORY_MERGE outside. */
	if (!yes || shim_advice_to_kernel())
		ret = sys->madvise(addr, bytes, yes ? MADV_MERGEABLE : MADV_UNMERGEABLE);
	/* EINVAL: a kernel without KSM. We are not one. */
	return ret < 0 && ret != -EINVAL ? ret : hole;
}

static int remove_advice(void *addr, size_t bytes, const struct shim_range *range)
{
	int ret = sys->madvise(addr, bytes, MADV_REMOVE);

	if (ret == -EACCES && proc_mem_maybe_merged(range->start, range->end) &&
	    !proc_origin_any(range->start, range->end))
		ret = -EINVAL;
	return ret;
}

/* Lock held; the range is not empty and starts on a page boundary. */
static int advise(void *addr, size_t bytes, const struct shim_range *range, int advice)
{
	int ret;

	switch (advice) {
	case MADV_DONTNEED:
	case MADV_FREE:
	case MADV_DONTNEED_LOCKED:
		return discard(addr, bytes, range, advice);
	case MADV_REMOVE:
		return remove_advice(addr, bytes, range);
	case MADV_DONTFORK:
	case MADV_DOFORK:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
		return change_odd(addr, bytes, range, advice);
	case MADV_WIPEONFORK:
		return wipe_on_fork(addr, bytes, range);
	case MADV_MERGEABLE:
		return mergeable(addr, bytes, range, true);
	case MADV_UNMERGEABLE:
		return mergeable(addr, bytes, range, false);
	case SHIM_MADV_GUARD_INSTALL:
		if (proc_mem_maybe_merged(range->start, range->end) &&
		    proc_mem_discard(range->start, range->end, MADV_DONTNEED) == -ENOMEM)
			return -ENOMEM;
		__attribute__((fallthrough));
	default:
		ret = sys->madvise(addr, bytes, advice);
		proc_mem_touched(range->start, range->end);
		return ret;
	}
}

/*
 * Advice that changes nothing that we record, and may take long or wait for another
 * thread of the program (its userfaultfd handler, its FUSE server): without the lock.
 */
static bool may_block(int advice)
{
	switch (advice) {
	case MADV_WILLNEED:
	case MADV_COLD:
	case MADV_PAGEOUT:
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
	case 25: /* MADV_COLLAPSE */
		return true;
	default:
		return false;
	}
}

/*
 * What could not be merged (no broker, declined pages) is no error, as the proposal has
 * it: merging promises nothing. Without the memory lock, which the engine takes.
 */
static int merge(const void *addr, size_t bytes)
{
	struct proc_engine *engine = shim_engine();
	struct shim_range range;
	int ret = -ENOTCONN;

	if (!shim_page_aligned(addr))
		return -EINVAL;
	if (bytes == 0)
		return 0;
	if (!shim_range_of(addr, bytes, &range))
		return -EINVAL;
	if (engine)
		ret = proc_engine_merge(engine, range.start, range.end, 0, NULL);
	if (ret == 0 || ret == -ENOMEM)
		return ret;
	return proc_mem_has_gap(range.start, range.end) ? -ENOMEM : 0;
}

int shim_advise(void *addr, size_t bytes, int advice)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	int ret;

	if (advice == SHIM_MADV_MERGE && shim_is_ready())
		return merge(addr, bytes);
	if (may_block(advice) || !shim_is_ready() || !shim_page_aligned(addr) || !shim_range_of(addr, bytes, &range))
		return sys->madvise(addr, bytes, advice);
	if (advice == MADV_WIPEONFORK)
		(void)shim_bring_home(&range);
	proc_mem_lock(&guard);
	ret = advise(addr, bytes, &range, advice);
	proc_mem_unlock(&guard);
	return ret;
}

static bool destructive(int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_WILLNEED:
	case MADV_COLD:
	case MADV_PAGEOUT:
	case 25: /* MADV_COLLAPSE */
		return false;
	default:
		return true;
	}
}

static bool pidfd_is_self(int pidfd)
{
	static const char prefix[] = "/proc/thread-self/fdinfo/";
	char path[sizeof(prefix) + 12], text[512], digits[12];
	const char *pid;
	unsigned n = 0, at = sizeof(prefix) - 1, value = (unsigned)pidfd;
	ssize_t got;
	int fd;

	if (pidfd == SHIM_PIDFD_SELF_THREAD || pidfd == SHIM_PIDFD_SELF_GROUP ||
	    pidfd == SHIM_PIDFD_SELF_GROUP_OLD)
		return true;
	if (pidfd < 0)
		return false;
	memcpy(path, prefix, at);
	do
		digits[n++] = (char)('0' + value % 10);
	while ((value /= 10) != 0);
	while (n > 0)
		path[at++] = digits[--n];
	path[at] = '\0';
	fd = sys->open(path, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return false;
	got = sys->read(fd, text, sizeof(text) - 1);
	sys->close(fd);
	text[got < 0 ? 0 : got] = '\0';
	pid = strstr(text, "\nPid:");
	return pid && strtol(pid + strlen("\nPid:"), NULL, 10) == (int)sys_raw(SYS_getpid, 0, 0, 0);
}

ssize_t shim_process_advise(int pidfd, const struct iovec *iov, size_t count, int advice,
			    unsigned flags)
{
	ssize_t done = 0;
	size_t i;

	/*
	 * A pointer that is not one, odd flags: the kernel has the answer. So it has where it
	 * takes no such advice (before Linux 6.13): it says so for no ranges as well.
	 */
	if (!shim_is_ready() || !destructive(advice) || flags != 0 || count == 0 || count > 1024 ||
	    !pidfd_is_self(pidfd) ||
	    (advice != SHIM_MADV_MERGE &&
	     sys_raw(SYS_process_madvise, pidfd, iov, 0, advice, 0) < 0))
		return sys_raw(SYS_process_madvise, pidfd, iov, count, advice, flags);
	for (i = 0; i < count; i++) {
		struct iovec one, to = { &one, sizeof(one) };
		struct iovec from = { (void *)(uintptr_t)&iov[i], sizeof(one) };
		int ret = -EFAULT;

		if (sys->read_self(&to, 1, &from, 1) == sizeof(one))
			ret = shim_advise(one.iov_base, one.iov_len, advice);
		if (ret < 0)
			return done > 0 ? done : ret;
		done += (ssize_t)one.iov_len;
	}
	return done;
}

SHIM_EXPORT int madvise(void *addr, size_t bytes, int advice)
{
	return (int)shim_return(shim_advise(addr, bytes, advice));
}

SHIM_EXPORT int posix_madvise(void *addr, size_t bytes, int advice)
{
	if (advice == POSIX_MADV_DONTNEED)
		return 0;
	return -shim_advise(addr, bytes, advice);
}

SHIM_EXPORT ssize_t process_madvise(int pidfd, const struct iovec *iov, size_t count, int advice,
				    unsigned flags)
{
	return shim_return(shim_process_advise(pidfd, iov, count, advice, flags));
}
