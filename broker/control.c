/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Control operations: from CTL to CTL_END. Whom they ask, and when: request.c.
 *
 * Every operation chooses its targets when it comes and runs from then on; what it
 * waits for, it waits for target by target and domain by domain, so operations that
 * have no session and no domain's round in common do not notice each other. One
 * without living targets ends at once, and so does LIST, which asks nobody.
 *
 * As targets get done, their items go out, in that order. Items are kept here
 * until there is room in the asker's queue, which makes a slow reader wait
 * and nobody else; one that reads nothing for the time of a request is dropped.
 *
 * A target that dies leaves -ESRCH, one that is late -ETIMEDOUT. However long the
 * lines are that its targets stand in, an operation ends after a few times the time
 * of a request: who has not been asked by then is told as late.
 *
 * Memory. An operation is some bytes for each pid that it names and about 1 KiB
 * for each session that it chooses; there are so many of a session, of a user, and
 * of all users but root.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/control_impl.h"

#define OPS_MAX 256u
#define OPS_PER_UID_MAX 20u
#define OPS_PER_SESSION_MAX 4u
#define QUEUE_FILL_PACKETS 32u
#define PATIENCE 4u /* times the time of a request */

bool broker_control_may_touch(const struct broker_session *asker, uid_t uid)
{
	return asker->peer.uid == 0 || asker->peer.uid == uid;
}

void broker_op_dirty(struct broker_op *op)
{
	if (op->dirty)
		return;
	op->dirty = true;
	TAILQ_INSERT_TAIL(&op->asker->broker->dirty, op, dirty_link);
}

static bool op_complete(const struct broker_op *op)
{
	return op->finished_count == op->target_count;
}

