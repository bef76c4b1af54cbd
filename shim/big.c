/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big blocks of malloc.
 *
 * glibc's malloc maps blocks from its mmap threshold on by themselves, inside libc, where
 * no interposition sees them come and go. So malloc, calloc, realloc and free go through
 * here: libc makes, moves and frees the blocks as ever, and we note when.
 *
 *   a block     a mapping of whole pages that begins with the chunk's header. The pages
 *               after the first are owned from the moment malloc returns it to the moment it is
 *               given to free or realloc; what realloc returns is owned again, with the
 *               program's advice. The first page is never owned, so never merged: a block that is
 *               merged is several mappings, libc's mremap refuses those, and libc copies. Watched
 *               it is (register_owned), for a block that is only watched has to be one mapping
 *   off         nothing is noted: malloc is not glibc's; before our constructor; nothing is
 *               owned any more; the program does not come to us for all four (tried out once); it
 *               has a userfaultfd (shim_big_stop)
 *
 * A block that was noted and is given to libc's own free or realloc past us (a symbol from
 * libc's handle, a library loaded with RTLD_DEEPBIND) would be owned on and on. So
 * before pages of a block are frozen its header is read: if it is not as it was, what is there is
 * not owned, and no block is noted any more. What is left is who does that at the same
 * instant, as with system calls that a program makes by an instruction of its own.
 *
 * Locks: the memory lock, for the set of blocks and what belongs to it. Never held around a
 * call of libc's malloc, and the program's memory is not touched under it. No allocation
 * here, and errno stays.
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
/* Have blocks been noted, and not been given up since? */
static atomic_bool any;
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

/* A whole mapping of libc's that begins with p's header? */
static bool is_block(const void *p, struct shim_range *r)
{
	if (!looks_mapped(p)) /* nor does NULL */
		return false;
	*r = owned_part(p);
	return r->end > r->start && (r->end & (sys_page_bytes() - 1)) == 0;
}

/* Lock held. */
static bool add(const struct shim_range *r)
{
	proc_mem_disown(r->start - sys_page_bytes(), r->start);
	if (atomic_load(&from) == SIZE_MAX || core_rangeset_add(&blocks, r->start, r->end, 0) < 0)
		return false;
	atomic_store(&any, true);
	return true;
}

