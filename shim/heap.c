/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The brk heap.
 *
 * glibc's malloc moves the break inside libc, where no interposition sees it. What
 * we can do is to make sure that it never moves it back: with M_TRIM_THRESHOLD
 * at its maximum, set by our constructor, only malloc_trim() gives heap memory back,
 * and that we interpose. So the heap only grows, and what is mapped between its
 * start and the break is a matter of asking: shim_heap_refresh(), before each pass.
 *
 *   off       not glibc's malloc, or trimming is on (by mallopt, by the
 *             environment), or all memory is locked: the heap is not owned. Final
 *             when it was given up. If malloc is foreign and the program moves
 *             the break through our brk or sbrk, what that adds is owned and
 *             what it takes away released (`manual`)
 *   on        [start, end) was owned up to the last refresh, with the pieces
 *             released that the program mapped over or unmapped
 *   trimming  malloc_trim runs in `trimming` threads: not owned, no refresh
 *
 * Setting the trim threshold also freezes malloc's mmap threshold at 128 KiB, which
 * would otherwise grow with the program's habits. So it is put at MMAP_THRESHOLD_BYTES,
 * unless the user chose one: below it memory comes from the heap and stays there when
 * freed; from it on blocks are mapped and unmapped each time (big.c).
 *
 * start    the kernel's start_brk, rounded up (the end of .bss may share a VMA with
 *          the heap and is none of ours)
 * limit    lowest address from `end` on that some mmap, munmap or mremap touched
 *          since: the break may have passed it before we asked, so a refresh owns
 *          nothing beyond it. Forgetting is safe
 *
 * malloc_trim. It takes malloc's arena locks, and a thread that holds one may be
 * in a signal handler that waits for the memory lock in mmap: holding the memory
 * lock around it could deadlock. So the heap is disowned under the lock, malloc_trim
 * runs without it, and the heap is owned again under the lock when the last trimming
 * thread is through; what lies between the new and the old break is released then
 * (until then the hull says "maybe merged" there, which is safe). Its madvise(
 * MADV_DONTNEED) inside libc may leave merged bytes where zeros would be: it goes to
 * free chunks only, of which malloc expects nothing. What the program said of parts of
 * it (MADV_UNMERGEABLE) is kept meanwhile. A heap with holes stays disowned after a
 * trim, as nobody recorded where they were.
 *
 * brk and sbrk are glibc's own functions here, not raw calls: they keep __curbrk,
 * from which malloc computes the next break.
 */
#include "shim/shim.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proc/mem.h"
#include "sys/maps.h"
#include "sys/raw.h"
#include "sys/sys.h"

static struct {
	bool on;
	bool manual;
	bool given_up;
	bool holed;
	unsigned trimming;
	uint64_t start;
	uint64_t end;
	uint64_t limit;
} heap = { .limit = UINT64_MAX };

static uint64_t page_up(uint64_t addr)
{
	uint64_t mask = sys_page_bytes() - 1;

	return (addr + mask) & ~mask;
}

static uint64_t break_now(void)
{
	return page_up((uint64_t)sys_raw(SYS_brk, 0));
}

void shim_heap_refresh(void)
{
	uint64_t now;

	if (!heap.on || heap.trimming > 0)
		return;
	now = break_now();
	if (now > heap.limit)
		now = heap.limit;
	if (now > heap.end) {
		proc_mem_adopt(heap.end, now, PROC_OWN_HEAP | shim_fresh_attr());
		heap.end = now;
	}
}

void shim_heap_punched(const struct shim_range *range)
{
	if (heap.given_up || range->end <= heap.start)
		return;
	if (range->start < heap.end)
		heap.holed = true;
	if (range->end > heap.end) {
		uint64_t at = range->start > heap.end ? range->start : heap.end;

		if (at < heap.limit)
			heap.limit = at;
	}
}

void shim_heap_give_up(void)
{
	if (heap.end > heap.start)
		proc_mem_disown(heap.start, heap.end);
	heap.on = false;
	heap.manual = false;
	heap.given_up = true;
}

/* --- the program moves the break ------------------------------------------ */

