/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel interface definitions that Debian 12's headers (6.1) do not have.
 *
 * Values are ABI, taken from the kernel's documentation of userfaultfd(2)
 * (UFFDIO_MOVE, Linux 6.8), PAGEMAP_SCAN (Linux 6.7) and PROCMAP_QUERY
 * (Linux 6.11). Structures carry our own names, so that a system whose headers
 * do define the originals can include both.
 */
#ifndef SAMEPAGE_SYS_UAPI_H
#define SAMEPAGE_SYS_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

/* userfaultfd ------------------------------------------------------------- */

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

struct sys_uffdio_move {
	__u64 dst;
	__u64 src;
	__u64 len;
	__u64 mode;
	__s64 move; /* out: bytes moved, or -errno */
};
#define SYS_UFFDIO_MOVE _IOWR(0xAA, 0x05, struct sys_uffdio_move)
#define SYS_UFFDIO_MOVE_NR 0x05
#define SYS_UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#define SYS_UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((__u64)1 << 1)
#define SYS_UFFD_FEATURE_WP_SHMEM ((__u64)1 << 12) /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM */
#define SYS_UFFD_FEATURE_WP_UNPOPULATED ((__u64)1 << 13)
#define SYS_UFFD_FEATURE_WP_ASYNC ((__u64)1 << 15)
#define SYS_UFFD_FEATURE_MOVE ((__u64)1 << 16)

/* PAGEMAP_SCAN ------------------------------------------------------------ */

#define SYS_PAGE_IS_WPALLOWED (1 << 0)
#define SYS_PAGE_IS_WRITTEN (1 << 1)
#define SYS_PAGE_IS_FILE (1 << 2)
#define SYS_PAGE_IS_PRESENT (1 << 3)
#define SYS_PAGE_IS_SWAPPED (1 << 4)
#define SYS_PAGE_IS_PFNZERO (1 << 5)
#define SYS_PAGE_IS_HUGE (1 << 6)
#define SYS_PAGE_IS_SOFT_DIRTY (1 << 7)

struct sys_page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

#define SYS_PM_SCAN_WP_MATCHING ((__u64)1 << 0)

struct sys_pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#define SYS_PAGEMAP_SCAN _IOWR('f', 16, struct sys_pm_scan_arg)

/* PROCMAP_QUERY ----------------------------------------------------------- */

#define SYS_PROCMAP_QUERY_VMA_READABLE 0x01
#define SYS_PROCMAP_QUERY_VMA_WRITABLE 0x02
#define SYS_PROCMAP_QUERY_VMA_EXECUTABLE 0x04
#define SYS_PROCMAP_QUERY_VMA_SHARED 0x08
#define SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA 0x10
#define SYS_PROCMAP_QUERY_FILE_BACKED_VMA 0x20

struct sys_procmap_query {
	__u64 size;
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start;
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset;
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size;
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};
#define SYS_PROCMAP_QUERY _IOWR('f', 17, struct sys_procmap_query)

/* memfd, close_range, madvise --------------------------------------------- */

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* MADV_MERGE and merge scopes: our kernel series (kernel/); the number is the SKSM RFC's --- */

#define SYS_MADV_MERGE 26
#define SYS_PR_SET_MEMORY_MERGE_SCOPE 0x4b534d53
#define SYS_PR_GET_MEMORY_MERGE_SCOPE 0x4b534d54
#define SYS_PR_MEMORY_MERGE_SCOPE_GLOBAL 0
#define SYS_PR_MEMORY_MERGE_SCOPE_USER 1

#endif
