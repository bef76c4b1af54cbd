/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * prctl: the kernel's switch for KSM over a whole process, turned to us.
 *
 * PR_SET_MEMORY_MERGE and PR_GET_MEMORY_MERGE answer as kernel/sys.c does, whether
 * or not the kernel knows them. What a program wants is one of
 *
 *   UNSAID   it never asked: fresh memory is owned, as the scope has it
 *   ANY      set to 1: everything owned counts as advised, now and later
 *   NONE     set to 0: private copies of all that was merged, and everything owned,
 *            now and later, is refused (PROC_OWN_REFUSED) until madvise names a
 *            range of it or the switch is set again
 *
 * Setting to 0 what was not set is a no-op in the kernel, for nothing but what the
 * program advised itself can be merged then. So here: that stays, the rest is as
 * in NONE. Clearing what was set takes what madvise registered along, as in the
 * kernel. When copies cannot be had, the error comes back and the switch stays.
 *
 * Inherited over fork with the rest of our memory; over exec by inherit.c. A
 * process may also be born with the kernel's own switch on (by a service manager,
 * say): then ours is on as well, and clearing clears both.
 *
 *   SAMEPAGE_KSM=1   the calls go to the kernel as well as to us. What is taken
 *                    back (0, MADV_UNMERGEABLE) goes there always: KSM may have got
 *                    the memory before we were ready
 *   PR_SET_VMA       naming a range: the kernel names anonymous memory only and
 *                    says EBADF for a store mapping. The pieces between get their
 *                    name, the merged ones go without until they are private again
 *   PR_SET_MM        may move the break: the heap is no longer owned
 *   PR_SET_SECCOMP   seccomp.c looks at the filter first
 *   all others       the kernel's, untouched
 */
#include "shim/shim.h"

#include <linux/seccomp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/maps.h"
#include "sys/raw.h"
#include "sys/sys.h"

/* Headers of Debian 12 lack some. */
#define SHIM_PR_SET_VMA 0x53564d41
#define SHIM_PR_SET_VMA_ANON_NAME 0
#define SHIM_PR_SET_MEMORY_MERGE 67
#define SHIM_PR_GET_MEMORY_MERGE 68

enum { UNSAID, ANY, NONE };
static _Atomic int wanted; /* written under the memory lock */
static bool to_kernel;     /* SAMEPAGE_KSM=1; written by the constructor */

bool shim_merge_any(void)
{
	return atomic_load_explicit(&wanted, memory_order_relaxed) == ANY;
}

uint32_t shim_fresh_attr(void)
{
	switch (atomic_load_explicit(&wanted, memory_order_relaxed)) {
	case ANY:
		return PROC_OWN_ADVISED;
	case NONE:
		return PROC_OWN_REFUSED;
	default:
		return 0;
	}
}

bool shim_advice_to_kernel(void)
{
	return to_kernel;
}

static long kernel_merge_any(long set)
{
	return sys_raw6(SYS_prctl, SHIM_PR_SET_MEMORY_MERGE, set, 0, 0, 0, 0);
}

static bool kernel_has_merge_any(void)
{
	return sys_raw6(SYS_prctl, SHIM_PR_GET_MEMORY_MERGE, 0, 0, 0, 0, 0) == 1;
}

static uint64_t everything(void)
{
	return UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1);
}

/* --- the switch ----------------------------------------------------------- */

int shim_unregister(uint64_t start, uint64_t end)
{
	int ret = proc_mem_maybe_merged(start, end) ? proc_mem_unmerge(start, end, NULL) : 0;

	if (ret == 0 && proc_engine_kernel(shim_engine())) {
		ret = proc_kernel_unmerge(start, end);
		if (ret == -ENOMEM && proc_mem_has_gap(start, end))
			ret = 0;
	}
	if (ret < 0)
		return ret;
	proc_mem_own_attr(start, end, PROC_OWN_REFUSED, PROC_OWN_ADVISED);
	/* A pass under way may have found it wanted. */
	proc_mem_touched(start, end);
	return 0;
}

/* The first range from `at` on that the program advised. */
static struct core_range next_advised(uint64_t at)
{
	struct core_range r = { .end = at };

	while (proc_mem_owned_copy(r.end, &r, 1) == 1)
		if (r.attr & PROC_OWN_ADVISED)
			return r;
	return (struct core_range){ .start = everything(), .end = everything() };
}

static int unregister_all(bool keep_advised)
{
	uint64_t at = 0;

	while (at < everything()) {
		struct core_range keep = { .start = everything(), .end = everything() };
		int ret;

		if (keep_advised)
			keep = next_advised(at);
		ret = keep.start > at ? shim_unregister(at, keep.start) : 0;
		if (ret < 0)
			return ret;
		at = keep.end;
	}
	return 0;
}

