/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may have how much (I4).
 *
 * The unit is the user: names of domains and processes are free, so nothing that
 * is counted by them bounds anybody. Slots and descriptors of all domains of a
 * user are summed, and there is a sum over all users:
 *
 *   a user       store_max_slots; domains_per_uid_max; half of the descriptors
 *   all users    store_total_slots; half of what the process may open, for domains
 *   all but root seven eighths of those two, so that root always finds some left
 *
 * A slot is charged to the domain's user until its segment is let go of, whoever
 * put it there and whether or not they are still connected. A domain whose
 * segments somebody still has open does not end (domain.c), so leaving, with the
 * segments' fds in the hand, and coming back gains nothing.
 *
 * What the scanners' table has grown to beyond its first pages is charged like slots, for
 * a domain has one user, and who else reports into it does not matter; without room it
 * does not grow. (The table of rounds is not: it is there while somebody merges.)
 *
 * Within a user, client_max_slots keeps one process from using up a domain by
 * mistake. That charge goes by pid, so it outlives a session; it is no defence
 * against a user who forks, and need not be. As segments are freed it is lowered in
 * proportion, because it does not say in which segments the pages are.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "broker/broker.h"
#include "broker/store_impl.h"

#define RESERVED_FDS 64u
/* Index, candidates, userfaultfd, and the two of a segment that is being sealed. */
#define DOMAIN_FDS 5u
#define CHARGES_LEFT_MAX 1024u

void broker_quota_start(struct broker *b)
{
	struct rlimit limit;
	uint64_t fds = 1024;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
		fds = limit.rlim_cur;
	/* Sessions have the other half (main.c). */
	b->fds_max = fds / 2 > 2 * RESERVED_FDS ? fds / 2 - RESERVED_FDS : RESERVED_FDS;
	if (geteuid() != 0)
		return;
	/* Where there are several users, none has all the sessions. */
	if (b->config.sessions_per_uid_max > b->config.sessions_max / 4 * 3)
		b->config.sessions_per_uid_max = b->config.sessions_max / 4 * 3;
}

/* Root's, or in a user's own broker the user's, goes to the end. */
static uint64_t share_of_all(uid_t uid, uint64_t max)
{
	return uid == 0 || uid == geteuid() ? max : max - max / 8;
}

static uint64_t room(uint64_t used, uint64_t max)
{
	return used < max ? max - used : 0;
}

static uint64_t fds_room(const struct broker *b, uid_t uid, uint64_t of_user)
{
	uint64_t own = room(of_user, uid == 0 || uid == geteuid() ? b->fds_max : b->fds_max / 2);
	uint64_t all = room(b->fds, share_of_all(uid, b->fds_max));

	return own < all ? own : all;
}

static struct broker_user *user_find(struct broker *b, uid_t uid)
{
	struct broker_user *u;

	TAILQ_FOREACH(u, &b->users, link) {
		if (u->uid == uid)
			return u;
	}
	return NULL;
}

const char *broker_quota_domain(struct broker *b, uid_t uid)
{
	const struct broker_user *u = user_find(b, uid);

	if (u && u->domains >= b->config.domains_per_uid_max)
		return "too many domains of this user";
	if (fds_room(b, uid, u ? u->fds : 0) < DOMAIN_FDS)
		return u && u->fds >= b->fds_max / 4 ? "this user has too many files open here" :
						       "no file descriptors left for a domain";
	return NULL;
}

int broker_quota_join(struct broker *b, struct broker_domain *d)
{
	struct broker_user *u = user_find(b, d->uid);

	if (!u) {
		u = calloc(1, sizeof(*u));
		if (!u)
			return -ENOMEM;
		u->uid = d->uid;
		TAILQ_INSERT_TAIL(&b->users, u, link);
	}
	u->domains++;
	d->user = u;
	d->fds = 0;
	broker_quota_update(b, d);
	return 0;
}

