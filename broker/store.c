/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store as a whole: shared tables, life and death, candidates, numbers.
 *
 * Index. Written through the mapping that existed before F_SEAL_FUTURE_WRITE;
 * nobody else can ever make a writable one (I4).
 *
 * Candidate table. Its size is chosen once, for max_cand_pages, so a client that
 * has it mapped never has to be told of another; a crowded table drops
 * fingerprints, which costs merges that come later and nothing else. A round is
 * cleared by giving the memory back to the kernel (MADV_REMOVE), because a scan
 * touches every page of it and a broker at rest should not carry that. The seal
 * FUTURE_WRITE would forbid it, so this file has none: clients get it opened
 * read-only with mode 0444, which root and the broker's own user could get
 * around. Whoever does can write nothing there that TAGS could not say as well:
 * counts are hints, and everybody takes the size from a checked copy of their
 * own.
 */
#include "broker/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "broker/store_impl.h"
#include "sys/sys.h"

#ifndef MADV_REMOVE
#define MADV_REMOVE 9
#endif

static int shm_new(struct broker_shm *shm, const char *name, size_t bytes, unsigned seals)
{
	int fd = broker_memfd_new(name, bytes, 0444);
	intptr_t mem;
	int r;

	if (fd < 0)
		return fd;
	mem = sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem < 0 && mem >= -4095) {
		sys->close(fd);
		return (int)mem;
	}
	r = sys->add_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | seals);
	if (r == 0)
		r = shm->ro_fd = broker_reopen_ro(fd);
	sys->close(fd);
	if (r < 0) {
		sys->munmap((void *)mem, bytes);
		shm->ro_fd = -1;
		return r;
	}
	shm->mem = (void *)mem;
	shm->bytes = bytes;
	return 0;
}

static void shm_free(struct broker_shm *shm)
{
	if (shm->mem)
		sys->munmap(shm->mem, shm->bytes);
	if (shm->ro_fd >= 0)
		sys->close(shm->ro_fd);
}

/* The page with the header must exist before it is written to. */
static int back_first_page(const struct broker_shm *shm, size_t page_bytes)
{
	int r = sys->madvise(shm->mem, page_bytes, MADV_POPULATE_WRITE);

	return r == -EINVAL ? 0 : r; /* before Linux 5.14 */
}

static int index_new(struct broker_store *st)
{
	struct core_index_params params = {
		.page_bytes = (uint32_t)st->page_bytes,
		.segment_slots = BROKER_SEGMENT_SLOTS,
		.max_slots = (uint32_t)st->params.max_slots,
		.seed = st->params.seed,
		.generation = st->params.generation,
	};
	int r = shm_new(&st->index_shm, "samepage-index", core_index_bytes(params.max_slots),
			F_SEAL_FUTURE_WRITE);

	if (r == 0)
		r = back_first_page(&st->index_shm, st->page_bytes);
	if (r == 0)
		r = core_index_init(&st->index, st->index_shm.mem, st->index_shm.bytes, &params);
	if (r == 0)
		r = broker_index_back(st);
	return r;
}

static int cand_new(struct broker_store *st)
{
	size_t bytes = core_cand_bytes(st->params.max_cand_pages);
	int r = shm_new(&st->cand_shm, "samepage-cand", bytes, 0);

	if (r < 0)
		return r;
	r = back_first_page(&st->cand_shm, st->page_bytes);
	if (r < 0)
		return r;
	return core_cand_init(&st->cand, st->cand_shm.mem, bytes);
}

static int scratch_new(struct broker_store *st)
{
	intptr_t mem = sys->mmap(NULL, BROKER_SCRATCH_PAGES * st->page_bytes,
				 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem < 0 && mem >= -4095)
		return (int)mem;
	st->scratch = (uint8_t *)mem;
	return 0;
}

/* User-mode faults are more than enough: all that is wanted is UFFDIO_COPY. */
static int uffd_new(void)
{
	uint64_t have;
	int fd = sys->uffd_open(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd >= 0 && sys->uffd_api(fd, 0, &have) < 0) {
		sys->close(fd);
		fd = -1;
	}
	return fd < 0 ? -1 : fd;
}

int broker_store_new(struct broker_store **out, const struct broker_store_params *params)
{
	struct broker_store *st;
	int r;

	if (params->max_slots == 0 || params->max_slots >= CORE_SLOT_NONE ||
	    params->max_cand_pages == 0)
		return -EINVAL;
	st = calloc(1, sizeof(*st));
	if (!st)
		return -ENOMEM;
	st->params = *params;
	st->page_bytes = sys_page_bytes();
	st->index_shm.ro_fd = st->cand_shm.ro_fd = -1;
	st->uffd = uffd_new();
	r = scratch_new(st);
	if (r == 0)
		r = index_new(st);
	if (r == 0)
		r = cand_new(st);
	if (r < 0) {
		broker_store_free(st);
		return r;
	}
	*out = st;
	return 0;
}

void broker_store_free(struct broker_store *st)
{
	if (!st)
		return;
	broker_window_close(st);
	for (size_t i = 0; i < st->segment_count; i++)
		broker_segment_close_fds(&st->segments[i]);
	free(st->segments);
	if (st->scratch)
		sys->munmap(st->scratch, BROKER_SCRATCH_PAGES * st->page_bytes);
	if (st->uffd >= 0)
		sys->close(st->uffd);
	shm_free(&st->index_shm);
	shm_free(&st->cand_shm);
	free(st);
}

void broker_store_tags(struct broker_store *st, const uint32_t *tag, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		core_cand_add(&st->cand, tag[i]);
}

/* What core_cand_clear() does, without allocating the whole table by writing zeros. */
void broker_store_round(struct broker_store *st)
{
	struct core_cand_header *header = st->cand.header;
	size_t keep = st->page_bytes > CORE_CAND_HEADER_BYTES ? st->page_bytes :
								CORE_CAND_HEADER_BYTES;
	uint8_t *mem = st->cand_shm.mem;

	if (st->cand_shm.bytes > keep &&
	    sys->madvise(mem + keep, st->cand_shm.bytes - keep, MADV_REMOVE) < 0) {
		core_cand_clear(&st->cand);
		return;
	}
	memset(mem + CORE_CAND_HEADER_BYTES, 0, keep - CORE_CAND_HEADER_BYTES);
	atomic_store_explicit(&header->entries, 0, memory_order_relaxed);
	atomic_store_explicit(&header->dropped, 0, memory_order_relaxed);
	atomic_fetch_add_explicit(&header->round, 1, memory_order_relaxed);
}

int broker_store_index_fd(const struct broker_store *st)
{
	return st->index_shm.ro_fd;
}

int broker_store_cand_fd(const struct broker_store *st)
{
	return st->cand_shm.ro_fd;
}

const struct core_index *broker_store_index(const struct broker_store *st)
{
	return &st->index;
}

const struct core_cand *broker_store_cand(const struct broker_store *st)
{
	return &st->cand;
}

static uint64_t shm_used_bytes(const struct broker_shm *shm)
{
	struct stat about;

	return fstat(shm->ro_fd, &about) < 0 ? 0 : (uint64_t)about.st_blocks * 512;
}

void broker_store_stats(const struct broker_store *st, struct broker_store_stats *stats)
{
	*stats = st->counted;
	stats->slots = st->slots;
	stats->segments = st->segment_count;
	stats->store_bytes = st->slots * st->page_bytes;
	stats->index_bytes = shm_used_bytes(&st->index_shm) + shm_used_bytes(&st->cand_shm);
	stats->candidates = atomic_load_explicit(&st->cand.header->entries, memory_order_relaxed);
}
