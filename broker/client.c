/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What clients say.
 *
 * Everything has passed core_wire_check(); what it cannot know is checked here:
 * ring page numbers, the page size, who may say what and how much.
 *
 * The ring is made by the broker and sealed against any change of size, so the
 * read-only mapping of it can never fault beyond its end (I4). Its pages may
 * change under our hands; the store copies them first.
 *
 * A session with an offer waiting is not read from, so what a client sends after
 * it keeps its order; one offer of one session is worked off per round, in turn.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/store_impl.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

/*
 * The ring's mapping begins where a page table does and is as long as one reaches (the
 * file is shorter: nobody goes beyond it), so that the table goes as well when what a
 * client submitted is let go of: with a thousand clients that is half of all of them.
 */
size_t broker_client_ring_span(void)
{
	size_t page = sys_page_bytes(), table = page / sizeof(uint64_t) * page;
	size_t bytes = BROKER_RING_PAGES * page;

	return bytes < table ? table : bytes;
}

static intptr_t ring_map(int fd)
{
	size_t span = broker_client_ring_span();
	intptr_t map = sys->mmap(NULL, 2 * span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0), at, ring;

	if (map < 0)
		return map;
	at = (intptr_t)(((uintptr_t)map + span - 1) / span * span);
	ring = sys->mmap((void *)at, span, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	if (ring < 0) {
		sys->munmap((void *)map, 2 * span);
		return ring;
	}
	if (at > map)
		sys->munmap((void *)map, (size_t)(at - map));
	if (at < map + (intptr_t)span)
		sys->munmap((void *)(at + (intptr_t)span), (size_t)(map + (intptr_t)span - at));
	return ring;
}

/* Returns the ring's fd, and maps it. */
static int ring_new(struct broker_session *s)
{
	size_t bytes = BROKER_RING_PAGES * sys_page_bytes();
	int fd = broker_memfd_new("samepage-ring", bytes, 0600);
	intptr_t map;
	int r;

	if (fd < 0)
		return fd;
	r = sys->add_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	if (r < 0) {
		sys->close(fd);
		return r;
	}
	map = ring_map(fd);
	if (map < 0) {
		sys->close(fd);
		return (int)map;
	}
	s->ring = (const uint8_t *)map;
	return fd;
}

static void welcome_fill(const struct broker_session *s, struct core_wire_welcome *w, uint32_t seq)
{
	*w = (struct core_wire_welcome){ .broker_pid = (uint32_t)getpid() };
	core_wire_header_init(&w->h, CORE_WIRE_WELCOME, sizeof(*w), seq);
}

/* Is the peer in this group, as it was when it connected? */
static bool peer_in_group(const struct broker_session *s, gid_t gid)
{
	gid_t groups[NGROUPS_MAX];
	socklen_t bytes = sizeof(groups);

	if (s->peer.gid == gid)
		return true;
	if (getsockopt(s->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) < 0)
		return false;
	for (size_t i = 0; i < bytes / sizeof(groups[0]); i++) {
		if (groups[i] == gid)
			return true;
	}
	return false;
}

/* Lending it gives the peer what vm.unprivileged_userfaultfd=0 denies to it. */
static bool may_borrow(const struct broker_session *s)
{
	int64_t gid = s->broker->config.lend_gid;

	if (s->peer.uid == 0 || s->peer.uid == geteuid() || gid == BROKER_LEND_ALL)
		return true;
	return gid >= 0 && peer_in_group(s, (gid_t)gid);
}

static void welcome_client(struct broker_session *s, const struct core_wire_hello *hello, int ring)
{
	struct broker_domain *d = s->domain;
	const struct core_index *ix = broker_store_index(d->store);
	struct core_wire_welcome w;
	int fds[4] = { broker_store_index_fd(d->store), broker_store_cand_fd(d->store), ring,
		       s->broker->uffd_fd };
	uint32_t nfds = 3;

	welcome_fill(s, &w, hello->h.seq);
	w.ring_pages = BROKER_RING_PAGES;
	w.index_bytes = core_index_bytes(ix->header->max_slots);
	w.cand_bytes = core_cand_bytes(s->broker->config.cand_max_pages);
	w.layout_seed = d->layout_seed;
	w.generation = ix->header->generation;
	s->standing_who = broker_store_standing_join(d->store);
	w.who = s->standing_who;
	w.scan = s->broker->config.scan;
	if (broker_pause_holds(s->broker, d))
		w.flags |= CORE_WIRE_WELCOME_PAUSED;
	if ((hello->flags & CORE_WIRE_HELLO_WANT_UFFD) && fds[3] >= 0 && may_borrow(s)) {
		w.flags |= CORE_WIRE_WELCOME_HAS_UFFD;
		nfds = 4;
	}
	broker_packet_send(s, &w, sizeof(w), fds, nfds, 1u << 2);
}

/* Why there is no domain for the peer. */
static const char *no_domain(const struct broker_session *s, int error)
{
	const char *why = NULL;

	if (error == -EDQUOT)
		why = broker_quota_domain(s->broker, s->peer.uid);
	return why ? why : "no store for the domain";
}

static void hello_client(struct broker_session *s, const struct core_wire_hello *hello)
{
	struct broker_domain *d;
	int r = broker_domain_get(s->broker, &s->peer, hello->domain, true, &d);
	int ring;

	if (r < 0) {
		broker_session_refuse(s, hello->h.seq, r, no_domain(s, r));
		return;
	}
	ring = ring_new(s);
	if (ring < 0) {
		broker_session_refuse(s, hello->h.seq, ring, "no memory for the ring");
		return;
	}
	s->domain = d;
	broker_domain_enter(d);
	if (broker_quota_charge(s) < 0) {
		sys->close(ring);
		broker_session_refuse(s, hello->h.seq, -ENOMEM, "no memory for a session");
		return;
	}
	TAILQ_INIT(&s->targets);
	TAILQ_INIT(&s->wanting);
	s->state = BROKER_SESSION_CLIENT;
	s->broker->greeting_count--;
	welcome_client(s, hello, ring);
}

static void hello_control(struct broker_session *s, const struct core_wire_hello *hello)
{
	struct core_wire_welcome w;
	struct broker_domain *d = NULL;
	int r = 0;

	if (hello->domain[0])
		r = broker_domain_get(s->broker, &s->peer, hello->domain, false, &d);
	if (r < 0) {
		broker_session_refuse(s, hello->h.seq, r, no_domain(s, r));
		return;
	}
	s->state = BROKER_SESSION_CONTROL;
	s->broker->greeting_count--;
	welcome_fill(s, &w, hello->h.seq);
	w.scan = s->broker->config.scan;
	if (d) {
		w.layout_seed = d->layout_seed;
		if (broker_pause_holds(s->broker, d))
			w.flags |= CORE_WIRE_WELCOME_PAUSED;
	}
	if (d && d->store)
		w.generation = broker_store_index(d->store)->header->generation;
	broker_packet_send(s, &w, sizeof(w), NULL, 0, 0);
}

void broker_client_hello(struct broker_session *s, const struct core_wire_hello *hello)
{
	if (hello->page_bytes != sys_page_bytes()) {
		broker_session_refuse(s, hello->h.seq, -EINVAL, "another page size");
		return;
	}
	memcpy(s->comm, hello->comm, sizeof(s->comm));
	if (hello->role == CORE_WIRE_ROLE_CLIENT)
		hello_client(s, hello);
	else
		hello_control(s, hello);
}

static void submit(struct broker_session *s, const struct core_wire_submit *m)
{
	uint64_t budget = broker_quota_session_room(s);
	struct core_wire_slots answer = { .count = m->count };

	for (uint32_t i = 0; i < m->count; i++) {
		if (m->ring_page[i] >= BROKER_RING_PAGES) {
			broker_session_refuse(s, m->h.seq, -EINVAL, "no such ring page");
			return;
		}
	}
	s->charge->new_slots += broker_store_promote(s->domain->store, s->ring, m->ring_page,
						     m->count, answer.slot, answer.reason,
						     &budget);
	/* The client takes the pages away; this lets go of what mapped them. */
	sys->madvise((void *)(uintptr_t)s->ring, broker_client_ring_span(), MADV_DONTNEED);
	broker_quota_update(s->broker, s->domain);
	core_wire_header_init(&answer.h, CORE_WIRE_SLOTS, sizeof(answer), m->h.seq);
	broker_packet_send(s, &answer, sizeof(answer), NULL, 0, 0);
	if (s->domain)
		broker_domain_check_room(s->broker, s->domain);
}

static void segment_get(struct broker_session *s, const struct core_wire_segment *m)
{
	struct core_wire_segment answer = { .segment = m->segment, .slots = BROKER_SEGMENT_SLOTS };
	int fd = broker_store_segment_fd(s->domain->store, m->segment);

	if (fd < 0) {
		broker_packet_send_error(s, m->h.seq, fd,
					 fd == -ENOENT ? "no such segment" : "no file to give");
		return;
	}
	core_wire_header_init(&answer.h, CORE_WIRE_SEGMENT, sizeof(answer), m->h.seq);
	broker_packet_send(s, &answer, sizeof(answer), &fd, 1, 1);
}

static void offer(struct broker_session *s, const struct core_wire_segment *m, int fd)
{
	struct broker *b = s->broker;

	if (m->slots != BROKER_SEGMENT_SLOTS || s->offered_slots >= b->config.store_max_slots) {
		sys->close(fd); /* of another build, or more than the store could ever take */
		return;
	}
	s->offered_slots += BROKER_SEGMENT_SLOTS;
	s->offer_fd = fd;
	TAILQ_INSERT_TAIL(&b->offers, s, offer_link);
	broker_session_watch(s);
}

void broker_client_adopt_one(struct broker *b)
{
	struct broker_session *s = TAILQ_FIRST(&b->offers);
	int r;

	if (!s)
		return;
	TAILQ_REMOVE(&b->offers, s, offer_link);
	r = -EDQUOT;
	if (broker_quota_room(b, s->domain) >= BROKER_SEGMENT_SLOTS)
		r = broker_store_adopt(s->domain->store, s->offer_fd);
	broker_quota_update(b, s->domain);
	sys->close(s->offer_fd);
	s->offer_fd = -1;
	if (r == 0)
		broker_log(BROKER_LOG_DOMAIN, "took a segment over from pid %d",
			   (int)s->peer.pid);
	if (r == -EINVAL) {
		broker_session_refuse(s, 0, -EINVAL, "what was offered is no segment");
		return;
	}
	broker_session_watch(s);
}

/*
 * One session cannot fill the table more than once in a minute; what is beyond that is
 * not taken, and reported again in the table's next round.
 */
static void standing(struct broker_session *s, const struct core_wire_tags *m)
{
	struct broker_store *st = s->domain->store;
	uint64_t round = broker_store_standing_round(st), left, now = s->broker->now;
	uint32_t count = m->count;

	if ((m->flags >> CORE_WIRE_TAGS_ROUND_SHIFT) != (round & 0xffff))
		return; /* they will be reported again */
	if (round != s->standing_round)
		s->standing_tags = 0;
	s->standing_round = round;
	if (s->standing_taken == 0 || now >= s->standing_from + 60 * BROKER_SECOND_USEC) {
		s->standing_from = now;
		s->standing_taken = 0;
	}
	left = s->broker->config.cand_max_pages - s->standing_taken;
	if (count > left)
		count = (uint32_t)left;
	s->standing_taken += count;
	s->standing_tags += count;
	broker_store_standing_room(st, broker_quota_room(s->broker, s->domain));
	broker_store_standing(st, s->standing_who, m->tag, count, now);
	broker_quota_update(s->broker, s->domain);
}

void broker_client_standing_gone(struct broker_session *s)
{
	struct broker_store *st = s->domain->store;
	bool of_this_round;

	if (s->standing_who) {
		of_this_round = s->standing_round == broker_store_standing_round(st);
		broker_store_standing_leave(st, s->standing_who,
					    of_this_round ? s->standing_tags : 0);
	}
	s->standing_who = 0;
	if (s->domain->clients > 0)
		return;
	broker_store_standing_end(st);
	broker_quota_update(s->broker, s->domain);
}

static void tags(struct broker_session *s, const struct core_wire_tags *m)
{
	if (m->flags & CORE_WIRE_TAGS_STANDING)
		standing(s, m);
	else
		broker_store_tags(s->domain->store, m->tag, m->count);
}

void broker_client_message(struct broker_session *s, const void *packet, int fd)
{
	const struct core_wire_header *h = packet;
	struct core_wire_report report;

	/* An OFFER without its fd, or an fd with something else. */
	if ((h->type == CORE_WIRE_OFFER) != (fd >= 0)) {
		if (fd >= 0)
			sys->close(fd);
		broker_session_refuse(s, h->seq, -EPROTO, "a message without its file");
		return;
	}
	switch (h->type) {
	case CORE_WIRE_SUBMIT:
		submit(s, packet);
		break;
	case CORE_WIRE_SEGMENT_GET:
		segment_get(s, packet);
		break;
	case CORE_WIRE_TAGS:
		tags(s, packet);
		break;
	case CORE_WIRE_RESULT:
		report = ((const struct core_wire_result *)packet)->report;
		broker_request_answer(s, h->seq, &report);
		break;
	case CORE_WIRE_OFFER:
		offer(s, packet, fd);
		break;
	default:
		broker_session_refuse(s, h->seq, -EPROTO, "not for a client session");
	}
}
