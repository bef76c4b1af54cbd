/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Candidate table.
 *
 * An entry keeps the upper 30 bits of the tag, and both buckets come from those: tags that
 * differ only in the other two are mistaken for each other. A wrong
 * count of 2 costs one slot that nobody shares, a lost count one merge that
 * comes later (I2 does not depend on either).
 *
 * The clock hand is the number of drops ever: it moves on by one with each. From the
 * hand on, a page seen once is dropped before one seen twice: what is known to
 * have a twin is what the table is for.
 *
 * The writer is alone; readers see single 32-bit entries, whole, at any age.
 * They take the table's size from their own struct core_cand, checked in
 * attach against what is mapped, and never from the header again (I4).
 */
#include "core/candidates.h"

#include <errno.h>

#define CAND_VERSION 1
#define CAND_BUCKETS_MIN 64u
#define CAND_BUCKETS_MAX (1u << 30)
#define CAND_LOAD_PERCENT 75
#define CAND_FULL_PERCENT 85 /* two choices of sixteen: hardly anything is dropped yet */
#define CAND_COUNT_MASK 3u

_Static_assert(sizeof(struct core_cand_header) <= CORE_CAND_HEADER_BYTES, "header too long");
_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "entries are plain words");

/* Of the bits that an entry keeps, so that a table can grow from what it holds. */
static uint64_t cand_mix(uint32_t tag)
{
	uint64_t x = ((tag | CAND_COUNT_MASK) + 1ull) * 0x9e3779b97f4a7c15ull;

	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ull;
	return x ^ (x >> 32);
}

struct cand_pair {
	_Atomic uint32_t *bucket[2];
};

static struct cand_pair cand_buckets(const struct core_cand *ct, uint32_t tag)
{
	uint64_t x = cand_mix(tag);
	/* Whatever the header says: within what is mapped. */
	uint32_t mask = (atomic_load_explicit(&ct->header->active, memory_order_relaxed) - 1) &
			(ct->buckets - 1);
	struct cand_pair pair;

	pair.bucket[0] = ct->entries + (size_t)((uint32_t)x & mask) * CORE_CAND_WAYS;
	pair.bucket[1] = ct->entries + (size_t)((uint32_t)(x >> 32) & mask) * CORE_CAND_WAYS;
	return pair;
}

static uint32_t cand_load(_Atomic uint32_t *entry)
{
	return atomic_load_explicit(entry, memory_order_relaxed);
}

static void cand_store(_Atomic uint32_t *entry, uint32_t value)
{
	atomic_store_explicit(entry, value, memory_order_relaxed);
}

/* The writer is alone: no locked instruction needed to count. */
static void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

size_t core_cand_bytes(uint64_t max_pages)
{
	uint64_t buckets = CAND_BUCKETS_MIN;
	uint64_t pages_per_4_buckets = 4ull * CORE_CAND_WAYS * CAND_LOAD_PERCENT / 100;

	while (buckets < CAND_BUCKETS_MAX && buckets / 4 * pages_per_4_buckets < max_pages)
		buckets *= 2;
	return CORE_CAND_HEADER_BYTES + (size_t)buckets * CORE_CAND_BUCKET_BYTES;
}

static void cand_view(struct core_cand *ct, void *mem, uint32_t buckets)
{
	ct->header = mem;
	ct->entries = (_Atomic uint32_t *)((char *)mem + CORE_CAND_HEADER_BYTES);
	ct->buckets = buckets;
}

/* mem is zeroed, as fresh shared memory is. -EINVAL: too small, not aligned. */
int core_cand_init(struct core_cand *ct, void *mem, size_t bytes)
{
	size_t room;
	uint32_t buckets = 1;

	if (!mem || (uintptr_t)mem % CORE_CAND_BUCKET_BYTES != 0 ||
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_BUCKET_BYTES)
		return -EINVAL;
	room = (bytes - CORE_CAND_HEADER_BYTES) / CORE_CAND_BUCKET_BYTES;
	while (buckets < CAND_BUCKETS_MAX && buckets * (size_t)2 <= room)
		buckets *= 2;
	cand_view(ct, mem, buckets);
	ct->header->version = CAND_VERSION;
	ct->header->buckets = buckets;
	atomic_store_explicit(&ct->header->active, buckets, memory_order_relaxed);
	atomic_store_explicit(&ct->header->entries, 0, memory_order_relaxed);
	atomic_store_explicit(&ct->header->dropped, 0, memory_order_relaxed);
	atomic_store_explicit(&ct->header->round, 0, memory_order_relaxed);
	atomic_store_explicit(&ct->header->twins, 0, memory_order_relaxed);
	ct->header->magic = CORE_CAND_MAGIC;
	return 0;
}

/* -EPROTO: not a candidate table of this version, or longer than its mapping. */
int core_cand_attach(struct core_cand *ct, const void *mem, size_t bytes)
{
	const volatile struct core_cand_header *header = mem;
	uint32_t buckets;

	if (!mem || (uintptr_t)mem % CORE_CAND_BUCKET_BYTES != 0 ||
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_BUCKET_BYTES)
		return -EPROTO;
	/* Read once: the other side may change it under our hands. */
	buckets = header->buckets;
	if (header->magic != CORE_CAND_MAGIC || header->version != CAND_VERSION)
		return -EPROTO;
	if (buckets == 0 || (buckets & (buckets - 1)) != 0 ||
	    buckets > (bytes - CORE_CAND_HEADER_BYTES) / CORE_CAND_BUCKET_BYTES)
		return -EPROTO;
	cand_view(ct, (void *)(uintptr_t)mem, buckets);
	return 0;
}

