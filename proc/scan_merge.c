/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From what a look at a chunk wants to merged pages: hash, look up, plan, commit, and
 * note for each page what came of it.
 *
 * Promotion. A page goes into the store when the standing table has its fingerprint from
 * somebody else who is still there, or when we have another one (scan_pairs.c); otherwise it
 * is reported there. Others find out by asking again about the fingerprints that they keep,
 * without reading a page (scan_news). What we have reported ourselves says nothing: it may
 * be of this very page, before it was freed or written and is now as it was.
 *
 * A look that promotes nothing comes first where that may not be worth while (`dry`):
 *
 * Huge pages. A merge splits them, so in a chunk that has any it is found out first how
 * many pages would merge. Where it is too few, all stays.
 *
 * Mappings. When they run short only long runs are merged (core_pace_shortest_run).
 */
#include <string.h>
#include <sys/mman.h>

#include "proc/scan.h"

static struct core_pages_group *group_of(struct proc_scan *s, const struct scan_look *look,
					 uint32_t i)
{
	return scan_group(s, look->chunk, i / CORE_PAGES_GROUP);
}

#define IN_GROUP(i) ((i) % CORE_PAGES_GROUP)

/* look.c asks, page hashed: has it kept still, so that it is to be looked up? */
bool proc_scan_still(struct proc_engine *e, struct scan_look *look, uint32_t i)
{
	struct proc_scan *s = e->scan;
	bool blind = !s->wp || (look->seen[i] & SCAN_HUGE);
	struct core_pages_group *g = group_of(s, look, i);

	s->n.pages_hashed++;
	/* A huge page's first hash is believed: it is merged only where many others have the
	 * same, and then it is compared anyway. */
	if (blind && (look->seen[i] & SCAN_HUGE) && g->tag[IN_GROUP(i)] == 0)
		blind = false;
	return core_page_hashed(g, IN_GROUP(i), e->work->tag[i], blind, &look->clock);
}

/* look.c asks, page not in the index: is there another one like it? */
bool proc_scan_has_twin(struct proc_engine *e, struct scan_look *look, uint32_t i)
{
	const struct core_pages_group *g = group_of(e->scan, look, i);
	enum core_cand_seen seen = core_cand_seen(&e->link->standing, e->work->tag[i],
						  e->link->who);

	if (seen == CORE_CAND_OTHER || core_page_pair(g, IN_GROUP(i)) == CORE_PAGE_TWIN)
		return true;
	if (seen != CORE_CAND_NOBODY && !core_page_reported(g, IN_GROUP(i)))
		look->want[i] = SCAN_OWN;
	return false;
}

/* look.c tells: it has, but nothing is promoted in this look. */
void proc_scan_twin(struct scan_look *look, uint32_t i)
{
	look->want[i] = SCAN_TWIN;
}

/* --- reports ------------------------------------------------------------------- */

void scan_reports_send(struct proc_engine *e)
{
	if (e->tags_count && e->link->connected)
		(void)e->link->ops->tags_standing(e->link, e->work->tags_out, e->tags_count,
						   e->scan->round);
	if (e->tags_count)
		e->scan->reported_usec = sys_now_usec();
	e->scan->n.pages_candidate += e->tags_count;
	e->tags_count = 0;
}

static void report(struct proc_engine *e, uint32_t tag)
{
	e->work->tags_out[e->tags_count++] = tag;
	if (e->tags_count == CORE_WIRE_TAGS_MAX)
		scan_reports_send(e);
}

/* --- plan ---------------------------------------------------------------------- */

/* A known page, by the fingerprint that we keep: is there another one? */
static bool has_twin(struct proc_engine *e, struct core_pages_group *g, unsigned i)
{
	enum core_cand_seen seen = core_cand_seen(&e->link->standing, g->tag[i], e->link->who);

	/* Reported twice before the table could say so the second time. */
	if (seen == CORE_CAND_OWN_TWICE && core_page_pair(g, i) == CORE_PAGE_ALONE)
		scan_suspect(e->scan, g, i);
	return seen == CORE_CAND_OTHER || core_page_pair(g, i) == CORE_PAGE_TWIN;
}

