/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every system call that samepage makes, behind one table.
 *
 * Rules. Each entry returns its result or a negative errno, never touches the
 * caller's errno, never allocates, takes no lock, and retries EINTR where that
 * is what every caller wants (noted below). The entries are safe to use on a
 * thread that has memory frozen.
 *
 * `sys` points to the table in use: sys_real, or sys_faulty (sys/fault.h), which
 * fails chosen calls; tests may point it to a table of their own.
 *
 * /proc paths go through /proc/thread-self, because the engine thread of a
 * client has a descriptor table of its own.
 */
#ifndef SAMEPAGE_SYS_SYS_H
#define SAMEPAGE_SYS_SYS_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "sys/uapi.h"

struct sys_peer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	char label[64]; /* SO_PEERSEC, "" where there is none; truncated labels are hashed in */
};

/*
 * The table, as a list: X(return type, name, parameters, arguments). fault.c
 * makes its wrappers and the numbered fault points from it, so the order is the
 * numbering; new entries go at the end.
 */
#define SYS_OPS(X)                                                                                 \
	/* memory; mmap and mremap return the address or -errno */                                \
	X(intptr_t, mmap, (void *addr, size_t bytes, int prot, int flags, int fd, off_t off),      \
	  (addr, bytes, prot, flags, fd, off))                                                     \
	X(int, munmap, (void *addr, size_t bytes), (addr, bytes))                                  \
	X(intptr_t, mremap, (void *old, size_t old_bytes, size_t new_bytes, int flags, void *to),  \
	  (old, old_bytes, new_bytes, flags, to))                                                  \
	X(int, madvise, (void *addr, size_t bytes, int advice), (addr, bytes, advice))             \
	X(ssize_t, read_self, (const struct iovec *to, unsigned long nto, const struct iovec *from, \
	  unsigned long nfrom), (to, nto, from, nfrom)) /* process_vm_readv on oneself */          \
	X(int, get_mempolicy_at, (const void *addr, int *mode), (addr, mode))                      \
	/* memfds; reopen_ro gives a read-only fd of its own open file */                         \
	X(int, memfd_create, (const char *name, unsigned flags), (name, flags))                    \
	X(int, ftruncate, (int fd, off_t bytes), (fd, bytes))                                      \
	X(int, add_seals, (int fd, unsigned seals), (fd, seals))                                   \
	X(int, get_seals, (int fd), (fd))                                                          \
	X(int, reopen_ro, (int fd), (fd))                                                          \
	X(int, fchmod, (int fd, unsigned mode), (fd, mode))                                        \
	X(int, lease_try, (int fd), (fd)) /* 1: nobody else has it open or mapped; 0: somebody */  \
	/* userfaultfd; move and copy retry EAGAIN a bounded number of times, report progress */   \
	X(int, uffd_open, (int flags), (flags))                                                    \
	X(int, uffd_from_dev, (int dev_fd, int flags), (dev_fd, flags))                            \
	X(int, uffd_api, (int fd, uint64_t features, uint64_t *have), (fd, features, have))        \
	X(int, uffd_register, (int fd, const void *addr, size_t bytes, uint64_t mode),             \
	  (fd, addr, bytes, mode))                                                                 \
	X(int, uffd_unregister, (int fd, const void *addr, size_t bytes), (fd, addr, bytes))       \
	X(int, uffd_wake, (int fd, const void *addr, size_t bytes), (fd, addr, bytes))             \
	X(int, uffd_wp, (int fd, const void *addr, size_t bytes, bool on), (fd, addr, bytes, on))  \
	/* returns 0 or -errno of the page after the *moved bytes that did move */                \
	X(int, uffd_move, (int fd, void *to, const void *from, size_t bytes, size_t *moved),       \
	  (fd, to, from, bytes, moved))                                                            \
	X(int, uffd_copy, (int fd, void *to, const void *from, size_t bytes, size_t *copied),      \
	  (fd, to, from, bytes, copied))                                                           \
	/* /proc */                                                                                \
	X(int, pagemap_scan, (int fd, struct sys_pm_scan_arg *arg), (fd, arg))                     \
	X(int, procmap_query, (int fd, struct sys_procmap_query *q), (fd, q))                      \
	/* files; open, read, pread, pwrite retry EINTR */                                         \
	X(int, open, (const char *path, int flags, unsigned mode), (path, flags, mode))            \
	X(int, close, (int fd), (fd))                                                              \
	X(ssize_t, read, (int fd, void *buf, size_t bytes), (fd, buf, bytes))                      \
	X(ssize_t, pread, (int fd, void *buf, size_t bytes, off_t off), (fd, buf, bytes, off))     \
	/* seqpacket sockets; fds received are close-on-exec; *nfds in: room, out: received */     \
	X(int, socket_connect, (const char *path), (path))                                         \
	X(int, socket_listen, (const char *path, unsigned mode, int backlog), (path, mode, backlog)) \
	X(int, socket_accept, (int fd), (fd)) /* non-blocking, close-on-exec */                    \
	X(ssize_t, send_msg, (int fd, const void *buf, size_t bytes, const int *fds,               \
	  unsigned nfds, int flags), (fd, buf, bytes, fds, nfds, flags)) /* MSG_NOSIGNAL added */   \
	X(ssize_t, recv_msg, (int fd, void *buf, size_t room, int *fds, unsigned *nfds, int flags), \
	  (fd, buf, room, fds, nfds, flags)) /* -EMSGSIZE: packet or fds cut; none kept open */     \
	X(int, peer, (int fd, struct sys_peer *peer), (fd, peer))                                  \
	X(int, poll, (struct pollfd *fds, unsigned n, int timeout_msec), (fds, n, timeout_msec))   \
	X(int, epoll_create, (void), ())                                                           \
	X(int, epoll_ctl, (int ep, int op, int fd, struct epoll_event *ev), (ep, op, fd, ev))      \
	X(int, epoll_wait, (int ep, struct epoll_event *evs, int n, int timeout_msec),             \
	  (ep, evs, n, timeout_msec))                                                              \
	/* threads */                                                                              \
	X(int, close_range_unshare, (unsigned first, unsigned last), (first, last))                \
	X(int, signalfd, (int fd, const sigset_t *set), (fd, set)) /* nonblock, cloexec */         \
	X(int, tgkill, (pid_t tgid, pid_t tid, int sig), (tgid, tid, sig))                         \
	X(int, getrandom, (void *buf, size_t bytes), (buf, bytes))                                 \
	X(int, inode, (int fd, uint64_t *inode), (fd, inode)) /* the number that maps shows */      \
	X(ssize_t, write_self, (const struct iovec *from, unsigned long nfrom,                     \
	  const struct iovec *to, unsigned long nto), (from, nfrom, to, nto))                      \
	X(int, unshare_fs, (void), ())                                                             \
	X(int, mprotect, (void *addr, size_t bytes, int prot), (addr, bytes, prot))                \
	X(ssize_t, pwrite, (int fd, const void *buf, size_t bytes, off_t off), (fd, buf, bytes, off)) \
	/* nonblocking, close-on-exec; room for `pages` buffers if the kernel grants it */        \
	X(int, pipe, (int fd[2], unsigned pages), (fd, pages)) /* how many it has */               \
	X(ssize_t, vmsplice, (int fd, const void *addr, size_t bytes), (fd, addr, bytes))         \
	/* madvise(MADV_MERGE); the scope of what this process merges with (sys/ksm.h) */         \
	X(int, merge, (void *addr, size_t bytes), (addr, bytes))                                   \
	X(int, merge_scope_set, (unsigned op, uint64_t cookie), (op, cookie))                      \
	X(int, merge_scope_get, (uint64_t *cookie), (cookie)) /* the op */                        \
	/* page faults so far of RUSAGE_SELF, all threads of this process, or RUSAGE_THREAD */    \
	X(int, faults, (int who, uint64_t *faults), (who, faults))

