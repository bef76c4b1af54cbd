/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Large blocks of malloc, which libc maps by itself: merged, also with another process's,
 * they must have the bytes that were written to them, through realloc, free, fork and
 * threads, and memory that comes after them must be as malloc's and calloc's is. See keep.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "keep.h"

#define BYTES (4 * PAGES * page) /* 1 MiB: above the threshold */
#define DATA(block) ((char *)(((uintptr_t)(block) + page - 1) & ~(page - 1)))

static void *checked(void *p)
{
	if (!p)
		_exit(95);
	return p;
}

/* 3 * PAGES whole pages are in a block: as many generations. */
static void fill_block(void *block)
{
	for (unsigned gen = 0; gen < 3; gen++)
		fill(DATA(block) + gen * PAGES * page, PAGES, gen);
}

static void *merged_block(void)
{
	void *block = checked(malloc(BYTES));

	fill_block(block);
	wait_merged(DATA(block), 3 * PAGES * page, 3 * PAGES);
	return block;
}

static void show_block(const char *what, const void *block)
{
	for (unsigned gen = 0; gen < 3; gen++)
		show(what, DATA(block) + gen * PAGES * page, PAGES, gen);
}

static void written(void)
{
	char *block = merged_block();

	show_block("merged", block);
	for (unsigned i = 0; i < 3 * PAGES; i += 5)
		DATA(block)[i * page + i] ^= 0x55;
	show_block("written", block);
	printf("usable: %d\n", malloc_usable_size(block) >= BYTES);
	free(block);
	block = checked(calloc(BYTES / 8, 8));
	printf("zeros: %016lx\n", hash(block, BYTES));
	free(block);
}

/* Where its whole pages begin in a block depends on whose it is: from there on. */
static void reallocated(void)
{
	char *block = merged_block();
	size_t lead = (size_t)(DATA(block) - block), kept = PAGES * page;

	block = checked(realloc(block, 40 * BYTES));
	printf("grown: %016lx\n", hash(block + lead, 3 * PAGES * page));
	memset(block + lead, 7, 39 * BYTES);
	printf("filled: %016lx\n", hash(block + lead, 39 * BYTES));
	block = checked(realloc(block, 3 * BYTES));
	printf("smaller: %016lx\n", hash(block + lead, 2 * BYTES));
	free(block);
	block = merged_block();
	lead = (size_t)(DATA(block) - block);
	block = checked(realloc(block, kept + page));
	printf("small: %016lx\n", hash(block + lead, kept));
	block = checked(realloc(block, BYTES));
	printf("from small: %016lx\n", hash(block + lead, kept));
	printf("none: %d\n", realloc(block, 0) == NULL);
}

/* Again and again while it is merged, as a program reads a file. */
static void grows(void)
{
	char *block = merged_block();

	for (size_t pages = 4 * PAGES; pages < 16 * PAGES; pages += PAGES) {
		block = checked(realloc(block, (pages + PAGES) * page));
		fill(DATA(block) + (pages - PAGES) * page, PAGES, 9);
		show_block("begin", block);
		show("end", DATA(block) + (pages - PAGES) * page, PAGES, 9);
		wait_merged(DATA(block), 3 * PAGES * page, 3 * PAGES);
	}
	free(block);
}

static void forked(void)
{
	char *block = merged_block(), *other;
	pid_t pid = fork();

	if (pid == 0) {
		show_block("child", block);
		memset(DATA(block), 1, PAGES * page);
		block = checked(realloc(block, 8 * BYTES));
		printf("child: %016lx\n", hash(DATA(block), 3 * PAGES * page));
		free(block);
		other = checked(calloc(1, BYTES));
		printf("child: %016lx\n", hash(other, BYTES));
		fflush(NULL);
		_exit(7);
	}
	end_of("child", pid);
	show_block("parent", block);
	free(block);
}

/* Frame numbers of n pages; 0 where they are not to be seen. */
static void frames(const char *p, uint64_t *frame, size_t n)
{
	FILE *map = fopen("/proc/self/pagemap", "re");

	memset(frame, 0, n * sizeof(*frame));
	if (!map || fseek(map, (long)((uintptr_t)p / page * 8), SEEK_SET) != 0 ||
	    fread(frame, sizeof(*frame), n, map) != n)
		_exit(94);
	fclose(map);
	for (size_t i = 0; i < n; i++)
		frame[i] &= (UINT64_C(1) << 55) - 1;
}

