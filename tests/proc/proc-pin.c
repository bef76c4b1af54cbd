/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that somebody else holds. If this failed, a device would write into a
 * frame that the process no longer maps (I3), a page that a child still shares
 * would be taken from it, or huge pages would lose bytes when a part is merged.
 */
#include "proctest.h"
#include "ring.h"

#include "sys/sys.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define N 64u

/* The kernel does not say why it could not protect a page. */
#define PINNED (pt_kernel_merges() ? SAMEPAGE_REASON_BUSY : SAMEPAGE_REASON_PINNED)

static struct samepage *sp;

/* Half of the range is a registered buffer: it stays, and the device's bytes arrive. */
static void registered_buffers_are_pinned(void **state)
{
	char *p, *q;
	struct ring ring;
	struct iovec buf;
	struct samepage_result r;
	int file;

	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	p = pt_map(N);
	q = pt_map(N);
	pt_fill(p, N, 1);
	pt_fill(q, N, 2);
	file = memfd_create("source", MFD_CLOEXEC);
	assert_int_equal(write(file, q, N * pt_page()), N * pt_page());
	if (!ring_open(&ring))
		SKIP("no io_uring here");
	buf = (struct iovec){ p + N / 4 * pt_page(), N / 2 * pt_page() };
	if (syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buf, 1))
		SKIP("io_uring registers no buffers here");
	for (unsigned i = 0; i < 3; i++) {
		r = pt_merged(sp, p, N);
		assert_int_equal(r.pages_declined[PINNED], N / 2);
		assert_int_equal(pt_differs(p, N / 4, 1), -1);
		assert_int_equal(ring_read_fixed(&ring, file, buf.iov_base, (unsigned)buf.iov_len),
				 (int)buf.iov_len);
		assert_int_equal(memcmp(buf.iov_base, q, buf.iov_len), 0);
		/* And once more other bytes, so that each round sees the device write. */
		assert_int_equal(pwrite(file, p, buf.iov_len, 0), buf.iov_len);
		assert_int_equal(ring_read_fixed(&ring, file, buf.iov_base, (unsigned)pt_page()),
				 (int)pt_page());
		assert_int_equal(memcmp(buf.iov_base, p, pt_page()), 0);
		assert_int_equal(pwrite(file, q, buf.iov_len, 0), buf.iov_len);
	}
	ring_close(&ring);
	/* The kernel lets go of the pins in its own time. */
	for (unsigned i = 0; i < 500 && r.pages_declined[PINNED]; i++) {
		usleep(10000);
		r = pt_merged(sp, p, N);
	}
	assert_int_equal(r.pages_declined[PINNED], 0);
	close(file);
	samepage_close(sp);
	pt_unmap(p, N);
	pt_unmap(q, N);
}

/* --- fork -------------------------------------------------------------------- */

struct holder {
	char *p;
	int go[2];
};

static int hold_until_told(struct holder *h)
{
	char c;

	close(h->go[1]);
	return read(h->go[0], &c, 1) == 0 && pt_differs(h->p, N, 3) == -1 ? 0 : 1;
}

/*
 * Pages that a child still has: either they stay (FORK_SHARED), or the look has
 * made them the parent's own and they merge. Nobody's bytes change, and there is no
 * talk of pins, neither while the child lives nor after.
 */
static void fork_shared_pages(void **state)
{
	struct samepage_result r;
	struct holder h;
	pid_t pid;

	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	h.p = pt_map(N);
	pt_fill(h.p, N, 3);
	assert_int_equal(pipe(h.go), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(hold_until_told(&h));
	close(h.go[0]);
	r = pt_merged(sp, h.p, N / 2);
	assert_true(r.pages_merged + r.pages_declined[SAMEPAGE_REASON_FORK_SHARED] >= N / 2 - 2);
	assert_int_equal(r.pages_declined[PINNED], 0);
	/* What the parent writes is its own, merged or not. */
	for (size_t i = 0; i < N; i += 2)
		pt_fill_page(h.p + i * pt_page(), 9, i);
	r = pt_merged(sp, h.p, N);
	assert_int_equal(r.pages_declined[PINNED], 0);
	close(h.go[1]);
	assert_int_equal(pt_wait(pid, 30), 0);
	for (size_t i = 0; i < N; i++)
		assert_true(pt_page_is(h.p + i * pt_page(), i % 2 ? 3 : 9, i));
	r = pt_merged(sp, h.p, N);
	assert_int_equal(r.pages_declined[PINNED], 0);
	for (size_t i = 0; i < N; i++)
		assert_true(pt_page_is(h.p + i * pt_page(), i % 2 ? 3 : 9, i));
	samepage_close(sp);
	pt_unmap(h.p, N);
}

/* --- huge pages ---------------------------------------------------------------- */

static size_t huge_bytes(void)
{
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re");
	size_t n = 0;

	if (f && fscanf(f, "%zu", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	return n;
}

static bool has_huge(const char *p)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512];
	unsigned long from, to, kib;
	bool here = false;

	PT_CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &from, &to) == 2)
			here = (uintptr_t)p >= from && (uintptr_t)p < to;
		if (here && sscanf(line, "AnonHugePages: %lu", &kib) == 1 && kib) {
			fclose(f);
			return true;
		}
	}
	fclose(f);
	return false;
}

