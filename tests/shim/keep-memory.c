/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Merged memory under every call that a program has for its memory; see keep.h. */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "keep.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static sigjmp_buf after_fault;

static void on_fault(int sig)
{
	siglongjmp(after_fault, sig);
}

/* 'r', 'w' or the signal that came instead. */
static int touch(volatile char *at, bool write)
{
	int sig;

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	sig = sigsetjmp(after_fault, 1);
	if (sig == 0) {
		if (write)
			*at = *at ^ 1;
		else
			(void)*at;
	}
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	return sig;
}

/* --- advice ---------------------------------------------------------------- */

/* How a program may ask for the same: by name, by number, by pidfd, by POSIX. */
static long advise(int how, void *p, size_t bytes, int advice)
{
	struct iovec iov = { p, bytes };
	long ret;
	int fd;

	switch (how) {
	case 0:
		return madvise(p, bytes, advice);
	case 1:
		return syscall(SYS_madvise, p, bytes, (long)advice);
	case 2:
		fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
		ret = syscall(SYS_process_madvise, fd, &iov, 1L, (long)advice, 0L);
		close(fd);
		return ret;
	default:
		ret = posix_madvise(p, bytes, advice);
		errno = (int)ret;
		return ret ? -1 : 0;
	}
}

static void discard(int advice)
{
	for (int how = 0; how < 4; how++) {
		char *p = merged_memory((unsigned)how);

		said("advise", advise(how, p + 5 * page, 20 * page, advice));
		show("rest", p, PAGES, (unsigned)how);
		memset(p + 7 * page, 'x', page);
		show("written", p, PAGES, (unsigned)how);
		/* Written after its merge: the slot's bytes must not be back. */
		p[40 * page] ^= 1;
		said("written first", advise(how, p + 40 * page, page, advice));
		show("rest", p, PAGES, (unsigned)how);
		said("unaligned", advise(how, p + 1, page, advice));
		munmap(p + 30 * page, page);
		said("gap", advise(how, p + 28 * page, 4 * page, advice));
		show("before the gap", p, 30, (unsigned)how);
		said("nothing", advise(how, p, 0, advice));
	}
}

static void dontneed(void)
{
	discard(MADV_DONTNEED);
}

static void dontneed_locked(void)
{
	discard(24);
}

static void removed(void)
{
	discard(MADV_REMOVE);
}

/*
 * MADV_FREE may give zeros now or later: each page must be one or the other, and
 * what is written afterwards stays.
 */
static void freed(void)
{
	for (int how = 0; how < 3; how++) {
		char *p = merged_memory(10u + (unsigned)how);
		char *want = malloc(page);
		unsigned wrong = 0;

		said("advise", advise(how, p, 32 * page, MADV_FREE));
		nap(300);
		for (unsigned i = 0; i < 32; i++) {
			const char *at = p + i * page;
			size_t k = 0;

			fill_page(want, i, 10u + (unsigned)how);
			while (k < page && at[k] == 0)
				k++;
			wrong += k < page && memcmp(at, want, page) != 0;
		}
		printf("pages neither old nor zero: %u\n", wrong);
		fill(p, 32, 20);
		nap(300);
		show("filled again", p, 32, 20);
		show("rest", p + 32 * page, 32, 10u + (unsigned)how);
		free(want);
	}
}

/* Advice that must not change a byte, and whatever the kernel says to it. */
static void harmless_advice(void)
{
	static const int advice[] = { MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED,
				      MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP,
				      MADV_DONTFORK, MADV_DOFORK, MADV_COLD, 22, 23, 12345 };
	char *p;

	for (size_t i = 0; i < sizeof(advice) / sizeof(advice[0]); i++) {
		p = merged_memory(30 + (unsigned)i);
		printf("%d ", advice[i]);
		said("advice", madvise(p, PAGES * page, advice[i]));
		show("bytes", p, PAGES, 30 + (unsigned)i);
		said("then", madvise(p + page, page, MADV_DONTNEED));
		show("bytes", p, PAGES, 30 + (unsigned)i);
	}
	p = merged_memory(50);
	(void)madvise(p, PAGES * page, MADV_PAGEOUT);
	show("paged out", p, PAGES, 50);
}

static void guarded(void)
{
	char *p = merged_memory(55);

	said("install", madvise(p + page, 3 * page, 102));
	printf("touched: %d\n", touch(p + 2 * page, false));
	said("remove", madvise(p + page, 3 * page, 103));
	show("bytes", p, PAGES, 55);
}

