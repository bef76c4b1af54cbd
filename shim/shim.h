/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside libsamepage-preload.so: what the interposed functions share.
 *
 * Each interposed call exists twice: as a handler, shim_*(), which returns what
 * the kernel would (a value or -errno) and does the bookkeeping, and as the
 * exported libc name, which turns that into libc's convention. syscall(2) goes
 * to the same handlers.
 *
 *   not ready  before our constructor, after SAMEPAGE_OFF=1 or AT_SECURE, or when
 *              no engine could be made: handlers are the bare system call
 *   ready      handlers hold the memory lock (proc/mem.h) around the system call
 *              and the bookkeeping that belongs to it
 *
 * So "owned" and reality differ only while the lock is held, and while it is free
 * owned is a subset of the mappings that we saw being created. A call that was
 * under way when ready was set is not recorded: what it created is not owned, and
 * what it released could not have been.
 *
 * Rules for everything reachable from a handler: no malloc, no stdio, no lock
 * other than the memory lock, no thread-local state but errno (and that only in
 * the exported function). They run in signal handlers, in the children of vfork
 * and in forked children of processes with many threads.
 *
 * glibc only: the shim leans on which of its own calls glibc makes inside itself
 * (docs/design.md, "Whose memory"), and on M_TRIM_THRESHOLD and __curbrk.
 */
#ifndef SAMEPAGE_SHIM_SHIM_H
#define SAMEPAGE_SHIM_SHIM_H

#include <errno.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef __GLIBC__
#error "the preload library works with glibc only"
#endif

#define SHIM_EXPORT __attribute__((visibility("default")))

extern atomic_bool shim_ready;

static inline bool shim_is_ready(void)
{
	return atomic_load_explicit(&shim_ready, memory_order_acquire);
}

/* libc's convention from the kernel's. */
static inline long shim_return(long result)
{
	if (result < 0 && result >= -4095) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* Pages that [addr, addr + bytes) touches. */
struct shim_range {
	uint64_t start;
	uint64_t end;
};

/* False: empty, or wraps around (the kernel refuses those, nothing to record). */
bool shim_range_of(const void *addr, size_t bytes, struct shim_range *range);
bool shim_page_aligned(const void *addr);

struct proc_engine;
struct proc_engine *shim_engine(void); /* init.c; NULL: there is none */

/* State, lock held (state.c). */
void shim_fresh(const struct shim_range *range);  /* new memory of the program's: own it */
void shim_forget(const struct shim_range *range); /* unmapped, or something else is there */
void shim_stop_owning(void);                      /* for good */
bool shim_owning(void);

/* The one engine; there when ready (init.c). */
struct proc_engine;
struct proc_engine *shim_engine(void);

/* Handlers: the kernel's result or -errno. */
intptr_t shim_map(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset);
int shim_unmap(void *addr, size_t bytes);
intptr_t shim_remap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *to);
intptr_t shim_shmat(int id, const void *addr, int flags);
int shim_advise(void *addr, size_t bytes, int advice);
ssize_t shim_process_advise(int pidfd, const struct iovec *iov, size_t count, int advice,
			    unsigned flags);
int shim_protect(void *addr, size_t bytes, int prot, int pkey); /* pkey -1: plain mprotect */
int shim_lock_pages(const void *addr, size_t bytes, unsigned flags);
int shim_lock_all(int flags);
/* A call that changes [addr, addr + bytes) in place: munlock, mbind ... */
long shim_change(long n, const long arg[6], bool disown);
intptr_t shim_raw_brk(uint64_t to); /* syscall(SYS_brk) */
long shim_prctl(int option, const long arg[4]);
long shim_seccomp(long operation, long flags, long args);
/* Before a filter is installed; program: struct sock_fprog (seccomp.c). */
void shim_filter_coming(const void *program);
int shim_filter_start(void); /* constructor, before ready */
/* Is this process, or child of vfork, under one that could kill us in what it execs? */
bool shim_filtered(void);
/* Merged memory there becomes plain anonymous memory, not owned (uffd.c). No lock held.
 * 0, -ENOMEM, -EBUSY. */
int shim_bring_home(const struct shim_range *range);
/* Not interposed, but asked for by name. */
void samepage_preload_leave(void *addr, size_t bytes);
/* After an open(2): fd, whatever it is. Programs that open their own memory (open.c). */
int shim_opened(const char *path, int fd);
long shim_ioctl(int fd, unsigned long request, long arg);
long shim_fork_raw(long n, const long arg[6]); /* fork, clone, clone3 without CLONE_VM */
int shim_execve(const char *path, char *const argv[], char *const envp[]);
int shim_execveat(int fd, const char *path, char *const argv[], char *const envp[], int flags);

