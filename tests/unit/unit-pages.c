/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: pages that are being written are hashed and merged for nothing, pages
 * that keep still are never looked at again, or a page that changed is taken for the one
 * that was hashed.
 *
 * The model keeps exact times and asks the header's words: a page is hashed when it has
 * not changed for its wait, and not when it has changed within it.
 */
#include <stdbool.h>
#include <string.h>

#include "core/pages.h"
#include "unit.h"

#define N CORE_PAGES_GROUP
#define FIRST_MSEC 96u /* eighths of it are whole */
#define HOUR_MSEC (3600u * 1000)

static uint64_t random_state = 11;

static struct core_pages_sum sum;

static enum core_page_want look(struct core_pages_group *g, unsigned i, uint64_t now,
				uint32_t looks, bool present, bool changed, bool blind)
{
	struct core_pages_clock c = { (uint32_t)now, FIRST_MSEC, looks };
	struct core_page_seen seen = { .present = present, .changed = changed, .blind = blind,
				       .before_msec = (uint32_t)now };

	sum = (struct core_pages_sum){ .wait_msec = UINT32_MAX };
	return core_page_look(g, i, &seen, &c, &sum);
}

static struct core_pages_clock at(uint64_t now)
{
	return (struct core_pages_clock){ (uint32_t)now, FIRST_MSEC, 1 };
}

/* --- against a model ------------------------------------------------------------ */

struct model {
	enum core_page_state state;
	unsigned level;
	uint64_t stamp; /* of the wait that is under way */
	uint64_t since_merged;
};

static uint64_t wait_of(unsigned level)
{
	uint64_t w = (uint64_t)FIRST_MSEC << level;

	return w < HOUR_MSEC ? w : HOUR_MSEC;
}

static unsigned least(unsigned a, unsigned b)
{
	return a < b ? a : b;
}

static void model_changed(struct model *m, uint64_t now, uint32_t looks)
{
	if (looks % (1u << m->level) == 0)
		m->level = least(m->level + 1, 15);
	m->state = CORE_PAGE_FRESH;
	m->stamp = now;
}

/* What the header says of one look; not when a page is hashed. */
static void model_look(struct model *m, uint64_t now, uint32_t looks, bool present, bool changed)
{
	bool soon = now - m->since_merged < CORE_PAGES_SOON_MSEC;

	if (!present) {
		if (m->state != CORE_PAGE_MERGED)
			m->state = CORE_PAGE_GONE;
		return;
	}
	switch (m->state) {
	case CORE_PAGE_GONE:
		*m = (struct model){ .state = CORE_PAGE_FRESH, .stamp = now };
		break;
	case CORE_PAGE_MERGED:
		m->level = least(m->level + (soon ? 2 : 1), 15);
		m->state = CORE_PAGE_BROKEN;
		break;
	case CORE_PAGE_FRESH:
	case CORE_PAGE_KNOWN:
	case CORE_PAGE_ASIDE:
		if (changed)
			model_changed(m, now, looks);
		break;
	default:
		break;
	}
}

/* A page that is hashed: one of the things that can come of it. */
static void outcome(struct core_pages_group *g, unsigned i, struct model *m, uint64_t now,
		    uint32_t looks)
{
	struct core_pages_clock c = { (uint32_t)now, FIRST_MSEC, looks };

	assert_true(core_page_hashed(g, i, (uint32_t)unit_random(&random_state) | 1, false, &c));
	switch (unit_random(&random_state) % 6) {
	case 0:
		core_page_merged(g, i, &c);
		m->state = CORE_PAGE_MERGED;
		m->since_merged = now;
		break;
	case 1:
		core_page_aside(g, i, &c);
		m->state = CORE_PAGE_ASIDE;
		m->level = least(m->level + 1, 15);
		m->stamp = now;
		break;
	case 2:
		core_page_changed(g, i, &c);
		model_changed(m, now, looks);
		break;
	case 3:
		core_page_gone(g, i);
		m->state = CORE_PAGE_GONE;
		break;
	default:
		core_page_known(g, i, unit_random(&random_state) % 2);
		m->state = CORE_PAGE_KNOWN;
		break;
	}
}

