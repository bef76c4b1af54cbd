/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mremap: what is known about memory moves with it.
 *
 *   in place        proc_mem_moved() to the same address, other length
 *   moved           what was known at the target is gone, then proc_mem_moved()
 *   MREMAP_DONTUNMAP  as moved; what stays behind is empty private anonymous
 *                   memory, owned if it was owned (store mappings that stay
 *                   behind are made anonymous again, or old bytes would come back)
 *   old size 0      a second mapping of shared memory: not owned
 *   failed          the target of MREMAP_FIXED and the end of a shrinking mapping
 *                   may be gone: neither is owned any more, the hull stays
 *
 * Memory that may be merged consists of many mappings where the program made one;
 * remap_merged.c makes one move of it.
 */
#include "shim/shim.h"

#include <stdarg.h>
#include <sys/mman.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/sys.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* What MREMAP_DONTUNMAP left behind must read as zeros. */
static void left_behind(const struct shim_range *from, bool owned, bool merged, uint32_t odd)
{
	if (merged) {
		proc_mem_note_merged(from->start, from->end, odd);
		if (proc_mem_discard(from->start, from->end, MADV_DONTNEED) < 0)
			return; /* not owned, and the hull still says so */
	}
	if (owned)
		shim_fresh(from);
}

static void moved(const struct shim_range *from, const struct shim_range *to, int flags)
{
	bool owned = proc_mem_is_owned(from->start, from->end);
	bool merged = proc_mem_maybe_merged(from->start, from->end);
	uint32_t odd = proc_mem_odd(from->start);

	shim_heap_punched(from);
	shim_heap_punched(to);
	if (to->start != from->start)
		proc_mem_release(to->start, to->end);
	proc_mem_moved(from->start, from->end - from->start, to->start, to->end - to->start);
	proc_mem_touched(to->start, to->end);
	if (flags & MREMAP_DONTUNMAP)
		left_behind(from, owned, merged, odd);
}

static void failed(const struct shim_range *from, size_t new_bytes, int flags, void *to)
{
	struct shim_range target;

	if (!(flags & MREMAP_FIXED))
		return;
	proc_mem_disown(from->start, from->end);
	if (shim_range_of(to, new_bytes, &target))
		proc_mem_disown(target.start, target.end);
}

static bool bad(intptr_t ret)
{
	return ret < 0 && ret >= -4095;
}

/* As much at a time as lies in one mapping; where that ends nobody is asked. */
static intptr_t move_by_halves(uint64_t from, uint64_t to, size_t bytes, size_t *moved)
{
	size_t page = sys_page_bytes(), n = bytes;

	*moved = 0;
	while (bytes > 0) {
		intptr_t ret = sys->mremap((void *)from, n, n, MREMAP_MAYMOVE | MREMAP_FIXED,
					   (void *)to);

		if (ret == -EFAULT && n > page) {
			n = (n / 2 + page - 1) & ~(page - 1);
			continue;
		}
		if (bad(ret))
			return ret;
		from += n;
		to += n;
		bytes -= n;
		*moved += n;
		n = bytes;
	}
	return 0;
}

/*
 * Handlers are off because of a seccomp filter (seccomp.c), but memory that came home is
 * several mappings: growing it must work with no other calls than mremap and mmap.
 */
