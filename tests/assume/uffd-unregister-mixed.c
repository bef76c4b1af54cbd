/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: UFFDIO_UNREGISTER takes a range in which private memfd mappings
 * have meanwhile replaced some of the registered anonymous pieces, and the pieces
 * that stayed become one mapping again with what stands beside them.
 *
 * Leans on it: freeze and commit (design.md, 3) registers and unregisters whole
 * chunks, whatever was committed inside; I8 counts the mappings that stay.
 * Kernel: 4.3; private mappings of shmem in the range: 4.11.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 32

static int uffd, memfd;
static size_t pg;

static unsigned char *area(void)
{
	unsigned char *p = anon_pages(PAGES, RW);

	for (size_t i = 0; i < PAGES; i++)
		fill_page(at(p, i), (unsigned int)i);
	MUST(count_vmas(p, PAGES * pg) == 1);
	return p;
}

static int vmas(unsigned char *p)
{
	return count_vmas(p, PAGES * pg);
}

static void put(unsigned char *p, size_t page, size_t pages)
{
	MUST(mmap(at(p, page), pages * pg, RW, MAP_PRIVATE | MAP_FIXED, memfd,
		  (off_t)(page * pg)) != MAP_FAILED);
}

int main(void)
{
	unsigned char *p, *stage;
	char path[] = "/var/tmp/assume-XXXXXX";
	int64_t moved;
	int file, n;

	assume_begin(60);
	pg = page_bytes();
	uffd = uffd_open(SYS_UFFD_FEATURE_MOVE);
	memfd = memfd_pages(PAGES, 0);

	p = area();
	MUST(!uffd_register(uffd, at(p, 8), 16 * pg));
	CHECK(vmas(p) == 3, "registering the middle makes three mappings of one (%d)", vmas(p));
	MUST(!uffd_unregister(uffd, at(p, 8), 16 * pg));
	CHECK(vmas(p) == 1, "unregistering makes them one again (%d)", vmas(p));

	/* The whole of a commit: three runs, two pages moved there and back. */
	stage = anon_pages(16, RW);
	MUST(!uffd_register(uffd, stage, 16 * pg));
	MUST(!uffd_register(uffd, at(p, 8), 16 * pg));
	MUST(!uffd_move(uffd, stage, at(p, 8), 16 * pg, 0, &moved));
	put(p, 8, 2); /* at the edge */
	put(p, 13, 4);
	put(p, 20, 1);
	MUST(!uffd_move(uffd, at(p, 10), at(stage, 2), 3 * pg, 0, &moved));
	MUST(!uffd_move(uffd, at(p, 17), at(stage, 9), 3 * pg, 0, &moved));
	MUST(!uffd_move(uffd, at(p, 21), at(stage, 13), 3 * pg, 0, &moved));
	NOTE("before UNREGISTER: %d mappings", vmas(p));
	CHECK(!uffd_unregister(uffd, at(p, 8), 16 * pg),
	      "UNREGISTER over anonymous pieces and private memfd mappings");
	CHECK(vmas(p) == 7, "leaves three runs and four anonymous pieces (%d)", vmas(p));
	n = 1;
	for (size_t i = 0; i < PAGES; i++)
		n &= page_is(at(p, i), (unsigned int)i);
	CHECK(n, "every page reads as before");
	CHECK(!uffd_register(uffd, at(p, 4), 24 * pg), "REGISTER over the same mixture");
	CHECK(!uffd_unregister(uffd, at(p, 4), 24 * pg) && vmas(p) == 7,
	      "and UNREGISTER again (%d mappings)", vmas(p));
	CHECK(!uffd_unregister(uffd, p, PAGES * pg), "and where nothing is registered");
	munmap(at(p, 12), pg);
	CHECK(!uffd_register(uffd, p, PAGES * pg) && !uffd_unregister(uffd, p, PAGES * pg),
	      "and over a gap");

	/* Consecutive slots in neighbouring runs: one mapping, or stay two? */
	p = area();
	put(p, 8, 4);
	put(p, 12, 4);
	CHECK(vmas(p) == 3, "runs with consecutive slots side by side merge (%d)", vmas(p));
	MUST(!uffd_register(uffd, p, PAGES * pg) && !uffd_unregister(uffd, p, PAGES * pg));
	at(p, 9)[0] ^= 1;
	put(p, 16, 4);
	NOTE("after a copy on write in the first, a third: %d mappings", vmas(p));

	/* Unmerge by anonymous memory again. */
	p = area();
	put(p, 8, 4);
	MUST(mmap(at(p, 8), 4 * pg, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	     MAP_FAILED);
	CHECK(vmas(p) == 1, "new anonymous memory over a run merges with both sides (%d)", vmas(p));

	/* A mapping that moved keeps its old page offsets; new pieces do not fit in. */
	p = mremap(area(), PAGES * pg, PAGES * pg, MREMAP_MAYMOVE | MREMAP_FIXED,
		   area());
	MUST(p != MAP_FAILED);
	MUST(!uffd_register(uffd, at(p, 8), 4 * pg) && !uffd_unregister(uffd, at(p, 8), 4 * pg));
	CHECK(vmas(p) == 1, "register and unregister leave one mapping after mremap, too (%d)",
	      vmas(p));
	MUST(mmap(at(p, 8), 4 * pg, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	     MAP_FAILED);
	NOTE("new anonymous memory inside a moved mapping: %d mapping(s)", vmas(p));

	/* Pages that first appear while registered give the piece an anon_vma of its own. */
	p = anon_pages(PAGES, RW);
	MUST(!uffd_register(uffd, at(p, 8), 4 * pg));
	MUST(!uffd_move(uffd, at(p, 8), stage, 2 * pg, 0, &moved));
	p[0] = 1;
	MUST(!uffd_unregister(uffd, at(p, 8), 4 * pg));
	NOTE("untouched before, first pages while registered: %d mapping(s)", vmas(p));

	/* One mapping of another kind in the range, and the call refuses. */
	file = mkstemp(path);
	if (file >= 0 && !unlink(path) && !ftruncate(file, (off_t)pg)) {
		p = area();
		MUST(!uffd_register(uffd, p, PAGES * pg));
		MUST(mmap(at(p, 5), pg, RW, MAP_PRIVATE | MAP_FIXED, file, 0) != MAP_FAILED);
		n = uffd_unregister(uffd, p, PAGES * pg) ? errno : 0;
		NOTE("UNREGISTER over a private mapping of a file on disk: errno %d, %d mappings",
		     n, vmas(p));
		n = uffd_unregister(uffd, p, 5 * pg) || uffd_unregister(uffd, at(p, 6), 26 * pg);
		CHECK(!n && vmas(p) == 3, "on both sides of it, it works (%d mappings)", vmas(p));
	}
	p = area();
	MUST(!uffd_register(uffd, p, PAGES * pg));
	MUST(!mprotect(at(p, 3), pg, PROT_NONE));
	CHECK(!uffd_unregister(uffd, p, PAGES * pg) && vmas(p) == 3,
	      "a piece made PROT_NONE meanwhile does not hinder (%d)", vmas(p));
	return assume_end();
}
