/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: shared pages are not found again, an index grows out of
 * proportion, clients are led outside of the shared memory by a broken broker or
 * by a lookup in the middle of a split, or crafted tags hurt others than their
 * sender (I4).
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/index.h"
#include "unit.h"

static uint64_t random_state = 5;

static void *index_memory(size_t bytes)
{
	void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	return mem;
}

static size_t make_index(struct core_index *ix, uint32_t max_slots)
{
	const struct core_index_params params = {
		.page_bytes = 4096,
		.segment_slots = 4096,
		.max_slots = max_slots,
		.seed = 11,
		.generation = 12,
	};
	size_t bytes = core_index_bytes(max_slots);

	assert_int_equal(bytes % 65536, 0);
	assert_int_equal(core_index_init(ix, index_memory(bytes), bytes, &params), 0);
	return bytes;
}

/* One tag per slot and back: what is found can be checked without a table. */
static uint32_t tag_of(uint32_t slot)
{
	uint32_t x = slot * 0x9e3779b1u;

	x ^= x >> 15;
	return x * 0x85ebca6bu;
}

static void assert_found(const struct core_index *ix, uint32_t tag, uint32_t slot)
{
	uint32_t slots[2 * CORE_INDEX_WAYS];
	unsigned n = core_index_lookup(ix, tag, slots, 2 * CORE_INDEX_WAYS);
	unsigned i;

	for (i = 0; i < n && slots[i] != slot; i++)
		;
	assert_true(i < n);
}

#ifdef __SANITIZE_THREAD__ /* there is one thread here */
#define MILLIONS 1u
#else
#define MILLIONS 4u
#endif

/* Random tags, so with chance collisions, as pages give them. */
static void test_four_million(void **state)
{
	const uint32_t n = MILLIONS << 20;
	uint32_t *tags = malloc(n * sizeof(*tags));
	struct core_index ix, reader;
	size_t bytes = make_index(&ix, n);
	uint64_t worst_milli = 0;
	uint32_t i;

	assert_non_null(tags);
	for (i = 0; i < n; i++) {
		tags[i] = (uint32_t)unit_random(&random_state);
		if (core_index_insert(&ix, tags[i], i) != 0)
			fail_msg("slot %u found no place", i);
		if (i >= 65536) {
			uint64_t used = core_index_used_bytes(&ix);

			if (used > 11ull * i)
				fail_msg("%u slots use %lu bytes", i, (unsigned long)used);
			if (used * 1000 / i > worst_milli)
				worst_milli = used * 1000 / i;
		}
	}
	print_message("# at most %lu/1000 bytes a slot\n", (unsigned long)worst_milli);
	assert_int_equal(atomic_load(&ix.header->entries), n);
	assert_true(core_index_used_bytes(&ix) <= bytes);
	assert_int_equal(core_index_attach(&reader, ix.header, bytes, 4096), 0);
	/* A client's mapping cannot be written, and no lookup tries. */
	assert_int_equal(mprotect(ix.header, bytes, PROT_READ), 0);
	for (i = 0; i < n; i++)
		assert_found(&reader, tags[i], i);
	munmap(ix.header, bytes);
	free(tags);
}

/* Full to its promise: max_slots entries fit, one more is refused, nothing is lost. */
static void test_max_slots(void **state)
{
	const uint32_t sizes[] = { 1, 7, 1000, 4096, 100000, 262144 };
	unsigned k;

	for (k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
		struct core_index ix;
		uint32_t n = sizes[k], i;
		size_t bytes = make_index(&ix, n);

		for (i = 0; i < n; i++)
			assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
		assert_int_equal(core_index_insert(&ix, tag_of(n), n), -ENOSPC);
		/* What is there already is no new entry. */
		assert_int_equal(core_index_insert(&ix, tag_of(0), 0), 0);
		assert_int_equal(atomic_load(&ix.header->entries), n);
		for (i = 0; i < n; i++)
			assert_found(&ix, tag_of(i), i);
		assert_int_equal(core_index_insert(&ix, 1, CORE_SLOT_NONE), -EINVAL);
		munmap(ix.header, bytes);
	}
}

