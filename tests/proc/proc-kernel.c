/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What merges: the kernel's MADV_MERGE, our remap, or nothing. If this failed, pages of
 * two domains would be merged by the kernel (I7), a kernel that cannot keep them apart
 * would be used, pages would be counted twice or not at all (I9), or memory that the
 * kernel merged would not behave as it did (I5).
 *
 * First against a kernel of our own making (the table of system calls is replaced, so
 * these run anywhere), then against the real one, where it has the call.
 */
#define PT_PLAIN_MERGE
#include "proctest.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "proc/engine.h"
#include "sys/maps.h"
#include "sys/probe.h"
#include "sys/sys.h"
#include "sys/uapi.h"

#define N 64u

/* --- a kernel of our own making ----------------------------------------------- */

static struct {
	struct sys_ops ops;
	bool no_call, no_scope, no_lines;
	int refuse_scope;  /* -errno */
	int merge_error;   /* -errno */
	uint64_t cookie;
	int scopes_set;
	int stat_fd;
	uint64_t calls, bytes;
	/* by page of a call: what becomes of page i is outcome[i % 6] */
	uint64_t count[6];
} fake;

enum { MERGED, ALREADY, ZERO, UNIQUE, BUSY, SKIPPED };

static int fake_merge(void *addr, size_t bytes)
{
	(void)addr;
	if (fake.no_call)
		return -EINVAL;
	if (!bytes)
		return 0;
	if (fake.merge_error)
		return fake.merge_error;
	fake.calls++;
	fake.bytes += bytes;
	for (size_t i = 0; i < bytes / pt_page(); i++)
		fake.count[i % 6]++;
	return 0;
}

static int fake_scope_set(unsigned op, uint64_t cookie)
{
	if (fake.no_scope)
		return -EINVAL;
	if (fake.refuse_scope)
		return fake.refuse_scope;
	assert_int_equal(op, SYS_PR_MEMORY_MERGE_SCOPE_USER);
	fake.cookie = cookie;
	fake.scopes_set++;
	return 0;
}

static int fake_scope_get(uint64_t *cookie)
{
	*cookie = fake.cookie;
	return fake.no_scope ? -EINVAL : SYS_PR_MEMORY_MERGE_SCOPE_USER;
}

static int fake_open(const char *path, int flags, unsigned mode)
{
	int fd;

	if (!strstr(path, "/ksm_stat"))
		return sys_real.open(path, flags, mode);
	fd = sys_real.open("/dev/null", flags, mode);
	fake.stat_fd = fd;
	return fd;
}

static ssize_t fake_pread(int fd, void *buf, size_t bytes, off_t off)
{
	static const char *const names[] = { "merged", "already", "zero", "unique", "busy",
					     "skipped" };
	uint64_t looked = 0;
	int n;

	if (fd != fake.stat_fd)
		return sys_real.pread(fd, buf, bytes, off);
	n = snprintf(buf, bytes, "ksm_rmap_items 1\nksm_merging_pages 5\n");
	for (unsigned i = 0; i < 6 && !fake.no_lines; i++) {
		looked += fake.count[i];
		n += snprintf((char *)buf + n, bytes - (size_t)n, "ksm_merge_%s %lu\n", names[i],
			      fake.count[i]);
	}
	if (!fake.no_lines)
		n += snprintf((char *)buf + n, bytes - (size_t)n, "ksm_merge_looked %lu\n", looked);
	return n;
}

static void fake_begin(void)
{
	memset(&fake, 0, sizeof(fake));
	fake.ops = *sys;
	fake.ops.merge = fake_merge;
	fake.ops.merge_scope_set = fake_scope_set;
	fake.ops.merge_scope_get = fake_scope_get;
	fake.ops.open = fake_open;
	fake.ops.pread = fake_pread;
	fake.stat_fd = -1;
	sys = &fake.ops;
}

static const struct sys_ops *before;

static int keep_table(void **state)
{
	(void)state;
	before = sys;
	unsetenv("SAMEPAGE_PRIMITIVE");
	return 0;
}

