/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: on a private writable memfd mapping MADV_POPULATE_READ maps the
 * shared page itself; MADV_POPULATE_WRITE gives an own copy without changing a
 * byte; MAP_POPULATE copies at once.
 *
 * Leans on it: commit (no read fault later), unmerge (design.md, "Facts").
 * Kernel: 5.14.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 4

int main(void)
{
	unsigned char *shared, *a, *b, *c;
	int fd, same = 0, own = 0, content = 1, copied = 0;
	size_t pg;

	assume_begin(60);
	need_page_frames();
	pg = page_bytes();
	fd = memfd_pages(PAGES, 5);
	shared = mmap(NULL, PAGES * pg, PROT_READ, MAP_SHARED, fd, 0);
	a = mmap(NULL, PAGES * pg, RW, MAP_PRIVATE, fd, 0);
	b = mmap(NULL, PAGES * pg, RW, MAP_PRIVATE, fd, 0);
	c = mmap(NULL, PAGES * pg, RW, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	MUST(shared != MAP_FAILED && a != MAP_FAILED && b != MAP_FAILED && c != MAP_FAILED);
	MUST(!madvise(shared, PAGES * pg, MADV_POPULATE_READ));
	CHECK(!page_present(a), "a fresh mapping maps nothing");
	MUST(!madvise(a, PAGES * pg, MADV_POPULATE_READ));
	MUST(!madvise(b, PAGES * pg, MADV_POPULATE_READ));
	for (size_t i = 0; i < PAGES; i++)
		same += page_frame(at(shared, i)) && page_frame(at(a, i)) == page_frame(at(shared, i)) &&
			page_frame(at(b, i)) == page_frame(at(shared, i));
	CHECK(same == PAGES, "MADV_POPULATE_READ maps the shared page (%d of %d)", same, PAGES);

	MUST(!madvise(a, PAGES * pg, MADV_POPULATE_WRITE));
	for (size_t i = 0; i < PAGES; i++) {
		own += page_frame(at(a, i)) && page_frame(at(a, i)) != page_frame(at(shared, i));
		content &= page_is(at(a, i), 5 + (unsigned int)i);
	}
	CHECK(own == PAGES, "MADV_POPULATE_WRITE gives each its own (%d of %d)", own, PAGES);
	CHECK(content, "with the same bytes");
	CHECK(page_frame(b) == page_frame(shared), "and touches nobody else's");

	for (size_t i = 0; i < PAGES; i++)
		copied += page_frame(at(c, i)) && page_frame(at(c, i)) != page_frame(at(shared, i));
	CHECK(copied == PAGES, "MAP_POPULATE on a writable private mapping copies (%d of %d)", copied,
	      PAGES);

	MUST(!mprotect(b, PAGES * pg, PROT_READ));
	CHECK(madvise(b, PAGES * pg, MADV_POPULATE_WRITE) && errno == EINVAL,
	      "MADV_POPULATE_WRITE refuses what is not writable");
	return assume_end();
}
