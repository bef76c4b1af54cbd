/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two candidate tables of a store, one behind the other in one file.
 *
 * The first is of rounds: cleared when a LOOK or MERGE begins and when it ends. The
 * second stands: scanners report into it what has become still, and somebody who
 * then finds the same has a reason to promote.
 *
 * Sizes are chosen once, so a client that has the tables mapped never has to be told
 * of others; a crowded table drops fingerprints, which costs merges that come later
 * and nothing else. A table is cleared by giving the memory back to the kernel
 * (MADV_REMOVE): it is the size of all memory's fingerprints, and a broker at rest
 * should not carry that. The seal FUTURE_WRITE would forbid it, so this file has none:
 * clients get it opened read-only with mode 0444, which root and the broker's own user
 * could get around. Whoever does can write nothing there that TAGS could not say as
 * well: counts are hints, and everybody takes the size from a checked copy of their own.
 *
 * Memory. The first store to a page that has none would be a SIGBUS where there is
 * none to be had (strict overcommit): each page is asked for while an error can still be
 * reported, and `backed` remembers which were. Without memory a tag is dropped (I4).
 *
 * The standing table wears out: pages change, processes end, and their tags stay. That
 * is harmless while there is room (a stale tag can cost one slot that nobody shares), so
 * a table is renewed when it is crowded, has dropped a part, has grown to many times
 * what it was soon after its beginning, or when those who reported half of it are gone.
 * Scanners see the round move and report all again, so renewals keep a distance, longer
 * if they do not help: a client that floods the table cannot keep the others busy (I4).
 *
 * Who has reported what. A session has a number in the table, for a while: what one has
 * reported that is gone by now must not pass for a page of somebody's. A number is given
 * again only when nothing of the one before is in the table, so when the unused ones run
 * out, the table is swept, of many at once: whoever comes and goes all the time costs the
 * others nothing that counts (I4). When there are more sessions than numbers, some have the
 * same, and are no twins for each other.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "broker/store_impl.h"
#include "sys/sys.h"

#ifndef MADV_REMOVE
#define MADV_REMOVE 9
#endif

#define SECOND_USEC UINT64_C(1000000)
#define RENEW_FIRST_USEC (60 * SECOND_USEC)
#define RENEW_MOST_USEC (15 * 60 * SECOND_USEC)
#define GROWN_TIMES 4u
#define FEW_TAGS 65536u /* 256 KiB: not worth a renewal */
#define SWEEP_LEAST 64u /* numbers, to be worth it */

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

int broker_cand_init(struct broker_store *st)
{
	size_t one = st->cand_shm.bytes / 2, pages = st->cand_shm.bytes / st->page_bytes + 1;
	uint8_t *mem = st->cand_shm.mem;
	int r;

	st->cand_backed = calloc(pages / 64 + 1, sizeof(*st->cand_backed));
	if (!st->cand_backed)
		return -ENOMEM;
	/* The pages with the headers must exist before they are written to. */
	for (unsigned i = 0; i < 2; i++) {
		if (!broker_cand_back(st, mem + i * one))
			return -ENOMEM;
	}
	r = core_cand_init(&st->cand, mem, one);
	if (r == 0)
		r = core_cand_init(&st->standing.table, mem + one, one);
	if (r == 0)
		core_cand_begin_small(&st->standing.table);
	st->standing.wait_usec = RENEW_FIRST_USEC;
	st->standing.room_pages = UINT64_MAX;
	return r;
}

static size_t page_of(const struct broker_store *st, const void *place)
{
	return (size_t)((const uint8_t *)place - (const uint8_t *)st->cand_shm.mem) /
	       st->page_bytes;
}

static bool is_backed(const struct broker_store *st, size_t page)
{
	return st->cand_backed[page / 64] >> page % 64 & 1;
}

bool broker_cand_back(struct broker_store *st, const void *place)
{
	size_t page = page_of(st, place);
	int r;

	if (is_backed(st, page))
		return true;
	r = sys->madvise((uint8_t *)st->cand_shm.mem + page * st->page_bytes, st->page_bytes,
			 MADV_POPULATE_WRITE);
	if (r < 0 && r != -EINVAL) /* before Linux 5.14 */
		return false;
	st->cand_backed[page / 64] |= UINT64_C(1) << page % 64;
	return true;
}

