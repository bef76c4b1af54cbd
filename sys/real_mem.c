/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory and memfds, raw. The rules are those of real.c.
 *
 * lease_try asks the kernel whether anybody else has a memfd open: a write
 * lease is granted only when the inode has no opener but the one that asks. What
 * it counts are *open files* made by open(2):
 *
 *  - the file that memfd_create itself made is not counted (nor are its
 *    mappings), yet counts itself when it asks: its answer is always wrong;
 *  - a file that was reopened through /proc counts once, however often it was
 *    dup'ed, sent or mapped: its mappings keep it open after the last close.
 *
 * So a store reopens a segment once to give away, and asks with a second
 * reopened descriptor of its own: 1 means that the given one and all its
 * mappings are gone, everywhere.
 *
 * An open by somebody else in the moment that we hold the lease makes the kernel
 * signal us, and SIGIO, its default, kills; so SIGURG is chosen first, which is
 * ignored unless a program wants it, and the lease is given back at once.
 */
#include <errno.h>
#include <fcntl.h>

#include "sys/raw.h"
#include "sys/real.h"

#ifndef MPOL_F_ADDR
#define MPOL_F_ADDR (1 << 1)
#endif

intptr_t sys_real_mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t off)
{
	return sys_raw(__NR_mmap, addr, bytes, prot, flags, fd, off);
}

int sys_real_munmap(void *addr, size_t bytes)
{
	return (int)sys_raw(__NR_munmap, addr, bytes);
}

intptr_t sys_real_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *to)
{
	return sys_raw(__NR_mremap, old, old_bytes, new_bytes, flags, to);
}

int sys_real_madvise(void *addr, size_t bytes, int advice)
{
	return (int)sys_raw(__NR_madvise, addr, bytes, advice);
}

int sys_real_mprotect(void *addr, size_t bytes, int prot)
{
	return (int)sys_raw(__NR_mprotect, addr, bytes, prot);
}

/* A pipe begins with 16 buffers of a page; a user near his limit gets fewer. */
int sys_real_pipe(int fd[2], unsigned pages)
{
	size_t page_bytes = sys_page_bytes();
	long r = sys_raw(__NR_pipe2, fd, O_CLOEXEC | O_NONBLOCK);

	if (r < 0)
		return (int)r;
	(void)sys_raw(__NR_fcntl, fd[1], F_SETPIPE_SZ, pages * page_bytes);
	r = sys_raw(__NR_fcntl, fd[1], F_GETPIPE_SZ, 0);
	if (r < (long)page_bytes) {
		sys_real_close(fd[0]);
		sys_real_close(fd[1]);
		return r < 0 ? (int)r : -ENOMEM;
	}
	return (int)((size_t)r / page_bytes);
}

ssize_t sys_real_vmsplice(int fd, const void *addr, size_t bytes)
{
	struct iovec from = { (void *)(uintptr_t)addr, bytes };

	return sys_raw(__NR_vmsplice, fd, &from, 1, SPLICE_F_NONBLOCK);
}

/* The pid is asked for each time: a cached one would be the parent's after a fork. */
ssize_t sys_real_read_self(const struct iovec *to, unsigned long nto, const struct iovec *from,
			   unsigned long nfrom)
{
	/* By the thread's number: the process's stands for its first thread, which may
	 * have ended and then has no memory any more. */
	return sys_raw(__NR_process_vm_readv, sys_raw(__NR_gettid), to, nto, from, nfrom, 0);
}

ssize_t sys_real_write_self(const struct iovec *from, unsigned long nfrom, const struct iovec *to,
			    unsigned long nto)
{
	return sys_raw(__NR_process_vm_writev, sys_raw(__NR_gettid), from, nfrom, to, nto, 0);
}

int sys_real_get_mempolicy_at(const void *addr, int *mode)
{
	return (int)sys_raw(__NR_get_mempolicy, mode, NULL, 0, addr, MPOL_F_ADDR);
}

int sys_real_memfd_create(const char *name, unsigned flags)
{
	return (int)sys_raw(__NR_memfd_create, name, flags);
}

int sys_real_ftruncate(int fd, off_t bytes)
{
	return (int)sys_raw(__NR_ftruncate, fd, bytes);
}

int sys_real_add_seals(int fd, unsigned seals)
{
	return (int)sys_raw(__NR_fcntl, fd, F_ADD_SEALS, seals);
}

int sys_real_get_seals(int fd)
{
	return (int)sys_raw(__NR_fcntl, fd, F_GET_SEALS, 0);
}

int sys_real_reopen_ro(int fd)
{
	char path[SYS_FD_PATH_BYTES];

	if (fd < 0)
		return -EBADF;
	sys_fd_path(path, fd);
	return sys_real_open(path, O_RDONLY | O_CLOEXEC, 0);
}

int sys_real_fchmod(int fd, unsigned mode)
{
	return (int)sys_raw(__NR_fchmod, fd, mode);
}

int sys_real_lease_try(int fd)
{
	long r = sys_raw(__NR_fcntl, fd, F_SETSIG, SIGURG);

	if (r < 0)
		return (int)r;
	r = sys_raw(__NR_fcntl, fd, F_SETLEASE, F_WRLCK);
	if (r == -EAGAIN || r == -EBUSY)
		return 0;
	if (r < 0)
		return (int)r;
	sys_raw(__NR_fcntl, fd, F_SETLEASE, F_UNLCK);
	return 1;
}

int sys_real_merge(void *addr, size_t bytes)
{
	return (int)sys_raw(__NR_madvise, addr, bytes, SYS_MADV_MERGE);
}

int sys_real_merge_scope_set(unsigned op, uint64_t cookie)
{
	return (int)sys_raw(__NR_prctl, SYS_PR_SET_MEMORY_MERGE_SCOPE, op, cookie, 0, 0);
}

int sys_real_merge_scope_get(uint64_t *cookie)
{
	return (int)sys_raw(__NR_prctl, SYS_PR_GET_MEMORY_MERGE_SCOPE, cookie, 0, 0, 0);
}
