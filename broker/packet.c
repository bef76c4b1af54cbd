/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Packets in and out of a session's socket.
 *
 * In. A packet is looked at first (MSG_PEEK, no room for fds) and then taken. What
 * comes with fds is taken with them only if it can be an OFFER; in all other
 * cases the kernel throws the fds away without this process ever having them,
 * because even closing a file can wait for its file system (undertaker.c). What
 * is received is asked for its seals first: only a memfd has any, and only then
 * other calls on it are safe.
 *
 * Out. Sent at once if nothing is queued, else queued in order. A queue that
 * grows over its bound belongs to a peer that does not read: it is dropped (I4).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/broker.h"

#define OUT_PACKETS_MAX 256u
#define OUT_BYTES_MAX (UINT64_C(1) << 20)
#define KERNEL_FDS_MAX 253u

/* Take the first packet off the socket; its fds are never received. */
static void discard_first(struct broker_session *s)
{
	char none;

	sys->recv_msg(s->fd, &none, sizeof(none), NULL, NULL, 0);
}

/* The one memfd among fds, or -1 if that is not exactly what there is. */
static int only_memfd(const int *fds, unsigned n)
{
	int memfd = -1;

	for (unsigned i = 0; i < n; i++) {
		if (sys->get_seals(fds[i]) < 0)
			broker_undertaker_take(fds[i]);
		else if (n == 1)
			memfd = fds[i];
		else
			sys->close(fds[i]);
	}
	return memfd;
}

/* buf holds the beginning of a packet that is too long or carries fds. */
static ssize_t receive_offer(struct broker_session *s, void *buf, int *fd)
{
	const struct core_wire_header *h = buf;
	unsigned nfds = KERNEL_FDS_MAX;
	int fds[KERNEL_FDS_MAX];
	ssize_t r;

	/*
	 * The true length, which the sys table's entry does not tell. An OFFER that
	 * is cut would have its fds closed before we could look at them.
	 */
	r = recv(s->fd, NULL, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
	if (r != (ssize_t)sizeof(struct core_wire_segment) || h->type != CORE_WIRE_OFFER ||
	    s->state != BROKER_SESSION_CLIENT) {
		discard_first(s);
		return -EPROTO;
	}
	if (!broker_undertaker_free()) {
		discard_first(s);
		return -EAGAIN;
	}
	r = sys->recv_msg(s->fd, buf, CORE_WIRE_BYTES_MAX, fds, &nfds, 0);
	if (r < 0)
		return r;
	*fd = only_memfd(fds, nfds);
	return *fd >= 0 ? r : -EPROTO;
}

ssize_t broker_packet_receive(struct broker_session *s, void *buf, int *fd)
{
	ssize_t r;

	*fd = -1;
	memset(buf, 0, sizeof(struct core_wire_header));
	r = sys->recv_msg(s->fd, buf, CORE_WIRE_BYTES_MAX, NULL, NULL, MSG_PEEK);
	if (r == -EMSGSIZE)
		return receive_offer(s, buf, fd);
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
