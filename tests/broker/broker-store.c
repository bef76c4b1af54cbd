/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store: promotion, seals, quotas. If this fails, a client may be given a slot with
 * other bytes than it submitted, or published bytes could be changed (I1).
 *
 * core_hash_page is wrapped, so that pages with different bytes can be given
 * equal tags.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "client.h"
#include "core/hash.h"
#include "sys/fault.h"
#include "world.h"

uint64_t __real_core_hash_page(const void *page, size_t bytes, uint64_t seed);
uint64_t __wrap_core_hash_page(const void *page, size_t bytes, uint64_t seed);

static bool same_tag;

uint64_t __wrap_core_hash_page(const void *page, size_t bytes, uint64_t seed)
{
	return same_tag ? UINT64_C(42) << 32 : __real_core_hash_page(page, bytes, seed);
}

static bool without_uffd; /* then slots are filled by faults */

static void begin(struct world *w, uint64_t max_slots)
{
	if (without_uffd)
		sys_fault_arm(SYS_FAULT_uffd_open, 1, EPERM, 0);
	world_new(w, max_slots);
	sys_fault_reset();
}

static void end(struct world *w)
{
	same_tag = false;
	world_free(w);
}

static void test_params(void **state)
{
	struct broker_store_params params = { .max_cand_pages = 1 };
	struct broker_store *st = NULL;

	assert_int_equal(broker_store_new(&st, &params), -EINVAL);
	params.max_slots = CORE_SLOT_NONE;
	assert_int_equal(broker_store_new(&st, &params), -EINVAL);
	params.max_slots = 1;
	params.max_cand_pages = 0;
	assert_int_equal(broker_store_new(&st, &params), -EINVAL);
	broker_store_free(NULL);
}

static void test_promote(void **state)
{
	struct world w;

	begin(&w, 100000);
	assert_int_equal(promote(&w, 1, 0, 300), 300);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(w.slot[i], w.slot[0] + i);
	assert_true(slot_is(&w, w.slot[0], 1, 0));
	assert_true(slot_is(&w, w.slot[299], 1, 299));
	assert_int_equal(stats_of(&w).slots, 300);
	assert_int_equal(broker_store_index(w.st)->header->slots_published, 300);
	end(&w);
}

/* Known pages, and equal pages inside one batch, share a slot; new ones stay in a row. */
static void test_dedup(void **state)
{
	struct world w;
	uint32_t first;

	begin(&w, 100000);
	promote(&w, 1, 0, 10);
	first = w.slot[0];
	for (unsigned i = 0; i < 6; i++)
		bt_fill(w.ring + i * w.page, i < 2 ? 1 : 2, i == 5 ? 2 : i);
	assert_int_equal(broker_store_promote(w.st, w.ring, w.order, 6, w.slot, w.reason, NULL), 3);
	assert_int_equal(w.slot[0], first);
	assert_int_equal(w.slot[1], first + 1);
	assert_int_equal(w.slot[2], first + 10);
	assert_int_equal(w.slot[3], first + 11);
	assert_int_equal(w.slot[4], first + 12);
	assert_int_equal(w.slot[5], w.slot[2]);
	assert_int_equal(stats_of(&w).submissions, 16);
	assert_int_equal(stats_of(&w).submissions_known, 3);
	end(&w);
}

/* A page that is known already is found behind a closed segment, too. */
static void test_known_in_full_segment(void **state)
{
	struct world w;

	begin(&w, 100000);
	promote_segments(&w, 1, 2);
	assert_int_equal(promote(&w, 1, 100, RING), 0);
	for (unsigned i = 0; i < RING; i++)
		assert_int_equal(w.slot[i], 100 + i);
	assert_int_equal(stats_of(&w).segments, 2);
	end(&w);
}