static void check_want(const struct core_pages_group *g, unsigned i, const struct model *m,
		       uint64_t now, enum core_page_want want)
{
	uint64_t since = now - m->stamp, wait = wait_of(m->level), unit = wait / 8;
	bool waits = m->state == CORE_PAGE_FRESH || m->state == CORE_PAGE_ASIDE;

	assert_int_equal(core_page_state(g, i), m->state);
	if (m->state != CORE_PAGE_GONE)
		assert_int_equal(core_page_level(g, i), m->level);
	assert_int_equal(sum.pages[m->state], 1);
	if (!waits) {
		assert_int_equal(want, CORE_PAGE_REST);
		assert_int_equal(sum.wait_msec, UINT32_MAX);
		return;
	}
	/* An eighth is how exactly it is known, and 32 waits for how long. */
	if (since < wait - unit)
		assert_int_equal(want, CORE_PAGE_REST);
	if (since >= wait + unit && since < 30 * wait)
		assert_int_equal(want, CORE_PAGE_HASH);
	if (want == CORE_PAGE_REST && since < 30 * wait) {
		assert_true(sum.wait_msec > 0 && sum.wait_msec <= wait);
		assert_true(since + sum.wait_msec >= wait - unit);
		assert_true(since + sum.wait_msec <= wait + unit);
	}
	assert_int_equal(sum.volatile_pages, m->state == CORE_PAGE_FRESH &&
						     m->level >= CORE_PAGES_LEVEL_VOLATILE);
}

static void check_sum(enum core_page_state before, const struct model *m, uint64_t merged_for,
		      bool present, bool changed)
{
	bool was_page = before == CORE_PAGE_FRESH || before == CORE_PAGE_KNOWN ||
			before == CORE_PAGE_ASIDE;

	assert_int_equal(sum.new_pages, present && before == CORE_PAGE_GONE);
	assert_int_equal(sum.changed_pages, present && changed && was_page);
	assert_int_equal(sum.broken, present && before == CORE_PAGE_MERGED);
	if (sum.broken) {
		assert_int_equal(sum.broken_soon, merged_for < CORE_PAGES_SOON_MSEC);
		assert_int_equal(sum.broken_msec, merged_for);
		assert_int_equal(m->state, CORE_PAGE_BROKEN);
	} else {
		assert_int_equal(sum.broken_soon, 0);
	}
}

static void test_against_model(void **state)
{
	struct core_pages_group g;
	struct model m[N];

	(void)state;
	for (unsigned turn = 0; turn < 40; turn++) {
		uint64_t now = 5000 + unit_random(&random_state) % 1000000;

		memset(&g, 0, sizeof(g));
		memset(m, 0, sizeof(m));
		for (uint32_t looks = 1; looks < 3000; looks++) {
			now += 1 + unit_random(&random_state) % (looks % 5 ? 60 : 3000);
			for (unsigned i = 0; i < N; i++) {
				bool present = unit_random(&random_state) % 200 != 0;
				bool changed = unit_random(&random_state) % (2 + i) == 0;
				enum core_page_state before = m[i].state;
				uint64_t merged_for = now - m[i].since_merged;
				enum core_page_want want;

				want = look(&g, i, now, looks, present, changed, false);
				model_look(&m[i], now, looks, present, changed);
				check_want(&g, i, &m[i], now, want);
				check_sum(before, &m[i], merged_for, present, changed);
				if (want == CORE_PAGE_HASH)
					outcome(&g, i, &m[i], now, looks);
			}
		}
	}
}

/* --- waits ------------------------------------------------------------------------ */

