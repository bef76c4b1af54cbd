/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The daemon and well-behaved peers. If this fails, a client cannot get in, gets
 * fds that it could do harm with, gets wrong slots, or sees another domain's (I7).
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/sys.h"

static struct bt_daemon daemon_under_test;

static int start(void **state)
{
	bt_daemon_start(&daemon_under_test, NULL);
	return 0;
}

static int stop(void **state)
{
	bt_daemon_stop(&daemon_under_test);
	return 0;
}

static void test_welcome(void **state)
{
	struct bt_client c, control;

	bt_open(&c, &daemon_under_test, "default");
	assert_int_equal(c.welcome.broker_pid, daemon_under_test.pid);
	assert_true(c.welcome.ring_pages >= 1);
	assert_int_not_equal(c.welcome.layout_seed, 0);
	assert_int_equal(c.index.header->generation, c.welcome.generation);
	assert_int_equal(c.index.header->segment_slots, BROKER_SEGMENT_SLOTS);
	/* The seed for a layout is the domain's, whoever asks. */
	bt_raw(&control, &daemon_under_test);
	assert_int_equal(bt_hello(&control, CORE_WIRE_ROLE_CONTROL, "default", 0), 0);
	assert_int_equal(control.nfds, 0);
	assert_int_equal(control.welcome.layout_seed, c.welcome.layout_seed);
	bt_close(&control);
	bt_raw(&control, &daemon_under_test);
	assert_int_equal(bt_hello(&control, CORE_WIRE_ROLE_CONTROL, "other", 0), 0);
	assert_int_not_equal(control.welcome.layout_seed, c.welcome.layout_seed);
	bt_close(&control);
	bt_close(&c);
}

static void test_uffd(void **state)
{
	struct bt_client c;
	int fd;

	bt_raw(&c, &daemon_under_test);
	assert_int_equal(bt_hello(&c, CORE_WIRE_ROLE_CLIENT, "default", CORE_WIRE_HELLO_WANT_UFFD),
			 0);
	if (!(c.welcome.flags & CORE_WIRE_WELCOME_HAS_UFFD)) {
		assert_int_equal(c.nfds, 3);
		bt_close(&c);
		skip(); /* /dev/userfaultfd does not open here */
	}
	assert_int_equal(c.nfds, 4);
	fd = sys->uffd_from_dev(c.fds[3], O_CLOEXEC | O_NONBLOCK);
	assert_true(fd >= 0);
	close(fd);
	bt_close(&c);
}

