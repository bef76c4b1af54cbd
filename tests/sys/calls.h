/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One call of every entry of the table, with arguments that the kernel refuses:
 * harmless, and negative for certain. A switch without default, so that an entry
 * which is added to SYS_OPS and not here does not compile (-Wswitch).
 */
#ifndef SAMEPAGE_TESTS_SYS_CALLS_H
#define SAMEPAGE_TESTS_SYS_CALLS_H

#include <limits.h>

#include "sys_test.h"

#define BAD_FD 987654
#define BAD_ADDRESS ((void *)1)

static inline intptr_t refused_call(enum sys_fault_point point)
{
	struct iovec bad = { .iov_base = BAD_ADDRESS, .iov_len = 8 };
	struct sys_pm_scan_arg scan = { 0 };
	struct sys_procmap_query query = { 0 };
	struct epoll_event event = { 0 };
	struct sys_peer peer;
	sigset_t set;
	size_t done;
	uint64_t have;
	unsigned nfds = 0;
	char byte = 0;
	int mode;

	memset(&set, 0, sizeof(set));
	switch (point) {
	case SYS_FAULT_mmap: return sys->mmap(NULL, 0, 0, MAP_PRIVATE, BAD_FD, 0);
	case SYS_FAULT_munmap: return sys->munmap(BAD_ADDRESS, 1);
	case SYS_FAULT_mremap: return sys->mremap(BAD_ADDRESS, 1, 1, 0, NULL);
	case SYS_FAULT_madvise: return sys->madvise(BAD_ADDRESS, 1, MADV_NORMAL);
	case SYS_FAULT_read_self: return sys->read_self(&bad, 1, &bad, 1);
	case SYS_FAULT_get_mempolicy_at: return sys->get_mempolicy_at(BAD_ADDRESS, &mode);
	case SYS_FAULT_memfd_create: return sys->memfd_create("x", UINT_MAX);
	case SYS_FAULT_ftruncate: return sys->ftruncate(BAD_FD, 0);
	case SYS_FAULT_add_seals: return sys->add_seals(BAD_FD, 0);
	case SYS_FAULT_get_seals: return sys->get_seals(BAD_FD);
	case SYS_FAULT_reopen_ro: return sys->reopen_ro(BAD_FD);
	case SYS_FAULT_fchmod: return sys->fchmod(BAD_FD, 0600);
	case SYS_FAULT_lease_try: return sys->lease_try(BAD_FD);
	case SYS_FAULT_uffd_open: return sys->uffd_open(INT_MAX);
	case SYS_FAULT_uffd_from_dev: return sys->uffd_from_dev(BAD_FD, 0);
	case SYS_FAULT_uffd_api: return sys->uffd_api(BAD_FD, 0, &have);
	case SYS_FAULT_uffd_register: return sys->uffd_register(BAD_FD, NULL, 0, 0);
	case SYS_FAULT_uffd_unregister: return sys->uffd_unregister(BAD_FD, NULL, 0);
	case SYS_FAULT_uffd_wake: return sys->uffd_wake(BAD_FD, NULL, 0);
	case SYS_FAULT_uffd_wp: return sys->uffd_wp(BAD_FD, NULL, 0, true);
	case SYS_FAULT_uffd_move: return sys->uffd_move(BAD_FD, NULL, NULL, 4096, &done);
	case SYS_FAULT_uffd_copy: return sys->uffd_copy(BAD_FD, NULL, NULL, 4096, &done);
	case SYS_FAULT_pagemap_scan: return sys->pagemap_scan(BAD_FD, &scan);
	case SYS_FAULT_procmap_query: return sys->procmap_query(BAD_FD, &query);
	case SYS_FAULT_open: return sys->open("/nonexistent/file", O_RDONLY, 0);
	case SYS_FAULT_close: return sys->close(BAD_FD);
	case SYS_FAULT_read: return sys->read(BAD_FD, &byte, 1);
	case SYS_FAULT_pread: return sys->pread(BAD_FD, &byte, 1, 0);
	case SYS_FAULT_socket_connect: return sys->socket_connect("/nonexistent/socket");
	case SYS_FAULT_socket_listen: return sys->socket_listen("/nonexistent/socket", 0600, 1);
	case SYS_FAULT_socket_accept: return sys->socket_accept(BAD_FD);
	case SYS_FAULT_send_msg: return sys->send_msg(BAD_FD, &byte, 1, NULL, 0, 0);
	case SYS_FAULT_recv_msg: return sys->recv_msg(BAD_FD, &byte, 1, NULL, &nfds, 0);
	case SYS_FAULT_peer: return sys->peer(BAD_FD, &peer);
	case SYS_FAULT_poll: return sys->poll(BAD_ADDRESS, 1, 0);
	case SYS_FAULT_epoll_create: {
		int fd = sys->epoll_create(); /* cannot be refused by its arguments: it has none */

		if (fd < 0)
			return fd;
		sys_real.close(fd);
		return -EBADF;
	}
	case SYS_FAULT_epoll_ctl: return sys->epoll_ctl(BAD_FD, EPOLL_CTL_ADD, BAD_FD, &event);
	case SYS_FAULT_epoll_wait: return sys->epoll_wait(BAD_FD, &event, 1, 0);
	case SYS_FAULT_close_range_unshare: return sys->close_range_unshare(1, 0);
	case SYS_FAULT_signalfd: return sys->signalfd(BAD_FD, &set);
	case SYS_FAULT_tgkill: return sys->tgkill(-1, -1, 0);
	case SYS_FAULT_getrandom: return sys->getrandom(BAD_ADDRESS, 8);
	case SYS_FAULT_write_self: return (long)sys->write_self(BAD_ADDRESS, 1, BAD_ADDRESS, 1);
	case SYS_FAULT_unshare_fs: {
		int r = sys->unshare_fs(); /* cannot be refused by its arguments: it has none */

		return r < 0 ? r : -EBADF;
	}
	case SYS_FAULT_mprotect: return sys->mprotect(BAD_ADDRESS, 1, 0);
	case SYS_FAULT_pwrite: return sys->pwrite(BAD_FD, &byte, 1, 0);
	case SYS_FAULT_pipe: return sys->pipe(BAD_ADDRESS, 1);
	case SYS_FAULT_vmsplice: return sys->vmsplice(BAD_FD, &byte, 1);
	case SYS_FAULT_merge: return sys->merge(BAD_ADDRESS, 1);
	case SYS_FAULT_merge_scope_set: return sys->merge_scope_set(UINT_MAX, 0);
	case SYS_FAULT_merge_scope_get: return sys->merge_scope_get(BAD_ADDRESS);
	case SYS_FAULT_inode: return sys->inode(-1, &(uint64_t){ 0 });
	case SYS_FAULT_faults: return sys->faults(INT_MAX, &have);
	case SYS_FAULT_NONE:
	case SYS_FAULT_COUNT: break;
	}
	return 0;
}

#endif