static void test_waits(void **state)
{
	struct core_pages_clock c = { .first_msec = 100 };

	(void)state;
	for (unsigned level = 0; level < 15; level++)
		assert_true(core_pages_wait_msec(&c, level) <= core_pages_wait_msec(&c, level + 1));
	assert_int_equal(core_pages_wait_msec(&c, 0), 100);
	assert_int_equal(core_pages_wait_msec(&c, 5), 3200);
	assert_int_equal(core_pages_wait_msec(&c, 15), 100 << 15);
	/* Never longer than an hour, whatever the first; and no overflow. */
	c.first_msec = 60000;
	assert_int_equal(core_pages_wait_msec(&c, 15), HOUR_MSEC);
	c.first_msec = UINT32_MAX;
	assert_int_equal(core_pages_wait_msec(&c, 15), HOUR_MSEC);
}

/* The shortest there can be: no division by nothing, and it does end. */
static void test_tiny_wait(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c = { 1000, 1, 1 };
	struct core_page_seen seen = { .present = true, .changed = true };
	unsigned waited = 0;

	(void)state;
	sum = (struct core_pages_sum){ .wait_msec = UINT32_MAX };
	assert_int_equal(core_page_look(&g, 0, &seen, &c, &sum), CORE_PAGE_REST);
	seen.changed = false;
	do {
		c.now_msec++;
		c.looks++;
		assert_true(++waited < 20);
	} while (core_page_look(&g, 0, &seen, &c, &sum) == CORE_PAGE_REST);
}

/* A page that never rests: how often would it be looked at in an hour, looked at when due? */
static void test_left_alone(void **state)
{
	struct core_pages_group g = { 0 };
	uint64_t now = 1000;
	uint32_t looks = 0, first_minute = 0, last_half = 0;

	(void)state;
	while (now < HOUR_MSEC) {
		assert_int_equal(look(&g, 3, now, looks, true, true, false), CORE_PAGE_REST);
		assert_int_equal(core_page_state(&g, 3), CORE_PAGE_FRESH);
		looks++;
		first_minute += now < 60000;
		last_half += now > HOUR_MSEC / 2;
		now += sum.wait_msec;
	}
	assert_true(first_minute >= 5);
	/* Ever less: a minute of the last half hour is no eighth of the first one. */
	assert_true(last_half > 0 && last_half / 30 <= first_minute / 8);
	assert_true(core_page_level(&g, 3) >= CORE_PAGES_LEVEL_VOLATILE);
}

/* About as long as it had been changing, looked at at a steady pace: not much longer. */
static void test_wait_as_long_as_it_changed(void **state)
{
	(void)state;
	for (uint64_t changing = 200; changing < 200000; changing *= 3) {
		struct core_pages_group g = { 0 };
		uint64_t now = 1000, begin = now, still;
		uint32_t looks = 1;

		for (; now - begin < changing; now += FIRST_MSEC)
			look(&g, 0, now, looks++, true, true, false);
		still = now;
		while (look(&g, 0, now, looks++, true, false, false) == CORE_PAGE_REST)
			now += FIRST_MSEC;
		assert_true(now - still <= 3 * changing + 2 * FIRST_MSEC);
		assert_true((now - still) * 8 >= changing || changing <= 2 * FIRST_MSEC);
	}
}

/* One page that changes every look says nothing about its neighbours. */
static void test_each_its_own(void **state)
{
	struct core_pages_group g = { 0 };
	uint64_t now = 1000;

	(void)state;
	for (uint32_t looks = 1; looks < 100; looks++, now += 20) {
		for (unsigned i = 0; i < N; i++)
			look(&g, i, now, looks, true, i == 5 || looks == 1, false);
	}
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(look(&g, i, now, 101, true, false, false),
				 i == 5 ? CORE_PAGE_REST : CORE_PAGE_HASH);
}

/* --- in swap, and pairs --------------------------------------------------------------- */

static enum core_page_want look_swapped(struct core_pages_group *g, unsigned i, uint64_t now)
{
	struct core_pages_clock c = at(now);
	struct core_page_seen seen = { .swapped = true };

	sum = (struct core_pages_sum){ .wait_msec = UINT32_MAX };
	return core_page_look(g, i, &seen, &c, &sum);
}

