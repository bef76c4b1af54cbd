/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the scanner remembers: an array of chunks, a hash table from address to chunk, and
 * an array of groups of 64 pages. All of it in mappings of our own that double when they
 * are full, and are moved to smaller ones when a quarter is in use (scan_shrink); the
 * engine's thread alone uses them.
 */
#include <string.h>

#include "proc/scan.h"

#define ROOM_FIRST 64u

bool scan_room(void **array, uint32_t count, uint32_t *room, size_t element_bytes)
{
	uint32_t more = *room ? *room * 2 : ROOM_FIRST;
	void *p;

	if (count < *room)
		return true;
	if (more <= *room)
		return false;
	p = proc_arena_alloc_far(more * element_bytes);
	if (!p)
		return false;
	if (*array) {
		memcpy(p, *array, count * element_bytes);
		proc_arena_free(*array, *room * element_bytes);
	}
	*array = p;
	*room = more;
	return true;
}

/* --- the hash table ------------------------------------------------------- */

static uint32_t place_of(const struct proc_scan *s, uint64_t base)
{
	return (uint32_t)((base >> 12) * 0x9e3779b97f4a7c15ull >> 32) & (s->slots - 1);
}

/* Where the chunk is, or the empty place where it belongs. */
static uint32_t find(const struct proc_scan *s, uint64_t base)
{
	uint32_t at = place_of(s, base);

	while (s->slot[at] && s->chunk[s->slot[at] - 1].base != base)
		at = (at + 1) & (s->slots - 1);
	return at;
}

struct scan_chunk *scan_chunk_at(struct proc_scan *s, uint64_t base)
{
	uint32_t at;

	if (!s->slots)
		return NULL;
	at = find(s, base);
	return s->slot[at] ? &s->chunk[s->slot[at] - 1] : NULL;
}

/* Of so many places; false: no memory, and it stays as it is. */
static bool table_make(struct proc_scan *s, uint32_t slots)
{
	uint32_t *table = proc_arena_alloc_far(slots * sizeof(*table));

	if (!table)
		return false;
	if (s->slot)
		proc_arena_free(s->slot, s->slots * sizeof(*s->slot));
	s->slot = table;
	s->slots = slots;
	for (uint32_t i = 0; i < s->chunks; i++)
		s->slot[find(s, s->chunk[i].base)] = i + 1;
	return true;
}

static bool table_grow(struct proc_scan *s)
{
	if ((s->chunks + 1) * 2 <= s->slots)
		return true;
	return table_make(s, s->slots ? s->slots * 2 : 4 * ROOM_FIRST);
}

/* Whoever stands behind an emptied place, and would not be found any more, moves up. */
static void table_remove(struct proc_scan *s, uint32_t at)
{
	uint32_t next = at;

	s->slot[at] = 0;
	for (;;) {
		uint32_t home;

		next = (next + 1) & (s->slots - 1);
		if (!s->slot[next])
			return;
		home = place_of(s, s->chunk[s->slot[next] - 1].base);
		/* Does home lie between the hole and here? Then it stays. */
		if (at <= next ? (at < home && home <= next) : (at < home || home <= next))
			continue;
		s->slot[at] = s->slot[next];
		s->slot[next] = 0;
		at = next;
	}
}

struct scan_chunk *scan_chunk_make(struct proc_scan *s, uint64_t base)
{
	struct scan_chunk *k = scan_chunk_at(s, base);

	if (k)
		return k;
	if (!scan_room((void **)&s->chunk, s->chunks, &s->chunks_room, sizeof(*s->chunk)) ||
	    !table_grow(s))
		return NULL;
	k = &s->chunk[s->chunks];
	*k = (struct scan_chunk){ .base = base, .epoch = s->epoch };
	s->slot[find(s, base)] = ++s->chunks;
	s->epoch_seen++;
	return k;
}

