/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumptions of merging without a freeze:
 *
 *  - vmsplice(2) of private memory leaves references to the very pages in the pipe: what
 *    is written to them afterwards, through the mapping or by a debugger into memory that
 *    is not writable, comes out of the pipe, also when the mapping is gone by then. A
 *    private page does not change its place for that.
 *  - mremap(MREMAP_DONTUNMAP) of a private file mapping without access gives a second
 *    mapping of the same part of the file, whatever became of the file's name, and leaves
 *    the first in place.
 *
 * Leans on it: proc/hold.c, proc/origin.c. Kernel: 5.13 (DONTUNMAP of files).
 */
#include "assume.h"

#include <sys/uio.h>

#define RW (PROT_READ | PROT_WRITE)

static size_t pg;

static bool out_of_pipe(int fd, char *room, size_t bytes)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = read(fd, room + done, bytes - done);

		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static void a_pipe_holds_pages(void)
{
	char *p = mmap(NULL, 2 * pg, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *room = malloc(2 * pg), byte = 'd';
	int fd[2], mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	struct iovec all = { p, 2 * pg };

	memset(p, 'a', 2 * pg);
	CHECK(pipe(fd) == 0 && mem >= 0, "a pipe, and /proc/self/mem");
	CHECK(vmsplice(fd[1], &all, 1, 0) == (ssize_t)(2 * pg), "two pages go into a pipe");
	p[1] = 'b';
	CHECK(mprotect(p, 2 * pg, PROT_READ) == 0, "the memory is made read-only");
	CHECK(pwrite(mem, &byte, 1, (off_t)(uintptr_t)(p + pg)) == 1, "a debugger's write");
	CHECK(p[pg] == 'd', "which is seen");
	munmap(p, 2 * pg);
	CHECK(out_of_pipe(fd[0], room, 2 * pg), "the pipe gives two pages");
	CHECK(room[0] == 'a' && room[1] == 'b', "with what was written after they went in");
	CHECK(room[pg] == 'd', "and with what a debugger wrote");
	close(fd[0]);
	close(fd[1]);
	close(mem);
	free(room);
}

static void files_can_be_doubled(void)
{
	char name[] = "./assume-hold-XXXXXX", *anchor, *copy;
	int fd = mkstemp(name);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)(2 * pg)) == 0, "a file");
	CHECK(pwrite(fd, "x", 1, (off_t)pg) == 1, "with something in its second page");
	anchor = mmap(NULL, 2 * pg, PROT_NONE, MAP_PRIVATE, fd, 0);
	CHECK(anchor != MAP_FAILED, "is mapped without access");
	close(fd);
	unlink(name);
	for (int i = 0; i < 2; i++) {
		copy = mremap(anchor + pg, pg, pg, MREMAP_MAYMOVE | 4 /* DONTUNMAP */, NULL);
		CHECK(copy != MAP_FAILED && copy != anchor + pg, "a piece of it is doubled");
		CHECK(mprotect(copy, pg, PROT_READ) == 0 && copy[0] == 'x', "and has the file");
		munmap(copy, pg);
	}
}

int main(void)
{
	assume_begin(60);
	pg = (size_t)sysconf(_SC_PAGESIZE);
	a_pipe_holds_pages();
	files_can_be_doubled();
	return assume_end();
}
