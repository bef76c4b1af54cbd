/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A candidate table that grows. If this fails: pages that have twins are merged late or never
 * (what a growth moves is not found again), the broker stores to memory that it did not ask
 * for (a step touches more than it says), memory does not follow what is in the table, or
 * what a broken broker says about its table's shape leads a client outside of its mapping (I4).
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/candidates.h"
#include "unit.h"

#define TAGS 300000u
#define ROW_ENTRIES (CORE_CAND_ROW * CORE_CAND_WAYS)
#define WHO 3u

static uint64_t random_state = 7;
static uint32_t tags[TAGS];

/* Between two pages that nobody may touch; its end is right before the second. */
struct memory {
	char *area, *mem;
	size_t area_bytes, bytes;
};

static void memory_new(struct memory *m, uint32_t rows)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), span;

	m->bytes = CORE_CAND_HEADER_BYTES + (size_t)rows * CORE_CAND_ROW_BYTES;
	span = (m->bytes + page - 1) & ~(page - 1);
	m->area_bytes = span + 2 * page;
	m->area = mmap(NULL, m->area_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(m->area, MAP_FAILED);
	assert_int_equal(mprotect(m->area + page, span, PROT_READ | PROT_WRITE), 0);
	m->mem = m->area + page + span - m->bytes;
}

static void memory_free(struct memory *m)
{
	munmap(m->area, m->area_bytes);
}

static void table_new(struct core_cand *ct, struct memory *m, uint32_t rows)
{
	memory_new(m, rows);
	assert_int_equal(core_cand_init(ct, m->mem, m->bytes), 0);
	core_cand_begin_small(ct);
	core_cand_here(ct, WHO, true);
}

/* Such as a table can tell from each other: two tags in 2^31 are one to it. */
static int make_tags(void **state)
{
	struct core_cand ct;
	struct memory m;
	uint32_t n = 0, tried = 0;

	memory_new(&m, 64);
	assert_int_equal(core_cand_init(&ct, m.mem, m.bytes), 0);
	while (n < TAGS) {
		tags[n] = tried++ * 0x2545f491u;
		n += core_cand_add(&ct, tags[n]) == 1;
	}
	memory_free(&m);
	return 0;
}

static uint64_t dropped(const struct core_cand *ct)
{
	return atomic_load(&ct->header->dropped);
}

/* Of the first n tags, of which the odd ones were reported twice. */
static uint32_t count_lost(const struct core_cand *ct, uint32_t n)
{
	uint32_t lost = 0;

	for (uint32_t i = 0; i < n; i++) {
		unsigned count = core_cand_count(ct, tags[i]);

		lost += count == 0;
		assert_true(count <= 1 + i % 2);
	}
	return lost;
}

/* After each step, in the middle of a growth as well, all is there, and its memory fits. */
static void test_keeps_all(void **state)
{
	struct core_cand ct, reader;
	struct memory m;
	uint32_t used = CORE_CAND_ROW, sizes = 0, steps = 0;

	table_new(&ct, &m, 30);
	assert_int_equal(core_cand_attach(&reader, m.mem, m.bytes), 0);
	assert_int_equal(core_cand_used(&ct), CORE_CAND_ROW);
	for (uint32_t i = 0; i < TAGS; i++) {
		core_cand_add(&ct, tags[i]);
		if (i % 2)
			core_cand_add(&ct, tags[i]);
		if (!core_cand_full(&ct))
			continue;
		core_cand_grow(&ct);
		assert_false(core_cand_full(&ct)); /* one step is enough */
		steps++;
		sizes += core_cand_used(&ct) > used;
		used = core_cand_used(&ct);
		assert_true(count_lost(&reader, i + 1) <= dropped(&ct));
		assert_in_range(i, used * CORE_CAND_WAYS / 100 * 40,
				used * CORE_CAND_WAYS / 100 * 87);
		if (used > 8 * CORE_CAND_ROW)
			assert_true(i > used * CORE_CAND_WAYS / 100 * 65);
	}
	assert_int_equal(atomic_load(&ct.header->entries) + dropped(&ct), TAGS);
	print_message("# %u sizes, %u steps, %lu dropped\n", sizes, steps,
		      (unsigned long)dropped(&ct));
	assert_in_range(sizes, 12, 16); /* 2 to 8, then 9, 11, 13, 15, 17, 20, 23 */
	assert_true(dropped(&ct) < TAGS / 2000);
	memory_free(&m);
}

