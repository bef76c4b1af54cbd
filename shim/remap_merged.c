/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mremap for memory that may be merged.
 *
 * Merging cuts the program's one mapping into many, and mremap(2) refuses (EFAULT)
 * to grow or move more than one; and growing a mapping of the store would show the
 * program the store's next slots in place of zeros. So, where the kernel would
 * have to grow or move:
 *
 *  1. look: the old range must consist of private mappings without a gap, all of
 *     them anonymous or of the store. Otherwise it is the kernel's call;
 *  2. grow in place, if the space behind is free (and no move was asked for);
 *  3. else reserve the target, put the grown end there, and move mapping by
 *     mapping with MREMAP_FIXED, which copies nothing. If a step fails, what
 *     was moved is moved back.
 *
 * The grown end of an anonymous mapping is left to the kernel, which keeps all its
 * flags; behind a store mapping it is new memory with the protection and the odd
 * flags on record.
 *
 * Everything runs under the memory lock: nothing is frozen, nobody merges
 * meanwhile. Other threads of the program that use the range at that moment race
 * with mremap as they would without us.
 */
#include "shim/shim.h"

#include <string.h>
#include <sys/mman.h>

#include "proc/mem.h"
#include "sys/maps.h"
#include "sys/sys.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define MAPS_BUFFER_BYTES 4096

struct piece {
	uint64_t start;
	uint64_t end;
	int prot;
	bool anonymous;
};

struct pieces {
	struct shim_range range;
	struct piece *piece; /* NULL: only count */
	size_t room;
	size_t count;
	uint64_t covered; /* without a gap from range.start up to here */
	bool foreign;     /* something there is not ours to move */
	int first_prot;
	bool several;     /* the program made more than one mapping of it */
};

static int add_piece(const struct sys_vma *vma, void *arg)
{
	struct pieces *p = arg;
	struct piece piece = { .start = vma->start, .end = vma->end, .prot = vma->prot,
			       .anonymous = vma->anonymous };

	if (vma->end <= p->range.start)
		return 0;
	if (vma->start >= p->range.end)
		return 1;
	if (piece.start < p->range.start)
		piece.start = p->range.start;
	if (piece.end > p->range.end)
		piece.end = p->range.end;
	if (vma->shared || (!vma->anonymous && !sys_name_is_store(vma->name)))
		p->foreign = true;
	if (p->count > 0 && piece.prot != p->first_prot)
		p->several = true;
	if (p->count == 0)
		p->first_prot = piece.prot;
	if (piece.start == p->covered)
		p->covered = piece.end;
	if (p->piece && p->count < p->room)
		p->piece[p->count] = piece;
	p->count++;
	return 0;
}

static int walk(struct pieces *p)
{
	char buf[MAPS_BUFFER_BYTES];
	int ret;

	p->count = 0;
	p->covered = p->range.start;
	p->foreign = p->several = false;
	ret = sys_maps_each(0, buf, sizeof(buf), add_piece, p);
	return ret < 0 ? ret : 0;
}

/* The list of mappings, in memory of its own. */
static int look(struct pieces *p, const struct shim_range *range)
{
	intptr_t mem;
	int ret;

	*p = (struct pieces){ .range = *range };
	ret = walk(p);
	/* With a gap in the range the list itself might come to lie there. */
	if (ret < 0 || p->covered < range->end)
		return ret;
	p->room = p->count;
	mem = sys->mmap(NULL, p->room * sizeof(*p->piece), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem < 0)
		return (int)mem;
	p->piece = (struct piece *)mem;
	ret = walk(p);
	if (ret == 0 && p->count > p->room)
		ret = -EAGAIN;
	return ret;
}

static void look_end(struct pieces *p)
{
	if (p->piece)
		sys->munmap(p->piece, p->room * sizeof(*p->piece));
	p->piece = NULL;
}

/* New memory behind a store mapping, like that mapping's neighbours. */
static int new_end(uint64_t at, size_t bytes, int prot, uint32_t odd, int how)
{
	int noreserve = odd & PROC_ODD_NORESERVE ? MAP_NORESERVE : 0;
	intptr_t ret = sys->mmap((void *)at, bytes, prot,
				 MAP_PRIVATE | MAP_ANONYMOUS | noreserve | how, -1, 0);

	if (ret < 0 && ret >= -4095)
		return (int)ret;
	if ((uint64_t)ret != at) { /* a kernel without MAP_FIXED_NOREPLACE */
		sys->munmap((void *)ret, bytes);
		return -EEXIST;
	}
	proc_mem_reapply_odd(at, at + bytes, odd);
	return 0;
}

static int grow_in_place(const struct pieces *p, size_t by)
{
	const struct piece *last = &p->piece[p->count - 1];
	size_t bytes = last->end - last->start;
	intptr_t ret;

	if (last->anonymous) {
		ret = sys->mremap((void *)last->start, bytes, bytes + by, 0, NULL);
		return ret < 0 && ret >= -4095 ? (int)ret : 0;
	}
	return new_end(last->end, by, last->prot, proc_mem_odd(last->end - 1),
		       MAP_FIXED_NOREPLACE);
}

