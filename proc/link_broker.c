/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The link to a broker: one SOCK_SEQPACKET connection, used by the engine's
 * thread alone.
 *
 * Questions (SUBMIT, SEGMENT_GET) wait for the answer that carries their number;
 * what the broker asks meanwhile (REQUEST, TRIM) is kept until the engine is back
 * in its loop: one REQUEST at a time is all that the broker sends, and TRIM needs
 * no counting. Anything else out of turn ends the connection.
 *
 * A lost connection is noticed by whatever call comes next; the link is then
 * disconnected and the engine decides when to try again (I6).
 *
 * Between passes (rest, wake) the descriptors stay and the mappings go.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <stdio.h>

#include "core/domain.h"
#include "proc/internal.h"
#include "sys/paths.h"

/* A broker that does not answer is as good as dead; its own work is bounded. */
#define ANSWER_MSEC 5000

/* What the broker shares with us: mapped while there is work, the fd kept. */
struct shared {
	void *map;
	int fd;
	uint32_t blocks;
};
#define BLOCK_BYTES 64u /* all that is shared is so many of these */

/* Packets; empty between passes. */
struct room {
	_Alignas(8) uint8_t in[CORE_WIRE_BYTES_MAX]; /* read as the packets' structures */
	union {
		struct core_wire_submit submit;
		struct core_wire_tags tags;
	} out;
};

struct broker_link {
	struct proc_link link;
	char path[SYS_PATH_BYTES]; /* "" : the usual places */
	char domain[CORE_WIRE_NAME_BYTES];
	int fd;
	uint32_t seq;
	struct shared index, cand, ring;
	struct room *room;
	bool held; /* a REQUEST that came while we waited for an answer */
	bool held_trim;
	uint32_t held_seq, held_op;
};
_Static_assert(sizeof(struct broker_link) <= PROC_LINK_BYTES, "costs each process a page more");

static struct broker_link *of(struct proc_link *link)
{
	return (struct broker_link *)link;
}

static size_t bytes_of(const struct shared *s)
{
	return (size_t)s->blocks * BLOCK_BYTES;
}

static void unmap(struct shared *s)
{
	if (s->map)
		sys->munmap(s->map, bytes_of(s));
	s->map = NULL;
}

static void let_go(struct shared *s)
{
	unmap(s);
	if (s->fd >= 0)
		sys->close(s->fd);
	s->fd = -1;
}

static void link_disconnect(struct proc_link *link)
{
	struct broker_link *b = of(link);

	let_go(&b->index);
	let_go(&b->cand);
	let_go(&b->ring);
	link->ring = NULL;
	if (b->fd >= 0)
		sys->close(b->fd);
	if (link->uffd_dev >= 0)
		sys->close(link->uffd_dev);
	b->fd = link->poll_fd = link->uffd_dev = -1;
	b->held = b->held_trim = false;
	link->connected = false;
}

int proc_link_broker_send(struct proc_link *link, const void *packet, size_t bytes)
{
	ssize_t n = sys->send_msg(of(link)->fd, packet, bytes, NULL, 0, 0);

	return n == (ssize_t)bytes ? 0 : -ENOTCONN;
}

/*
 * One packet into in[]; fds, if any are allowed for its type, to the caller.
 * 0, -EAGAIN (nothing within the time), -ENOTCONN.
 */
