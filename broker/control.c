/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Control operations.
 *
 *   waiting     in line (broker->ops); only what was asked is remembered
 *   looking     MERGE only: LOOK is under way in every chosen session
 *   asking      the operation itself is under way in every chosen session
 *   delivering  all is known; items go out as the asker reads them
 *
 * One operation asks at a time, so that the rounds of two merges do not count
 * the same page twice; LIST asks nobody and is delivered at once. Items are kept
 * here until there is room in the asker's queue, which makes a slow reader wait
 * and nobody else; one that reads nothing for the time of a request is dropped.
 *
 * A merge is two-phase because a candidate is only worth a slot when a second
 * page like it is known: everybody looks and tells fingerprints (TAGS, ahead of
 * RESULT on the same socket), then everybody merges knowing all of them.
 *
 * Answers. Each request has its own number. A session that dies leaves -ESRCH, one
 * that is late -ETIMEDOUT; its late answer is recognised by its number and
 * only updates what LIST tells. While a late answer is still owed, the session is
 * not asked again. A RESULT that nobody ever asked for is a broken peer.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/broker.h"

#define OPS_MAX 64u
#define OPS_PER_UID_MAX 16u
#define OPS_PER_SESSION_MAX 4u
#define UNANSWERED_MAX 8u
#define QUEUE_FILL_PACKETS 32u

enum op_state {
	OP_WAITING,
	OP_LOOKING,
	OP_ASKING,
	OP_DELIVERING,
};

struct target {
	struct broker_session *session; /* NULL: gone, never there, or all is done */
	int32_t pid;
	uint32_t uid;
	bool waiting; /* for its answer in this state */
	bool done;
	char domain[CORE_WIRE_NAME_BYTES];
	char comm[CORE_WIRE_NAME_BYTES];
	struct core_wire_report report;
};

struct broker_op {
	TAILQ_ENTRY(broker_op) line; /* broker->ops, or ->delivering */
	TAILQ_ENTRY(broker_op) of_asker;
	struct broker_session *asker;
	enum op_state state;
	uint64_t id;
	uint32_t seq;
	uint32_t op;
	uint64_t deadline; /* of the answers, or of the asker to read */
	uint32_t unanswered;
	struct target *targets;
	uint32_t target_count, found;
	uint32_t *finished; /* targets in the order in which they were done */
	uint32_t finished_count, delivered;
	uint32_t ctl_flags, pid_count;
	int32_t pids[];
};

bool broker_control_may_touch(const struct broker_session *asker, uid_t uid)
{
	return asker->peer.uid == 0 || asker->peer.uid == uid;
}

static void target_done(struct broker_op *op, uint32_t n, int error)
{
	struct target *t = &op->targets[n];

	if (t->waiting)
		op->unanswered--;
	t->waiting = false;
	if (t->done)
		return;
	t->done = true;
	if (error)
		t->report.error = error;
	op->finished[op->finished_count++] = n;
}

/* Nobody is to answer this operation any more. */
static void op_forget_sessions(struct broker_op *op)
{
	for (uint32_t i = 0; i < op->target_count; i++) {
		struct broker_session *s = op->targets[i].session;

		if (s && s->asked_op == op)
			s->asked_op = NULL;
		op->targets[i].session = NULL;
	}
}

static void op_free(struct broker_op *op)
{
	struct broker *b = op->asker->broker;

	if (op->state == OP_DELIVERING)
		TAILQ_REMOVE(&b->delivering, op, line);
	else
		TAILQ_REMOVE(&b->ops, op, line);
	op_forget_sessions(op);
	TAILQ_REMOVE(&op->asker->ops, op, of_asker);
	b->op_count--;
	free(op->targets);
	free(op->finished);
	free(op);
}

/* Delivery ------------------------------------------------------------------- */

static void send_end(struct broker_session *asker, uint32_t seq, int error, uint32_t items)
{
	struct core_wire_ctl_end end = { .error = error, .items = items };

	core_wire_header_init(&end.h, CORE_WIRE_CTL_END, sizeof(end), seq);
	broker_report_end(asker, &end);
	broker_packet_send(asker, &end, sizeof(end), NULL, 0, 0);
}

