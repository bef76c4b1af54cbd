/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big blocks of malloc.
 *
 * glibc's malloc maps blocks from its mmap threshold on by themselves, inside libc, where
 * no interposition sees them come and go: nobody could vouch for them. So malloc is
 * replaced, as glibc's manual says that one may, by functions that hand everything on
 * to libc's but these blocks, which come from mmap by way of our own handlers: owned
 * from birth to munmap like any mapping of the program's.
 *
 *   block      a mapping of whole pages, with HEADER_BYTES before what the program gets.
 *              An address is one of ours if it is HEADER_BYTES into a page, is in the
 *              table (blocks.c), and has the header that belongs there. Else it is
 *              libc's, or whose malloc comes after us
 *   off        `from` is SIZE_MAX: before our constructor; where malloc is not glibc's, or
 *              not only (see below); when nothing is owned any more; with settings of
 *              malloc that we would not do justice to. New blocks are libc's. Old ones
 *              are known, and freed, for ever
 *   on         from `from` bytes on blocks are ours: malloc's mmap threshold, which
 *              heap.c sets, or the user's
 *
 * A request that we cannot fulfil (no memory, a limit, too many, too large) goes to libc,
 * which then fails as it would have, or finds some in the heap, as it does when its own
 * mmap fails. A small request costs one comparison, and free() one.
 *
 * realloc moves a block with our mremap, merged or not, copies into one from the heap
 * that grows, and back into the heap one that becomes small.
 *
 * The header is that of a chunk that malloc mapped. Nobody of libc's sees it, but where a
 * program frees with another free than the one whose malloc it called (a library loaded
 * with RTLD_DEEPBIND, a symbol taken from libc's own handle) libc unmaps the block
 * properly, in place of an abort. We do not see that; the entry in the table that stays
 * behind does not match what comes to be there, and is dropped then.
 *
 * Whose malloc? The next definition after ours must be libc's, of all of them. And calls
 * of the program must arrive here: an executable or a library preloaded before us may
 * define some, or all. That is tried out, once, with a block that comes and goes.
 *
 * Locks: the memory lock only, which is innermost, around map, unmap and remap and the
 * table's change that belongs to it. It is never held around a call to libc's malloc,
 * and nothing that runs under it allocates. The header lies in the program's memory:
 * not touched with the lock held.
 */
#include "shim/shim.h"

#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/mem.h"
#include "sys/sys.h"

#define HEADER_BYTES 64u
#define MOST_BLOCKS 65536u            /* glibc's default for M_MMAP_MAX */

/* The end of the header: what a chunk of malloc's has before its memory. */
struct chunk {
	size_t before; /* bytes of the mapping before the chunk */
	size_t size;   /* of the chunk, and a bit that says "mapped" */
};
#define CHUNK_AT (HEADER_BYTES - sizeof(struct chunk))
#define CHUNK_MAPPED 2u
#define CHUNK_MORE 23u /* a chunk is a request and 8 bytes, rounded up to 16 */

/* --- whose malloc comes after us ------------------------------------------ */

static void *first_malloc(size_t bytes);
static void *first_calloc(size_t n, size_t bytes);
static void *first_realloc(void *p, size_t bytes);
static void first_free(void *p);
static size_t first_usable(void *p);

/* ld.so calls us before anything else runs: the first call looks the others up. */
static struct {
	void *(*malloc)(size_t bytes);
	void *(*calloc)(size_t n, size_t bytes);
	void *(*realloc)(void *p, size_t bytes);
	void (*free)(void *p);
	size_t (*usable)(void *p);
} next = { first_malloc, first_calloc, first_realloc, first_free, first_usable };

#define LOOK_UP(member, name) (next.member = (__typeof__(next.member))dlsym(RTLD_NEXT, name))

/* Finds all of them without an allocation. Two threads write the same. */
static void find_next(void)
{
	LOOK_UP(malloc, "malloc");
	LOOK_UP(calloc, "calloc");
	LOOK_UP(realloc, "realloc");
	LOOK_UP(free, "free");
	LOOK_UP(usable, "malloc_usable_size");
}

static void *first_malloc(size_t bytes)
{
	find_next();
	return next.malloc(bytes);
}

static void *first_calloc(size_t n, size_t bytes)
{
	find_next();
	return next.calloc(n, bytes);
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

static size_t first_usable(void *p)
{
	find_next();
	return next.usable(p);
}

static bool next_is_libc(void)
{
	void *fn[5];
	Dl_info libc, of;

	find_next();
	fn[0] = (void *)next.malloc;
	fn[1] = (void *)next.calloc;
	fn[2] = (void *)next.realloc;
	fn[3] = (void *)next.free;
	fn[4] = (void *)next.usable;
	if (!dladdr((void *)gnu_get_libc_version, &libc))
		return false;
	for (size_t i = 0; i < sizeof(fn) / sizeof(fn[0]); i++)
		if (!dladdr(fn[i], &of) || of.dli_fbase != libc.dli_fbase)
			return false;
	return true;
}

/* --- settings ------------------------------------------------------------- */

static atomic_size_t from = SIZE_MAX;
/* Bits of an address that say where in its page it is; all, as long as there is no block. */
static atomic_uintptr_t in_page = UINTPTR_MAX;
static atomic_bool running;

static struct {
	atomic_size_t threshold; /* the program's or the user's; 0: none chosen */
	atomic_bool chosen;
	atomic_size_t most;
	atomic_uint perturb; /* if not 0, malloc fills blocks with a byte made of it */
} tuned = { .most = MOST_BLOCKS };

static void settle(void)
{
	bool on = atomic_load(&running) && atomic_load(&tuned.most) > 0;
	size_t threshold = atomic_load(&tuned.threshold);

	/* malloc compares the chunk that it would make of the request. */
	threshold = threshold > CHUNK_MORE ? threshold - CHUNK_MORE : 0;
	atomic_store_explicit(&from, on ? threshold : SIZE_MAX, memory_order_relaxed);
}

void shim_big_tuned(int param, int value)
{
	if (param == M_MMAP_THRESHOLD) {
		atomic_store(&tuned.threshold, (size_t)value);
		atomic_store(&tuned.chosen, true);
	} else if (param == M_MMAP_MAX) {
		atomic_store(&tuned.most, value > 0 ? (size_t)value : 0);
	} else if (param == M_PERTURB) {
		atomic_store(&tuned.perturb, (unsigned)value);
	} else {
		return;
	}
	settle();
}

bool shim_big_threshold_chosen(void)
{
	return atomic_load(&tuned.chosen);
}

/* What the environment says of one of malloc's tunables. */
static bool from_environment(const char *variable, const char *tunable, size_t *value)
{
	const char *text = variable ? getenv(variable) : NULL, *all = getenv("GLIBC_TUNABLES");
	size_t len = strlen(tunable);

	for (; !text && all && (all = strstr(all, tunable)); all += len)
		if (all[len] == '=')
			text = all + len + 1;
	if (text)
		*value = strtoull(text, NULL, 0);
	return text != NULL;
}

static void read_environment(size_t threshold)
{
	size_t value;

	if (from_environment("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold", &value) &&
	    !atomic_load(&tuned.chosen)) {
		atomic_store(&tuned.threshold, value);
		atomic_store(&tuned.chosen, true);
	}
	if (!atomic_load(&tuned.chosen))
		atomic_store(&tuned.threshold, threshold);
	if (from_environment("MALLOC_MMAP_MAX_", "glibc.malloc.mmap_max", &value) &&
	    value <= INT_MAX && atomic_load(&tuned.most) == MOST_BLOCKS)
		atomic_store(&tuned.most, value);
	if (from_environment("MALLOC_PERTURB_", "glibc.malloc.perturb", &value) && value <= 0xff)
		atomic_store(&tuned.perturb, (unsigned)value);
}

/* --- blocks --------------------------------------------------------------- */

static size_t block_bytes(size_t bytes)
{
	size_t mask = sys_page_bytes() - 1;

	return (bytes + HEADER_BYTES + mask) & ~mask;
}

static struct chunk *chunk_of(uintptr_t base)
{
	return (struct chunk *)(base + CHUNK_AT);
}

static void *with_header(uintptr_t base, size_t total)
{
	*chunk_of(base) = (struct chunk){ CHUNK_AT, (total - CHUNK_AT) | CHUNK_MAPPED };
	return (void *)(base + HEADER_BYTES);
}

/* NULL: libc may have a try. */
static void *take(size_t bytes)
{
	struct proc_mem_guard guard;
	size_t total;
	intptr_t base = -ENOMEM;

	if (bytes > PTRDIFF_MAX || !shim_is_ready())
		return NULL;
	total = block_bytes(bytes);
	proc_mem_lock(&guard);
	if (atomic_load(&running) && shim_blocks_count() < atomic_load(&tuned.most) &&
	    shim_blocks_room()) {
		base = shim_map_locked(NULL, total, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (base > 0)
			shim_blocks_add((uintptr_t)base, total);
	}
	proc_mem_unlock(&guard);
	return base > 0 ? with_header((uintptr_t)base, total) : NULL;
}

/* The length of the mapping, 0: not one of ours. p: as malloc or the like returned it. */
static size_t ours(const void *p)
{
	uintptr_t base = (uintptr_t)p - HEADER_BYTES;
	const struct chunk *chunk;
	size_t total;

	if (((uintptr_t)p & atomic_load_explicit(&in_page, memory_order_relaxed)) != HEADER_BYTES)
		return 0;
	total = shim_blocks_find(base);
	if (total == 0)
		return 0;
	chunk = chunk_of(base);
	if (chunk->before == CHUNK_AT && chunk->size == ((total - CHUNK_AT) | CHUNK_MAPPED))
		return total;
	/* libc unmapped that block behind our back, and has made another. */
	shim_blocks_remove(base, false);
	return 0;
}

static void give(uintptr_t base, size_t total)
{
	struct proc_mem_guard guard;

	if (!shim_is_ready()) {
		shim_blocks_remove(base, false);
		shim_unmap((void *)base, total);
		return;
	}
	proc_mem_lock(&guard);
	shim_blocks_remove(base, true);
	shim_unmap_locked((void *)base, total);
	proc_mem_unlock(&guard);
}

/* NULL: not possible, and all is as it was. */
static void *move(uintptr_t base, size_t total, size_t want)
{
	struct proc_mem_guard guard;
	intptr_t to = -ENOMEM;

	if (!shim_is_ready())
		return NULL;
	proc_mem_lock(&guard);
	if (shim_blocks_room()) {
		shim_blocks_remove(base, true);
		to = shim_remap_locked((void *)base, total, want, MREMAP_MAYMOVE, NULL);
		if (to > 0)
			shim_blocks_add((uintptr_t)to, want);
		else
			shim_blocks_add(base, total);
	}
	proc_mem_unlock(&guard);
	return to > 0 ? with_header((uintptr_t)to, want) : NULL;
}

static bool small(size_t bytes)
{
	return __builtin_expect(bytes < atomic_load_explicit(&from, memory_order_relaxed), 1);
}

static void perturb(char *p, size_t bytes)
{
	unsigned with = atomic_load_explicit(&tuned.perturb, memory_order_relaxed);

	if (with != 0)
		memset(p, (int)(with ^ 0xff), bytes);
}

static void *big_malloc(size_t bytes)
{
	void *p = take(bytes);

	if (!p)
		return next.malloc(bytes);
	perturb(p, bytes);
	return p;
}

static void *big_calloc(size_t n, size_t each)
{
	void *p = take(n * each);

	return p ? p : next.calloc(n, each);
}

/* One of ours, whatever the new size. */
static void *resize(void *p, size_t total, size_t bytes)
{
	uintptr_t base = (uintptr_t)p - HEADER_BYTES;
	size_t have = total - HEADER_BYTES;
	void *to = NULL;

	if (bytes == 0) {
		give(base, total);
		return NULL;
	}
	if (bytes <= PTRDIFF_MAX && !small(bytes)) {
		if (block_bytes(bytes) == total)
			return p;
		to = move(base, total, block_bytes(bytes));
		if (to || bytes <= have)
			return to ? to : p;
	}
	to = small(bytes) ? next.malloc(bytes) : big_malloc(bytes);
	if (!to)
		return bytes <= have ? p : NULL;
	memcpy(to, p, bytes < have ? bytes : have);
	give(base, total);
	return to;
}

/* Not one of ours, and large enough to become one. */
static void *into_big(void *p, size_t bytes)
{
	size_t have = p ? next.usable(p) : 0;
	void *to = have < bytes ? take(bytes) : NULL;

	if (!to)
		return next.realloc(p, bytes);
	perturb((char *)to + have, bytes - have);
	if (p) {
		memcpy(to, p, have);
		next.free(p);
	}
	return to;
}

/* --- exported ------------------------------------------------------------- */

SHIM_EXPORT void *malloc(size_t bytes)
{
	return small(bytes) ? next.malloc(bytes) : big_malloc(bytes);
}

SHIM_EXPORT void *calloc(size_t n, size_t each)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, each, &bytes) || small(bytes))
		return next.calloc(n, each);
	return big_calloc(n, each);
}