static int receive(struct broker_link *b, int *fds, unsigned *nfds, int timeout_msec)
{
	struct pollfd p = { .fd = b->fd, .events = POLLIN };
	const struct core_wire_header *h = (const void *)b->room->in;
	unsigned min, max, got = CORE_WIRE_FDS_MAX;
	int here[CORE_WIRE_FDS_MAX];
	ssize_t n;
	int ready;

	do {
		ready = sys->poll(&p, 1, timeout_msec);
	} while (ready == -EINTR);
	if (ready == 0)
		return -EAGAIN;
	n = ready < 0 ? -ENOTCONN
		      : sys->recv_msg(b->fd, b->room->in, sizeof(b->room->in), here, &got, 0);
	if (n <= 0)
		return -ENOTCONN;
	if (core_wire_check(b->room->in, (size_t)n, 0) == 0) {
		core_wire_fds(h->type, &min, &max);
		if (got >= min && got <= max && (!got || fds)) {
			for (unsigned i = 0; i < got; i++)
				fds[i] = here[i];
			if (nfds)
				*nfds = got;
			return 0;
		}
	}
	for (unsigned i = 0; i < got; i++)
		sys->close(here[i]);
	return -ENOTCONN;
}

/* Wait for the answer to question seq; other packets are kept or refused. */
static int answer(struct broker_link *b, uint32_t seq, int *fds, unsigned *nfds)
{
	const struct core_wire_header *h = (const void *)b->room->in;

	for (;;) {
		int err = receive(b, fds, nfds, ANSWER_MSEC);

		if (err < 0)
			return -ENOTCONN;
		if (h->type == CORE_WIRE_REQUEST && !b->held) {
			b->held = true;
			b->held_seq = h->seq;
			b->held_op = ((const struct core_wire_request *)h)->op;
		} else if (h->type == CORE_WIRE_TRIM) {
			b->held_trim = true;
		} else if (h->seq == seq) {
			return 0;
		} else {
			return -ENOTCONN;
		}
	}
}

/* The next thing that the broker asks for: bytes, 0 for nothing, -ENOTCONN. */
int proc_link_broker_recv(struct proc_link *link, void *packet, size_t room)
{
	struct broker_link *b = of(link);
	const struct core_wire_header *h = (const void *)b->room->in;
	int err;

	if (b->held_trim) {
		b->held_trim = false;
		core_wire_header_init(packet, CORE_WIRE_TRIM, sizeof(struct core_wire_header), 0);
		return sizeof(struct core_wire_header);
	}
	if (b->held) {
		struct core_wire_request *q = packet;

		b->held = false;
		*q = (struct core_wire_request){ .op = b->held_op };
		core_wire_header_init(&q->h, CORE_WIRE_REQUEST, sizeof(*q), b->held_seq);
		return sizeof(*q);
	}
	err = receive(b, NULL, NULL, 0);
	if (err == -EAGAIN)
		return 0;
	if (err < 0 || h->bytes > room)
		return -ENOTCONN;
	memcpy(packet, b->room->in, h->bytes);
	return (int)h->bytes;
}

/* --- connecting ----------------------------------------------------------- */

static int hello(struct broker_link *b)
{
	struct core_wire_hello m = { .role = CORE_WIRE_ROLE_CLIENT,
				     .page_bytes = (uint32_t)sys_page_bytes(),
				     .flags = CORE_WIRE_HELLO_WANT_UFFD };
	int fd;

	core_wire_header_init(&m.h, CORE_WIRE_HELLO, sizeof(m), ++b->seq);
	memcpy(m.domain, b->domain, sizeof(m.domain));
	fd = sys->open("/proc/self/comm", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		ssize_t n = sys->read(fd, m.comm, sizeof(m.comm) - 1);

		m.comm[n > 0 ? n - 1 : 0] = '\0'; /* without the newline */
		sys->close(fd);
	}
	return proc_link_broker_send(&b->link, &m, sizeof(m));
}

/*
 * Far below everything else, if there is room: what the program maps meanwhile would
 * otherwise come to lie below these many megabytes, where it needs page tables of its
 * own, and stay there.
 */
#define FAR_BYTES (4ull << 30)
#define FAR_STEP_BYTES (1ull << 30)
static void *far_from(const struct shared *s, unsigned place)
{
	uintptr_t here = (uintptr_t)s & ~(uintptr_t)(sys_page_bytes() - 1);

	return here > 2 * FAR_BYTES ? (void *)(here - FAR_BYTES + place * FAR_STEP_BYTES) : NULL;
}

