/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Candidate table.
 *
 * A tag's bits are mixed first, one to one. The lower ten say where in a row of 1024
 * buckets it goes, and an entry keeps the other 22. These, as a part of 2^22, say which row:
 * that part of the rows in use. So a table grows from what it holds, and entries only ever
 * move up. The second choice lies in the same row, at a
 * distance that the 22 bits say. Two tags at that distance are mistaken for each other (31
 * bits of the tag count). A wrong twin costs one slot that nobody shares, a lost one a merge
 * that comes later (I2 does not depend on either).
 *
 * Entry: 22 bits of the tag, 9 bits who (0: empty), 1 bit "another one before" (TWICE). The
 * table of rounds has one who for all.
 *
 * Growth goes by whole rows, the last one first: what it holds moves to where it belongs among
 * `next` rows, which have room there already, and `left` says down to which row that is
 * done. Steps are made as entries come, so that the last is made when the rows left have
 * CAND_LAST_PERCENT.
 *
 * The clock hand is the number of drops ever: it moves on by one with each. From the
 * hand on, a page seen once is dropped before one seen twice: what is known to
 * have a twin is what the table is for.
 *
 * The writer is alone; readers see single 32-bit entries, whole, at any age.
 * They take the table's size from their own struct core_cand, checked in
 * attach against what is mapped, and never from the header again; the shape is read once
 * for each look and cut down to that size (I4).
 */
#include "core/candidates.h"

#include <errno.h>

#define CAND_VERSION 3
#define CAND_ROWS_MAX (1u << 20)
#define CAND_LOAD_PERCENT 75
#define CAND_FULL_PERCENT 84 /* two choices of sixteen: hardly anything is dropped yet, */
#define CAND_LAST_PERCENT 87 /* nor then */
#define CAND_GROWTH 8u       /* by an eighth, one row at least */
#define CAND_MOVED_WAYS 13u  /* of a bucket, filled without a look at the other one */
#define CAND_PLACE_BITS 10
#define CAND_TAG_BITS (32 - CAND_PLACE_BITS)
#define CAND_PLACE_MASK (CORE_CAND_ROW - 1)
#define CAND_TAG_MASK (~CAND_PLACE_MASK)
#define CAND_WHO_MASK (CAND_PLACE_MASK & ~CAND_TWICE)
#define CAND_WHO_SHIFT 1
#define CAND_TWICE 1u
#define CAND_ANYBODY 1u /* in the table of rounds */

_Static_assert(sizeof(struct core_cand_header) <= CORE_CAND_HEADER_BYTES, "header too long");
_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "entries are plain words");
_Static_assert(CORE_CAND_ROW == 1u << CAND_PLACE_BITS, "a place in a row");
_Static_assert(CAND_WHO_MASK >> CAND_WHO_SHIFT == CORE_CAND_WHO_MAX, "who fits");

/* One to one, so that nothing is lost of the tag. */
static uint32_t cand_mix(uint32_t x)
{
	x = (x ^ (x >> 16)) * 0x7feb352du;
	x = (x ^ (x >> 15)) * 0x846ca68bu;
	return x ^ (x >> 16);
}

struct cand_shape {
	uint32_t rows; /* in use */
	uint32_t next; /* after the growth that is under way or comes next */
	uint32_t left; /* rows from here on have been moved already; none: rows */
};

/* Whatever the header says: rows and next are 1 at least, and within what is mapped. */
static struct cand_shape cand_shape(const struct core_cand *ct)
{
	uint64_t word = atomic_load_explicit(&ct->header->shape, memory_order_relaxed);
	uint32_t most = ct->buckets / CORE_CAND_ROW;
	struct cand_shape s = { .rows = (uint32_t)(word >> 32), .left = (uint32_t)word };

	if (s.rows == 0 || s.rows > most)
		s.rows = most;
	s.next = s.rows + (s.rows + CAND_GROWTH - 1) / CAND_GROWTH;
	if (s.next > most)
		s.next = most;
	/* The writer goes by it as well, and others may have written there (I4). */
	if (s.left == 0 || s.left > s.rows)
		s.left = s.rows;
	return s;
}

