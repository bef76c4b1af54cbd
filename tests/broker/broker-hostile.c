/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Hostile peers (I4): each of them is dropped, alone, while a well-behaved client
 * goes on being served, and the daemon leaks no descriptor over it. If this fails,
 * one client can take the broker away from all the others.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/store.h"
#include "sys/sys.h"

static struct bt_daemon daemon_under_test;
static struct bt_client good;

static int start(void **state)
{
	bt_daemon_start(&daemon_under_test, NULL);
	bt_open(&good, &daemon_under_test, "default");
	bt_check_served(&good, 1);
	return 0;
}

static int stop(void **state)
{
	bt_close(&good);
	bt_daemon_stop(&daemon_under_test);
	return 0;
}

/* After each test: still alive, still serving, nothing left open. */
static unsigned fds_before;

static int before(void **state)
{
	fds_before = bt_daemon_fds(&daemon_under_test);
	return 0;
}

static int after(void **state)
{
	static uint64_t salt = 1000;

	bt_check_served(&good, ++salt);
	for (int i = 0; i < 200 && bt_daemon_fds(&daemon_under_test) > fds_before; i++)
		usleep(10000);
	return bt_daemon_fds(&daemon_under_test) > fds_before ? -1 : 0;
}

/* In state `open` (after HELLO) or not: send this, and be dropped. */
static void dropped_after(bool open, const void *packet, size_t bytes, const int *fds,
			  unsigned nfds)
{
	struct bt_client c;

	if (open)
		bt_open(&c, &daemon_under_test, "default");
	else
		bt_raw(&c, &daemon_under_test);
	bt_send_raw(&c, packet, bytes, fds, nfds);
	bt_expect_closed(&c);
	bt_close(&c);
}

static struct core_wire_hello hello_message(void)
{
	struct core_wire_hello m = { .role = CORE_WIRE_ROLE_CLIENT, .domain = "default",
				     .comm = "evil", .page_bytes = (uint32_t)sys_page_bytes() };

	core_wire_header_init(&m.h, CORE_WIRE_HELLO, sizeof(m), 1);
	return m;
}

static void test_version(void **state)
{
	struct core_wire_hello m = hello_message();
	struct bt_client c;

	m.h.version = 99;
	bt_raw(&c, &daemon_under_test);
	bt_send_raw(&c, &m, sizeof(m), NULL, 0);
	assert_int_equal(bt_expect_closed(&c), -EPROTONOSUPPORT);
	bt_close(&c);
	m = hello_message();
	m.page_bytes = 12345;
	bt_raw(&c, &daemon_under_test);
	bt_send_raw(&c, &m, sizeof(m), NULL, 0);
	assert_int_equal(bt_expect_closed(&c), -EINVAL);
	bt_close(&c);
}

static void test_garbage(void **state)
{
	unsigned char junk[CORE_WIRE_BYTES_MAX + 4096];
	struct core_wire_hello m = hello_message();
	uint32_t x = 7;

	for (size_t i = 0; i < sizeof(junk); i++)
		junk[i] = (unsigned char)((x = x * 1664525 + 1013904223) >> 24);
	for (size_t bytes = 1; bytes <= sizeof(junk); bytes = bytes * 3 + 1)
		dropped_after(bytes % 2, junk, bytes, NULL, 0);
	dropped_after(true, junk, sizeof(junk), NULL, 0);
	/* Right at the beginning, cut at every place. */
	for (size_t bytes = 1; bytes < sizeof(m); bytes += 13)
		dropped_after(false, &m, bytes, NULL, 0);
}

static void test_out_of_order(void **state)
{
	struct core_wire_submit submit = { .count = 1 };
	struct core_wire_hello hello = hello_message();
	struct core_wire_result result = { .report = { .error = 0 } };
	struct core_wire_ctl ctl = { .op = CORE_WIRE_OP_STATS, .flags = CORE_WIRE_CTL_ALL };
	struct core_wire_slots slots = { .count = 0 };
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, 1);

	core_wire_header_init(&submit.h, CORE_WIRE_SUBMIT, bytes, 1);
	dropped_after(false, &submit, bytes, NULL, 0); /* before HELLO */
	dropped_after(true, &hello, sizeof(hello), NULL, 0); /* HELLO twice */
	core_wire_header_init(&result.h, CORE_WIRE_RESULT, sizeof(result), 77);
	dropped_after(true, &result, sizeof(result), NULL, 0); /* nobody asked */
	bytes = (uint32_t)core_wire_bytes(CORE_WIRE_CTL, 0);
	core_wire_header_init(&ctl.h, CORE_WIRE_CTL, bytes, 1);
	dropped_after(true, &ctl, bytes, NULL, 0); /* from a client */
	bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SLOTS, 0);
	core_wire_header_init(&slots.h, CORE_WIRE_SLOTS, bytes, 1);
	dropped_after(true, &slots, bytes, NULL, 0); /* the wrong way round */
}

