/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Control operations, with scripted clients that answer as they please. If this
 * fails, a merge misses pages that two processes share, or one client that dies
 * or sleeps keeps the whole operation from ending.
 */
#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/candidates.h"
#include "sys/sys.h"

static struct bt_daemon daemon_under_test;
static struct bt_client control, a, b;

static int start(void **state)
{
	static const char *const args[] = { "--request-timeout", "1", NULL };

	bt_daemon_start(&daemon_under_test, args);
	return 0;
}

static int stop(void **state)
{
	bt_daemon_stop(&daemon_under_test);
	return 0;
}

static int before(void **state)
{
	bt_control(&control, &daemon_under_test);
	bt_open(&a, &daemon_under_test, "default");
	bt_open(&b, &daemon_under_test, "default");
	return 0;
}

static int after(void **state)
{
	bt_close(&control);
	bt_close(&a);
	bt_close(&b);
	return 0;
}

/* What a candidate table that the client maps says now. */
static unsigned candidate(struct bt_client *c, uint32_t tag)
{
	struct core_cand ct;
	unsigned count;
	void *map = mmap(NULL, c->welcome.cand_bytes, PROT_READ, MAP_SHARED, c->fds[1], 0);

	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(core_cand_attach(&ct, map, c->welcome.cand_bytes), 0);
	count = core_cand_count(&ct, tag);
	munmap(map, c->welcome.cand_bytes);
	return count;
}

static void send_tag(struct bt_client *c, uint32_t tag)
{
	struct core_wire_tags m = { .count = 1, .tag = { tag } };
	_Alignas(8) unsigned char keep[CORE_WIRE_BYTES_MAX];

	memcpy(keep, c->packet, sizeof(keep)); /* the REQUEST still to be answered */
	bt_send(c, &m, CORE_WIRE_TAGS, 1);
	memcpy(c->packet, keep, sizeof(keep));
}

static const struct core_wire_ctl_end *expect_end(int32_t error, uint32_t items)
{
	const struct core_wire_ctl_end *end = bt_expect(&control, CORE_WIRE_CTL_END);

	assert_int_equal(end->error, error);
	assert_int_equal(end->items, items);
	return end;
}

static void test_list(void **state)
{
	const struct core_wire_ctl_item *item;

	bt_ctl(&control, CORE_WIRE_OP_LIST, CORE_WIRE_CTL_ALL, NULL, 0);
	for (int i = 0; i < 2; i++) {
		item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
		assert_int_equal(item->h.seq, control.seq);
		assert_int_equal(item->pid, getpid());
		assert_int_equal(item->uid, getuid());
		assert_string_equal(item->domain, "default");
		assert_string_equal(item->comm, "scripted");
	}
	assert_int_equal(expect_end(0, 2)->sessions, 2);
	assert_int_equal(bt_receive(&a, 0), -ETIMEDOUT); /* nobody was asked */
}

static void test_stats(void **state)
{
	const struct core_wire_ctl_item *item;
	const int32_t self = getpid();

	bt_ctl(&control, CORE_WIRE_OP_STATS, 0, &self, 1);
	bt_expect_request(&b, CORE_WIRE_OP_STATS);
	bt_answer(&b, 0, 7);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM); /* as they come, not in the end */
	assert_int_equal(item->report.pages_sharing, 7);
	bt_expect_request(&a, CORE_WIRE_OP_STATS);
	bt_answer(&a, -ENOMEM, 8);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.error, -ENOMEM);
	expect_end(0, 2);
	/* LIST tells the last report */
	bt_ctl(&control, CORE_WIRE_OP_LIST, 0, &self, 1);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.pages_sharing, 8);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 2);
}

static void test_strangers(void **state)
{
	const int32_t pids[] = { 1, 1, 999999 };
	const struct core_wire_ctl_item *item;

	bt_ctl(&control, CORE_WIRE_OP_STATS, 0, pids, 3);
	for (int i = 0; i < 3; i++) {
		item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
		assert_int_equal(item->pid, pids[i]);
		assert_int_equal(item->report.error, -ESRCH);
	}
	expect_end(-ESRCH, 3);
}

