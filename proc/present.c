/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which pages are there: present or swapped, and the process's own, so neither a file's
 * nor the shared zero page.
 *
 * PAGEMAP_SCAN says so at once, and passes over what has no page tables. Kernels before
 * 6.7 do not have it: there the entries of pagemap are read one by one. They do not tell
 * the zero page from a page that is shared since a fork.
 */
#include <errno.h>

#include "proc/internal.h"

#define ENTRY_PRESENT (UINT64_C(1) << 63)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_FILE (UINT64_C(1) << 61)

static uint64_t categories_of(uint64_t entry)
{
	if (entry & ENTRY_FILE)
		return 0;
	return entry & ENTRY_PRESENT ? SYS_PAGE_IS_PRESENT
	       : entry & ENTRY_SWAPPED ? SYS_PAGE_IS_SWAPPED : 0;
}

static int by_entries(struct proc_engine *e, uint64_t start, uint64_t end, uint64_t *walk_end)
{
	struct sys_page_region *r = e->work->regions;
	uint64_t *entry = e->work->entries;
	uint64_t pages = (end - start) >> e->page_shift;
	ssize_t got;
	int n = 0;

	if (pages > PROC_CHUNK_PAGES)
		pages = PROC_CHUNK_PAGES;
	got = sys->pread(e->pagemap_fd, entry, pages * sizeof(*entry),
			 (off_t)((start >> e->page_shift) * sizeof(*entry)));
	if (got < 0)
		return (int)got;
	pages = (uint64_t)got / sizeof(*entry);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t at = start + (i << e->page_shift), what = categories_of(entry[i]);

		if (!what)
			continue;
		if (n > 0 && r[n - 1].end == at && r[n - 1].categories == what)
			r[n - 1].end = at + e->page_bytes;
		else
			r[n++] = (struct sys_page_region){ at, at + e->page_bytes, what };
	}
	*walk_end = start + (pages << e->page_shift);
	return n;
}

int proc_present(struct proc_engine *e, uint64_t start, uint64_t end, uint64_t *walk_end)
{
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)e->work->regions,
		.vec_len = PROC_CHUNK_PAGES,
		.category_inverted = SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_FILE,
		.category_mask = SYS_PAGE_IS_PFNZERO | SYS_PAGE_IS_FILE,
		.category_anyof_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
		.return_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
	};
	int n = e->no_pagemap_scan ? -ENOTTY : sys->pagemap_scan(e->pagemap_fd, &arg);

	*walk_end = n < 0 ? start : arg.walk_end;
	if (n != -ENOTTY)
		return n;
	e->no_pagemap_scan = true;
	return by_entries(e, start, end, walk_end);
}
