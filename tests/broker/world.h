/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A store and a ring of pages to promote from, for the tests of the store alone. */
#ifndef SAMEPAGE_TESTS_BROKER_WORLD_H
#define SAMEPAGE_TESTS_BROKER_WORLD_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "broker/store.h"
#include "client.h"
#include "sys/sys.h"

#define RING 512u

struct world {
	struct broker_store *st;
	size_t page;
	uint8_t *ring;
	uint32_t slot[RING];
	uint8_t reason[RING];
	uint16_t order[RING];
};

static inline struct broker_store *store_of(uint64_t max_slots)
{
	struct broker_store_params params = { .max_slots = max_slots, .max_cand_pages = 100000,
					      .seed = 11, .generation = 22 };
	struct broker_store *st;

	assert_int_equal(broker_store_new(&st, &params), 0);
	return st;
}

static inline void world_new(struct world *w, uint64_t max_slots)
{
	w->page = sys_page_bytes();
	w->st = store_of(max_slots);
	w->ring = mmap(NULL, RING * w->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(w->ring, MAP_FAILED);
	for (unsigned i = 0; i < RING; i++)
		w->order[i] = (uint16_t)i;
}

static inline void world_free(struct world *w)
{
	broker_store_free(w->st);
	munmap(w->ring, RING * w->page);
}

static inline unsigned promote(struct world *w, uint64_t salt, uint64_t first, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		bt_fill(w->ring + i * w->page, salt, first + i);
	return broker_store_promote(w->st, w->ring, w->order, count, w->slot, w->reason, NULL);
}

/* Fill n whole segments. */
static inline void promote_segments(struct world *w, uint64_t salt, unsigned n)
{
	for (uint64_t i = 0; i < (uint64_t)n * BROKER_SEGMENT_SLOTS; i += RING)
		assert_int_equal(promote(w, salt, i, RING), RING);
}

static inline bool slot_is(struct world *w, uint32_t slot, uint64_t salt, uint64_t n)
{
	uint8_t *want = malloc(w->page), *have = malloc(w->page);
	int fd = broker_store_segment_fd(w->st, slot / BROKER_SEGMENT_SLOTS);
	bool same;

	assert_true(want && have && fd >= 0);
	bt_fill(want, salt, n);
	assert_int_equal(pread(fd, have, w->page, (off_t)(slot % BROKER_SEGMENT_SLOTS * w->page)),
			 w->page);
	same = memcmp(want, have, w->page) == 0;
	close(fd);
	free(want);
	free(have);
	return same;
}

static inline struct broker_store_stats stats_of(struct world *w)
{
	struct broker_store_stats stats;

	broker_store_stats(w->st, &stats);
	return stats;
}

#endif
