/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs that write all the time, in every way, while the scanner goes over their memory
 * as fast as it can be told to. Each byte is checked. If this failed, a store was lost
 * (I3), in the parent of a fork or in a child, or after a refusal by the kernel; or
 * somebody was left waiting for ever; or the scanner came out of it with pages that it
 * never looks at again.
 */
#include "scantest.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "sys/fault.h"
#include "tests/proc/ring.h"

#define PAGES 128u
#define WRITERS 4u
#define SECONDS 4u
#define ALL (WRITERS * PAGES)
#define STAY_BROKEN 64u /* fewer that were written since their merge do not come home */

/* The program's own calls are refused as well; it tries again, but for the advice. */
static char *stubborn_memory(void)
{
	char *p = MAP_FAILED;

	for (unsigned i = 0; i < 100 && p == MAP_FAILED; i++)
		p = mmap(NULL, PAGES * pt_page(), RW, ANON, -1, 0);
	PT_CHECK(p != MAP_FAILED);
	(void)madvise(p, PAGES * pt_page(), MADV_MERGEABLE);
	return p;
}

/* --- writers -------------------------------------------------------------------------- */

struct writer {
	char *p;
	uint64_t seed, random;
	uint64_t gen[PAGES];
	unsigned how;
	_Atomic bool stop;
	pthread_t thread;
};

/* A page gets its content of a generation by plain stores, read(2), or readv in pieces. */
static void write_page(struct writer *w, int pipe_fd[2], unsigned i, uint64_t gen)
{
	static __thread char buf[65536];
	char *at = w->p + i * pt_page();

	if (w->how == 0) {
		pt_fill_page(at, w->seed + gen, i);
		return;
	}
	pt_fill_page(buf, w->seed + gen, i);
	PT_CHECK(write(pipe_fd[1], buf, pt_page()) == (ssize_t)pt_page());
	if (w->how == 1) {
		PT_CHECK(read(pipe_fd[0], at, pt_page()) == (ssize_t)pt_page());
	} else {
		struct iovec v[2] = { { at, 100 }, { at + 100, pt_page() - 100 } };

		PT_CHECK(readv(pipe_fd[0], v, 2) == (ssize_t)pt_page());
	}
}

/* Content of few generations, alike in all processes: merged as often as it is written. */
static void *write_all_the_time(void *arg)
{
	struct writer *w = arg;
	int pipe_fd[2];

	PT_CHECK(pipe2(pipe_fd, O_CLOEXEC) == 0);
	pt_fill(w->p, PAGES, w->seed);
	while (!atomic_load(&w->stop)) {
		unsigned i = (unsigned)(pt_random(&w->random) % PAGES);

		PT_CHECK(pt_page_is(w->p + i * pt_page(), w->seed + w->gen[i], i));
		switch (pt_random(&w->random) % 16) {
		case 0:
			st_nap(pt_random(&w->random) % 40); /* long enough to be merged */
			break;
		case 1:
			if (madvise(w->p + i * pt_page(), pt_page(), MADV_DONTNEED) == 0)
				PT_CHECK(pt_is_zero(w->p + i * pt_page(), 1));
			/* fall through */
		default:
			w->gen[i] = pt_random(&w->random) % 3;
			write_page(w, pipe_fd, i, w->gen[i]);
			PT_CHECK(pt_page_is(w->p + i * pt_page(), w->seed + w->gen[i], i));
		}
	}
	for (unsigned i = 0; i < PAGES; i++)
		PT_CHECK(pt_page_is(w->p + i * pt_page(), w->seed + w->gen[i], i));
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	return NULL;
}

static void start_writers(struct writer *w, unsigned n, unsigned self)
{
	for (unsigned i = 0; i < n; i++) {
		w[i] = (struct writer){ .p = stubborn_memory(), .seed = 10 * i, .how = i % 3,
					.random = self * 100 + i };
		PT_CHECK(!pthread_create(&w[i].thread, NULL, write_all_the_time, &w[i]));
	}
}

static void stop_writers(struct writer *w, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		atomic_store(&w[i].stop, true);
	for (unsigned i = 0; i < n; i++)
		PT_CHECK(!pthread_join(w[i].thread, NULL));
}

