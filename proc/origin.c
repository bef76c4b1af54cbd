/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What was there before pages of a file were merged.
 *
 * A store mapping in the place of a file's says nothing about the file any more, but
 * discarding (MADV_DONTNEED) must show the file's bytes again, and unmerging should
 * give the file's mapping back (I5). Files are renamed and deleted, descriptors belong
 * to the program; so what is kept is a mapping: one for each mapping of which pages were
 * merged, of the same part of the same file, without access, somewhere else. A piece of
 * it is doubled with mremap(MREMAP_DONTUNMAP) when it is needed. A child has these
 * mappings as well.
 *
 * `origin` maps addresses to such anchors. It covers more than what is merged; it is
 * asked only about addresses where the kernel shows a store mapping. Where a range
 * cannot be split for want of memory it is forgotten, and discarding shows zeros.
 *
 * All of it under the memory lock.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define ANCHORS 64u
#define ANCHORS_FEW 2u
#define FAR_BYTES (1ull << 30)

struct anchor {
	uint64_t base; /* of the mapping; 0: not in use */
	uint64_t bytes;
	uint64_t start;  /* the address whose bytes base has */
	uint64_t offset; /* of base in the file */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
};
/* Small while that is enough: static memory is a private copy in every process. */
static struct anchor anchors_few[ANCHORS_FEW];
static struct anchor *anchors = anchors_few;
static uint32_t anchors_room = ANCHORS_FEW;

static struct core_rangeset origin = { .realloc = proc_mem_sets_realloc };

/* --- anchors -------------------------------------------------------------------- */

static bool in_use(uint32_t i)
{
	for (uint64_t at = 0;;) {
		const struct core_range *r = core_rangeset_find(&origin, at);

		if (!r)
			return false;
		if (r->attr == i)
			return true;
		at = r->end;
	}
}

static void drop_unused(void)
{
	for (uint32_t i = 0; i < anchors_room; i++) {
		if (!anchors[i].base || in_use(i))
			continue;
		sys->munmap((void *)anchors[i].base, anchors[i].bytes);
		anchors[i].base = 0;
	}
}

/* Is any of [start, end) a store mapping? Not to be told: yes. */
static bool any_merged(uint64_t start, uint64_t end, int maps_fd)
{
	while (start < end) {
		struct sys_vma vma;
		int err = sys_vma_query(maps_fd, start,
					SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA |
						SYS_PROCMAP_QUERY_FILE_BACKED_VMA,
					&vma);

		if (err == -ENOENT)
			return false;
		if (err < 0 || (vma.start < end && proc_vma_is_run(&vma)))
			return true;
		start = vma.end;
	}
	return false;
}

/*
 * Forget what is over: a program may unmap what the library merged without saying so,
 * and what was brought home needs no memory of what it was.
 */
void proc_origin_collect(int maps_fd)
{
	uint64_t at = 0;
	const struct core_range *r;

	while ((r = core_rangeset_find(&origin, at)) != NULL) {
		uint64_t start = r->start, end = r->end;

		if (!any_merged(start, end, maps_fd))
			core_rangeset_remove_or_forget(&origin, start, end);
		at = end;
	}
	drop_unused();
}

static bool same_file(const struct anchor *a, const struct sys_vma *v)
{
	return a->inode == v->inode && a->dev_major == v->dev_major &&
	       a->dev_minor == v->dev_minor && a->offset - a->start == v->offset - v->start;
}

/* The kernel's word on what was mapped there: a name may lead to another file by now. */
static int check_file(const struct sys_vma *v, uint64_t base, int maps_fd)
{
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = base };
	int err = sys->procmap_query(maps_fd, &q);

	if (err < 0)
		return err;
	return q.inode == v->inode && q.dev_major == v->dev_major && q.dev_minor == v->dev_minor
		       ? 0
		       : -ESTALE;
}

static int more_anchors(void)
{
	struct anchor *more;

	if (anchors_room == ANCHORS)
		return -ENOSPC;
	more = proc_arena_alloc_far(ANCHORS * sizeof(*more));
	if (!more)
		return -ENOMEM;
	memcpy(more, anchors_few, sizeof(anchors_few));
	anchors = more;
	anchors_room = ANCHORS;
	return 0;
}

int proc_origin_keep(const struct sys_vma *v, int fd, int maps_fd)
{
	uint64_t bytes = v->end - v->start;
	uint32_t i = 0;
	intptr_t p;
	int err;

	proc_origin_collect(maps_fd);
	while (i < anchors_room && anchors[i].base)
		i++;
	err = i < anchors_room ? 0 : more_anchors();
	if (err < 0)
		return err;
	/*
	 * Far from everything, if there is room: it needs no page tables, but would keep
	 * those of whatever comes and goes beside it.
	 */
	p = sys->mmap((void *)(v->start > 2 * FAR_BYTES ? v->start - FAR_BYTES : 0), bytes,
		      PROT_NONE, MAP_PRIVATE, fd, (off_t)v->offset);
	if (p < 0)
		return (int)p;
	err = check_file(v, (uint64_t)p, maps_fd);
	if (err == 0)
		err = core_rangeset_add(&origin, v->start, v->end, i);
	if (err < 0) {
		sys->munmap((void *)p, bytes);
		return err;
	}
	anchors[i] = (struct anchor){
		.base = (uint64_t)p,
		.bytes = bytes,
		.start = v->start,
		.offset = v->offset,
		.inode = v->inode,
		.dev_major = v->dev_major,
		.dev_minor = v->dev_minor,
	};
	drop_unused();
	return 0;
}

/* --- questions -------------------------------------------------------------------- */

bool proc_origin_kept(const struct sys_vma *v, uint64_t start, uint64_t end)
{
	const struct core_range *r = core_rangeset_find(&origin, start);

	return r && r->start <= start && r->end >= end && same_file(&anchors[r->attr], v);
}

static bool lost;

void proc_origin_torn(void)
{
	for (uint32_t i = 0; i < anchors_room; i++)
		lost = lost || anchors[i].base;
	anchors = anchors_few;
	anchors_room = ANCHORS_FEW;
	memset(anchors_few, 0, sizeof(anchors_few));
	core_rangeset_init(&origin, proc_mem_sets_realloc);
}

bool proc_origin_lost(void)
{
	return lost;
}

bool proc_origin_any(uint64_t start, uint64_t end)
{
	return core_rangeset_intersects(&origin, start, end);
}

unsigned proc_origin_count(void)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < anchors_room; i++)
		n += anchors[i].base != 0;
	return n;
}

uint64_t proc_origin_span(uint64_t start, uint64_t end, bool *known)
{
	const struct core_range *r = core_rangeset_find(&origin, start);

	*known = r && r->start <= start;
	if (!r || (!*known && r->start >= end))
		return end;
	if (!*known)
		return r->start;
	return r->end < end ? r->end : end;
}

void proc_origin_forget(uint64_t start, uint64_t end)
{
	if (!core_rangeset_intersects(&origin, start, end))
		return;
	core_rangeset_remove_or_forget(&origin, start, end);
	drop_unused();
}

intptr_t proc_origin_copy(uint64_t start, uint64_t bytes)
{
	const struct core_range *r = core_rangeset_find(&origin, start);
	const struct anchor *a;

	if (!r || r->start > start || r->end < start + bytes)
		return -ENOENT;
	a = &anchors[r->attr];
	return sys->mremap((void *)(a->base + (start - a->start)), bytes, bytes,
			   MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
}