/* Lock held. */
static int set_any(void)
{
	long ret = to_kernel ? kernel_merge_any(1) : 0;

	/* EINVAL: the kernel has no KSM. We do. */
	if (ret < 0 && ret != -EINVAL)
		return (int)ret;
	atomic_store(&wanted, ANY);
	proc_mem_own_attr(0, everything(), PROC_OWN_ADVISED, PROC_OWN_REFUSED);
	return 0;
}

static int set_none(void)
{
	long ret = unregister_all(!shim_merge_any());

	if (ret == 0 && kernel_has_merge_any())
		ret = kernel_merge_any(0);
	if (ret == 0)
		atomic_store(&wanted, NONE);
	return (int)ret;
}

static int set_memory_merge(bool on)
{
	struct proc_mem_guard guard;
	int ret;

	proc_mem_lock(&guard);
	ret = on ? set_any() : set_none();
	if (ret == 0)
		shim_inherit_changed();
	proc_mem_unlock(&guard);
	return ret;
}

/* --- names ---------------------------------------------------------------- */

struct naming {
	const long *arg;
	uint64_t start, end;
	uint64_t cursor;
	bool gap;
};

static int name_piece(const struct sys_vma *vma, void *data)
{
	struct naming *n = data;
	uint64_t start = vma->start > n->cursor ? vma->start : n->cursor;
	uint64_t end = vma->end < n->end ? vma->end : n->end;

	if (vma->start >= n->end)
		return 1;
	if (vma->end <= n->cursor)
		return 0;
	n->gap |= start > n->cursor;
	n->cursor = end;
	if (!vma->shared && sys_name_is_store(vma->name))
		return 0;
	return (int)sys_raw6(SYS_prctl, SHIM_PR_SET_VMA, SHIM_PR_SET_VMA_ANON_NAME, (long)start,
			     (long)(end - start), n->arg[3], 0);
}

static long name_pieces(const long arg[4], const struct shim_range *range)
{
	struct naming n = { .arg = arg, .start = range->start, .end = range->end,
			    .cursor = range->start };
	char buf[8192];
	int ret = sys_maps_each(0, buf, sizeof(buf), name_piece, &n);

	if (ret < 0)
		return ret;
	return n.gap || n.cursor < n.end ? -ENOMEM : 0;
}

static long set_name(const long arg[4])
{
	struct proc_mem_guard guard;
	struct shim_range range;
	long ret;

	proc_mem_lock(&guard);
	ret = sys_raw6(SYS_prctl, SHIM_PR_SET_VMA, arg[0], arg[1], arg[2], arg[3], 0);
	if (ret == -EBADF && shim_range_of((void *)arg[1], (size_t)arg[2], &range) &&
	    proc_mem_maybe_merged(range.start, range.end))
		ret = name_pieces(arg, &range);
	proc_mem_unlock(&guard);
	return ret;
}

/* --- entry points --------------------------------------------------------- */

static long set_mm(const long arg[4])
{
	struct proc_mem_guard guard;
	long ret;

	proc_mem_lock(&guard);
	ret = sys_raw6(SYS_prctl, PR_SET_MM, arg[0], arg[1], arg[2], arg[3], 0);
	if (ret == 0)
		shim_heap_give_up();
	proc_mem_unlock(&guard);
	return ret;
}

long shim_prctl(int option, const long arg[4])
{
	if (option == PR_SET_SECCOMP && arg[0] == SECCOMP_MODE_FILTER)
		shim_filter_coming((const void *)arg[1]);
	if (shim_is_ready()) {
		switch (option) {
		case SHIM_PR_SET_MEMORY_MERGE:
			return arg[1] || arg[2] || arg[3] ? -EINVAL : set_memory_merge(arg[0] != 0);
		case SHIM_PR_GET_MEMORY_MERGE:
			return arg[0] || arg[1] || arg[2] || arg[3] ? -EINVAL : shim_merge_any();
		case SHIM_PR_SET_VMA:
			return set_name(arg);
		case PR_SET_MM:
			return set_mm(arg);
		default:
			break;
		}
	}
	return sys_raw6(SYS_prctl, option, arg[0], arg[1], arg[2], arg[3], 0);
}

/* As in libc, what the caller did not pass is what the registers hold. */
SHIM_EXPORT int prctl(int option, ...)
{
	va_list args;
	long a[4];

	va_start(args, option);
	for (int i = 0; i < 4; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	return (int)shim_return(shim_prctl(option, a));
}

void shim_prctl_start(void)
{
	const char *any = getenv("SAMEPAGE_MERGE_ANY"), *ksm = getenv("SAMEPAGE_KSM");

	to_kernel = ksm && strcmp(ksm, "1") == 0;
	if ((any && strcmp(any, "1") == 0) || kernel_has_merge_any())
		atomic_store(&wanted, ANY);
}