SHIM_EXPORT void *realloc(void *p, size_t bytes)
{
	size_t total = ours(p);

	if (total != 0)
		return resize(p, total, bytes);
	return small(bytes) ? next.realloc(p, bytes) : into_big(p, bytes);
}

SHIM_EXPORT void free(void *p)
{
	size_t total = ours(p);

	if (total != 0)
		give((uintptr_t)p - HEADER_BYTES, total);
	else
		next.free(p);
}

SHIM_EXPORT size_t malloc_usable_size(void *p)
{
	size_t total = ours(p);

	return total != 0 ? total - HEADER_BYTES : next.usable(p);
}

/* C23; a libc that has them would free without us. */
void free_sized(void *p, size_t bytes);
void free_aligned_sized(void *p, size_t alignment, size_t bytes);

SHIM_EXPORT void free_sized(void *p, size_t bytes)
{
	free(p);
}

SHIM_EXPORT void free_aligned_sized(void *p, size_t alignment, size_t bytes)
{
	free(p);
}

/* --- start and end -------------------------------------------------------- */

static bool is_block(const void *p)
{
	return p && ours(p) != 0;
}

/*
 * Does who calls malloc, calloc, realloc, free come to us? By address, which the compiler
 * must not see through, as a call of the program's would be bound.
 */
