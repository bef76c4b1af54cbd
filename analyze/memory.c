/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Arrays that grow by mremap: nothing is copied, and what was never touched costs
 * nothing, so that the memory for millions of pages is what their records need.
 */
#include <errno.h>
#include <sys/mman.h>

#include "analyze/inner.h"
#include "sys/sys.h"

#define GROW_BYTES_MIN ((size_t)1 << 20)

int analyze_array_need(struct analyze_array *array, size_t bytes)
{
	size_t page = sys_page_bytes();
	size_t want;
	intptr_t at;

	if (bytes <= array->bytes)
		return 0;
	want = array->bytes + array->bytes / 2 + GROW_BYTES_MIN;
	if (want < bytes)
		want = bytes;
	want = (want + page - 1) / page * page;
	if (array->mem)
		at = sys->mremap(array->mem, array->bytes, want, MREMAP_MAYMOVE, NULL);
	else
		at = sys->mmap(NULL, want, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at < 0 && at > -4096)
		return (int)at;
	array->mem = (void *)at;
	array->bytes = want;
	/* a huge page for the last few records would be counted as memory that they need */
	sys->madvise(array->mem, array->bytes, MADV_NOHUGEPAGE);
	return 0;
}

void analyze_array_free(struct analyze_array *array)
{
	if (array->mem)
		sys->munmap(array->mem, array->bytes);
	*array = (struct analyze_array){ 0 };
}