static void test_same_tag(void **state)
{
	struct core_index ix;
	size_t bytes = make_index(&ix, 1000);
	uint32_t slots[8];
	unsigned i, j, n;

	for (i = 0; i < 5; i++)
		assert_int_equal(core_index_insert(&ix, 0xabcd, 100 + i), 0);
	assert_int_equal(core_index_insert(&ix, 0, 0), 0);
	assert_int_equal(core_index_insert(&ix, UINT32_MAX, CORE_SLOT_NONE - 1), 0);
	n = core_index_lookup(&ix, 0xabcd, slots, 8);
	assert_int_equal(n, 5);
	for (i = 0; i < n; i++) {
		assert_in_range(slots[i], 100, 104);
		for (j = 0; j < i; j++)
			assert_int_not_equal(slots[i], slots[j]);
	}
	slots[2] = 0x5a5a;
	assert_int_equal(core_index_lookup(&ix, 0xabcd, slots, 2), 2);
	assert_int_equal(slots[2], 0x5a5a);
	assert_int_equal(core_index_lookup(&ix, 0xabcd, slots, 0), 0);
	assert_int_equal(core_index_lookup(&ix, 0, slots, 8), 1);
	assert_int_equal(slots[0], 0);
	assert_int_equal(core_index_lookup(&ix, UINT32_MAX, slots, 8), 1);
	assert_int_equal(slots[0], CORE_SLOT_NONE - 1);
	assert_int_equal(core_index_lookup(&ix, 1, slots, 8), 0);
	munmap(ix.header, bytes);
}

/* A flood of one tag: refused after two buckets, buys no memory, others go on. */
static void test_crafted_flood(void **state)
{
	const uint32_t n = 300000, flood = 0xdeadbeef;
	struct core_index ix;
	size_t bytes = make_index(&ix, 2 * n);
	uint32_t i, taken = 0, refused = 0, others_refused = 0;

	for (i = 0; i < 65536; i++)
		assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
	for (; i < n; i++) {
		int err = core_index_insert(&ix, flood, n + i);

		if (err == 0)
			taken++;
		else if (err == -ENOSPC)
			refused++;
		others_refused += core_index_insert(&ix, tag_of(i), i) != 0;
		if (core_index_used_bytes(&ix) > 16ull * i)
			fail_msg("the flood grew the index to %lu bytes at %u slots",
				 (unsigned long)core_index_used_bytes(&ix), i);
	}
	assert_in_range(taken, CORE_INDEX_WAYS, 2 * CORE_INDEX_WAYS);
	assert_int_equal(taken + refused, n - 65536);
	assert_int_equal(others_refused, 0);
	for (i = 0; i < n; i++)
		assert_found(&ix, tag_of(i), i);
	munmap(ix.header, bytes);
}

/* Beyond the limit nothing is written; what has no room is refused, and has it afterwards. */
static void test_limit(void **state)
{
	const uint32_t n = 20000;
	const size_t limit = CORE_INDEX_HEADER_BYTES + 65536 + 100; /* 1025 buckets and a bit */
	struct core_index ix;
	size_t bytes = make_index(&ix, n);
	const char *mem = (const char *)ix.header;
	uint32_t i, taken = 0, refused = 0;

	core_index_limit(&ix, limit);
	for (i = 0; i < n; i++) {
		int err = core_index_insert(&ix, tag_of(i), i);

		assert_true(err == 0 || err == -ENOSPC);
		taken += err == 0;
	}
	assert_int_equal(core_index_used_bytes(&ix), CORE_INDEX_HEADER_BYTES + 1025u * 64);
	for (size_t at = CORE_INDEX_HEADER_BYTES + 1025u * 64; at < bytes; at++)
		assert_int_equal(mem[at], 0);
	assert_in_range(taken, 1025 * CORE_INDEX_WAYS * 9 / 10, 1025 * CORE_INDEX_WAYS);
	core_index_limit(&ix, 2 * bytes); /* no more than there is */
	/* It has to catch up: those split next need not be those that are full. */
	for (i = 0; i < n; i++)
		refused += core_index_insert(&ix, tag_of(i), i) != 0;
	assert_in_range(refused, 0, n / 100);
	for (i = 0; i < n; i++)
		assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
	assert_int_equal(atomic_load(&ix.header->entries), n);
	for (i = 0; i < n; i++)
		assert_found(&ix, tag_of(i), i);
	munmap(ix.header, bytes);
}

