/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A broker of its own for each measurement, so that each begins with an empty
 * store. It listens on a private socket and dies with the driver.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define READY_MSEC 10000

const char *bench_broker_path = "samepaged";

/* Its log is of interest only if it does not come up. */
static void become_broker(int ready, int log, uint64_t store_bytes)
{
	char max[32];

	snprintf(max, sizeof(max), "%llu", (unsigned long long)store_bytes);
	ready = fcntl(ready, F_DUPFD, 10);
	if (ready < 0 || dup2(log, 2) < 0 || dup2(ready, 3) < 0 || close_range(4, UINT_MAX, 0) < 0)
		_exit(127);
	execlp(bench_broker_path, "samepaged", "--socket", bench_socket(), "--ready-fd", "3",
	       "--store-max", max, "--client-max", max, (char *)NULL);
	_exit(127);
}

pid_t bench_broker_start(uint64_t store_bytes)
{
	struct pollfd p = { .events = POLLIN };
	pid_t self = getpid(), pid;
	int ready[2], log = memfd_create("log", MFD_CLOEXEC);
	char byte, text[512];
	ssize_t n;

	unlink(bench_socket());
	if (log < 0 || pipe2(ready, O_CLOEXEC) < 0)
		bench_die("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		bench_die("fork: %s", strerror(errno));
	if (pid == 0) {
		bench_child_prepare(self);
		become_broker(ready[1], log, store_bytes);
	}
	bench_settings_child(pid, true);
	close(ready[1]);
	p.fd = ready[0];
	if (poll(&p, 1, READY_MSEC) != 1 || read(ready[0], &byte, 1) != 1) {
		n = pread(log, text, sizeof(text) - 1, 0);
		text[n > 0 ? n : 0] = '\0';
		bench_die("%s did not start: %s", bench_broker_path, text);
	}
	close(ready[0]);
	close(log);
	return pid;
}

void bench_broker_end(pid_t pid)
{
	kill(pid, SIGTERM);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	bench_settings_child(pid, false);
}
