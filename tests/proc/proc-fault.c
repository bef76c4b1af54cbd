/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Refusals by the kernel. If this failed, a system call that is refused somewhere
 * in a merge, an unmerge or a discard would cost bytes, show another thread a hole
 * for a moment, leave a page frozen for ever, falsify the result, or leak.
 *
 * One scenario; first it runs with the calls counted, then once for each call of
 * each kind (the first few and some in the middle) with that call, the next two as
 * well, or all from there on, refused. Each run is a process of its own with
 * a time limit. Two threads read everything all the time: whatever the merge does,
 * they must see the same bytes.
 */
#include "proctest.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "sys/fault.h"

#define PAGES 560u /* of each part */
#define SECONDS (PT_SANITIZED ? 60 : 15)

/*
 * Calls that the library must get done once pages are out: it waits for them. And
 * tgkill, without which nobody can wake the engine; it fails under seccomp only.
 */
static const enum sys_fault_point must_succeed[] = {
	SYS_FAULT_mmap, SYS_FAULT_uffd_unregister, SYS_FAULT_uffd_register,
	SYS_FAULT_uffd_wake, SYS_FAULT_tgkill,
};

/* Left by a refused munmap: nobody can do anything about it. */
static bool may_leak_mappings(enum sys_fault_point p)
{
	return p == SYS_FAULT_munmap || p == SYS_FAULT_close_range_unshare;
}

/* --- the scenario ---------------------------------------------------------- */

/* TEXT: patched pages of a file, merged without a freeze. */
enum part { PLAIN, TWIN, ODD, EXEC, MIXED, TEXT, PARTS };
#define NEVER_WRITABLE (PROT_READ | PROT_EXEC)

struct scene {
	char *part[PARTS];
	pthread_t readers[2];
	_Atomic bool stop;
	bool faulty; /* results may say anything that adds up */
};

/* What page p of a part holds: some zero, some alike, the rest of their own. */
static bool is_zero_page(enum part part, size_t p)
{
	return part != ODD && part != TEXT && p % 16 == 5;
}

static uint64_t seed_of(enum part part)
{
	return part == TWIN ? PLAIN : part;
}

static bool page_is_right(const struct scene *s, enum part part, size_t p)
{
	const char *at = s->part[part] + p * pt_page();

	if (is_zero_page(part, p))
		return pt_is_zero(at, 1);
	return pt_page_is(at, seed_of(part), part == MIXED ? p / 2 : p);
}

static void fill_page(struct scene *s, enum part part, size_t p)
{
	char *at = s->part[part] + p * pt_page();

	if (is_zero_page(part, p))
		memset(at, 0, pt_page());
	else
		pt_fill_page(at, seed_of(part), part == MIXED ? p / 2 : p);
}

static void protect(struct scene *s, enum part part, int prot)
{
	if (part == TEXT)
		PT_CHECK(!mprotect(s->part[TEXT], PAGES * pt_page(), prot));
}

static void fill_part(struct scene *s, enum part part)
{
	protect(s, part, RW);
	for (size_t p = 0; p < PAGES; p++)
		fill_page(s, part, p);
	protect(s, part, NEVER_WRITABLE);
}

static void check_all(const struct scene *s)
{
	for (enum part i = 0; i < PARTS; i++)
		for (size_t p = 0; p < PAGES; p++)
			PT_CHECK(page_is_right(s, i, p));
}

/* Word 1 of each page tells: enough to see a hole, quick enough to see it. */
static void *reader(void *arg)
{
	struct scene *s = arg;
	uint64_t want[PARTS][PAGES];

	for (enum part i = 0; i < PARTS; i++)
		for (size_t p = 0; p < PAGES; p++)
			want[i][p] = ((volatile uint64_t *)(s->part[i] + p * pt_page()))[1];
	while (!atomic_load(&s->stop)) {
		for (enum part i = 0; i < PARTS; i++)
			for (size_t p = 0; p < PAGES; p++)
				PT_CHECK(((volatile uint64_t *)(s->part[i] + p * pt_page()))[1] ==
					 want[i][p]);
		sched_yield();
	}
	return NULL;
}

