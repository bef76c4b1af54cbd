/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The index. See index.h for what it promises.
 *
 * Addresses. A tag has two 32-bit addresses a; in a table of 2^level + split
 * buckets, address a means bucket a mod 2^level or, where that bucket is split
 * already (below split), a mod 2^(level + 1).
 *
 * Writer. Three ways to move an entry, and in all of them it is written where
 * it goes to before it is cleared where it was, so it is never nowhere:
 *   split     entries of bucket `split` whose address leads to the new bucket
 *             are copied there, the new shape is published, the old are cleared;
 *   displace  both buckets of a new tag are full: an entry of theirs moves to
 *             its own other bucket, whose entry moves on before, and so on,
 *             the shortest chain within DISPLACE_NODES_MAX buckets. Linear
 *             hashing needs this: buckets not split yet carry twice the traffic
 *             and are nearly all full in the second half of a level;
 *   forced    where that finds nothing, up to FORCED_SPLITS_MAX splits ahead of
 *             their time, but never below FORCED_LOAD_PERCENT: a flood of
 *             crafted tags must not buy itself memory (I4).
 *
 * Readers. A lookup reads at most (1 + LOOKUP_RETRIES) * 2 buckets. The shape
 * is read once for each try and cut down to what is mapped, so no contents of
 * the shared memory lead outside of it. When nothing was found and the shape
 * has moved meanwhile, the entry may have moved with it: look again, a bounded
 * number of times. An entry under way may be seen twice; it is reported once.
 * An entry just being displaced may be missed.
 *
 * Ordering. Entries are stored with release and loaded with acquire: who sees
 * an entry sees the slot's bytes; who sees an entry cleared by a split sees the
 * shape that was published before.
 */
#include "core/index.h"

#include <errno.h>

#define BUCKET_BYTES (CORE_INDEX_WAYS * sizeof(uint64_t))
#define INDEX_ALIGN_BYTES 65536ull
#define FIRST_LEVEL 6u /* 64 buckets: one page of them */
#define MAX_BUCKETS (1u << 31)
#define FORCED_SPLITS_MAX 8u
#define DISPLACE_NODES_MAX 96u /* 96 million random insertions needed at most 59 */
#define FORCED_LOAD_PERCENT 52u
#define LOOKUP_RETRIES 3u
#define NO_BUCKET UINT32_MAX

_Static_assert(sizeof(struct core_index_header) <= CORE_INDEX_HEADER_BYTES, "header too long");
_Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "entries are plain words");
_Static_assert(sizeof(size_t) >= 8, "64-bit address spaces only");

struct shape {
	uint32_t level;
	uint32_t split;
};

struct addresses {
	uint32_t a[2];
};

static struct addresses tag_addresses(uint32_t tag)
{
	uint64_t x = (tag + 1ull) * 0x9e3779b97f4a7c15ull;

	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93ull;
	x ^= x >> 32;
	return (struct addresses){ { (uint32_t)x, (uint32_t)(x >> 32) } };
}

static uint32_t entry_tag(uint64_t entry)
{
	return (uint32_t)(entry >> 32);
}

static uint64_t entry_load(const struct core_index *ix, uint32_t bucket, unsigned way)
{
	return atomic_load_explicit(&ix->entries[(size_t)bucket * CORE_INDEX_WAYS + way],
				    memory_order_acquire);
}

static void entry_store(struct core_index *ix, uint32_t bucket, unsigned way, uint64_t entry)
{
	atomic_store_explicit(&ix->entries[(size_t)bucket * CORE_INDEX_WAYS + way], entry,
			      memory_order_release);
}

/*
 * The shape word as it is, made to fit: 2^level <= max_buckets, split < 2^level.
 * For the writer, who alone wrote it, this changes nothing.
 */
static struct shape shape_of(const struct core_index *ix, uint64_t word)
{
	uint32_t level_max = 31u - (uint32_t)__builtin_clz(ix->max_buckets);
	struct shape s = { .level = (uint32_t)(word >> 32), .split = (uint32_t)word };

