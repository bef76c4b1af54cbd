/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The daemon: what its files share. docs/protocol.md tells what peers see.
 *
 * One thread, one epoll set. A session is one connection:
 *
 *   greeting  accepted; HELLO must come before a deadline
 *   client    welcomed: SUBMIT, SEGMENT_GET, TAGS, RESULT, OFFER
 *   control   welcomed: CTL
 *   doomed    fd given to be closed, nothing refers to it any more; freed at the end of the
 *             round, because the round's events may still name it
 *
 * A domain is (uid, security label, name): the first two from the kernel, so a
 * name that somebody else uses as well leads to another domain (I7). It lives as
 * long as a client session is in it, and `linger` beyond, and as long as somebody
 * without a session still has a segment of it: what a user holds stays charged.
 *
 * No peer can make the broker wait (I4): sockets are non-blocking, output is
 * queued up to a bound, and while there is any the session is not read from;
 * whoever lets it overflow, or lie for too long, is dropped; each session gets
 * one quantum of work per round; memory that is shared with a client is sealed
 * against truncation; connections and fds from clients are closed where what is
 * behind them cannot hold the loop up (undertaker.c).
 */
#ifndef SAMEPAGE_BROKER_BROKER_H
#define SAMEPAGE_BROKER_BROKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "broker/store.h"
#include "core/wire.h"
#include "sys/paths.h"
#include "sys/sys.h"

#define BROKER_RING_PAGES 512u
#define BROKER_SECOND_USEC UINT64_C(1000000)
#define BROKER_NEVER UINT64_MAX
#define BROKER_LEND_ALL (-1)  /* /dev/userfaultfd to whoever asks */
#define BROKER_LEND_NONE (-2) /* to root only */

struct broker_config {
	char socket_path[SYS_PATH_BYTES];
	uint64_t store_max_slots;   /* of one user, over all domains */
	uint64_t store_total_slots; /* of all users */
	uint64_t client_max_slots;  /* new ones, per process and domain */
	uint64_t cand_max_pages;   /* per domain */
	uint64_t trim_interval_usec;
	uint64_t linger_usec;
	uint64_t idle_exit_usec;   /* BROKER_NEVER: stay */
	uint64_t request_timeout_usec;
	uint64_t hello_timeout_usec;
	uint32_t sessions_max;
	uint32_t sessions_per_uid_max;
	uint32_t domains_per_uid_max;
	int64_t socket_gid;        /* -1: the socket is for everybody */
	int64_t lend_gid;          /* BROKER_LEND_*, or a group */
	struct core_scan_config scan; /* for clients */
	int listen_fd; /* -1, or from the service manager */
	int ready_fd;  /* -1, or to be told */
	bool on_demand;
};

enum broker_session_state {
	BROKER_SESSION_GREETING,
	BROKER_SESSION_CLIENT,
	BROKER_SESSION_CONTROL,
	BROKER_SESSION_DOOMED,
};

struct broker;
struct broker_op;
TAILQ_HEAD(broker_target_list, broker_target);
TAILQ_HEAD(broker_part_list, broker_part);

/* Of a user, for the scanners in all of the user's processes (pause.c). */
enum broker_word {
	BROKER_WORD_NONE,
	BROKER_WORD_PAUSE,
	BROKER_WORD_RESUME,
};

/* What a user has in all domains together; lives as long as one of them (quota.c). */
struct broker_user {
	TAILQ_ENTRY(broker_user) link;
	uid_t uid;
	uint32_t domains;
	enum broker_word word;
	uint64_t slots;
	uint64_t fds;
};

/* What one process put into a domain; outlives its sessions (quota.c). */
struct broker_charge {
	TAILQ_ENTRY(broker_charge) link;
	struct broker_domain *domain;
	pid_t pid;
	uint32_t sessions;
	uint64_t new_slots; /* charged against client_max_slots */
};

struct broker_domain {
	TAILQ_ENTRY(broker_domain) link;
	uid_t uid;
	char label[64];
	char name[CORE_WIRE_NAME_BYTES];
	uint64_t layout_seed;
	struct broker_store *store; /* NULL until the first client */
	uint32_t clients;
	uint64_t free_at;    /* BROKER_NEVER while there are clients */
	uint64_t trim_at;
	uint64_t trimmed_at;
	uint64_t rest_at;    /* the store's working memory goes; BROKER_NEVER: there is none */
	uint64_t collect_at; /* BROKER_NEVER: no trim is under way */
	struct broker_user *user;
	uint64_t slots, fds; /* as they are counted in user */
	TAILQ_HEAD(, broker_charge) charges;
	uint32_t charge_count;
	struct broker_part_list rounds; /* in line for a candidate round; the first has it */
	struct broker_part *chosen_part; /* of operation chosen_by */
	uint64_t chosen_by;
};