static void test_control_as_client(void **state)
{
	struct core_wire_submit m = { .count = 1 };
	struct bt_client c;

	bt_control(&c, &daemon_under_test);
	bt_send(&c, &m, CORE_WIRE_SUBMIT, 1);
	assert_int_equal(bt_expect_closed(&c), -EPROTO);
	bt_close(&c);
}

static void test_bad_numbers(void **state)
{
	struct core_wire_submit submit = { .count = 2 };
	struct core_wire_tags tags = { .count = 1 };
	struct bt_client c;
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, 2);

	bt_open(&c, &daemon_under_test, "default");
	submit.ring_page[1] = (uint16_t)c.welcome.ring_pages;
	bt_send(&c, &submit, CORE_WIRE_SUBMIT, 2);
	assert_int_equal(bt_expect_closed(&c), -EINVAL);
	bt_close(&c);
	submit.count = UINT32_MAX;
	core_wire_header_init(&submit.h, CORE_WIRE_SUBMIT, bytes, 1);
	dropped_after(true, &submit, bytes, NULL, 0);
	submit.count = 3; /* more than come */
	dropped_after(true, &submit, bytes, NULL, 0);
	tags.count = CORE_WIRE_TAGS_MAX + 1;
	core_wire_header_init(&tags.h, CORE_WIRE_TAGS, sizeof(tags), 1);
	dropped_after(true, &tags, sizeof(tags), NULL, 0);
}

/* Names that are none; a domain that looks into a path. */
static void test_bad_names(void **state)
{
	static const char *const names[] = { "", "a/b", "..\n", "\xff\xfe", " " };
	struct core_wire_hello m = hello_message();

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		memset(m.domain, 0, sizeof(m.domain));
		strcpy(m.domain, names[i]);
		dropped_after(false, &m, sizeof(m), NULL, 0);
	}
	memset(m.domain, 'a', sizeof(m.domain)); /* without an end */
	dropped_after(false, &m, sizeof(m), NULL, 0);
}

static void test_fds(void **state)
{
	struct core_wire_hello hello = hello_message();
	struct core_wire_segment offer = { .slots = BROKER_SEGMENT_SLOTS };
	struct core_wire_segment get = { .segment = 0 };
	int fds[200];

	for (unsigned i = 0; i < 200; i++)
		fds[i] = i % 2 ? memfd_create("x", MFD_CLOEXEC) : eventfd(0, EFD_CLOEXEC);
	core_wire_header_init(&offer.h, CORE_WIRE_OFFER, sizeof(offer), 1);
	core_wire_header_init(&get.h, CORE_WIRE_SEGMENT_GET, sizeof(get), 1);
	dropped_after(false, &hello, sizeof(hello), fds, 1);   /* fds where none belong */
	dropped_after(true, &get, sizeof(get), fds, 200);
	dropped_after(true, &offer, sizeof(offer), NULL, 0);   /* none where one belongs */
	dropped_after(true, &offer, sizeof(offer), fds, 1);    /* an eventfd */
	dropped_after(true, &offer, sizeof(offer), fds + 1, 1); /* an empty memfd */
	dropped_after(true, &offer, sizeof(offer), fds, 200);  /* too many */
	dropped_after(true, &offer, sizeof(offer) - 1, fds, 200);
	for (unsigned i = 0; i < 200; i++)
		close(fds[i]);
}

/* More fds in flight than ever read: sender goes away. */
static void test_go_away(void **state)
{
	struct core_wire_submit m = { .count = CORE_WIRE_SUBMIT_MAX };

	for (unsigned i = 0; i < 50; i++) {
		struct bt_client c;

		bt_open(&c, &daemon_under_test, "default");
		bt_send(&c, &m, CORE_WIRE_SUBMIT, CORE_WIRE_SUBMIT_MAX);
		bt_close(&c);
	}
}

/* Send until the broker takes no more for a while. */
static void stuff(const struct bt_client *c, const void *packet, uint32_t bytes)
{
	for (unsigned full = 0; full < 20;) {
		if (sys->send_msg(c->fd, packet, bytes, NULL, 0, MSG_DONTWAIT) > 0) {
			full = 0;
		} else {
			full++;
			usleep(10000);
		}
	}
}

/*
 * Asks and asks, and never reads: its questions are left where they are, and it is
 * dropped when nothing has moved for the time of a request.
 */
static void never_reads(const void *packet, uint32_t bytes)
{
	static const char *const args[] = { "--request-timeout", "1", NULL };
	struct pollfd p = { .events = POLLRDHUP };
	struct bt_client c, other;
	struct bt_daemon d;
	unsigned fds;

	bt_daemon_start(&d, args);
	bt_open(&c, &d, "default");
	bt_open(&other, &d, "default");
	bt_check_served(&other, 1);
	fds = bt_daemon_fds(&d);
	stuff(&c, packet, bytes);
	bt_check_served(&other, 2);
	assert_in_range(bt_daemon_fds(&d), 0, fds + 4); /* answers do not pile up */
	p.fd = c.fd;
	assert_int_equal(poll(&p, 1, BT_WAIT_MSEC), 1);
	assert_true(p.revents & POLLRDHUP);
	bt_check_served(&other, 3);
	bt_close(&c);
	bt_close(&other);
	bt_daemon_stop(&d);
}

