/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Segments: from an empty memfd to the kernel's own garbage collection.
 *
 * Sealed FUTURE_WRITE from birth, a segment can be written through one mapping
 * only, made before the seal (I1). That mapping exists while the segment is
 * open,
 * and covers the slots that are not published yet. It is filled with UFFDIO_COPY,
 * a batch at a time: the kernel allocates a page and copies into it, where a
 * fault would have zeroed it first (1.2 against 1.7 us a page). Without
 * userfaultfd: MADV_POPULATE_WRITE and memcpy. When a submission is done, the
 * mapping loses its head, the slots that were published: F_SEAL_FUTURE_WRITE then
 * keeps even the broker, and whoever could write to its memory, from ever changing
 * them, and the broker's own footprint does not carry the store.
 *
 * Full: nothing is mapped any more, F_SEAL_WRITE comes. It says EBUSY while somebody
 * holds a transient reference on a page (a pin, a lookup): later calls retry.
 * Nothing depends on it but a later broker, which adopts only what carries it.
 *
 * Who still uses a full segment is asked of the kernel: every fd that was given
 * away is an open file of its own, kept open by its mappings (forked ones, too)
 * and by sockets that it is under way in; a write lease on our own reopened
 * file is granted only when none is left.
 *
 * A segment that nobody asked for yet may just have been filled, with the
 * answer still on its way to the client: the first collection spares it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/store_impl.h"
#include "sys/sys.h"

#define BIRTH_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

struct broker_segment *broker_segment_find(struct broker_store *st, uint32_t number)
{
	size_t low = 0, high = st->segment_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (st->segments[mid].number < number)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == st->segment_count || st->segments[low].number != number)
		return NULL;
	return &st->segments[low];
}

struct broker_segment *broker_segment_add(struct broker_store *st)
{
	struct broker_segment *seg;

	if (st->next_number >= CORE_SLOT_NONE / BROKER_SEGMENT_SLOTS)
		return NULL;
	if (st->segment_count == st->segment_room) {
		size_t room = st->segment_room ? 2 * st->segment_room : 16;
		void *more = realloc(st->segments, room * sizeof(*st->segments));

		if (!more)
			return NULL;
		st->segments = more;
		st->segment_room = room;
	}
	seg = &st->segments[st->segment_count++];
	*seg = (struct broker_segment){ .number = st->next_number++, .rw_fd = -1, .ro_fd = -1 };
	return seg;
}

void broker_segment_close_fds(struct broker_segment *seg)
{
	if (seg->rw_fd >= 0)
		sys->close(seg->rw_fd);
	if (seg->ro_fd >= 0)
		sys->close(seg->ro_fd);
	seg->rw_fd = seg->ro_fd = -1;
}

/* At most one is open, but segments may be adopted after it. */
static struct broker_segment *open_segment(struct broker_store *st)
{
	for (size_t i = st->segment_count; st->window.map && i-- > 0;) {
		if (st->segments[i].state == BROKER_SEGMENT_OPEN)
			return &st->segments[i];
	}
	return NULL;
}

/* Slots up to `end` leave the mapping. What is gone is never unmapped again. */
static void window_unmap(struct broker_store *st, uint32_t end)
{
	struct broker_window *win = &st->window;

	if (win->start >= end)
		return;
	/* No memory to split the mapping: the next time, then. */
	if (sys->munmap(win->map + win->start * st->page_bytes,
			(end - win->start) * st->page_bytes) == 0)
		win->start = end;
}

void broker_window_close(struct broker_store *st)
{
	/* Once more if it failed: an address that is forgotten stays writable. */
	for (int i = 0; st->window.map && i < 2; i++)
		window_unmap(st, BROKER_SEGMENT_SLOTS);
	st->window.map = NULL;
}

void broker_segment_unmap_published(struct broker_store *st)
{
	struct broker_segment *seg = open_segment(st);

	if (seg)
		window_unmap(st, seg->slots);
}

static int map_for_writing(struct broker_store *st, int fd, struct stat *about)
{
	size_t bytes = broker_segment_bytes(st);
	intptr_t map = sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int r;

	if (map < 0 && map >= -4095)
		return (int)map;
	r = sys->add_seals(fd, BIRTH_SEALS);
	if (r == 0 && fstat(fd, about) < 0)
		r = -errno;
	if (r < 0) {
		sys->munmap((void *)map, bytes);
		return r;
	}
	st->window = (struct broker_window){ .map = (uint8_t *)map };
	st->window.copy_in = st->uffd >= 0 &&
			     sys->uffd_register(st->uffd, st->window.map, bytes,
						UFFDIO_REGISTER_MODE_MISSING) == 0;
	return 0;
}

static int segment_new(struct broker_store *st, struct broker_segment **out)
{
	struct broker_segment *seg;
	struct stat about = { 0 };
	int fd = broker_memfd_new("samepage-store", broker_segment_bytes(st), 0444);
	int r;

	if (fd < 0)
		return fd;
	r = map_for_writing(st, fd, &about);
	if (r < 0) {
		sys->close(fd);
		return r;
	}
	seg = broker_segment_add(st);
	if (!seg) {
		broker_window_close(st);
		sys->close(fd);
		return -ENOMEM;
	}
	seg->state = BROKER_SEGMENT_OPEN;
	seg->rw_fd = fd;
	seg->dev = about.st_dev;
	seg->ino = about.st_ino;
	*out = seg;
	return 0;
}

int broker_segment_open(struct broker_store *st, struct broker_segment **seg)
{
	*seg = open_segment(st);
	return *seg ? 0 : segment_new(st, seg);
}

