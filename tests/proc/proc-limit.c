/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Near vm.max_map_count. If this failed, merging would take the last mappings from
 * a program that needs them (I8), or a commit that runs into the kernel's own limit
 * would lose pages.
 *
 * The limit is a process's own, so it all happens in children.
 */
#include "proctest.h"

#include <pthread.h>
#include <stdatomic.h>

#include "sys/sys.h"
#include "sys/maps.h"

#define PAGES 3000u
#define SECONDS 120u

static size_t limit;

static size_t nine_tenths(void)
{
	return limit - limit / 10;
}

/* Mappings of one page each, out of one reservation. */
struct eaten {
	char *base;
	size_t pages, used;
};

static void reserve(struct eaten *e, size_t mappings)
{
	e->pages = 2 * mappings;
	e->used = 0;
	e->base = pt_map_as(e->pages, PROT_NONE, ANON | MAP_NORESERVE);
}

static bool eat_one(struct eaten *e)
{
	if (2 * e->used + 2 > e->pages)
		return false;
	if (mprotect(e->base + (2 * e->used + 1) * pt_page(), pt_page(), PROT_READ))
		return false;
	e->used++;
	return true;
}

static void give_back(struct eaten *e)
{
	/* One protection for all makes one mapping of them again. */
	PT_CHECK(mprotect(e->base, e->pages * pt_page(), PROT_NONE) == 0);
	e->used = 0;
}

static void eat_up_to(struct eaten *e, size_t mappings)
{
	size_t now = pt_vma_count();

	while (now + 2 <= mappings && eat_one(e))
		now += 2;
	PT_CHECK(pt_vma_count() + 2 >= mappings);
}

/* Few contents in no order: nearly every page is a run of its own. */
static size_t content(size_t i)
{
	uint64_t s = i;

	return pt_random(&s) % 61;
}

static void fill(char *p)
{
	for (size_t i = 0; i < PAGES; i++)
		pt_fill_page(p + i * pt_page(), 1, content(i));
}

static void check(const char *p)
{
	for (size_t i = 0; i < PAGES; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), 1, content(i)));
}

static _Atomic bool stop;
static _Atomic size_t most;

static void *watch(void *arg)
{
	while (!atomic_load(&stop)) {
		size_t now = pt_vma_count();

		if (now > atomic_load(&most))
			atomic_store(&most, now);
	}
	return arg;
}

static int merge_near_nine_tenths(void *arg)
{
	struct samepage_result r;
	struct samepage *sp = pt_open();
	struct eaten e;
	pthread_t t;
	char *p = pt_map(PAGES);

	(void)arg;
	fill(p);
	reserve(&e, limit);
	PT_CHECK(samepage_merge(sp, p, pt_page(), 0, NULL) == 0); /* staging is there */
	PT_CHECK(pthread_create(&t, NULL, watch, NULL) == 0);
	for (size_t room = 2000; room <= 2000; room -= 1000) {
		eat_up_to(&e, nine_tenths() - room);
		PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
		PT_CHECK(pt_sums(&r));
		pt_note("room for %zu: merged %lu, map_count %lu, %zu mappings now", room,
			r.pages_merged, r.pages_declined[SAMEPAGE_REASON_MAP_COUNT], pt_vma_count());
		PT_CHECK(r.pages_declined[SAMEPAGE_REASON_MAP_COUNT] > 0);
		PT_CHECK(room < 100 || r.pages_merged > 0);
		PT_CHECK(pt_vma_count() <= nine_tenths());
		check(p);
		PT_CHECK(samepage_discard(sp, p, PAGES * pt_page()) == 0);
		fill(p);
	}
	/* Not for a moment in between, either. */
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	pt_note("never more than %zu mappings of %zu", atomic_load(&most), limit);
	PT_CHECK(atomic_load(&most) <= nine_tenths());
	/* Far beyond: not one more. */
	eat_up_to(&e, nine_tenths() + 1000);
	PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(r.pages_merged == 0 && r.runs == 0);
	PT_CHECK(r.pages_declined[SAMEPAGE_REASON_MAP_COUNT] == PAGES);
	give_back(&e);
	PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_complete(&r));
	check(p);
	samepage_close(sp);
	return 0;
}