static void test_refusal_changes_nothing(void **state)
{
	struct core_index ix;
	size_t bytes = make_index(&ix, 1000);
	uint64_t used;
	uint32_t i;

	for (i = 0; i < 2 * CORE_INDEX_WAYS; i++)
		core_index_insert(&ix, 7, i);
	used = core_index_used_bytes(&ix);
	for (i = 100; i < 200; i++)
		assert_int_equal(core_index_insert(&ix, 7, i), -ENOSPC);
	assert_int_equal(core_index_used_bytes(&ix), used);
	munmap(ix.header, bytes);
}

static void test_remove_slots(void **state)
{
	const uint32_t n = 100000, segment = 4096;
	struct core_index ix;
	size_t bytes = make_index(&ix, n);
	uint32_t slots[4], first, i;

	for (i = 0; i < n; i++)
		assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
	for (first = 0; first < n; first += 2 * segment)
		assert_int_equal(core_index_remove_slots(&ix, first, segment),
				 n - first < segment ? n - first : segment);
	for (i = 0; i < n; i++) {
		if (i / segment % 2 == 0)
			assert_int_equal(core_index_lookup(&ix, tag_of(i), slots, 4), 0);
		else
			assert_found(&ix, tag_of(i), i);
	}
	assert_int_equal(core_index_remove_slots(&ix, 0, segment), 0);
	assert_int_equal(core_index_remove_slots(&ix, n, UINT32_MAX - n), 0);
	assert_int_equal(core_index_remove_slots(&ix, 0, 0), 0);
	/* Their places can be used again, to the last one. */
	for (i = n; atomic_load(&ix.header->entries) < n; i++)
		assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
	assert_int_equal(core_index_insert(&ix, tag_of(i), i), -ENOSPC);
	assert_int_equal(core_index_remove_slots(&ix, 0, UINT32_MAX), n);
	assert_int_equal(atomic_load(&ix.header->entries), 0);
	munmap(ix.header, bytes);
}

/* Readers while it grows ----------------------------------------------------- */

struct growth {
	struct core_index ix; /* the reader's own view */
	_Atomic uint32_t inserted;
	_Atomic uint32_t reader_running;
	_Atomic bool stop;
	uint64_t lookups, misses, wrong;
};

static void *growth_reader(void *arg)
{
	struct growth *g = arg;
	uint64_t random = 99;
	uint32_t slots[4];

	while (!atomic_load(&g->stop)) {
		uint32_t limit = atomic_load_explicit(&g->inserted, memory_order_acquire);
		uint32_t slot = (uint32_t)(unit_random(&random) % (limit + 1));
		unsigned n = core_index_lookup(&g->ix, tag_of(slot), slots, 4);

		/* slot == limit may be there or not yet; nothing else may be there ever. */
		if (slot < limit) {
			g->lookups++;
			g->misses += n == 0;
		}
		if (n > 1 || (n == 1 && slots[0] != slot))
			g->wrong++;
		atomic_store_explicit(&g->reader_running, 1, memory_order_relaxed);
	}
	return NULL;
}

