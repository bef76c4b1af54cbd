/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tracker: what of a chunk is present, and what changed since the look before.
 *
 * wp-async. Anonymous mappings are registered with the engine's userfaultfd (whose WP
 * mode is asynchronous: the kernel itself clears the protection at the first write and
 * lets the writer go on; nobody waits for us). PAGEMAP_SCAN with PM_SCAN_WP_MATCHING
 * tells which pages were written since, and protects them again, in one step; mappings
 * that are not registered it passes by. Huge pages are left out, because a write would
 * split them: whether they changed only their bytes tell. Store mappings are not
 * registered: a page that was written there is present and anonymous, which says it all
 * (and registering would switch off fault-around, so the program's reads would pay).
 *
 * First the changes are asked for, then what is present: what is written in between
 * shows in the next look.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/scan.h"

#define CATEGORIES (SYS_PAGE_IS_FILE | SYS_PAGE_IS_PFNZERO)

static uint32_t page_of(const struct proc_engine *e, const struct scan_chunk *k, uint64_t addr)
{
	return (uint32_t)((addr - k->base) >> e->page_shift);
}

/* Written pages of [start, end), protected again; into look->seen if there is one. */
static bool protect(struct proc_engine *e, struct scan_look *look, uint64_t start, uint64_t end)
{
	struct sys_page_region *r = e->work->regions;
	bool any = false;

	while (start < end) {
		struct sys_pm_scan_arg arg = {
			.size = sizeof(arg),
			.flags = SYS_PM_SCAN_WP_MATCHING,
			.start = start,
			.end = end,
			.vec = (uintptr_t)r,
			.vec_len = PROC_CHUNK_PAGES,
			.category_inverted = CATEGORIES | SYS_PAGE_IS_HUGE,
			.category_mask = CATEGORIES | SYS_PAGE_IS_HUGE | SYS_PAGE_IS_PRESENT |
					 SYS_PAGE_IS_WRITTEN,
			.return_mask = SYS_PAGE_IS_WRITTEN,
		};
		int n = sys->pagemap_scan(e->pagemap_fd, &arg);

		for (int i = 0; look && i < n; i++)
			memset(look->seen + page_of(e, look->chunk, r[i].start), SCAN_CHANGED,
			       (r[i].end - r[i].start) >> e->page_shift);
		any |= n > 0;
		if (n < 0 || arg.walk_end <= start)
			break;
		start = arg.walk_end;
	}
	return any;
}

/* --- registration ----------------------------------------------------------- */

struct search {
	uint64_t addr;
	struct sys_vma *found;
};

static int covers_or_follows(const struct sys_vma *v, void *arg)
{
	struct search *s = arg;

	if (v->end <= s->addr)
		return 0;
	*s->found = *v;
	return 1;
}

int scan_vma_at(struct proc_engine *e, uint64_t addr, struct sys_vma *v)
{
	struct search s = { addr, v };
	int got;

	if (e->have_procmap_query)
		return sys_vma_query(e->maps_fd, addr, SYS_PROCMAP_QUERY_COVERING_OR_NEXT_VMA, v);
	/* Before Linux 6.11: dear, but this is asked for what is new or to be merged only. */
	got = sys_maps_each(0, e->work->count_buf, sizeof(e->work->count_buf), covers_or_follows, &s);
	return got < 0 ? got : got == 0 ? -ENOENT : 0;
}

static int register_wp(struct proc_engine *e, uint64_t start, uint64_t end)
{
	return sys->uffd_register(e->uffd, (void *)start, end - start, UFFDIO_REGISTER_MODE_WP);
}

/*
 * Lock held: what is owned, and so may be registered, stays so meanwhile. All of a block of malloc's,
 * where that is one mapping: registered in part it would be two, which libc could not
 * resize, and ten thousand blocks side by side would be twice as many. By now it may be
 * longer than the caller knows.
 */
static int register_owned(struct proc_engine *e, uint64_t start, uint64_t end)
{
	uint64_t whole = end, lead = proc_mem_lead(start, &whole);
	struct core_range alike; /* what the program refused is left out */

	if (!proc_mem_is_owned_still(start, end))
		return -EPERM;
	if (lead && proc_mem_owned_copy(start, &alike, 1) == 1) {
		if (alike.end < whole)
			whole = alike.end;
		if (register_wp(e, start - lead, whole > end ? whole : end) == 0 ||
		    register_wp(e, start - lead, end) == 0)
			return 0;
	}
	return register_wp(e, start, end);
}

int scan_register(struct proc_engine *e, uint64_t start, uint64_t end)
{
	int err;

	if (e->uffd < 0)
		return -EBADF;
	proc_mem_lock_engine();
	err = register_owned(e, start, end);
	proc_mem_unlock_engine();
	return err;
}

typedef void each_fn(struct proc_engine *e, uint64_t start, uint64_t end);

/*
 * Each anonymous private mapping's part of the range. Lock held. One by one, for where one
 * cannot be, none would be.
 */
static void each_anonymous(struct proc_engine *e, uint64_t start, uint64_t end, each_fn *fn)
{
	uint64_t at = start;
	struct sys_vma v;

	while (at < end && scan_vma_at(e, at, &v) == 0 && v.start < end) {
		uint64_t lo = v.start > at ? v.start : at;

		at = v.end < end ? v.end : end;
		if (v.anonymous && !v.shared)
			fn(e, lo, at);
	}
}

static void arm_mapping(struct proc_engine *e, uint64_t start, uint64_t end)
{
	/* Refused (a registration of the program's own): then nothing is tracked there. */
	(void)register_owned(e, start, end);
}

static void disarm_mapping(struct proc_engine *e, uint64_t start, uint64_t end)
{
	(void)sys->uffd_unregister(e->uffd, (void *)start, end - start);
}

void scan_arm(struct proc_engine *e, uint64_t start, uint64_t end)
{
	if (e->uffd < 0)
		return;
	proc_mem_lock_engine();
	each_anonymous(e, start, end, arm_mapping);
	proc_mem_unlock_engine();
	protect(e, NULL, start, end);
}

bool proc_scan_tracks(const struct proc_engine *e)
{
	return e->scan && e->scan->wp_async;
}

bool proc_scan_watched(const struct proc_engine *e, uint64_t addr)
{
	const struct proc_scan *s = e->scan;
	uint32_t r;

	if (!s || !s->wp || !s->started || s->paused || s->armed_uffd != e->uffd)
		return false;
	r = scan_region_after(s, addr);
	return r < s->regions && s->region[r].start <= addr;
}

void scan_rearm(struct proc_engine *e, uint64_t start, uint64_t end, bool known)
{
	if (!e->scan->wp || e->uffd < 0)
		return;
	if (register_owned(e, start, end) < 0)
		e->scan->regions_generation = UINT64_MAX; /* read them again, and try there */
	else if (known)
		protect(e, NULL, start, end);
}

void scan_protect(struct proc_engine *e, uint64_t start, uint64_t end)
{
	if (e->scan->wp && e->uffd >= 0)
		protect(e, NULL, start, end);
}

void scan_disarm(struct proc_engine *e, uint64_t start, uint64_t end)
{
	if (e->uffd < 0)
		return;
	proc_mem_lock_engine();
	each_anonymous(e, start, end, disarm_mapping);
	proc_mem_unlock_engine();
}

/* --- a look ------------------------------------------------------------------ */

static void see_present(struct proc_engine *e, struct scan_look *look, uint64_t start, uint64_t end)
{
	struct sys_page_region *r = e->work->regions;
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)r,
		.vec_len = PROC_CHUNK_PAGES,
		.category_inverted = CATEGORIES,
		.category_mask = CATEGORIES,
		.category_anyof_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
		.return_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED | SYS_PAGE_IS_HUGE,
	};
	int n = sys->pagemap_scan(e->pagemap_fd, &arg);

	for (int i = 0; i < n; i++) {
		uint32_t end_page = page_of(e, look->chunk, r[i].end);
		uint8_t bits = r[i].categories & SYS_PAGE_IS_SWAPPED ? SCAN_SWAPPED : SCAN_PRESENT;

		if (r[i].categories & SYS_PAGE_IS_HUGE) {
			bits |= SCAN_HUGE;
			look->huge_pages += end_page - page_of(e, look->chunk, r[i].start);
		}
		for (uint32_t p = page_of(e, look->chunk, r[i].start); p < end_page; p++)
			look->seen[p] |= bits;
	}
}