struct sys_ops {
#define SYS_OPS_MEMBER(ret, name, params, args) ret(*name) params;
	SYS_OPS(SYS_OPS_MEMBER)
#undef SYS_OPS_MEMBER
};

extern const struct sys_ops sys_real;
extern const struct sys_ops *sys;

/* Not in the table: cannot fail, or failing means nothing. */
size_t sys_page_bytes(void);
pid_t sys_gettid(void);
uint64_t sys_now_usec(void);        /* CLOCK_MONOTONIC */
uint64_t sys_thread_cpu_usec(void); /* CLOCK_THREAD_CPUTIME_ID */
uint64_t sys_process_cpu_usec(void);
/* This thread gives way to others as ksmd does, whose nice value is 5: so much above ours. */
void sys_give_way(void);
/* 0, -EAGAIN (value differed), -ETIMEDOUT, -EINTR; timeout < 0: for ever */
int sys_futex_wait(_Atomic uint32_t *word, uint32_t expected, int timeout_msec);
int sys_futex_wake(_Atomic uint32_t *word, int n);
void sys_sigmask_block_all(sigset_t *old); /* the raw call: truly all of them */
/* All but the one with which libc's setuid() asks every thread, and waits: for longer spans. */
void sys_sigmask_block_most(sigset_t *old);
#define SYS_SIGSETXID 33
void sys_sigmask_restore(const sigset_t *old);

#endif