static void test_reader_during_growth(void **state)
{
	const uint32_t n = 1u << 20;
	struct core_index ix;
	size_t bytes = make_index(&ix, n);
	static struct growth g; /* a failed assertion leaves the thread running */
	pthread_t thread;
	uint32_t i;

	assert_int_equal(core_index_attach(&g.ix, ix.header, bytes, 4096), 0);
	assert_int_equal(pthread_create(&thread, NULL, growth_reader, &g), 0);
	while (!atomic_load(&g.reader_running))
		sched_yield();
	for (i = 0; i < n; i++) {
		assert_int_equal(core_index_insert(&ix, tag_of(i), i), 0);
		atomic_store_explicit(&g.inserted, i + 1, memory_order_release);
	}
	atomic_store(&g.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	print_message("# %lu lookups, %lu missed\n", (unsigned long)g.lookups,
		      (unsigned long)g.misses);
	assert_int_equal(g.wrong, 0);
	assert_true(g.misses <= 2 + g.lookups / 1000);
	for (i = 0; i < n; i++)
		assert_found(&ix, tag_of(i), i);
	munmap(ix.header, bytes);
}

/* Hostile memory -------------------------------------------------------------- */

struct guarded {
	char *area;
	size_t area_bytes;
	char *mem;
	size_t bytes;
};

/* Both neighbours of the index are unmapped: one step outside is a crash. */
static void make_guarded(struct guarded *g, struct core_index *ix, uint32_t max_slots)
{
	const struct core_index_params params = {
		.page_bytes = 4096, .segment_slots = 64, .max_slots = max_slots,
	};
	size_t guard = 65536;

	g->bytes = core_index_bytes(max_slots);
	g->area_bytes = g->bytes + 2 * guard;
	g->area = index_memory(g->area_bytes);
	g->mem = g->area + guard;
	assert_int_equal(mprotect(g->area, guard, PROT_NONE), 0);
	assert_int_equal(mprotect(g->mem + g->bytes, guard, PROT_NONE), 0);
	assert_int_equal(core_index_init(ix, g->mem, g->bytes, &params), 0);
	assert_int_equal(core_index_attach(ix, g->mem, g->bytes, 4096), 0);
}

static uint64_t hostile_shape(void)
{
	uint64_t r = unit_random(&random_state);

	switch (r % 4) {
	case 0:
		return unit_random(&random_state);
	case 1:
		return (r >> 8) % 40 << 32 | (uint32_t)unit_random(&random_state);
	case 2:
		return (r >> 8) % 40 << 32 | (1u << (r >> 16) % 32);
	default:
		return (r >> 8) % 40 << 32 | ((1u << (r >> 16) % 32) - 1);
	}
}

static void look_around(const struct core_index *ix, unsigned times)
{
	uint32_t slots[5];

	while (times--) {
		uint32_t tag = (uint32_t)unit_random(&random_state);
		unsigned max = (unsigned)unit_random(&random_state) % 5;
		unsigned n, i;

		slots[max] = 0x77;
		core_index_prefetch(ix, tag);
		n = core_index_lookup(ix, tag, slots, max);
		assert_true(n <= max);
		assert_int_equal(slots[max], 0x77);
		for (i = 0; i < n; i++)
			assert_int_not_equal(slots[i], CORE_SLOT_NONE);
	}
}

static void test_hostile_shape(void **state)
{
	const uint32_t sizes[] = { 1, 3000, 50000 };
	unsigned k, i;

	for (k = 0; k < 3; k++) {
		struct core_index ix;
		struct guarded g;

		make_guarded(&g, &ix, sizes[k]);
		memset(g.mem + CORE_INDEX_HEADER_BYTES, 0xff, g.bytes - CORE_INDEX_HEADER_BYTES);
		look_around(&ix, 1000);
		for (i = 0; i < 50000; i++) {
			atomic_store(&ix.header->shape, hostile_shape());
			look_around(&ix, 4);
			assert_true(core_index_used_bytes(&ix) <= g.bytes);
		}
		munmap(g.area, g.area_bytes);
	}
}

/* Every tag in every entry with slot + 1 == 0, or forged: found slots are numbers only. */
static void test_hostile_contents(void **state)
{
	struct core_index ix;
	struct guarded g;
	uint32_t slots[4];
	size_t i;
	unsigned round;

	make_guarded(&g, &ix, 3000);
	for (i = 0; i < (size_t)ix.max_buckets * CORE_INDEX_WAYS; i++)
		atomic_store(&ix.entries[i], 42ull << 32);
	assert_int_equal(core_index_lookup(&ix, 42, slots, 4), 0);
	for (i = 0; i < (size_t)ix.max_buckets * CORE_INDEX_WAYS; i++)
		atomic_store(&ix.entries[i], 42ull << 32 | (i + 1));
	assert_int_equal(core_index_lookup(&ix, 42, slots, 4), 4);
	for (round = 0; round < 50; round++) {
		for (i = 0; i < g.bytes; i += 8)
			atomic_store((_Atomic uint64_t *)(g.mem + i), unit_random(&random_state));
		look_around(&ix, 1000);
		assert_true(core_index_used_bytes(&ix) <= g.bytes);
	}
	munmap(g.area, g.area_bytes);
}

struct scrambler {
	struct core_index *ix;
	_Atomic bool stop;
};

static void *scramble(void *arg)
{
	struct scrambler *s = arg;
	uint64_t random = 123;

	while (!atomic_load(&s->stop)) {
		uint64_t r = unit_random(&random);

		atomic_store(&s->ix->header->shape, r % 40 << 32 | (uint32_t)(r >> 32));
		atomic_store(&s->ix->entries[r % 1000], unit_random(&random));
	}
	return NULL;
}

/* The shape changes within one lookup: it ends, and stays inside. */
static void test_changing_shape(void **state)
{
	struct core_index ix;
	struct guarded g;
	struct scrambler s = { .ix = &ix };
	pthread_t thread;

	make_guarded(&g, &ix, 10000);
	assert_int_equal(pthread_create(&thread, NULL, scramble, &s), 0);
	look_around(&ix, 300000);
	atomic_store(&s.stop, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	munmap(g.area, g.area_bytes);
}

static void test_attach_refuses(void **state)
{
	struct core_index ix, reader;
	size_t bytes = make_index(&ix, 10000);
	struct core_index_header good;
	struct core_index_header *h = ix.header;
	unsigned i;

	memcpy(&good, h, sizeof(good));
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), 0);
	assert_int_equal(core_index_attach(&reader, h, bytes, 16384), -EPROTO);
	assert_int_equal(core_index_attach(&reader, h, 0, 4096), -EPROTO);
	assert_int_equal(core_index_attach(&reader, h, CORE_INDEX_HEADER_BYTES, 4096), -EPROTO);
	assert_int_equal(core_index_attach(&reader, h, bytes - 65536, 4096), -EPROTO);
	h->magic ^= 1;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	memcpy(h, &good, sizeof(good));
	h->version++;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	memcpy(h, &good, sizeof(good));
	h->segment_slots = 3;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	h->segment_slots = 0;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	memcpy(h, &good, sizeof(good));
	h->max_slots = UINT32_MAX;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	h->max_slots = 0;
	assert_int_equal(core_index_attach(&reader, h, bytes, 4096), -EPROTO);
	/* Garbage with the right beginning is taken or refused, and never leads outside. */
	for (i = 0; i < 2000; i++) {
		size_t at;

		memcpy(h, &good, sizeof(good));
		for (at = 8 + 4 * (i % 3); at < sizeof(good); at++) {
			if (unit_random(&random_state) % 4 == 0)
				((unsigned char *)h)[at] = (unsigned char)unit_random(&random_state);
		}
		if (core_index_attach(&reader, h, bytes, 4096) == 0)
			look_around(&reader, 10);
	}
	munmap(h, bytes);
}

