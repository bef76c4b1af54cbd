/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Undoing in every order. If this failed, discarded memory would show its old
 * bytes instead of zeros (or take its neighbours' with it), an unmerge would miss
 * pages, or memory that the program remapped, protected or released by itself
 * after a merge would be mistaken for what it was before (I5).
 */
#include "proctest.h"

#include "sys/maps.h"

#define N 96u

static struct samepage *sp;

/* What each page must read as; NONE: must not be looked at. */
enum want { ZERO, DATA, NONE };
static char *mem;
static enum want want[N];

static char *at(size_t page)
{
	return mem + page * pt_page();
}

static bool as_wanted(void)
{
	for (size_t i = 0; i < N; i++) {
		if (want[i] == ZERO && !pt_is_zero(at(i), 1)) {
			pt_note("page %zu is not zero", i);
			return false;
		}
		if (want[i] == DATA && !pt_page_is(at(i), 1, i % 13)) {
			pt_note("page %zu is not as written", i);
			return false;
		}
	}
	return true;
}

static void write_pages(size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		pt_fill_page(at(i), 1, i % 13);
		want[i] = DATA;
	}
}

static void merge(size_t first, size_t n)
{
	struct samepage_result r;

	assert_int_equal(samepage_merge(sp, at(first), n * pt_page(), 0, &r), 0);
	assert_true(pt_sums(&r));
}

static void discard(size_t first, size_t n)
{
	assert_int_equal(samepage_discard(sp, at(first), n * pt_page()), 0);
	for (size_t i = first; i < first + n; i++)
		want[i] = ZERO;
}

static void unmerge(size_t first, size_t n)
{
	assert_int_equal(samepage_unmerge(sp, at(first), n * pt_page()), 0);
	assert_int_equal(pt_file_pages(at(first), n), 0);
}

static void set_up(void)
{
	pt_skip_unless_can_merge();
	sp = pt_open();
	mem = pt_map(N);
	for (size_t i = 0; i < N; i++)
		want[i] = ZERO;
}

static void tear_down(void)
{
	samepage_close(sp);
	pt_unmap(mem, N);
}

/* A walk of a few thousand steps over all calls and any ranges. */
static void any_order(void **state)
{
	uint64_t rnd = 4711;

	(void)state;
	set_up();
	for (unsigned step = 0; step < (PT_SANITIZED ? 1500u : 4000u); step++) {
		size_t first = pt_random(&rnd) % N, n = 1 + pt_random(&rnd) % (N - first);

		switch (pt_random(&rnd) % 5) {
		case 0:
			write_pages(first, n < 20 ? n : 20);
			break;
		case 1:
		case 2:
			merge(first, n);
			break;
		case 3:
			discard(first, n < 30 ? n : 30);
			break;
		default:
			unmerge(first, n);
		}
		if (!as_wanted())
			pt_note("step %u, pages %zu+%zu", step, first, n);
		assert_true(as_wanted());
	}
	tear_down();
}

static void all_three_in_each_order(void **state)
{
	static const char *orders[] = { "mdu", "mud", "dmu", "dum", "umd", "udm", "mdmdm", "mumud" };

	(void)state;
	for (size_t o = 0; o < sizeof(orders) / sizeof(orders[0]); o++) {
		set_up();
		write_pages(0, N);
		for (const char *c = orders[o]; *c; c++) {
			if (*c == 'm')
				merge(0, N);
			else if (*c == 'd')
				discard(10, N - 20);
			else
				unmerge(5, N - 10);
			assert_true(as_wanted());
		}
		write_pages(0, N);
		merge(0, N);
		assert_true(as_wanted());
		tear_down();
	}
}

/* The edges of runs, one page inside and one outside. */
static void parts_of_runs(void **state)
{
	(void)state;
	for (size_t cut = 0; cut < 5; cut++) {
		set_up();
		write_pages(0, 40);
		write_pages(50, 30);
		merge(0, N);
		discard(cut, 40 - 2 * cut);
		assert_true(as_wanted());
		discard(49 + cut, 31 - cut);
		assert_true(as_wanted());
		write_pages(0, N);
		merge(0, N);
		assert_true(as_wanted());
		discard(0, N);
		assert_true(as_wanted());
		assert_int_equal(pt_file_pages(mem, N), 0);
		tear_down();
	}
}

