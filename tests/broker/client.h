/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A scripted client and a daemon to talk to, for the tests of the broker. Every
 * wait has an end: a broker that stays silent fails the test, it does not hang it.
 */
#ifndef SAMEPAGE_TESTS_BROKER_CLIENT_H
#define SAMEPAGE_TESTS_BROKER_CLIENT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#include "core/index.h"
#include "core/wire.h"

#define BT_WAIT_MSEC 20000
#define BT_ARGS_MAX 24

struct bt_daemon {
	pid_t pid;
	char dir[64];
	char path[96];
};

/* Start $SAMEPAGED with more arguments (NULL-terminated) and environment "NAME=value". */
int bt_daemon_try(struct bt_daemon *d, const char *const *args, const char *environment);
void bt_daemon_start(struct bt_daemon *d, const char *const *args);
/* The same socket again, after it ended. */
void bt_daemon_restart(struct bt_daemon *d, const char *const *args);
bool bt_daemon_alive(const struct bt_daemon *d);
/* wait(2) status; -1: it did not end in time (then it is killed). */
int bt_daemon_wait(struct bt_daemon *d);
void bt_daemon_stop(struct bt_daemon *d); /* SIGTERM, and must exit with 0 */
void bt_daemon_clean(struct bt_daemon *d);
unsigned bt_daemon_fds(const struct bt_daemon *d);

struct bt_client {
	int fd;
	uint32_t seq;
	struct core_wire_welcome welcome;
	int fds[CORE_WIRE_FDS_MAX];
	unsigned nfds;
	uint8_t *ring;
	void *index_map;
	struct core_index index;
	_Alignas(8) unsigned char packet[CORE_WIRE_BYTES_MAX]; /* the last received */
	int packet_fds[CORE_WIRE_FDS_MAX];
	unsigned packet_nfds;
};

int bt_connect(const struct bt_daemon *d);
void bt_raw(struct bt_client *c, const struct bt_daemon *d); /* connected, no HELLO */
/* 0, or the error of the broker's answer; -ECONNRESET when it only closed. */
int bt_hello(struct bt_client *c, uint32_t role, const char *domain, uint32_t flags);
void bt_open(struct bt_client *c, const struct bt_daemon *d, const char *domain);
void bt_control(struct bt_client *c, const struct bt_daemon *d);
void bt_close(struct bt_client *c);

/* Fills in the header; the payload stands in message behind it. Returns the seq. */
uint32_t bt_send(struct bt_client *c, void *message, uint16_t type, uint32_t count);
int bt_send_raw(struct bt_client *c, const void *packet, size_t bytes, const int *fds,
		unsigned nfds);
/* Receive one packet into c->packet: its type, 0 at the end, -ETIMEDOUT. */
int bt_receive(struct bt_client *c, int msec);
/* Receive, and it must be this. */
const void *bt_expect(struct bt_client *c, uint16_t type);
/* The broker closed the connection, perhaps after an ERROR, which is returned (or 0). */
int bt_expect_closed(struct bt_client *c);

/* Page number n of a sequence that differs by salt. */
void bt_fill(uint8_t *page, uint64_t salt, uint64_t n);
/* Promote pages salt:first.. salt:first+count-1; slots and reasons are returned. */
void bt_promote(struct bt_client *c, uint64_t salt, uint64_t first, unsigned count,
		uint32_t *slot, uint8_t *reason);
/* A segment's fd, or -errno as the broker said. */
int bt_segment(struct bt_client *c, uint32_t segment);
/* The bytes of the slot are page salt:n? */
bool bt_slot_is(struct bt_client *c, uint32_t slot, uint64_t salt, uint64_t n);
/* A whole round trip works and gives right answers. */
void bt_check_served(struct bt_client *c, uint64_t salt);

void bt_ctl(struct bt_client *c, uint32_t op, uint32_t flags, const int32_t *pids,
	    uint32_t count);
/* Answer the REQUEST in c->packet. */
void bt_answer(struct bt_client *c, int32_t error, uint64_t mark);
/* The next packet must be a REQUEST for this op. */
void bt_expect_request(struct bt_client *c, uint32_t op);
void bt_stats_end(struct bt_client *control, struct core_wire_ctl_end *end);

#endif
