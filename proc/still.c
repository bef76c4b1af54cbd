/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Commit without a freeze: where nobody can write.
 *
 * UFFDIO_MOVE takes anonymous, writable mappings only. Pages of a private file mapping
 * that were copied on write (patched text, relocated data), and pages that were written
 * after their merge, cannot be frozen. They are merged
 *
 *   - in a mapping that is not writable: patched text and the like. Whoever wrote the
 *     page has taken the permission away again; a device that still writes into it was
 *     given the page while it was writable and never let go, which for text nobody does.
 *     Memory that is neither executable nor of a file may well be a buffer, and is not
 *     merged this way
 *   - in a writable one only on the caller's word, for no lock of the kernel's keeps
 *     io_uring, devices and process_vm_writev(2) from writing
 *
 * Text with a breakpoint in it is left alone: the kernel's uprobes find their breakpoints
 * by the file that is mapped there, and one that they do not find kills the program.
 *
 * What replaces the page is always a slot, zeros as well: under a file's mapping a hole
 * would show the file. What the file had there is remembered first (origin.c), so that
 * discarding shows it again (I5).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/freeze_impl.h"

#define HOLD_PAGES (PROC_TURN_PAGES / 2)

/* --- the file behind the mapping -------------------------------------------- */

static size_t put_hex(char *at, uint64_t value)
{
	char digits[16];
	size_t n = 0, length;

	do
		digits[n++] = "0123456789abcdef"[value & 15];
	while ((value >>= 4) != 0);
	length = n;
	while (n > 0)
		*at++ = digits[--n];
	return length;
}

/* By the kernel's own link (a process has it, its threads have not), which wants privilege but works for files that are gone. */
static int open_by_link(const struct sys_vma *v)
{
	static const char prefix[] = "/proc/self/map_files/";
	char path[sizeof(prefix) + 34];
	size_t at = sizeof(prefix) - 1;

	memcpy(path, prefix, at);
	at += put_hex(path + at, v->start);
	path[at++] = '-';
	at += put_hex(path + at, v->end);
	path[at] = '\0';
	return sys->open(path, O_RDONLY | O_CLOEXEC, 0);
}

