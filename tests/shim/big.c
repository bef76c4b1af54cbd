/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big blocks of malloc: ours, owned while they live, told from libc's without fail, and
 * with malloc's manners. If this failed, large blocks would not be merged, or one that is
 * libc's would be unmapped by us or the other way round, which ends the program; or what
 * somebody else maps later would be taken for a block.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "shimtest.h"

#define THRESHOLD (512u << 10)
#define SMALLEST (THRESHOLD - 23) /* of which malloc makes a chunk of THRESHOLD bytes */
#define HUGE_BYTES ((size_t)PTRDIFF_MAX + 1)

void __libc_free(void *p);

static size_t page;
static const char *program;
/* Not to be seen through by the compiler. */
static void *(*volatile do_malloc)(size_t) = malloc;
static void *(*volatile do_calloc)(size_t, size_t) = calloc;
static void *(*volatile do_realloc)(void *, size_t) = realloc;
static void (*volatile do_free)(void *) = free;

static bool is_ours(const void *p)
{
	return ((uintptr_t)p & (page - 1)) == 64 && shim_blocks_find((uintptr_t)p - 64) != 0;
}

/* fn in a child, which must end by itself and well. */
static void in_child(int (*fn)(void))
{
	pid_t pid = fork();
	int status = -1;

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(fn());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void owned_while_it_lives(void **state)
{
	char *p = do_malloc(THRESHOLD), *q;
	size_t before = shim_blocks_count();

	assert_true(is_ours(p));
	assert_true(owned_now(p, THRESHOLD));
	assert_true(malloc_usable_size(p) >= THRESHOLD);
	memset(p, 7, malloc_usable_size(p));
	assert_true(owned_is_real());
	q = do_realloc(p, 30 * THRESHOLD);
	assert_true(is_ours(q) && q[0] == 7 && q[THRESHOLD - 1] == 7);
	assert_true(owned_now(q, 30 * THRESHOLD));
	assert_true(q == p || !is_ours(p));
	assert_true(owned_is_real());
	do_free(q);
	assert_false(any_owned_now(q, 30 * THRESHOLD));
	assert_true(owned_is_real());
	assert_int_equal(shim_blocks_count(), before - 1);
	p = do_malloc(SMALLEST - 1);
	assert_false(is_ours(p));
	do_free(p);
	p = do_malloc(SMALLEST);
	assert_true(is_ours(p));
	do_free(p);
}

static void across_the_threshold(void **state)
{
	unsigned char *p = do_malloc(1000), *before;

	memset(p, 1, 1000);
	p = do_realloc(p, THRESHOLD + 5);
	assert_true(is_ours(p) && p[0] == 1 && p[999] == 1);
	memset(p, 2, THRESHOLD + 5);
	before = p;
	p = do_realloc(p, THRESHOLD - 50);
	assert_true(!is_ours(p) && !is_ours(before) && p[0] == 2 && p[THRESHOLD - 51] == 2);
	p = do_realloc(p, 2 * THRESHOLD);
	assert_true(is_ours(p) && p[0] == 2 && p[THRESHOLD - 51] == 2);
	/* In its last page: nothing moves. */
	before = p;
	p = do_realloc(p, malloc_usable_size(p));
	assert_ptr_equal(p, before);
	assert_null(do_realloc(p, 0));
	assert_false(is_ours(before));
	p = do_realloc(NULL, THRESHOLD);
	assert_true(is_ours(p));
	do_free(p);
}

static void errors(void **state)
{
	char *p = do_malloc(THRESHOLD);

	p[5] = 5;
	errno = 0;
	assert_null(do_malloc(HUGE_BYTES));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_malloc(SIZE_MAX));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_malloc(PTRDIFF_MAX));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_calloc(SIZE_MAX / 2, 3));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_calloc(1, HUGE_BYTES));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_realloc(p, HUGE_BYTES));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_realloc(p, PTRDIFF_MAX - 4096));
	assert_int_equal(errno, ENOMEM);
	assert_true(is_ours(p) && p[5] == 5);
	errno = EDOM;
	do_free(p);
	assert_int_equal(errno, EDOM);
	assert_int_equal(malloc_usable_size(NULL), 0);
	do_free(NULL);
}

static int with_no_memory(void)
{
	struct rlimit none = { 64 << 20, 64 << 20 };
	char *p = do_malloc(THRESHOLD);

	p[9] = 9;
	setrlimit(RLIMIT_AS, &none);
	errno = 0;
	if (do_malloc(1 << 30) || errno != ENOMEM)
		return 1;
	errno = 0;
	if (do_realloc(p, 1 << 30) || errno != ENOMEM || p[9] != 9 || !is_ours(p))
		return 2;
	do_free(p);
	return 0;
}

static void limits(void **state)
{
	in_child(with_no_memory);
}

