/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel's own merging, madvise(MADV_MERGE), in the place of ours.
 *
 * Where the kernel has it (kernel/ in this project), a page is merged by the kernel in one
 * step: no store, no freeze, no mapping, and the memory stays what it was. So no rule holds
 * that is there for the remap's sake: any private memory can be merged, whoever owns it, by
 * whoever asks; there is no budget of mappings; advice, mremap, fork and core dumps need no
 * help of ours. What is left to do here:
 *
 *   choice   SAMEPAGE_PRIMITIVE: auto (default: the kernel's where there is one that keeps
 *            domains apart, else the remap), kernel, remap. Each time a thread of an engine
 *            starts, and for as long as it lives
 *   scope    pages of two domains are never merged (I7): the kernel merges only within one
 *            scope, which is the user by the kernel's own account and a number that we make
 *            of the domain's name. It is set before the first merge; a process whose memory
 *            is merged in another scope already (another handle's) is refused, and then the
 *            remap is used, or nothing
 *   count    each page that the kernel looked at has an outcome in ksm_stat (I9). These are
 *            sums of the process, so what a call did is the difference; engines take turns.
 *            A program that calls the kernel itself at that moment is counted along
 */
#ifndef SAMEPAGE_PROC_KERNEL_H
#define SAMEPAGE_PROC_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "proc/internal.h"

/* On the engine's thread, at its start: sets e->kernel. 0, or -errno: no primitive at all. */
int proc_kernel_start(struct proc_engine *e);
void proc_kernel_end(struct proc_engine *e);
void proc_kernel_forked(void); /* in the child */

/* SAMEPAGE_REASON_COUNT: none. As the mapping is, by its smaps. */
enum samepage_reason proc_kernel_obstacle(const struct sys_vma *v);
/* Around spans: it is this engine's turn to count. */
void proc_kernel_begins(struct proc_engine *e);
void proc_kernel_ends(struct proc_engine *e);
/* Merge a part of one mapping, and count what became of it. */
void proc_kernel_span(struct proc_engine *e, const struct sys_vma *v, uint64_t start, uint64_t end,
		      struct samepage_result *res);
/* As proc_kernel_unmerge(), where holes are no reason to have failed. */
int proc_kernel_home(uint64_t start, uint64_t end);
/* Pages of this process that map one of the kernel's merged pages now. */
uint64_t proc_kernel_sharing(const struct proc_engine *e);

#endif
