/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Replacing pages that nobody can write, without a freeze (I2, I3).
 *
 * "Nobody can write" has one hole: a debugger (ptrace, /proc/PID/mem) writes to memory
 * that is not writable. So the pages are put on hold first: vmsplice(2) leaves
 * references to them in a pipe. Then
 *
 *   1. the bytes are compared with the new mapping's
 *   2. mremap(2) puts the new mapping in the old one's place, in one step, with
 *      mmap_lock held for writing; a debugger copies with that lock held for reading,
 *      so every such write is over or has not begun
 *   3. what the pipe gives back is what the old pages held at last. Where that is not
 *      what was compared, a write fell in between: it is written again, where it
 *      belongs now
 *
 * Device writes (DMA) to such pages cannot be seen here; who calls this knows that
 * there are none (still.c).
 *
 * Before Linux 6.12 a failing mremap may leave a hole; it is tried until it succeeds,
 * for all that it needs was allocated with the new mapping.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

int proc_hold_open(struct proc_hold *h, unsigned pages)
{
	int n;

	if (h->pages)
		return 0;
	h->mem_fd = sys->open("/proc/thread-self/mem", O_RDWR | O_CLOEXEC, 0);
	if (h->mem_fd < 0)
		return h->mem_fd;
	n = sys->pipe(h->pipe, pages);
	if (n < 0) {
		sys->close(h->mem_fd);
		return n;
	}
	h->pages = (unsigned)n < pages ? (unsigned)n : pages;
	return 0;
}

void proc_hold_close(struct proc_hold *h)
{
	if (!h->pages)
		return;
	h->pages = 0;
	sys->close(h->pipe[0]);
	sys->close(h->pipe[1]);
	sys->close(h->mem_fd);
}

#define READ_TRIES 100

/* Take everything out of the pipe again; how many bytes came. */
static size_t drain(struct proc_hold *h, uint8_t *room, size_t bytes)
{
	size_t done = 0;

	for (int tries = 0; done < bytes && tries < READ_TRIES; tries++) {
		ssize_t n = sys->read(h->pipe[0], room + done, bytes - done);

		if (n > 0) {
			done += (size_t)n;
			tries = 0;
		}
	}
	/* What is left in there would be taken for the next pages. */
	if (done < bytes)
		proc_hold_close(h);
	return done;
}

static bool is_hole(const uint8_t *at)
{
	char byte;
	struct iovec to = { &byte, 1 }, from = { (void *)(uintptr_t)at, 1 };

	return sys->read_self(&to, 1, &from, 1) != 1;
}

static int put_in_place(const uint8_t *from, uint8_t *to, size_t bytes)
{
	intptr_t p;

	for (;;) {
		static _Atomic uint32_t never;

		p = sys->mremap((void *)(uintptr_t)from, bytes, bytes,
				MREMAP_MAYMOVE | MREMAP_FIXED, to);
		if (p >= 0)
			return 0;
		if (!is_hole(to))
			return (int)p;
		sys_futex_wait(&never, 0, 1);
	}
}

/* The span of one page in which `now` differs from `then`, written to `at`. */
static void write_again(struct proc_hold *h, uint8_t *at, const uint8_t *then, const uint8_t *now,
			size_t bytes)
{
	static _Atomic uint32_t never;
	size_t first = 0, end = bytes;

	while (then[first] == now[first])
		first++;
	while (then[end - 1] == now[end - 1])
		end--;
	while (first < end) {
		ssize_t n = sys->pwrite(h->mem_fd, now + first, end - first,
					(off_t)(uintptr_t)(at + first));

		if (n > 0)
			first += (size_t)n;
		else if (n == -EFAULT || n == -EIO || n == -ESRCH || n == 0)
			return; /* unmapped meanwhile */
		else
			sys_futex_wait(&never, 0, 1);
	}
}

/* How many of the pages hold what `from` holds; a copy of what they held goes to room. */
static unsigned equal_pages(uint8_t *room, const uint8_t *from, const uint8_t *at, unsigned pages)
{
	const size_t page_bytes = sys_page_bytes();
	struct iovec to = { room, pages * page_bytes };
	struct iovec src = { (void *)(uintptr_t)at, to.iov_len };
	ssize_t got = sys->read_self(&to, 1, &src, 1);
	unsigned n = 0;

	while (got > 0 && (n + 1) * page_bytes <= (size_t)got &&
	       memcmp(room + n * page_bytes, from + n * page_bytes, page_bytes) == 0)
		n++;
	return n;
}

int proc_hold_replace(struct proc_hold *h, uint8_t *room, const uint8_t *from, uint8_t *to,
		      unsigned pages, unsigned *rewritten)
{
	const size_t page_bytes = sys_page_bytes();
	uint8_t *now = room + h->pages * page_bytes;
	unsigned equal;
	size_t drained;
	ssize_t held;
	int err = 0;

	if (!h->pages)
		return -EIO;
	if (pages > h->pages)
		pages = h->pages;
	held = sys->vmsplice(h->pipe[1], to, pages * page_bytes);
	if (held <= 0)
		return held < 0 ? (int)held : -EIO;
	pages = (unsigned)((size_t)held / page_bytes);
	equal = equal_pages(room, from, to, pages);
	if (equal)
		err = put_in_place(from, to, equal * page_bytes);
	drained = drain(h, now, (size_t)held);
	if (err < 0)
		return err;
	for (unsigned i = 0; i < equal && (i + 1) * page_bytes <= drained; i++) {
		const uint8_t *then = room + i * page_bytes, *last = now + i * page_bytes;

		if (memcmp(then, last, page_bytes) == 0)
			continue;
		write_again(h, to + i * page_bytes, then, last, page_bytes);
		++*rewritten;
	}
	return (int)equal;
}