/* Memory for n slots from the first that has none, by faults of zeroed pages. */
static int populate(struct broker_store *st, uint32_t n)
{
	struct broker_window *win = &st->window;
	int r = sys->madvise(win->map + win->end * st->page_bytes, n * st->page_bytes,
			     MADV_POPULATE_WRITE);

	/* EINVAL: before 5.14; then each page is a trap of its own. */
	if (r < 0 && r != -EINVAL)
		return r;
	win->end += n;
	return 0;
}

/*
 * Slot by slot what is backed already, the rest by the batch. -EEXIST: a client
 * has read a slot ahead of us through a mapping of its own, which made a page of
 * zeros there; that page is then as good as one that we populated (I4).
 */
int broker_segment_write(struct broker_store *st, struct broker_segment *seg, const uint8_t *pages,
			 uint32_t n)
{
	struct broker_window *win = &st->window;
	uint32_t at = seg->slots, end = seg->slots + n;

	while (at < end) {
		const uint8_t *from = pages + (at - seg->slots) * st->page_bytes;
		uint8_t *to = win->map + at * st->page_bytes;
		size_t copied = 0;
		int r;

		if (at < win->end) {
			memcpy(to, from, st->page_bytes);
			at++;
			continue;
		}
		if (!win->copy_in) {
			r = populate(st, end - at);
		} else {
			r = sys->uffd_copy(st->uffd, to, from, (end - at) * st->page_bytes, &copied);
			at += (uint32_t)(copied / st->page_bytes);
			win->end = at;
			if (r == -EEXIST) {
				win->end = at + 1;
				r = 0;
			}
		}
		if (r < 0)
			return r;
	}
	return 0;
}

void broker_segment_try_seal(struct broker_segment *seg)
{
	if (seg->state != BROKER_SEGMENT_SEALING)
		return;
	if (seg->ro_fd < 0)
		seg->ro_fd = broker_reopen_ro(seg->rw_fd);
	if (seg->ro_fd < 0)
		return;
	if (sys->add_seals(seg->rw_fd, F_SEAL_WRITE) < 0)
		return;
	sys->close(seg->rw_fd);
	seg->rw_fd = -1;
	seg->state = BROKER_SEGMENT_FULL;
}

void broker_segment_advance(struct broker_store *st, struct broker_segment *seg)
{
	st->slots++;
	if (++seg->slots < BROKER_SEGMENT_SLOTS)
		return;
	broker_window_close(st);
	seg->state = BROKER_SEGMENT_SEALING;
	broker_segment_try_seal(seg);
}

bool broker_slot_equals(struct broker_store *st, uint32_t slot, const uint8_t *page, uint8_t *room)
{
	struct broker_segment *seg = broker_segment_find(st, slot / BROKER_SEGMENT_SLOTS);
	uint32_t at = slot % BROKER_SEGMENT_SLOTS;
	const struct broker_window *win = &st->window;

	if (!seg || at >= seg->slots)
		return false;
	if (seg->state == BROKER_SEGMENT_OPEN && at >= win->start && at < win->end)
		return memcmp(win->map + at * st->page_bytes, page, st->page_bytes) == 0;
	/* A mapping would fill our page tables with the store; a copy does not. */
	if (sys->pread(seg->ro_fd >= 0 ? seg->ro_fd : seg->rw_fd, room, st->page_bytes,
		       (off_t)(at * st->page_bytes)) != (ssize_t)st->page_bytes)
		return false;
	return memcmp(room, page, st->page_bytes) == 0;
}

uint32_t broker_slot_find(struct broker_store *st, uint32_t tag, const uint8_t *page, uint8_t *room)
{
	uint32_t slots[CORE_INDEX_MATCHES_MAX];
	unsigned n = core_index_lookup(&st->index, tag, slots, CORE_INDEX_MATCHES_MAX);

	for (unsigned i = 0; i < n; i++) {
		if (broker_slot_equals(st, slots[i], page, room))
			return slots[i];
	}
	return CORE_SLOT_NONE;
}

int broker_store_segment_fd(struct broker_store *st, uint32_t segment)
{
	struct broker_segment *seg = broker_segment_find(st, segment);
	int fd;

	if (!seg)
		return -ENOENT;
	broker_segment_try_seal(seg);
	fd = broker_reopen_ro(seg->ro_fd >= 0 ? seg->ro_fd : seg->rw_fd);
	if (fd >= 0)
		seg->given = true;
	return fd;
}

static bool segment_unused(struct broker_segment *seg)
{
	if (seg->state == BROKER_SEGMENT_OPEN)
		return false;
	broker_segment_try_seal(seg);
	if (!seg->given && !seg->spared) {
		seg->spared = true;
		return false;
	}
	return seg->ro_fd >= 0 && sys->lease_try(seg->ro_fd) == 1;
}

/* The entries go first: who finds none does not ask for the segment. */
unsigned broker_store_collect(struct broker_store *st)
{
	size_t kept = 0;
	unsigned freed = 0;

	for (size_t i = 0; i < st->segment_count; i++) {
		struct broker_segment *seg = &st->segments[i];

		if (!segment_unused(seg)) {
			st->segments[kept++] = *seg;
			continue;
		}
		core_index_remove_slots(&st->index, seg->number * BROKER_SEGMENT_SLOTS,
					BROKER_SEGMENT_SLOTS);
		st->slots -= seg->slots;
		broker_segment_close_fds(seg);
		freed++;
	}
	st->segment_count = kept;
	st->counted.segments_freed += freed;
	atomic_store_explicit(&st->index.header->slots_published, st->slots, memory_order_relaxed);
	return freed;
}