void scan_chunk_free(struct proc_scan *s, uint32_t number)
{
	struct scan_chunk *k = &s->chunk[number];
	uint32_t last = s->chunks - 1;

	for (unsigned i = 0; i < SCAN_GROUPS; i++)
		scan_group_free(s, k, i);
	if (k->epoch == s->epoch)
		s->epoch_seen--;
	table_remove(s, find(s, k->base));
	if (number != last) {
		s->slot[find(s, s->chunk[last].base)] = number + 1;
		*k = s->chunk[last];
	}
	s->chunks = last;
}

void scan_all_due(struct proc_scan *s)
{
	uint32_t now = scan_now_msec(s, sys_now_usec());

	for (uint32_t i = 0; i < s->chunks; i++)
		scan_due_now(s, &s->chunk[i], now);
}

/*
 * What was reported stays known as reported: the table has it, and would take it for a
 * second page's.
 */
static void unwatched(struct proc_scan *s, struct scan_chunk *k, uint32_t first, uint32_t end)
{
	struct core_pages_clock clock = { scan_now_msec(s, sys_now_usec()), s->set.first_msec,
					  k->looks };

	for (uint32_t i = first; i < end; i++) {
		struct core_pages_group *g = scan_group(s, k, i / CORE_PAGES_GROUP);
		enum core_page_state was;

		if (!g)
			continue;
		was = core_page_state(g, i % CORE_PAGES_GROUP);
		core_page_unwatched(g, i % CORE_PAGES_GROUP, &clock);
		k->pages[was]--;
		k->pages[core_page_state(g, i % CORE_PAGES_GROUP)]++;
	}
	/* What has become present meanwhile was never written since: only a whole look tells. */
	k->looks = 0;
	k->vain = 0;
	k->idle = 0;
	scan_due_now(s, k, clock.now_msec);
}

static void unwatched_part(struct proc_scan *s, struct scan_chunk *k, uint64_t start, uint64_t end,
			   uint32_t page_shift)
{
	uint64_t last = k->base + ((uint64_t)PROC_CHUNK_PAGES << page_shift);

	if (start < k->base)
		start = k->base;
	if (end > last)
		end = last;
	if (start < end)
		unwatched(s, k, (uint32_t)((start - k->base) >> page_shift),
			  (uint32_t)((end - k->base) >> page_shift));
}

void scan_unwatched(struct proc_scan *s, uint64_t start, uint64_t end, uint32_t page_shift)
{
	uint64_t size = (uint64_t)PROC_CHUNK_PAGES << page_shift;

	if ((end - start) / size > s->chunks) {
		for (uint32_t i = 0; i < s->chunks; i++)
			unwatched_part(s, &s->chunk[i], start, end, page_shift);
		return;
	}
	for (uint64_t base = start & ~(size - 1); base < end; base += size) {
		struct scan_chunk *k = scan_chunk_at(s, base);

		if (k)
			unwatched_part(s, k, start, end, page_shift);
	}
}

/* --- groups --------------------------------------------------------------- */

struct core_pages_group *scan_group(struct proc_scan *s, const struct scan_chunk *k, unsigned i)
{
	return k->group[i] ? &s->group[k->group[i] - 1] : NULL;
}

struct core_pages_group *scan_group_make(struct proc_scan *s, struct scan_chunk *k, unsigned i)
{
	struct core_pages_group *g = scan_group(s, k, i);

	if (g)
		return g;
	if (s->group_free) {
		k->group[i] = s->group_free;
		g = scan_group(s, k, i);
		s->group_free = g->tag[0];
	} else {
		if (!scan_room((void **)&s->group, s->groups, &s->groups_room, sizeof(*s->group)))
			return NULL;
		k->group[i] = ++s->groups;
		g = scan_group(s, k, i);
	}
	s->groups_used++;
	memset(g, 0, sizeof(*g));
	return g;
}

