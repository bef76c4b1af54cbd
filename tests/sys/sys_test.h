/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tests of sys/ share: cmocka with what it needs before it, skips with a
 * reason, the number of open descriptors, memory with a known content. */
#ifndef SAMEPAGE_TESTS_SYS_H
#define SAMEPAGE_TESTS_SYS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/fault.h"
#include "sys/sys.h"

#define SKIP(why)                                                                                  \
	do {                                                                                       \
		print_message("# skipped: %s\n", why);                                             \
		skip();                                                                            \
	} while (0)

/* Descriptors of this thread's table, less the one that counts. */
static inline int test_open_fds(void)
{
	DIR *dir = opendir("/proc/thread-self/fd");
	int n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 3;
}

/* Small pages, private and anonymous; the first byte of page i is i + 1 when filled. */
static inline unsigned char *test_map(size_t pages, bool fill)
{
	size_t bytes = pages * sys_page_bytes();
	intptr_t at = sys_real.mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(at > 0);
	sys_real.madvise((void *)at, bytes, MADV_NOHUGEPAGE);
	for (size_t i = 0; fill && i < pages; i++)
		((unsigned char *)at)[i * sys_page_bytes()] = (unsigned char)(i + 1);
	return (unsigned char *)at;
}

static inline void test_unmap(void *at, size_t pages)
{
	assert_int_equal(sys_real.munmap(at, pages * sys_page_bytes()), 0);
}

/* Every test ends with the real table, and with as many descriptors as it began. */
static int test_fds_before;

static inline int test_setup(void **state)
{
	(void)state;
	sys_fault_reset();
	test_fds_before = test_open_fds();
	return 0;
}

static inline int test_teardown(void **state)
{
	int now = test_open_fds();

	(void)state;
	sys_fault_reset();
	if (now == test_fds_before)
		return 0;
	print_message("# %d descriptors open before the test, %d after\n", test_fds_before, now);
	return -1;
}

/*
 * cmocka 1.1.5 calls a skipped test "not ok N # SKIP name", which meson 1.0 takes
 * for a failure: so the tests run in a child, and what it prints is put right, with
 * the reason that SKIP() printed just before.
 */
static inline void test_filter(FILE *in)
{
	char line[1024];
	char why[1024] = "";
	char name[256];
	int number;

	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, "# skipped: %1023[^\n]", why) == 1)
			continue;
		if (sscanf(line, "not ok %d # SKIP %255s", &number, name) == 2)
			printf("ok %d - %s # SKIP %s\n", number, name, why);
		else
			fputs(line, stdout);
		fflush(stdout);
	}
}

static inline int test_exit_code(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 99;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Returns in the child; the parent ends here. */
static inline void test_put_skips_right(void)
{
	int out[2];
	pid_t child;
	FILE *in;

	if (pipe2(out, O_CLOEXEC) < 0 || (child = fork()) < 0)
		abort();
	if (child == 0) {
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		setvbuf(stdout, NULL, _IOLBF, 0);
		return;
	}
	close(out[1]);
	in = fdopen(out[0], "r");
	if (!in)
		abort();
	test_filter(in);
	exit(test_exit_code(child));
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, test_setup, test_teardown)

#endif