/* Zeros, as discarding must show them. The name stays: it may be needed to find the file. */
static char file_name[PT_PATH_BYTES];

static void map_file(char *at)
{
	int fd = pt_temp_file(file_name, PAGES);

	PT_CHECK(mmap(at, PAGES * pt_page(), RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == at);
	close(fd);
}

static void set_up(struct scene *s)
{
	for (enum part i = 0; i < PARTS; i++) {
		s->part[i] = pt_map(PAGES);
		if (i == TEXT)
			map_file(s->part[i]);
		fill_part(s, i);
	}
	PT_CHECK(!madvise(s->part[ODD], PAGES * pt_page(), MADV_DONTFORK));
	PT_CHECK(!madvise(s->part[ODD], PAGES * pt_page(), MADV_DONTDUMP));
	PT_CHECK(!mprotect(s->part[EXEC], PAGES * pt_page(), RW | PROT_EXEC));
	atomic_store(&s->stop, false);
	for (unsigned i = 0; i < 2; i++)
		PT_CHECK(!pthread_create(&s->readers[i], NULL, reader, s));
}

static void stop_readers(struct scene *s)
{
	atomic_store(&s->stop, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(s->readers[i], NULL);
}

static uint64_t merge_part(struct scene *s, struct samepage *sp, enum part part)
{
	struct samepage_result r;
	int err = samepage_merge(sp, s->part[part], PAGES * pt_page(), 0, &r);

	PT_CHECK(pt_sums(&r));
	if (s->faulty) {
		PT_CHECK(err <= 0);
		PT_CHECK(r.pages_looked <= PAGES);
		return 0;
	}
	PT_CHECK(err == 0);
	PT_CHECK(r.pages_looked == PAGES);
	PT_CHECK(pt_complete(&r));
	return pt_declined(&r);
}

static void scenario(struct scene *s, struct samepage *sp)
{
	struct samepage_stats st;
	uint64_t zero_pages = 0;
	int err;

	for (enum part i = 0; i < PARTS; i++)
		merge_part(s, sp, i);
	err = samepage_stats(sp, &st, sizeof(st));
	PT_CHECK(s->faulty || err == 0);
	zero_pages = st.zero_pages;
	PT_CHECK(s->faulty || zero_pages > 0);
	err = samepage_unmerge(sp, s->part[PLAIN], PAGES / 2 * pt_page());
	PT_CHECK(s->faulty ? err <= 0 : err == 0);
	err = samepage_unmerge(sp, s->part[ODD] + 7 * pt_page(), 100 * pt_page());
	PT_CHECK(s->faulty ? err <= 0 : err == 0);
	err = samepage_unmerge(sp, s->part[TEXT] + 7 * pt_page(), 100 * pt_page());
	PT_CHECK(s->faulty ? err <= 0 : err == 0);
}

/* The readers are gone. Each page is what it was or reads zero; all of it, on success. */
static void discard_scene(struct scene *s, struct samepage *sp)
{
	char *odd = s->part[ODD];
	int err = samepage_discard(sp, odd, PAGES * pt_page());
	size_t zeros = 0;

	PT_CHECK(s->faulty ? err <= 0 : err == 0);
	for (size_t p = 0; p < PAGES; p++) {
		bool zero = pt_is_zero(odd + p * pt_page(), 1);

		PT_CHECK(zero || page_is_right(s, ODD, p));
		zeros += zero;
		fill_page(s, ODD, p);
	}
	PT_CHECK(err || zeros == PAGES);
}

/* Nothing is frozen, nothing is read-only that was not: write every page, put it back. */
static void *touch_all(void *arg)
{
	struct scene *s = arg;

	for (enum part i = 0; i < PARTS; i++) {
		protect(s, i, RW);
		for (size_t p = 0; p < PAGES; p++) {
			volatile uint64_t *w = (volatile uint64_t *)(s->part[i] + p * pt_page());
			uint64_t old = w[3];

			w[3] = ~old;
			PT_CHECK(w[3] == ~old);
			w[3] = old;
		}
		protect(s, i, NEVER_WRITABLE);
	}
	return NULL;
}

/* Merge, then what the kernel says against what the result said. */
static void merge_fully(struct scene *s, struct samepage *sp)
{
	struct samepage_stats st;
	size_t slots = 0;
	uint64_t left = 0;

	s->faulty = false;
	/* What was written in store mappings is fresh memory again. */
	for (enum part i = 0; i < PARTS; i++) {
		PT_CHECK(samepage_discard(sp, s->part[i], PAGES * pt_page()) == 0);
		PT_CHECK(pt_is_zero(s->part[i], PAGES));
		fill_part(s, i);
	}
	for (enum part i = 0; i < PARTS; i++)
		left += merge_part(s, sp, i);
	for (enum part i = 0; i < PARTS; i++)
		slots += pt_file_pages(s->part[i], PAGES);
	PT_CHECK(samepage_stats(sp, &st, sizeof(st)) == 0);
	PT_CHECK(st.pages_sharing == slots);
	for (enum part i = 0; i < PARTS; i++)
		for (size_t p = 0; p < PAGES; p++)
			slots -= !is_zero_page(i, p);
	PT_CHECK(slots + left == 0);
	check_all(s);
}

static void tear_down(struct scene *s)
{
	for (enum part i = 0; i < PARTS; i++)
		pt_unmap(s->part[i], PAGES);
	unlink(file_name);
}

/* --- one run --------------------------------------------------------------- */

struct run {
	enum sys_fault_point point;
	uint64_t nth, times;
	int error;
	uint64_t *counts; /* shared: calls of each point, then the hits */
};

static int open_embedded(struct samepage **sp)
{
	struct samepage_options o = { .size = sizeof(o), .flags = SAMEPAGE_EMBEDDED,
				      .store_bytes = 64u << 20 };

	return samepage_open(sp, &o);
}

static void whole_scenario(struct scene *s, const struct run *run)
{
	struct samepage *sp = NULL;
	pthread_t t;
	int err;

	set_up(s);
	s->faulty = run->nth != 0;
	if (run->nth)
		PT_CHECK(sys_fault_arm(run->point, run->nth, run->error, run->times) == 0);
	else
		sys_fault_count_only();
	err = open_embedded(&sp);
	PT_CHECK(err == 0 || (s->faulty && err < 0 && !sp));
	if (err == 0)
		scenario(s, sp);
	stop_readers(s);
	check_all(s);
	if (err == 0)
		discard_scene(s, sp);
	for (int p = 1; !run->nth && p < SYS_FAULT_COUNT; p++)
		run->counts[p] = sys_fault_calls((enum sys_fault_point)p);
	run->counts[SYS_FAULT_COUNT] += sys_fault_hits(run->point);
	sys_fault_reset();
	PT_CHECK(!pthread_create(&t, NULL, touch_all, s));
	pthread_join(t, NULL);
	check_all(s);
	if (err)
		PT_CHECK(open_embedded(&sp) == 0);
	merge_fully(s, sp);
	samepage_close(sp);
	check_all(s);
	tear_down(s);
}

static int child(void *arg)
{
	const struct run *run = arg;
	const struct run calm = { .counts = run->counts };
	struct scene s = { 0 };
	size_t vmas, fds;

	/* Once without: what libc keeps for itself is there after that. */
	whole_scenario(&s, &calm);
	if (!run->nth)
		return 0;
	vmas = pt_vma_count();
	fds = pt_fd_count();
	whole_scenario(&s, run);
	PT_CHECK(pt_fd_count() == fds);
	if (!may_leak_mappings(run->point) && !PT_SANITIZED && pt_vma_count() > vmas)
		pt_note("%zu mappings before, %zu after", vmas, pt_vma_count());
	/* A sanitizer's own come and go with threads. */
	PT_CHECK(may_leak_mappings(run->point) || PT_SANITIZED || pt_vma_count() <= vmas);
	return 0;
}

/* --- all runs --------------------------------------------------------------- */

static unsigned runs, failures;

static void one(struct run *run)
{
	int status;

	runs++;
	status = pt_child(child, run, SECONDS);
	if (status == 0)
		return;
	failures++;
	pt_note("FAILED: %s call %lu, errno %d, times %lu: status %d", sys_fault_name(run->point),
		run->nth, run->error, run->times, status);
}

static const int *errors_of(enum sys_fault_point p)
{
	static const int memory[] = { ENOMEM, EAGAIN, 0 }, table[] = { EMFILE, ENOMEM, 0 },
			 move[] = { EBUSY, ENOMEM, EAGAIN, EINVAL, ENOENT, 0 },
			 reg[] = { ENOMEM, EBUSY, EINVAL, 0 }, other[] = { EINVAL, ENOMEM, 0 },
			 fault[] = { EFAULT, ENOMEM, 0 };

	switch (p) {
	case SYS_FAULT_mmap:
	case SYS_FAULT_munmap:
	case SYS_FAULT_mremap:
	case SYS_FAULT_uffd_copy:
		return memory;
	case SYS_FAULT_memfd_create:
	case SYS_FAULT_reopen_ro:
	case SYS_FAULT_open:
	case SYS_FAULT_uffd_open:
	case SYS_FAULT_uffd_from_dev:
	case SYS_FAULT_signalfd:
		return table;
	case SYS_FAULT_uffd_move:
		return move;
	case SYS_FAULT_uffd_register:
	case SYS_FAULT_uffd_unregister:
		return reg;
	case SYS_FAULT_read_self:
	case SYS_FAULT_pagemap_scan:
		return fault;
	default:
		return other;
	}
}

static bool for_ever_is_fair(enum sys_fault_point p)
{
	for (size_t i = 0; i < sizeof(must_succeed) / sizeof(must_succeed[0]); i++)
		if (p == must_succeed[i])
			return false;
	return true;
}

/* The first three calls, the last, and a few between. */
static unsigned choose(uint64_t calls, uint64_t *nth, unsigned room, uint64_t *rnd)
{
	unsigned n = 0;

	for (uint64_t i = 1; i <= 3 && i <= calls; i++)
		nth[n++] = i;
	for (; n + 1 < room && calls > 4; n++)
		nth[n] = 4 + pt_random(rnd) % (calls - 3);
	if (calls > 3)
		nth[n++] = calls;
	return n;
}

static void run_point(enum sys_fault_point p, uint64_t calls, uint64_t *counts)
{
	static const uint64_t times[] = { 1, 3, 0 };
	uint64_t nth[PT_SANITIZED ? 4 : 5], rnd = (uint64_t)p;
	unsigned n = choose(calls, nth, sizeof(nth) / sizeof(nth[0]), &rnd);

	for (unsigned i = 0; i < n; i++) {
		const int *e = errors_of(p);
		unsigned errors = 0;

		while (e[errors])
			errors++;
		/* Not the whole product: each occurrence meets another pair of them. */
		for (unsigned k = 0; k < 3; k++) {
			struct run run = { .point = p, .nth = nth[i], .times = times[k],
					   .error = e[(i + k) % errors], .counts = counts };

			/* The answer that a foreign mapping is in the way is believed. */
			if (p == SYS_FAULT_uffd_unregister && run.error == EINVAL)
				run.times = 1;
			if (run.times || for_ever_is_fair(p))
				one(&run);
		}
	}
}

static void every_call_refused(void **state)
{
	uint64_t *counts, points = 0;
	struct run count = { 0 };

	(void)state;
	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	counts = mmap(NULL, (SYS_FAULT_COUNT + 1) * sizeof(*counts), RW, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	assert_true(counts != MAP_FAILED);
	count.counts = counts;
	assert_int_equal(pt_child(child, &count, SECONDS), 0);
	counts[SYS_FAULT_COUNT] = 0;
	for (int p = 1; p < SYS_FAULT_COUNT; p++) {
		uint64_t calls = counts[p];

		if (!calls)
			continue;
		points++;
		run_point((enum sys_fault_point)p, calls, counts);
	}
	pt_note("%lu fault points, %u runs, %lu calls refused, %u failures", points, runs,
		counts[SYS_FAULT_COUNT], failures);
	assert_true(counts[SYS_FAULT_COUNT] > 0);
	assert_int_equal(failures, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_call_refused),
	};

	return PT_MAIN("proc-fault", tests);
}
