/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Adoption: full segments of a broker that died come back from its clients (I6).
 *
 * The fd comes from a client, so nothing about it is believed. F_GET_SEALS first:
 * it fails on everything that is not a memfd, before any call that could wait
 * for a file system of the client's own. With F_SEAL_WRITE, SHRINK and GROW all
 * set, the bytes can no longer change for anybody, not even for who made it, so
 * it does not matter who that was: every page is hashed here, and clients
 * compare bytes before they map a slot (I2). It is read with pread(2), never
 * mapped: holes read as zeros and cost nothing, and there is no SIGBUS.
 *
 * Zero pages are not indexed. A segment in which nothing is new is refused as
 * not needed; what it has counts as a whole segment of the quota.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "broker/store_impl.h"
#include "core/hash.h"
#include "sys/sys.h"

#define ADOPT_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define TMPFS_MAGIC_NUMBER 0x01021994

/* 0, 1: one that we have, -EINVAL */
static int adopt_check(const struct broker_store *st, int fd, struct stat *about)
{
	int seals = sys->get_seals(fd);
	struct statfs fs;

	if (seals < 0 || (seals & ADOPT_SEALS) != ADOPT_SEALS)
		return -EINVAL;
	if (fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC_NUMBER) /* no huge pages */
		return -EINVAL;
	if (fstat(fd, about) < 0 || !S_ISREG(about->st_mode) ||
	    about->st_size != (off_t)broker_segment_bytes(st))
		return -EINVAL;
	for (size_t i = 0; i < st->segment_count; i++) {
		if (st->segments[i].dev == about->st_dev && st->segments[i].ino == about->st_ino)
			return 1;
	}
	return 0;
}

/* Index what is new of the pages in buf, slots from first on. How many were new, or -errno. */
static int adopt_pages(struct broker_store *st, const uint8_t *buf, unsigned pages, uint32_t first,
		       uint8_t *room)
{
	int fresh = 0;

	for (unsigned i = 0; i < pages; i++) {
		const uint8_t *page = buf + i * st->page_bytes;
		uint32_t tag;

		if (core_page_is_zero(page, st->page_bytes))
			continue;
		tag = core_hash_tag(core_hash_page(page, st->page_bytes, st->params.seed));
		if (broker_slot_find(st, tag, page, room) != CORE_SLOT_NONE)
			continue;
		/* -ENOSPC: this page stays out, the others may still fit. */
		if (core_index_insert(&st->index, tag, first + i) == 0)
			fresh++;
	}
	return fresh;
}

static int adopt_all(struct broker_store *st, struct broker_segment *seg)
{
	const unsigned batch = BROKER_SCRATCH_PAGES - 1;
	uint8_t *room = st->scratch + batch * st->page_bytes;
	uint32_t first = seg->number * BROKER_SEGMENT_SLOTS;
	int fresh = 0;

	st->scratch_used = true;
	for (uint32_t at = 0; at < BROKER_SEGMENT_SLOTS; at += batch) {
		unsigned pages = BROKER_SEGMENT_SLOTS - at;
		ssize_t got;
		int r;

		if (pages > batch)
			pages = batch;
		got = sys->pread(seg->ro_fd, st->scratch, pages * st->page_bytes,
				 (off_t)(at * st->page_bytes));
		if (got != (ssize_t)(pages * st->page_bytes))
			return got < 0 ? (int)got : -EIO;
		/* Equal pages inside the segment find each other: its slots count already. */
		r = broker_index_back(st);
		if (r < 0)
			return r;
		fresh += adopt_pages(st, st->scratch, pages, first + at, room);
	}
	return fresh;
}

/* seg is the newest entry. Its number may come again only if it never was in the index. */
static void adopt_undo(struct broker_store *st, struct broker_segment *seg)
{
	if (core_index_remove_slots(&st->index, seg->number * BROKER_SEGMENT_SLOTS,
				    BROKER_SEGMENT_SLOTS) == 0)
		st->next_number--;
	broker_segment_close_fds(seg);
	st->segment_count--;
}

int broker_store_adopt(struct broker_store *st, int fd)
{
	struct broker_segment *seg;
	struct stat about;
	int r = adopt_check(st, fd, &about);
	int own;

	if (r != 0)
		return r;
	if (st->slots + BROKER_SEGMENT_SLOTS > st->params.max_slots)
		return -EDQUOT;
	own = broker_reopen_ro(fd);
	if (own < 0)
		return own == -EMFILE || own == -ENFILE || own == -ENOMEM ? own : -EINVAL;
	seg = broker_segment_add(st);
	if (!seg) {
		sys->close(own);
		return -ENOMEM;
	}
	seg->state = BROKER_SEGMENT_ADOPTED;
	seg->given = true;
	seg->slots = BROKER_SEGMENT_SLOTS;
	seg->ro_fd = own;
	seg->dev = about.st_dev;
	seg->ino = about.st_ino;
	r = adopt_all(st, seg);
	if (r <= 0) {
		adopt_undo(st, seg);
		return r < 0 ? r : 1;
	}
	st->slots += BROKER_SEGMENT_SLOTS;
	atomic_store_explicit(&st->index.header->slots_published, st->slots, memory_order_relaxed);
	return 0;
}