	if (s.level > level_max)
		s.level = level_max;
	if (s.split >= 1u << s.level)
		s.split = 0;
	return s;
}

static uint64_t shape_load(const struct core_index *ix)
{
	return atomic_load_explicit(&ix->header->shape, memory_order_acquire);
}

static uint32_t shape_buckets(struct shape s)
{
	return (1u << s.level) + s.split;
}

/* Always < max_buckets, whatever the shape says. */
static uint32_t bucket_of(const struct core_index *ix, struct shape s, uint32_t address)
{
	uint32_t mask = (1u << s.level) - 1;
	uint32_t bucket = address & mask;

	if (bucket < s.split) {
		uint32_t wide = address & (2 * mask + 1);

		if (wide < ix->max_buckets)
			bucket = wide;
	}
	return bucket;
}

static uint64_t counter_load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Layout ------------------------------------------------------------------- */

static uint32_t max_buckets_of(size_t bytes)
{
	size_t room = (bytes - CORE_INDEX_HEADER_BYTES) / BUCKET_BYTES;

	return room > MAX_BUCKETS ? MAX_BUCKETS : (uint32_t)room;
}

static void index_view(struct core_index *ix, void *mem, size_t bytes)
{
	ix->header = mem;
	ix->entries = (_Atomic uint64_t *)((char *)mem + CORE_INDEX_HEADER_BYTES);
	ix->max_buckets = ix->limit_buckets = max_buckets_of(bytes);
}

void core_index_limit(struct core_index *ix, size_t bytes)
{
	uint32_t buckets = max_buckets_of(bytes);

	ix->limit_buckets = buckets < ix->max_buckets ? buckets : ix->max_buckets;
}

/* Room for max_slots at the lowest load that the writer ever brings about. */
size_t core_index_bytes(uint32_t max_slots)
{
	uint64_t ways = (uint64_t)max_slots * 100 / FORCED_LOAD_PERCENT;
	uint64_t buckets = ways / CORE_INDEX_WAYS + (1u << FIRST_LEVEL) + FORCED_SPLITS_MAX;
	uint64_t bytes = CORE_INDEX_HEADER_BYTES + buckets * BUCKET_BYTES;

	return (bytes + INDEX_ALIGN_BYTES - 1) & ~(INDEX_ALIGN_BYTES - 1);
}

static bool power_of_two(uint32_t n)
{
	return n != 0 && (n & (n - 1)) == 0;
}

int core_index_init(struct core_index *ix, void *mem, size_t bytes,
		    const struct core_index_params *params)
{
	struct core_index_header *header = mem;

	if (!mem || (uintptr_t)mem % BUCKET_BYTES != 0 || !power_of_two(params->page_bytes) ||
	    !power_of_two(params->segment_slots) || params->max_slots == 0 ||
	    bytes < core_index_bytes(params->max_slots))
		return -EINVAL;
	index_view(ix, mem, bytes);
	header->version = CORE_INDEX_VERSION;
	header->page_bytes = params->page_bytes;
	header->segment_slots = params->segment_slots;
	header->max_slots = params->max_slots;
	header->seed = params->seed;
	header->generation = params->generation;
	atomic_store_explicit(&header->shape, (uint64_t)FIRST_LEVEL << 32, memory_order_relaxed);
	atomic_store_explicit(&header->slots_published, 0, memory_order_relaxed);
	atomic_store_explicit(&header->entries, 0, memory_order_relaxed);
	/* Last, so that a reader of a half-made index is told so. */
	atomic_thread_fence(memory_order_release);
	*(volatile uint64_t *)&header->magic = CORE_INDEX_MAGIC;
	return 0;
}

/*
 * What is checked here may change a moment later (I4): lookups do not depend on
 * it, and who uses other fields of the header copies them once and checks the
 * copy.
 */