/*
 * In the memory lock, for no fork must come between: a child has no business with its
 * parent's ring.
 */
static int map_shared(struct shared *s, unsigned place, int prot)
{
	intptr_t p;
	int err = 0;

	if (s->map)
		return 0;
	proc_mem_lock_engine();
	p = sys->mmap(far_from(s, place), bytes_of(s), prot, MAP_SHARED, s->fd, 0);
	if (p >= 0)
		err = sys->madvise((void *)p, bytes_of(s), MADV_DONTFORK);
	if (p >= 0 && err < 0)
		sys->munmap((void *)p, bytes_of(s));
	proc_mem_unlock_engine();
	if (p < 0 || err < 0)
		return -ENOMEM;
	s->map = (void *)p;
	return 0;
}

static int link_wake(struct proc_link *link)
{
	struct broker_link *b = of(link);
	size_t cand_bytes = bytes_of(&b->cand) / 2;

	if (link->ring)
		return 0;
	if (map_shared(&b->index, 0, PROT_READ) < 0 || map_shared(&b->cand, 1, PROT_READ) < 0 ||
	    map_shared(&b->ring, 2, PROT_READ | PROT_WRITE) < 0)
		return -ENOMEM;
	if (core_index_attach(&link->index, b->index.map, bytes_of(&b->index),
			      (uint32_t)sys_page_bytes()) < 0 ||
	    core_cand_attach(&link->cand, b->cand.map, cand_bytes) < 0 ||
	    core_cand_attach(&link->standing, (uint8_t *)b->cand.map + cand_bytes, cand_bytes) < 0)
		return -EPROTO;
	link->ring = b->ring.map;
	return 0;
}

static void link_rest(struct proc_link *link)
{
	struct broker_link *b = of(link);

	link->ring = NULL;
	unmap(&b->index);
	unmap(&b->cand);
	unmap(&b->ring);
	sys->madvise(b->room, sizeof(*b->room), MADV_DONTNEED);
}

/* At rest, without mapping anything: what it says is a hint. */
static int link_glance(struct proc_link *link, struct proc_glance *g)
{
	struct broker_link *b = of(link);
	off_t index = offsetof(struct core_index_header, slots_published);
	off_t cand = (off_t)(bytes_of(&b->cand) / 2) + offsetof(struct core_cand_header, round);
	uint64_t moves[2]; /* round, twins */

	if (sys->pread(b->index.fd, &g->published, sizeof(g->published), index) !=
		    sizeof(g->published) ||
	    sys->pread(b->cand.fd, moves, sizeof(moves), cand) != sizeof(moves))
		return -EIO;
	g->round = moves[0];
	g->twins = moves[1];
	return 0;
}

_Static_assert(offsetof(struct core_cand_header, twins) ==
		       offsetof(struct core_cand_header, round) + sizeof(uint64_t),
	       "read together");

int proc_link_glance(struct proc_link *link, struct proc_glance *g)
{
	if (!link->ring && link->ops->glance)
		return link->ops->glance(link, g);
	g->published = atomic_load(&link->index.header->slots_published);
	g->twins = atomic_load(&link->standing.header->twins);
	g->round = atomic_load(&link->standing.header->round);
	return 0;
}

static bool take_bytes(struct shared *s, uint64_t bytes)
{
	s->blocks = (uint32_t)(bytes / BLOCK_BYTES);
	return bytes_of(s) == bytes;
}