void scan_group_free(struct proc_scan *s, struct scan_chunk *k, unsigned i)
{
	struct core_pages_group *g = scan_group(s, k, i);

	if (!g)
		return;
	g->tag[0] = s->group_free;
	s->group_free = k->group[i];
	k->group[i] = 0;
	s->groups_used--;
}

/* --- giving back ----------------------------------------------------------- */

/* Worth it? Then what is left has room to double before it is moved again. */
static bool too_large(uint32_t used, uint32_t room)
{
	return room > ROOM_FIRST && used < room / 4;
}

static uint32_t room_for(uint32_t used)
{
	uint32_t room = ROOM_FIRST;

	while (room < used * 2)
		room *= 2;
	return room;
}

/* No memory: it stays as it is. */
static void shrink_array(void **array, uint32_t used, uint32_t *room, size_t element_bytes)
{
	uint32_t less = room_for(used);
	void *p;

	if (!too_large(used, *room))
		return;
	p = proc_arena_alloc_far(less * element_bytes);
	if (!p)
		return;
	memcpy(p, *array, used * element_bytes);
	proc_arena_free(*array, *room * element_bytes);
	*array = p;
	*room = less;
}

/* Those in use move together; free ones lie among them. */
static void shrink_groups(struct proc_scan *s)
{
	uint32_t room = room_for(s->groups_used), n = 0;
	struct core_pages_group *to;

	if (s->groups < ROOM_FIRST / 4 || s->groups_used > s->groups / 4)
		return;
	to = proc_arena_alloc_far(room * sizeof(*to));
	if (!to)
		return;
	for (uint32_t c = 0; c < s->chunks; c++) {
		struct scan_chunk *k = &s->chunk[c];

		for (unsigned i = 0; i < SCAN_GROUPS; i++) {
			if (!k->group[i])
				continue;
			to[n] = s->group[k->group[i] - 1];
			k->group[i] = ++n;
		}
	}
	proc_arena_free(s->group, s->groups_room * sizeof(*s->group));
	s->group = to;
	s->groups = n;
	s->groups_room = room;
	s->group_free = 0;
}

static void shrink_table(struct proc_scan *s)
{
	uint32_t slots = 4 * room_for(s->chunks);

	if (slots < s->slots / 2)
		(void)table_make(s, slots);
}

void scan_shrink(struct proc_scan *s)
{
	shrink_groups(s);
	shrink_table(s);
	shrink_array((void **)&s->chunk, s->chunks, &s->chunks_room, sizeof(*s->chunk));
	shrink_array((void **)&s->region, s->regions, &s->regions_room, sizeof(*s->region));
	shrink_array((void **)&s->old, s->regions, &s->old_room, sizeof(*s->old));
}

/* --- all of it ------------------------------------------------------------- */

void scan_forget_all(struct proc_scan *s)
{
	proc_arena_free(s->region, s->regions_room * sizeof(*s->region));
	proc_arena_free(s->old, s->old_room * sizeof(*s->old));
	proc_arena_free(s->chunk, s->chunks_room * sizeof(*s->chunk));
	proc_arena_free(s->slot, s->slots * sizeof(*s->slot));
	proc_arena_free(s->group, s->groups_room * sizeof(*s->group));
	s->region = s->old = NULL;
	s->old_room = 0;
	s->chunk = NULL;
	s->slot = NULL;
	s->group = NULL;
	s->regions = s->regions_room = 0;
	s->chunks = s->chunks_room = s->slots = 0;
	s->groups = s->groups_room = s->group_free = s->groups_used = 0;
	s->cursor = s->epoch_seen = 0;
}

/* In use; what the arrays have room for beyond that was never touched. */
uint64_t scan_bytes(const struct proc_scan *s)
{
	return s->regions * sizeof(*s->region) + s->chunks * sizeof(*s->chunk) +
	       s->slots * sizeof(*s->slot) + s->groups * sizeof(*s->group) + sizeof(*s);
}
