/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: the scanner uses more CPU than it may, never gets the share that it may
 * have, sleeps for ever, or takes mappings that are the program's.
 */
#include <stdbool.h>
#include <string.h>

#include "core/pace.h"
#include "unit.h"

#define MINUTE_USEC 60000000ull
#define SECOND_USEC 1000000ull

static uint64_t random_state = 5;

/* CPU seconds are put where they were used, so that any minute can be asked about. */
#define SECONDS (3 * 3600)
static uint64_t used[SECONDS + 1];

/* Work as it comes, in slices, when the bucket says so; simulated. */
static void simulate(struct core_pace *p, uint64_t start, uint64_t slice_most, unsigned idle_of_100)
{
	uint64_t now = start, end = start + SECONDS * SECOND_USEC;

	memset(used, 0, sizeof(used));
	while (now < end) {
		uint64_t slice = 1 + unit_random(&random_state) % slice_most;

		if (!core_pace_may(p, now)) {
			uint64_t wait = core_pace_wait_usec(p, now, 5000);

			assert_true(wait > 0 && wait <= MINUTE_USEC * 11);
			now += wait;
			assert_true(core_pace_may(p, now));
			continue;
		}
		used[(now - start) / SECOND_USEC] += slice;
		now += slice;
		core_pace_spend(p, now, slice);
		if (unit_random(&random_state) % 100 < idle_of_100)
			now += unit_random(&random_state) % MINUTE_USEC;
	}
}

/* The most that any minute had, the sum of it all. */
static uint64_t most_in_a_minute(uint64_t *total)
{
	uint64_t window = 0, most = 0;

	*total = 0;
	for (unsigned s = 0; s < SECONDS; s++) {
		*total += used[s];
		window += used[s];
		if (s >= 60)
			window -= used[s - 60];
		if (window > most)
			most = window;
	}
	return most;
}

/*
 * With endless work the share is used up, no less and no more, over hours. A bucket of a
 * minute's worth lets one burst be at most twice that: the bucket, and what flows in.
 */
static void test_ceiling(void **state)
{
	static const uint32_t permille[] = { 1, 5, 10, 50, 100, 333, 900, 999 };

	(void)state;
	for (unsigned i = 0; i < sizeof(permille) / sizeof(permille[0]); i++) {
		uint64_t share = permille[i] * (MINUTE_USEC / 1000), slice = 20000, total;
		struct core_pace p;

		core_pace_init(&p, permille[i], 77);
		simulate(&p, 77, slice, 0);
		assert_true(most_in_a_minute(&total) <= 2 * share + 2 * slice);
		assert_true(total <= share * (SECONDS / 60 + 1) + 2 * slice);
		assert_true(total >= share * (SECONDS / 60) * 98 / 100);
	}
}

/* After the first burst every minute keeps to the share. */
static void test_each_minute(void **state)
{
	struct core_pace p;
	uint64_t total, share = 100 * (MINUTE_USEC / 1000);

	(void)state;
	core_pace_init(&p, 100, 0);
	simulate(&p, 0, 20000, 0);
	memset(used, 0, 120 * sizeof(used[0]));
	assert_true(most_in_a_minute(&total) <= share + share / 50 + SECOND_USEC / 10);
}

static void test_idle_fills_no_more_than_a_minute(void **state)
{
	struct core_pace p;
	uint64_t total, share = 20 * (MINUTE_USEC / 1000), now, cpu = 0;

	(void)state;
	core_pace_init(&p, 20, 0);
	simulate(&p, 0, 5000, 1);
	assert_true(most_in_a_minute(&total) <= 2 * share + 10000);
	/* After a night, a year: one bucket. */
	for (now = 86400 * SECOND_USEC; now < 1ull << 60; now *= 7) {
		for (cpu = 0; core_pace_may(&p, now); cpu += 1000)
			core_pace_spend(&p, now, 1000);
		assert_true(cpu >= share - 1000 && cpu <= share + 1000);
	}
}

/* Slices of microseconds do not lose what flows in meanwhile. */
static void test_small_steps(void **state)
{
	struct core_pace p;
	uint64_t now = 1000, cpu = 0;

	(void)state;
	core_pace_init(&p, 1, now);
	core_pace_spend(&p, now, 60000);
	assert_false(core_pace_may(&p, now));
	for (unsigned i = 0; i < 10000000; i++, now += 7)
		if (core_pace_may(&p, now)) {
			core_pace_spend(&p, now, 1);
			cpu++;
		}
	assert_true(cpu <= 70001 && cpu >= 69000);
}