static size_t mixed(size_t i)
{
	uint64_t s = i;

	return i ? pt_random(&s) % 97 : 0;
}

/* More store mappings in one range than are handled at a time. */
static void many_runs(void **state)
{
	const size_t pages = 1000;
	char *p;
	size_t vmas;

	(void)state;
	set_up();
	p = pt_map(pages);
	vmas = pt_vma_count();
	for (size_t i = 0; i < pages; i++)
		pt_fill_page(p + i * pt_page(), 2, mixed(i));
	assert_int_equal(samepage_merge(sp, p, pages * pt_page(), 0, NULL), 0);
	assert_true(pt_kernel_merges() || pt_vma_count() > vmas + 100);
	assert_int_equal(samepage_discard(sp, p + pt_page(), (pages - 2) * pt_page()), 0);
	assert_true(pt_is_zero(p + pt_page(), pages - 2));
	assert_true(pt_page_is(p, 2, 0));
	assert_true(pt_page_is(p + (pages - 1) * pt_page(), 2, mixed(pages - 1)));
	for (size_t i = 0; i < pages; i++)
		pt_fill_page(p + i * pt_page(), 2, mixed(i));
	assert_int_equal(samepage_merge(sp, p, pages * pt_page(), 0, NULL), 0);
	assert_int_equal(samepage_unmerge(sp, p, pages * pt_page()), 0);
	assert_int_equal(pt_file_pages(p, pages), 0);
	for (size_t i = 0; i < pages; i++)
		assert_true(pt_page_is(p + i * pt_page(), 2, mixed(i)));
	pt_unmap(p, pages);
	tear_down();
}

/* Merged memory behind PROT_NONE and PROT_READ: discarded, it has that protection still. */
static void protected_memory(void **state)
{
	int prot;

	(void)state;
	set_up();
	write_pages(0, N);
	merge(0, N);
	assert_int_equal(mprotect(at(10), 20 * pt_page(), PROT_NONE), 0);
	assert_int_equal(mprotect(at(40), 20 * pt_page(), PROT_READ), 0);
	assert_int_equal(samepage_discard(sp, at(15), 35 * pt_page()), 0);
	for (size_t i = 15; i < 50; i++)
		want[i] = ZERO;
	pt_vm_flags(at(20), &prot);
	assert_int_equal(prot, PROT_NONE);
	pt_vm_flags(at(45), &prot);
	assert_int_equal(prot, PROT_READ);
	/* Neither writable nor readable: private again all the same, and as it was. */
	assert_int_equal(samepage_unmerge(sp, mem, N * pt_page()), 0);
	pt_vm_flags(at(12), &prot);
	assert_int_equal(prot, PROT_NONE);
	pt_vm_flags(at(55), &prot);
	assert_int_equal(prot, PROT_READ);
	assert_int_equal(mprotect(mem, N * pt_page(), RW), 0);
	assert_true(as_wanted());
	for (size_t i = 0; i < N; i++)
		if (want[i] != ZERO)
			assert_int_equal(pt_file_pages(at(i), 1), 0);
	write_pages(0, N);
	merge(0, N);
	assert_true(as_wanted());
	tear_down();
}

/* madvise(MADV_DONTNEED) by the program itself brings the merged bytes back, as documented. */
static void dontneed_by_hand(void **state)
{
	(void)state;
	set_up();
	write_pages(0, N);
	merge(0, N);
	memset(at(3), 0x44, 5 * pt_page());
	assert_int_equal(madvise(mem, N * pt_page(), MADV_DONTNEED), 0);
	/* What the kernel merged is zeros, as without us. */
	for (size_t i = 0; i < N && pt_kernel_merges(); i++)
		want[i] = ZERO;
	assert_true(as_wanted());
	discard(0, N);
	assert_true(as_wanted());
	tear_down();
}

