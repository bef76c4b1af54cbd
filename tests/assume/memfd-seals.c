/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: with F_SEAL_SHRINK|GROW|FUTURE_WRITE the one shared writable mapping
 * that exists goes on writing, and there is no other way to change the file:
 * write(2), a new shared writable mapping, ftruncate, hole punching all fail. A
 * read-only reopened file gives private writable mappings and cannot add seals.
 * When the writable mapping is gone F_SEAL_WRITE can be added, whatever private
 * writable mappings others have.
 *
 * Leans on it: segments (design.md, I1, I4). Kernel: 5.1 (F_SEAL_FUTURE_WRITE), 6.3
 * (MFD_NOEXEC_SEAL).
 */
#include "assume.h"

#include <sys/stat.h>

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 4
#define APPEND (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

static size_t pg;

static bool shared_rw_fails(int fd)
{
	void *p = mmap(NULL, pg, RW, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return true;
	munmap(p, pg);
	return false;
}

static void nobody_else_writes(int fd, const char *who)
{
	unsigned char *ro;

	CHECK(write(fd, "x", 1) < 0 && (errno == EPERM || errno == EBADF), "%s: no write(2)", who);
	CHECK(pwrite(fd, "x", 1, (off_t)pg) < 0, "%s: no pwrite(2)", who);
	CHECK(shared_rw_fails(fd), "%s: no new shared writable mapping", who);
	CHECK(ftruncate(fd, (off_t)pg) && ftruncate(fd, (off_t)(64 * pg)) &&
		      ftruncate(fd, 0), "%s: no ftruncate", who);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)pg) &&
		      (errno == EPERM || errno == EBADF), "%s: no PUNCH_HOLE", who);
	CHECK(fallocate(fd, 0, 0, (off_t)(64 * pg)), "%s: no growth by fallocate", who);
	ro = mmap(NULL, pg, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(ro != MAP_FAILED, "%s: a shared read-only mapping", who);
	CHECK(mprotect(ro, pg, RW) && errno == EACCES, "%s: which cannot be made writable", who);
	CHECK(madvise(ro, pg, MADV_REMOVE), "%s: nor punched by MADV_REMOVE", who);
	munmap(ro, pg);
}

/* What a client of another user can make of the O_RDONLY file it was given. */
static int foreign(int ro)
{
	int status, fd;
	pid_t child;

	fflush(stdout);
	child = fork();
	MUST(child >= 0);
	if (!child) {
		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(99);
		fd = reopen(ro, O_RDWR);
		_exit(fd < 0 ? errno : 0);
	}
	MUST(waitpid(child, &status, 0) == child && WIFEXITED(status));
	return WEXITSTATUS(status);
}

/*
 * Whoever may open the file O_RDWR may add seals, F_SEAL_SEAL too, after which the
 * broker's F_SEAL_WRITE is refused. The file mode decides, and memfds are 0777 or
 * 0666: so fchmod before handing out, and never rely on F_SEAL_WRITE coming later.
 */
static void who_may_seal(void)
{
	int fd = memfd_pages(1, 0), ro = reopen(fd, O_RDONLY), rw, rc;

	MUST(ro >= 0);
	rc = geteuid() ? 99 : foreign(ro);
	if (rc == 99) {
		NOTE("not root: reopening by another user not tried");
		return;
	}
	CHECK(rc == 0, "by default another user reopens an O_RDONLY memfd O_RDWR (%d)", rc);
	MUST(!fchmod(fd, 0400));
	rc = foreign(ro);
	CHECK(rc == EACCES, "after fchmod(0400) no longer (%d)", rc);
	rw = reopen(ro, O_RDWR);
	MUST(rw >= 0);
	CHECK(!fcntl(rw, F_ADD_SEALS, F_SEAL_SEAL) && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) &&
		      errno == EPERM, "F_SEAL_SEAL by whoever has it O_RDWR ends all sealing");
}

int main(void)
{
	unsigned char *writer, *reader, *private;
	int fd, ro, rw, seals;
	struct stat st;

	assume_begin(60);
	pg = page_bytes();
	fd = (int)syscall(SYS_memfd_create, "assume", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	if (fd < 0)
		SKIP("no MFD_NOEXEC_SEAL: %s", strerror(errno));
	seals = fcntl(fd, F_GET_SEALS);
	CHECK(seals == 0x20, "MFD_NOEXEC_SEAL allows sealing and sets F_SEAL_EXEC (%#x)", seals);
	CHECK(!fstat(fd, &st) && !(st.st_mode & 0111) && fchmod(fd, 0755) && errno == EPERM,
	      "not executable and cannot become so (mode %o)", st.st_mode & 0777);
	MUST(!ftruncate(fd, (off_t)(PAGES * pg)));
	writer = mmap(NULL, PAGES * pg, RW, MAP_SHARED, fd, 0);
	MUST(writer != MAP_FAILED);
	for (unsigned int i = 0; i < PAGES; i++)
		fill_page(at(writer, i), i);
	CHECK(!shared_rw_fails(fd), "before the seals a shared writable mapping is allowed");
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) && errno == EBUSY,
	      "EBUSY for F_SEAL_WRITE while a shared writable mapping lives");
	CHECK(!fcntl(fd, F_ADD_SEALS, APPEND), "F_SEAL_SHRINK|GROW|FUTURE_WRITE can be added");

	ro = reopen(fd, O_RDONLY);
	rw = reopen(fd, O_RDWR);
	MUST(ro >= 0 && rw >= 0);
	nobody_else_writes(fd, "creator's file");
	nobody_else_writes(rw, "reopened O_RDWR");
	nobody_else_writes(ro, "reopened O_RDONLY");
	CHECK(fcntl(ro, F_ADD_SEALS, F_SEAL_SEAL) && errno == EPERM,
	      "an O_RDONLY file cannot add seals");

	reader = mmap(NULL, PAGES * pg, PROT_READ, MAP_SHARED, ro, 0);
	private = mmap(NULL, PAGES * pg, RW, MAP_PRIVATE, ro, 0);
	CHECK(private != MAP_FAILED, "an O_RDONLY file gives private writable mappings");
	MUST(reader != MAP_FAILED && private != MAP_FAILED);
	fill_page(at(writer, 3), 33);
	CHECK(page_is(at(reader, 3), 33) && page_is(at(private, 3), 33),
	      "the mapping that was there goes on writing; all others see it");
	fill_page(at(private, 1), 77);
	CHECK(page_is(at(private, 1), 77) && page_is(at(reader, 1), 1) && page_is(at(writer, 1), 1),
	      "a write to the private one stays private");
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) && errno == EBUSY,
	      "still EBUSY for F_SEAL_WRITE");
	MUST(!munmap(writer, PAGES * pg));
	CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL),
	      "F_SEAL_WRITE once it is gone, private writable mappings alive");
	seals = fcntl(ro, F_GET_SEALS);
	CHECK((seals & (APPEND | F_SEAL_WRITE | F_SEAL_SEAL)) ==
		      (APPEND | F_SEAL_WRITE | F_SEAL_SEAL),
	      "an O_RDONLY file can read the seals (%#x)", seals);
	fill_page(at(private, 2), 78);
	CHECK(page_is(at(private, 2), 78) && page_is(at(reader, 2), 2),
	      "private mappings stay writable, and private");
	MUST(!close(fd) && !close(ro) && !close(rw));
	who_may_seal();
	CHECK(page_is(at(private, 3), 33), "the bytes live as long as a mapping");
	return assume_end();
}
