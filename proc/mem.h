/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this process knows about its own memory, and the lock that keeps it true.
 *
 * Three range sets (and origin.c's), one per process, whoever opened however many handles:
 *
 *   owned   memory whose creation we saw and whose release we would see; only
 *           this is merged in the background. Forgetting a range is safe.
 *   hull    where something may be merged: a superset, with the odd VMA flags
 *           (enum proc_odd) that fresh anonymous memory needs to get again.
 *           Forgetting a range is NOT safe; an addition that finds no memory
 *           makes the whole address space "may be merged".
 *   stale   protection or advice changed since the pass under way read the VMA
 *           flags: that pass leaves it alone.
 *
 * The lock (one, process-wide; innermost: nothing else is ever taken while it is held, and
 * malloc is not called, whose big blocks take it) is held by the engine from the moment
 * before a freeze until the frozen pages are mapped again, and by every interposed call that
 * creates, releases or changes mappings, around the system call itself. So no range
 * changes hands in the middle of a commit. A holder never touches memory that could be
 * frozen: while the engine holds it nothing else does, and the others freeze nothing.
 *
 * Program threads take it with all signals blocked (a handler that calls mmap
 * would deadlock otherwise). What fork needs: proc_mem_fork_begins().
 */
#ifndef SAMEPAGE_PROC_MEM_H
#define SAMEPAGE_PROC_MEM_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/rangeset.h"

enum proc_own {
	PROC_OWN_ADVISED = 1u << 0, /* the program asked for merging (MADV_MERGEABLE) */
	PROC_OWN_HEAP = 1u << 1,
	PROC_OWN_REFUSED = 1u << 2, /* the program wants none (MADV_UNMERGEABLE) */
};

enum proc_odd {
	PROC_ODD_DONTFORK = 1u << 0,
	PROC_ODD_DONTDUMP = 1u << 1,
	PROC_ODD_HUGEPAGE = 1u << 2,
	PROC_ODD_NOHUGEPAGE = 1u << 3,
	PROC_ODD_NORESERVE = 1u << 4,
	PROC_ODD_MERGEABLE = 1u << 5,
};

/* What a mapping of a slot can carry as well, and a program would miss. */
#define PROC_ODD_CARRIED (PROC_ODD_DONTFORK | PROC_ODD_DONTDUMP)

struct proc_mem_guard {
	sigset_t saved;
};

/* For program threads. Not recursive. */
void proc_mem_lock(struct proc_mem_guard *guard);
void proc_mem_unlock(const struct proc_mem_guard *guard);
/*
 * For the engine's thread, which has all signals blocked for good, but for the one
 * with which libc's setuid() asks every thread: that one only while it holds the
 * lock. engine_starts sets its mask so.
 */
void proc_mem_engine_starts(void);
void proc_mem_lock_engine(void);
void proc_mem_unlock_engine(void);
/*
 * fork: between begin and end no engine gets the lock, so nothing is frozen; but
 * nobody holds the lock across other fork handlers or libc's own fork locks, whose
 * holders may be waiting in mmap. In the child the lock is free again; if another
 * thread held it, the sets may be half changed: nothing is owned then, and the
 * hull is everything.
 */
void proc_mem_fork_begins(void);
void proc_mem_fork_ends(void);
void proc_mem_fork_child(void);

/* All below: lock held. Addresses are rounded outwards to pages. */

/* New memory, created by a call that we saw; replaces what was known there. */
void proc_mem_own(uint64_t start, uint64_t end, uint32_t attr);
/* Memory that was there before and may be merged: owned from now on. */
void proc_mem_adopt(uint64_t start, uint64_t end, uint32_t attr);
/* Add bits to / take bits from the attributes of what is owned in the range. */
void proc_mem_own_attr(uint64_t start, uint64_t end, uint32_t set, uint32_t clear);
/* Unmapped, or mapped over with something else: not owned, nothing merged there. */
void proc_mem_release(uint64_t start, uint64_t end);
/* No longer owned, but mapped and possibly merged as before. */
void proc_mem_disown(uint64_t start, uint64_t end);
/* mremap moved or resized: knowledge moves along; call after it succeeded. */
void proc_mem_moved(uint64_t old_start, uint64_t old_bytes, uint64_t new_start, uint64_t new_bytes);
/* Protection, advice or the like changed there. */
void proc_mem_touched(uint64_t start, uint64_t end);
/* Protection alone, nothing else. */
void proc_mem_protected(uint64_t start, uint64_t end);
/* Another mapping of the same kind: passes go on, the scanner looks again. */
void proc_mem_made_fresh(uint64_t start, uint64_t end);
/* The same mapping without what was in it, where nothing was merged. */
void proc_mem_discarded(uint64_t start, uint64_t end);
/*
 * The VMA flags and key of one range, as smaps had them, for as long as nothing but its
 * protection changes: reading smaps costs a walk over all memory below the range, too
 * much for merging a page at a time. Only where every change is seen (the shim).
 */
struct proc_mem_flags {
	uint64_t start, end;
	uint64_t flags;
	uint32_t pkey;
};
bool proc_mem_flags_known(uint64_t start, uint64_t end, struct proc_mem_flags *flags);
void proc_mem_unmapped(void); /* mappings of the store were replaced by other memory */
uint64_t proc_mem_changes(void); /* to be given to the next, from before smaps was read */
void proc_mem_flags_note(const struct proc_mem_flags *flags, uint64_t changes);

/*
 * For the scanner, which keeps what it read about mappings for longer than a pass: what
 * has changed since it emptied the set, and a number that moves with every change of that
 * kind and of what is owned. One watch per process; NULL ends it.
 */
struct proc_mem_watch {
	struct core_rangeset touched;
	bool everything;
	uint64_t generation;
	/* What mappings there are has not changed, but what is in them has. */
	struct core_rangeset discarded;
	bool all_discarded;
};
void proc_mem_watch(struct proc_mem_watch *watch);
bool proc_mem_watch_touched(const struct proc_mem_watch *watch, uint64_t start, uint64_t end);

bool proc_mem_maybe_merged(uint64_t start, uint64_t end);
bool proc_mem_is_owned(uint64_t start, uint64_t end); /* all of it */
/* The same, and asks who may know better (a system call): before something is done there. */
bool proc_mem_is_owned_still(uint64_t start, uint64_t end);
bool proc_mem_is_stale(uint64_t start, uint64_t end); /* any of it */
/* Copy owned ranges (start ascending) from `from` on; how many, at most max. */
size_t proc_mem_owned_copy(uint64_t from, struct core_range *out, size_t max);

/* Engine: before mappings are made. -ENOMEM: hull became "everything". */
int proc_mem_note_merged(uint64_t start, uint64_t end, uint32_t odd);
/* Give a mapping the advice that its odd flags stand for. */
void proc_mem_reapply_odd(uint64_t start, uint64_t end, uint32_t odd);
/* Odd flags recorded for the address (0 if none). */
uint32_t proc_mem_odd(uint64_t addr);
/* The same for as far as they are alike, at most up to end: where that is. */
uint64_t proc_mem_odd_span(uint64_t start, uint64_t end, uint32_t *odd);
/* A program's advice changed the odd flags of possibly merged memory. */
void proc_mem_set_odd(uint64_t start, uint64_t end, uint32_t set, uint32_t clear);
void proc_mem_pass_begins(void); /* the first one clears stale; calls the hook below */
void proc_mem_pass_ends(void);
/* Called with the lock held before each pass: the shim brings `owned` up to date
 * with what moves without a call that it sees (libc's own brk). */
void proc_mem_set_before_pass(void (*fn)(void));
/* Who knows more of what is owned; lock held. */
struct proc_mem_vouch {
	/* One range, all of it owned: is it there as ever? False: it is not owned any more. */
	bool (*there)(uint64_t start, uint64_t end);
	/* Bytes before start, not owned, that are one mapping with it for the program; if there
	 * are any, where that mapping ends. */
	uint64_t (*lead)(uint64_t start, uint64_t *end);
	void (*torn)(void); /* in a child of fork: all that was known is given up */
};
void proc_mem_set_vouch(const struct proc_mem_vouch *v);
uint64_t proc_mem_lead(uint64_t start, uint64_t *end);

uint64_t proc_mem_own_bytes(void); /* memory of the sets themselves */
/* For sets that are changed with the lock held: core_realloc_fn. */
void *proc_mem_sets_realloc(void *ptr, size_t old_bytes, size_t new_bytes);

/*
 * samepage's own memory, never to be merged or frozen: arenas, stacks, staging.
 * Static memory of the library is excluded without being named.
 */
int proc_mem_exclude(const void *addr, size_t bytes);
void proc_mem_exclude_end(const void *addr, size_t bytes);
/* The first excluded range that overlaps [start, end), if any. */
bool proc_mem_excluded(uint64_t start, uint64_t end, uint64_t *ex_start, uint64_t *ex_end);

/*
 * What MADV_DONTNEED does, for memory that may be merged: store mappings become
 * fresh anonymous memory with the protection and odd flags that they had, the
 * rest gets madvise(advice). Lock held; any thread. 0 or -errno as madvise(2).
 */
#define PROC_DISCARD_ADVICE 4 /* MADV_DONTNEED */
int proc_mem_discard(uint64_t start, uint64_t end, int advice);
/* Private copies of everything merged in the range. Lock held; any thread.
 * 0, -ENOMEM, -EACCES, -EAGAIN (not to be read now, or always written). *pages counts. */
int proc_mem_unmerge(uint64_t start, uint64_t end, uint64_t *pages);
/*
 * origin.c: what was there before pages of a file were merged, so that discarding
 * shows the file's bytes again. Lock held by the callers of all of these.
 */
struct sys_vma;
/* Remember, for the whole of vma, whose file fd is. 0, -ESTALE (another file), -ENOMEM. */
int proc_origin_keep(const struct sys_vma *vma, int fd, int maps_fd);
bool proc_origin_kept(const struct sys_vma *vma, uint64_t start, uint64_t end);
void proc_origin_forget(uint64_t start, uint64_t end);
void proc_origin_collect(int maps_fd); /* forget ranges without store mappings */
/* In a child of fork whose parent was changing them: nothing is known any more. */
void proc_origin_torn(void);
bool proc_origin_lost(void); /* and something was */
bool proc_origin_any(uint64_t start, uint64_t end);
unsigned proc_origin_count(void); /* mappings that remember */
/* How much from `start` on has one origin (*known), or none; at most up to `end`. */
uint64_t proc_origin_span(uint64_t start, uint64_t end, bool *known);
/* A new mapping of the file's part that belongs at start, somewhere: or -errno. */
intptr_t proc_origin_copy(uint64_t start, uint64_t bytes);
/*
 * Ordinary private memory again, with the same bytes: anonymous, or of the file that it
 * was. Writable mappings, unless the program has no other thread, stay: -EACCES. *pages
 * counts.
 */
int proc_mem_home(uint64_t start, uint64_t end, int prot, uint64_t *pages);
/* Let go of the files of which nothing is merged any more. Takes the lock. */
void proc_mem_forget_files(void);
/* The same for what was a file's in the range, wherever it is merged. */
int proc_mem_files_home(uint64_t start, uint64_t end);

/* Is part of the range not mapped? */
bool proc_mem_has_gap(uint64_t start, uint64_t end);

#endif
