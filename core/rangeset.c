/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Range sets: a sorted array without overlaps.
 *
 * Every change is one splice: the ranges [i, j) that the change touches are
 * replaced by at most three pieces (what is left of the first, the new range,
 * what is left of the last). The pieces are made up on the stack, room is found,
 * and only then is the array touched: where there is no room, nothing changed.
 * Taking out needs room only when it cuts one range in two.
 *
 * Invariant: r[k].start < r[k].end <= r[k + 1].start, and equal attributes
 * never touch.
 *
 * An empty range (start == end) cannot be added (-EINVAL); taking it out does
 * nothing. start > end is -EINVAL in both.
 */
#include "core/rangeset.h"

#include <errno.h>
#include <string.h>

#define RANGESET_CAPACITY_MIN 8
#define SPLICE_PIECES_MAX 3

struct splice {
	size_t from; /* replace ranges[from .. to) ... */
	size_t to;
	size_t count; /* ... by this many pieces */
	struct core_range piece[SPLICE_PIECES_MAX];
};

void core_rangeset_init(struct core_rangeset *rs, core_realloc_fn *fn)
{
	*rs = (struct core_rangeset){ .realloc = fn };
}

void core_rangeset_free(struct core_rangeset *rs)
{
	if (rs->ranges)
		rs->realloc(rs->ranges, rs->capacity * sizeof(*rs->ranges), 0);
	core_rangeset_init(rs, rs->realloc);
}

/* Number of the first range that ends after addr. */
static size_t first_ending_after(const struct core_rangeset *rs, uint64_t addr)
{
	size_t low = 0, high = rs->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (rs->ranges[mid].end > addr)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

/* Number of the first range from `from` on that starts at addr or later. */
static size_t first_starting_at(const struct core_rangeset *rs, size_t from, uint64_t addr)
{
	size_t low = from, high = rs->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (rs->ranges[mid].start >= addr)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static bool reserve(struct core_rangeset *rs, size_t count)
{
	size_t capacity = rs->capacity ? rs->capacity : RANGESET_CAPACITY_MIN;
	struct core_range *ranges;

	if (count <= rs->capacity)
		return true;
	while (capacity < count)
		capacity *= 2;
	ranges = rs->realloc(rs->ranges, rs->capacity * sizeof(*ranges),
			     capacity * sizeof(*ranges));
	if (!ranges)
		return false;
	rs->ranges = ranges;
	rs->capacity = capacity;
	return true;
}

/* Append a piece, joined to the piece before it where they touch and agree. */
static void splice_push(struct splice *s, uint64_t start, uint64_t end, uint32_t attr)
{
	struct core_range *last = s->count ? &s->piece[s->count - 1] : NULL;

	if (last && last->end == start && last->attr == attr) {
		last->end = end;
		return;
	}
	s->piece[s->count++] = (struct core_range){ .start = start, .end = end, .attr = attr };
}

static void splice_plan(const struct core_rangeset *rs, struct splice *s, uint64_t start,
			uint64_t end, const uint32_t *attr)
{
	const struct core_range *r = rs->ranges;
	size_t i = first_ending_after(rs, start);
	size_t j = first_starting_at(rs, i, end);

	*s = (struct splice){ 0 };
	/* Neighbours that only touch are pulled in when they would be one with the new range. */
	if (attr && i > 0 && r[i - 1].end == start && r[i - 1].attr == *attr)
		i--;
	if (attr && j < rs->count && r[j].start == end && r[j].attr == *attr)
		j++;
	s->from = i;
	s->to = j;
	if (i < j && r[i].start < start)
		splice_push(s, r[i].start, start, r[i].attr);
	if (attr)
		splice_push(s, start, end, *attr);
	if (i < j && r[j - 1].end > end)
		splice_push(s, end, r[j - 1].end, r[j - 1].attr);
}

static int splice_apply(struct core_rangeset *rs, const struct splice *s)
{
	size_t count = rs->count - (s->to - s->from) + s->count;

	if (!reserve(rs, count))
		return -ENOMEM;
	/* An empty set may have no array yet, which memmove must not be given. */
	if (s->to < rs->count)
		memmove(&rs->ranges[s->from + s->count], &rs->ranges[s->to],
			(rs->count - s->to) * sizeof(*rs->ranges));
	if (s->count)
		memcpy(&rs->ranges[s->from], s->piece, s->count * sizeof(*rs->ranges));
	rs->count = count;
	return 0;
}

int core_rangeset_add(struct core_rangeset *rs, uint64_t start, uint64_t end, uint32_t attr)
{
	struct splice s;

	if (start >= end)
		return -EINVAL;
	splice_plan(rs, &s, start, end, &attr);
	return splice_apply(rs, &s);
}

int core_rangeset_remove(struct core_rangeset *rs, uint64_t start, uint64_t end)
{
	struct splice s;

	if (start > end)
		return -EINVAL;
	if (start == end || rs->count == 0)
		return 0;
	splice_plan(rs, &s, start, end, NULL);
	return splice_apply(rs, &s);
}

void core_rangeset_remove_or_forget(struct core_rangeset *rs, uint64_t start, uint64_t end)
{
	struct core_range *r;

	if (core_rangeset_remove(rs, start, end) != -ENOMEM)
		return;
	/* Only a cut through the middle of one range needs room: keep its longer end. */
	r = &rs->ranges[first_ending_after(rs, start)];
	if (start - r->start >= r->end - end)
		r->end = start;
	else
		r->start = end;
}

const struct core_range *core_rangeset_find(const struct core_rangeset *rs, uint64_t addr)
{
	size_t i = first_ending_after(rs, addr);

	return i < rs->count ? &rs->ranges[i] : NULL;
}

bool core_rangeset_intersects(const struct core_rangeset *rs, uint64_t start, uint64_t end)
{
	const struct core_range *r = core_rangeset_find(rs, start);

	return start < end && r && r->start < end;
}

bool core_rangeset_covers(const struct core_rangeset *rs, uint64_t start, uint64_t end)
{
	size_t i;

	for (i = first_ending_after(rs, start); start < end; i++) {
		if (i == rs->count || rs->ranges[i].start > start)
			return false;
		start = rs->ranges[i].end;
	}
	return true;
}

uint64_t core_rangeset_bytes(const struct core_rangeset *rs)
{
	uint64_t bytes = 0;
	size_t i;

	for (i = 0; i < rs->count; i++)
		bytes += rs->ranges[i].end - rs->ranges[i].start;
	return bytes;
}
