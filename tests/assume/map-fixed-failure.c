/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: when mmap(MAP_FIXED) of a segment fails because the process is at
 * vm.max_map_count, what was mapped there before is still there, bytes and
 * registration with userfaultfd included, so that a failed commit can move its
 * pages back.
 *
 * Leans on it: freeze and commit (design.md, 3), I8, I3.
 * Kernel: holds from 6.12 (before, mmap unmapped first and asked later, and a
 * failure at the second step could leave nothing).
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 8

static size_t pg;
static int memfd, uffd;
static unsigned char *filler;
static size_t filler_pages, used;
static void *single = MAP_FAILED;

/* Each call takes one mapping more: every other page of a reservation. */
static bool take_one(void)
{
	if (2 * used + 1 >= filler_pages || mprotect(at(filler, 2 * used + 1), pg, PROT_READ))
		return false;
	used++;
	return true;
}

static void give_one(void)
{
	if (single != MAP_FAILED) { /* one mapping fewer */
		MUST(!munmap(single, pg));
		single = MAP_FAILED;
		return;
	}
	/* two fewer */
	used--;
	MUST(!mprotect(at(filler, 2 * used + 1), pg, PROT_NONE));
}

static int commit(unsigned char *page, size_t pages)
{
	return mmap(page, pages * pg, RW, MAP_PRIVATE | MAP_FIXED, memfd, 0) == page ? 0 : -errno;
}

int main(void)
{
	unsigned char *area, *stage, *hole, *whole;
	bool kept = true, registered = true;
	int64_t moved;
	int rc, sealed, free_maps, failures = 0, first_ok = -1;
	long max = 0;
	FILE *f;

	assume_begin(120);
	pg = page_bytes();
	f = fopen("/proc/sys/vm/max_map_count", "re");
	if (!f || fscanf(f, "%ld", &max) != 1)
		SKIP("vm.max_map_count cannot be read");
	fclose(f);
	if (max > 1000000)
		SKIP("vm.max_map_count is %ld: too many mappings to try", max);

	uffd = uffd_open(SYS_UFFD_FEATURE_MOVE);
	memfd = memfd_pages(PAGES, 100);
	area = anon_pages(PAGES, RW);
	hole = anon_pages(PAGES, RW);
	whole = anon_pages(1, RW);
	fill_page(whole, 9);
	stage = anon_pages(PAGES, RW);
	for (size_t i = 0; i < PAGES; i++) {
		fill_page(at(area, i), (unsigned int)i);
		fill_page(at(hole, i), (unsigned int)i);
	}
	MUST(!uffd_register(uffd, stage, PAGES * pg));
	MUST(!uffd_register(uffd, hole, PAGES * pg));
	filler_pages = 2 * (size_t)max + 16;
	filler = mmap(NULL, filler_pages * pg, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(filler != MAP_FAILED);
	while (take_one()) /* makes two mappings of one, each time */
		;
	MUST(errno == ENOMEM);
	for (int n = 0;; n++) { /* and what single mappings still fit */
		void *p = mmap(NULL, pg, n & 1 ? PROT_READ : PROT_NONE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			break;
		single = p;
	}
	MUST(errno == ENOMEM);
	NOTE("vm.max_map_count %ld reached with %zu readable islands", max, used);

	rc = commit(whole, 1);
	NOTE("at the limit, a run in place of a whole mapping: %d", rc);
	CHECK(page_is(whole, rc ? 9 : 100), "and its page holds what it should");

	for (free_maps = 0; free_maps < 6 && first_ok < 0; free_maps++) {
		int64_t back;

		rc = commit(at(area, 3), 1);
		if (!rc) {
			first_ok = free_maps;
			break;
		}
		MUST(rc == -ENOMEM);
		failures++;
		for (size_t i = 0; i < PAGES; i++)
			kept &= page_present(at(area, i)) && page_is(at(area, i), (unsigned int)i);

		/* The real thing: moved out, refused, moved back. */
		MUST(!uffd_move(uffd, stage, at(hole, 2), 2 * pg, 0, &moved));
		rc = commit(at(hole, 2), 2);
		if (!rc) {
			first_ok = free_maps;
			break;
		}
		MUST(rc == -ENOMEM);
		rc = uffd_move(uffd, at(hole, 2), stage, 2 * pg, 0, &back);
		registered &= !rc;
		for (size_t i = 0; i < PAGES && registered; i++)
			registered &= page_is(at(hole, i), (unsigned int)i);
		give_one();
	}
	CHECK(failures > 0, "mmap(MAP_FIXED) fails with ENOMEM at the limit (%d times)", failures);
	CHECK(kept, "what was mapped there is still there with its bytes");
	CHECK(registered, "a refused hole is still registered: the pages can be moved back");
	CHECK(first_ok > 0, "works again after %d step(s) back", first_ok);
	CHECK(page_is(at(area, 3), first_ok > 0 ? 100 : 3), "and then the memfd's bytes are there");

	/* Refused for other reasons: nothing is lost, either. */
	for (int i = 0; i < 32; i++)
		give_one();
	sealed = reopen(memfd, O_RDWR);
	MUST(sealed >= 0 && !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW |
							      F_SEAL_FUTURE_WRITE));
	CHECK(mmap(at(area, 5), pg, RW, MAP_SHARED | MAP_FIXED, sealed, 0) == MAP_FAILED &&
		      errno == EPERM, "EPERM for a shared writable mapping of a sealed memfd");
	kept = page_present(at(area, 5)) && page_is(at(area, 5), 5);
	NOTE("after EPERM from the memfd's own mmap what was there is %s",
	     kept ? "still there" : "gone");
	CHECK(mmap(at(area, 6), pg, RW, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED &&
		      errno == EBADF && page_is(at(area, 6), 6), "EBADF: still there");
	CHECK(mmap(at(area, 6), pg, RW, MAP_PRIVATE | MAP_FIXED, memfd, 1) == MAP_FAILED &&
		      errno == EINVAL && page_is(at(area, 6), 6), "EINVAL: still there");
	return assume_end();
}