/* It comes back as it went: what is known of it, and that it was reported, stays. */
static void test_swapped(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c = at(1000);
	uint64_t now = 1000;

	(void)state;
	assert_int_equal(look_swapped(&g, 0, now), CORE_PAGE_REST); /* never seen */
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_GONE);
	look(&g, 0, now, 1, true, false, false);
	assert_int_equal(look_swapped(&g, 0, now + 5 * FIRST_MSEC), CORE_PAGE_REST);
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_FRESH);
	assert_int_equal(sum.pages[CORE_PAGE_FRESH], 1);
	assert_int_equal(sum.wait_msec, UINT32_MAX);
	now += 6 * FIRST_MSEC;
	assert_int_equal(look(&g, 0, now, 1, true, false, false), CORE_PAGE_HASH);
	assert_true(core_page_hashed(&g, 0, 77, false, &c));
	core_page_known(&g, 0, true);
	look_swapped(&g, 0, now);
	assert_int_equal(look(&g, 0, now, 1, true, false, false), CORE_PAGE_REST);
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_KNOWN);
	assert_true(core_page_reported(&g, 0));
	assert_int_equal(g.tag[0], 77);
	/* Given up while it was there: neither present nor in swap. */
	look(&g, 0, now, 1, false, false, false);
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_GONE);
	assert_false(core_page_reported(&g, 0));
	/* What is merged has no page of its own there. */
	core_page_merged(&g, 1, &c);
	look_swapped(&g, 1, now);
	assert_int_equal(core_page_state(&g, 1), CORE_PAGE_MERGED);
}

/* Of known pages only, and of the contents that were hashed. */
static void test_pairs(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c = at(1000);

	(void)state;
	look(&g, 0, 1000, 1, true, false, false);
	core_page_pair_is(&g, 0, CORE_PAGE_TWIN);
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_ALONE);
	assert_true(core_page_hashed(&g, 0, 77, false, &c));
	core_page_known(&g, 0, true);
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_ALONE);
	core_page_pair_is(&g, 0, CORE_PAGE_TWIN);
	assert_true(core_page_hashed(&g, 0, 77, false, &c));
	core_page_known(&g, 0, true);
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_TWIN);
	assert_true(core_page_hashed(&g, 0, 78, false, &c));
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_ALONE);
	core_page_pair_is(&g, 0, CORE_PAGE_TWIN);
	look(&g, 0, 2000, 1, true, true, false);
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_ALONE);
	core_page_known(&g, 0, true);
	assert_int_equal(core_page_pair(&g, 0), CORE_PAGE_ALONE);
}

/* --- broken merges ------------------------------------------------------------------ */

static void hash_as(struct core_pages_group *g, unsigned i, uint64_t now, uint32_t tag)
{
	struct core_pages_clock c = at(now);

	assert_true(core_page_hashed(g, i, tag, false, &c));
}

/* Each merge that is soon undone makes the next wait four times as long; a late one twice. */
static void test_broken(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c;
	uint64_t now = 1000;
	unsigned level = 0;

	(void)state;
	for (unsigned turn = 0; turn < 7; turn++) {
		bool soon = turn % 2 == 0;

		g.state[1] = (uint8_t)(CORE_PAGE_FRESH | level << 4);
		c = at(now);
		core_page_merged(&g, 1, &c);
		assert_int_equal(core_page_state(&g, 1), CORE_PAGE_MERGED);
		assert_false(core_page_reported(&g, 1));
		/* Nobody wrote: it is none of its own, at any time. */
		assert_int_equal(look(&g, 1, now + 1, 2, false, false, false), CORE_PAGE_REST);
		assert_int_equal(core_page_state(&g, 1), CORE_PAGE_MERGED);
		now += soon ? CORE_PAGES_SOON_MSEC - 1 : CORE_PAGES_SOON_MSEC;
		assert_int_equal(look(&g, 1, now, 3, true, turn % 3, false), CORE_PAGE_REST);
		assert_int_equal(core_page_state(&g, 1), CORE_PAGE_BROKEN);
		assert_int_equal(sum.broken, 1);
		assert_int_equal(sum.broken_soon, soon);
		assert_int_equal(sum.broken_msec, soon ? CORE_PAGES_SOON_MSEC - 1 : CORE_PAGES_SOON_MSEC);
		level = least(level + (soon ? 2 : 1), 15);
		assert_int_equal(core_page_level(&g, 1), level);
		/* Counted once. */
		look(&g, 1, now + 1, 4, true, true, false);
		assert_int_equal(sum.broken, 0);
	}
}