/* Equal tags are no reason to mix bytes up (I2). */
static void test_tag_collision(void **state)
{
	struct world w;
	unsigned given;

	begin(&w, 100000);
	same_tag = true;
	given = promote(&w, 1, 0, 3);
	assert_int_equal(given, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_true(slot_is(&w, w.slot[i], 1, i));
	assert_int_equal(promote(&w, 1, 0, 3), 0);
	assert_int_equal(w.slot[2], 2);
	/* More of one tag than its buckets hold: refused, and no slot is wasted. */
	given += promote(&w, 1, 3, 60);
	assert_in_range(given, 4, 40);
	assert_int_equal(w.slot[59], CORE_SLOT_NONE);
	assert_int_equal(w.reason[59], SAMEPAGE_REASON_QUOTA);
	assert_int_equal(stats_of(&w).slots, given);
	same_tag = false;
	assert_int_equal(promote(&w, 2, 0, 1), 1);
	assert_int_equal(w.slot[0], given);
	assert_true(slot_is(&w, w.slot[0], 2, 0));
	end(&w);
}

static void test_quota(void **state)
{
	struct world w;
	uint64_t budget = 5;

	begin(&w, 20);
	for (unsigned i = 0; i < 8; i++)
		bt_fill(w.ring + i * w.page, 1, i);
	assert_int_equal(broker_store_promote(w.st, w.ring, w.order, 8, w.slot, w.reason, &budget), 5);
	assert_int_equal(budget, 0);
	assert_int_equal(w.slot[5], CORE_SLOT_NONE);
	assert_int_equal(w.reason[5], SAMEPAGE_REASON_QUOTA);
	assert_int_equal(promote(&w, 1, 0, 30), 15);
	assert_int_equal(w.slot[19], 19);
	assert_int_equal(w.slot[20], CORE_SLOT_NONE);
	assert_int_equal(promote(&w, 1, 0, 20), 0);
	assert_int_equal(w.slot[7], 7); /* what is there is still found */
	assert_int_equal(stats_of(&w).quota_refusals, 3 + 10);
	end(&w);
}

/* No memory, no files: refused with a reason, and the store goes on afterwards. */
static void test_no_memory(void **state)
{
	static const enum sys_fault_point points[] = { SYS_FAULT_memfd_create, SYS_FAULT_mmap,
						       SYS_FAULT_add_seals, SYS_FAULT_ftruncate,
						       SYS_FAULT_uffd_copy };
	struct world w;

	begin(&w, 100000);
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		sys_fault_arm(points[i], 1, ENOMEM, 0);
		if (points[i] == SYS_FAULT_uffd_copy) /* or, where there is none: */
			sys_fault_arm(SYS_FAULT_madvise, 1, ENOMEM, 0);
		promote(&w, 3, 0, 4);
		sys_fault_reset();
		assert_int_equal(w.slot[0], CORE_SLOT_NONE);
		assert_int_equal(w.reason[0], SAMEPAGE_REASON_NO_MEMORY);
		assert_int_equal(stats_of(&w).slots, 0);
	}
	assert_int_equal(promote(&w, 3, 0, 4), 4);
	assert_true(slot_is(&w, w.slot[3], 3, 3));
	end(&w);
}

static void test_new_faults(void **state)
{
	struct broker_store_params params = { .max_slots = 100, .max_cand_pages = 100 };

	for (int point = 1; point < SYS_FAULT_COUNT; point++) {
		for (uint64_t nth = 1; nth <= 4; nth++) {
			struct broker_store *st = NULL;

			sys_fault_arm((enum sys_fault_point)point, nth, ENOMEM, 1);
			if (broker_store_new(&st, &params) == 0)
				broker_store_free(st);
			sys_fault_reset();
		}
	}
}

