/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The scanner where the kernel merges (kernel.h).
 *
 * What stays is the question when: a page that has kept still for its wait is offered to
 * the kernel, once. The kernel merges it, or remembers it, and merges it when somebody
 * else offers the same; so there is no table to report to, no news to ask for, nothing to
 * promote. Offered again is what changed, and all of it once a round of the broker's table
 * (check_round()), for the kernel's memory for candidates is not endless.
 *
 *   tracker   by the bytes (checksum): the kernel does not merge what somebody's userfaultfd
 *             watches, and that would be ours
 *   reading   only pages that are mapped here and nowhere else: none that is shared can
 *             change without becoming this process's own first. And through /proc/self/mem:
 *             process_vm_readv(2) pins, and a page that has just been merged would be broken
 *   merged    a page that was offered and is shared afterwards, where the kernel has counted
 *             merges. It may be a fork's: known as merged, it is left alone until it is the
 *             process's own again, and no harm is done. What is shown is the kernel's count
 *   broken    is ordinary memory at once: it becomes fresh, at a higher level
 *
 * Huge pages are offered like others: the kernel splits one where a page of it merges.
 */
#include <string.h>

#include "core/hash.h"
#include "proc/kernel.h"
#include "proc/scan.h"

#define IN_GROUP(i) ((i) % CORE_PAGES_GROUP)

static struct core_pages_group *group_of(struct proc_scan *s, const struct scan_look *look,
					 uint32_t i)
{
	return scan_group(s, look->chunk, i / CORE_PAGES_GROUP);
}

/* pagemap's word on each page of the chunk. False: it cannot be read. */
static bool read_entries(struct proc_engine *e, const struct scan_look *look)
{
	const size_t bytes = sizeof(e->work->entries);
	off_t at = (off_t)((look->chunk->base >> e->page_shift) * sizeof(e->work->entries[0]));

	return sys->pread(e->pagemap_fd, e->work->entries, bytes, at) == (ssize_t)bytes;
}

static bool is_shared(const struct proc_engine *e, uint32_t i)
{
	const uint64_t present = UINT64_C(1) << 63, exclusive = UINT64_C(1) << 56;

	return (e->work->entries[i] & (present | exclusive)) == present;
}

/*
 * After the look at what is present: a page that is merged is none of the process's own
 * for core/pages.h, as one in a mapping of the store would be.
 */
void scan_kernel_see(struct proc_engine *e, struct scan_look *look)
{
	struct proc_scan *s = e->scan;
	bool known = read_entries(e, look);

	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		struct core_pages_group *g = group_of(s, look, i);

		if (!g)
			continue;
		switch (core_page_state(g, IN_GROUP(i))) {
		case CORE_PAGE_MERGED:
			if (!(look->seen[i] & SCAN_PRESENT))
				core_page_gone(g, IN_GROUP(i));
			else if (!known || is_shared(e, i))
				look->seen[i] &= (uint8_t)~SCAN_PRESENT;
			break;
		case CORE_PAGE_BROKEN:
			core_page_home(g, IN_GROUP(i), &look->clock);
			break;
		default:
			break;
		}
	}
}

/* --- which have kept still ------------------------------------------------------- */

/* The bytes go where nobody else looks: the ring is not needed. */
static void hash_pages(struct proc_engine *e, struct scan_look *look, uint32_t i, uint32_t n)
{
	struct proc_scan *s = e->scan;
	uint64_t seed = e->link->index.header->seed;
	struct iovec to = { e->work->maps_buf, (size_t)n << e->page_shift };
	struct iovec from = { (void *)(look->chunk->base + ((uint64_t)i << e->page_shift)),
			      to.iov_len };
	/* Without a pin: somebody's offer may have merged it a moment ago. */
	ssize_t got = e->mem_fd >= 0 ? sys->pread(e->mem_fd, to.iov_base, to.iov_len,
						  (off_t)(uintptr_t)from.iov_base)
				     : sys->read_self(&to, 1, &from, 1);
	uint32_t have = got < 0 ? 0 : (uint32_t)((size_t)got >> e->page_shift);

	for (uint32_t k = 0; k < n; k++) {
		struct core_pages_group *g = group_of(s, look, i + k);
		const char *bytes = e->work->maps_buf + ((size_t)k << e->page_shift);
		uint32_t tag;

		look->want[i + k] = SCAN_REST;
		if (k >= have) {
			/* Unmapped or protected meanwhile, or behind such a page. */
			core_page_changed(g, IN_GROUP(i + k), &look->clock);
			continue;
		}
		tag = core_hash_tag(core_hash_page(bytes, e->page_bytes, seed));
		s->n.pages_hashed++;
		if (core_page_hashed(g, IN_GROUP(i + k), tag, true, &look->clock) &&
		    (core_page_state(g, IN_GROUP(i + k)) != CORE_PAGE_KNOWN))
			look->want[i + k] = SCAN_PLANNED;
	}
}