int core_index_attach(struct core_index *ix, const void *mem, size_t bytes, uint32_t page_bytes)
{
	const volatile struct core_index_header *header = mem;
	uint32_t max_slots;

	if (!mem || (uintptr_t)mem % BUCKET_BYTES != 0 ||
	    bytes < CORE_INDEX_HEADER_BYTES + BUCKET_BYTES)
		return -EPROTO;
	if (header->magic != CORE_INDEX_MAGIC || header->version != CORE_INDEX_VERSION ||
	    header->page_bytes != page_bytes || !power_of_two(header->segment_slots))
		return -EPROTO;
	max_slots = header->max_slots;
	if (max_slots == 0 || bytes < core_index_bytes(max_slots))
		return -EPROTO;
	index_view(ix, (void *)(uintptr_t)mem, bytes);
	return 0;
}

/* Readers ------------------------------------------------------------------ */

static unsigned matches_add(uint32_t *slots, unsigned n, unsigned max, uint32_t slot)
{
	unsigned i;

	for (i = 0; i < n; i++) {
		if (slots[i] == slot)
			return n;
	}
	if (n < max)
		slots[n++] = slot;
	return n;
}

static unsigned lookup_bucket(const struct core_index *ix, uint32_t bucket, uint32_t tag,
			      uint32_t *slots, unsigned n, unsigned max)
{
	unsigned way;

	for (way = 0; way < CORE_INDEX_WAYS; way++) {
		uint64_t entry = entry_load(ix, bucket, way);

		/* The lower half is slot + 1: 0 is no slot, in an empty entry or a forged one. */
		if (entry_tag(entry) == tag && (uint32_t)entry != 0)
			n = matches_add(slots, n, max, (uint32_t)entry - 1);
	}
	return n;
}

unsigned core_index_lookup(const struct core_index *ix, uint32_t tag, uint32_t *slots,
			   unsigned max)
{
	struct addresses at = tag_addresses(tag);
	unsigned tries;

	for (tries = 0; tries <= LOOKUP_RETRIES; tries++) {
		uint64_t word = shape_load(ix);
		struct shape s = shape_of(ix, word);
		uint32_t first = bucket_of(ix, s, at.a[0]);
		uint32_t second = bucket_of(ix, s, at.a[1]);
		unsigned n;

		__builtin_prefetch(&ix->entries[(size_t)second * CORE_INDEX_WAYS]);
		n = lookup_bucket(ix, first, tag, slots, 0, max);
		if (second != first)
			n = lookup_bucket(ix, second, tag, slots, n, max);
		if (n > 0 || shape_load(ix) == word)
			return n;
	}
	return 0;
}

void core_index_prefetch(const struct core_index *ix, uint32_t tag)
{
	struct addresses at = tag_addresses(tag);
	struct shape s = shape_of(ix, shape_load(ix));
	unsigned i;

	for (i = 0; i < 2; i++)
		__builtin_prefetch(
			&ix->entries[(size_t)bucket_of(ix, s, at.a[i]) * CORE_INDEX_WAYS]);
}

uint64_t core_index_used_bytes(const struct core_index *ix)
{
	uint64_t buckets = shape_buckets(shape_of(ix, shape_load(ix)));

	if (buckets > ix->max_buckets)
		buckets = ix->max_buckets;
	return CORE_INDEX_HEADER_BYTES + buckets * BUCKET_BYTES;
}

/* Writer ------------------------------------------------------------------- */

static struct shape writer_shape(const struct core_index *ix)
{
	return shape_of(ix, atomic_load_explicit(&ix->header->shape, memory_order_relaxed));
}

/* Number of free ways; *way is the first of them. */
static unsigned bucket_room(const struct core_index *ix, uint32_t bucket, unsigned *way)
{
	unsigned room = 0;
	unsigned i;

	for (i = CORE_INDEX_WAYS; i-- > 0;) {
		if (entry_load(ix, bucket, i) == 0) {
			room++;
			*way = i;
		}
	}
	return room;
}

static bool load_above(const struct core_index *ix, uint64_t entries, unsigned percent)
{
	uint64_t ways = (uint64_t)shape_buckets(writer_shape(ix)) * CORE_INDEX_WAYS;

	return entries * 100 > ways * percent;
}

