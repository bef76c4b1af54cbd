/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: a write lease on a memfd (F_SETLEASE, F_WRLCK) is refused as long
 * as any other open file of it lives anywhere: as a descriptor, or held by a
 * mapping whose descriptor was closed, also in a grandchild; it is granted when
 * the last is gone. So the kernel itself counts a segment's users.
 *
 * What counts is open files that were opened, by open(2): the file that
 * memfd_create itself returns is not among the kernel's writers or readers, yet
 * counts itself as one when it asks. So it is refused when alone, granted when
 * there is exactly one other writer (wrong both times), and never seen by others'
 * leases; duplicates of one open file are one. So the broker leases a file it reopened, closes the
 * original, and gives clients a file of their own, never a duplicate of its own.
 *
 * Leans on it: the broker's choice of segments to let go and I1 ("freed by the
 * kernel itself when the last mapping is gone") as a statistic that no client can
 * falsify. Kernel: 2.4 (leases); on shmem wherever no setlease operation refuses.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 4

static size_t pg;

/* 0, or -errno why there is no lease: somebody else has the file. */
static int lease(int fd)
{
	if (fcntl(fd, F_SETLEASE, F_WRLCK))
		return -errno;
	MUST(!fcntl(fd, F_SETLEASE, F_UNLCK));
	return 0;
}

static void wait_end(int fd)
{
	char c;

	while (read(fd, &c, 1) > 0)
		;
}

static void broker_writable(int fd)
{
	unsigned char *map, *own;
	int go[2], up[2], other, rc;
	pid_t child;
	char c;

	CHECK(lease(fd) == 0, "granted: reopened O_RDWR, nobody else (%d)", lease(fd));
	own = mmap(NULL, pg, RW, MAP_SHARED, fd, 0);
	MUST(own != MAP_FAILED);
	CHECK(lease(fd) == 0, "one's own shared writable mapping does not hinder (%d)", lease(fd));
	other = reopen(fd, O_RDONLY);
	MUST(other >= 0);
	CHECK(lease(fd) == -EAGAIN, "EAGAIN: somebody's read-only file (%d)", lease(fd));
	map = mmap(NULL, pg, RW, MAP_PRIVATE, other, 0);
	MUST(map != MAP_FAILED);
	MUST(!close(other));
	CHECK(lease(fd) == -EAGAIN, "EAGAIN: a mapping, its descriptor closed (%d)", lease(fd));
	fill_page(map, 1);
	CHECK(lease(fd) == -EAGAIN, "EAGAIN: a mapping with every page copied on write (%d)",
	      lease(fd));

	MUST(!pipe(go) && !pipe(up));
	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		if (fork())
			_exit(0);
		close(fd);
		close(go[1]);
		close(up[0]);
		MUST(write(up[1], "", 1) == 1);
		wait_end(go[0]);
		_exit(0);
	}
	MUST(waitpid(child, NULL, 0) == child);
	close(up[1]);
	close(go[0]);
	MUST(read(up[0], &c, 1) == 1);
	MUST(!munmap(map, pg));
	rc = lease(fd);
	CHECK(rc == -EAGAIN, "EAGAIN: a grandchild's mapping alone (%d)", rc);
	close(go[1]);
	wait_end(up[0]);
	rc = lease(fd);
	for (int i = 0; i < 5000 && rc; i++) { /* an exit lets go of files in no fixed order */
		usleep(1000);
		rc = lease(fd);
	}
	CHECK(rc == 0, "granted: the grandchild is gone (%d)", rc);

	other = dup(fd);
	CHECK(lease(fd) == 0, "a duplicate of the same open file is not seen (%d)", lease(fd));
	close(other);
	MUST(!munmap(own, pg));
}

/* A broker that was started anew has nothing but what clients send it. */
static void checker_read_only(int fd)
{
	int ro, other;
	unsigned char *map;

	MUST(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	ro = reopen(fd, O_RDONLY);
	MUST(ro >= 0);
	CHECK(lease(ro) == -EAGAIN, "sealed, O_RDONLY checker, a writer file lives: EAGAIN (%d)",
	      lease(ro));
	MUST(!close(fd));
	CHECK(lease(ro) == 0, "sealed, only the O_RDONLY file left: granted (%d)", lease(ro));
	other = reopen(ro, O_RDONLY);
	MUST(other >= 0);
	map = mmap(NULL, pg, RW, MAP_PRIVATE, other, 0);
	MUST(map != MAP_FAILED);
	MUST(!close(other));
	CHECK(lease(ro) == -EAGAIN, "another's mapping: EAGAIN (%d)", lease(ro));
	MUST(!munmap(map, pg));
	CHECK(lease(ro) == 0, "and granted again when it is gone (%d)", lease(ro));

	/* One's own mapping through the very file that asks is not counted. */
	map = mmap(NULL, pg, RW, MAP_PRIVATE, ro, 0);
	MUST(map != MAP_FAILED);
	CHECK(lease(ro) == 0, "a mapping of the asking file itself is not seen (%d)", lease(ro));
	MUST(!munmap(map, pg));
	close(ro);
}

/* While a lease is held, an open breaks it: a signal that kills by default. */
static void break_signal(int fd)
{
	struct timespec none = { 0 };
	int rc, sig, status;
	sigset_t set;
	pid_t child;

	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	MUST(!sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(!fcntl(fd, F_SETLEASE, F_WRLCK));
	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", getppid(), fd);
		close(fd);
		rc = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		_exit(rc < 0 ? errno : 0);
	}
	MUST(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EWOULDBLOCK,
	      "an open of a leased memfd waits, or EWOULDBLOCK (status %#x)", status);
	sig = sigtimedwait(&set, NULL, &none);
	CHECK(sig == SIGIO, "and the holder gets SIGIO, so block it (%d)", sig);
	MUST(!fcntl(fd, F_SETLEASE, F_UNLCK));
}

int main(void)
{
	int memfd, fd, rc;

	assume_begin(60);
	pg = page_bytes();
	memfd = memfd_pages(PAGES, 0);
	fd = reopen(memfd, O_RDWR);
	MUST(fd >= 0);
	rc = lease(memfd);
	NOTE("the file of memfd_create itself, one O_RDWR file beside it: %d", rc);
	rc = lease(fd);
	NOTE("reopened O_RDWR, the file of memfd_create still open: %d", rc);
	MUST(!close(memfd));
	rc = lease(fd);
	if (rc == -EINVAL || rc == -EACCES || rc == -ENOLCK || rc == -ENOSYS)
		SKIP("leases do not work on a memfd here: %s", strerror(-rc));

	memfd = memfd_pages(1, 0);
	rc = lease(memfd);
	CHECK(rc == -EAGAIN, "the file of memfd_create, alone in the world: EAGAIN (%d)", rc);
	{
		int ro = reopen(memfd, O_RDONLY);

		rc = lease(ro);
		CHECK(rc == 0, "O_RDONLY checker does not see it either (%d)", rc);
		close(ro);
	}
	close(memfd);

	broker_writable(fd);
	break_signal(fd);
	checker_read_only(fd);
	return assume_end();
}
