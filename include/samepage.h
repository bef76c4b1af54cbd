/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libsamepage: merge identical private pages of many processes, now.
 *
 * A page that is merged becomes one physical page that everybody in the same
 * domain maps; the kernel copies it again on the first write. Nothing is ever
 * replaced without a byte-for-byte comparison made while nobody can write the
 * page (invariant I2, docs/invariants.md).
 *
 * Words. A *page* is sysconf(_SC_PAGESIZE) bytes. A *domain* is the set of
 * processes that may share pages: one user (as the kernel reports it) and a
 * name chosen inside that user. A *slot* is one shared page in the domain's
 * store.
 *
 * Errors. Every function that returns int returns 0 or a negative errno, and
 * a call that is refused (-EINVAL, -EPERM ...) changed nothing.
 *
 * Threads. A handle may be used from any thread; calls on one handle are
 * carried out one after another by a thread of the library's own, which has all
 * signals blocked, its own file descriptor table (the program's descriptors are
 * neither held open nor numbered differently, and a program that closes
 * "every" descriptor does no harm), and never allocates while memory is frozen.
 * No function here may be called from a signal handler.
 *
 * Fork. See samepage_fork_prepare(). Memory that is merged stays merged and
 * correct in every child, with or without a handle there.
 */
#ifndef SAMEPAGE_H
#define SAMEPAGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SAMEPAGE_API __attribute__((visibility("default")))

/*
 * Why a page that was looked at was not merged (invariant I9: every such page is
 * counted under exactly one of these). Numbers are ABI: new ones go at the end.
 */
#define SAMEPAGE_REASONS(X)                                                                        \
	X(UNIQUE, "unique", "no second page like it has been seen")                                \
	X(CHANGED, "changed", "its bytes changed after they were looked at")                 \
	X(VANISHED, "vanished", "it was unmapped or discarded meanwhile")                          \
	X(VMA_KIND, "vma_kind", "not private memory, or of a file that cannot be opened again")   \
	X(VMA_FLAGS, "vma_flags", "a mapping flag that could not be kept (locked, stack, ...)")    \
	X(PROTECTION, "protection", "the mapping is not readable, or not writable and no code")                    \
	X(POLICY, "policy", "the mapping has a NUMA policy or protection key of its own")          \
	X(UFFD_BUSY, "uffd_busy", "the program uses userfaultfd on the mapping itself")            \
	X(NO_FREEZE, "no_freeze", "no userfaultfd that can stop writers is to be had here")        \
	X(FORK_SHARED, "fork_shared", "still shared with a parent or child since fork")            \
	X(PINNED, "pinned", "pinned for DMA (O_DIRECT, io_uring, VFIO)")                           \
	X(SWAPPED, "swapped", "swapped out")                                                       \
	X(NOT_OWNED, "not_owned", "nobody vouches for the lifetime of the mapping")                \
	X(EXCLUDED, "excluded", "memory that samepage itself works with")                          \
	X(MAP_COUNT, "map_count", "too near to vm.max_map_count")                                  \
	X(NO_MEMORY, "no_memory", "the kernel had no memory for it")                               \
	X(QUOTA, "quota", "the domain's or the client's share of the store is used up")            \
	X(NO_BROKER, "no_broker", "the broker could not be reached")                               \
	X(STOPPED, "stopped", "the call ended early (handle closing, fork)")                       \
	X(FAILED, "failed", "the kernel refused a step, see the log")                              \
	X(WRITABLE, "writable",                                                                    \
	  "a writable page of a file, or written since its merge: who writes cannot be stopped")     \
	X(BREAKPOINT, "breakpoint", "holds a breakpoint of a debugger or a tracer (uprobes)")      \
	X(BUSY, "busy", "pinned, locked or being written, so the kernel could not merge it just then")

enum samepage_reason {
#define SAMEPAGE_REASON_ENUM(id, name, text) SAMEPAGE_REASON_##id,
	SAMEPAGE_REASONS(SAMEPAGE_REASON_ENUM)
#undef SAMEPAGE_REASON_ENUM
	SAMEPAGE_REASON_COUNT
};

/* Room for reasons to come: arrays in public structures are this long. */
#define SAMEPAGE_REASON_MAX 32

