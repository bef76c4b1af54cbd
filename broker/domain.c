/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Domains: who may share with whom, and how long a store lives.
 *
 * The key is the peer's uid and security label as the kernel tells them, and the
 * name that the peer asked for. All three are compared whole (I7).
 *
 * Trimming. Segments are freed by the kernel when nobody has them open; clients
 * keep fds of segments that they may map again. TRIM asks them to close what
 * they do not map, and a moment later the store looks which segments are left
 * over. That goes on at an interval, and at once (but not all the time) when the
 * user's quota is nearly used up; what is freed is taken off the charges (quota.c).
 *
 * The end. When nobody has been connected for the lingering time, the domain goes
 * if nobody has a segment of it open either; else it stays, charged to its user,
 * who may come back to it, and is looked at again at each trim.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/broker.h"
#include "broker/store_impl.h"

#define COLLECT_AFTER_USEC (2 * BROKER_SECOND_USEC)
#define REST_AFTER_USEC 1000000u
#define TRIM_PAUSE_USEC (5 * BROKER_SECOND_USEC)
#define FULL_PERCENT 90

static bool domain_matches(const struct broker_domain *d, const struct sys_peer *peer,
			   const char *name)
{
	return d->uid == peer->uid && strcmp(d->label, peer->label) == 0 &&
	       strcmp(d->name, name) == 0;
}

static int domain_new(struct broker *b, const struct sys_peer *peer, const char *name,
		      struct broker_domain **out)
{
	struct broker_domain *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	r = sys->getrandom(&d->layout_seed, sizeof(d->layout_seed));
	if (r < 0) {
		free(d);
		return r;
	}
	d->uid = peer->uid;
	memcpy(d->label, peer->label, sizeof(d->label));
	strncpy(d->name, name, sizeof(d->name) - 1);
	d->free_at = d->trim_at = d->collect_at = d->rest_at = BROKER_NEVER;
	TAILQ_INIT(&d->charges);
	TAILQ_INIT(&d->rounds);
	r = broker_quota_join(b, d);
	if (r < 0) {
		free(d);
		return r;
	}
	TAILQ_INSERT_TAIL(&b->domains, d, link);
	broker_log(BROKER_LOG_DOMAIN, "domain %s of uid %u begins", d->name, (unsigned)d->uid);
	*out = d;
	return 0;
}

static int domain_start_store(struct broker *b, struct broker_domain *d)
{
	struct broker_store_params params = {
		.max_slots = b->config.store_max_slots,
		.max_cand_pages = b->config.cand_max_pages,
	};
	uint64_t random[2];
	int r = sys->getrandom(random, sizeof(random));

	if (r < 0)
		return r;
	params.seed = random[0];
	params.generation = random[1];
	r = broker_store_new(&d->store, &params);
	if (r < 0) {
		d->store = NULL;
		broker_log(BROKER_LOG_SYSTEM, "no store for domain %s of uid %u: %s", d->name,
			   (unsigned)d->uid, strerror(-r));
		return r;
	}
	d->trim_at = b->now + b->config.trim_interval_usec;
	return 0;
}

int broker_domain_get(struct broker *b, const struct sys_peer *peer, const char *name,
		      bool with_store, struct broker_domain **out)
{
	struct broker_domain *d;
	int r;

	TAILQ_FOREACH(d, &b->domains, link) {
		if (domain_matches(d, peer, name))
			break;
	}
	if (!d) {
		if (broker_quota_domain(b, peer->uid))
			return -EDQUOT;
		r = domain_new(b, peer, name, &d);
		if (r < 0)
			return r;
	}
	if (d->clients == 0)
		d->free_at = b->now + b->config.linger_usec;
	if (with_store && !d->store) {
		r = domain_start_store(b, d);
		if (r < 0)
			return r; /* a domain without clients goes by itself */
	}
	*out = d;
	return 0;
}

void broker_domain_enter(struct broker_domain *d)
{
	d->clients++;
	d->free_at = BROKER_NEVER;
}

void broker_domain_leave(struct broker *b, struct broker_domain *d)
{
	if (--d->clients == 0)
		d->free_at = b->now + b->config.linger_usec;
}

static void domain_free(struct broker *b, struct broker_domain *d)
{
	struct broker_store_stats stats = { 0 };

	if (d->store)
		broker_store_stats(d->store, &stats);
	broker_log(BROKER_LOG_DOMAIN, "domain %s of uid %u ends, %llu slots", d->name,
		   (unsigned)d->uid, (unsigned long long)stats.slots);
	TAILQ_REMOVE(&b->domains, d, link);
	broker_quota_leave(b, d);
	broker_store_free(d->store);
	free(d);
}

