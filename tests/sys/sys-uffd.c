/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * UFFDIO_MOVE and UFFDIO_COPY through the table. If this failed, a freeze that
 * stops half-way (a hole, a pinned or shared page) would lose the pages that had
 * moved already, or put a store over pages that had not (I2, I3).
 */
#include "sys_test.h"

#define PAGES 8

static size_t page_bytes;

static int open_uffd(void)
{
	int fd = sys->uffd_open(O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = sys->uffd_open(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		SKIP("no userfaultfd here");
	if (sys->uffd_api(fd, SYS_UFFD_FEATURE_MOVE, NULL) < 0) {
		sys->close(fd);
		SKIP("this kernel has no UFFDIO_MOVE");
	}
	return fd;
}

/* Is there a page (in memory or swapped out)? Does not touch it. */
static bool present(const unsigned char *page)
{
	int fd = sys_real.open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	uint64_t entry = 0;

	assert_true(fd >= 0);
	assert_int_equal(sys_real.pread(fd, &entry, 8, (off_t)((uintptr_t)page / page_bytes * 8)), 8);
	sys_real.close(fd);
	return entry >> 62 != 0;
}

struct pair {
	int fd;
	unsigned char *from;
	unsigned char *to;
};

static struct pair make_pair(void)
{
	struct pair p = { .fd = open_uffd() };

	p.from = test_map(PAGES, true);
	p.to = test_map(PAGES, false);
	assert_int_equal(sys->uffd_register(p.fd, p.to, PAGES * page_bytes,
					    UFFDIO_REGISTER_MODE_MISSING), 0);
	return p;
}

static void drop_pair(struct pair *p)
{
	sys->close(p->fd);
	test_unmap(p->from, PAGES);
	test_unmap(p->to, PAGES);
}

/* The first n pages are in `to`; the others, but `hole`, still in `from`. */
static void check_split(const struct pair *p, size_t n, size_t hole)
{
	for (size_t i = 0; i < PAGES; i++) {
		const unsigned char *from = p->from + i * page_bytes;
		const unsigned char *to = p->to + i * page_bytes;

		assert_int_equal(present(to), i < n);
		assert_int_equal(present(from), i >= n && i != hole);
		if (i < n)
			assert_int_equal(to[0], i + 1);
		else if (i != hole)
			assert_int_equal(from[0], i + 1);
	}
}

static void all_pages_move(void **state)
{
	struct pair p = make_pair();
	size_t moved = 0;

	(void)state;
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, PAGES * page_bytes, &moved), 0);
	assert_int_equal(moved, PAGES * page_bytes);
	check_split(&p, PAGES, PAGES);
	drop_pair(&p);
}

static void a_hole_stops_the_move(void **state)
{
	(void)state;
	for (size_t hole = 0; hole < PAGES; hole++) {
		struct pair p = make_pair();
		size_t moved = 99;

		sys->madvise(p.from + hole * page_bytes, page_bytes, MADV_DONTNEED);
		assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, PAGES * page_bytes, &moved),
				 -ENOENT);
		assert_int_equal(moved, hole * page_bytes);
		check_split(&p, hole, hole);
		drop_pair(&p);
	}
}

/* A page that a fork left shared is not ours alone: EBUSY, as for a pinned one. */
static void a_shared_page_stops_the_move(void **state)
{
	struct pair p = make_pair();
	size_t moved = 99;
	int go[2];
	pid_t child;
	char c;

	(void)state;
	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(go[1]);
		_exit(read(go[0], &c, 1) == 0 ? 0 : 1);
	}
	close(go[0]);
	for (size_t i = 0; i < PAGES; i++)
		if (i != 5)
			p.from[i * page_bytes + 1] = 1; /* a copy of our own */
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, PAGES * page_bytes, &moved), -EBUSY);
	assert_int_equal(moved, 5 * page_bytes);
	check_split(&p, 5, PAGES);
	close(go[1]);
	assert_int_equal(waitpid(child, NULL, 0), child);
	drop_pair(&p);
}

static void a_page_in_the_way_stops_move_and_copy(void **state)
{
	(void)state;
	for (int copy = 0; copy < 2; copy++) {
		struct pair p = make_pair();
		size_t done = 0;
		int r;

		assert_int_equal(sys->uffd_move(p.fd, p.to + 3 * page_bytes, p.from + 3 * page_bytes,
						page_bytes, &done), 0);
		p.from[3 * page_bytes] = 4;
		done = 99;
		r = copy ? sys->uffd_copy(p.fd, p.to, p.from, PAGES * page_bytes, &done) :
			   sys->uffd_move(p.fd, p.to, p.from, PAGES * page_bytes, &done);
		assert_int_equal(r, -EEXIST);
		assert_int_equal(done, 3 * page_bytes);
		for (size_t i = 0; i < PAGES; i++) {
			assert_int_equal(present(p.to + i * page_bytes), i <= 3);
			assert_int_equal(present(p.from + i * page_bytes), copy || i >= 3);
		}
		drop_pair(&p);
	}
}

static void all_pages_are_copied(void **state)
{
	struct pair p = make_pair();
	size_t copied = 0;

	(void)state;
	assert_int_equal(sys->uffd_copy(p.fd, p.to, p.from, PAGES * page_bytes, &copied), 0);
	assert_int_equal(copied, PAGES * page_bytes);
	assert_memory_equal(p.to, p.from, PAGES * page_bytes);
	drop_pair(&p);
}

static void senseless_moves_are_refused(void **state)
{
	struct pair p = make_pair();
	size_t moved = 99;

	(void)state;
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, 0, &moved), -EINVAL);
	assert_int_equal(moved, 0);
	moved = 99;
	assert_int_equal(sys->uffd_move(p.fd, p.to + 1, p.from, page_bytes, &moved), -EINVAL);
	assert_int_equal(moved, 0);
	moved = 99;
	assert_int_equal(sys->uffd_move(p.fd, p.from, p.to, page_bytes, &moved), -EINVAL);
	assert_int_equal(moved, 0);
	check_split(&p, 0, PAGES);
	drop_pair(&p);
}

static void a_faulted_ebusy_moves_half(void **state)
{
	struct pair p = make_pair();
	size_t moved = 99;

	(void)state;
	sys_fault_arm(SYS_FAULT_uffd_move, 1, EBUSY, 1);
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, 7 * page_bytes, &moved), -EBUSY);
	assert_int_equal(moved, 3 * page_bytes);
	check_split(&p, 3, PAGES);
	drop_pair(&p);
}

static void other_faults_move_nothing(void **state)
{
	struct pair p = make_pair();
	size_t moved = 99;

	(void)state;
	sys_fault_arm(SYS_FAULT_uffd_move, 1, EBUSY, 1);
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, page_bytes, &moved), -EBUSY);
	assert_int_equal(moved, 0);
	sys_fault_arm(SYS_FAULT_uffd_move, 1, ENOMEM, 1);
	moved = 99;
	assert_int_equal(sys->uffd_move(p.fd, p.to, p.from, PAGES * page_bytes, &moved), -ENOMEM);
	assert_int_equal(moved, 0);
	check_split(&p, 0, PAGES);
	drop_pair(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(all_pages_move),
		TEST(a_hole_stops_the_move),
		TEST(a_shared_page_stops_the_move),
		TEST(a_page_in_the_way_stops_move_and_copy),
		TEST(all_pages_are_copied),
		TEST(senseless_moves_are_refused),
		TEST(a_faulted_ebusy_moves_half),
		TEST(other_faults_move_nothing),
	};

	page_bytes = sys_page_bytes();
	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-uffd", tests, NULL, NULL);
}
