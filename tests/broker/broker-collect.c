/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the store gives back: rounds of candidates, and segments that nobody has.
 * If this fails, memory is held that nobody uses, or let go of while a process
 * still maps it and others could share it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/store.h"
#include "world.h"

static void test_candidates(void **state)
{
	const uint32_t tags[] = { 0x10000, 0x20000, 0x10000 };
	struct core_cand ct;
	struct stat before, after;
	struct world w;
	void *map;

	world_new(&w, 1000);
	assert_int_equal(fstat(broker_store_cand_fd(w.st), &before), 0);
	map = mmap(NULL, (size_t)before.st_size, PROT_READ, MAP_SHARED,
		   broker_store_cand_fd(w.st), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(core_cand_attach(&ct, map, (size_t)before.st_size / 2), 0);
	broker_store_tags(w.st, tags, 3);
	assert_int_equal(core_cand_count(&ct, 0x10000), 2);
	assert_int_equal(core_cand_count(&ct, 0x20000), 1);
	for (uint32_t i = 0; i < 50000; i++) {
		uint32_t tag = i * 2654435761u;

		broker_store_tags(w.st, &tag, 1);
	}
	assert_int_equal(fstat(broker_store_cand_fd(w.st), &before), 0);
	broker_store_round(w.st);
	assert_int_equal(fstat(broker_store_cand_fd(w.st), &after), 0);
	assert_true(after.st_blocks < before.st_blocks / 4); /* the memory went back */
	assert_int_equal(core_cand_count(&ct, 0x10000), 0);
	assert_int_equal(stats_of(&w).candidates, 0);
	broker_store_tags(w.st, tags, 3);
	assert_int_equal(core_cand_count(&ct, 0x10000), 2); /* and the old mapping still serves */
	munmap(map, (size_t)before.st_size);
	world_free(&w);
}

/* Collection ----------------------------------------------------------------- */

/* A segment goes when nobody has it, and not before; the open one never. */
static void test_collect(void **state)
{
	struct world w;
	size_t bytes;
	void *map;
	int fd;

	world_new(&w, 100000);
	bytes = BROKER_SEGMENT_SLOTS * w.page;
	promote_segments(&w, 1, 2);
	promote(&w, 2, 0, 1);
	fd = broker_store_segment_fd(w.st, 0);
	assert_int_equal(broker_store_collect(w.st), 0); /* 1 was never asked for: spared once */
	assert_int_equal(broker_store_collect(w.st), 1);
	assert_int_equal(broker_store_segment_fd(w.st, 1), -ENOENT);
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	close(fd);
	assert_int_equal(broker_store_collect(w.st), 0); /* mapped */
	munmap((uint8_t *)map + w.page, bytes - w.page);
	assert_int_equal(broker_store_collect(w.st), 0); /* one page of it still is */
	munmap(map, w.page);
	assert_int_equal(broker_store_collect(w.st), 1);
	assert_int_equal(stats_of(&w).slots, 1);
	assert_int_equal(stats_of(&w).segments, 1);
	assert_int_equal(stats_of(&w).segments_freed, 2);
	/* Its pages are forgotten, its number is not used again. */
	assert_int_equal(promote(&w, 1, 0, 1), 1);
	assert_int_equal(w.slot[0] / BROKER_SEGMENT_SLOTS, 2);
	world_free(&w);
}

static void test_collect_forked(void **state)
{
	int to_child[2], status, fd;
	struct world w;
	void *map;
	char byte;
	pid_t pid;

	world_new(&w, 100000);
	promote_segments(&w, 1, 1);
	fd = broker_store_segment_fd(w.st, 0);
	map = mmap(NULL, w.page, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	close(fd);
	assert_int_equal(pipe(to_child), 0);
	pid = fork();
	if (pid == 0) {
		close(to_child[1]);
		_exit(read(to_child[0], &byte, 1) == 0 ? *(volatile char *)map & 0 : 1);
	}
	close(to_child[0]);
	munmap(map, w.page);
	assert_int_equal(broker_store_collect(w.st), 0); /* the child's mapping counts */
	close(to_child[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(broker_store_collect(w.st), 1);
	world_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_candidates),
		cmocka_unit_test(test_collect),
		cmocka_unit_test(test_collect_forked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