/* The program unmaps and maps anew; no memory of ours may remember the old one. */
static void unmapped_and_mapped(void **state)
{
	(void)state;
	set_up();
	write_pages(0, N);
	merge(0, N);
	assert_int_equal(munmap(at(20), 30 * pt_page()), 0);
	assert_int_equal(samepage_discard(sp, at(10), 50 * pt_page()), -ENOMEM);
	for (size_t i = 10; i < 60; i++)
		want[i] = ZERO;
	assert_true(mmap(at(20), 30 * pt_page(), RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == at(20));
	assert_true(as_wanted());
	write_pages(0, N);
	merge(0, N);
	assert_true(as_wanted());
	/* Something else where merged memory was: shared memory keeps its bytes in a merge. */
	assert_true(mmap(at(20), 30 * pt_page(), RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		    at(20));
	write_pages(20, 30);
	merge(0, N);
	assert_true(as_wanted());
	assert_int_equal(pt_store_pages(at(20), 30), 30);
	tear_down();
}

/* Moved by mremap, with and without what lies beside it. */
static void moved(void **state)
{
	char *other;

	(void)state;
	set_up();
	write_pages(0, N);
	merge(0, N);
	other = pt_map(N);
	unmerge(0, 10);
	for (size_t i = 0; i < N; i++) {
		/* Page by page: a mapping each, whatever it is. */
		void *to = mremap(at(i), pt_page(), pt_page(), MREMAP_MAYMOVE | MREMAP_FIXED,
				  other + i * pt_page());

		assert_true(to == other + i * pt_page());
		assert_true(mmap(at(i), pt_page(), RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == at(i));
		assert_true(pt_page_is(other + i * pt_page(), 1, i % 13));
		want[i] = ZERO;
	}
	assert_true(as_wanted());
	write_pages(0, N);
	merge(0, N);
	assert_int_equal(samepage_merge(sp, other, N * pt_page(), 0, NULL), 0);
	assert_true(as_wanted());
	for (size_t i = 0; i < N; i++)
		assert_true(pt_page_is(other + i * pt_page(), 1, i % 13));
	assert_int_equal(samepage_discard(sp, other, N * pt_page()), 0);
	assert_true(pt_is_zero(other, N));
	assert_true(as_wanted());
	pt_unmap(other, N);
	tear_down();
}

/* Advice survives merge, discard and a second merge, per part of a range. */
static void advice_is_kept(void **state)
{
	uint64_t before[3];
	const size_t first[3] = { 0, 32, 64 };

	(void)state;
	set_up();
	assert_int_equal(madvise(at(0), 32 * pt_page(), MADV_DONTFORK), 0);
	assert_int_equal(madvise(at(32), 32 * pt_page(), MADV_DONTDUMP), 0);
	assert_int_equal(madvise(at(64), 32 * pt_page(), MADV_NOHUGEPAGE), 0);
	for (int i = 0; i < 3; i++)
		before[i] = pt_vm_flags(at(first[i]), NULL);
	for (int round = 0; round < 3; round++) {
		write_pages(0, N);
		merge(0, N);
		assert_true(pt_vm_flags(at(5), NULL) & SYS_VMF(dc));
		assert_false(pt_vm_flags(at(40), NULL) & SYS_VMF(dc));
		assert_true(pt_vm_flags(at(40), NULL) & SYS_VMF(dd));
		assert_true(as_wanted());
		discard(0, N);
		for (int i = 0; i < 3; i++)
			for (size_t p = 0; p < 32; p += 31)
				assert_int_equal(pt_vm_flags(at(first[i] + p), NULL), before[i]);
		assert_true(as_wanted());
	}
	tear_down();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_order),
		cmocka_unit_test(all_three_in_each_order),
		cmocka_unit_test(parts_of_runs),
		cmocka_unit_test(many_runs),
		cmocka_unit_test(protected_memory),
		cmocka_unit_test(dontneed_by_hand),
		cmocka_unit_test(unmapped_and_mapped),
		cmocka_unit_test(moved),
		cmocka_unit_test(advice_is_kept),
	};

	return PT_MAIN("proc-discard", tests);
}
