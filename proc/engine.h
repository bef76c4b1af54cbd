/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The engine: one thread per handle that does everything which reads, freezes
 * or replaces memory.
 *
 * Its thread has all signals blocked, its own descriptor table (closed down to
 * what it needs), its own stack and working memory (excluded from merging), and
 * makes only raw system calls while anything is frozen. Callers leave a request
 * in the mailbox, wake it with a thread-directed signal that it reads through a
 * signalfd, and wait on a futex.
 *
 *   idle     waits for the mailbox, the broker's socket, or its reconnect timer
 *   working  one request; others wait in line
 *   closing  finishes the request, then ends
 *   dead     after fork in the child; proc_engine_revive() starts over
 */
#ifndef SAMEPAGE_PROC_ENGINE_H
#define SAMEPAGE_PROC_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/scan.h"
#include "core/wire.h"
#include "samepage.h"

struct proc_engine;
struct proc_link;
struct proc_glance;

/* How an engine reaches its store. Called on the engine's thread only. */
struct proc_link_ops {
	/* Fill in the link (index, candidates, ring). 0 or -errno. */
	int (*connect)(struct proc_link *link);
	void (*disconnect)(struct proc_link *link);
	/* As broker_store_promote(); 0 or -ENOTCONN. */
	int (*submit)(struct proc_link *link, const uint16_t *ring_page, unsigned count,
		      uint32_t *slot, uint8_t *reason);
	/* A read-only fd, the caller's; or -errno. */
	int (*segment)(struct proc_link *link, uint32_t segment);
	int (*tags)(struct proc_link *link, const uint32_t *tag, unsigned count);
	/* The same into the table for scanners, if that is still in this round. */
	int (*tags_standing)(struct proc_link *link, const uint32_t *tag, unsigned count,
			     uint64_t round);
	/* Between passes, and before the next: mappings and buffers are not needed
	 * meanwhile. May be NULL. wake: 0, or -errno and the link is to be given up. */
	void (*rest)(struct proc_link *link);
	int (*wake)(struct proc_link *link);
	/* The counters, while at rest. NULL: as when awake. 0 or -errno. */
	int (*glance)(struct proc_link *link, struct proc_glance *glance);
	/* In a forked child: what the link holds belongs to the parent. */
	void (*forget)(struct proc_link *link);
	void (*free)(struct proc_link *link);
};

/* What merges (kernel.h). */
enum proc_primitive {
	PROC_PRIMITIVE_AUTO,
	PROC_PRIMITIVE_REMAP,
	PROC_PRIMITIVE_KERNEL, /* or nothing */
};
/* Of SAMEPAGE_PRIMITIVE; NULL, "": auto. 0 or -EINVAL. */
int proc_primitive_parse(const char *text, enum proc_primitive *primitive);
bool proc_kernel_available(void);
/* A domain's number as a scope of the kernel's merging. */
uint64_t proc_scope_of(const char *domain);
/* What this engine's thread uses; false also before it has started. Any thread. */
bool proc_engine_kernel(const struct proc_engine *e);
/* Private copies of what the kernel merged in the range; bytes stay. 0, -ENOMEM. */
int proc_kernel_unmerge(uint64_t start, uint64_t end);

struct proc_engine_params {
	struct proc_link *link;  /* owned by the engine from here on, on success */
	bool owned_only;         /* passes go over owned ranges (the shim) */
	bool advised_only;       /* of those, the advised */
	bool connect_later;      /* start even if there is no broker now (the shim) */
	enum proc_primitive primitive;
	uint64_t scope;          /* of the kernel's merging */
};

/* scan: with background scanning, these being the program's own settings; NULL: without. */
int proc_engine_new(struct proc_engine **out, const struct proc_engine_params *params,
		    const struct core_scan_config *scan);
/* Ends the thread, frees everything. Must not be called with requests under way. */
void proc_engine_free(struct proc_engine *e);

/* What a call asks of a pass beyond its range. */
enum proc_want {
	PROC_WANT_CONTRACT = 1u << 0, /* the caller owns the range for the time of the call */
	PROC_WANT_QUIET = 1u << 1,    /* and promises that nobody writes to it meanwhile */
};

/* A process that shares its memory with another: its thread is never alone (alone.c). */
void proc_never_alone(void);
/* Merge a range now. Any thread. As samepage_merge(); want: enum proc_want. */
int proc_engine_merge(struct proc_engine *e, uint64_t start, uint64_t end, uint32_t want,
		      struct samepage_result *result);
int proc_engine_stats(struct proc_engine *e, struct samepage_stats *stats);

/* Steps back, each for good and in children too. Any thread, no lock held. */
/* Freeze nothing any more; staging, which nobody must touch, is gone on return. */
void proc_engine_stop_freezing(struct proc_engine *e);
/* The same at once, but staging stays. Memory lock held. */
void proc_engine_forbid_freezing(struct proc_engine *e);
/*
 * Make merged memory in the range plain anonymous memory of the same bytes (retreat.c).
 * 0; -EBUSY: some of it is pinned for DMA or must not be touched; -ENOMEM, -EPERM.
 */
int proc_engine_home(struct proc_engine *e, uint64_t start, uint64_t end);
/* The scanner does not watch the range any more, until it finds it wanted and owned again. */
int proc_engine_leave(struct proc_engine *e, uint64_t start, uint64_t end);
/* A filter of the program's forbids the fork that finds pinned pages (retreat.c). */
void proc_engine_without_fork(void);
/* Is memory registered for tracking writes? Then it must be brought home for others' use. */
bool proc_scan_watches(const struct proc_engine *e);
/* Does the engine's thread belong to the calling process (not so in a child of vfork)? */
bool proc_engine_is_here(struct proc_engine *e);
/* End the thread: from then on no system call is made that no program thread makes. */
void proc_engine_retire(struct proc_engine *e);

/* For links that no engine took over; NULL is allowed. */
void proc_link_free(struct proc_link *link);

/* A link to the broker's socket; path NULL: the usual places. */
int proc_link_broker_new(struct proc_link **out, const char *socket_path, const char *domain);

/* fork(2): see samepage_fork_prepare(). Process-wide, over all engines. */
void proc_fork_prepare(void);
void proc_fork_parent(void);
void proc_fork_child(void);
/* In the child, before other handlers, if somebody can see to that: the memory lock only. */
void proc_fork_child_first(void);
/* Install them with pthread_atfork(3), once. */
int proc_fork_install(void);
/* Should the child start engine threads at once (the shim), or with the next call? */
void proc_fork_revive_at_once(bool yes);

#endif
