/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The few words of state behind the interposed calls, and the two things that
 * most of them do: note fresh memory, note that memory is gone.
 *
 * Owning ends for good when the program locks all its memory (mlockall): locked
 * memory must be private and resident, so nothing may be merged any more. From
 * then on fresh memory is recorded as released, which also keeps the hull exact.
 *
 * All of it is written under the memory lock, shim_ready excepted (atomic).
 */
#include "shim/shim.h"

#include "proc/mem.h"
#include "sys/sys.h"

atomic_bool shim_ready;

static bool owning_stopped;

bool shim_range_of(const void *addr, size_t bytes, struct shim_range *range)
{
	uint64_t mask = sys_page_bytes() - 1;
	uint64_t start = (uintptr_t)addr, end;

	if (bytes == 0 || __builtin_add_overflow(start, (uint64_t)bytes, &end) ||
	    __builtin_add_overflow(end, mask, &end))
		return false;
	range->start = start & ~mask;
	range->end = end & ~mask;
	return true;
}

bool shim_page_aligned(const void *addr)
{
	return ((uintptr_t)addr & (sys_page_bytes() - 1)) == 0;
}

bool shim_owning(void)
{
	return !owning_stopped;
}

void shim_fresh(const struct shim_range *range)
{
	shim_heap_punched(range);
	if (owning_stopped)
		proc_mem_release(range->start, range->end);
	else
		proc_mem_own(range->start, range->end, shim_fresh_attr());
}

void shim_forget(const struct shim_range *range)
{
	shim_heap_punched(range);
	proc_mem_release(range->start, range->end);
}

void shim_stop_owning(void)
{
	owning_stopped = true;
	shim_heap_give_up();
	proc_mem_disown(0, UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1));
}
