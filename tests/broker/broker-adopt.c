/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Adoption (I6): segments of a broker that died are taken back, and nothing else
 * is. If this fails, a restart loses what was shared, or a client could hand in
 * memory that it can still change, or make the broker crash, wait or grow (I4).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "broker/store.h"
#include "client.h"
#include "sys/fault.h"

#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

static size_t page;

static struct broker_store *store_of(uint64_t max_slots, uint64_t seed)
{
	struct broker_store_params params = { .max_slots = max_slots, .max_cand_pages = 1000,
					      .seed = seed, .generation = seed };
	struct broker_store *st;

	assert_int_equal(broker_store_new(&st, &params), 0);
	return st;
}

/* A memfd with pages salt:0.. written at the beginning, zeros behind. */
static int memfd_with(uint64_t salt, unsigned pages, size_t bytes, int seals)
{
	int fd = memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t *buf = malloc(page);

	assert_true(fd >= 0 && buf);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	for (unsigned i = 0; i < pages; i++) {
		bt_fill(buf, salt, i);
		assert_int_equal(pwrite(fd, buf, page, (off_t)(i * page)), page);
	}
	free(buf);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static size_t segment_bytes(void)
{
	return BROKER_SEGMENT_SLOTS * page;
}

/* The slot of page salt:n, which must be there. */
static uint32_t slot_of(struct broker_store *st, uint64_t salt, uint64_t n)
{
	uint64_t budget = 0;
	uint16_t at = 0;
	uint32_t slot;
	uint8_t reason, *buf = malloc(page);

	assert_non_null(buf);
	bt_fill(buf, salt, n);
	broker_store_promote(st, buf, &at, 1, &slot, &reason, &budget);
	free(buf);
	return slot;
}

static void test_take_over(void **state)
{
	struct broker_store *old = store_of(100000, 1), *fresh = store_of(100000, 2);
	struct broker_store_stats stats;
	uint16_t order[256];
	uint32_t slot[256];
	uint8_t reason[256], *ring = malloc(256 * page);
	int fd;

	assert_non_null(ring);
	for (unsigned i = 0; i < BROKER_SEGMENT_SLOTS; i += 256) {
		for (unsigned k = 0; k < 256; k++) {
			order[k] = (uint16_t)k;
			bt_fill(ring + k * page, 5, i + k);
		}
		assert_int_equal(broker_store_promote(old, ring, order, 256, slot, reason, NULL), 256);
	}
	fd = broker_store_segment_fd(old, 0);
	broker_store_free(old); /* the broker dies */
	assert_int_equal(slot_of(fresh, 5, 7), CORE_SLOT_NONE);
	assert_int_equal(broker_store_adopt(fresh, fd), 0);
	assert_int_equal(slot_of(fresh, 5, 7) % BROKER_SEGMENT_SLOTS, 7);
	assert_int_equal(broker_store_adopt(fresh, fd), 1); /* we have it */
	broker_store_stats(fresh, &stats);
	assert_int_equal(stats.segments, 1);
	assert_int_equal(stats.slots, BROKER_SEGMENT_SLOTS);
	/* It is given out and collected like any other. */
	assert_int_equal(broker_store_collect(fresh), 0);
	close(fd);
	assert_int_equal(broker_store_collect(fresh), 1);
	assert_int_equal(slot_of(fresh, 5, 7), CORE_SLOT_NONE);
	free(ring);
	broker_store_free(fresh);
}

/* New segments go on beside adopted ones, whichever came first. */
static void test_beside_open(void **state)
{
	struct broker_store *st = store_of(100000, 3);
	int fd = memfd_with(6, 100, segment_bytes(), SEALS);
	uint16_t at = 0;
	uint32_t slot;
	uint8_t reason, *buf = malloc(page);

	assert_non_null(buf);
	bt_fill(buf, 7, 0);
	assert_int_equal(broker_store_promote(st, buf, &at, 1, &slot, &reason, NULL), 1);
	assert_int_equal(slot, 0);
	assert_int_equal(broker_store_adopt(st, fd), 0);
	bt_fill(buf, 7, 1);
	assert_int_equal(broker_store_promote(st, buf, &at, 1, &slot, &reason, NULL), 1);
	assert_int_equal(slot, 1); /* the open segment was not forgotten */
	assert_int_equal(slot_of(st, 6, 99), BROKER_SEGMENT_SLOTS + 99);
	free(buf);
	close(fd);
	broker_store_free(st);
}

static void refuse(struct broker_store *st, int fd, int error)
{
	assert_true(fd >= 0);
	assert_int_equal(broker_store_adopt(st, fd), error);
	close(fd);
}

static void test_hostile(void **state)
{
	struct broker_store *st = store_of(100000, 4);
	struct broker_store_stats stats;
	int pipes[2];

	assert_int_equal(broker_store_adopt(st, -1), -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes(), 0), -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes(), F_SEAL_SHRINK | F_SEAL_GROW), -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes(), F_SEAL_WRITE | F_SEAL_GROW), -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes(), F_SEAL_WRITE | F_SEAL_SHRINK), -EINVAL);
	refuse(st,
	       memfd_with(1, 10, segment_bytes(),
			  F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW),
	       -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes() - page, SEALS), -EINVAL);
	refuse(st, memfd_with(1, 10, segment_bytes() + page, SEALS), -EINVAL);
	refuse(st, memfd_with(1, 0, 0, SEALS), -EINVAL);
	refuse(st, memfd_with(1, 0, segment_bytes(), SEALS), 1); /* nothing but zeros */
	refuse(st, open("/dev/zero", O_RDWR), -EINVAL);
	refuse(st, open("/proc/self/exe", O_RDONLY), -EINVAL);
	refuse(st, open("/tmp", O_RDONLY | O_DIRECTORY), -EINVAL);
	refuse(st, open("/proc/self/exe", O_PATH), -EINVAL);
	refuse(st, eventfd(0, 0), -EINVAL);
	assert_int_equal(pipe(pipes), 0);
	refuse(st, pipes[0], -EINVAL);
	close(pipes[1]);
	broker_store_stats(st, &stats);
	assert_int_equal(stats.slots, 0);
	assert_int_equal(stats.segments, 0);
	broker_store_free(st);
}

