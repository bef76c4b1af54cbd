/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading ksm_stat. If this failed, samepage would take a kernel that counts nothing for
 * one that does, or say of pages that something became of them that did not (I9).
 */
#include "sys/ksm.h"
#include "sys/probe.h"
#include "sys_test.h"

static const char whole[] = "ksm_rmap_items 7\n"
			    "ksm_zero_pages -1\n"
			    "ksm_merging_pages 12\n"
			    "ksm_process_profit -4096\n"
			    "ksm_merge_looked 21\n"
			    "ksm_merge_merged 1\n"
			    "ksm_merge_already 2\n"
			    "ksm_merge_zero 3\n"
			    "ksm_merge_unique 4\n"
			    "ksm_merge_busy 5\n"
			    "ksm_merge_skipped 18446744073709551600\n"
			    "ksm_merge_any yes\n";

static void every_line_finds_its_number(void **state)
{
	struct sys_ksm_stat s;

	(void)state;
	assert_true(sys_ksm_stat_parse(whole, sizeof(whole) - 1, &s));
	assert_int_equal(s.merging_pages, 12);
	assert_int_equal(s.looked, 21);
	assert_int_equal(s.merged, 1);
	assert_int_equal(s.already, 2);
	assert_int_equal(s.zero, 3);
	assert_int_equal(s.unique, 4);
	assert_int_equal(s.busy, 5);
	assert_true(s.skipped == 18446744073709551600u);
	/* without the last newline */
	assert_true(sys_ksm_stat_parse("", 0, &s) == false);
	assert_true(sys_ksm_stat_parse(whole, strlen(whole) - strlen("\nksm_merge_any yes\n"), &s));
}

/* Cut anywhere, it is either the whole truth or refused. */
static void what_is_cut_is_refused(void **state)
{
	size_t last = (size_t)(strstr(whole, "ksm_merge_skipped ") - whole) +
		      strlen("ksm_merge_skipped ");
	struct sys_ksm_stat s;

	(void)state;
	for (size_t n = 0; n <= last; n++)
		assert_false(sys_ksm_stat_parse(whole, n, &s));
}

static void what_is_no_number_is_refused(void **state)
{
	static const char *const bad[] = { "", "-1", "1x", " 1", "18446744073709551616",
					   "99999999999999999999999" };
	struct sys_ksm_stat s;
	char text[sizeof(whole) + 64];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const char *at = strstr(whole, "21");

		snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - whole), whole, bad[i], at + 2);
		assert_false(sys_ksm_stat_parse(text, strlen(text), &s));
	}
}

/* A stock kernel: no such lines. With the series: they are there and add up. */
static void the_kernel_agrees_with_the_probe(void **state)
{
	struct sys_features f;
	struct sys_ksm_stat s;
	int fd = sys_ksm_stat_open(), err;

	(void)state;
	sys_probe(&f);
	if (fd < 0) {
		assert_false(f.merge_counts);
		SKIP("this kernel has no ksm_stat");
	}
	err = sys_ksm_stat_read(fd, &s);
	assert_int_equal(f.merge_counts, err == 0);
	assert_true(err == 0 || err == -ENODATA);
	if (err == 0)
		assert_true(s.looked ==
			    s.merged + s.already + s.zero + s.unique + s.busy + s.skipped);
	/* and from the start again */
	assert_int_equal(sys_ksm_stat_read(fd, &s), err);
	close(fd);
	assert_int_equal(sys_ksm_stat_read(fd, &s), -EBADF);
}

static void all_three_are_needed(void **state)
{
	struct sys_features f = { .madv_merge = true, .merge_scope = true, .merge_counts = true };

	(void)state;
	assert_true(sys_probe_kernel_merges(&f));
	f.merge_scope = false;
	assert_false(sys_probe_kernel_merges(&f));
	f.merge_scope = true;
	f.merge_counts = false;
	assert_false(sys_probe_kernel_merges(&f));
	f.merge_counts = true;
	f.madv_merge = false;
	assert_false(sys_probe_kernel_merges(&f));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_line_finds_its_number),
		TEST(what_is_cut_is_refused),
		TEST(what_is_no_number_is_refused),
		TEST(the_kernel_agrees_with_the_probe),
		TEST(all_three_are_needed),
	};

	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-ksm", tests, NULL, NULL);
}
