/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pausing the scanners. If this fails, `samepage pause` is undone by the next process
 * that starts, memory is merged again right after `unmerge --all`, or one user pauses
 * another's processes.
 */
#include "client.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

static struct bt_daemon daemon_under_test;
static struct bt_client control, a, b;

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

static const struct core_wire_ctl_end *expect_end(int32_t error, uint32_t items)
{
	const struct core_wire_ctl_end *end = bt_expect(&control, CORE_WIRE_CTL_END);

	assert_int_equal(end->error, error);
	assert_int_equal(end->items, items);
	return end;
}

/* What a newcomer to the domain is told. */
static bool newcomer_paused(const char *domain)
{
	struct bt_client c;
	bool paused;

	bt_open(&c, &daemon_under_test, domain);
	paused = (c.welcome.flags & CORE_WIRE_WELCOME_PAUSED) != 0;
	bt_close(&c);
	return paused;
}

static void to_both(uint32_t op)
{
	bt_ctl(&control, op, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, op);
	bt_answer(&a, 0, 1);
	bt_expect_request(&b, op);
	bt_answer(&b, 0, 1);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
	bt_expect(&control, CORE_WIRE_CTL_ITEM);
}

/* For all: those to come are told as well, also in domains to come. */
static void test_pause(void **state)
{
	assert_false(newcomer_paused("default"));
	to_both(CORE_WIRE_OP_PAUSE);
	assert_int_equal(expect_end(0, 2)->paused, 1);
	assert_true(newcomer_paused("default"));
	assert_true(newcomer_paused("begun-after"));
	to_both(CORE_WIRE_OP_STATS); /* that says nothing about it */
	assert_int_equal(expect_end(0, 2)->paused, 2);
	to_both(CORE_WIRE_OP_RESUME);
	assert_int_equal(expect_end(0, 2)->paused, 0);
	assert_false(newcomer_paused("default"));
	/* Merged again a moment later, it would not be unmerged. */
	to_both(CORE_WIRE_OP_UNMERGE);
	assert_int_equal(expect_end(0, 2)->paused, 2);
	assert_true(newcomer_paused("default"));
	to_both(CORE_WIRE_OP_RESUME);
	expect_end(0, 2);
}

/* For some: it is between them and their session. */
static void test_pause_one(void **state)
{
	const uint32_t ops[] = { CORE_WIRE_OP_PAUSE, CORE_WIRE_OP_UNMERGE, CORE_WIRE_OP_RESUME };
	const int32_t self = getpid();

	for (int i = 0; i < 3; i++) {
		bt_ctl(&control, ops[i], 0, &self, 1);
		bt_expect_request(&a, ops[i]);
		bt_answer(&a, 0, 1);
		bt_expect_request(&b, ops[i]);
		bt_answer(&b, 0, 1);
		bt_expect(&control, CORE_WIRE_CTL_ITEM);
		bt_expect(&control, CORE_WIRE_CTL_ITEM);
		assert_int_equal(expect_end(0, 2)->paused, 0);
		assert_false(newcomer_paused("default"));
	}
}

/* In a child that has become another user: 0, or the number of the check that failed. */
static int pause_as_other_user(int hold, int go)
{
	struct bt_client mine, second, c;
	char byte;

	if (setresgid(65534, 65534, 65534) < 0 || setresuid(12345, 12345, 12345) < 0)
		return 1;
	bt_open(&mine, &daemon_under_test, "theirs");
	bt_control(&second, &daemon_under_test);
	bt_ctl(&second, CORE_WIRE_OP_PAUSE, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&mine, CORE_WIRE_OP_PAUSE); /* and nobody of root's is asked */
	bt_answer(&mine, 0, 1);
	bt_expect(&second, CORE_WIRE_CTL_ITEM);
	if (((const struct core_wire_ctl_end *)bt_expect(&second, CORE_WIRE_CTL_END))->paused != 1)
		return 2;
	if (write(hold, "p", 1) != 1 || read(go, &byte, 1) != 1)
		return 3;
	/* Root has resumed all. */
	bt_expect_request(&mine, CORE_WIRE_OP_RESUME);
	bt_answer(&mine, 0, 1);
	bt_open(&c, &daemon_under_test, "theirs");
	if (c.welcome.flags & CORE_WIRE_WELCOME_PAUSED)
		return 4;
	return 0;
}

