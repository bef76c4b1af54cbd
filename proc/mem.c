/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The range sets and their lock; mem.h has the theory.
 *
 * Which way each set errs when memory for it runs out: owned forgets, stale and
 * hull become "everything". All three errors cost merging, none costs data.
 */
#include "proc/mem.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

/* Innermost lock of the process; see mem.h for who takes it. */
static _Atomic uint32_t mem_lock_word;
static _Atomic uint32_t forking; /* threads between fork_begins and fork_ends; futex */
static unsigned passes;          /* under way, of all engines */

#define EMPTY_SET { .realloc = proc_mem_sets_realloc }
static struct core_rangeset owned = EMPTY_SET;
static struct core_rangeset hull = EMPTY_SET;
static struct core_rangeset stale = EMPTY_SET;
static struct proc_mem_flags known_flags; /* start == end: none */
static uint64_t changes;
static bool hull_everything;
static bool stale_everything;
static _Atomic uint64_t sets_bytes; /* read without the lock */
static void (*before_pass)(void);
static const struct proc_mem_vouch *vouch;
static struct proc_mem_watch *watch;

/* Ours: arenas, stacks, staging. A handful per handle. */
#define EXCLUDED_FEW 8
#define EXCLUDED_MAX 256
struct excluded {
	uint64_t start, end;
};
/* Small while that is enough: static memory is a private copy in every process. */
static struct excluded excluded_few[EXCLUDED_FEW];
static struct excluded *excluded = excluded_few;
static unsigned excluded_count;
static _Atomic uint32_t excluded_lock;

extern char _end[] __attribute__((visibility("hidden")));
/* Where the writable part of this module's file is mapped; an engine looks it up. */
static _Atomic uint64_t own_data_start;

static uint64_t page_down(uint64_t addr)
{
	return addr & ~(uint64_t)(sys_page_bytes() - 1);
}

static uint64_t page_up(uint64_t addr)
{
	return page_down(addr + sys_page_bytes() - 1);
}

/*
 * Sets begin in small pieces of static memory, which share a page with the rest of
 * it: with a mapping for each, every process would have a page for each, and as many
 * page tables where they happen to lie. Larger ones come straight from the kernel,
 * page-rounded; never through an interposed call.
 */
#define SMALL_BYTES (8 * sizeof(struct core_range))
#define SMALL_COUNT 5u
static struct core_range small_sets[SMALL_COUNT][SMALL_BYTES / sizeof(struct core_range)];
static bool small_taken[SMALL_COUNT];

static void *small_take(void)
{
	for (unsigned i = 0; i < SMALL_COUNT; i++)
		if (!small_taken[i]) {
			small_taken[i] = true;
			return small_sets[i];
		}
	return NULL;
}

static bool is_small(const void *ptr)
{
	return (uintptr_t)ptr >= (uintptr_t)small_sets &&
	       (uintptr_t)ptr < (uintptr_t)small_sets + sizeof(small_sets);
}

static void sets_free(void *ptr, size_t bytes)
{
	if (is_small(ptr)) {
		small_taken[((uintptr_t)ptr - (uintptr_t)small_sets) / SMALL_BYTES] = false;
	} else if (ptr) {
		sys->munmap(ptr, page_up(bytes));
		sets_bytes -= page_up(bytes);
	}
}

void *proc_mem_sets_realloc(void *ptr, size_t old_bytes, size_t new_bytes)
{
	bool mapped = ptr && !is_small(ptr);
	size_t old_len = mapped ? page_up(old_bytes) : 0, new_len = page_up(new_bytes);
	void *small = !ptr && new_bytes && new_bytes <= SMALL_BYTES ? small_take() : NULL;
	intptr_t p;

	if (small)
		return small;
	if (new_bytes == 0) {
		sets_free(ptr, old_bytes);
		return NULL;
	}
	if (mapped && new_len == old_len)
		return ptr;
	/* In the middle of the program's own munmap: not where it has just made room. */
	p = sys->mmap(proc_far(new_len), new_len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0)
		return NULL;
	sets_bytes += new_len;
	if (ptr) {
		memcpy((void *)p, ptr, old_bytes < new_bytes ? old_bytes : new_bytes);
		sets_free(ptr, old_bytes);
	}
	return (void *)p;
}

