/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: UFFDIO_MOVE takes many private anonymous pages out of a range and
 * back in one call, content kept, and refuses pages that somebody else may still
 * write: pinned ones and fork-shared ones. Refusals name the page: "move" counts
 * what went before it.
 *
 * Leans on it: freeze and commit (design.md, "How one page is merged", 3), I2, I3.
 * Kernel: 6.8.
 */
#include "assume.h"

#include <sys/uio.h>

#define PAGES 8
#define RW (PROT_READ | PROT_WRITE)

/* io_uring by hand: liburing is not worth a dependency for one registration. */
struct uring_params {
	uint32_t sq_entries, cq_entries, flags, cpu, idle, features, wq_fd, resv[3];
	uint64_t sq_off[5], cq_off[5];
};

static int uffd;
static size_t pg;

static unsigned char *filled(size_t pages)
{
	unsigned char *p = anon_pages(pages, RW);

	for (size_t i = 0; i < pages; i++)
		fill_page(p + i * pg, (unsigned int)i);
	return p;
}

static unsigned char *staging(size_t pages, int prot)
{
	unsigned char *p = anon_pages(pages, prot);

	MUST(!uffd_register(uffd, p, pages * pg));
	return p;
}

static bool all_there(const unsigned char *p, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		if (!page_is(p + i * pg, (unsigned int)i))
			return false;
	return true;
}

static void there_and_back(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	uint64_t frame = page_frame(src);
	int64_t moved = 0;
	int rc;

	MUST(!uffd_register(uffd, src, PAGES * pg));
	rc = uffd_move(uffd, stage, src, PAGES * pg, 0, &moved);
	CHECK(!rc && moved == (int64_t)(PAGES * pg), "one call moves %d pages", PAGES);
	CHECK(all_there(stage, PAGES), "content arrives in the staging area");
	CHECK(page_frame(stage) == frame, "the page itself moves, not a copy");
	CHECK(!page_present(src), "the source is a hole");
	rc = uffd_move(uffd, src, stage, PAGES * pg, 0, &moved);
	CHECK(!rc && moved == (int64_t)(PAGES * pg) && all_there(src, PAGES), "and back");
	CHECK(!uffd_move(uffd, stage, src, PAGES * pg, SYS_UFFDIO_MOVE_MODE_DONTWAKE, &moved),
	      "MODE_DONTWAKE is taken");

	/* The way back is into holes only: a page that came to be there stays. */
	MUST(!uffd_unregister(uffd, src, PAGES * pg));
	src[0] = 77;
	MUST(!uffd_register(uffd, src, PAGES * pg));
	rc = uffd_move(uffd, src, stage, pg, 0, &moved);
	CHECK(rc == -EEXIST && src[0] == 77, "EEXIST over a page that is there (%d)", rc);
}

