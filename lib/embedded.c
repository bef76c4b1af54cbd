/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The embedded store: the broker's store code run by the engine's own thread.
 *
 * "Ring" is plain private memory here, since the one who copies pages into it is
 * the one who promotes them. The store is made on the engine's thread, in
 * connect(), so that its descriptors are in the engine's table.
 *
 * Fork. The child must not write the parent's segments (one writer, I1), and
 * their descriptors are not in its table. It forgets the store and makes one of
 * its own with its first merge. The store's shared mappings are advised DONTFORK
 * as they appear; a child that is forked just then keeps one of them, which
 * nobody there knows: it wastes addresses, nothing else.
 */
#include "lib/embedded.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "broker/store.h"
#include "proc/internal.h"

/* A table takes memory as it fills. */
#define CAND_PAGES (UINT64_C(1) << 20)

struct embedded_link {
	struct proc_link link;
	struct broker_store *store;
	uint64_t max_slots;
	size_t ring_bytes;
	uint64_t kept; /* segments + 1 whose mappings are DONTFORK */
};

static struct embedded_link *of(struct proc_link *link)
{
	return (struct embedded_link *)link;
}

/* Shared mappings of a store are always an owner's; runs are private ones. */
static int dont_fork(const struct sys_vma *v, void *arg)
{
	if (v->shared && strncmp(v->name, "/memfd:samepage-", 16) == 0)
		sys->madvise((void *)v->start, v->end - v->start, MADV_DONTFORK);
	return 0;
}

/* Index and candidates at first, then each segment that is opened. */
static void keep_from_children(struct embedded_link *em)
{
	uint64_t slots = atomic_load(&em->link.index.header->slots_published);
	uint64_t segments = (slots + BROKER_SEGMENT_SLOTS - 1) / BROKER_SEGMENT_SLOTS + 1;
	char buf[4096];

	if (segments == em->kept)
		return;
	sys_maps_each(0, buf, sizeof(buf), dont_fork, NULL);
	em->kept = segments;
}

/* The pointer goes first: a fork in between must not leave a child with it. */
static void free_ring(struct embedded_link *em)
{
	uint8_t *ring = em->link.ring;

	em->link.ring = NULL;
	proc_arena_free(ring, em->ring_bytes);
}

static int embedded_connect(struct proc_link *link)
{
	struct embedded_link *em = of(link);
	struct broker_store_params params = { .max_slots = em->max_slots,
					      .max_cand_pages = CAND_PAGES };
	int err;

	if (link->connected)
		return 0;
	err = sys->getrandom(&params.seed, sizeof(params.seed));
	if (err >= 0)
		err = sys->getrandom(&params.generation, sizeof(params.generation));
	if (err < 0)
		return err;
	link->ring = proc_arena_alloc(em->ring_bytes);
	if (!link->ring)
		return -ENOMEM;
	err = broker_store_new(&em->store, &params);
	if (err < 0) {
		free_ring(em);
		return err;
	}
	link->index = *broker_store_index(em->store);
	link->cand = *broker_store_cand(em->store);
	link->standing = *broker_store_standing_cand(em->store);
	link->who = broker_store_standing_join(em->store);
	link->connected = true;
	em->kept = 0;
	keep_from_children(em);
	return 0;
}

static void embedded_disconnect(struct proc_link *link)
{
	struct embedded_link *em = of(link);

	if (em->store)
		broker_store_free(em->store);
	em->store = NULL;
	free_ring(em);
	link->connected = false;
}

static int embedded_submit(struct proc_link *link, const uint16_t *ring_page, unsigned count,
			   uint32_t *slot, uint8_t *reason)
{
	broker_store_promote(of(link)->store, link->ring, ring_page, count, slot, reason, NULL);
	keep_from_children(of(link));
	return 0;
}

static int embedded_segment(struct proc_link *link, uint32_t segment)
{
	return broker_store_segment_fd(of(link)->store, segment);
}

static int embedded_tags(struct proc_link *link, const uint32_t *tag, unsigned count)
{
	broker_store_tags(of(link)->store, tag, count);
	return 0;
}

static int embedded_tags_standing(struct proc_link *link, const uint32_t *tag, unsigned count,
				  uint64_t round)
{
	(void)round; /* nothing is under way when it ends */
	broker_store_standing(of(link)->store, link->who, tag, count, sys_now_usec());
	return 0;
}

static void embedded_forget(struct proc_link *link)
{
	struct embedded_link *em = of(link);

	em->store = NULL; /* a few bytes of the parent's heap, copied */
	free_ring(em);
	link->connected = false;
}

static void embedded_free(struct proc_link *link)
{
	embedded_disconnect(link);
	proc_arena_free(of(link), sizeof(struct embedded_link));
}

static const struct proc_link_ops embedded_ops = {
	.connect = embedded_connect,
	.disconnect = embedded_disconnect,
	.submit = embedded_submit,
	.segment = embedded_segment,
	.tags = embedded_tags,
	.tags_standing = embedded_tags_standing,
	.forget = embedded_forget,
	.free = embedded_free,
};

int lib_embedded_new(struct proc_link **out, uint64_t store_bytes)
{
	struct embedded_link *em;
	struct sysinfo si;

	if (!store_bytes) {
		if (sysinfo(&si) < 0)
			return -ENOMEM;
		store_bytes = (uint64_t)si.totalram * si.mem_unit / 4;
	}
	if (store_bytes / sys_page_bytes() == 0 || store_bytes / sys_page_bytes() >= UINT32_MAX)
		return -EINVAL;
	em = proc_arena_alloc(sizeof(*em));
	if (!em)
		return -ENOMEM;
	em->link.ops = &embedded_ops;
	em->link.poll_fd = em->link.uffd_dev = -1;
	em->max_slots = store_bytes / sys_page_bytes();
	em->ring_bytes = PROC_RING_PAGES * sys_page_bytes();
	*out = &em->link;
	return 0;
}

uint64_t lib_embedded_scope(void)
{
	static _Atomic uint64_t scope;
	uint64_t made = 0, none = 0;

	/* Without random numbers there is no store either: connect() will say so. */
	if (!atomic_load(&scope) && sys->getrandom(&made, sizeof(made)) >= 0)
		atomic_compare_exchange_strong(&scope, &none, made | 1);
	return atomic_load(&scope);
}
