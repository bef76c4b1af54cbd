/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages that are merged without a freeze: of private file mappings (patched text), and
 * what was written since its merge. If this failed, a debugger's write in the middle of
 * a merge would be lost; discarding would show something else than the file; a page
 * would be replaced under a thread or a device that writes to it; or patching and
 * merging again would leave pages behind.
 */
#include "proctest.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "sys/maps.h"

#define PAGES 40u
#define TEXT (PROT_READ | PROT_EXEC)
#define FILE_SEED 77

static struct samepage *sp;

/* A private mapping of a new file with pages of FILE_SEED; *name for who wants to keep it. */
static char *map_file(int prot, char *name)
{
	char path[PT_PATH_BYTES], *p, *w;
	int fd = pt_temp_file(path, PAGES);

	w = mmap(NULL, PAGES * pt_page(), RW, MAP_SHARED, fd, 0);
	PT_CHECK(w != MAP_FAILED);
	pt_fill(w, PAGES, FILE_SEED);
	munmap(w, PAGES * pt_page());
	p = mmap(NULL, PAGES * pt_page(), prot, MAP_PRIVATE, fd, 0);
	PT_CHECK(p != MAP_FAILED);
	close(fd);
	if (name)
		strcpy(name, path);
	else
		unlink(path);
	return p;
}

static void unmap(char *p)
{
	PT_CHECK(munmap(p, PAGES * pt_page()) == 0);
}

/* As who patches code: page by page writable, written, and closed again. */
static void patch(char *p, size_t pages, uint64_t seed, int prot)
{
	for (size_t i = 0; i < pages; i++) {
		char *page = p + i * pt_page();

		PT_CHECK(mprotect(page, pt_page(), RW) == 0);
		pt_fill_page(page, seed, i);
		PT_CHECK(mprotect(page, pt_page(), prot) == 0);
	}
}

static struct samepage_result merge(char *p, size_t pages, uint32_t flags)
{
	struct samepage_result r;
	int err = samepage_merge(sp, p, pages * pt_page(), flags, &r);

	if (err)
		print_message("# merge: %s\n", strerror(-err));
	assert_int_equal(err, 0);
	assert_true(pt_sums(&r));
	return r;
}

static void patched_text_is_merged(void **state)
{
	char *a = map_file(TEXT, NULL), *b = map_file(TEXT, NULL);
	struct samepage_result r;
	size_t vmas;
	uint64_t flags;
	int prot, after;

	(void)state;
	patch(a, PAGES, 1, TEXT);
	patch(b, PAGES, 1, TEXT);
	flags = pt_vm_flags(b, &prot);
	merge(a, 1, 0); /* what the handle needs for itself is there from now on */
	vmas = pt_vma_count();
	r = merge(a, PAGES, 0);
	assert_int_equal(r.pages_merged, PAGES - 1);
	assert_int_equal(r.pages_promoted, PAGES - 1);
	r = merge(b, PAGES, 0);
	assert_int_equal(r.pages_merged, PAGES);
	assert_int_equal(r.pages_promoted, 0);
	assert_int_equal(r.runs, 1);
	pt_note("%zu mappings before, %zu after", vmas, pt_vma_count());
	assert_true(pt_vma_count() <= vmas + 2); /* what remembers the two files */
	assert_int_equal(pt_differs(a, PAGES, 1), -1);
	assert_int_equal(pt_differs(b, PAGES, 1), -1);
	if (geteuid() == 0)
		assert_int_equal(pt_same_frames(a, b, PAGES), PAGES);
	assert_int_equal(pt_file_pages(b, PAGES), PAGES);
	assert_int_equal(pt_vm_flags(b, &after) & ~SYS_VMF(ac), flags & ~SYS_VMF(ac));
	assert_int_equal(after, prot);
	/* Nothing to do the second time. */
	r = merge(b, PAGES, 0);
	assert_int_equal(r.pages_already, PAGES);
	unmap(a);
	unmap(b);
}

static void what_was_not_copied_stays(void **state)
{
	char *a = map_file(TEXT, NULL);
	struct samepage_result r;

	(void)state;
	patch(a + 3 * pt_page(), 2, 5, TEXT);
	pt_touch(a, PAGES);
	r = merge(a, PAGES, 0);
	assert_int_equal(r.pages_looked, 2);
	assert_int_equal(r.pages_merged, 2);
	assert_true(pt_page_is(a + 2 * pt_page(), FILE_SEED, 2));
	assert_true(pt_page_is(a + 3 * pt_page(), 5, 0));
	assert_true(pt_page_is(a + 5 * pt_page(), FILE_SEED, 5));
	unmap(a);
}

