/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: pages that have twins are not promoted (counts lost though there
 * is room), pages without twins are (the store fills with what nobody shares), an
 * overloaded table starts to invent sightings, or a broker's broken table leads
 * a client outside of its mapping (I4). How a table grows: unit-candidates-grow.c.
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

#define TAGS 450000u
static uint32_t tags[TAGS];

/* Such as the table can tell from each other: two tags in 2^31 are one to it. */
static int make_tags(void **state)
{
	size_t bytes = core_cand_bytes(4 * TAGS);
	void *mem = table_memory(bytes);
	struct core_cand ct;
	uint32_t n = 0, tried = 0;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	while (n < TAGS) {
		tags[n] = tried++ * 0x2545f491u;
		n += core_cand_add(&ct, tags[n]) == 1;
	}
	assert_in_range(tried - n, 10, 150); /* 2^37 pairs */
	munmap(mem, bytes);
	return 0;
}

static uint32_t tag_of(uint32_t i)
{
	assert_true(i < TAGS);
	return tags[i];
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

/* A false 2 needs 31 equal bits. */
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
	/* 2^22 tags make about 2^43 pairs, some 4000 of them taken for each other: one in a
	 * thousand pages of 16 GiB that nobody shares would get a slot for nothing. */
	print_message("# false twins: %u of %u tags\n", wrong, n);
	assert_in_range(wrong, 1, 4800);
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
	assert_int_equal(core_cand_attach(&ct, mem, core_cand_bytes(0) - 1), -EPROTO);
	assert_int_equal(core_cand_attach(&ct, mem, 0), -EPROTO);
	ct.header->magic++;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	ct.header->version++;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	ct.header->buckets *= 2;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	ct.header->buckets = CORE_CAND_ROW / 2;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	ct.header->buckets = 0;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	ct.header->buckets = CORE_CAND_ROW + 1;
	assert_int_equal(core_cand_attach(&ct, mem, bytes), -EPROTO);
	memcpy(mem, &good, sizeof(good));
	assert_int_equal(core_cand_attach(&ct, mem, bytes), 0);
	munmap(mem, bytes);
}

/* Who reported it, whether he is still there, and whether somebody else had before. */
static void test_who(void **state)
{
	size_t bytes = core_cand_bytes(1000);
	void *mem = table_memory(bytes);
	struct core_cand ct, reader;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	assert_int_equal(core_cand_attach(&reader, mem, bytes), 0);
	for (unsigned who = 1; who <= CORE_CAND_WHO_MAX; who++) {
		core_cand_here(&ct, who, true);
		assert_false(core_cand_report(&ct, tag_of(who), who));
	}
	for (unsigned who = 1; who <= CORE_CAND_WHO_MAX; who++) {
		assert_int_equal(core_cand_seen(&reader, tag_of(who), who), CORE_CAND_OWN);
		assert_int_equal(core_cand_seen(&reader, tag_of(who), who ^ 1), CORE_CAND_OTHER);
		assert_int_equal(core_cand_seen(&reader, tag_of(who + 1000), who), CORE_CAND_NOBODY);
	}
	/* His own once more is no second page, but he is to look for one. */
	assert_int_equal(atomic_load(&ct.header->twins), 0);
	assert_true(core_cand_report(&ct, tag_of(1), 1));
	assert_int_equal(core_cand_seen(&reader, tag_of(1), 1), CORE_CAND_OWN_TWICE);
	assert_false(core_cand_report(&ct, tag_of(1), 1));
	assert_int_equal(atomic_load(&ct.header->twins), 1);
	/* Another's is one, for both of them. */
	assert_true(core_cand_report(&ct, tag_of(2), 3));
	assert_int_equal(core_cand_seen(&reader, tag_of(2), 2), CORE_CAND_OTHER);
	assert_int_equal(core_cand_seen(&reader, tag_of(2), 3), CORE_CAND_OWN_TWICE);
	/* What is of nobody who is there counts as nothing. */
	core_cand_here(&ct, 5, false);
	assert_int_equal(core_cand_seen(&reader, tag_of(5), 6), CORE_CAND_NOBODY);
	assert_false(core_cand_report(&ct, tag_of(5), 6));
	assert_int_equal(core_cand_seen(&reader, tag_of(5), 6), CORE_CAND_OWN);
	assert_int_equal(core_cand_seen(&reader, tag_of(5), 7), CORE_CAND_OTHER);
	/* Of two, the last one is gone: the first hears of a third. */
	core_cand_here(&ct, 3, false);
	assert_int_equal(core_cand_seen(&reader, tag_of(2), 2), CORE_CAND_NOBODY);
	assert_true(core_cand_report(&ct, tag_of(2), 9));
	assert_int_equal(core_cand_seen(&reader, tag_of(2), 2), CORE_CAND_OTHER);
	munmap(mem, bytes);
}

/* What is of those who are gone goes, and nothing else. */
static void test_sweep(void **state)
{
	const uint32_t n = 20000;
	size_t bytes = core_cand_bytes(n);
	void *mem = table_memory(bytes);
	struct core_cand ct;

	assert_int_equal(core_cand_init(&ct, mem, bytes), 0);
	for (unsigned who = 1; who <= 4; who++)
		core_cand_here(&ct, who, true);
	for (uint32_t i = 0; i < n; i++)
		core_cand_report(&ct, tag_of(i), 1 + i % 4);
	core_cand_here(&ct, 2, false);
	core_cand_here(&ct, 3, false);
	core_cand_sweep(&ct, 0, ct.buckets);
	assert_int_equal(atomic_load(&ct.header->entries), n / 2);
	core_cand_here(&ct, 2, true);
	core_cand_here(&ct, 3, true);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(core_cand_seen(&ct, tag_of(i), 9),
				 i % 4 == 1 || i % 4 == 2 ? CORE_CAND_NOBODY : CORE_CAND_OTHER);
	munmap(mem, bytes);
}

/* Garbage between two guard pages, header included: counts stay 0 to 2. */
static void test_hostile_contents(void **state)
{
	size_t guard = (size_t)sysconf(_SC_PAGESIZE);
	size_t bytes = core_cand_bytes(1000);
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
		core_cand_seen(&ct, (uint32_t)unit_random(&random_state), 1 + i % CORE_CAND_WHO_MAX);
	for (i = 0; i < 1000000; i++)
		assert_in_range(core_cand_count(&ct, (uint32_t)unit_random(&random_state)), 0, 2);
	memset(mem, 0xff, bytes);
	for (i = 0; i < 1000; i++)
		assert_in_range(core_cand_count(&ct, (uint32_t)unit_random(&random_state)), 0, 2);
	munmap(area, span + 2 * guard);
}

int main(void)
{
	const struct CMUnitTest cases[] = {
		cmocka_unit_test(test_counts),
		cmocka_unit_test(test_remove),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_extreme_tags),
		cmocka_unit_test(test_overload),
		cmocka_unit_test(test_twins_survive),
		cmocka_unit_test(test_false_twin_rate),
		cmocka_unit_test(test_who),
		cmocka_unit_test(test_sweep),
		cmocka_unit_test(test_init_and_attach_refuse),
		cmocka_unit_test(test_hostile_contents),
	};

	return cmocka_run_group_tests(cases, make_tags, NULL);
}
