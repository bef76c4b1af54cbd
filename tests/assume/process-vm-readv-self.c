/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: a process reads its own memory with process_vm_readv and gets a
 * short count, never a signal, where a page is not there or not readable. Reading
 * a hole yields zeros (and maps the zero page: so holes are left out beforehand).
 *
 * Leans on it: look (design.md, "How one page is merged", 1). Kernel: 3.2.
 */
#include "assume.h"

#include <sys/uio.h>

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 8

static unsigned char *buf;
static size_t pg;

static ssize_t look(void *p, size_t bytes)
{
	struct iovec here = { buf, PAGES * pg }, there = { p, bytes };
	ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);

	return n < 0 ? -errno : n;
}

int main(void)
{
	struct iovec here, there[3];
	unsigned char *p;
	bool zero, held;
	int fd, ok = 1;
	ssize_t n;

	assume_begin(60);
	pg = page_bytes();
	buf = anon_pages(PAGES, RW);
	p = anon_pages(PAGES, RW);
	for (unsigned int i = 0; i < PAGES; i++)
		fill_page(at(p, i), i);
	n = look(p, PAGES * pg);
	for (unsigned int i = 0; i < PAGES; i++)
		ok &= page_is(at(buf, i), i);
	CHECK(n == (ssize_t)(PAGES * pg) && ok, "reads its own pages (%zd)", n);

	MUST(!munmap(at(p, 3), pg));
	n = look(p, PAGES * pg);
	CHECK(n == (ssize_t)(3 * pg), "short count at an unmapped page: 3 pages (%zd)", n);
	n = look(at(p, 3), 2 * pg);
	CHECK(n == -EFAULT, "EFAULT when it is the first (%zd)", n);
	here = (struct iovec){ buf, PAGES * pg };
	there[0] = (struct iovec){ at(p, 2), pg };
	there[1] = (struct iovec){ at(p, 3), pg };
	there[2] = (struct iovec){ at(p, 4), pg };
	n = process_vm_readv(getpid(), &here, 1, there, 3, 0);
	CHECK(n == (ssize_t)pg && page_is(buf, 2),
	      "one iovec a page: stops at the first that fails, no later one (%zd)", n);

	MUST(!mprotect(at(p, 5), pg, PROT_NONE));
	n = look(at(p, 4), 3 * pg);
	CHECK(n == (ssize_t)pg, "PROT_NONE counts as not there (%zd)", n);
	MUST(!mprotect(at(p, 5), pg, RW));
	CHECK(page_is(at(p, 5), 5), "its bytes unharmed");
	MUST(!mprotect(at(p, 5), pg, PROT_EXEC));
	NOTE("PROT_EXEC only: %zd", look(at(p, 5), pg));

	p = anon_pages(PAGES, RW);
	memset(buf, 1, PAGES * pg);
	n = look(p, 2 * pg);
	zero = page_is_zero(buf) && page_is_zero(at(buf, 1));
	CHECK(n == (ssize_t)(2 * pg) && zero, "holes read as zeros (%zd)", n);
	NOTE("the hole is then %s", page_present(p) ? "present: the zero page" : "still a hole");
	held = page_present(at(p, 2));
	CHECK(!held, "what was not asked for stays a hole");

	/* A file shorter than its mapping: SIGBUS to a load, a short count here. */
	fd = memfd_pages(1, 9);
	p = mmap(NULL, 2 * pg, RW, MAP_PRIVATE, fd, 0);
	MUST(p != MAP_FAILED);
	n = look(p, 2 * pg);
	CHECK(n == (ssize_t)pg && page_is(buf, 9), "short count beyond the end of a file (%zd)", n);
	return assume_end();
}