/* --- the lock ------------------------------------------------------------- */

void proc_mem_lock(struct proc_mem_guard *guard)
{
	sys_sigmask_block_all(&guard->saved);
	proc_lock(&mem_lock_word);
}

void proc_mem_unlock(const struct proc_mem_guard *guard)
{
	sigset_t saved = guard->saved;

	proc_unlock(&mem_lock_word);
	sys_sigmask_restore(&saved);
}

/*
 * glibc's setuid() and its like send SIGSETXID to every thread and wait until all
 * have answered; the engine's must, too, or the program hangs. Its handler reads
 * memory of the program, so not while anything is frozen.
 */
static void engine_sigmask(bool answer_setxid)
{
	sigset_t set;

	/* libc's functions know nothing of this number. */
	memset(&set, 0xff, sizeof(set));
	if (answer_setxid)
		((unsigned char *)&set)[(SYS_SIGSETXID - 1) / 8] &=
			(unsigned char)~(1u << (SYS_SIGSETXID - 1) % 8);
	sys_sigmask_restore(&set);
}

void proc_mem_engine_starts(void)
{
	engine_sigmask(true);
}

void proc_mem_lock_engine(void)
{
	uint32_t forks;

	engine_sigmask(false);
	for (;;) {
		proc_lock(&mem_lock_word);
		forks = atomic_load(&forking);
		if (!forks)
			return;
		proc_unlock(&mem_lock_word);
		engine_sigmask(true);
		sys_futex_wait(&forking, forks, -1);
		engine_sigmask(false);
	}
}

void proc_mem_unlock_engine(void)
{
	proc_unlock(&mem_lock_word);
	engine_sigmask(true);
}

void proc_mem_fork_begins(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	atomic_fetch_add(&forking, 1);
	proc_mem_unlock(&guard);
}

void proc_mem_fork_ends(void)
{
	atomic_fetch_sub(&forking, 1);
	sys_futex_wake(&forking, INT_MAX);
}

void proc_mem_fork_child(void)
{
	bool torn = atomic_load(&mem_lock_word) != 0;

	atomic_store(&forking, 0);
	atomic_store(&mem_lock_word, 0);
	atomic_store(&excluded_lock, 0);
	passes = 0;
	/* The engine's thread is not here, nor what it watched for. */
	if (watch && !torn) {
		core_rangeset_free(&watch->touched);
		core_rangeset_free(&watch->discarded);
	}
	watch = NULL;
	if (!torn)
		return;
	/* Their memory is left behind: what it says of itself may be wrong. */
	core_rangeset_init(&owned, proc_mem_sets_realloc);
	core_rangeset_init(&hull, proc_mem_sets_realloc);
	core_rangeset_init(&stale, proc_mem_sets_realloc);
	hull_everything = stale_everything = true;
	known_flags.start = known_flags.end = 0;
	proc_origin_torn();
	if (vouch)
		vouch->torn();
}

/*
 * What has changed since somebody last read the mappings. An addition costs the program as
 * much as there is already; when there is too much, all of it has changed.
 */
#define CHANGED_MOST 8192u
static void note_change(struct core_rangeset *rs, bool *everything, uint64_t start, uint64_t end)
{
	if (*everything)
		return;
	if (core_rangeset_add(rs, page_down(start), page_up(end), 0) == -ENOMEM)
		*everything = true;
	if (rs->count <= CHANGED_MOST || (rs == &stale && passes > 0))
		return;
	core_rangeset_free(rs);
	*everything = true;
}

/* --- watch ---------------------------------------------------------------- */

void proc_mem_watch(struct proc_mem_watch *w)
{
	if (watch) {
		core_rangeset_free(&watch->touched);
		core_rangeset_free(&watch->discarded);
	}
	watch = w;
	if (!w)
		return;
	core_rangeset_init(&w->touched, proc_mem_sets_realloc);
	core_rangeset_init(&w->discarded, proc_mem_sets_realloc);
	w->everything = w->all_discarded = false;
}

