/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: PAGEMAP_SCAN tells the layouts apart that the scanner meets: a hole,
 * a private page, the shared zero page, a store page, and a store page that was
 * copied on write, whose FILE bit is gone; and asking populates nothing.
 *
 * Leans on it: look and plan (proc/), zero pages "must not be looked at again".
 * Kernel: 6.7.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define ALL \
	(SYS_PAGE_IS_FILE | SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED | SYS_PAGE_IS_PFNZERO | \
	 SYS_PAGE_IS_HUGE)

static int pagemap;
static size_t pg;

static long scan(const void *p, size_t bytes, struct sys_page_region *vec, size_t len,
		 uint64_t mask, uint64_t inverted)
{
	struct sys_pm_scan_arg a = {
		.size = sizeof(a), .start = (uintptr_t)p, .end = (uintptr_t)p + bytes,
		.vec = (uintptr_t)vec, .vec_len = len, .category_mask = mask,
		.category_inverted = inverted, .return_mask = ALL,
	};

	return ioctl(pagemap, SYS_PAGEMAP_SCAN, &a);
}

/* The categories of one page; 0 where it has none. */
static uint64_t cat(const void *p)
{
	struct sys_page_region r = { 0 };
	long n = scan(p, pg, &r, 1, 0, 0);

	MUST(n >= 0);
	return n ? r.categories : 0;
}

int main(void)
{
	unsigned char *anon, *file, *end, *big, *huge;
	struct sys_page_region r[8] = { 0 };
	const size_t huge_bytes = 2UL << 20;
	volatile unsigned char sum;
	int fd;
	long n;

	assume_begin(60);
	pg = page_bytes();
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	MUST(pagemap >= 0);
	anon = anon_pages(4, RW);
	if (scan(anon, pg, r, 8, 0, 0) < 0 && (errno == ENOTTY || errno == EINVAL))
		SKIP("no PAGEMAP_SCAN: %s", strerror(errno));
	fd = memfd_pages(6, 3);
	file = mmap(NULL, 6 * pg, RW, MAP_PRIVATE, fd, 0);
	MUST(file != MAP_FAILED);

	CHECK(cat(anon) == 0, "fresh hole: none (%#lx)", (long)cat(anon));
	CHECK(cat(anon) == 0 && !page_present(anon), "and asking does not populate it");
	anon[pg] = 1;
	CHECK(cat(anon + pg) == SYS_PAGE_IS_PRESENT, "touched: PRESENT (%#lx)", (long)cat(anon + pg));
	sum = anon[2 * pg];
	CHECK(cat(anon + 2 * pg) == (SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_PFNZERO),
	      "only read: PRESENT and PFNZERO (%#lx)", (long)cat(anon + 2 * pg));
	anon[2 * pg] = sum;
	CHECK(cat(anon + 2 * pg) == SYS_PAGE_IS_PRESENT, "zeros written: PRESENT (%#lx)",
	      (long)cat(anon + 2 * pg));

	NOTE("private memfd page, not read yet: %#lx", (long)cat(file));
	CHECK(!(cat(file) & SYS_PAGE_IS_PRESENT), "private memfd page, not read: not PRESENT");
	MUST(!madvise(file, 6 * pg, MADV_POPULATE_READ));
	CHECK(cat(file) == (SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_FILE),
	      "private memfd page, read: PRESENT and FILE (%#lx)", (long)cat(file));
	file[pg] ^= 1;
	CHECK(cat(file + pg) == SYS_PAGE_IS_PRESENT,
	      "private memfd page, copied on write: PRESENT, FILE is gone (%#lx)",
	      (long)cat(file + pg));
	MUST(!mprotect(file, 6 * pg, PROT_NONE));
	NOTE("PROT_NONE: shared %#lx, copied %#lx", (long)cat(file), (long)cat(file + pg));
	MUST(!mprotect(file, 6 * pg, RW));

	/* One call over many pages, wanted: PRESENT and not FILE. */
	file[4 * pg] ^= 1;
	file[5 * pg] ^= 1;
	n = scan(file, 6 * pg, r, 8, SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_FILE, SYS_PAGE_IS_FILE);
	CHECK(n == 2 && r[0].start == (uintptr_t)(file + pg) &&
		      r[0].end == (uintptr_t)(file + 2 * pg) &&
		      r[1].start == (uintptr_t)(file + 4 * pg) &&
		      r[1].end == (uintptr_t)(file + 6 * pg),
	      "\"PRESENT and not FILE\" lists the copied pages, as two regions (%ld)", n);
	end = mmap(file, pg, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	MUST(end != MAP_FAILED && !munmap(file, pg));
	n = scan(file, 6 * pg, r, 8, SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_FILE, SYS_PAGE_IS_FILE);
	CHECK(n == 2, "a gap in the range is no error (%ld)", n);

	big = anon_pages(2 * huge_bytes / pg, RW);
	huge = (unsigned char *)(((uintptr_t)big + huge_bytes - 1) & -huge_bytes);
	if (!madvise(big, 2 * huge_bytes, MADV_HUGEPAGE)) {
		*huge = 1;
		if (cat(huge) & SYS_PAGE_IS_HUGE)
			CHECK(cat(huge + 3 * pg) == (SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_HUGE),
			      "huge page: PRESENT and HUGE on every page of it");
		else
			NOTE("no huge page to be had");
	}
	if (!madvise(anon + pg, pg, MADV_PAGEOUT))
		NOTE("after MADV_PAGEOUT: %#lx (SWAPPED is %#x, needs swap)",
		     (long)cat(anon + pg), SYS_PAGE_IS_SWAPPED);
	return assume_end();
}