void broker_domain_free_all(struct broker *b)
{
	while (!TAILQ_EMPTY(&b->domains))
		domain_free(b, TAILQ_FIRST(&b->domains)); /* NOLINT: it leaves the list first */
}

void broker_domain_check_room(struct broker *b, struct broker_domain *d)
{
	uint64_t spare = b->config.store_max_slots / 100 * (100 - FULL_PERCENT);

	if (d->collect_at != BROKER_NEVER || b->now < d->trimmed_at + TRIM_PAUSE_USEC)
		return;
	if (broker_quota_room(b, d) < spare)
		d->trim_at = b->now;
}

/* A peer with answers still to read is busy; it will be asked the next time. */
static void domain_trim(struct broker *b, struct broker_domain *d)
{
	struct broker_session *s, *next;
	struct core_wire_header trim;
	struct broker_store_stats stats;

	d->trim_at = b->now + b->config.trim_interval_usec;
	broker_store_stats(d->store, &stats);
	if (stats.slots < BROKER_SEGMENT_SLOTS)
		return; /* nothing can be full */
	d->trimmed_at = b->now;
	if (d->collect_at == BROKER_NEVER)
		d->collect_at = b->now + COLLECT_AFTER_USEC;
	core_wire_header_init(&trim, CORE_WIRE_TRIM, sizeof(trim), 0);
	for (s = TAILQ_FIRST(&b->sessions); s; s = next) {
		next = TAILQ_NEXT(s, link);
		if (s->domain == d && STAILQ_EMPTY(&s->out))
			broker_packet_send(s, &trim, sizeof(trim), NULL, 0, 0);
	}
}

static void domain_collect(struct broker *b, struct broker_domain *d)
{
	struct broker_store_stats before, after;
	struct broker_session *s;
	double left;

	d->collect_at = BROKER_NEVER;
	broker_store_stats(d->store, &before);
	if (broker_store_collect(d->store) == 0)
		return;
	broker_store_stats(d->store, &after);
	broker_quota_update(b, d);
	left = (double)after.slots / (double)before.slots;
	broker_quota_scale(d, left);
	TAILQ_FOREACH(s, &b->sessions, link) {
		if (s->domain == d)
			s->offered_slots = (uint64_t)((double)s->offered_slots * left);
	}
}

/* Does somebody have the segment open, or mapped? A lease that fails means nothing. */
static bool segment_in_use(const struct broker_segment *seg)
{
	int fd = seg->ro_fd;
	bool used;

	if (!seg->given)
		return false;
	if (fd < 0)
		fd = broker_reopen_ro(seg->rw_fd);
	if (fd < 0)
		return true;
	used = sys->lease_try(fd) == 0;
	if (fd != seg->ro_fd)
		sys->close(fd);
	return used;
}

static bool domain_in_use(const struct broker_domain *d)
{
	for (size_t i = 0; d->store && i < d->store->segment_count; i++) {
		if (segment_in_use(&d->store->segments[i]))
			return true;
	}
	return false;
}

/* False: it stays for now. */
static bool domain_end(struct broker *b, struct broker_domain *d)
{
	if (domain_in_use(d)) {
		d->free_at = b->now + b->config.trim_interval_usec;
		return false;
	}
	domain_free(b, d);
	return true;
}

static void domain_rest(struct broker *b, struct broker_domain *d)
{
	if (!d->store || !broker_store_worked(d->store)) {
		d->rest_at = BROKER_NEVER;
		return;
	}
	if (d->rest_at == BROKER_NEVER)
		d->rest_at = b->now + REST_AFTER_USEC;
	if (b->now < d->rest_at)
		return;
	broker_store_rest(d->store);
	d->rest_at = BROKER_NEVER;
}

uint64_t broker_domain_tick(struct broker *b)
{
	uint64_t again = BROKER_NEVER;
	struct broker_domain *d, *next;

	for (d = TAILQ_FIRST(&b->domains); d; d = next) {
		next = TAILQ_NEXT(d, link);
		if (b->now >= d->free_at && domain_end(b, d))
			continue;
		if (b->now >= d->trim_at)
			domain_trim(b, d);
		if (b->now >= d->collect_at)
			domain_collect(b, d);
		domain_rest(b, d);
		if (d->free_at < again)
			again = d->free_at;
		if (d->trim_at < again)
			again = d->trim_at;
		if (d->collect_at < again)
			again = d->collect_at;
		if (d->rest_at < again)
			again = d->rest_at;
	}
	return again;
}