long shim_prctl(int option, const long arg[4]);

/* prctl.c: does the program want merging? */
void shim_prctl_start(void);       /* constructor, before ready */
bool shim_merge_any(void);         /* PR_SET_MEMORY_MERGE is on; any thread, no lock */
uint32_t shim_fresh_attr(void);    /* enum proc_own bits of fresh memory */
bool shim_advice_to_kernel(void);  /* MADV_MERGEABLE is for KSM as well */
/* Private copies, and no merging from here on; lock held. As proc_mem_unmerge(). */
int shim_unregister(uint64_t start, uint64_t end);

/* inherit.c: the environment of the next program. */
struct shim_env_plan {
	size_t entries;    /* of the copy, at most, with the NULL */
	size_t text_bytes; /* for an LD_PRELOAD without us */
	bool drop;         /* our name leaves LD_PRELOAD */
	bool mark;         /* the switch has to be put right */
};
bool shim_env_names_us(char *const envp[]);
/* False: it is good as it is. */
bool shim_env_plan(char *const envp[], bool takes_us, struct shim_env_plan *plan);
char *const *shim_env_make(char *const envp[], const struct shim_env_plan *plan, char **copy,
			   char *text);
void shim_inherit_changed(void); /* the switch was moved; lock held */
void shim_inherit_nothing(void); /* our name leaves LD_PRELOAD in environ */

/* target.c: could the library be loaded there? If in doubt, yes. */
bool shim_target_takes_us(int dir, const char *path);
bool shim_search_takes_us(const char *name); /* in PATH */
bool shim_program_is_go(void);

/* mremap of memory that may be merged (remap_merged.c), lock held. */
intptr_t shim_remap_merged(const struct shim_range *from, size_t new_bytes, int flags, void *to);

/* heap.c */
void shim_heap_start(void);   /* once, from the constructor, when ready */
void shim_heap_refresh(void); /* before each pass; lock held */
void shim_heap_punched(const struct shim_range *range); /* by something else than brk; lock held */
void shim_heap_give_up(void); /* lock held */

/* big.c */
void shim_big_start(void); /* once, from the constructor, when ready; malloc is glibc's */
void shim_big_stop(void);  /* from now on malloc and free take no lock */

/* Functions of libc that are more than a system call; resolved by the constructor
 * or by the first that needs one (real.c). */
struct shim_real {
	int (*brk)(void *addr);
	void *(*sbrk)(intptr_t by);
	int (*mallopt)(int param, int value);
	int (*malloc_trim)(size_t pad);
	pid_t (*fork_raw)(void); /* _Fork */
	int (*register_atfork)(void (*prepare)(void), void (*parent)(void), void (*child)(void),
			       void *dso);
	int (*clone)(int (*fn)(void *), void *stack, int flags, void *arg, ...);
	long (*syscall)(long n, ...);
	int (*open)(const char *path, int flags, ...);
	int (*open64)(const char *path, int flags, ...);
	int (*openat)(int dir, const char *path, int flags, ...);
	int (*openat64)(int dir, const char *path, int flags, ...);
	int (*fortified_open)(const char *path, int flags);
	int (*fortified_open64)(const char *path, int flags);
	int (*fortified_openat)(int dir, const char *path, int flags);
	int (*fortified_openat64)(int dir, const char *path, int flags);
	struct _IO_FILE *(*fopen)(const char *path, const char *mode);
	struct _IO_FILE *(*fopen64)(const char *path, const char *mode);
	struct _IO_FILE *(*freopen)(const char *path, const char *mode, struct _IO_FILE *f);
	struct _IO_FILE *(*freopen64)(const char *path, const char *mode, struct _IO_FILE *f);
	int (*execvpe)(const char *file, char *const argv[], char *const envp[]);
	int (*posix_spawn)(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
			   const posix_spawnattr_t *attr, char *const argv[], char *const envp[]);
	int (*posix_spawnp)(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			    const posix_spawnattr_t *attr, char *const argv[], char *const envp[]);
};
const struct shim_real *shim_real(void);
bool shim_malloc_is_glibc(void);

/* layout.c: the soft stack limit that moves mmap_base, see there. */
struct shim_layout {
	bool active;
	rlim_t raised; /* soft limit for the moment of an exec */
	rlim_t normal; /* what the constructor put back */
};
extern struct shim_layout shim_layout;
void shim_layout_start(void);

#endif