/* --- blind --------------------------------------------------------------------------- */

/* Only its bytes tell: twice the same, a wait apart, and then whenever it is asked about. */
static void test_blind(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c;
	uint64_t now = 1000;
	uint32_t looks = 1;

	(void)state;
	look(&g, 0, now, looks++, true, false, true);
	now += 2 * FIRST_MSEC;
	assert_int_equal(look(&g, 0, now, looks++, true, false, true), CORE_PAGE_HASH);
	c = at(now);
	assert_false(core_page_hashed(&g, 0, 7, true, &c)); /* never hashed before */
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_FRESH);
	assert_int_equal(core_page_level(&g, 0), 0);
	assert_int_equal(look(&g, 0, now + 1, looks++, true, false, true), CORE_PAGE_REST);
	now += 2 * FIRST_MSEC;
	assert_int_equal(look(&g, 0, now, looks++, true, false, true), CORE_PAGE_HASH);
	c = at(now);
	assert_false(core_page_hashed(&g, 0, 8, true, &c)); /* it had changed */
	now += 2 * FIRST_MSEC;
	assert_int_equal(look(&g, 0, now, looks++, true, false, true), CORE_PAGE_HASH);
	c = at(now);
	assert_true(core_page_hashed(&g, 0, 8, true, &c));
	core_page_known(&g, 0, true);
	/* Nothing but its bytes would show a change: asked for at every look. */
	assert_int_equal(look(&g, 0, ++now, looks++, true, false, true), CORE_PAGE_HASH);
	assert_true(core_page_hashed(&g, 0, 8, true, &c));
	assert_true(core_page_reported(&g, 0));
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_KNOWN);
	assert_int_equal(look(&g, 0, ++now, looks++, true, false, true), CORE_PAGE_HASH);
	c = at(now);
	assert_false(core_page_hashed(&g, 0, 9, true, &c));
	assert_false(core_page_reported(&g, 0)); /* the new one nobody has heard of */
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_FRESH);
}

/* One that never rests is hashed less and less often, too. */
static void test_blind_left_alone(void **state)
{
	struct core_pages_group g = { 0 };
	uint64_t now = 1000;
	uint32_t tag = 1, first_minute = 0;

	(void)state;
	for (uint32_t looks = 1; now < 10 * 60000; looks++) {
		struct core_pages_clock c = { (uint32_t)now, FIRST_MSEC, looks };

		if (look(&g, 0, now, looks, true, false, true) == CORE_PAGE_HASH) {
			assert_false(core_page_hashed(&g, 0, tag++, true, &c));
			first_minute += now < 60000;
		}
		now += FIRST_MSEC;
	}
	assert_true(core_page_level(&g, 0) >= CORE_PAGES_LEVEL_VOLATILE);
	assert_true(tag - first_minute < first_minute * 4);
}

