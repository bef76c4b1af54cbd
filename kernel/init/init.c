// SPDX-License-Identifier: GPL-2.0-only
/*
 * The first process of the guest: mounts what the tests want, runs a list of commands,
 * tells the outside of them on the second serial port, and powers off.
 *
 * On the kernel's command line:
 *
 *   samepage.list=NAME      run /lists/NAME: lines "SECONDS COMMAND ARGUMENT..."
 *   samepage.nonce=WORD     ends the report, so that no other report is taken for it
 *   samepage.swap=MIB       that much zram as swap
 *   samepage.break=HOW      do harm on purpose, to see that the outside notices: panic, warn,
 *                           hang (a command that does not end), silent (power off without a word)
 *
 * The report is TAP, a document for each command:
 *
 *   # run COMMAND
 *   ... what it printed ...
 *   # exit STATUS           or "# signal N", "# timeout"
 *   # tainted N             at the end: the kernel's own word that something went wrong
 *   # leaks N               if there is kmemleak
 *   # done NONCE COMMANDS
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define WORDS_MAX 32

static int report_fd = 1;

static void write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

__attribute__((format(printf, 1, 2))) static void report(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(line))
		n = sizeof(line) - 1;
	write_all(report_fd, line, (size_t)n);
}

/* A line on the console, among the kernel's own. */
static void console(const char *level, const char *text)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	char line[400];

	if (fd < 0)
		return;
	/* In one write; and not by dprintf(), which asks for a position and is refused. */
	snprintf(line, sizeof(line), "%s%s\n", level, text);
	write_all(fd, line, strlen(line));
	close(fd);
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* The value of a word of the kernel's command line, or NULL; a static buffer for each. */
static const char *option(const char *name)
{
	static char all[2048];
	static char values[8][64];
	static int used;
	char copy[2048], *word, *rest = copy;
	size_t len = strlen(name);

	if (!all[0]) {
		int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, all, sizeof(all) - 1);

		if (fd >= 0)
			close(fd);
		if (n <= 0)
			return NULL;
		all[n] = '\0';
	}
	snprintf(copy, sizeof(copy), "%s", all);
	while ((word = strsep(&rest, " \n"))) {
		if (!strncmp(word, name, len) && word[len] == '=' && used < 8) {
			snprintf(values[used], sizeof(values[0]), "%s", word + len + 1);
			return values[used++];
		}
	}
	return NULL;
}

static void mounts(void)
{
	static const struct {
		const char *type, *at;
	} all[] = {
		{ "proc", "/proc" }, { "sysfs", "/sys" }, { "devtmpfs", "/dev" },
		{ "tmpfs", "/tmp" }, { "tmpfs", "/run" }, { "debugfs", "/sys/kernel/debug" },
		{ "tracefs", "/sys/kernel/tracing" }, { "cgroup2", "/sys/fs/cgroup" },
		{ "tmpfs", "/dev/shm" }, { "devpts", "/dev/pts" },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		mkdir(all[i].at, 0755);
		if (mount(all[i].type, all[i].at, all[i].type, 0, NULL))
			continue; /* not in this kernel: the tests say what they miss */
	}
	if (symlink("/proc/self/fd", "/dev/fd"))
		report("# /dev/fd: %s\n", strerror(errno));
	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	put("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset");
}

/* What mkswap would write: a version, the last page, and the magic word. */
static void swap(const char *mib)
{
	long page = sysconf(_SC_PAGESIZE);
	char *head;
	uint32_t *word;
	char text[32];
	int fd;

	snprintf(text, sizeof(text), "%sM", mib);
	if (!put("/sys/block/zram0/disksize", text)) {
		report("# no zram: %s\n", strerror(errno));
		return;
	}
	head = calloc(1, (size_t)page);
	fd = open("/dev/zram0", O_RDWR | O_CLOEXEC);
	if (fd < 0 || !head) {
		report("# zram: %s\n", strerror(errno));
		return;
	}
	word = (uint32_t *)(void *)(head + 1024);
	word[0] = 1;
	word[1] = (uint32_t)(atol(mib) * 1024 * 1024 / page - 1);
	memcpy(head + page - 10, "SWAPSPACE2", 10);
	write_all(fd, head, (size_t)page);
	fsync(fd);
	close(fd);
	free(head);
	if (swapon("/dev/zram0", 0))
		report("# swapon: %s\n", strerror(errno));
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int words(char *line, char **argv)
{
	int argc = 0;
	char *word;

	while (argc < WORDS_MAX - 1 && (word = strsep(&line, " \t\n")))
		if (*word)
			argv[argc++] = word;
	argv[argc] = NULL;
	return argc;
}

/* What is left of a command, wherever it hid: all but this process and kernel threads. */
static void sweep(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		char path[64], text[2];
		pid_t pid = (pid_t)atol(entry->d_name);
		int fd;

		if (pid <= 1)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, text, 1) == 1)
			kill(pid, SIGKILL);
		close(fd);
	}
	closedir(dir);
	for (int i = 0; i < 50; i++) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		usleep(1000);
	}
}