/* Is there memory for it? Else it is dropped. */
static bool has_room(struct broker_store *st, struct core_cand *table, uint32_t tag)
{
	const void *place[2];

	core_cand_places(table, tag, place);
	if (broker_cand_back(st, place[0]) && broker_cand_back(st, place[1]))
		return true;
	atomic_fetch_add_explicit(&table->header->dropped, 1, memory_order_relaxed);
	return false;
}

/* What core_cand_clear() does, without asking for memory to write zeros to. */
static void clear(struct broker_store *st, struct core_cand *table, size_t bytes)
{
	struct core_cand_header *header = table->header;
	uint8_t *mem = st->cand_shm.mem, *end = (uint8_t *)header + bytes;
	uint8_t *from = (uint8_t *)header + CORE_CAND_HEADER_BYTES;
	size_t first = page_of(st, from + st->page_bytes - 1), last = page_of(st, end);

	if (first < last && sys->madvise(mem + first * st->page_bytes,
					 (last - first) * st->page_bytes, MADV_REMOVE) == 0) {
		for (size_t i = first; i < last; i++)
			st->cand_backed[i / 64] &= ~(UINT64_C(1) << i % 64);
	}
	/* Large pages: the ends of a table share theirs with what stays. */
	while (from < end) {
		uint8_t *next = mem + (page_of(st, from) + 1) * st->page_bytes;

		if (next > end)
			next = end;
		if (is_backed(st, page_of(st, from)))
			memset(from, 0, (size_t)(next - from));
		from = next;
	}
	atomic_store_explicit(&header->entries, 0, memory_order_relaxed);
	atomic_store_explicit(&header->dropped, 0, memory_order_relaxed);
	atomic_fetch_add_explicit(&header->round, 1, memory_order_release);
}

void broker_store_tags(struct broker_store *st, const uint32_t *tag, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (has_room(st, &st->cand, tag[i]))
			core_cand_add(&st->cand, tag[i]);
}

void broker_store_round(struct broker_store *st)
{
	clear(st, &st->cand, st->cand_shm.bytes / 2);
}

/* The standing table --------------------------------------------------------- */

static bool worn_out(const struct broker_standing *sd)
{
	uint64_t entries = load(&sd->table.header->entries);

	/* Where it may not grow for its user has used up what is his, a new one would fare no better. */
	if (!sd->refused &&
	    (core_cand_crowded(&sd->table) || load(&sd->table.header->dropped) > entries / 16))
		return true;
	if (entries > FEW_TAGS && sd->gone > entries / 2)
		return true;
	return sd->settled && entries > FEW_TAGS + GROWN_TIMES * sd->settled_entries;
}

static void renew(struct broker_store *st, uint64_t now_usec)
{
	struct broker_standing *sd = &st->standing;

	clear(st, &sd->table, st->cand_shm.bytes / 2);
	core_cand_begin_small(&sd->table);
	sd->began_usec = now_usec;
	sd->gone = 0;
	sd->settled = sd->refused = false;
	memset(sd->used, 0, sizeof(sd->used));
}

static uint64_t table_pages(const struct broker_store *st, uint32_t buckets)
{
	return (uint64_t)buckets * CORE_CAND_BUCKET_BYTES / st->page_bytes;
}

static bool back_buckets(struct broker_store *st, const struct core_cand *table, uint32_t first,
			 uint32_t count)
{
	const uint8_t *from = (const uint8_t *)table->entries + (size_t)first * CORE_CAND_BUCKET_BYTES;
	const uint8_t *last = from + (size_t)count * CORE_CAND_BUCKET_BYTES - 1;

	for (; from < last; from += st->page_bytes)
		if (!broker_cand_back(st, from))
			return false;
	return broker_cand_back(st, last);
}

/*
 * Memory first: a store to a page that cannot be had would be the end of us. And where nothing
 * was added yet there is no page to read from, either.
 */
static bool grow(struct broker_store *st, struct core_cand *table)
{
	struct core_cand_step step;
	uint32_t used = core_cand_used(table);
	uint64_t pages = 0;

	if (!core_cand_step(table, &step))
		return false;
	if (step.to + step.to_count > used)
		pages = table_pages(st, step.to + step.to_count - used);
	st->standing.refused = pages > st->standing.room_pages;
	if (st->standing.refused || !back_buckets(st, table, step.to, step.to_count) ||
	    !back_buckets(st, table, step.from, CORE_CAND_ROW))
		return false;
	if (st->standing.room_pages != UINT64_MAX)
		st->standing.room_pages -= pages;
	core_cand_grow(table);
	return true;
}