static void recount(struct broker *b, struct broker_domain *d, uint64_t slots, uint64_t fds)
{
	d->user->slots += slots - d->slots;
	d->user->fds += fds - d->fds;
	b->slots += slots - d->slots;
	b->fds += fds - d->fds;
	d->slots = slots;
	d->fds = fds;
}

void broker_quota_update(struct broker *b, struct broker_domain *d)
{
	recount(b, d, d->store ? d->store->slots + broker_store_standing_pages(d->store) : 0,
		DOMAIN_FDS + (d->store ? d->store->segment_count : 0));
}

void broker_quota_leave(struct broker *b, struct broker_domain *d)
{
	struct broker_user *u = d->user;
	struct broker_charge *c;

	while ((c = TAILQ_FIRST(&d->charges)) != NULL) {
		TAILQ_REMOVE(&d->charges, c, link);
		free(c);
	}
	recount(b, d, 0, 0);
	d->user = NULL;
	if (--u->domains > 0)
		return;
	TAILQ_REMOVE(&b->users, u, link);
	free(u);
}

/* Without a descriptor for another segment, the open one may still be filled. */
static uint64_t open_room(const struct broker_store *st)
{
	for (size_t i = st->segment_count; st->window.map && i-- > 0;) {
		if (st->segments[i].state == BROKER_SEGMENT_OPEN)
			return BROKER_SEGMENT_SLOTS - st->segments[i].slots;
	}
	return 0;
}

uint64_t broker_quota_room(const struct broker *b, const struct broker_domain *d)
{
	uint64_t own = room(d->user->slots, b->config.store_max_slots);
	uint64_t all = room(b->slots, share_of_all(d->uid, b->config.store_total_slots));
	uint64_t n = own < all ? own : all;

	if (fds_room(b, d->uid, d->user->fds) == 0 && n > open_room(d->store))
		n = open_room(d->store);
	return n;
}

uint64_t broker_quota_session_room(const struct broker_session *s)
{
	uint64_t own = room(s->charge->new_slots, s->broker->config.client_max_slots);
	uint64_t all = broker_quota_room(s->broker, s->domain);

	return own < all ? own : all;
}

static void charge_free(struct broker_domain *d, struct broker_charge *c)
{
	TAILQ_REMOVE(&d->charges, c, link);
	d->charge_count--;
	free(c);
}

/* The charges of processes that left are remembered up to a number, the latest. */
static void forget_oldest(struct broker_domain *d)
{
	struct broker_charge *c;

	TAILQ_FOREACH(c, &d->charges, link) {
		if (c->sessions > 0)
			continue;
		charge_free(d, c);
		return;
	}
}

int broker_quota_charge(struct broker_session *s)
{
	struct broker_domain *d = s->domain;
	struct broker_charge *c;

	TAILQ_FOREACH(c, &d->charges, link) {
		if (c->pid == s->peer.pid)
			break;
	}
	if (!c) {
		if (d->charge_count >= CHARGES_LEFT_MAX)
			forget_oldest(d);
		c = calloc(1, sizeof(*c));
		if (!c)
			return -ENOMEM;
		c->domain = d;
		c->pid = s->peer.pid;
		TAILQ_INSERT_TAIL(&d->charges, c, link);
		d->charge_count++;
	}
	c->sessions++;
	s->charge = c;
	return 0;
}

void broker_quota_uncharge(struct broker_session *s)
{
	struct broker_charge *c = s->charge;

	s->charge = NULL;
	if (c && --c->sessions == 0 && c->new_slots == 0)
		charge_free(c->domain, c);
}

void broker_quota_scale(struct broker_domain *d, double left)
{
	struct broker_charge *c, *next;

	for (c = TAILQ_FIRST(&d->charges); c; c = next) {
		next = TAILQ_NEXT(c, link);
		c->new_slots = (uint64_t)((double)c->new_slots * left);
		if (c->new_slots == 0 && c->sessions == 0)
			charge_free(d, c);
	}
}
