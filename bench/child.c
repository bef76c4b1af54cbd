/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Workers are this program, executed anew (nothing inherited but two pipes), that
 * obey orders one at a time: whoever has no order waits in read(2), so that
 * nothing but what is measured runs while it is measured.
 *
 * All children die with the driver (PR_SET_PDEATHSIG), even if that is killed.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "bench.h"

void bench_die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1); /* atexit: settings are put back */
}

bool bench_read_all(int fd, void *buf, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t n = read(fd, (char *)buf + at, bytes - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

bool bench_write_all(int fd, const void *buf, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t n = write(fd, (const char *)buf + at, bytes - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

void bench_child_prepare(pid_t parent)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	/* Ctrl-C is for the driver. */
	setpgid(0, 0);
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

void bench_child_start(struct bench_child *c)
{
	int to[2], from[2];
	pid_t self = getpid();

	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		bench_die("pipe: %s", strerror(errno));
	c->pid = fork();
	if (c->pid < 0)
		bench_die("fork: %s", strerror(errno));
	if (c->pid == 0) {
		int in, out;

		bench_child_prepare(self);
		in = fcntl(to[0], F_DUPFD, 10);
		out = fcntl(from[1], F_DUPFD, 10);
		if (in < 0 || out < 0 || dup2(in, 3) < 0 || dup2(out, 4) < 0 ||
		    close_range(5, UINT_MAX, 0) < 0)
			_exit(1);
		execl("/proc/self/exe", "bench-worker", "--worker", (char *)NULL);
		_exit(127);
	}
	bench_settings_child(c->pid, true);
	close(to[0]);
	close(from[1]);
	c->to = to[1];
	c->from = from[0];
}

void bench_child_ask(struct bench_child *c, const struct bench_order *o, struct bench_answer *a)
{
	if (!bench_write_all(c->to, o, sizeof(*o)) || !bench_read_all(c->from, a, sizeof(*a)))
		bench_die("a worker (pid %d) died at order %u", (int)c->pid, o->op);
	if (a->error < 0)
		bench_die("order %u failed in a worker: %s", o->op, strerror(-a->error));
}

void bench_child_end(struct bench_child *c)
{
	close(c->to);
	close(c->from);
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	bench_settings_child(c->pid, false);
	c->pid = 0;
}
