/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Seqpacket sockets through the table. If this failed, a hostile client could
 * fill the broker's descriptor table (I4), a broker could not start after a crash
 * or would steal the socket of one that runs, or peers would be taken for others
 * (I7).
 */
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "sys_test.h"

static char dir[64];
static char path[80];

static int make_dir(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/sys-socket-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/socket", dir);
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

static void make_pair(int pair[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
}

static void close_pair(int pair[2])
{
	sys->close(pair[0]);
	sys->close(pair[1]);
}

static bool same_file(int a, int b)
{
	struct stat x, y;

	assert_int_equal(fstat(a, &x), 0);
	assert_int_equal(fstat(b, &y), 0);
	return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void descriptors_arrive_close_on_exec(void **state)
{
	int send[3], got[4], pair[2];
	unsigned n = 4;
	char buf[16];

	(void)state;
	make_pair(pair);
	for (int i = 0; i < 3; i++)
		assert_true((send[i] = sys->memfd_create("x", MFD_CLOEXEC)) >= 0);
	assert_int_equal(sys->send_msg(pair[0], "hello", 5, send, 3, 0), 5);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), 5);
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(n, 3);
	for (int i = 0; i < 3; i++) {
		assert_true(same_file(send[i], got[i]));
		assert_int_equal(fcntl(got[i], F_GETFD), FD_CLOEXEC);
		sys->close(got[i]);
		sys->close(send[i]);
	}
	/* and none where none were sent, also with no room given */
	n = 4;
	assert_int_equal(sys->send_msg(pair[0], "bye", 3, NULL, 0, 0), 3);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), 3);
	assert_int_equal(n, 0);
	assert_int_equal(sys->send_msg(pair[0], "bye", 3, NULL, 0, 0), 3);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, 0), 3);
	close_pair(pair);
}

static void too_many_descriptors_leak_none(void **state)
{
	int many[253], got[253], pair[2];
	int fds;
	char buf[16];

	(void)state;
	make_pair(pair);
	for (int i = 0; i < 253; i++)
		many[i] = pair[0];
	fds = test_open_fds();
	for (unsigned sent = 1; sent <= 253; sent += sent < 12 ? 1 : 37) {
		for (unsigned room = 0; room < sent; room += room < 12 ? 1 : 29) {
			unsigned n = room;

			assert_int_equal(sys->send_msg(pair[0], "x", 1, many, sent, 0), 1);
			assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), -EMSGSIZE);
			assert_int_equal(n, 0);
			assert_int_equal(test_open_fds(), fds);
		}
	}
	/* the next packet is not hurt, and as many as the kernel sends do fit */
	{
		unsigned n = 253;

		assert_int_equal(sys->send_msg(pair[0], "x", 1, many, 253, 0), 1);
		assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), 1);
		assert_int_equal(n, 253);
		for (unsigned i = 0; i < n; i++)
			sys->close(got[i]);
	}
	assert_int_equal(sys->send_msg(pair[0], "x", 1, many, 254, 0), -EINVAL);
	close_pair(pair);
}

static void cut_packets_leak_no_descriptor(void **state)
{
	int pair[2], got[4], fds;
	unsigned n = 4;
	char buf[8];

	(void)state;
	make_pair(pair);
	fds = test_open_fds();
	assert_int_equal(sys->send_msg(pair[0], "0123456789", 10, pair, 2, 0), 10);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), -EMSGSIZE);
	assert_int_equal(n, 0);
	assert_int_equal(test_open_fds(), fds);
	/* nor does an empty packet, which reads like the end */
	n = 4;
	assert_int_equal(sys->send_msg(pair[0], "", 0, pair, 2, 0), 0);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), got, &n, 0), 0);
	assert_int_equal(n, 0);
	assert_int_equal(test_open_fds(), fds);
	close_pair(pair);
}

static void a_peer_that_left_is_zero(void **state)
{
	int pair[2];
	char buf[8];

	(void)state;
	make_pair(pair);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, MSG_DONTWAIT), -EAGAIN);
	assert_int_equal(sys->send_msg(pair[0], "last", 4, NULL, 0, 0), 4);
	sys->close(pair[0]);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, 0), 4);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, 0), 0);
	assert_int_equal(sys->send_msg(pair[1], "x", 1, NULL, 0, 0), -EPIPE); /* and no SIGPIPE */
	sys->close(pair[1]);
}

/* It left without reading what we sent: the kernel says ECONNRESET ahead of its last words. */
static void a_peer_that_left_unread_is_zero_too(void **state)
{
	int pair[2];
	char buf[8];

	(void)state;
	make_pair(pair);
	assert_int_equal(sys->send_msg(pair[1], "unread", 6, NULL, 0, 0), 6);
	assert_int_equal(sys->send_msg(pair[0], "last", 4, NULL, 0, 0), 4);
	sys->close(pair[0]);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, 0), 4);
	assert_memory_equal(buf, "last", 4);
	assert_int_equal(sys->recv_msg(pair[1], buf, sizeof(buf), NULL, NULL, 0), 0);
	sys->close(pair[1]);
}

