/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Same answers as the bare system call: for bad arguments the same errno, on success
 * errno as it was. If this failed, programs that probe (and test suites, and
 * sanitizers) would take another path under the preload library. Also: calls made
 * before the constructor ran must work.
 */
#include <sched.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "shimtest.h"

static size_t page;
static bool early_ok, early_ready;

/* Runs before the shim's constructor, which has no priority. */
__attribute__((constructor(101))) static void early(void)
{
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *p;

	early_ready = shim_is_ready();
	p = mmap(NULL, 4 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return;
	p[0] = 1;
	early_ok = mprotect(p, bytes, PROT_READ) == 0 && madvise(p, bytes, MADV_DONTNEED) == 0 &&
		   sbrk(0) != (void *)-1 && syscall(SYS_getpid) == getpid() &&
		   mremap(p + bytes, bytes, bytes, 0) == p + bytes && munmap(p, 4 * bytes) == 0;
}

static void before_the_constructor(void **state)
{
	assert_false(early_ready);
	assert_true(early_ok);
	assert_true(shim_is_ready());
}

/* Both through libc's name and through syscall(), against the kernel. */
#define SAME(call, n, ...)                                                                         \
	do {                                                                                       \
		long want = sys_raw(n, __VA_ARGS__), got;                                          \
		errno = 0;                                                                         \
		got = (long)(call);                                                                \
		assert_int_equal(got == -1 ? -errno : got, want);                                  \
		errno = 0;                                                                         \
		got = syscall(n, __VA_ARGS__);                                                     \
		assert_int_equal(got == -1 ? -errno : got, want);                                  \
	} while (0)

static void bad_arguments(void **state)
{
	uint8_t *p = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *hole = p + 2 * page;
	volatile size_t none = 0, huge = SIZE_MAX;
	int private = MAP_PRIVATE | MAP_ANONYMOUS;

	sys_raw(SYS_munmap, hole, page);
	SAME(mmap(NULL, none, PROT_READ, private, -1, 0), SYS_mmap, 0L, 0L, (long)PROT_READ,
	     (long)private, -1L, 0L);
	SAME(mmap(NULL, huge, PROT_READ, private, -1, 0), SYS_mmap, 0L, huge, (long)PROT_READ,
	     (long)private, -1L, 0L);
	SAME(mmap(p + 1, page, PROT_READ, private | MAP_FIXED, -1, 0), SYS_mmap, p + 1, page,
	     (long)PROT_READ, (long)private | MAP_FIXED, -1L, 0L);
	SAME(mmap(NULL, page, PROT_READ, MAP_PRIVATE, -1, 0), SYS_mmap, 0L, page, (long)PROT_READ,
	     (long)MAP_PRIVATE, -1L, 0L);
	SAME(mmap(NULL, page, PROT_READ, MAP_PRIVATE, 0, 1), SYS_mmap, 0L, page, (long)PROT_READ,
	     (long)MAP_PRIVATE, 0L, 1L);
	SAME(munmap(p + 1, page), SYS_munmap, p + 1, page);
	SAME(munmap(p, none), SYS_munmap, p, 0L);
	SAME(munmap(p, huge), SYS_munmap, p, huge);
	SAME(mremap(hole, page, page, 0), SYS_mremap, hole, page, page, 0L);
	SAME(mremap(p + 1, page, page, 0), SYS_mremap, p + 1, page, page, 0L);
	SAME(mremap(p, page, none, 0), SYS_mremap, p, page, 0L, 0L);
	SAME(mremap(p, none, page, MREMAP_MAYMOVE), SYS_mremap, p, 0L, page, 1L);
	/* A refused MREMAP_FIXED may cost ownership, so not of the pages looked at below. */
	SAME(mremap(hole + page, page, page, MREMAP_FIXED, hole + page), SYS_mremap, hole + page,
	     page, page, 2L, hole + page);
	SAME(mprotect(hole, page, PROT_READ), SYS_mprotect, hole, page, 1L);
	SAME(mprotect(p + 1, page, PROT_READ), SYS_mprotect, p + 1, page, 1L);
	SAME(madvise(hole, page, MADV_DONTNEED), SYS_madvise, hole, page, 4L);
	SAME(madvise(p + 1, page, MADV_DONTNEED), SYS_madvise, p + 1, page, 4L);
	SAME(madvise(p, none, MADV_DONTNEED), SYS_madvise, p, 0L, 4L);
	SAME(madvise(p, page, 12345), SYS_madvise, p, page, 12345L);
	SAME(mlock(hole, page), SYS_mlock, hole, page);
	SAME(munlock(hole, page), SYS_munlock, hole, page);
	SAME(mlock2(p, page, 0x100), SYS_mlock2, p, page, 0x100L);
	SAME(mlockall(0x100), SYS_mlockall, 0x100L);
	SAME(shmat(-1, NULL, 0), SYS_shmat, -1L, 0L, 0L);
	SAME(process_madvise(-1, NULL, 1, MADV_COLD, 0), SYS_process_madvise, -1L, 0L, 1L,
	     (long)MADV_COLD, 0L);
	assert_int_equal(posix_madvise(hole, page, POSIX_MADV_WILLNEED), ENOMEM);
	assert_int_equal(syscall(987654), -1);
	assert_int_equal(errno, ENOSYS);
	assert_true(owned_now(p, 2 * page));
	munmap(p, 4 * page);
}

static void errno_is_kept(void **state)
{
	uint8_t *p;

	errno = 4242;
	p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(p, page, PROT_READ);
	madvise(p, page, MADV_DONTNEED);
	madvise(p, page, MADV_MERGEABLE);
	p = mremap(p, page, page, 0);
	syscall(SYS_munmap, p, 2 * page);
	sbrk(0);
	assert_int_equal(errno, 4242);
}

static void shared_memory(void **state)
{
	int id = shmget(IPC_PRIVATE, 4 * page, IPC_CREAT | 0600);
	uint8_t *p, *q;

	if (id < 0)
		skip();
	p = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	q = shmat(id, p + 2 * page, SHM_REMAP);
	shmctl(id, IPC_RMID, NULL);
	assert_ptr_equal(q, p + 2 * page);
	assert_true(owned_now(p, 2 * page));
	assert_false(any_owned_now(q, 4 * page));
	assert_true(owned_now(p + 6 * page, 2 * page));
	assert_int_equal(shmdt(q), 0);
	munmap(p, 8 * page);
}

static void advice_to_oneself(void **state)
{
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0L);
	uint8_t *p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec iov[2] = { { p, page }, { p + page, page } };

	if (pidfd < 0)
		skip();
	memset(p, 1, 2 * page);
	/* Before Linux 6.13 the kernel takes no such advice, and we say so. */
	if (syscall(SYS_process_madvise, pidfd, iov, 0, MADV_DONTNEED, 0) < 0) {
		assert_int_equal(process_madvise(pidfd, iov, 2, MADV_DONTNEED, 0), -1);
		assert_int_equal(errno, EINVAL);
		close(pidfd);
		skip();
	}
	assert_int_equal(process_madvise(pidfd, iov, 2, MADV_DONTNEED, 0), 2 * page);
	assert_int_equal(p[0] + p[page], 0);
	close(pidfd);
	munmap(p, 2 * page);
}

/* After mlockall nothing is owned any more: last, in a child. */
static void all_locked(void **state)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		uint8_t *p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		bool before = owned_now(p, page);

		if (mlockall(MCL_FUTURE) < 0)
			_exit(77);
		p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		_exit(!(before && !any_owned_now(NULL, (size_t)INTPTR_MAX)));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(before_the_constructor), cmocka_unit_test(bad_arguments),
		cmocka_unit_test(errno_is_kept),	  cmocka_unit_test(shared_memory),
		cmocka_unit_test(advice_to_oneself),	  cmocka_unit_test(all_locked),
	};

	page = sys_page_bytes();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
