/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop: one round is what epoll reports, each session one quantum of it, one
 * offered segment, what control operations have to ask and to tell, what the
 * clock brings, and then the doomed sessions are freed.
 *
 * Who has not read what was queued for them for the time of a request is dropped:
 * while it lies there nothing they ask is read, either.
 *
 * Out of file descriptors, accept fails while the listening socket stays readable:
 * it is left alone for a moment, or the loop would spin.
 */
#include "broker/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/maps.h"

#define EVENTS_MAX 64
#define ACCEPTS_PER_ROUND 16
#define ACCEPT_PAUSE_USEC (BROKER_SECOND_USEC / 2)
#define EPOLL_ERRORS_MAX 100
#define TIMEOUT_MSEC_MAX 60000u

static int watch(struct broker *b, int op, int fd, uint32_t events, void *tag)
{
	struct epoll_event ev = { .events = events, .data.ptr = tag };

	return sys->epoll_ctl(b->ep, op, fd, &ev);
}

static unsigned socket_mode(const struct broker_config *c)
{
	if (c->socket_gid >= 0)
		return 0660;
	return geteuid() == 0 ? 0666 : 0600;
}

static int open_listener(struct broker *b)
{
	const struct broker_config *c = &b->config;
	int r;

	if (c->listen_fd >= 0) {
		b->listen_fd = c->listen_fd;
		return 0;
	}
	r = sys_broker_make_dir(c->socket_path);
	if (r < 0)
		return r;
	r = sys->socket_listen(c->socket_path, socket_mode(c), 128);
	if (r < 0)
		return r;
	b->listen_fd = r;
	if (lstat(c->socket_path, &b->socket_file) == 0)
		b->socket_made = true;
	/* Until then it is root:root 0660, which lets nobody in who may not. */
	if (c->socket_gid >= 0 && lchown(c->socket_path, (uid_t)-1, (gid_t)c->socket_gid) < 0)
		return -errno;
	return 0;
}

static int open_signals(struct broker *b)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN); /* a closed stderr */
	r = sys->signalfd(-1, &set);
	if (r < 0)
		return r;
	b->signal_fd = r;
	return 0;
}

static int broker_start(struct broker *b)
{
	int r = sys->epoll_create();

	if (r < 0)
		return r;
	b->ep = r;
	r = open_signals(b);
	if (r == 0)
		r = watch(b, EPOLL_CTL_ADD, b->signal_fd, EPOLLIN, b);
	if (r == 0)
		r = open_listener(b);
	if (r == 0)
		r = watch(b, EPOLL_CTL_ADD, b->listen_fd, EPOLLIN, NULL);
	return r;
}

