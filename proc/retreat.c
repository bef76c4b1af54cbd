/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Retreat: merged memory becomes plain private memory again, bytes and all, so that
 * the kernel alone can do with it what it does with anonymous memory: for a
 * userfaultfd of the program's own, or when no call of ours is to be made any more.
 * Rare, so simple rather than fast. On the engine's thread, under the memory lock.
 *
 *  1. all store mappings of the range are registered with a userfaultfd of their own
 *     and write protected: writers, in user or kernel mode, wait; readers go on
 *  2. one call that takes mmap_lock for writing: copies by ptrace or /proc/PID/mem
 *     that are under way are over then (freeze.c, step 3b)
 *  3. pins. A page that was written since its merge may be a target of DMA, which no
 *     write protection stops. There is one thing that tells: fork(2) gives the child
 *     a copy at once of a page that is pinned, and shares every other. So a child is
 *     made that does nothing, and what is still exclusively ours (pagemap, bit 56)
 *     is pinned. A page never written maps its slot; DMA would have copied it first.
 *     What the program keeps from its children (MADV_DONTFORK) is let go for that
 *     moment: no other fork can come between (the memory lock)
 *  4. piece by piece: anonymous memory elsewhere with the same protection and advice
 *     gets the bytes and is moved over the mapping with mremap, in one step
 *     The hull keeps the range: what came home consists of several mappings for ever
 *     (pages that moved keep the number of their old place, so the kernel does not join
 *     them), and mremap has to go on knowing that
 *  5. the userfaultfd is closed, which wakes everybody, but only when nobody else has it
 *     open: so the child has no descriptors of its own (CLONE_FILES), for it may take long
 *     to die
 *
 * Where no such child can be made, every page written since its merge counts as
 * pinned. A pinned page, and mappings with a protection key, stay as they are: -EBUSY.
 *
 * The scanner brings home pages that were written since their merge, so that they can be
 * merged again (proc_retreat_pieces).
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "proc/scan.h"
#include "sys/raw.h"

#define BATCH 1024
#define PM_EXCLUSIVE (UINT64_C(1) << 56)
#define PM_FILE (UINT64_C(1) << 61)
#define PM_PRESENT (UINT64_C(1) << 63)

struct home {
	struct proc_engine *e;
	uint64_t start, end;
	int uffd;
	struct proc_piece *piece;
	unsigned n;
	bool more;
	int result;
	long child; /* to be buried; 0: none */
	uint64_t fork_usec; /* how long it took to make it */
};

static int collect(const struct sys_vma *vma, void *arg)
{
	struct home *h = arg;

	if (vma->start >= h->end)
		return 1;
	if (vma->end <= h->start || !proc_vma_is_run(vma))
		return 0;
	/* Of a file, and writable: neither anonymous memory nor to be replaced under writers. */
	if (proc_origin_any(vma->start, vma->end)) {
		h->result = -EBUSY;
		return 0;
	}
	if (h->n == BATCH) {
		h->more = true;
		return 1;
	}
	h->piece[h->n++] = (struct proc_piece){
		.start = vma->start > h->start ? vma->start : h->start,
		.end = vma->end < h->end ? vma->end : h->end,
		.prot = vma->prot,
		.locked = vma->flags & SYS_VMF(lo),
		.keyed = vma->pkey != 0,
	};
	return 0;
}

/* --- 1 --------------------------------------------------------------------- */

static int stop_writers(struct home *h, const struct proc_piece *p)
{
	void *at = (void *)p->start;
	size_t bytes = p->end - p->start;
	int err = sys->uffd_register(h->uffd, at, bytes, UFFDIO_REGISTER_MODE_WP);

	return err < 0 ? err : sys->uffd_wp(h->uffd, at, bytes, true);
}

static int open_uffd(struct proc_engine *e)
{
	uint64_t have = 0, want = UFFD_FEATURE_PAGEFAULT_FLAG_WP | SYS_UFFD_FEATURE_WP_SHMEM;
	int fd = proc_uffd_open(e), err;

	if (fd < 0)
		return fd;
	err = sys->uffd_api(fd, want, &have);
	if (err == 0 && (have & want) == want)
		return fd;
	sys->close(fd);
	return err < 0 ? err : -ENOSYS;
}

/* --- 3 --------------------------------------------------------------------- */

static uint64_t pagemap_entry(struct home *h, uint64_t at)
{
	uint64_t entry = 0;

	/* Unknown is pinned. */
	if (sys->pread(h->e->pagemap_fd, &entry, sizeof(entry),
		       (off_t)((at >> h->e->page_shift) * sizeof(entry))) != sizeof(entry))
		return PM_PRESENT | PM_EXCLUSIVE;
	return entry;
}