/* A known page, by the fingerprint that we keep: is it in the store by now? */
static void plan_known(struct proc_engine *e, struct scan_look *look, uint32_t i,
		       struct core_pages_group *g)
{
	uint32_t tag = g->tag[IN_GROUP(i)];
	struct core_plan_page *p = &e->work->plan[i];
	uint32_t slots[CORE_INDEX_MATCHES_MAX];
	unsigned n = core_index_lookup(&e->link->index, tag, slots, CORE_INDEX_MATCHES_MAX);

	if (n == 1) {
		*p = (struct core_plan_page){ .kind = CORE_PLAN_SLOT, .slot = slots[0] };
		e->work->tag[i] = tag;
		look->want[i] = SCAN_PLANNED;
	} else if (n > 1 || has_twin(e, g, IN_GROUP(i))) {
		look->want[i] = SCAN_HASH;
	}
}

static void plan_news(struct proc_engine *e, struct scan_look *look)
{
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		struct core_pages_group *g = group_of(e->scan, look, i);

		if (g && core_page_state(g, IN_GROUP(i)) == CORE_PAGE_KNOWN &&
		    look->want[i] == SCAN_REST && (look->seen[i] & SCAN_PRESENT))
			plan_known(e, look, i, g);
	}
}

static uint32_t count_planned(struct proc_engine *e, const struct scan_look *look)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++)
		n += look->want[i] == SCAN_TWIN || e->work->plan[i].kind != CORE_PLAN_SKIP;
	return n;
}

static void skip_planned(struct proc_engine *e, enum samepage_reason why)
{
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++)
		if (e->work->plan[i].kind != CORE_PLAN_SKIP)
			proc_plan_skip(&e->work->plan[i], why);
}

/* Would enough of a chunk with huge pages merge? */
static bool worth_splitting(struct proc_engine *e, struct scan_look *look)
{
	struct proc_scan *s = e->scan;

	if (count_planned(e, look) * 100 < s->set.huge_percent * PROC_CHUNK_PAGES) {
		s->n.huge_kept++;
		skip_planned(e, SAMEPAGE_REASON_UNIQUE);
		return false;
	}
	s->n.huge_split++;
	return true;
}

/*
 * Is a run of so many pages worth the mappings that it costs? The more of them are taken,
 * by the runs before it as well, the longer it must be.
 */
static bool afford(const struct proc_engine *e, int64_t *used, uint32_t pages)
{
	uint32_t least = core_pace_shortest_run(*used, e->vmas_limit);

	if (!least || pages < least)
		return false;
	*used += 2;
	return true;
}

/* Could this chunk come to where mappings are short? */
static bool tight(const struct proc_engine *e)
{
	return (e->vmas_now + PROC_CHUNK_PAGES) * 2 > e->vmas_limit;
}

/* What would be promoted is not where the stretch that would merge is not worth it. */
static void keep_long_stretches(struct proc_engine *e, struct scan_look *look)
{
	int64_t used = e->vmas_now;
	uint32_t i = 0, end;

	for (; i < PROC_CHUNK_PAGES; i = end + 1) {
		for (end = i; end < PROC_CHUNK_PAGES && (look->want[end] == SCAN_TWIN ||
							 e->work->plan[end].kind == CORE_PLAN_SLOT);
		     end++)
			;
		if (end == i || afford(e, &used, end - i))
			continue;
		for (; i < end; i++) {
			if (look->want[i] != SCAN_TWIN)
				continue;
			look->want[i] = SCAN_HASH;
			proc_plan_skip(&e->work->plan[i], SAMEPAGE_REASON_MAP_COUNT);
			e->scan->n.held_maps++;
		}
	}
}

/* Mappings are short: leave out runs that are not worth one. */
static void plan_long_runs(struct proc_engine *e)
{
	struct core_plan_run *runs = e->work->runs;
	int64_t used = e->vmas_now;
	size_t n;

	n = core_plan_runs(e->work->plan, PROC_CHUNK_PAGES,
			   e->link->index.header->segment_slots, runs, PROC_CHUNK_PAGES);
	for (size_t r = 0; r < n; r++) {
		if (runs[r].kind != CORE_PLAN_SLOT || afford(e, &used, runs[r].pages))
			continue;
		for (uint32_t i = 0; i < runs[r].pages; i++)
			proc_plan_skip(&e->work->plan[runs[r].first + i], SAMEPAGE_REASON_MAP_COUNT);
		e->scan->n.held_maps += runs[r].pages;
	}
}