static int take_welcome(struct broker_link *b, int fds[CORE_WIRE_FDS_MAX], unsigned nfds)
{
	const struct core_wire_welcome *w = (const void *)b->room->in;
	struct shared *const to[] = { &b->index, &b->cand, &b->ring };

	if (nfds < 3 || w->ring_pages < PROC_RING_PAGES || w->who == 0 ||
	    !take_bytes(&b->index, w->index_bytes) || !take_bytes(&b->cand, 2 * w->cand_bytes) ||
	    !take_bytes(&b->ring, PROC_RING_PAGES * sys_page_bytes()))
		return -EPROTO;
	for (unsigned i = 0; i < 3; i++) {
		to[i]->fd = fds[i];
		fds[i] = -1;
	}
	if (nfds > 3) {
		b->link.uffd_dev = fds[3];
		fds[3] = -1;
	}
	b->link.scan = w->scan;
	b->link.who = w->who;
	/* What an earlier broker said holds: a new one knows nothing of it. */
	b->link.paused |= (w->flags & CORE_WIRE_WELCOME_PAUSED) != 0;
	return link_wake(&b->link);
}

static int welcome(struct broker_link *b)
{
	const struct core_wire_header *h = (const void *)b->room->in;
	int fds[CORE_WIRE_FDS_MAX] = { -1, -1, -1, -1 };
	unsigned nfds = 0;
	int err = answer(b, b->seq, fds, &nfds);

	if (err < 0)
		return -EPROTO;
	if (h->type == CORE_WIRE_ERROR)
		err = ((const struct core_wire_error *)h)->error;
	else if (h->type == CORE_WIRE_WELCOME)
		err = take_welcome(b, fds, nfds);
	else
		err = -EPROTO;
	for (unsigned i = 0; i < nfds; i++)
		if (fds[i] >= 0)
			sys->close(fds[i]);
	return err;
}

static int link_connect(struct proc_link *link)
{
	struct broker_link *b = of(link);
	int err;

	if (link->connected)
		return 0;
	b->fd = sys_broker_connect(b->path[0] ? b->path : NULL, NULL);
	if (b->fd < 0)
		return b->fd;
	err = hello(b);
	if (err == 0)
		err = welcome(b);
	if (err < 0) {
		link_disconnect(link);
		return err;
	}
	link->connected = true;
	link->poll_fd = b->fd;
	return 0;
}

/* --- questions ------------------------------------------------------------ */

static int link_submit(struct proc_link *link, const uint16_t *ring_page, unsigned count,
		       uint32_t *slot, uint8_t *reason)
{
	struct broker_link *b = of(link);
	struct core_wire_submit *m = &b->room->out.submit;
	const struct core_wire_slots *r = (const void *)b->room->in;
	size_t bytes = core_wire_bytes(CORE_WIRE_SUBMIT, count);

	core_wire_header_init(&m->h, CORE_WIRE_SUBMIT, (uint32_t)bytes, ++b->seq);
	m->count = count;
	m->reserved = 0;
	memcpy(m->ring_page, ring_page, count * sizeof(*ring_page));
	if (proc_link_broker_send(link, m, bytes) < 0 || answer(b, b->seq, NULL, NULL) < 0 ||
	    r->h.type != CORE_WIRE_SLOTS || r->count != count) {
		link->connected = false;
		return -ENOTCONN;
	}
	memcpy(slot, r->slot, count * sizeof(*slot));
	memcpy(reason, r->reason, count);
	return 0;
}

static int link_segment(struct proc_link *link, uint32_t segment)
{
	struct broker_link *b = of(link);
	const struct core_wire_header *h = (const void *)b->room->in;
	struct core_wire_segment m = { .segment = segment };
	int fds[CORE_WIRE_FDS_MAX];
	unsigned nfds = 0;

	if (!link->connected)
		return -ENOTCONN;
	core_wire_header_init(&m.h, CORE_WIRE_SEGMENT_GET, sizeof(m), ++b->seq);
	if (proc_link_broker_send(link, &m, sizeof(m)) < 0 || answer(b, b->seq, fds, &nfds) < 0) {
		link->connected = false;
		return -ENOTCONN;
	}
	if (h->type == CORE_WIRE_ERROR)
		return ((const struct core_wire_error *)h)->error;
	if (h->type == CORE_WIRE_SEGMENT && nfds == 1)
		return fds[0];
	link->connected = false;
	for (unsigned i = 0; i < nfds; i++)
		sys->close(fds[i]);
	return -ENOTCONN;
}

