/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The engine's thread and its life; engine.h has the states, call.c the mailbox.
 *
 * Locks, outermost first: call_lock of an engine (call.c), then the process's memory
 * lock (mem.h). The registry of engines is guarded by the memory lock; the engine's
 * thread takes only that one.
 *
 * The thread's stack is a mapping of our own (glibc puts the thread's control
 * block at its end), so nothing that the thread touches by itself lies in memory
 * that could be frozen. It may use libc where nothing is frozen, but does not
 * call malloc: the program's allocator may be anybody's.
 */
#include "proc/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/hash.h"
#include "proc/internal.h"
#include "proc/kernel.h"
#include "sys/raw.h"

#define STACK_BYTES (256u << 10)
/*
 * A signalfd takes what was sent to its reader's thread, and what was sent to the whole
 * process as well. So with a signal that programs can use, ours would take theirs away
 * (PostgreSQL wakes its backends with SIGURG, Go its threads). This one libc keeps to
 * itself, for pthread_cancel() and timers, and only ever sends to one thread of its own
 * choice. Ours has it blocked for as long as it lives, and outlives who wakes it.
 */
#define WAKE_SIGNAL 32
/* A program's filter may forbid the signal that wakes us: then closing takes so long. */
#define IDLE_MSEC 10000
#define LINGER_MSEC 2
/* Giving everything back and taking it again costs less than keeping it for so long. */
#define REST_MSEC 150
#define RECONNECT_FIRST_USEC 250000u
#define RECONNECT_MOST_USEC 5000000u

static struct proc_engine *registry; /* under the memory lock */

struct proc_engine *proc_engines(void)
{
	return registry;
}

static void registry_add(struct proc_engine *e)
{
	struct proc_mem_guard g;

	proc_mem_lock(&g);
	e->next = registry;
	registry = e;
	proc_mem_unlock(&g);
}

static void registry_remove(struct proc_engine *e)
{
	struct proc_mem_guard g;

	proc_mem_lock(&g);
	for (struct proc_engine **p = &registry; *p; p = &(*p)->next)
		if (*p == e) {
			*p = e->next;
			break;
		}
	proc_mem_unlock(&g);
}

/* --- connection ----------------------------------------------------------- */

void proc_engine_lost_link(struct proc_engine *e)
{
	e->link->ops->disconnect(e->link);
	e->link->connected = false;
	e->reconnect_wait_usec = RECONNECT_FIRST_USEC;
	e->reconnect_at_usec = sys_now_usec() + e->reconnect_wait_usec;
}

static int connected(struct proc_engine *e)
{
	const struct core_index_header *h = e->link->index.header;
	uint32_t segments = h->max_slots / h->segment_slots + 1;
	char *zero = e->work->maps_buf;

	/* Not in the ring, which would have a page of its own for it ever after. */
	_Static_assert(sizeof(e->work->maps_buf) >= 65536, "a page of any size");
	memset(zero, 0, e->page_bytes);
	e->zero_hash = core_hash_page(zero, e->page_bytes, h->seed);
	e->reconnect_wait_usec = RECONNECT_FIRST_USEC;
	proc_scan_connected(e);
	/* What an earlier broker gave us goes to this one, then we start afresh:
	 * slot numbers mean nothing across brokers. */
	proc_segments_offer(e);
	return proc_segments_reset(e, segments);
}

int proc_engine_connect(struct proc_engine *e)
{
	bool again = e->segments != NULL;
	int err;

	if (e->link->connected)
		return 0;
	e->rested = false;
	/* A call may have found the connection dead without cleaning up. */
	e->link->ops->disconnect(e->link);
	err = e->link->ops->connect(e->link);
	if (err == 0)
		err = connected(e);
	if (err < 0) {
		e->link->ops->disconnect(e->link);
		e->reconnect_at_usec = sys_now_usec() + e->reconnect_wait_usec;
		if (e->reconnect_wait_usec < RECONNECT_MOST_USEC)
			e->reconnect_wait_usec *= 2;
		return err;
	}
	if (again)
		e->stats.reconnects++;
	if (e->uffd < 0 && !e->kernel)
		(void)proc_freeze_setup(e);
	return 0;
}

int proc_engine_awake(struct proc_engine *e)
{
	int err = 0;

	e->rested = false;
	if (e->link->connected && e->link->ops->wake)
		err = e->link->ops->wake(e->link);
	if (err < 0)
		proc_engine_lost_link(e);
	return err;
}