static void zeros_over_a_file_stay_zeros(void **state)
{
	char *a = map_file(TEXT, NULL);
	struct samepage_result r;

	(void)state;
	PT_CHECK(mprotect(a, 4 * pt_page(), RW) == 0);
	memset(a, 0, 4 * pt_page());
	PT_CHECK(mprotect(a, 4 * pt_page(), TEXT) == 0);
	r = merge(a, 4, 0);
	assert_int_equal(r.pages_merged, 4);
	assert_int_equal(r.pages_zeroed, 0);
	assert_true(pt_is_zero(a, 4));
	unmap(a);
}

static int discard_and_look(void *arg)
{
	char *p = arg;

	PT_CHECK(samepage_discard(sp, p, 8 * pt_page()) == 0);
	for (size_t i = 0; i < 8; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), FILE_SEED, i));
	for (size_t i = 8; i < PAGES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), 3, i));
	return 0;
}

/* The file is gone by name all the time. */
static void discard_shows_the_file(void **state)
{
	char *a = map_file(TEXT, NULL);
	int prot;

	(void)state;
	patch(a, PAGES, 3, TEXT);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	assert_int_equal(pt_child(discard_and_look, a, 20), 0);
	assert_int_equal(pt_differs(a, PAGES, 3), -1);
	discard_and_look(a);
	pt_vm_flags(a, &prot);
	assert_int_equal(prot, TEXT);
	assert_int_equal(samepage_discard(sp, a, PAGES * pt_page()), 0);
	assert_int_equal(pt_differs(a, PAGES, FILE_SEED), -1);
	assert_int_equal(pt_file_pages(a, PAGES), PAGES); /* clean: the page cache's */
	/* And once more from the beginning. */
	patch(a, PAGES, 4, TEXT);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	assert_int_equal(pt_differs(a, PAGES, 4), -1);
	unmap(a);
}

/* Of another name, the same path: the mapping's file decides, not the name. */
static void a_renamed_file_is_not_mistaken(void **state)
{
	char name[PT_PATH_BYTES], other[PT_PATH_BYTES];
	char *a = map_file(TEXT, name), *b = map_file(TEXT, other);

	(void)state;
	patch(a, PAGES, 3, TEXT);
	PT_CHECK(rename(other, name) == 0);
	merge(a, PAGES, 0);
	assert_int_equal(pt_differs(a, PAGES, 3), -1);
	assert_int_equal(samepage_discard(sp, a, PAGES * pt_page()), 0);
	assert_int_equal(pt_differs(a, PAGES, FILE_SEED), -1);
	unlink(name);
	unmap(a);
	unmap(b);
}

struct named {
	uint64_t at;
	char name[sizeof(((struct sys_vma *)0)->name)];
};

static int find_name(const struct sys_vma *v, void *arg)
{
	struct named *n = arg;

	if (v->start <= n->at && n->at < v->end)
		memcpy(n->name, v->name, sizeof(n->name));
	return 0;
}

static void unmerge_gives_the_mapping_back(void **state)
{
	char *a = map_file(TEXT, NULL);
	struct named n = { .at = (uintptr_t)a };
	char buf[8192];

	(void)state;
	patch(a, PAGES, 6, TEXT);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	sys_maps_each(0, buf, sizeof(buf), find_name, &n);
	assert_non_null(strstr(n.name, "samepage-store"));
	assert_int_equal(samepage_unmerge(sp, a, PAGES * pt_page()), 0);
	sys_maps_each(0, buf, sizeof(buf), find_name, &n);
	assert_null(strstr(n.name, "samepage-store"));
	assert_int_equal(n.name[0], '/');
	assert_int_equal(pt_differs(a, PAGES, 6), -1);
	assert_int_equal(pt_file_pages(a, PAGES), 0);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	unmap(a);
}

/* KSM's stale tree merged 55 of 1000 here: mutate what is merged, and merge it again. */
static void patched_again_is_merged_again(void **state)
{
	char *a = map_file(TEXT, NULL), *b = map_file(TEXT, NULL);
	unsigned again = 0;

	(void)state;
	patch(a, PAGES, 10, TEXT);
	patch(b, PAGES, 10, TEXT);
	merge(a, PAGES, 0);
	merge(b, PAGES, 0);
	for (unsigned round = 0; round < 25; round++) {
		struct samepage_result r;

		patch(a, PAGES, 11 + round, TEXT);
		patch(b, PAGES, 11 + round, TEXT);
		r = merge(a, PAGES, 0);
		assert_int_equal(r.pages_merged, PAGES);
		r = merge(b, PAGES, 0);
		again += (unsigned)r.pages_merged;
		assert_int_equal(pt_differs(a, PAGES, 11 + round), -1);
		assert_int_equal(pt_differs(b, PAGES, 11 + round), -1);
		assert_int_equal(pt_file_pages(b, PAGES), PAGES);
	}
	assert_int_equal(again, 1000);
	unmap(a);
	unmap(b);
}

