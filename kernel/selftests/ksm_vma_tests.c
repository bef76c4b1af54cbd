// SPDX-License-Identifier: GPL-2.0-only
/*
 * Do the vmas of a process that has set PR_SET_MEMORY_MERGE merge with their
 * neighbours as they do without, and are those eligible, and only those, that
 * should be?
 *
 * A thousand mappings of a page, side by side, are one vma if nothing keeps them
 * apart.  Where VM_MERGEABLE is set only after the attempt to merge, each stays
 * alone, and vm.max_map_count is soon near.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

#define N 1000

static size_t psz;

struct seen {
	int vmas;		/* that overlap the range */
	int mergeable;		/* of those, with "mg" among their VmFlags */
};

static struct seen look(char *start, char *end)
{
	struct seen seen = {};
	bool inside = false;
	char line[512];
	FILE *fp;

	fp = fopen("/proc/self/smaps", "r");
	if (!fp)
		ksft_exit_fail_perror("smaps");
	while (fgets(line, sizeof(line), fp)) {
		unsigned long from, to;
		char flags;

		if (sscanf(line, "%lx-%lx %c", &from, &to, &flags) == 3) {
			inside = from < (unsigned long)end &&
				 to > (unsigned long)start;
			seen.vmas += inside;
		} else if (inside && !strncmp(line, "VmFlags:", 8) &&
			   strstr(line, " mg")) {
			seen.mergeable++;
		}
	}
	fclose(fp);
	return seen;
}