/* What one merge did. pages_looked = merged + zeroed + already + sum of declined. */
struct samepage_result {
	uint64_t pages_looked;  /* present pages that were considered */
	uint64_t pages_merged;  /* now map a slot of the store, or a page that the kernel merged */
	uint64_t pages_zeroed;  /* were all zero, given back without a mapping */
	uint64_t pages_already; /* were merged before this call */
	uint64_t pages_declined[SAMEPAGE_REASON_MAX]; /* by enum samepage_reason */
	uint64_t pages_promoted; /* of pages_merged: were the first of their kind */
	uint64_t runs;           /* mappings made */
	int64_t vmas_added;      /* growth of the process's mapping count */
	uint64_t wall_usec;
	uint64_t cpu_usec;       /* of the library's thread, the broker's not included */
	uint64_t frozen_usec;    /* sum of the spans in which some pages were frozen */
};

/* What a handle did since it was opened, and what it uses. */
struct samepage_stats {
	struct samepage_result total; /* sums over all merges of this handle */
	/* pages of this process that map a slot; or one that the kernel merged, as the kernel
	 * counts them: what was unmapped or discarded since may still be among them */
	uint64_t pages_sharing;
	uint64_t zero_pages;     /* zero pages given back, ever */
	uint64_t store_pages;    /* slots published in the domain */
	uint64_t own_bytes;      /* memory that the library uses itself */
	uint64_t merges;         /* calls and passes carried out */
	uint64_t reconnects;     /* times the broker was lost and found again */
	uint32_t primitive;      /* enum samepage_primitive: what merges */
	uint32_t reserved;       /* 0 */
};

/*
 * What carries out merges: chosen when the handle is opened. The kernel's own, where there
 * is one that keeps domains apart (MADV_MERGE with merge scopes; see samepage-check(1)),
 * else the library's. The environment can force one: SAMEPAGE_PRIMITIVE=kernel or =remap;
 * auto is the default. All of a process's handles that use the kernel's must be of one
 * domain; another's uses the library's.
 */
enum samepage_primitive {
	SAMEPAGE_PRIMITIVE_NONE,   /* the library's thread has not started */
	SAMEPAGE_PRIMITIVE_REMAP,  /* pages become mappings of the domain's store */
	SAMEPAGE_PRIMITIVE_KERNEL, /* the kernel merges in place: memory stays what it was */
};

/* samepage_options.flags */
#define SAMEPAGE_EMBEDDED 0x1u /* no broker: the store lives in this process */

struct samepage_options {
	size_t size;             /* sizeof(struct samepage_options), for later growth */
	uint32_t flags;
	uint32_t reserved;       /* 0 */
	const char *socket_path; /* NULL: $SAMEPAGE_SOCKET, else the usual places */
	const char *domain;      /* NULL: $SAMEPAGE_DOMAIN, else "default" */
	uint64_t store_bytes;    /* embedded: at most this much store; 0: a quarter of RAM */
};

struct samepage;

/*
 * Open a handle. options may be NULL (all defaults). On success *handle is to be
 * closed with samepage_close().
 *
 * -EINVAL  size or flags unknown, bad domain name ([A-Za-z0-9._-], 1 to 63), or
 *          $SAMEPAGE_PRIMITIVE is none of auto, kernel, remap
 * -ENOENT, -ECONNREFUSED  no broker listens where one was expected
 * -EPROTO  what listens there is no broker of this version
 * -EPERM   what listens there belongs to neither root nor this user
 * -EDQUOT  the broker takes no more clients of this user
 * -ENOSYS  this kernel lacks what any merge needs (see samepage check), or MADV_MERGE,
 *          where SAMEPAGE_PRIMITIVE=kernel asks for it
 * -EBUSY   SAMEPAGE_PRIMITIVE=kernel, but memory of this process is merged in another domain
 * -ENOMEM, -EMFILE, -ENFILE, -EAGAIN  from the kernel
 */
SAMEPAGE_API int samepage_open(struct samepage **handle, const struct samepage_options *options);

/*
 * Close the handle and end its thread. Merged memory stays merged. NULL is
 * allowed. No other call on the handle may be under way.
 */
SAMEPAGE_API void samepage_close(struct samepage *handle);

/* samepage_merge() flags */
#define SAMEPAGE_MERGE_QUIESCENT 0x1u /* nobody writes to the range during the call */