/* What a step writes to is what it says before. */
static void test_steps_touch(void **state)
{
	struct core_cand ct;
	struct memory m;
	char *before;

	table_new(&ct, &m, 13);
	before = malloc(m.bytes);
	assert_non_null(before);
	for (uint32_t i = 0; core_cand_used(&ct) < ct.buckets; i++) {
		struct core_cand_step step;
		uint64_t changed = 0;

		core_cand_add(&ct, tags[i]);
		if (!core_cand_full(&ct))
			continue;
		memcpy(before, m.mem, m.bytes);
		assert_true(core_cand_step(&ct, &step));
		assert_true(step.to + step.to_count <= ct.buckets);
		core_cand_grow(&ct);
		assert_true(step.to + step.to_count <= core_cand_used(&ct));
		for (uint32_t b = 0; b < ct.buckets; b++) {
			size_t at = CORE_CAND_HEADER_BYTES + (size_t)b * CORE_CAND_BUCKET_BYTES;

			if (memcmp(before + at, m.mem + at, CORE_CAND_BUCKET_BYTES) == 0)
				continue;
			changed++;
			assert_true(b - step.from < CORE_CAND_ROW || b - step.to < step.to_count);
		}
		assert_true(changed > CORE_CAND_ROW / 4);
	}
	free(before);
	memory_free(&m);
}

/* The largest size is not passed, whatever it is, and begin_small starts over. */
static void test_largest(void **state)
{
	for (uint32_t rows = 1; rows <= 20; rows++) {
		struct core_cand_step step;
		struct core_cand ct;
		struct memory m;
		uint32_t i;

		table_new(&ct, &m, rows);
		assert_int_equal(ct.buckets, rows * CORE_CAND_ROW);
		for (i = 0; i < rows * ROW_ENTRIES * 9 / 10; i++) {
			core_cand_add(&ct, tags[i]);
			if (core_cand_full(&ct))
				core_cand_grow(&ct);
		}
		assert_int_equal(core_cand_used(&ct), ct.buckets);
		assert_false(core_cand_full(&ct));
		assert_false(core_cand_step(&ct, &step));
		core_cand_grow(&ct);
		assert_int_equal(core_cand_used(&ct), ct.buckets);
		assert_true(core_cand_crowded(&ct));
		assert_true(count_lost(&ct, i) <= dropped(&ct));
		core_cand_clear(&ct);
		core_cand_begin_small(&ct);
		assert_int_equal(core_cand_used(&ct), CORE_CAND_ROW);
		assert_int_equal(core_cand_add(&ct, tags[0]), 1);
		assert_int_equal(core_cand_count(&ct, tags[0]), 1);
		memory_free(&m);
	}
}

/* A list that cannot be wrong, but for what the table says that it dropped. */
struct model {
	struct core_cand ct;
	uint8_t has[TAGS]; /* counts */
	uint64_t entries, lost;
};

static void model_check(struct model *m, uint32_t i)
{
	unsigned count = core_cand_count(&m->ct, tags[i]);

	if (count == m->has[i])
		return;
	assert_int_equal(count, 0);
	m->has[i] = 0;
	m->entries--;
	m->lost++;
}

/* Reports, removals, sweeps and growth as they come. */
static void model_run(uint32_t rows, uint32_t tags_n, uint32_t actions)
{
	static struct model m;
	struct memory mem;

	memset(&m, 0, sizeof(m));
	table_new(&m.ct, &mem, rows);
	for (uint32_t n = 0; n < actions; n++) {
		uint64_t random = unit_random(&random_state);
		uint32_t i = (uint32_t)(random >> 32) % tags_n;

		model_check(&m, i);
		if (random % 8 == 0) {
			core_cand_remove(&m.ct, tags[i]);
			m.entries -= m.has[i] > 0;
			m.has[i] = 0;
		} else {
			assert_int_equal(core_cand_report(&m.ct, tags[i], WHO), m.has[i] == 1);
			m.entries += m.has[i] == 0;
			m.has[i] += m.has[i] < 2;
		}
		/* Also before its time. */
		if (core_cand_full(&m.ct) || random % 5000 == 1)
			core_cand_grow(&m.ct);
		if (n == actions / 2)
			core_cand_sweep(&m.ct, 0, core_cand_used(&m.ct)); /* nobody is gone */
	}
	for (uint32_t i = 0; i < tags_n; i++)
		model_check(&m, i);
	assert_int_equal(atomic_load(&m.ct.header->entries), m.entries);
	assert_true(m.lost <= dropped(&m.ct));
	assert_true(dropped(&m.ct) <= tags_n / 1000);
	core_cand_here(&m.ct, WHO, false);
	core_cand_sweep(&m.ct, 0, core_cand_used(&m.ct));
	assert_int_equal(atomic_load(&m.ct.header->entries), 0);
	memory_free(&mem);
}

static void test_model(void **state)
{
	for (uint32_t rows = 1; rows <= 29; rows += 1 + rows / 6)
		model_run(rows, rows * ROW_ENTRIES / 100 * 60, rows * 50000);
}