static void test_merge(void **state)
{
	const struct core_wire_ctl_item *item;
	struct bt_client other;

	bt_open(&other, &daemon_under_test, "other");
	send_tag(&a, 0x5000); /* of an earlier round: must not count */
	send_tag(&other, 0x5000);
	bt_check_served(&a, 1);
	bt_check_served(&other, 1);
	assert_int_equal(candidate(&a, 0x5000), 1);
	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_LOOK);
	bt_expect_request(&b, CORE_WIRE_OP_LOOK);
	bt_expect_request(&other, CORE_WIRE_OP_LOOK);
	send_tag(&a, 0x5000);
	send_tag(&a, 0x6000);
	bt_answer(&a, 0, 1);
	bt_answer(&other, 0, 1);
	/* Nobody merges before the last one has looked. */
	assert_int_equal(bt_receive(&a, 50), -ETIMEDOUT);
	send_tag(&b, 0x6000);
	bt_answer(&b, 0, 1);
	bt_expect_request(&a, CORE_WIRE_OP_MERGE);
	assert_int_equal(candidate(&a, 0x5000), 1);
	assert_int_equal(candidate(&a, 0x6000), 2);
	assert_int_equal(candidate(&other, 0x6000), 0); /* I7 */
	bt_answer(&a, 0, 11);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.pages_sharing, 11); /* MERGE's report, not LOOK's */
	bt_expect_request(&b, CORE_WIRE_OP_MERGE);
	bt_answer(&b, 0, 12);
	bt_expect_request(&other, CORE_WIRE_OP_MERGE);
	bt_answer(&other, 0, 13);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 3);
	bt_close(&other);
}

/* One dies in each phase: an item says so, the others go on. */
static void test_dies(void **state)
{
	const struct core_wire_ctl_item *item;
	struct bt_client c;

	bt_open(&c, &daemon_under_test, "default");
	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_LOOK);
	bt_answer(&a, 0, 1);
	bt_expect_request(&b, CORE_WIRE_OP_LOOK);
	bt_answer(&b, 0, 1);
	bt_expect_request(&c, CORE_WIRE_OP_LOOK);
	bt_close(&c);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.error, -ESRCH);
	bt_expect_request(&a, CORE_WIRE_OP_MERGE);
	bt_close(&a);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.error, -ESRCH);
	bt_expect_request(&b, CORE_WIRE_OP_MERGE);
	bt_answer(&b, 0, 5);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.pages_sharing, 5);
	expect_end(0, 3);
}

/* One is silent: given up after the timeout, left alone, welcome back. */
static void test_silent(void **state)
{
	const struct core_wire_ctl_item *item;
	struct core_wire_header late;

	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_LOOK);
	bt_answer(&a, 0, 1);
	bt_expect_request(&b, CORE_WIRE_OP_LOOK);
	memcpy(&late, b.packet, sizeof(late));
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.error, -ETIMEDOUT);
	bt_expect_request(&a, CORE_WIRE_OP_MERGE);
	bt_answer(&a, 0, 3);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 2);
	bt_ctl(&control, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
	item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
	assert_int_equal(item->report.error, -ETIMEDOUT); /* at once: it still owes one */
	bt_expect_request(&a, CORE_WIRE_OP_STATS);
	bt_answer(&a, 0, 3);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 2);
	assert_int_equal(bt_receive(&b, 0), -ETIMEDOUT);
	memcpy(b.packet, &late, sizeof(late));
	bt_answer(&b, 0, 99);
	bt_check_served(&b, 1); /* a late answer is no crime */
	bt_ctl(&control, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_STATS);
	bt_answer(&a, 0, 3);
	bt_expect_request(&b, CORE_WIRE_OP_STATS);
	bt_answer(&b, 0, 4);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 2);
}

/*
 * The asker goes away: what was not sent is not sent, and others' operations go on;
 * one that needs no round has not waited for it, but no session is asked twice.
 */
