/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the process tests share: memory with a content that can be checked, and
 * what the kernel (not our own books) says about it: page frame numbers, mapping
 * counts, VmFlags, open descriptors of every thread.
 *
 * cmocka's assertions longjmp, so they are for the thread and the process that
 * cmocka runs in. Everywhere else (other threads, forked children) PT_CHECK ends
 * the process with a word about where.
 */
#ifndef SAMEPAGE_TESTS_PROCTEST_H
#define SAMEPAGE_TESTS_PROCTEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include "samepage.h"

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PT_SANITIZED 1
#else
#define PT_SANITIZED 0
#endif

#define SKIP(why)                                                                                  \
	do {                                                                                       \
		print_message("# skipped: %s\n", why);                                             \
		skip();                                                                            \
	} while (0)

#define PT_CHECK(cond)                                                                             \
	do {                                                                                       \
		if (!(cond))                                                                       \
			pt_die(__FILE__, __LINE__, #cond);                                         \
	} while (0)
_Noreturn void pt_die(const char *file, int line, const char *what);

/* A comment line in the test's output, whole even when threads and children talk. */
void pt_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* --- running -------------------------------------------------------------- */

/* As main: runs the group with skips that meson understands. */
int pt_main(const char *name, const struct CMUnitTest *tests, size_t count);
#define PT_MAIN(name, tests) pt_main(name, tests, sizeof(tests) / sizeof((tests)[0]))

/* Unless merging is to be had: by a freeze, or by the kernel's own merging. */
void pt_skip_unless_can_merge(void);
/* Unless the remap is what merges: for tests of how it does that. */
void pt_skip_unless_remap(void);
/* Is the kernel's MADV_MERGE what merges here (SAMEPAGE_PRIMITIVE, and what there is)? */
bool pt_kernel_merges(void);
/*
 * As samepage_merge(), which is this everywhere here but where PT_PLAIN_MERGE is defined.
 * The remap puts the first page of its kind into its store, so one page is enough for it;
 * the kernel wants two. So there the range gets a twin first: pages with the same bytes,
 * merged just before and gone after.
 */
int pt_merge(struct samepage *sp, void *addr, size_t bytes, uint32_t flags,
	     struct samepage_result *result);
#if !defined(PT_PLAIN_MERGE)
#define samepage_merge pt_merge
#endif
void pt_skip_unless_root(void); /* page frame numbers read 0 without CAP_SYS_ADMIN */

/*
 * fn(arg) in a forked child. Its exit status; 128 + signal; or PT_HUNG when it was
 * not done within the time: then its threads' kernel stacks have been printed and
 * it has been killed.
 */
#define PT_HUNG 1000
int pt_child(int (*fn)(void *arg), void *arg, unsigned seconds);
int pt_wait(pid_t pid, unsigned seconds);
/* In a child: a test that failed leaves nobody behind who holds its output open. */
void pt_die_with_parent(void);

/* --- memory with a known content ------------------------------------------ */

size_t pt_page(void);
uint64_t pt_random(uint64_t *state); /* splitmix64 */
void *pt_map(size_t pages);          /* private, anonymous, read and write */
void *pt_map_as(size_t pages, int prot, int flags);
void *pt_map_aligned(size_t bytes, size_t align);
void pt_unmap(void *p, size_t pages);
/* Page i gets the bytes of (seed, i): no two pages alike, none zero. */
void pt_fill(void *p, size_t pages, uint64_t seed);
void pt_fill_page(void *p, uint64_t seed, uint64_t page);
bool pt_page_is(const void *p, uint64_t seed, uint64_t page);
/* The first page that is not as pt_fill() left it, or -1. */
long pt_differs(const void *p, size_t pages, uint64_t seed);
bool pt_is_zero(const void *p, size_t pages);
void pt_touch(const void *p, size_t pages); /* read one byte of each page */
/*
 * A new file, of zeros, in $TMPDIR or /tmp (where it must be allowed to map code): its
 * descriptor, and its path for who unlinks it.
 */
#define PT_PATH_BYTES 256u
int pt_temp_file(char path[PT_PATH_BYTES], size_t pages);

/* --- what the kernel says ------------------------------------------------- */

#define PT_PM_PRESENT (1ull << 63)
#define PT_PM_SWAPPED (1ull << 62)
#define PT_PM_FILE (1ull << 61) /* file page or shared anonymous: a slot, here */
#define PT_PM_EXCLUSIVE (1ull << 56)
uint64_t pt_pagemap(const void *addr);
uint64_t pt_pfn(const void *addr); /* 0: not present, or not for our eyes */
/* How many pages of a and b have equal frames (both are touched first). */
size_t pt_same_frames(const void *a, const void *b, size_t pages);
/* Pages that map a file page (a slot of the store); touches them. */
size_t pt_store_pages(const void *p, size_t pages);
/* The same, or one of the kernel's merged pages where it is the one who merges. */
size_t pt_file_pages(const void *p, size_t pages);
uint64_t pt_zero_pfn(void); /* the shared zero page's frame, or 0 */

size_t pt_vma_count(void);
/* VmFlags (SYS_VMF bits) without the soft-dirty one, and protection. */
uint64_t pt_vm_flags(const void *addr, int *prot);
size_t pt_fd_count(void); /* of all threads' tables */
uint64_t pt_private_bytes(void); /* Private_Clean + Private_Dirty of smaps_rollup */

/* --- the library ---------------------------------------------------------- */

struct samepage *pt_open(void); /* embedded; NULL printed and refused */
struct samepage *pt_open_sized(uint64_t store_bytes);
/* Counted exactly once each (I9). */
bool pt_sums(const struct samepage_result *r);
uint64_t pt_declined(const struct samepage_result *r);
/*
 * Nothing was declined, but for pages whose 32-bit tag is that of another page in
 * the store: they are counted as changed. One in a million here; more is a failure.
 */
bool pt_complete(const struct samepage_result *r);
void pt_print(const char *what, const struct samepage_result *r);
/* Merge, which must work and add up. (Here, because samepage_merge is one of two: above.) */
static inline struct samepage_result pt_merged(struct samepage *sp, void *p, size_t pages)
{
	struct samepage_result r;

	assert_int_equal(samepage_merge(sp, p, pages * pt_page(), 0, &r), 0);
	if (!pt_sums(&r))
		pt_print("does not add up", &r);
	assert_true(pt_sums(&r));
	return r;
}

#endif
