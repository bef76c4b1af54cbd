/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * syscall(2): the calls that concern us go to the same handlers as libc's named
 * functions, everything else straight to the kernel.
 *
 * Six arguments are always read, as libc's own does: those that the caller did not
 * pass are whatever the registers held, and the kernel ignores them. libnuma's
 * mbind arrives here too. Not a cancellation point, like libc's.
 *
 * What no interposition sees: system call instructions in the program's own code.
 * Memory that comes and goes that way is never owned. The Go runtime with cgo gets
 * some through libc and discards it by itself: see target.c.
 */
#include "shim/shim.h"

#include <limits.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/raw.h"

#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node 450
#endif

/* Calls about memory. False: it is none of them. */
static bool memory_call(long n, const long a[6], long *ret)
{
	void *addr = (void *)a[0];
	size_t bytes = (size_t)a[1];

	switch (n) {
	case SYS_mmap:
		*ret = shim_map(addr, bytes, (int)a[2], (int)a[3], (int)a[4], a[5]);
		return true;
	case SYS_munmap:
		*ret = shim_unmap(addr, bytes);
		return true;
	case SYS_mremap:
		*ret = shim_remap(addr, bytes, (size_t)a[2], (int)a[3], (void *)a[4]);
		return true;
	case SYS_brk:
		*ret = shim_raw_brk((uint64_t)a[0]);
		return true;
	case SYS_shmat:
		*ret = shim_shmat((int)a[0], (const void *)a[1], (int)a[2]);
		return true;
	case SYS_madvise:
		*ret = shim_advise(addr, bytes, (int)a[2]);
		return true;
	case SYS_process_madvise:
		*ret = shim_process_advise((int)a[0], (const struct iovec *)a[1], (size_t)a[2],
					   (int)a[3], (unsigned)a[4]);
		return true;
	default:
		return false;
	}
}

/* Calls that change memory where it is. */
static bool change_call(long n, const long a[6], long *ret)
{
	const long everything[6] = { 0, LONG_MAX & ~0xffffL };

	switch (n) {
	case SYS_mlock:
		*ret = shim_lock_pages((const void *)a[0], (size_t)a[1], 0);
		return true;
	case SYS_mlock2:
		*ret = shim_lock_pages((const void *)a[0], (size_t)a[1], (unsigned)a[2]);
		return true;
	case SYS_mlockall:
		*ret = shim_lock_all((int)a[0]);
		return true;
	case SYS_munlockall:
		*ret = shim_change(n, everything, false);
		return true;
	case SYS_mprotect:
	case SYS_pkey_mprotect:
	case SYS_munlock:
		*ret = shim_change(n, a, false);
		return true;
	case SYS_remap_file_pages:
	case SYS_mbind:
	case SYS_set_mempolicy_home_node:
		*ret = shim_change(n, a, true);
		return true;
	default:
		return false;
	}
}

static bool process_call(long n, const long a[6], long *ret)
{
	switch (n) {
#ifdef SYS_open
	case SYS_open:
		*ret = shim_opened((const char *)a[0],
				   (int)sys_raw(n, a[0], a[1], a[2]));
		return true;
#endif
	case SYS_openat:
		*ret = shim_opened((const char *)a[1],
				   (int)sys_raw(n, a[0], a[1], a[2], a[3]));
		return true;
	case SYS_openat2:
		*ret = shim_opened((const char *)a[1],
				   (int)sys_raw(n, a[0], a[1], a[2], a[3]));
		return true;
	case SYS_prctl:
		*ret = shim_prctl((int)a[0], a + 1);
		return true;
	case SYS_seccomp:
		*ret = shim_seccomp(a[0], a[1], a[2]);
		return true;
	case SYS_ioctl:
		*ret = shim_ioctl((int)a[0], (unsigned long)a[1], a[2]);
		return true;
#ifdef SYS_fork
	case SYS_fork:
#endif
	case SYS_clone:
	case SYS_clone3:
		*ret = shim_fork_raw(n, a);
		return true;
	case SYS_execve:
		*ret = shim_execve((const char *)a[0], (char *const *)a[1], (char *const *)a[2]);
		return true;
	case SYS_execveat:
		*ret = shim_execveat((int)a[0], (const char *)a[1], (char *const *)a[2],
				     (char *const *)a[3], (int)a[4]);
		return true;
	default:
		return false;
	}
}

SHIM_EXPORT long syscall(long n, ...)
{
	va_list args;
	long a[6], ret;
	int i;

	va_start(args, n);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	if (!memory_call(n, a, &ret) && !change_call(n, a, &ret) && !process_call(n, a, &ret))
		ret = sys_raw6(n, a[0], a[1], a[2], a[3], a[4], a[5]);
	return shim_return(ret);
}
