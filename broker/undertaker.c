/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Closing what may hold up who closes it.
 *
 * The last close of a file calls whoever is behind it: a file system of the
 * user's own (FUSE) answers when it likes, a TCP socket with SO_LINGER sleeps
 * until its data is sent. Two things bring such files here: an fd beside an OFFER
 * that is no memfd, and a connection in whose queue packets with fds are still
 * unread. So both are closed by threads that have nothing else to do (I4, I6).
 *
 *   waiting   in line: open, but shut down if it is a socket
 *   closing   a thread is at it
 *
 * A few threads for each kind and user, and not many in all: who holds up those
 * of their own makes their own fds wait, and these count among their sessions
 * (session.c), so that they are bounded too. Sleeps that a signal can end, like
 * that of SO_LINGER, are ended by a timer of the thread's own, whose signal does
 * nothing else.
 *
 * While the line of one user is long all the same, connections that are proved to
 * hold no fds are closed at once, so that it takes an fd in each to make it longer.
 *
 * The threads touch no state of the broker's but the line below, under its lock,
 * which nobody holds while closing. At the end of the broker nothing is closed
 * here any more: the kernel does it, and lets no exiting process linger.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include "broker/broker.h"

#define THREADS_MAX 16u /* of each kind */
#define THREADS_PER_UID_MAX 2u
#define THREAD_STACK_BYTES ((size_t)64 << 10)
#define DRAIN_PACKETS_MAX 4096u
#define LINE_PER_UID_MAX 256u
#define NUDGE_NSEC 10000000L
#define NUDGE_SIGNAL (SIGRTMIN + 1)
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct grave {
	TAILQ_ENTRY(grave) link;
	int fd;
	uid_t uid;
	bool socket;
	bool closing;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, grave) graves = TAILQ_HEAD_INITIALIZER(graves);
static unsigned threads[2]; /* by kind */
static bool ended;

/* Under the lock. */
static unsigned closing_of(uid_t uid, bool socket)
{
	const struct grave *g;
	unsigned n = 0;

	TAILQ_FOREACH(g, &graves, link)
		n += g->closing && g->uid == uid && g->socket == socket;
	return n;
}

/* Under the lock: the first in line whose user has a thread left. */
static struct grave *next_grave(bool socket)
{
	struct grave *g;

	TAILQ_FOREACH(g, &graves, link) {
		if (!g->closing && g->socket == socket &&
		    closing_of(g->uid, socket) < THREADS_PER_UID_MAX)
			break;
	}
	if (g)
		g->closing = true;
	return g;
}

static void nudge(int sig)
{
	(void)sig;
}

/* The timer is the process's, so it must be ended with the thread. */
static bool nudge_me(timer_t *timer)
{
	struct itimerspec often = { .it_interval.tv_nsec = NUDGE_NSEC,
				    .it_value.tv_nsec = NUDGE_NSEC };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = NUDGE_SIGNAL };
	struct sigaction action = { .sa_handler = nudge };

	event.sigev_notify_thread_id = sys_gettid();
	if (sigaction(NUDGE_SIGNAL, &action, NULL) < 0 ||
	    timer_create(CLOCK_MONOTONIC, &event, timer) < 0)
		return false;
	timer_settime(*timer, 0, &often, NULL);
	return true;
}

/* Read to the end, so that the peer finds what it was told and not a reset. */
static void bury(const struct grave *g)
{
	char none;

	for (unsigned i = 0; g->socket && i < DRAIN_PACKETS_MAX; i++) {
		if (recv(g->fd, &none, sizeof(none), MSG_DONTWAIT) <= 0)
			break;
	}
	sys->close(g->fd);
}

static void *undertaker_run(void *arg)
{
	struct grave *g = arg;
	bool socket = g->socket;
	timer_t timer;
	bool nudged = nudge_me(&timer);

	while (g) {
		bury(g);
		pthread_mutex_lock(&lock);
		TAILQ_REMOVE(&graves, g, link);
		free(g);
		g = next_grave(socket);
		if (!g)
			threads[socket]--;
		pthread_mutex_unlock(&lock);
	}
	if (nudged)
		timer_delete(timer);
	return NULL;
}

/* Under the lock. Without a thread an fd stays in line until there is one. */
static void hire(bool socket)
{
	pthread_attr_t attr;
	pthread_t thread;
	struct grave *g;

	if (ended || threads[socket] >= THREADS_MAX || pthread_attr_init(&attr) != 0)
		return;
	g = next_grave(socket);
	if (g) {
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attr, THREAD_STACK_BYTES);
		if (pthread_create(&thread, &attr, undertaker_run, g) == 0)
			threads[socket]++;
		else
			g->closing = false;
	}
	pthread_attr_destroy(&attr);
}

static void take(int fd, uid_t uid, bool socket)
{
	struct grave *g = calloc(1, sizeof(*g));

	if (!g) {
		/* An fd less is better than a broker that hangs. */
		broker_log(BROKER_LOG_SYSTEM, "no memory to close a client's file");
		return;
	}
	*g = (struct grave){ .fd = fd, .uid = uid, .socket = socket };
	pthread_mutex_lock(&lock);
	TAILQ_INSERT_TAIL(&graves, g, link);
	hire(socket);
	pthread_mutex_unlock(&lock);
}

void broker_undertaker_take(int fd, uid_t uid)
{
	take(fd, uid, false);
}

/*
 * Nothing can come any more: is what there is without fds? SO_PASSCRED makes each
 * packet bring a control message, which tells an empty one from the end; beyond
 * that there is no room, so fds show as cut.
 */
static bool holds_no_fds(int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	int on = 1;
	char none;

	if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return false;
	for (unsigned i = 0; i < DRAIN_PACKETS_MAX; i++) {
		struct msghdr m = { .msg_control = &control,
				    .msg_controllen = CMSG_LEN(sizeof(struct ucred)) };

		if (recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT) < 0 || (m.msg_flags & MSG_CTRUNC))
			return false;
		if (m.msg_controllen == 0)
			return true;
		recv(fd, &none, sizeof(none), MSG_DONTWAIT);
	}
	return false;
}

void broker_undertaker_take_socket(int fd, uid_t uid)
{
	shutdown(fd, SHUT_RDWR);
	if (broker_undertaker_count(uid, false) >= LINE_PER_UID_MAX && holds_no_fds(fd))
		sys->close(fd);
	else
		take(fd, uid, true);
}

uint32_t broker_undertaker_count(uid_t uid, bool all)
{
	const struct grave *g;
	uint32_t n = 0;

	pthread_mutex_lock(&lock);
	TAILQ_FOREACH(g, &graves, link)
		n += all || g->uid == uid;
	pthread_mutex_unlock(&lock);
	return n;
}

bool broker_undertaker_end(void)
{
	bool idle;

	pthread_mutex_lock(&lock);
	ended = true;
	idle = threads[false] + threads[true] == 0;
	pthread_mutex_unlock(&lock);
	return idle;
}
