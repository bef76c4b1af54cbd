/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The public calls, from outside. If this failed, a call would not give the errno
 * that include/samepage.h documents, would crash on NULL, or would change something
 * although it refused; or the names that --json shows would have moved.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "samepage.h"

#define PAGES 64u

static size_t page;

static struct samepage_options embedded(void)
{
	return (struct samepage_options){ .size = sizeof(struct samepage_options),
					  .flags = SAMEPAGE_EMBEDDED,
					  .store_bytes = 16u << 20 };
}

static struct samepage *open_embedded(void)
{
	struct samepage_options o = embedded();
	struct samepage *sp = NULL;

	assert_int_equal(samepage_open(&sp, &o), 0);
	assert_non_null(sp);
	return sp;
}

static char *map(size_t pages)
{
	char *p = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	assert_true(p != MAP_FAILED);
	for (size_t i = 0; i < pages; i++)
		memset(p + i * page, (int)(1 + i % 200), page);
	return p;
}

static bool as_mapped(const char *p, size_t pages)
{
	for (size_t i = 0; i < pages * page; i++)
		if (p[i] != (char)(1 + i / page % 200))
			return false;
	return true;
}

static void refused(const struct samepage_options *o, int want)
{
	struct samepage *sp = (struct samepage *)&page;

	assert_int_equal(samepage_open(&sp, o), want);
	assert_null(sp);
}

static void open_checks_its_options(void **state)
{
	static const char *bad_domains[] = {
		"", "a b", "a/b", "..//", "\xc3\xa4", "a\n",
		"0123456789012345678901234567890123456789012345678901234567890123",
	};
	struct samepage_options o = embedded();

	(void)state;
	assert_int_equal(samepage_open(NULL, &o), -EINVAL);
	assert_int_equal(samepage_open(NULL, NULL), -EINVAL);
	o.size = 0;
	refused(&o, -EINVAL);
	o.size = sizeof(o) - 1;
	refused(&o, -EINVAL);
	o.size = sizeof(o) + 8;
	refused(&o, -EINVAL);
	o = embedded();
	o.flags |= 2;
	refused(&o, -EINVAL);
	o.flags = 0x80000000u;
	refused(&o, -EINVAL);
	o = embedded();
	o.reserved = 1;
	refused(&o, -EINVAL);
	o = embedded();
	o.store_bytes = 1; /* not one page */
	refused(&o, -EINVAL);
	for (size_t i = 0; i < sizeof(bad_domains) / sizeof(bad_domains[0]); i++) {
		o = embedded();
		o.domain = bad_domains[i];
		refused(&o, -EINVAL);
		o.flags = 0;
		refused(&o, -EINVAL);
	}
}

static void open_without_a_broker(void **state)
{
	struct samepage_options o = { .size = sizeof(o), .socket_path = "/nonexistent/broker.sock" };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	char dir[] = "/tmp/samepage-lib-XXXXXX";
	int fd;

	(void)state;
	refused(&o, -ENOENT);
	assert_non_null(mkdtemp(dir));
	snprintf(un.sun_path, sizeof(un.sun_path), "%s/sock", dir);
	o.socket_path = un.sun_path;
	refused(&o, -ENOENT);
	/* A socket that nobody listens on any more. */
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	refused(&o, -ECONNREFUSED);
	close(fd);
	refused(&o, -ECONNREFUSED);
	unlink(un.sun_path);
	/* The same by the environment. */
	setenv("SAMEPAGE_SOCKET", un.sun_path, 1);
	refused(NULL, -ENOENT);
	o = (struct samepage_options){ .size = sizeof(o) };
	refused(&o, -ENOENT);
	unsetenv("SAMEPAGE_SOCKET");
	rmdir(dir);
}

static void null_handles(void **state)
{
	struct samepage_result r;
	struct samepage_stats st;
	char *p = map(1);

	(void)state;
	samepage_close(NULL);
	assert_int_equal(samepage_merge(NULL, p, page, 0, &r), -EINVAL);
	assert_int_equal(samepage_unmerge(NULL, p, page), -EINVAL);
	assert_int_equal(samepage_discard(NULL, p, page), -EINVAL);
	assert_int_equal(samepage_stats(NULL, &st, sizeof(st)), -EINVAL);
	assert_true(as_mapped(p, 1));
	munmap(p, page);
}

