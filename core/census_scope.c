/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What merging would save within a scope, and the mappings that it takes.
 *
 * Pages that would be merged form a set, kept as a forest in `parent` (which lies over
 * `masked`, not needed any more): each page points to a page of a smaller number in its
 * set, the first to itself. Equal pages of one group are joined first, then, for the
 * estimate of one layout, pages whose relative fingerprints are equal.
 *
 * Then the merge is played through as `samepage merge` does it: pages in order, a set
 * gets the next slot when its first page comes by, and pages that lie side by side and
 * get slots that do are one run, one mapping. The numbers in `parent` are replaced by
 * slots on the way: all that a later page needs of its first one is its slot.
 */
#include <string.h>

#include "core/census_impl.h"

#define NO_SLOT UINT32_MAX

static void next_stamp(struct core_census *c)
{
	if (++c->stamp != 0)
		return;
	for (uint32_t p = 0; p < c->processes; p++)
		c->process[p].stamp = 0;
	c->stamp = 1;
}

void census_sort_hash(struct core_census *c)
{
	c->sorted = census_sort(c, CENSUS_BY_HASH, 0);
	c->sorted_by_hash = true;
	census_index_regions(c);
}

/* Group of a page in a scope; NO_REPLICA: it stays by itself. */
static uint32_t group_of(const struct core_census *c, enum core_census_scope scope, uint32_t i)
{
	uint32_t p;

	if (scope == CORE_CENSUS_ALL)
		return 0;
	p = core_census_process_of(c, i);
	switch (scope) {
	case CORE_CENSUS_USER: return c->process[p].group.user;
	case CORE_CENSUS_CGROUP: return c->process[p].group.cgroup;
	case CORE_CENSUS_LAYOUT: return c->process[p].group.replica;
	default: return p;
	}
}

static uint32_t find(const uint32_t *parent, uint32_t i)
{
	while (parent[i] != i)
		i = parent[i];
	return i;
}

static void join(uint32_t *parent, uint32_t a, uint32_t b)
{
	a = find(parent, a);
	b = find(parent, b);
	if (a < b)
		parent[b] = a;
	else
		parent[a] = b;
}

/* Join the pages of order[from, end) that are of one group and have the flags. */
static void join_class(struct core_census *c, enum core_census_scope scope, uint64_t which,
		       uint64_t from, uint64_t end)
{
	next_stamp(c);
	for (uint64_t k = from; k < end; k++) {
		uint32_t i = c->order[k];
		uint32_t group;
		struct core_census_process *g;

		if ((c->hash[i] & which) != which)
			continue;
		group = group_of(c, scope, i);
		if (group == CORE_CENSUS_NO_REPLICA)
			continue;
		g = &c->process[group];
		if (g->stamp != c->stamp) {
			g->stamp = c->stamp;
			g->first = i;
		} else {
			join(c->masked, i, g->first);
		}
	}
}

static void join_equal(struct core_census *c, enum core_census_scope scope, uint64_t which)
{
	if (!c->sorted_by_hash)
		census_sort_hash(c);
	for (uint64_t from = 0; from < c->sorted;) {
		uint64_t end = census_class_end(c, CENSUS_BY_HASH, from, c->sorted);

		join_class(c, scope, which, from, end);
		from = end;
	}
}

static void join_relative(struct core_census *c, uint64_t which)
{
	uint64_t count = census_sort(c, CENSUS_BY_RELATIVE, CORE_CENSUS_ADDRESSES);

	c->sorted_by_hash = false;
	census_index_regions(c);
	for (uint64_t from = 0; from < count;) {
		uint64_t end = census_class_end(c, CENSUS_BY_RELATIVE, from, count);

		join_class(c, CORE_CENSUS_LAYOUT, which, from, end);
		from = end;
	}
}

/* Every page points to the first of its set; the first of several is marked. */
static void flatten(struct core_census *c)
{
	uint32_t *parent = c->masked;

	for (uint64_t i = 0; i < c->pages; i++) {
		parent[i] = parent[parent[i]];
		if (parent[i] != i)
			c->hash[parent[i]] |= CORE_CENSUS_SHARED;
	}
}

/* From sets to slots. */
static void assign_slots(struct core_census *c, struct core_census_answer *a)
{
	uint32_t *parent = c->masked;

	for (uint64_t i = 0; i < c->pages; i++) {
		if (parent[i] != i) {
			parent[i] = parent[parent[i]];
			a->duplicate++;
		} else if (c->hash[i] & CORE_CENSUS_SHARED) {
			c->hash[i] &= ~CORE_CENSUS_SHARED;
			parent[i] = (uint32_t)a->slots++;
			a->duplicate++;
		} else {
			parent[i] = NO_SLOT;
		}
	}
	a->saved = a->duplicate - a->slots;
}

static void end_run(struct core_census_answer *a, uint64_t pages)
{
	unsigned bucket;

	if (pages == 0)
		return;
	bucket = 63u - (unsigned)__builtin_clzll(pages);
	if (bucket >= CORE_CENSUS_BUCKETS)
		bucket = CORE_CENSUS_BUCKETS - 1;
	a->bucket[bucket].runs++;
	a->bucket[bucket].pages += pages;
	a->runs++;
}

/* The runs of one mapping; how many more mappings they make of it. */
static int64_t cut_region(const struct core_census *c, uint32_t region, struct core_census_answer *a)
{
	struct core_census_walk w;
	uint64_t covered = c->region[region].start_vpn; /* what has its mapping already */
	uint64_t run = 0;
	uint32_t last = NO_SLOT;
	int64_t mappings = 0;

	core_census_walk_begin(&w, c, region, region + 1);
	for (; core_census_walk_valid(&w); core_census_walk_next(&w)) {
		uint32_t slot = c->masked[w.page];

		/* most are not merged: do not take them one by one */
		while (slot == NO_SLOT && w.left > 1) {
			w.page++;
			w.vpn++;
			w.left--;
			slot = c->masked[w.page];
		}
		if (slot == NO_SLOT)
			continue;
		if (run > 0 && w.vpn == covered && slot == last + 1 &&
		    slot % c->segment_slots != 0) {
			run++;
		} else {
			end_run(a, run);
			run = 1;
			mappings += w.vpn == covered ? 1 : 2; /* the run, and what lies before it */
		}
		last = slot;
		covered = w.vpn + 1;
	}
	end_run(a, run);
	if (mappings > 0 && covered != c->region[region].end_vpn)
		mappings++;
	return mappings > 0 ? mappings - 1 : 0;
}

void core_census_scope(struct core_census *c, enum core_census_scope scope, uint64_t which,
		       struct core_census_answer *a)
{
	memset(a, 0, sizeof(*a));
	for (uint64_t i = 0; i < c->pages; i++)
		c->masked[i] = (uint32_t)i;
	join_equal(c, scope == CORE_CENSUS_LAYOUT ? CORE_CENSUS_ALL : scope, which);
	if (scope == CORE_CENSUS_LAYOUT)
		join_relative(c, which);
	flatten(c);
	assign_slots(c, a);
	if (which == 0)
		for (uint32_t p = 0; p < c->processes; p++)
			c->process[p].vmas_added[scope] = 0;
	for (uint32_t r = 0; r < c->regions; r++) {
		int64_t added = cut_region(c, r, a);

		a->vmas_added += added;
		if (which == 0)
			c->process[c->region[r].process].vmas_added[scope] += added;
	}
}