static void test_asker_leaves(void **state)
{
	struct bt_client second;

	bt_control(&second, &daemon_under_test);
	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_LOOK);
	bt_expect_request(&b, CORE_WIRE_OP_LOOK);
	bt_ctl(&second, CORE_WIRE_OP_UNMERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	assert_int_equal(bt_receive(&a, 50), -ETIMEDOUT);
	bt_answer(&a, 0, 1);
	bt_close(&control);
	bt_expect_request(&a, CORE_WIRE_OP_UNMERGE);
	bt_answer(&a, 0, 1);
	assert_int_equal(bt_receive(&b, 50), -ETIMEDOUT);
	bt_answer(&b, 0, 1); /* the old question */
	bt_expect_request(&b, CORE_WIRE_OP_UNMERGE);
	bt_answer(&b, 0, 2);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_END);
	bt_close(&second);
}

/* An operation whose sessions owe nothing ends while another one waits. */
static void test_side_by_side(void **state)
{
	const int32_t nobody = 999999;
	struct bt_client second, other;

	bt_control(&second, &daemon_under_test);
	bt_open(&other, &daemon_under_test, "other");
	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_LOOK);
	bt_expect_request(&other, CORE_WIRE_OP_LOOK);
	bt_answer(&other, 0, 1);
	/* Its domain has looked: it does not wait for the others. */
	bt_expect_request(&other, CORE_WIRE_OP_MERGE);
	bt_answer(&other, 0, 2);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	bt_answer(&a, 0, 1);
	bt_ctl(&second, CORE_WIRE_OP_STATS, 0, &nobody, 1);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_END);
	bt_expect_request(&b, CORE_WIRE_OP_LOOK);
	bt_answer(&b, 0, 1);
	bt_expect_request(&a, CORE_WIRE_OP_MERGE);
	bt_answer(&a, 0, 1);
	bt_expect_request(&b, CORE_WIRE_OP_MERGE);
	bt_answer(&b, 0, 1);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 3);
	bt_close(&other);
	bt_close(&second);
}

