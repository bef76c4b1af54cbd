/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: a setting means one thing in samepaged.conf and another on the command
 * line, nonsense is taken for a number, or the program's own wish does not count.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/scan_config.h"
#include "unit.h"

static uint64_t random_state = 23;

static uint32_t *field_of(struct core_scan_config *c, enum core_scan_setting s)
{
	switch (s) {
	case CORE_SCAN_SETTING_CPU:
		return &c->cpu_permille;
	case CORE_SCAN_SETTING_MAPS:
		return &c->map_percent;
	case CORE_SCAN_SETTING_FIRST:
		return &c->first_msec;
	case CORE_SCAN_SETTING_MOST:
		return &c->most_msec;
	case CORE_SCAN_SETTING_HUGE:
		return &c->huge_percent;
	default:
		return &c->tracker;
	}
}

static const struct {
	enum core_scan_setting setting;
	const char *text;
	uint32_t value;
} good[] = {
	{ CORE_SCAN_SETTING_CPU, "0.1", 1 },	  { CORE_SCAN_SETTING_CPU, "0.5", 5 },
	{ CORE_SCAN_SETTING_CPU, "10", 100 },	  { CORE_SCAN_SETTING_CPU, "10.0", 100 },
	{ CORE_SCAN_SETTING_CPU, "99.9", 999 },	  { CORE_SCAN_SETTING_CPU, "100", 1000 },
	{ CORE_SCAN_SETTING_CPU, "007.5", 75 },	  { CORE_SCAN_SETTING_MAPS, "1", 1 },
	{ CORE_SCAN_SETTING_MAPS, "90", 90 },	  { CORE_SCAN_SETTING_FIRST, "10", 10 },
	{ CORE_SCAN_SETTING_FIRST, "60000", 60000 },
	{ CORE_SCAN_SETTING_MOST, "3600000", 3600000 },
	{ CORE_SCAN_SETTING_HUGE, "1", 1 },	  { CORE_SCAN_SETTING_HUGE, "101", 101 },
	{ CORE_SCAN_SETTING_TRACKER, "auto", CORE_SCAN_TRACKER_AUTO },
	{ CORE_SCAN_SETTING_TRACKER, "wp-async", CORE_SCAN_TRACKER_WP_ASYNC },
	{ CORE_SCAN_SETTING_TRACKER, "checksum", CORE_SCAN_TRACKER_CHECKSUM },
};

static const struct {
	enum core_scan_setting setting;
	const char *text;
} bad[] = {
	{ CORE_SCAN_SETTING_CPU, "" },	      { CORE_SCAN_SETTING_CPU, "0" },
	{ CORE_SCAN_SETTING_CPU, "0.0" },     { CORE_SCAN_SETTING_CPU, "100.1" },
	{ CORE_SCAN_SETTING_CPU, "1.55" },    { CORE_SCAN_SETTING_CPU, "1." },
	{ CORE_SCAN_SETTING_CPU, "1.2.3" },   { CORE_SCAN_SETTING_CPU, "." },
	{ CORE_SCAN_SETTING_CPU, "-1" },      { CORE_SCAN_SETTING_CPU, "+1" },
	{ CORE_SCAN_SETTING_CPU, " 1" },      { CORE_SCAN_SETTING_CPU, "1 " },
	{ CORE_SCAN_SETTING_CPU, "1%" },      { CORE_SCAN_SETTING_CPU, "1e1" },
	{ CORE_SCAN_SETTING_CPU, "0x1" },     { CORE_SCAN_SETTING_CPU, "18446744073709551617" },
	{ CORE_SCAN_SETTING_CPU, "4294967306" },
	{ CORE_SCAN_SETTING_MAPS, "0" },      { CORE_SCAN_SETTING_MAPS, "91" },
	{ CORE_SCAN_SETTING_MAPS, "1.5" },    { CORE_SCAN_SETTING_FIRST, "9" },
	{ CORE_SCAN_SETTING_FIRST, "60001" }, { CORE_SCAN_SETTING_FIRST, "4294967306" },
	{ CORE_SCAN_SETTING_MOST, "3600001" }, { CORE_SCAN_SETTING_HUGE, "0" },
	{ CORE_SCAN_SETTING_HUGE, "102" },    { CORE_SCAN_SETTING_TRACKER, "" },
	{ CORE_SCAN_SETTING_TRACKER, "checksums" }, { CORE_SCAN_SETTING_TRACKER, "check" },
	{ CORE_SCAN_SETTING_TRACKER, "auto wp-async" }, { CORE_SCAN_SETTING_TRACKER, "AUTO" },
	{ CORE_SCAN_SETTING_SCAN, "" },	      { CORE_SCAN_SETTING_SCAN, "yes" },
	{ CORE_SCAN_SETTING_SCAN, "o" },      { CORE_SCAN_SETTING_SCAN, "on off" },
	{ CORE_SCAN_SETTINGS, "1" },
};

static void test_good(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		struct core_scan_config c = { 0 }, want = { 0 };

		*field_of(&c, good[i].setting) = 77;
		assert_true(core_scan_setting_set(&c, good[i].setting, good[i].text));
		*field_of(&want, good[i].setting) = good[i].value;
		assert_memory_equal(&c, &want, sizeof(c));
	}
}