static bool calls_arrive(void)
{
	void *(*volatile do_malloc)(size_t) = malloc;
	void *(*volatile do_calloc)(size_t, size_t) = calloc;
	void *(*volatile do_realloc)(void *, size_t) = realloc;
	void (*volatile do_free)(void *) = free;
	size_t bytes = atomic_load(&tuned.threshold);
	struct proc_mem_guard guard;
	void *p = do_malloc(bytes), *larger;
	bool yes = is_block(p);
	uintptr_t base;

	larger = do_realloc(p, bytes + sys_page_bytes());
	yes = yes && is_block(larger) && ours(larger) != block_bytes(bytes);
	do_free(larger ? larger : p);
	p = do_calloc(1, bytes);
	yes = yes && is_block(p);
	base = (uintptr_t)p - HEADER_BYTES;
	do_free(p);
	if (!yes || shim_blocks_find(base) == 0)
		return yes;
	/* Another one's free, which libc made work. */
	proc_mem_lock(&guard);
	proc_mem_disown(base, base + block_bytes(bytes));
	proc_mem_unlock(&guard);
	return false;
}

void shim_big_start(size_t threshold)
{
	size_t huge = 0;

	if (!shim_owning() || !next_is_libc())
		return;
	/* Of its own mappings malloc makes huge pages then. */
	from_environment(NULL, "glibc.malloc.hugetlb", &huge);
	if (huge != 0)
		return;
	read_environment(threshold);
	atomic_store(&in_page, sys_page_bytes() - 1);
	atomic_store(&running, true);
	settle();
	if (atomic_load(&from) == SIZE_MAX || !calls_arrive())
		shim_big_stop();
}

void shim_big_stop(void)
{
	atomic_store(&running, false);
	settle();
}