/* --- the thread ----------------------------------------------------------- */

static int open_own(struct proc_engine *e)
{
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = (uintptr_t)e,
				       .query_flags = SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA };
	sigset_t wake;

	/* libc's functions know nothing of this number. */
	memset(&wake, 0, sizeof(wake));
	((unsigned char *)&wake)[(WAKE_SIGNAL - 1) / 8] = 1u << (WAKE_SIGNAL - 1) % 8;
	e->sigfd = sys->signalfd(-1, &wake);
	if (e->sigfd < 0)
		return e->sigfd;
	e->pagemap_fd = sys->open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	if (e->pagemap_fd < 0)
		return e->pagemap_fd;
	e->maps_fd = sys->open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0);
	if (e->maps_fd < 0)
		return e->maps_fd;
	e->have_procmap_query = sys->procmap_query(e->maps_fd, &q) == 0;
	proc_mem_find_own_data(e->maps_fd);
	return 0;
}

/*
 * A descriptor table of our own, empty but for what stands in for stdin, stdout
 * and stderr: neither must the program's pipes be held open, nor must anything
 * that is printed by mistake end up in the broker's socket.
 */
static int private_table(void)
{
	int fd, err;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
	err = sys->close_range_unshare(3, UINT_MAX); /* reports go to stderr */
#else
	err = sys->close_range_unshare(0, UINT_MAX);
#endif
	if (err < 0)
		return err;
	/* setns(2) into a mount namespace wants a file system context of one's own. */
	(void)sys->unshare_fs();
	do {
		fd = sys->open("/dev/null", O_RDWR | O_CLOEXEC, 0);
	} while (fd >= 0 && fd < 2);
	if (fd > 2)
		sys->close(fd);
	return fd < 0 ? fd : 0;
}

static int start(struct proc_engine *e)
{
	int err = private_table();

	if (err == 0)
		err = open_own(e);
	if (err == 0)
		err = proc_kernel_start(e);
	if (err < 0)
		return err;
	err = proc_engine_connect(e);
	if (err < 0 && e->params.connect_later)
		err = 0;
	if (err == 0 && e->uffd < 0 && !e->kernel)
		(void)proc_freeze_setup(e); /* without it: NO_FREEZE is counted */
	return err;
}

/*
 * The stack below this frame, for nothing lives there. No call is made between
 * finding out where that is and the system call: what it pushed would be gone.
 */
#define STACK_MARGIN_BYTES 512u
static __attribute__((noinline)) void give_back_stack(struct proc_engine *e)
{
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
	uintptr_t start = (uintptr_t)e->stack;
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) - STACK_MARGIN_BYTES;

	here &= ~(uintptr_t)(e->page_bytes - 1);
	if (here > start && here < start + e->stack_bytes)
		sys_raw(SYS_madvise, start, here - start, MADV_DONTNEED);
#endif
}

/*
 * Between passes nothing in the working memory is needed, nor what maps the index:
 * the program can have it, page tables included.
 */
void proc_engine_rest(struct proc_engine *e)
{
	if (e->rested)
		return;
	proc_scan_rests(e);
	if (e->link->connected && e->link->ops->rest)
		e->link->ops->rest(e->link);
	sys->madvise(e->work, sizeof(*e->work), MADV_DONTNEED);
	give_back_stack(e);
	e->rested = true;
}

/* Until the scanner has something to do. */
static int scan_wait_msec(const struct proc_engine *e)
{
	uint64_t wake = proc_scan_wake_usec(e), now = sys_now_usec();

	if (wake <= now)
		return 0;
	return wake - now > (uint64_t)IDLE_MSEC * 1000 ? IDLE_MSEC : (int)((wake - now) / 1000) + 1;
}

