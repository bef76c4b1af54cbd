/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Slots of the store that save nothing: no place maps them but one.
 *
 * Nobody has the number. A client knows what it maps, the broker what it has given room to;
 * that two clients map the same slot no message says. So it is found out here, when
 * somebody asks, from what the kernel shows of each client: its mappings of the store's
 * files, without the pages that were written since (those are its own). A slot may be in
 * several places of one process, and that counts.
 *
 * Each stretch of a file that somebody maps is two events, where it begins and where it
 * ends; in the order of files and places, the number of those that are open says how many
 * map what lies between.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "sys/maps.h"
#include "sys/sys.h"

#define REGIONS 256u

struct event {
	uint64_t inode, at;
	int32_t change;
};

struct census {
	struct event *event;
	size_t count, room;
	int pagemap;
	char buf[65536];
};

static int add(struct census *c, uint64_t inode, uint64_t from, uint64_t to)
{
	if (from >= to)
		return 0;
	if (c->count + 2 > c->room) {
		size_t room = c->room ? 2 * c->room : 1024;
		void *more = reallocarray(c->event, room, sizeof(*c->event));

		if (!more)
			return -ENOMEM;
		c->event = more;
		c->room = room;
	}
	c->event[c->count++] = (struct event){ inode, from, 1 };
	c->event[c->count++] = (struct event){ inode, to, -1 };
	return 0;
}

/* What lies between the pages that were written. */
static int add_unwritten(struct census *c, const struct sys_vma *v)
{
	uint64_t at = v->start, walk = v->start, file = v->offset - v->start;
	struct sys_page_region r[REGIONS];
	int err = 0;

	while (err == 0 && walk < v->end) {
		struct sys_pm_scan_arg arg = {
			.size = sizeof(arg),
			.start = walk,
			.end = v->end,
			.vec = (uintptr_t)r,
			.vec_len = REGIONS,
			.category_inverted = SYS_PAGE_IS_FILE,
			.category_mask = SYS_PAGE_IS_FILE,
			.category_anyof_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
			.return_mask = SYS_PAGE_IS_PRESENT,
		};
		int n = sys->pagemap_scan(c->pagemap, &arg);

		if (n < 0)
			return n;
		for (int i = 0; i < n && err == 0; i++) {
			err = add(c, v->inode, file + at, file + r[i].start);
			at = r[i].end;
		}
		if (arg.walk_end <= walk)
			break;
		walk = arg.walk_end;
	}
	return err < 0 ? err : add(c, v->inode, file + at, file + v->end);
}

static int add_mapping(const struct sys_vma *v, void *arg)
{
	if (v->shared || !sys_name_is_store(v->name))
		return 0;
	return add_unwritten(arg, v);
}

static int add_process(struct census *c, int32_t pid)
{
	char path[32];
	int err;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	c->pagemap = sys->open(path, O_RDONLY | O_CLOEXEC, 0);
	if (c->pagemap < 0)
		return c->pagemap;
	err = sys_maps_each(pid, c->buf, sizeof(c->buf), add_mapping, c);
	sys->close(c->pagemap);
	return err;
}

static int by_place(const void *a, const void *b)
{
	const struct event *x = a, *y = b;

	if (x->inode != y->inode)
		return x->inode < y->inode ? -1 : 1;
	return x->at < y->at ? -1 : x->at > y->at;
}

/* Bytes of files that two or more places map. */
static uint64_t shared_bytes(const struct census *c)
{
	uint64_t bytes = 0;
	int64_t open = 0;

	for (size_t i = 0; i < c->count; i++) {
		/* At the end of a file nothing is open. */
		if (open >= 2)
			bytes += c->event[i].at - c->event[i - 1].at;
		open += c->event[i].change;
	}
	return bytes;
}

/* A process may have several sessions: a library's handle beside the preloaded one. */
static bool seen_before(const struct cli_items *items, unsigned i)
{
	return cli_items_find(items, items->item[i].pid) != &items->item[i];
}

int64_t cli_alone_pages(const struct cli_items *items)
{
	struct census *c = calloc(1, sizeof(*c));
	uint64_t shared;
	int64_t pages;
	int err = 0;

	if (!c)
		return -ENOMEM;
	for (unsigned i = 0; i < items->count && err >= 0; i++) {
		err = seen_before(items, i) ? 0 : add_process(c, items->item[i].pid);
		/* Gone since. */
		if (err == -ENOENT || err == -ESRCH)
			err = 0;
	}
	if (err >= 0) {
		if (c->count)
			qsort(c->event, c->count, sizeof(*c->event), by_place);
		shared = shared_bytes(c) / sys_page_bytes();
		pages = items->end.slots > shared ? (int64_t)(items->end.slots - shared) : 0;
	} else {
		pages = err;
	}
	free(c->event);
	free(c);
	return pages;
}
