/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading /proc/PID/maps and smaps as a stream, without allocating.
 *
 * The kernel's answer is consistent per mapping, not over the whole file: what a
 * callback sees may have changed by the time it acts. Whoever acts on it looks
 * again under the lock that keeps the range still.
 */
#ifndef SAMEPAGE_SYS_MAPS_H
#define SAMEPAGE_SYS_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* VmFlags of smaps, as bits. Flags that are not listed set SYS_VMF_OTHER. */
#define SYS_VMF_LIST(X)                                                                            \
	X(rd) X(wr) X(ex) X(sh) X(mr) X(mw) X(me) X(ms) X(gd) X(pf) X(lo) X(io) X(sr) X(rr) X(dc)   \
	X(de) X(ac) X(nr) X(ht) X(sf) X(ar) X(wf) X(dd) X(sd) X(mm) X(hg) X(nh) X(mg) X(um) X(uw)   \
	X(ui) X(ss) X(sl) X(bt) X(mt) X(gu) X(dp) X(lf)
enum {
#define SYS_VMF_BIT(f) SYS_VMF_BITNO_##f,
	SYS_VMF_LIST(SYS_VMF_BIT)
#undef SYS_VMF_BIT
	SYS_VMF_BITNO_OTHER,
};
#define SYS_VMF(f) (UINT64_C(1) << SYS_VMF_BITNO_##f)
#define SYS_VMF_OTHER (UINT64_C(1) << SYS_VMF_BITNO_OTHER)

struct sys_vma {
	uint64_t start;
	uint64_t end;
	uint64_t offset;
	uint64_t inode;
	uint32_t dev_major;
	uint32_t dev_minor;
	int prot;        /* PROT_* */
	bool shared;
	bool anonymous;  /* no file and not special ([vdso], [vvar] ...); heap and stack are */
	bool stack;      /* [stack] */
	bool heap;       /* [heap] */
	uint32_t pkey;   /* smaps only, 0 where there is none */
	uint64_t flags;  /* smaps only: SYS_VMF() bits */
	uint64_t pss_bytes;  /* smaps only */
	uint64_t rss_bytes;  /* smaps only */
	uint64_t anon_bytes; /* smaps only: "Anonymous:" */
	uint64_t ksm_bytes;  /* smaps only, Linux 6.6: pages that KSM merged */
	uint64_t swap_bytes; /* smaps only */
	char name[64];   /* path or [name], cut */
};

/* A segment of some broker's store (broker/segment.c), by the name of what is mapped. */
bool sys_name_is_store(const char *name);

/* Non-zero from the callback ends the walk and is returned. */
typedef int sys_vma_fn(const struct sys_vma *vma, void *arg);

/* buf: at least 4096 bytes of the caller's. pid 0: this process. 0 or -errno. */
int sys_maps_each(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg);
int sys_smaps_each(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg);
/*
 * The same by reads so small that each walks one mapping's pages, not some: the process's
 * own mmap waits that long. By as much as a page of text, what no longer fits is walked twice.
 */
int sys_smaps_each_gently(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg);
/*
 * One mapping of this process by PROCMAP_QUERY (Linux 6.11) on an open /proc/.../maps: the
 * one at addr, with SYS_PROCMAP_QUERY_* flags. A name that is too long becomes "/"; what
 * only smaps tells is 0. 0, -ENOENT (none there), or -errno.
 */
int sys_vma_query(int fd, uint64_t addr, uint64_t query_flags, struct sys_vma *vma);
/* Mappings of a process, or -errno. */
int64_t sys_map_count(int pid, char *buf, size_t buf_bytes);
/* Proportional set size from smaps_rollup, or -errno. */
int64_t sys_pss_bytes(int pid);
/* Pages of the calling process's own: resident, without those of files. Or -errno. */
int64_t sys_anonymous_pages(void);
/* The beginning of a file, with a NUL: 0, or -errno. */
int sys_read_text(const char *path, char *text, size_t room);
/* A number from a one-number file (sysctl, sysfs), or -errno. */
int64_t sys_read_number(const char *path);
/*
 * The machine's memory: how much is available (UINT32_MAX: unknown), and the share of the
 * last ten seconds in which somebody waited for memory, in hundredths of a percent (PSI,
 * "some"; 0 where there is none).
 */
void sys_memory_state(uint32_t *available_permille, uint32_t *pressure);

#endif