/* Readers -------------------------------------------------------------------- */

struct reading {
	struct core_cand ct; /* the reader's own view */
	_Atomic uint32_t added;
	_Atomic bool runs, stop;
	uint64_t lookups, misses, wrong;
};

static void *reader(void *arg)
{
	struct reading *r = arg;
	uint64_t random = 99;

	while (!atomic_load(&r->stop)) {
		uint32_t limit = atomic_load_explicit(&r->added, memory_order_acquire);
		uint32_t i = (uint32_t)(unit_random(&random) % TAGS);
		unsigned count = core_cand_count(&r->ct, tags[i]);

		r->lookups += i < limit;
		r->misses += i < limit && count == 0;
		/* Not there before it is; `added` may have moved on meanwhile. */
		r->wrong += count > 1 || (count == 1 && i > atomic_load(&r->added));
		atomic_store_explicit(&r->runs, true, memory_order_relaxed);
	}
	return NULL;
}

/* Misses only of what moves in that moment; nothing is invented. */
static void test_reader_during_growth(void **state)
{
	static struct reading r; /* a failed assertion leaves the thread running */
	struct core_cand ct;
	struct memory m;
	pthread_t thread;

	table_new(&ct, &m, 40);
	assert_int_equal(core_cand_attach(&r.ct, m.mem, m.bytes), 0);
	assert_int_equal(pthread_create(&thread, NULL, reader, &r), 0);
	while (!atomic_load(&r.runs))
		sched_yield();
	for (uint32_t i = 0; i < TAGS; i++) {
		core_cand_add(&ct, tags[i]);
		if (core_cand_full(&ct))
			core_cand_grow(&ct);
		atomic_store_explicit(&r.added, i + 1, memory_order_release);
	}
	atomic_store(&r.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	print_message("# %lu lookups, %lu missed, %lu dropped\n", (unsigned long)r.lookups,
		      (unsigned long)r.misses, (unsigned long)dropped(&ct));
	assert_int_equal(r.wrong, 0);
	/* The writer may be stopped in the middle of a step, for one row of 8 and more. */
	assert_true(r.misses <= 10 + r.lookups / 4);
	assert_true(count_lost(&ct, TAGS) <= dropped(&ct));
	memory_free(&m);
}

static void *scribbler(void *arg)
{
	struct reading *r = arg;
	uint64_t random = 5;

	while (!atomic_load(&r->stop)) {
		uint64_t word = unit_random(&random);

		/* Numbers that could be, and such that could not. */
		if (word % 2)
			word &= UINT64_C(0x1f0000001f);
		atomic_store_explicit(&r->ct.header->shape, word, memory_order_relaxed);
		atomic_store_explicit(&r->runs, true, memory_order_relaxed);
	}
	return NULL;
}

/* A shape that is anything, at any time: within what is mapped all the same. */
static void test_hostile_shape(void **state)
{
	static struct reading r;

	for (uint32_t rows = 1; rows <= 17; rows += 4) {
		struct core_cand writer;
		struct memory m;
		pthread_t thread;

		table_new(&writer, &m, rows);
		assert_int_equal(core_cand_attach(&r.ct, m.mem, m.bytes), 0);
		atomic_store(&r.stop, false);
		atomic_store(&r.runs, false);
		assert_int_equal(pthread_create(&thread, NULL, scribbler, &r), 0);
		while (!atomic_load(&r.runs))
			sched_yield();
		for (uint32_t i = 0; i < TAGS; i++) {
			const void *place[2];

			core_cand_prefetch(&r.ct, tags[i]);
			assert_int_equal(core_cand_count(&r.ct, tags[i]), 0);
			assert_int_equal(core_cand_seen(&r.ct, tags[i], WHO), CORE_CAND_NOBODY);
			core_cand_places(&r.ct, tags[i], place);
			for (unsigned k = 0; k < 2; k++)
				assert_in_range((uintptr_t)place[k],
						(uintptr_t)m.mem + CORE_CAND_HEADER_BYTES,
						(uintptr_t)m.mem + m.bytes - CORE_CAND_BUCKET_BYTES);
		}
		atomic_store(&r.stop, true);
		assert_int_equal(pthread_join(thread, NULL), 0);
		memory_free(&m);
	}
}

int main(void)
{
	const struct CMUnitTest cases[] = {
		cmocka_unit_test(test_keeps_all),
		cmocka_unit_test(test_steps_touch),
		cmocka_unit_test(test_largest),
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_reader_during_growth),
		cmocka_unit_test(test_hostile_shape),
	};

	return cmocka_run_group_tests(cases, make_tags, NULL);
}
