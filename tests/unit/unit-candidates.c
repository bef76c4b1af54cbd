/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: pages that have twins are not promoted (counts lost though there
 * is room), pages without twins are (the store fills with what nobody shares), an
 * overloaded table starts to invent sightings, or a broker's broken table leads
 * a client outside of its mapping (I4).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/candidates.h"
#include "unit.h"

static uint64_t random_state = 2;

static void *table_memory(size_t bytes)
{
	void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	return mem;
}

/* Distinct for distinct i below 2^30, also in the 30 bits that are kept. */
static uint32_t tag_of(uint32_t i)
{
	return (i * 0x2545f491u) << 2 | (i * 0x9e3779b9u) >> 30;
}

static void test_counts(void **state)
{
	const uint32_t n = 200000;
	size_t bytes = core_cand_bytes(n);
	void *mem = table_memory(bytes);
	struct core_cand writer, reader;
	uint32_t i;

	assert_int_equal(core_cand_init(&writer, mem, bytes), 0);
	assert_int_equal(core_cand_attach(&reader, mem, bytes), 0);
	for (i = 0; i < n; i++)
		assert_int_equal(core_cand_add(&writer, tag_of(i)), 1);
	assert_int_equal(atomic_load(&writer.header->entries), n);
	assert_int_equal(atomic_load(&writer.header->dropped), 0);
	assert_false(core_cand_crowded(&writer));
	for (i = 0; i < n; i += 2)
		assert_int_equal(core_cand_add(&writer, tag_of(i)), 2);
	for (i = 0; i < n; i += 4)
		assert_int_equal(core_cand_add(&writer, tag_of(i)), 2);
	assert_int_equal(atomic_load(&writer.header->entries), n);
	for (i = 0; i < n; i++)
		assert_int_equal(core_cand_count(&reader, tag_of(i)), i % 2 == 0 ? 2 : 1);
	for (i = n; i < 2 * n; i++)
		assert_int_equal(core_cand_count(&reader, tag_of(i)), 0);

	core_cand_clear(&writer);
	assert_int_equal(atomic_load(&writer.header->entries), 0);
	assert_int_equal(atomic_load(&writer.header->round), 1);
	for (i = 0; i < n; i++)
		assert_int_equal(core_cand_count(&reader, tag_of(i)), 0);
	assert_int_equal(core_cand_add(&writer, tag_of(1)), 1);
	munmap(mem, bytes);
}

/* What is removed is gone, all else stays, and its room is used again. */
static void test_remove(void **state)
{
	const uint32_t n = 50000;
	size_t bytes = core_cand_bytes(n);
	void *mem = table_memory(bytes);
	struct core_cand ct;
	uint32_t i;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	for (i = 0; i < n; i++)
		core_cand_add(&ct, tag_of(i));
	assert_int_equal(atomic_load(&ct.header->twins), 0);
	for (i = 0; i < n; i += 5)
		core_cand_add(&ct, tag_of(i));
	assert_int_equal(atomic_load(&ct.header->twins), n / 5);
	for (i = 0; i < n; i += 2)
		core_cand_remove(&ct, tag_of(i));
	core_cand_remove(&ct, tag_of(n)); /* was never there */
	core_cand_remove(&ct, tag_of(0)); /* is not there any more */
	assert_int_equal(atomic_load(&ct.header->entries), n / 2);
	for (i = 0; i < n; i++)
		assert_int_equal(core_cand_count(&ct, tag_of(i)),
				 i % 2 == 0 ? 0 : i % 5 == 0 ? 2 : 1);
	for (i = 0; i < n; i += 2)
		assert_int_equal(core_cand_add(&ct, tag_of(i)), 1);
	assert_int_equal(atomic_load(&ct.header->entries), n);
	assert_int_equal(atomic_load(&ct.header->dropped), 0);
	assert_int_equal(atomic_load(&ct.header->twins), n / 5);
	munmap(mem, bytes);
}

