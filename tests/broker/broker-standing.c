/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The candidate table of scanners. If this fails, pages that two processes have are
 * never promoted, or promoted for tags of pages that are long gone; the table holds
 * memory that nobody uses; or one client keeps all scanners busy reporting (I4).
 */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/store.h"
#include "core/hash.h"
#include "sys/fault.h"
#include "world.h"

#define SECOND UINT64_C(1000000)
#define ME 1u /* a number, as a session has */
#define TAGS_OF_WORLD 110592u /* what store_of() gets has this room, at 75 % */

static uint32_t random_tag(uint32_t i)
{
	i = (i ^ (i >> 16)) * 0x85ebca6bu;
	i = (i ^ (i >> 13)) * 0xc2b2ae35u;
	return i ^ (i >> 16);
}

static const struct core_cand *standing(const struct world *w)
{
	return broker_store_standing_cand(w->st);
}

static uint64_t counter(const _Atomic uint64_t *c)
{
	return atomic_load(c);
}

static void report(struct world *w, uint32_t from, uint32_t n, uint64_t now)
{
	for (uint32_t i = from; i < from + n; i++) {
		uint32_t tag = random_tag(i);

		broker_store_standing(w->st, ME, &tag, 1, now);
	}
}

static off_t blocks(const struct world *w)
{
	struct stat about;

	assert_int_equal(fstat(broker_store_cand_fd(w->st), &about), 0);
	return about.st_blocks;
}

/* The store alone ------------------------------------------------------------ */

/* The tables know nothing of each other, and take memory as they fill. */
static void test_apart(void **state)
{
	const uint32_t round[] = { 5 << 2, 5 << 2 }, still[] = { 9 << 2 };
	struct world w;
	off_t at_first;

	world_new(&w, 1000);
	at_first = blocks(&w);
	assert_true(at_first * 512 <= (off_t)(4 * w.page));
	broker_store_tags(w.st, round, 2);
	broker_store_standing(w.st, ME, still, 1, SECOND);
	assert_int_equal(core_cand_count(standing(&w), round[0]), 0);
	assert_int_equal(core_cand_count(broker_store_cand(w.st), still[0]), 0);
	broker_store_round(w.st);
	assert_int_equal(core_cand_count(broker_store_cand(w.st), round[0]), 0);
	assert_int_equal(core_cand_count(standing(&w), still[0]), 1);
	assert_int_equal(stats_of(&w).standing, 1);
	report(&w, 0, 50000, SECOND);
	assert_true(blocks(&w) > at_first + 300);
	broker_store_standing_end(w.st);
	assert_true(blocks(&w) < at_first + 100);
	assert_int_equal(stats_of(&w).standing, 0);
	assert_int_equal(counter(&standing(&w)->header->round), 1);
	world_free(&w);
}

/* What is in the store, new or known, is no candidate any more. */
static void test_promoted(void **state)
{
	struct world w;
	uint32_t tag[3];

	world_new(&w, 1000);
	for (unsigned i = 0; i < 3; i++) {
		bt_fill(w.ring, 4, i);
		tag[i] = core_hash_tag(core_hash_page(w.ring, w.page, 11));
	}
	broker_store_standing(w.st, ME, tag, 3, SECOND);
	assert_int_equal(promote(&w, 4, 0, 2), 2);
	assert_int_equal(core_cand_count(standing(&w), tag[0]), 0);
	assert_int_equal(core_cand_count(standing(&w), tag[1]), 0);
	assert_int_equal(core_cand_count(standing(&w), tag[2]), 1);
	broker_store_standing(w.st, ME, tag, 1, SECOND); /* by who did not know yet */
	assert_int_equal(core_cand_count(standing(&w), tag[0]), 1);
	assert_int_equal(promote(&w, 4, 0, 1), 0);
	assert_int_equal(core_cand_count(standing(&w), tag[0]), 0);
	assert_int_equal(stats_of(&w).standing, 1);
	world_free(&w);
}

