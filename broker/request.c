/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Asking clients, for any number of operations at the same time.
 *
 * A session has at most one REQUEST unanswered. Who else wants to ask it stands in
 * its line; root stands before others there, so that no user keeps root's
 * operations waiting for more than one answer. Sessions wait for nobody else.
 *
 *   idle     owes nothing, nobody in line
 *   askable  owes nothing, somebody in line: asked in the next step
 *   owing    has asked_until to answer
 *   silent   that has passed: whoever is in line, or comes, gets -ETIMEDOUT at once
 *            until the answer has come; a stopped program costs its time once. What it
 *            was to hear of pausing then (late_op) is the first that it is asked after that:
 *            else it would go on scanning when all others rest
 *
 * Candidate rounds. A domain's table counts pages of one round, so a MERGE or LOOK
 * has a part for each domain, and the parts of a domain stand in line: one round at
 * a time, root's next. Parts of different domains know nothing of each other, so a
 * silent session holds up the rounds of its own domain only. STATS and UNMERGE need
 * no round and pass by: a session that has looked and waits for the others to do
 * so owes nothing. Operations of which one is asked for before the other has
 * ended have no order between them.
 *
 * A merge is two-phase because a candidate is only worth a slot when a second
 * page like it is known: everybody looks and tells fingerprints (TAGS, ahead of
 * RESULT on the same socket), then everybody merges knowing all of them.
 */
#include <errno.h>

#include "broker/control_impl.h"

static void part_ready(struct broker_part *part)
{
	if (part->ready)
		return;
	part->ready = true;
	TAILQ_INSERT_TAIL(&part->op->asker->broker->ready, part, ready_link);
}

static void session_askable(struct broker_session *s)
{
	if (s->askable || s->owes || (TAILQ_EMPTY(&s->wanting) && !s->late_op))
		return;
	s->askable = true;
	TAILQ_INSERT_TAIL(&s->broker->askable, s, askable_link);
}

/* It has nothing more to do in this phase of its part. */
static void target_rest(struct broker_target *t, enum broker_target_state state)
{
	struct broker_part *part = t->part;

	if (t->state == TARGET_WANTING)
		TAILQ_REMOVE(&t->session->wanting, t, wanting_link);
	if (t->session && t->session->asked == t)
		t->session->asked = NULL;
	if (part && (t->state == TARGET_WANTING || t->state == TARGET_ASKED) && --part->busy == 0)
		part_ready(part);
	t->state = state;
}

void broker_target_done(struct broker_target *t, int error)
{
	struct broker_op *op = t->op;

	if (t->state == TARGET_DONE)
		return;
	target_rest(t, TARGET_DONE);
	if (t->session)
		TAILQ_REMOVE(&t->session->targets, t, of_session);
	t->session = NULL;
	t->error = error;
	op->finished[op->finished_count++] = (uint32_t)(t - op->targets);
	broker_op_dirty(op);
}

/* It was never asked: whoever wants that is told, and what is to last is kept. */
static void target_missed(struct broker_target *t)
{
	struct broker_session *s = t->session;

	if (t->what == CORE_WIRE_OP_RESUME || t->what == CORE_WIRE_OP_UNMERGE ||
	    (t->what == CORE_WIRE_OP_PAUSE && s->late_op != CORE_WIRE_OP_UNMERGE))
		s->late_op = t->what;
	broker_target_done(t, -ETIMEDOUT);
}

static bool of_root(const struct broker_op *op)
{
	return op->asker->peer.uid == 0;
}

void broker_target_want(struct broker_target *t, uint32_t what)
{
	struct broker_session *s = t->session;
	struct broker_target *other = NULL;

	t->what = what;
	if (s->silent) {
		target_missed(t);
		return;
	}
	t->state = TARGET_WANTING;
	if (t->part)
		t->part->busy++;
	if (of_root(t->op)) {
		TAILQ_FOREACH(other, &s->wanting, wanting_link) {
			if (!of_root(other->op))
				break;
		}
	}
	if (other)
		TAILQ_INSERT_BEFORE(other, t, wanting_link);
	else
		TAILQ_INSERT_TAIL(&s->wanting, t, wanting_link);
	session_askable(s);
}

/* Rounds --------------------------------------------------------------------- */

void broker_part_begin(struct broker_part *part)
{
	struct broker_part_list *line = &part->domain->rounds;
	struct broker_part *other = NULL;

	if (of_root(part->op) && !TAILQ_EMPTY(line)) {
		for (other = TAILQ_NEXT(TAILQ_FIRST(line), line); other;
		     other = TAILQ_NEXT(other, line)) {
			if (!of_root(other->op))
				break;
		}
	}
	if (other)
		TAILQ_INSERT_BEFORE(other, part, line);
	else
		TAILQ_INSERT_TAIL(line, part, line);
	if (TAILQ_FIRST(line) == part)
		part_ready(part);
}

