/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packets in and out of a session's socket.
 *
 * In. A packet is looked at first (MSG_PEEK, no room for fds), and taken only if
 * that cannot be the last close of a file of somebody else's, which may take as
 * long as they like (undertaker.c): without fds, or when it is an OFFER whose one
 * fd has been seen to be a memfd. That fd is had by looking, too; it is asked for
 * its seals first, because only a memfd has any, and only then other calls on it
 * are safe. Every other packet stays where it is, and the whole connection goes
 * to the undertaker (I4).
 *
 * Out. Sent at once if nothing is queued, else queued in order. While something
 * is queued the session is not read from (session.c), so what it asks for does
 * not pile up here; what is sent unasked may. A queue that grows over its bound,
 * or does not move for the time of a request, belongs to a peer that does not
 * read: it is dropped (I4).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/broker.h"

#define OUT_PACKETS_MAX 256u
#define OUT_BYTES_MAX (UINT64_C(1) << 20)

/* Take the first packet, which has been looked at, off the socket. */
static void discard_first(struct broker_session *s)
{
	char none;

	sys->recv_msg(s->fd, &none, sizeof(none), NULL, NULL, 0);
}

/*
 * The first packet's true length and one fd of it, or -1 (there is none, or no room
 * in our table), which the sys table's entry cannot tell. *alone: it has no other.
 */
static ssize_t look(int from, int *fd, bool *alone)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	/* CMSG_LEN: the padding of CMSG_SPACE would be room for one more. */
	struct msghdr m = { .msg_control = &control, .msg_controllen = CMSG_LEN(sizeof(int)) };
	ssize_t r = recvmsg(from, &m, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = r < 0 ? NULL : CMSG_FIRSTHDR(&m);

	*fd = -1;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	*alone = !(m.msg_flags & MSG_CTRUNC);
	return r < 0 ? -errno : r;
}

/* buf holds the beginning of a packet that is too long or carries fds. */
static ssize_t receive_offer(struct broker_session *s, const void *buf, int *fd)
{
	const struct core_wire_header *h = buf;
	ssize_t r;
	bool alone;
	int seen;

	if (h->type != CORE_WIRE_OFFER || s->state != BROKER_SESSION_CLIENT)
		return -EPROTO;
	r = look(s->fd, &seen, &alone);
	if (seen >= 0 && sys->get_seals(seen) < 0) {
		broker_undertaker_take(seen, s->peer.uid);
		return -EPROTO;
	}
	if (r != (ssize_t)sizeof(struct core_wire_segment) || seen < 0 || !alone) {
		if (seen >= 0)
			sys->close(seen);
		return -EPROTO;
	}
	discard_first(s);
	*fd = seen;
	return r;
}

ssize_t broker_packet_receive(struct broker_session *s, void *buf, int *fd)
{
	ssize_t r;

	*fd = -1;
	memset(buf, 0, sizeof(struct core_wire_header));
	r = sys->recv_msg(s->fd, buf, CORE_WIRE_BYTES_MAX, NULL, NULL, MSG_PEEK);
	if (r == -EMSGSIZE)
		return receive_offer(s, buf, fd); /* there are fds, or too many bytes */
	if (r > 0)
		discard_first(s);
	return r;
}

static void close_owned(const int *fds, uint32_t nfds, uint32_t owned)
{
	for (uint32_t i = 0; i < nfds; i++) {
		if (owned & 1u << i)
			sys->close(fds[i]);
	}
}

static void packet_free(struct broker_session *s, struct broker_packet *p)
{
	STAILQ_REMOVE_HEAD(&s->out, link);
	s->out_packets--;
	s->out_bytes -= p->bytes;
	s->out_moved_at = s->broker->now;
	s->broker->stuck_count -= STAILQ_EMPTY(&s->out);
	close_owned(p->fds, p->nfds, p->owned_fds);
	free(p);
}

void broker_packet_discard(struct broker_session *s)
{
	while (!STAILQ_EMPTY(&s->out))
		packet_free(s, STAILQ_FIRST(&s->out));
}

int broker_packet_flush(struct broker_session *s)
{
	while (!STAILQ_EMPTY(&s->out)) {
		struct broker_packet *p = STAILQ_FIRST(&s->out);
		ssize_t r = sys->send_msg(s->fd, p->data, p->bytes, p->fds, p->nfds, 0);

		if (r == -EAGAIN || r == -EINTR)
			return 0;
		if (r < 0)
			return (int)r;
		packet_free(s, p);
	}
	return 0;
}

/* -ENOBUFS: over the bound. */
static int enqueue(struct broker_session *s, const void *packet, uint32_t bytes, const int *fds,
		   uint32_t nfds, uint32_t owned_fds)
{
	struct broker_packet *p;

	if (s->out_packets >= OUT_PACKETS_MAX || s->out_bytes + bytes > OUT_BYTES_MAX)
		return -ENOBUFS;
	p = malloc(sizeof(*p) + bytes);
	if (!p)
		return -ENOMEM;
	p->bytes = bytes;
	p->nfds = nfds;
	p->owned_fds = owned_fds;
	for (uint32_t i = 0; i < nfds; i++)
		p->fds[i] = fds[i];
	memcpy(p->data, packet, bytes);
	if (STAILQ_EMPTY(&s->out)) {
		s->out_moved_at = s->broker->now;
		s->broker->stuck_count++;
	}
	STAILQ_INSERT_TAIL(&s->out, p, link);
	s->out_packets++;
	s->out_bytes += bytes;
	return 0;
}

void broker_packet_send(struct broker_session *s, const void *packet, uint32_t bytes,
			const int *fds, uint32_t nfds, uint32_t owned_fds)
{
	ssize_t r = -EAGAIN;

	if (s->state == BROKER_SESSION_DOOMED) {
		close_owned(fds, nfds, owned_fds);
		return;
	}
	if (STAILQ_EMPTY(&s->out))
		r = sys->send_msg(s->fd, packet, bytes, fds, nfds, 0);
	if (r == -EAGAIN || r == -EINTR) {
		r = enqueue(s, packet, bytes, fds, nfds, owned_fds);
		if (r == 0) {
			broker_session_watch(s);
			return;
		}
		broker_log(BROKER_LOG_REFUSED, "pid %d (uid %u) does not read its answers: dropped",
			   (int)s->peer.pid, (unsigned)s->peer.uid);
		s->broker->dropped_clients++;
	}
	close_owned(fds, nfds, owned_fds);
	if (r < 0)
		broker_session_drop(s);
}

void broker_packet_send_error(struct broker_session *s, uint32_t seq, int error, const char *text)
{
	struct core_wire_error e = { .error = error };

	core_wire_header_init(&e.h, CORE_WIRE_ERROR, sizeof(e), seq);
	strncpy(e.text, text, sizeof(e.text) - 1);
	broker_packet_send(s, &e, sizeof(e), NULL, 0, 0);
}