static void mark_inside(struct proc_engine *e, struct scan_look *look, uint64_t start,
			uint64_t end)
{
	for (uint32_t p = page_of(e, look->chunk, start); p < page_of(e, look->chunk, end); p++)
		look->seen[p] |= SCAN_INSIDE;
}

/*
 * Whether a merged page was written only the second question tells. Where nothing else
 * happens it is asked every other time.
 */
static bool ask_merged(const struct scan_chunk *k)
{
	return k->pages[CORE_PAGE_MERGED] && (k->idle < 3 || k->looks % 2 == 0);
}

static bool something_waits(const struct proc_engine *e, const struct scan_chunk *k)
{
	return !e->scan->wp || k->looks <= 1 || k->whole || k->news || k->huge ||
	       k->pages[CORE_PAGE_FRESH] || k->pages[CORE_PAGE_ASIDE] || ask_merged(k);
}

/* Nothing there is registered: what is new shows as present, what was written as well. */
static bool all_merged(const struct scan_chunk *k)
{
	return ask_merged(k) && !k->pages[CORE_PAGE_FRESH] && !k->pages[CORE_PAGE_KNOWN] &&
	       !k->pages[CORE_PAGE_ASIDE];
}

bool scan_see(struct proc_engine *e, struct scan_look *look)
{
	struct proc_scan *s = e->scan;
	const struct scan_chunk *k = look->chunk;
	uint64_t end = k->base + scan_chunk_bytes(e);
	uint32_t first = scan_region_after(s, k->base);
	bool changed = false;

	memset(look->seen, 0, sizeof(look->seen));
	look->huge_pages = 0;
	for (unsigned present = 0; present < 2; present++) {
		for (uint32_t i = first; i < s->regions && s->region[i].start < end; i++) {
			const struct scan_region *g = &s->region[i];
			uint64_t from = g->start > k->base ? g->start : k->base;
			uint64_t until = g->end < end ? g->end : end;

			if (present) {
				mark_inside(e, look, from, until);
				see_present(e, look, from, until);
			} else if (s->wp && !all_merged(k)) {
				changed |= protect(e, look, from, until);
			}
		}
		if (!present && !changed && !something_waits(e, k)) {
			if (!k->pages[CORE_PAGE_MERGED])
				scan_calm_seen(s, look->chunk);
			return false;
		}
	}
	scan_calm_seen(s, look->chunk);
	if (e->kernel)
		scan_kernel_see(e, look);
	return true;
}