/* The fingerprints have done their work; their memory goes back. */
void broker_part_end(struct broker_part *part)
{
	struct broker_domain *d = part->domain;
	struct broker_part *next;

	if (part->phase != PART_WAITING && part->phase != PART_ENDED)
		broker_store_round(d->store);
	if (part->ready)
		TAILQ_REMOVE(&part->op->asker->broker->ready, part, ready_link);
	part->ready = false;
	if (part->phase == PART_ENDED)
		return;
	part->phase = PART_ENDED;
	TAILQ_REMOVE(&d->rounds, part, line);
	part->domain = NULL;
	next = TAILQ_FIRST(&d->rounds);
	if (next && next->phase == PART_WAITING)
		part_ready(next);
}

static void part_ask(struct broker_part *part, enum broker_part_phase phase, uint32_t what)
{
	struct broker_target *t;

	part->phase = phase;
	part->busy = 1; /* until all are in line */
	TAILQ_FOREACH(t, &part->targets, of_part) {
		if (t->state == TARGET_IDLE)
			broker_target_want(t, what);
	}
	if (--part->busy == 0)
		part_ready(part);
}

/* Its turn has come, or all have answered. */
static void part_step(struct broker_part *part)
{
	if (part->phase == PART_WAITING) {
		broker_store_round(part->domain->store);
		part_ask(part, PART_LOOKING, CORE_WIRE_OP_LOOK);
	} else if (part->phase == PART_LOOKING && part->op->op == CORE_WIRE_OP_MERGE) {
		part_ask(part, PART_MERGING, CORE_WIRE_OP_MERGE);
	} else {
		broker_part_end(part);
	}
}

/* Sessions ------------------------------------------------------------------- */

/* Sending may drop the session: all is in order before it, nothing is touched after. */
static void ask_next(struct broker_session *s)
{
	struct broker_target *t = s->late_op ? NULL : TAILQ_FIRST(&s->wanting);
	struct core_wire_request m = { .op = t ? t->what : s->late_op };
	struct broker *b = s->broker;

	if (!m.op || s->owes)
		return;
	if (t) {
		TAILQ_REMOVE(&s->wanting, t, wanting_link);
		t->state = TARGET_ASKED;
	}
	s->late_op = 0;
	s->asked = t;
	s->asked_seq = ++b->last_request_seq;
	s->asked_until = b->now + b->config.request_timeout_usec;
	s->owes = true;
	TAILQ_INSERT_TAIL(&b->asked, s, asked_link);
	core_wire_header_init(&m.h, CORE_WIRE_REQUEST, sizeof(m), s->asked_seq);
	broker_packet_send(s, &m, sizeof(m), NULL, 0, 0);
}

bool broker_request_step(struct broker *b)
{
	bool did = false;
	struct broker_session *s;
	struct broker_part *part;

	while ((part = TAILQ_FIRST(&b->ready)) != NULL) {
		TAILQ_REMOVE(&b->ready, part, ready_link);
		part->ready = false;
		part_step(part);
		did = true;
	}
	while ((s = TAILQ_FIRST(&b->askable)) != NULL) {
		TAILQ_REMOVE(&b->askable, s, askable_link);
		s->askable = false;
		ask_next(s);
		did = true;
	}
	return did;
}

uint64_t broker_request_expire(struct broker *b)
{
	struct broker_session *s;

	while ((s = TAILQ_FIRST(&b->asked)) != NULL && b->now >= s->asked_until) {
		TAILQ_REMOVE(&b->asked, s, asked_link);
		s->silent = true;
		if (s->asked)
			broker_target_done(s->asked, -ETIMEDOUT);
		while (!TAILQ_EMPTY(&s->wanting))
			target_missed(TAILQ_FIRST(&s->wanting));
	}
	return s ? s->asked_until : BROKER_NEVER;
}

static void check_report(struct broker_session *s, struct core_wire_report *report)
{
	if (broker_report_possible(report))
		return;
	s->broker->forged_reports++;
	broker_log(BROKER_LOG_REFUSED, "pid %d (uid %u) reports what cannot be (forged_reports %llu)",
		   (int)s->peer.pid, (unsigned)s->peer.uid,
		   (unsigned long long)s->broker->forged_reports);
	*report = (struct core_wire_report){ .error = -ERANGE };
}

void broker_request_answer(struct broker_session *s, uint32_t seq,
			   struct core_wire_report *report)
{
	struct broker_target *t = s->asked;

	if (!s->owes || seq != s->asked_seq) {
		broker_session_refuse(s, seq, -EPROTO, "an answer that nobody asked for");
		return;
	}
	if (!s->silent)
		TAILQ_REMOVE(&s->broker->asked, s, asked_link);
	s->owes = s->silent = false;
	check_report(s, report);
	s->report = *report;
	if (t) {
		t->body->report = *report;
		if (t->what == CORE_WIRE_OP_LOOK && t->op->op == CORE_WIRE_OP_MERGE)
			target_rest(t, TARGET_IDLE);
		else
			broker_target_done(t, 0);
	}
	session_askable(s);
}

void broker_request_lost(struct broker_session *s)
{
	struct broker *b = s->broker;

	if (s->owes && !s->silent)
		TAILQ_REMOVE(&b->asked, s, asked_link);
	if (s->askable)
		TAILQ_REMOVE(&b->askable, s, askable_link);
	s->owes = s->askable = false;
	while (!TAILQ_EMPTY(&s->targets))
		broker_target_done(TAILQ_FIRST(&s->targets), -ESRCH);
}