int broker_new(struct broker **out, const struct broker_config *config)
{
	struct broker *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->config = *config;
	b->ep = b->listen_fd = b->signal_fd = -1;
	TAILQ_INIT(&b->sessions);
	TAILQ_INIT(&b->doomed);
	TAILQ_INIT(&b->offers);
	TAILQ_INIT(&b->domains);
	TAILQ_INIT(&b->users);
	TAILQ_INIT(&b->ops);
	TAILQ_INIT(&b->dirty);
	TAILQ_INIT(&b->ready);
	TAILQ_INIT(&b->asked);
	TAILQ_INIT(&b->askable);
	broker_quota_start(b);
	b->now = b->idle_since = sys_now_usec();
	b->accept_again_at = BROKER_NEVER;
	b->overflow_uid = sys_read_number("/proc/sys/kernel/overflowuid");
	if (b->overflow_uid < 0)
		b->overflow_uid = 65534; /* the kernel's default */
	b->uffd_fd = sys->open("/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0);
	r = broker_start(b);
	if (r < 0) {
		broker_free(b);
		return r;
	}
	*out = b;
	return 0;
}

static void free_doomed(struct broker *b)
{
	struct broker_session *s;

	while ((s = TAILQ_FIRST(&b->doomed)) != NULL) {
		TAILQ_REMOVE(&b->doomed, s, link);
		free(s);
	}
}

/* Only if the file is still the one that we made. */
static void remove_socket(struct broker *b)
{
	struct stat now;

	if (b->socket_made && lstat(b->config.socket_path, &now) == 0 &&
	    now.st_dev == b->socket_file.st_dev && now.st_ino == b->socket_file.st_ino)
		unlink(b->config.socket_path);
	b->socket_made = false;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		sys->close(fd);
}

void broker_free(struct broker *b)
{
	remove_socket(b);
	broker_undertaker_end();
	while (!TAILQ_EMPTY(&b->sessions))
		broker_session_drop(TAILQ_FIRST(&b->sessions));
	free_doomed(b);
	broker_domain_free_all(b);
	/*
	 * Not the listener: connections that wait there may hold fds. It is the exit
	 * that closes it, where nothing lingers.
	 */
	close_if_open(b->signal_fd);
	close_if_open(b->uffd_fd);
	close_if_open(b->ep);
	free(b);
}

static void accept_pause(struct broker *b, int error)
{
	broker_log(BROKER_LOG_SYSTEM, "accept: %s", strerror(-error));
	if (watch(b, EPOLL_CTL_MOD, b->listen_fd, 0, NULL) == 0)
		b->accept_again_at = b->now + ACCEPT_PAUSE_USEC;
}

static void accept_some(struct broker *b)
{
	for (int i = 0; i < ACCEPTS_PER_ROUND; i++) {
		int fd = sys->socket_accept(b->listen_fd);

		if (fd == -EAGAIN || fd == -EINTR || fd == -ECONNABORTED)
			return;
		if (fd < 0) {
			accept_pause(b, fd);
			return;
		}
		broker_session_accept(b, fd);
	}
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t session_deadline(const struct broker_session *s)
{
	if (s->state == BROKER_SESSION_GREETING)
		return s->hello_deadline;
	if (!STAILQ_EMPTY(&s->out))
		return s->out_moved_at + s->broker->config.request_timeout_usec;
	return BROKER_NEVER;
}

static uint64_t sessions_tick(struct broker *b)
{
	uint64_t again = BROKER_NEVER;
	struct broker_session *s, *next;
	uint64_t at;

	if (b->greeting_count == 0 && b->stuck_count == 0)
		return again;
	for (s = TAILQ_FIRST(&b->sessions); s; s = next) {
		next = TAILQ_NEXT(s, link);
		at = session_deadline(s);
		if (b->now < at)
			again = least(again, at);
		else if (s->state == BROKER_SESSION_GREETING)
			broker_session_refuse(s, 0, -ETIMEDOUT, "no HELLO");
		else
			broker_session_refuse(s, 0, -ETIMEDOUT, "does not read its answers");
	}
	return again;
}

static uint64_t accept_tick(struct broker *b)
{
	if (b->now >= b->accept_again_at) {
		b->accept_again_at = BROKER_NEVER;
		if (watch(b, EPOLL_CTL_MOD, b->listen_fd, EPOLLIN, NULL) < 0)
			b->accept_again_at = b->now + ACCEPT_PAUSE_USEC;
	}
	return b->accept_again_at;
}

/*
 * Who connected in the last moment is still served; who connects after the
 * socket file is gone finds nobody, and starts a broker of their own.
 */
static uint64_t idle_tick(struct broker *b)
{
	uint64_t at;

	if (b->idle_since == BROKER_NEVER || b->config.idle_exit_usec == BROKER_NEVER)
		return BROKER_NEVER;
	at = b->idle_since + b->config.idle_exit_usec;
	if (b->now < at)
		return at;
	remove_socket(b);
	accept_some(b);
	if (b->session_count > 0) {
		/* Unreachable for others from here on: leave when these have left. */
		b->config.idle_exit_usec = 0;
		return b->now;
	}
	broker_log(BROKER_LOG_LIFE, "nobody here: exit");
	b->stop = true;
	return at;
}

/* Everything that the clock brings; returns when to come again. */
static uint64_t tick(struct broker *b)
{
	uint64_t again;

	b->now = sys_now_usec();
	again = broker_control_tick(b);
	again = least(again, sessions_tick(b));
	again = least(again, broker_domain_tick(b));
	again = least(again, accept_tick(b));
	return least(again, idle_tick(b));
}

static int timeout_until(const struct broker *b, uint64_t at)
{
	uint64_t msec;

	if (!TAILQ_EMPTY(&b->offers) || at <= b->now)
		return 0;
	msec = at == BROKER_NEVER ? TIMEOUT_MSEC_MAX : (at - b->now + 999) / 1000;
	return (int)least(msec, TIMEOUT_MSEC_MAX);
}

static void dispatch(struct broker *b, const struct epoll_event *ev)
{
	if (ev->data.ptr == NULL) {
		accept_some(b);
	} else if (ev->data.ptr == b) {
		broker_log(BROKER_LOG_LIFE, "told to stop");
		b->stop = true;
	} else {
		broker_session_event(ev->data.ptr, ev->events);
	}
}

int broker_run(struct broker *b)
{
	struct epoll_event events[EVENTS_MAX];
	unsigned errors = 0;

	while (!b->stop) {
		uint64_t again = tick(b);
		int n;

		free_doomed(b);
		if (b->stop)
			break;
		n = sys->epoll_wait(b->ep, events, EVENTS_MAX, timeout_until(b, again));
		b->now = sys_now_usec();
		if (n < 0 && n != -EINTR && ++errors > EPOLL_ERRORS_MAX)
			return n;
		if (n >= 0)
			errors = 0;
		for (int i = 0; i < n; i++)
			dispatch(b, &events[i]);
		broker_client_adopt_one(b);
	}
	return 0;
}
