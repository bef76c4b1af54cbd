/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real table, and the entries that are neither memory (real_mem.c),
 * userfaultfd (real_uffd.c) nor sockets (real_sock.c): files, epoll, threads.
 *
 * What all four files promise: an entry is one system call, or a short fixed
 * sequence, made with sys_raw(): no libc function that could be interposed, no
 * errno, no allocation, no lock, nothing but the stack and the arguments
 * touched. A thread that has memory frozen can make every one of them as long
 * as the memory that its arguments point to is not frozen.
 *
 * EINTR: open, read, pread, getrandom and socket_connect begin again; poll,
 * epoll_wait, send_msg and recv_msg report it, since their callers have
 * something else to look at after a signal. close never does: Linux has closed
 * the descriptor by then, and a second close would hit somebody else's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sys/raw.h"
#include "sys/real.h"

/* The kernel's sigset_t, as against libc's 128 bytes. */
#define KERNEL_SIGSET_BYTES 8

const struct sys_ops sys_real = {
#define SYS_REAL_MEMBER(ret, name, params, args) .name = sys_real_##name,
	SYS_OPS(SYS_REAL_MEMBER)
#undef SYS_REAL_MEMBER
};

const struct sys_ops *sys = &sys_real;

static struct timespec timespec_of_msec(int msec)
{
	return (struct timespec){ .tv_sec = msec / 1000, .tv_nsec = msec % 1000 * 1000000L };
}

/* files ---------------------------------------------------------------------- */

int sys_real_open(const char *path, int flags, unsigned mode)
{
	long r;

	do
		r = sys_raw(__NR_openat, AT_FDCWD, path, flags, mode);
	while (r == -EINTR);
	return (int)r;
}

int sys_real_close(int fd)
{
	long r = sys_raw(__NR_close, fd);

	return r == -EINTR ? 0 : (int)r;
}

ssize_t sys_real_read(int fd, void *buf, size_t bytes)
{
	long r;

	do
		r = sys_raw(__NR_read, fd, buf, bytes);
	while (r == -EINTR);
	return r;
}

ssize_t sys_real_pread(int fd, void *buf, size_t bytes, off_t off)
{
	long r;

	do
		r = sys_raw(__NR_pread64, fd, buf, bytes, off);
	while (r == -EINTR);
	return r;
}

ssize_t sys_real_pwrite(int fd, const void *buf, size_t bytes, off_t off)
{
	long r;

	do
		r = sys_raw(__NR_pwrite64, fd, buf, bytes, off);
	while (r == -EINTR);
	return r;
}

/* waiting -------------------------------------------------------------------- */

int sys_real_poll(struct pollfd *fds, unsigned n, int timeout_msec)
{
	struct timespec ts = timespec_of_msec(timeout_msec);

	return (int)sys_raw(__NR_ppoll, fds, n, timeout_msec < 0 ? NULL : &ts, NULL,
			    KERNEL_SIGSET_BYTES);
}

int sys_real_epoll_create(void)
{
	return (int)sys_raw(__NR_epoll_create1, EPOLL_CLOEXEC);
}

int sys_real_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
	return (int)sys_raw(__NR_epoll_ctl, ep, op, fd, ev);
}

int sys_real_epoll_wait(int ep, struct epoll_event *evs, int n, int timeout_msec)
{
	return (int)sys_raw(__NR_epoll_pwait, ep, evs, n, timeout_msec, NULL, KERNEL_SIGSET_BYTES);
}

/* threads -------------------------------------------------------------------- */

#ifndef __NR_close_range
#define __NR_close_range 436
#endif

int sys_real_close_range_unshare(unsigned first, unsigned last)
{
	return (int)sys_raw(__NR_close_range, first, last, CLOSE_RANGE_UNSHARE);
}

int sys_real_unshare_fs(void)
{
	return (int)sys_raw(__NR_unshare, CLONE_FS);
}

int sys_real_signalfd(int fd, const sigset_t *set)
{
	return (int)sys_raw(__NR_signalfd4, fd, set, KERNEL_SIGSET_BYTES, O_NONBLOCK | O_CLOEXEC);
}

int sys_real_tgkill(pid_t tgid, pid_t tid, int sig)
{
	return (int)sys_raw(__NR_tgkill, tgid, tid, sig);
}

