/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a freeze needs before it begins: a userfaultfd that stops every writer, and
 * a staging area for each protection (UFFDIO_MOVE wants equal access flags).
 *
 * Staging areas stay registered all the time, for they are destinations too, and are
 * empty between freezes; one whose emptying failed is emptied again before its next
 * use. They stay out of core dumps: whoever reads them through the kernel finds
 * nothing, and a debugger that tries gets an error to report.
 *
 * Registered for write protection, which nobody ever asks for there, and not for missing
 * pages: a page that the program had given up (MADV_FREE) is the kernel's to take, here as
 * well, and who reads it then must find zeros and not wait for a fault to be answered, least
 * of all the engine itself. Where there is no write protection (before it came to an
 * architecture), missing pages it is.
 *
 * No program knows their addresses, but mlockall() populates everything there is; the shim
 * has them taken away first (proc_engine_stop_freezing()).
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "proc/internal.h"

static int register_staging(struct proc_engine *e, uint8_t *base, size_t bytes)
{
	int err = sys->uffd_register(e->uffd, base, bytes, UFFDIO_REGISTER_MODE_WP);

	return err == -EINVAL ? sys->uffd_register(e->uffd, base, bytes,
						   UFFDIO_REGISTER_MODE_MISSING)
			      : err;
}

struct proc_staging *proc_staging_for(struct proc_engine *e, int prot)
{
	struct proc_staging *st = &e->staging[prot & PROT_EXEC ? 1 : 0];
	size_t bytes = (size_t)PROC_CHUNK_PAGES << e->page_shift;
	uint8_t *p, *base;

	if (st->base) {
		if (st->dirty && sys->madvise(st->base, bytes, MADV_DONTNEED) < 0)
			return NULL;
		st->dirty = false;
		return st;
	}
	/* Aligned like the chunk, so that a huge page can move whole. */
	p = (uint8_t *)sys->mmap(proc_far(2 * bytes), 2 * bytes, prot,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if ((intptr_t)p < 0)
		return NULL;
	base = (uint8_t *)(((uintptr_t)p + bytes - 1) & ~(uintptr_t)(bytes - 1));
	if (base > p)
		sys->munmap(p, (size_t)(base - p));
	if (p + bytes > base)
		sys->munmap(base + bytes, (size_t)(p + bytes - base));
	if (register_staging(e, base, bytes) < 0 || proc_mem_exclude(base, bytes) < 0) {
		sys->munmap(base, bytes);
		return NULL;
	}
	sys->madvise(base, bytes, MADV_DONTDUMP);
	st->base = base;
	return st;
}

int proc_uffd_open(struct proc_engine *e)
{
	int fd = -1;

	/* Full ones only: a user-mode-only descriptor lets a read(2) by another
	 * thread into a frozen page fail, which the program would see. */
	if (e->link->uffd_dev >= 0)
		fd = sys->uffd_from_dev(e->link->uffd_dev, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = sys->uffd_open(O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		int dev = sys->open("/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0);

		if (dev >= 0) {
			fd = sys->uffd_from_dev(dev, O_CLOEXEC | O_NONBLOCK);
			sys->close(dev);
		}
	}
	return fd;
}

int proc_freeze_setup(struct proc_engine *e)
{
	uint64_t have = 0, want = SYS_UFFD_FEATURE_MOVE;
	int fd, err;

	if (e->no_freeze)
		return -ECANCELED;
	fd = proc_uffd_open(e);
	if (fd < 0)
		return fd;
	if (e->scan)
		want |= SYS_UFFD_FEATURE_WP_ASYNC | SYS_UFFD_FEATURE_WP_UNPOPULATED;
	err = sys->uffd_api(fd, want, &have);
	if (err < 0 || !(have & SYS_UFFD_FEATURE_MOVE)) {
		sys->close(fd);
		return err < 0 ? err : -ENOSYS;
	}
	/* Staging areas of an earlier descriptor are registered with that. */
	for (unsigned i = 0; i < 2; i++)
		proc_freeze_free_staging(e, &e->staging[i]);
	e->uffd = fd;
	proc_scan_uffd(e, (have & want) == want);
	return 0;
}

void proc_freeze_free_staging(struct proc_engine *e, struct proc_staging *st)
{
	size_t bytes = (size_t)PROC_CHUNK_PAGES << e->page_shift;
	uint8_t *base = st->base;

	/* The pointer goes first: a fork in between must not leave a child with it. */
	*st = (struct proc_staging){ 0 };
	if (!base)
		return;
	proc_mem_exclude_end(base, bytes);
	sys->munmap(base, bytes);
}

void proc_freeze_teardown(struct proc_engine *e)
{
	for (unsigned i = 0; i < 2; i++)
		proc_freeze_free_staging(e, &e->staging[i]);
	if (e->uffd >= 0)
		sys->close(e->uffd);
	e->uffd = -1;
}
