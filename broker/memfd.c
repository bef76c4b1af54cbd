/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memfds as the store and the rings need them.
 *
 * MFD_NOEXEC_SEAL came with Linux 6.3; an older kernel says EINVAL, and gets
 * asked without it. The mode matters because a file that is handed out can be
 * opened anew through /proc/PID/fd: 0444 leaves that read-only for everybody
 * but root and the owner, and what must hold against those two is sealed.
 *
 * An open(2) of a file on which somebody holds a lease waits for the lease to be
 * given up, 45 seconds by default. A client could hold one on a memfd that it
 * offers, so files are reopened with O_NONBLOCK, which makes that an error (I4).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "broker/store_impl.h"
#include "sys/sys.h"

int broker_memfd_new(const char *name, size_t bytes, unsigned mode)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd = sys->memfd_create(name, flags | MFD_NOEXEC_SEAL);
	int r;

	if (fd == -EINVAL)
		fd = sys->memfd_create(name, flags);
	if (fd < 0)
		return fd;
	r = sys->ftruncate(fd, (off_t)bytes);
	if (r == 0)
		r = sys->fchmod(fd, mode);
	if (r < 0) {
		sys->close(fd);
		return r;
	}
	return fd;
}

int broker_reopen_ro(int fd)
{
	char path[40];

	if (fd < 0)
		return -EBADF;
	snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	return sys->open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
}
