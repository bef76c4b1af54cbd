/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Becomes a program as the scan benchmark wants its programs:
 *
 *   scan-launch [--group FILE]... [--merge] [--one-layout] COMMAND...
 *
 * --group: enters a control group by writing to its cgroup.procs. --merge: all of its
 * memory is advised to KSM (PR_SET_MEMORY_MERGE, inherited by what it starts).
 * --one-layout: addresses are not random, as `setarch -R`. Always: dies with whoever
 * started it, because nothing of a benchmark may stay behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

static bool enter(const char *path)
{
	int fd = path ? open(path, O_WRONLY | O_CLOEXEC) : -1;
	bool ok = fd >= 0 && write(fd, "0", 1) == 1;

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool apply(char **argv, int *i)
{
	if (strcmp(argv[*i], "--group") == 0)
		return enter(argv[++*i]);
	if (strcmp(argv[*i], "--merge") == 0)
		return prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0;
	return strcmp(argv[*i], "--one-layout") == 0 && personality(ADDR_NO_RANDOMIZE) >= 0;
}

int main(int argc, char **argv)
{
	pid_t parent = getppid();
	int i = 1;

	(void)argc;
	for (; argv[i] && strncmp(argv[i], "--", 2) == 0; i++)
		if (!apply(argv, &i)) {
			fprintf(stderr, "scan-launch: %s: %s\n", argv[i], strerror(errno));
			return 126;
		}
	if (!argv[i])
		return 126;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Who may have died before that was said. */
	if (getppid() != parent)
		return 125;
	execvp(argv[i], &argv[i]);
	fprintf(stderr, "scan-launch: %s: %s\n", argv[i], strerror(errno));
	return 127;
}