static int send_tags(struct proc_link *link, const uint32_t *tag, unsigned count, uint32_t flags)
{
	struct broker_link *b = of(link);
	struct core_wire_tags *m = &b->room->out.tags;
	size_t bytes = core_wire_bytes(CORE_WIRE_TAGS, count);

	core_wire_header_init(&m->h, CORE_WIRE_TAGS, (uint32_t)bytes, ++b->seq);
	m->count = count;
	m->flags = flags;
	memcpy(m->tag, tag, count * sizeof(*tag));
	if (proc_link_broker_send(link, m, bytes) == 0)
		return 0;
	link->connected = false;
	return -ENOTCONN;
}

static int link_tags(struct proc_link *link, const uint32_t *tag, unsigned count)
{
	return send_tags(link, tag, count, 0);
}

static int link_tags_standing(struct proc_link *link, const uint32_t *tag, unsigned count,
			      uint64_t round)
{
	return send_tags(link, tag, count,
			 CORE_WIRE_TAGS_STANDING | (uint32_t)round << CORE_WIRE_TAGS_ROUND_SHIFT);
}

int proc_link_broker_offer(struct proc_link *link, int fd)
{
	struct broker_link *b = of(link);
	struct core_wire_segment m = { .slots = link->index.header->segment_slots };

	if (!proc_link_is_broker(link))
		return 0;
	core_wire_header_init(&m.h, CORE_WIRE_OFFER, sizeof(m), ++b->seq);
	return sys->send_msg(b->fd, &m, sizeof(m), &fd, 1, 0) == sizeof(m) ? 0 : -ENOTCONN;
}

static void link_forget(struct proc_link *link)
{
	struct broker_link *b = of(link);

	/* None of the descriptors is in this process's table, none of the mappings
	 * in its address space (DONTFORK). */
	b->fd = link->poll_fd = link->uffd_dev = -1;
	b->index = b->cand = b->ring = (struct shared){ .fd = -1 };
	link->ring = NULL;
	b->held = b->held_trim = false;
	link->connected = false;
}

static void link_free(struct proc_link *link)
{
	link_disconnect(link);
	proc_arena_free(of(link)->room, sizeof(struct room));
	proc_arena_free_small(of(link), sizeof(struct broker_link));
}

static const struct proc_link_ops broker_ops = {
	.connect = link_connect,
	.disconnect = link_disconnect,
	.submit = link_submit,
	.segment = link_segment,
	.tags = link_tags,
	.tags_standing = link_tags_standing,
	.rest = link_rest,
	.wake = link_wake,
	.glance = link_glance,
	.forget = link_forget,
	.free = link_free,
};

bool proc_link_is_broker(const struct proc_link *link)
{
	return link->ops == &broker_ops;
}

int proc_link_broker_new(struct proc_link **out, const char *socket_path, const char *domain)
{
	struct broker_link *b;

	if (!domain)
		domain = "default";
	if (!core_domain_name_valid(domain))
		return -EINVAL;
	if (socket_path && strlen(socket_path) >= SYS_PATH_BYTES)
		return -ENAMETOOLONG;
	b = proc_arena_alloc_small(sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->room = proc_arena_alloc(sizeof(*b->room));
	if (!b->room) {
		proc_arena_free_small(b, sizeof(*b));
		return -ENOMEM;
	}
	b->index.fd = b->cand.fd = b->ring.fd = -1;
	b->link.ops = &broker_ops;
	b->link.poll_fd = b->link.uffd_dev = b->fd = -1;
	if (socket_path)
		snprintf(b->path, sizeof(b->path), "%s", socket_path);
	snprintf(b->domain, sizeof(b->domain), "%s", domain);
	*out = &b->link;
	return 0;
}