/* As a debugger or the kernel's uprobes leave it: the file but for traps. */
static void breakpoints_are_left_alone(void **state)
{
#if defined(__x86_64__)
	char *a = map_file(TEXT, NULL);
	struct samepage_result r;

	(void)state;
	for (size_t i = 0; i < 8; i++) {
		char *page = a + i * pt_page();

		PT_CHECK(mprotect(page, pt_page(), RW) == 0);
		page[100 * i] = (char)0xcc;
		if (i == 5)
			page[100 * i + 3] ^= 1; /* so near that it is a patch */
		if (i == 6)
			page[3000] ^= 1; /* far: a breakpoint in patched text */
		PT_CHECK(mprotect(page, pt_page(), TEXT) == 0);
	}
	r = merge(a, PAGES, 0);
	assert_int_equal(r.pages_looked, 8);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_BREAKPOINT], 7);
	assert_int_equal(r.pages_merged, 1);
	assert_int_equal(pt_file_pages(a + 5 * pt_page(), 1), 1);
	for (size_t i = 0; i < 8; i++)
		assert_int_equal((unsigned char)a[i * pt_page() + 100 * i], 0xcc);
	/* Set after the merge, as gdb does it, and seen by the next merge. */
	PT_CHECK(mprotect(a + 5 * pt_page(), pt_page(), RW) == 0);
	pt_fill_page(a + 5 * pt_page(), FILE_SEED, 5);
	a[5 * pt_page() + 9] = (char)0xcc;
	PT_CHECK(mprotect(a + 5 * pt_page(), pt_page(), TEXT) == 0);
	r = merge(a + 5 * pt_page(), 1, 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_BREAKPOINT], 1);
	unmap(a);
#else
	(void)state;
	SKIP("written for this machine's traps");
#endif
}

/* A file that got shorter is neither read nor fatal. */
static void a_shorter_file_is_survived(void **state)
{
	char name[PT_PATH_BYTES], *a = map_file(TEXT, name);
	struct samepage_result r;

	(void)state;
	patch(a, PAGES, 9, TEXT);
	PT_CHECK(truncate(name, (off_t)(3 * pt_page())) == 0);
	r = merge(a, PAGES, 0); /* the kernel took the pages beyond its end */
	assert_int_equal(r.pages_looked, 3);
	assert_int_equal(r.pages_merged, 3);
	unlink(name);
	unmap(a);
}

/* Code that a compiler of the program's made: anonymous, executable, not writable. */
static void made_code_is_merged(void **state)
{
	char *a = pt_map(PAGES);

	(void)state;
	pt_fill(a, PAGES, 12);
	PT_CHECK(mprotect(a, PAGES * pt_page(), TEXT) == 0);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	assert_int_equal(pt_differs(a, PAGES, 12), -1);
	assert_int_equal(samepage_unmerge(sp, a, PAGES * pt_page()), 0);
	assert_int_equal(pt_differs(a, PAGES, 12), -1);
	assert_int_equal(pt_file_pages(a, PAGES), 0);
	assert_int_equal(merge(a, PAGES, 0).pages_merged, PAGES);
	assert_int_equal(samepage_discard(sp, a, PAGES * pt_page()), 0);
	assert_true(pt_is_zero(a, PAGES));
	pt_unmap(a, PAGES);
}

/*
 * Data pages of a file, and heap pages written since their merge: on the caller's word
 * only. Being alone is not enough: another process writes with process_vm_writev.
 */
static void writable_pages_want_a_promise(void **state)
{
	char *a = map_file(RW, NULL), *heap = pt_map(PAGES);
	struct samepage_result r;

	(void)state;
	pt_skip_unless_can_merge();
	pt_fill(a, PAGES, 20);
	pt_fill(heap, PAGES, 21);
	assert_int_equal(merge(heap, PAGES, 0).pages_merged, PAGES);
	pt_fill(heap, PAGES, 20);
	r = merge(a, PAGES, 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_WRITABLE], PAGES);
	r = merge(heap, PAGES, 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_WRITABLE], PAGES);
	r = merge(a, PAGES, SAMEPAGE_MERGE_QUIESCENT);
	assert_int_equal(r.pages_merged, PAGES);
	r = merge(heap, PAGES, SAMEPAGE_MERGE_QUIESCENT);
	assert_int_equal(r.pages_merged, PAGES);
	assert_int_equal(pt_differs(heap, PAGES, 20), -1);
	assert_int_equal(pt_differs(a, PAGES, 20), -1);
	pt_fill(a, PAGES, 22);
	assert_int_equal(pt_differs(a, PAGES, 22), -1);
	assert_int_equal(samepage_discard(sp, a, PAGES * pt_page()), 0);
	assert_int_equal(pt_differs(a, PAGES, FILE_SEED), -1);
	unmap(a);
	pt_unmap(heap, PAGES);
}

