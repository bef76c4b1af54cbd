/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: `samepage analyze` promises savings that are not there, or counts pages
 * for the wrong process, scope or pair; says that fewer mappings are needed than are; takes
 * changed pages for lasting ones; or forgets where pages lie. Everything is compared with
 * a slow model of it that knows nothing of sorting, forests and streams.
 */
#include <stdlib.h>
#include <string.h>

#include "core/census.h"
#include "unit.h"

#define PAGES_MAX 600
#define REGIONS_MAX 60
#define PROCESSES 7
#define NO_PAGE UINT32_MAX

static uint64_t random_state = 11;

struct page {
	uint64_t vpn;
	uint64_t content; /* number of the content */
	uint64_t relative;
	uint64_t masked;
	uint64_t flags;
	uint32_t region;
	uint32_t process;
};

struct world {
	struct core_census c;
	struct page page[PAGES_MAX];
	uint32_t pages;
	uint64_t start[REGIONS_MAX], end[REGIONS_MAX];
	uint64_t hash[PAGES_MAX];
	uint32_t masked[PAGES_MAX], relative[PAGES_MAX], order[PAGES_MAX];
	struct core_census_region region[REGIONS_MAX];
	uint8_t gaps[PAGES_MAX * CORE_CENSUS_GAP_BYTES_MAX];
	struct core_census_process process[PROCESSES];
	uint32_t *index;
};

/* Different contents differ in the bits that sorting looks at first, and in the last ones. */
static uint64_t hash_of(uint64_t content)
{
	uint64_t x = content;

	return unit_random(&x) & ~CORE_CENSUS_FLAGS;
}

static uint32_t word_of(uint64_t content)
{
	uint64_t x = content * 31 + 7;

	return (uint32_t)unit_random(&x);
}

static uint64_t pick(uint64_t n)
{
	return unit_random(&random_state) % n;
}

static void new_world(struct world *w)
{
	memset(w, 0, sizeof(*w));
	w->c.hash = w->hash;
	w->c.masked = w->masked;
	w->c.relative = w->relative;
	w->c.order = w->order;
	w->c.region = w->region;
	w->c.gaps = w->gaps;
	w->c.process = w->process;
	w->c.processes = PROCESSES;
	w->c.segment_slots = 16;
}

static void ready(struct world *w)
{
	free(w->index);
	w->index = malloc(core_census_index_bytes(w->c.pages));
	assert_non_null(w->index);
	w->c.index = w->index;
	for (uint32_t p = 0; p < PROCESSES; p++)
		w->process[p].group = (struct core_census_groups){
			.user = p % 2,
			.cgroup = p / 3,
			.replica = p < 4 ? 0 : CORE_CENSUS_NO_REPLICA,
		};
}

static void add_page(struct world *w, uint64_t vpn, uint64_t content, uint64_t flags)
{
	struct page *p = &w->page[w->pages++];
	uint64_t near = content % 50; /* of six contents, one looks like the other but for addresses */
	bool addresses = near < 12;

	*p = (struct page){ .vpn = vpn, .content = content, .flags = flags,
			    .region = w->c.regions - 1,
			    .process = w->region[w->c.regions - 1].process };
	p->masked = addresses ? 1000000 + near / 6 : content;
	p->relative = addresses ? 2000000 + near / 3 : content;
	if (addresses)
		p->flags |= CORE_CENSUS_ADDRESSES;
	core_census_add_page(&w->c, vpn, hash_of(content) | 63, word_of(p->masked),
			     word_of(p->relative), p->flags);
}

static void add_region(struct world *w, uint32_t process, uint64_t start, uint64_t pages)
{
	struct core_census_region r = { .start_vpn = start, .end_vpn = start + pages,
					.process = process,
					.kind = (uint8_t)pick(CORE_CENSUS_KINDS),
					.locked = pick(4) == 0 };

	w->start[w->c.regions] = start;
	w->end[w->c.regions] = start + pages;
	core_census_add_region(&w->c, &r);
}