/* Lock held; both values page-rounded. */
static void break_moved(uint64_t before, uint64_t after)
{
	struct shim_range grown = { before, after };

	if (after < before) {
		proc_mem_release(after, before);
		if (heap.end > after)
			heap.end = after > heap.start ? after : heap.start;
		if (heap.limit >= after && heap.limit < before)
			heap.limit = after;
		return;
	}
	if (heap.on)
		shim_heap_refresh();
	else if (heap.manual && shim_owning() && after > before)
		proc_mem_own(grown.start, grown.end, PROC_OWN_HEAP | shim_fresh_attr());
}

intptr_t shim_raw_brk(uint64_t to)
{
	struct proc_mem_guard guard;
	uint64_t before;
	intptr_t ret;

	if (!shim_is_ready() || to == 0)
		return sys_raw(SYS_brk, to);
	proc_mem_lock(&guard);
	before = break_now();
	ret = sys_raw(SYS_brk, to);
	break_moved(before, break_now());
	proc_mem_unlock(&guard);
	return ret;
}

SHIM_EXPORT int brk(void *to)
{
	const struct shim_real *real = shim_real();
	struct proc_mem_guard guard;
	uint64_t before;
	int ret;

	if (!shim_is_ready())
		return real->brk(to);
	proc_mem_lock(&guard);
	before = break_now();
	ret = real->brk(to);
	break_moved(before, break_now());
	proc_mem_unlock(&guard);
	return ret;
}

SHIM_EXPORT void *sbrk(intptr_t by)
{
	const struct shim_real *real = shim_real();
	struct proc_mem_guard guard;
	uint64_t before;
	void *ret;

	if (!shim_is_ready() || by == 0)
		return real->sbrk(by);
	proc_mem_lock(&guard);
	before = break_now();
	ret = real->sbrk(by);
	break_moved(before, break_now());
	proc_mem_unlock(&guard);
	return ret;
}

void *__sbrk(intptr_t by)
	__attribute__((alias("sbrk"), visibility("default"), nothrow, leaf));

/* --- the program talks to malloc ------------------------------------------ */

SHIM_EXPORT int mallopt(int param, int value)
{
	const struct shim_real *real = shim_real();
	struct proc_mem_guard guard;

	/* A negative threshold is a huge one: trimming stays off. */
	if (shim_is_ready() && param == M_TRIM_THRESHOLD && value >= 0) {
		proc_mem_lock(&guard);
		shim_heap_give_up();
		proc_mem_unlock(&guard);
	}
	return real->mallopt ? real->mallopt(param, value) : 0;
}

/* What the program said of parts of the heap, while the heap is not owned. */
#define KEPT_MAX 64
#define SAID (PROC_OWN_ADVISED | PROC_OWN_REFUSED)
/* Room for more than one is made when it is needed: few programs say anything. */
static struct core_range kept_one;
static struct core_range *kept = &kept_one;
static unsigned kept_room = 1, kept_count;

static bool more_room(void)
{
	intptr_t p;

	if (kept_room == KEPT_MAX)
		return false;
	p = sys->mmap(NULL, KEPT_MAX * sizeof(*kept), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0)
		return false;
	*(struct core_range *)p = kept_one;
	kept = (struct core_range *)p;
	kept_room = KEPT_MAX;
	return true;
}

static void keep_said(void)
{
	struct core_range r = { .end = heap.start };

	kept_count = 0;
	while (proc_mem_owned_copy(r.end, &r, 1) == 1 && r.start < heap.end) {
		if (!(r.attr & SAID))
			continue;
		/* Too much was said: no merging of any of it is what nobody can mind. */
		if (kept_count == kept_room && !more_room()) {
			kept_count = 1;
			kept[0] = (struct core_range){ .start = heap.start, .end = heap.end,
						       .attr = PROC_OWN_REFUSED };
			return;
		}
		kept[kept_count++] = r;
	}
}

static void say_again(void)
{
	for (unsigned i = 0; i < kept_count; i++)
		proc_mem_own_attr(kept[i].start, kept[i].end < heap.end ? kept[i].end : heap.end,
				  kept[i].attr & SAID, ~kept[i].attr & SAID);
	kept_count = 0;
}

static void trim_begins(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	if (heap.on) {
		shim_heap_refresh();
		if (heap.trimming++ == 0)
			keep_said();
		if (heap.end > heap.start)
			proc_mem_disown(heap.start, heap.end);
	}
	proc_mem_unlock(&guard);
}