/*
 * Merge [addr, addr + bytes) now and return when it is done. Pages that are the
 * first of their kind go into the store at once. bytes is rounded up to pages.
 *
 * What can be merged: private anonymous memory that is writable; pages of a private
 * file mapping that were copied on write (patched text, relocated data), in a mapping
 * that is not writable now; executable anonymous memory that is not writable now; and
 * what of these two kinds was merged before and written since. A writable page of a
 * file, and a writable page that was written since its merge, cannot be protected from
 * writers: they are merged only with SAMEPAGE_MERGE_QUIESCENT, the caller's promise that
 * no thread, no other process and no device writes to the range during the call. A
 * promise that is not kept loses writes. The thread that calls takes no signals until the
 * call is over (at most 5 s more if a broker stops answering). A file of which pages are
 * merged stays in use until they are unmerged or unmapped and the next call sees it.
 *
 * The caller vouches that nobody unmaps the range, maps over it, or changes its
 * protection or advice during the call; reading and writing it is fine from
 * any thread, in user or kernel mode, and by DMA. After the call the memory
 * behaves as before, with these exceptions (the preload library takes care of
 * the first two for programs that it serves):
 *
 *   madvise  discard merged memory with samepage_discard() in place of
 *            MADV_DONTNEED or MADV_FREE, which would bring the merged bytes back
 *            instead of zeros, or of the file's bytes
 *   /proc/PID/maps  shows the store in place of the file
 *   mremap   do not grow or move merged memory, also not after
 *            samepage_unmerge(): it consists of several mappings (EFAULT), and
 *            what it grows by would show other pages of the store
 *   userfaultfd  do not register merged memory: a missing page is never missing
 *            there
 *
 * Where the kernel merges (enum samepage_primitive), all private memory can be merged that is
 * readable and not locked, whoever writes to it, and whatever is unmapped meanwhile; a page
 * that is the first of its kind is `unique`, and merged when somebody comes with another;
 * none of the exceptions holds; and no broker is needed for it.
 *
 * Mappings in the range that cannot be merged are skipped and counted, that is
 * no error. result may be NULL.
 *
 * -EINVAL  addr not on a page boundary, unknown flags, range wraps around
 * -ENOMEM  part of the range is not mapped: the mapped rest was done, the
 *          result is valid
 * -ENOTCONN  the broker is gone and could not be reached again. Gone before the
 *          call: nothing was looked at. Gone during it: what was in the store
 *          already was merged, the rest counted as no_broker; the result is valid
 * -EPERM   the library's thread could not be woken (a seccomp filter forbids
 *          tgkill): nothing was done
 * -EAGAIN  the same, because the user's signals are used up (RLIMIT_SIGPENDING), or
 *          because this thread is in the middle of a fork (a signal handler)
 */
SAMEPAGE_API int samepage_merge(struct samepage *handle, void *addr, size_t bytes, uint32_t flags,
				struct samepage_result *result);

/*
 * Give every merged page in the range a private copy again. No byte changes.
 * The caller vouches for the range as for samepage_merge().
 *
 * -EINVAL  as samepage_merge()
 * -ENOMEM  part of the range is not mapped (the rest was done), or no memory
 *          for the copies (the pages not yet copied stay merged)
 * -EACCES  part of it is not readable now, and stays merged
 * -EAGAIN  /proc could not be read, or somebody keeps writing there
 */
SAMEPAGE_API int samepage_unmerge(struct samepage *handle, void *addr, size_t bytes);

/*
 * What madvise(addr, bytes, MADV_DONTNEED) does to private memory: the range reads as
 * zeros afterwards, or as the file that it maps, merged pages included.
 *
 * -EINVAL, -ENOMEM  as madvise(2)
 */
SAMEPAGE_API int samepage_discard(struct samepage *handle, void *addr, size_t bytes);

/* Fill *stats. size is sizeof(*stats). -EINVAL: a size this library never had. */
SAMEPAGE_API int samepage_stats(struct samepage *handle, struct samepage_stats *stats, size_t size);

/*
 * Fork hooks, for programs that cannot use pthread_atfork(3) (the preload shim
 * calls them itself). While pages are frozen a fork would give the child a hole,
 * so: prepare waits until nothing is frozen and keeps it so; then call exactly
 * one of the others, parent in the parent, child in the child. In the child the
 * handle is without a thread; the next call on it starts one and, with a
 * broker, makes a connection of its own. Handles opened while no program hooks
 * are installed register these with pthread_atfork(3) by themselves, once; the
 * functions are idempotent per fork, so calling them as well does no harm.
 */
SAMEPAGE_API void samepage_fork_prepare(void);
SAMEPAGE_API void samepage_fork_parent(void);
SAMEPAGE_API void samepage_fork_child(void);

/* "unique", "pinned" ...: stable names, as in --json. NULL: no such reason. */
SAMEPAGE_API const char *samepage_reason_name(unsigned reason);
/* One sentence for people. NULL: no such reason. */
SAMEPAGE_API const char *samepage_reason_text(unsigned reason);

/* "0.1.0" */
SAMEPAGE_API const char *samepage_version(void);

#ifdef __cplusplus
}
#endif

#endif
