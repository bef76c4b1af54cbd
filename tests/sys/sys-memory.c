/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory and memfd entries. If this failed, a store would hand out descriptors
 * that can write (I1, I4), give away or keep segments by a wrong answer about who
 * uses them, or read its own memory wrongly before it is frozen.
 */
#include <linux/mempolicy.h>
#include <sys/syscall.h>

#include "sys/maps.h"
#include "sys_test.h"

static size_t page_bytes;

static void mappings_come_move_and_go(void **state)
{
	intptr_t at = sys->mmap(NULL, 2 * page_bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	intptr_t to;

	(void)state;
	assert_true(at > 0);
	*(char *)at = 'x';
	to = sys->mremap((void *)at, 2 * page_bytes, 8 * page_bytes, MREMAP_MAYMOVE, NULL);
	assert_true(to > 0);
	assert_int_equal(*(char *)to, 'x');
	assert_int_equal(sys->madvise((void *)to, page_bytes, MADV_DONTNEED), 0);
	assert_int_equal(*(char *)to, 0);
	assert_int_equal(sys->munmap((void *)to, 8 * page_bytes), 0);
	assert_int_equal(sys->madvise((void *)to, page_bytes, MADV_NORMAL), -ENOMEM);
}

/* Reading oneself stops at a hole: it says how far it came, or EFAULT; it never crashes. */
static void reading_oneself_survives_holes(void **state)
{
	unsigned char *from = test_map(3, true);
	unsigned char *to = test_map(3, false);
	struct iovec in = { .iov_base = to, .iov_len = 3 * page_bytes };
	struct iovec out[3];

	(void)state;
	for (size_t i = 0; i < 3; i++)
		out[i] = (struct iovec){ .iov_base = from + i * page_bytes, .iov_len = page_bytes };
	assert_int_equal(sys->read_self(&in, 1, out, 3), 3 * page_bytes);
	assert_memory_equal(to, from, 3 * page_bytes);
	sys->munmap(from + page_bytes, page_bytes);
	assert_int_equal(sys->read_self(&in, 1, out, 3), page_bytes);
	assert_int_equal(sys->read_self(&in, 1, out + 1, 2), -EFAULT);
	assert_int_equal(sys->read_self(&in, 1, out + 2, 1), page_bytes);
	test_unmap(from, 3);
	test_unmap(to, 3);
}

/* A cached pid would make a child read its parent. */
static void a_child_reads_itself(void **state)
{
	unsigned char *page = test_map(1, true);
	struct iovec out = { .iov_base = page, .iov_len = 1 };
	unsigned char got = 0;
	struct iovec in = { .iov_base = &got, .iov_len = 1 };
	int status;
	pid_t child;

	(void)state;
	assert_int_equal(sys->read_self(&in, 1, &out, 1), 1);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		page[0] = 99;
		_exit(sys->read_self(&in, 1, &out, 1) == 1 && got == 99 ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	test_unmap(page, 1);
}

static void memory_policy_is_seen(void **state)
{
	unsigned char *page = test_map(1, false);
	unsigned long nodes = 1;
	int mode = -1;
	int r = sys->get_mempolicy_at(page, &mode);

	(void)state;
	if (r == -ENOSYS) {
		test_unmap(page, 1);
		SKIP("this kernel has no memory policies");
	}
	assert_int_equal(r, 0);
	assert_int_equal(mode, MPOL_DEFAULT);
	if (syscall(SYS_mbind, page, page_bytes, MPOL_PREFERRED, &nodes, 8 * sizeof(nodes), 0) == 0) {
		assert_int_equal(sys->get_mempolicy_at(page, &mode), 0);
		assert_int_equal(mode, MPOL_PREFERRED);
	}
	test_unmap(page, 1);
}

static void seals_hold(void **state)
{
	const unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
	int fd = sys->memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	intptr_t writable;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(sys->ftruncate(fd, (off_t)page_bytes), 0);
	writable = sys->mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(writable > 0);
	assert_int_equal(sys->get_seals(fd), 0);
	assert_int_equal(sys->add_seals(fd, seals), 0);
	assert_int_equal(sys->get_seals(fd), seals);
	assert_int_equal(sys->ftruncate(fd, 0), -EPERM);
	assert_int_equal(sys->mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), -EPERM);
	*(char *)writable = 'x'; /* the old mapping still may */
	assert_int_equal(sys->add_seals(fd, F_SEAL_WRITE), -EBUSY);
	sys->munmap((void *)writable, page_bytes);
	assert_int_equal(sys->add_seals(fd, F_SEAL_WRITE), 0);
	sys->close(fd);
}

static void a_reopened_descriptor_cannot_write(void **state)
{
	int fd = sys->memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int ro;
	char byte = 0;

	(void)state;
	assert_int_equal(sys->ftruncate(fd, (off_t)page_bytes), 0);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	ro = sys->reopen_ro(fd);
	assert_true(ro >= 0);
	assert_int_equal(fcntl(ro, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fcntl(ro, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(sys->pread(ro, &byte, 1, 0), 1);
	assert_int_equal(byte, 'x');
	assert_int_equal(pwrite(ro, "y", 1, 0), -1);
	assert_int_equal(sys->ftruncate(ro, 0), -EINVAL);
	assert_int_equal(sys->mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0), -EACCES);
	/* its own open file: the offset is not shared */
	assert_int_equal(lseek(fd, 100, SEEK_SET), 100);
	assert_int_equal(lseek(ro, 0, SEEK_CUR), 0);
	assert_int_equal(sys->fchmod(fd, 0400), 0);
	assert_int_equal(sys->reopen_ro(-1), -EBADF);
	assert_int_equal(sys->reopen_ro(987654), -ENOENT);
	sys->close(ro);
	sys->close(fd);
}

static int find_inode(const struct sys_vma *vma, void *arg)
{
	return vma->inode == *(uint64_t *)arg;
}

static void the_inode_is_the_one_in_maps(void **state)
{
	static char buf[4096];
	int fd = sys->memfd_create("x", MFD_CLOEXEC);
	int other = sys->memfd_create("x", MFD_CLOEXEC);
	uint64_t inode = 0, another = 0;
	intptr_t at;

	(void)state;
	assert_int_equal(sys->ftruncate(fd, (off_t)page_bytes), 0);
	assert_int_equal(sys->inode(fd, &inode), 0);
	assert_int_equal(sys->inode(other, &another), 0);
	assert_true(inode != 0 && inode != another);
	assert_int_equal(sys_maps_each(0, buf, sizeof(buf), find_inode, &inode), 0);
	at = sys->mmap(NULL, page_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_true(at > 0);
	assert_int_equal(sys_maps_each(0, buf, sizeof(buf), find_inode, &inode), 1);
	sys->munmap((void *)at, page_bytes);
	sys->close(fd);
	sys->close(other);
}

/* What real_mem.c says about leases, in that order. */
static void a_lease_tells_who_is_left(void **state)
{
	int memfd = sys->memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int own, given, copy;
	intptr_t at;

	(void)state;
	assert_int_equal(sys->ftruncate(memfd, (off_t)page_bytes), 0);
	own = sys->reopen_ro(memfd);
	assert_true(own >= 0);
	assert_int_equal(sys->lease_try(own), 1);
	assert_int_equal(sys->lease_try(own), 1); /* nothing stays behind */
	assert_int_equal(fcntl(own, F_GETLEASE), F_UNLCK);

	given = sys->reopen_ro(memfd);
	assert_int_equal(sys->lease_try(own), 0);
	copy = fcntl(given, F_DUPFD_CLOEXEC, 0);
	at = sys->mmap(NULL, page_bytes, PROT_READ, MAP_PRIVATE, given, 0);
	assert_true(at > 0);
	sys->close(given);
	assert_int_equal(sys->lease_try(own), 0);
	sys->close(copy);
	assert_int_equal(sys->lease_try(own), 0); /* still mapped */
	sys->munmap((void *)at, page_bytes);
	assert_int_equal(sys->lease_try(own), 1);

	/* sealed, and its first descriptor gone, as a full segment is */
	assert_int_equal(sys->add_seals(memfd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	sys->close(memfd);
	assert_int_equal(sys->lease_try(own), 1);
	sys->close(own);
	assert_int_equal(sys->lease_try(own), -EBADF);
}

/*
 * Somebody opens the file again and again while we ask: the kernel signals the
 * holder of the lease, and SIGIO would have ended us.
 */
static void asking_for_leases_is_no_danger(void **state)
{
	int memfd = sys->memfd_create("x", MFD_CLOEXEC);
	int own = sys->reopen_ro(memfd);
	char path[64];
	int status;
	pid_t child;

	(void)state;
	assert_true(own >= 0);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), memfd);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(own); /* a copy of the same open file: not counted, but tidy */
		for (;;) {
			int fd = open(path, O_RDONLY | O_NONBLOCK);

			if (fd >= 0)
				close(fd);
		}
	}
	for (int i = 0; i < 20000; i++) {
		int r = sys->lease_try(own);

		assert_true(r == 0 || r == 1);
	}
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	sys->close(own);
	sys->close(memfd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(mappings_come_move_and_go),
		TEST(reading_oneself_survives_holes),
		TEST(a_child_reads_itself),
		TEST(memory_policy_is_seen),
		TEST(seals_hold),
		TEST(a_reopened_descriptor_cannot_write),
		TEST(the_inode_is_the_one_in_maps),
		TEST(a_lease_tells_who_is_left),
		TEST(asking_for_leases_is_no_danger),
	};

	page_bytes = sys_page_bytes();
	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-memory", tests, NULL, NULL);
}