static void test_overdraft(void **state)
{
	struct core_pace p;
	uint64_t wait;

	(void)state;
	core_pace_init(&p, 100, 0);
	core_pace_spend(&p, 0, 6 * SECOND_USEC + 10 * SECOND_USEC); /* far beyond */
	wait = core_pace_wait_usec(&p, 0, 5000);
	assert_true(wait >= 100 * SECOND_USEC - SECOND_USEC);
	assert_false(core_pace_may(&p, 99 * SECOND_USEC));
	assert_true(core_pace_may(&p, 101 * SECOND_USEC));
	/* More than the bucket can ever hold is not waited for. */
	assert_true(core_pace_wait_usec(&p, 101 * SECOND_USEC, UINT32_MAX) <= MINUTE_USEC);
	/* A time that was counted is not counted again, in whatever order we are asked. */
	core_pace_spend(&p, 101 * SECOND_USEC, SECOND_USEC);
	for (unsigned i = 0; i < 100; i++) {
		assert_false(core_pace_may(&p, 0));
		assert_false(core_pace_may(&p, 101 * SECOND_USEC));
	}
}

static void test_nothing_permitted(void **state)
{
	struct core_pace p;

	(void)state;
	core_pace_init(&p, 0, 0);
	for (uint64_t now = 0; now < 86400 * SECOND_USEC; now += 600 * SECOND_USEC)
		assert_false(core_pace_may(&p, now));
	assert_int_equal(core_pace_wait_usec(&p, 0, 5000), 0); /* cannot wait for what never is */
}

/* A ceiling that is changed while it runs: no more than the smaller bucket is left. */
static void test_changed(void **state)
{
	struct core_pace p;
	uint64_t cpu = 0;

	(void)state;
	core_pace_init(&p, 1000, 0);
	p.permille = 5;
	for (; core_pace_may(&p, 1); cpu += 100)
		core_pace_spend(&p, 1, 100);
	assert_true(cpu <= 300 * 1000 + 100);
}

/* --- memory ------------------------------------------------------------------------ */

static void test_most(void **state)
{
	struct core_pace_memory plenty = { .available_permille = 800 }, some = { 300, 0 },
				short_of = { 50, 0 }, pressed = { 800, 150 },
				unknown = { UINT32_MAX, 0 };

	(void)state;
	assert_true(core_pace_most_msec(&plenty, 10000, 100) > 10000);
	assert_int_equal(core_pace_most_msec(&some, 10000, 100), 10000);
	assert_int_equal(core_pace_most_msec(&unknown, 10000, 100), 10000);
	assert_true(core_pace_most_msec(&short_of, 10000, 100) < 10000);
	assert_true(core_pace_most_msec(&pressed, 10000, 100) < 10000);
	/* Never shorter than the shortest. */
	assert_int_equal(core_pace_most_msec(&pressed, 100, 100), 100);
	assert_int_equal(core_pace_most_msec(&pressed, 10, 5000), 5000);
	/* The longest setting there is does not overflow. */
	assert_true(core_pace_most_msec(&plenty, 3600000, 100) >= 3600000);
}

/* --- mappings ------------------------------------------------------------------------ */

/* Longer and longer, and nothing at all when none is left. */
static void test_shortest_run(void **state)
{
	static const int64_t limits[] = { 100, 1000, 32765, 58981 };

	(void)state;
	for (unsigned k = 0; k < sizeof(limits) / sizeof(limits[0]); k++) {
		uint32_t before = 1;

		assert_int_equal(core_pace_shortest_run(0, limits[k]), 1);
		assert_int_equal(core_pace_shortest_run(limits[k] / 2, limits[k]), 1);
		for (int64_t taken = 0; taken <= limits[k] + 10; taken++) {
			uint32_t run = core_pace_shortest_run(taken, limits[k]);

			if (limits[k] - taken < 2) /* a run may add two */
				assert_int_equal(run, 0);
			if (run == 0)
				before = UINT32_MAX;
			else
				assert_true(run >= before);
			if (run)
				before = run;
		}
		assert_true(core_pace_shortest_run(limits[k] * 9 / 10, limits[k]) > 4);
	}
	assert_int_equal(core_pace_shortest_run(0, 0), 0);
	assert_int_equal(core_pace_shortest_run(5, -1), 0);
	assert_int_equal(core_pace_shortest_run(INT32_MAX, 100), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ceiling),
		cmocka_unit_test(test_each_minute),
		cmocka_unit_test(test_idle_fills_no_more_than_a_minute),
		cmocka_unit_test(test_small_steps),
		cmocka_unit_test(test_overdraft),
		cmocka_unit_test(test_nothing_permitted),
		cmocka_unit_test(test_changed),
		cmocka_unit_test(test_most),
		cmocka_unit_test(test_shortest_run),
	};

	return cmocka_run_group_tests_name("unit-pace", tests, NULL, NULL);
}
