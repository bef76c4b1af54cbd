/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sessions: from accept to doom.
 *
 * Who the peer is, the kernel says. A peer in a user namespace whose user has no
 * name here appears as the overflow uid; several such peers are strangers to
 * each other, so none of them is let in (I7).
 *
 * Quantum. A readable session may have a few small messages handled per round,
 * or one that is work (SUBMIT, TAGS, CTL, OFFER); then the others have their
 * turn. epoll is level-triggered: what is left is reported again (I4). A session
 * that has answers queued is not read from until they are gone.
 *
 * The end. A connection may hold packets with fds that were never read, so it is
 * shut down here and closed elsewhere (undertaker.c). Until then it counts as one
 * of its user's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "broker/broker.h"

#define QUANTUM_MESSAGES 16u

static bool over_uid_quota(const struct broker *b, uid_t uid)
{
	const struct broker_session *s;
	uint32_t n = broker_undertaker_count(uid, false);

	TAILQ_FOREACH(s, &b->sessions, link)
		n += s->peer.uid == uid;
	return n >= b->config.sessions_per_uid_max;
}

static bool over_quota(const struct broker *b)
{
	return b->session_count + broker_undertaker_count(0, true) >= b->config.sessions_max;
}

/* Before there is a session to speak of: tell and close. */
static void turn_away(int fd, const struct sys_peer *peer, int error, const char *text)
{
	struct core_wire_error e = { .error = error };

	core_wire_header_init(&e.h, CORE_WIRE_ERROR, sizeof(e), 0);
	strncpy(e.text, text, sizeof(e.text) - 1);
	sys->send_msg(fd, &e, sizeof(e), NULL, 0, 0);
	broker_undertaker_take_socket(fd, peer->uid);
	broker_log(BROKER_LOG_QUOTA, "pid %d (uid %u) turned away: %s", (int)peer->pid,
		   (unsigned)peer->uid, text);
}

static struct broker_session *session_new(struct broker *b, int fd, const struct sys_peer *peer)
{
	struct broker_session *s = calloc(1, sizeof(*s));
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = s };

	if (!s)
		return NULL;
	s->broker = b;
	s->fd = fd;
	s->peer = *peer;
	s->state = BROKER_SESSION_GREETING;
	s->epoll_events = EPOLLIN;
	s->hello_deadline = b->now + b->config.hello_timeout_usec;
	s->offer_fd = -1;
	STAILQ_INIT(&s->out);
	TAILQ_INIT(&s->ops);
	if (sys->epoll_ctl(b->ep, EPOLL_CTL_ADD, fd, &ev) < 0) {
		free(s);
		return NULL;
	}
	TAILQ_INSERT_TAIL(&b->sessions, s, link);
	b->session_count++;
	b->greeting_count++;
	b->idle_since = BROKER_NEVER;
	return s;
}

void broker_session_accept(struct broker *b, int fd)
{
	struct sys_peer peer = { .uid = (uid_t)-1 };
	int r = sys->peer(fd, &peer);

	if (r < 0)
		turn_away(fd, &peer, r, "the kernel does not say who you are");
	else if (b->overflow_uid >= 0 && peer.uid == (uid_t)b->overflow_uid)
		turn_away(fd, &peer, -EPERM, "a user without an identity here");
	else if (over_quota(b) || over_uid_quota(b, peer.uid))
		turn_away(fd, &peer, -EDQUOT, "too many sessions");
	else if (!session_new(b, fd, &peer))
		turn_away(fd, &peer, -ENOMEM, "no memory for a session");
}

static bool may_read(const struct broker_session *s)
{
	return s->state != BROKER_SESSION_DOOMED && s->offer_fd < 0 && STAILQ_EMPTY(&s->out);
}

/* Tell epoll what the session waits for now. */
void broker_session_watch(struct broker_session *s)
{
	struct epoll_event ev = { .events = 0, .data.ptr = s };

	if (s->state == BROKER_SESSION_DOOMED)
		return;
	if (may_read(s))
		ev.events |= EPOLLIN;
	if (!STAILQ_EMPTY(&s->out))
		ev.events |= EPOLLOUT;
	if (ev.events == s->epoll_events)
		return;
	if (sys->epoll_ctl(s->broker->ep, EPOLL_CTL_MOD, s->fd, &ev) < 0) {
		broker_session_drop(s);
		return;
	}
	s->epoll_events = ev.events;
}