static void test_bad(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct core_scan_config c, before;

		memset(&c, 0x35, sizeof(c));
		before = c;
		if (core_scan_setting_set(&c, bad[i].setting, bad[i].text))
			fail_msg("taken for good: \"%s\"", bad[i].text);
		assert_memory_equal(&c, &before, sizeof(c));
	}
}

/* Whatever text: what is taken lies in what is allowed, else nothing changes. */
static void test_random_text(void **state)
{
	static const char letters[] = "0123456789.-+eox ";
	unsigned taken = 0;

	(void)state;
	for (unsigned i = 0; i < 200000; i++) {
		struct core_scan_config c = { .cpu_permille = 3 };
		char text[12];
		size_t n = unit_random(&random_state) % (sizeof(text) - 1);
		double value;

		for (size_t k = 0; k < n; k++)
			text[k] = letters[unit_random(&random_state) % (sizeof(letters) - 1)];
		text[n] = '\0';
		if (!core_scan_setting_set(&c, CORE_SCAN_SETTING_CPU, text)) {
			assert_int_equal(c.cpu_permille, 3);
			continue;
		}
		taken++;
		value = strtod(text, NULL) * 10;
		assert_true(c.cpu_permille >= 1 && c.cpu_permille <= 1000);
		assert_true(value > c.cpu_permille - 0.01 && value < c.cpu_permille + 0.01);
	}
	assert_true(taken > 100);
}

static void test_on_and_off(void **state)
{
	struct core_scan_config c = { .flags = 0x80 };

	(void)state;
	assert_true(core_scan_setting_set(&c, CORE_SCAN_SETTING_SCAN, "on"));
	assert_int_equal(c.flags, 0x80 | CORE_SCAN_ON);
	assert_true(core_scan_setting_set(&c, CORE_SCAN_SETTING_SCAN, "off"));
	assert_int_equal(c.flags, 0x80 | CORE_SCAN_OFF);
	assert_true(core_scan_setting_set(&c, CORE_SCAN_SETTING_SCAN, "auto"));
	assert_int_equal(c.flags, 0x80);
}

/* What is set goes before, what is not leaves what was there. */
static void test_override(void **state)
{
	const struct core_scan_config none = { 0 };

	(void)state;
	for (unsigned set = 0; set < 64; set++) {
		struct core_scan_config base = { 0, 1, 2, 3, 4, 5, 6, 0 }, from = { 0 }, want = base;
		uint32_t *f = &from.tracker, *w = &want.tracker;

		for (unsigned i = 0; i < 6; i++)
			if (set & 1u << i)
				f[i] = w[i] = 100 + i;
		core_scan_config_override(&base, &from);
		assert_memory_equal(&base, &want, sizeof(base));
		core_scan_config_override(&base, &none);
		assert_memory_equal(&base, &want, sizeof(base));
	}
}

static void test_override_flags(void **state)
{
	static const uint32_t flags[] = { 0, CORE_SCAN_ON, CORE_SCAN_OFF };

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		for (unsigned k = 0; k < 3; k++) {
			struct core_scan_config base = { .flags = flags[i] },
						from = { .flags = flags[k] };

			core_scan_config_override(&base, &from);
			assert_int_equal(base.flags, flags[k] ? flags[k] : flags[i]);
		}
}

/* The shortest time between looks is no longer than the longest, defaults included. */
static void test_fits(void **state)
{
	static const struct {
		uint32_t first, most;
		bool fits;
	} cases[] = { { 0, 0, true },	     { 100, 100, true },  { 101, 100, false },
		      { 10000, 0, true },    { 10001, 0, false }, { 0, 100, true },
		      { 0, 99, false },	     { 60000, 3600000, true } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct core_scan_config c = { .first_msec = cases[i].first,
					      .most_msec = cases[i].most };

		assert_int_equal(core_scan_config_fits(&c), cases[i].fits);
	}
}

/* Each has a name, a variable and a text of its own, and they end within their room. */
static void test_names(void **state)
{
	(void)state;
	for (unsigned i = 0; i < CORE_SCAN_SETTINGS; i++) {
		assert_true(strncmp(core_scan_setting_name(i), "scan", 4) == 0);
		assert_true(strncmp(core_scan_setting_variable(i), "SAMEPAGE_SCAN", 13) == 0);
		assert_true(strlen(core_scan_setting_name(i)) < 20);
		assert_true(strlen(core_scan_setting_variable(i)) < 24);
		assert_true(strlen(core_scan_setting_allowed(i)) > 0);
		assert_true(strlen(core_scan_setting_allowed(i)) < 32);
		for (unsigned k = 0; k < i; k++)
			assert_true(strcmp(core_scan_setting_name(i), core_scan_setting_name(k)));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_random_text),
		cmocka_unit_test(test_on_and_off),
		cmocka_unit_test(test_override),
		cmocka_unit_test(test_override_flags),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_fits),
	};

	return cmocka_run_group_tests_name("unit-scan-config", tests, NULL, NULL);
}
