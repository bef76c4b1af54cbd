/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/sys.h"

static void pause_msec(long msec)
{
	struct timespec ts = { .tv_sec = msec / 1000, .tv_nsec = msec % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

/* The daemon ------------------------------------------------------------------ */

static void exec_daemon(const struct bt_daemon *d, const char *const *args,
			const char *environment, int ready)
{
	const char *program = getenv("SAMEPAGED");
	const char *argv[BT_ARGS_MAX] = { "samepaged", "--socket", d->path, "--ready-fd", NULL,
					   "--config", "/dev/null" };
	char fd[12];
	int n = 7;

	snprintf(fd, sizeof(fd), "%d", ready);
	argv[4] = fd;
	while (args && *args && n < BT_ARGS_MAX - 1)
		argv[n++] = *args++;
	argv[n] = NULL;
	if (environment)
		putenv((char *)(uintptr_t)environment);
	else
		unsetenv("SAMEPAGE_FAULT");
	/* A test that fails leaves no daemon behind, and none holds its pipes open. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(open("/dev/null", O_WRONLY), 1);
	if (!getenv("BT_VERBOSE"))
		dup2(1, 2);
	execv(program ? program : "./samepaged", (char *const *)(uintptr_t)argv);
	_exit(127);
}

/* 0 when it said that it is ready; -EIO: it ended before. */
static int spawn(struct bt_daemon *d, const char *const *args, const char *environment)
{
	struct pollfd p;
	int ready[2];
	char byte;
	ssize_t n = 0;

	assert_int_equal(pipe(ready), 0);
	d->pid = fork();
	assert_true(d->pid >= 0);
	if (d->pid == 0) {
		close(ready[0]);
		exec_daemon(d, args, environment, ready[1]);
	}
	close(ready[1]);
	p = (struct pollfd){ .fd = ready[0], .events = POLLIN };
	if (poll(&p, 1, BT_WAIT_MSEC) == 1)
		n = read(ready[0], &byte, 1);
	close(ready[0]);
	return n == 1 ? 0 : -EIO;
}

int bt_daemon_try(struct bt_daemon *d, const char *const *args, const char *environment)
{
	strcpy(d->dir, "/tmp/samepage-test-XXXXXX");
	assert_non_null(mkdtemp(d->dir));
	assert_int_equal(chmod(d->dir, 0755), 0); /* other users connect, too */
	snprintf(d->path, sizeof(d->path), "%s/broker.sock", d->dir);
	return spawn(d, args, environment);
}

void bt_daemon_start(struct bt_daemon *d, const char *const *args)
{
	assert_int_equal(bt_daemon_try(d, args, NULL), 0);
}

void bt_daemon_restart(struct bt_daemon *d, const char *const *args)
{
	assert_int_equal(spawn(d, args, NULL), 0);
}

bool bt_daemon_alive(const struct bt_daemon *d)
{
	int status;

	return waitpid(d->pid, &status, WNOHANG) == 0;
}

int bt_daemon_wait(struct bt_daemon *d)
{
	int status;

	for (int i = 0; i < BT_WAIT_MSEC / 10; i++) {
		if (waitpid(d->pid, &status, WNOHANG) == d->pid)
			return status;
		pause_msec(10);
	}
	kill(d->pid, SIGKILL);
	waitpid(d->pid, &status, 0);
	return -1;
}

void bt_daemon_clean(struct bt_daemon *d)
{
	unlink(d->path);
	rmdir(d->dir);
}

void bt_daemon_stop(struct bt_daemon *d)
{
	int status;

	assert_true(bt_daemon_alive(d));
	kill(d->pid, SIGTERM);
	status = bt_daemon_wait(d);
	assert_true(status != -1 && WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(access(d->path, F_OK), -1); /* the socket file went with it */
	bt_daemon_clean(d);
}

unsigned bt_daemon_fds(const struct bt_daemon *d)
{
	char path[40];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	dir = opendir(path);
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Sessions -------------------------------------------------------------------- */

int bt_connect(const struct bt_daemon *d)
{
	return sys->socket_connect(d->path);
}

void bt_raw(struct bt_client *c, const struct bt_daemon *d)
{
	*c = (struct bt_client){ .fd = bt_connect(d), .seq = 100 };
	assert_true(c->fd >= 0);
}

static void close_packet_fds(struct bt_client *c)
{
	while (c->packet_nfds > 0)
		close(c->packet_fds[--c->packet_nfds]);
}

int bt_receive(struct bt_client *c, int msec)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };
	ssize_t n;

	close_packet_fds(c);
	if (sys->poll(&p, 1, msec) != 1)
		return -ETIMEDOUT;
	c->packet_nfds = CORE_WIRE_FDS_MAX;
	n = sys->recv_msg(c->fd, c->packet, sizeof(c->packet), c->packet_fds, &c->packet_nfds, 0);
	if (n <= 0) {
		c->packet_nfds = 0;
		return (int)n;
	}
	/* What the broker says is always well-formed. */
	assert_int_equal(core_wire_check(c->packet, (size_t)n, 0), 0);
	return ((struct core_wire_header *)c->packet)->type;
}

const void *bt_expect(struct bt_client *c, uint16_t type)
{
	int got = bt_receive(c, BT_WAIT_MSEC);

	if (got == CORE_WIRE_ERROR && type != CORE_WIRE_ERROR)
		print_error("error: %s\n", ((struct core_wire_error *)c->packet)->text);
	assert_int_equal(got, type);
	return c->packet;
}

int bt_expect_closed(struct bt_client *c)
{
	int error = 0;

	for (;;) {
		int got = bt_receive(c, BT_WAIT_MSEC);

		if (got == CORE_WIRE_ERROR)
			error = ((struct core_wire_error *)c->packet)->error;
		if (got <= 0) {
			assert_true(got == 0 || got == -ECONNRESET || got == -EPIPE);
			return error;
		}
	}
}

int bt_send_raw(struct bt_client *c, const void *packet, size_t bytes, const int *fds,
		unsigned nfds)
{
	return (int)sys->send_msg(c->fd, packet, bytes, fds, nfds, 0);
}

uint32_t bt_send(struct bt_client *c, void *message, uint16_t type, uint32_t count)
{
	uint32_t bytes = (uint32_t)core_wire_bytes(type, count);

	core_wire_header_init(message, type, bytes, ++c->seq);
	assert_int_equal(bt_send_raw(c, message, bytes, NULL, 0), bytes);
	return c->seq;
}

int bt_hello(struct bt_client *c, uint32_t role, const char *domain, uint32_t flags)
{
	struct core_wire_hello hello = { .role = role, .flags = flags, .comm = "scripted" };
	int got;

	hello.page_bytes = (uint32_t)sys_page_bytes();
	strncpy(hello.domain, domain, sizeof(hello.domain) - 1);
	core_wire_header_init(&hello.h, CORE_WIRE_HELLO, sizeof(hello), ++c->seq);
	if (bt_send_raw(c, &hello, sizeof(hello), NULL, 0) < 0)
		return -ECONNRESET;
	got = bt_receive(c, BT_WAIT_MSEC);
	if (got == CORE_WIRE_ERROR)
		return ((struct core_wire_error *)c->packet)->error;
	if (got != CORE_WIRE_WELCOME)
		return -ECONNRESET;
	memcpy(&c->welcome, c->packet, sizeof(c->welcome));
	assert_int_equal(c->welcome.h.seq, c->seq);
	memcpy(c->fds, c->packet_fds, sizeof(c->fds));
	c->nfds = c->packet_nfds;
	c->packet_nfds = 0;
	return 0;
}

void bt_open(struct bt_client *c, const struct bt_daemon *d, const char *domain)
{
	bt_raw(c, d);
	assert_int_equal(bt_hello(c, CORE_WIRE_ROLE_CLIENT, domain, 0), 0);
	assert_int_equal(c->nfds, 3);
	c->index_map = mmap(NULL, c->welcome.index_bytes, PROT_READ, MAP_SHARED, c->fds[0], 0);
	assert_ptr_not_equal(c->index_map, MAP_FAILED);
	assert_int_equal(core_index_attach(&c->index, c->index_map, c->welcome.index_bytes,
					   (uint32_t)sys_page_bytes()),
			 0);
	c->ring = mmap(NULL, c->welcome.ring_pages * sys_page_bytes(), PROT_READ | PROT_WRITE,
		       MAP_SHARED, c->fds[2], 0);
	assert_ptr_not_equal(c->ring, MAP_FAILED);
}

void bt_control(struct bt_client *c, const struct bt_daemon *d)
{
	bt_raw(c, d);
	assert_int_equal(bt_hello(c, CORE_WIRE_ROLE_CONTROL, "", 0), 0);
	assert_int_equal(c->nfds, 0);
}

void bt_close(struct bt_client *c)
{
	close_packet_fds(c);
	if (c->ring)
		munmap(c->ring, c->welcome.ring_pages * sys_page_bytes());
	if (c->index_map)
		munmap(c->index_map, c->welcome.index_bytes);
	while (c->nfds > 0)
		close(c->fds[--c->nfds]);
	if (c->fd >= 0)
		close(c->fd);
	*c = (struct bt_client){ .fd = -1 };
}

/* Pages ----------------------------------------------------------------------- */

void bt_fill(uint8_t *page, uint64_t salt, uint64_t n)
{
	uint64_t x = (salt * 0x9e3779b97f4a7c15ull) ^ ((n + 1) * 0xd6e8feb86659fd93ull);
	uint64_t *words = (uint64_t *)(void *)page;

	for (size_t i = 0; i < sys_page_bytes() / sizeof(*words); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
}

void bt_promote(struct bt_client *c, uint64_t salt, uint64_t first, unsigned count,
		uint32_t *slot, uint8_t *reason)
{
	struct core_wire_submit m = { .count = count };
	const struct core_wire_slots *answer;
	uint32_t seq;

	assert_true(count <= c->welcome.ring_pages);
	for (unsigned i = 0; i < count; i++) {
		bt_fill(c->ring + i * sys_page_bytes(), salt, first + i);
		m.ring_page[i] = (uint16_t)i;
	}
	seq = bt_send(c, &m, CORE_WIRE_SUBMIT, count);
	answer = bt_expect(c, CORE_WIRE_SLOTS);
	assert_int_equal(answer->h.seq, seq);
	assert_int_equal(answer->count, count);
	memcpy(slot, answer->slot, count * sizeof(*slot));
	if (reason)
		memcpy(reason, answer->reason, count);
}

int bt_segment(struct bt_client *c, uint32_t segment)
{
	struct core_wire_segment m = { .segment = segment };
	uint32_t seq = bt_send(c, &m, CORE_WIRE_SEGMENT_GET, 0);
	int got = bt_receive(c, BT_WAIT_MSEC);

	assert_int_equal(((struct core_wire_header *)c->packet)->seq, seq);
	if (got == CORE_WIRE_ERROR)
		return ((struct core_wire_error *)c->packet)->error;
	assert_int_equal(got, CORE_WIRE_SEGMENT);
	assert_int_equal(c->packet_nfds, 1);
	c->packet_nfds = 0;
	return c->packet_fds[0];
}

bool bt_slot_is(struct bt_client *c, uint32_t slot, uint64_t salt, uint64_t n)
{
	size_t page = sys_page_bytes();
	uint8_t *want = malloc(page), *have = malloc(page);
	int fd = bt_segment(c, slot / BROKER_SEGMENT_SLOTS);
	bool same;

	assert_true(want && have && fd >= 0);
	bt_fill(want, salt, n);
	assert_int_equal(pread(fd, have, page, (off_t)(slot % BROKER_SEGMENT_SLOTS * page)), page);
	same = memcmp(want, have, page) == 0;
	close(fd);
	free(want);
	free(have);
	return same;
}

void bt_check_served(struct bt_client *c, uint64_t salt)
{
	uint32_t slot[4];
	uint8_t reason[4];

	bt_promote(c, salt, 0, 4, slot, reason);
	for (unsigned i = 0; i < 4; i++) {
		if (slot[i] == CORE_SLOT_NONE)
			print_error("page %u: reason %u\n", i, reason[i]);
		assert_int_not_equal(slot[i], CORE_SLOT_NONE);
		assert_true(bt_slot_is(c, slot[i], salt, i));
	}
}

/* Control --------------------------------------------------------------------- */

void bt_ctl(struct bt_client *c, uint32_t op, uint32_t flags, const int32_t *pids, uint32_t count)
{
	struct core_wire_ctl m = { .op = op, .flags = flags, .count = count };

	if (count > 0)
		memcpy(m.pid, pids, count * sizeof(*pids));
	bt_send(c, &m, CORE_WIRE_CTL, count);
}

void bt_expect_request(struct bt_client *c, uint32_t op)
{
	const struct core_wire_request *m = bt_expect(c, CORE_WIRE_REQUEST);

	assert_int_equal(m->op, op);
}

void bt_answer(struct bt_client *c, int32_t error, uint64_t mark)
{
	struct core_wire_result m = { .report = { .error = error, .pages_sharing = mark } };
	const struct core_wire_header *h = (const void *)c->packet;

	core_wire_header_init(&m.h, CORE_WIRE_RESULT, sizeof(m), h->seq);
	assert_int_equal(bt_send_raw(c, &m, sizeof(m), NULL, 0), sizeof(m));
}

void bt_stats_end(struct bt_client *control, struct core_wire_ctl_end *end)
{
	bt_ctl(control, CORE_WIRE_OP_LIST, CORE_WIRE_CTL_ALL, NULL, 0);
	while (bt_receive(control, BT_WAIT_MSEC) == CORE_WIRE_CTL_ITEM)
		;
	assert_int_equal(((struct core_wire_header *)control->packet)->type, CORE_WIRE_CTL_END);
	memcpy(end, control->packet, sizeof(*end));
}
