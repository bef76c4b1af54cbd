/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A zoo of mappings. If this failed, memory that must not be merged (locked, with
 * a policy, watched by the program's own userfaultfd, the library's own ...) would
 * be, or would be declined without a reason; or a mapping would lose what the
 * program had asked for (protection, MADV_DONTFORK ...) by a merge, an unmerge or a
 * discard (I5, I9).
 */
#include "proctest.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "proc/mem.h"
#include "sys/maps.h"
#include "sys/sys.h"

#define N 24u
#define MERGED SAMEPAGE_REASON_COUNT /* expected: all of it */

static struct samepage *sp;

struct kind {
	const char *name;
	unsigned expect; /* a reason, or MERGED */
	uint64_t kept_merged; /* VmFlags that a store mapping shows too, if it had them */
	bool (*make)(char *p, size_t bytes); /* false: not to be had here */
};

/* What must be the same after any of our calls, where the mapping had it. */
#define ALWAYS (SYS_VMF(rd) | SYS_VMF(wr) | SYS_VMF(ex) | SYS_VMF(sh))

static bool plain(char *p, size_t bytes)
{
	return p && bytes;
}

static bool read_only(char *p, size_t bytes)
{
	return mprotect(p, bytes, PROT_READ) == 0;
}

static bool no_access(char *p, size_t bytes)
{
	return mprotect(p, bytes, PROT_NONE) == 0;
}

static bool executable(char *p, size_t bytes)
{
	return mprotect(p, bytes, RW | PROT_EXEC) == 0;
}

/* Replace what is there, with the same bytes. */
static bool again(char *p, size_t bytes, int flags, int fd)
{
	char *copy = malloc(bytes);

	PT_CHECK(copy);
	memcpy(copy, p, bytes);
	PT_CHECK(mmap(p, bytes, RW, flags | MAP_FIXED, fd, 0) == p);
	memcpy(p, copy, bytes);
	free(copy);
	return true;
}

static bool shared(char *p, size_t bytes)
{
	return again(p, bytes, MAP_SHARED | MAP_ANONYMOUS, -1);
}

static bool file_copied(char *p, size_t bytes)
{
	int fd = memfd_create("zoo", MFD_CLOEXEC);

	PT_CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	again(p, bytes, MAP_PRIVATE, fd);
	close(fd);
	return true;
}

static bool grows_down(char *p, size_t bytes)
{
	return again(p, bytes, ANON | MAP_GROWSDOWN, -1);
}

static bool no_reserve(char *p, size_t bytes)
{
	return again(p, bytes, ANON | MAP_NORESERVE, -1);
}

static bool locked(char *p, size_t bytes)
{
	return syscall(SYS_mlock, p, bytes) == 0; /* AddressSanitizer's mlock(3) does nothing */
}

#define ADVICE(fn, advice)                                                                         \
	static bool fn(char *p, size_t bytes)                                                      \
	{                                                                                          \
		return madvise(p, bytes, advice) == 0;                                             \
	}
ADVICE(wipe_on_fork, MADV_WIPEONFORK)
ADVICE(dont_fork, MADV_DONTFORK)
ADVICE(dont_dump, MADV_DONTDUMP)
ADVICE(huge, MADV_HUGEPAGE)
ADVICE(no_huge, MADV_NOHUGEPAGE)
ADVICE(sequential, MADV_SEQUENTIAL)

static bool mergeable(char *p, size_t bytes)
{
	/* ksmd must not be running, or it would merge them itself. */
	return sys_read_number("/sys/kernel/mm/ksm/run") == 0 &&
	       madvise(p, bytes, MADV_MERGEABLE) == 0;
}

static bool all_advice(char *p, size_t bytes)
{
	return dont_fork(p, bytes) && dont_dump(p, bytes) && no_huge(p, bytes);
}

static bool named(char *p, size_t bytes)
{
	return prctl(53399329 /* PR_SET_VMA */, 0, p, bytes, "zoo") == 0;
}