/* Nobody is to answer it any more; a session that was asked still owes its answer. */
static void op_free(struct broker_op *op)
{
	struct broker *b = op->asker->broker;
	struct broker_part *part;

	for (uint32_t i = 0; i < op->target_count; i++) {
		broker_target_done(&op->targets[i], -ESRCH);
		free(op->targets[i].body);
	}
	while ((part = SLIST_FIRST(&op->parts)) != NULL) {
		SLIST_REMOVE_HEAD(&op->parts, of_op);
		broker_part_end(part);
		free(part);
	}
	if (op->dirty)
		TAILQ_REMOVE(&b->dirty, op, dirty_link);
	TAILQ_REMOVE(&b->ops, op, link);
	TAILQ_REMOVE(&op->asker->ops, op, of_asker);
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

static void send_item(struct broker_session *asker, uint32_t seq, const struct broker_target *t)
{
	/* A stranger's; an item's domain must be a valid name. */
	struct core_wire_ctl_item item = { .pid = t->pid, .uid = t->uid, .domain = "-" };

	core_wire_header_init(&item.h, CORE_WIRE_CTL_ITEM, sizeof(item), seq);
	if (t->body) {
		memcpy(item.domain, t->body->domain, sizeof(item.domain));
		memcpy(item.comm, t->body->comm, sizeof(item.comm));
		item.report = t->body->report;
	}
	if (t->error)
		item.report.error = t->error;
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
		if (op_complete(op))
			op->deadline = asker->broker->now +
				       asker->broker->config.request_timeout_usec;
	}
	if (op->delivered < op->target_count || asker->out_packets >= QUEUE_FILL_PACKETS)
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

/* Choosing ------------------------------------------------------------------- */

static struct broker_target *target_add(struct broker_op *op, int32_t pid)
{
	struct broker_target *t = &op->targets[op->target_count++];

	*t = (struct broker_target){ .op = op, .pid = pid, .uid = UINT32_MAX };
	return t;
}

static bool needs_round(const struct broker_op *op)
{
	return op->op == CORE_WIRE_OP_MERGE || op->op == CORE_WIRE_OP_LOOK;
}

/* The operation's part for this domain; NULL: no memory. */
static struct broker_part *part_of(struct broker_op *op, struct broker_domain *d)
{
	struct broker_part *part;

	if (d->chosen_by == op->id)
		return d->chosen_part;
	part = calloc(1, sizeof(*part));
	if (!part)
		return NULL;
	part->op = op;
	part->domain = d;
	TAILQ_INIT(&part->targets);
	SLIST_INSERT_HEAD(&op->parts, part, of_op);
	d->chosen_by = op->id;
	d->chosen_part = part;
	broker_part_begin(part);
	return part;
}

static int target_choose(struct broker_op *op, struct broker_session *s)
{
	struct broker_target_body *body;
	struct broker_part *part = NULL;
	struct broker_target *t;

	if (s->chosen_by == op->id)
		return 0;
	body = calloc(1, sizeof(*body));
	if (body && needs_round(op))
		part = part_of(op, s->domain);
	if (!body || (!part && needs_round(op))) {
		free(body);
		return -ENOMEM;
	}
	s->chosen_by = op->id;
	t = target_add(op, s->peer.pid);
	t->session = s;
	t->uid = s->peer.uid;
	t->body = body;
	t->part = part;
	body->report = s->report;
	memcpy(body->domain, s->domain->name, sizeof(body->domain));
	memcpy(body->comm, s->comm, sizeof(body->comm));
	TAILQ_INSERT_TAIL(&s->targets, t, of_session);
	if (part)
		TAILQ_INSERT_TAIL(&part->targets, t, of_part);
	op->found++;
	return 0;
}

/* The sessions that the asker may touch, in a table that is sorted if pids are named. */
struct choice {
	struct broker_session *session;
	uint32_t number;
	int32_t pid;
};

static int choice_order(const void *one, const void *other)
{
	const struct choice *a = one, *b = other;

	if (a->pid != b->pid)
		return a->pid < b->pid ? -1 : 1;
	return a->number < b->number ? -1 : a->number > b->number;
}

static int choose_pid(struct broker_op *op, const struct choice *table, uint32_t n, int32_t pid)
{
	uint32_t low = 0, high = n;
	int r = 0;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (table[mid].pid < pid)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == n || table[low].pid != pid)
		broker_target_done(target_add(op, pid), -ESRCH);
	for (; r == 0 && low < n && table[low].pid == pid; low++)
		r = target_choose(op, table[low].session);
	return r;
}

static int choose_from(struct broker_op *op, struct choice *table, uint32_t n)
{
	int r = 0;

	op->targets = calloc(n + op->pid_count + 1, sizeof(*op->targets));
	op->finished = calloc(n + op->pid_count + 1, sizeof(*op->finished));
	if (!op->targets || !op->finished)
		return -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < n && op->ctl_flags & CORE_WIRE_CTL_ALL; i++)
		r = target_choose(op, table[i].session);
	if (op->pid_count > 0)
		qsort(table, n, sizeof(*table), choice_order);
	for (uint32_t i = 0; r == 0 && i < op->pid_count; i++)
		r = choose_pid(op, table, n, op->pids[i]);
	return r;
}

static int choose_targets(struct broker_op *op)
{
	const struct broker *b = op->asker->broker;
	struct choice *table = calloc(b->session_count + 1u, sizeof(*table));
	struct broker_session *s;
	uint32_t n = 0;
	int r;

	if (!table)
		return -ENOMEM;
	TAILQ_FOREACH(s, &b->sessions, link) {
		if (s->state != BROKER_SESSION_CLIENT ||
		    !broker_control_may_touch(op->asker, s->peer.uid))
			continue;
		table[n] = (struct choice){ .session = s, .number = n, .pid = s->peer.pid };
		n++;
	}
	r = choose_from(op, table, n);
	free(table);
	return r;
}

/* Running -------------------------------------------------------------------- */

