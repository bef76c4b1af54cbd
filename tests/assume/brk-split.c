/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: brk shrinks and grows across a heap whose middle is a private memfd
 * mapping by now; what is grown again reads zero, what was never released keeps
 * its bytes.
 *
 * Leans on it: merging the main heap (design.md, "Whose memory"), I5.
 * No malloc in here, for malloc moves the break.
 * Kernel: any; the memfd makes it a matter of brk over several VMAs.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 32

static uintptr_t brk_to(uintptr_t to)
{
	return (uintptr_t)syscall(SYS_brk, to);
}

int main(void)
{
	uintptr_t old, base, top;
	unsigned char *heap, core;
	int fd, ok;
	size_t pg;

	assume_begin(60);
	pg = page_bytes();
	fd = memfd_pages(PAGES, 200);
	old = brk_to(0);
	base = (old + pg - 1) & -pg;
	top = base + PAGES * pg;
	heap = (unsigned char *)base;
	MUST(brk_to(top) == top);
	for (unsigned int i = 0; i < PAGES; i++)
		fill_page(at(heap, i), i);
	MUST(mmap(at(heap, 8), 8 * pg, RW, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(8 * pg)) !=
	     MAP_FAILED);

	CHECK(brk_to(base + 24 * pg) == base + 24 * pg, "brk shrinks above the run");
	CHECK(page_is(at(heap, 15), 215) && page_is(at(heap, 23), 23), "what is below stays");
	CHECK(brk_to(base + 12 * pg) == base + 12 * pg, "brk shrinks to the middle of the run");
	CHECK(page_is(at(heap, 11), 211) && page_is(at(heap, 7), 7), "what is below stays");
	ok = 1;
	for (size_t i = 12; i < PAGES; i++)
		ok &= mincore(at(heap, i), pg, &core) && errno == ENOMEM;
	CHECK(ok, "nothing is mapped above");
	CHECK(brk_to(top) == top, "brk grows again behind the run");
	ok = 1;
	for (size_t i = 12; i < PAGES; i++)
		ok &= page_is_zero(at(heap, i));
	CHECK(ok, "what was released and grown again reads zero");
	fill_page(at(heap, 12), 1);
	fill_page(at(heap, 11), 2);
	CHECK(page_is(at(heap, 12), 1) && page_is(at(heap, 11), 2) && page_is(at(heap, 10), 210),
	      "and can be written, as can the run");
	CHECK(brk_to(base + 4 * pg) == base + 4 * pg, "brk shrinks past the whole run");
	CHECK(brk_to(top) == top, "and grows");
	ok = 1;
	for (size_t i = 4; i < PAGES; i++)
		ok &= page_is_zero(at(heap, i));
	CHECK(ok && page_is(at(heap, 3), 3), "zeros above, old bytes below");

	/* A run at the very end of the heap: growth begins behind a file mapping. */
	MUST(mmap(at(heap, 30), 2 * pg, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED);
	CHECK(brk_to(top + 4 * pg) == top + 4 * pg, "brk grows when the last page is a run's");
	CHECK(page_is_zero(at(heap, 32)) && page_is(at(heap, 30), 200), "with zeros");
	MUST(brk_to(old) == old);
	return assume_end();
}