/* A buffer that is only protected, not code: a device may still be writing there. */
static void a_protected_buffer_is_left_alone(void **state)
{
	char *a = pt_map(PAGES);
	struct samepage_result r;

	(void)state;
	pt_fill(a, PAGES, 30);
	PT_CHECK(mprotect(a, PAGES * pt_page(), PROT_READ) == 0);
	r = merge(a, PAGES, 0);
	assert_int_equal(r.pages_declined[SAMEPAGE_REASON_PROTECTION], PAGES);
	pt_unmap(a, PAGES);
}

/*
 * What gdb does when it sets breakpoints: writes to memory that is not writable, in the
 * middle of merges.
 */
static char *debugged;
static _Atomic bool stop_debugging;
static _Atomic uint64_t debug_writes;

static void *debug(void *arg)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	uint64_t rnd = 5;

	(void)arg;
	PT_CHECK(fd >= 0);
	while (!atomic_load(&stop_debugging)) {
		size_t page = pt_random(&rnd) % PAGES, at = pt_random(&rnd) % (pt_page() / 8) * 8;
		off_t where = (off_t)(uintptr_t)(debugged + page * pt_page() + at);
		uint64_t old, mine = pt_random(&rnd), seen;

		PT_CHECK(pread(fd, &old, 8, where) == 8);
		PT_CHECK(pwrite(fd, &mine, 8, where) == 8);
		usleep((useconds_t)(pt_random(&rnd) % 64));
		PT_CHECK(pread(fd, &seen, 8, where) == 8);
		if (seen != mine) {
			/* Until the engine has written it again: microseconds, but its CPU may
			 * be taken away. */
			for (int tries = 0; seen != mine && tries < 2000; tries++) {
				usleep(1000);
				PT_CHECK(pread(fd, &seen, 8, where) == 8);
			}
			PT_CHECK(seen == mine);
		}
		PT_CHECK(pwrite(fd, &old, 8, where) == 8);
		atomic_fetch_add(&debug_writes, 1);
	}
	close(fd);
	return NULL;
}

static void a_debuggers_writes_are_not_lost(void **state)
{
	char *a = map_file(TEXT, NULL);
	uint64_t merged = 0, changed = 0;
	pthread_t t;

	(void)state;
	patch(a, PAGES, 40, TEXT);
	debugged = a;
	assert_int_equal(pthread_create(&t, NULL, debug, NULL), 0);
	for (unsigned round = 0; round < (PT_SANITIZED ? 300u : 3000u); round++) {
		struct samepage_result r = merge(a, PAGES, 0);

		merged += r.pages_merged;
		changed += r.pages_declined[SAMEPAGE_REASON_CHANGED];
	}
	atomic_store(&stop_debugging, true);
	pthread_join(t, NULL);
	pt_note("%lu writes, %lu pages merged, %lu declined as changed",
		(unsigned long)debug_writes, (unsigned long)merged, (unsigned long)changed);
	assert_int_equal(pt_differs(a, PAGES, 40), -1);
	assert_true(merged > PAGES && debug_writes > 100);
	unmap(a);
}

static void nothing_is_left_open(void **state)
{
	size_t fds = 0, vmas = 0;

	(void)state;
	for (unsigned i = 0; i < 100; i++) {
		char *a = map_file(TEXT, NULL);

		patch(a, 4, 50, TEXT);
		assert_int_equal(merge(a, 4, 0).pages_merged, 4);
		assert_int_equal(samepage_unmerge(sp, a, 4 * pt_page()), 0);
		unmap(a);
		if (i > 0)
			continue;
		fds = pt_fd_count();
		vmas = pt_vma_count();
	}
	assert_true(pt_fd_count() <= fds);
	assert_true(pt_vma_count() <= vmas + 2);
}

static int open_handle(void **state)
{
	(void)state;
	sp = pt_open_sized(64u << 20);
	return 0;
}

static int close_handle(void **state)
{
	(void)state;
	samepage_close(sp);
	return 0;
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, open_handle, close_handle)
	const struct CMUnitTest tests[] = {
		TEST(patched_text_is_merged),
		TEST(what_was_not_copied_stays),
		TEST(zeros_over_a_file_stay_zeros),
		TEST(discard_shows_the_file),
		TEST(a_renamed_file_is_not_mistaken),
		TEST(unmerge_gives_the_mapping_back),
		TEST(patched_again_is_merged_again),
		TEST(breakpoints_are_left_alone),
		TEST(a_shorter_file_is_survived),
		TEST(made_code_is_merged),
		TEST(writable_pages_want_a_promise),
		TEST(a_protected_buffer_is_left_alone),
		TEST(a_debuggers_writes_are_not_lost),
		TEST(nothing_is_left_open),
	};

	return PT_MAIN("proc-still", tests);
}