/* --- commit --------------------------------------------------------------------- */

static void commit_mapping(struct proc_engine *e, const struct proc_chunk *how,
			   const struct sys_vma *v, uint32_t first, uint32_t end,
			   struct samepage_result *res)
{
	struct proc_chunk c = *how;
	uint32_t g = scan_region_after(e->scan, c.base + ((uint64_t)first << e->page_shift));

	/* Written since its merge, and could not be brought home. */
	enum samepage_reason why = proc_vma_is_run(v) ? SAMEPAGE_REASON_WRITABLE
						      : SAMEPAGE_REASON_VANISHED;

	if (!v->anonymous || v->shared || v->prot != e->scan->region[g].prot) {
		for (uint32_t i = first; i < end; i++)
			if (e->work->plan[i].kind != CORE_PLAN_SKIP)
				proc_plan_skip(&e->work->plan[i], why);
		return;
	}
	c.vma = v;
	c.first = first;
	c.end = end;
	c.prot = v->prot;
	c.odd = e->scan->region[g].odd;
	proc_freeze_commit(e, &c, res);
}

static uint32_t next_planned(const struct proc_engine *e, uint32_t i)
{
	while (i < PROC_CHUNK_PAGES && e->work->plan[i].kind == CORE_PLAN_SKIP)
		i++;
	return i;
}

/* Mapping by mapping, region by region. */
static void commit(struct proc_engine *e, const struct proc_chunk *c, struct samepage_result *res)
{
	struct proc_scan *s = e->scan;
	uint32_t i = next_planned(e, 0);

	while (i < PROC_CHUNK_PAGES) {
		uint64_t at = c->base + ((uint64_t)i << e->page_shift), until;
		uint32_t g = scan_region_after(s, at), end;
		struct sys_vma v;

		if (g == s->regions || s->region[g].start > at ||
		    scan_vma_at(e, at, &v) < 0 || v.start > at) {
			proc_plan_skip(&e->work->plan[i], SAMEPAGE_REASON_VANISHED);
			i = next_planned(e, i + 1);
			continue;
		}
		until = v.end < s->region[g].end ? v.end : s->region[g].end;
		end = until - c->base < scan_chunk_bytes(e)
			      ? (uint32_t)((until - c->base) >> e->page_shift)
			      : PROC_CHUNK_PAGES;
		commit_mapping(e, c, &v, i, end, res);
		i = next_planned(e, end);
	}
}

/* --- what came of it --------------------------------------------------------------- */

static void note_merged(struct proc_scan *s, struct scan_look *look, struct core_pages_group *g,
			unsigned i)
{
	uint64_t msec = core_page_still_msec(g, i, &look->clock);

	if (core_page_state(g, i) == CORE_PAGE_FRESH) {
		s->n.stable_msec += msec;
		if (msec > s->n.stable_msec_max)
			s->n.stable_msec_max = msec;
	}
	s->n.pages_merged++;
	core_page_merged(g, i, &look->clock);
}

static void note_skipped(struct proc_engine *e, struct scan_look *look, struct core_pages_group *g,
			 uint32_t i, uint8_t why)
{
	switch (why) {
	case PROC_ABSENT: /* not still yet */
	case SAMEPAGE_REASON_NO_BROKER:
	case SAMEPAGE_REASON_STOPPED:
		break;
	case SAMEPAGE_REASON_UNIQUE:
		if (!core_page_reported(g, IN_GROUP(i)) && look->want[i] != SCAN_OWN)
			report(e, g->tag[IN_GROUP(i)]);
		core_page_known(g, IN_GROUP(i), true);
		if (look->want[i] == SCAN_OWN)
			scan_suspect(e->scan, g, IN_GROUP(i));
		break;
	case SAMEPAGE_REASON_CHANGED:
	case SAMEPAGE_REASON_VANISHED:
		core_page_changed(g, IN_GROUP(i), &look->clock);
		break;
	case SAMEPAGE_REASON_WRITABLE: /* commit_mapping: in a mapping of the store */
		core_page_broken(g, IN_GROUP(i), &look->clock);
		break;
	case SAMEPAGE_REASON_PINNED:
		/* Or not exclusive since a fork that is over, which only reading it ends. */
		if (look->want[i] == SCAN_PLANNED) {
			core_page_home(g, IN_GROUP(i), &look->clock);
			break;
		}
		/* fallthrough */
	default:
		core_page_aside(g, IN_GROUP(i), &look->clock);
		break;
	}
}

