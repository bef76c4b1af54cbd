/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Candidate table.
 *
 * A tag's bits are mixed first, one to one. The lower ten say where in a row of 1024
 * buckets it goes, and an entry keeps the other 22. Of these so many as there are rows say
 * which row, so a table grows from what it holds. The second choice lies in the same row, at a
 * distance that the 22 bits say. Two tags at that distance are mistaken for each other (31
 * bits of the tag count). A wrong twin costs one slot that nobody shares, a lost one a merge
 * that comes later (I2 does not depend on either).
 *
 * Entry: 22 bits of the tag, 9 bits who (0: empty), 1 bit "another one before" (TWICE). The
 * table of rounds has one who for all.
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

#define CAND_VERSION 2
#define CAND_BUCKETS_MAX (1u << 30)
#define CAND_LOAD_PERCENT 75
#define CAND_FULL_PERCENT 85 /* two choices of sixteen: hardly anything is dropped yet */
#define CAND_ROW (CORE_CAND_BUCKETS_MIN - 1)
#define CAND_TAG_MASK (~CAND_ROW)
#define CAND_WHO_MASK (CAND_ROW & ~CAND_TWICE)
#define CAND_WHO_SHIFT 1
#define CAND_TWICE 1u
#define CAND_ANYBODY 1u /* in the table of rounds */

_Static_assert(sizeof(struct core_cand_header) <= CORE_CAND_HEADER_BYTES, "header too long");
_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "entries are plain words");

_Static_assert(CAND_WHO_MASK >> CAND_WHO_SHIFT == CORE_CAND_WHO_MAX, "who fits");

/* One to one, so that nothing is lost of the tag. */
static uint32_t cand_mix(uint32_t x)
{
	x = (x ^ (x >> 16)) * 0x7feb352du;
	x = (x ^ (x >> 15)) * 0x846ca68bu;
	return x ^ (x >> 16);
}

struct cand_pair {
	_Atomic uint32_t *bucket[2];
	uint32_t kept; /* of the mixed tag, in an entry's place */
};

static uint32_t cand_apart(uint32_t kept)
{
	return (((kept >> 10) * 0x9e3779b1u) >> 22 & CAND_ROW) | 1;
}

static struct cand_pair cand_buckets(const struct core_cand *ct, uint32_t tag)
{
	uint32_t x = cand_mix(tag);
	/* Whatever the header says: within what is mapped. */
	uint32_t mask = (atomic_load_explicit(&ct->header->active, memory_order_relaxed) - 1) &
			(ct->buckets - 1);
	struct cand_pair pair = { .kept = x & CAND_TAG_MASK };
	uint32_t first = x & mask;

	pair.bucket[0] = ct->entries + (size_t)first * CORE_CAND_WAYS;
	pair.bucket[1] = ct->entries + (size_t)(first ^ cand_apart(pair.kept)) * CORE_CAND_WAYS;
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
	uint64_t buckets = CORE_CAND_BUCKETS_MIN;
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
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_BUCKETS_MIN * CORE_CAND_BUCKET_BYTES)
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
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_BUCKETS_MIN * CORE_CAND_BUCKET_BYTES)
		return -EPROTO;
	/* Read once: the other side may change it under our hands. */
	buckets = header->buckets;
	if (header->magic != CORE_CAND_MAGIC || header->version != CAND_VERSION)
		return -EPROTO;
	if (buckets < CORE_CAND_BUCKETS_MIN || (buckets & (buckets - 1)) != 0 ||
	    buckets > (bytes - CORE_CAND_HEADER_BYTES) / CORE_CAND_BUCKET_BYTES)
		return -EPROTO;
	cand_view(ct, (void *)(uintptr_t)mem, buckets);
	return 0;
}

static _Atomic uint32_t *cand_find(const struct cand_pair *pair)
{
	unsigned i;

	for (i = 0; i < 2 * CORE_CAND_WAYS; i++) {
		_Atomic uint32_t *entry = &pair->bucket[i / CORE_CAND_WAYS][i % CORE_CAND_WAYS];
		uint32_t value = cand_load(entry);

		if ((value & CAND_WHO_MASK) != 0 && (value & CAND_TAG_MASK) == pair->kept)
			return entry;
	}
	return NULL;
}

