/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: pages that differ in more than addresses pass for the same program at
 * another place (an estimate that promises too much), pages that differ only in those do
 * not (it promises too little), or the two builds of the search disagree.
 */
#include <string.h>

#include "core/fingerprint.h"
#include "core/fingerprint_impl.h"
#include "core/hash.h"
#include "unit.h"

#define PAGE 4096
#define WORDS (PAGE / 8)
#define SEED 77

static uint64_t random_state = 5;

/* One layout: program with a file behind it, heap, a library, an anonymous mapping, stack. */
struct layout {
	struct core_fp_range range[5];
	struct core_fp_space space;
	struct core_fp_cache cache;
};

enum { PROGRAM, HEAP, ANONYMOUS, LIBRARY, STACK };

static void layout_at(struct layout *l, uint64_t shift)
{
	static const uint64_t start[] = { 0x555500000000, 0x555600000000, 0x7f1000000000,
					  0x7f1100000000, 0x7ffc00000000 };

	memset(l, 0, sizeof(*l));
	for (unsigned i = 0; i < 5; i++) {
		uint64_t at = start[i] + shift * (i + 1) * PAGE;

		l->range[i] = (struct core_fp_range){ .start = at, .end = at + 0x100000, .base = at,
						      .mask = UINT64_MAX, .what = i + 1ull };
	}
	l->range[ANONYMOUS].base = 0;
	l->range[ANONYMOUS].mask = PAGE - 1;
	l->range[STACK].mask = 0;
	core_fp_space_init(&l->space, l->range, 5);
}

static void fill(uint64_t *page)
{
	for (unsigned i = 0; i < WORDS; i++)
		page[i] = unit_random(&random_state) | UINT64_C(1) << 63;
}

static struct core_fp of(struct layout *l, const uint64_t *page)
{
	struct core_fp fp;

	core_fp_page(&l->space, &l->cache, page, PAGE, SEED, &fp);
	return fp;
}

static void test_without_addresses(void **state)
{
	struct layout a, b;
	uint64_t page[WORDS];
	struct core_fp x, y;

	layout_at(&a, 0);
	layout_at(&b, 1000);
	for (unsigned round = 0; round < 50; round++) {
		fill(page);
		page[round] = round; /* small numbers are no addresses */
		page[round + 50] = 0x7f1000000000 - 1;
		x = of(&a, page);
		y = of(&b, page);
		assert_int_equal(x.hash, core_hash_page(page, PAGE, SEED));
		assert_memory_equal(&x, &y, sizeof(x));
		assert_int_equal(x.addresses, 0);
	}
}

static void test_same_program_elsewhere(void **state)
{
	struct layout a, b;
	uint64_t p[WORDS], q[WORDS];

	layout_at(&a, 0);
	layout_at(&b, 12345);
	for (unsigned round = 0; round < 200; round++) {
		unsigned n = 1 + (unsigned)(unit_random(&random_state) % 200), k = 0;
		struct core_fp x, y;

		fill(p);
		memcpy(q, p, PAGE);
		for (unsigned i = 0; i < n; i++) {
			unsigned at = (unsigned)(unit_random(&random_state) % WORDS);
			unsigned to = (unsigned)(unit_random(&random_state) % 5);
			uint64_t offset = unit_random(&random_state) % 0x100000;

			p[at] = a.range[to].start + offset;
			q[at] = b.range[to].start + offset;
		}
		for (unsigned i = 0; i < WORDS; i++)
			k += p[i] != q[i];
		x = of(&a, p);
		y = of(&b, q);
		assert_int_equal(x.addresses, k);
		assert_int_equal(y.addresses, k);
		assert_true(x.hash != y.hash);
		assert_int_equal(x.masked, y.masked);
		assert_int_equal(x.relative, y.relative);
	}
}

static void test_other_targets(void **state)
{
	struct layout a, b;
	uint64_t p[WORDS], q[WORDS];
	struct core_fp x, y;

	layout_at(&a, 0);
	layout_at(&b, 1);
	for (unsigned to = 0; to < 5; to++) {
		fill(p);
		memcpy(q, p, PAGE);
		p[9] = a.range[to].start + 0x5008;
		q[9] = b.range[to].start + 0x5010; /* another place in the same page */
		x = of(&a, p);
		y = of(&b, q);
		assert_int_equal(x.masked, y.masked);
		assert_int_equal(x.relative == y.relative, to == STACK);
		q[9] = b.range[to].start + 0x6008; /* the same in another page */
		y = of(&b, q);
		assert_int_equal(x.relative == y.relative, to == STACK || to == ANONYMOUS);
		q[9] = b.range[(to + 1) % 5].start + 0x5008; /* in another mapping */
		y = of(&b, q);
		assert_int_equal(x.masked, y.masked);
		assert_true(x.relative != y.relative);
	}
}