static void random_world(struct world *w, uint64_t contents)
{
	uint64_t vpn = 0x7f0000000;

	new_world(w);
	for (uint32_t p = 0; p < PROCESSES; p++) {
		uint64_t regions = pick(8);

		vpn = 0x7f0000000 + pick(1000);
		for (uint64_t r = 0; r < regions; r++) {
			uint64_t length = 1 + pick(14), next = pick(contents);

			vpn += pick(3) * pick(1000000);
			add_region(w, p, vpn, length);
			for (uint64_t i = 0; i < length; i++) {
				if (pick(5) == 0)
					continue;
				next = pick(4) ? next + 1 : pick(contents);
				add_page(w, vpn + i, next % contents,
					 pick(2) ? CORE_CENSUS_HUGE : 0);
			}
			vpn += length;
		}
	}
	ready(w);
}

/* the model -------------------------------------------------------------------- */

static uint32_t group_of(enum core_census_scope scope, uint32_t process)
{
	switch (scope) {
	case CORE_CENSUS_USER: return process % 2;
	case CORE_CENSUS_CGROUP: return process / 3;
	case CORE_CENSUS_PROCESS: return process;
	default: return 0;
	}
}

static bool together(const struct page *a, const struct page *b, enum core_census_scope scope)
{
	if (scope == CORE_CENSUS_LAYOUT)
		return a->content == b->content ||
		       (a->process < 4 && b->process < 4 && a->relative == b->relative &&
			(a->flags & b->flags & CORE_CENSUS_ADDRESSES));
	return a->content == b->content && group_of(scope, a->process) == group_of(scope, b->process);
}

/* set[i]: the first page that i is to be merged with, by however many steps. */
static void model_sets(const struct world *w, enum core_census_scope scope, uint64_t which,
		       uint32_t *set)
{
	bool changed = true;

	for (uint32_t i = 0; i < w->pages; i++)
		set[i] = i;
	while (changed) {
		changed = false;
		for (uint32_t i = 0; i < w->pages; i++)
			for (uint32_t k = 0; k < i; k++)
				if ((w->page[i].flags & which) == which &&
				    (w->page[k].flags & which) == which && set[i] != set[k] &&
				    together(&w->page[i], &w->page[k], scope)) {
					uint32_t low = set[i] < set[k] ? set[i] : set[k];

					set[i] = set[k] = low;
					changed = true;
				}
	}
}

static void model_slots(const struct world *w, uint32_t *slot, struct core_census_answer *a)
{
	uint32_t set[PAGES_MAX];

	memcpy(set, slot, w->pages * sizeof(*set));
	for (uint32_t i = 0; i < w->pages; i++) {
		uint32_t members = 0;

		for (uint32_t k = 0; k < w->pages; k++)
			members += set[k] == set[i];
		if (members < 2)
			slot[i] = NO_PAGE;
		else if (set[i] == i)
			slot[i] = (uint32_t)a->slots++;
		else
			slot[i] = slot[set[i]];
		a->duplicate += members > 1;
	}
	a->saved = a->duplicate - a->slots;
}

/* Mapping of each page of a region: which run (or none): then count the changes. */
static void model_runs(const struct world *w, const uint32_t *slot, struct core_census_answer *a)
{
	for (uint32_t r = 0; r < w->c.regions; r++) {
		uint64_t length = w->end[r] - w->start[r], run = 0;
		uint32_t at[64];
		int64_t mappings = 0;

		for (uint64_t i = 0; i < length; i++)
			at[i] = NO_PAGE;
		for (uint32_t i = 0; i < w->pages; i++)
			if (w->page[i].region == r)
				at[w->page[i].vpn - w->start[r]] = slot[i];
		for (uint64_t i = 0; i <= length; i++) {
			bool inside = i < length;
			bool joins = inside && i > 0 &&
				     (at[i] == NO_PAGE ? at[i - 1] == NO_PAGE :
				      at[i - 1] != NO_PAGE && at[i] == at[i - 1] + 1 &&
				      at[i] % w->c.segment_slots != 0);

			if (!joins && run > 0) {
				unsigned bucket = 0;

				while (run >> (bucket + 1))
					bucket++;
				a->bucket[bucket].runs++;
				a->bucket[bucket].pages += run;
				a->runs++;
				run = 0;
			}
			mappings += inside && !joins;
			run += inside && at[i] != NO_PAGE;
		}
		a->vmas_added += mappings - 1;
	}
}