/* --- the kernel's own limit ---------------------------------------------------- */

static void *eater(void *arg)
{
	struct eaten *e = arg;
	uint64_t rnd = 1;

	while (!atomic_load(&stop)) {
		while (eat_one(e))
			;
		PT_CHECK(errno == ENOMEM);
		atomic_fetch_add(&most, 1);
		usleep((unsigned)(pt_random(&rnd) % 2000));
		give_back(e);
		usleep((unsigned)(pt_random(&rnd) % 500));
	}
	return NULL;
}

static int merge_at_the_limit(void *arg)
{
	struct samepage_result r;
	struct samepage *sp = pt_open();
	struct eaten fixed, moving;
	uint64_t merged = 0, map_count = 0, no_memory = 0, other = 0;
	pthread_t t;
	char *p = pt_map(PAGES);

	(void)arg;
	atomic_store(&stop, false);
	atomic_store(&most, 0);
	reserve(&fixed, limit);
	reserve(&moving, limit);
	eat_up_to(&fixed, nine_tenths() - 3000);
	PT_CHECK(pthread_create(&t, NULL, eater, &moving) == 0);
	for (unsigned round = 0; round < (PT_SANITIZED ? 5u : 12u); round++) {
		fill(p);
		for (unsigned k = 0; k < 3; k++) {
			int err = samepage_merge(sp, p, PAGES * pt_page(), 0, &r);

			PT_CHECK(err <= 0 && pt_sums(&r));
			merged += r.pages_merged;
			map_count += r.pages_declined[SAMEPAGE_REASON_MAP_COUNT];
			no_memory += r.pages_declined[SAMEPAGE_REASON_NO_MEMORY];
			other += r.pages_declined[SAMEPAGE_REASON_FAILED];
		}
		check(p);
		/* Nothing is left frozen or read-only: every page takes a write. */
		for (size_t i = 0; i < PAGES; i++) {
			p[i * pt_page() + 9] ^= 1;
			p[i * pt_page() + 9] ^= 1;
		}
		check(p);
		/* Each run splits or joins: at the limit the kernel may say no, then again. */
		while (samepage_discard(sp, p, PAGES * pt_page()) < 0)
			usleep(200);
		PT_CHECK(pt_is_zero(p, PAGES));
	}
	atomic_store(&stop, true);
	pthread_join(t, NULL);
	pt_note("at the limit %zu times: merged %lu, map_count %lu, no_memory %lu, failed %lu",
		atomic_load(&most), merged, map_count, no_memory, other);
	PT_CHECK(merged > 0);
	give_back(&moving);
	give_back(&fixed);
	fill(p);
	PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_complete(&r));
	check(p);
	samepage_close(sp);
	return 0;
}

static void need(void)
{
	int64_t max = sys_read_number("/proc/sys/vm/max_map_count");

	pt_skip_unless_remap();
	pt_skip_unless_can_merge();
	if (PT_SANITIZED)
		SKIP("the sanitizer's runtime needs mappings of its own, and gives up without");
	if (max < 20000 || max > 300000)
		SKIP("vm.max_map_count is too small or too large to try");
	limit = (size_t)max;
}

static void a_tenth_is_left(void **state)
{
	(void)state;
	need();
	assert_int_equal(pt_child(merge_near_nine_tenths, NULL, SECONDS), 0);
}

static void the_real_limit_costs_no_page(void **state)
{
	(void)state;
	need();
	assert_int_equal(pt_child(merge_at_the_limit, NULL, SECONDS), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_tenth_is_left),
		cmocka_unit_test(the_real_limit_costs_no_page),
	};

	return PT_MAIN("proc-limit", tests);
}