static void note_page(struct proc_engine *e, struct scan_look *look, uint32_t i,
		      struct samepage_result *res)
{
	const struct core_plan_page *p = &e->work->plan[i];
	struct core_pages_group *g = group_of(e->scan, look, i);

	if (p->kind == CORE_PLAN_SKIP && p->reason == PROC_ABSENT)
		return;
	res->pages_looked++;
	switch (p->kind) {
	case CORE_PLAN_SLOT:
		res->pages_merged++;
		note_merged(e->scan, look, g, IN_GROUP(i));
		break;
	case CORE_PLAN_ZERO:
		res->pages_zeroed++;
		core_page_gone(g, IN_GROUP(i));
		break;
	default:
		core_result_decline(res, p->reason, 1);
		/* The slot is another page's with the same tag, and will be the next time. */
		if (e->work->collided[i])
			core_page_aside(g, IN_GROUP(i), &look->clock);
		else
			note_skipped(e, look, g, i, p->reason);
		break;
	}
}

/* Known pages that the table of this round has not heard of. */
static void report_again(struct proc_engine *e, struct scan_look *look)
{
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		struct core_pages_group *g = group_of(e->scan, look, i);

		if (!g || core_page_state(g, IN_GROUP(i)) != CORE_PAGE_KNOWN ||
		    core_page_reported(g, IN_GROUP(i)))
			continue;
		report(e, g->tag[IN_GROUP(i)]);
		core_page_known(g, IN_GROUP(i), true);
	}
}

static void count_promoted(struct proc_scan *s, const struct samepage_result *res,
			   uint32_t planned)
{
	uint64_t done = res->pages_merged;

	s->n.pages_promoted += res->pages_promoted;
	/* Of those that were planned and came to nothing, promoted ones count first. */
	if (res->pages_promoted && planned > done)
		s->n.promoted_in_vain += planned - done < res->pages_promoted
						 ? planned - done
						 : res->pages_promoted;
}

static void count_mappings(struct proc_engine *e, uint64_t age_usec)
{
	struct proc_scan *s = e->scan;
	uint64_t before = s->budget.read_usec, generation = s->watch.generation;

	proc_pass_scan_budget(e, &s->budget, s->set.map_percent, age_usec);
	if (s->budget.read_usec != before)
		s->counted_generation = generation;
}

/* Between counts the number only ever grows; so when it is tight, it is counted again. */
static bool mappings_tight(struct proc_engine *e, uint64_t age_usec)
{
	count_mappings(e, age_usec);
	if (tight(e))
		count_mappings(e, SCAN_COUNT_USEC);
	return tight(e);
}

/* Counting takes as long as hashing as many pages. */
static uint64_t count_age(const struct proc_scan *s)
{
	return s->counted_generation == s->watch.generation ? SCAN_COUNT_CALM_USEC : SCAN_COUNT_USEC;
}