static void wait_for_work(struct proc_engine *e)
{
	struct pollfd fds[2] = { { .fd = e->sigfd, .events = POLLIN },
				 { .fd = e->link->poll_fd, .events = POLLIN } };
	uint64_t now;
	int timeout = IDLE_MSEC;

	/* Callers that merge page by page come back at once. */
	if (!e->rested && scan_wait_msec(e) > REST_MSEC && sys->poll(fds, 2, LINGER_MSEC) == 0)
		proc_engine_rest(e);
	now = sys_now_usec();
	/* A shim keeps looking for its broker; a library handle waits to be called. */
	if (!e->link->connected && e->params.connect_later)
		timeout = e->reconnect_at_usec <= now
				  ? 0
				  : (int)((e->reconnect_at_usec - now) / 1000) + 1;
	if (scan_wait_msec(e) < timeout)
		timeout = scan_wait_msec(e);
	if (sys->poll(fds, 2, timeout) <= 0)
		return;
	if (fds[0].revents) {
		struct signalfd_siginfo_room {
			char bytes[128];
		} info;

		while (sys->read(e->sigfd, &info, sizeof(info)) > 0)
			;
	}
}

static void close_own(int *fd)
{
	if (*fd >= 0)
		sys->close(*fd);
	*fd = -1;
}

static void teardown(struct proc_engine *e)
{
	proc_segments_reset(e, 0);
	proc_freeze_teardown(e);
	proc_hold_close(&e->hold);
	e->link->ops->disconnect(e->link);
	proc_kernel_end(e);
	close_own(&e->sigfd);
	close_own(&e->pagemap_fd);
	close_own(&e->maps_fd);
}

static void *engine_main(void *arg)
{
	struct proc_engine *e = arg;
	int err;

	e->tid = sys_gettid();
	proc_mem_engine_starts();
	err = start(e);
	e->start_error = err;
	if (err < 0)
		teardown(e);
	atomic_store(&e->state, err < 0 ? PROC_DEAD : PROC_IDLE);
	sys_futex_wake(&e->state, INT_MAX);
	if (err < 0) {
		/* Who posted a call meanwhile is not left waiting. */
		atomic_store(&e->call.done, 1);
		sys_futex_wake(&e->call.done, 1);
		return NULL;
	}
	while (atomic_load(&e->state) != PROC_CLOSING) {
		proc_call_take(e);
		/* A pass may have found the broker gone: let go of what is left. */
		if (!e->link->connected && e->link->poll_fd >= 0)
			proc_engine_lost_link(e);
		if (!e->link->connected && e->params.connect_later &&
		    sys_now_usec() >= e->reconnect_at_usec)
			(void)proc_engine_connect(e);
		proc_serve(e);
		proc_scan_slice(e);
		if (!atomic_load(&e->call_posted) && atomic_load(&e->state) != PROC_CLOSING)
			wait_for_work(e);
	}
	teardown(e);
	while (!atomic_load(&e->may_end))
		sys_futex_wait(&e->may_end, 0, -1);
	return NULL;
}

/* --- birth and death ------------------------------------------------------ */

static int start_thread(struct proc_engine *e)
{
	sigset_t saved;
	pthread_attr_t attr;
	int err;

	e->sigfd = e->pagemap_fd = e->maps_fd = e->uffd = e->ksm_fd = e->mem_fd = -1;
	e->reconnect_wait_usec = RECONNECT_FIRST_USEC;
	e->reconnect_at_usec = 0;
	e->tags_count = 0;
	e->hold.pages = 0;
	atomic_store(&e->state, PROC_STARTING);
	atomic_store(&e->call_posted, 0);
	atomic_store(&e->may_end, 0);
	err = -pthread_attr_init(&attr);
	if (err)
		return err;
	pthread_attr_setstack(&attr, e->stack, e->stack_bytes);
	/* Inherited by the thread: it never runs a handler of the program. Not that of
	 * setuid(), whose caller holds a lock that pthread_create takes. */
	sys_sigmask_block_most(&saved);
	err = -pthread_create(&e->thread, &attr, engine_main, e);
	e->joinable = err == 0;
	sys_sigmask_restore(&saved);
	pthread_attr_destroy(&attr);
	return err;
}

static void join(struct proc_engine *e)
{
	if (e->joinable)
		pthread_join(e->thread, NULL);
	e->joinable = false;
}

static int wait_started(struct proc_engine *e)
{
	while (atomic_load(&e->state) == PROC_STARTING)
		sys_futex_wait(&e->state, PROC_STARTING, -1);
	if (atomic_load(&e->state) != PROC_DEAD)
		return 0;
	join(e);
	return e->start_error;
}

static void free_memory(struct proc_engine *e)
{
	proc_scan_free(e);
	proc_arena_free(e->stack, e->stack_bytes);
	proc_arena_free(e->work, sizeof(*e->work));
	proc_arena_free_small(e, sizeof(*e));
}

