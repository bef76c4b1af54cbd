/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sorting record numbers by fingerprint, in place, in 4 bytes a page.
 *
 * The fingerprints are random numbers, so their upper bits cut the pages into buckets of
 * about sixteen: count, sum up, place (three passes over the pages in order, with one
 * random write each), then each bucket is sorted by itself. A page that very many share
 * makes a large bucket, which arrives sorted: placing keeps the order of the numbers.
 * What sorts a bucket is a heap sort, so that nothing is quadratic.
 */
#include <string.h>

#include "core/census_impl.h"

#define BUCKET_PAGES 16
#define BITS_MAX 28
#define SMALL_BUCKET 48
/* Pages in one block of the other use of the scratch memory: page -> region. */
#define BLOCK_PAGES 64

static unsigned bits_for(uint64_t pages)
{
	unsigned bits = 1;

	while (bits < BITS_MAX && (pages >> bits) > BUCKET_PAGES)
		bits++;
	return bits;
}

size_t core_census_index_bytes(uint64_t pages)
{
	size_t buckets = (((size_t)1 << bits_for(pages)) + 1) * sizeof(uint32_t);
	size_t blocks = (size_t)(pages / BLOCK_PAGES + 2) * sizeof(uint32_t);

	return buckets > blocks ? buckets : blocks;
}

/* a before b? */
static bool before(const struct core_census *c, enum census_key key, uint32_t a, uint32_t b)
{
	uint64_t x = census_value(c, key, a), y = census_value(c, key, b);

	if (x != y)
		return x < y;
	if (key != CENSUS_BY_HASH) {
		x = census_hash(c, a);
		y = census_hash(c, b);
		if (x != y)
			return x < y;
	}
	return a < b;
}

/* A page and its key, side by side: the keys lie far apart, each is fetched once. */
struct pair {
	uint64_t value;
	uint32_t page;
};

static bool pair_before(const struct core_census *c, enum census_key key, const struct pair *a,
			const struct pair *b)
{
	if (a->value != b->value)
		return a->value < b->value;
	return before(c, key, a->page, b->page);
}

static void sort_small(const struct core_census *c, enum census_key key, uint32_t *v, uint64_t n)
{
	struct pair pair[SMALL_BUCKET];

	for (uint64_t i = 0; i < n; i++)
		pair[i] = (struct pair){ census_value(c, key, v[i]), v[i] };
	for (uint64_t i = 1; i < n; i++) {
		struct pair x = pair[i];
		uint64_t at = i;

		for (; at > 0 && pair_before(c, key, &x, &pair[at - 1]); at--)
			pair[at] = pair[at - 1];
		pair[at] = x;
	}
	for (uint64_t i = 0; i < n; i++)
		v[i] = pair[i].page;
}

static void sift(const struct core_census *c, enum census_key key, uint32_t *v, uint64_t root,
		 uint64_t n)
{
	uint32_t x = v[root];

	for (;;) {
		uint64_t child = 2 * root + 1;

		if (child >= n)
			break;
		if (child + 1 < n && before(c, key, v[child], v[child + 1]))
			child++;
		if (!before(c, key, x, v[child]))
			break;
		v[root] = v[child];
		root = child;
	}
	v[root] = x;
}

static void sort_large(const struct core_census *c, enum census_key key, uint32_t *v, uint64_t n)
{
	for (uint64_t i = n / 2; i-- > 0;)
		sift(c, key, v, i, n);
	for (uint64_t end = n - 1; end > 0; end--) {
		uint32_t x = v[0];

		v[0] = v[end];
		v[end] = x;
		sift(c, key, v, 0, end);
	}
}

static bool sorted(const struct core_census *c, enum census_key key, const uint32_t *v, uint64_t n)
{
	for (uint64_t i = 1; i < n; i++)
		if (before(c, key, v[i], v[i - 1]))
			return false;
	return true;
}

static void sort_bucket(const struct core_census *c, enum census_key key, uint32_t *v, uint64_t n)
{
	if (n <= SMALL_BUCKET)
		sort_small(c, key, v, n);
	else if (!sorted(c, key, v, n))
		sort_large(c, key, v, n);
}

/* Move the pages of order[from, end) that have an equal one down to order[to]; its new end. */
static uint64_t keep_classes(struct core_census *c, enum census_key key, uint64_t from, uint64_t end,
			     uint64_t to)
{
	while (from < end) {
		uint64_t next = census_class_end(c, key, from, end);

		if (next - from > 1)
			for (; from < next; from++)
				c->order[to++] = c->order[from];
		from = next;
	}
	return to;
}

uint64_t census_sort(struct core_census *c, enum census_key key, uint64_t flags)
{
	unsigned bits = bits_for(c->pages);
	uint64_t buckets = UINT64_C(1) << bits;
	uint32_t *end = c->index; /* first the counts, then where each bucket ends so far */
	uint32_t sum = 0;
	uint32_t from = 0;
	uint64_t kept = 0;

	memset(end, 0, buckets * sizeof(*end));
	for (uint64_t i = 0; i < c->pages; i++)
		if ((c->hash[i] & flags) == flags)
			end[census_value(c, key, i) >> (64 - bits)]++;
	for (uint64_t b = 0; b < buckets; b++) {
		uint32_t n = end[b];

		end[b] = sum;
		sum += n;
	}
	for (uint64_t i = 0; i < c->pages; i++)
		if ((c->hash[i] & flags) == flags)
			c->order[end[census_value(c, key, i) >> (64 - bits)]++] = (uint32_t)i;
	for (uint64_t b = 0; b < buckets; b++) {
		if (end[b] - from > 1) {
			sort_bucket(c, key, c->order + from, end[b] - from);
			kept = keep_classes(c, key, from, end[b], kept);
		}
		from = end[b];
	}
	return kept;
}

uint64_t census_class_end(const struct core_census *c, enum census_key key, uint64_t from,
			  uint64_t count)
{
	uint64_t value = census_value(c, key, c->order[from]);
	uint64_t end = from + 1;

	while (end < count && census_value(c, key, c->order[end]) == value)
		end++;
	return end;
}

void census_index_regions(struct core_census *c)
{
	uint32_t r = 0;

	for (uint64_t i = 0; i < c->pages; i += BLOCK_PAGES) {
		while (r + 1 < c->regions && c->region[r + 1].first <= i)
			r++;
		c->index[i / BLOCK_PAGES] = r;
	}
}

uint32_t census_region_of(const struct core_census *c, uint64_t i)
{
	uint32_t r = c->index[i / BLOCK_PAGES];

	while (r + 1 < c->regions && c->region[r + 1].first <= i)
		r++;
	return r;
}

uint32_t core_census_process_of(const struct core_census *c, uint64_t i)
{
	return c->region[census_region_of(c, i)].process;
}
