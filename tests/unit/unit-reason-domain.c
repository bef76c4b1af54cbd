/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: a reason has no name or the wrong one (I9, and --json is ABI),
 * sums over results lose a field, or a domain name that must not pass does (I7).
 */
#include <stdlib.h>
#include <string.h>

#include "core/domain.h"
#include "core/reason.h"
#include "unit.h"

static void test_reason_names(void **state)
{
	unsigned i, j;

	assert_string_equal(core_reason_name(SAMEPAGE_REASON_UNIQUE), "unique");
	assert_string_equal(core_reason_name(SAMEPAGE_REASON_PINNED), "pinned");
	assert_string_equal(core_reason_name(SAMEPAGE_REASON_FAILED), "failed");
	assert_string_equal(core_reason_text(SAMEPAGE_REASON_SWAPPED), "swapped out");
	for (i = 0; i < SAMEPAGE_REASON_COUNT; i++) {
		assert_non_null(core_reason_name(i));
		assert_true(strlen(core_reason_text(i)) > 0);
		for (j = 0; j < i; j++)
			assert_string_not_equal(core_reason_name(i), core_reason_name(j));
	}
	assert_null(core_reason_name(SAMEPAGE_REASON_COUNT));
	assert_null(core_reason_text(SAMEPAGE_REASON_COUNT));
	assert_null(core_reason_name(UINT32_MAX));
	assert_null(core_reason_text(UINT32_MAX));
}

static void test_decline(void **state)
{
	struct samepage_result r = { 0 };

	core_result_decline(&r, SAMEPAGE_REASON_QUOTA, 3);
	core_result_decline(&r, SAMEPAGE_REASON_QUOTA, 4);
	core_result_decline(&r, SAMEPAGE_REASON_UNIQUE, 10);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_QUOTA], 7);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_UNIQUE], 10);
	assert_int_equal(core_result_declined(&r), 17);
	assert_int_equal(r.pages_looked, 0);
	/* A reason that does not exist is counted all the same, inside the array. */
	core_result_decline(&r, (enum samepage_reason)SAMEPAGE_REASON_MAX, 5);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_FAILED], 5);
	assert_int_equal(core_result_declined(&r), 22);
}

/* The structure is nothing but 64-bit numbers: every one of them must be added. */
static void test_add_every_field(void **state)
{
	enum { FIELDS = sizeof(struct samepage_result) / sizeof(uint64_t) };
	uint64_t a[FIELDS], b[FIELDS];
	struct samepage_result sum, r;
	unsigned i;

	for (i = 0; i < FIELDS; i++) {
		a[i] = 1000 + i;
		b[i] = 1u << (i % 20);
	}
	memcpy(&sum, a, sizeof(sum));
	memcpy(&r, b, sizeof(r));
	core_result_add(&sum, &r);
	memcpy(a, &sum, sizeof(sum));
	for (i = 0; i < FIELDS; i++)
		assert_int_equal(a[i], 1000 + i + b[i]);
	/* VMAs may become fewer; what a client claims must not overflow (UBSan). */
	sum.vmas_added = 5;
	r.vmas_added = -7;
	core_result_add(&sum, &r);
	assert_int_equal(sum.vmas_added, -2);
	sum.vmas_added = INT64_MAX;
	r.vmas_added = INT64_MAX;
	core_result_add(&sum, &r);
}

static void test_domain_names(void **state)
{
	char name[CORE_DOMAIN_NAME_MAX + 1];
	char one[2] = { 0, 0 };
	const char *allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	int c;

	assert_false(core_domain_name_valid(NULL));
	assert_false(core_domain_name_valid(""));
	assert_true(core_domain_name_valid("default"));
	assert_true(core_domain_name_valid("a.B_c-9"));
	assert_false(core_domain_name_valid("a b"));
	assert_false(core_domain_name_valid("a/b"));
	assert_false(core_domain_name_valid("a\n"));
	for (c = 1; c < 256; c++) {
		one[0] = (char)c;
		assert_int_equal(core_domain_name_valid(one), strchr(allowed, c) != NULL);
	}
	memset(name, 'x', sizeof(name));
	assert_false(core_domain_name_valid(name)); /* not terminated, nothing read behind */
	name[CORE_DOMAIN_NAME_MAX] = '\0';
	assert_true(core_domain_name_valid(name)); /* 63 */
}

/* Not one byte behind the 64 is read (ASan). */
static void test_domain_name_bounded(void **state)
{
	char *name = malloc(CORE_DOMAIN_NAME_MAX + 1);

	assert_non_null(name);
	memset(name, 'x', CORE_DOMAIN_NAME_MAX + 1);
	assert_false(core_domain_name_valid(name));
	free(name);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reason_names),
		cmocka_unit_test(test_decline),
		cmocka_unit_test(test_add_every_field),
		cmocka_unit_test(test_domain_names),
		cmocka_unit_test(test_domain_name_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