static void trim_ends(void)
{
	struct proc_mem_guard guard;
	uint64_t now;

	proc_mem_lock(&guard);
	/* Given up meanwhile, or not on when we began: nothing to bring back. */
	if (heap.trimming > 0 && --heap.trimming == 0 && heap.on) {
		now = break_now();
		if (now < heap.end) {
			proc_mem_release(now, heap.end);
			heap.end = now > heap.start ? now : heap.start;
		}
		if (heap.holed) {
			shim_heap_give_up();
		} else {
			proc_mem_adopt(heap.start, heap.end, PROC_OWN_HEAP | shim_fresh_attr());
			say_again();
		}
	}
	proc_mem_unlock(&guard);
}

SHIM_EXPORT int malloc_trim(size_t pad)
{
	const struct shim_real *real = shim_real();
	int saved, ret;

	if (!real->malloc_trim)
		return 0;
	if (!shim_is_ready())
		return real->malloc_trim(pad);
	trim_begins();
	ret = real->malloc_trim(pad);
	saved = errno;
	trim_ends();
	errno = saved;
	return ret;
}

/* --- start ---------------------------------------------------------------- */

/* start_brk is the 47th word of stat; the second one is in brackets, to be skipped. */
static uint64_t kernel_start_brk(void)
{
	char text[1024], *at;
	int fd = sys->open("/proc/thread-self/stat", O_RDONLY | O_CLOEXEC, 0), word;
	ssize_t got;

	if (fd < 0)
		return 0;
	got = sys->read(fd, text, sizeof(text) - 1);
	sys->close(fd);
	text[got < 0 ? 0 : got] = '\0';
	at = strrchr(text, ')');
	for (word = 2; at && word < 47; word++) {
		at = strchr(at, ' ');
		if (at)
			at++;
	}
	return at ? page_up(strtoull(at, NULL, 10)) : 0;
}

static int count_plain(const struct sys_vma *vma, void *arg)
{
	uint64_t *reached = arg;

	if (vma->end <= *reached)
		return 0;
	if (vma->start > *reached || vma->shared || !vma->anonymous || vma->stack)
		return 1;
	*reached = vma->end;
	return 0;
}

/* All of the heap is as brk made it: nobody mapped into it before our time. */
static bool heap_is_whole(uint64_t start, uint64_t end)
{
	char buf[4096];
	uint64_t reached = start;

	if (start == end)
		return true;
	return sys_maps_each(0, buf, sizeof(buf), count_plain, &reached) >= 0 && reached >= end;
}

#define MMAP_THRESHOLD_BYTES (512 << 10)

static void raise_mmap_threshold(const struct shim_real *real)
{
	const char *tunables = getenv("GLIBC_TUNABLES");

	if (!getenv("MALLOC_MMAP_THRESHOLD_") &&
	    !(tunables && strstr(tunables, "glibc.malloc.mmap_threshold")))
		real->mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
}

/* The user tuned malloc's trimming: that is to be kept, and then it is on. */
static bool user_tuned_trimming(void)
{
	const char *tunables = getenv("GLIBC_TUNABLES");

	return getenv("MALLOC_TRIM_THRESHOLD_") ||
	       (tunables && strstr(tunables, "glibc.malloc.trim_threshold"));
}

void shim_heap_start(void)
{
	const struct shim_real *real = shim_real();
	bool glibc = shim_malloc_is_glibc(), ours;
	uint64_t start = kernel_start_brk();
	struct proc_mem_guard guard;

	ours = glibc && start != 0 && !user_tuned_trimming() && real->mallopt &&
	       real->mallopt(M_TRIM_THRESHOLD, -1) == 1;
	if (ours)
		raise_mmap_threshold(real);
	proc_mem_lock(&guard);
	if (!heap.given_up) {
		heap.start = heap.end = start;
		/* What came before us may lie anywhere, even behind the heap. */
		heap.on = ours && heap_is_whole(start, break_now());
		heap.manual = !glibc;
		shim_heap_refresh();
	}
	proc_mem_unlock(&guard);
	if (glibc)
		shim_big_start();
}