/* Of libc's blocks some have an address like those of ours. */
static void others_at_such_addresses(void **state)
{
	void *other[64];
	unsigned alike = 0;

	for (unsigned i = 0; i < 64; i++) {
		other[i] = memalign(64, THRESHOLD + i * page);
		assert_non_null(other[i]);
		alike += ((uintptr_t)other[i] & (page - 1)) == 64;
		assert_false(is_ours(other[i]));
		memset(other[i], 1, malloc_usable_size(other[i]));
	}
	assert_true(alike > 0);
	for (unsigned i = 0; i < 64; i++)
		do_free(other[i]);
}

/* What was freed by libc itself is no block any more when something else is there. */
static void freed_by_libc(void **state)
{
	char *p = do_malloc(THRESHOLD), *q;
	uintptr_t base = (uintptr_t)p - 64;

	memset(p, 3, THRESHOLD);
	__libc_free(p);
	assert_int_equal(shim_blocks_find(base), THRESHOLD + page);
	q = mmap((void *)base, THRESHOLD + page, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(q, (void *)base);
	/* As a chunk of libc's: the table alone would take it for a block, and 512 KiB of it. */
	((size_t *)q)[6] = 48;
	((size_t *)q)[7] = (4 * page - 48) | 2;
	assert_int_equal(malloc_usable_size(p), 4 * page - 64);
	assert_int_equal(shim_blocks_find(base), 0);
	assert_int_equal(munmap(q, THRESHOLD + page), 0);
	assert_true(owned_is_real());
}

#define MANY 6000

static int many_blocks(void)
{
	static char *block[MANY];
	uint64_t seed = 99;
	size_t before = shim_blocks_count(), live = 0;

	if (mallopt(M_MMAP_THRESHOLD, (int)page) != 1)
		return 1;
	for (unsigned round = 0; round < 10 * MANY; round++) {
		unsigned i = (unsigned)(random_next(&seed) % MANY);

		if (block[i]) {
			if (!is_ours(block[i]) || *(unsigned *)block[i] != i)
				return 2;
			do_free(block[i]);
			block[i] = NULL;
			live--;
		} else {
			block[i] = do_malloc(page + random_next(&seed) % (4 * page));
			*(unsigned *)block[i] = i;
			live++;
		}
		if (round % 1000 == 0 && !owned_is_real())
			return 3;
	}
	if (shim_blocks_count() != before + live || live < MANY / 4)
		return 4;
	for (unsigned i = 0; i < MANY; i++) {
		if (block[i] && (!is_ours(block[i]) || *(unsigned *)block[i] != i))
			return 5;
		do_free(block[i]);
	}
	return shim_blocks_count() == before ? 0 : 6;
}

static void a_large_table(void **state)
{
	in_child(many_blocks);
}

static int by_mallopt(void)
{
	void *p;

	if (mallopt(M_MMAP_THRESHOLD, 2 << 20) != 1 || is_ours(do_malloc(THRESHOLD)) ||
	    !is_ours(do_malloc(2 << 20)))
		return 1;
	mallopt(M_PERTURB, 0xa5);
	p = do_malloc(2 << 20);
	if (!is_ours(p) || ((unsigned char *)p)[(2 << 20) - 1] != (0xa5 ^ 0xff))
		return 3;
	mallopt(M_PERTURB, 0);
	p = do_malloc(2 << 20);
	if (!is_ours(p) || *(unsigned char *)p != 0)
		return 4;
	mallopt(M_MMAP_MAX, 0);
	if (is_ours(do_malloc(2 << 20)))
		return 5;
	mallopt(M_MMAP_MAX, (int)shim_blocks_count() + 2);
	return !(is_ours(do_malloc(2 << 20)) && is_ours(do_malloc(2 << 20)) &&
		 !is_ours(do_malloc(2 << 20)));
}

/* This program again: is a block of `bytes` ours, with this in the environment? */
static bool ours_with(const char *variable, const char *value, const char *bytes)
{
	pid_t pid = fork();
	int status = -1;

	if (pid == 0) {
		setenv(variable, value, 1);
		execl(program, program, bytes, NULL);
		_exit(99);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
	return WEXITSTATUS(status) == 0;
}

static void the_users_settings(void **state)
{
	in_child(by_mallopt);
	assert_true(ours_with("NOTHING", "1", "524288"));
	assert_false(ours_with("NOTHING", "1", "524264"));
	assert_false(ours_with("SAMEPAGE_OFF", "1", "524288"));
	assert_true(ours_with("MALLOC_MMAP_THRESHOLD_", "200000", "200000"));
	assert_false(ours_with("MALLOC_MMAP_THRESHOLD_", "2000000", "1999900"));
	assert_true(ours_with("MALLOC_MMAP_THRESHOLD_", "0", "1"));
	assert_true(ours_with("GLIBC_TUNABLES",
			      "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=0x10000", "65536"));
	assert_false(ours_with("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576", "1048500"));
	assert_true(ours_with("MALLOC_TRIM_THRESHOLD_", "131072", "131072"));
	assert_false(ours_with("MALLOC_MMAP_MAX_", "0", "4194304"));
	assert_true(ours_with("MALLOC_PERTURB_", "17", "4194304"));
	assert_false(ours_with("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", "4194304"));
}

static int nothing_owned_any_more(void)
{
	char *early = do_malloc(THRESHOLD), *grown = do_malloc(THRESHOLD), *p;
	struct proc_mem_guard guard;

	memset(grown, 4, THRESHOLD);
	proc_mem_lock(&guard);
	shim_stop_owning();
	proc_mem_unlock(&guard);
	p = do_malloc(THRESHOLD);
	if (is_ours(p) || !is_ours(early))
		return 1;
	do_free(p);
	do_free(early);
	if (is_ours(early))
		return 2;
	/* Stepped back: no lock may be taken. */
	early = do_realloc(NULL, THRESHOLD);
	atomic_store(&shim_ready, false);
	p = do_realloc(grown, 3 * THRESHOLD);
	if (is_ours(p) || is_ours(grown) || p[0] != 4 || p[THRESHOLD - 1] != 4)
		return 3;
	do_free(p);
	do_free(early);
	return 0;
}

static int not_ready(void)
{
	char *p = do_malloc(THRESHOLD), *q = do_malloc(THRESHOLD);

	atomic_store(&shim_ready, false);
	do_free(p);
	if (is_ours(p) || !is_ours(q) || is_ours(do_malloc(THRESHOLD)))
		return 1;
	do_free(q);
	return is_ours(q);
}

static void when_it_is_over(void **state)
{
	in_child(nothing_owned_any_more);
	in_child(not_ready);
}

static void copies_of_the_process(void **state)
{
	static char *p, *q;
	int status = -1;
	pid_t pid;

	p = do_malloc(THRESHOLD);
	q = do_malloc(THRESHOLD);
	pid = _Fork();

	if (pid == 0) {
		do_free(p);
		_exit(is_ours(p) || !is_ours(q));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(is_ours(p));
	/* A child of vfork works on our memory. */
	pid = vfork();
	if (pid == 0) {
		do_free(p);
		q = do_realloc(q, 9 * THRESHOLD);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(is_ours(p));
	assert_true(is_ours(q));
	assert_true(owned_now(q, 9 * THRESHOLD));
	do_free(q);
	assert_true(owned_is_real());
}

#define THREADS 4
#define ROUNDS 4000
static atomic_uint failures;

static void *hammer(void *arg)
{
	uint64_t seed = 0x9e3779b97f4a7c15u * ((uintptr_t)arg + 1);
	char *kept[8] = { NULL };

	for (int i = 0; i < ROUNDS; i++) {
		size_t n = random_next(&seed) % (2 * THRESHOLD) + 8;
		char **p = &kept[i % 8];

		if (*p && (*p)[0] != (char)(uintptr_t)arg)
			atomic_fetch_add(&failures, 1);
		if (i % 5 == 0 && *p) {
			*p = do_realloc(*p, n);
		} else {
			do_free(*p);
			*p = i % 2 ? do_malloc(n) : do_calloc(1, n);
			if (i % 2 == 0 && ((*p)[0] || (*p)[n / 2] || (*p)[n - 1]))
				atomic_fetch_add(&failures, 1);
		}
		/* A block of libc's may have room for more. */
		if (malloc_usable_size(*p) < n ||
		    (is_ours(*p) != (n >= SMALLEST) && (i % 5 != 0 || is_ours(*p))))
			atomic_fetch_add(&failures, 1);
		(*p)[0] = (*p)[n - 1] = (*p)[n / 2] = (char)(uintptr_t)arg;
	}
	for (int i = 0; i < 8; i++)
		do_free(kept[i]);
	return NULL;
}

static int child_of_many_threads(void)
{
	atomic_store(&failures, 0);
	hammer((void *)9);
	return atomic_load(&failures) != 0;
}

static void threads_and_forks(void **state)
{
	pthread_t thread[THREADS];
	size_t before = shim_blocks_count();

	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, hammer, (void *)(i + 1)), 0);
	for (int i = 0; i < 20; i++) {
		in_child(child_of_many_threads);
		assert_true(owned_is_real());
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(atomic_load(&failures), 0);
	assert_int_equal(shim_blocks_count(), before);
	assert_true(owned_is_real());
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(owned_while_it_lives),
		cmocka_unit_test(across_the_threshold),
		cmocka_unit_test(errors),
		cmocka_unit_test(limits),
		cmocka_unit_test(others_at_such_addresses),
		cmocka_unit_test(freed_by_libc),
		cmocka_unit_test(a_large_table),
		cmocka_unit_test(the_users_settings),
		cmocka_unit_test(when_it_is_over),
		cmocka_unit_test(copies_of_the_process),
		cmocka_unit_test(threads_and_forks),
	};

	page = sys_page_bytes();
	program = "/proc/self/exe";
	if (argc == 2)
		return !is_ours(do_malloc(strtoull(argv[1], NULL, 0)));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