static void assert_read_only(int fd, size_t bytes)
{
	char path[40];

	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_ptr_equal(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(write(fd, "x", 1), -1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	assert_int_equal(truncate(path, 0), -1);
}

static void test_fds(void **state)
{
	struct bt_client c;
	uint32_t slot;
	int fd;

	bt_open(&c, &daemon_under_test, "default");
	bt_promote(&c, 7, 0, 1, &slot, NULL);
	fd = bt_segment(&c, slot / BROKER_SEGMENT_SLOTS);
	assert_true(fd >= 0);
	assert_read_only(c.fds[0], c.welcome.index_bytes);
	assert_read_only(c.fds[1], c.welcome.cand_bytes);
	assert_read_only(fd, BROKER_SEGMENT_SLOTS * sys_page_bytes());
	/* The ring is to be written, but never to shrink under the broker (I4). */
	assert_int_equal(ftruncate(c.fds[2], 0), -1);
	assert_int_equal(fcntl(c.fds[2], F_ADD_SEALS, F_SEAL_WRITE), -1);
	close(fd);
	bt_close(&c);
}

static void test_promote(void **state)
{
	struct bt_client a, b;
	uint32_t sa[64], sb[64];

	bt_open(&a, &daemon_under_test, "default");
	bt_open(&b, &daemon_under_test, "default");
	bt_promote(&a, 1, 0, 64, sa, NULL);
	bt_promote(&b, 1, 0, 64, sb, NULL);
	for (unsigned i = 0; i < 64; i++) {
		assert_int_equal(sa[i], sb[i]);
		assert_int_equal(sa[i], sa[0] + i); /* consecutive: one run */
	}
	assert_true(bt_slot_is(&b, sa[63], 1, 63));
	assert_int_equal(bt_segment(&b, 100000), -ENOENT);
	bt_check_served(&b, 1); /* an ERROR answer does not end the session */
	bt_close(&a);
	bt_close(&b);
}

static void test_domains_apart(void **state)
{
	struct bt_client a, b;
	uint32_t slot_a[8], slot_b[8];
	int fd_a, fd_b;

	bt_open(&a, &daemon_under_test, "red");
	bt_open(&b, &daemon_under_test, "blue");
	assert_int_not_equal(a.index.header->seed, b.index.header->seed);
	bt_promote(&a, 2, 0, 8, slot_a, NULL);
	/* blue knows nothing of it: no slot is published, no segment is there */
	assert_int_equal(b.index.header->entries, 0);
	assert_int_equal(bt_segment(&b, slot_a[0] / BROKER_SEGMENT_SLOTS), -ENOENT);
	bt_promote(&b, 2, 0, 8, slot_b, NULL);
	fd_a = bt_segment(&a, slot_a[0] / BROKER_SEGMENT_SLOTS);
	fd_b = bt_segment(&b, slot_b[0] / BROKER_SEGMENT_SLOTS);
	assert_true(fd_a >= 0 && fd_b >= 0);
	{
		struct stat sa, sb;

		assert_int_equal(fstat(fd_a, &sa), 0);
		assert_int_equal(fstat(fd_b, &sb), 0);
		assert_int_not_equal(sa.st_ino, sb.st_ino);
	}
	close(fd_a);
	close(fd_b);
	bt_close(&a);
	bt_close(&b);
}

/* Runs as another user: the same name must lead to another domain. */
static int other_user(uint64_t seed, uint64_t layout_seed)
{
	struct bt_client c;

	if (setgid(12345) != 0 || setuid(12345) != 0)
		return 1;
	bt_open(&c, &daemon_under_test, "default");
	if (c.index.header->seed == seed || c.welcome.layout_seed == layout_seed)
		return 2;
	if (c.index.header->entries != 0)
		return 3;
	bt_check_served(&c, 1);
	/* Read-only for good: not even through /proc. */
	{
		char path[40];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", c.fds[0]);
		if (open(path, O_RDWR) >= 0)
			return 4;
	}
	return 0;
}

static void test_other_uid(void **state)
{
	struct bt_client c;
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip(); /* only root can become somebody else */
	bt_open(&c, &daemon_under_test, "default");
	bt_check_served(&c, 1);
	pid = fork();
	if (pid == 0)
		_exit(other_user(c.index.header->seed, c.welcome.layout_seed));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	bt_close(&c);
}

/* A peer whose user has no name here is let in nowhere. */
static void test_overflow_uid(void **state)
{
	struct bt_client c;
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	pid = fork();
	if (pid == 0) {
		if (setgid(65534) != 0 || setuid(65534) != 0)
			_exit(1);
		bt_raw(&c, &daemon_under_test);
		_exit(bt_expect_closed(&c) == -EPERM ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_quota(void **state)
{
	static const char *const args[] = { "--store-max", "1M", "--client-max", "512K",
					    "--sessions-max", "3", NULL };
	uint32_t room = 512 * 1024 / (uint32_t)sys_page_bytes();
	struct bt_client c[4];
	struct bt_daemon d;
	uint32_t slot[512];
	uint8_t reason[512];
	uint32_t given = 0;

	bt_daemon_start(&d, args);
	bt_open(&c[0], &d, "default");
	bt_promote(&c[0], 1, 0, 512, slot, reason);
	for (unsigned i = 0; i < 512; i++) {
		given += slot[i] != CORE_SLOT_NONE;
		assert_true(slot[i] != CORE_SLOT_NONE || reason[i] == SAMEPAGE_REASON_QUOTA);
	}
	assert_int_equal(given, room);
	bt_open(&c[1], &d, "default");
	bt_promote(&c[1], 2, 0, 512, slot, reason);
	bt_open(&c[2], &d, "default"); /* the domain's quota is used up now */
	bt_promote(&c[2], 3, 0, 1, slot, reason);
	assert_int_equal(slot[0], CORE_SLOT_NONE);
	assert_int_equal(reason[0], SAMEPAGE_REASON_QUOTA);
	bt_promote(&c[2], 1, 0, 4, slot, reason); /* what is there costs nothing */
	assert_int_not_equal(slot[3], CORE_SLOT_NONE);
	bt_raw(&c[3], &d);
	assert_int_equal(bt_expect_closed(&c[3]), -EDQUOT);
	for (unsigned i = 0; i < 4; i++)
		bt_close(&c[i]);
	bt_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_welcome),
		cmocka_unit_test(test_uffd),
		cmocka_unit_test(test_fds),
		cmocka_unit_test(test_promote),
		cmocka_unit_test(test_domains_apart),
		cmocka_unit_test(test_other_uid),
		cmocka_unit_test(test_overflow_uid),
		cmocka_unit_test(test_quota),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
