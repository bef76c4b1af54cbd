/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: PROCMAP_QUERY on /proc/self/maps gives a mapping's range,
 * permissions, offset, and the inode and device of a memfd, without reading text.
 *
 * Leans on it: plan (proc/): which VMA is this page in, is it ours already.
 * Kernel: 6.11.
 */
#include "assume.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#define RW (PROT_READ | PROT_WRITE)

static int maps;

static int query(const void *addr, uint64_t flags, struct sys_procmap_query *q)
{
	memset(q, 0, sizeof(*q));
	q->size = sizeof(*q);
	q->query_flags = flags;
	q->query_addr = (uintptr_t)addr;
	return ioctl(maps, SYS_PROCMAP_QUERY, q) ? -errno : 0;
}

int main(void)
{
	unsigned char *p, *file, *gap;
	struct sys_procmap_query q;
	struct stat st, st2;
	int fd, fd2, rc;
	char name[256];
	size_t pg;

	assume_begin(60);
	pg = page_bytes();
	maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	MUST(maps >= 0);
	p = anon_pages(8, RW);
	rc = query(p, 0, &q);
	if (rc == -ENOTTY)
		SKIP("no PROCMAP_QUERY");
	CHECK(!rc && q.vma_start == (uintptr_t)p && q.vma_end == (uintptr_t)p + 8 * pg,
	      "the range of an anonymous mapping (%d)", rc);
	CHECK(q.vma_flags == (SYS_PROCMAP_QUERY_VMA_READABLE | SYS_PROCMAP_QUERY_VMA_WRITABLE) &&
		      q.inode == 0 && q.vma_page_size == pg,
	      "rw-, private, no inode, page size (%#llx)", (unsigned long long)q.vma_flags);

	fd = memfd_pages(8, 0);
	fd2 = memfd_pages(8, 0);
	MUST(!fstat(fd, &st) && !fstat(fd2, &st2));
	file = at(p, 2);
	MUST(mmap(file, 3 * pg, RW, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(4 * pg)) == file);
	rc = query(file + pg, 0, &q);
	CHECK(!rc && q.vma_start == (uintptr_t)file && q.vma_end == (uintptr_t)file + 3 * pg &&
		      q.vma_offset == 4 * pg, "the range and offset of a private memfd run");
	CHECK(q.inode == st.st_ino && makedev(q.dev_major, q.dev_minor) == st.st_dev,
	      "its inode and device are what fstat says");
	CHECK(st.st_ino != st2.st_ino && st.st_dev == st2.st_dev, "two memfds differ by inode");
	CHECK(!(q.vma_flags & SYS_PROCMAP_QUERY_VMA_SHARED), "it is private");
	file[0] ^= 1;
	rc = query(file, 0, &q);
	CHECK(!rc && q.inode == st.st_ino, "also after a copy on write");
	rc = query(p, 0, &q);
	CHECK(!rc && q.vma_end == (uintptr_t)file, "the anonymous piece before it ends there");

	MUST(!mprotect(at(p, 6), pg, PROT_READ | PROT_EXEC));
	rc = query(at(p, 6), 0, &q);
	CHECK(!rc && q.vma_flags == (SYS_PROCMAP_QUERY_VMA_READABLE |
				     SYS_PROCMAP_QUERY_VMA_EXECUTABLE), "r-x after mprotect");

	rc = query(p, SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA | SYS_PROCMAP_QUERY_FILE_BACKED_VMA,
		   &q);
	CHECK(!rc && q.vma_start == (uintptr_t)file, "the next file-backed one from here");
	gap = at(p, 7);
	MUST(!munmap(gap, pg));
	rc = query(gap, 0, &q);
	CHECK(rc == -ENOENT, "ENOENT at a gap (%d)", rc);
	query(file, 0, &q);
	memset(&q, 0, sizeof(q));
	q.size = sizeof(q);
	q.query_addr = (uintptr_t)file;
	q.vma_name_addr = (uintptr_t)name;
	q.vma_name_size = sizeof(name);
	rc = ioctl(maps, SYS_PROCMAP_QUERY, &q);
	CHECK(!rc && !strncmp(name, "/memfd:assume", 13), "and the name (%s)", rc ? "" : name);
	return assume_end();
}