static void find_still(struct proc_engine *e, struct scan_look *look)
{
	const uint32_t most = (uint32_t)(sizeof(e->work->maps_buf) >> e->page_shift);
	struct proc_scan *s = e->scan;
	uint32_t i = 0, n;

	while (i < PROC_CHUNK_PAGES) {
		struct core_pages_group *g = group_of(s, look, i);
		bool fresh = g && core_page_state(g, IN_GROUP(i)) != CORE_PAGE_KNOWN;

		if (look->want[i] != SCAN_HASH) {
			/* Known, and so not looked at for it: a new round. */
			if (look->chunk->news && g && !fresh && (look->seen[i] & SCAN_PRESENT) &&
			    !is_shared(e, i))
				look->want[i] = SCAN_PLANNED;
			i++;
			continue;
		}
		if (is_shared(e, i)) {
			look->want[i] = fresh ? SCAN_PLANNED : SCAN_REST;
			i++;
			continue;
		}
		for (n = 1; n < most && i + n < PROC_CHUNK_PAGES &&
			    look->want[i + n] == SCAN_HASH && !is_shared(e, i + n); n++)
			;
		hash_pages(e, look, i, n);
		i += n;
	}
}

/* --- offering them ------------------------------------------------------------------ */

static void note_offered(struct proc_engine *e, struct scan_look *look, uint32_t i,
			 const struct samepage_result *r)
{
	struct proc_scan *s = e->scan;
	struct core_pages_group *g = group_of(s, look, i);
	uint64_t msec;

	if (is_shared(e, i) && r->pages_merged + r->pages_already > 0) {
		msec = core_page_still_msec(g, IN_GROUP(i), &look->clock);
		if (core_page_state(g, IN_GROUP(i)) == CORE_PAGE_FRESH) {
			s->n.stable_msec += msec;
			if (msec > s->n.stable_msec_max)
				s->n.stable_msec_max = msec;
		}
		core_page_merged(g, IN_GROUP(i), &look->clock);
	} else if (core_result_declined(r) > r->pages_declined[SAMEPAGE_REASON_UNIQUE] &&
		   !is_shared(e, i)) {
		/* Some were refused, and nobody says which: all that may be come again. */
		core_page_aside(g, IN_GROUP(i), &look->clock);
	} else {
		core_page_known(g, IN_GROUP(i), true);
	}
}

static void offer(struct proc_engine *e, struct scan_look *look, uint32_t i, uint32_t end,
		  struct samepage_result *sum)
{
	uint64_t start = look->chunk->base + ((uint64_t)i << e->page_shift);
	uint64_t until = look->chunk->base + ((uint64_t)end << e->page_shift);
	const struct sys_vma v = { .start = start, .end = until, .anonymous = true };
	struct samepage_result r = { 0 };

	proc_kernel_span(e, &v, start, until, &r);
	core_result_add(sum, &r);
	if (!read_entries(e, look))
		memset(e->work->entries, 0, sizeof(e->work->entries));
	for (; i < end; i++)
		note_offered(e, look, i, &r);
}

void scan_kernel_merge(struct proc_engine *e, struct scan_look *look)
{
	struct proc_scan *s = e->scan;
	struct samepage_result sum = { 0 };
	uint32_t i = 0, end;

	if (!read_entries(e, look))
		return;
	find_still(e, look);
	proc_kernel_begins(e);
	for (; i < PROC_CHUNK_PAGES; i = end) {
		for (end = i; end < PROC_CHUNK_PAGES && look->want[end] == SCAN_PLANNED; end++)
			;
		if (end > i)
			offer(e, look, i, end, &sum);
		else
			end++;
	}
	proc_kernel_ends(e);
	s->n.pages_merged += sum.pages_merged;
	s->n.pages_candidate += sum.pages_declined[SAMEPAGE_REASON_UNIQUE];
	core_result_add(&e->stats.total, &sum);
	e->stats.zero_pages += sum.pages_zeroed;
	look->merged = (uint32_t)(sum.pages_merged + sum.pages_zeroed);
}

/* What others' offers merged of ours is known here as nobody's; the kernel knows better. */
void scan_kernel_count(const struct proc_engine *e, struct core_scan_counters *n)
{
	uint64_t sharing = proc_kernel_sharing(e), by_others;

	by_others = sharing > n->pages_merged_now ? sharing - n->pages_merged_now : 0;
	n->pages_unshared_now -=
		by_others < n->pages_unshared_now ? by_others : n->pages_unshared_now;
	n->pages_merged_now = sharing;
}
