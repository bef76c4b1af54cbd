/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the store share. For broker/ only; everybody else: store.h. */
#ifndef SAMEPAGE_BROKER_STORE_IMPL_H
#define SAMEPAGE_BROKER_STORE_IMPL_H

#include <stdbool.h>

#include "broker/store.h"

enum broker_segment_state {
	BROKER_SEGMENT_OPEN,    /* the newest; mapped in struct broker_window */
	BROKER_SEGMENT_SEALING, /* full, but a pin still delays F_SEAL_WRITE */
	BROKER_SEGMENT_FULL,
	BROKER_SEGMENT_ADOPTED,
};

struct broker_segment {
	uint32_t number; /* slot / BROKER_SEGMENT_SLOTS; never used again */
	uint32_t slots;  /* in use */
	enum broker_segment_state state;
	bool given;      /* somebody got an fd of it */
	bool spared;     /* a collection has let it live because nobody had one yet */
	int rw_fd;       /* memfd_create's own; -1 once F_SEAL_WRITE holds */
	int ro_fd;       /* reopened: leases count only such files; -1 while open */
	uint64_t dev;
	uint64_t ino;
};

/* The one shared writable mapping, of the open segment. */
struct broker_window {
	uint8_t *map;            /* NULL: there is no open segment */
	uint32_t start;          /* slots before it are not mapped any more */
	uint32_t end;            /* slots before it are backed by memory */
	bool copy_in;            /* registered with the store's userfaultfd */
};

struct broker_shm {
	void *mem;
	size_t bytes;
	int ro_fd;
};

/* The table of scanners, and when it is to be renewed (cand.c). */
struct broker_standing {
	struct core_cand table;
	uint64_t began_usec;      /* the round; 0: with the next tags */
	uint64_t wait_usec;       /* it lasts so long at least */
	uint64_t gone;            /* tags that were reported by who is not here any more */
	uint64_t settled_entries; /* after wait_usec, if `settled` */
	uint64_t room_pages;      /* by which the table may still grow */
	bool settled;
	bool refused;             /* it was to grow, and that was too much */
	uint16_t users[CORE_CAND_WHO_MAX + 1]; /* of each number: sessions that have it now */
	bool used[CORE_CAND_WHO_MAX + 1];      /* the table may have something with it */
};

struct broker_store {
	struct broker_store_params params;
	size_t page_bytes;
	struct broker_shm index_shm, cand_shm;
	struct core_index index;
	struct core_cand cand;
	struct broker_standing standing;
	uint64_t *cand_backed;  /* a bit for each page of cand_shm that surely has memory */
	struct broker_segment *segments; /* those held, ascending numbers */
	size_t segment_count, segment_room;
	uint32_t next_number;
	struct broker_window window;
	int uffd;               /* to fill fresh slots with; -1: not to be had */
	uint64_t slots;         /* in segments that are held */
	uint64_t index_backed;  /* bytes of the index that surely have memory */
	uint8_t *scratch;       /* BROKER_SCRATCH_PAGES of them, nobody else's */
	bool scratch_used;      /* since it was given back */
	struct broker_store_stats counted; /* the counters of it only */
};

#define BROKER_BATCH_PAGES 64u
#define BROKER_SCRATCH_PAGES (BROKER_BATCH_PAGES + 1) /* and one to compare with */
#define BROKER_POPULATE_SLOTS 256u

/* memfd.c: a sized memfd, close-on-exec, not executable where the kernel can say so. */
int broker_memfd_new(const char *name, size_t bytes, unsigned mode);
/* A read-only open file of its own, never blocking on a lease that somebody holds. */
int broker_reopen_ro(int fd);

/* cand.c: over cand_shm, which is there. */
int broker_cand_init(struct broker_store *st);
/* Memory for the page with this place in it; false: there is none. */
bool broker_cand_back(struct broker_store *st, const void *place);
/* A page with this tag is in the store: scanners find it in the index from now on. */
void broker_cand_promoted(struct broker_store *st, uint32_t tag);

/* segment.c */
static inline size_t broker_segment_bytes(const struct broker_store *st)
{
	return st->page_bytes * BROKER_SEGMENT_SLOTS;
}
struct broker_segment *broker_segment_find(struct broker_store *st, uint32_t number);
/* The open segment with room for one slot, a new one if need be. -errno: none is to be had. */
int broker_segment_open(struct broker_store *st, struct broker_segment **seg);
/* Put n pages into slots seg->slots and following; they fit. Publishes nothing. */
int broker_segment_write(struct broker_store *st, struct broker_segment *seg, const uint8_t *pages,
			 uint32_t n);
/* All published slots of the open segment leave the window, for good. */
void broker_segment_unmap_published(struct broker_store *st);
/* Unmap what is left of the window. */
void broker_window_close(struct broker_store *st);
/* Slot seg->slots is published. */
void broker_segment_advance(struct broker_store *st, struct broker_segment *seg);
/* A new entry at the end, number st->next_number. NULL: no memory, no numbers left. */
struct broker_segment *broker_segment_add(struct broker_store *st);
void broker_segment_try_seal(struct broker_segment *seg);
/* Close its fds; the entry stays. */
void broker_segment_close_fds(struct broker_segment *seg);
/* Are the bytes of the slot these? room: a scratch page. */
bool broker_slot_equals(struct broker_store *st, uint32_t slot, const uint8_t *page, uint8_t *room);
/* The slot of these bytes, or CORE_SLOT_NONE. */
uint32_t broker_slot_find(struct broker_store *st, uint32_t tag, const uint8_t *page,
			  uint8_t *room);
/* Make sure that the next n insertions find the index backed by memory. */
int broker_index_back(struct broker_store *st);

#endif
