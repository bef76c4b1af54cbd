/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Homecoming: pages that were written since their merge become anonymous memory again.
 * If this failed, locked memory would come home unlocked, a program whose userfaultfd is
 * told of forks would be told of one that it did not make (and might wait for it for
 * ever), or a large program would be copied for the sake of a few pages.
 */
#include "scantest.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "sys/maps.h"
#include "sys/uapi.h"

#define PAGES 600u
#define SEED 7u
#define WRITTEN 200u /* a third: more than enough for a homecoming */
#define LOCKED 100u

static void write_some(char *p, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		p[i * pt_page()]++;
}

static void check_some(char *p, size_t written)
{
	for (size_t i = 0; i < written; i++)
		p[i * pt_page()]--;
	PT_CHECK(pt_differs(p, PAGES, SEED) == -1);
}

static size_t locked_pages(char *p, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += (pt_vm_flags(p + i * pt_page(), NULL) & SYS_VMF(lo)) != 0;
	return n;
}

/* --- locked memory ------------------------------------------------------------ */

static void run_locker(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, SEED);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(mlock(p, LOCKED * pt_page()) == 0);
	/* Not the neighbours: what is half locked is passed by. */
	write_some(p + (LOCKED + 10) * pt_page(), WRITTEN);
	st_did(self, 2);
	st_wait_step(3);
	atomic_store(&st_board->out[self][0], locked_pages(p, LOCKED));
	atomic_store(&st_board->out[self][1], locked_pages(p + LOCKED * pt_page(), PAGES - LOCKED));
	for (size_t i = 0; i < WRITTEN; i++)
		p[(LOCKED + 10 + i) * pt_page()]--;
	PT_CHECK(pt_differs(p, PAGES, SEED) == -1);
	st_did(self, 3);
}

static bool both_share(uint64_t pages)
{
	return st_report(0).pages_sharing >= pages && st_report(1).pages_sharing >= pages;
}

static void locked_memory_stays_locked(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("locker");
	st_start("locker");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_step(2);
	ST_UNTIL(st_report(0).scan.homecomings && st_report(1).scan.homecomings);
	st_step(3);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(atomic_load(&st_board->out[i][0]), LOCKED);
		assert_int_equal(atomic_load(&st_board->out[i][1]), 0);
		st_end(i);
	}
	st_close();
}

/* --- a userfaultfd that is told of forks ------------------------------------------ */

static int events_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	PT_CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
	return fd;
}

static void register_page(int fd)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *page = mmap(NULL, pt_page(), RW, ANON, -1, 0);

	PT_CHECK(page != MAP_FAILED);
	reg.range.start = (uintptr_t)page;
	reg.range.len = pt_page();
	PT_CHECK(ioctl(fd, UFFDIO_REGISTER, &reg) == 0);
}

/* Nobody reads the events: whoever forks waits until somebody does. */
static void run_told(unsigned self)
{
	struct pollfd told = { .events = POLLIN };
	char *p = st_memory(PAGES);

	told.fd = events_uffd();
	register_page(told.fd);
	pt_fill(p, PAGES, SEED);
	st_did(self, 1);
	st_wait_step(2);
	write_some(p, WRITTEN);
	for (unsigned i = 0; i < 1500 && !(told.revents & POLLIN); i++)
		poll(&told, 1, 10);
	atomic_store(&st_board->out[self][0], (told.revents & POLLIN) != 0);
	st_did(self, 2);
	st_wait_step(3);
	check_some(p, WRITTEN);
	st_did(self, 3);
}

static void a_userfaultfd_that_is_told_of_forks(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("told");
	st_start("told");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_step(2);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(atomic_load(&st_board->out[i][0]), 0);
	st_step(3);
	st_end(0);
	st_end(1);
	st_close();
}

/* --- memory that is not watched any more --------------------------------------------- */

static int register_all(const char *p)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, PAGES * pt_page() },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), err;

	PT_CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
	err = ioctl(fd, UFFDIO_REGISTER, &reg) == 0 ? 0 : errno;
	close(fd);
	return err;
}

/* in[0]: what it does to its memory, which is no longer to be watched then. */
static void run_leaver(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, 100 + self);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(pt_vm_flags(p, NULL) & SYS_VMF(uw));
	switch (self) {
	case 0: PT_CHECK(madvise(p, PAGES * pt_page(), MADV_UNMERGEABLE) == 0); break;
	case 1: PT_CHECK(mprotect(p, PAGES * pt_page(), PROT_READ) == 0); break;
	case 2: PT_CHECK(mlock(p, PAGES * pt_page()) == 0); break;
	default: PT_CHECK(syscall(SYS_mbind, p, PAGES * pt_page(), 0, NULL, 0, 0) == 0); break;
	}
	st_did(self, 2);
	st_wait_step(3);
	atomic_store(&st_board->out[self][0], (pt_vm_flags(p, NULL) & SYS_VMF(uw)) != 0);
	atomic_store(&st_board->out[self][1], (uint64_t)register_all(p));
	PT_CHECK(pt_differs(p, PAGES, 100 + self) == -1);
	st_did(self, 3);
}

