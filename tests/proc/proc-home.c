/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Merged memory brought home (proc/retreat.c): anonymous again, with every byte. If this
 * failed, a program that registers such memory with a userfaultfd of its own, or
 * installs a seccomp filter, would lose what it or a device wrote meanwhile (I3).
 */
#include "proctest.h"

#include <pthread.h>
#include <sys/wait.h>

#include "proc/internal.h"
#include "ring.h"

#define N 64u

static struct samepage *sp;

static char *merged(uint64_t seed)
{
	struct samepage_result r;
	char *p = pt_map(N);

	pt_fill(p, N, seed);
	assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
	assert_true(pt_complete(&r));
	assert_int_equal(pt_file_pages(p, N), r.pages_merged + r.pages_already);
	assert_true(r.pages_merged > N - 4);
	return p;
}

static int home(const char *p, size_t pages)
{
	return proc_engine_home(proc_engines(), (uintptr_t)p, (uintptr_t)p + pages * pt_page());
}

static size_t anonymous(const char *p, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++) {
		uint64_t entry = pt_pagemap(p + i * pt_page());

		n += (entry & PT_PM_PRESENT) && !(entry & PT_PM_FILE);
	}
	return n;
}

static void bytes_and_flags(void **state)
{
	uint64_t flags;
	int prot;
	char *p;

	(void)state;
	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	sp = pt_open();
	p = merged(1);
	pt_fill_page(p + 5 * pt_page(), 2, 5);
	assert_int_equal(mprotect(p + 8 * pt_page(), 4 * pt_page(), PROT_READ), 0);
	assert_int_equal(mprotect(p + 12 * pt_page(), 4 * pt_page(), PROT_NONE), 0);
	assert_int_equal(home(p + pt_page(), N - 2), 0);
	assert_int_equal(anonymous(p, N), N - 2);
	pt_vm_flags(p + 9 * pt_page(), &prot);
	assert_int_equal(prot, PROT_READ);
	pt_vm_flags(p + 13 * pt_page(), &prot);
	assert_int_equal(prot, PROT_NONE);
	assert_int_equal(mprotect(p, N * pt_page(), RW), 0);
	assert_true(pt_page_is(p + 5 * pt_page(), 2, 5));
	pt_fill_page(p + 5 * pt_page(), 1, 5);
	assert_int_equal(pt_differs(p, N, 1), -1);
	assert_int_equal(pt_file_pages(p, N), 2);
	/* Like any anonymous memory: zeros when discarded, merged when asked. */
	assert_int_equal(madvise(p + pt_page(), 4 * pt_page(), MADV_DONTNEED), 0);
	assert_true(pt_is_zero(p + pt_page(), 4));
	flags = pt_vm_flags(p + 20 * pt_page(), &prot);
	assert_int_equal(flags & (SYS_VMF(um) | SYS_VMF(uw)), 0);
	assert_int_equal(home(p, N), 0);
	assert_int_equal(home(p, N), 0);
	assert_int_equal(waitpid(-1, NULL, WNOHANG | __WALL), -1); /* no child is left */
	samepage_close(sp);
	pt_unmap(p, N);
}

/* --- writers ----------------------------------------------------------------- */

struct writer {
	char *page;
	int pipe[2]; /* written with read(2) if it is open */
	_Atomic uint64_t count;
	_Atomic bool stop;
};

static void *write_on(void *arg)
{
	struct writer *w = arg;
	volatile uint64_t *at = (uint64_t *)(w->page + 64);

	while (!atomic_load(&w->stop)) {
		uint64_t next = *at + 1;

		if (w->pipe[1] < 0)
			*at = next;
		else if (write(w->pipe[1], &next, sizeof(next)) != sizeof(next) ||
			 read(w->pipe[0], w->page + 64, sizeof(next)) != sizeof(next))
			pt_die(__FILE__, __LINE__, "read into frozen memory");
		w->count++;
	}
	return NULL;
}

static void no_write_is_lost(void **state)
{
	struct writer w[3];
	pthread_t t[3];
	char *p;

	(void)state;
	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	for (unsigned turn = 0; turn < 20; turn++) {
		sp = pt_open();
		p = merged(3 + turn);
		for (unsigned i = 0; i < 3; i++) {
			w[i] = (struct writer){ .page = p + (10 + 20 * i) * pt_page(),
						.pipe = { -1, -1 } };
			memset(w[i].page + 64, 0, 8);
			if (i == 2)
				assert_int_equal(pipe(w[i].pipe), 0);
			assert_int_equal(pthread_create(&t[i], NULL, write_on, &w[i]), 0);
		}
		for (unsigned i = 0; i < 3; i++)
			while (atomic_load(&w[i].count) == 0)
				usleep(100);
		assert_int_equal(home(p, N), 0);
		usleep(500);
		for (unsigned i = 0; i < 3; i++) {
			atomic_store(&w[i].stop, true);
			pthread_join(t[i], NULL);
			assert_int_equal(*(uint64_t *)(w[i].page + 64), w[i].count);
			if (i == 2)
				close(w[i].pipe[0]), close(w[i].pipe[1]);
		}
		assert_int_equal(anonymous(p, N), N);
		assert_int_equal(pt_differs(p, 10, 3 + turn), -1);
		samepage_close(sp);
		pt_unmap(p, N);
	}
}