static _Atomic uint32_t *cand_find(const struct cand_pair *pair, uint32_t tag)
{
	unsigned i;

	for (i = 0; i < 2 * CORE_CAND_WAYS; i++) {
		_Atomic uint32_t *entry = &pair->bucket[i / CORE_CAND_WAYS][i % CORE_CAND_WAYS];
		uint32_t value = cand_load(entry);

		if ((value & CAND_COUNT_MASK) != 0 && ((value ^ tag) & ~CAND_COUNT_MASK) == 0)
			return entry;
	}
	return NULL;
}

/* An empty entry of the emptier bucket, or NULL. */
static _Atomic uint32_t *cand_find_room(const struct cand_pair *pair)
{
	_Atomic uint32_t *room[2] = { NULL, NULL };
	unsigned used[2] = { 0, 0 };
	unsigned b, way;

	for (b = 0; b < 2; b++) {
		for (way = 0; way < CORE_CAND_WAYS; way++) {
			if (cand_load(&pair->bucket[b][way]) != 0)
				used[b]++;
			else if (!room[b])
				room[b] = &pair->bucket[b][way];
		}
	}
	return used[0] <= used[1] ? room[0] : room[1];
}

static _Atomic uint32_t *cand_find_victim(struct core_cand *ct, const struct cand_pair *pair)
{
	uint64_t hand = atomic_load_explicit(&ct->header->dropped, memory_order_relaxed);
	_Atomic uint32_t *victim = NULL;
	unsigned i;

	for (i = 0; i < 2 * CORE_CAND_WAYS; i++) {
		unsigned at = (unsigned)(hand + i) % (2 * CORE_CAND_WAYS);
		_Atomic uint32_t *entry = &pair->bucket[at / CORE_CAND_WAYS][at % CORE_CAND_WAYS];

		if ((cand_load(entry) & CAND_COUNT_MASK) == 1)
			return entry;
		if (!victim)
			victim = entry;
	}
	return victim;
}

unsigned core_cand_add(struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair, tag);
	uint32_t value = (tag & ~CAND_COUNT_MASK) | 1;

	if (entry) {
		cand_store(entry, (tag & ~CAND_COUNT_MASK) | 2);
		/* Who sees that it has moved finds the entry. */
		atomic_fetch_add_explicit(&ct->header->twins, 1, memory_order_release);
		return 2;
	}
	entry = cand_find_room(&pair);
	if (entry) {
		counter_add(&ct->header->entries, 1);
	} else {
		entry = cand_find_victim(ct, &pair);
		counter_add(&ct->header->dropped, 1);
	}
	cand_store(entry, value);
	return 1;
}

void core_cand_remove(struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair, tag);

	if (!entry)
		return;
	cand_store(entry, 0);
	counter_add(&ct->header->entries, UINT64_MAX); /* one less */
}

void core_cand_places(const struct core_cand *ct, uint32_t tag, const void *place[2])
{
	struct cand_pair pair = cand_buckets(ct, tag);

	place[0] = pair.bucket[0];
	place[1] = pair.bucket[1];
}

void core_cand_prefetch(const struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);

	__builtin_prefetch(pair.bucket[0]);
	__builtin_prefetch(pair.bucket[1]);
}

unsigned core_cand_count(const struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair, tag);
	unsigned count = entry ? cand_load(entry) & CAND_COUNT_MASK : 0;

	return count > 2 ? 2 : count;
}

void core_cand_clear(struct core_cand *ct)
{
	size_t n = (size_t)ct->buckets * CORE_CAND_WAYS;
	size_t i;

	for (i = 0; i < n; i++)
		cand_store(&ct->entries[i], 0);
	atomic_store_explicit(&ct->header->entries, 0, memory_order_relaxed);
	counter_add(&ct->header->round, 1);
}

void core_cand_begin_small(struct core_cand *ct, uint32_t buckets)
{
	if (buckets > ct->buckets)
		buckets = ct->buckets;
	atomic_store_explicit(&ct->header->active, buckets, memory_order_relaxed);
}

bool core_cand_full(const struct core_cand *ct)
{
	uint64_t active = atomic_load_explicit(&ct->header->active, memory_order_relaxed);
	uint64_t entries = atomic_load_explicit(&ct->header->entries, memory_order_relaxed);

	return active < ct->buckets &&
	       entries > active * CORE_CAND_WAYS * CAND_FULL_PERCENT / 100;
}

/* The entries of bucket b that belong `by` buckets further on, now that there are some. */
static void cand_split(struct core_cand *ct, uint32_t b, uint32_t by)
{
	_Atomic uint32_t *from = ct->entries + (size_t)b * CORE_CAND_WAYS;
	_Atomic uint32_t *to = from + (size_t)by * CORE_CAND_WAYS;

	for (unsigned i = 0; i < CORE_CAND_WAYS; i++) {
		uint32_t value = cand_load(&from[i]);
		struct cand_pair pair;

		if (value == 0)
			continue;
		pair = cand_buckets(ct, value);
		if (pair.bucket[0] == from || pair.bucket[1] == from)
			continue;
		cand_store(&to[i], value);
		cand_store(&from[i], 0);
	}
}

void core_cand_grow(struct core_cand *ct)
{
	uint32_t active = atomic_load_explicit(&ct->header->active, memory_order_relaxed);

	if (active >= ct->buckets)
		return;
	/* Readers may miss what moves just then; they ask again when it is reported twice. */
	atomic_store_explicit(&ct->header->active, active * 2, memory_order_relaxed);
	for (uint32_t b = 0; b < active; b++)
		cand_split(ct, b, active);
}

bool core_cand_crowded(const struct core_cand *ct)
{
	uint64_t room = (uint64_t)ct->buckets * CORE_CAND_WAYS;
	uint64_t entries = atomic_load_explicit(&ct->header->entries, memory_order_relaxed);

	return entries > room * CAND_LOAD_PERCENT / 100;
}