static void what_is_left_is_not_registered(void **state)
{
	(void)state;
	st_open(NULL);
	for (unsigned i = 0; i < 4; i++)
		st_start("leaver");
	st_step(1);
	for (unsigned i = 0; i < 4; i++)
		ST_UNTIL(st_report(i).scan.pages_unshared_now == PAGES);
	st_step(2);
	for (unsigned i = 0; i < 4; i++)
		ST_UNTIL(st_report(i).scan.pages_tracked_now == 0);
	st_step(3);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(atomic_load(&st_board->out[i][0]), 0);
		assert_int_equal(atomic_load(&st_board->out[i][1]), 0);
		st_end(i);
	}
	st_close();
}

/* Watched in the time of a broker whose successor wants nothing to be watched, or at once not. */
static void run_orphan(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, 100 + self);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(pt_vm_flags(p, NULL) & SYS_VMF(uw));
	st_did(self, 2);
	st_wait_step(3);
	atomic_store(&st_board->out[self][0], (pt_vm_flags(p, NULL) & SYS_VMF(uw)) != 0);
	atomic_store(&st_board->out[self][1], (uint64_t)register_all(p));
	PT_CHECK(pt_differs(p, PAGES, 100 + self) == -1);
	st_did(self, 3);
}

static void watched_before(const char *const *broker_args, const char *own)
{
	st_open(NULL);
	st_env(own);
	st_start("orphan");
	st_step(1);
	ST_UNTIL(st_report(0).scan.pages_unshared_now == PAGES);
	st_step(2);
	st_kill_broker();
	st_restart_broker(broker_args);
	ST_UNTIL(st_all_connected());
	if (!broker_args)
		st_all(CORE_WIRE_OP_PAUSE);
	st_step(3);
	assert_int_equal(atomic_load(&st_board->out[0][0]), 0);
	assert_int_equal(atomic_load(&st_board->out[0][1]), 0);
	st_end(0);
	st_close();
}

static void what_another_broker_does_not_watch(void **state)
{
	static const char *const off[] = { "--scan", "off", NULL };
	static const char *const checksum[] = { "--scan-tracker", "checksum", NULL };

	(void)state;
	/* Nothing of its own: what the broker says. */
	watched_before(off, "SAMEPAGE_SCAN=auto");
	watched_before(checksum, "SAMEPAGE_SCAN=auto");
	watched_before(NULL, "SAMEPAGE_SCAN=on");
}

/* --- advice that comes after the mappings were read ------------------------------------ */

#define ADVISED 6u
#define ADVISED_PAGES 100u

static _Atomic bool churn_ends;

/* Mappings that are nobody's business: so they are read less and less often. */
static void *churn(void *arg)
{
	(void)arg;
	while (!atomic_load(&churn_ends)) {
		char *p = pt_map(1);

		st_nap(5);
		pt_unmap(p, 1);
	}
	return NULL;
}

static void run_adviser(unsigned self)
{
	const uint64_t flags = SYS_VMF(dc) | SYS_VMF(dd);
	const size_t bytes = ADVISED_PAGES * pt_page();
	char *p[ADVISED];
	pthread_t t;

	for (unsigned i = 0; i < ADVISED; i++) {
		/* With a page between: each a region of its own. */
		p[i] = pt_map(ADVISED_PAGES + 1);
		PT_CHECK(madvise(p[i], bytes, MADV_MERGEABLE) == 0);
		PT_CHECK(mprotect(p[i] + bytes, pt_page(), PROT_NONE) == 0);
		pt_fill(p[i], ADVISED_PAGES, 100 + 10 * self + i);
	}
	PT_CHECK(!pthread_create(&t, NULL, churn, NULL));
	st_did(self, 1);
	for (unsigned i = 0; i < ADVISED; i++) {
		st_wait_step(2 + i);
		PT_CHECK(madvise(p[i], bytes, MADV_DONTFORK) == 0);
		PT_CHECK(madvise(p[i], bytes, MADV_DONTDUMP) == 0);
		pt_fill(p[i], ADVISED_PAGES, i);
		for (unsigned n = 0; st_store_pages(p[i], ADVISED_PAGES) < ADVISED_PAGES; n++) {
			PT_CHECK(n < ST_LIMIT * 50);
			st_nap(20);
		}
		for (unsigned k = 0; k < ADVISED_PAGES; k++)
			PT_CHECK((pt_vm_flags(p[i] + k * pt_page(), NULL) & flags) == flags);
		PT_CHECK(pt_differs(p[i], ADVISED_PAGES, i) == -1);
		st_did(self, 2 + i);
	}
	atomic_store(&churn_ends, true);
	PT_CHECK(!pthread_join(t, NULL));
}

