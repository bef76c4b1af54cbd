/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory of the library's own: whole mappings, straight from the kernel (never
 * malloc: the engine's working memory must not share a page with the program's
 * heap, which gets frozen), and excluded from merging.
 */
#include <sys/mman.h>

#include "proc/internal.h"

void *proc_arena_alloc(size_t bytes)
{
	intptr_t p = sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			       -1, 0);

	if (p < 0)
		return NULL;
	if (proc_mem_exclude((void *)p, bytes) < 0) {
		sys->munmap((void *)p, bytes);
		return NULL;
	}
	return (void *)p;
}

void proc_arena_free(void *ptr, size_t bytes)
{
	if (!ptr)
		return;
	proc_mem_exclude_end(ptr, bytes);
	sys->munmap(ptr, bytes);
}
