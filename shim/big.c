/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big blocks of malloc.
 *
 * glibc's malloc maps blocks from its mmap threshold on by themselves, inside libc, where
 * no interposition sees them come and go. So malloc, calloc, realloc and free go through
 * here: libc makes and frees the blocks as ever, and we note when.
 *
 *   a block     a mapping of whole pages that begins with the chunk's header. The pages
 *               after the first are owned from the moment malloc returns it to the moment it is
 *               given to free, or to a realloc that does not succeed here. The first page is
 *               never owned, so never merged: a block that is merged is several mappings,
 *               libc's own mremap refuses those, and then libc copies
 *   realloc     of a block, to whatever size, is our mremap (no copy, merged or not), and the
 *               header says the new size, as libc's would. libc has its turn if that fails
 *   off         nothing is noted: malloc is not glibc's; before our constructor; nothing is
 *               owned any more; the program does not come to us for all four (tried out once)
 *
 * A block that was noted and is given to libc's own free or realloc past us (a symbol from
 * libc's handle, a library loaded with RTLD_DEEPBIND) would be owned on and on. So
 * before pages of a block are frozen its header is read: if it is not as it was, what is there is
 * not owned, and no block is noted any more. What is left is who does that at the same
 * instant, as with system calls that a program makes by an instruction of its own.
 *
 * Locks: the memory lock, for the set of blocks and what belongs to it. Never held around a
 * call of libc's malloc. Under it the header of a live block may be written: nothing is
 * frozen then. No allocation here, and errno stays.
 *
 * A small request costs a comparison and a jump, and so does free().
 */
#include "shim/shim.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "proc/mem.h"
#include "sys/sys.h"

#define LEAST_BYTES (128u << 10) /* a mapping more for each is worth it */

/* What a chunk has before its memory. */
struct chunk {
	size_t before; /* of the mapping before the chunk; 0 but for aligned ones */
	size_t size;   /* of the chunk, and bits: "mapped" is all that a mapped one has */
};
#define CHUNK_BYTES sizeof(struct chunk)
#define CHUNK_MAPPED 2u

/* --- whose malloc comes after us ------------------------------------------ */

static void *first_malloc(size_t bytes);
static void *first_calloc(size_t n, size_t each);
static void *first_realloc(void *p, size_t bytes);
static void first_free(void *p);

/* ld.so calls us before anything else runs: the first call looks the others up. */
static struct {
	void *(*malloc)(size_t bytes);
	void *(*calloc)(size_t n, size_t each);
	void *(*realloc)(void *p, size_t bytes);
	void (*free)(void *p);
} next = { first_malloc, first_calloc, first_realloc, first_free };

#define LOOK_UP(member) (next.member = (__typeof__(next.member))dlsym(RTLD_NEXT, #member))

/* Finds all of them without an allocation. Two threads write the same. */
static void find_next(void)
{
	LOOK_UP(malloc);
	LOOK_UP(calloc);
	LOOK_UP(realloc);
	LOOK_UP(free);
}

static void *first_malloc(size_t bytes)
{
	find_next();
	return next.malloc(bytes);
}

static void *first_calloc(size_t n, size_t each)
{
	find_next();
	return next.calloc(n, each);
}

static void *first_realloc(void *p, size_t bytes)
{
	find_next();
	return next.realloc(p, bytes);
}

static void first_free(void *p)
{
	find_next();
	next.free(p);
}

/* --- the set ----------------------------------------------------------------- */

/* Requests from so many bytes on are looked at. */
static atomic_size_t from = SIZE_MAX;
/* Bits of an address that say where in its page it is; all, as long as there is no block. */
static atomic_uintptr_t in_page = UINTPTR_MAX;
/* Of each block the pages after the first, so no two are neighbours. Lock held. */
static struct core_rangeset blocks = { .realloc = proc_mem_sets_realloc };

static struct chunk *chunk_of(const void *p)
{
	return (struct chunk *)((uintptr_t)p - CHUNK_BYTES);
}

/* Could p, as malloc returned it, be a block? */
static inline bool looks_mapped(const void *p)
{
	return __builtin_expect(((uintptr_t)p & atomic_load_explicit(&in_page, memory_order_relaxed)) ==
					CHUNK_BYTES, 0) &&
	       chunk_of(p)->before == 0 && (chunk_of(p)->size & 7) == CHUNK_MAPPED;
}