static void send_item(struct broker_session *asker, uint32_t seq, const struct target *t)
{
	struct core_wire_ctl_item item = { .pid = t->pid, .uid = t->uid, .report = t->report };

	core_wire_header_init(&item.h, CORE_WIRE_CTL_ITEM, sizeof(item), seq);
	memcpy(item.domain, t->domain, sizeof(item.domain));
	memcpy(item.comm, t->comm, sizeof(item.comm));
	broker_packet_send(asker, &item, sizeof(item), NULL, 0, 0);
}

/* None of the processes that were named is a client? */
static int op_error(const struct broker_op *op)
{
	return op->found == 0 && !(op->ctl_flags & CORE_WIRE_CTL_ALL) ? -ESRCH : 0;
}

/* The operation may be gone afterwards, and the asker doomed. */
static void op_deliver(struct broker_op *op)
{
	struct broker_session *asker = op->asker;

	while (op->delivered < op->finished_count && asker->out_packets < QUEUE_FILL_PACKETS) {
		send_item(asker, op->seq, &op->targets[op->finished[op->delivered++]]);
		if (asker->state == BROKER_SESSION_DOOMED)
			return; /* its operations are freed */
		if (op->state == OP_DELIVERING)
			op->deadline = asker->broker->now +
				       asker->broker->config.request_timeout_usec;
	}
	if (op->state != OP_DELIVERING || op->delivered < op->target_count ||
	    asker->out_packets >= QUEUE_FILL_PACKETS)
		return;
	send_end(asker, op->seq, op_error(op), op->target_count);
	if (asker->state != BROKER_SESSION_DOOMED)
		op_free(op);
}

void broker_control_deliver(struct broker_session *s)
{
	struct broker_op *op, *next;

	for (op = TAILQ_FIRST(&s->ops); op && s->state != BROKER_SESSION_DOOMED; op = next) {
		next = TAILQ_NEXT(op, of_asker);
		op_deliver(op);
	}
}

static void op_finish(struct broker_op *op)
{
	struct broker *b = op->asker->broker;
	struct broker_domain *d;

	/* The fingerprints have done their work; their memory goes back. */
	TAILQ_FOREACH(d, &b->domains, link) {
		if (d->round_op == op->id && d->store)
			broker_store_round(d->store);
	}
	op_forget_sessions(op);
	TAILQ_REMOVE(&b->ops, op, line);
	TAILQ_INSERT_TAIL(&b->delivering, op, line);
	op->state = OP_DELIVERING;
	op->deadline = b->now + b->config.request_timeout_usec;
	op_deliver(op);
}

/* Choosing ------------------------------------------------------------------- */

static struct target *target_add(struct broker_op *op, int32_t pid)
{
	struct target *t = &op->targets[op->target_count++];

	/* Until it turns out to be a client. An item's domain must be a valid name. */
	*t = (struct target){ .pid = pid, .uid = UINT32_MAX, .domain = "-" };
	return t;
}

static void target_choose(struct broker_op *op, struct broker_session *s)
{
	struct target *t;

	if (s->chosen_by == op->id || s->state != BROKER_SESSION_CLIENT ||
	    !broker_control_may_touch(op->asker, s->peer.uid))
		return;
	s->chosen_by = op->id;
	t = target_add(op, s->peer.pid);
	t->session = s;
	t->uid = s->peer.uid;
	t->report = s->report;
	memcpy(t->domain, s->domain->name, sizeof(t->domain));
	memcpy(t->comm, s->comm, sizeof(t->comm));
	op->found++;
}

static void choose_pid(struct broker_op *op, int32_t pid)
{
	struct broker_session *s;
	bool known = false;

	TAILQ_FOREACH(s, &op->asker->broker->sessions, link) {
		if (s->peer.pid != pid)
			continue;
		target_choose(op, s);
		known |= s->chosen_by == op->id;
	}
	if (!known) {
		target_add(op, pid);
		target_done(op, op->target_count - 1, -ESRCH);
	}
}

