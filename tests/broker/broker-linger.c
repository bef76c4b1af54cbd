/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that take long to close (I4): whoever sends them, by whatever door, holds up
 * neither the broker nor its end. If this fails, every user who can connect can stop
 * the broker for all. And a broker started from a preloaded program is no client.
 */
#include "client.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/sys.h"

/*
 * Files whose last close waits: a TCP socket that lingers, because its other end
 * does not read. Only the copy that is sent stays.
 */
#define LINGER_SECONDS 600

static void unsent(int fd)
{
	static char bytes[65536];
	struct linger on = { .l_onoff = 1, .l_linger = LINGER_SECONDS };

	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &on, sizeof(on)), 0);
}

/* Returns the lingering end; *keep: the other. */
static int lingering(int *keep)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t bytes = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0 && fd >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&at, bytes), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &bytes), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&at, bytes), 0);
	*keep = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(*keep >= 0);
	close(listener);
	unsent(fd);
	return fd;
}

/* Our own close must not be the one that waits: a process that is killed does not. */
static void close_lingering(int fd)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		pause();
		_exit(0);
	}
	close(fd);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void send_lingering(struct bt_client *c, const void *packet, size_t bytes, int *keep)
{
	int fd = lingering(keep);

	bt_send_raw(c, packet, bytes, &fd, 1);
	close_lingering(fd);
}

enum door {
	DOOR_TAGS,    /* beside a packet that has no files */
	DOOR_OFFER,   /* beside one that has */
	DOOR_UNREAD,  /* behind a packet that ends the session */
	DOOR_HELLO,   /* before HELLO, and gone at once */
	DOORS,
};

static void through(enum door door, const struct bt_daemon *d, int *keep)
{
	struct core_wire_tags tags = { .count = 0 };
	struct core_wire_segment offer = { .slots = BROKER_SEGMENT_SLOTS };
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_TAGS, 0);
	struct bt_client c;

	core_wire_header_init(&tags.h, CORE_WIRE_TAGS, bytes, 1);
	core_wire_header_init(&offer.h, CORE_WIRE_OFFER, sizeof(offer), 1);
	if (door == DOOR_HELLO)
		bt_raw(&c, d);
	else
		bt_open(&c, d, "default");
	if (door == DOOR_UNREAD)
		bt_send_raw(&c, "junk", 4, NULL, 0);
	if (door == DOOR_OFFER)
		send_lingering(&c, &offer, sizeof(offer), keep);
	else
		send_lingering(&c, &tags, bytes, keep);
	if (door != DOOR_HELLO && door != DOOR_UNREAD)
		bt_expect_closed(&c);
	bt_close(&c);
}

/* More of them than there are threads to close them; all are closed in the end. */
static void test_lingering(void **state)
{
	struct bt_client good;
	struct bt_daemon d;
	unsigned fds;

	bt_daemon_start(&d, NULL);
	bt_open(&good, &d, "default");
	bt_check_served(&good, 1);
	fds = bt_daemon_fds(&d);
	for (enum door door = 0; door < DOORS; door++) {
		int keep[20];

		for (unsigned i = 0; i < 20; i++)
			through(door, &d, &keep[i]);
		bt_check_served(&good, 2 + door);
		for (int i = 0; i < 1000 && bt_daemon_fds(&d) > fds; i++)
			usleep(10000);
		assert_in_range(bt_daemon_fds(&d), 0, fds);
		for (unsigned i = 0; i < 20; i++)
			close(keep[i]);
	}
	bt_close(&good);
	bt_daemon_stop(&d);
}

/* The same from connections that are turned away. */
static void test_lingering_turned_away(void **state)
{
	static const char *const args[] = { "--sessions-max", "2", NULL };
	struct bt_client first, second;
	struct bt_daemon d;
	int keep[20];

	bt_daemon_start(&d, args);
	bt_open(&first, &d, "default");
	bt_open(&second, &d, "default");
	for (unsigned i = 0; i < 20; i++)
		through(DOOR_HELLO, &d, &keep[i]);
	bt_check_served(&first, 1);
	bt_close(&second);
	bt_close(&first);
	for (unsigned i = 0; i < 20; i++)
		close(keep[i]);
	bt_daemon_stop(&d);
}

/* Told to stop in the middle of it, with more unread, it ends. */
static void test_lingering_stop(void **state)
{
	struct bt_daemon d;
	int keep[12], status;

	bt_daemon_start(&d, NULL);
	for (unsigned i = 0; i < 8; i++)
		through((enum door)(i % DOORS), &d, &keep[i]);
	kill(d.pid, SIGSTOP); /* these will not even be accepted */
	for (unsigned i = 8; i < 12; i++)
		through(DOOR_HELLO, &d, &keep[i]);
	kill(d.pid, SIGTERM);
	kill(d.pid, SIGCONT);
	status = bt_daemon_wait(&d);
	assert_true(status != -1 && WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(access(d.path, F_OK), -1);
	bt_daemon_clean(&d);
	for (unsigned i = 0; i < 12; i++)
		close(keep[i]);
}

/* Started from a preloaded program, the broker is not preloaded itself. */
static void test_preloaded(void **state)
{
	char path[40], list[8192];
	struct bt_daemon d;
	ssize_t n;
	int fd;

	assert_int_equal(bt_daemon_try(&d, NULL, "LD_PRELOAD=/none/one.so:/none/libsamepage-preload.so "
						 "/none/two.so"), 0);
	snprintf(path, sizeof(path), "/proc/%d/environ", (int)d.pid);
	fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	n = read(fd, list, sizeof(list));
	assert_true(n > 0);
	assert_null(memmem(list, (size_t)n, "libsamepage-preload", 19));
	assert_non_null(memmem(list, (size_t)n, "LD_PRELOAD=/none/one.so /none/two.so", 37));
	close(fd);
	bt_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lingering),
		cmocka_unit_test(test_lingering_turned_away),
		cmocka_unit_test(test_lingering_stop),
		cmocka_unit_test(test_preloaded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
