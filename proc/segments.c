/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The client's side of the store's segments: a read-only fd for each segment
 * that this process maps or is about to map, and during a pass a read-only
 * mapping of the whole segment to compare with. (Reading slots into a buffer
 * instead was measured: dearer, for it pushes more through the L2 cache.)
 *
 * The fds stay, in the engine's own descriptor table, because a client is where
 * a new broker gets the full segments back from (I6). On TRIM those without a
 * mapping in this process are closed, which lets the broker see that nobody
 * uses them. The mappings are advised DONTFORK (a child has its own engine) and
 * go at the end of each pass, or when the scanner rests: they would keep page tables, and
 * leases, alive.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "proc/internal.h"

static size_t segment_bytes(const struct proc_engine *e)
{
	return (size_t)e->link->index.header->segment_slots << e->page_shift;
}

static void empty(struct proc_segment *from, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		from[i] = (struct proc_segment){ .fd = -1 };
}

/* The first few stand in the engine itself: most processes never see more. */
static int room_for(struct proc_engine *e, uint32_t number)
{
	struct proc_segment *table;

	if (number < e->segments_room)
		return 0;
	table = proc_arena_alloc_far(e->segments_count * sizeof(*table));
	if (!table)
		return -ENOMEM;
	memcpy(table, e->segments_few, sizeof(e->segments_few));
	empty(table + PROC_SEGMENTS_FEW, e->segments_count - PROC_SEGMENTS_FEW);
	e->segments = table;
	e->segments_room = e->segments_count;
	return 0;
}

void proc_segments_unmap(struct proc_engine *e)
{
	for (uint32_t i = 0; i < e->segments_room; i++) {
		if (!e->segments[i].map)
			continue;
		sys->munmap((void *)e->segments[i].map, e->segments_bytes);
		e->segments[i].map = NULL;
	}
}

static void close_fds(struct proc_engine *e)
{
	for (uint32_t i = 0; i < e->segments_room; i++) {
		if (e->segments[i].fd >= 0)
			sys->close(e->segments[i].fd);
		e->segments[i].fd = -1;
	}
}

void proc_segments_forget(struct proc_engine *e)
{
	struct proc_segment *table = e->segments;
	size_t bytes = e->segments_room * sizeof(*table);

	/* The fds were never in a child's table, the mappings were DONTFORK. The
	 * pointer goes first: a fork in between must not leave a child with it. */
	e->segments = NULL;
	e->segments_count = e->segments_room = 0;
	if (table != e->segments_few)
		proc_arena_free(table, bytes);
}

int proc_segments_reset(struct proc_engine *e, uint32_t count)
{
	if (e->segments) {
		proc_segments_unmap(e);
		close_fds(e);
		proc_segments_forget(e);
	}
	e->segments_count = count;
	if (!count)
		return 0;
	empty(e->segments_few, PROC_SEGMENTS_FEW);
	e->segments = e->segments_few;
	e->segments_room = count < PROC_SEGMENTS_FEW ? count : PROC_SEGMENTS_FEW;
	e->segments_bytes = segment_bytes(e);
	return 0;
}

static struct proc_segment *fetch(struct proc_engine *e, uint32_t slot)
{
	uint32_t number = slot / e->link->index.header->segment_slots;
	struct proc_segment *seg;

	/* The index is a hint from shared memory; what it says is checked. */
	if (number >= e->segments_count || room_for(e, number) < 0)
		return NULL;
	seg = &e->segments[number];
	if (seg->fd < 0) {
		int fd = e->link->ops->segment(e->link, number);

		if (fd == -EMFILE) {
			close_fds(e);
			fd = e->link->ops->segment(e->link, number);
		}
		if (fd < 0)
			return NULL;
		seg->fd = fd;
		e->segments_fetched = true;
	}
	return seg;
}