/* Told about changes, a page is known until it changes; other bytes are reported anew. */
static void test_known(void **state)
{
	struct core_pages_group g = { 0 };
	uint64_t now = 1000;

	(void)state;
	look(&g, 2, now, 1, true, true, false);
	hash_as(&g, 2, now, 5);
	core_page_known(&g, 2, true);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(look(&g, 2, now += HOUR_MSEC, 3, true, false, false),
				 CORE_PAGE_REST);
	look(&g, 2, ++now, 3, true, true, false);
	assert_int_equal(core_page_state(&g, 2), CORE_PAGE_FRESH);
	assert_true(core_page_reported(&g, 2));
	hash_as(&g, 2, now, 5); /* written with what it held: no need to report it again */
	assert_true(core_page_reported(&g, 2));
	hash_as(&g, 2, now, 6);
	assert_false(core_page_reported(&g, 2));
	core_page_known(&g, 2, true);
	core_pages_unreport(&g);
	assert_false(core_page_reported(&g, 2));
	assert_int_equal(core_page_state(&g, 2), CORE_PAGE_KNOWN);
	/* Gone and back: nothing is left of what was known. */
	look(&g, 2, ++now, 3, false, false, false);
	look(&g, 2, ++now, 3, true, false, false);
	assert_int_equal(core_page_state(&g, 2), CORE_PAGE_FRESH);
	assert_int_equal(g.tag[2], 0);
	assert_int_equal(core_page_level(&g, 2), 0);
}

/* --- wrap-around ----------------------------------------------------------------------- */

/*
 * Milliseconds of 32 bits wrap after 49 days, eighths of a wait all the time. Whenever it
 * is looked at: a still page is hashed, and waits at most once more than it would have.
 */
static void test_wrap(void **state)
{
	(void)state;
	for (unsigned level = 0; level < 16; level++) {
		for (int64_t before = -3000; before < 3000; before += 37) {
			struct core_pages_group g = { 0 };
			uint64_t start = (uint64_t)(((int64_t)1 << 32) + before * (1 << level) / 4);
			uint64_t now = start, wait = wait_of(level);

			g.state[9] = (uint8_t)(CORE_PAGE_ASIDE | level << 4);
			look(&g, 9, now, 1, true, true, false);
			level = core_page_level(&g, 9);
			wait = wait_of(level);
			while (look(&g, 9, now, 2, true, false, false) == CORE_PAGE_REST) {
				now += sum.wait_msec;
				assert_true(now - start <= 3 * wait);
			}
		}
	}
}

/* Looked at after any time at all: hashed then, or after one more wait. */
static void test_looked_at_late(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 20000; i++) {
		struct core_pages_group g = { 0 };
		uint64_t now = unit_random(&random_state) % HOUR_MSEC, late;

		look(&g, 0, now, 1, true, true, false);
		late = now + FIRST_MSEC * (1 + unit_random(&random_state) % 100000);
		if (look(&g, 0, late, 2, true, false, false) == CORE_PAGE_HASH)
			continue;
		late += sum.wait_msec;
		assert_true(sum.wait_msec <= FIRST_MSEC);
		assert_int_equal(look(&g, 0, late, 3, true, false, false), CORE_PAGE_HASH);
	}
}

/* How long a page has been merged, across the wrap. */
static void test_broken_wraps(void **state)
{
	struct core_pages_group g = { 0 };
	struct core_pages_clock c = at(UINT32_MAX - 500);

	(void)state;
	g.state[0] = CORE_PAGE_FRESH;
	core_page_merged(&g, 0, &c);
	look(&g, 0, (uint64_t)UINT32_MAX + 1 + 499, 1, true, false, false);
	assert_int_equal(sum.broken_soon, 1);
	assert_int_equal(sum.broken_msec, 1000);
}

/* When it was written nobody knows; what counts is when it was seen to be whole. */
static void test_broken_unseen(void **state)
{
	static const struct {
		uint32_t seen_after, noticed_after, merged_for;
	} cases[] = { { 0, 40000, 0 }, { 5000, 40000, 5000 },
		      { CORE_PAGES_SOON_MSEC, 40000, CORE_PAGES_SOON_MSEC },
		      { CORE_PAGES_SOON_MSEC - 1, 3600000, CORE_PAGES_SOON_MSEC - 1 } };

	(void)state;
	for (unsigned wrap = 0; wrap < 2; wrap++)
		for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			struct core_pages_group g = { 0 };
			struct core_pages_clock c = at(wrap ? UINT32_MAX - 4000 : 1000);
			struct core_page_seen seen = { .present = true };
			bool soon = cases[i].merged_for < CORE_PAGES_SOON_MSEC;

			core_page_merged(&g, 0, &c);
			seen.before_msec = c.now_msec + cases[i].seen_after;
			/* Not since it was merged. */
			if (cases[i].seen_after == 0)
				seen.before_msec -= 700;
			c.now_msec += cases[i].noticed_after;
			sum = (struct core_pages_sum){ 0 };
			core_page_look(&g, 0, &seen, &c, &sum);
			assert_int_equal(sum.broken, 1);
			assert_int_equal(sum.broken_soon, soon);
			assert_int_equal(sum.broken_msec, cases[i].merged_for);
			assert_int_equal(core_page_level(&g, 0), soon ? 2 : 1);
		}
}

