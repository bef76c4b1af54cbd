/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: no write to a private mapping of a sealed memfd ever reaches the
 * memfd, whichever way it comes: a store, read(2), /proc/self/mem (also where the
 * mapping is read-only: FOLL_FORCE), process_vm_writev, a ptrace poke.
 * Each gives the writer its own copy.
 *
 * Leans on it: everything: I1, I4, I7. Kernel: any (Dirty COW was here).
 */
#include "assume.h"

#include <sys/ptrace.h>
#include <sys/uio.h>

#define RW (PROT_READ | PROT_WRITE)
#define SEED 60

static unsigned char *shared;
static size_t pg;
static int fd, mem;

static unsigned char *mapping(int prot, bool read_first)
{
	unsigned char *p = mmap(NULL, pg, prot, MAP_PRIVATE, fd, 0);

	MUST(p != MAP_FAILED);
	if (read_first)
		MUST(!madvise(p, pg, MADV_POPULATE_READ));
	return p;
}

static void verdict(unsigned char *p, const char *how, bool read_first)
{
	unsigned char want = (unsigned char)(shared[5] ^ 0xff);

	CHECK(p[5] == want && page_is(shared, SEED) && page_frame(p) != page_frame(shared),
	      "%s%s: own copy, memfd unchanged", how, read_first ? ", page mapped before" : "");
}

static void all_ways(bool mapped)
{
	unsigned char byte = (unsigned char)(shared[5] ^ 0xff), *p;
	struct iovec here = { &byte, 1 }, there;
	pid_t child;
	int pp[2], status;
	ssize_t n;

	p = mapping(RW, mapped);
	p[5] = byte;
	verdict(p, "a store", mapped);

	p = mapping(RW, mapped);
	MUST(!pipe(pp) && write(pp[1], &byte, 1) == 1);
	MUST(read(pp[0], p + 5, 1) == 1);
	verdict(p, "read(2)", mapped);

	p = mapping(RW, mapped);
	MUST(pwrite(mem, &byte, 1, (off_t)(uintptr_t)(p + 5)) == 1);
	verdict(p, "/proc/self/mem", mapped);

	p = mapping(PROT_READ, mapped);
	n = pwrite(mem, &byte, 1, (off_t)(uintptr_t)(p + 5));
	if (n == 1)
		verdict(p, "/proc/self/mem on a read-only mapping", mapped);
	else
		CHECK(page_is(shared, SEED) && page_is(p, SEED),
		      "/proc/self/mem on a read-only mapping is refused");

	p = mmap(NULL, pg, PROT_READ, MAP_SHARED, fd, 0);
	MUST(p != MAP_FAILED);
	n = pwrite(mem, &byte, 1, (off_t)(uintptr_t)(p + 5));
	CHECK(n == -1 && errno == EIO && page_is(shared, SEED),
	      "/proc/self/mem on a shared read-only mapping: EIO");

	p = mapping(RW, mapped);
	there = (struct iovec){ p + 5, 1 };
	MUST(process_vm_writev(getpid(), &here, 1, &there, 1, 0) == 1);
	verdict(p, "process_vm_writev", mapped);

	p = mapping(PROT_READ, mapped);
	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(77);
		raise(SIGSTOP);
		_exit(p[5] != byte);
	}
	MUST(waitpid(child, &status, 0) == child);
	if (WIFSTOPPED(status)) {
		long word = ptrace(PTRACE_PEEKDATA, child, p, NULL);

		((unsigned char *)&word)[5] = byte;
		MUST(!ptrace(PTRACE_POKEDATA, child, p, word));
		MUST(!ptrace(PTRACE_CONT, child, NULL, NULL));
		MUST(waitpid(child, &status, 0) == child);
		CHECK(WIFEXITED(status) && !WEXITSTATUS(status) && page_is(shared, SEED) &&
			      page_is(p, SEED),
		      "ptrace poke into a child's read-only mapping%s: the child's copy alone",
		      mapped ? ", page mapped before" : "");
	} else {
		NOTE("no ptrace here");
	}

	p = mapping(RW, mapped);
	MUST(!syscall(SYS_mlock, p, pg));
	p[5] = byte;
	verdict(p, "a store to a locked page", mapped);

	/* After fork: neither side's write reaches the memfd nor the other. */
	p = mapping(RW, mapped);
	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		p[5] = byte;
		_exit(p[5] != byte || !page_is(shared, SEED));
	}
	MUST(waitpid(child, &status, 0) == child);
	CHECK(!status && page_is(p, SEED) && page_is(shared, SEED),
	      "a store by a child: its copy alone");
}

int main(void)
{
	unsigned char *p, was;
	int memfd;

	assume_begin(60);
	need_page_frames();
	pg = page_bytes();
	memfd = memfd_pages(1, SEED);
	MUST(!fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE));
	fd = reopen(memfd, O_RDONLY);
	mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	shared = mmap(NULL, pg, PROT_READ, MAP_SHARED, fd, 0);
	MUST(fd >= 0 && mem >= 0 && shared != MAP_FAILED);
	MUST(page_is(shared, SEED));
	all_ways(false);
	all_ways(true);

	p = mapping(RW, true);
	was = p[9];
	p[9] ^= 1;
	MUST(!madvise(p, pg, MADV_DONTNEED));
	CHECK(p[9] == was, "MADV_DONTNEED on a copied page brings the memfd's bytes back, "
			   "not zeros: interpose it (I5)");
	return assume_end();
}