/* All that adding writes to lies in the two places. */
static void test_places(void **state)
{
	size_t bytes = core_cand_bytes(1000);
	char *mem = table_memory(bytes), *before = malloc(bytes);
	struct core_cand ct;

	assert_non_null(before);
	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	for (uint32_t i = 0; i < 500; i++) {
		const void *place[2];
		size_t differs = 0;

		memcpy(before, mem, bytes);
		core_cand_places(&ct, tag_of(i), place);
		core_cand_add(&ct, tag_of(i));
		for (size_t at = CORE_CAND_HEADER_BYTES; at < bytes; at++) {
			size_t in_0 = (size_t)(mem + at - (const char *)place[0]);
			size_t in_1 = (size_t)(mem + at - (const char *)place[1]);

			if (before[at] == mem[at])
				continue;
			assert_true(in_0 < CORE_CAND_BUCKET_BYTES || in_1 < CORE_CAND_BUCKET_BYTES);
			differs++;
		}
		assert_true(differs > 0);
	}
	free(before);
	munmap(mem, bytes);
}

/* Tags 0 and ~0 are tags like any other. */
static void test_extreme_tags(void **state)
{
	size_t bytes = core_cand_bytes(0);
	void *mem = table_memory(bytes);
	struct core_cand ct;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	assert_int_equal(core_cand_count(&ct, 0), 0);
	assert_int_equal(core_cand_count(&ct, UINT32_MAX), 0);
	assert_int_equal(core_cand_add(&ct, 0), 1);
	assert_int_equal(core_cand_add(&ct, UINT32_MAX), 1);
	assert_int_equal(core_cand_add(&ct, 0), 2);
	assert_int_equal(core_cand_count(&ct, 0), 2);
	assert_int_equal(core_cand_count(&ct, UINT32_MAX), 1);
	munmap(mem, bytes);
}

/* Ten times too much: sightings are lost, none is invented, and it says crowded. */
static void test_overload(void **state)
{
	size_t bytes = core_cand_bytes(10000);
	void *mem = table_memory(bytes);
	struct core_cand ct;
	uint32_t room, i, seen = 0;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	room = ct.buckets * CORE_CAND_WAYS;
	for (i = 0; i < 10 * room; i++)
		assert_int_equal(core_cand_add(&ct, tag_of(i)), 1);
	assert_true(core_cand_crowded(&ct));
	assert_true(atomic_load(&ct.header->entries) <= room);
	assert_int_equal(atomic_load(&ct.header->entries) + atomic_load(&ct.header->dropped),
			 10 * room);
	for (i = 0; i < 10 * room; i++) {
		unsigned count = core_cand_count(&ct, tag_of(i));

		assert_in_range(count, 0, 1);
		seen += count;
	}
	assert_int_equal(seen, atomic_load(&ct.header->entries));
	assert_true(seen > room / 10 * 9);
	munmap(mem, bytes);
}

/* What has a twin stays while single ones pour in. */
static void test_twins_survive(void **state)
{
	size_t bytes = core_cand_bytes(10000);
	void *mem = table_memory(bytes);
	struct core_cand ct;
	const uint32_t twins = 2000;
	uint32_t i, kept = 0;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	for (i = 0; i < 2 * twins; i++)
		core_cand_add(&ct, tag_of(i / 2));
	for (i = 0; i < 20 * ct.buckets * CORE_CAND_WAYS; i++)
		core_cand_add(&ct, tag_of(twins + i));
	for (i = 0; i < twins; i++)
		kept += core_cand_count(&ct, tag_of(i)) == 2;
	assert_int_equal(kept, twins);
	munmap(mem, bytes);
}

/* Distinct for distinct i, in 32 bits, and otherwise like random tags. */
static uint32_t random_tag(uint32_t i)
{
	i = (i ^ (i >> 16)) * 0x85ebca6bu;
	i = (i ^ (i >> 13)) * 0xc2b2ae35u;
	return i ^ (i >> 16);
}

/* A table that begins small and grows in place keeps what it holds, with its counts. */
static void test_grows(void **state)
{
	const uint32_t n = 200000;
	size_t bytes = core_cand_bytes(4 * n);
	void *mem = table_memory(bytes);
	struct core_cand ct, reader;
	uint32_t i, grown = 0, lost = 0, wrong = 0;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	assert_int_equal(core_cand_attach(&reader, mem, bytes), 0);
	core_cand_begin_small(&ct, 64);
	assert_int_equal(atomic_load(&ct.header->active), 64);
	for (i = 0; i < n; i++) {
		core_cand_add(&ct, random_tag(i));
		if (i % 2)
			core_cand_add(&ct, random_tag(i));
		while (core_cand_full(&ct)) {
			core_cand_grow(&ct);
			grown++;
		}
	}
	for (i = 0; i < n; i++) {
		unsigned count = core_cand_count(&reader, random_tag(i));

		lost += count < 1 + i % 2;
		wrong += count > 1 + i % 2;
	}
	assert_in_range(grown, 5, 20);
	/* Entries and room are of one size: it followed what was added. */
	assert_true(atomic_load(&ct.header->active) * (uint64_t)CORE_CAND_WAYS < 4 * n);
	assert_true(lost <= atomic_load(&ct.header->dropped));
	assert_in_range(wrong, 0, 60); /* 2^34 pairs, 2^30 values */
	/* What an evil writer says about its size leads nobody out of the mapping. */
	atomic_store(&ct.header->active, 0xffffffffu);
	for (i = 0; i < 1000; i++)
		core_cand_count(&reader, random_tag(i));
	atomic_store(&ct.header->active, 0);
	for (i = 0; i < 1000; i++)
		core_cand_count(&reader, random_tag(i));
	munmap(mem, bytes);
}