static int put_table_back(void **state)
{
	(void)state;
	sys = before;
	unsetenv("SAMEPAGE_PRIMITIVE");
	return 0;
}

static uint32_t primitive_of(struct samepage *sp)
{
	struct samepage_stats st;

	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	return st.primitive;
}

static uint32_t primitive_chosen(void)
{
	struct samepage *sp = pt_open();
	uint32_t primitive = primitive_of(sp);

	samepage_close(sp);
	return primitive;
}

static int open_error(const char *primitive)
{
	struct samepage_options o = { .size = sizeof(o), .flags = SAMEPAGE_EMBEDDED };
	struct samepage *sp = NULL;
	int err;

	setenv("SAMEPAGE_PRIMITIVE", primitive, 1);
	err = samepage_open(&sp, &o);
	samepage_close(sp);
	return err;
}

/* Every piece that is missing makes it a kernel that is not used. */
static void half_a_kernel_is_not_used(void **state)
{
	(void)state;
	fake_begin();
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_KERNEL);
	assert_true(fake.scopes_set == 1 && fake.cookie != 0);
	fake.no_call = true;
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_REMAP);
	fake.no_call = false;
	fake.no_scope = true;
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_REMAP);
	fake.no_scope = false;
	fake.no_lines = true;
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_REMAP);
	fake.no_lines = false;
	fake.refuse_scope = -EBUSY; /* memory of this process is merged in another domain */
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_REMAP);
	assert_int_equal(fake.calls, 0);
}

static void one_can_be_forced(void **state)
{
	(void)state;
	fake_begin();
	assert_int_equal(open_error("banana"), -EINVAL);
	assert_int_equal(open_error("kernel"), 0);
	setenv("SAMEPAGE_PRIMITIVE", "remap", 1);
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_REMAP);
	assert_int_equal(fake.scopes_set, 1);
	setenv("SAMEPAGE_PRIMITIVE", "", 1);
	assert_int_equal(primitive_chosen(), SAMEPAGE_PRIMITIVE_KERNEL);
	/* And not be had where it is not there, or belongs to another domain. */
	fake.refuse_scope = -EBUSY;
	assert_int_equal(open_error("kernel"), -EBUSY);
	fake.no_call = true;
	assert_int_equal(open_error("kernel"), -ENOSYS);
	fake.no_call = false;
	fake.no_lines = true;
	assert_int_equal(open_error("kernel"), -ENOSYS);
}

/* A domain is a number: the same for the same name, and different ones are different. */
static void domains_are_scopes(void **state)
{
	static const char *const names[] = { "default", "a", "b", "A", "default2", "web", "web.1" };
	const size_t n = sizeof(names) / sizeof(names[0]);

	(void)state;
	assert_true(proc_scope_of(NULL) == proc_scope_of("default"));
	for (size_t i = 0; i < n; i++) {
		assert_true(proc_scope_of(names[i]) != 0);
		for (size_t k = 0; k < n; k++)
			assert_int_equal(proc_scope_of(names[i]) == proc_scope_of(names[k]), i == k);
	}
}

/* Six outcomes, each under one heading; and what the kernel refused has a reason too. */
static void each_page_is_counted_once(void **state)
{
	struct samepage_result r;
	struct samepage_stats st;
	struct samepage *sp;
	char *p = pt_map(60);

	(void)state;
	fake_begin();
	sp = pt_open();
	pt_fill(p, 60, 1);
	assert_int_equal(samepage_merge(sp, p, 60 * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
	assert_int_equal(fake.calls, 1);
	assert_true(fake.bytes == 60 * pt_page());
	assert_int_equal(r.pages_looked, 60);
	assert_int_equal(r.pages_merged, 10);
	assert_int_equal(r.pages_already, 10);
	assert_int_equal(r.pages_zeroed, 10);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_UNIQUE], 10);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_BUSY], 10);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_VMA_FLAGS], 10);
	assert_int_equal(r.vmas_added, 0);
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	assert_int_equal(st.pages_sharing, 5); /* as the kernel says */
	assert_int_equal(st.zero_pages, 10);

	fake.merge_error = -EBUSY;
	assert_int_equal(samepage_merge(sp, p, 60 * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_FAILED], 60);
	fake.merge_error = -EINTR;
	assert_int_equal(samepage_merge(sp, p, 60 * pt_page(), 0, &r), 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_STOPPED], 60);
	/* Counts that cannot be read any more are no reason to invent some. */
	fake.merge_error = 0;
	fake.no_lines = true;
	assert_int_equal(samepage_merge(sp, p, 60 * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_FAILED], 60);
	samepage_close(sp);
	pt_unmap(p, 60);
}

