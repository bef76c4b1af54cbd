// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does the reverse map find every mapping of a KSM page?
 *
 * Whoever moves or reclaims a KSM page has to find each place where it is
 * mapped.  If one is missed, the page cannot be migrated, nor swapped out, nor
 * taken away when its memory fails.  Each test here merges pages, does something
 * to the mappings (fork, split, merge, mremap, swap), and then has the pages
 * moved to the other node or reclaimed: every mapping must have followed, by
 * page frame number, with its contents as they were.
 *
 * Wants two nodes (numa=fake=2 will do), swap, and a cgroup v2 mount for
 * memory.reclaim; skips what it cannot test.  Merges with MADV_MERGE where the
 * kernel has it, else (or with the argument "ksmd") by having ksmd scan.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest.h"
#include "vm_util.h"

#ifndef MADV_MERGE
#define MADV_MERGE 26
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define MPOL_MF_MOVE_ALL	4
#define KSM_SYSFS		"/sys/kernel/mm/ksm/"
#define CGROUP			"/sys/fs/cgroup/ksm_rmap_tests"

#define NPAGES	8		/* pages a range */
#define MAXMAPS	640

static size_t psz;
static bool use_merge;		/* MADV_MERGE, not ksmd */
static bool two_nodes, have_swap;
static unsigned int seed;

/* A place where a page is, or was, mapped: in us or in a child of ours. */
struct map {
	pid_t pid;		/* 0: ourselves */
	char *addr;
	unsigned int what;	/* contents */
	unsigned long pfn;	/* as last seen, 0 if not present */
};

static struct map maps[MAXMAPS];
static int nmaps;
static pid_t children[16];
static int nchildren;

static int write_str(const char *path, const char *fmt, ...)
{
	char buf[64];
	va_list ap;
	int fd, len, ret;

	va_start(ap, fmt);
	len = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	ret = write(fd, buf, len) == len ? 0 : -errno;
	close(fd);
	return ret;
}

static long read_long(const char *path)
{
	char buf[32];
	ssize_t len;
	int fd;

	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	len = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (len <= 0)
		return -1;
	buf[len] = 0;
	return strtol(buf, NULL, 10);
}

static uint64_t pagemap_entry(pid_t pid, char *addr)
{
	uint64_t entry = 0;
	char path[40];
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	else
		snprintf(path, sizeof(path), "/proc/self/pagemap");
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry),
		  (off_t)((unsigned long)addr / psz * sizeof(entry))) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

static unsigned long pfn_of(pid_t pid, char *addr)
{
	uint64_t entry = pagemap_entry(pid, addr);

	return entry & PM_PRESENT ? PAGEMAP_PFN(entry) : 0;
}