static bool written(uint64_t entry)
{
	return (entry & PM_PRESENT) && !(entry & PM_FILE);
}

static bool any_written(struct home *h)
{
	for (unsigned i = 0; i < h->n; i++)
		for (uint64_t at = h->piece[i].start; at < h->piece[i].end; at += h->e->page_bytes)
			if (written(pagemap_entry(h, at)))
				return true;
	return false;
}

/*
 * The child: a copy of everything, in which nothing runs but this. It has no exit
 * signal, so the program's wait() does not see it.
 */
static _Atomic bool fork_forbidden;

void proc_engine_without_fork(void)
{
	atomic_store(&fork_forbidden, true);
}

bool proc_retreat_can_fork(void)
{
	return !atomic_load(&fork_forbidden);
}

static long make_child(void)
{
	long parent = sys_raw(SYS_getpid, 0), pid = sys_raw(SYS_clone, CLONE_FILES, 0, 0, 0, 0);
	_Atomic uint32_t never = 0;

	if (pid != 0)
		return pid;
	sys_raw(SYS_prctl, PR_SET_PDEATHSIG, 9);
	while (sys_raw(SYS_getppid, 0) == parent)
		sys_futex_wait(&never, 0, 10000);
	sys_raw(SYS_exit_group, 0);
	__builtin_unreachable();
}

/* --- 4 --------------------------------------------------------------------- */

static int fill(uint64_t from, uint64_t to, size_t bytes)
{
	while (bytes > 0) {
		struct iovec src = { (void *)from, bytes }, dst = { (void *)to, bytes };
		ssize_t got = sys->read_self(&dst, 1, &src, 1);

		if (got <= 0)
			return got < 0 ? (int)got : -EFAULT;
		from += (uint64_t)got;
		to += (uint64_t)got;
		bytes -= (size_t)got;
	}
	return 0;
}

/* [start, end) of one mapping, with one set of odd flags. */
static int replace(const struct proc_piece *p, uint64_t start, uint64_t end, uint32_t odd)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (odd & PROC_ODD_NORESERVE ? MAP_NORESERVE : 0);
	size_t bytes = end - start;
	intptr_t at = sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0), moved;
	int err;

	if (at < 0)
		return (int)at;
	proc_mem_reapply_odd((uint64_t)at, (uint64_t)at + bytes, odd);
	/* A mapping that is not readable now was, when it was merged. */
	err = p->prot & PROT_READ ? 0 :
		sys->mprotect((void *)start, bytes, p->prot | PROT_READ);
	if (err == 0)
		err = fill(start, (uint64_t)at, bytes);
	if (err == 0 && p->prot != (PROT_READ | PROT_WRITE))
		err = sys->mprotect((void *)at, bytes, p->prot);
	if (err == 0 && p->locked)
		err = (int)sys_raw(SYS_mlock, at, bytes);
	if (err == 0) {
		moved = sys->mremap((void *)at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
				    (void *)start);
		err = moved < 0 ? (int)moved : 0;
	}
	proc_mem_unmapped();
	if (err == 0) {
		/* The scanner took it for part of what is around it: it reads that anew. */
		proc_mem_made_fresh(start, end);
		return 0;
	}
	if (!(p->prot & PROT_READ))
		sys->mprotect((void *)start, bytes, p->prot);
	sys->munmap((void *)at, bytes);
	return err == -EFAULT ? -EBUSY : err;
}

static void bring(struct home *h, const struct proc_piece *p, bool child)
{
	uint64_t page = h->e->page_bytes, at = p->start, until;

	while (at < p->end) {
		uint32_t odd = proc_mem_odd(at);
		uint64_t entry = pagemap_entry(h, at);
		int err;

		if (written(entry) && (!child || (entry & PM_EXCLUSIVE))) {
			h->result = -EBUSY;
			at += page;
			continue;
		}
		for (until = at + page; until < p->end && proc_mem_odd(until) == odd; until += page) {
			entry = pagemap_entry(h, until);
			if (written(entry) && (!child || (entry & PM_EXCLUSIVE)))
				break;
		}
		err = replace(p, at, until, odd);
		if (err < 0)
			h->result = err;
		at = until;
	}
}

