/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Calls that change memory where it is: protection, locking, policy.
 *
 * The engine reads a mapping's flags at the start of a pass and gives new mappings
 * the same ones at the end. Whatever changes flags in between marks the range
 * (proc_mem_touched), and the pass leaves it alone; the next one sees the new flags
 * and declines what it cannot keep.
 *
 *   mprotect, pkey_mprotect, munlock    touched
 *   mlock, mlock2    private copies of everything merged there first: locked memory
 *                    must be the program's own and resident; touched before and
 *                    after. The call itself, which may wait for another thread of
 *                    the program, is made without the lock: a page that is merged
 *                    in between is copied by the locking
 *   mlockall         the same over everything, and owning ends for good; before the
 *                    call, for it touches all memory there is, and the engine's
 *                    staging areas are not to be touched (proc/staging.c)
 *   mbind, set_mempolicy_home_node, remap_file_pages    touched and disowned
 */
#include "shim/shim.h"

#include <sys/mman.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

#define SHIM_MCL_ONFAULT 4

long shim_change(long n, const long arg[6], bool disown)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	long ret;

	if (!shim_is_ready())
		return sys_raw6(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	proc_mem_lock(&guard);
	ret = sys_raw6(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (shim_range_of((void *)arg[0], (size_t)arg[1], &range)) {
		if (n == SYS_mprotect)
			proc_mem_protected(range.start, range.end);
		else
			proc_mem_touched(range.start, range.end);
		if (disown)
			proc_mem_disown(range.start, range.end);
	}
	proc_mem_unlock(&guard);
	return ret;
}

int shim_protect(void *addr, size_t bytes, int prot, int pkey)
{
	const long arg[6] = { (long)addr, (long)bytes, prot, pkey };

	return (int)shim_change(pkey == -1 ? SYS_mprotect : SYS_pkey_mprotect, arg, false);
}

int shim_lock_pages(const void *addr, size_t bytes, unsigned flags)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	bool known = shim_range_of(addr, bytes, &range);
	int ret = 0;

	if (shim_is_ready() && known) {
		proc_mem_lock(&guard);
		proc_mem_touched(range.start, range.end);
		/* Not writable now (EACCES): locked as it is, still correct memory. */
		if (proc_mem_maybe_merged(range.start, range.end))
			ret = proc_mem_unmerge(range.start, range.end, NULL);
		proc_mem_unlock(&guard);
		if (ret == -ENOMEM)
			return ret;
	}
	ret = (int)(flags ? sys_raw(SYS_mlock2, addr, bytes, flags) :
			    sys_raw(SYS_mlock, addr, bytes, 0));
	if (shim_is_ready() && known) {
		proc_mem_lock(&guard);
		proc_mem_touched(range.start, range.end);
		proc_mem_unlock(&guard);
	}
	return ret;
}

int shim_lock_all(int flags)
{
	uint64_t end = UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1);
	struct proc_mem_guard guard;
	int ret;

	/* Refused by the kernel without looking further. */
	if (!shim_is_ready() || flags == 0 || flags == SHIM_MCL_ONFAULT ||
	    (flags & ~(MCL_CURRENT | MCL_FUTURE | SHIM_MCL_ONFAULT)))
		return (int)sys_raw(SYS_mlockall, flags, 0, 0);
	proc_mem_lock(&guard);
	shim_stop_owning();
	proc_mem_unlock(&guard);
	proc_engine_stop_freezing(shim_engine());
	proc_mem_lock(&guard);
	ret = (int)sys_raw(SYS_mlockall, flags, 0, 0);
	if (ret == 0) {
		proc_mem_touched(0, end);
		if (proc_mem_maybe_merged(0, end))
			proc_mem_unmerge(0, end, NULL);
	}
	proc_mem_unlock(&guard);
	return ret;
}

SHIM_EXPORT int mprotect(void *addr, size_t bytes, int prot)
{
	return (int)shim_return(shim_protect(addr, bytes, prot, -1));
}

SHIM_EXPORT int pkey_mprotect(void *addr, size_t bytes, int prot, int pkey)
{
	return (int)shim_return(shim_protect(addr, bytes, prot, pkey));
}

SHIM_EXPORT int mlock(const void *addr, size_t bytes)
{
	return (int)shim_return(shim_lock_pages(addr, bytes, 0));
}

SHIM_EXPORT int mlock2(const void *addr, size_t bytes, unsigned flags)
{
	return (int)shim_return(shim_lock_pages(addr, bytes, flags));
}

SHIM_EXPORT int munlock(const void *addr, size_t bytes)
{
	const long arg[6] = { (long)addr, (long)bytes };

	return (int)shim_return(shim_change(SYS_munlock, arg, false));
}

SHIM_EXPORT int mlockall(int flags)
{
	return (int)shim_return(shim_lock_all(flags));
}

/*
 * Clears the lock flag of every mapping at once: marked like mlockall, but owning
 * does not start again (fresh memory since then is not known).
 */
SHIM_EXPORT int munlockall(void)
{
	const long arg[6] = { 0, (long)(UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1)) };

	return (int)shim_return(shim_change(SYS_munlockall, arg, false));
}

SHIM_EXPORT int remap_file_pages(void *addr, size_t bytes, int prot, size_t page, int flags)
{
	const long arg[6] = { (long)addr, (long)bytes, prot, (long)page, flags };

	return (int)shim_return(shim_change(SYS_remap_file_pages, arg, true));
}
