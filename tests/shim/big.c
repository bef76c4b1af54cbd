/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big blocks of malloc: owned from when malloc returns them until they are given back, but for
 * the page with libc's header, and libc's all the same. If this failed, large blocks would
 * not be merged; or pages of what libc unmapped and somebody else mapped would be.
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "shimtest.h"

#define SMALL (100u << 10)
#define BIG (8u << 20) /* so much is not free in the heap */
#define HUGE_BYTES ((size_t)PTRDIFF_MAX + 1)

static size_t page;
/* Not to be seen through by the compiler. */
static void *(*volatile do_malloc)(size_t) = malloc;
static void *(*volatile do_calloc)(size_t, size_t) = calloc;
static void *(*volatile do_realloc)(void *, size_t) = realloc;
static void (*volatile do_free)(void *) = free;

static char *base_of(const void *p)
{
	return (char *)((uintptr_t)p & ~(page - 1));
}

static bool is_mapped(const void *p)
{
	return ((const size_t *)p)[-1] & 2;
}

/* All but the first page of the mapping is owned, and nothing of that one is. */
static bool is_noted(const void *p, size_t bytes)
{
	size_t inside = ((bytes + 16 + page - 1) & ~(page - 1)) - page;

	return ((uintptr_t)p & (page - 1)) == 16 && owned_now(base_of(p) + page, inside) &&
	       !any_owned_now(base_of(p), page);
}

static bool none_owned(const void *p, size_t bytes)
{
	return !any_owned_now(base_of(p), bytes);
}

static void owned_while_it_lives(void **state)
{
	char *p = do_malloc(BIG), *q;

	(void)state;
	assert_true(is_noted(p, BIG));
	memset(p, 7, malloc_usable_size(p));
	assert_true(owned_is_real());
	q = do_realloc(p, 30 * BIG);
	assert_true(q[0] == 7 && q[BIG - 1] == 7 && is_noted(q, 30 * BIG));
	assert_true(q == p || none_owned(p, BIG));
	memset(q, 8, malloc_usable_size(q));
	assert_true(owned_is_real());
	do_free(q);
	assert_true(none_owned(q, 30 * BIG));
	assert_true(owned_is_real());
	p = do_calloc(3, BIG);
	assert_true(is_noted(p, 3 * BIG));
	do_free(p);
	assert_true(none_owned(p, 3 * BIG));
	p = do_malloc(SMALL);
	assert_false(is_noted(p, SMALL));
	do_free(p);
}

static void sizes(void **state)
{
	unsigned char *p = do_malloc(1000), *before;

	(void)state;
	memset(p, 1, 1000);
	p = do_realloc(p, BIG + 5);
	assert_true(is_noted(p, BIG + 5) && p[0] == 1 && p[999] == 1);
	memset(p, 2, BIG + 5);
	/* As libc's own: what was mapped stays so, however small it becomes. */
	p = do_realloc(p, 3 * page);
	assert_true(is_noted(p, 3 * page) && p[0] == 2 && p[3 * page - 1] == 2);
	assert_true(malloc_usable_size(p) >= 3 * page && malloc_usable_size(p) < 5 * page);
	p = do_realloc(p, 5);
	assert_true(none_owned(p, BIG) && p[0] == 2 && p[4] == 2);
	p = do_realloc(p, 2 * BIG);
	assert_true(is_noted(p, 2 * BIG) && p[0] == 2 && p[4] == 2);
	/* In its last page: nothing moves. */
	before = p;
	p = do_realloc(p, malloc_usable_size(p));
	assert_ptr_equal(p, before);
	assert_null(do_realloc(p, 0));
	assert_true(none_owned(before, 2 * BIG));
	p = do_realloc(NULL, BIG);
	assert_true(is_noted(p, BIG));
	do_free(p);
	/* What libc would map is what we do. */
	for (size_t extra = 0; extra < 2 * page; extra += 8) {
		size_t usable;

		p = do_malloc(BIG + extra);
		usable = malloc_usable_size(p);
		do_free(p);
		p = do_realloc(do_malloc(3 * BIG), BIG + extra);
		assert_int_equal(malloc_usable_size(p), usable);
		do_free(p);
	}
}