static bool numa_policy(char *p, size_t bytes)
{
	unsigned long nodes = 1;

	return syscall(SYS_mbind, p, bytes, 2 /* MPOL_BIND */, &nodes, 8 * sizeof(nodes), 0) == 0;
}

static bool with_pkey(char *p, size_t bytes)
{
	int key = pkey_alloc(0, 0);

	return key > 0 && pkey_mprotect(p, bytes, RW, key) == 0;
}

static int own_uffd = -1;
static bool own_userfaultfd(char *p, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, bytes },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };

	if (own_uffd >= 0)
		close(own_uffd);
	own_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	return own_uffd >= 0 && ioctl(own_uffd, UFFDIO_API, &api) == 0 &&
	       ioctl(own_uffd, UFFDIO_REGISTER, &reg) == 0;
}

static const struct kind kinds[] = {
	{ "plain", MERGED, 0, plain },
	{ "executable", MERGED, 0, executable },
	{ "noreserve", MERGED, SYS_VMF(nr), no_reserve },
	{ "dontfork", MERGED, SYS_VMF(dc), dont_fork },
	{ "dontdump", MERGED, SYS_VMF(dd), dont_dump },
	{ "hugepage", MERGED, 0, huge },
	{ "nohugepage", MERGED, 0, no_huge },
	{ "mergeable", MERGED, 0, mergeable },
	{ "dontfork, dontdump, nohugepage", MERGED, SYS_VMF(dc) | SYS_VMF(dd), all_advice },
	{ "named", MERGED, 0, named },
	{ "read-only", SAMEPAGE_REASON_PROTECTION, 0, read_only },
	{ "no access", SAMEPAGE_REASON_PROTECTION, 0, no_access },
	{ "shared", SAMEPAGE_REASON_VMA_KIND, 0, shared },
	{ "file, copied on write", SAMEPAGE_REASON_WRITABLE, 0, file_copied },
	{ "grows down", SAMEPAGE_REASON_VMA_FLAGS, 0, grows_down },
	{ "locked", SAMEPAGE_REASON_VMA_FLAGS, 0, locked },
	{ "wipe on fork", SAMEPAGE_REASON_VMA_FLAGS, 0, wipe_on_fork },
	{ "sequential", SAMEPAGE_REASON_VMA_FLAGS, 0, sequential },
	{ "policy", SAMEPAGE_REASON_POLICY, 0, numa_policy },
	{ "protection key", SAMEPAGE_REASON_POLICY, 0, with_pkey },
	{ "userfaultfd", SAMEPAGE_REASON_UFFD_BUSY, 0, own_userfaultfd },
};

/* What is expected of whoever merges here: the kernel can do with more kinds. */
static unsigned expected(const struct kind *k)
{
	static bool (*const more[])(char *p, size_t bytes) = {
		read_only, file_copied, grows_down, wipe_on_fork, sequential, with_pkey,
	};

	for (size_t i = 0; pt_kernel_merges() && i < sizeof(more) / sizeof(more[0]); i++)
		if (k->make == more[i])
			return MERGED;
	return k->expect;
}

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void check_result(const struct kind *k, const struct samepage_result *r)
{
	bool sums = pt_sums(r);

	if (!sums || (expected(k) == MERGED ? !pt_complete(r) || r->pages_looked != N
					  : r->pages_declined[expected(k)] != r->pages_looked))
		pt_print(k->name, r);
	assert_true(sums);
	if (expected(k) == MERGED) {
		assert_int_equal(r->pages_looked, N);
		assert_true(pt_complete(r));
		return;
	}
	assert_int_equal(r->pages_declined[expected(k)], r->pages_looked);
	/* Shared pages are nobody's private memory: they are not looked at. */
	assert_int_equal(r->pages_looked, k->make == shared ? 0 : N);
}

static void readable(char *p)
{
	assert_int_equal(mprotect(p, N * pt_page(), RW), 0);
}

