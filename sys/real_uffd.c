/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * userfaultfd, pagemap and procmap ioctls, raw. The rules are those of real.c.
 *
 * UFFDIO_MOVE and UFFDIO_COPY over several pages stop at the first page that
 * does not go. After some progress they say EAGAIN and give the bytes done in
 * the result field; without progress the call fails with the page's own error.
 * So after progress we call again for the rest, which tells that error. A page
 * whose own error is EAGAIN (its folio was locked, or the address space is just
 * being changed under a fork or mremap) is tried EAGAIN_TRIES times in a row, the
 * last of them a moment apart (whoever holds it may have lost its CPU; on a virtual
 * machine for milliseconds); progress starts that count anew, so the whole is
 * bounded by the length.
 *
 * EFAULT may mean a moment as well: since Linux 6.14 a discard by another thread frees
 * page tables that it emptied, and one that is gone between being made and being used is
 * told as EFAULT. It is believed when it is said EFAULT_TRIES times.
 *
 * The caller learns how many bytes went in every case: pages that did move are
 * moved, whatever is returned.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <time.h>

#include "sys/raw.h"
#include "sys/real.h"

#define EFAULT_TRIES 8
#define EAGAIN_TRIES 80
#define EAGAIN_YIELDS 64 /* of these; then pauses, 16 ms in all */
#define PAUSE_NSEC 1000000

static int do_ioctl(int fd, unsigned long request, const void *arg)
{
	return (int)sys_raw(__NR_ioctl, fd, request, arg);
}

int sys_real_uffd_open(int flags)
{
	return (int)sys_raw(__NR_userfaultfd, flags);
}

int sys_real_uffd_from_dev(int dev_fd, int flags)
{
	return (int)sys_raw(__NR_ioctl, dev_fd, USERFAULTFD_IOC_NEW, flags);
}

int sys_real_uffd_api(int fd, uint64_t features, uint64_t *have)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int r = do_ioctl(fd, UFFDIO_API, &api);

	if (have)
		*have = r < 0 ? 0 : api.features;
	return r;
}

int sys_real_uffd_register(int fd, const void *addr, size_t bytes, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = bytes },
		.mode = mode,
	};

	return do_ioctl(fd, UFFDIO_REGISTER, &reg);
}

int sys_real_uffd_unregister(int fd, const void *addr, size_t bytes)
{
	struct uffdio_range range = { .start = (uintptr_t)addr, .len = bytes };

	return do_ioctl(fd, UFFDIO_UNREGISTER, &range);
}

int sys_real_uffd_wake(int fd, const void *addr, size_t bytes)
{
	struct uffdio_range range = { .start = (uintptr_t)addr, .len = bytes };

	return do_ioctl(fd, UFFDIO_WAKE, &range);
}

int sys_real_uffd_wp(int fd, const void *addr, size_t bytes, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)addr, .len = bytes },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return do_ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
}

static void pause_between(int tries)
{
	struct timespec pause = { .tv_nsec = PAUSE_NSEC };

	if (tries <= EAGAIN_YIELDS)
		sys_raw(__NR_sched_yield);
	else
		sys_raw(__NR_nanosleep, &pause, NULL);
}

/*
 * After one ioctl that returned r and left `progress` in its result field: 0 to
 * call again, otherwise what to return. `progress` was 0 before the call and can
 * stay so, for the kernel does not always write it.
 */
static int after_ioctl(int r, int64_t progress, size_t rest, size_t *done, int *tries)
{
	if (progress > 0) {
		*done += (uint64_t)progress < rest ? (size_t)progress : rest;
		*tries = 0;
		return r == -EAGAIN || r == 0 ? 0 : r;
	}
	if ((r == -EAGAIN || (r == -EFAULT && *tries < EFAULT_TRIES)) && ++*tries < EAGAIN_TRIES) {
		pause_between(*tries);
		return 0;
	}
	/* success that moved nothing: not something to spin on */
	return r < 0 ? r : -EIO;
}

int sys_real_uffd_move(int fd, void *to, const void *from, size_t bytes, size_t *moved)
{
	size_t done = 0;
	int tries = 0;
	int result = bytes == 0 ? -EINVAL : 0;

	while (result == 0 && done < bytes) {
		struct sys_uffdio_move arg = {
			.dst = (uintptr_t)to + done,
			.src = (uintptr_t)from + done,
			.len = bytes - done,
		};
		int r = do_ioctl(fd, SYS_UFFDIO_MOVE, &arg);

		result = after_ioctl(r, arg.move, bytes - done, &done, &tries);
	}
	*moved = done;
	return result;
}

int sys_real_uffd_copy(int fd, void *to, const void *from, size_t bytes, size_t *copied)
{
	size_t done = 0;
	int tries = 0;
	int result = bytes == 0 ? -EINVAL : 0;

	while (result == 0 && done < bytes) {
		struct uffdio_copy arg = {
			.dst = (uintptr_t)to + done,
			.src = (uintptr_t)from + done,
			.len = bytes - done,
		};
		int r = do_ioctl(fd, UFFDIO_COPY, &arg);

		result = after_ioctl(r, arg.copy, bytes - done, &done, &tries);
	}
	*copied = done;
	return result;
}

int sys_real_pagemap_scan(int fd, struct sys_pm_scan_arg *arg)
{
	return do_ioctl(fd, SYS_PAGEMAP_SCAN, arg);
}

int sys_real_procmap_query(int fd, struct sys_procmap_query *q)
{
	return do_ioctl(fd, SYS_PROCMAP_QUERY, q);
}