/* What the kernel is not even asked for, though it might do it. */
static void what_is_not_handed_over(void **state)
{
	struct samepage_result r;
	struct samepage *sp;
	char *p = pt_map(N), *s;

	(void)state;
	fake_begin();
	sp = pt_open();
	pt_fill(p, N, 1);
	assert_int_equal(mprotect(p, N * pt_page(), PROT_NONE), 0);
	assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_PROTECTION], N);
	assert_int_equal(mprotect(p, N * pt_page(), RW), 0);
	s = mmap(NULL, N * pt_page(), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(s != MAP_FAILED);
	memset(s, 1, N * pt_page());
	assert_int_equal(samepage_merge(sp, s, N * pt_page(), 0, &r), 0);
	assert_int_equal(r.pages_merged, 0);
	munmap(s, N * pt_page());
	/* Past the sanitizers, which make nothing of mlock(). */
	if (syscall(SYS_mlock, p, N * pt_page()) == 0) {
		assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
		assert_int_equal(r.pages_declined[SAMEPAGE_REASON_VMA_FLAGS], N);
		syscall(SYS_munlock, p, N * pt_page());
	}
	assert_int_equal(fake.calls, 0);
	/* Only what is there of it: a hole in the middle is told of. */
	munmap(p + N / 2 * pt_page(), pt_page());
	assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), -ENOMEM);
	assert_int_equal(r.pages_looked, N - 1);
	samepage_close(sp);
	munmap(p, N * pt_page());
}

/* --- neither ------------------------------------------------------------------ */

/* On a kernel without any of it: every page is declined, and says why. */
static void what_cannot_be_merged_says_so(void **state)
{
	struct samepage_result r;
	struct sys_features f;
	struct samepage *sp;
	char *p = pt_map(N);

	(void)state;
	sys_probe(&f);
	if (sys_probe_can_freeze(&f) == 0 || sys_probe_kernel_merges(&f))
		SKIP("memory can be merged here");
	pt_fill(p, N, 1);
	sp = pt_open();
	assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
	assert_int_equal(r.pages_looked, N);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_NO_FREEZE], N);
	assert_int_equal(pt_differs(p, N, 1), -1);
	samepage_close(sp);
	pt_unmap(p, N);
}

/* --- the real one ------------------------------------------------------------- */

static struct samepage *open_kernel(void)
{
	struct sys_features f;

	sys_probe(&f);
	if (!sys_probe_kernel_merges(&f))
		SKIP("this kernel has no MADV_MERGE with merge scopes");
	setenv("SAMEPAGE_PRIMITIVE", "kernel", 1);
	return pt_open();
}

static void two_ranges_become_one(void **state)
{
	struct samepage *sp = open_kernel();
	char *p = pt_map(N), *q = pt_map(N);
	struct samepage_result r;
	struct samepage_stats st;
	size_t vmas;

	(void)state;
	pt_skip_unless_root();
	pt_fill(p, N, 1);
	pt_fill(q, N, 1);
	vmas = pt_vma_count();
	r = pt_merged(sp, p, N);
	assert_int_equal(r.pages_looked, N);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_UNIQUE], N);
	r = pt_merged(sp, q, N);
	assert_int_equal(r.pages_merged, N);
	assert_int_equal(r.vmas_added, 0);
	assert_int_equal(pt_same_frames(p, q, N), N);
	assert_int_equal(pt_vma_count(), vmas);
	assert_int_equal(pt_store_pages(q, N), 0); /* anonymous as before */
	assert_int_equal(samepage_stats(sp, &st, sizeof(st)), 0);
	assert_int_equal(st.pages_sharing, 2 * N);
	r = pt_merged(sp, p, N);
	assert_int_equal(r.pages_already, N);
	/* Written: one's own again, and the other's as it was. */
	p[0] ^= 1;
	assert_int_equal(pt_same_frames(p, q, N), N - 1);
	assert_int_equal(pt_differs(q, N, 1), -1);
	p[0] ^= 1;
	r = pt_merged(sp, p, N);
	assert_int_equal(r.pages_merged, 1);
	assert_int_equal(r.pages_already, N - 1);
	assert_int_equal(samepage_unmerge(sp, p, N * pt_page()), 0);
	assert_int_equal(pt_same_frames(p, q, N), 0);
	assert_int_equal(pt_differs(p, N, 1), -1);
	assert_int_equal(pt_vma_count(), vmas);
	samepage_close(sp);
	assert_int_equal(pt_differs(q, N, 1), -1);
	pt_unmap(p, N);
	pt_unmap(q, N);
}