static void run(const char *seconds, char **argv, const char *whole)
{
	double start = now(), end = start + atof(seconds);
	bool late = false, at_line_start = true;
	char buf[4096], text[300];
	struct pollfd pfd;
	int pipes[2], status;
	pid_t pid;

	report("# run %s\n", whole);
	snprintf(text, sizeof(text), "init: %s", whole);
	console("<6>", text);
	if (pipe2(pipes, O_CLOEXEC)) {
		report("# pipe: %s\n# exit 99\n", strerror(errno));
		return;
	}
	pid = fork();
	if (pid == 0) {
		int null = open("/dev/null", O_RDONLY);

		setsid();
		dup2(null, 0);
		dup2(pipes[1], 1);
		dup2(pipes[1], 2);
		if (chdir("/tests") && chdir("/"))
			_exit(126);
		execv(argv[0], argv);
		dprintf(2, "# %s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(pipes[1]);
	pfd = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
	for (;;) {
		double left = end - now();
		ssize_t n;

		if (left <= 0) {
			late = true;
			kill(-pid, SIGKILL);
			break;
		}
		if (poll(&pfd, 1, (int)(left * 1000) + 1) <= 0)
			continue;
		n = read(pipes[0], buf, sizeof(buf));
		if (n <= 0)
			break;
		at_line_start = buf[n - 1] == '\n';
		write_all(report_fd, buf, (size_t)n);
	}
	close(pipes[0]);
	if (!at_line_start)
		report("\n");
	/* It may have closed its output and live on. */
	while (pid > 0 && waitpid(pid, &status, late ? 0 : WNOHANG) != pid) {
		if (now() >= end) {
			late = true;
			kill(-pid, SIGKILL);
		}
		usleep(1000);
	}
	if (late)
		report("# timeout after %s s\n", seconds);
	else if (pid < 0)
		report("# exit 99\n");
	else if (WIFSIGNALED(status))
		report("# signal %d\n", WTERMSIG(status));
	else
		report("# exit %d\n", WEXITSTATUS(status));
	report("# took %.2f s\n", now() - start);
	sweep();
}

static int run_list(const char *name)
{
	char path[128], line[512], whole[512], *argv[WORDS_MAX];
	int commands = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/lists/%s", name);
	f = fopen(path, "re");
	if (!f) {
		report("# %s: %s\n", path, strerror(errno));
		return 0;
	}
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (line[0] == '#' || !line[strspn(line, " \t")])
			continue;
		snprintf(whole, sizeof(whole), "%s", line + strcspn(line, " \t"));
		if (words(line, argv) < 2)
			continue;
		run(argv[0], argv + 1, whole + strspn(whole, " \t"));
		commands++;
	}
	fclose(f);
	return commands;
}

static void leaks(void)
{
	const char *path = "/sys/kernel/debug/kmemleak";
	static char buf[8192];
	long count = 0;
	ssize_t n;
	int fd;

	if (access(path, F_OK))
		return;
	/* Young objects are not counted, and what one look finds the next may not. */
	sleep(6);
	for (int i = 0; i < 2; i++)
		put(path, "scan");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && (n = read(fd, buf, sizeof(buf) - 1)) > 0) {
		char *line = buf, *next;

		buf[n] = '\0';
		for (; line && *line; line = next) {
			next = strchr(line, '\n');
			if (next)
				*next++ = '\0';
			if (!strncmp(line, "unreferenced object", 19))
				count++;
			report("# kmemleak: %s\n", line);
		}
	}
	if (fd >= 0)
		close(fd);
	report("# leaks %ld\n", count);
}

static void harm(const char *how)
{
	if (!strcmp(how, "panic"))
		put("/proc/sysrq-trigger", "c");
	else if (!strcmp(how, "warn"))
		console("<4>", "WARNING: on purpose");
	else if (!strcmp(how, "silent"))
		reboot(RB_POWER_OFF);
	else if (!strcmp(how, "hang"))
		for (;;)
			pause();
}

int main(void)
{
	const char *list, *nonce, *value;
	char text[32] = "";
	int commands, fd;

	mkdir("/dev", 0755);
	mounts();
	fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0) {
		struct termios tio;

		if (!tcgetattr(fd, &tio)) {
			cfmakeraw(&tio);
			tcsetattr(fd, TCSANOW, &tio);
		}
		report_fd = fd;
	}
	list = option("samepage.list");
	nonce = option("samepage.nonce");
	value = option("samepage.swap");
	if (value)
		swap(value);
	put("/proc/sys/kernel/printk", "7");
	setenv("PATH", "/bin:/tests", 1);
	setenv("HOME", "/tmp", 1);
	value = option("samepage.break");
	if (value)
		harm(value);
	commands = run_list(list ? list : "none");
	leaks();
	fd = open("/proc/sys/kernel/tainted", O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0)
		report("# tainted %ld\n", atol(text));
	report("# done %s %d\n", nonce ? nonce : "-", commands);
	tcdrain(report_fd);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
