/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The census: recording, walking, and the sums over all pages. See census.h.
 *
 * The stream. A region's part is pairs of numbers, (hole, pages): so many pages that are
 * not recorded, then so many that are. Numbers are little-endian groups of seven bits.
 * While pages are added, the last pair is rewritten in place: its hole is known when it
 * begins, its count grows, and only ever at the end of the stream.
 */
#include <string.h>

#include "core/census_impl.h"

#define TAG_LASTED 1u

/* the stream ------------------------------------------------------------------- */

static uint64_t put_number(uint8_t *to, uint64_t value)
{
	uint64_t n = 0;

	for (; value >= 0x80; value >>= 7)
		to[n++] = (uint8_t)(value | 0x80);
	to[n++] = (uint8_t)value;
	return n;
}

static uint64_t take_number(const uint8_t *from, uint64_t *at)
{
	uint64_t value = 0;
	unsigned shift = 0;

	for (;; shift += 7) {
		uint8_t byte = from[(*at)++];

		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return value;
	}
}

void core_census_add_region(struct core_census *c, const struct core_census_region *region)
{
	struct core_census_region *r = &c->region[c->regions++];

	*r = *region;
	r->first = c->pages;
	r->gaps = c->gaps_bytes;
	c->next_vpn = r->start_vpn;
	c->last_pages = 0;
}

void core_census_add_page(struct core_census *c, uint64_t vpn, uint64_t hash, uint32_t masked,
			  uint32_t relative, uint64_t flags)
{
	uint64_t i = c->pages++;

	c->hash[i] = (hash & ~CORE_CENSUS_FLAGS) | flags;
	c->masked[i] = masked;
	c->relative[i] = relative;
	if (c->last_pages == 0 || vpn != c->next_vpn) {
		c->gaps_bytes += put_number(c->gaps + c->gaps_bytes, vpn - c->next_vpn);
		c->last_gap = c->gaps_bytes;
		c->last_pages = 0;
	}
	c->gaps_bytes = c->last_gap + put_number(c->gaps + c->last_gap, ++c->last_pages);
	c->next_vpn = vpn + 1;
}

void core_census_truncate(struct core_census *c, uint32_t regions)
{
	if (regions >= c->regions)
		return;
	c->pages = c->region[regions].first;
	c->gaps_bytes = c->region[regions].gaps;
	c->regions = regions;
	c->last_pages = 0;
}

/* walking ---------------------------------------------------------------------- */

static uint64_t region_pages_end(const struct core_census *c, uint32_t region)
{
	return region + 1 < c->regions ? c->region[region + 1].first : c->pages;
}

/* From the end of a stretch to the first page of the next one. */
static void next_stretch(struct core_census_walk *w)
{
	const struct core_census *c = w->census;

	while (w->region < w->end && w->page == region_pages_end(c, w->region)) {
		w->region++;
		if (w->region < w->end) {
			w->vpn = c->region[w->region].start_vpn;
			w->at = c->region[w->region].gaps;
		}
	}
	if (w->region >= w->end)
		return;
	w->vpn += take_number(c->gaps, &w->at);
	w->left = take_number(c->gaps, &w->at);
}

void core_census_walk_begin(struct core_census_walk *w, const struct core_census *c, uint32_t first,
			    uint32_t end)
{
	*w = (struct core_census_walk){ .census = c, .region = first, .end = end };
	if (first >= end)
		return;
	w->page = c->region[first].first;
	w->vpn = c->region[first].start_vpn;
	w->at = c->region[first].gaps;
	next_stretch(w);
}

bool core_census_walk_valid(const struct core_census_walk *w)
{
	return w->region < w->end;
}

void core_census_walk_next(struct core_census_walk *w)
{
	w->page++;
	w->vpn++;
	if (--w->left == 0)
		next_stretch(w);
}

void core_census_walk_seek(struct core_census_walk *w, uint64_t vpn)
{
	while (core_census_walk_valid(w) && w->vpn < vpn) {
		uint64_t step = vpn - w->vpn;

		if (step > w->left)
			step = w->left;
		w->page += step;
		w->vpn += step;
		w->left -= step;
		if (w->left == 0)
			next_stretch(w);
	}
}

/* two looks -------------------------------------------------------------------- */

static uint32_t tag_of(uint64_t hash)
{
	return (uint32_t)(hash >> 32) & ~TAG_LASTED;
}