static void test_not_reading(void **state)
{
	struct core_wire_submit m = { .count = 1 };
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, 1);

	core_wire_header_init(&m.h, CORE_WIRE_SUBMIT, bytes, 1);
	never_reads(&m, bytes);
}

/* The same with files in the answers. */
static void test_not_reading_segments(void **state)
{
	struct core_wire_segment m = { .segment = 0 };

	core_wire_header_init(&m.h, CORE_WIRE_SEGMENT_GET, sizeof(m), 1);
	never_reads(&m, sizeof(m));
}

/* Reads late, but reads: every answer comes, in order. */
static void test_reading_late(void **state)
{
	struct core_wire_submit m = { .count = 1 };
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, 1), sent = 0;
	struct bt_client c;

	bt_open(&c, &daemon_under_test, "default");
	core_wire_header_init(&m.h, CORE_WIRE_SUBMIT, bytes, 0);
	while (sent < 100000 && sys->send_msg(c.fd, &m, bytes, NULL, 0, MSG_DONTWAIT) > 0)
		m.h.seq = ++sent;
	for (uint32_t i = 0; i < sent; i++) {
		const struct core_wire_slots *answer = bt_expect(&c, CORE_WIRE_SLOTS);

		assert_int_equal(answer->h.seq, i);
	}
	bt_close(&c);
}

/* Floods of the most expensive messages: everybody else still has a turn. */
static void test_flood(void **state)
{
	static struct core_wire_submit m = { .count = CORE_WIRE_SUBMIT_MAX };
	uint32_t bytes = (uint32_t)core_wire_bytes(CORE_WIRE_SUBMIT, CORE_WIRE_SUBMIT_MAX);
	struct bt_client flood[4];
	unsigned served = 0;

	core_wire_header_init(&m.h, CORE_WIRE_SUBMIT, bytes, 1);
	for (unsigned i = 0; i < 4; i++)
		bt_open(&flood[i], &daemon_under_test, "default");
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 4; i++) {
			while (sys->send_msg(flood[i].fd, &m, bytes, NULL, 0, MSG_DONTWAIT) > 0)
				;
			while (bt_receive(&flood[i], 0) > 0)
				;
		}
		bt_check_served(&good, 3000 + round);
		served++;
	}
	assert_int_equal(served, 20);
	for (unsigned i = 0; i < 4; i++)
		bt_close(&flood[i]);
}

/* Many connections that say nothing. */
static void test_silent_connections(void **state)
{
	int fds[300];
	struct bt_client c;

	for (unsigned i = 0; i < 300; i++)
		fds[i] = bt_connect(&daemon_under_test);
	bt_open(&c, &daemon_under_test, "default");
	bt_check_served(&c, 5);
	bt_close(&c);
	for (unsigned i = 0; i < 300; i++)
		close(fds[i]);
}

/* Holes in the ring, a new size for it: the broker must not fault. */
static void test_ring_tricks(void **state)
{
	struct core_wire_submit m = { .count = CORE_WIRE_SUBMIT_MAX };
	struct bt_client c;
	size_t bytes;

	bt_open(&c, &daemon_under_test, "default");
	bytes = c.welcome.ring_pages * sys_page_bytes();
	assert_int_equal(ftruncate(c.fds[2], 0), -1);
	fallocate(c.fds[2], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes);
	madvise(c.ring, bytes, MADV_REMOVE);
	mprotect(c.ring, bytes, PROT_NONE);
	for (unsigned i = 0; i < CORE_WIRE_SUBMIT_MAX; i++)
		m.ring_page[i] = (uint16_t)(i % c.welcome.ring_pages);
	bt_send(&c, &m, CORE_WIRE_SUBMIT, CORE_WIRE_SUBMIT_MAX);
	bt_expect(&c, CORE_WIRE_SLOTS);
	bt_close(&c);
}

static void test_counted(void **state)
{
	struct core_wire_ctl_end before_end, end;
	struct bt_client control;

	bt_control(&control, &daemon_under_test);
	bt_stats_end(&control, &before_end);
	dropped_after(true, "junk", 4, NULL, 0);
	bt_stats_end(&control, &end);
	assert_int_equal(end.dropped_clients, before_end.dropped_clients + 1);
	assert_int_equal(end.sessions, 1);
	bt_close(&control);
}

#define HOSTILE(test) cmocka_unit_test_setup_teardown(test, before, after)

int main(void)
{
	const struct CMUnitTest tests[] = {
		HOSTILE(test_version),		 HOSTILE(test_garbage),
		HOSTILE(test_out_of_order),	 HOSTILE(test_control_as_client),
		HOSTILE(test_bad_numbers),	 HOSTILE(test_bad_names),
		HOSTILE(test_fds),		 HOSTILE(test_go_away),
		HOSTILE(test_not_reading),	 HOSTILE(test_not_reading_segments),
		HOSTILE(test_flood),		 HOSTILE(test_silent_connections),
		HOSTILE(test_ring_tricks),	 HOSTILE(test_counted),
		HOSTILE(test_reading_late),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