static void test_init_refuses(void **state)
{
	const struct core_index_params good = {
		.page_bytes = 4096, .segment_slots = 4096, .max_slots = 1000,
	};
	size_t bytes = core_index_bytes(1000);
	char *mem = index_memory(bytes);
	struct core_index ix;
	struct core_index_params bad;

	assert_int_equal(core_index_init(&ix, mem, bytes - 1, &good), -EINVAL);
	assert_int_equal(core_index_init(&ix, NULL, bytes, &good), -EINVAL);
	bad = good;
	bad.page_bytes = 0;
	assert_int_equal(core_index_init(&ix, mem, bytes, &bad), -EINVAL);
	bad = good;
	bad.segment_slots = 5;
	assert_int_equal(core_index_init(&ix, mem, bytes, &bad), -EINVAL);
	bad = good;
	bad.max_slots = 0;
	assert_int_equal(core_index_init(&ix, mem, bytes, &bad), -EINVAL);
	bad.max_slots = 1u << 30;
	assert_int_equal(core_index_init(&ix, mem, bytes, &bad), -EINVAL);
	assert_int_equal(mem[0], 0); /* refused: nothing written */
	assert_int_equal(core_index_init(&ix, mem, bytes, &good), 0);
	assert_true(core_index_bytes(UINT32_MAX) > core_index_bytes(UINT32_MAX / 2));
	munmap(mem, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_four_million),
		cmocka_unit_test(test_max_slots),
		cmocka_unit_test(test_same_tag),
		cmocka_unit_test(test_crafted_flood),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_refusal_changes_nothing),
		cmocka_unit_test(test_remove_slots),
		cmocka_unit_test(test_reader_during_growth),
		cmocka_unit_test(test_hostile_shape),
		cmocka_unit_test(test_hostile_contents),
		cmocka_unit_test(test_changing_shape),
		cmocka_unit_test(test_attach_refuses),
		cmocka_unit_test(test_init_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