static int choose_targets(struct broker_op *op)
{
	size_t room = op->asker->broker->session_count + op->pid_count + 1;
	struct broker_session *s;

	op->targets = calloc(room, sizeof(*op->targets));
	op->finished = calloc(room, sizeof(*op->finished));
	if (!op->targets || !op->finished)
		return -ENOMEM;
	if (op->ctl_flags & CORE_WIRE_CTL_ALL) {
		TAILQ_FOREACH(s, &op->asker->broker->sessions, link)
			target_choose(op, s);
	}
	for (uint32_t i = 0; i < op->pid_count; i++)
		choose_pid(op, op->pids[i]);
	return 0;
}

/* Asking --------------------------------------------------------------------- */

static void ask(struct broker_op *op, uint32_t n, uint32_t what)
{
	struct broker_session *s = op->targets[n].session;
	struct core_wire_request m = { .op = what };

	if (s->silent || s->unanswered >= UNANSWERED_MAX) {
		target_done(op, n, -ETIMEDOUT);
		return;
	}
	s->asked_op = op;
	s->asked_target = n;
	s->asked_seq = ++s->broker->last_request_seq;
	s->unanswered++;
	op->targets[n].waiting = true;
	op->unanswered++;
	core_wire_header_init(&m.h, CORE_WIRE_REQUEST, sizeof(m), s->asked_seq);
	broker_packet_send(s, &m, sizeof(m), NULL, 0, 0);
}

static void ask_all(struct broker_op *op, uint32_t what)
{
	struct broker *b = op->asker->broker;

	op->deadline = b->now + b->config.request_timeout_usec;
	for (uint32_t i = 0; i < op->target_count; i++) {
		if (op->targets[i].session && !op->targets[i].done)
			ask(op, i, what);
	}
}

static void begin_rounds(struct broker_op *op)
{
	for (uint32_t i = 0; i < op->target_count; i++) {
		struct broker_session *s = op->targets[i].session;

		if (!s || s->domain->round_op == op->id)
			continue;
		s->domain->round_op = op->id;
		broker_store_round(s->domain->store);
	}
}

/* False: the operation is over, without having begun. */
static bool op_start(struct broker_op *op)
{
	if (choose_targets(op) < 0) {
		struct broker_session *asker = op->asker;
		uint32_t seq = op->seq;

		op->target_count = 0;
		op_free(op);
		send_end(asker, seq, -ENOMEM, 0);
		return false;
	}
	if (op->op == CORE_WIRE_OP_LIST) {
		for (uint32_t i = 0; i < op->target_count; i++)
			target_done(op, i, 0);
		op->state = OP_ASKING; /* and answered */
		return true;
	}
	if (op->op == CORE_WIRE_OP_MERGE || op->op == CORE_WIRE_OP_LOOK)
		begin_rounds(op);
	op->state = op->op == CORE_WIRE_OP_MERGE ? OP_LOOKING : OP_ASKING;
	ask_all(op, op->op == CORE_WIRE_OP_MERGE ? CORE_WIRE_OP_LOOK : op->op);
	return true;
}

/* Who has not answered gets -ETIMEDOUT and is not asked again until it does. */
static void op_expire(struct broker_op *op)
{
	for (uint32_t i = 0; i < op->target_count; i++) {
		struct broker_session *s = op->targets[i].session;

		if (!op->targets[i].waiting)
			continue;
		s->silent = true;
		s->asked_op = NULL;
		op->targets[i].session = NULL;
		target_done(op, i, -ETIMEDOUT);
	}
}

/* One step of the operation whose turn it is. False: it waits for answers. */
static bool op_step(struct broker *b, struct broker_op *op)
{
	if (op->state == OP_WAITING) {
		op_start(op);
		return true;
	}
	if (op->unanswered > 0 && b->now >= op->deadline)
		op_expire(op);
	if (op->unanswered > 0) {
		op_deliver(op);
		return false;
	}
	if (op->state == OP_LOOKING) {
		op->state = OP_ASKING;
		ask_all(op, CORE_WIRE_OP_MERGE);
	} else {
		op_finish(op);
	}
	return true;
}