/* Mappings are read anew: what the store is mapped for, whoever made it, and what not. */
static void test_swept(void **state)
{
	struct core_pages_clock c = at(50000);
	struct core_pages_group g;

	(void)state;
	memset(&g, 0, sizeof(g));
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(look(&g, i, 50000, 1, true, true, false), CORE_PAGE_REST);
	core_page_merged(&g, 0, &c);
	core_page_merged(&g, 1, &c);
	core_page_known(&g, 2, true);
	core_page_broken(&g, 3, &c);
	assert_int_equal(core_page_state(&g, 3), CORE_PAGE_BROKEN);
	assert_int_equal(core_page_level(&g, 3), 1);
	assert_false(core_page_stays(&g, 0, 50000));
	assert_true(core_page_stays(&g, 2, 50000));
	assert_false(core_page_stays(&g, 3, 50000));
	assert_true(core_page_stays(&g, 6, 50000));
	assert_int_equal(core_pages_sweep(&g), 1);
	assert_int_equal(core_page_state(&g, 0), CORE_PAGE_MERGED);
	assert_int_equal(core_page_state(&g, 1), CORE_PAGE_GONE);
	assert_int_equal(core_page_state(&g, 2), CORE_PAGE_MERGED);
	assert_int_equal(core_page_state(&g, 3), CORE_PAGE_BROKEN);
	assert_int_equal(core_page_state(&g, 4), CORE_PAGE_FRESH);
	assert_int_equal(core_page_state(&g, 6), CORE_PAGE_MERGED);
	/* Present: written there. Never hashed, for it cannot be merged. */
	for (unsigned k = 0; k < 3; k++) {
		assert_int_equal(look(&g, 2, 50001 + k * 100000, 2 + k, true, false, false),
				 CORE_PAGE_REST);
		assert_int_equal(core_page_state(&g, 2), CORE_PAGE_BROKEN);
		assert_int_equal(look(&g, 3, 50001 + k * 100000, 2 + k, true, true, false),
				 CORE_PAGE_REST);
	}
	/* Not: merged as before. */
	look(&g, 6, 50001, 2, false, false, false);
	assert_int_equal(core_page_state(&g, 6), CORE_PAGE_MERGED);
	/* Brought home. */
	core_page_home(&g, 3, &c);
	assert_int_equal(core_page_state(&g, 3), CORE_PAGE_FRESH);
	/* What is not found again is gone. */
	assert_int_equal(core_pages_sweep(&g), 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_model),
		cmocka_unit_test(test_waits),
		cmocka_unit_test(test_tiny_wait),
		cmocka_unit_test(test_left_alone),
		cmocka_unit_test(test_wait_as_long_as_it_changed),
		cmocka_unit_test(test_each_its_own),
		cmocka_unit_test(test_swapped),
		cmocka_unit_test(test_pairs),
		cmocka_unit_test(test_broken),
		cmocka_unit_test(test_blind),
		cmocka_unit_test(test_blind_left_alone),
		cmocka_unit_test(test_known),
		cmocka_unit_test(test_wrap),
		cmocka_unit_test(test_looked_at_late),
		cmocka_unit_test(test_broken_wraps),
		cmocka_unit_test(test_broken_unseen),
		cmocka_unit_test(test_swept),
	};

	return cmocka_run_group_tests_name("unit-pages", tests, NULL, NULL);
}