/* As they were left: frames, whose content, and written since they were merged? */
static void note_pages(const struct writer *w, unsigned self)
{
	for (unsigned k = 0; k < WRITERS; k++) {
		st_note_pfns(self, k * PAGES, w[k].p, PAGES);
		for (unsigned i = 0; i < PAGES; i++) {
			const char *at = w[k].p + i * pt_page();

			PT_CHECK(pt_page_is(at, w[k].seed + w[k].gen[i], i));
			st_board->pfn[self][ALL + k * PAGES + i] = w[k].gen[i];
			st_board->pfn[self][2 * ALL + k * PAGES + i] =
				!(pt_pagemap(at) & PT_PM_FILE) && st_store_pages(at, 1);
		}
	}
}

/* in[0][0]: it is enough. */
static void run_writers(unsigned self)
{
	struct writer w[WRITERS];
	unsigned step = 2;

	start_writers(w, WRITERS, self);
	st_did(self, 1);
	st_wait_step(step);
	stop_writers(w, WRITERS);
	do {
		note_pages(w, self);
		st_did(self, step);
		st_wait_step(++step);
	} while (!atomic_load(&st_board->in[0][0]));
	st_did(self, step);
}

struct rest {
	size_t equal, apart, broken[2];
};

static struct rest what_is_left(void)
{
	struct rest r = { 0 };

	for (size_t i = 0; i < ALL; i++) {
		uint64_t *a = &st_board->pfn[0][i], *b = &st_board->pfn[1][i];

		r.broken[0] += a[2 * ALL];
		r.broken[1] += b[2 * ALL];
		if (a[ALL] != b[ALL])
			continue;
		r.equal++;
		r.apart += (*a != *b || !*a) && !a[2 * ALL] && !b[2 * ALL];
	}
	return r;
}

static bool all_is_merged(unsigned *step)
{
	struct rest r;

	st_step(++*step);
	r = what_is_left();
	return r.apart == 0 && r.broken[0] < STAY_BROKEN && r.broken[1] < STAY_BROKEN;
}

/* Nobody writes any more: what is equal by now comes together, whatever it went through. */
static void merged_in_the_end(void)
{
	unsigned step = 1;
	struct rest r;

	ST_UNTIL(all_is_merged(&step));
	r = what_is_left();
	pt_note("%zu of %u pages are equal; broken %zu and %zu", r.equal, ALL, r.broken[0],
		r.broken[1]);
	/* One in three, by chance. */
	assert_true(r.equal > ALL / 10);
	atomic_store(&st_board->in[0][0], 1);
	st_step(step + 1);
}

static void soak(const char *tracker)
{
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_FIRST=10");
	st_env("SAMEPAGE_SCAN_MOST=20");
	st_env(tracker);
	st_start("writers");
	st_start("writers");
	st_step(1);
	st_nap(SECONDS * 1000);
	/* Something was merged and broken meanwhile, or this proves nothing. */
	ST_UNTIL(st_report(0).scan.pages_merged > 100 && st_report(1).scan.pages_merged > 100);
	ST_UNTIL(st_report(0).scan.pages_broken > 10);
	merged_in_the_end();
	st_end(0);
	st_end(1);
	st_close();
}

static void writers_and_scanner(void **state)
{
	(void)state;
	soak("SAMEPAGE_SCAN_TRACKER=wp-async");
}

static void writers_and_checksum(void **state)
{
	(void)state;
	soak("SAMEPAGE_SCAN_TRACKER=checksum");
}

/* --- DMA -------------------------------------------------------------------------------- */

/* The device's writes go to the frame that was pinned, whoever maps it. */
static void device_turn(struct ring *ring, int file, char *p, char *want, unsigned turn)
{
	struct iovec buf = { p, PAGES * pt_page() };

	pt_fill(p, PAGES, 44);
	st_nap(turn % 4 * 25); /* watched, or merged before it is pinned */
	PT_CHECK(!syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &buf, 1));
	for (unsigned i = 0; i < 3; i++) {
		st_nap(i * 60); /* pinned and still: it is tried */
		pt_fill(want, PAGES, turn % 2 + 45 + i);
		PT_CHECK(pwrite(file, want, buf.iov_len, 0) == (ssize_t)buf.iov_len);
		PT_CHECK(ring_read_fixed(ring, file, p, (unsigned)buf.iov_len) ==
			 (int)buf.iov_len);
		PT_CHECK(memcmp(p, want, buf.iov_len) == 0);
	}
	PT_CHECK(!syscall(__NR_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS, NULL, 0));
}