/* Crowded: renewed, but at a distance, which grows while it does not help. */
static void test_crowded(void **state)
{
	struct world w;
	uint64_t now = 1000 * SECOND, last = now, gap = 0;

	world_new(&w, 1000);
	report(&w, 0, TAGS_OF_WORLD + 70000, now);
	assert_int_equal(counter(&standing(&w)->header->round), 0);
	assert_true(core_cand_crowded(standing(&w)));
	for (uint32_t n = 1; n <= 6; n++) {
		while (counter(&standing(&w)->header->round) < n) {
			now += SECOND;
			report(&w, (uint32_t)now, 300000 / 50, now);
			assert_true(now < last + 3600 * SECOND);
		}
		assert_true(now - last >= 60 * SECOND && now - last >= gap);
		gap = now - last;
		last = now;
	}
	assert_in_range(gap, 600 * SECOND, 1000 * SECOND);
	/* A round that was long enough, and the patience is as at first. */
	now += 3600 * SECOND;
	report(&w, 7, 2 * TAGS_OF_WORLD, now);
	assert_true(counter(&standing(&w)->header->round) >= 7);
	last = counter(&standing(&w)->header->round);
	report(&w, 7, 2 * TAGS_OF_WORLD, now + 61 * SECOND);
	assert_int_equal(counter(&standing(&w)->header->round), last + 1);
	world_free(&w);
}

/* Tags of who is gone, and of pages that were, make a table old; a few do not. */
static void test_stale(void **state)
{
	struct world w;
	unsigned other;

	world_new(&w, 1000);
	assert_int_equal(broker_store_standing_join(w.st), ME);
	other = broker_store_standing_join(w.st);
	assert_int_not_equal(other, ME);
	report(&w, 0, 100, SECOND);
	broker_store_standing_leave(w.st, other, 100);
	report(&w, 100, 1, 100 * SECOND);
	assert_int_equal(counter(&standing(&w)->header->round), 0);
	report(&w, 200, 70000, 101 * SECOND); /* 100 settled, many more than that now */
	assert_int_equal(counter(&standing(&w)->header->round), 1);
	assert_int_equal(stats_of(&w).standing < 10000, true);
	report(&w, 0, 70000, 102 * SECOND);
	report(&w, 70000, 1, 300 * SECOND);
	report(&w, 70001, 1, 301 * SECOND);
	assert_int_equal(counter(&standing(&w)->header->round), 1);
	broker_store_standing_leave(w.st, broker_store_standing_join(w.st), 50000);
	report(&w, 70002, 1, 302 * SECOND);
	assert_int_equal(counter(&standing(&w)->header->round), 2);
	assert_int_equal(stats_of(&w).standing, 0);
	world_free(&w);
}

/*
 * A number is somebody else's only when nothing with it is in the table, which is swept
 * when many are to be had by that; and when there are none, some have the same.
 */
static void test_numbers(void **state)
{
	struct world w;
	uint32_t tag = random_tag(0);
	unsigned who;

	world_new(&w, 1000);
	assert_int_equal(broker_store_standing_join(w.st), ME);
	broker_store_standing(w.st, ME, &tag, 1, SECOND);
	for (unsigned i = 1; i < CORE_CAND_WHO_MAX; i++) {
		tag = random_tag(i);
		who = broker_store_standing_join(w.st);
		assert_int_not_equal(who, ME);
		broker_store_standing(w.st, who, &tag, 1, SECOND);
		assert_int_equal(core_cand_seen(standing(&w), tag, ME), CORE_CAND_OTHER);
		broker_store_standing_leave(w.st, who, 1);
		assert_int_equal(core_cand_seen(standing(&w), tag, ME), CORE_CAND_NOBODY);
		assert_int_equal(stats_of(&w).standing, i + 1);
	}
	who = broker_store_standing_join(w.st);
	assert_int_not_equal(who, ME);
	assert_int_equal(stats_of(&w).standing, 1);
	assert_int_equal(core_cand_seen(standing(&w), random_tag(0), ME), CORE_CAND_OWN);
	/* More sessions than numbers; and few are gone. */
	for (unsigned i = 0; i < 2 * CORE_CAND_WHO_MAX; i++)
		assert_in_range(broker_store_standing_join(w.st), 1, CORE_CAND_WHO_MAX);
	broker_store_standing_leave(w.st, who, 0);
	assert_int_equal(core_cand_seen(standing(&w), random_tag(0), ME), CORE_CAND_OWN);
	world_free(&w);
}