static void zeros_need_no_page(void **state)
{
	struct samepage *sp = open_kernel();
	char *p = pt_map(N);
	struct samepage_result r;

	(void)state;
	pt_skip_unless_root();
	memset(p, 1, N * pt_page());
	memset(p, 0, N * pt_page());
	r = pt_merged(sp, p, N);
	assert_int_equal(r.pages_zeroed + r.pages_merged +
				 r.pages_declined[SAMEPAGE_REASON_UNIQUE], N);
	assert_true(r.pages_declined[SAMEPAGE_REASON_UNIQUE] <= 1);
	assert_true(pt_is_zero(p, N));
	if (r.pages_zeroed == N) {
		for (unsigned i = 0; i < N; i++)
			assert_true(pt_pfn(p + i * pt_page()) == pt_zero_pfn());
	}
	samepage_close(sp);
	pt_unmap(p, N);
}

/* Advice, protection, moves and forks: nothing of ours is in their way. */
static void memory_stays_what_it_was(void **state)
{
	struct samepage *sp = open_kernel();
	char *p = pt_map(N), *q = pt_map(N), *moved;
	struct samepage_result r;

	(void)state;
	pt_fill(p, N, 1);
	pt_fill(q, N, 1);
	pt_merged(sp, p, N);
	assert_int_equal(pt_merged(sp, q, N).pages_merged, N);
	/* without samepage_discard() */
	assert_int_equal(madvise(q, N / 2 * pt_page(), MADV_DONTNEED), 0);
	assert_true(pt_is_zero(q, N / 2));
	assert_int_equal(pt_differs(p, N, 1), -1);
	pt_fill(q, N / 2, 1);
	assert_int_equal(pt_merged(sp, q, N).pages_merged, N / 2);
	moved = mremap(q, N * pt_page(), 2 * N * pt_page(), MREMAP_MAYMOVE);
	assert_true(moved != MAP_FAILED);
	assert_int_equal(pt_differs(moved, N, 1), -1);
	assert_true(pt_is_zero(moved + N * pt_page(), N));
	assert_int_equal(mprotect(moved, N * pt_page(), PROT_READ), 0);
	/* The kernel may have lost track of where it was. */
	r = pt_merged(sp, moved, N);
	assert_int_equal(r.pages_already + r.pages_merged, N);
	fflush(NULL);
	if (fork() == 0) {
		PT_CHECK(pt_differs(moved, N, 1) == -1 && pt_differs(p, N, 1) == -1);
		p[0] ^= 1;
		PT_CHECK(mprotect(moved, N * pt_page(), RW) == 0);
		moved[pt_page()] ^= 1;
		_exit(0);
	}
	{
		int status = -1;

		wait(&status);
		assert_int_equal(status, 0);
	}
	assert_int_equal(pt_differs(moved, N, 1), -1);
	assert_int_equal(pt_differs(p, N, 1), -1);
	samepage_close(sp);
	munmap(moved, 2 * N * pt_page());
	pt_unmap(p, N);
}