/* A false 2 needs 30 equal bits, which is all that an entry and its places come from. */
static void test_false_twin_rate(void **state)
{
	const uint32_t n = 1u << 22;
	size_t bytes = core_cand_bytes(n);
	void *mem = table_memory(bytes);
	struct core_cand ct;
	uint32_t i, wrong = 0;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	for (i = 0; i < n; i++)
		wrong += core_cand_add(&ct, random_tag(i)) == 2;
	/* 2^22 tags make about 2^43 pairs, some 8000 of them equal in the 30 bits kept: two in
	 * a thousand pages of 16 GiB that nobody shares would get a slot for nothing. */
	print_message("# false twins: %u of %u tags\n", wrong, n);
	assert_in_range(wrong, 1, 9500);
	munmap(mem, bytes);
}

static void test_init_and_attach_refuse(void **state)
{
	size_t bytes = core_cand_bytes(100000);
	char *mem = table_memory(bytes);
	struct core_cand ct;
	struct core_cand_header good;

	assert_int_equal(core_cand_init(&ct, mem, CORE_CAND_HEADER_BYTES), -EINVAL);
	assert_int_equal(core_cand_init(&ct, mem, 0), -EINVAL);
	assert_int_equal(core_cand_init(&ct, mem + 4, bytes - 4), -EINVAL);
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO); /* nothing there yet */
	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	memcpy(&good, mem, sizeof(good));
	assert_int_equal(core_cand_attach(&ct, mem, bytes - 1), -EPROTO);
	assert_int_equal(core_cand_attach(&ct, mem, CORE_CAND_HEADER_BYTES), -EPROTO);
	assert_int_equal(core_cand_attach(&ct, mem, 0), -EPROTO);
	ct.header->magic++;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	ct.header->version++;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	ct.header->buckets *= 2;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	ct.header->buckets = 0;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	ct.header->buckets = 3;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	assert_int_equal(core_cand_attach(&ct, mem, bytes), 0);
	munmap(mem, bytes);
}

/* Garbage between two guard pages, header included: counts stay 0 to 2. */
static void test_hostile_contents(void **state)
{
	size_t guard = (size_t)sysconf(_SC_PAGESIZE);
	size_t bytes = core_cand_bytes(1000); /* a multiple of the page up to 4 KiB pages */
	size_t span = (bytes + guard - 1) & ~(guard - 1);
	char *area = table_memory(span + 2 * guard);
	char *mem = area + guard + (span - bytes);
	struct core_cand ct;
	size_t i;

	assert_int_equal(mprotect(area, guard, PROT_NONE), 0);
	assert_int_equal(mprotect(area + guard + span, guard, PROT_NONE), 0);
	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	assert_int_equal(core_cand_attach(&ct, mem, bytes), 0);
	for (i = 0; i < bytes; i++)
		mem[i] = (char)unit_random(&random_state);
	for (i = 0; i < 1000000; i++)
		assert_in_range(core_cand_count(&ct, (uint32_t)unit_random(&random_state)), 0, 2);
	memset(mem, 0xff, bytes);
	assert_int_equal(core_cand_count(&ct, UINT32_MAX), 2);
	munmap(area, span + 2 * guard);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counts),
		cmocka_unit_test(test_remove),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_extreme_tags),
		cmocka_unit_test(test_overload),
		cmocka_unit_test(test_twins_survive),
		cmocka_unit_test(test_grows),
		cmocka_unit_test(test_false_twin_rate),
		cmocka_unit_test(test_init_and_attach_refuse),
		cmocka_unit_test(test_hostile_contents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