/* After discard: flags all as they were. A store mapping: what it can show. */
static void check_flags(const struct kind *k, uint64_t before, char *p, bool store)
{
	uint64_t mask = store ? ALWAYS | (before & k->kept_merged) : ~UINT64_C(0);
	int prot;
	uint64_t now = pt_vm_flags(p, &prot);

	if ((now ^ before) & mask)
		pt_note("%s: flags %lx became %lx (%s)", k->name, before, now,
			store ? "merged" : "discarded");
	assert_int_equal((now ^ before) & mask, 0);
}

static void one_kind(const struct kind *k)
{
	char *p = pt_map(N);
	struct samepage_result r;
	uint64_t before;

	pt_fill(p, N, 5);
	if (!k->make(p, N * pt_page())) {
		pt_note("%s: not to be had here", k->name);
		pt_unmap(p, N);
		return;
	}
	before = pt_vm_flags(p, NULL);
	assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
	check_result(k, &r);
	/* The kernel changes none; else a store mapping shows what it can. */
	check_flags(k, before, p, expected(k) == MERGED && !pt_kernel_merges());
	if (expected(k) == SAMEPAGE_REASON_PROTECTION)
		readable(p);
	assert_int_equal(pt_differs(p, N, 5), -1);
	if (expected(k) == MERGED) {
		assert_true(pt_file_pages(p, N) >= N - 2);
		assert_int_equal(samepage_unmerge(sp, p, N * pt_page()), 0);
		/* Unmerging is KSM's, which takes its advice back as well. */
		check_flags(k, before & ~SYS_VMF(mg), p, true);
		assert_int_equal(pt_file_pages(p, N), 0);
		assert_int_equal(pt_differs(p, N, 5), -1);
		assert_int_equal(samepage_discard(sp, p, N * pt_page()), 0);
		if (!pt_kernel_merges())
			check_flags(k, before, p, false);
		assert_true(pt_is_zero(p, N));
		if (k->make == read_only)
			readable(p);
		pt_fill(p, N, 5);
		assert_int_equal(samepage_merge(sp, p, N * pt_page(), 0, &r), 0);
		check_result(k, &r);
		assert_int_equal(pt_differs(p, N, 5), -1);
	}
	pt_unmap(p, N);
}

static void each_by_itself(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	for (size_t i = 0; i < KINDS; i++)
		one_kind(&kinds[i]);
	samepage_close(sp);
}

