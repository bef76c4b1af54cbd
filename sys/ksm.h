/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the kernel says of the pages that it merges in a process: /proc/PID/ksm_stat.
 *
 * Each of its lines is "name number". The ksm_merge_* ones count the pages that
 * madvise(MADV_MERGE) looked at in this process, ever, each under exactly one of the
 * outcomes; they are there on kernels with our series (kernel/) only.
 */
#ifndef SAMEPAGE_SYS_KSM_H
#define SAMEPAGE_SYS_KSM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sys_ksm_stat {
	uint64_t merging_pages; /* map a page of the kernel's now */
	/* Ever: looked = the sum of the rest. */
	uint64_t looked;
	uint64_t merged;  /* now map such a page, and did not */
	uint64_t already; /* did */
	uint64_t zero;    /* now map the zero page, and did not */
	uint64_t unique;  /* nobody has the same yet; remembered */
	uint64_t busy;    /* could not be protected, or changed meanwhile */
	uint64_t skipped; /* of a kind that is not merged */
};

/* Is everything there that counts what MADV_MERGE does? text need not end in a newline. */
bool sys_ksm_stat_parse(const char *text, size_t bytes, struct sys_ksm_stat *stat);
/* An open ksm_stat, read from its start: 0, -ENODATA (no such lines), -errno. */
int sys_ksm_stat_read(int fd, struct sys_ksm_stat *stat);
/* Of the calling process; -errno, -ENOENT: a kernel without KSM. To be closed. */
int sys_ksm_stat_open(void);

#endif
