/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: a thread that calls close_range(3, ~0, CLOSE_RANGE_UNSHARE) has a
 * descriptor table of its own: the process keeps its descriptors, the ends of its
 * pipes are not held open by that thread, and what the thread opens appears in no
 * one else's table. A thread-directed signal that the thread blocks arrives
 * through the thread's signalfd.
 *
 * Leans on it: the engine thread inside a client (proc/), whose descriptors the
 * program must neither see nor close. Kernel: 5.9.
 */
#include "assume.h"

#include <sys/signalfd.h>
#include <sys/stat.h>

static int kept[2], early, dropped[2];
static int thread_fd, thread_tid, thread_signalfd;
static pthread_barrier_t turn;

static void *engine(void *arg)
{
	struct signalfd_siginfo info;
	struct pollfd pfd;
	sigset_t set;
	ssize_t n;

	sigfillset(&set);
	MUST(!pthread_sigmask(SIG_SETMASK, &set, NULL));
	if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_UNSHARE))
		SKIP("no close_range with CLOSE_RANGE_UNSHARE: %s", strerror(errno));
	CHECK(fcntl(kept[0], F_GETFD) == -1 && errno == EBADF,
	      "the thread has none of the process's descriptors");
	CHECK(fcntl(1, F_GETFD) >= 0, "but those below the range");
	for (int i = 0; i < 8; i++) /* past every number that the process uses */
		thread_fd = (int)syscall(SYS_memfd_create, "engine", 0);
	thread_fd = fcntl(thread_fd, F_DUPFD, 200);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	thread_signalfd = signalfd(-1, &set, SFD_CLOEXEC);
	MUST(thread_fd >= 200 && thread_signalfd >= 0);
	thread_tid = (int)syscall(SYS_gettid);
	pthread_barrier_wait(&turn); /* 1: the process looks */

	pfd = (struct pollfd){ .fd = thread_signalfd, .events = POLLIN };
	MUST(poll(&pfd, 1, -1) == 1);
	n = read(thread_signalfd, &info, sizeof(info));
	CHECK(n == sizeof(info) && info.ssi_signo == SIGUSR1 && info.ssi_code == SI_TKILL,
	      "a blocked thread-directed signal is read from the signalfd");
	CHECK(fcntl(thread_fd, F_GETFD) >= 0,
	      "close_range in the process leaves the thread's descriptors alone");
	return arg;
}

int main(void)
{
	pthread_t t;
	char c;
	int held = 0;

	assume_begin(60);
	MUST(!pipe(kept) && !pipe(dropped));
	early = open("/dev/null", O_RDONLY | O_CLOEXEC);
	MUST(early >= 0 && early < 100);
	MUST(!pthread_barrier_init(&turn, NULL, 2));
	MUST(!pthread_create(&t, NULL, engine, NULL));
	pthread_barrier_wait(&turn);

	CHECK(fcntl(kept[0], F_GETFD) >= 0 && fcntl(early, F_GETFD) >= 0 &&
		      write(kept[1], "y", 1) == 1 && read(kept[0], &c, 1) == 1 && c == 'y',
	      "the process keeps its descriptors");
	CHECK(fcntl(thread_fd, F_GETFD) == -1 && errno == EBADF,
	      "what the thread opened is not in the process's table");
	for (int fd = 0; fd < 1024; fd++) {
		char path[64], name[256];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, name, sizeof(name) - 1);
		if (n > 0) {
			name[n] = '\0';
			held += strstr(name, "memfd:engine") != NULL;
		}
	}
	CHECK(held == 0, "nor in /proc/self/fd (%d)", held);

	close(dropped[1]);
	CHECK(read(dropped[0], &c, 1) == 0, "a pipe's end of file is not held up by the thread");

	MUST(!syscall(SYS_close_range, 100U, ~0U, 0));
	MUST(!syscall(SYS_tgkill, getpid(), thread_tid, SIGUSR1));
	MUST(!pthread_join(t, NULL));
	return assume_end();
}