static void run_ring(unsigned self)
{
	char *want = malloc(PAGES * pt_page());
	struct ring ring;
	int file = memfd_create("source", MFD_CLOEXEC);

	PT_CHECK(want && file >= 0);
	if (!ring_open(&ring)) {
		atomic_store(&st_board->out[self][0], 1);
		st_did(self, 2);
		return;
	}
	st_did(self, 1);
	for (unsigned turn = 0; atomic_load(&st_board->step) < 2; turn++) {
		char *p = st_memory(PAGES);

		device_turn(&ring, file, p, want, turn);
		pt_unmap(p, PAGES);
	}
	st_did(self, 2);
}

static bool pins_were_met(unsigned actor)
{
	return st_report(actor).total.pages_declined[SAMEPAGE_REASON_PINNED] > 0;
}

static void devices_and_scanner(void **state)
{
	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_FIRST=10");
	st_env("SAMEPAGE_SCAN_MOST=20");
	st_start("ring");
	st_start("ring");
	st_wait_did(0, 1);
	if (atomic_load(&st_board->out[0][0]))
		SKIP("no io_uring here");
	st_nap(SECONDS * 1000);
	ST_UNTIL(pins_were_met(0) && pins_were_met(1));
	st_step(2);
	st_end(0);
	st_end(1);
	st_close();
}

/* --- fork ---------------------------------------------------------------------------------- */

#define FORKS 12u

/* What the threads write is theirs; this part the children get. */
static void generation(char *p, uint64_t seed, int depth)
{
	pid_t pid;

	PT_CHECK(pt_differs(p, PAGES, seed) == -1);
	for (unsigned i = (unsigned)depth; i < PAGES; i += 5)
		pt_fill_page(p + i * pt_page(), seed + 1000, i);
	st_nap(30);
	for (unsigned i = 0; i < PAGES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(),
				    i % 5 == (unsigned)depth ? seed + 1000 : seed, i));
	pt_fill(p, PAGES, seed + 1);
	if (depth == 0)
		return;
	pid = fork();
	PT_CHECK(pid >= 0);
	if (pid == 0) {
		generation(p, seed + 1, depth - 1);
		_exit(0);
	}
	st_nap(20);
	PT_CHECK(pt_differs(p, PAGES, seed + 1) == -1);
	PT_CHECK(pt_wait(pid, ST_LIMIT) == 0);
	PT_CHECK(pt_differs(p, PAGES, seed + 1) == -1);
}

static void spawn_true(bool by_vfork)
{
	static char *const argv[] = { (char *)(uintptr_t) "true", NULL };
	extern char **environ;
	pid_t pid;

	if (by_vfork) {
		pid = vfork();
		if (pid == 0) {
			execv("/bin/true", argv);
			_exit(1);
		}
		PT_CHECK(pid > 0);
	} else {
		PT_CHECK(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0);
	}
	PT_CHECK(pt_wait(pid, ST_LIMIT) == 0);
}

static void run_forks(unsigned self)
{
	struct writer w[2];
	char *p = st_memory(PAGES);

	start_writers(w, 2, self);
	st_did(self, 1);
	for (unsigned turn = 0; turn < FORKS; turn++) {
		pid_t pid;

		pt_fill(p, PAGES, 500 + 10 * turn);
		st_nap(turn % 4 * 25);
		pid = fork();
		PT_CHECK(pid >= 0);
		if (pid == 0) {
			generation(p, 500 + 10 * turn, 2);
			_exit(0);
		}
		spawn_true(turn % 2);
		PT_CHECK(pt_differs(p, PAGES, 500 + 10 * turn) == -1);
		PT_CHECK(pt_wait(pid, ST_LIMIT) == 0);
		PT_CHECK(pt_differs(p, PAGES, 500 + 10 * turn) == -1);
	}
	stop_writers(w, 2);
	st_did(self, 2);
	st_wait_step(3);
	st_did(self, 3);
}

static void forks_and_scanner(void **state)
{
	(void)state;
	st_open(NULL);
	st_env("SAMEPAGE_SCAN_FIRST=10");
	st_env("SAMEPAGE_SCAN_MOST=20");
	st_start("forks");
	st_start("forks");
	st_wait_did(0, 2);
	st_wait_did(1, 2);
	assert_true(st_report(0).scan.pages_merged > 0);
	st_step(3);
	st_end(0);
	st_end(1);
	/* All those children, and nobody is left in the broker. */
	ST_UNTIL(st_totals().sessions <= 1);
	st_close();
}