static void check_scope(struct world *w, enum core_census_scope scope, uint64_t which)
{
	struct core_census_answer model = { 0 }, answer;
	uint32_t slot[PAGES_MAX];

	model_sets(w, scope, which, slot);
	model_slots(w, slot, &model);
	model_runs(w, slot, &model);
	core_census_scope(&w->c, scope, which, &answer);
	assert_int_equal(answer.duplicate, model.duplicate);
	assert_int_equal(answer.slots, model.slots);
	assert_int_equal(answer.saved, model.saved);
	assert_int_equal(answer.runs, model.runs);
	assert_int_equal(answer.vmas_added, model.vmas_added);
	assert_memory_equal(answer.bucket, model.bucket, sizeof(model.bucket));
}

static void check_sums(struct world *w)
{
	double saved = 0, by_kind = 0, by_process = 0;
	uint64_t duplicate = 0, almost = 0, huge = 0, locked = 0;

	for (uint32_t i = 0; i < w->pages; i++) {
		const struct page *p = &w->page[i];
		uint32_t equal = 0, near = 0;

		for (uint32_t k = 0; k < w->pages; k++) {
			equal += w->page[k].content == p->content;
			near += w->page[k].masked == p->masked && w->page[k].content != p->content;
		}
		duplicate += equal > 1;
		saved += (equal - 1.0) / equal;
		almost += equal == 1 && near > 0;
		huge += equal > 1 && (p->flags & CORE_CENSUS_HUGE);
		locked += equal > 1 && w->region[p->region].locked;
	}
	for (unsigned k = 0; k < CORE_CENSUS_KINDS; k++)
		by_kind += w->c.kind[k].saved;
	for (unsigned p = 0; p < PROCESSES; p++)
		by_process += w->process[p].sums.saved;
	assert_int_equal(w->c.total.pages, w->pages);
	assert_int_equal(w->c.total.duplicate, duplicate);
	assert_int_equal(w->c.total.almost, almost);
	assert_int_equal(w->c.total.huge, huge);
	assert_int_equal(w->c.total.locked, locked);
	assert_true(w->c.total.saved > saved - 1e-6 && w->c.total.saved < saved + 1e-6);
	assert_true(by_kind > saved - 1e-6 && by_kind < saved + 1e-6);
	assert_true(by_process > saved - 1e-6 && by_process < saved + 1e-6);
}

static void check_matrix(struct world *w)
{
	static uint64_t cell[CORE_CENSUS_MATRIX * CORE_CENSUS_MATRIX];
	uint64_t expected[PROCESSES][PROCESSES] = { 0 };
	uint64_t count[PROCESSES];
	uint32_t member[CORE_CENSUS_MATRIX];
	uint32_t n = core_census_matrix(&w->c, member, cell);

	for (uint32_t i = 0; i < w->pages; i++) {
		bool first = true;

		memset(count, 0, sizeof(count));
		for (uint32_t k = 0; k < w->pages; k++) {
			first = first && (k >= i || w->page[k].content != w->page[i].content);
			count[w->page[k].process] += w->page[k].content == w->page[i].content;
		}
		for (uint32_t a = 0; first && a < PROCESSES; a++)
			for (uint32_t b = 0; b < PROCESSES; b++)
				expected[a][b] += a == b ? (count[a] ? count[a] - 1 : 0) :
							   count[a] && count[b];
	}
	for (uint32_t a = 0; a < n; a++) {
		assert_true(w->process[member[a]].sums.duplicate > 0);
		for (uint32_t b = 0; b < n; b++)
			assert_int_equal(cell[a * CORE_CENSUS_MATRIX + b],
					 expected[member[a]][member[b]]);
	}
}