bool proc_mem_watch_touched(const struct proc_mem_watch *w, uint64_t start, uint64_t end)
{
	return w->everything || core_rangeset_intersects(&w->touched, start, end);
}

static void watch_generation(void)
{
	if (watch)
		watch->generation++;
}

static void watch_touched(uint64_t start, uint64_t end)
{
	if (!watch)
		return;
	watch->generation++;
	note_change(&watch->touched, &watch->everything, start, end);
}

/* --- owned ---------------------------------------------------------------- */

void proc_mem_own(uint64_t start, uint64_t end, uint32_t attr)
{
	proc_mem_release(start, end);
	watch_generation();
	/* No memory for it: not owned, hence not merged. */
	(void)core_rangeset_add(&owned, page_down(start), page_up(end), attr);
}

void proc_mem_adopt(uint64_t start, uint64_t end, uint32_t attr)
{
	watch_generation();
	(void)core_rangeset_add(&owned, page_down(start), page_up(end), attr);
}

/* Set and clear attribute bits; where there is no memory for it, the old ones stay or
 * (forget) the range goes. */
static void change_attr(struct core_rangeset *rs, uint64_t start, uint64_t end, uint32_t set,
			uint32_t clear, bool forget)
{
	uint64_t at = page_down(start);

	end = page_up(end);
	for (;;) {
		const struct core_range *r = core_rangeset_find(rs, at);
		uint64_t lo, hi;
		uint32_t attr;

		if (at >= end || !r || r->start >= end)
			return;
		lo = r->start > at ? r->start : at;
		hi = r->end < end ? r->end : end;
		attr = (r->attr | set) & ~clear;
		if (attr != r->attr && core_rangeset_add(rs, lo, hi, attr) < 0 && forget)
			core_rangeset_remove_or_forget(rs, lo, hi);
		at = hi;
	}
}

void proc_mem_own_attr(uint64_t start, uint64_t end, uint32_t set, uint32_t clear)
{
	watch_generation();
	change_attr(&owned, start, end, set, clear, true);
}

void proc_mem_disown(uint64_t start, uint64_t end)
{
	watch_generation();
	core_rangeset_remove_or_forget(&owned, page_down(start), page_up(end));
}

void proc_mem_release(uint64_t start, uint64_t end)
{
	start = page_down(start);
	end = page_up(end);
	core_rangeset_remove_or_forget(&owned, start, end);
	/* Staying in the hull is safe: discarding asks the kernel what is there. */
	(void)core_rangeset_remove(&hull, start, end);
	proc_origin_forget(start, end);
	/* What a pass read about this range no longer holds. */
	proc_mem_touched(start, end);
}

/* Copy what is known of [from, from + bytes) to another place. */
static void copy_ranges(struct core_rangeset *rs, uint64_t from, uint64_t bytes, uint64_t to,
			bool *everything)
{
	uint64_t at = from;

	while (at < from + bytes) {
		const struct core_range *r = core_rangeset_find(rs, at);
		struct core_range c;

		if (!r || r->start >= from + bytes)
			return;
		c = *r;
		if (c.start < at)
			c.start = at;
		if (c.end > from + bytes)
			c.end = from + bytes;
		if (core_rangeset_add(rs, c.start - from + to, c.end - from + to, c.attr) < 0 &&
		    everything)
			*everything = true;
		at = c.end;
	}
}

