/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Life and death of the daemon: start, idle exit, crash and restart (I6), freeing
 * of what nobody uses, and every system call failing once. If this fails, brokers
 * pile up, a crash loses the store, memory is never given back, or a full table
 * somewhere in the kernel kills the broker.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/fault.h"
#include "sys/sys.h"

static void assert_exited(int status, int code)
{
	assert_true(status != -1 && WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), code);
}

static void test_idle_exit(void **state)
{
	static const char *const args[] = { "--on-demand", "--idle-exit", "1", NULL };
	struct bt_daemon d;
	struct bt_client c;

	bt_daemon_start(&d, args);
	bt_open(&c, &d, "default");
	usleep(1500000);
	bt_check_served(&c, 1); /* not while somebody is there */
	bt_close(&c);
	assert_exited(bt_daemon_wait(&d), 0);
	assert_int_equal(access(d.path, F_OK), -1);
	bt_daemon_clean(&d);
	bt_daemon_start(&d, args); /* and if nobody ever comes */
	assert_exited(bt_daemon_wait(&d), 0);
	bt_daemon_clean(&d);
}

static void test_second_broker(void **state)
{
	static const char *const on_demand[] = { "--on-demand", NULL };
	struct bt_daemon first, second;
	struct bt_client c;

	bt_daemon_start(&first, NULL);
	second = first;
	bt_daemon_restart(&second, on_demand); /* "ready": there is one */
	assert_exited(bt_daemon_wait(&second), 0);
	bt_open(&c, &first, "default");
	assert_int_equal(c.welcome.broker_pid, first.pid);
	bt_close(&c);
	bt_daemon_stop(&first);
}

/* Ends a daemon as a crash would. */
static void crash(struct bt_daemon *d)
{
	kill(d->pid, SIGKILL);
	assert_true(bt_daemon_wait(d) != -1);
}

static void offer(struct bt_client *c, uint32_t segment, int fd)
{
	struct core_wire_segment m = { .segment = segment, .slots = BROKER_SEGMENT_SLOTS };

	core_wire_header_init(&m.h, CORE_WIRE_OFFER, sizeof(m), ++c->seq);
	assert_int_equal(bt_send_raw(c, &m, sizeof(m), &fd, 1), sizeof(m));
}

static void fill_segment(struct bt_client *c, uint64_t salt)
{
	uint32_t slot[512];

	for (unsigned i = 0; i < BROKER_SEGMENT_SLOTS; i += 512)
		bt_promote(c, salt, i, 512, slot, NULL);
}

/* The broker is killed; its segment comes back from a client, and is found. */
static void test_restart(void **state)
{
	uint32_t slot[512];
	struct bt_daemon d;
	struct bt_client c;
	uint64_t generation, entries;
	int fd;

	bt_daemon_start(&d, NULL);
	bt_open(&c, &d, "default");
	fill_segment(&c, 1);
	generation = c.welcome.generation;
	fd = bt_segment(&c, 0);
	crash(&d);
	assert_true(bt_receive(&c, BT_WAIT_MSEC) <= 0);
	bt_close(&c);
	bt_daemon_restart(&d, NULL); /* over the dead one's socket file */
	bt_open(&c, &d, "default");
	assert_int_not_equal(c.welcome.generation, generation);
	offer(&c, 0, fd);
	offer(&c, 0, fd); /* twice does no harm */
	bt_promote(&c, 1, 100, 512, slot, NULL);
	entries = c.index.header->entries;
	assert_int_equal(entries, BROKER_SEGMENT_SLOTS); /* nothing was put in again */
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(slot[i] % BROKER_SEGMENT_SLOTS, 100 + i);
	assert_true(bt_slot_is(&c, slot[5], 1, 105));
	close(fd);
	bt_close(&c);
	bt_daemon_stop(&d);
}

/* TRIM is sent, and what nobody has open any more is freed. */
static void test_trim(void **state)
{
	static const char *const args[] = { "--trim-interval", "1", NULL };
	struct core_wire_ctl_end end;
	struct bt_client c, control;
	struct bt_daemon d;
	int fd;

	bt_daemon_start(&d, args);
	bt_control(&control, &d);
	bt_open(&c, &d, "default");
	fill_segment(&c, 1);
	fd = bt_segment(&c, 0);
	bt_expect(&c, CORE_WIRE_TRIM);
	close(fd);
	for (int i = 0; i < 100; i++) {
		bt_stats_end(&control, &end);
		if (end.segments_freed > 0)
			break;
		usleep(100000);
	}
	assert_int_equal(end.segments_freed, 1);
	assert_int_equal(end.segments, 0);
	assert_int_equal(end.slots, 0);
	bt_close(&c);
	bt_close(&control);
	bt_daemon_stop(&d);
}