/* Two merges of one domain: the second looks when the first has ended. */
static void test_rounds(void **state)
{
	struct bt_client second;

	bt_control(&second, &daemon_under_test);
	bt_ctl(&control, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_ctl(&second, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	for (int i = 0; i < 2; i++) {
		bt_expect_request(&a, CORE_WIRE_OP_LOOK);
		bt_answer(&a, 0, 1);
		assert_int_equal(bt_receive(&a, 50), -ETIMEDOUT);
		bt_expect_request(&b, CORE_WIRE_OP_LOOK);
		bt_answer(&b, 0, 1);
		bt_expect_request(&a, CORE_WIRE_OP_MERGE);
		bt_answer(&a, 0, 1);
		assert_int_equal(bt_receive(&a, 50), -ETIMEDOUT);
		bt_expect_request(&b, CORE_WIRE_OP_MERGE);
		bt_answer(&b, 0, 1);
	}
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_END);
	bt_close(&second);
}

static void test_queue_full(void **state)
{
	unsigned busy = 0, ended = 0;

	for (int i = 0; i < 6; i++)
		bt_ctl(&control, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
	while (ended < 6) {
		int got = bt_receive(&control, 50);

		if (got == CORE_WIRE_CTL_END) {
			ended++;
			busy += ((struct core_wire_ctl_end *)control.packet)->error == -EBUSY;
		}
		if (bt_receive(&a, 0) == CORE_WIRE_REQUEST)
			bt_answer(&a, 0, 1);
		if (bt_receive(&b, 0) == CORE_WIRE_REQUEST)
			bt_answer(&b, 0, 1);
	}
	assert_int_equal(busy, 2);
}

/* More items than fit into a socket: they wait for the reader. */
static void test_many_items(void **state)
{
	static struct bt_client many[400];
	unsigned items = 0;

	for (unsigned i = 0; i < 400; i++) {
		bt_raw(&many[i], &daemon_under_test);
		assert_int_equal(bt_hello(&many[i], CORE_WIRE_ROLE_CLIENT, "default", 0), 0);
	}
	bt_ctl(&control, CORE_WIRE_OP_LIST, CORE_WIRE_CTL_ALL, NULL, 0);
	usleep(200000);
	bt_check_served(&a, 9);
	while (bt_receive(&control, BT_WAIT_MSEC) == CORE_WIRE_CTL_ITEM)
		items++;
	assert_int_equal(((struct core_wire_ctl_end *)control.packet)->items, 402);
	assert_int_equal(items, 402);
	for (unsigned i = 0; i < 400; i++)
		bt_close(&many[i]);
}

static int as_other_user(void)
{
	struct bt_client c;
	const int32_t pid = getppid();
	const struct core_wire_ctl_item *item;

	if (setgid(12345) != 0 || setuid(12345) != 0)
		return 1;
	bt_control(&c, &daemon_under_test);
	bt_ctl(&c, CORE_WIRE_OP_UNMERGE, CORE_WIRE_CTL_ALL, &pid, 1);
	item = bt_expect(&c, CORE_WIRE_CTL_ITEM);
	if (item->pid != pid || item->report.error != -ESRCH || item->comm[0] != '\0')
		return 2;
	bt_expect(&c, CORE_WIRE_CTL_END);
	return ((struct core_wire_ctl_end *)c.packet)->sessions == 0 ? 0 : 3;
}

/* Others' processes are not there for somebody who is not root. */
static void test_other_user(void **state)
{
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	pid = fork();
	if (pid == 0)
		_exit(as_other_user());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(bt_receive(&a, 0), -ETIMEDOUT);
}

/* As root's silent program and root's long line of operations do not matter to others. */
static int merge_as_other_user(void)
{
	struct bt_client mine, stopped, ctl;
	const struct core_wire_ctl_item *item;

	if (setgid(12345) != 0 || setuid(12345) != 0)
		return 1;
	bt_open(&mine, &daemon_under_test, "mine");
	bt_open(&stopped, &daemon_under_test, "stopped");
	bt_control(&ctl, &daemon_under_test);
	bt_ctl(&ctl, CORE_WIRE_OP_MERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&mine, CORE_WIRE_OP_LOOK);
	bt_answer(&mine, 0, 1);
	bt_expect_request(&mine, CORE_WIRE_OP_MERGE);
	bt_answer(&mine, 0, 1);
	item = bt_expect(&ctl, CORE_WIRE_CTL_ITEM);
	if (item->report.error != 0)
		return 2;
	item = bt_expect(&ctl, CORE_WIRE_CTL_ITEM);
	if (item->report.error != -ETIMEDOUT)
		return 3;
	bt_expect(&ctl, CORE_WIRE_CTL_END);
	return 0;
}

/*
 * Root's operations stand in line for a program of root's that is silent; another
 * user's merge goes through, and so does one of root's on somebody else.
 */
static void test_silent_alone(void **state)
{
	const int32_t nobody = 999999;
	struct bt_client second;
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	bt_control(&second, &daemon_under_test);
	for (int i = 0; i < 4; i++)
		bt_ctl(&control, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_STATS);
	bt_ctl(&second, CORE_WIRE_OP_STATS, 0, &nobody, 1);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	bt_expect(&second, CORE_WIRE_CTL_END);
	/* All of that before anybody's time was out: nothing has come for control. */
	assert_int_equal(bt_receive(&control, 0), -ETIMEDOUT);
	pid = fork();
	if (pid == 0)
		_exit(merge_as_other_user());
	/* One timeout for all four of them. */
	for (int i = 0; i < 4; i++) {
		for (int k = 0; k < 2; k++) {
			const struct core_wire_ctl_item *item;

			item = bt_expect(&control, CORE_WIRE_CTL_ITEM);
			assert_int_equal(item->report.error, -ETIMEDOUT);
		}
		bt_expect(&control, CORE_WIRE_CTL_END);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	bt_close(&second);
}

#define CONTROL(test) cmocka_unit_test_setup_teardown(test, before, after)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CONTROL(test_list),	    CONTROL(test_stats),	CONTROL(test_strangers),
		CONTROL(test_merge),	    CONTROL(test_dies),		CONTROL(test_silent),
		CONTROL(test_asker_leaves), CONTROL(test_queue_full),	CONTROL(test_many_items),
		CONTROL(test_other_user),   CONTROL(test_side_by_side), CONTROL(test_rounds),
		CONTROL(test_silent_alone),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
