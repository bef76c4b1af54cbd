/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store as a whole: shared tables, life and death, numbers.
 *
 * Index. Written through the mapping that existed before F_SEAL_FUTURE_WRITE;
 * nobody else can ever make a writable one (I4).
 *
 * The candidate tables: cand.c.
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
	int r = shm_new(&st->cand_shm, "samepage-cand",
			2 * core_cand_bytes(st->params.max_cand_pages), 0);

	return r < 0 ? r : broker_cand_init(st);
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
	free(st->cand_backed);
	free(st);
}

bool broker_store_worked(const struct broker_store *st)
{
	return st->scratch_used;
}

void broker_store_rest(struct broker_store *st)
{
	sys->madvise(st->scratch, BROKER_SCRATCH_PAGES * st->page_bytes, MADV_DONTNEED);
	st->scratch_used = false;
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
	stats->standing = atomic_load_explicit(&st->standing.table.header->entries,
					       memory_order_relaxed);
}