/* Does this entry of the bucket being split belong into the new bucket? */
static bool split_moves(uint64_t entry, uint32_t mask, uint32_t from, uint32_t to)
{
	struct addresses at = tag_addresses(entry_tag(entry));
	bool stays = false, moves = false;
	unsigned i;

	for (i = 0; i < 2; i++) {
		if ((at.a[i] & mask) != from)
			continue;
		if ((at.a[i] & (2 * mask + 1)) == to)
			moves = true;
		else
			stays = true;
	}
	return moves && !stays;
}

/* One bucket more. False: the memory has no room for one. */
static bool split_one(struct core_index *ix)
{
	struct shape s = writer_shape(ix);
	uint32_t mask = (1u << s.level) - 1;
	uint32_t from = s.split;
	uint32_t to = shape_buckets(s);
	unsigned moved = 0; /* bit per way */
	unsigned way, to_way = 0;

	if (to >= ix->limit_buckets)
		return false;
	for (way = 0; way < CORE_INDEX_WAYS; way++) {
		uint64_t entry = entry_load(ix, from, way);

		if (entry == 0 || !split_moves(entry, mask, from, to))
			continue;
		entry_store(ix, to, to_way++, entry);
		moved |= 1u << way;
	}
	if (++s.split == 1u << s.level)
		s = (struct shape){ .level = s.level + 1, .split = 0 };
	atomic_store_explicit(&ix->header->shape, (uint64_t)s.level << 32 | s.split,
			      memory_order_release);
	for (way = 0; way < CORE_INDEX_WAYS; way++) {
		if (moved & 1u << way)
			entry_store(ix, from, way, 0);
	}
	return true;
}

/*
 * The search for a displacement: a tree of full buckets, breadth first, rooted in
 * the new tag's two. A child is the other bucket of one of its parent's entries.
 * Breadth first finds a shortest chain, in which no bucket comes twice.
 */
struct displace_node {
	uint32_t bucket;
	uint16_t parent;
	uint8_t parent_way; /* the parent's entry whose other bucket this is */
};

struct displace {
	unsigned count;
	struct displace_node node[DISPLACE_NODES_MAX];
};

/* An entry's bucket that is not this one, or NO_BUCKET. */
static uint32_t other_bucket(const struct core_index *ix, struct shape s, uint64_t entry,
			     uint32_t bucket)
{
	struct addresses at = tag_addresses(entry_tag(entry));
	uint32_t other = bucket_of(ix, s, at.a[0]);

	if (other == bucket)
		other = bucket_of(ix, s, at.a[1]);
	return other == bucket ? NO_BUCKET : other;
}

/* Move the entries along the chain that ends with a free way; returns its root. */
static uint32_t displace_along(struct core_index *ix, const struct displace_node *nodes,
			       unsigned at, unsigned *free_way)
{
	while (at >= 2) {
		const struct displace_node *node = &nodes[at];
		uint32_t from = nodes[node->parent].bucket;

		entry_store(ix, node->bucket, *free_way, entry_load(ix, from, node->parent_way));
		entry_store(ix, from, node->parent_way, 0);
		*free_way = node->parent_way;
		at = node->parent;
	}
	return nodes[at].bucket;
}

/* Both roots are full: make a way free in one of them, or NO_BUCKET. */
static uint32_t displace_for(struct core_index *ix, struct shape s, const uint32_t root[2],
			     unsigned *free_way)
{
	struct displace d; /* nodes are written before they are read */
	unsigned at, way;

	d.count = 2;
	d.node[0].bucket = root[0];
	d.node[1].bucket = root[1];
	for (at = 0; at < d.count; at++) {
		uint32_t bucket = d.node[at].bucket;

		for (way = 0; way < CORE_INDEX_WAYS; way++) {
			uint32_t other = other_bucket(ix, s, entry_load(ix, bucket, way), bucket);

			/* Roots again: what a flood of one tag consists of. */
			if (other == NO_BUCKET || other == root[0] || other == root[1])
				continue;
			if (d.count >= DISPLACE_NODES_MAX)
				return NO_BUCKET;
			d.node[d.count] = (struct displace_node){ other, (uint16_t)at,
								  (uint8_t)way };
			if (bucket_room(ix, other, free_way) > 0)
				return displace_along(ix, d.node, d.count, free_way);
			d.count++;
		}
	}
	return NO_BUCKET;
}