static void test_more_than_addresses(void **state)
{
	struct layout a, b;
	uint64_t p[WORDS], q[WORDS];
	struct core_fp x, y;

	layout_at(&a, 0);
	layout_at(&b, 1);
	fill(p);
	memcpy(q, p, PAGE);
	p[100] = a.range[HEAP].start;
	q[100] = b.range[HEAP].start;
	q[101] ^= 1;
	x = of(&a, p);
	y = of(&b, q);
	assert_true(x.masked != y.masked && x.relative != y.relative);
	/* an address here, none there; and the same one elsewhere in the page */
	memcpy(q, p, PAGE);
	q[100] = 0;
	y = of(&b, q);
	assert_true(x.masked != y.masked);
	memcpy(q, p, PAGE);
	q[100] = p[101];
	q[101] = b.range[HEAP].start;
	y = of(&b, q);
	assert_true(x.masked != y.masked);
}

/* Bounds of mappings, to the byte; and what the answers before leave in the cache. */
static void test_bounds(void **state)
{
	struct layout a;
	uint64_t page[WORDS];

	layout_at(&a, 3);
	for (unsigned i = 0; i < 5; i++) {
		const struct core_fp_range *r = &a.range[i];
		const uint64_t word[] = { r->start - 1, r->start, r->end - 1, r->end };

		for (unsigned k = 0; k < 4; k++) {
			fill(page);
			page[i * 4 + k] = word[k];
			assert_int_equal(of(&a, page).addresses, k == 1 || k == 2);
			/* words that are not aligned do not count */
			fill(page);
			memcpy((char *)page + 4, &word[1], 8);
			page[0] |= UINT64_C(1) << 63;
			page[1] |= UINT64_C(1) << 63;
			assert_int_equal(of(&a, page).addresses, 0);
		}
	}
}

static void test_no_mappings(void **state)
{
	struct core_fp_space none;
	struct core_fp_cache cache = { 0 };
	uint64_t page[WORDS];
	struct core_fp fp;

	core_fp_space_init(&none, NULL, 0);
	fill(page);
	core_fp_page(&none, &cache, page, PAGE, SEED, &fp);
	assert_int_equal(fp.addresses, 0);
	assert_int_equal(fp.hash, core_hash_page(page, PAGE, SEED));
}

/* Many mappings with gaps of all sizes: no more clusters than there is room for. */
static void test_clusters(void **state)
{
	struct core_fp_range range[40];
	struct core_fp_space space;
	struct core_fp_cache cache = { 0 };
	uint64_t page[WORDS], at = 0x400000;
	struct core_fp fp;

	for (unsigned i = 0; i < 40; i++) {
		range[i] = (struct core_fp_range){ .start = at, .end = at + PAGE, .base = at,
						   .mask = UINT64_MAX, .what = 1 };
		at += PAGE + (unit_random(&random_state) % (UINT64_C(1) << 41) & ~UINT64_C(4095));
	}
	core_fp_space_init(&space, range, 40);
	assert_true(space.clusters > 0 && space.clusters <= CORE_FP_CLUSTERS);
	for (unsigned i = 0; i < 40; i++) {
		fill(page);
		page[i] = range[i].start + 8;
		page[i + 50] = range[i].end;
		core_fp_page(&space, &cache, page, PAGE, SEED, &fp);
		assert_int_equal(fp.addresses, i + 1 < 40 && range[i + 1].start == range[i].end ? 2 : 1);
	}
}

static void test_two_builds(void **state)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2")) {
		struct layout a;

		layout_at(&a, 9);
		for (unsigned round = 0; round < 500; round++) {
			uint64_t page[WORDS], found[WORDS / 64], same[WORDS / 64];

			fill(page);
			for (unsigned i = 0; i < round % 20; i++) {
				uint64_t r = unit_random(&random_state);

				page[r % WORDS] = a.range[r % 5].start - 4096 + (r >> 40) % 0x102000;
			}
			assert_int_equal(core_fp_search_plain(&a.space, page, WORDS, found),
					 core_fp_search_avx2(&a.space, page, WORDS, same));
			assert_memory_equal(found, same, sizeof(found));
		}
		return;
	}
#endif
	skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_addresses),
		cmocka_unit_test(test_same_program_elsewhere),
		cmocka_unit_test(test_other_targets),
		cmocka_unit_test(test_more_than_addresses),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_no_mappings),
		cmocka_unit_test(test_clusters),
		cmocka_unit_test(test_two_builds),
	};

	return cmocka_run_group_tests_name("fingerprint", tests, NULL, NULL);
}