/* What has DONTFORK gets the advice, or is freed from it. */
static void advise_forking(const struct proc_piece *p, int advice)
{
	uint64_t at = p->start, until;

	for (; at < p->end; at = until) {
		uint32_t odd = proc_mem_odd(at);

		for (until = at + sys_page_bytes();
		     until < p->end && proc_mem_odd(until) == odd; until += sys_page_bytes())
			;
		if (odd & PROC_ODD_DONTFORK)
			sys->madvise((void *)at, until - at, advice);
	}
}

static void all_forking(struct home *h, int advice)
{
	for (unsigned i = 0; i < h->n; i++)
		if (h->piece[i].stopped)
			advise_forking(&h->piece[i], advice);
}

/* One batch. Lock held. */
static void bring_all(struct home *h)
{
	long child = -1;

	for (unsigned i = 0; i < h->n; i++) {
		int err = h->piece[i].keyed ? -EBUSY : stop_writers(h, &h->piece[i]);

		h->piece[i].stopped = err == 0;
		if (err < 0)
			h->result = err;
	}
	if (sys->madvise(h->e->work, h->e->page_bytes, MADV_DOFORK) < 0) {
		h->result = -EBUSY;
		return;
	}
	if (any_written(h) && !atomic_load(&fork_forbidden)) {
		uint64_t since = sys_now_usec();

		all_forking(h, MADV_DOFORK);
		child = make_child();
		h->fork_usec = sys_now_usec() - since;
		/* Also for what stays, or has come home: its own advice again. */
		all_forking(h, MADV_DONTFORK);
	}
	for (unsigned i = 0; i < h->n; i++)
		if (h->piece[i].stopped)
			bring(h, &h->piece[i], child > 0);
	h->child = child > 0 ? child : 0;
}

/* Everybody goes on; the program's pages are its own again as soon as the child is dead. */
static void let_go(struct home *h)
{
	sys->close(h->uffd);
	if (h->child > 0)
		sys_raw(SYS_kill, h->child, 9);
}

/* The child has been killed. Without the lock: large programs take long to die. */
static void bury(struct home *h)
{
	while (h->child > 0 &&
	       sys_raw(SYS_wait4, h->child, NULL, __WALL, NULL) == -EINTR)
		;
	h->child = 0;
}

int proc_retreat_range(struct proc_engine *e, uint64_t start, uint64_t end)
{
	struct home h = { .e = e, .start = start, .end = end };
	int err;

	h.piece = proc_arena_alloc_far(BATCH * sizeof(*h.piece));
	if (!h.piece)
		return -ENOMEM;
	do {
		h.n = 0;
		h.more = false;
		proc_mem_lock_engine();
		/* Pages of files are the file's again, by their own way (home.c). */
		(void)proc_mem_files_home(h.start, end);
		err = sys_smaps_each(0, e->work->maps_buf, sizeof(e->work->maps_buf), collect, &h);
		if (err >= 0 && h.n > 0) {
			h.uffd = open_uffd(e);
			err = h.uffd < 0 ? h.uffd : 0;
			if (err == 0) {
				bring_all(&h);
				let_go(&h);
			}
			h.start = h.piece[h.n - 1].end;
		}
		proc_mem_unlock_engine();
		bury(&h);
	} while (err >= 0 && h.more);
	proc_arena_free(h.piece, BATCH * sizeof(*h.piece));
	return err < 0 ? err : h.result;
}

/* Lock held. Is it still what the scanner took it for? */
static bool still_a_run(struct proc_engine *e, const struct proc_piece *p)
{
	struct sys_vma v;

	return !e->no_freeze && proc_mem_is_owned(p->start, p->end) &&
	       !proc_scan_touched(e, p->start, p->end) && !proc_origin_any(p->start, p->end) &&
	       scan_vma_at(e, p->start, &v) == 0 && v.start <= p->start && proc_vma_is_run(&v) &&
	       v.prot == p->prot && v.end >= p->end;
}

int proc_retreat_pieces(struct proc_engine *e, struct proc_piece *piece, unsigned *n,
			struct proc_retreat_cost *cost)
{
	struct home h = { .e = e, .piece = piece };
	uint64_t since;

	proc_mem_lock_engine();
	since = sys_now_usec();
	for (unsigned i = 0; i < *n; i++)
		if (still_a_run(e, &piece[i]))
			piece[h.n++] = piece[i];
	*n = h.n;
	if (h.n > 0) {
		h.uffd = open_uffd(e);
		if (h.uffd < 0) {
			h.result = h.uffd;
		} else {
			bring_all(&h);
			let_go(&h);
		}
	}
	cost->held_usec = sys_now_usec() - since;
	cost->fork_usec = h.fork_usec;
	proc_mem_unlock_engine();
	bury(&h);
	return h.result;
}
