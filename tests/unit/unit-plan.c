/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: pages get the slot of their neighbour (I2's comparison refuses
 * the run, nothing merges), a run crosses a segment (the mapping would go past a
 * memfd's end), pages are lost between runs, or more mappings are made than needed.
 */
#include <string.h>

#include "core/index.h"
#include "core/plan.h"
#include "unit.h"

#define PAGES_MAX 300

static uint64_t random_state = 3;

/* May pages[at] be in one run with the page before it? Written down independently. */
static int joins(const struct core_plan_page *pages, size_t at, uint32_t segment_slots)
{
	const struct core_plan_page *a = &pages[at - 1], *b = &pages[at];

	if (a->kind == CORE_PLAN_ZERO)
		return b->kind == CORE_PLAN_ZERO;
	return a->kind == CORE_PLAN_SLOT && b->kind == CORE_PLAN_SLOT &&
	       (uint64_t)a->slot + 1 == b->slot &&
	       a->slot / segment_slots == b->slot / segment_slots;
}

static size_t random_pages(struct core_plan_page *pages, uint32_t segment_slots)
{
	size_t count = unit_random(&random_state) % PAGES_MAX;
	size_t i;

	for (i = 0; i < count; i++) {
		uint64_t r = unit_random(&random_state);

		pages[i] = (struct core_plan_page){ .kind = (uint8_t)(r % 3), .reason = 1 };
		if (r % 16 == 3)
			pages[i].kind = 77; /* unknown: left alone */
		pages[i].slot = (uint32_t)(r >> 32) % (4 * segment_slots);
		if (i > 0 && r % 32 > 5) {
			pages[i].kind = pages[i - 1].kind;
			pages[i].slot = pages[i - 1].slot + 1;
		}
	}
	return count;
}

static void check_runs(const struct core_plan_page *pages, size_t count, uint32_t segment_slots,
		       const struct core_plan_run *runs, size_t n)
{
	size_t next = 0, i, k;

	for (k = 0; k < n; k++) {
		const struct core_plan_run *run = &runs[k];

		assert_true(run->first >= next && run->pages > 0);
		assert_true((size_t)run->first + run->pages <= count);
		for (i = next; i < run->first; i++)
			assert_true(pages[i].kind != CORE_PLAN_ZERO &&
				    pages[i].kind != CORE_PLAN_SLOT);
		for (i = run->first; i < (size_t)run->first + run->pages; i++) {
			assert_int_equal(pages[i].kind, run->kind);
			if (run->kind == CORE_PLAN_SLOT)
				assert_int_equal(pages[i].slot, run->slot + (i - run->first));
			if (i > run->first)
				assert_true(joins(pages, i, segment_slots));
		}
		if (run->kind == CORE_PLAN_SLOT)
			assert_int_equal(run->slot / segment_slots,
					 (run->slot + run->pages - 1) / segment_slots);
		next = (size_t)run->first + run->pages;
		/* As long as possible. */
		if (next < count)
			assert_false(joins(pages, next, segment_slots));
	}
}

static void test_runs_against_model(void **state)
{
	struct core_plan_page pages[PAGES_MAX];
	struct core_plan_run runs[PAGES_MAX], few[PAGES_MAX];
	unsigned round;

	for (round = 0; round < 20000; round++) {
		uint32_t segment_slots = 1u << unit_random(&random_state) % 9;
		size_t count = random_pages(pages, segment_slots);
		size_t n = core_plan_runs(pages, count, segment_slots, runs, PAGES_MAX);
		size_t covered = 0, wanted = 0, slot_runs = 0, max, i;

		check_runs(pages, count, segment_slots, runs, n);
		for (i = 0; i < n; i++) {
			covered += runs[i].pages;
			slot_runs += runs[i].kind == CORE_PLAN_SLOT;
		}
		for (i = 0; i < count; i++)
			wanted += pages[i].kind == CORE_PLAN_ZERO || pages[i].kind == CORE_PLAN_SLOT;
		assert_int_equal(covered, wanted);
		assert_int_equal(core_plan_vmas_upper(runs, n), 2 * slot_runs);

		/* With less room: the same runs, cut off; nothing behind is written. */
		max = unit_random(&random_state) % (n + 2);
		memset(few, 0xa5, sizeof(few));
		assert_int_equal(core_plan_runs(pages, count, segment_slots, few, max),
				 max < n ? max : n);
		assert_memory_equal(few, runs, (max < n ? max : n) * sizeof(runs[0]));
		if (max < PAGES_MAX)
			assert_int_equal(few[max].pages, 0xa5a5a5a5);
	}
}

static void test_runs_edges(void **state)
{
	struct core_plan_page pages[4] = { { 0 } };
	struct core_plan_run runs[4];
	unsigned i;

	assert_int_equal(core_plan_runs(pages, 0, 8, runs, 4), 0);
	assert_int_equal(core_plan_runs(pages, 4, 8, runs, 4), 0);
	/* The numbers end at CORE_SLOT_NONE; 0 does not follow. */
	for (i = 0; i < 4; i++) {
		pages[i].kind = CORE_PLAN_SLOT;
		pages[i].slot = UINT32_MAX - 2 + i;
	}
	assert_int_equal(core_plan_runs(pages, 4, 1u << 31, runs, 4), 3);
	assert_int_equal(runs[0].pages, 2);
	assert_int_equal(runs[1].slot, CORE_SLOT_NONE);
	assert_int_equal(runs[2].slot, 0);
	/* Last slot of a segment, first of the next. */
	for (i = 0; i < 4; i++)
		pages[i].slot = 6 + i;
	assert_int_equal(core_plan_runs(pages, 4, 8, runs, 4), 2);
	assert_int_equal(runs[0].pages, 2);
	assert_int_equal(runs[1].first, 2);
	assert_int_equal(runs[1].slot, 8);
}

static void test_choose(void **state)
{
	const uint32_t slots[] = { 40, 7, 8, 12 };
	struct core_plan_page prev = { .kind = CORE_PLAN_SLOT, .slot = 11 };

	assert_int_equal(core_plan_choose(slots, 0, &prev, 8), CORE_SLOT_NONE);
	assert_int_equal(core_plan_choose(slots, 4, NULL, 8), 40);
	assert_int_equal(core_plan_choose(slots, 4, &prev, 8), 12);
	assert_int_equal(core_plan_choose(slots, 3, &prev, 8), 40); /* 12 is not offered */
	prev.slot = 7; /* 8 would be a new segment: no run */
	assert_int_equal(core_plan_choose(slots, 4, &prev, 8), 40);
	assert_int_equal(core_plan_choose(slots, 4, &prev, 16), 8);
	prev.slot = 6;
	prev.kind = CORE_PLAN_ZERO;
	assert_int_equal(core_plan_choose(slots, 4, &prev, 8), 40);
	prev.kind = CORE_PLAN_SLOT;
	assert_int_equal(core_plan_choose(slots, 4, &prev, 8), 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_runs_against_model),
		cmocka_unit_test(test_runs_edges),
		cmocka_unit_test(test_choose),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