static char *map_huge(size_t bytes)
{
	char *p = pt_map_aligned(bytes, huge_bytes());

	madvise(p, bytes, MADV_HUGEPAGE);
	memset(p, 1, bytes);
	madvise(p, bytes, 25 /* MADV_COLLAPSE */);
	return p;
}

/* how: 0 all merged, 1 every third page zero, 2 only a middle part of the range */
static void one_huge(int how)
{
	size_t pages = 2 * huge_bytes() / pt_page(), first = how == 2 ? 100 : 0;
	size_t n = how == 2 ? pages - 300 : pages;
	char *p = map_huge(pages * pt_page()), *q = pt_map(pages);
	struct samepage_result r;

	if (!has_huge(p)) {
		munmap(p, pages * pt_page());
		pt_unmap(q, pages);
		samepage_close(sp);
		SKIP("no transparent huge page to be had");
	}
	pt_fill(p, pages, 4);
	pt_fill(q, pages, 4);
	for (size_t i = 0; how == 1 && i < pages; i += 3) {
		memset(p + i * pt_page(), 0, pt_page());
		memset(q + i * pt_page(), 0, pt_page());
	}
	assert_true(has_huge(p));
	r = pt_merged(sp, q, pages);
	r = pt_merged(sp, p + first * pt_page(), n);
	assert_int_equal(r.pages_looked, n);
	if (pt_kernel_merges() && how == 1) {
		/* Splitting a huge page maps its zero pages to the zero page by itself; those
		 * that had been looked at by then have changed meanwhile. */
		assert_int_equal(r.pages_zeroed + r.pages_already +
					 r.pages_declined[SAMEPAGE_REASON_BUSY], (n + 2) / 3);
		assert_int_equal(r.pages_merged, n - (n + 2) / 3);
	} else {
		assert_true(pt_complete(&r));
		assert_true(how != 1 || r.pages_zeroed == (n + 2) / 3);
	}
	assert_int_equal(memcmp(p, q, pages * pt_page()), 0);
	for (size_t i = 0; i < pages; i += 2)
		p[i * pt_page() + 5] ^= 1;
	for (size_t i = 0; i < pages; i += 2)
		p[i * pt_page() + 5] ^= 1;
	assert_int_equal(memcmp(p, q, pages * pt_page()), 0);
	munmap(p, pages * pt_page());
	pt_unmap(q, pages);
}

static void huge_pages(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	if (!huge_bytes())
		SKIP("no transparent huge pages in this kernel");
	sp = pt_open();
	for (int how = 0; how < 3; how++)
		one_huge(how);
	samepage_close(sp);
}

/*
 * Linux 6.8 to at least 6.12: UFFDIO_MOVE of a part of a huge page that somebody holds
 * cannot split it, and the kernel tries again for ever; only a deadly signal ends that.
 */
static int move_part(void *arg)
{
	size_t huge = huge_bytes(), moved = 0;
	char *p = map_huge(huge), *to = pt_map(1);
	struct ring ring;
	struct iovec buf = { p + 7 * pt_page(), pt_page() };
	int fd = sys->uffd_open(O_CLOEXEC | O_NONBLOCK);

	(void)arg;
	PT_CHECK(ring_open(&ring) && fd >= 0);
	PT_CHECK(syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buf, 1) == 0);
	PT_CHECK(sys->uffd_api(fd, SYS_UFFD_FEATURE_MOVE, NULL) == 0);
	PT_CHECK(madvise(to, pt_page(), MADV_DONTNEED) == 0);
	PT_CHECK(sys->uffd_register(fd, to, pt_page(), UFFDIO_REGISTER_MODE_MISSING) == 0);
	(void)sys->uffd_move(fd, to, p + 9 * pt_page(), pt_page(), &moved);
	return 0;
}

/* One page of a huge page is a registered buffer: none of it may be lost. */
static void huge_page_partly_pinned(void **state)
{
	size_t pages = huge_bytes() / pt_page();
	char *p;
	struct ring ring;
	struct iovec buf;
	struct samepage_result r;
	int file;

	(void)state;
	pt_skip_unless_can_merge();
	if (!pages)
		SKIP("no transparent huge pages in this kernel");
	if (!ring_open(&ring))
		SKIP("no io_uring here");
	if (!pt_kernel_merges() && pt_child(move_part, NULL, 10) == PT_HUNG)
		SKIP("this kernel never comes back from moving a part of a pinned huge page");
	sp = pt_open();
	p = map_huge(pages * pt_page());
	pt_fill(p, pages, 6);
	buf = (struct iovec){ p + 7 * pt_page(), pt_page() };
	assert_int_equal(syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buf, 1),
			 0);
	r = pt_merged(sp, p, pages);
	assert_true(r.pages_declined[PINNED] >= 1);
	assert_int_equal(pt_differs(p, pages, 6), -1);
	file = memfd_create("source", MFD_CLOEXEC);
	assert_int_equal(pwrite(file, p, pt_page(), 0), pt_page());
	assert_int_equal(ring_read_fixed(&ring, file, buf.iov_base, (unsigned)pt_page()),
			 (int)pt_page());
	assert_int_equal(memcmp(buf.iov_base, p, pt_page()), 0);
	ring_close(&ring);
	close(file);
	samepage_close(sp);
	munmap(p, pages * pt_page());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(registered_buffers_are_pinned),
		cmocka_unit_test(fork_shared_pages),
		cmocka_unit_test(huge_pages),
		cmocka_unit_test(huge_page_partly_pinned),
	};

	return PT_MAIN("proc-pin", tests);
}