void proc_mem_moved(uint64_t old_start, uint64_t old_bytes, uint64_t new_start, uint64_t new_bytes)
{
	uint64_t common;
	bool was_owned;
	uint32_t attr = 0;
	const struct core_range *r;

	old_bytes = page_up(old_bytes);
	new_bytes = page_up(new_bytes);
	common = old_bytes < new_bytes ? old_bytes : new_bytes;
	r = core_rangeset_find(&owned, old_start);
	was_owned = core_rangeset_covers(&owned, old_start, old_start + old_bytes);
	if (r)
		attr = r->attr;
	if (new_start != old_start) {
		/* The kernel refuses overlapping old and new. */
		proc_mem_release(new_start, new_start + new_bytes);
		copy_ranges(&hull, old_start, common, new_start, &hull_everything);
		copy_ranges(&owned, old_start, common, new_start, NULL);
		proc_mem_release(old_start, old_start + old_bytes);
	} else if (new_bytes < old_bytes) {
		proc_mem_release(old_start + new_bytes, old_start + old_bytes);
	}
	/* The grown part belongs to the same mapping. */
	if (was_owned && new_bytes > old_bytes &&
	    core_rangeset_add(&owned, new_start + old_bytes, new_start + new_bytes, attr) < 0)
		return;
	proc_mem_touched(new_start, new_start + new_bytes);
}

bool proc_mem_is_owned(uint64_t start, uint64_t end)
{
	return core_rangeset_covers(&owned, start, end);
}

void proc_mem_set_vouch(const struct proc_mem_vouch *v)
{
	vouch = v;
}

bool proc_mem_is_owned_still(uint64_t start, uint64_t end)
{
	return proc_mem_is_owned(start, end) && (!vouch || vouch->there(start, end));
}

uint64_t proc_mem_lead(uint64_t start, uint64_t *end)
{
	return vouch ? vouch->lead(start, end) : 0;
}

size_t proc_mem_owned_copy(uint64_t from, struct core_range *out, size_t max)
{
	size_t n = 0;

	for (uint64_t at = from; n < max;) {
		const struct core_range *r = core_rangeset_find(&owned, at);

		if (!r)
			break;
		out[n] = *r;
		if (out[n].start < from)
			out[n].start = from;
		at = r->end;
		n++;
	}
	return n;
}

/* --- stale ---------------------------------------------------------------- */

void proc_mem_touched(uint64_t start, uint64_t end)
{
	changes++;
	if (page_down(start) < known_flags.end && known_flags.start < page_up(end))
		known_flags.start = known_flags.end = 0;
	proc_mem_protected(start, end);
}

bool proc_mem_flags_known(uint64_t start, uint64_t end, struct proc_mem_flags *flags)
{
	*flags = known_flags;
	return known_flags.start <= start && end <= known_flags.end;
}

void proc_mem_unmapped(void)
{
	changes++;
}

uint64_t proc_mem_changes(void)
{
	return changes;
}

void proc_mem_flags_note(const struct proc_mem_flags *flags, uint64_t changes_then)
{
	if (changes == changes_then)
		known_flags = *flags;
}

void proc_mem_made_fresh(uint64_t start, uint64_t end)
{
	watch_touched(start, end);
}

void proc_mem_discarded(uint64_t start, uint64_t end)
{
	if (watch)
		note_change(&watch->discarded, &watch->all_discarded, start, end);
}

void proc_mem_protected(uint64_t start, uint64_t end)
{
	watch_touched(start, end);
	note_change(&stale, &stale_everything, start, end);
}

bool proc_mem_is_stale(uint64_t start, uint64_t end)
{
	return stale_everything || core_rangeset_intersects(&stale, start, end);
}

void proc_mem_set_before_pass(void (*fn)(void))
{
	before_pass = fn;
}

void proc_mem_pass_begins(void)
{
	/* Another engine's pass still needs to know what changed since it began. */
	if (passes++ == 0) {
		core_rangeset_free(&stale);
		core_rangeset_init(&stale, proc_mem_sets_realloc);
		stale_everything = false;
	}
	if (before_pass)
		before_pass();
}

void proc_mem_pass_ends(void)
{
	passes--;
}

/* --- hull ----------------------------------------------------------------- */

bool proc_mem_maybe_merged(uint64_t start, uint64_t end)
{
	return hull_everything ||
	       core_rangeset_intersects(&hull, page_down(start), page_up(end));
}

int proc_mem_note_merged(uint64_t start, uint64_t end, uint32_t odd)
{
	int err = core_rangeset_add(&hull, start, end, odd);

	if (err == -ENOMEM)
		hull_everything = true;
	return err;
}