/* By its name: proc_origin_keep() checks that it is the same file. */
static int open_by_name(struct proc_engine *e, const struct sys_vma *v)
{
	struct sys_procmap_query q = {
		.size = sizeof(q),
		.query_addr = v->start,
		.vma_name_addr = (uintptr_t)e->work->count_buf,
		.vma_name_size = sizeof(e->work->count_buf),
	};
	int err = sys->procmap_query(e->maps_fd, &q);

	if (err < 0)
		return err;
	if (e->work->count_buf[0] != '/')
		return -ENOENT;
	return sys->open(e->work->count_buf, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
}

/* Does q continue v: the same file, the same distance of address and offset? */
static bool continues(const struct sys_vma *v, const struct sys_procmap_query *q)
{
	return !(q->vma_flags & SYS_PROCMAP_QUERY_VMA_SHARED) && q->inode == v->inode &&
	       q->dev_major == v->dev_major && q->dev_minor == v->dev_minor &&
	       q->vma_offset - q->vma_start == v->offset - v->start;
}

/*
 * Patching cuts one mapping of a file into many, which are merged one after another:
 * what is remembered for the first is good for its neighbours too.
 */
#define NEIGHBOURS 64

static void widen(struct proc_engine *e, struct sys_vma *v)
{
	for (int n = 0; n < 2 * NEIGHBOURS; n++) {
		bool up = n < NEIGHBOURS;
		struct sys_procmap_query q = { .size = sizeof(q),
					       .query_addr = up ? v->end : v->start - 1 };

		if (sys->procmap_query(e->maps_fd, &q) < 0 || !continues(v, &q)) {
			if (!up)
				return;
			n = NEIGHBOURS - 1;
			continue;
		}
		if (up) {
			v->end = q.vma_end;
		} else {
			v->offset -= v->start - q.vma_start;
			v->start = q.vma_start;
		}
	}
}

/* Opening a device may do something. */
static bool is_device(const char *name)
{
	return strncmp(name, "/dev/", 5) == 0 && strncmp(name, "/dev/shm/", 9) != 0;
}

/*
 * A file that cannot be opened again could not be shown again after a discard. Opened
 * without the lock, for that may take long. An fd, NO_FILE (nothing to open), or -errno.
 */
#define NO_FILE INT_MIN

static int open_origin(struct freeze *f)
{
	const struct sys_vma *v = f->c->vma;
	uint64_t start = (uintptr_t)page_at(f, f->lo), end = (uintptr_t)page_at(f, f->hi);
	bool kept;
	int fd;

	if (v->anonymous || proc_vma_is_run(v))
		return NO_FILE;
	proc_mem_lock_engine();
	kept = proc_origin_kept(v, start, end);
	proc_mem_unlock_engine();
	if (kept)
		return NO_FILE;
	if (is_device(v->name))
		return -ENODEV;
	fd = open_by_link(v);
	return fd >= 0 ? fd : open_by_name(f->e, v);
}

/* Lock held. */
static int keep_origin(struct freeze *f, int fd)
{
	struct sys_vma wide = *f->c->vma;

	if (fd == NO_FILE)
		return 0;
	widen(f->e, &wide);
	return proc_origin_keep(&wide, fd, f->e->maps_fd);
}

/* --- breakpoints ---------------------------------------------------------------- */

#if defined(__aarch64__)
#define TRAP_BYTES 4
static const uint8_t trap_mask[TRAP_BYTES] = { 0x1f, 0x00, 0xe0, 0xff }; /* BRK #any */
static const uint8_t trap[TRAP_BYTES] = { 0x00, 0x00, 0x20, 0xd4 };
#else
#define TRAP_BYTES 1
static const uint8_t trap_mask[TRAP_BYTES] = { 0xff };
static const uint8_t trap[TRAP_BYTES] = { 0xcc }; /* int3 */
#endif

static bool is_trap(const uint8_t *at)
{
	for (unsigned i = 0; i < TRAP_BYTES; i++)
		if ((at[i] & trap_mask[i]) != trap[i])
			return false;
	return true;
}

/* Bytes of the file around it that make one differing byte a breakpoint and not a patch. */
#define AROUND (4 * TRAP_BYTES)

static bool same(const uint8_t *page, const uint8_t *file, size_t from, size_t to)
{
	return from >= to || memcmp(page + from, file + from, to - from) == 0;
}

/* Is there a trap where the file has none, by itself among bytes of the file? */
static bool has_trap(const uint8_t *page, const uint8_t *file, size_t bytes)
{
	for (size_t line = 0; line < bytes; line += 64) {
		if (same(page, file, line, line + 64))
			continue;
		for (size_t i = line; i < line + 64; i += TRAP_BYTES) {
			size_t end = i + TRAP_BYTES, far = end + AROUND < bytes ? end + AROUND : bytes;

			if (!same(page, file, i, end) && is_trap(page + i) &&
			    same(page, file, i > AROUND ? i - AROUND : 0, i) &&
			    same(page, file, end, far))
				return true;
		}
	}
	return false;
}

/* One batch of pages that were a file's: `file` maps them as the file has them. */
static void skip_traps(struct freeze *f, uint32_t i, uint32_t n, const uint8_t *file)
{
	uint8_t *room = f->e->link->ring;
	/* Not by reading: the file may be shorter by now. */
	struct iovec to = { room, bytes_of(f, n) };
	struct iovec from = { (void *)(uintptr_t)file, to.iov_len };
	ssize_t got = sys->read_self(&to, 1, &from, 1);

	for (uint32_t k = 0; k < n; k++) {
		if (f->plan[i + k].kind != CORE_PLAN_SLOT)
			continue;
		if (got < (ssize_t)bytes_of(f, k + 1))
			proc_plan_skip(&f->plan[i + k], SAMEPAGE_REASON_VANISHED);
		else if (has_trap(f->e->work->bytes[i + k], room + bytes_of(f, k),
				  f->e->page_bytes))
			proc_plan_skip(&f->plan[i + k], SAMEPAGE_REASON_BREAKPOINT);
	}
}

/*
 * Pages of one file's text, compared with the file through a mapping made for the moment;
 * they are what the slots have, or they will not be merged. The kernel puts uprobes'
 * breakpoints into our mappings of the file as well, so what the mapping brought along of
 * its own is discarded first.
 */
static void skip_in_span(struct freeze *f, uint64_t start, uint64_t end)
{
	uint32_t first = (uint32_t)((start - f->c->base) >> f->e->page_shift);
	uint32_t pages = (uint32_t)((end - start) >> f->e->page_shift);
	intptr_t file = proc_origin_copy(start, end - start);

	if (file >= 0 && sys->madvise((void *)file, end - start, MADV_DONTNEED) == 0 &&
	    sys->mprotect((void *)file, end - start, PROT_READ) == 0) {
		for (uint32_t k = 0, n; k < pages; k += n) {
			n = pages - k < PROC_READ_PAGES ? pages - k : PROC_READ_PAGES;
			skip_traps(f, first + k, n, (const uint8_t *)file + bytes_of(f, k));
		}
	} else {
		for (uint32_t k = 0; k < pages; k++)
			if (f->plan[first + k].kind == CORE_PLAN_SLOT)
				proc_plan_skip(&f->plan[first + k], SAMEPAGE_REASON_NO_MEMORY);
	}
	if (file >= 0)
		sys->munmap((void *)file, end - start);
}

/* Lock held. */
static void skip_breakpoints(struct freeze *f)
{
	uint64_t at = (uintptr_t)page_at(f, f->lo), end = (uintptr_t)page_at(f, f->hi);

	while ((f->c->prot & PROT_EXEC) && at < end) {
		bool known;
		uint64_t until = proc_origin_span(at, end, &known);

		if (known)
			skip_in_span(f, at, until);
		at = until;
	}
}

/* --- runs --------------------------------------------------------------------- */

static enum samepage_reason hold_reason(int err)
{
	return err == -EFAULT	? SAMEPAGE_REASON_VANISHED
	       : err == -ENOMEM ? SAMEPAGE_REASON_NO_MEMORY
				: SAMEPAGE_REASON_FAILED;
}

/* n pages from `first` on; their slots are mapped at `map`. How many are done with. */
static uint32_t replace_some(struct freeze *f, uint32_t first, uint32_t n, const uint8_t *map)
{
	unsigned rewritten = 0;
	int done = proc_hold_replace(&f->e->hold, f->e->link->ring, map, page_at(f, first), n,
				     &rewritten);

	if (done <= 0) {
		proc_plan_skip(&f->plan[first],
			       done == 0 ? SAMEPAGE_REASON_CHANGED : hold_reason(done));
		sys->munmap((void *)(uintptr_t)map, f->e->page_bytes);
		return 1;
	}
	/* Which ones does not matter: merged, and written in that moment. */
	for (unsigned k = 0; k < rewritten && k < (unsigned)done; k++)
		proc_plan_skip(&f->plan[first + k], SAMEPAGE_REASON_CHANGED);
	f->res->runs++;
	return (uint32_t)done;
}

/* A run as it was mapped beforehand; what has been given up since is unmapped. */
static void replace_run(struct freeze *f, uint32_t first, uint32_t pages, const uint8_t *map)
{
	uint32_t i = 0;

	while (i < pages) {
		uint32_t n = 0;

		while (i + n < pages && f->plan[first + i + n].kind == CORE_PLAN_SLOT)
			n++;
		if (n) {
			i += replace_some(f, first + i, n, map + bytes_of(f, i));
		} else {
			sys->munmap((void *)(uintptr_t)(map + bytes_of(f, i)), f->e->page_bytes);
			i++;
		}
	}
}

static void replace_runs(struct freeze *f)
{
	struct proc_work *w = f->e->work;

	for (uint32_t i = f->lo; i < f->hi; i++) {
		const uint8_t *map = w->premap[i];

		w->premap[i] = NULL;
		if (map)
			replace_run(f, i, w->premap_pages[i], map);
	}
}

void proc_still_commit(struct proc_engine *e, const struct proc_chunk *c,
		       struct samepage_result *res)
{
	struct freeze f = { .e = e, .c = c, .res = res, .plan = e->work->plan,
			    .staged = e->work->staged };
	int fd;

	proc_prepare_slots(&f);
	if (!proc_prepare_narrow(&f))
		return;
	proc_prepare_budget(&f);
	if (proc_hold_open(&e->hold, HOLD_PAGES) < 0) {
		proc_prepare_skip_all(&f, SAMEPAGE_REASON_FAILED);
		return;
	}
	fd = open_origin(&f);
	proc_mem_lock_engine();
	if (!proc_prepare_still_ours(&f))
		goto out;
	if ((fd < 0 && fd != NO_FILE) || keep_origin(&f, fd) < 0) {
		proc_prepare_skip_all(&f, SAMEPAGE_REASON_VMA_KIND);
		goto out;
	}
	if (c->vma->anonymous)
		proc_origin_forget((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi));
	memset(e->work->premap, 0, sizeof(e->work->premap));
	proc_prepare_bytes(&f);
	skip_breakpoints(&f);
	(void)proc_mem_note_merged((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi),
				   c->odd);
	replace_runs(&f);
	proc_prepare_drop(&f);
out:
	proc_mem_unlock_engine();
	if (fd >= 0)
		sys->close(fd);
}