static void advice_after_the_mappings_were_read(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("adviser");
	st_start("adviser");
	st_step(1);
	for (unsigned i = 0; i < 2; i++)
		ST_UNTIL(st_report(i).scan.pages_unshared_now == ADVISED * ADVISED_PAGES);
	/* Until they are read once in 1.6 s only. */
	st_nap(4000);
	for (unsigned i = 0; i < ADVISED; i++) {
		st_step(2 + i);
		st_nap(i * 230);
	}
	st_end(0);
	st_end(1);
	st_close();
}

/* --- a registration that nothing told us of ------------------------------------------- */

#if defined(__x86_64__)
static long unseen(long n, long a, long b, long c)
{
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return ret;
}
#else
#define unseen(n, a, b, c) -1L
#endif

/* What was written since the look before. */
static uint64_t written_pages(const char *p, int pagemap)
{
	struct sys_page_region r[PAGES];
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = SYS_PM_SCAN_WP_MATCHING,
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + PAGES * pt_page(),
		.vec = (uintptr_t)r,
		.vec_len = PAGES,
		.category_mask = SYS_PAGE_IS_WRITTEN | SYS_PAGE_IS_PRESENT,
		.return_mask = SYS_PAGE_IS_WRITTEN,
	};
	int n = (int)unseen(SYS_ioctl, pagemap, SYS_PAGEMAP_SCAN, (long)&arg);
	uint64_t pages = 0;

	PT_CHECK(n >= 0);
	for (int i = 0; i < n; i++)
		pages += (r[i].end - r[i].start) / pt_page();
	return pages;
}

/* As one that keeps track of its own writes (a snapshot, a collector), unseen by us. */
static void run_tracker(unsigned self)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = SYS_UFFD_FEATURE_WP_ASYNC |
					      SYS_UFFD_FEATURE_WP_UNPOPULATED };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	int fd = (int)unseen(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK, 0, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *p = pt_map(PAGES);

	PT_CHECK(pagemap >= 0 && fd >= 0 && unseen(SYS_ioctl, fd, UFFDIO_API, (long)&api) == 0);
	reg.range.start = (uintptr_t)p;
	reg.range.len = PAGES * pt_page();
	PT_CHECK(unseen(SYS_ioctl, fd, UFFDIO_REGISTER, (long)&reg) == 0);
	PT_CHECK(madvise(p, PAGES * pt_page(), MADV_MERGEABLE) == 0);
	pt_fill(p, PAGES, 100 + self);
	PT_CHECK(written_pages(p, pagemap) == PAGES);
	pt_fill(p, PAGES / 2, 200 + self);
	st_did(self, 1);
	st_wait_step(2);
	atomic_store(&st_board->out[self][0], written_pages(p, pagemap));
	st_did(self, 2);
}

static void writes_that_the_program_tracks(void **state)
{
	(void)state;
#if !defined(__x86_64__)
	SKIP("a system call by hand, for x86 alone");
#endif
	st_open(NULL);
	st_start("tracker");
	st_step(1);
	/* Time for some looks, if there were any. */
	st_nap(2000);
	st_step(2);
	assert_int_equal(atomic_load(&st_board->out[0][0]), PAGES / 2);
	st_end(0);
	st_close();
}

/* --- nothing but written pages ------------------------------------------------------ */

static void run_restorer(unsigned self)
{
	char *p = st_memory(PAGES);

	pt_fill(p, PAGES, SEED);
	st_did(self, 1);
	st_wait_step(2);
	write_some(p, PAGES);
	check_some(p, PAGES);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_differs(p, PAGES, SEED) == -1);
	st_did(self, 3);
}

/* As counters of references do: every page written, and all as before in the end. */
static void written_pages_merge_again(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("restorer");
	st_start("restorer");
	st_step(1);
	ST_UNTIL(both_share(PAGES));
	st_step(2);
	ST_UNTIL(both_share(PAGES));
	assert_true(st_report(0).scan.homecomings && st_report(1).scan.homecomings);
	assert_true(st_report(0).scan.pages_broken >= PAGES);
	st_step(3);
	st_end(0);
	st_end(1);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "restorer", run_restorer },
						{ "locker", run_locker },
						{ "told", run_told },
						{ "leaver", run_leaver },
						{ "orphan", run_orphan },
						{ "adviser", run_adviser },
						{ "tracker", run_tracker },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(locked_memory_stays_locked),
		cmocka_unit_test(written_pages_merge_again),
		cmocka_unit_test(a_userfaultfd_that_is_told_of_forks),
		cmocka_unit_test(what_is_left_is_not_registered),
		cmocka_unit_test(what_another_broker_does_not_watch),
		cmocka_unit_test(advice_after_the_mappings_were_read),
		cmocka_unit_test(writes_that_the_program_tracks),
	};

	return ST_MAIN("scan-kept", tests, roles);
}