static void cand_set_shape(struct core_cand *ct, uint32_t rows, uint32_t left)
{
	atomic_store_explicit(&ct->header->shape, (uint64_t)rows << 32 | left,
			      memory_order_relaxed);
}

/* kept: 22 bits in their place. Less than `rows`. */
static uint32_t cand_row_of(uint32_t kept, uint32_t rows)
{
	return (uint32_t)((uint64_t)(kept >> CAND_PLACE_BITS) * rows >> CAND_TAG_BITS);
}

static uint32_t cand_row(const struct cand_shape *s, uint32_t kept)
{
	uint32_t row = cand_row_of(kept, s->rows);

	return row < s->left ? row : cand_row_of(kept, s->next);
}

struct cand_pair {
	_Atomic uint32_t *bucket[2];
	uint32_t kept; /* of the mixed tag, in an entry's place */
};

static uint32_t cand_apart(uint32_t kept)
{
	return (((kept >> CAND_PLACE_BITS) * 0x9e3779b1u) >> CAND_TAG_BITS & CAND_PLACE_MASK) | 1;
}

static _Atomic uint32_t *cand_bucket(const struct core_cand *ct, uint32_t row, uint32_t place)
{
	return ct->entries + ((size_t)row * CORE_CAND_ROW + place) * CORE_CAND_WAYS;
}

/* `place`: one of its two, in that row. */
static struct cand_pair cand_pair(const struct core_cand *ct, uint32_t row, uint32_t place,
				  uint32_t kept)
{
	return (struct cand_pair){ .kept = kept,
				   .bucket = { cand_bucket(ct, row, place),
					       cand_bucket(ct, row, place ^ cand_apart(kept)) } };
}

static struct cand_pair cand_buckets(const struct core_cand *ct, uint32_t tag)
{
	struct cand_shape s = cand_shape(ct);
	uint32_t x = cand_mix(tag), kept = x & CAND_TAG_MASK;

	return cand_pair(ct, cand_row(&s, kept), x & CAND_PLACE_MASK, kept);
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
	uint64_t row_pages = (uint64_t)CORE_CAND_ROW * CORE_CAND_WAYS * CAND_LOAD_PERCENT / 100;
	uint64_t rows = max_pages / row_pages + 1;

	if (rows > CAND_ROWS_MAX)
		rows = CAND_ROWS_MAX;
	return CORE_CAND_HEADER_BYTES + (size_t)rows * CORE_CAND_ROW_BYTES;
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
	size_t rows;