uint32_t proc_mem_odd(uint64_t addr)
{
	const struct core_range *r = core_rangeset_find(&hull, addr);

	return r && r->start <= addr ? r->attr : 0;
}

uint64_t proc_mem_odd_span(uint64_t start, uint64_t end, uint32_t *odd)
{
	const struct core_range *r = core_rangeset_find(&hull, start);
	bool known = r && r->start <= start;
	uint64_t until = !r ? end : known ? r->end : r->start;

	*odd = known ? r->attr : 0;
	return until < end ? until : end;
}

void proc_mem_set_odd(uint64_t start, uint64_t end, uint32_t set, uint32_t clear)
{
	/* No memory: the range comes back without the advice. */
	change_attr(&hull, start, end, set, clear, false);
}

uint64_t proc_mem_own_bytes(void)
{
	return sets_bytes;
}

/* --- excluded ------------------------------------------------------------- */

static bool room_to_exclude(void)
{
	intptr_t p;

	if (excluded_count < EXCLUDED_FEW)
		return true;
	if (excluded != excluded_few)
		return excluded_count < EXCLUDED_MAX;
	p = sys->mmap(proc_far(EXCLUDED_MAX * sizeof(*excluded)),
		      page_up(EXCLUDED_MAX * sizeof(*excluded)), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0)
		return false;
	memcpy((void *)p, excluded_few, sizeof(excluded_few));
	excluded = (struct excluded *)p;
	/* The list itself is ours, too; kept for good. */
	excluded[excluded_count].start = (uint64_t)p;
	excluded[excluded_count++].end = (uint64_t)p + page_up(EXCLUDED_MAX * sizeof(*excluded));
	return true;
}

int proc_mem_exclude(const void *addr, size_t bytes)
{
	int err = -ENOMEM;

	proc_lock(&excluded_lock);
	if (room_to_exclude()) {
		excluded[excluded_count].start = page_down((uintptr_t)addr);
		excluded[excluded_count].end = page_up((uintptr_t)addr + bytes);
		excluded_count++;
		err = 0;
	}
	proc_unlock(&excluded_lock);
	return err;
}

void proc_mem_exclude_end(const void *addr, size_t bytes)
{
	uint64_t start = page_down((uintptr_t)addr), end = page_up((uintptr_t)addr + bytes);

	proc_lock(&excluded_lock);
	for (unsigned i = 0; i < excluded_count; i++)
		if (excluded[i].start == start && excluded[i].end == end) {
			excluded[i] = excluded[--excluded_count];
			break;
		}
	proc_unlock(&excluded_lock);
}

/* Keep the lower of the overlapping ranges in *ex_start, *ex_end. */
static void first_overlap(uint64_t start, uint64_t end, uint64_t lo, uint64_t hi,
			  uint64_t *ex_start, uint64_t *ex_end)
{
	if (start < hi && lo < end && lo < *ex_start) {
		*ex_start = lo;
		*ex_end = hi;
	}
}

void proc_mem_find_own_data(int maps_fd)
{
	/* In .data, for it is not zero. */
	uint64_t at = page_down((uintptr_t)&owned);
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = at };

	if (sys->procmap_query(maps_fd, &q) == 0 && (q.vma_flags & SYS_PROCMAP_QUERY_VMA_WRITABLE))
		at = q.vma_start;
	atomic_store(&own_data_start, at);
}

bool proc_mem_excluded(uint64_t start, uint64_t end, uint64_t *ex_start, uint64_t *ex_end)
{
	*ex_start = UINT64_MAX;
	*ex_end = UINT64_MAX;
	proc_lock(&excluded_lock);
	for (unsigned i = 0; i < excluded_count; i++)
		first_overlap(start, end, excluded[i].start, excluded[i].end, ex_start, ex_end);
	proc_unlock(&excluded_lock);
	first_overlap(start, end, atomic_load(&own_data_start), page_up((uintptr_t)_end), ex_start,
		      ex_end);
	return *ex_start != UINT64_MAX;
}