static void who_is_registered(void)
{
	unsigned char *src = filled(PAGES), *stage = anon_pages(PAGES, RW);
	int other = uffd_open(SYS_UFFD_FEATURE_MOVE);
	int64_t moved = 0;
	int rc;

	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL when the destination is not registered (%d)", rc);
	MUST(!uffd_register(uffd, src, PAGES * pg));
	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL when only the source is registered (%d)", rc);
	MUST(!uffd_unregister(uffd, src, PAGES * pg));
	MUST(!uffd_register(uffd, stage, PAGES * pg));
	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(!rc && page_is(stage, 0), "the source need not be registered (%d)", rc);
	rc = uffd_move(other, at(stage, 1), at(src, 1), pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL through another userfaultfd (%d)", rc);
	MUST(!uffd_register(other, src, PAGES * pg));
	rc = uffd_move(uffd, at(stage, 1), at(src, 1), pg, 0, &moved);
	NOTE("source registered with another userfaultfd: %d", rc);
	CHECK(uffd_register(uffd, src, PAGES * pg) == -1 && errno == EBUSY,
	      "EBUSY to register a range that another userfaultfd has");
	close(other);
}

static void partial(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	int64_t moved = 0;
	int rc;

	MUST(!madvise(at(src, 3), pg, MADV_DONTNEED));
	MUST(!uffd_register(uffd, src, PAGES * pg));
	rc = uffd_move(uffd, stage, src, PAGES * pg, 0, &moved);
	CHECK(rc == -EAGAIN && moved == (int64_t)(3 * pg),
	      "stopped at page 3 of %d: EAGAIN and move = 3 pages (%d, %lld)", PAGES, rc,
	      (long long)moved);
	CHECK(page_is(at(stage, 2), 2) && !page_present(at(stage, 3)) && page_is(at(src, 4), 4),
	      "the pages before it have moved, those after it have not");
	rc = uffd_move(uffd, at(stage, 3), at(src, 3), 5 * pg, 0, &moved);
	CHECK(rc == -ENOENT && moved == -ENOENT,
	      "again from there: the page's own errno, also in move (%d, %lld)", rc,
	      (long long)moved);
	rc = uffd_move(uffd, at(stage, 3), at(src, 3), 5 * pg,
		       SYS_UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &moved);
	CHECK(!rc && moved == (int64_t)(5 * pg),
	      "ALLOW_SRC_HOLES goes over it and counts it (%d, %lld)", rc, (long long)moved);
	CHECK(!page_present(at(stage, 3)) && page_is(at(stage, 7), 7), "the hole stays a hole");
	rc = uffd_move(uffd, at(src, 0), at(stage, 0), PAGES * pg,
		       SYS_UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES, &moved);
	CHECK(!rc && page_is(src, 0) && page_is(at(src, 7), 7), "and so does the way back");
}

static void two_vmas(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	int64_t moved = 0;
	int rc;

	MUST(!madvise(at(src, 4), pg, MADV_DONTDUMP)); /* splits: 4 | 1 | 3 */
	rc = uffd_move(uffd, stage, src, PAGES * pg, 0, &moved);
	CHECK(rc == -EINVAL && moved == -EINVAL && page_is(src, 0),
	      "EINVAL, nothing moved, when the source spans two VMAs (%d)", rc);
	rc = uffd_move(uffd, stage, src, 4 * pg, 0, &moved);
	CHECK(!rc, "other VMA flags (here: dd) may differ (%d)", rc);
	rc = uffd_move(uffd, at(stage, 4), at(src, 4), pg, 0, &moved);
	CHECK(!rc, "on either side (%d)", rc);
}

static void forked(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	int go[2];
	char c;
	int64_t moved = 0;
	pid_t child;
	int rc;

	MUST(!pipe(go));
	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		close(go[1]);
		_exit(read(go[0], &c, 1) != 0 || !all_there(src, PAGES));
	}
	close(go[0]);
	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(rc == -EBUSY, "EBUSY for a page shared with a living child (%d)", rc);
	at(src, 1)[0] ^= 1; /* ours is now a copy */
	at(src, 1)[0] ^= 1;
	rc = uffd_move(uffd, at(stage, 1), at(src, 1), pg, 0, &moved);
	CHECK(!rc, "not for one that was copied since (%d)", rc);
	close(go[1]);
	MUST(waitpid(child, &rc, 0) == child);
	CHECK(rc == 0, "the child saw its own bytes");
	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(rc == -EBUSY, "still EBUSY when the child is gone (%d)", rc);
	rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
	MUST(!madvise(at(src, 2), pg, MADV_POPULATE_READ));
	rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
	CHECK(rc == -EBUSY, "a read does not change that (%d)", rc);
	MUST(!madvise(at(src, 2), pg, MADV_POPULATE_WRITE));
	rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
	CHECK(!rc && page_is(at(stage, 2), 2), "a write, or MADV_POPULATE_WRITE, does (%d)", rc);
}