	if (!mem || (uintptr_t)mem % CORE_CAND_BUCKET_BYTES != 0 ||
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_ROW_BYTES)
		return -EINVAL;
	rows = (bytes - CORE_CAND_HEADER_BYTES) / CORE_CAND_ROW_BYTES;
	if (rows > CAND_ROWS_MAX)
		rows = CAND_ROWS_MAX;
	cand_view(ct, mem, (uint32_t)rows * CORE_CAND_ROW);
	ct->header->version = CAND_VERSION;
	ct->header->buckets = ct->buckets;
	cand_set_shape(ct, (uint32_t)rows, (uint32_t)rows);
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
	    bytes < CORE_CAND_HEADER_BYTES + CORE_CAND_ROW_BYTES)
		return -EPROTO;
	/* Read once: the other side may change it under our hands. */
	buckets = header->buckets;
	if (header->magic != CORE_CAND_MAGIC || header->version != CAND_VERSION)
		return -EPROTO;
	if (buckets < CORE_CAND_ROW || buckets % CORE_CAND_ROW != 0 ||
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

/* True: there is an entry more; false: for another one. */
static bool cand_put(struct core_cand *ct, const struct cand_pair *pair, uint32_t value)
{
	_Atomic uint32_t *entry = cand_find_room(pair);
	bool more = entry;

	if (!more) {
		entry = cand_find_victim(ct, pair);
		counter_add(&ct->header->dropped, 1);
	}
	cand_store(entry, value);
	return more;
}

static void cand_put_new(struct core_cand *ct, const struct cand_pair *pair, unsigned who)
{
	if (cand_put(ct, pair, pair->kept | who << CAND_WHO_SHIFT))
		counter_add(&ct->header->entries, 1);
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
		cand_put_new(ct, &pair, CAND_ANYBODY);
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
		cand_put_new(ct, &pair, who);
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

/* Growth --------------------------------------------------------------------- */

void core_cand_begin_small(struct core_cand *ct)
{
	cand_set_shape(ct, 1, 1);
}

uint32_t core_cand_used(const struct core_cand *ct)
{
	struct cand_shape s = cand_shape(ct);

	return (s.left < s.rows ? s.next : s.rows) * CORE_CAND_ROW;
}

bool core_cand_full(const struct core_cand *ct)
{
	struct cand_shape s = cand_shape(ct);
	uint64_t entries = atomic_load_explicit(&ct->header->entries, memory_order_relaxed);
	/* The more of it is done, the more must have come for the next step. */
	uint64_t full = (uint64_t)CAND_FULL_PERCENT * s.rows +
			(uint64_t)(CAND_LAST_PERCENT - CAND_FULL_PERCENT) * (s.rows - s.left);

	return s.next > s.rows && entries * 100 > full * CORE_CAND_ROW * CORE_CAND_WAYS;
}

bool core_cand_step(const struct core_cand *ct, struct core_cand_step *step)
{
	struct cand_shape s = cand_shape(ct);
	uint64_t row = s.left - 1, first, end;

	if (s.next == s.rows)
		return false;
	first = row * s.next / s.rows;
	end = ((row + 1) * s.next + s.rows - 1) / s.rows;
	step->from = (uint32_t)row * CORE_CAND_ROW;
	step->to = (uint32_t)first * CORE_CAND_ROW;
	step->to_count = (uint32_t)(end - first) * CORE_CAND_ROW;
	return true;
}

/* Mostly to the same place of its new row: that costs least, and one of its two it is anyway. */
static void cand_move(struct core_cand *ct, _Atomic uint32_t *entry, uint32_t row, uint32_t place)
{
	uint32_t value = cand_load(entry);
	struct cand_pair pair = cand_pair(ct, row, place, value & CAND_TAG_MASK);

	cand_store(entry, 0);
	for (unsigned way = 0; way < CAND_MOVED_WAYS; way++) {
		if (cand_load(&pair.bucket[0][way]) == 0) {
			cand_store(&pair.bucket[0][way], value);
			return;
		}
	}
	if (!cand_put(ct, &pair, value))
		counter_add(&ct->header->entries, UINT64_MAX); /* one less */
}

void core_cand_grow(struct core_cand *ct)
{
	struct cand_shape s = cand_shape(ct);
	uint32_t row = s.left - 1;

	if (s.next == s.rows)
		return;
	/* Readers may miss what moves just then; they ask again when it is reported twice. */
	cand_set_shape(ct, s.rows, row);
	for (uint32_t at = 0; at < CORE_CAND_ROW * CORE_CAND_WAYS; at++) {
		uint32_t place = at / CORE_CAND_WAYS;
		_Atomic uint32_t *entry = cand_bucket(ct, row, place) + at % CORE_CAND_WAYS;
		uint32_t value = cand_load(entry);
		uint32_t to = cand_row_of(value & CAND_TAG_MASK, s.next);

		if (value != 0 && to != row)
			cand_move(ct, entry, to, place);
	}
	if (row == 0)
		cand_set_shape(ct, s.next, s.next);
}

bool core_cand_crowded(const struct core_cand *ct)
{
	uint64_t room = (uint64_t)ct->buckets * CORE_CAND_WAYS;
	uint64_t entries = atomic_load_explicit(&ct->header->entries, memory_order_relaxed);

	return entries > room * CAND_LOAD_PERCENT / 100;
}