/* Mapping i to its place at the target; only the last one grows. */
static int move_piece(const struct pieces *p, size_t i, uint64_t target, size_t by, int flags)
{
	const struct piece *v = &p->piece[i];
	uint64_t at = target + (v->start - p->range.start);
	size_t bytes = v->end - v->start;
	size_t grown = i + 1 == p->count && v->anonymous ? bytes + by : bytes;
	intptr_t ret;

	ret = sys->mremap((void *)v->start, bytes, grown,
			  MREMAP_MAYMOVE | MREMAP_FIXED | (flags & MREMAP_DONTUNMAP), (void *)at);
	return ret < 0 && ret >= -4095 ? (int)ret : 0;
}

static void move_back(const struct pieces *p, size_t count, uint64_t target)
{
	while (count-- > 0) {
		const struct piece *v = &p->piece[count];
		uint64_t at = target + (v->start - p->range.start);
		size_t bytes = v->end - v->start;

		sys->mremap((void *)at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
			    (void *)v->start);
	}
}

static intptr_t move_all(const struct pieces *p, size_t new_bytes, int flags, void *to)
{
	size_t old_bytes = p->range.end - p->range.start;
	size_t by = new_bytes - old_bytes, i;
	const struct piece *last = &p->piece[p->count - 1];
	int fixed = flags & MREMAP_FIXED ? MAP_FIXED : 0;
	intptr_t target = sys->mmap(fixed ? to : NULL, new_bytes, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
	int ret = 0;

	if (target < 0 && target >= -4095)
		return target;
	if (by > 0 && !last->anonymous)
		ret = new_end((uint64_t)target + old_bytes, by, last->prot,
			      proc_mem_odd(last->end - 1), MAP_FIXED);
	for (i = 0; ret == 0 && i < p->count; i++)
		ret = move_piece(p, i, (uint64_t)target, by, flags);
	if (ret == 0)
		return target;
	if (i > 0)
		move_back(p, i - 1, (uint64_t)target);
	sys->munmap((void *)target, new_bytes);
	return ret;
}

/* Arguments that the kernel refuses, or carries out without growing or moving. */
static bool kernels_own(const struct shim_range *from, size_t new_bytes, int flags, void *to)
{
	size_t old_bytes = from->end - from->start;
	uint64_t target = (uintptr_t)to;

	if (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP))
		return true;
	if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) == 0)
		return new_bytes <= old_bytes;
	if (!(flags & MREMAP_MAYMOVE) || new_bytes == 0)
		return true;
	if ((flags & MREMAP_DONTUNMAP) && new_bytes != old_bytes)
		return true;
	if (!(flags & MREMAP_FIXED))
		return false;
	return !shim_page_aligned(to) || target + new_bytes < target ||
	       (target < from->end && from->start < target + new_bytes);
}

static intptr_t grow_or_move(const struct pieces *p, size_t new_bytes, int flags, void *to)
{
	size_t old_bytes = p->range.end - p->range.start;

	if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))) {
		if (grow_in_place(p, new_bytes - old_bytes) == 0)
			return (intptr_t)p->range.start;
		if (!(flags & MREMAP_MAYMOVE))
			return -ENOMEM;
	}
	return move_all(p, new_bytes, flags, to);
}

intptr_t shim_remap_merged(const struct shim_range *from, size_t new_bytes, int flags, void *to)
{
	size_t mask = sys_page_bytes() - 1;
	struct shim_range range = *from;
	struct pieces p = { .piece = NULL };
	intptr_t ret;

	if (new_bytes > SIZE_MAX - mask)
		return -EINVAL;
	new_bytes = (new_bytes + mask) & ~mask;
	if (!kernels_own(from, new_bytes, flags, to)) {
		if (new_bytes < range.end - range.start)
			range.end = range.start + new_bytes;
		ret = look(&p, &range);
		if (ret < 0)
			ret = -ENOMEM; /* no descriptor, no /proc: what mremap can say */
		if (ret == 0 && p.covered < range.end) /* hence no list */
			ret = -EFAULT;
		/* Grown, it would have to be one: merging alone never changes protection. */
		if (ret == 0 && p.several && new_bytes > from->end - from->start)
			ret = -EFAULT;
		if (ret == 0 && !p.foreign && range.end < from->end)
			ret = sys->munmap((void *)range.end, from->end - range.end);
		if (ret < 0 || !p.foreign) {
			if (ret == 0)
				ret = grow_or_move(&p, new_bytes, flags, to);
			look_end(&p);
			return ret;
		}
		look_end(&p);
	}
	return sys->mremap((void *)from->start, from->end - from->start, new_bytes, flags, to);
}