/* No memory for the table: tags are dropped, and nothing is touched (SIGBUS). */
static void test_no_memory(void **state)
{
	struct world w;
	off_t before;

	world_new(&w, 1000);
	before = blocks(&w);
	sys_fault_arm(SYS_FAULT_madvise, 1, ENOMEM, 1);
	report(&w, 0, 1, SECOND);
	sys_fault_reset();
	assert_int_equal(stats_of(&w).standing, 0);
	assert_int_equal(counter(&standing(&w)->header->dropped), 1);
	assert_int_equal(blocks(&w), before);
	report(&w, 0, 1, SECOND);
	assert_int_equal(core_cand_count(standing(&w), random_tag(0)), 1);
	world_free(&w);
}

/* Nor for a larger one: what is there stays, and it grows when there is some again. */
static void test_no_memory_to_grow(void **state)
{
	struct world w;
	uint32_t lost = 0;
	off_t before;

	world_new(&w, 1000);
	report(&w, 0, 13000, SECOND); /* of 16384 */
	assert_int_equal(core_cand_used(standing(&w)), CORE_CAND_ROW);
	before = blocks(&w);
	sys_fault_arm(SYS_FAULT_madvise, 1, ENOMEM, 0);
	report(&w, 13000, 2000, SECOND);
	sys_fault_reset();
	assert_int_equal(core_cand_used(standing(&w)), CORE_CAND_ROW);
	assert_int_equal(blocks(&w), before);
	report(&w, 15000, 25000, SECOND);
	assert_int_equal(core_cand_used(standing(&w)), 3 * CORE_CAND_ROW);
	for (uint32_t i = 0; i < 40000; i++)
		lost += core_cand_count(standing(&w), random_tag(i)) == 0;
	assert_true(lost <= counter(&standing(&w)->header->dropped));
	assert_true(lost < 400);
	world_free(&w);
}

/* The kernel keeps the memory: cleared all the same. */
static void test_not_given_back(void **state)
{
	struct world w;

	world_new(&w, 1000);
	report(&w, 0, 5000, SECOND);
	sys_fault_arm(SYS_FAULT_madvise, 1, EINVAL, 0);
	broker_store_standing_end(w.st);
	sys_fault_reset();
	for (uint32_t i = 0; i < 5000; i++)
		assert_int_equal(core_cand_count(standing(&w), random_tag(i)), 0);
	report(&w, 0, 5000, SECOND);
	assert_int_equal(stats_of(&w).standing, 5000);
	world_free(&w);
}

/* With a daemon -------------------------------------------------------------- */

static struct bt_daemon daemon_under_test;
static struct bt_client control, a, b;

static int start(void **state)
{
	bt_daemon_start(&daemon_under_test, NULL);
	bt_control(&control, &daemon_under_test);
	bt_open(&a, &daemon_under_test, "default");
	bt_open(&b, &daemon_under_test, "default");
	return 0;
}

static int stop(void **state)
{
	bt_close(&control);
	bt_close(&a);
	bt_close(&b);
	bt_daemon_stop(&daemon_under_test);
	return 0;
}