static intptr_t grow_after_home(const struct shim_range *from, size_t new_bytes, int flags)
{
	size_t page = sys_page_bytes(), old = from->end - from->start, head = old - page;
	void *last = (void *)(from->end - page);
	size_t moved, again;
	intptr_t at, ret;

	new_bytes = (new_bytes + page - 1) & ~(page - 1);
	if (flags & ~MREMAP_MAYMOVE || new_bytes <= old)
		return -EFAULT;
	if (!bad(sys->mremap(last, page, page + new_bytes - old, 0, NULL)))
		return (intptr_t)from->start;
	if (!(flags & MREMAP_MAYMOVE))
		return -ENOMEM;
	at = sys->mmap(NULL, new_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		       0);
	if (bad(at))
		return at;
	/* The last page first: it is the one that takes memory. */
	ret = sys->mremap(last, page, page + new_bytes - old, MREMAP_MAYMOVE | MREMAP_FIXED,
			  (void *)(at + (intptr_t)head));
	if (!bad(ret)) {
		ret = move_by_halves(from->start, (uint64_t)at, head, &moved);
		if (!bad(ret))
			return at;
		/* Some of it moved: back, and the whole is as it was. */
		move_by_halves((uint64_t)at, from->start, moved, &again);
		sys->mremap((void *)(at + (intptr_t)head), page, page, MREMAP_MAYMOVE | MREMAP_FIXED,
			    last);
	}
	sys->munmap((void *)at, new_bytes);
	return ret;
}

static intptr_t remap_unready(void *old, size_t old_bytes, size_t new_bytes, int flags, void *to)
{
	struct shim_range from;
	intptr_t ret = sys->mremap(old, old_bytes, new_bytes, flags, to);

	/* The hull changes no more when handlers are off: no lock. */
	if (ret == -EFAULT && shim_page_aligned(old) && new_bytes <= SIZE_MAX / 2 &&
	    shim_range_of(old, old_bytes, &from) && proc_mem_maybe_merged(from.start, from.end))
		return grow_after_home(&from, new_bytes, flags);
	return ret;
}

/*
 * The scanner's registrations cut what is one mapping otherwise. All other calls are
 * refused there before anything is done; a move alone is begun (Linux 6.17), and what was
 * moved before the refusal stays moved.
 */
static bool moves_only(const struct shim_range *from, size_t new_bytes, int flags)
{
	size_t page = sys_page_bytes();

	return (flags & MREMAP_FIXED) &&
	       ((new_bytes + page - 1) & ~(page - 1)) == from->end - from->start;
}

intptr_t shim_remap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *to)
{
	struct proc_mem_guard guard;
	struct shim_range from, target;
	bool known, cut = proc_scan_watches(shim_engine());
	intptr_t ret;

	if (!shim_is_ready())
		return remap_unready(old, old_bytes, new_bytes, flags, to);
	proc_mem_lock(&guard);
	known = shim_range_of(old, old_bytes, &from);
	/* A file's mapping grows into the file, a store's into the store. */
	if (known && proc_origin_any(from.start, from.end) &&
	    proc_mem_files_home(from.start, from.end) < 0)
		ret = -ENOMEM;
	else if (known && shim_page_aligned(old) &&
		 (proc_mem_maybe_merged(from.start, from.end) ||
		  (cut && moves_only(&from, new_bytes, flags))))
		ret = shim_remap_merged(&from, new_bytes, flags, to);
	else
		ret = sys->mremap(old, old_bytes, new_bytes, flags, to);
	if (ret == -EFAULT && known && cut && shim_page_aligned(old) &&
	    !moves_only(&from, new_bytes, flags))
		ret = shim_remap_merged(&from, new_bytes, flags, to);
	if (ret < 0 && ret >= -4095) {
		if (known)
			failed(&from, new_bytes, flags, to);
	} else if (shim_range_of((void *)ret, new_bytes, &target)) {
		if (known)
			moved(&from, &target, flags);
		else
			shim_forget(&target);
	}
	proc_mem_unlock(&guard);
	return ret;
}

SHIM_EXPORT void *mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, ...)
{
	void *to = NULL;

	/* As glibc: whoever says MREMAP_DONTUNMAP alone need not pass an address. */
	if (flags & MREMAP_FIXED) {
		va_list args;

		va_start(args, flags);
		to = va_arg(args, void *);
		va_end(args);
	}
	return (void *)shim_return(shim_remap(old, old_bytes, new_bytes, flags, to));
}
