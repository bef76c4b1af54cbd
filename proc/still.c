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
 *   - in a writable one only on the word of the caller, or when quiet.c finds that the
 *     calling thread is the only one and nothing does I/O behind its back
 *
 * What replaces the page is always a slot, zeros as well: under a file's mapping a hole
 * would show the file. What the file had there is remembered first (origin.c), so that
 * discarding shows it again (I5).
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/freeze_impl.h"

#define HOLD_PAGES (PROC_RING_PAGES / 2)

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

/* A file that cannot be opened again could not be shown again after a discard. */
static int keep_origin(struct freeze *f)
{
	const struct sys_vma *v = f->c->vma;
	uint64_t start = (uintptr_t)page_at(f, f->lo), end = (uintptr_t)page_at(f, f->hi);
	struct sys_vma wide = *v;
	int fd, err;

	if (v->anonymous || proc_vma_is_run(v) || proc_origin_kept(v, start, end))
		return 0;
	fd = open_by_link(v);
	if (fd < 0)
		fd = open_by_name(f->e, v);
	if (fd < 0)
		return fd;
	widen(f->e, &wide);
	err = proc_origin_keep(&wide, fd, f->e->maps_fd);
	sys->close(fd);
	return err;
}

/* --- runs --------------------------------------------------------------------- */

static enum samepage_reason hold_reason(int err)
{
	return err == -EFAULT	? SAMEPAGE_REASON_VANISHED
	       : err == -ENOMEM ? SAMEPAGE_REASON_NO_MEMORY
				: SAMEPAGE_REASON_FAILED;
}

/* The run's slots are mapped at `map`; what of that does not get used is unmapped. */
static void replace_run(struct freeze *f, uint32_t first, uint32_t pages, const uint8_t *map)
{
	uint32_t i = 0;
	bool any = false;

	while (i < pages) {
		unsigned rewritten = 0;
		int n = proc_hold_replace(&f->e->hold, f->e->link->ring, map + bytes_of(f, i),
					  page_at(f, first + i), pages - i, &rewritten);

		if (n <= 0) {
			proc_plan_skip(&f->plan[first + i],
				       n == 0 ? SAMEPAGE_REASON_CHANGED : hold_reason(n));
			sys->munmap((void *)(uintptr_t)(map + bytes_of(f, i)), f->e->page_bytes);
			i++;
			continue;
		}
		/* Which ones does not matter: merged, and written in that moment. */
		for (unsigned k = 0; k < rewritten && k < (unsigned)n; k++)
			proc_plan_skip(&f->plan[first + i + k], SAMEPAGE_REASON_CHANGED);
		i += (uint32_t)n;
		any = true;
	}
	f->res->runs += any;
}

static void replace_runs(struct freeze *f)
{
	struct proc_work *w = f->e->work;
	size_t n = proc_prepare_runs(f);

	for (size_t r = 0; r < n; r++) {
		uint32_t first = f->lo + w->runs[r].first;
		uint8_t *map = w->premap[first];

		if (w->runs[r].kind != CORE_PLAN_SLOT)
			continue;
		if (!map || w->premap_pages[first] != w->runs[r].pages) {
			for (uint32_t k = 0; k < w->runs[r].pages; k++)
				proc_plan_skip(&f->plan[first + k], SAMEPAGE_REASON_NO_MEMORY);
			continue;
		}
		w->premap[first] = NULL;
		replace_run(f, first, w->runs[r].pages, map);
	}
}

void proc_still_commit(struct proc_engine *e, const struct proc_chunk *c,
		       struct samepage_result *res)
{
	struct freeze f = { .e = e, .c = c, .res = res, .plan = e->work->plan,
			    .staged = e->work->staged };

	proc_prepare_slots(&f);
	if (!proc_prepare_narrow(&f))
		return;
	proc_prepare_budget(&f);
	if (proc_hold_open(&e->hold, HOLD_PAGES) < 0) {
		proc_prepare_skip_all(&f, SAMEPAGE_REASON_FAILED);
		return;
	}
	proc_mem_lock_engine();
	if (!proc_prepare_still_ours(&f))
		goto out;
	if (keep_origin(&f) < 0) {
		proc_prepare_skip_all(&f, SAMEPAGE_REASON_VMA_KIND);
		goto out;
	}
	memset(e->work->premap, 0, sizeof(e->work->premap));
	proc_prepare_bytes(&f);
	(void)proc_mem_note_merged((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi),
				   c->odd);
	if (c->vma->anonymous)
		proc_origin_forget((uintptr_t)page_at(&f, f.lo), (uintptr_t)page_at(&f, f.hi));
	replace_runs(&f);
	proc_prepare_drop(&f);
out:
	proc_mem_unlock_engine();
}
