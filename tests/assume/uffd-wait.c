/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: whoever touches a hole in a MISSING-registered range waits: a
 * thread's load or store, the kernel on its behalf (read(2), write(2)), another
 * process through process_vm_readv. (Not: /proc/PID/mem
 * and ptrace, which get EIO.) After mmap(MAP_FIXED) of a memfd page over
 * the hole and UFFDIO_WAKE it goes on with the memfd's bytes; a waiter on a hole
 * left as it is goes on with zeros after UFFDIO_UNREGISTER, which needs no WAKE.
 *
 * Leans on it: freeze and commit (design.md, 3), zero pages "simply not put
 * back", I2, I3.
 * Kernel: 4.3 (userfaultfd), 6.8 for the move back.
 */
#include "assume.h"

#include <sys/uio.h>

#define RW (PROT_READ | PROT_WRITE)
#define SEED 40

enum how { LOAD, STORE, READ2, WRITE2, VM_READV, HOWS };

static const char *const names[] = {
	"a load", "a store", "read(2) into it", "write(2) from it",
	"process_vm_readv by another process",
};

struct waiter {
	enum how how;
	unsigned char *page;
	unsigned char seen[65536];
	ssize_t rc;
	bool done;
};

static int uffd, memfd;
static size_t pg;

static ssize_t from_child(const struct waiter *w, int out)
{
	unsigned char buf[sizeof(w->seen)];
	struct iovec here = { buf, pg }, there = { w->page, pg };
	ssize_t n = process_vm_readv(getppid(), &here, 1, &there, 1, 0);

	if (n < 0)
		n = -errno;
	return write(out, &n, sizeof(n)) + write(out, buf, pg);
}