static void huge(void)
{
	size_t bytes = 4u << 20;
	char *p = mmap(NULL, 2 * bytes, RW, ANON, -1, 0), *q;
	long ret;

	q = (char *)(((uintptr_t)p + bytes - 1) & ~(uintptr_t)(bytes - 1));
	said("hugepage", madvise(q, bytes, MADV_HUGEPAGE));
	for (size_t i = 0; i < bytes / page; i++)
		fill_page(q + i * page, (unsigned)i, 57);
	wait_merged(q, bytes, bytes / page / 2);
	show("bytes", q, PAGES, 57);
	/* May work or not, as the kernel likes; the bytes must stand. */
	ret = madvise(q, bytes, 25 /* MADV_COLLAPSE */);
	printf("collapse refused for good: %d\n", ret < 0 && errno == EFAULT);
	printf("all: %016lx\n", hash(q, bytes));
	said("dontneed", madvise(q + page, bytes / 2, MADV_DONTNEED));
	printf("all: %016lx\n", hash(q, bytes));
}

/* --- moving ---------------------------------------------------------------- */

static void remap_sizes(void)
{
	char *p = merged_memory(60), *q;

	q = mremap(p, PAGES * page, (PAGES + 8) * page, 0);
	said("grow in place", q == p ? 0 : -1);
	show("grown", p, PAGES + 8, 60);
	p = mremap(p, (PAGES + 8) * page, 2 * PAGES * page + page, MREMAP_MAYMOVE);
	printf("grow: %d\n", p != MAP_FAILED);
	show("grown", p, 2 * PAGES + 1, 60);
	memset(p + PAGES * page, 'n', (PAGES + 1) * page);
	p = mremap(p, (2 * PAGES + 1) * page, 10 * page, MREMAP_MAYMOVE);
	printf("shrink: %d\n", p != MAP_FAILED);
	show("shrunk", p, 10, 60);
	printf("behind: %d\n", touch(p + 10 * page, false));
	p = mremap(p, 10 * page, 20 * page, MREMAP_MAYMOVE);
	show("grown again", p, 20, 60);
	said("dontneed", madvise(p, 20 * page, MADV_DONTNEED));
	show("zeros", p, 20, 60);
}

static void remap_moves(void)
{
	char *p = merged_memory(61), *to = mmap(NULL, 2 * PAGES * page, RW, ANON, -1, 0), *q;

	memset(to, 't', 2 * PAGES * page);
	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	printf("moved: %d\n", q == to);
	show("moved", to, 2 * PAGES, 61);
	printf("left: %d\n", touch(p, false));
	p = merged_memory(62);
	p[3 * page] ^= 1;
	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	printf("dontunmap: %d\n", q != MAP_FAILED);
	show("moved", q, PAGES, 62);
	show("left", p, PAGES, 62);
	memset(p, 'y', PAGES * page);
	show("moved", q, PAGES, 62);
	said("dontneed", madvise(q, PAGES * page, MADV_DONTNEED));
	show("moved", q, PAGES, 62);
	show("left", p, PAGES, 62);
}

static void remap_errors(void)
{
	char *p = merged_memory(63), *q;

	/* Two mappings for the program, too: the kernel's answer must come through. */
	mprotect(p + 32 * page, 8 * page, PROT_READ);
	q = mremap(p, PAGES * page, 2 * PAGES * page, MREMAP_MAYMOVE);
	said("grow over several", q == MAP_FAILED ? -1 : 0);
	show("bytes", p, PAGES, 63);
	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, p + page);
	said("overlap", q == MAP_FAILED ? -1 : 0);
	q = mremap(p + 1, page, page, MREMAP_MAYMOVE);
	said("unaligned", q == MAP_FAILED ? -1 : 0);
	q = mremap(p, page, 0, MREMAP_MAYMOVE);
	said("to nothing", q == MAP_FAILED ? -1 : 0);
	munmap(p + 8 * page, page);
	q = mremap(p, 10 * page, 12 * page, MREMAP_MAYMOVE);
	said("gap", q == MAP_FAILED ? -1 : 0);
	show("bytes", p, 8, 63);
}