/* A place for the tag: the emptier bucket, or what a displacement makes free. */
static uint32_t find_place(struct core_index *ix, uint32_t tag, unsigned *way)
{
	struct addresses at = tag_addresses(tag);
	struct shape s = writer_shape(ix);
	uint32_t bucket[2] = { bucket_of(ix, s, at.a[0]), bucket_of(ix, s, at.a[1]) };
	unsigned free_way[2] = { 0, 0 };
	unsigned room[2];
	unsigned i;

	for (i = 0; i < 2; i++)
		room[i] = bucket_room(ix, bucket[i], &free_way[i]);
	i = room[1] > room[0];
	if (room[i] == 0)
		return displace_for(ix, s, bucket, way);
	*way = free_way[i];
	return bucket[i];
}

static bool entry_exists(const struct core_index *ix, uint32_t tag, uint64_t entry)
{
	struct addresses at = tag_addresses(tag);
	struct shape s = writer_shape(ix);
	unsigned i, way;

	for (i = 0; i < 2; i++) {
		uint32_t bucket = bucket_of(ix, s, at.a[i]);

		for (way = 0; way < CORE_INDEX_WAYS; way++) {
			if (entry_load(ix, bucket, way) == entry)
				return true;
		}
	}
	return false;
}

/*
 * Inserting what is there already does nothing. -EINVAL: CORE_SLOT_NONE. Slot
 * numbers are not held against max_slots, which bounds entries: the numbers of
 * freed segments are not used again (I1), so numbers may run past it.
 */
int core_index_insert(struct core_index *ix, uint32_t tag, uint32_t slot)
{
	uint64_t entries = counter_load(&ix->header->entries);
	uint64_t entry = (uint64_t)tag << 32 | (uint32_t)(slot + 1);
	unsigned forced = 0;
	unsigned way = 0;
	uint32_t bucket;

	if (slot == CORE_SLOT_NONE)
		return -EINVAL;
	if (entry_exists(ix, tag, entry))
		return 0;
	if (entries >= ix->header->max_slots)
		return -ENOSPC;
	while ((bucket = find_place(ix, tag, &way)) == NO_BUCKET) {
		if (forced++ == FORCED_SPLITS_MAX ||
		    !load_above(ix, entries, FORCED_LOAD_PERCENT) || !split_one(ix))
			return -ENOSPC;
	}
	entry_store(ix, bucket, way, entry);
	atomic_store_explicit(&ix->header->entries, ++entries, memory_order_relaxed);
	if (load_above(ix, entries, CORE_INDEX_LOAD_PERCENT))
		split_one(ix);
	return 0;
}

/* Reads every bucket: segments are freed seldom. The table does not shrink. */
uint64_t core_index_remove_slots(struct core_index *ix, uint32_t first, uint32_t count)
{
	uint32_t buckets = shape_buckets(writer_shape(ix));
	uint64_t removed = 0;
	uint32_t bucket;
	unsigned way;

	for (bucket = 0; bucket < buckets; bucket++) {
		for (way = 0; way < CORE_INDEX_WAYS; way++) {
			uint64_t entry = entry_load(ix, bucket, way);
			uint32_t slot = (uint32_t)entry - 1;

			if (entry == 0 || slot - first >= count || slot < first)
				continue;
			entry_store(ix, bucket, way, 0);
			removed++;
		}
	}
	atomic_store_explicit(&ix->header->entries,
			      counter_load(&ix->header->entries) - removed, memory_order_relaxed);
	return removed;
}
