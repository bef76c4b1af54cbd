/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the programs in this directory share.
 *
 * Each asserts one kernel behaviour and prints one line a fact: "ok WHAT",
 * "FAILED WHAT: ...", or "note ..." for what was learnt without being needed.
 * Exit 0: all hold. 1: one does not, or the set-up failed. 77: skipped, with
 * the reason printed. A watchdog turns a hang into a failure: a thread that the
 * kernel never wakes again is one of the things looked for.
 */
#ifndef SAMEPAGE_TESTS_ASSUME_H
#define SAMEPAGE_TESTS_ASSUME_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/uapi.h"

static int assume_failed;

#define NOTE(...) (printf("note "), printf(__VA_ARGS__), putchar('\n'))

#define SKIP(...) (printf("skip "), printf(__VA_ARGS__), putchar('\n'), exit(77))

/* What is asserted: goes on after a failure, so that one run tells everything. */
#define CHECK(cond, ...) \
	do { \
		int saved_errno_ = errno; \
		if (cond) { \
			printf("ok "); \
			printf(__VA_ARGS__); \
			putchar('\n'); \
		} else { \
			assume_failed = 1; \
			printf("FAILED "); \
			printf(__VA_ARGS__); \
			printf(": line %d: !(%s), errno %d (%s)\n", __LINE__, #cond, saved_errno_, \
			       strerror(saved_errno_)); \
		} \
	} while (0)

/* Set-up without which the rest makes no sense. */
#define MUST(cond) \
	do { \
		if (!(cond)) { \
			printf("FAILED set-up: %s:%d: %s: %s\n", __FILE__, __LINE__, #cond, \
			       strerror(errno)); \
			exit(1); \
		} \
	} while (0)

static void assume_timeout(int sig)
{
	static const char text[] = "FAILED timeout: something waits for ever\n";
	ssize_t n = write(STDOUT_FILENO, text, sizeof(text) - 1);

	_exit(n < 0 ? 2 : 1 + 0 * sig);
}

static inline void assume_begin(unsigned int timeout_sec)
{
	static char buf[BUFSIZ];

	setvbuf(stdout, buf, _IOLBF, sizeof(buf));
	signal(SIGALRM, assume_timeout);
	alarm(timeout_sec);
}

static inline size_t page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static inline unsigned char *at(void *base, size_t page)
{
	return (unsigned char *)base + page * page_bytes();
}

/* Private anonymous pages with an unmapped page on each side: no stray merge. */
static inline void *anon_pages(size_t pages, int prot)
{
	unsigned char *p = mmap(NULL, (pages + 2) * page_bytes(), PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	MUST(p != MAP_FAILED);
	MUST(mmap(at(p, 1), pages * page_bytes(), prot,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	MUST(!munmap(p, page_bytes()) && !munmap(at(p, pages + 1), page_bytes()));
	return at(p, 1);
}

static inline void fill_page(void *page, unsigned int seed)
{
	unsigned char *p = page;

	for (size_t i = 0; i < page_bytes(); i++)
		p[i] = (unsigned char)(seed * 131 + i * 7 + i / 251 + 1);
}

static inline bool page_is(const void *page, unsigned int seed)
{
	const unsigned char *p = page;

	for (size_t i = 0; i < page_bytes(); i++)
		if (p[i] != (unsigned char)(seed * 131 + i * 7 + i / 251 + 1))
			return false;
	return true;
}

static inline bool page_is_zero(const void *page)
{
	const unsigned char *p = page;

	for (size_t i = 0; i < page_bytes(); i++)
		if (p[i])
			return false;
	return true;
}

/* A memfd whose page i holds fill_page(seed + i). */
static inline int memfd_pages(size_t pages, unsigned int seed)
{
	int fd = (int)syscall(SYS_memfd_create, "assume", 0x0001U | 0x0002U);
	void *map;

	MUST(fd >= 0);
	MUST(!ftruncate(fd, (off_t)(pages * page_bytes())));
	map = mmap(NULL, pages * page_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(map != MAP_FAILED);
	for (size_t i = 0; i < pages; i++)
		fill_page(at(map, i), seed + (unsigned int)i);
	MUST(!munmap(map, pages * page_bytes()));
	return fd;
}

static inline int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* How many mappings /proc/self/maps shows that touch [start, start + bytes). */
static inline int count_vmas(const void *start, size_t bytes)
{
	uintptr_t lo = (uintptr_t)start, hi = lo + bytes;
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	int n = 0;

	MUST(f);
	while (fgets(line, sizeof(line), f)) {
		unsigned long a, b;

		if (sscanf(line, "%lx-%lx", &a, &b) == 2 && a < hi && b > lo)
			n++;
	}
	fclose(f);
	return n;
}

static inline uint64_t pagemap_entry(const void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t e = 0;

	MUST(fd >= 0);
	MUST(pread(fd, &e, sizeof(e), (off_t)((uintptr_t)addr / page_bytes() * 8)) == 8);
	close(fd);
	return e;
}

static inline bool page_present(const void *addr)
{
	return pagemap_entry(addr) >> 63;
}

/* Page frame number; 0 where not present or where the kernel does not tell us. */
static inline uint64_t page_frame(const void *addr)
{
	uint64_t e = pagemap_entry(addr);

	return e >> 63 ? e & ((1ULL << 55) - 1) : 0;
}

static inline void need_page_frames(void)
{
	volatile char here = 1;

	if (!page_frame((const void *)&here))
		SKIP("no page frame numbers in /proc/self/pagemap (CAP_SYS_ADMIN needed)");
}

/* A userfaultfd that also handles kernel-mode faults, or a skip. */
static inline int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (dev >= 0) {
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
			close(dev);
		}
	}
	if (fd < 0)
		SKIP("no userfaultfd for kernel-mode faults: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api))
		SKIP("userfaultfd without features %#llx: %s", (unsigned long long)features,
		     strerror(errno));
	return fd;
}

static inline int uffd_register(int fd, const void *addr, size_t bytes)
{
	struct uffdio_register r = {
		.range = { .start = (uintptr_t)addr, .len = bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(fd, UFFDIO_REGISTER, &r);
}

static inline int uffd_unregister(int fd, const void *addr, size_t bytes)
{
	struct uffdio_range r = { .start = (uintptr_t)addr, .len = bytes };

	return ioctl(fd, UFFDIO_UNREGISTER, &r);
}

static inline int uffd_wake(int fd, const void *addr, size_t bytes)
{
	struct uffdio_range r = { .start = (uintptr_t)addr, .len = bytes };

	return ioctl(fd, UFFDIO_WAKE, &r);
}

/* 0 or -errno; *moved is what the kernel reported in its "move" field. */
static inline int uffd_move(int fd, void *dst, const void *src, size_t bytes, uint64_t mode,
			    int64_t *moved)
{
	struct sys_uffdio_move m = {
		.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = bytes, .mode = mode,
	};
	int rc = ioctl(fd, SYS_UFFDIO_MOVE, &m) ? -errno : 0;

	if (moved)
		*moved = m.move;
	return rc;
}

static inline int assume_end(void)
{
	fflush(stdout);
	return assume_failed;
}

#endif