__attribute__((no_sanitize("thread"))) /* it races with the kernel: the point */
static void *touch(void *arg)
{
	struct waiter *w = arg;
	volatile unsigned char *page = w->page;
	int p[2];

	MUST(!pipe(p));
	switch (w->how) {
	case LOAD:
		w->seen[0] = page[0];
		w->rc = 1;
		break;
	case STORE:
		page[pg - 1] = 0xa5;
		w->rc = 1;
		break;
	case READ2:
		MUST(write(p[1], "samepage", 8) == 8);
		w->rc = syscall(SYS_read, p[0], w->page + 16, 8);
		break;
	case WRITE2:
		w->rc = syscall(SYS_write, p[1], w->page, 64);
		if (w->rc == 64)
			w->rc = read(p[0], w->seen, 64);
		break;
	case VM_READV: {
		pid_t child = fork();

		MUST(child >= 0);
		if (!child)
			_exit(from_child(w, p[1]) < 0);
		MUST(read(p[0], &w->rc, sizeof(w->rc)) == sizeof(w->rc));
		MUST(read(p[0], w->seen, pg) == (ssize_t)pg);
		MUST(waitpid(child, NULL, 0) == child);
		break;
	}
	case HOWS:
		break;
	}
	close(p[0]);
	close(p[1]);
	__atomic_store_n(&w->done, true, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * The exception: what goes through access_remote_vm in the kernel (/proc/PID/mem,
 * ptrace peeks and pokes) cannot wait. It must fail, then, and read or write
 * nothing wrong; a debugger sees an error for the span of a freeze.
 */
static void cannot_wait(unsigned char *page)
{
	int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	unsigned char buf[64];
	ssize_t rc;

	MUST(mem >= 0);
	rc = pread(mem, buf, sizeof(buf), (off_t)(uintptr_t)page);
	CHECK(rc == -1 && errno == EIO, "/proc/self/mem read of a hole: EIO, no wait (%zd)", rc);
	rc = pwrite(mem, "x", 1, (off_t)(uintptr_t)page);
	CHECK(rc == -1 && errno == EIO, "/proc/self/mem write to a hole: EIO, no wait (%zd)", rc);
	CHECK(!page_present(page), "and the hole stays one");
	close(mem);
}

/* Started, and by the kernel's own word waiting at this page. */
static pthread_t start(struct waiter *w, enum how how, unsigned char *page, bool take_message)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;
	pthread_t t;

	memset(w, 0, sizeof(*w));
	w->how = how;
	w->page = page;
	fflush(stdout);
	MUST(!pthread_create(&t, NULL, touch, w));
	MUST(poll(&pfd, 1, -1) == 1);
	if (take_message) {
		MUST(read(uffd, &msg, sizeof(msg)) == sizeof(msg));
		CHECK(msg.event == UFFD_EVENT_PAGEFAULT &&
			      (msg.arg.pagefault.address & ~(pg - 1)) == (uintptr_t)page,
		      "%s at a hole waits", names[how]);
	}
	MUST(!__atomic_load_n(&w->done, __ATOMIC_ACQUIRE));
	return t;
}

static bool saw(const struct waiter *w, const unsigned char *bytes)
{
	switch (w->how) {
	case LOAD:
		return w->rc == 1 && w->seen[0] == bytes[0];
	case STORE:
		return w->rc == 1 && w->page[pg - 1] == 0xa5 && !memcmp(w->page, bytes, pg - 1);
	case READ2:
		return w->rc == 8 && !memcmp(w->page, bytes, 16) &&
		       !memcmp(w->page + 16, "samepage", 8) &&
		       !memcmp(w->page + 24, bytes + 24, pg - 24);
	case WRITE2:
		return w->rc == 64 && !memcmp(w->seen, bytes, 64);
	default:
		return w->rc == (ssize_t)pg && !memcmp(w->seen, bytes, pg);
	}
}

static unsigned char *hole(void)
{
	unsigned char *p = anon_pages(3, RW);

	for (size_t i = 0; i < 3; i++)
		fill_page(at(p, i), 1);
	MUST(!uffd_register(uffd, p, 3 * pg));
	MUST(!madvise(at(p, 1), pg, MADV_DONTNEED));
	return at(p, 1);
}

static void put_memfd(unsigned char *page)
{
	MUST(mmap(page, pg, RW, MAP_PRIVATE | MAP_FIXED, memfd, 0) == page);
}

int main(void)
{
	static struct waiter w[HOWS];
	unsigned char *want, *zero, *page, *shared, *stage;
	int64_t moved;
	pthread_t t, t2;

	assume_begin(60);
	pg = page_bytes();
	if (pg > sizeof(w->seen))
		SKIP("pages of more than 64 KiB");
	uffd = uffd_open(SYS_UFFD_FEATURE_MOVE);
	memfd = memfd_pages(1, SEED);
	want = anon_pages(1, RW);
	zero = anon_pages(1, RW);
	shared = mmap(NULL, pg, PROT_READ, MAP_SHARED, memfd, 0);
	MUST(shared != MAP_FAILED);
	fill_page(want, SEED);

	for (int how = 0; how < HOWS; how++) {
		page = hole();
		t = start(&w[how], how, page, how != LOAD); /* the message may stay unread */
		put_memfd(page);
		MUST(!uffd_wake(uffd, page, pg));
		MUST(!pthread_join(t, NULL));
		CHECK(saw(&w[how], want), "%s: after mmap and WAKE the memfd's bytes",
		      names[how]);
		MUST(!uffd_unregister(uffd, page - pg, 3 * pg));
		MUST(page_is(shared, SEED));
	}
	for (int how = 0; how < HOWS; how++) {
		page = hole();
		t = start(&w[how], how, page, true);
		MUST(!uffd_unregister(uffd, page - pg, 3 * pg));
		MUST(!pthread_join(t, NULL));
		CHECK(saw(&w[how], zero), "%s: after UNREGISTER alone zeros", names[how]);
	}

	page = hole();
	cannot_wait(page);
	MUST(!uffd_unregister(uffd, page - pg, 3 * pg));

	/* Differing bytes: the page goes back, which wakes by itself. */
	page = anon_pages(1, RW);
	stage = anon_pages(1, RW);
	fill_page(page, 9);
	MUST(!uffd_register(uffd, page, pg) && !uffd_register(uffd, stage, pg));
	MUST(!uffd_move(uffd, stage, page, pg, 0, &moved));
	t = start(&w[0], READ2, page, true);
	MUST(!uffd_move(uffd, page, stage, pg, 0, &moved));
	MUST(!pthread_join(t, NULL));
	fill_page(want, 9);
	CHECK(saw(&w[0], want), "moved back: the waiter goes on without a WAKE");

	/* Who waits at a page that was replaced: does UNREGISTER wake it, too? */
	page = hole();
	t = start(&w[0], LOAD, page, true);
	put_memfd(page);
	usleep(50000);
	NOTE("50 ms after mmap alone the waiter %s",
	     __atomic_load_n(&w[0].done, __ATOMIC_ACQUIRE) ? "has gone on" : "still waits");
	MUST(!uffd_unregister(uffd, page - pg, 3 * pg));
	usleep(50000);
	NOTE("50 ms after mmap and UNREGISTER without WAKE it %s",
	     __atomic_load_n(&w[0].done, __ATOMIC_ACQUIRE) ? "has gone on" : "still waits");
	CHECK(!uffd_wake(uffd, page, pg), "WAKE is allowed on a range no longer registered");
	MUST(!pthread_join(t, NULL));

	/* One WAKE for many pages, whatever is mapped there. */
	page = anon_pages(4, RW);
	MUST(!uffd_register(uffd, page, 4 * pg));
	t = start(&w[0], LOAD, page, true);
	t2 = start(&w[1], LOAD, at(page, 3), true);
	put_memfd(page);
	put_memfd(at(page, 3));
	MUST(!munmap(at(page, 1), pg));
	CHECK(!uffd_wake(uffd, page, 4 * pg), "one WAKE over mixed mappings and a gap");
	MUST(!pthread_join(t, NULL) && !pthread_join(t2, NULL));
	CHECK(w[0].seen[0] == shared[0] && w[1].seen[0] == shared[0], "reaches every waiter");

	/* The process lets go of everything, as at a crash of the engine. */
	page = hole();
	t = start(&w[0], STORE, page, true);
	MUST(!close(uffd));
	MUST(!pthread_join(t, NULL));
	CHECK(saw(&w[0], zero), "closing the userfaultfd wakes with zeros");
	return assume_end();
}
