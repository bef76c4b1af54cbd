/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory of the library's own: whole mappings, straight from the kernel (never
 * malloc: the engine's working memory must not share a page with the program's
 * heap, which gets frozen), and excluded from merging.
 *
 * What every process with an engine needs for good is a few hundred bytes, and stands
 * in static memory (excluded as a whole), on a page that is private anyway: a mapping
 * would cost each process a page, a mapping, and now and then a page table.
 */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

static const char small_place; /* somewhere in the library */

/*
 * What the engine maps at moments of its own choice must not come where the program maps.
 * A program may unmap a range and map it again with MAP_FIXED a moment later: if a mapping of
 * ours had come to lie there, it would be the program's, and we would compare with its bytes
 * and unmap its pages. And replicas that have one address layout would come to differ, and
 * their pointers with them. So it goes far below, one after the other, around and around in a
 * stretch in which there is hardly anything; where there is, the kernel finds another place.
 */
#define FAR_FROM (6ull << 30) /* below the library; the link's mappings are above */
#define FAR_BYTES (2ull << 30)
static _Atomic uint32_t far_pages;

void *proc_far(size_t bytes)
{
	size_t page = sys_page_bytes();
	uint32_t pages = (uint32_t)((bytes + page - 1) / page) + 1, at;
	uintptr_t base = (uintptr_t)&small_place & ~(uintptr_t)(page - 1);

	if (base < 2 * (FAR_FROM + FAR_BYTES) || bytes > FAR_BYTES / 4)
		return NULL;
	at = atomic_fetch_add(&far_pages, pages) % (uint32_t)(FAR_BYTES / page);
	return (void *)(base - FAR_FROM - FAR_BYTES / 4 - (uintptr_t)at * page - bytes / page * page);
}

static void *alloc_at(void *hint, size_t bytes)
{
	intptr_t p = sys->mmap(hint, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			       -1, 0);

	if (p < 0)
		return NULL;
	if (proc_mem_exclude((void *)p, bytes) < 0) {
		sys->munmap((void *)p, bytes);
		return NULL;
	}
	return (void *)p;
}

void *proc_arena_alloc(size_t bytes)
{
	return alloc_at(NULL, bytes);
}

void *proc_arena_alloc_far(size_t bytes)
{
	return alloc_at(proc_far(bytes), bytes);
}

void proc_arena_free(void *ptr, size_t bytes)
{
	if (!ptr)
		return;
	proc_mem_exclude_end(ptr, bytes);
	sys->munmap(ptr, bytes);
}

/* One engine and its link; whoever opens more handles gets mappings for them. */
#define SMALL_COUNT 2u
static struct small {
	_Alignas(16) uint8_t bytes[sizeof(struct proc_engine)];
} small_engine;
static struct small_link {
	_Alignas(16) uint8_t bytes[PROC_LINK_BYTES];
} small_link;
static atomic_flag small_taken[SMALL_COUNT] = { ATOMIC_FLAG_INIT, ATOMIC_FLAG_INIT };

static void *small_at(unsigned i, size_t *room)
{
	*room = i ? sizeof(small_engine) : sizeof(small_link);
	return i ? (void *)&small_engine : (void *)&small_link;
}

void *proc_arena_alloc_small(size_t bytes)
{
	for (unsigned i = 0; i < SMALL_COUNT; i++) {
		size_t room;
		void *p = small_at(i, &room);

		if (bytes > room || atomic_flag_test_and_set(&small_taken[i]))
			continue;
		memset(p, 0, bytes);
		return p;
	}
	return proc_arena_alloc(bytes);
}

void proc_arena_free_small(void *ptr, size_t bytes)
{
	for (unsigned i = 0; i < SMALL_COUNT; i++) {
		size_t room;

		if (ptr == small_at(i, &room)) {
			atomic_flag_clear(&small_taken[i]);
			return;
		}
	}
	proc_arena_free(ptr, bytes);
}
