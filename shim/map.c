/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mmap, munmap, shmat: memory comes and goes.
 *
 * The system call comes first and the bookkeeping after it, both under the memory
 * lock, so the outcome is known and not guessed. That order matters for the hull
 * ("something may be merged here"): it may be forgotten only when the mapping is
 * really gone.
 *
 *   mmap made private anonymous memory   owned (new, nothing merged there)
 *   mmap made anything else              what was known there is released
 *   mmap(MAP_FIXED) failed               the kernel may have unmapped the old
 *                                        mapping already: no longer owned, the
 *                                        hull stays
 *   munmap succeeded                     released
 *   munmap failed                        EINVAL changed nothing; after anything
 *                                        else no longer owned, the hull stays
 *
 * Not owned: MAP_GROWSDOWN and MAP_STACK (libc or the kernel has its own ideas
 * about stacks), MAP_HUGETLB and MAP_LOCKED (cannot be merged).
 *
 * A mapping made without MAP_FIXED lies where nothing was. If something is known
 * there all the same, somebody unmapped it with a system call of his own; the
 * result replaces it like any other.
 *
 * shmdt is not interposed: it unmaps only mappings of that segment, which were
 * never owned; owned memory that was mapped over a part of a segment stays.
 */
/* meson sets it, and libc's headers would turn the name mmap into mmap64. */
#undef _FILE_OFFSET_BITS
#include "shim/shim.h"

#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

static bool makes_owned(int flags)
{
	if ((flags & MAP_TYPE) != MAP_PRIVATE || !(flags & MAP_ANONYMOUS))
		return false;
	return !(flags & (MAP_GROWSDOWN | MAP_STACK | MAP_HUGETLB | MAP_LOCKED));
}

/*
 * What MAP_POPULATE does after the mapping is made, failures ignored as there. Not
 * under the lock: it may take long, and wait for another thread of the program.
 */
static void populate(intptr_t at, size_t bytes, int prot, int flags)
{
	bool write = (prot & PROT_WRITE) && (flags & MAP_TYPE) == MAP_PRIVATE;

	if ((at < 0 && at >= -4095) || (flags & MAP_NONBLOCK) || !(prot & (PROT_READ | PROT_WRITE)))
		return;
	sys->madvise((void *)at, bytes, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

intptr_t shim_map(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	intptr_t ret;

	if (!shim_is_ready())
		return sys->mmap(addr, bytes, prot, flags, fd, offset);
	proc_mem_lock(&guard);
	ret = sys->mmap(addr, bytes, prot, flags & ~MAP_POPULATE, fd, offset);
	if (ret < 0 && ret >= -4095) {
		if ((flags & MAP_FIXED) && shim_page_aligned(addr) &&
		    shim_range_of(addr, bytes, &range))
			proc_mem_disown(range.start, range.end);
	} else if (shim_range_of((void *)ret, bytes, &range)) {
		if (makes_owned(flags))
			shim_fresh(&range);
		else
			shim_forget(&range);
	}
	proc_mem_unlock(&guard);
	if (flags & MAP_POPULATE)
		populate(ret, bytes, prot, flags);
	return ret;
}

int shim_unmap(void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	int ret;

	if (!shim_is_ready())
		return sys->munmap(addr, bytes);
	proc_mem_lock(&guard);
	ret = sys->munmap(addr, bytes);
	if (shim_range_of(addr, bytes, &range)) {
		if (ret == 0)
			shim_forget(&range);
		else if (ret != -EINVAL)
			proc_mem_disown(range.start, range.end);
	}
	proc_mem_unlock(&guard);
	return ret;
}

intptr_t shim_shmat(int id, const void *addr, int flags)
{
	struct proc_mem_guard guard;
	struct shim_range range;
	struct shmid_ds info = { 0 };
	intptr_t ret;

	if (!shim_is_ready())
		return sys_raw(SYS_shmat, id, addr, flags);
	proc_mem_lock(&guard);
	ret = sys_raw(SYS_shmat, id, addr, flags);
	if (ret < 0 && ret >= -4095) {
		/* With SHM_REMAP the target may be gone: how much of it, nobody says. */
		if (flags & SHM_REMAP)
			proc_mem_disown((uintptr_t)addr & ~(sys_page_bytes() - 1),
					UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1));
	} else if (sys_raw(SYS_shmctl, id, IPC_STAT, &info) == 0) {
		if (shim_range_of((void *)ret, info.shm_segsz, &range))
			shim_forget(&range);
	} else {
		proc_mem_disown((uint64_t)ret, UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1));
	}
	proc_mem_unlock(&guard);
	return ret;
}

SHIM_EXPORT void *mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	return (void *)shim_return(shim_map(addr, bytes, prot, flags, fd, offset));
}

#if defined(__LP64__)
SHIM_EXPORT void *mmap64(void *addr, size_t bytes, int prot, int flags, int fd, off64_t offset)
	__attribute__((alias("mmap")));
#else
#error "mmap64 needs a definition of its own where off_t has 32 bits"
#endif

SHIM_EXPORT int munmap(void *addr, size_t bytes)
{
	return (int)shim_return(shim_unmap(addr, bytes));
}

SHIM_EXPORT void *shmat(int id, const void *addr, int flags)
{
	return (void *)shim_return(shim_shmat(id, addr, flags));
}