static void errors(void **state)
{
	char *p = do_malloc(BIG);

	(void)state;
	p[5] = 5;
	errno = 0;
	assert_null(do_malloc(HUGE_BYTES));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_malloc(PTRDIFF_MAX));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_calloc(SIZE_MAX / 2, 3));
	assert_int_equal(errno, ENOMEM);
	errno = 0;
	assert_null(do_realloc(p, HUGE_BYTES));
	assert_int_equal(errno, ENOMEM);
	assert_true(is_noted(p, BIG));
	errno = 0;
	assert_null(do_realloc(p, PTRDIFF_MAX - 4096));
	assert_int_equal(errno, ENOMEM);
	assert_int_equal(p[5], 5);
	errno = EDOM;
	do_free(p);
	assert_int_equal(errno, EDOM);
	do_free(NULL);
}

static int with_no_memory(void)
{
	struct rlimit none = { 64 << 20, 64 << 20 };
	char *p = do_malloc(BIG);

	p[9] = 9;
	setrlimit(RLIMIT_AS, &none);
	errno = 0;
	if (do_malloc(1 << 30) || errno != ENOMEM)
		return 1;
	errno = 0;
	if (do_realloc(p, 1 << 30) || errno != ENOMEM || p[9] != 9)
		return 2;
	do_free(p);
	return none_owned(p, BIG) ? 0 : 3;
}

static void limits(void **state)
{
	(void)state;
	must_do_in_child(with_no_memory);
}

/* What libc's own functions make and free comes by here. */
static void of_libcs_functions(void **state)
{
	char *line = NULL, *text = NULL;
	size_t room = 0, bytes = 0;
	FILE *f = open_memstream(&text, &bytes);
	void *p;

	(void)state;
	for (unsigned i = 0; i < 4 * BIG; i++)
		fputc('x', f);
	fputc('\n', f);
	fclose(f);
	assert_true(is_noted(text, bytes));
	f = fmemopen(text, bytes, "r");
	assert_int_equal(getline(&line, &room, f), 4 * BIG + 1);
	fclose(f);
	assert_true(is_noted(line, room));
	do_free(text);
	do_free(line);
	assert_true(none_owned(text, bytes) && none_owned(line, room));
	p = reallocarray(do_malloc(BIG), 4, BIG);
	assert_true(is_noted(p, 4 * BIG));
	p = reallocarray(p, 8, BIG);
	assert_true(is_noted(p, 8 * BIG));
	do_free(p);
	assert_true(none_owned(p, 8 * BIG));
	assert_true(owned_is_real());
}

/* Aligned ones are libc's business, and may begin where others do. */
static void aligned(void **state)
{
	void *other[64];

	(void)state;
	for (unsigned i = 0; i < 64; i++) {
		other[i] = memalign(16u << i % 8, (512u << 10) + i * page);
		assert_non_null(other[i]);
		memset(other[i], 1, malloc_usable_size(other[i]));
		if (i % 3 == 0)
			other[i] = do_realloc(other[i], 2 * BIG + i);
	}
	assert_true(owned_is_real());
	for (unsigned i = 0; i < 64; i++)
		do_free(other[i]);
	assert_true(owned_is_real());
}

static bool still_owned(const void *p, size_t bytes)
{
	struct proc_mem_guard guard;
	bool yes;

	proc_mem_lock(&guard);
	yes = proc_mem_is_owned_still((uintptr_t)base_of(p) + page,
				      (uintptr_t)base_of(p) + page + bytes);
	proc_mem_unlock(&guard);
	return yes;
}

/* libc's own functions, by its handle. */
struct libcs {
	void (*free)(void *p);
	void *(*realloc)(void *p, size_t bytes);
};