static void op_start(struct broker_op *op)
{
	struct broker_session *asker = op->asker;
	uint32_t seq = op->seq;

	if (choose_targets(op) < 0) {
		op_free(op);
		send_end(asker, seq, -ENOMEM, 0);
		return;
	}
	for (uint32_t i = 0; i < op->target_count; i++) {
		struct broker_target *t = &op->targets[i];

		if (op->op == CORE_WIRE_OP_LIST)
			broker_target_done(t, 0);
		else if (!t->part && t->state == TARGET_IDLE)
			broker_target_want(t, op->op);
	}
	broker_op_dirty(op); /* it may have no targets at all */
}

static void op_give_up(struct broker_op *op)
{
	for (uint32_t i = 0; i < op->target_count; i++)
		broker_target_done(&op->targets[i], -ETIMEDOUT);
	op->deadline = op->asker->broker->now + op->asker->broker->config.request_timeout_usec;
}

/* Whose time is over; when the next one's is. */
static uint64_t ops_expire(struct broker *b)
{
	uint64_t again = BROKER_NEVER;
	struct broker_op *op = TAILQ_FIRST(&b->ops);

	while (op) {
		if (b->now < op->deadline) {
			if (op->deadline < again)
				again = op->deadline;
			op = TAILQ_NEXT(op, link);
		} else if (!op_complete(op)) {
			op_give_up(op);
		} else {
			broker_session_refuse(op->asker, op->seq, -ETIMEDOUT, "reads no answers");
			op = TAILQ_FIRST(&b->ops); /* others of that asker are gone, too */
		}
	}
	return again;
}

uint64_t broker_control_tick(struct broker *b)
{
	uint64_t again = broker_request_expire(b), of_ops = ops_expire(b);
	struct broker_op *op;

	do {
		while ((op = TAILQ_FIRST(&b->dirty)) != NULL) {
			TAILQ_REMOVE(&b->dirty, op, dirty_link);
			op->dirty = false;
			if (op_complete(op))
				op->deadline = b->now + b->config.request_timeout_usec;
			op_deliver(op);
		}
	} while (broker_request_step(b));
	/* What was asked or finished just now has a full time ahead of it. */
	if (b->now + b->config.request_timeout_usec < again)
		again = b->now + b->config.request_timeout_usec;
	if (TAILQ_EMPTY(&b->asked) && TAILQ_EMPTY(&b->ops))
		return BROKER_NEVER;
	return of_ops < again ? of_ops : again;
}

/* From sessions -------------------------------------------------------------- */

void broker_control_lost(struct broker_session *s)
{
	broker_quota_uncharge(s);
	broker_request_lost(s);
	while (!TAILQ_EMPTY(&s->ops))
		op_free(TAILQ_FIRST(&s->ops));
}

/* Root is not refused for what others have asked. */
static bool too_many_ops(const struct broker_session *s)
{
	uint32_t of_session = 0, of_uid = 0, of_users = 0;
	const struct broker_op *op;

	TAILQ_FOREACH(op, &s->broker->ops, link) {
		of_session += op->asker == s;
		of_uid += op->asker->peer.uid == s->peer.uid;
		of_users += op->asker->peer.uid != 0;
	}
	return of_session >= OPS_PER_SESSION_MAX || of_uid >= OPS_PER_UID_MAX ||
	       (s->peer.uid != 0 && of_users >= OPS_MAX);
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
	broker_pause_note(b, s->peer.uid, ctl->op, ctl->flags);
	op->asker = s;
	op->id = ++b->last_op_id;
	op->seq = ctl->h.seq;
	op->op = ctl->op;
	op->deadline = b->now + PATIENCE * b->config.request_timeout_usec;
	op->ctl_flags = ctl->flags;
	op->pid_count = ctl->count;
	memcpy(op->pids, ctl->pid, ctl->count * sizeof(op->pids[0]));
	SLIST_INIT(&op->parts);
	TAILQ_INSERT_TAIL(&s->ops, op, of_asker);
	TAILQ_INSERT_TAIL(&b->ops, op, link);
	op_start(op);
}