void core_census_to_tags(const struct core_census *c, uint32_t *tag, bool first_look)
{
	for (uint64_t i = 0; i < c->pages; i++) {
		uint64_t hash = c->hash[i];
		bool lasted = first_look || (hash & CORE_CENSUS_LASTED);

		tag[i] = tag_of(hash) | (lasted ? TAG_LASTED : 0);
	}
}

uint64_t core_census_since(uint32_t tag, uint64_t hash)
{
	if ((tag & ~TAG_LASTED) != tag_of(hash))
		return 0;
	return CORE_CENSUS_STAYED | (tag & TAG_LASTED ? CORE_CENSUS_LASTED : 0);
}

/* sums ------------------------------------------------------------------------- */

/* Pages that differ from another one in words that look like addresses, and only those. */
static void mark_almost(struct core_census *c)
{
	uint64_t count = census_sort(c, CENSUS_BY_MASKED, CORE_CENSUS_ADDRESSES);

	for (uint64_t from = 0; from < count;) {
		uint64_t end = census_class_end(c, CENSUS_BY_MASKED, from, count);

		/* sorted by hash inside: two different ones are at the ends */
		if (census_hash(c, c->order[from]) != census_hash(c, c->order[end - 1]))
			for (uint64_t k = from; k < end; k++)
				c->hash[c->order[k]] |= CORE_CENSUS_ALMOST;
		from = end;
	}
}

static void add_duplicate(struct core_census_sums *s, double share, bool huge, bool locked)
{
	s->duplicate++;
	s->saved += share;
	s->huge += huge;
	s->locked += locked;
}

static void count_class(struct core_census *c, uint64_t from, uint64_t end)
{
	double n = (double)(end - from);
	double share = (n - 1) / n;

	for (uint64_t k = from; k < end; k++) {
		uint32_t i = c->order[k];
		const struct core_census_region *r = &c->region[census_region_of(c, i)];
		bool huge = c->hash[i] & CORE_CENSUS_HUGE;

		c->hash[i] &= ~CORE_CENSUS_ALMOST;
		add_duplicate(&c->total, share, huge, r->locked);
		add_duplicate(&c->kind[r->kind], share, huge, r->locked);
		add_duplicate(&c->process[r->process].sums, share, huge, r->locked);
	}
}

/* What needs no equal page: in order of the pages. */
static void count_others(struct core_census *c)
{
	for (uint32_t r = 0; r < c->regions; r++) {
		struct core_census_sums *s[] = { &c->total, &c->kind[c->region[r].kind],
						 &c->process[c->region[r].process].sums };
		uint64_t end = region_pages_end(c, r), almost = 0;

		for (uint64_t i = c->region[r].first; i < end; i++)
			almost += (c->hash[i] & CORE_CENSUS_ALMOST) != 0;
		for (unsigned k = 0; k < 3; k++) {
			s[k]->pages += end - c->region[r].first;
			s[k]->almost += almost;
		}
	}
}

void core_census_finish(struct core_census *c)
{
	memset(&c->total, 0, sizeof(c->total));
	memset(c->kind, 0, sizeof(c->kind));
	for (uint32_t p = 0; p < c->processes; p++) {
		memset(&c->process[p].sums, 0, sizeof(c->process[p].sums));
		c->process[p].stamp = 0;
	}
	c->stamp = 0;
	mark_almost(c);
	census_sort_hash(c);
	for (uint64_t from = 0; from < c->sorted;) {
		uint64_t end = census_class_end(c, CENSUS_BY_HASH, from, c->sorted);

		count_class(c, from, end);
		from = end;
	}
	count_others(c);
}

/* names ------------------------------------------------------------------------ */

const char *core_census_kind_name(enum core_census_kind kind)
{
	static const char *const names[CORE_CENSUS_KINDS] = {
#define KIND_NAME(name) [CORE_CENSUS_##name] = #name,
		CORE_CENSUS_KIND_LIST(KIND_NAME)
#undef KIND_NAME
	};

	return (unsigned)kind < CORE_CENSUS_KINDS ? names[kind] : NULL;
}

const char *core_census_scope_name(enum core_census_scope scope)
{
	static const char *const names[CORE_CENSUS_SCOPES] = {
		[CORE_CENSUS_ALL] = "all",
		[CORE_CENSUS_USER] = "user",
		[CORE_CENSUS_CGROUP] = "cgroup",
		[CORE_CENSUS_PROCESS] = "process",
		[CORE_CENSUS_LAYOUT] = "layout",
	};

	return (unsigned)scope < CORE_CENSUS_SCOPES ? names[scope] : NULL;
}

uint64_t core_census_bucket_first(unsigned bucket)
{
	return UINT64_C(1) << bucket;
}