static void ranges_are_checked(void **state)
{
	struct samepage *sp = open_embedded();
	struct samepage_result r;
	char *p = map(PAGES);

	(void)state;
	assert_int_equal(samepage_merge(sp, p + 1, page, 0, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, p, page, 4, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, p, SIZE_MAX, 0, &r), -EINVAL);
	assert_int_equal(samepage_merge(sp, p, SIZE_MAX - (size_t)p - page + 2, 0, &r), -EINVAL);
	assert_int_equal(samepage_unmerge(sp, p + page / 2, page), -EINVAL);
	assert_int_equal(samepage_unmerge(sp, p, SIZE_MAX), -EINVAL);
	assert_int_equal(samepage_discard(sp, p + page / 2, page), -EINVAL);
	assert_int_equal(samepage_discard(sp, p, SIZE_MAX), -EINVAL);
	assert_true(as_mapped(p, PAGES));
	assert_int_equal(samepage_merge(sp, p, 0, 0, NULL), 0);
	assert_int_equal(samepage_unmerge(sp, p, 0), 0);
	assert_int_equal(samepage_discard(sp, p, 0), 0);
	assert_true(as_mapped(p, PAGES));
	/* Not mapped at all. */
	munmap(p, PAGES * page);
	memset(&r, 0xff, sizeof(r));
	assert_int_equal(samepage_merge(sp, p, PAGES * page, 0, &r), -ENOMEM);
	assert_int_equal(r.pages_looked, 0);
	assert_int_equal(samepage_unmerge(sp, p, PAGES * page), -ENOMEM);
	assert_int_equal(samepage_discard(sp, p, PAGES * page), -ENOMEM);
	samepage_close(sp);
}

static uint64_t declined(const struct samepage_result *r)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < SAMEPAGE_REASON_MAX; i++)
		n += r->pages_declined[i];
	return n;
}

static bool kernel_merges(struct samepage *sp)
{
	struct samepage_stats st;

	return samepage_stats(sp, &st, sizeof(st)) == 0 &&
	       st.primitive == SAMEPAGE_PRIMITIVE_KERNEL;
}

/* Works without any privilege: then every page has a reason. */
static void one_of_each(void **state)
{
	struct samepage *sp = open_embedded();
	struct samepage_result r;
	struct samepage_stats st;
	char *p = map(PAGES), *q = map(PAGES);

	(void)state;
	memset(p, 0, page);
	assert_int_equal(samepage_merge(sp, p, PAGES * page, 0, &r), 0);
	assert_int_equal(r.pages_looked, PAGES);
	assert_int_equal(r.pages_looked,
			 r.pages_merged + r.pages_zeroed + r.pages_already + declined(&r));
	if (r.pages_declined[SAMEPAGE_REASON_NO_FREEZE])
		print_message("# nothing can be frozen here\n");
	else if (kernel_merges(sp)) /* which wants two of a kind */
		assert_true(r.pages_declined[SAMEPAGE_REASON_UNIQUE] >= PAGES - 2);
	else
		assert_true(r.pages_merged >= PAGES - 2 && r.pages_zeroed == 1);
	assert_int_equal(samepage_merge(sp, q, PAGES * page, 0, NULL), 0);
	assert_true(as_mapped(q, PAGES));
	memset(p, 1, page);
	assert_true(as_mapped(p, PAGES));
	memset(&st, 0xff, sizeof(st));
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	assert_int_equal(st.merges, 2);
	assert_int_equal(st.total.pages_looked, 2 * PAGES);
	assert_int_equal(st.zero_pages, st.total.pages_zeroed);
	assert_int_equal(st.reconnects, 0);
	assert_true(st.own_bytes > 0 && st.own_bytes < (64u << 20));
	assert_true(st.pages_sharing + 1 >= st.total.pages_merged);
	assert_int_equal(samepage_unmerge(sp, p, PAGES * page), 0);
	assert_true(as_mapped(p, PAGES));
	assert_int_equal(samepage_discard(sp, q, PAGES * page), 0);
	for (size_t i = 0; i < PAGES * page; i++)
		assert_int_equal(q[i], 0);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	/* The kernel notices late what was discarded. */
	assert_true(st.pages_sharing == 0 || kernel_merges(sp));
	samepage_close(sp);
	assert_true(as_mapped(p, PAGES));
	munmap(p, PAGES * page);
	munmap(q, PAGES * page);
}