/* A domain outlives its last client for a moment, and no longer. */
static void test_linger(void **state)
{
	static const char *const args[] = { "--linger", "1", NULL };
	struct core_wire_ctl_end end;
	struct bt_client c, control;
	struct bt_daemon d;
	uint64_t generation;

	bt_daemon_start(&d, args);
	bt_control(&control, &d);
	bt_open(&c, &d, "default");
	generation = c.welcome.generation;
	bt_check_served(&c, 1);
	bt_close(&c);
	bt_open(&c, &d, "default");
	assert_int_equal(c.welcome.generation, generation);
	bt_close(&c);
	for (int i = 0; i < 100; i++) {
		bt_stats_end(&control, &end);
		if (end.domains == 0)
			break;
		usleep(100000);
	}
	assert_int_equal(end.domains, 0);
	bt_close(&control);
	bt_daemon_stop(&d);
}

static void test_options(void **state)
{
	static const char *const wrong[][3] = {
		{ "--store-max", "1X", NULL }, { "--store-max", "-1", NULL },
		{ "--linger", "soon", NULL },  { "--request-timeout", "0", NULL },
		{ "--socket-group", "no such group", NULL }, { "--store-total", "0", NULL },
		{ "--lend-userfaultfd", "perhaps not", NULL },
		{ "surplus", NULL },	       { "--unknown", NULL },
		{ "--store-max", "99999999999999999999T", NULL },
	};

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct bt_daemon d;

		assert_int_equal(bt_daemon_try(&d, wrong[i], NULL), -EIO);
		assert_exited(bt_daemon_wait(&d), 2);
		bt_daemon_clean(&d);
	}
}

/* One session that does a bit of everything; whatever fails, it must end. */
static void use_a_little(const struct bt_daemon *d)
{
	struct core_wire_submit m = { .count = 4, .ring_page = { 0, 1, 2, 3 } };
	struct core_wire_segment get = { .segment = 0 };
	static uint64_t fresh;
	struct bt_client c;

	c = (struct bt_client){ .fd = bt_connect(d) };
	if (c.fd < 0)
		return;
	if (bt_hello(&c, CORE_WIRE_ROLE_CLIENT, "default", 0) == 0) {
		uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, 4);

		/* New pages each time, so that each time all of it is done. */
		for (unsigned i = 0; i < 4; i++) {
			fresh++;
			assert_int_equal(pwrite(c.fds[2], &fresh, sizeof(fresh),
						(off_t)(i * sys_page_bytes())), sizeof(fresh));
		}
		core_wire_header_init(&m.h, CORE_WIRE_SUBMIT, bytes, 1);
		bt_send_raw(&c, &m, bytes, NULL, 0);
		if (bt_receive(&c, BT_WAIT_MSEC) > 0) {
			core_wire_header_init(&get.h, CORE_WIRE_SEGMENT_GET, sizeof(get), 2);
			bt_send_raw(&c, &get, sizeof(get), NULL, 0);
			bt_receive(&c, BT_WAIT_MSEC);
		}
	}
	bt_close(&c);
}

/*
 * Each call of the table fails, once, at several places. The daemon either does
 * not start and says so, or serves on afterwards; it never ends by a signal.
 */
static void test_faults(void **state)
{
	for (int point = 1; point < SYS_FAULT_COUNT; point++) {
		for (unsigned nth = 1; nth <= 6; nth += 1 + nth / 2) {
			char fault[100];
			struct bt_client c;
			struct bt_daemon d;
			int status;

			snprintf(fault, sizeof(fault), "SAMEPAGE_FAULT=%s:%u:%d",
				 sys_fault_name((enum sys_fault_point)point), nth, ENOMEM);
			if (bt_daemon_try(&d, NULL, fault) < 0) {
				assert_exited(bt_daemon_wait(&d), 1);
				bt_daemon_clean(&d);
				continue;
			}
			/* More often than nth: the fault is behind us then. */
			for (int i = 0; i < 8; i++)
				use_a_little(&d);
			print_message("# after %s\n", fault);
			bt_open(&c, &d, "default");
			bt_check_served(&c, 1);
			bt_close(&c);
			kill(d.pid, SIGTERM);
			status = bt_daemon_wait(&d);
			assert_exited(status, 0);
			bt_daemon_clean(&d);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_idle_exit), cmocka_unit_test(test_second_broker),
		cmocka_unit_test(test_restart),	  cmocka_unit_test(test_trim),
		cmocka_unit_test(test_linger),	  cmocka_unit_test(test_options),
		cmocka_unit_test(test_faults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