static void the_kernel_names_the_peer(void **state)
{
	struct sys_peer peer;
	int listener, client, server, status;
	pid_t child;
	char c;

	(void)state;
	listener = sys->socket_listen(path, 0600, 4);
	assert_true(listener >= 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		client = sys->socket_connect(path);
		_exit(client >= 0 && sys->recv_msg(client, &c, 1, NULL, NULL, 0) == 0 ? 0 : 1);
	}
	do
		server = sys->socket_accept(listener);
	while (server == -EAGAIN);
	assert_true(server >= 0);
	assert_int_equal(fcntl(server, F_GETFD), FD_CLOEXEC);
	assert_true(fcntl(server, F_GETFL) & O_NONBLOCK);
	memset(&peer, 0xff, sizeof(peer));
	assert_int_equal(sys->peer(server, &peer), 0);
	assert_int_equal(peer.pid, child);
	assert_int_equal(peer.uid, geteuid());
	assert_int_equal(peer.gid, getegid());
	assert_true(strnlen(peer.label, sizeof(peer.label)) < sizeof(peer.label));
	sys->close(server);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	sys->close(listener);
	unlink(path);
}

static void the_file_has_the_mode_asked_for(void **state)
{
	static const unsigned modes[] = { 0600, 0666, 0660, 0000, 0777 };
	mode_t old = umask(027);

	(void)state;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		struct stat st;
		int fd = sys->socket_listen(path, modes[i], 4);

		assert_true(fd >= 0);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_mode & 07777, modes[i]);
		assert_true(S_ISSOCK(st.st_mode));
		sys->close(fd);
		unlink(path);
	}
	umask(old);
}

static void a_stale_file_is_taken_over(void **state)
{
	int fd = sys->socket_listen(path, 0600, 4);
	int client;

	(void)state;
	assert_true(fd >= 0);
	sys->close(fd); /* the file stays */
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(sys->socket_connect(path), -ECONNREFUSED);
	fd = sys->socket_listen(path, 0600, 4);
	assert_true(fd >= 0);
	client = sys->socket_connect(path);
	assert_true(client >= 0);
	assert_false(fcntl(client, F_GETFL) & O_NONBLOCK);
	assert_int_equal(fcntl(client, F_GETFD), FD_CLOEXEC);
	sys->close(client);

	/* one that listens is not, also when its queue is full */
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	sys->close(fd);
	fd = sys->socket_listen(path, 0600, 0);
	assert_true(fd >= 0);
	client = sys->socket_connect(path);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	sys->close(client);
	sys->close(fd);
	unlink(path);
}

static void other_files_are_left_alone(void **state)
{
	int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int stream;

	(void)state;
	assert_true(file >= 0);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	close(file);
	unlink(path);

	assert_int_equal(symlink("/nonexistent/file", path), 0);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	unlink(path);

	/* a server of another kind listens there */
	strcpy(addr.sun_path, path);
	stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(stream, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(stream, 1), 0);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	close(stream);
	unlink(path);
}

/* Whoever sits on the directory's lock keeps no broker from starting, only from removing. */
static void a_held_lock_removes_nothing(void **state)
{
	int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int fd;

	(void)state;
	assert_int_equal(flock(lock, LOCK_EX), 0);
	fd = sys->socket_listen(path, 0600, 4);
	assert_true(fd >= 0);
	sys->close(fd);
	assert_int_equal(sys->socket_listen(path, 0600, 4), -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	close(lock);
	fd = sys->socket_listen(path, 0600, 4);
	assert_true(fd >= 0);
	sys->close(fd);
	unlink(path);
}

static void paths_that_do_not_fit(void **state)
{
	char name[200] = "/tmp/";

	(void)state;
	memset(name + 5, 'x', sizeof(name) - 6);
	name[108] = '\0'; /* as long as sun_path: no room for the NUL */
	assert_int_equal(sys->socket_connect(name), -ENAMETOOLONG);
	assert_int_equal(sys->socket_listen(name, 0600, 1), -ENAMETOOLONG);
	name[107] = '\0';
	assert_int_equal(sys->socket_connect(name), -ENOENT);
	assert_int_equal(sys->socket_connect(""), -EINVAL);
	assert_int_equal(sys->socket_listen("", 0600, 1), -EINVAL);
}

static void epoll_and_poll_see_packets(void **state)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = 77 };
	struct epoll_event got = { 0 };
	struct pollfd pfd = { .events = POLLIN };
	int pair[2];
	int ep = sys->epoll_create();

	(void)state;
	make_pair(pair);
	assert_true(ep >= 0);
	pfd.fd = pair[1];
	assert_int_equal(sys->epoll_ctl(ep, EPOLL_CTL_ADD, pair[1], &ev), 0);
	assert_int_equal(sys->epoll_wait(ep, &got, 1, 0), 0);
	assert_int_equal(sys->poll(&pfd, 1, 0), 0);
	assert_int_equal(sys->send_msg(pair[0], "x", 1, NULL, 0, 0), 1);
	assert_int_equal(sys->epoll_wait(ep, &got, 1, -1), 1);
	assert_int_equal(got.data.u32, 77);
	assert_int_equal(sys->poll(&pfd, 1, -1), 1);
	sys->close(ep);
	close_pair(pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(descriptors_arrive_close_on_exec),
		TEST(too_many_descriptors_leak_none),
		TEST(cut_packets_leak_no_descriptor),
		TEST(a_peer_that_left_is_zero),
		TEST(a_peer_that_left_unread_is_zero_too),
		TEST(the_kernel_names_the_peer),
		TEST(the_file_has_the_mode_asked_for),
		TEST(a_stale_file_is_taken_over),
		TEST(other_files_are_left_alone),
		TEST(a_held_lock_removes_nothing),
		TEST(paths_that_do_not_fit),
		TEST(epoll_and_poll_see_packets),
	};

	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-socket", tests, make_dir, remove_dir);
}