/* --- who holds what up ------------------------------------------------------ */

/* The engine's calls, with a wait where it matters who goes on. */
static const struct sys_ops *below;
static struct writer *waiting;
static _Atomic bool stuck;

static bool is_uffd(int fd)
{
	char link[64], to[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", fd);
	n = readlink(link, to, sizeof(to) - 1);
	if (n <= 0)
		return false;
	to[n] = '\0';
	return strcmp(to, "anon_inode:[userfaultfd]") == 0;
}

/* The writer comes to the page, and waits. */
static int wp_and_wait(int fd, const void *at, size_t bytes, bool protect)
{
	int err = below->uffd_wp(fd, at, bytes, protect);

	usleep(20000);
	return err;
}

/* It goes on when the userfaultfd is closed, not when some child has died. */
static int close_and_look(int fd)
{
	bool last = is_uffd(fd);
	uint64_t count = waiting->count;
	int err = below->close(fd);

	for (unsigned i = 0; last && atomic_load(&waiting->count) == count; i++) {
		if (i == 5000) {
			atomic_store(&stuck, true);
			break;
		}
		usleep(1000);
	}
	return err;
}

static void writers_wait_for_no_child(void **state)
{
	struct sys_ops ops;
	struct writer w;
	pthread_t t;
	char *p;

	(void)state;
	pt_skip_unless_remap();
	sp = pt_open();
	p = merged(40);
	w = (struct writer){ .page = p + 9 * pt_page(), .pipe = { -1, -1 } };
	memset(w.page + 64, 0, 8);
	assert_int_equal(pthread_create(&t, NULL, write_on, &w), 0);
	while (atomic_load(&w.count) == 0)
		usleep(100);
	below = sys;
	ops = *sys;
	ops.close = close_and_look;
	ops.uffd_wp = wp_and_wait;
	waiting = &w;
	sys = &ops;
	assert_int_equal(home(p, N), 0);
	sys = below;
	assert_false(stuck);
	atomic_store(&w.stop, true);
	pthread_join(t, NULL);
	assert_int_equal(*(uint64_t *)(w.page + 64), w.count);
	assert_int_equal(anonymous(p, N), N);
	samepage_close(sp);
	pt_unmap(p, N);
}

/* --- pins -------------------------------------------------------------------- */

/* A buffer that is registered with io_uring stays where the device writes to. */
static void pinned_pages_stay(void **state)
{
	char *p, *q;
	struct ring ring;
	struct iovec buf;
	uint64_t pfn;
	int file;

	(void)state;
	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	pt_skip_unless_root();
	sp = pt_open();
	p = merged(50);
	q = pt_map(N);
	pt_fill(q, N, 51);
	file = memfd_create("source", MFD_CLOEXEC);
	assert_int_equal(write(file, q, N * pt_page()), N * pt_page());
	if (!ring_open(&ring))
		SKIP("no io_uring here");
	buf = (struct iovec){ p + 16 * pt_page(), 8 * pt_page() };
	if (syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buf, 1))
		SKIP("io_uring registers no buffers here");
	p[40 * pt_page()] ^= 1; /* written, and not pinned */
	pfn = pt_pfn(buf.iov_base);
	assert_int_equal(home(p, N), -EBUSY);
	assert_int_equal(anonymous(p, N), N);
	assert_int_equal(pt_pfn(buf.iov_base), pfn);
	assert_int_equal(ring_read_fixed(&ring, file, buf.iov_base, (unsigned)buf.iov_len),
			 (int)buf.iov_len);
	assert_int_equal(memcmp(buf.iov_base, q, buf.iov_len), 0);
	/* All that is not pinned came home: it is zeros when discarded. */
	assert_int_equal(madvise(p + 40 * pt_page(), pt_page(), MADV_DONTNEED), 0);
	assert_true(pt_is_zero(p + 40 * pt_page(), 1));
	assert_int_equal(pt_differs(p, 16, 50), -1);
	ring_close(&ring);
	close(file);
	samepage_close(sp);
	pt_unmap(p, N);
	pt_unmap(q, N);
}

/* Last: it cannot be taken back. */
static void without_fork(void **state)
{
	char *p;

	(void)state;
	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	sp = pt_open();
	proc_engine_without_fork();
	p = merged(60);
	p[7 * pt_page()] ^= 1;
	assert_int_equal(home(p, N), -EBUSY);
	p[7 * pt_page()] ^= 1;
	assert_int_equal(anonymous(p, N), N);
	assert_int_equal(pt_differs(p, N, 60), -1);
	samepage_close(sp);
	pt_unmap(p, N);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_and_flags),
		cmocka_unit_test(no_write_is_lost),
		cmocka_unit_test(writers_wait_for_no_child),
		cmocka_unit_test(pinned_pages_stay),
		cmocka_unit_test(without_fork),
	};

	return PT_MAIN("home", tests);
}
