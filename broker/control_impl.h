/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What control.c (operations) and request.c (asking for them) share.
 *
 * An operation has targets, one for each session (or stranger) that was chosen. Of
 * a MERGE or LOOK, the targets of one domain are a part. Nothing in here sends a
 * packet but broker_request_step() and the delivery of items: sending may drop a
 * session and with it operations, so all else only changes lists, which are worked
 * off once per round of the loop.
 */
#ifndef SAMEPAGE_BROKER_CONTROL_IMPL_H
#define SAMEPAGE_BROKER_CONTROL_IMPL_H

#include "broker/broker.h"

enum broker_target_state {
	TARGET_IDLE,    /* its part has nothing for it to do yet */
	TARGET_WANTING, /* in line in its session */
	TARGET_ASKED,
	TARGET_DONE,
};

/* What is known of a client; a stranger has none. */
struct broker_target_body {
	char domain[CORE_WIRE_NAME_BYTES];
	char comm[CORE_WIRE_NAME_BYTES];
	struct core_wire_report report;
};

struct broker_target {
	TAILQ_ENTRY(broker_target) of_session, wanting_link, of_part;
	struct broker_op *op;
	struct broker_part *part;       /* NULL: no round needed */
	struct broker_session *session; /* NULL once it is done */
	struct broker_target_body *body;
	enum broker_target_state state;
	int error; /* overrides the report's */
	int32_t pid;
	uint32_t uid;
	uint32_t what; /* to ask */
};

enum broker_part_phase {
	PART_WAITING, /* in line for the domain's round */
	PART_LOOKING,
	PART_MERGING,
	PART_ENDED,
};

struct broker_part {
	TAILQ_ENTRY(broker_part) line, ready_link;
	SLIST_ENTRY(broker_part) of_op;
	struct broker_op *op;
	struct broker_domain *domain;
	enum broker_part_phase phase;
	bool ready;
	uint32_t busy; /* targets WANTING or ASKED */
	struct broker_target_list targets;
};

struct broker_op {
	TAILQ_ENTRY(broker_op) link, dirty_link;
	TAILQ_ENTRY(broker_op) of_asker;
	struct broker_session *asker;
	uint64_t id;
	uint32_t seq;
	uint32_t op;
	bool dirty;
	uint64_t deadline; /* of everything, then of the asker to read */
	struct broker_target *targets;
	uint32_t target_count, found;
	uint32_t *finished; /* targets in the order in which they were done */
	uint32_t finished_count, delivered;
	SLIST_HEAD(, broker_part) parts;
	uint32_t ctl_flags, pid_count;
	int32_t pids[];
};

/* control.c */
void broker_op_dirty(struct broker_op *op);

/* request.c */
void broker_target_want(struct broker_target *t, uint32_t what);
/* error 0: its report stands. */
void broker_target_done(struct broker_target *t, int error);
void broker_part_begin(struct broker_part *part);
void broker_part_end(struct broker_part *part);
/* Ask whom there is to ask; true: something was done. */
bool broker_request_step(struct broker *b);
/* Who is out of time; when the next one is. */
uint64_t broker_request_expire(struct broker *b);
void broker_request_lost(struct broker_session *s);

#endif
