/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: the shim takes memory for the program's that was released
 * (background merging would destroy a newcomer's data), or forgets what may be
 * merged. A change that fails for want of memory must leave the set as it was,
 * and remove_or_forget must never leave what it was to take out.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/rangeset.h"
#include "unit.h"

#define SPAN 256 /* addresses of the model */
#define NOT_IN UINT32_MAX

static uint64_t random_state = 4;
static unsigned fail_percent;
static size_t bytes_held;

/* Also holds the caller to its word about old_bytes. */
static void *moving_realloc(void *ptr, size_t old_bytes, size_t new_bytes)
{
	void *fresh;

	assert_int_equal(old_bytes, bytes_held);
	assert_true((ptr != NULL) == (old_bytes != 0));
	if (new_bytes == 0) {
		free(ptr);
		bytes_held = 0;
		return NULL;
	}
	if (unit_random(&random_state) % 100 < fail_percent)
		return NULL;
	/* Always moves, so that stale pointers are seen (ASan). */
	fresh = malloc(new_bytes);
	assert_non_null(fresh);
	if (ptr)
		memcpy(fresh, ptr, old_bytes < new_bytes ? old_bytes : new_bytes);
	free(ptr);
	bytes_held = new_bytes;
	return fresh;
}

static void check_invariant(const struct core_rangeset *rs)
{
	size_t i;

	assert_true(rs->count <= rs->capacity);
	for (i = 0; i < rs->count; i++) {
		const struct core_range *r = &rs->ranges[i];

		assert_true(r->start < r->end);
		if (i == 0)
			continue;
		assert_true(r[-1].end <= r->start);
		assert_true(r[-1].end < r->start || r[-1].attr != r->attr);
	}
}

static void check_against(const struct core_rangeset *rs, const uint32_t *model)
{
	uint64_t from = unit_random(&random_state) % SPAN;
	uint64_t to = from + unit_random(&random_state) % (SPAN - from + 1);
	uint64_t bytes = 0, a;
	bool any = false, all = true;

	check_invariant(rs);
	for (a = 0; a < SPAN; a++) {
		const struct core_range *r = core_rangeset_find(rs, a);

		if (model[a] == NOT_IN) {
			assert_true(!r || r->start > a);
			if (r)
				assert_true(model[r->start] == r->attr);
		} else {
			assert_true(r && r->start <= a && r->attr == model[a]);
			bytes++;
		}
		if (a >= from && a < to) {
			any |= model[a] != NOT_IN;
			all &= model[a] != NOT_IN;
		}
	}
	assert_int_equal(core_rangeset_bytes(rs), bytes);
	assert_int_equal(core_rangeset_intersects(rs, from, to), any);
	assert_int_equal(core_rangeset_covers(rs, from, to), all);
}

static void model_set(uint32_t *model, uint64_t start, uint64_t end, uint32_t attr)
{
	for (; start < end; start++)
		model[start] = attr;
}

/* After a forced removal the model may keep more than the set: never less. */
static void forget(const struct core_rangeset *rs, uint32_t *model, uint64_t start, uint64_t end)
{
	uint64_t a, forgotten = 0, left = 0, right = 0;
	bool cut = start < end && start > 0 && end < SPAN && model[start - 1] != NOT_IN;

	/* One range around [start, end)? Its two remainders, before anything is taken out. */
	for (a = start > 0 ? start - 1 : 0; cut && a <= end; a++)
		cut = model[a] == model[start - 1];
	for (a = start; cut && a-- > 0 && model[a] == model[start];)
		left++;
	for (a = end; cut && a < SPAN && model[a] == model[start]; a++)
		right++;
	model_set(model, start, end, NOT_IN);
	assert_false(core_rangeset_intersects(rs, start, end));
	for (a = 0; a < SPAN; a++) {
		const struct core_range *r = core_rangeset_find(rs, a);

		if (model[a] != NOT_IN && (!r || r->start > a)) {
			model[a] = NOT_IN;
			forgotten++;
		}
	}
	if (forgotten)
		assert_true(cut && forgotten == (left < right ? left : right));
}

static void randomized(unsigned fail, unsigned rounds, uint32_t attrs)
{
	struct core_rangeset rs;
	uint32_t model[SPAN];
	unsigned i, refused = 0;

	core_rangeset_init(&rs, moving_realloc);
	model_set(model, 0, SPAN, NOT_IN);
	fail_percent = fail;
	for (i = 0; i < rounds; i++) {
		uint64_t start = unit_random(&random_state) % SPAN;
		uint64_t longest = i % 1000 < 900 ? 12 : SPAN;
		uint64_t end = start + unit_random(&random_state) % longest;
		uint32_t attr = (uint32_t)(unit_random(&random_state) % attrs);
		int err = 0;

		if (end > SPAN)
			end = SPAN;
		switch (unit_random(&random_state) % 8) {
		case 0 ... 3:
			err = core_rangeset_add(&rs, start, end, attr);
			if (err == 0)
				model_set(model, start, end, attr);
			else
				assert_int_equal(err, start == end ? -EINVAL : -ENOMEM);
			break;
		case 4 ... 5:
			err = core_rangeset_remove(&rs, start, end);
			if (err == 0)
				model_set(model, start, end, NOT_IN);
			else
				assert_int_equal(err, -ENOMEM);
			break;
		default:
			core_rangeset_remove_or_forget(&rs, start, end);
			forget(&rs, model, start, end);
		}
		refused += err == -ENOMEM;
		check_against(&rs, model);
		/* Grow from nothing again and again, or there is nothing to be refused. */
		if (i % 500 == 499) {
			core_rangeset_free(&rs);
			assert_int_equal(bytes_held, 0);
			model_set(model, 0, SPAN, NOT_IN);
		}
	}
	assert_true(fail ? refused > 0 : refused == 0);
	core_rangeset_free(&rs);
	assert_int_equal(bytes_held, 0);
}

static void test_random(void **state)
{
	randomized(0, 40000, 3);
}

static void test_random_one_attr(void **state)
{
	randomized(0, 40000, 1);
}

static void test_random_no_memory(void **state)
{
	randomized(70, 60000, 3);
}

/* A full array and an allocator that never gives: a cut keeps the longer end. */
static void test_forget_shorter_end(void **state)
{
	struct core_rangeset rs;
	uint64_t i;

	core_rangeset_init(&rs, moving_realloc);
	fail_percent = 0;
	for (i = 0; i == 0 || rs.count < rs.capacity; i++)
		assert_int_equal(core_rangeset_add(&rs, i * 1000, i * 1000 + 500, 1), 0);
	fail_percent = 100;
	assert_int_equal(core_rangeset_remove(&rs, 100, 110), -ENOMEM);
	assert_true(core_rangeset_covers(&rs, 0, 500));
	core_rangeset_remove_or_forget(&rs, 100, 110); /* 100 left of it, 390 right */
	assert_false(core_rangeset_intersects(&rs, 0, 110));
	assert_true(core_rangeset_covers(&rs, 110, 500));
	core_rangeset_remove_or_forget(&rs, 1400, 1450);
	assert_true(core_rangeset_covers(&rs, 1000, 1400));
	assert_false(core_rangeset_intersects(&rs, 1400, 1500));
	/* What needs no room works without memory. */
	assert_int_equal(core_rangeset_remove(&rs, 2000, 2500), 0);
	assert_int_equal(core_rangeset_remove(&rs, 3000, 3100), 0);
	assert_int_equal(core_rangeset_add(&rs, 2000, 2500, 2), 0);
	check_invariant(&rs);
	core_rangeset_free(&rs);
}

static void test_edges(void **state)
{
	struct core_rangeset rs;

	core_rangeset_init(&rs, moving_realloc);
	fail_percent = 0;
	assert_null(core_rangeset_find(&rs, 0));
	assert_false(core_rangeset_intersects(&rs, 0, UINT64_MAX));
	assert_false(core_rangeset_covers(&rs, 0, 1));
	assert_true(core_rangeset_covers(&rs, 5, 5));
	assert_int_equal(core_rangeset_remove(&rs, 0, UINT64_MAX), 0);
	assert_int_equal(core_rangeset_add(&rs, 5, 5, 0), -EINVAL);
	assert_int_equal(core_rangeset_add(&rs, 6, 5, 0), -EINVAL);
	assert_int_equal(core_rangeset_remove(&rs, 6, 5), -EINVAL);
	assert_int_equal(rs.count, 0);
	assert_int_equal(bytes_held, 0);
	/* The ends of the address space. */
	assert_int_equal(core_rangeset_add(&rs, 0, UINT64_MAX, 1), 0);
	assert_int_equal(core_rangeset_add(&rs, UINT64_MAX - 1, UINT64_MAX, 2), 0);
	assert_int_equal(rs.count, 2);
	assert_int_equal(core_rangeset_add(&rs, UINT64_MAX - 1, UINT64_MAX, 1), 0);
	assert_int_equal(rs.count, 1);
	core_rangeset_free(&rs);
	core_rangeset_free(&rs); /* empty: nothing to do */
	assert_int_equal(bytes_held, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_random_one_attr),
		cmocka_unit_test(test_random_no_memory),
		cmocka_unit_test(test_forget_shorter_end),
		cmocka_unit_test(test_edges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