/* --- refusals ------------------------------------------------------------------------------- */

/* Some writing, some still memory, some of it given up; for a while. */
static void run_refused(unsigned self)
{
	char *still = stubborn_memory(), *gone = stubborn_memory();
	struct writer w[1];

	pt_fill(still, PAGES, 5);
	start_writers(w, 1, self);
	for (unsigned turn = 0; turn < 6; turn++) {
		pt_fill(gone, PAGES, 6 + turn % 2);
		st_nap(60);
		PT_CHECK(pt_differs(gone, PAGES, 6 + turn % 2) == -1);
		if (madvise(gone, PAGES * pt_page(), MADV_DONTNEED) == 0)
			PT_CHECK(pt_is_zero(gone, PAGES));
		PT_CHECK(pt_differs(still, PAGES, 5) == -1);
	}
	stop_writers(w, 1);
	for (unsigned i = 0; i < PAGES; i++) {
		((volatile uint64_t *)(still + i * pt_page()))[7] ^= 1;
		((volatile uint64_t *)(still + i * pt_page()))[7] ^= 1;
	}
	PT_CHECK(pt_differs(still, PAGES, 5) == -1);
	st_did(self, 1);
}

/* As proc-fault: what the library must get done, it gets done, so not for ever. */
static bool for_ever_is_fair(enum sys_fault_point p)
{
	return p != SYS_FAULT_mmap && p != SYS_FAULT_uffd_unregister &&
	       p != SYS_FAULT_uffd_register && p != SYS_FAULT_uffd_wake && p != SYS_FAULT_tgkill;
}

/*
 * EINVAL from one says that a foreign mapping is in the way, ENOENT from the other that there is
 * no mapping (then a discard has nothing of ours to discard).
 */
static bool is_answer(enum sys_fault_point p)
{
	return p == SYS_FAULT_uffd_unregister || p == SYS_FAULT_procmap_query;
}

static void end_refused(const unsigned *actor, char (*fault)[64], unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		int status = st_status(actor[i]);

		if (status)
			fail_msg("%s: status %d", fault[i], status);
	}
}

#define AT_ONCE 7u

static void every_call_refused(void **state)
{
	static const struct {
		unsigned nth, times;
	} when[] = { { 1, 1 }, { 2, 3 }, { 5, 1 }, { 9, 0 }, { 20, 2 }, { 60, 1 }, { 150, 0 } };
	static char fault[AT_ONCE][64];
	unsigned actor[AT_ONCE], runs = 0;

	(void)state;
	for (enum sys_fault_point p = 1; p < SYS_FAULT_COUNT; p++) {
		unsigned n = 0;

		st_open(NULL);
		st_env("SAMEPAGE_SCAN_FIRST=10");
		st_env("SAMEPAGE_SCAN_MOST=20");
		/* A sound one, with which to merge. */
		st_env("SAMEPAGE_FAULT=");
		st_start("writers");
		for (unsigned k = 0; k < AT_ONCE; k++) {
			static const int errors[] = { 12, 11, 22, 16, 2 };

			if (when[k].times == 0 && !for_ever_is_fair(p))
				continue;
			snprintf(fault[n], sizeof(fault[n]), "SAMEPAGE_FAULT=%s:%u:%d:%u",
				 sys_fault_name(p), when[k].nth,
				 is_answer(p) ? 12 : errors[(p + k) % 5], when[k].times);
			st_env(fault[n]);
			actor[n++] = st_start("refused");
			runs++;
		}
		end_refused(actor, fault, n);
		atomic_store(&st_board->in[0][0], 1);
		st_tell(3);
		st_end(0);
		st_close();
	}
	pt_note("%u runs", runs);
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "writers", run_writers },
						{ "ring", run_ring },
						{ "forks", run_forks },
						{ "refused", run_refused },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writers_and_scanner),
		cmocka_unit_test(writers_and_checksum),
		cmocka_unit_test(devices_and_scanner),
		cmocka_unit_test(forks_and_scanner),
		cmocka_unit_test(every_call_refused),
	};

	return ST_MAIN("scan-soak", tests, roles);
}