void scan_merge(struct proc_engine *e, struct scan_look *look)
{
	struct proc_work *w = e->work;
	struct samepage_result res = { 0 };
	bool few = mappings_tight(e, SCAN_COUNT_IDLE_USEC), any = false;
	uint32_t planned = 0;
	struct proc_chunk c = { .base = look->chunk->base, .end = PROC_CHUNK_PAGES, .owned = true,
				.scan = look, .dry = look->huge_pages > 0 || few,
				.mode = PROC_MODE_SCAN };

	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++)
		w->plan[i] = (struct core_plan_page){ .reason = PROC_ABSENT };
	w->collisions = 0;
	w->misses = 0;
	e->scan->ring_used = true;
	if (look->chunk->news)
		plan_news(e, look);
	proc_look_wanted(e, &c, look->want, SCAN_HASH, &res);
	if (c.dry && (!look->huge_pages || worth_splitting(e, look))) {
		if (few)
			keep_long_stretches(e, look);
		proc_look_again(e, &c, look->want, SCAN_TWIN, &res);
	}
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++) {
		planned += w->plan[i].kind == CORE_PLAN_SLOT;
		any |= w->plan[i].kind != CORE_PLAN_SKIP;
	}
	if (any && mappings_tight(e, count_age(e->scan)))
		plan_long_runs(e);
	commit(e, &c, &res);
	for (uint32_t i = 0; i < PROC_CHUNK_PAGES; i++)
		note_page(e, look, i, &res);
	if (w->collisions)
		memset(w->collided, 0, sizeof(w->collided));
	report_again(e, look);
	count_promoted(e->scan, &res, planned);
	core_result_add(&e->stats.total, &res);
	e->stats.zero_pages += res.pages_zeroed;
	look->merged = res.pages_merged + res.pages_zeroed;
}

/* --- news ------------------------------------------------------------------------- */

/* Times what it cost, and so often doubled if there was none: while we are at work, and at rest. */
#define NEWS_COST_FACTOR 40u
#define NEWS_IDLE_AWAKE 5u
#define NEWS_REST_FACTOR 1000u
#define NEWS_IDLE_MOST 7u

static bool is_known(const struct core_pages_group *g, unsigned i)
{
	return core_page_state(g, i) == CORE_PAGE_KNOWN;
}

static bool published(struct proc_engine *e, const struct core_pages_group *g)
{
	uint32_t slot;

	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++)
		if (is_known(g, i))
			core_index_prefetch(&e->link->index, g->tag[i]);
	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++)
		if (is_known(g, i) && core_index_lookup(&e->link->index, g->tag[i], &slot, 1))
			return true;
	return false;
}

static bool seen_twice(struct proc_engine *e, struct core_pages_group *g)
{
	bool any = false;

	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++)
		if (is_known(g, i))
			core_cand_prefetch(&e->link->standing, g->tag[i]);
	for (unsigned i = 0; i < CORE_PAGES_GROUP; i++)
		any |= is_known(g, i) && has_twin(e, g, i);
	return any;
}

/* In which chunks? What has not moved is not asked. */
static uint32_t find_news(struct proc_engine *e, bool index, bool table)
{
	struct proc_scan *s = e->scan;
	uint32_t now = scan_now_msec(s, sys_now_usec()), found = 0;

	for (uint32_t i = 0; i < s->chunks; i++) {
		struct scan_chunk *k = &s->chunk[i];

		if (!k->pages[CORE_PAGE_KNOWN] || k->news)
			continue;
		for (unsigned j = 0; j < SCAN_GROUPS && !k->news; j++) {
			struct core_pages_group *g = scan_group(s, k, j);

			k->news = g && ((index && published(e, g)) || (table && seen_twice(e, g)));
		}
		if (!k->news)
			continue;
		found++;
		scan_due_now(s, k, now);
	}
	return found;
}

void scan_news(struct proc_engine *e)
{
	struct proc_scan *s = e->scan;
	uint64_t slots = atomic_load(&e->link->index.header->slots_published);
	uint64_t twins = atomic_load(&e->link->standing.header->twins);
	uint64_t began = sys_now_usec(), took, wait;

	bool index = slots != s->news_published, table = twins != s->news_twins;

	if (began < s->news_at_usec || (!index && !table))
		return;
	s->news_published = slots;
	s->news_twins = twins;
	if (find_news(e, index, table))
		s->news_idle = 0;
	else if (s->news_idle < NEWS_IDLE_MOST)
		s->news_idle++;
	took = sys_now_usec() - began;
	wait = (uint64_t)s->set.first_msec * 500;
	s->news_at_usec = began + took * NEWS_COST_FACTOR +
			  (wait << (s->news_idle < NEWS_IDLE_AWAKE ? s->news_idle : NEWS_IDLE_AWAKE));
	s->news_rest_usec = began + took * NEWS_REST_FACTOR + (wait << s->news_idle);
}
