/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What kind of mapping, guessed from what smaps says of it and of its neighbour below.
 *
 *   jit           anonymous and executable
 *   stack         [stack]; or a named one; or anonymous right above a small mapping without
 *                 access, which is how thread libraries guard their stacks
 *   heap          [heap]
 *   guest_ram     large and anonymous, in a virtual machine monitor (by its name) or offered
 *                 to KSM with madvise
 *   patched_text  private file mapping that is executable
 *   library_data  any other private file mapping, and the anonymous one right behind a
 *                 writable one (.bss)
 *   anonymous     the rest
 */
#include <string.h>
#include <sys/mman.h>

#include "analyze/inner.h"

#define GUARD_BYTES_MAX (UINT64_C(64) << 10)
#define MACHINE_BYTES_MIN (UINT64_C(16) << 20)
#define OFFERED_BYTES_MIN (UINT64_C(64) << 20)

static bool is_stack(const struct sys_vma *vma, const struct analyze_before *before)
{
	return vma->stack || strncmp(vma->name, "[anon:stack", 11) == 0 ||
	       strncmp(vma->name, "[anon: glibc: pthread stack", 27) == 0 ||
	       (before->none && before->end == vma->start && before->bytes <= GUARD_BYTES_MAX &&
		(vma->prot & PROT_WRITE));
}

static bool is_guest_ram(const struct sys_vma *vma, const struct analyze_process *p)
{
	uint64_t bytes = vma->end - vma->start;

	return (p->machine && bytes >= MACHINE_BYTES_MIN) ||
	       ((vma->flags & SYS_VMF(mg)) && bytes >= OFFERED_BYTES_MIN);
}

static enum core_census_kind kind_of(const struct sys_vma *vma, const struct analyze_process *p,
				     const struct analyze_before *before)
{
	if (sys_name_is_store(vma->name))
		return CORE_CENSUS_anonymous; /* it was, and what is private of it is again */
	if (!vma->anonymous)
		return vma->prot & PROT_EXEC ? CORE_CENSUS_patched_text : CORE_CENSUS_library_data;
	if (vma->heap)
		return CORE_CENSUS_heap;
	if (vma->prot & PROT_EXEC)
		return CORE_CENSUS_jit;
	if (is_stack(vma, before))
		return CORE_CENSUS_stack;
	if (before->library && before->end == vma->start)
		return CORE_CENSUS_library_data;
	return is_guest_ram(vma, p) ? CORE_CENSUS_guest_ram : CORE_CENSUS_anonymous;
}

enum core_census_kind analyze_kind(const struct sys_vma *vma, const struct analyze_process *p,
				   struct analyze_before *before)
{
	enum core_census_kind kind = kind_of(vma, p, before);

	*before = (struct analyze_before){
		.end = vma->end,
		.bytes = vma->end - vma->start,
		.none = vma->anonymous && vma->prot == PROT_NONE,
		.library = !vma->anonymous && !vma->shared && (vma->prot & PROT_WRITE),
	};
	return kind;
}