/* One packet under way to a peer. */
struct broker_packet {
	STAILQ_ENTRY(broker_packet) link;
	uint32_t bytes;
	uint32_t nfds;
	uint32_t owned_fds; /* bit i: close fds[i] after sending */
	int fds[CORE_WIRE_FDS_MAX];
	unsigned char data[];
};

struct broker_session {
	TAILQ_ENTRY(broker_session) link;
	struct broker *broker;
	enum broker_session_state state;
	int fd;
	uint32_t epoll_events;
	uint32_t hello_seq;
	struct sys_peer peer;
	char comm[CORE_WIRE_NAME_BYTES];
	uint64_t hello_deadline;

	STAILQ_HEAD(, broker_packet) out;
	uint32_t out_packets;
	size_t out_bytes;
	uint64_t out_moved_at;  /* when something went out last, or the first came in */

	/* clients */
	struct broker_domain *domain;
	const uint8_t *ring;
	struct broker_charge *charge;
	uint64_t offered_slots;
	int offer_fd;           /* -1, or waiting its turn: nothing is read meanwhile */
	TAILQ_ENTRY(broker_session) offer_link;
	struct core_wire_report report; /* the last one */
	unsigned standing_who;    /* its number in the scanners' table; 0: none yet */
	uint64_t standing_round;  /* of the scanners' table, and how many it has reported in it */
	uint64_t standing_tags;
	uint64_t standing_from;   /* ... and since then: so many at most in a minute */
	uint64_t standing_taken;

	/* requests of ours (request.c) */
	bool owes;              /* the one REQUEST under way is unanswered */
	bool silent;            /* ... and out of time */
	bool askable;           /* in broker->askable */
	uint32_t asked_seq;
	uint32_t late_op;       /* CORE_WIRE_OP_*, 0: none; missed while it was silent */
	uint64_t asked_until;
	struct broker_target *asked; /* NULL: nobody waits for the answer */
	struct broker_target_list targets; /* all that name it and are not done */
	struct broker_target_list wanting; /* of them: in line to ask it */
	TAILQ_ENTRY(broker_session) asked_link, askable_link;
	uint64_t chosen_by;     /* id of the operation that chose it last */

	/* control */
	TAILQ_HEAD(, broker_op) ops;
};

TAILQ_HEAD(broker_session_list, broker_session);
TAILQ_HEAD(broker_op_list, broker_op);

struct broker {
	struct broker_config config;
	int ep;
	int listen_fd;
	int signal_fd;
	int uffd_fd;         /* -1, or /dev/userfaultfd, lent to clients */
	int64_t overflow_uid;
	bool stop;
	bool paused;         /* all scanners, but of users who have said otherwise */
	bool socket_made;
	struct stat socket_file; /* then: what it was when we made it */
	struct broker_session_list sessions, doomed, offers;
	uint32_t session_count;
	uint32_t greeting_count;
	uint32_t stuck_count;       /* sessions that have packets queued */
	TAILQ_HEAD(, broker_domain) domains;
	TAILQ_HEAD(, broker_user) users;
	uint64_t slots, fds;        /* of all users' domains */
	uint64_t fds_max;           /* ... at most */
	struct broker_op_list ops;  /* all, oldest first */
	struct broker_op_list dirty; /* of them: something to deliver */
	struct broker_part_list ready; /* to take their next step */
	TAILQ_HEAD(, broker_session) asked;   /* owe an answer, not silent; by asked_until */
	TAILQ_HEAD(, broker_session) askable; /* owe none, and somebody wants one */
	uint64_t last_op_id;
	uint32_t last_request_seq;
	uint64_t dropped_clients;
	uint64_t forged_reports;
	uint64_t idle_since;        /* BROKER_NEVER: there are sessions */
	uint64_t accept_again_at;   /* BROKER_NEVER: accepting */
	uint64_t now;               /* of this round */
};

/* broker.c: 0 or -errno; run returns when told to stop. */
int broker_new(struct broker **out, const struct broker_config *config);
int broker_run(struct broker *b);
void broker_free(struct broker *b);

/* session.c */
void broker_session_accept(struct broker *b, int fd);
void broker_session_event(struct broker_session *s, uint32_t events);
/* Safe at any moment, any number of times. */
void broker_session_drop(struct broker_session *s);
/* For what a well-behaved peer never does: counted, told (error < 0) and logged. */
void broker_session_refuse(struct broker_session *s, uint32_t seq, int error, const char *text);
void broker_session_watch(struct broker_session *s);