/* All next to each other, in one call: what can be merged is, and the sums are exact. */
static void all_in_one_range(void **state)
{
	size_t expect[SAMEPAGE_REASON_COUNT + 1] = { 0 };
	struct samepage_result r;
	char *base;

	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	base = pt_map(KINDS * N);
	pt_fill(base, KINDS * N, 6);
	for (size_t i = 0; i < KINDS; i++) {
		char *p = base + i * N * pt_page();

		if (!kinds[i].make(p, N * pt_page()))
			expect[MERGED] += N;
		else if (kinds[i].make != shared)
			expect[expected(&kinds[i])] += N;
	}
	/* A stack-like mapping makes a gap of its own below: none is wanted here. */
	assert_int_equal(samepage_merge(sp, base, KINDS * N * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
	pt_print("zoo", &r);
	assert_true(r.pages_merged >= expect[MERGED] - 2 && r.pages_merged <= expect[MERGED]);
	for (unsigned k = 0; k < SAMEPAGE_REASON_COUNT; k++)
		if (k != SAMEPAGE_REASON_CHANGED)
			assert_int_equal(r.pages_declined[k], expect[k]);
	assert_int_equal(mprotect(base, KINDS * N * pt_page(), RW), 0);
	assert_int_equal(pt_differs(base, KINDS * N, 6), -1);
	samepage_close(sp);
	pt_unmap(base, KINDS * N);
}

/* --- the program's own userfaultfd ------------------------------------------ */

static void *touch_page(void *arg)
{
	return (void *)(uintptr_t)*(volatile unsigned char *)arg;
}

static void own_userfaultfd_still_works(void **state)
{
	struct samepage_result r;
	struct uffd_msg msg;
	void *got;
	char *p, *page;
	pthread_t t;
	struct uffdio_copy copy;

	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	p = pt_map(2 * N);
	page = pt_map(1);
	memset(page, 0x77, pt_page());
	pt_fill(p, N - 1, 7); /* page N - 1 is missing */
	pt_fill(p + N * pt_page(), N, 7);
	if (!own_userfaultfd(p, N * pt_page()))
		SKIP("no userfaultfd for the program");
	assert_int_equal(samepage_merge(sp, p, 2 * N * pt_page(), 0, &r), 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_UFFD_BUSY], N - 1);
	assert_true(r.pages_merged >= N - 2);
	assert_int_equal(pthread_create(&t, NULL, touch_page, p + (N - 1) * pt_page()), 0);
	assert_int_equal(read(own_uffd, &msg, sizeof(msg)), sizeof(msg));
	assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
	copy = (struct uffdio_copy){ .dst = (uintptr_t)p + (N - 1) * pt_page(),
				     .src = (uintptr_t)page, .len = pt_page() };
	assert_int_equal(ioctl(own_uffd, UFFDIO_COPY, &copy), 0);
	pthread_join(t, &got);
	assert_int_equal((uintptr_t)got, 0x77);
	samepage_close(sp);
	close(own_uffd);
	own_uffd = -1;
	pt_unmap(p, 2 * N);
	pt_unmap(page, 1);
}

/* --- the library's own memory ------------------------------------------------ */

static void own_memory_is_left_alone(void **state)
{
	uint64_t start, end, from = 0;
	struct samepage_result r;
	unsigned ranges = 0;

	(void)state;
	pt_skip_unless_can_merge();
	sp = pt_open();
	while (proc_mem_excluded(from, UINT64_MAX / 2, &start, &end)) {
		int err = samepage_merge(sp, (void *)start, end - start, 0, &r);

		assert_true(err == 0 || err == -ENOMEM);
		assert_int_equal(r.pages_merged + r.pages_zeroed + r.pages_already, 0);
		assert_true(pt_sums(&r));
		ranges++;
		from = end;
	}
	assert_true(ranges >= 4);
	samepage_close(sp);
}

/* Everything at once, the heap, other threads' stacks and libc's own included. */
static int merge_the_world(void *arg)
{
	struct samepage_result r;
	char *p = pt_map(N), *heap = malloc(N * pt_page());

	(void)arg;
	PT_CHECK(heap);
	pt_fill(p, N, 8);
	memset(heap, 0x33, N * pt_page());
	sp = pt_open();
	for (unsigned i = 0; i < 5; i++) {
		PT_CHECK(samepage_merge(sp, NULL, UINT64_C(1) << 47, 0, &r) == -ENOMEM);
		PT_CHECK(pt_sums(&r));
		PT_CHECK(r.pages_declined[SAMEPAGE_REASON_EXCLUDED] > 0);
		/* The kernel wants two of a kind; p is the only one of its. */
		PT_CHECK(i || pt_kernel_merges() || r.pages_merged >= N);
		heap[i * pt_page()] ^= 1;
		free(malloc(100000 * (i + 1)));
	}
	pt_print("the world", &r);
	PT_CHECK(pt_differs(p, N, 8) == -1);
	PT_CHECK(samepage_unmerge(sp, p, N * pt_page()) == 0);
	samepage_close(sp);
	free(heap);
	return pt_differs(p, N, 8) == -1 ? 0 : 1;
}

static void a_whole_process(void **state)
{
	(void)state;
	pt_skip_unless_can_merge();
	if (PT_SANITIZED)
		SKIP("a sanitizer's shadow is too much to look at");
	assert_int_equal(pt_child(merge_the_world, NULL, 60), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_by_itself),
		cmocka_unit_test(all_in_one_range),
		cmocka_unit_test(own_userfaultfd_still_works),
		cmocka_unit_test(own_memory_is_left_alone),
		cmocka_unit_test(a_whole_process),
	};

	return PT_MAIN("proc-kinds", tests);
}