/* Contents that nothing else in this run has. */
static void fill(char *page, unsigned int what)
{
	uint64_t *words = (uint64_t *)page;
	uint64_t x = what * 0x9e3779b97f4a7c15ull + 1;
	size_t i;

	for (i = 0; i < psz / sizeof(*words); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
}

static bool contents_right(pid_t pid, char *addr, unsigned int what)
{
	static char want[65536], got[65536];
	char path[32];
	int fd;
	bool ok;

	fill(want, what);
	if (!pid)
		return !memcmp(addr, want, psz);

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	ok = pread(fd, got, psz, (off_t)(unsigned long)addr) == (ssize_t)psz &&
	     !memcmp(got, want, psz);
	close(fd);
	return ok;
}

static void add_map(pid_t pid, char *addr, unsigned int what)
{
	if (nmaps == MAXMAPS)
		ksft_exit_fail_msg("too many mappings\n");
	maps[nmaps++] = (struct map){ .pid = pid, .addr = addr, .what = what };
}

static void add_range(pid_t pid, char *addr, int npages, unsigned int first)
{
	int i;

	for (i = 0; i < npages; i++)
		add_map(pid, addr + i * psz, first + i);
}

/* The mappings of pages with an address in [addr, addr + npages) are gone. */
static void forget_range(pid_t pid, char *addr, int npages)
{
	int i, kept = 0;

	for (i = 0; i < nmaps; i++)
		if (maps[i].pid != pid || maps[i].addr < addr ||
		    maps[i].addr >= addr + npages * psz)
			maps[kept++] = maps[i];
	nmaps = kept;
}

static char *anon(int npages)
{
	char *addr = mmap(NULL, npages * psz, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (addr == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	/* Nothing else is to be merged with, or to lie beside it. */
	madvise(addr, npages * psz, MADV_NOHUGEPAGE);
	return addr;
}

/* Address space with nothing in it, to move mappings to. */
static char *room(int npages)
{
	char *addr = mmap(NULL, npages * psz, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	munmap(addr, npages * psz);
	return addr;
}

static void fill_range(char *addr, int npages, unsigned int first)
{
	int i;

	for (i = 0; i < npages; i++)
		fill(addr + i * psz, first + i);
}

static bool all_merged(void)
{
	int i, j;

	for (i = 0; i < nmaps; i++)
		maps[i].pfn = pfn_of(maps[i].pid, maps[i].addr);
	for (i = 0; i < nmaps; i++) {
		bool shared = false;

		if (!maps[i].pfn)
			return false;
		for (j = 0; j < nmaps && !shared; j++)
			shared = i != j && maps[i].pfn == maps[j].pfn;
		if (!shared)
			return false;
	}
	return true;
}

/* Let ksmd pass over everything: what it does, and drops, is done then. */
static bool full_scans(int n)
{
	long start = read_long(KSM_SYSFS "full_scans");
	static char *page;
	int tries = 500;

	/* It only scans where somebody has asked for it. */
	if (!page) {
		page = anon(1);
		fill(page, getpid());
		madvise(page, psz, MADV_MERGEABLE);
	}
	if (write_str(KSM_SYSFS "run", "1"))
		return false;
	while (read_long(KSM_SYSFS "full_scans") < start + n && --tries)
		usleep(10000);
	write_str(KSM_SYSFS "run", "0");
	return tries;
}

/* All of maps[] (of ours) is to share pages when this returns. */
static bool merge_all(void)
{
	int i, tries;

	for (i = 0; i < nmaps; i++)
		if (!maps[i].pid && madvise(maps[i].addr, psz, use_merge ?
					    MADV_MERGE : MADV_MERGEABLE))
			return false;
	for (tries = 0; tries < 10; tries++) {
		if (all_merged())
			return true;
		if (use_merge) {
			for (i = 0; i < nmaps; i++)
				if (!maps[i].pid)
					madvise(maps[i].addr, psz, MADV_MERGE);
		} else if (!full_scans(2)) {
			return false;
		}
	}
	ksft_print_msg("not merged\n");
	return false;
}

static int node_of(pid_t pid, char *addr)
{
	void *page = addr;
	int status = -1;

	if (syscall(__NR_move_pages, pid, 1ul, &page, NULL, &status, 0))
		return -1;
	return status;
}

/* Have each page moved, by one of its mappings: all of them must follow. */
static bool migrate_follow(void)
{
	int i, j;

	for (i = 0; i < nmaps; i++)
		maps[i].pfn = pfn_of(maps[i].pid, maps[i].addr);

	for (i = 0; i < nmaps; i++) {
		void *page = maps[i].addr;
		unsigned long old = maps[i].pfn, new;
		int from, to, status = -1, tries = 5;

		for (j = 0; j < i; j++)		/* moved already? */
			if (maps[j].what == maps[i].what && maps[j].pfn == old)
				break;
		if (j < i || !old)
			continue;

		from = node_of(maps[i].pid, page);
		to = !from;
		do {
			if (syscall(__NR_move_pages, maps[i].pid, 1ul, &page,
				    &to, &status, MPOL_MF_MOVE_ALL) < 0) {
				ksft_perror("move_pages");
				return false;
			}
		} while (status != to && --tries);
		new = pfn_of(maps[i].pid, page);
		if (status != to || !new || new == old) {
			ksft_print_msg("page %d of %d did not move: status %d\n",
				       i, nmaps, status);
			return false;
		}
		for (j = 0; j < nmaps; j++) {
			if (maps[j].pfn != old || maps[j].what != maps[i].what)
				continue;
			if (pfn_of(maps[j].pid, maps[j].addr) != new) {
				ksft_print_msg("mapping %d was left behind by %d\n",
					       j, i);
				return false;
			}
			maps[j].pfn = new;
		}
	}
	for (i = 0; i < nmaps; i++)
		if (!contents_right(maps[i].pid, maps[i].addr, maps[i].what)) {
			ksft_print_msg("contents of mapping %d are wrong\n", i);
			return false;
		}
	return true;
}

static bool all_swapped(void)
{
	int i;

	for (i = 0; i < nmaps; i++)
		if (!(pagemap_entry(maps[i].pid, maps[i].addr) & PM_SWAP))
			return false;
	return true;
}

/*
 * Somebody outside of the cgroup does the reclaim, while we touch nothing: our
 * own pages would be found in its way again and again.
 */
static int reclaimer[2];

static void reclaim_server(void)
{
	int ask[2], answer[2];
	char c;

	if (pipe(ask) || pipe(answer))
		ksft_exit_fail_perror("pipe");
	reclaimer[0] = answer[0];
	reclaimer[1] = ask[1];
	fflush(stdout);
	switch (fork()) {
	case -1:
		ksft_exit_fail_perror("fork");
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ask[1]);
		close(answer[0]);
		while (read(ask[0], &c, 1) == 1) {
			write_str(CGROUP "/memory.reclaim", "64M swappiness=200");
			if (write(answer[1], &c, 1) != 1)
				break;
		}
		_exit(0);
	}
	close(ask[0]);
	close(answer[1]);
}

static bool reclaim_all(void)
{
	int tries = 200;
	char c = 0;

	/* Some of what reclaim decides by is two seconds old: give it time. */
	while (!all_swapped() && --tries) {
		if (write(reclaimer[1], &c, 1) != 1 || read(reclaimer[0], &c, 1) != 1)
			return false;
		usleep(30000);
	}
	if (!all_swapped())
		ksft_print_msg("not swapped out\n");
	return all_swapped();
}

static bool contents_all(void)
{
	int i;

	for (i = 0; i < nmaps; i++)
		if (!contents_right(maps[i].pid, maps[i].addr, maps[i].what))
			return false;
	return true;
}

/*
 * A child with what it does first; it then waits to be killed.  Tells us that it
 * has come so far, so what it did is done when this returns.
 */
static pid_t child(bool (*first)(void *), void *arg)
{
	int fds[2];
	char ok = 0;
	pid_t pid;

	if (pipe(fds))
		ksft_exit_fail_perror("pipe");
	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ok = !first || first(arg);
		if (write(fds[1], &ok, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	if (read(fds[0], &ok, 1) != 1 || !ok)
		ksft_print_msg("one of the children failed\n");
	close(fds[0]);
	children[nchildren++] = pid;
	return pid;
}

/* Merge by ksmd or MADV_MERGE what has been set up; the common beginning. */
static char *two_ranges(char **second)
{
	char *a = anon(NPAGES), *b = anon(NPAGES);

	seed += 1000;
	fill_range(a, NPAGES, seed);
	fill_range(b, NPAGES, seed);
	add_range(0, a, NPAGES, seed);
	add_range(0, b, NPAGES, seed);
	*second = b;
	return merge_all() ? a : NULL;
}

static bool test_plain(void)
{
	char *b, *a = two_ranges(&b);

	return a && migrate_follow() && migrate_follow();
}

/* Three generations: what was forked after the merge has no rmap_items. */
static bool fork_again(void *arg)
{
	int fds[2], left = *(int *)arg - 1;
	pid_t pid;

	if (!left)
		return true;
	if (pipe(fds))
		return false;
	pid = fork();
	if (pid < 0)
		return false;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!fork_again(&left) || write(fds[1], &pid, sizeof(pid)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	return read(fds[0], &left, sizeof(left)) == sizeof(left);
}

static pid_t only_child(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	return read_long(path);
}

static bool test_fork(void)
{
	char *b, *a = two_ranges(&b);
	int generations = 3;
	pid_t pid;

	if (!a)
		return false;
	pid = child(fork_again, &generations);
	while (generations--) {
		add_range(pid, a, NPAGES, seed);
		add_range(pid, b, NPAGES, seed);
		if (generations) {
			pid = only_child(pid);
			if (pid <= 0)
				return false;
			children[nchildren++] = pid;
		}
	}
	return migrate_follow() && migrate_follow();
}

static bool test_split_merge(void)
{
	char *b, *a = two_ranges(&b);

	if (!a)
		return false;
	/* Three vmas of one, and one with less at its start. */
	if (mprotect(a + 3 * psz, 2 * psz, PROT_READ) || munmap(b, 3 * psz))
		return false;
	forget_range(0, b, 3);
	if (!migrate_follow())
		return false;
	/* And back, and one that a new neighbour joins in front. */
	if (mprotect(a + 3 * psz, 2 * psz, PROT_READ | PROT_WRITE))
		return false;
	if (mmap(b, 3 * psz, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != b)
		return false;
	fill_range(b, 3, seed + 500);
	return migrate_follow();
}

static char *move_range(char *from, int npages)
{
	char *to = room(npages + 2) + psz;

	if (mremap(from, npages * psz, npages * psz,
		   MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) {
		ksft_perror("mremap");
		return NULL;
	}
	return to;
}

/* KSM pages may be unmerged by the move: then there is less to find. */
static bool test_mremap(void)
{
	char *to, *b, *a = two_ranges(&b);

	if (!a)
		return false;
	to = move_range(a, NPAGES);
	if (!to)
		return false;
	forget_range(0, a, NPAGES);
	add_range(0, to, NPAGES, seed);
	if (!contents_all() || !migrate_follow())
		return false;
	/* A part of it, so that it is split as well, and on to where it was. */
	if (mremap(to + 2 * psz, 3 * psz, 3 * psz, MREMAP_MAYMOVE | MREMAP_FIXED,
		   a + psz) != a + psz)
		return false;
	forget_range(0, to + 2 * psz, 3);
	add_range(0, a + psz, 3, seed + 2);
	return migrate_follow();
}

struct move {
	char *from, *to;
	int fd;			/* to be closed, if not 0 */
};

static bool move_in_child(void *arg)
{
	struct move *move = arg;

	if (move->fd)
		close(move->fd);
	return mremap(move->from, NPAGES * psz, NPAGES * psz,
		      MREMAP_MAYMOVE | MREMAP_FIXED, move->to) == move->to;
}

static bool test_mremap_child(void)
{
	char *b, *a = two_ranges(&b);
	struct move move = {};
	pid_t pid;

	if (!a)
		return false;
	move.from = a;
	move.to = room(NPAGES + 2) + psz;
	pid = child(move_in_child, &move);
	add_range(pid, move.to, NPAGES, seed);
	add_range(pid, b, NPAGES, seed);
	return migrate_follow() && migrate_follow();
}

/*
 * Merged pages that somebody holds a reference to go no further than the
 * swapcache: they are still KSM pages when they are faulted in again.  That
 * way mremap(), which unmerges what it sees, can move them.
 */
static struct map held[MAXMAPS];
static int nheld;

static int hold_in_swapcache(char *addr, int npages)
{
	struct iovec iov = { .iov_base = addr, .iov_len = npages * psz };
	int fds[2];

	/* Where all_merged() has just seen them. */
	memcpy(held, maps, sizeof(held));
	nheld = nmaps;
	if (pipe(fds))
		return -1;
	if (vmsplice(fds[1], &iov, 1, 0) != (ssize_t)(npages * psz) ||
	    !reclaim_all()) {
		close(fds[0]);
		close(fds[1]);
		return -1;
	}
	close(fds[1]);
	return fds[0];
}

static bool still_merged(void)
{
	int i, j;

	if (!contents_all())
		return false;
	for (i = 0; i < nmaps; i++) {
		maps[i].pfn = pfn_of(maps[i].pid, maps[i].addr);
		for (j = 0; j < nheld; j++)
			if (held[j].what == maps[i].what && held[j].pfn == maps[i].pfn)
				break;
		if (j == nheld) {
			ksft_print_msg("not a KSM page any more\n");
			return false;
		}
	}
	return true;
}

static bool test_mremap_swapped(void)
{
	char *to, *b, *a = two_ranges(&b);
	int fd;

	if (!a)
		return false;
	fd = hold_in_swapcache(b, NPAGES);
	if (fd < 0)
		return false;
	to = move_range(a, NPAGES);
	if (!to)
		return false;
	forget_range(0, a, NPAGES);
	add_range(0, to, NPAGES, seed);
	if (!still_merged())
		return false;
	close(fd);
	return migrate_follow();
}

/* The same, in a child: found by way of the parent's rmap_item. */
static bool test_mremap_swapped_child(void)
{
	char *b, *a = two_ranges(&b);
	struct move move = {};
	pid_t pid;
	int fd;

	if (!a)
		return false;
	fd = hold_in_swapcache(b, NPAGES);
	if (fd < 0)
		return false;
	move.from = a;
	move.to = room(NPAGES + 2) + psz;
	move.fd = fd;
	pid = child(move_in_child, &move);
	add_range(pid, move.to, NPAGES, seed);
	add_range(pid, b, NPAGES, seed);
	if (!still_merged())
		return false;
	close(fd);
	return migrate_follow();
}

/* Swapped out for good, by way of the moved mapping. */
static bool test_mremap_reclaim(void)
{
	char *to, *b, *a = two_ranges(&b);
	int fd;

	if (!a)
		return false;
	fd = hold_in_swapcache(b, NPAGES);
	if (fd < 0)
		return false;
	to = move_range(a, NPAGES);
	if (!to)
		return false;
	forget_range(0, a, NPAGES);
	add_range(0, to, NPAGES, seed);
	if (!still_merged())
		return false;
	close(fd);
	return reclaim_all() && contents_all();
}

/*
 * A mapping is moved to where another one of the same page was: the rmap_item of
 * that address is not the one that finds it.
 */
static bool test_mremap_onto(void)
{
	char *to, *r = anon(2 * NPAGES);
	int fd;

	seed += 1000;
	fill_range(r, NPAGES, seed);
	fill_range(r + NPAGES * psz, NPAGES, seed);
	add_range(0, r, NPAGES, seed);
	add_range(0, r + NPAGES * psz, NPAGES, seed);
	if (!merge_all())
		return false;
	fd = hold_in_swapcache(r, NPAGES);
	if (fd < 0)
		return false;
	to = mremap(r + NPAGES * psz, NPAGES * psz, NPAGES * psz,
		    MREMAP_MAYMOVE | MREMAP_FIXED, r);
	if (to != r)
		return false;
	forget_range(0, r + NPAGES * psz, NPAGES);
	if (!still_merged())
		return false;
	close(fd);
	if (!migrate_follow())
		return false;
	/* ksmd drops the rmap_items of where nothing is any more. */
	if (!full_scans(2))
		return false;
	if (use_merge)
		madvise(r, NPAGES * psz, MADV_MERGE);
	return migrate_follow();
}

static bool private_file(bool move)
{
	char *a, *b, *c;
	int fd = memfd_create("ksm", 0);

	if (fd < 0 || ftruncate(fd, 64 * psz))
		return false;
	seed += 1000;
	a = mmap(NULL, NPAGES * psz, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
		 5 * psz);
	b = mmap(NULL, NPAGES * psz, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
		 33 * psz);
	c = anon(NPAGES);
	close(fd);
	if (a == MAP_FAILED || b == MAP_FAILED)
		return false;
	fill_range(a, NPAGES, seed);
	fill_range(b, NPAGES, seed);
	fill_range(c, NPAGES, seed);
	add_range(0, a, NPAGES, seed);
	add_range(0, b, NPAGES, seed);
	add_range(0, c, NPAGES, seed);
	if (!merge_all() || !migrate_follow())
		return false;
	if (move) {
		char *to = move_range(a, NPAGES);

		if (!to)
			return false;
		forget_range(0, a, NPAGES);
		add_range(0, to, NPAGES, seed);
	} else {
		pid_t pid = child(NULL, NULL);

		add_range(pid, a, NPAGES, seed);
		add_range(pid, b, NPAGES, seed);
	}
	return migrate_follow();
}

static bool test_file(void)
{
	return private_file(false);
}

static bool test_file_mremap(void)
{
	return private_file(true);
}

static bool test_dontunmap(void)
{
	char *b, *a = two_ranges(&b), *to;

	if (!a)
		return false;
	to = room(NPAGES + 2) + psz;
	if (mremap(a, NPAGES * psz, NPAGES * psz,
		   MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) != to)
		return false;
	forget_range(0, a, NPAGES);
	add_range(0, to, NPAGES, seed);
	/* What the old place gets now has the same index. */
	fill_range(a, NPAGES, seed + 500);
	add_range(0, a, NPAGES, seed + 500);
	return migrate_follow();
}

/* More mappings than one stable node takes: a chain of duplicates. */
static bool test_chain(void)
{
	const int n = 600;
	char *a = anon(n);
	int i;

	seed += 1000;
	for (i = 0; i < n; i++) {
		fill(a + i * psz, seed);
		add_map(0, a + i * psz, seed);
	}
	if (!merge_all())
		return false;
	for (i = 0; i < n; i += 2)
		if (mprotect(a + i * psz, psz, PROT_READ))
			return false;
	return migrate_follow() && migrate_follow();
}

static bool test_reclaim(void)
{
	char *b, *a = two_ranges(&b);
	pid_t pid;

	if (!a)
		return false;
	pid = child(NULL, NULL);
	add_range(pid, a, NPAGES, seed);
	add_range(pid, b, NPAGES, seed);
	return reclaim_all() && contents_all();
}

/* Out of the stable tree and in again: nothing of the index may be left over. */
static bool test_again(void)
{
	char *b, *a = two_ranges(&b);
	int i;

	if (!a)
		return false;
	for (i = 0; i < 3; i++) {
		/* Written and written back: copied, the same contents. */
		fill_range(a, NPAGES, seed + 500);
		fill_range(a, NPAGES, seed);
		if (!use_merge && !full_scans(1))
			return false;
		if (!merge_all() || !migrate_follow())
			return false;
		if (madvise(a, NPAGES * psz, MADV_UNMERGEABLE))
			return false;
		if (!merge_all() || !migrate_follow())
			return false;
	}
	return true;
}

/* PR_SET_MEMORY_MERGE, ksmd: the pages of new vmas, merged with neighbours. */
static bool test_merge_any(void)
{
	bool was = use_merge;
	bool ok = false;
	char *r, *to;
	int i;

	if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		return false;
	use_merge = false;
	seed += 1000;
	r = room(2 * NPAGES + 4) + psz;
	for (i = 0; i < 2 * NPAGES; i++) {
		if (mmap(r + i * psz, psz, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_FIXED, -1, 0) != r + i * psz)
			goto out;
		fill(r + i * psz, seed + i % NPAGES);
		add_map(0, r + i * psz, seed + i % NPAGES);
	}
	if (!merge_all() || !migrate_follow())
		goto out;
	add_range(child(NULL, NULL), r, NPAGES, seed);
	if (!migrate_follow())
		goto out;
	to = room(4) + psz;
	if (mremap(r + 3 * psz, psz, psz, MREMAP_MAYMOVE | MREMAP_FIXED,
		   to) != to)
		goto out;
	forget_range(0, r + 3 * psz, 1);
	add_range(0, to, 1, seed + 3);
	ok = migrate_follow();
out:
	if (!ok)
		ksft_perror("failed");
	use_merge = was;
	prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
	return ok;
}

static sig_atomic_t sigbus;

static void on_sigbus(int sig)
{
	__atomic_store_n(&sigbus, 1, __ATOMIC_RELAXED);
}

static bool mce_early(void *arg)
{
	char *page = arg;

	if (page && munmap(page, psz))
		return false;
	return !prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
}

/* Was the child, which ignores nothing, killed by SIGBUS? */
static bool killed(pid_t pid)
{
	int status, tries = 50;

	while (--tries) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
		usleep(10000);
	}
	return false;
}

/* When memory fails, who maps it is told, and nobody else. */
static bool test_memory_failure(void)
{
	struct sigaction sa = { .sa_handler = on_sigbus };
	char *b, *a = two_ranges(&b);
	pid_t with, without;
	bool ok = true;

	if (!a)
		return false;
	with = child(mce_early, NULL);
	without = child(mce_early, a);
	nchildren -= 2;
	sigaction(SIGBUS, &sa, NULL);
	if (madvise(a, psz, MADV_HWPOISON) && !__atomic_load_n(&sigbus, __ATOMIC_RELAXED)) {
		ksft_perror("MADV_HWPOISON");
		ok = false;
	}
	if (ok && !killed(with)) {
		ksft_print_msg("who maps the page was not told\n");
		ok = false;
	}
	/* It maps b's page, too: that one is the same. */
	kill(with, SIGKILL);
	kill(without, SIGKILL);
	waitpid(with, NULL, 0);
	waitpid(without, NULL, 0);
	signal(SIGBUS, SIG_DFL);
	return ok;
}

/*
 * The processes forked from us before have their own view: one without the page,
 * but with a neighbour of it in the same anon_vma, has nothing to do with it.
 */
static bool unmap_both(void *arg)
{
	struct move *pages = arg;

	return !munmap(pages->from, psz) && !munmap(pages->to, psz) &&
	       mce_early(NULL);
}

static bool test_memory_failure_stranger(void)
{
	struct sigaction sa = { .sa_handler = on_sigbus };
	char *b, *a = two_ranges(&b);
	struct move pages = {};
	bool ok = true;
	pid_t pid;

	if (!a)
		return false;
	pages.from = a;
	pages.to = b;
	pid = child(unmap_both, &pages);
	nchildren--;
	__atomic_store_n(&sigbus, 0, __ATOMIC_RELAXED);
	sigaction(SIGBUS, &sa, NULL);
	if (madvise(a, psz, MADV_HWPOISON) && !__atomic_load_n(&sigbus, __ATOMIC_RELAXED))
		ok = false;
	if (ok && killed(pid)) {
		ksft_print_msg("who does not map the page was killed for it\n");
		ok = false;
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	signal(SIGBUS, SIG_DFL);
	return ok;
}

/*
 * A process that has merged, has forked a child, and is gone, or has given up
 * the pages: the child, which has never been looked at, still maps them.
 */
enum give_up {
	GIVE_UP_EXIT,
	GIVE_UP_UNMAP,
	GIVE_UP_WRITE,
	GIVE_UP_WRITE_AND_MERGE,
};

static bool outlived(enum give_up how)
{
	char *b, *a;
	int fds[2], i;
	pid_t parent, pid = 0;

	if (pipe(fds))
		return false;
	parent = fork();
	if (!parent) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		a = two_ranges(&b);
		pid = a ? fork() : -1;
		if (!pid)
			for (;;)
				pause();
		if (write(fds[1], &pid, sizeof(pid)) < 0 ||
		    write(fds[1], &a, sizeof(a)) < 0 ||
		    write(fds[1], &b, sizeof(b)) < 0 || pid < 0)
			_exit(1);
		switch (how) {
		case GIVE_UP_EXIT:
			_exit(0);
		case GIVE_UP_UNMAP:
			munmap(a, NPAGES * psz);
			munmap(b, NPAGES * psz);
			break;
		case GIVE_UP_WRITE_AND_MERGE:
		case GIVE_UP_WRITE:
			fill_range(a, NPAGES, seed + 500);
			fill_range(b, NPAGES, seed + 600);
			if (how == GIVE_UP_WRITE || !use_merge)
				break;
			/* Unique as they are: candidates, of the same items. */
			madvise(a, NPAGES * psz, MADV_MERGE);
			madvise(b, NPAGES * psz, MADV_MERGE);
			break;
		}
		i = 0;
		if (write(fds[1], &i, sizeof(i)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	if (parent < 0 || read(fds[0], &pid, sizeof(pid)) != sizeof(pid) || pid < 0)
		return false;
	children[nchildren++] = pid;
	if (read(fds[0], &a, sizeof(a)) != sizeof(a) ||
	    read(fds[0], &b, sizeof(b)) != sizeof(b))
		return false;
	if (how == GIVE_UP_EXIT) {
		waitpid(parent, NULL, 0);
	} else {
		children[nchildren++] = parent;
		if (read(fds[0], &i, sizeof(i)) != sizeof(i))
			return false;
	}
	/* What exit left to a work item, and what ksmd drops, if it runs. */
	usleep(300000);
	seed += 1000;
	add_range(pid, a, NPAGES, seed);
	add_range(pid, b, NPAGES, seed);
	if (!migrate_follow())
		return false;
	if (!full_scans(2))
		return false;
	/* Longer than it takes to look for what is of no use any more. */
	usleep(2500000);
	if (!migrate_follow())
		return false;
	return !have_swap || (reclaim_all() && contents_all());
}

static bool test_outlived_exit(void)
{
	return outlived(GIVE_UP_EXIT);
}

static bool test_outlived_unmap(void)
{
	return outlived(GIVE_UP_UNMAP);
}

static bool test_outlived_write(void)
{
	return outlived(GIVE_UP_WRITE);
}

static bool test_outlived_merge(void)
{
	return outlived(GIVE_UP_WRITE_AND_MERGE);
}

struct test {
	const char *name;
	bool (*run)(void);
	bool wants_swap;
};

static const struct test tests[] = {
	{ "two ranges", test_plain },
	{ "three generations", test_fork },
	{ "vmas split and merged", test_split_merge },
	{ "mremap", test_mremap },
	{ "mremap in a child", test_mremap_child },
	{ "mremap, the old place in use again", test_dontunmap },
	{ "mremap while swapped out", test_mremap_swapped, true },
	{ "mremap while swapped out, in a child", test_mremap_swapped_child, true },
	{ "mremap while swapped out, then reclaim", test_mremap_reclaim, true },
	{ "mremap onto where the page was", test_mremap_onto, true },
	{ "private file mapping", test_file },
	{ "private file mapping, mremap", test_file_mremap },
	{ "more mappings than a node takes", test_chain },
	{ "out of the tree and in again", test_again },
	{ "PR_SET_MEMORY_MERGE", test_merge_any },
	{ "reclaim", test_reclaim, true },
	{ "child of a process that has exited", test_outlived_exit },
	{ "child of a process that has unmapped them", test_outlived_unmap },
	{ "child of a process that has written to them", test_outlived_write },
	{ "child of a process that has merged others", test_outlived_merge },
	{ "memory failure", test_memory_failure },
	{ "memory failure, strangers", test_memory_failure_stranger },
};

static bool setup_swap(void)
{
	char line[256];
	FILE *fp;
	int lines = 0;

	fp = fopen("/proc/swaps", "r");
	if (!fp)
		return false;
	while (fgets(line, sizeof(line), fp))
		lines++;
	fclose(fp);
	if (lines < 2)
		return false;
	write_str("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		return false;
	if (access(CGROUP "/memory.reclaim", W_OK))
		return false;
	reclaim_server();
	return !write_str(CGROUP "/cgroup.procs", "0");
}

static bool probe_merge(void)
{
	char *page = anon(1);
	bool ok;

	fill(page, 1);
	ok = !madvise(page, psz, MADV_MERGE);
	munmap(page, psz);
	return ok;
}

int main(int argc, char **argv)
{
	long run, pages, sleep_ms, zero, smart;
	unsigned int i;

	psz = sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	ksft_print_header();
	if (geteuid() || access(KSM_SYSFS "run", W_OK))
		ksft_exit_skip("needs root and KSM\n");
	use_merge = !(argc > 1 && !strcmp(argv[1], "ksmd")) && probe_merge();
	two_nodes = !access("/sys/devices/system/node/node1", F_OK);
	have_swap = setup_swap();
	if (!two_nodes)
		ksft_exit_skip("needs two nodes\n");
	ksft_print_msg("merging with %s\n", use_merge ? "MADV_MERGE" : "ksmd");

	run = read_long(KSM_SYSFS "run");
	pages = read_long(KSM_SYSFS "pages_to_scan");
	sleep_ms = read_long(KSM_SYSFS "sleep_millisecs");
	zero = read_long(KSM_SYSFS "use_zero_pages");
	write_str(KSM_SYSFS "run", "0");
	write_str(KSM_SYSFS "pages_to_scan", "4000");
	write_str(KSM_SYSFS "sleep_millisecs", "0");
	write_str(KSM_SYSFS "use_zero_pages", "0");
	/* Two pages that are skipped in turns would never meet. */
	smart = read_long(KSM_SYSFS "smart_scan");
	write_str(KSM_SYSFS "smart_scan", "0");

	ksft_set_plan(ARRAY_SIZE(tests));
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		pid_t pid;
		int status = 1;

		if (tests[i].wants_swap && !have_swap) {
			ksft_test_result_skip("%s: rmap: %s: no swap, or no memory.reclaim\n",
					      use_merge ? "merge" : "ksm", tests[i].name);
			continue;
		}
		/* Each in a process of its own: nothing is left of the last. */
		fflush(stdout);
		seed = (i + 1) * 100000;
		pid = fork();
		if (!pid) {
			bool ok = tests[i].run();

			while (nchildren)
				kill(children[--nchildren], SIGKILL);
			fflush(stdout);
			_exit(!ok);
		}
		waitpid(pid, &status, 0);
		write_str(KSM_SYSFS "run", "0");
		ksft_test_result(!status, "%s: rmap: %s\n", use_merge ? "merge" : "ksm",
				 tests[i].name);
	}

	write_str(KSM_SYSFS "smart_scan", "%ld", smart);
	write_str(KSM_SYSFS "use_zero_pages", "%ld", zero);
	write_str(KSM_SYSFS "sleep_millisecs", "%ld", sleep_ms);
	write_str(KSM_SYSFS "pages_to_scan", "%ld", pages);
	write_str(KSM_SYSFS "run", "%ld", run);
	ksft_finished();
}