static char *room(size_t len)
{
	char *addr = mmap(NULL, len + 2 * psz, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	/* No neighbours but the guards; unmapped pages in between. */
	munmap(addr + psz, len);
	return addr + psz;
}

static bool merge_any(bool on)
{
	return !prctl(PR_SET_MEMORY_MERGE, on, 0, 0, 0);
}

/* A thousand mappings side by side: how many vmas? */
static struct seen thousand(int flags, int fd, int prot)
{
	char *addr = room(N * psz);
	struct seen seen;
	int i;

	for (i = 0; i < N; i++)
		if (mmap(addr + i * psz, psz, prot, flags | MAP_FIXED, fd,
			 fd < 0 ? 0 : i * psz) == MAP_FAILED)
			ksft_exit_fail_perror("mmap");
	if (prot & PROT_WRITE && !(flags & MAP_SHARED))
		for (i = 0; i < N; i++)
			addr[i * psz] = i;
	seen = look(addr, addr + N * psz);
	munmap(addr, N * psz);
	ksft_print_msg("%d mappings: %d vmas, %d of them mergeable\n", N,
		       seen.vmas, seen.mergeable);
	return seen;
}

static bool one(struct seen seen, bool mergeable)
{
	return seen.vmas == 1 && seen.mergeable == mergeable;
}

static int shmem(void)
{
	int fd = memfd_create("ksm_vma_tests", 0);

	if (fd < 0 || ftruncate(fd, N * psz))
		ksft_exit_fail_perror("memfd");
	return fd;
}

static bool test_anon(void)
{
	return merge_any(true) &&
	       one(thousand(MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    PROT_READ | PROT_WRITE), true);
}

/* Each written before the next is made: the neighbour has its anon_vma. */
static bool test_anon_touched(void)
{
	char *addr = room(N * psz);
	struct seen seen;
	int i;

	if (!merge_any(true))
		return false;
	for (i = 0; i < N; i++) {
		/* From the end down, as mmap places them by itself. */
		char *page = addr + (N - 1 - i) * psz;

		if (mmap(page, psz, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
			return false;
		*page = 1;
	}
	seen = look(addr, addr + N * psz);
	ksft_print_msg("%d mappings: %d vmas\n", N, seen.vmas);
	return one(seen, true);
}

static bool test_shmem(void)
{
	return merge_any(true) &&
	       one(thousand(MAP_PRIVATE, shmem(), PROT_READ | PROT_WRITE), true);
}

static bool test_brk(void)
{
	char *start, *end;
	struct seen seen;
	int i;

	if (!merge_any(true))
		return false;
	start = sbrk(0);
	start += -(unsigned long)start & (psz - 1);
	if (brk(start))
		return false;
	for (i = 0; i < N; i++) {
		if (sbrk(psz) == (void *)-1)
			return false;
		start[i * psz] = i;
	}
	end = sbrk(0);
	seen = look(start, end);
	ksft_print_msg("%d brk(): %d vmas\n", N, seen.vmas);
	return one(seen, true);
}

/* What must never be eligible is not, and merges as well as ever. */
static bool test_shared(void)
{
	return merge_any(true) &&
	       one(thousand(MAP_SHARED, shmem(), PROT_READ | PROT_WRITE), false);
}

static bool test_droppable(void)
{
	char *addr = mmap(NULL, psz, PROT_READ | PROT_WRITE,
			  MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);

	if (addr == MAP_FAILED)
		return true;
	munmap(addr, psz);
	return merge_any(true) &&
	       one(thousand(MAP_ANONYMOUS | MAP_DROPPABLE, -1,
			    PROT_READ | PROT_WRITE), false);
}

/* Hugetlb, by its own hook: is not, whatever was known before it. */
static bool test_hugetlb(void)
{
	struct seen seen;
	char *addr;

	if (!merge_any(true))
		return false;
	addr = mmap(NULL, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
		    MAP_HUGETLB | MAP_NORESERVE, -1, 0);
	if (addr == MAP_FAILED)
		return true;
	seen = look(addr, addr + (2 << 20));
	return seen.vmas == 1 && !seen.mergeable;
}

/* Other files wait for their mmap hook: eligible, if not merged. */
static bool test_file(void)
{
	struct seen seen;
	char *addr;
	int fd;

	fd = open("/proc/self/exe", O_RDONLY);
	if (fd < 0 || !merge_any(true))
		return false;
	addr = mmap(NULL, 2 * psz, PROT_READ, MAP_PRIVATE, fd, 0);
	if (addr == MAP_FAILED)
		return false;
	seen = look(addr, addr + 2 * psz);
	return seen.vmas == 1 && seen.mergeable == 1;
}

/* /dev/zero: a hook makes it anonymous. */
static bool test_dev_zero(void)
{
	struct seen seen;
	char *addr;
	int fd;

	fd = open("/dev/zero", O_RDWR);
	if (fd < 0)
		return true;
	if (!merge_any(true))
		return false;
	addr = mmap(NULL, psz, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (addr == MAP_FAILED)
		return false;
	seen = look(addr, addr + psz);
	return seen.vmas == 1 && seen.mergeable == 1;
}

/* Without the prctl, and after it was taken back: as before. */
static bool test_off(void)
{
	if (!one(thousand(MAP_PRIVATE | MAP_ANONYMOUS, -1,
			  PROT_READ | PROT_WRITE), false))
		return false;
	return merge_any(true) && merge_any(false) &&
	       one(thousand(MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    PROT_READ | PROT_WRITE), false);
}

/* What was advised away stays so: the new one beside it must not take it in. */
static bool test_unmergeable(void)
{
	char *addr = room(2 * psz);
	struct seen first, second;

	if (!merge_any(true))
		return false;
	if (mmap(addr, psz, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != addr ||
	    madvise(addr, psz, MADV_UNMERGEABLE) ||
	    mmap(addr + psz, psz, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != addr + psz)
		return false;
	first = look(addr, addr + psz);
	second = look(addr + psz, addr + 2 * psz);
	return first.vmas == 1 && !first.mergeable && second.vmas == 1 &&
	       second.mergeable == 1 && look(addr, addr + 2 * psz).vmas == 2;
}

/* Inherited by fork: the child's new mappings merge with what it inherited. */
static bool test_fork(void)
{
	int status = 1;
	pid_t pid;

	if (!merge_any(true))
		return false;
	pid = fork();
	if (!pid)
		_exit(!one(thousand(MAP_PRIVATE | MAP_ANONYMOUS, -1,
				    PROT_READ | PROT_WRITE), true));
	waitpid(pid, &status, 0);
	return !status;
}

/* "merge": what is not so before new mappings are mergeable from the beginning. */
static const struct {
	const char *name;
	bool (*run)(void);
} tests[] = {
	{ "merge: vma: anonymous", test_anon },
	{ "merge: vma: anonymous, in use, downwards", test_anon_touched },
	{ "merge: vma: shmem, private", test_shmem },
	{ "merge: vma: brk", test_brk },
	{ "merge: vma: in a child", test_fork },
	{ "ksm: vma: shmem, shared", test_shared },
	{ "ksm: vma: droppable", test_droppable },
	{ "ksm: vma: hugetlb", test_hugetlb },
	{ "ksm: vma: private file", test_file },
	{ "ksm: vma: /dev/zero", test_dev_zero },
	{ "ksm: vma: without", test_off },
	{ "ksm: vma: beside MADV_UNMERGEABLE", test_unmergeable },
};

int main(void)
{
	unsigned int i;

	psz = sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	ksft_print_header();
	if (prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0))
		ksft_exit_skip("needs PR_SET_MEMORY_MERGE, and root\n");
	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		int status = 1;
		pid_t pid;

		fflush(stdout);
		pid = fork();
		if (!pid) {
			bool ok = tests[i].run();

			fflush(stdout);
			_exit(!ok);
		}
		waitpid(pid, &status, 0);
		ksft_test_result(!status, "%s\n", tests[i].name);
	}
	ksft_finished();
}