/* Read-only, executable, of a file: the remap cannot stop who writes there, the kernel can. */
static void more_kinds_than_the_remap(void **state)
{
	struct samepage *sp = open_kernel();
	char *p = pt_map(N), *q;
	int fd = memfd_create("file", MFD_CLOEXEC);

	(void)state;
	pt_fill(p, N, 1);
	assert_int_equal(ftruncate(fd, N * (off_t)pt_page()), 0);
	q = mmap(NULL, N * pt_page(), RW, MAP_PRIVATE, fd, 0);
	assert_true(q != MAP_FAILED);
	pt_fill(q, N / 2, 1); /* copied on write; the rest stays the file's */
	pt_touch(q, N);
	pt_merged(sp, p, N);
	{
		struct samepage_result r = pt_merged(sp, q, N);

		assert_int_equal(r.pages_looked, N / 2);
		assert_int_equal(r.pages_merged, N / 2);
	}
	assert_int_equal(mprotect(p, N * pt_page(), PROT_READ | PROT_EXEC), 0);
	assert_int_equal(pt_merged(sp, p, N).pages_already, N / 2);
	assert_int_equal(pt_differs(q, N / 2, 1), -1);
	assert_int_equal(samepage_discard(sp, q, N * pt_page()), 0);
	assert_true(pt_is_zero(q, N)); /* the file's bytes */
	samepage_close(sp);
	munmap(q, N * pt_page());
	pt_unmap(p, N);
	close(fd);
}

/*
 * Two processes with the same bytes, which do not share a domain (each embedded store is
 * one by itself), and the second time the same domain, by name.
 */
static int stranger(void *arg)
{
	int *pipes = arg;
	char *p = pt_map(N), c = 0;
	struct samepage_options o = { .size = sizeof(o), .flags = SAMEPAGE_EMBEDDED };
	struct samepage_result r;
	struct samepage *sp;

	pt_fill(p, N, 7);
	PT_CHECK(sys->merge_scope_set(SYS_PR_MEMORY_MERGE_SCOPE_USER, 0x1234567) == 0);
	PT_CHECK(sys->merge(p, N * pt_page()) == 0);
	/* Its memory is merged in that scope now: another is not to be had. */
	PT_CHECK(samepage_open(&sp, &o) == -EBUSY);
	PT_CHECK(write(pipes[1], &c, 1) == 1);
	memset(&r, 0, sizeof(r));
	PT_CHECK(read(pipes[2], &c, 1) == 1);
	PT_CHECK(pt_differs(p, N, 7) == -1);
	return 0;
}

static void strangers_are_kept_apart(void **state)
{
	struct samepage *sp = open_kernel();
	int a[2], b[2], status = -1;
	char *p = pt_map(N), *q = pt_map(N), c = 0;
	struct samepage_result r;
	pid_t pid;

	(void)state;
	samepage_close(sp);
	assert_int_equal(pipe(a) | pipe(b), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int fds[3] = { -1, a[1], b[0] };

		pt_die_with_parent();
		_exit(stranger(fds));
	}
	close(a[1]);
	assert_int_equal(read(a[0], &c, 1), 1);
	sp = open_kernel();
	pt_fill(p, N, 7);
	pt_fill(q, N, 7);
	r = pt_merged(sp, p, N);
	assert_int_equal(r.pages_merged, 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_UNIQUE], N);
	r = pt_merged(sp, q, N);
	assert_int_equal(r.pages_merged, N);
	assert_int_equal(write(b[1], &c, 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	samepage_close(sp);
	for (int i = 0; i < 2; i++) {
		close(i ? b[0] : a[0]);
		close(i ? b[1] : -1);
	}
	pt_unmap(p, N);
	pt_unmap(q, N);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, keep_table, put_table_back)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(half_a_kernel_is_not_used),
		TEST(one_can_be_forced),
		TEST(domains_are_scopes),
		TEST(each_page_is_counted_once),
		TEST(what_is_not_handed_over),
		TEST(what_cannot_be_merged_says_so),
		TEST(two_ranges_become_one),
		TEST(zeros_need_no_page),
		TEST(memory_stays_what_it_was),
		TEST(more_kinds_than_the_remap),
		TEST(strangers_are_kept_apart),
	};

	return PT_MAIN("proc-kernel", tests);
}