static struct shim_range owned_part(const void *p)
{
	uint64_t base = (uintptr_t)chunk_of(p);

	return (struct shim_range){ base + sys_page_bytes(),
				    base + (chunk_of(p)->size & ~(size_t)7) };
}

/* Lock held. */
static bool is_noted(const struct shim_range *r)
{
	const struct core_range *b = core_rangeset_find(&blocks, r->start);

	return b && b->start == r->start && b->end == r->end;
}

static void stop_noting(void)
{
	atomic_store(&from, SIZE_MAX);
}

/* Just made by libc. */
static void *note(void *p)
{
	struct proc_mem_guard guard;
	struct shim_range r;

	if (!p || !looks_mapped(p) || !shim_is_ready())
		return p;
	r = owned_part(p);
	if (r.end <= r.start || (r.end & (sys_page_bytes() - 1)) != 0)
		return p;
	proc_mem_lock(&guard);
	if (atomic_load(&from) != SIZE_MAX && core_rangeset_add(&blocks, r.start, r.end, 0) == 0)
		shim_fresh(&r);
	else
		shim_forget(&r);
	proc_mem_unlock(&guard);
	return p;
}

/* Lock held. */
static void strike(const struct shim_range *r)
{
	core_rangeset_remove_or_forget(&blocks, r->start, r->end);
}

static void free_big(void *p)
{
	struct shim_range r = owned_part(p);
	struct proc_mem_guard guard;
	bool merged = false;

	if (shim_is_ready()) {
		proc_mem_lock(&guard);
		if (is_noted(&r)) {
			merged = proc_mem_maybe_merged(r.start, r.end);
			strike(&r);
			shim_forget(&r);
		}
		proc_mem_unlock(&guard);
	}
	next.free(p);
	if (!merged)
		return;
	proc_mem_lock(&guard);
	proc_mem_unmapped();
	proc_mem_unlock(&guard);
}

/* The length of the mapping that libc would make for a block of so many bytes. */
static size_t mapping_bytes(size_t bytes)
{
	size_t mask = sys_page_bytes() - 1;
	size_t chunk = (bytes + sizeof(size_t) + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);

	return (chunk + sizeof(size_t) + mask) & ~mask;
}

/* Lock held; r: what was owned of it. NULL: not possible, and all is as it was. */
static void *move_block(void *p, struct shim_range r, size_t want)
{
	size_t page = sys_page_bytes();
	uint64_t old = r.start - page, had = r.end - old;
	intptr_t to = shim_remap_locked((void *)old, had, want, MREMAP_MAYMOVE, NULL);
	struct shim_range tail;

	if (to < 0 && to >= -4095)
		return NULL;
	strike(&r);
	tail = (struct shim_range){ (uint64_t)to + had, (uint64_t)to + want };
	if (tail.end > tail.start)
		shim_fresh(&tail);
	r = (struct shim_range){ (uint64_t)to + page, (uint64_t)to + want };
	if (core_rangeset_add(&blocks, r.start, r.end, 0) < 0)
		proc_mem_disown(r.start, r.end);
	p = (void *)((uintptr_t)to + CHUNK_BYTES);
	chunk_of(p)->size = want | CHUNK_MAPPED;
	return p;
}

/* NULL: it is libc's turn. */
static void *resize(void *p, size_t bytes)
{
	struct shim_range r = owned_part(p);
	struct proc_mem_guard guard;
	void *to = NULL;
	size_t want;

	if (bytes > PTRDIFF_MAX || !shim_is_ready())
		return NULL;
	want = mapping_bytes(bytes);
	proc_mem_lock(&guard);
	if (is_noted(&r)) {
		if (want > sys_page_bytes())
			to = want == r.end - r.start + sys_page_bytes() ? p : move_block(p, r, want);
		if (!to) {
			strike(&r);
			proc_mem_disown(r.start, r.end);
		}
	}
	proc_mem_unlock(&guard);
	return to;
}

/*
 * Before pages of [start, end), which are owned, are frozen, or watched; lock held. A header is
 * never frozen, but may be gone.
 */