/* Closed later, it must leave the epoll set now. The kernel cannot fail that. */
static void bury(struct broker_session *s)
{
	for (int i = 0; i < 3; i++) {
		if (sys->epoll_ctl(s->broker->ep, EPOLL_CTL_DEL, s->fd, NULL) == 0)
			break;
	}
	broker_undertaker_take_socket(s->fd, s->peer.uid);
	s->fd = -1;
}

void broker_session_drop(struct broker_session *s)
{
	struct broker *b = s->broker;

	if (s->state == BROKER_SESSION_DOOMED)
		return;
	if (s->state == BROKER_SESSION_GREETING)
		b->greeting_count--;
	s->state = BROKER_SESSION_DOOMED;
	broker_packet_discard(s);
	if (s->offer_fd >= 0) {
		TAILQ_REMOVE(&b->offers, s, offer_link);
		sys->close(s->offer_fd);
		s->offer_fd = -1;
	}
	if (s->ring)
		sys->munmap((void *)(uintptr_t)s->ring, broker_client_ring_span());
	s->ring = NULL;
	if (s->domain) {
		broker_domain_leave(b, s->domain);
		broker_client_standing_gone(s);
	}
	s->domain = NULL;
	bury(s);
	TAILQ_REMOVE(&b->sessions, s, link);
	TAILQ_INSERT_TAIL(&b->doomed, s, link);
	b->session_count--;
	if (b->session_count == 0)
		b->idle_since = b->now;
	broker_control_lost(s);
}

void broker_session_refuse(struct broker_session *s, uint32_t seq, int error, const char *text)
{
	if (s->state == BROKER_SESSION_DOOMED)
		return;
	s->broker->dropped_clients++;
	broker_log(BROKER_LOG_REFUSED, "pid %d (uid %u) dropped: %s", (int)s->peer.pid,
		   (unsigned)s->peer.uid, text);
	broker_packet_send_error(s, seq, error, text);
	broker_session_drop(s);
}

/* True: that was work, enough for this round. */
static bool message(struct broker_session *s, const void *packet, ssize_t bytes, int fd)
{
	const struct core_wire_header *h = packet;
	int r = core_wire_check(packet, (size_t)bytes, 1);

	if (r < 0) {
		if (fd >= 0)
			sys->close(fd);
		broker_session_refuse(s, 0, r, r == -EPROTONOSUPPORT ?
						       "this broker speaks another version" :
						       "malformed message");
		return true;
	}
	if ((s->state == BROKER_SESSION_GREETING) != (h->type == CORE_WIRE_HELLO)) {
		if (fd >= 0)
			sys->close(fd);
		broker_session_refuse(s, h->seq, -EPROTO, "HELLO comes first, and once");
		return true;
	}
	if (s->state == BROKER_SESSION_GREETING)
		broker_client_hello(s, packet);
	else if (s->state == BROKER_SESSION_CLIENT)
		broker_client_message(s, packet, fd);
	else if (h->type == CORE_WIRE_CTL)
		broker_control_message(s, packet);
	else
		broker_session_refuse(s, h->seq, -EPROTO, "not for a control session");
	return h->type != CORE_WIRE_SEGMENT_GET && h->type != CORE_WIRE_RESULT;
}

static void session_read(struct broker_session *s)
{
	static _Alignas(8) unsigned char buf[CORE_WIRE_BYTES_MAX];

	for (unsigned i = 0; i < QUANTUM_MESSAGES; i++) {
		int fd;
		ssize_t r = broker_packet_receive(s, buf, &fd);

		if (r == -EAGAIN || r == -EINTR)
			return;
		if (r == 0) {
			broker_session_drop(s);
			return;
		}
		if (r < 0) {
			if (r == -EPROTO || r == -EMSGSIZE)
				broker_session_refuse(s, 0, -EPROTO, "malformed message");
			else
				broker_session_drop(s);
			return;
		}
		if (message(s, buf, r, fd) || !may_read(s))
			return;
	}
}

void broker_session_event(struct broker_session *s, uint32_t events)
{
	if (s->state == BROKER_SESSION_DOOMED)
		return;
	if (events & EPOLLOUT) {
		if (broker_packet_flush(s) < 0) {
			broker_session_drop(s);
			return;
		}
		broker_control_deliver(s);
		broker_session_watch(s);
	}
	if (s->state == BROKER_SESSION_DOOMED)
		return;
	/* With EPOLLHUP there may still be messages to read; their end is a read of 0. */
	if (may_read(s) && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		session_read(s);
	else if (events & (EPOLLHUP | EPOLLERR))
		broker_session_drop(s);
}