int proc_engine_new(struct proc_engine **out, const struct proc_engine_params *params,
		    const struct core_scan_config *scan)
{
	struct proc_engine *e = proc_arena_alloc_small(sizeof(*e));
	int err = -ENOMEM;

	if (!e)
		return -ENOMEM;
	e->params = *params;
	e->link = params->link;
	e->page_bytes = sys_page_bytes();
	e->page_shift = (uint32_t)__builtin_ctzll(e->page_bytes);
	e->stack_bytes = STACK_BYTES;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
	e->stack_bytes *= 8;
#endif
	e->work = proc_arena_alloc(sizeof(*e->work));
	e->stack = proc_arena_alloc(e->stack_bytes);
	if (!e->work || !e->stack)
		goto fail;
	if (scan && proc_scan_new(e, scan) < 0)
		goto fail;
	err = start_thread(e);
	if (err < 0)
		goto fail;
	if (!params->connect_later) {
		err = wait_started(e);
		if (err < 0)
			goto fail;
	}
	registry_add(e);
	*out = e;
	return 0;
fail:
	free_memory(e);
	return err;
}

int proc_engine_wake(struct proc_engine *e)
{
	/* The thread may not have looked at its tid yet: it looks at the mailbox
	 * before it first waits. */
	while (atomic_load(&e->state) == PROC_STARTING)
		sys_futex_wait(&e->state, PROC_STARTING, -1);
	/* It has ended: its number may be another thread's. */
	if (atomic_load(&e->state) == PROC_DEAD)
		return -ESRCH;
	return sys->tgkill(getpid(), e->tid, WAKE_SIGNAL);
}

/* It does not end before we have sent our last signal. */
static void end_thread(struct proc_engine *e)
{
	if (atomic_load(&e->state) != PROC_IDLE)
		return;
	atomic_store(&e->state, PROC_CLOSING);
	(void)proc_engine_wake(e);
	atomic_store(&e->may_end, 1);
	sys_futex_wake(&e->may_end, 1);
}

void proc_engine_free(struct proc_engine *e)
{
	if (!e)
		return;
	registry_remove(e);
	if (atomic_load(&e->state) == PROC_STARTING)
		(void)wait_started(e);
	end_thread(e);
	join(e);
	e->link->ops->free(e->link);
	free_memory(e);
}

void proc_link_free(struct proc_link *link)
{
	if (link)
		link->ops->free(link);
}

bool proc_engine_kernel(const struct proc_engine *e)
{
	return e && e->kernel;
}

bool proc_engine_is_here(struct proc_engine *e)
{
	/* Signal 0: is there such a thread? */
	return e && atomic_load(&e->state) != PROC_DEAD &&
	       (atomic_load(&e->state) == PROC_STARTING || sys->tgkill(getpid(), e->tid, 0) == 0);
}

void proc_engine_retire(struct proc_engine *e)
{
	sigset_t saved;

	if (!e)
		return;
	proc_call_enter(e, &saved);
	e->retired = true;
	if (atomic_load(&e->state) == PROC_STARTING)
		(void)wait_started(e);
	end_thread(e);
	join(e);
	atomic_store(&e->state, PROC_DEAD);
	proc_call_leave(e, &saved);
}

/* --- fork ----------------------------------------------------------------- */

void proc_engine_forked(struct proc_engine *e)
{
	/* Only the thread that forked is here. What the engine's thread had open
	 * was never in this process's table. */
	atomic_store(&e->call_lock, 0);
	atomic_store(&e->call_posted, 0);
	e->joinable = false;
	e->link->ops->forget(e->link);
	proc_kernel_forked();
	proc_segments_forget(e);
	proc_scan_forked(e);
	/* The child's copies of the staging areas have lost their registration. */
	for (unsigned i = 0; i < 2; i++)
		proc_freeze_free_staging(e, &e->staging[i]);
	atomic_store(&e->state, PROC_DEAD);
}

int proc_engine_revive(struct proc_engine *e)
{
	int err = e->retired ? -ECANCELED : start_thread(e);

	if (err < 0) {
		atomic_store(&e->state, PROC_DEAD);
		return err;
	}
	return e->params.connect_later ? 0 : wait_started(e);
}