int sys_real_inode(int fd, uint64_t *inode)
{
	struct stat st = { 0 };
	long r = sys_raw(__NR_fstat, fd, &st);

	if (r < 0)
		return (int)r;
	*inode = st.st_ino;
	return 0;
}

int sys_real_getrandom(void *buf, size_t bytes)
{
	unsigned char *to = buf;

	while (bytes > 0) {
		long r = sys_raw(__NR_getrandom, to, bytes, 0);

		if (r == -EINTR)
			continue;
		if (r < 0)
			return (int)r;
		to += r;
		bytes -= (size_t)r;
	}
	return 0;
}

/* outside the table ---------------------------------------------------------- */

size_t sys_page_bytes(void)
{
	static size_t page_bytes;
	size_t bytes = __atomic_load_n(&page_bytes, __ATOMIC_RELAXED);

	if (bytes == 0) {
		bytes = (size_t)sysconf(_SC_PAGESIZE);
		__atomic_store_n(&page_bytes, bytes, __ATOMIC_RELAXED);
	}
	return bytes;
}

int sys_real_faults(int who, uint64_t *faults)
{
	struct rusage use = { 0 };
	long r;

	/* Present before it is counted: a fault here would look like somebody else's. */
	__asm__ volatile("" : : "r"(&use) : "memory");
	r = sys_raw(__NR_getrusage, who, &use);
	if (r == 0)
		*faults = (uint64_t)use.ru_minflt + (uint64_t)use.ru_majflt;
	return (int)r;
}

pid_t sys_gettid(void)
{
	return (pid_t)sys_raw(__NR_gettid);
}

void sys_give_way(void)
{
	long nice = 20 - sys_raw(__NR_getpriority, PRIO_PROCESS, 0); /* the raw call says 1 to 40 */

	if (nice >= -20 && nice < 20)
		sys_raw(__NR_setpriority, PRIO_PROCESS, 0, nice + 5);
}

static uint64_t clock_usec(clockid_t clock)
{
	struct timespec ts = { 0, 0 };

	sys_raw(__NR_clock_gettime, clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t sys_now_usec(void)
{
	return clock_usec(CLOCK_MONOTONIC);
}

uint64_t sys_thread_cpu_usec(void)
{
	return clock_usec(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t sys_process_cpu_usec(void)
{
	return clock_usec(CLOCK_PROCESS_CPUTIME_ID);
}

/* Not FUTEX_PRIVATE_FLAG: the word may stand in memory shared with a peer. */
int sys_futex_wait(_Atomic uint32_t *word, uint32_t expected, int timeout_msec)
{
	struct timespec ts = timespec_of_msec(timeout_msec);

	return (int)sys_raw(__NR_futex, word, FUTEX_WAIT, expected,
			    timeout_msec < 0 ? NULL : &ts, NULL, 0);
}

int sys_futex_wake(_Atomic uint32_t *word, int n)
{
	return (int)sys_raw(__NR_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

static void block(uint64_t signals, sigset_t *old)
{
	if (old)
		memset(old, 0, sizeof(*old));
	sys_raw(__NR_rt_sigprocmask, SIG_SETMASK, &signals, old, KERNEL_SIGSET_BYTES);
}

void sys_sigmask_block_all(sigset_t *old)
{
	block(UINT64_MAX, old);
}

void sys_sigmask_block_most(sigset_t *old)
{
	block(~(UINT64_C(1) << (SYS_SIGSETXID - 1)), old);
}

void sys_sigmask_restore(const sigset_t *old)
{
	sys_raw(__NR_rt_sigprocmask, SIG_SETMASK, old, NULL, KERNEL_SIGSET_BYTES);
}

/* By hand: snprintf may allocate, sets errno and can be interposed. */
void sys_fd_path(char path[SYS_FD_PATH_BYTES], int fd)
{
	static const char prefix[] = "/proc/thread-self/fd/";
	char digits[12];
	size_t n = 0;
	size_t at = sizeof(prefix) - 1;
	unsigned value = (unsigned)fd;

	memcpy(path, prefix, at);
	do {
		digits[n++] = (char)('0' + value % 10);
		value /= 10;
	} while (value > 0);
	while (n > 0)
		path[at++] = digits[--n];
	path[at] = '\0';
}
