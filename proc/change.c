/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Undoing: discard (MADV_DONTNEED and its like over memory that may be merged) and
 * unmerge. Both run on whichever thread asks, under the memory lock.
 *
 * What is merged where is asked of the kernel (/proc/self/maps), never of our own
 * books: the hull only says where asking is worth while (I5, and I1: wrong
 * bookkeeping can waste memory, it can never corrupt). Descriptors are opened for
 * the moment only, because this thread shares the program's table.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

#define BATCH 32

struct store_vma {
	uint64_t start, end;
	int prot;
};

struct collect {
	uint64_t start, end;
	struct store_vma vma[BATCH];
	unsigned n;
	uint64_t resume; /* where the next batch begins; 0: none left */
};

static int collect_one(const struct sys_vma *vma, void *arg)
{
	struct collect *c = arg;

	if (vma->start >= c->end)
		return 1;
	if (vma->end <= c->start || !proc_vma_is_run(vma))
		return 0;
	if (c->n == BATCH) {
		c->resume = vma->start;
		return 1;
	}
	c->vma[c->n].start = vma->start > c->start ? vma->start : c->start;
	c->vma[c->n].end = vma->end < c->end ? vma->end : c->end;
	c->vma[c->n].prot = vma->prot;
	c->n++;
	return 0;
}

/*
 * The same by PROCMAP_QUERY (6.11), which starts where it is asked to: reading all of
 * maps for each small discard costs milliseconds in a process with many mappings.
 */
static int collect_by_query(struct collect *c, int fd)
{
	uint64_t at = c->start;

	while (at < c->end && c->n < BATCH) {
		struct sys_vma vma;
		int err = sys_vma_query(fd, at,
					SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA |
						SYS_PROCMAP_QUERY_FILE_BACKED_VMA,
					&vma);

		if (err == -ENOENT)
			return 0;
		if (err < 0)
			return err;
		if (collect_one(&vma, c))
			return 0;
		at = vma.end;
	}
	if (at < c->end)
		c->resume = at;
	return 0;
}

/*
 * The next store mappings in [c->start, c->end). On the caller's stack, because
 * an interposed madvise must not allocate.
 */
static int collect_store(struct collect *c)
{
	char buf[8192];
	int fd, err = -ENOSYS;

	c->n = 0;
	c->resume = 0;
	fd = sys->open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		err = collect_by_query(c, fd);
		sys->close(fd);
	}
	if (err == 0)
		return 0;
	c->n = 0;
	c->resume = 0;
	err = sys_maps_each(0, buf, sizeof(buf), collect_one, c);
	return err < 0 ? err : 0;
}

/* --- discard -------------------------------------------------------------- */

void proc_mem_reapply_odd(uint64_t start, uint64_t end, uint32_t odd)
{
	static const struct {
		uint32_t bit;
		int advice;
	} advice[] = {
		{ PROC_ODD_DONTFORK, MADV_DONTFORK },     { PROC_ODD_DONTDUMP, MADV_DONTDUMP },
		{ PROC_ODD_HUGEPAGE, MADV_HUGEPAGE },     { PROC_ODD_NOHUGEPAGE, MADV_NOHUGEPAGE },
		{ PROC_ODD_MERGEABLE, MADV_MERGEABLE },
	};

	for (size_t i = 0; i < sizeof(advice) / sizeof(advice[0]); i++)
		if (odd & advice[i].bit)
			sys->madvise((void *)start, end - start, advice[i].advice);
}

static int fresh_anonymous(uint64_t start, uint64_t end, int prot)
{
	uint64_t at = start;

	while (at < end) {
		uint32_t odd = proc_mem_odd(at);
		uint64_t until = at + sys_page_bytes();
		int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
		intptr_t p;

		while (until < end && proc_mem_odd(until) == odd)
			until += sys_page_bytes();
		if (odd & PROC_ODD_NORESERVE)
			flags |= MAP_NORESERVE;
		p = sys->mmap((void *)at, until - at, prot, flags, -1, 0);
		if (p < 0)
			return (int)p;
		proc_mem_reapply_odd(at, until, odd);
		at = until;
	}
	return 0;
}

/* The file's own bytes again, where pages of a file were merged. */
static int fresh_of_file(uint64_t start, uint64_t end, int prot)
{
	uint64_t bytes = end - start;
	intptr_t p = proc_origin_copy(start, bytes);
	int err;

	if (p < 0)
		return (int)p;
	err = sys->mprotect((void *)p, bytes, prot);
	if (err == 0) {
		proc_mem_reapply_odd((uint64_t)p, (uint64_t)p + bytes, proc_mem_odd(start));
		p = sys->mremap((void *)p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				(void *)start);
		if (p >= 0)
			return 0;
		err = (int)p;
	}
	sys->munmap((void *)p, bytes);
	return err;
}

static int fresh(uint64_t start, uint64_t end, int prot)
{
	int err = 0;

	proc_mem_unmapped();
	/* It may have been a file's: the old bytes, and the caller hears of it. */
	if (proc_origin_lost() && !(prot & PROT_WRITE))
		return -EAGAIN;
	while (err == 0 && start < end) {
		bool file;
		uint64_t until = proc_origin_span(start, end, &file);

		err = file ? fresh_of_file(start, until, prot) : fresh_anonymous(start, until, prot);
		start = until;
	}
	return err;
}

