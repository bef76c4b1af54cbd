/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which blocks of malloc are ours (big.c): a table from a block's first page to its
 * length, in open addressing.
 *
 *   find     any thread, no lock, in whatever state the process is: free() of each pointer
 *            that could be one of ours asks
 *   remove   the block's owner, before it is unmapped; no lock needed either, for a
 *            process that stepped back (seccomp.c) has no lock that it may take
 *   add      memory lock held
 *
 * A slot is EMPTY, GONE, or has a block. Why find needs no lock: whoever asks for a live
 * block was given it after it was added, and from then to its removal, which is his, it
 * stays in its slot with no EMPTY one between there and where the search begins. For
 * that, a removed block leaves GONE behind, which a later block may take; it becomes EMPTY
 * only where the next slot is EMPTY, so that tables do not fill up with GONE. And of
 * what is none of ours there is no entry: its address was removed before it was unmapped.
 *
 * When more than half is in use, all goes into a table of twice the size. The old ones
 * stay, together no larger than the new one: somebody may be searching there, and what he
 * may ask for is still in it. A removal during the copy has happened in the old table, or
 * sees the new one and happens in both; add() looks for the former when the new one is
 * there for all to see.
 *
 * A fork in the middle of any of this leaves the child a table that is right: each step
 * is one store. At worst a block whose owner is not in the child stays there.
 *
 * The first table is static, small, and on a page that every process has anyway.
 */
#include "shim/shim.h"

#include <sys/mman.h>

#include "proc/mem.h"
#include "sys/sys.h"

enum { EMPTY, GONE }; /* no block begins at these addresses */

struct slot {
	atomic_uintptr_t base;
	atomic_size_t bytes;
};

struct table {
	size_t slots;
	size_t unused; /* slots fill pages and are not cut by cache lines */
	struct slot slot[];
};

#define FEW 15
static struct {
	struct table table;
	struct slot slot[FEW];
} few = { .table.slots = FEW };

static struct table *_Atomic current = &few.table;
static size_t in_use; /* slots that are not EMPTY; lock held */
static atomic_size_t count;

static size_t home(const struct table *t, uintptr_t base)
{
	uint64_t spread = base * UINT64_C(0x9e3779b97f4a7c15) >> 32;

	return (size_t)(spread * t->slots >> 32);
}

static size_t after(const struct table *t, size_t i)
{
	return i + 1 == t->slots ? 0 : i + 1;
}

static struct slot *look(struct table *t, uintptr_t base)
{
	size_t i = home(t, base);

	for (size_t n = 0; n < t->slots; n++, i = after(t, i)) {
		uintptr_t there = atomic_load_explicit(&t->slot[i].base, memory_order_acquire);

		if (there == base)
			return &t->slot[i];
		if (there == EMPTY)
			break;
	}
	return NULL;
}

size_t shim_blocks_find(uintptr_t base)
{
	struct slot *s = look(atomic_load_explicit(&current, memory_order_acquire), base);

	return s ? atomic_load_explicit(&s->bytes, memory_order_relaxed) : 0;
}

size_t shim_blocks_count(void)
{
	return atomic_load_explicit(&count, memory_order_relaxed);
}

/* Lock held: slot i is GONE. */
static void tidy(struct table *t, size_t i)
{
	if (atomic_load(&t->slot[after(t, i)].base) != EMPTY)
		return;
	while (atomic_load(&t->slot[i].base) == GONE) {
		atomic_store(&t->slot[i].base, EMPTY);
		in_use--;
		i = i > 0 ? i - 1 : t->slots - 1;
	}
}

void shim_blocks_remove(uintptr_t base, bool locked)
{
	bool removed = false;
	struct table *t;

	do {
		struct slot *s;
		uintptr_t there = base;

		t = atomic_load(&current);
		s = look(t, base);
		if (!s || !atomic_compare_exchange_strong(&s->base, &there, GONE))
			continue;
		removed = true;
		if (locked)
			tidy(t, (size_t)(s - t->slot));
	} while (atomic_load(&current) != t);
	if (removed)
		atomic_fetch_sub(&count, 1);
}

/* How many slots of t became used: none where a GONE one was there, or the very block. */
static size_t put(struct table *t, uintptr_t base, size_t bytes, bool *known)
{
	size_t i = home(t, base), used = 0;
	struct slot *to = NULL;

	*known = false;
	for (size_t n = 0; n < t->slots; n++, i = after(t, i)) {
		uintptr_t there = atomic_load(&t->slot[i].base);

		if (there == base || there == EMPTY) {
			*known = there == base;
			used = there == EMPTY && !to;
			to = *known || !to ? &t->slot[i] : to;
			break;
		}
		if (there == GONE && !to)
			to = &t->slot[i];
	}
	atomic_store(&to->bytes, bytes);
	atomic_store(&to->base, base);
	return used;
}

static bool grow(struct table *old)
{
	size_t page = sys_page_bytes(), bytes = old->slots * 2 * sizeof(struct slot), used = 0;
	struct table *t;
	intptr_t p;
	bool known;

	bytes = (bytes + page - 1) & ~(page - 1);
	p = sys->mmap(proc_far(bytes), bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (p < 0)
		return false;
	t = (struct table *)p;
	t->slots = (bytes - sizeof(*t)) / sizeof(struct slot);
	for (size_t i = 0; i < old->slots; i++) {
		uintptr_t base = atomic_load(&old->slot[i].base);

		if (base > GONE)
			used += put(t, base, atomic_load(&old->slot[i].bytes), &known);
	}
	in_use = used;
	atomic_store(&current, t);
	for (size_t i = 0; i < t->slots; i++) {
		uintptr_t base = atomic_load(&t->slot[i].base);

		if (base > GONE && !look(old, base))
			atomic_store(&t->slot[i].base, GONE);
	}
	return true;
}

bool shim_blocks_room(void)
{
	struct table *t = atomic_load(&current);

	return in_use < t->slots / 2 || grow(t);
}

void shim_blocks_add(uintptr_t base, size_t bytes)
{
	bool known;

	in_use += put(atomic_load(&current), base, bytes, &known);
	/* Known: libc's own free took it without our seeing it (big.c). */
	if (!known)
		atomic_fetch_add(&count, 1);
}