/* client.c: messages of clients. The packet has passed core_wire_check(). */
size_t broker_client_ring_span(void); /* bytes of a session's mapping of its ring */
void broker_client_hello(struct broker_session *s, const struct core_wire_hello *hello);
void broker_client_message(struct broker_session *s, const void *packet, int fd);
/* It goes: what it reported is of nobody any more. */
void broker_client_standing_gone(struct broker_session *s);
/* Adopt what the first in line offers. */
void broker_client_adopt_one(struct broker *b);

/* packet.c */
/* Bytes; 0: the end; -EAGAIN; other -errno: drop. *fd: -1, or a memfd, the caller's. */
ssize_t broker_packet_receive(struct broker_session *s, void *buf, int *fd);
/* Takes over owned fds in any case. A peer that lets its queue overflow is dropped. */
void broker_packet_send(struct broker_session *s, const void *packet, uint32_t bytes,
			const int *fds, uint32_t nfds, uint32_t owned_fds);
void broker_packet_send_error(struct broker_session *s, uint32_t seq, int error, const char *text);
/* 0: all sent or the socket is full; -errno: the peer is lost. */
int broker_packet_flush(struct broker_session *s);
void broker_packet_discard(struct broker_session *s);

/* domain.c */
/* -EDQUOT, -ENOMEM. with_store: make sure that there is one. */
int broker_domain_get(struct broker *b, const struct sys_peer *peer, const char *name,
		      bool with_store, struct broker_domain **out);
void broker_domain_enter(struct broker_domain *d);
void broker_domain_leave(struct broker *b, struct broker_domain *d);
/* After a submission: is the quota so nearly used up that a trim is due? */
void broker_domain_check_room(struct broker *b, struct broker_domain *d);
/* What is due now; returns when to come again. */
uint64_t broker_domain_tick(struct broker *b);
void broker_domain_free_all(struct broker *b);

/* quota.c */
void broker_quota_start(struct broker *b); /* limits are raised */
/* Text: why the user may not have another domain; NULL: may. */
const char *broker_quota_domain(struct broker *b, uid_t uid);
int broker_quota_join(struct broker *b, struct broker_domain *d); /* -ENOMEM */
void broker_quota_leave(struct broker *b, struct broker_domain *d);
/* The domain's store has grown or shrunk. */
void broker_quota_update(struct broker *b, struct broker_domain *d);
/* Slots that d may still get. */
uint64_t broker_quota_room(const struct broker *b, const struct broker_domain *d);
/* ... and from this session. */
uint64_t broker_quota_session_room(const struct broker_session *s);
int broker_quota_charge(struct broker_session *s); /* joins s->domain; -ENOMEM */
void broker_quota_uncharge(struct broker_session *s);
void broker_quota_scale(struct broker_domain *d, double left);

/* request.c: asking clients, for the operations of control.c. */
void broker_request_answer(struct broker_session *s, uint32_t seq,
			   struct core_wire_report *report);

/* control.c */
void broker_control_message(struct broker_session *s, const struct core_wire_ctl *ctl);
/* The session goes: as one that was asked, and as one that asks. */
void broker_control_lost(struct broker_session *s); /* ends its charge as well */
/* There may be room in its queue. */
void broker_control_deliver(struct broker_session *s);
uint64_t broker_control_tick(struct broker *b);
bool broker_control_may_touch(const struct broker_session *asker, uid_t uid);

/* pause.c */
/* Remember what this operation says about processes to come, if it does. */
void broker_pause_note(struct broker *b, uid_t asker, uint32_t op, uint32_t ctl_flags);
/* Do the domain's scanners rest? */
bool broker_pause_holds(const struct broker *b, const struct broker_domain *d);

/* report.c: the broker's own numbers. */
void broker_report_end(const struct broker_session *asker, struct core_wire_ctl_end *end);
/* Can a process on this machine have these numbers? */
bool broker_report_possible(const struct core_wire_report *r);

/* undertaker.c: close what may wait for somebody else. */
void broker_undertaker_take(int fd, uid_t uid);
void broker_undertaker_take_socket(int fd, uid_t uid); /* and shut it down now */
/* Not closed yet, of this user or of all. */
uint32_t broker_undertaker_count(uid_t uid, bool all);
/* Close nothing any more. False: threads are still at it. */
bool broker_undertaker_end(void);

/* log.c: one line; after a few of one kind in a short time only their number. */
enum broker_log_kind {
	BROKER_LOG_LIFE,
	BROKER_LOG_REFUSED,
	BROKER_LOG_QUOTA,
	BROKER_LOG_SYSTEM,
	BROKER_LOG_DOMAIN,
	BROKER_LOG_KINDS,
};
void broker_log(enum broker_log_kind kind, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* options.c, with the file of settings.c: 0 go on, 1 done (help, version), -1 wrong. */
int broker_options(struct broker_config *config, int argc, char **argv);

#endif