static void pinned(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	struct uring_params params = { 0 };
	struct iovec iov = { at(src, 2), pg };
	int ring = (int)syscall(SYS_io_uring_setup, 2, &params);
	int64_t moved = 0;
	int p[2];
	int rc;

	if (ring < 0 || syscall(SYS_io_uring_register, ring, 0 /* BUFFERS */, &iov, 1)) {
		NOTE("no io_uring (%s): pinned pages not tried", strerror(errno));
	} else {
		rc = uffd_move(uffd, stage, src, 4 * pg, 0, &moved);
		CHECK(rc == -EAGAIN && moved == (int64_t)(2 * pg),
		      "a registered io_uring buffer stops the move there (%d, %lld)", rc,
		      (long long)moved);
		rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
		CHECK(rc == -EBUSY && page_is(at(src, 2), 2), "EBUSY for the pinned page (%d)", rc);
		MUST(!syscall(SYS_io_uring_register, ring, 1 /* UNREGISTER */, NULL, 0));
		for (int i = 0; i < 1000 && rc == -EBUSY; i++) { /* given back by a worker */
			usleep(1000);
			rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
		}
		CHECK(!rc, "and no longer once it is unpinned (%d)", rc);
	}

	/* vmsplice takes a plain reference: only ever read through, so harmless. */
	iov.iov_base = at(src, 5);
	MUST(!pipe(p));
	MUST(vmsplice(p[1], &iov, 1, 0) == (ssize_t)pg);
	rc = uffd_move(uffd, at(stage, 5), at(src, 5), pg, 0, &moved);
	NOTE("a page that a pipe holds through vmsplice: %d", rc);
}