/* Plain advice for what lies between store mappings; holes are the kernel's to report. */
static int plain(uint64_t start, uint64_t end, int advice)
{
	if (start >= end)
		return 0;
	return sys->madvise((void *)start, end - start, advice);
}

/*
 * /proc is not to be read (no descriptor left, a chroot without it): what may be
 * merged gets its zeros written. Dearer in memory than it should be, but zeros.
 */
static int discard_by_writing(uint64_t start, uint64_t end, int advice)
{
	static const uint8_t zeros[4096];
	int result = plain(start, end, advice);

	for (uint64_t at = start; at < end; at += sizeof(zeros)) {
		struct iovec from = { (void *)zeros, sizeof(zeros) };
		struct iovec to = { (void *)at, sizeof(zeros) };

		if (!proc_mem_maybe_merged(at, at + 1))
			continue;
		/* Zeros would be wrong there. */
		if (proc_origin_any(at, at + 1))
			return -EAGAIN;
		if (sys->write_self(&from, 1, &to, 1) != (ssize_t)sizeof(zeros))
			return -EAGAIN;
	}
	return result;
}

/* What the kernel says to this advice here: locked or sealed memory is to be left alone. */
static int ask_kernel(const struct store_vma *vma, int advice)
{
	return plain(vma->start, vma->end, advice == MADV_FREE ? MADV_DONTNEED : advice);
}

int proc_mem_discard(uint64_t start, uint64_t end, int advice)
{
	struct collect c = { .start = start, .end = end };
	uint64_t at = start;
	int err, result = 0;

	do {
		err = collect_store(&c);
		if (err < 0)
			return discard_by_writing(c.start, end, advice);
		for (unsigned i = 0; i < c.n; i++) {
			err = plain(at, c.vma[i].start, advice);
			if (err < 0)
				result = err;
			/* Lazy freeing is for anonymous memory; the kernel stops there as well. */
			if (advice == MADV_FREE && proc_origin_any(c.vma[i].start, c.vma[i].end))
				return -EINVAL;
			err = ask_kernel(&c.vma[i], advice);
			if (err < 0)
				return err;
			/* A failure here leaves the old bytes: the caller must hear. */
			err = fresh(c.vma[i].start, c.vma[i].end, c.vma[i].prot);
			if (err < 0)
				return err;
			/* Another mapping, of which the scanner knows nothing. */
			proc_mem_made_fresh(c.vma[i].start, c.vma[i].end);
			at = c.vma[i].end;
		}
		c.start = c.resume;
	} while (c.resume);
	err = plain(at, end, advice);
	return err < 0 ? err : result;
}

/* --- unmerge -------------------------------------------------------------- */

/* In a writable mapping; the kernel copies, without changing a byte (tests/assume/populate). */
static int copy_pages(const struct store_vma *v, uint64_t *pages)
{
	uint64_t bytes = v->end - v->start;
	int err = sys->madvise((void *)v->start, bytes, MADV_POPULATE_WRITE);

	if (err == -EINTR)
		err = sys->madvise((void *)v->start, bytes, MADV_POPULATE_WRITE);
	if (err < 0)
		return err == -EFAULT ? -EACCES : -ENOMEM;
	if (pages)
		*pages += bytes / sys_page_bytes();
	return 0;
}

static void forget_files(uint64_t start, uint64_t end)
{
	int fd;

	if (!proc_origin_any(start, end))
		return;
	fd = sys->open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return;
	proc_origin_collect(fd);
	sys->close(fd);
}

void proc_mem_forget_files(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	forget_files(0, UINT64_MAX);
	proc_mem_unlock(&guard);
}

int proc_mem_unmerge(uint64_t start, uint64_t end, uint64_t *pages)
{
	struct collect c = { .start = start, .end = end };
	int err, result = 0;

	do {
		err = collect_store(&c);
		if (err < 0)
			return -EAGAIN;
		for (unsigned i = 0; i < c.n; i++) {
			const struct store_vma *v = &c.vma[i];

			err = v->prot & PROT_WRITE ? copy_pages(v, pages)
						   : proc_mem_home(v->start, v->end, v->prot, pages);
			if (err < 0)
				result = err;
		}
		c.start = c.resume;
	} while (c.resume);
	forget_files(start, end);
	return result;
}

int proc_mem_files_home(uint64_t start, uint64_t end)
{
	struct collect c = { .start = start, .end = end };
	int err;

	do {
		err = collect_store(&c);
		for (unsigned i = 0; err == 0 && i < c.n; i++) {
			const struct store_vma *v = &c.vma[i];

			if (proc_origin_any(v->start, v->end))
				err = proc_mem_home(v->start, v->end, v->prot, NULL);
		}
		if (err < 0)
			return err;
		c.start = c.resume;
	} while (c.resume);
	return 0;
}

/* --- gaps ----------------------------------------------------------------- */

struct coverage {
	uint64_t cursor, end;
};

static int cover(const struct sys_vma *vma, void *arg)
{
	struct coverage *c = arg;

	if (vma->end <= c->cursor)
		return 0;
	if (vma->start > c->cursor || c->cursor >= c->end)
		return 1;
	c->cursor = vma->end;
	return 0;
}

bool proc_mem_has_gap(uint64_t start, uint64_t end)
{
	struct coverage c = { .cursor = start, .end = end };
	char buf[8192];

	return sys_maps_each(0, buf, sizeof(buf), cover, &c) >= 0 && c.cursor < end;
}