static void send_tags(struct bt_client *c, uint32_t flags, uint32_t from, uint32_t n)
{
	struct core_wire_tags m = { .flags = flags };

	for (uint32_t i = from; i < from + n; i++) {
		m.tag[m.count++] = random_tag(i);
		if (m.count == CORE_WIRE_TAGS_MAX || i + 1 == from + n) {
			bt_send(c, &m, CORE_WIRE_TAGS, m.count);
			m.count = 0;
		}
	}
}

/* The table as this client has it mapped; bt_check_served() is a round trip before. */
static void *table(struct bt_client *c, struct core_cand *ct)
{
	size_t one = c->welcome.cand_bytes;
	uint8_t *map = mmap(NULL, 2 * one, PROT_READ, MAP_SHARED, c->fds[1], 0);

	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(core_cand_attach(ct, map + one, one), 0);
	return map;
}

static void test_seen_by_others(void **state)
{
	struct core_wire_ctl_end end;
	struct bt_client other;
	struct core_cand ct;
	uint64_t twins;
	void *map = table(&b, &ct);

	bt_open(&other, &daemon_under_test, "other");
	assert_int_not_equal(a.welcome.who, b.welcome.who);
	send_tags(&a, CORE_WIRE_TAGS_STANDING, 1, 3);
	send_tags(&a, 0, 100, 1);
	send_tags(&other, CORE_WIRE_TAGS_STANDING, 200, 1);
	bt_check_served(&a, 1);
	bt_check_served(&other, 1);
	assert_int_equal(core_cand_count(&ct, random_tag(1)), 1);
	assert_int_equal(core_cand_count(&ct, random_tag(100)), 0); /* of a round */
	assert_int_equal(core_cand_count(&ct, random_tag(200)), 0); /* I7 */
	bt_stats_end(&control, &end);
	assert_int_equal(end.standing, 4);
	assert_int_equal(end.candidates, 1);
	twins = atomic_load(&ct.header->twins);
	/* Meant for another round: said again in this one, it would count twice. */
	send_tags(&a, CORE_WIRE_TAGS_STANDING | 7u << CORE_WIRE_TAGS_ROUND_SHIFT, 1, 3);
	bt_check_served(&a, 1);
	assert_int_equal(atomic_load(&ct.header->twins), twins);
	assert_int_equal(core_cand_count(&ct, random_tag(1)), 1);
	send_tags(&b, CORE_WIRE_TAGS_STANDING, 1, 1);
	bt_check_served(&b, 1);
	assert_int_equal(atomic_load(&ct.header->twins), twins + 1);
	assert_int_equal(core_cand_count(&ct, random_tag(1)), 2);
	bt_close(&other);
	munmap(map, 2 * b.welcome.cand_bytes);
}

/* When the last client is gone, so are its fingerprints, and their memory. */
static void test_last_leaves(void **state)
{
	struct core_wire_ctl_end before, end;
	struct bt_client c;
	struct core_cand ct;
	void *map;

	bt_stats_end(&control, &before);
	bt_open(&c, &daemon_under_test, "lonely");
	map = table(&c, &ct);
	send_tags(&c, CORE_WIRE_TAGS_STANDING, 0, 5000);
	bt_check_served(&c, 1);
	assert_int_equal(atomic_load(&ct.header->entries), 5000);
	bt_close(&c);
	for (int i = 0; i < 200; i++) {
		bt_stats_end(&control, &end);
		if (end.standing == before.standing)
			break;
		usleep(10000);
	}
	assert_int_equal(end.standing, before.standing);
	assert_int_equal(atomic_load(&ct.header->round), 1);
	munmap(map, (size_t)((uint8_t *)ct.header - (uint8_t *)map) * 2);
}

/*
 * One that says whatever comes to its mind: the table keeps its size and its round, one
 * session fills it once at most, and who else is there goes on being served.
 */