static struct libcs libcs(void)
{
	void *libc = dlopen("libc.so.6", RTLD_NOLOAD | RTLD_NOW);
	struct libcs l;

	l.free = (void (*)(void *))dlsym(libc, "free");
	l.realloc = (void *(*)(void *, size_t))dlsym(libc, "realloc");
	return l;
}

/* Gone past us, and the address is somebody's: found out before anything is done there. */
static int freed_past_us(void)
{
	char *p = do_malloc(BIG), *other = do_malloc(BIG), *q;

	memset(p, 3, BIG);
	if (!still_owned(p, BIG - page))
		return 1;
	libcs().free(p);
	/* As libc maps a thread's stack. */
	q = (char *)sys_raw(SYS_mmap, base_of(p), BIG + page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (q != base_of(p))
		return 2;
	if (!owned_now(base_of(p) + page, BIG - page) || still_owned(p, BIG - page))
		return 3;
	if (any_owned_now(q, BIG + page))
		return 4;
	/* From then on nothing is noted. What was is believed, as long as it is there. */
	p = do_malloc(BIG);
	if (is_noted(p, BIG) || !still_owned(other, BIG - page))
		return 5;
	do_free(p);
	do_free(other);
	return none_owned(other, BIG) ? 0 : 6;
}

static int moved_past_us(void)
{
	char *p = do_malloc(BIG), *q;

	memset(p, 3, BIG);
	q = libcs().realloc(p, 64 * BIG);
	if (q == p)
		return still_owned(p, BIG - page);
	if (still_owned(p, BIG - page))
		return 2;
	/* It was never told: not owned, and freed all the same. */
	if (!none_owned(q, 64 * BIG))
		return 3;
	do_free(q);
	return 0;
}

static void past_us(void **state)
{
	(void)state;
	must_do_in_child(freed_past_us);
	must_do_in_child(moved_past_us);
}

#define MANY 2000

static int many_blocks(void)
{
	static char *block[MANY];
	uint64_t seed = 99;

	if (mallopt(M_MMAP_THRESHOLD, 128 << 10) != 1)
		return 1;
	for (unsigned round = 0; round < 4 * MANY; round++) {
		unsigned i = (unsigned)(random_next(&seed) % MANY);
		size_t bytes = (128u << 10) + random_next(&seed) % (8 * page);

		if (block[i] && round % 3) {
			do_free(block[i]);
			block[i] = NULL;
			continue;
		}
		block[i] = do_realloc(block[i], bytes);
		if (is_mapped(block[i]) && !is_noted(block[i], malloc_usable_size(block[i])))
			return 2;
		*(unsigned *)block[i] = i;
	}
	if (!owned_is_real())
		return 3;
	for (unsigned i = 0; i < MANY; i++) {
		if (block[i] && *(unsigned *)block[i] != i)
			return 4;
		do_free(block[i]);
	}
	return owned_is_real() ? 0 : 5;
}

static void many(void **state)
{
	(void)state;
	must_do_in_child(many_blocks);
}

/* Attributes of what is owned in a block, but for those of the page with the header. */
static uint32_t attr_of(const char *p)
{
	struct proc_mem_guard guard;
	struct core_range r = { .attr = 99 };
	char *start = base_of(p) + page;

	proc_mem_lock(&guard);
	if (proc_mem_owned_copy((uintptr_t)start, &r, 1) == 0 || r.start != (uintptr_t)start)
		r.attr = 99;
	proc_mem_unlock(&guard);
	return r.attr;
}

static void advice_goes_along(void **state)
{
	char *p = do_malloc(BIG), *in = base_of(p) + 4 * page;

	(void)state;
	assert_int_equal(madvise(base_of(p), BIG, MADV_MERGEABLE), 0);
	p = do_realloc(p, 5 * BIG);
	assert_true(is_noted(p, 5 * BIG));
	do_free(p);
	p = do_malloc(BIG);
	in = base_of(p) + 4 * page;
	assert_int_equal(madvise(in, 2 * page, MADV_UNMERGEABLE), 0);
	p = do_realloc(p, 5 * BIG);
	assert_true(is_noted(p, 5 * BIG));
	assert_int_equal(attr_of(p), PROC_OWN_REFUSED);
	do_free(p);
	/* What is not all owned, is not afterwards. */
	p = do_malloc(BIG);
	in = base_of(p) + 4 * page;
	assert_ptr_equal(mmap(in, page, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0), in);
	*in = 4;
	p = do_realloc(p, 5 * BIG);
	assert_int_equal(*(base_of(p) + 4 * page), 4);
	assert_true(none_owned(p, 5 * BIG));
	do_free(p);
}

static int told_of_mappings(void)
{
	char *p = do_malloc(BIG), *q;

	shim_big_stop();
	q = do_malloc(BIG);
	if (!none_owned(p, BIG) || !none_owned(q, BIG))
		return 1;
	p = do_realloc(p, 3 * BIG);
	if (!none_owned(p, 3 * BIG))
		return 2;
	do_free(p);
	do_free(q);
	return owned_is_real() ? 0 : 3;
}

static void stopped(void **state)
{
	(void)state;
	must_do_in_child(told_of_mappings);
}

static int nothing_owned_any_more(void)
{
	char *early = do_malloc(BIG), *grown = do_malloc(BIG), *p;
	struct proc_mem_guard guard;

	memset(grown, 4, BIG);
	proc_mem_lock(&guard);
	shim_stop_owning();
	proc_mem_unlock(&guard);
	p = do_malloc(BIG);
	if (!none_owned(p, BIG) || !none_owned(early, BIG))
		return 1;
	do_free(p);
	do_free(early);
	early = do_realloc(do_malloc(BIG), 3 * BIG);
	if (!none_owned(early, 3 * BIG))
		return 2;
	/* Stepped back: no lock may be taken. */
	atomic_store(&shim_ready, false);
	p = do_realloc(grown, 3 * BIG);
	if (p[0] != 4 || p[BIG - 1] != 4)
		return 3;
	do_free(p);
	do_free(early);
	return 0;
}

static void when_it_is_over(void **state)
{
	(void)state;
	must_do_in_child(nothing_owned_any_more);
}

static void copies_of_the_process(void **state)
{
	static char *p, *q;
	int status = -1;
	pid_t pid;

	(void)state;
	p = do_malloc(BIG);
	q = do_malloc(BIG);
	pid = _Fork();
	if (pid == 0) {
		do_free(p);
		_exit(!none_owned(p, BIG) || !is_noted(q, BIG));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(is_noted(p, BIG));
	/* A child of vfork works on our memory. */
	pid = vfork();
	if (pid == 0) {
		do_free(p);
		q = do_realloc(q, 9 * BIG);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(is_noted(q, 9 * BIG));
	do_free(q);
	assert_true(none_owned(q, 9 * BIG));
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
		size_t n = random_next(&seed) % (1u << 20) + 8;
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
		if (malloc_usable_size(*p) < n)
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
	return atomic_load(&failures) != 0 || !owned_is_real();
}

static void threads_and_forks(void **state)
{
	pthread_t thread[THREADS];

	(void)state;
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, hammer, (void *)(i + 1)), 0);
	for (int i = 0; i < 20; i++) {
		must_do_in_child(child_of_many_threads);
		assert_true(owned_is_real());
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(atomic_load(&failures), 0);
	assert_true(owned_is_real());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(owned_while_it_lives),
		cmocka_unit_test(sizes),
		cmocka_unit_test(errors),
		cmocka_unit_test(limits),
		cmocka_unit_test(of_libcs_functions),
		cmocka_unit_test(aligned),
		cmocka_unit_test(past_us),
		cmocka_unit_test(advice_goes_along),
		cmocka_unit_test(stopped),
		cmocka_unit_test(many),
		cmocka_unit_test(when_it_is_over),
		cmocka_unit_test(copies_of_the_process),
		cmocka_unit_test(threads_and_forks),
	};

	page = sys_page_bytes();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
