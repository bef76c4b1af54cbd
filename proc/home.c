/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bringing merged memory home: in the place of a store mapping, ordinary private memory
 * again, with the same bytes (I5). Fresh anonymous memory, or a new private mapping of
 * the file that was there (origin.c), is filled elsewhere and put in place by hold.c,
 * page for page only if nobody wrote meanwhile.
 *
 * For mappings that are not writable. In a writable one a write could fall between the
 * copy and the replacement; those get private copies in the store mapping instead
 * (MADV_POPULATE_WRITE, change.c), which the kernel does under its own locks, unless the
 * program has no other thread. A mapping without access is readable for the moment.
 */
#include <errno.h>
#include <sys/mman.h>

#include "proc/internal.h"

#define HOLD_PAGES 64u
#define TRIES 3

struct home {
	struct proc_hold hold;
	uint8_t *room;
	size_t room_bytes;
	int prot;
};

/* A mapping with the bytes of [start, start + bytes), and its protection: or -errno. */
static intptr_t filled(const struct home *h, uint64_t start, uint64_t bytes, bool file)
{
	struct iovec from = { (void *)start, bytes }, to;
	intptr_t p = file ? proc_origin_copy(start, bytes)
			  : sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = 0;

	if (p < 0)
		return p;
	to = (struct iovec){ (void *)p, bytes };
	if (file)
		err = sys->mprotect((void *)p, bytes, PROT_READ | PROT_WRITE);
	if (err == 0 && sys->read_self(&to, 1, &from, 1) != (ssize_t)bytes)
		err = -EAGAIN;
	if (err == 0)
		err = sys->mprotect((void *)p, bytes, h->prot | PROT_READ);
	if (err < 0) {
		sys->munmap((void *)p, bytes);
		return err;
	}
	proc_mem_reapply_odd((uint64_t)p, (uint64_t)p + bytes, proc_mem_odd(start));
	return p;
}

/* One piece that fits on hold; *done of it is home. 0, -EAGAIN (somebody wrote), -errno. */
static int piece_home(struct home *h, uint64_t start, uint64_t bytes, bool file, uint64_t *done)
{
	const size_t page_bytes = sys_page_bytes();
	bool hidden = !(h->prot & PROT_READ);
	unsigned rewritten = 0;
	intptr_t p;
	int n;

	*done = 0;
	n = hidden ? sys->mprotect((void *)start, bytes, PROT_READ) : 0;
	if (n < 0)
		return n;
	p = filled(h, start, bytes, file);
	if (p < 0) {
		if (hidden)
			sys->mprotect((void *)start, bytes, h->prot);
		return (int)p;
	}
	n = proc_hold_replace(&h->hold, h->room, (uint8_t *)p, (uint8_t *)start,
			      (unsigned)(bytes / page_bytes), &rewritten);
	*done = n > 0 ? (uint64_t)n * page_bytes : 0;
	if (*done < bytes)
		sys->munmap((void *)(p + (intptr_t)*done), bytes - *done);
	if (hidden)
		sys->mprotect((void *)start, bytes, h->prot);
	return n < 0 ? n : *done < bytes ? -EAGAIN : 0;
}

static int span_home(struct home *h, uint64_t start, uint64_t end, bool file, uint64_t *pages)
{
	int tries = 0;

	while (start < end) {
		uint64_t bytes = (uint64_t)h->hold.pages * sys_page_bytes(), done;
		int err;

		if (bytes == 0)
			return -EAGAIN;
		if (bytes > end - start)
			bytes = end - start;
		err = piece_home(h, start, bytes, file, &done);
		if (pages)
			*pages += done / sys_page_bytes();
		start += done;
		tries = done ? 0 : tries + 1;
		if (err < 0 && (err != -EAGAIN || tries == TRIES))
			return err;
	}
	return 0;
}

int proc_mem_home(uint64_t start, uint64_t end, int prot, uint64_t *pages)
{
	struct home h = { .prot = prot };
	intptr_t room;
	int err;

	if ((prot & PROT_WRITE) && !proc_alone(true))
		return -EACCES;
	proc_mem_unmapped();
	err = proc_hold_open(&h.hold, HOLD_PAGES);
	if (err < 0)
		return -EAGAIN;
	h.room_bytes = 2 * h.hold.pages * sys_page_bytes();
	room = sys->mmap(NULL, h.room_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	if (room < 0) {
		proc_hold_close(&h.hold);
		return -ENOMEM;
	}
	h.room = (uint8_t *)room;
	while (err == 0 && start < end) {
		bool file;
		uint64_t until = proc_origin_span(start, end, &file);

		err = span_home(&h, start, until, file, pages);
		start = until;
	}
	sys->munmap(h.room, h.room_bytes);
	proc_hold_close(&h.hold);
	return err;
}
