/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The probe against doing the same things by hand, through libc. If this failed,
 * samepage would try what cannot work, or sit idle where it could; or starting
 * would leave mappings, descriptors or a changed thread behind.
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#include "sys/maps.h"
#include "sys/probe.h"
#include "sys_test.h"

static bool works(int fd)
{
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static bool ksm_stat_has(const char *name)
{
	FILE *file = fopen("/proc/self/ksm_stat", "re");
	char line[128];
	bool has = false;

	while (file && fgets(line, sizeof(line), file))
		has |= strncmp(line, name, strlen(name)) == 0;
	if (file)
		fclose(file);
	return has;
}

static void the_probe_agrees_with_doing_it(void **state)
{
	struct sys_features f;
	struct utsname uts;
	char *page = mmap(NULL, sys_page_bytes(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char got;
	struct iovec to = { .iov_base = &got, .iov_len = 1 };
	struct iovec from = { .iov_base = page, .iov_len = 1 };

	(void)state;
	memset(&f, 0xff, sizeof(f));
	sys_probe(&f);
	uname(&uts);
	assert_string_equal(f.release, uts.release);
	assert_int_equal(f.uffd_syscall_full, works((int)syscall(SYS_userfaultfd, O_CLOEXEC)));
	assert_int_equal(f.uffd_user_only,
			 works((int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)) ||
				 f.uffd_dev);
	if (!works(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)))
		assert_false(f.uffd_dev);
	assert_int_equal(f.process_vm_readv,
			 process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1);
	assert_int_equal(f.memfd_seals, works(memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING)));
	assert_int_equal(f.memfd_noexec_seal, works(memfd_create("x", MFD_CLOEXEC | MFD_NOEXEC_SEAL)));
	assert_int_equal(f.populate, madvise(page, sys_page_bytes(), MADV_POPULATE_READ) == 0);
	assert_int_equal(f.madv_merge, madvise(page, sys_page_bytes(), SYS_MADV_MERGE) == 0);
	assert_int_equal(f.merge_scope, prctl(SYS_PR_GET_MEMORY_MERGE_SCOPE, 0, 0, 0, 0) >= 0);
	assert_int_equal(f.merge_counts, ksm_stat_has("ksm_merge_looked"));
	assert_int_equal(f.pidfd, works((int)syscall(SYS_pidfd_open, getpid(), 0)));
	assert_int_equal(f.ksm, access("/sys/kernel/mm/ksm/run", R_OK) == 0);
	assert_true(f.max_map_count == sys_read_number("/proc/sys/vm/max_map_count"));
	assert_true(f.overcommit_memory >= 0 && f.overcommit_memory <= 2);
	assert_true(f.memory_bytes >= (uint64_t)sysconf(_SC_PHYS_PAGES) * sys_page_bytes() / 2);
	assert_true(f.thp[0] == '\0' || strcmp(f.thp, "always") == 0 ||
		    strcmp(f.thp, "madvise") == 0 || strcmp(f.thp, "never") == 0);
	munmap(page, sys_page_bytes());
}

static void freezing_needs_move_and_kernel_faults(void **state)
{
	struct sys_features f = { .uffd_move = true, .uffd_user_only = true };

	(void)state;
	assert_int_equal(sys_probe_can_freeze(&f), -EPERM);
	f.uffd_dev = true;
	assert_int_equal(sys_probe_can_freeze(&f), 0);
	f.uffd_dev = false;
	f.uffd_syscall_full = true;
	assert_int_equal(sys_probe_can_freeze(&f), 0);
	f.uffd_move = false;
	assert_int_equal(sys_probe_can_freeze(&f), -ENOSYS);
	f = (struct sys_features){ .unprivileged_userfaultfd = 0 };
	assert_int_equal(sys_probe_can_freeze(&f), -EPERM);
	f.unprivileged_userfaultfd = -ENOENT;
	assert_int_equal(sys_probe_can_freeze(&f), -ENOSYS);
}

/* Every trial that fails makes a feature false and leaves nothing behind either. */
static void failing_trials_leak_nothing(void **state)
{
	static char buf[65536];
	struct sys_features f;

	(void)state;
	sys_probe(&f);
	for (int i = 1; i < SYS_FAULT_COUNT; i++) {
		for (uint64_t nth = 1; nth <= 12; nth++) {
			enum sys_fault_point point = (enum sys_fault_point)i;
			int64_t maps, after;
			int fds;

			if (point == SYS_FAULT_munmap)
				continue; /* what cannot be unmapped stays mapped */
			sys_fault_reset();
			fds = test_open_fds();
			maps = sys_map_count(0, buf, sizeof(buf));
			sys_fault_arm(point, nth, ENOMEM, 1);
			sys_probe(&f);
			sys_fault_reset();
			after = sys_map_count(0, buf, sizeof(buf));
			if (test_open_fds() != fds || after > maps + 1)
				fail_msg("%s %d: descriptors %d -> %d, mappings %d -> %d",
					 sys_fault_name(point), (int)nth, fds, test_open_fds(),
					 (int)maps, (int)after);
		}
	}
	sys_fault_arm(SYS_FAULT_uffd_move, 1, EINVAL, 1);
	sys_probe(&f);
	assert_false(f.uffd_move);
	sys_fault_arm(SYS_FAULT_uffd_open, 1, EPERM, 0);
	sys_fault_arm(SYS_FAULT_uffd_from_dev, 1, EPERM, 0);
	sys_probe(&f);
	assert_false(f.uffd_syscall_full || f.uffd_dev || f.uffd_user_only || f.uffd_move);
	assert_true(sys_probe_can_freeze(&f) < 0);
}

static _Atomic bool stop;

static void *fork_and_map(void *arg)
{
	(void)arg;
	while (!stop) {
		pid_t child = fork();

		if (child == 0)
			_exit(0);
		if (child > 0)
			waitpid(child, NULL, 0);
	}
	return NULL;
}

/* The answers are the same while another thread forks: no trial depends on luck. */
static void probing_beside_forks(void **state)
{
	struct sys_features quiet, busy;
	pthread_t thread;

	(void)state;
	memset(&quiet, 0, sizeof(quiet));
	memset(&busy, 0, sizeof(busy));
	sys_probe(&quiet);
	stop = false;
	assert_int_equal(pthread_create(&thread, NULL, fork_and_map, NULL), 0);
	for (int i = 0; i < 30; i++) {
		sys_probe(&busy);
		assert_int_equal(busy.uffd_move, quiet.uffd_move);
		assert_int_equal(busy.uffd_wp_async, quiet.uffd_wp_async);
		assert_int_equal(busy.pagemap_scan, quiet.pagemap_scan);
		assert_int_equal(busy.process_vm_readv, quiet.process_vm_readv);
	}
	stop = true;
	pthread_join(thread, NULL);
}

static void under_mlockall_too(void **state)
{
	struct sys_features quiet, locked;

	(void)state;
	sys_probe(&quiet);
	if (mlockall(MCL_FUTURE) < 0)
		SKIP("not allowed to lock memory");
	sys_probe(&locked);
	munlockall();
	assert_int_equal(locked.uffd_move, quiet.uffd_move);
	assert_int_equal(locked.pagemap_scan, quiet.pagemap_scan);
}

/* Without privilege: no kernel-mode faults by system call, no frame numbers. */
static void as_nobody(void **state)
{
	int status;
	pid_t child;

	(void)state;
	if (geteuid() != 0)
		SKIP("not root");
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct sys_features f;

		if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
			_exit(2);
		sys_probe(&f);
		_exit(f.cap_sys_admin || f.cap_sys_ptrace ||
		      (f.unprivileged_userfaultfd == 0 && f.uffd_syscall_full) ||
		      (!f.uffd_syscall_full && !f.uffd_dev && sys_probe_can_freeze(&f) == 0));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(the_probe_agrees_with_doing_it),
		TEST(freezing_needs_move_and_kernel_faults),
		TEST(failing_trials_leak_nothing),
		TEST(probing_beside_forks),
		TEST(under_mlockall_too),
		TEST(as_nobody),
	};

	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-probe", tests, NULL, NULL);
}