static void access_flags(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	unsigned char *exec = staging(PAGES, RW | PROT_EXEC), *none = staging(PAGES, PROT_NONE);
	unsigned char *ro = staging(PAGES, PROT_READ);
	int64_t moved = 0;
	int rc;

	rc = uffd_move(uffd, exec, src, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL from rw- to rwx (%d)", rc);
	rc = uffd_move(uffd, none, src, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL from rw- to --- (%d)", rc);
	MUST(!mprotect(src, PAGES * pg, PROT_READ));
	rc = uffd_move(uffd, ro, src, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL from r-- to r-- (%d)", rc);
	MUST(!mprotect(src, PAGES * pg, RW | PROT_EXEC));
	rc = uffd_move(uffd, exec, src, pg, 0, &moved);
	CHECK(!rc, "rwx to rwx is allowed (%d)", rc);
	MUST(!mprotect(src, PAGES * pg, RW));

	MUST(!syscall(SYS_mlock, at(src, 1), pg));
	rc = uffd_move(uffd, at(stage, 1), at(src, 1), pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL from mlocked to not mlocked (%d)", rc);
	if (!syscall(SYS_mlock2, at(stage, 1), pg, MLOCK_ONFAULT)) {
		rc = uffd_move(uffd, at(stage, 1), at(src, 1), pg, 0, &moved);
		CHECK(!rc, "mlocked to mlocked-on-fault is allowed (%d)", rc);
	}
	MUST(!madvise(at(src, 5), pg, MADV_MERGEABLE));
	rc = uffd_move(uffd, at(stage, 5), at(src, 5), pg, 0, &moved);
	NOTE("from a MADV_MERGEABLE VMA to an ordinary one: %d", rc);
}

static void other_pages(void)
{
	unsigned char *src = filled(PAGES), *stage = staging(PAGES, RW);
	int64_t moved = 0;
	int fd = memfd_pages(PAGES, 0);
	volatile unsigned char sum;
	int rc;

	MUST(!madvise(src, pg, MADV_DONTNEED));
	sum = src[0];
	MUST(sum == 0);
	rc = uffd_move(uffd, stage, src, pg, 0, &moved);
	CHECK(rc == 0 || rc == -ENOENT || rc == -EBUSY,
	      "the shared zero page moves or is refused, no more (%d)", rc);
	NOTE("the shared zero page: %d, source then %s, destination %s", rc,
	     page_present(src) ? "present" : "a hole",
	     page_present(stage) ? "present" : "a hole");

	MUST(mmap(at(src, 2), 2 * pg, RW, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(2 * pg)) !=
	     MAP_FAILED);
	at(src, 2)[0] ^= 1;
	rc = uffd_move(uffd, at(stage, 2), at(src, 2), pg, 0, &moved);
	CHECK(rc == -EINVAL && moved == -EINVAL,
	      "EINVAL for a page copied on write in a private memfd mapping (%d)", rc);
	rc = uffd_move(uffd, at(stage, 3), at(src, 3), pg, 0, &moved);
	CHECK(rc == -EINVAL, "and for one that was not (%d)", rc);
	MUST(!uffd_register(uffd, src, PAGES * pg));
	rc = uffd_move(uffd, at(src, 2), at(src, 6), pg, 0, &moved);
	CHECK(rc == -EINVAL, "and into such a mapping (%d)", rc);

	rc = uffd_move(uffd, at(stage, 6), at(src, 6) + 1, pg, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL when not page aligned (%d)", rc);
	rc = uffd_move(uffd, at(stage, 6), at(src, 6), 0, 0, &moved);
	CHECK(rc == -EINVAL, "EINVAL for no pages at all (%d)", rc);
}

/* A page that was given up (MADV_FREE) is the kernel's to take, in staging as well. */
static void given_up(void)
{
	unsigned char *src = filled(PAGES), *stage = anon_pages(PAGES, RW);
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)stage, .len = PAGES * pg },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int64_t moved = 0;
	unsigned gone = 0;
	bool right = true;

	if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		NOTE("no write protection by userfaultfd: staging waits for missing pages");
		return;
	}
	MUST(!uffd_register(uffd, src, PAGES * pg));
	MUST(!madvise(src, PAGES * pg, MADV_FREE));
	CHECK(!uffd_move(uffd, stage, src, PAGES * pg, 0, &moved) && moved == PAGES * (int64_t)pg,
	      "it moves to where only write protection is registered");
	MUST(!madvise(stage, PAGES * pg, MADV_PAGEOUT));
	for (size_t i = 0; i < PAGES; i++)
		gone += !page_present(stage + i * pg);
	NOTE("taken by the kernel: %u of %d", gone, PAGES);
	for (size_t i = 0; i < PAGES; i++)
		right &= page_is(stage + i * pg, (unsigned)i) || stage[i * pg] == 0;
	CHECK(right, "whoever reads there does not wait, and finds it or zeros");
}

static unsigned long huge_kib(const void *addr)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long a, b, kib = 0;
	bool in = false;
	char line[512];

	MUST(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			in = (uintptr_t)addr >= a && (uintptr_t)addr < b;
		else if (in)
			sscanf(line, "AnonHugePages: %lu", &kib);
	}
	fclose(f);
	return kib;
}

static void huge(void)
{
	const size_t huge_bytes = 2UL << 20, n = huge_bytes / pg;
	unsigned char *raw = anon_pages(4 * n, RW), *raw2 = staging(4 * n, RW);
	unsigned char *src = (unsigned char *)(((uintptr_t)raw + huge_bytes - 1) & -huge_bytes);
	unsigned char *stage = (unsigned char *)(((uintptr_t)raw2 + huge_bytes - 1) & -huge_bytes);
	int64_t moved = 0;
	int rc;

	MUST(!madvise(raw, 4 * huge_bytes, MADV_HUGEPAGE));
	for (size_t i = 0; i < 2 * n; i++)
		fill_page(src + i * pg, (unsigned int)i);
	if (huge_kib(src) < 4096) {
		NOTE("no huge pages to be had: THP not tried");
		return;
	}
	rc = uffd_move(uffd, stage, src, huge_bytes, 0, &moved);
	CHECK(!rc && all_there(stage, n), "a whole huge page moves (%d)", rc);
	NOTE("whole huge page: AnonHugePages of the source VMA 4096 -> %lu, staging %lu",
	     huge_kib(src), huge_kib(stage));
	src += huge_bytes;
	stage += huge_bytes;
	rc = uffd_move(uffd, stage + 3 * pg, src + 3 * pg, 5 * pg, 0, &moved);
	CHECK(!rc && page_is(stage + 3 * pg, (unsigned int)n + 3) &&
		      page_is(stage + 7 * pg, (unsigned int)n + 7) &&
		      page_is(src + 8 * pg, (unsigned int)n + 8) && !page_present(src + 3 * pg),
	      "part of a huge page moves (%d)", rc);
	NOTE("part of a huge page: AnonHugePages of the source VMA then %lu, staging %lu",
	     huge_kib(src), huge_kib(stage));
}

int main(void)
{
	assume_begin(60);
	pg = page_bytes();
	uffd = uffd_open(SYS_UFFD_FEATURE_MOVE);
	there_and_back();
	who_is_registered();
	partial();
	two_vmas();
	forked();
	pinned();
	access_flags();
	other_pages();
	given_up();
	huge();
	return assume_end();
}