/* A page of the block's that is in it once, and in the other process's as well. */
static void two_processes(void)
{
	uint64_t here[PAGES / 2], there[PAGES / 2];
	size_t same = 0, seen = 0;
	int to[2], from[2];
	char *block, c = 0;
	pid_t pid;

	if (pipe(to) < 0 || pipe(from) < 0)
		_exit(93);
	pid = fork();
	block = checked(malloc(BYTES));
	memset(block, 0, BYTES);
	fill(DATA(block), PAGES / 2, 3);
	wait_merged(DATA(block), PAGES / 2 * page, PAGES / 2);
	for (size_t i = 0; i < PAGES / 2; i++)
		c = (char)(c + ((volatile char *)DATA(block))[i * page]); /* so that it is there */
	frames(DATA(block), here, PAGES / 2);
	if (pid == 0) {
		c = write(from[1], here, sizeof(here)) == (ssize_t)sizeof(here) ? 0 : 1;
		_exit(read(to[0], &c, 1) == 1 ? c : 1);
	}
	if (read(from[0], there, sizeof(there)) != (ssize_t)sizeof(there))
		_exit(92);
	for (size_t i = 0; i < PAGES / 2; i++) {
		seen += here[i] != 0;
		same += here[i] == there[i];
	}
	c = 0;
	if (write(to[1], &c, 1) != 1)
		_exit(91);
	end_of("other", pid);
	fprintf(stderr, "%zu frames seen, %zu in common\n", seen, same);
	printf("as they should be: %d\n", seen == 0 || same == (with_samepage() ? PAGES / 2 : 0));
	free(block);
}

static void register_pages(int fd, const char *what, char *start, size_t bytes)
{
	struct uffdio_register reg = { .range = { (uintptr_t)start, bytes },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };

	printf("%s: %d\n", what, ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? errno : 0);
	ioctl(fd, UFFDIO_UNREGISTER, &reg.range);
}

/* The program's own registrations, also of the page with libc's header. */
static void registered(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	char *block = merged_block(), *other = merged_block();
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0) {
		puts("not permitted here");
		return;
	}
	register_pages(fd, "header", DATA(block) - page, page);
	register_pages(fd, "block", DATA(block) - page, 2 * PAGES * page);
	register_pages(fd, "other", DATA(other) - page, 4 * PAGES * page);
	show_block("registered", block);
	show_block("registered", other);
	free(block);
	free(other);
	close(fd);
}

static struct timespec in_seconds(unsigned seconds)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += seconds;
	return t;
}

static int over(const struct timespec *end)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec > end->tv_sec || (t.tv_sec == end->tv_sec && t.tv_nsec >= end->tv_nsec);
}

#define THREADS 4
#define ROUNDS 300

static void *work(void *arg)
{
	uint64_t x = (uintptr_t)arg * 0x9e3779b97f4a7c15u;
	uintptr_t bad = 0;

	for (unsigned i = 0; i < ROUNDS; i++) {
		size_t first, second;
		unsigned char *p;

		x = x * 6364136223846793005u + 1442695040888963407u;
		first = (x >> 33) % (2 * BYTES) + 1;
		second = (x >> 20) % (2 * BYTES) + 1;
		p = i % 3 ? checked(malloc(first)) : checked(calloc(1, first));
		if (i % 3 == 0)
			for (size_t k = 0; k < first; k += 256)
				bad += p[k] != 0;
		memset(p, (int)i | 1, first);
		p = checked(realloc(p, second));
		for (size_t k = 0; k < first && k < second; k++)
			bad += p[k] != (unsigned char)(i | 1);
		free(p);
	}
	return (void *)bad;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	char *block = merged_block();
	uintptr_t bad = 0;

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)(i + 1)) != 0)
			_exit(90);
	for (int i = 0; i < 50; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(work((void *)(uintptr_t)(i + 9)) ? 1 : 0);
		kill(pid, i % 2 ? SIGKILL : 0);
		waitpid(pid, NULL, 0);
		nap(5);
	}
	for (int i = 0; i < THREADS; i++) {
		void *one;

		pthread_join(thread[i], &one);
		bad += (uintptr_t)one;
	}
	printf("bad: %lu\n", (unsigned long)bad);
	show_block("untouched", block);
	free(block);
}

/* Mappings come and go all the time, many side by side, while they are looked for. */
static void *come_and_go(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	char *block[64] = { NULL };

	for (struct timespec end = in_seconds(3); !over(&end);) {
		size_t bytes;
		unsigned i;

		seed = seed * 1664525 + 1013904223;
		i = (seed >> 8) % 64;
		bytes = 540000 + (seed >> 12) % 1500000;
		if (block[i] && block[i][60000] != (char)i)
			_exit(89);
		free(block[i]);
		block[i] = checked(malloc(bytes));
		block[i][60000] = block[i][bytes / 2] = (char)i;
	}
	for (unsigned i = 0; i < 64; i++)
		free(block[i]);
	return NULL;
}

static void churn(void)
{
	char *block = merged_block();
	pthread_t thread[3];

	for (uintptr_t i = 0; i < 3; i++)
		if (pthread_create(&thread[i], NULL, come_and_go, (void *)(i + 1)) != 0)
			_exit(90);
	for (int i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	show_block("untouched", block);
	free(block);
}

int main(int argc, char **argv)
{
	static const struct keep_case cases[] = {
		{ "written", written },
		{ "reallocated", reallocated },
		{ "grows", grows },
		{ "forked", forked },
		{ "two_processes", two_processes },
		{ "registered", registered },
		{ "threads", threads },
		{ "churn", churn },
	};

	return keep_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