static bool cand_is_here(const struct core_cand *ct, unsigned who)
{
	return atomic_load_explicit(&ct->header->here[who / 64], memory_order_relaxed) >> who % 64 & 1;
}

static unsigned cand_who(uint32_t value)
{
	return (value & CAND_WHO_MASK) >> CAND_WHO_SHIFT;
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

		if (!(cand_load(entry) & CAND_TWICE))
			return entry;
		if (!victim)
			victim = entry;
	}
	return victim;
}

static void cand_put(struct core_cand *ct, const struct cand_pair *pair, unsigned who)
{
	_Atomic uint32_t *entry = cand_find_room(pair);

	if (entry) {
		counter_add(&ct->header->entries, 1);
	} else {
		entry = cand_find_victim(ct, pair);
		counter_add(&ct->header->dropped, 1);
	}
	cand_store(entry, pair->kept | who << CAND_WHO_SHIFT);
}

/* Who sees that `twins` has moved finds the entry. */
static void cand_twice(struct core_cand *ct, _Atomic uint32_t *entry, uint32_t value)
{
	cand_store(entry, value | CAND_TWICE);
	atomic_fetch_add_explicit(&ct->header->twins, 1, memory_order_release);
}

unsigned core_cand_add(struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair);

	if (!entry) {
		cand_put(ct, &pair, CAND_ANYBODY);
		return 1;
	}
	cand_twice(ct, entry, cand_load(entry));
	return 2;
}

bool core_cand_report(struct core_cand *ct, uint32_t tag, unsigned who)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair);
	uint32_t value;

	if (!entry) {
		cand_put(ct, &pair, who);
		return false;
	}
	value = cand_load(entry);
	if (cand_who(value) == who && (value & CAND_TWICE))
		return false;
	/* One who is gone has no page, but one before may still be here, and has to be told. */
	if (!(value & CAND_TWICE) && !cand_is_here(ct, cand_who(value)) && cand_who(value) != who) {
		cand_store(entry, pair.kept | who << CAND_WHO_SHIFT);
		return false;
	}
	cand_twice(ct, entry, pair.kept | who << CAND_WHO_SHIFT);
	return true;
}

void core_cand_here(struct core_cand *ct, unsigned who, bool here)
{
	_Atomic uint64_t *word = &ct->header->here[who / 64];
	uint64_t bit = UINT64_C(1) << who % 64, value;

	value = atomic_load_explicit(word, memory_order_relaxed);
	atomic_store_explicit(word, here ? value | bit : value & ~bit, memory_order_relaxed);
}

void core_cand_sweep(struct core_cand *ct, uint32_t first, uint32_t count)
{
	_Atomic uint32_t *entry = ct->entries + (size_t)first * CORE_CAND_WAYS;
	uint64_t gone = 0;

	for (size_t n = (size_t)count * CORE_CAND_WAYS; n > 0; n--, entry++) {
		uint32_t value = cand_load(entry);

		if (value == 0 || cand_is_here(ct, cand_who(value)))
			continue;
		cand_store(entry, 0);
		gone++;
	}
	counter_add(&ct->header->entries, -gone);
}

enum core_cand_seen core_cand_seen(const struct core_cand *ct, uint32_t tag, unsigned who)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair);
	uint32_t value = entry ? cand_load(entry) : 0;
	unsigned whose = cand_who(value);

	if (whose == 0 || !cand_is_here(ct, whose))
		return CORE_CAND_NOBODY;
	if (whose != who)
		return CORE_CAND_OTHER;
	return value & CAND_TWICE ? CORE_CAND_OWN_TWICE : CORE_CAND_OWN;
}

void core_cand_remove(struct core_cand *ct, uint32_t tag)
{
	struct cand_pair pair = cand_buckets(ct, tag);
	_Atomic uint32_t *entry = cand_find(&pair);

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
	_Atomic uint32_t *entry = cand_find(&pair);

	return !entry ? 0 : cand_load(entry) & CAND_TWICE ? 2 : 1;
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
	if (buckets < CORE_CAND_BUCKETS_MIN)
		buckets = CORE_CAND_BUCKETS_MIN;
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

		/* `by` is a whole number of rows, and both places are in the same one. */
		if (value == 0 || !(value & CAND_TAG_MASK & by))
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