/* A lease on the offered file would make an open wait for 45 seconds. */
static void test_leased(void **state)
{
	struct broker_store *st = store_of(100000, 5);
	int fd = memfd_with(1, 10, segment_bytes(), SEALS), ro;
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY);
	assert_true(ro >= 0);
	close(fd);
	assert_int_equal(fcntl(ro, F_SETSIG, SIGURG), 0);
	if (fcntl(ro, F_SETLEASE, F_WRLCK) < 0) {
		close(ro);
		broker_store_free(st);
		skip(); /* no leases here */
	}
	refuse(st, ro, -EINVAL);
	broker_store_free(st);
}

static void test_quota(void **state)
{
	struct broker_store *st = store_of(BROKER_SEGMENT_SLOTS + 100, 6);
	int fd = memfd_with(1, 10, segment_bytes(), SEALS);

	assert_int_equal(broker_store_adopt(st, fd), 0);
	refuse(st, memfd_with(2, 10, segment_bytes(), SEALS), -EDQUOT);
	close(fd);
	assert_int_equal(broker_store_collect(st), 1);
	refuse(st, memfd_with(2, 10, segment_bytes(), SEALS), 0);
	broker_store_free(st);
}

/* A failure in the middle leaves nothing behind. */
static void test_faults(void **state)
{
	static const enum sys_fault_point points[] = { SYS_FAULT_pread, SYS_FAULT_open,
						       SYS_FAULT_get_seals };
	struct broker_store *st = store_of(100000, 7);
	struct broker_store_stats stats;
	int fd = memfd_with(1, 200, segment_bytes(), SEALS);

	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		for (uint64_t nth = 1; nth < 4; nth += 2) {
			int r;

			sys_fault_arm(points[i], nth, EIO, 1);
			r = broker_store_adopt(st, fd);
			sys_fault_reset();
			if (r == 0) { /* that many calls there are not */
				assert_int_not_equal(nth, 1);
				broker_store_free(st);
				st = store_of(100000, 7);
				continue;
			}
			broker_store_stats(st, &stats);
			assert_int_equal(stats.segments, 0);
			assert_int_equal(broker_store_index(st)->header->entries, 0);
		}
	}
	assert_int_equal(broker_store_adopt(st, fd), 0);
	close(fd);
	broker_store_free(st);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_take_over), cmocka_unit_test(test_beside_open),
		cmocka_unit_test(test_hostile),	  cmocka_unit_test(test_leased),
		cmocka_unit_test(test_quota),	  cmocka_unit_test(test_faults),
	};

	page = sys_page_bytes();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
