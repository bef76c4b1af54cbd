/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fault points. If this failed, the tests that fail every system call in turn
 * (recovery after a failed commit, a broker without descriptors ...) would pass
 * without having failed anything, or blame the wrong call. Also: no entry, real or
 * faulted, may touch errno, which is memory that can be frozen.
 */
#include <pthread.h>

#include "calls.h"

#define ERROR 3999 /* no system call says that by itself */

static void every_point_fires_at_the_nth_call(void **state)
{
	(void)state;
	for (int i = 1; i < SYS_FAULT_COUNT; i++) {
		enum sys_fault_point point = (enum sys_fault_point)i;

		assert_int_equal(sys_fault_arm(point, 3, ERROR, 2), 0);
		assert_ptr_equal(sys, &sys_faulty);
		for (int call = 1; call <= 6; call++) {
			intptr_t r = refused_call(point);

			if (call == 3 || call == 4)
				assert_int_equal(r, -ERROR);
			else
				assert_int_not_equal(r, -ERROR);
			assert_true(r < 0);
		}
		assert_int_equal(sys_fault_calls(point), 6);
		assert_int_equal(sys_fault_hits(point), 2);
		sys_fault_reset();
		assert_ptr_equal(sys, &sys_real);
		assert_int_equal(sys_fault_calls(point), 0);
		assert_int_equal(sys_fault_hits(point), 0);
	}
}

static void zero_times_is_for_ever(void **state)
{
	(void)state;
	assert_int_equal(sys_fault_arm(SYS_FAULT_madvise, 2, ENOMEM, 0), 0);
	assert_int_equal(refused_call(SYS_FAULT_madvise), -EINVAL);
	for (int i = 0; i < 100; i++)
		assert_int_equal(refused_call(SYS_FAULT_madvise), -ENOMEM);
	/* arming anew begins to count anew */
	assert_int_equal(sys_fault_arm(SYS_FAULT_madvise, 2, EPERM, 1), 0);
	assert_int_equal(refused_call(SYS_FAULT_madvise), -EINVAL);
	assert_int_equal(refused_call(SYS_FAULT_madvise), -EPERM);
	assert_int_equal(refused_call(SYS_FAULT_madvise), -EINVAL);
}

static void count_only_counts_and_fails_nothing(void **state)
{
	(void)state;
	refused_call(SYS_FAULT_pread);
	assert_int_equal(sys_fault_calls(SYS_FAULT_pread), 0);
	sys_fault_count_only();
	for (int i = 0; i < 5; i++)
		assert_int_equal(refused_call(SYS_FAULT_pread), -EBADF);
	assert_int_equal(sys_fault_calls(SYS_FAULT_pread), 5);
	assert_int_equal(sys_fault_hits(SYS_FAULT_pread), 0);
	assert_int_equal(sys_fault_calls(SYS_FAULT_read), 0);
}

static void senseless_orders_are_refused(void **state)
{
	(void)state;
	assert_int_equal(sys_fault_arm(SYS_FAULT_NONE, 1, EIO, 1), -EINVAL);
	assert_int_equal(sys_fault_arm(SYS_FAULT_COUNT, 1, EIO, 1), -EINVAL);
	assert_int_equal(sys_fault_arm(SYS_FAULT_read, 0, EIO, 1), -EINVAL);
	assert_int_equal(sys_fault_arm(SYS_FAULT_read, 1, 0, 1), -EINVAL);
	assert_int_equal(sys_fault_arm(SYS_FAULT_read, 1, 4096, 1), -EINVAL);
	assert_ptr_equal(sys, &sys_real);
	assert_string_equal(sys_fault_name(SYS_FAULT_mmap), "mmap");
	assert_string_equal(sys_fault_name(SYS_FAULT_getrandom), "getrandom");
	assert_null(sys_fault_name(SYS_FAULT_COUNT));
}

static int from_env(const char *value)
{
	sys_fault_reset();
	setenv("SAMEPAGE_FAULT", value, 1);
	return sys_fault_from_env();
}

static void the_environment_arms(void **state)
{
	(void)state;
	unsetenv("SAMEPAGE_FAULT");
	assert_int_equal(sys_fault_from_env(), 0);
	assert_ptr_equal(sys, &sys_real);

	assert_int_equal(from_env("pread:2"), 0);
	assert_int_equal(refused_call(SYS_FAULT_pread), -EBADF);
	assert_int_equal(refused_call(SYS_FAULT_pread), -EIO);
	assert_int_equal(refused_call(SYS_FAULT_pread), -EBADF);

	assert_int_equal(from_env("read:1:12,open:2:24:3"), 0);
	assert_int_equal(refused_call(SYS_FAULT_read), -12);
	assert_int_equal(refused_call(SYS_FAULT_read), -EBADF);
	assert_int_equal(refused_call(SYS_FAULT_open), -ENOENT);
	for (int i = 0; i < 3; i++)
		assert_int_equal(refused_call(SYS_FAULT_open), -24);
	assert_int_equal(refused_call(SYS_FAULT_open), -ENOENT);
	unsetenv("SAMEPAGE_FAULT");
}