/* A user's word is for that user's processes; root's is for all. */
static void test_pause_users(void **state)
{
	int hold[2], go[2], status;
	char byte;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	assert_int_equal(pipe(hold) + pipe(go), 0);
	pid = fork();
	if (pid == 0)
		_exit(pause_as_other_user(hold[1], go[0]));
	close(hold[1]);
	assert_int_equal(read(hold[0], &byte, 1), 1);
	assert_false(newcomer_paused("default"));
	assert_int_equal(bt_receive(&a, 0), -ETIMEDOUT);
	assert_int_equal(write(go[1], "g", 1), 1);
	bt_ctl(&control, CORE_WIRE_OP_RESUME, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&a, CORE_WIRE_OP_RESUME);
	bt_answer(&a, 0, 1);
	bt_expect_request(&b, CORE_WIRE_OP_RESUME);
	bt_answer(&b, 0, 1);
	for (int i = 0; i < 3; i++)
		bt_expect(&control, CORE_WIRE_CTL_ITEM);
	expect_end(0, 3);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(hold[0]);
	close(go[0]);
	close(go[1]);
}

/* Who is stopped while all are told to pause is told when it is back; the last word counts. */
static void test_pause_silent(void **state)
{
	static const char *const args[] = { "--request-timeout", "1", NULL };
	struct bt_daemon d;
	struct bt_client asks, stopped;

	(void)state;
	bt_daemon_start(&d, args);
	bt_control(&asks, &d);
	bt_open(&stopped, &d, "default");
	bt_ctl(&asks, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&stopped, CORE_WIRE_OP_STATS);
	/* In line behind that, then refused at once. */
	bt_ctl(&asks, CORE_WIRE_OP_UNMERGE, CORE_WIRE_CTL_ALL, NULL, 0);
	for (int i = 0; i < 2; i++) {
		bt_expect(&asks, CORE_WIRE_CTL_ITEM);
		bt_expect(&asks, CORE_WIRE_CTL_END);
	}
	bt_ctl(&asks, CORE_WIRE_OP_PAUSE, CORE_WIRE_CTL_ALL, NULL, 0);
	assert_int_equal(((const struct core_wire_ctl_item *)
			  bt_expect(&asks, CORE_WIRE_CTL_ITEM))->report.error, -ETIMEDOUT);
	bt_expect(&asks, CORE_WIRE_CTL_END);
	bt_answer(&stopped, 0, 1); /* the old question: it is back */
	bt_expect_request(&stopped, CORE_WIRE_OP_UNMERGE); /* which pauses as well */
	bt_answer(&stopped, 0, 1);
	assert_int_equal(bt_receive(&stopped, 0), -ETIMEDOUT); /* once */
	bt_ctl(&asks, CORE_WIRE_OP_RESUME, CORE_WIRE_CTL_ALL, NULL, 0);
	bt_expect_request(&stopped, CORE_WIRE_OP_RESUME);
	bt_answer(&stopped, 0, 1);
	bt_expect(&asks, CORE_WIRE_CTL_ITEM);
	bt_expect(&asks, CORE_WIRE_CTL_END);
	bt_close(&asks);
	bt_close(&stopped);
	bt_daemon_stop(&d);
}

#define PAUSE(test) cmocka_unit_test_setup_teardown(test, before, after)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAUSE(test_pause),
		PAUSE(test_pause_one),
		PAUSE(test_pause_users),
		cmocka_unit_test(test_pause_silent),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