const uint8_t *proc_segments_slot(struct proc_engine *e, uint32_t slot)
{
	struct proc_segment *seg = fetch(e, slot);
	size_t bytes = e->segments_bytes;
	intptr_t p;

	if (!seg)
		return NULL;
	if (!seg->map) {
		p = sys->mmap(proc_far(bytes), bytes, PROT_READ, MAP_SHARED, seg->fd, 0);
		if (p < 0)
			return NULL;
		if (sys->madvise((void *)p, bytes, MADV_DONTFORK) < 0) {
			sys->munmap((void *)p, bytes);
			return NULL;
		}
		seg->map = (const uint8_t *)p;
	}
	return seg->map +
	       ((size_t)(slot % e->link->index.header->segment_slots) << e->page_shift);
}

int proc_segments_fd(struct proc_engine *e, uint32_t slot, uint64_t *offset)
{
	struct proc_segment *seg = fetch(e, slot);

	if (!seg)
		return -ENOENT;
	*offset = (uint64_t)(slot % e->link->index.header->segment_slots) << e->page_shift;
	return seg->fd;
}

/* Mark, in a caller's bitmap by table position, the segments that are mapped here. */
struct in_use {
	struct proc_engine *e;
	const uint64_t *inode;
	uint8_t *used;
};

static int mark_used(const struct sys_vma *vma, void *arg)
{
	struct in_use *u = arg;

	if (!proc_vma_is_run(vma))
		return 0;
	for (uint32_t i = 0; i < u->e->segments_room; i++)
		if (u->e->segments[i].fd >= 0 && u->inode[i] == vma->inode)
			u->used[i] = 1;
	return 0;
}

/* Which of the segments whose fd we hold does this process map? NULL: no memory. */
static uint8_t *find_used(struct proc_engine *e, size_t *bytes)
{
	struct in_use u = { .e = e };
	uint64_t *inode;

	*bytes = e->segments_room * (sizeof(*inode) + 1);
	inode = proc_arena_alloc_far(*bytes);
	if (!inode)
		return NULL;
	u.inode = inode;
	u.used = (uint8_t *)(inode + e->segments_room);
	for (uint32_t i = 0; i < e->segments_room; i++)
		if (e->segments[i].fd >= 0)
			sys->inode(e->segments[i].fd, &inode[i]);
	if (sys_maps_each(0, e->work->maps_buf, sizeof(e->work->maps_buf), mark_used, &u) < 0)
		memset(u.used, 1, e->segments_room);
	return (uint8_t *)inode;
}

/*
 * Since the last time no segment was fetched and nothing unmapped: what is held is in use.
 * Reading all mappings to find that out, twice a minute, was a third of what a process at
 * rest costs. Only the shim sees all that is unmapped.
 */
static bool nothing_changed(struct proc_engine *e)
{
	uint64_t changes;
	bool same;

	proc_mem_lock_engine();
	changes = proc_mem_changes();
	proc_mem_unlock_engine();
	same = e->params.owned_only && !e->segments_fetched && changes == e->segments_changes;
	e->segments_changes = changes;
	e->segments_fetched = false;
	return same;
}

void proc_segments_trim(struct proc_engine *e)
{
	size_t bytes;
	uint8_t *mem;

	if (!e->segments_room || nothing_changed(e))
		return;
	proc_segments_unmap(e); /* the scanner keeps them from round to round */
	mem = find_used(e, &bytes);
	if (!mem) {
		e->segments_fetched = true; /* so that it is tried again */
		return;
	}
	for (uint32_t i = 0; i < e->segments_room; i++) {
		if (e->segments[i].fd < 0 || mem[e->segments_room * sizeof(uint64_t) + i])
			continue;
		sys->close(e->segments[i].fd);
		e->segments[i].fd = -1;
	}
	proc_arena_free(mem, bytes);
}

void proc_segments_offer(struct proc_engine *e)
{
	for (uint32_t i = 0; i < e->segments_room; i++) {
		int fd = e->segments[i].fd;

		if (fd < 0)
			continue;
		if ((sys->get_seals(fd) & F_SEAL_WRITE) &&
		    proc_link_broker_offer(e->link, fd) < 0)
			break;
	}
}