/* Who reads slots ahead of the store makes pages of zeros there; nothing more. */
static void test_read_ahead(void **state)
{
	struct world w;
	uint8_t *map;
	int fd;

	begin(&w, 100000);
	promote(&w, 1, 0, 4);
	fd = broker_store_segment_fd(w.st, 0);
	map = mmap(NULL, BROKER_SEGMENT_SLOTS * w.page, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (unsigned i = 5; i < 400; i += 1 + i % 3)
		assert_int_equal(*(volatile uint8_t *)(map + i * w.page), 0);
	assert_int_equal(promote(&w, 1, 4, 300), 300);
	for (unsigned i = 0; i < 300; i += 7)
		assert_true(slot_is(&w, w.slot[i], 1, 4 + i));
	munmap(map, BROKER_SEGMENT_SLOTS * w.page);
	close(fd);
	end(&w);
}

/* A ring that changes while it is read -------------------------------------- */

struct scribbler {
	uint8_t *ring;
	size_t bytes;
	_Atomic bool stop;
};

static void *scribble(void *arg)
{
	struct scribbler *s = arg;
	uint64_t x = 1;

	while (!s->stop) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		*(volatile uint64_t *)(void *)(s->ring + (x >> 20) % (s->bytes / 8) * 8) = x;
	}
	return NULL;
}

/* Whatever the bytes of a slot are, its tag is theirs (I4). */
static void test_ring_changes(void **state)
{
	struct scribbler s = { 0 };
	uint8_t *page;
	pthread_t thread;
	struct world w;

	begin(&w, 200000);
	page = malloc(w.page);
	assert_non_null(page);
	s.ring = w.ring;
	s.bytes = 32 * w.page;
	assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
	for (int round = 0; round < 200; round++) {
		int fd;

		broker_store_promote(w.st, w.ring, w.order, 32, w.slot, w.reason, NULL);
		for (unsigned i = 0; i < 32; i++) {
			uint32_t found[CORE_INDEX_MATCHES_MAX], tag;
			unsigned n;

			assert_int_not_equal(w.slot[i], CORE_SLOT_NONE);
			fd = broker_store_segment_fd(w.st, w.slot[i] / BROKER_SEGMENT_SLOTS);
			assert_int_equal(pread(fd, page, w.page,
					       (off_t)(w.slot[i] % BROKER_SEGMENT_SLOTS * w.page)),
					 w.page);
			close(fd);
			tag = core_hash_tag(core_hash_page(page, w.page, 11));
			n = core_index_lookup(broker_store_index(w.st), tag, found,
					      CORE_INDEX_MATCHES_MAX);
			while (n > 0 && found[n - 1] != w.slot[i])
				n--;
			assert_int_not_equal(n, 0);
		}
	}
	s.stop = true;
	pthread_join(thread, NULL);
	free(page);
	end(&w);
}

/* Every way to write to what clients get (I1) ------------------------------- */

static void assert_cannot_write(int fd, size_t bytes, int *reopened)
{
	char path[40], byte = 'x';
	struct iovec iov = { &byte, 1 };
	void *map;

	assert_int_equal(write(fd, &byte, 1), -1);
	assert_int_equal(pwrite(fd, &byte, 1, 0), -1);
	assert_int_equal(pwritev(fd, &iov, 1, 0), -1);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(ftruncate(fd, (off_t)(2 * bytes)), -1);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 65536), -1);
	assert_ptr_equal(mmap(NULL, bytes, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(mprotect(map, bytes, PROT_READ | PROT_WRITE), -1);
	assert_int_equal(madvise(map, 65536, MADV_REMOVE), -1);
	munmap(map, bytes);
	if (!reopened)
		return;
	/* Root, or the owner, may change the mode and open it for writing: */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fchmod(fd, 0666);
	*reopened = open(path, O_RDWR | O_CLOEXEC);
}

static void test_seals(void **state)
{
	struct world w;

	begin(&w, 100000);
	promote_segments(&w, 1, 1);
	promote(&w, 1, BROKER_SEGMENT_SLOTS, 4);
	for (uint32_t segment = 0; segment < 2; segment++) {
		size_t bytes = BROKER_SEGMENT_SLOTS * w.page;
		int fd = broker_store_segment_fd(w.st, segment);
		int again = -1;

		assert_true(fd >= 0);
		assert_cannot_write(fd, bytes, &again);
		if (again >= 0)
			assert_cannot_write(again, bytes, NULL);
		assert_int_equal((fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE) != 0, segment == 0);
		if (again >= 0)
			close(again);
		close(fd);
	}
	assert_true(slot_is(&w, 0, 1, 0));
	assert_true(slot_is(&w, BROKER_SEGMENT_SLOTS + 3, 1, BROKER_SEGMENT_SLOTS + 3));
	{
		int again = -1;

		assert_cannot_write(broker_store_index_fd(w.st), 65536, &again);
		if (again >= 0) {
			assert_cannot_write(again, 65536, NULL);
			close(again);
		}
		/* Root could write hints to the candidate table, but never shorten it. */
		assert_int_equal(ftruncate(broker_store_cand_fd(w.st), 0), -1);
		assert_true(fcntl(broker_store_cand_fd(w.st), F_GET_SEALS) & F_SEAL_SHRINK);
	}
	end(&w);
}

/* Where the store has the open segment mapped for writing; *slot: from which slot on. */
static uint8_t *window_of(const struct world *w, uint64_t *slot)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, found = 0, offset;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (!strstr(line, "memfd:samepage-store") || !strstr(line, " rw-s ") ||
		    sscanf(line, "%lx-%*x %*s %lx", &start, &offset) != 2)
			continue;
		assert_int_equal(found, 0); /* one at most */
		found = start;
		*slot = offset / w->page;
	}
	fclose(f);
	return (uint8_t *)found;
}