static void check_walk(struct world *w)
{
	struct core_census_walk walk;
	uint32_t i = 0;

	core_census_walk_begin(&walk, &w->c, 0, w->c.regions);
	for (; core_census_walk_valid(&walk); core_census_walk_next(&walk), i++) {
		assert_true(i < w->pages);
		assert_int_equal(walk.page, i);
		assert_int_equal(walk.vpn, w->page[i].vpn);
		assert_int_equal(walk.region, w->page[i].region);
		assert_int_equal(core_census_process_of(&w->c, i), w->page[i].process);
	}
	assert_int_equal(i, w->pages);
}

/* tests ------------------------------------------------------------------------ */

static void test_against_model(void **state)
{
	static struct world w;

	for (unsigned round = 0; round < 300; round++) {
		free(w.index);
		random_world(&w, round % 3 == 0 ? 8 : round % 3 == 1 ? 100 : 4000);
		core_census_finish(&w.c);
		check_walk(&w);
		check_sums(&w);
		check_matrix(&w);
		for (int scope = 0; scope < CORE_CENSUS_SCOPES; scope++)
			check_scope(&w, (enum core_census_scope)scope, 0);
		/* after the estimate, which sorts by something else */
		check_scope(&w, CORE_CENSUS_USER, CORE_CENSUS_HUGE);
		check_matrix(&w);
	}
	free(w.index);
}

static void test_nothing(void **state)
{
	static struct world w;
	struct core_census_answer a;
	static uint64_t cell[CORE_CENSUS_MATRIX * CORE_CENSUS_MATRIX];
	uint32_t member[CORE_CENSUS_MATRIX];

	new_world(&w);
	ready(&w);
	core_census_finish(&w.c);
	core_census_scope(&w.c, CORE_CENSUS_LAYOUT, 0, &a);
	assert_int_equal(a.duplicate + a.slots + a.runs, 0);
	assert_int_equal(core_census_matrix(&w.c, member, cell), 0);
	free(w.index);
}

/* Sorted input of one content, which makes one large bucket, is not slow, nor are runs lost. */
static void test_all_equal(void **state)
{
	static struct world w;
	struct core_census_answer a;

	new_world(&w);
	for (uint32_t p = 0; p < 4; p++) {
		add_region(&w, p, 1000, 100);
		for (uint64_t i = 0; i < 100; i++)
			add_page(&w, 1000 + i, 49, 0);
	}
	ready(&w);
	core_census_finish(&w.c);
	core_census_scope(&w.c, CORE_CENSUS_ALL, 0, &a);
	assert_int_equal(a.slots, 1);
	assert_int_equal(a.saved, 399);
	assert_int_equal(a.runs, 400); /* one slot never continues itself */
	assert_int_equal(a.bucket[0].runs, 400);
	free(w.index);
}

static void test_truncate(void **state)
{
	static struct world w;

	new_world(&w);
	add_region(&w, 0, 100, 10);
	add_page(&w, 103, 1, 0);
	add_page(&w, 104, 2, 0);
	add_region(&w, 1, 500, 10);
	add_page(&w, 505, 3, 0);
	core_census_truncate(&w.c, 1);
	w.pages = 2;
	assert_int_equal(w.c.pages, 2);
	add_region(&w, 2, 900, 20);
	add_page(&w, 919, 4, 0);
	ready(&w);
	core_census_finish(&w.c);
	check_walk(&w);
	core_census_truncate(&w.c, 7); /* there is no such region */
	assert_int_equal(w.c.pages, 3);
	free(w.index);
}