static void stats_check_their_size(void **state)
{
	struct samepage *sp = open_embedded();
	const size_t first_size = offsetof(struct samepage_stats, primitive);
	struct samepage_stats st;

	(void)state;
	assert_int_equal(samepage_stats(sp, NULL, sizeof(st)), -EINVAL);
	assert_int_equal(samepage_stats(sp, &st, 0), -EINVAL);
	assert_int_equal(samepage_stats(sp, &st, first_size - 8), -EINVAL);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st) - 4), -EINVAL);
	/* As programs have it that were built before `primitive`: not a byte more is written. */
	st.primitive = st.reserved = 0x5a5a5a5a;
	assert_int_equal(samepage_stats(sp, &st, first_size), 0);
	assert_true(st.primitive == 0x5a5a5a5a && st.reserved == 0x5a5a5a5a);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st) + 8), -EINVAL);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	assert_int_equal(st.merges, 0);
	assert_int_equal(st.reserved, 0);
	assert_true(st.primitive == SAMEPAGE_PRIMITIVE_REMAP ||
		    st.primitive == SAMEPAGE_PRIMITIVE_KERNEL);
	samepage_close(sp);
}

/* These stand in people's scripts: never change one, add at the end. */
static void reasons_have_names(void **state)
{
	static const char *const names[] = {
		"unique", "changed", "vanished", "vma_kind", "vma_flags", "protection", "policy",
		"uffd_busy", "no_freeze", "fork_shared", "pinned", "swapped", "not_owned",
		"excluded", "map_count", "no_memory", "quota", "no_broker", "stopped", "failed",
	};
	const unsigned known = sizeof(names) / sizeof(names[0]);

	(void)state;
	assert_true(SAMEPAGE_REASON_COUNT >= known && SAMEPAGE_REASON_COUNT <= SAMEPAGE_REASON_MAX);
	for (unsigned i = 0; i < known; i++)
		assert_string_equal(samepage_reason_name(i), names[i]);
	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++) {
		assert_non_null(samepage_reason_name(i));
		assert_non_null(samepage_reason_text(i));
		assert_true(strlen(samepage_reason_text(i)) > 5);
	}
	assert_null(samepage_reason_name(SAMEPAGE_REASON_COUNT));
	assert_null(samepage_reason_text(SAMEPAGE_REASON_COUNT));
	assert_null(samepage_reason_name(UINT32_MAX));
	assert_null(samepage_reason_text(UINT32_MAX));
	assert_string_equal(samepage_version(), WANT_VERSION);
}

/* A program that closes "every" descriptor, and one that has none left. */
static void descriptors_are_its_own(void **state)
{
	struct samepage *sp = open_embedded();
	struct rlimit old, none;
	char *p = map(PAGES);
	int before = dup(0), after;

	(void)state;
	close(before);
	for (int fd = 3; fd < 200; fd++)
		close(fd);
	assert_int_equal(samepage_merge(sp, p, PAGES * page, 0, NULL), 0);
	assert_true(as_mapped(p, PAGES));
	after = dup(0);
	close(after);
	assert_true(after <= before); /* the library takes no numbers from the program */
	getrlimit(RLIMIT_NOFILE, &old);
	none = (struct rlimit){ 3, old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &none);
	(void)samepage_merge(sp, p, PAGES * page, 0, NULL);
	setrlimit(RLIMIT_NOFILE, &old);
	assert_true(as_mapped(p, PAGES));
	assert_int_equal(samepage_discard(sp, p, PAGES * page), 0);
	samepage_close(sp);
	munmap(p, PAGES * page);
}

static void fork_hooks_do_no_harm(void **state)
{
	struct samepage *sp;
	char *p = map(PAGES);

	(void)state;
	samepage_fork_parent();
	samepage_fork_child();
	samepage_fork_prepare();
	samepage_fork_prepare();
	samepage_fork_parent();
	samepage_fork_parent();
	sp = open_embedded();
	assert_int_equal(samepage_merge(sp, p, PAGES * page, 0, NULL), 0);
	samepage_close(sp);
	munmap(p, PAGES * page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(open_checks_its_options),
		cmocka_unit_test(open_without_a_broker),
		cmocka_unit_test(null_handles),
		cmocka_unit_test(ranges_are_checked),
		cmocka_unit_test(one_of_each),
		cmocka_unit_test(stats_check_their_size),
		cmocka_unit_test(reasons_have_names),
		cmocka_unit_test(descriptors_are_its_own),
		cmocka_unit_test(fork_hooks_do_no_harm),
	};

	page = (size_t)sysconf(_SC_PAGESIZE);
	return cmocka_run_group_tests_name("lib-api", tests, NULL, NULL);
}