/* Just made by libc. */
static void *note(void *p)
{
	struct proc_mem_guard guard;
	struct shim_range r;

	if (!is_block(p, &r) || !shim_is_ready())
		return p;
	proc_mem_lock(&guard);
	if (add(&r))
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

/* Store mappings went inside libc: who asks what is still mapped has to look. */
static void went_unseen(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	proc_mem_unmapped();
	proc_mem_unlock(&guard);
}

static void free_big(void *p)
{
	struct shim_range r = owned_part(p);
	struct proc_mem_guard guard;
	bool merged = false;

	/* Without blocks no lock: see shim_big_stop(). */
	if (atomic_load(&any) && shim_is_ready()) {
		proc_mem_lock(&guard);
		if (is_noted(&r)) {
			merged = proc_mem_maybe_merged(r.start, r.end);
			strike(&r);
			shim_forget(&r);
		}
		proc_mem_unlock(&guard);
	}
	next.free(p);
	if (merged)
		went_unseen();
}

/* What is known of a block while it is libc's. */
struct aside {
	struct shim_range r;
	bool noted;
	bool owned; /* all of it */
	bool merged;
	uint32_t attr; /* of the last page; a refusal of any is one of all */
};

/* Lock held. */
static void read_attr(struct aside *a)
{
	uint64_t at = a->r.start;
	struct core_range o;

	a->owned = proc_mem_is_owned(a->r.start, a->r.end);
	while (at < a->r.end && proc_mem_owned_copy(at, &o, 1) == 1 && o.start < a->r.end) {
		a->attr = o.attr | (a->attr & PROC_OWN_REFUSED);
		at = o.end;
	}
	if (a->attr & PROC_OWN_REFUSED)
		a->attr &= ~(uint32_t)PROC_OWN_ADVISED;
}

static struct aside set_aside(void *p)
{
	struct aside a = { .r = owned_part(p) };
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	a.noted = is_noted(&a.r);
	if (a.noted) {
		read_attr(&a);
		a.merged = proc_mem_maybe_merged(a.r.start, a.r.end);
		strike(&a.r);
		/* The hull stays: it may be where it is. */
		proc_mem_disown(a.r.start, a.r.end);
		proc_mem_touched(a.r.start, a.r.end);
	}
	proc_mem_unlock(&guard);
	return a;
}

/* p: where it is now, NULL: it stayed. */
static void take_back(const struct aside *a, void *p)
{
	struct proc_mem_guard guard;
	struct shim_range r = a->r;

	if (!shim_is_ready() || (p && !is_block(p, &r)))
		return;
	proc_mem_lock(&guard);
	if (r.start != a->r.start)
		shim_forget(&r);
	else if (r.end > a->r.end)
		shim_forget(&(struct shim_range){ a->r.end, r.end });
	/* What the program did to a part of it is not for the whole. */
	if (!add(&r))
		stop_noting(); /* or it would be noted as new the next time, and may be merged */
	else if (a->owned && shim_owning())
		proc_mem_adopt(r.start, r.end, a->attr);
	proc_mem_unlock(&guard);
}

static inline bool small(size_t bytes)
{
	return __builtin_expect(bytes < atomic_load_explicit(&from, memory_order_relaxed), 1);
}

static void *grown(void *p, size_t bytes)
{
	void *to = next.realloc(p, bytes);

	/* Where it was it is nothing new. */
	return small(bytes) || to == p ? to : note(to);
}

static void *resize(void *p, size_t bytes)
{
	struct aside a;
	void *to;

	if (!atomic_load(&any) || !shim_is_ready())
		return grown(p, bytes);
	a = set_aside(p);
	if (!a.noted)
		return grown(p, bytes);
	to = next.realloc(p, bytes);
	if (to || bytes != 0)
		take_back(&a, to);
	if (a.merged)
		went_unseen();
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

/* The page with the header, if a block begins there. Lock held. */
static uint64_t lead(uint64_t start, uint64_t *end)
{
	const struct core_range *b = core_rangeset_find(&blocks, start);

	if (!b || b->start != start)
		return 0;
	*end = b->end;
	return sys_page_bytes();
}

/* In a child, whose parent may have been in the middle of a change: nothing is owned any more. */
static void forget_all(void)
{
	core_rangeset_init(&blocks, proc_mem_sets_realloc);
}

static const struct proc_mem_vouch vouch = { still_there, lead, forget_all };

/* --- exported ------------------------------------------------------------- */

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
	return looks_mapped(p) ? resize(p, bytes) : grown(p, bytes);
}

SHIM_EXPORT void free(void *p)
{
	if (looks_mapped(p))
		free_big(p);
	else
		next.free(p);
}

/* --- start ---------------------------------------------------------------- */

static bool noted_now(const void *p, struct shim_range *r)
{
	struct proc_mem_guard guard;
	bool yes;

	*r = (struct shim_range){ 0 };
	if (!is_block(p, r))
		return false;
	proc_mem_lock(&guard);
	yes = is_noted(r);
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
 * Does who calls malloc, calloc, realloc, free come to us? By address, which the compiler must
 * not see through, as a call of the program's would be bound. A request that libc does not map
 * says nothing, and is not repeated with calloc, which would write all of it.
 */
static bool calls_arrive(size_t bytes)
{
	void *(*volatile do_malloc)(size_t) = malloc;
	void *(*volatile do_calloc)(size_t, size_t) = calloc;
	void *(*volatile do_realloc)(void *, size_t) = realloc;
	void (*volatile do_free)(void *) = free;
	struct shim_range first, second, third;
	void *p = do_malloc(bytes), *larger;
	bool yes;

	if (!noted_now(p, &first)) {
		do_free(p);
		return false;
	}
	larger = do_realloc(p, bytes + sys_page_bytes());
	yes = noted_now(larger, &second);
	if (second.start != first.start)
		yes = is_struck(&first) && yes;
	do_free(larger ? larger : p);
	yes = is_struck(&second) && yes;
	if (!yes)
		return false;
	p = do_calloc(1, bytes);
	yes = noted_now(p, &third);
	do_free(p);
	return is_struck(&third) && yes;
}

void shim_big_start(void)
{
	static const size_t tries[] = { 1u << 20, 33u << 20 }; /* the user may have chosen a threshold */
	bool arrive = false;

	find_next();
	proc_mem_set_vouch(&vouch);
	atomic_store(&in_page, sys_page_bytes() - 1);
	atomic_store(&from, LEAST_BYTES);
	for (unsigned i = 0; i < 2 && !arrive; i++)
		arrive = calls_arrive(tries[i]);
	if (!arrive)
		stop_noting();
}

void shim_big_stop(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	stop_noting();
	for (size_t i = 0; i < blocks.count; i++)
		proc_mem_disown(blocks.ranges[i].start, blocks.ranges[i].end);
	core_rangeset_free(&blocks);
	core_rangeset_init(&blocks, proc_mem_sets_realloc);
	atomic_store(&any, false);
	proc_mem_unlock(&guard);
}