static void unmapped(void)
{
	char *p = merged_memory(64), *q;

	said("munmap", munmap(p + 10 * page, 10 * page));
	printf("touched: %d\n", touch(p + 12 * page, false));
	q = mmap(p + 10 * page, 10 * page, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	printf("again: %d\n", q == p + 10 * page);
	show("zeros", p, PAGES, 64);
	q = mmap(p + 20 * page, 10 * page, RW, ANON | MAP_FIXED, -1, 0);
	printf("over it: %d\n", q == p + 20 * page);
	show("zeros", p, PAGES, 64);
	q = mmap(p + 40 * page, 4 * page, PROT_READ, MAP_PRIVATE | MAP_FIXED,
		 STDIN_FILENO, 0);
	said("no file", q == MAP_FAILED ? -1 : 0);
	q = mmap(p + 44 * page, 4 * page, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	printf("shared over it: %d\n", q == p + 44 * page);
	memset(q, 's', page);
	show("end", p + 44 * page, 20, 64);
	said("munmap all", munmap(p, PAGES * page));
	q = mmap(p, PAGES * page, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	show("zeros", q, PAGES, 64);
}

static void protected(void)
{
	char *p = merged_memory(65);

	said("none", mprotect(p + 8 * page, 16 * page, PROT_NONE));
	printf("read %d write %d\n", touch(p + 9 * page, false), touch(p + 9 * page, true));
	said("dontneed", madvise(p + 10 * page, page, MADV_DONTNEED));
	said("read", mprotect(p + 8 * page, 16 * page, PROT_READ));
	printf("read %d write %d\n", touch(p + 9 * page, false), touch(p + 9 * page, true));
	said("dontneed", madvise(p + 11 * page, page, MADV_DONTNEED));
	printf("write %d\n", touch(p + 11 * page, true));
	said("back", mprotect(p + 8 * page, 16 * page, RW));
	printf("write %d\n", touch(p + 9 * page, true));
	show("bytes", p, PAGES, 65);
	said("exec", mprotect(p, PAGES * page, RW | PROT_EXEC));
	printf("write %d\n", touch(p, true));
	said("gap", mprotect(p + (PAGES - 1) * page, 2 * page, PROT_READ));
	show("bytes", p, PAGES, 65);
}

static void locked(void)
{
	unsigned char in[PAGES];
	char *p = merged_memory(66);
	unsigned resident = 0;

	said("mlock", mlock(p, PAGES * page));
	said("mincore", mincore(p, PAGES * page, in));
	for (unsigned i = 0; i < PAGES; i++)
		resident += in[i] & 1;
	printf("resident: %u, of a store: %d\n", resident, 0);
	said("dontneed", madvise(p + page, page, MADV_DONTNEED));
	said("dontneed locked", madvise(p + 2 * page, page, 24));
	show("bytes", p, PAGES, 66);
	said("munlock", munlock(p, PAGES * page));
	said("dontneed", madvise(p + page, page, MADV_DONTNEED));
	show("bytes", p, PAGES, 66);
	p = merged_memory(67);
	said("mlock2", mlock2(p, 8 * page, MLOCK_ONFAULT));
	said("munlock", munlock(p, 8 * page));
	show("bytes", p, PAGES, 67);
	p = merged_memory(68);
	said("mlockall", mlockall(MCL_CURRENT));
	p[5 * page] ^= 1;
	show("bytes", p, PAGES, 68);
	said("dontneed", madvise(p, page, MADV_DONTNEED));
	said("munlockall", munlockall());
	said("dontneed", madvise(p, page, MADV_DONTNEED));
	show("bytes", p, PAGES, 68);
}

/* --- the heap -------------------------------------------------------------- */

static void program_break(void)
{
	char *p = sbrk(0), *q;
	size_t up = (page - (uintptr_t)p % page) % page;

	sbrk((intptr_t)up);
	p = sbrk((intptr_t)(PAGES * page));
	fill(p, PAGES, 70);
	wait_merged(p, PAGES * page, PAGES / 2);
	show("heap", p, PAGES, 70);
	said("smaller", brk(p + 20 * page));
	printf("break: %d\n", sbrk(0) == p + 20 * page);
	q = sbrk((intptr_t)(20 * page));
	printf("greater: %d\n", q == p + 20 * page);
	show("heap", p, 40, 70);
	said("in the middle of a page", brk(p + 10 * page + 100));
	said("and back", brk(p + 12 * page));
	/* The end of a page that the break was in keeps its bytes. */
	show("heap", p, 12, 70);
}

/* What libc does inside itself, over memory that merges meanwhile. */
static void trimmed(void)
{
	enum { CHUNKS = 600 };
	static char *chunk[CHUNKS];
	size_t bytes = 3 * page;

	for (unsigned gen = 0; gen < 3; gen++) {
		unsigned wrong = 0, dirty = 0;
		char *want = malloc(page), *zero;

		for (unsigned i = 0; i < CHUNKS; i++) {
			chunk[i] = malloc(bytes);
			fill_page(chunk[i], i, gen);
			fill_page(chunk[i] + page, i + 1, gen);
		}
		nap(400);
		for (unsigned i = 0; i < CHUNKS; i += 2)
			free(chunk[i]);
		malloc_trim(0);
		nap(200);
		for (unsigned i = 1; i < CHUNKS; i += 2) {
			fill_page(want, i, gen);
			wrong += memcmp(chunk[i], want, page) != 0;
			free(chunk[i]);
		}
		malloc_trim(0);
		/* calloc trusts fresh heap memory to be zero. */
		zero = calloc(CHUNKS * bytes / 2, 1);
		for (size_t i = 0; i < CHUNKS * bytes / 2; i++)
			dirty += zero[i] != 0;
		free(zero);
		free(want);
		malloc_trim(0);
		printf("wrong %u dirty %u\n", wrong, dirty);
	}
}

/* --- many threads ---------------------------------------------------------- */

static _Atomic unsigned bad, rounds, ever_merged;

/* Owned and unowned memory, made, filled, checked, given back, made again. */
static void *reuse(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t seed = me * 7919 + 1;
	char *want = malloc(page);

	for (unsigned turn = 0; turn < 150; turn++) {
		size_t pages = 2 + turn % PAGES, bytes = pages * page;
		bool by_malloc = turn % 3 == 0;
		char *p = by_malloc ? malloc(turn % 2 ? bytes : bytes + (5u << 20)) :
				      mmap(NULL, bytes, RW, ANON, -1, 0);
		char *at = (char *)(((uintptr_t)p + page - 1) & ~(uintptr_t)(page - 1));

		pages -= by_malloc;
		for (size_t i = 0; !by_malloc && i < bytes; i += 64)
			bad += at[i] != 0;
		fill(at, pages, turn % 5);
		if (turn % 7 == 0)
			nap(60);
		if (turn % 7 == 0 && !by_malloc && merged_pages(at, pages * page))
			ever_merged++;
		for (size_t i = 0; i < pages; i++) {
			fill_page(want, (unsigned)i, turn % 5);
			bad += memcmp(at + i * page, want, page) != 0;
		}
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		if (!by_malloc && seed >> 63)
			p = mremap(p, bytes, 2 * bytes, MREMAP_MAYMOVE), bytes *= 2;
		if (by_malloc)
			free(p);
		else if (seed >> 62 & 1)
			munmap(p, bytes);
		else
			mmap(p, bytes, PROT_NONE, ANON | MAP_FIXED, -1, 0), munmap(p, bytes);
		rounds++;
	}
	free(want);
	return NULL;
}

/* Threads come and go, so that libc gives back and reuses their stacks. */
static void *short_life(void *arg)
{
	volatile char deep[40000];

	for (size_t i = 0; i < sizeof(deep); i += 512)
		deep[i] = (char)(uintptr_t)arg;
	nap(1);
	for (size_t i = 0; i < sizeof(deep); i += 512)
		bad += deep[i] != (char)(uintptr_t)arg;
	return NULL;
}

static void *stacks(void *arg)
{
	for (unsigned turn = 0; turn < 150; turn++) {
		pthread_t t[4];

		for (uintptr_t i = 0; i < 4; i++)
			pthread_create(&t[i], NULL, short_life, (void *)(i + turn));
		for (unsigned i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t t[5];

	for (uintptr_t i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, reuse, (void *)i);
	pthread_create(&t[4], NULL, stacks, NULL);
	for (unsigned i = 0; i < 5; i++)
		pthread_join(t[i], NULL);
	printf("rounds %u, wrong %u\n", rounds, bad);
	if (with_samepage() && !ever_merged)
		_exit(NEVER_MERGED);
}

int main(int argc, char **argv)
{
	static const struct keep_case cases[] = {
		{ "dontneed", dontneed },	{ "dontneed_locked", dontneed_locked },
		{ "remove", removed },		{ "free", freed },
		{ "harmless_advice", harmless_advice }, { "guard", guarded },
		{ "huge", huge },		{ "remap_sizes", remap_sizes },
		{ "remap_moves", remap_moves }, { "remap_errors", remap_errors },
		{ "unmapped", unmapped },	{ "protected", protected },
		{ "locked", locked },		{ "program_break", program_break },
		{ "trimmed", trimmed },		{ "threads", threads },
	};

	return keep_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
