/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scan-guard COMMAND...: runs it, and puts KSM's settings back when it has ended, however
 * that came about (settings.c). If this is told to end, so is the command; what that
 * has started dies with it (launch.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../bench.h"

int main(int argc, char **argv)
{
	pid_t self = getpid(), pid;
	int status = 0;

	if (argc < 2)
		return 2;
	bench_settings_guard();
	pid = fork();
	if (pid < 0)
		bench_die("no child");
	if (pid == 0) {
		bench_child_prepare(self);
		execvp(argv[1], &argv[1]);
		_exit(127);
	}
	bench_settings_child(pid, true);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	bench_settings_child(pid, false);
	if (bench_settings_restore() != 0)
		return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