static bool still_there(uint64_t start, uint64_t end)
{
	const struct core_range *b = core_rangeset_find(&blocks, start);
	struct chunk seen;
	struct iovec to = { &seen, sizeof(seen) }, at = { .iov_len = sizeof(seen) };
	struct shim_range r;

	if (!b || b->start >= end)
		return true;
	r = (struct shim_range){ b->start, b->end };
	at.iov_base = (void *)(r.start - sys_page_bytes());
	if (sys->read_self(&to, 1, &at, 1) == (ssize_t)sizeof(seen) && seen.before == 0 &&
	    seen.size == ((r.end - r.start + sys_page_bytes()) | CHUNK_MAPPED))
		return true;
	stop_noting();
	strike(&r);
	proc_mem_disown(r.start, r.end);
	return false;
}

/* In a child, whose parent may have been in the middle of a change: nothing is owned any more. */
static void forget_all(void)
{
	core_rangeset_init(&blocks, proc_mem_sets_realloc);
}

/* --- exported ------------------------------------------------------------- */

static inline bool small(size_t bytes)
{
	return __builtin_expect(bytes < atomic_load_explicit(&from, memory_order_relaxed), 1);
}

SHIM_EXPORT void *malloc(size_t bytes)
{
	return small(bytes) ? next.malloc(bytes) : note(next.malloc(bytes));
}

SHIM_EXPORT void *calloc(size_t n, size_t each)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, each, &bytes) || small(bytes))
		return next.calloc(n, each);
	return note(next.calloc(n, each));
}

SHIM_EXPORT void *realloc(void *p, size_t bytes)
{
	void *to = looks_mapped(p) ? resize(p, bytes) : NULL;

	if (to)
		return to;
	to = next.realloc(p, bytes);
	return small(bytes) ? to : note(to);
}

SHIM_EXPORT void free(void *p)
{
	if (looks_mapped(p))
		free_big(p);
	else
		next.free(p);
}

/* --- start ---------------------------------------------------------------- */

/* Is p a block, noted, and of the length that it should have? */
static bool as_it_should_be(const void *p, size_t bytes, struct shim_range *r)
{
	struct proc_mem_guard guard;
	bool yes;

	*r = (struct shim_range){ 0 };
	if (!p || !looks_mapped(p))
		return false;
	*r = owned_part(p);
	proc_mem_lock(&guard);
	yes = is_noted(r) && r->end - r->start + sys_page_bytes() == mapping_bytes(bytes);
	proc_mem_unlock(&guard);
	return yes;
}

/* It is libc's again. Were we told? */
static bool is_struck(const struct shim_range *r)
{
	struct proc_mem_guard guard;
	bool yes;

	proc_mem_lock(&guard);
	yes = !core_rangeset_intersects(&blocks, r->start, r->end);
	if (!yes) {
		strike(r);
		proc_mem_disown(r->start, r->end);
	}
	proc_mem_unlock(&guard);
	return yes;
}

/*
 * Does who calls malloc, calloc, realloc, free come to us, and is what libc makes as we think?
 * By address, which the compiler must not see through, as a call of the program's would be bound.
 */
static bool calls_arrive(size_t bytes)
{
	void *(*volatile do_malloc)(size_t) = malloc;
	void *(*volatile do_calloc)(size_t, size_t) = calloc;
	void *(*volatile do_realloc)(void *, size_t) = realloc;
	void (*volatile do_free)(void *) = free;
	size_t more = bytes + sys_page_bytes();
	struct shim_range first, second, third;
	void *p = do_malloc(bytes), *larger;
	bool yes = as_it_should_be(p, bytes, &first);

	larger = do_realloc(p, more);
	yes = as_it_should_be(larger, more, &second) && yes;
	if (second.start != first.start)
		yes = is_struck(&first) && yes;
	do_free(larger ? larger : p);
	yes = is_struck(&second) && yes;
	p = do_calloc(1, bytes);
	yes = as_it_should_be(p, bytes, &third) && yes;
	do_free(p);
	return is_struck(&third) && yes;
}

void shim_big_start(void)
{
	static const size_t tries[] = { 1u << 20, 33u << 20 }; /* the user may have chosen a threshold */
	bool arrive = false;

	find_next();
	proc_mem_set_vouch(still_there, forget_all);
	atomic_store(&in_page, sys_page_bytes() - 1);
	atomic_store(&from, LEAST_BYTES);
	for (unsigned i = 0; i < 2 && !arrive; i++)
		arrive = calls_arrive(tries[i]);
	if (!arrive)
		stop_noting();
}