static void a_bad_environment_arms_nothing(void **state)
{
	static const char *const bad[] = {
		"read", "read:", "read:0", "read:x", "read:1:0", "read:1:4096", "read:1:5:",
		"read:1:5:1:1", "read:-1", "read: 1", "nothing:1", "none:1", "rea:1", "read:1,",
		",read:1", "read:1,,open:1", "read:1,open", "read:1,read:2", ":1", ",", "read,open:1",
		"read:99999999999999999999999",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (from_env(bad[i]) != -EINVAL)
			fail_msg("\"%s\" was taken", bad[i]);
		assert_ptr_equal(sys, &sys_real);
	}
	unsetenv("SAMEPAGE_FAULT");
}

static void errno_is_never_touched(void **state)
{
	(void)state;
	for (int pass = 0; pass < 3; pass++) {
		for (int i = 1; i < SYS_FAULT_COUNT; i++) {
			enum sys_fault_point point = (enum sys_fault_point)i;
			intptr_t r;

			sys_fault_reset();
			if (pass == 1)
				sys_fault_count_only();
			else if (pass == 2)
				sys_fault_arm(point, 1, ERROR, 0);
			errno = 4711;
			r = refused_call(point);
			assert_int_equal(errno, 4711);
			if (r >= 0 || (r == -ERROR) != (pass == 2))
				fail_msg("%s said %ld", sys_fault_name(point), (long)r);
		}
	}
}

static void a_faulted_close_closes(void **state)
{
	int fd = sys->open("/dev/null", O_RDONLY | O_CLOEXEC, 0);

	(void)state;
	assert_true(fd >= 0);
	sys_fault_arm(SYS_FAULT_close, 1, EIO, 1);
	assert_int_equal(sys->close(fd), -EIO);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void a_faulted_call_does_nothing(void **state)
{
	unsigned char *page = test_map(1, true);
	int fds = test_open_fds();
	unsigned nfds = 7;
	uint64_t have = 1;
	size_t done = 1;
	char byte;

	(void)state;
	sys_fault_arm(SYS_FAULT_munmap, 1, ENOMEM, 1);
	assert_int_equal(sys->munmap(page, sys_page_bytes()), -ENOMEM);
	assert_int_equal(page[0], 1);
	sys_fault_arm(SYS_FAULT_madvise, 1, EAGAIN, 1);
	assert_int_equal(sys->madvise(page, sys_page_bytes(), MADV_DONTNEED), -EAGAIN);
	assert_int_equal(page[0], 1);
	test_unmap(page, 1);

	sys_fault_arm(SYS_FAULT_memfd_create, 1, EMFILE, 1);
	assert_int_equal(sys->memfd_create("x", MFD_CLOEXEC), -EMFILE);
	sys_fault_arm(SYS_FAULT_epoll_create, 1, EMFILE, 1);
	assert_int_equal(sys->epoll_create(), -EMFILE);
	assert_int_equal(test_open_fds(), fds);

	/* what is said through pointers */
	sys_fault_arm(SYS_FAULT_recv_msg, 1, EIO, 1);
	assert_int_equal(sys->recv_msg(BAD_FD, &byte, 1, NULL, &nfds, 0), -EIO);
	assert_int_equal(nfds, 0);
	sys_fault_arm(SYS_FAULT_uffd_copy, 1, EIO, 1);
	assert_int_equal(sys->uffd_copy(BAD_FD, NULL, NULL, 1, &done), -EIO);
	assert_int_equal(done, 0);
	sys_fault_arm(SYS_FAULT_uffd_api, 1, EIO, 1);
	assert_int_equal(sys->uffd_api(BAD_FD, 0, &have), -EIO);
	assert_int_equal(have, 0);
}

#define THREADS 4
#define CALLS 5000

static void *many_calls(void *arg)
{
	uint64_t *failed = arg;

	for (int i = 0; i < CALLS; i++)
		*failed += refused_call(SYS_FAULT_madvise) == -ERROR;
	return NULL;
}

static void threads_are_counted_together(void **state)
{
	uint64_t failed[THREADS] = { 0 };
	pthread_t threads[THREADS];
	uint64_t sum = 0;

	(void)state;
	sys_fault_arm(SYS_FAULT_madvise, 7000, ERROR, 1234);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, many_calls, &failed[i]), 0);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		sum += failed[i];
	}
	assert_int_equal(sum, 1234);
	assert_int_equal(sys_fault_hits(SYS_FAULT_madvise), 1234);
	assert_int_equal(sys_fault_calls(SYS_FAULT_madvise), THREADS * CALLS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_point_fires_at_the_nth_call),
		TEST(zero_times_is_for_ever),
		TEST(count_only_counts_and_fails_nothing),
		TEST(senseless_orders_are_refused),
		TEST(the_environment_arms),
		TEST(a_bad_environment_arms_nothing),
		TEST(errno_is_never_touched),
		TEST(a_faulted_close_closes),
		TEST(a_faulted_call_does_nothing),
		TEST(threads_are_counted_together),
	};

	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-fault", tests, NULL, NULL);
}