/* Holes of every size that takes another byte in the stream. */
static void test_far_apart(void **state)
{
	static struct world w;
	uint64_t vpn = 5;

	new_world(&w);
	add_region(&w, 0, 0, UINT64_C(1) << 52);
	for (unsigned bits = 0; bits < 50; bits++) {
		for (uint64_t i = 0; i < bits % 5 + 1; i++)
			add_page(&w, vpn++, bits, 0);
		vpn += UINT64_C(1) << bits;
	}
	assert_true(w.c.gaps_bytes < w.c.pages * CORE_CENSUS_GAP_BYTES_MAX);
	ready(&w);
	core_census_finish(&w.c);
	check_walk(&w);
	free(w.index);
}

static void test_two_looks(void **state)
{
	static struct world w, v;
	static uint32_t tag[PAGES_MAX];
	struct core_census_walk walk;

	for (unsigned round = 0; round < 100; round++) {
		random_world(&w, 50);
		core_census_to_tags(&w.c, tag, round % 2 == 0);
		memcpy(&v.page, &w.page, sizeof(w.page));
		core_census_walk_begin(&walk, &w.c, 0, w.c.regions);
		for (uint32_t i = 0; i < w.pages; i += 1 + (uint32_t)pick(3)) {
			uint64_t same = hash_of(w.page[i].content);
			uint64_t flags;

			/* only inside of one process do addresses go up */
			if (i > 0 && w.page[i].process != walk.census->region[w.page[i].region].process)
				break;
			if (core_census_walk_valid(&walk) && walk.vpn > w.page[i].vpn)
				break;
			core_census_walk_seek(&walk, w.page[i].vpn);
			assert_true(core_census_walk_valid(&walk));
			if (walk.vpn != w.page[i].vpn)
				break;
			flags = core_census_since(tag[walk.page], same);
			assert_int_equal(flags, CORE_CENSUS_STAYED |
						(round % 2 == 0 ? CORE_CENSUS_LASTED : 0));
			assert_int_equal(core_census_since(tag[walk.page], same ^ (UINT64_C(1) << 40)), 0);
		}
		free(w.index);
	}
}

/* Seeking finds each page, and from between pages the next one. */
static void test_seek(void **state)
{
	static struct world w;
	struct core_census_walk walk;

	new_world(&w);
	add_region(&w, 0, 100, 50);
	for (uint64_t vpn = 110; vpn < 150; vpn += 3) {
		add_page(&w, vpn, vpn, 0);
		add_page(&w, vpn + 1, vpn, 0);
	}
	add_region(&w, 0, 200, 1);
	add_page(&w, 200, 1, 0);
	for (uint64_t to = 90; to < 210; to++) {
		uint32_t expected = 0;

		core_census_walk_begin(&walk, &w.c, 0, 2);
		core_census_walk_seek(&walk, to);
		while (expected < w.pages && w.page[expected].vpn < to)
			expected++;
		assert_int_equal(core_census_walk_valid(&walk), expected < w.pages);
		if (expected < w.pages) {
			assert_int_equal(walk.page, expected);
			assert_int_equal(walk.vpn, w.page[expected].vpn);
		}
	}
}

static void test_names(void **state)
{
	for (int k = 0; k < CORE_CENSUS_KINDS; k++)
		assert_non_null(core_census_kind_name((enum core_census_kind)k));
	for (int s = 0; s < CORE_CENSUS_SCOPES; s++)
		assert_non_null(core_census_scope_name((enum core_census_scope)s));
	assert_string_equal(core_census_kind_name(CORE_CENSUS_guest_ram), "guest_ram");
	assert_null(core_census_kind_name((enum core_census_kind)CORE_CENSUS_KINDS));
	assert_int_equal(core_census_bucket_first(4), 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_model), cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_all_equal),     cmocka_unit_test(test_truncate),
		cmocka_unit_test(test_far_apart),     cmocka_unit_test(test_two_looks),
		cmocka_unit_test(test_seek),          cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests_name("census", tests, NULL, NULL);
}
