/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One struct of what this kernel and this process's permissions give, found by
 * trying each feature, never by comparing version numbers.
 */
#ifndef SAMEPAGE_SYS_PROBE_H
#define SAMEPAGE_SYS_PROBE_H

#include <stdbool.h>
#include <stdint.h>

struct sys_features {
	char release[65];
	bool uffd_syscall_full; /* userfaultfd(2) that also stops kernel-mode faults */
	bool uffd_dev;          /* /dev/userfaultfd opens: the same, and can be passed on */
	bool uffd_user_only;    /* at least user-mode faults */
	bool uffd_move;         /* UFFDIO_MOVE (6.8) */
	bool uffd_wp_async;     /* WP_ASYNC (6.7), for the background scanner */
	bool pagemap_scan;      /* 6.7 */
	bool procmap_query;     /* 6.11 */
	bool process_vm_readv;
	bool memfd_seals;       /* F_SEAL_FUTURE_WRITE (5.1) */
	bool memfd_noexec_seal; /* 6.3 */
	bool memfd_lease;       /* leases tell whether a memfd is in use */
	bool close_range_unshare; /* 5.9 */
	bool populate;          /* MADV_POPULATE_READ/WRITE (5.14) */
	bool madv_merge;        /* madvise(MADV_MERGE): our kernel series, or the RFC */
	bool merge_scope;       /* and strangers' pages are kept apart: our series */
	bool merge_counts;      /* and ksm_stat says what became of the pages: our series */
	bool pidfd;             /* pidfd_open (5.3) */
	bool cap_sys_ptrace;
	bool cap_sys_admin;     /* page frame numbers in pagemap */
	bool ksm;               /* CONFIG_KSM */
	int64_t ksm_run;        /* /sys/kernel/mm/ksm/run, or -errno */
	int64_t max_map_count;
	int64_t overcommit_memory;
	int64_t unprivileged_userfaultfd;
	char thp[16];           /* always, madvise, never, "" */
	uint64_t memory_bytes;
};

/* Never fails: what could not be tried is false. Leaves nothing behind. */
void sys_probe(struct sys_features *f);
/* Can this process freeze memory against every writer? 0 or the errno that says why not. */
int sys_probe_can_freeze(const struct sys_features *f);
/* Just what concerns MADV_MERGE; the rest of *f stays as it is. */
void sys_probe_merge(struct sys_features *f);
/* Can the kernel's own merging take the place of ours? */
bool sys_probe_kernel_merges(const struct sys_features *f);

#endif