uint64_t broker_control_tick(struct broker *b)
{
	uint64_t again = BROKER_NEVER;
	struct broker_op *op, *next;

	while ((op = TAILQ_FIRST(&b->ops)) != NULL && op_step(b, op))
		;
	op = TAILQ_FIRST(&b->ops);
	if (op)
		again = op->deadline;
	for (op = TAILQ_FIRST(&b->delivering); op; op = next) {
		next = TAILQ_NEXT(op, line);
		if (b->now < op->deadline) {
			if (op->deadline < again)
				again = op->deadline;
			continue;
		}
		broker_session_refuse(op->asker, op->seq, -ETIMEDOUT, "reads no answers");
		next = TAILQ_FIRST(&b->delivering); /* others of that asker are gone, too */
	}
	return again;
}

/* From sessions -------------------------------------------------------------- */

void broker_control_answer(struct broker_session *s, uint32_t seq,
			   const struct core_wire_report *report)
{
	struct broker_op *op = s->asked_op;
	struct target *t;

	if (s->unanswered == 0) {
		broker_session_refuse(s, seq, -EPROTO, "an answer that nobody asked for");
		return;
	}
	if (--s->unanswered == 0)
		s->silent = false;
	s->report = *report;
	if (!op || seq != s->asked_seq)
		return; /* late */
	s->asked_op = NULL;
	t = &op->targets[s->asked_target];
	t->report = *report;
	if (op->state == OP_ASKING) {
		target_done(op, s->asked_target, 0);
	} else {
		t->waiting = false;
		op->unanswered--;
	}
}

void broker_control_lost(struct broker_session *s)
{
	struct broker_op *op = TAILQ_FIRST(&s->broker->ops);

	for (uint32_t i = 0; op && i < op->target_count; i++) {
		if (op->targets[i].session != s)
			continue;
		op->targets[i].session = NULL;
		target_done(op, i, -ESRCH);
	}
	s->asked_op = NULL;
	while (!TAILQ_EMPTY(&s->ops))
		op_free(TAILQ_FIRST(&s->ops));
}

static bool too_many_ops(const struct broker_session *s)
{
	const struct broker *b = s->broker;
	const struct broker_session *other;
	const struct broker_op *op;
	uint32_t of_session = 0, of_uid = 0;

	if (b->op_count >= OPS_MAX)
		return true;
	TAILQ_FOREACH(op, &s->ops, of_asker)
		of_session++;
	TAILQ_FOREACH(other, &b->sessions, link) {
		if (other->peer.uid != s->peer.uid)
			continue;
		TAILQ_FOREACH(op, &other->ops, of_asker)
			of_uid++;
	}
	return of_session >= OPS_PER_SESSION_MAX || of_uid >= OPS_PER_UID_MAX;
}

void broker_control_message(struct broker_session *s, const struct core_wire_ctl *ctl)
{
	struct broker *b = s->broker;
	struct broker_op *op;

	if (too_many_ops(s)) {
		send_end(s, ctl->h.seq, -EBUSY, 0);
		return;
	}
	op = calloc(1, sizeof(*op) + ctl->count * sizeof(op->pids[0]));
	if (!op) {
		send_end(s, ctl->h.seq, -ENOMEM, 0);
		return;
	}
	op->asker = s;
	op->id = ++b->last_op_id;
	op->seq = ctl->h.seq;
	op->op = ctl->op;
	op->ctl_flags = ctl->flags;
	op->pid_count = ctl->count;
	memcpy(op->pids, ctl->pid, ctl->count * sizeof(op->pids[0]));
	TAILQ_INSERT_TAIL(&s->ops, op, of_asker);
	TAILQ_INSERT_TAIL(&b->ops, op, line);
	b->op_count++;
	/* LIST waits for nobody. What was in line before it goes on in its own time. */
	if (op->op == CORE_WIRE_OP_LIST && op_start(op))
		op_finish(op);
}