static void test_flood(void **state)
{
	struct core_wire_ctl_end end;
	struct core_cand ct;
	void *map = table(&b, &ct);
	uint64_t round = atomic_load(&ct.header->round), room;
	off_t bytes = (off_t)b.welcome.cand_bytes;
	struct stat about;

	room = (uint64_t)ct.buckets * CORE_CAND_WAYS;
	for (uint32_t i = 0; i < 3 * room / 100000 + 3; i++) {
		send_tags(&a, CORE_WIRE_TAGS_STANDING, i * 100000, 100000);
		if (i % 8 == 0)
			bt_check_served(&b, 50 + i);
	}
	bt_check_served(&a, 49);
	assert_int_equal(atomic_load(&ct.header->round), round);
	bt_stats_end(&control, &end);
	/* 3.x times the room was sent, less than once was taken. */
	assert_true(atomic_load(&ct.header->entries) < room);
	assert_true(atomic_load(&ct.header->dropped) < room / 1000); /* while it grew */
	assert_int_equal(fstat(b.fds[1], &about), 0);
	assert_true(about.st_blocks * 512 <= 2 * bytes);
	assert_int_equal(end.dropped_clients, 0);
	munmap(map, 2 * b.welcome.cand_bytes);
}

/* What the table grows by is charged to its user, and without room it does not grow. */
static void test_charged(void **state)
{
	const unsigned quota = 300, buckets = 3 * CORE_CAND_ROW; /* for 40000 */
	const size_t page = sys_page_bytes();
	const unsigned table_pages = (unsigned)((buckets - CORE_CAND_ROW) *
						CORE_CAND_BUCKET_BYTES / page);
	struct core_wire_ctl_end end;
	struct bt_client red, blue, ctl;
	uint8_t reason[512];
	uint32_t slot[512];
	struct bt_daemon d;
	unsigned given = 0;
	char bytes[24];
	const char *args[] = { "--store-max", bytes, "--client-max", bytes, NULL };

	(void)state;
	snprintf(bytes, sizeof(bytes), "%zu", quota * page);
	bt_daemon_start(&d, args);
	bt_control(&ctl, &d);
	bt_open(&red, &d, "red");
	bt_open(&blue, &d, "blue");
	send_tags(&red, CORE_WIRE_TAGS_STANDING, 0, 40000);
	(void)bt_segment(&red, 1000); /* an answer, if only a refusal: all before is done */
	bt_promote(&blue, 1, 0, quota, slot, reason);
	for (unsigned i = 0; i < quota; i++)
		given += slot[i] != CORE_SLOT_NONE;
	bt_stats_end(&ctl, &end);
	assert_in_range(end.standing, 39000, 40000); /* some have the same tag */
	assert_int_equal(given, quota - table_pages);
	/* All used up: neither grows any more. */
	send_tags(&red, CORE_WIRE_TAGS_STANDING, 40000, 100000);
	send_tags(&blue, CORE_WIRE_TAGS_STANDING, 0, 100000);
	for (unsigned i = 0; i < 2; i++)
		(void)bt_segment(i ? &red : &blue, 1000);
	bt_stats_end(&ctl, &end);
	assert_true(end.standing <= (buckets + CORE_CAND_ROW) * CORE_CAND_WAYS);
	/* It goes with its last reporter. */
	bt_close(&red);
	for (unsigned i = 0; i < 500; i++) {
		bt_promote(&blue, 2, i, 1, slot, reason);
		if (slot[0] != CORE_SLOT_NONE)
			break;
		usleep(10000);
	}
	assert_int_not_equal(slot[0], CORE_SLOT_NONE);
	bt_close(&blue);
	bt_close(&ctl);
	bt_daemon_stop(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_apart),
		cmocka_unit_test(test_promoted),
		cmocka_unit_test(test_crowded),
		cmocka_unit_test(test_stale),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_no_memory),
		cmocka_unit_test(test_no_memory_to_grow),
		cmocka_unit_test(test_not_given_back),
		cmocka_unit_test(test_seen_by_others),
		cmocka_unit_test(test_last_leaves),
		cmocka_unit_test(test_flood),
		cmocka_unit_test(test_charged),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
