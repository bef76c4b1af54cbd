/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* io_uring by hand, for its registered buffers: memory that is pinned for DMA. */
#ifndef SAMEPAGE_TESTS_RING_H
#define SAMEPAGE_TESTS_RING_H

#include <linux/io_uring.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "proctest.h"

struct ring {
	int fd;
	void *sq, *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params p;
};

static inline bool ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = (int)syscall(__NR_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return false;
	r->sq = mmap(NULL, r->p.sq_off.array + r->p.sq_entries * 4, RW, MAP_SHARED, r->fd,
		     IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe), RW,
		     MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), RW, MAP_SHARED, r->fd,
		       IORING_OFF_SQES);
	return r->sq != MAP_FAILED && r->cq != MAP_FAILED && r->sqes != MAP_FAILED;
}

static inline void ring_close(struct ring *r)
{
	munmap(r->sq, r->p.sq_off.array + r->p.sq_entries * 4);
	munmap(r->cq, r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe));
	munmap(r->sqes, r->p.sq_entries * sizeof(*r->sqes));
	close(r->fd);
}

/* One READ_FIXED into the registered buffer; its result. */
static inline int ring_read_fixed(struct ring *r, int file, void *to, unsigned bytes)
{
	_Atomic unsigned *tail = (void *)((char *)r->sq + r->p.sq_off.tail);
	_Atomic unsigned *head = (void *)((char *)r->cq + r->p.cq_off.head);
	unsigned mask = *(unsigned *)((char *)r->sq + r->p.sq_off.ring_mask);
	unsigned *array = (void *)((char *)r->sq + r->p.sq_off.array);
	struct io_uring_cqe *cqes = (void *)((char *)r->cq + r->p.cq_off.cqes);
	unsigned at = atomic_load(tail) & mask, done;

	r->sqes[at] = (struct io_uring_sqe){ .opcode = IORING_OP_READ_FIXED, .fd = file,
					     .addr = (uintptr_t)to, .len = bytes };
	array[at] = at;
	atomic_fetch_add(tail, 1);
	PT_CHECK(syscall(__NR_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
	done = atomic_fetch_add(head, 1);
	return cqes[done & (r->p.cq_entries - 1)].res;
}

#endif