static bool write_faults(uint8_t *at)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		*(volatile uint8_t *)at = 1;
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

/*
 * What is published cannot be written even by the store itself (I1), and what comes
 * to stand where it was mapped is not the store's.
 */
static void test_published_unmapped(void **state)
{
	uint8_t *at, *stranger;
	struct world w;
	uint64_t slot;

	begin(&w, 100000);
	promote(&w, 1, 0, 1);
	at = window_of(&w, &slot);
	assert_non_null(at);
	assert_int_equal(slot, 1);
	promote(&w, 1, 1, 150);
	assert_true(write_faults(at)); /* slot 1 */
	assert_true(write_faults(at + 149 * w.page));
	assert_ptr_equal(window_of(&w, &slot), at + 150 * w.page);
	assert_int_equal(slot, 151);
	stranger = mmap(at, w.page, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(stranger, at);
	*stranger = 7;
	promote_segments(&w, 2, 1); /* over the end of the segment */
	window_of(&w, &slot);
	assert_int_equal(slot, 151);
	assert_int_equal(*stranger, 7);
	assert_true(slot_is(&w, 100, 1, 100));
	broker_store_free(w.st);
	assert_null(window_of(&w, &slot));
	assert_int_equal(*stranger, 7);
	munmap(stranger, w.page);
	w.st = NULL;
	end(&w);
}

/* Working memory is given back between submissions, and nothing is lost with it. */
static void test_rests(void **state)
{
	struct world w;

	(void)state;
	begin(&w, 1000);
	assert_false(broker_store_worked(w.st));
	assert_int_equal(promote(&w, 1, 0, 8), 8);
	assert_true(broker_store_worked(w.st));
	broker_store_rest(w.st);
	assert_false(broker_store_worked(w.st));
	assert_int_equal(promote(&w, 1, 4, 8), 4);
	for (unsigned i = 0; i < 8; i++)
		assert_true(slot_is(&w, w.slot[i], 1, 4 + i));
	end(&w);
}

static void test_without_uffd(void **state)
{
	without_uffd = true;
	test_promote(state);
	test_dedup(state);
	test_tag_collision(state);
	test_no_memory(state);
	test_read_ahead(state);
	test_published_unmapped(state);
	without_uffd = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_params),
		cmocka_unit_test(test_promote),
		cmocka_unit_test(test_dedup),
		cmocka_unit_test(test_known_in_full_segment),
		cmocka_unit_test(test_tag_collision),
		cmocka_unit_test(test_quota),
		cmocka_unit_test(test_no_memory),
		cmocka_unit_test(test_new_faults),
		cmocka_unit_test(test_read_ahead),
		cmocka_unit_test(test_ring_changes),
		cmocka_unit_test(test_seals),
		cmocka_unit_test(test_published_unmapped),
		cmocka_unit_test(test_rests),
		cmocka_unit_test(test_without_uffd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