/* What those who are gone had reported. Where nothing was ever added there is nothing. */
static void sweep(struct broker_store *st)
{
	struct broker_standing *sd = &st->standing;
	const uint8_t *from = (const uint8_t *)sd->table.entries;

	for (uint32_t b = 0; b < core_cand_used(&sd->table); b++)
		if (is_backed(st, page_of(st, from + (size_t)b * CORE_CAND_BUCKET_BYTES)))
			core_cand_sweep(&sd->table, b, 1);
	for (unsigned who = 1; who <= CORE_CAND_WHO_MAX; who++)
		sd->used[who] &= sd->users[who] > 0;
	sd->gone = 0;
}

/* One that nobody has, and of which nothing is in the table; 0: there is none. */
static unsigned free_number(const struct broker_standing *sd, unsigned *to_sweep)
{
	*to_sweep = 0;
	for (unsigned who = 1; who <= CORE_CAND_WHO_MAX; who++) {
		if (sd->users[who])
			continue;
		if (!sd->used[who])
			return who;
		++*to_sweep;
	}
	return 0;
}

unsigned broker_store_standing_join(struct broker_store *st)
{
	struct broker_standing *sd = &st->standing;
	unsigned to_sweep, who = free_number(sd, &to_sweep);

	if (!who && to_sweep >= SWEEP_LEAST) {
		sweep(st);
		who = free_number(sd, &to_sweep);
	}
	for (unsigned i = 1; !who && i <= CORE_CAND_WHO_MAX; i++)
		if (sd->users[i])
			who = i;
	for (unsigned i = 1; sd->users[who] && i <= CORE_CAND_WHO_MAX; i++)
		if (sd->users[i] && sd->users[i] < sd->users[who])
			who = i;
	sd->users[who]++;
	core_cand_here(&sd->table, who, true);
	return who;
}

void broker_store_standing_leave(struct broker_store *st, unsigned who, uint64_t tags)
{
	struct broker_standing *sd = &st->standing;

	sd->gone += tags;
	if (--sd->users[who] == 0)
		core_cand_here(&sd->table, who, false);
}

void broker_store_standing(struct broker_store *st, unsigned who, const uint32_t *tag,
			   unsigned count, uint64_t now_usec)
{
	struct broker_standing *sd = &st->standing;
	bool grows = true; /* until there is no memory */
	uint64_t age;

	sd->used[who] = true;
	for (unsigned i = 0; i < count; i++) {
		if (grows && core_cand_full(&sd->table))
			grows = grow(st, &sd->table);
		if (has_room(st, &sd->table, tag[i]))
			core_cand_report(&sd->table, tag[i], who);
	}
	if (sd->began_usec == 0)
		sd->began_usec = now_usec;
	age = now_usec - sd->began_usec;
	if (age < sd->wait_usec)
		return;
	if (worn_out(sd)) {
		sd->wait_usec = age >= 2 * sd->wait_usec ? RENEW_FIRST_USEC : 2 * sd->wait_usec;
		if (sd->wait_usec > RENEW_MOST_USEC)
			sd->wait_usec = RENEW_MOST_USEC;
		renew(st, now_usec);
	} else if (!sd->settled) {
		sd->settled = true;
		sd->settled_entries = load(&sd->table.header->entries);
	}
}

void broker_store_standing_room(struct broker_store *st, uint64_t pages)
{
	st->standing.room_pages = pages;
}

uint64_t broker_store_standing_pages(const struct broker_store *st)
{
	return table_pages(st, core_cand_used(&st->standing.table) - CORE_CAND_ROW);
}

uint64_t broker_store_standing_round(const struct broker_store *st)
{
	return load(&st->standing.table.header->round);
}

void broker_store_standing_end(struct broker_store *st)
{
	if (load(&st->standing.table.header->entries) == 0)
		return;
	renew(st, 0);
	st->standing.wait_usec = RENEW_FIRST_USEC;
}

void broker_cand_promoted(struct broker_store *st, uint32_t tag)
{
	const void *place[2];

	/* Where nothing was ever added, a look would need memory. */
	core_cand_places(&st->standing.table, tag, place);
	if (is_backed(st, page_of(st, place[0])) && is_backed(st, page_of(st, place[1])))
		core_cand_remove(&st->standing.table, tag);
}

const struct core_cand *broker_store_cand(const struct broker_store *st)
{
	return &st->cand;
}

const struct core_cand *broker_store_standing_cand(const struct broker_store *st)
{
	return &st->standing.table;
}
