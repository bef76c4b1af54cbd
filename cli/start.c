/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Start samepaged on demand.
 *
 * The broker must outlive us and must not be a child of the program that we
 * are about to become (its wait(2) would see a stranger), nor hold its terminal
 * or pipes open: so it is a grandchild in a session of its own, with /dev/null
 * for standard input and output. Standard error is a small memfd of fixed size,
 * from which we read the reason if it ends before it is ready; later messages
 * that go there are lost, samepaged(8) says where to find the log.
 *
 * It writes one byte to READY_FD when it listens. If it ends without (another
 * one was faster, say), the caller tries once more to connect.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "sys/sys.h"

#ifndef CLI_LIBEXECDIR
#define CLI_LIBEXECDIR "/usr/libexec"
#endif
#define READY_FD 3
#define READY_MSEC 5000
#define MESSAGE_BYTES 4096

int cli_beside(const char *name, char *path, size_t bytes)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n < 0)
		return -errno;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return -ENOENT;
	*slash = '\0';
	if ((size_t)snprintf(path, bytes, "%s/%s", self, name) >= bytes)
		return -ENAMETOOLONG;
	return 0;
}

/* "samepaged" alone: let PATH decide. */
static void find_broker(char *path, size_t bytes)
{
	if (cli_beside("samepaged", path, bytes) == 0 && access(path, X_OK) == 0)
		return;
	snprintf(path, bytes, "%s/samepaged", CLI_LIBEXECDIR);
	if (access(path, X_OK) == 0)
		return;
	snprintf(path, bytes, "samepaged");
}

static void reset_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the grandchild; does not return. */
static void become_broker(const char *path, const char *socket_path, int ready, int message)
{
	char *const argv[] = { (char *)"samepaged", (char *)"--on-demand", (char *)"--socket",
			       (char *)socket_path, (char *)"--ready-fd", (char *)"3", NULL };
	int null;

	/* Out of the way of READY_FD and the standard ones first. */
	ready = fcntl(ready, F_DUPFD, 10);
	message = fcntl(message, F_DUPFD, 10);
	null = open("/dev/null", O_RDWR);
	if (ready < 0 || message < 0 || null < 0)
		_exit(CLI_CANNOT_RUN);
	if (dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
	    dup2(message, STDERR_FILENO) < 0 || dup2(ready, READY_FD) < 0 ||
	    close_range(READY_FD + 1, UINT_MAX, 0) < 0 || chdir("/") < 0)
		_exit(CLI_CANNOT_RUN);
	reset_signals();
	unsetenv("LD_PRELOAD");
	execvp(path, argv);
	dprintf(STDERR_FILENO, "%s: %s\n", path, strerror(errno));
	_exit(CLI_NOT_FOUND);
}

static int spawn(const char *path, const char *socket_path, int ready, int message)
{
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		pid_t grandchild;

		setsid();
		grandchild = fork();
		if (grandchild == 0)
			become_broker(path, socket_path, ready, message);
		_exit(grandchild < 0);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}

/* The last line that it wrote, or what. */
static void last_words(int message, const char *what, char *why, size_t why_bytes)
{
	char buf[MESSAGE_BYTES + 1], clean[MESSAGE_BYTES + 1];
	ssize_t n = pread(message, buf, MESSAGE_BYTES, 0);
	char *line;

	buf[n > 0 ? n : 0] = '\0';
	n = (ssize_t)strlen(buf);
	while (n > 0 && buf[n - 1] == '\n')
		buf[--n] = '\0';
	line = strrchr(buf, '\n');
	line = line ? line + 1 : buf;
	if (*line)
		snprintf(why, why_bytes, "%s", cli_clean(line, clean, sizeof(clean)));
	else
		snprintf(why, why_bytes, "%s", what);
}

static int wait_ready(int fd, int message, char *why, size_t why_bytes)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	uint64_t end_usec = sys_now_usec() + READY_MSEC * UINT64_C(1000);
	char byte;
	int n;

	do {
		uint64_t now_usec = sys_now_usec();

		n = now_usec < end_usec
			    ? sys->poll(&pfd, 1, (int)((end_usec - now_usec) / 1000) + 1) : 0;
	} while (n == -EINTR);
	if (n == 0) {
		last_words(message, "it was not ready within 5 s", why, why_bytes);
		return -ETIMEDOUT;
	}
	if (n > 0 && sys->read(fd, &byte, 1) == 1)
		return 0;
	last_words(message, "it ended before it was ready", why, why_bytes);
	return -ECONNREFUSED;
}

/* A file of MESSAGE_BYTES that cannot grow. */
static int message_file(void)
{
	int fd = memfd_create("samepaged-stderr", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && (ftruncate(fd, MESSAGE_BYTES) < 0 ||
			fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int cli_broker_start(const char *socket_path, char *why, size_t why_bytes)
{
	char path[PATH_MAX];
	int ready[2] = { -1, -1 };
	int message, err;

	find_broker(path, sizeof(path));
	message = message_file();
	if (message < 0 || pipe2(ready, O_CLOEXEC) < 0) {
		err = -errno;
		snprintf(why, why_bytes, "%s", strerror(-err));
		goto out;
	}
	err = spawn(path, socket_path, ready[1], message);
	close(ready[1]);
	if (err < 0)
		snprintf(why, why_bytes, "%s", strerror(-err));
	else
		err = wait_ready(ready[0], message, why, why_bytes);
	close(ready[0]);
out:
	if (message >= 0)
		close(message);
	return err;
}
