/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's settings: KSM's and vm.max_map_count. All that can be written is
 * saved at the start; what differs in the end is put back.
 *
 * By whom: a keeper, forked at the start, in a session of its own and deaf to
 * the terminal. It waits for the end of a pipe that only the driver holds; the
 * pipe ends when the driver does, however that came about, kill -9 included.
 * Then it lets KSM forget the processes that are gone, writes the settings and
 * exits. The driver, where it ends in an orderly way or by a signal that can be
 * caught, kills its children, closes the pipe and waits for the keeper, so that
 * all is as before when the shell shows its prompt; and if the keeper itself
 * was killed, the driver does its work. Only both being killed at the same
 * moment leaves settings changed.
 *
 * Order matters: the advisor forbids writing pages_to_scan, and `run` comes last.
 *
 * What runs in the handler uses only what is safe there: no stdio, no malloc.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define KSM_DIR "/sys/kernel/mm/ksm"
#define MAP_COUNT "/proc/sys/vm/max_map_count"
#define SETTINGS_MAX 40
#define CHILDREN_MAX 8

static struct setting {
	char path[128];
	char value[64];
} saved[SETTINGS_MAX];
static unsigned saved_count;
static int64_t saved_known; /* pages that KSM knew before us */

static volatile pid_t children[CHILDREN_MAX];
static char dir[] = "/tmp/samepage-bench-XXXXXX";
static char socket_path[sizeof(dir) + sizeof("/broker.sock")];
static pid_t keeper;
static int keeper_pipe = -1;

/* One line without its newline; of "[none] scan-time" the choice. */
static bool get(const char *path, char *value, size_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, value, bytes - 1);
	char *from, *to;

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return false;
	value[n] = '\0';
	value[strcspn(value, "\n")] = '\0';
	from = strchr(value, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to) {
		*to = '\0';
		memmove(value, from + 1, (size_t)(to - from));
	}
	return true;
}

static bool put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, value, strlen(value));

	if (fd >= 0)
		close(fd);
	return n == (ssize_t)strlen(value);
}

static void ksm_path(char path[128], const char *name)
{
	strcpy(path, KSM_DIR "/");
	strncat(path, name, 127 - strlen(path));
}

void bench_ksm_set(const char *name, const char *value)
{
	char path[128];

	ksm_path(path, name);
	if (!put(path, value) && keeper)
		bench_die("cannot write %s to %s: %s", value, path, strerror(errno));
}

int64_t bench_ksm_get(const char *name)
{
	char path[128], value[64];

	ksm_path(path, name);
	return get(path, value, sizeof(value)) ? strtoll(value, NULL, 10) : -1;
}

void bench_map_count_at_least(int64_t count)
{
	char value[64];

	if (!get(MAP_COUNT, value, sizeof(value)))
		bench_die("cannot read %s", MAP_COUNT);
	if (strtoll(value, NULL, 10) >= count)
		return;
	snprintf(value, sizeof(value), "%lld", (long long)count);
	if (!put(MAP_COUNT, value))
		bench_die("cannot write %s: %s", MAP_COUNT, strerror(errno));
}

/* --- saving and putting back ---------------------------------------------- */

static void save(const char *path)
{
	struct setting *s = &saved[saved_count];

	if (saved_count == SETTINGS_MAX)
		bench_die("too many settings");
	if (!get(path, s->value, sizeof(s->value)))
		bench_die("cannot read %s", path);
	snprintf(s->path, sizeof(s->path), "%s", path);
	saved_count++;
}

static void save_ksm(void)
{
	DIR *d = opendir(KSM_DIR);
	struct dirent *entry;
	char path[128];
	struct stat st;

	if (!d)
		return; /* a kernel without KSM */
	save(KSM_DIR "/advisor_mode");
	while ((entry = readdir(d)) != NULL) {
		snprintf(path, sizeof(path), KSM_DIR "/%.64s", entry->d_name);
		if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0200) &&
		    strcmp(entry->d_name, "advisor_mode") != 0 && strcmp(entry->d_name, "run") != 0)
			save(path);
	}
	closedir(d);
	save(KSM_DIR "/run");
	saved_known = bench_ksm_known();
}

static int put_back(void)
{
	int failed = 0;
	char now[64];

	for (unsigned i = 0; i < saved_count; i++)
		if (get(saved[i].path, now, sizeof(now)) && strcmp(now, saved[i].value) != 0)
			put(saved[i].path, saved[i].value);
	/* Once more: one may have stood in the way of another. */
	for (unsigned i = 0; i < saved_count; i++)
		if (!get(saved[i].path, now, sizeof(now)) ||
		    (strcmp(now, saved[i].value) != 0 && !put(saved[i].path, saved[i].value)))
			failed++;
	return failed;
}

static int put_all_back(void)
{
	if (saved_known >= 0 && bench_ksm_known() > saved_known)
		bench_ksm_drain(saved_known);
	unlink(socket_path);
	rmdir(dir);
	return put_back();
}

/* --- the keeper ----------------------------------------------------------- */

static void keeper_main(int fd)
{
	char byte;

	setsid();
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_IGN);
	/* Whoever reads our output through a pipe must not wait for the keeper. */
	for (int i = 0; i < 3; i++)
		close(i);
	while (read(fd, &byte, 1) < 0 && errno == EINTR)
		;
	keeper = 0;
	_exit(put_all_back() ? 1 : 0);
}

static int wait_for_keeper(void)
{
	int status = 0;
	pid_t pid = keeper;

	if (!pid)
		return 0;
	keeper = 0;
	for (unsigned i = 0; i < CHILDREN_MAX; i++)
		if (children[i] > 0) {
			kill(children[i], SIGKILL);
			waitpid(children[i], NULL, 0);
			children[i] = 0;
		}
	close(keeper_pipe);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	return put_all_back();
}

static void on_signal(int sig)
{
	static const char text[] = "\nbenchmark stopped; settings are put back\n";

	if (wait_for_keeper() == 0 && write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(1);
	signal(sig, SIG_DFL);
	raise(sig);
	_exit(128 + sig);
}

int bench_settings_restore(void)
{
	int failed;

	/* From here on a signal would find it half done. */
	for (int sig = 1; sig < NSIG; sig++)
		if (sig == SIGINT || sig == SIGTERM || sig == SIGHUP || sig == SIGQUIT)
			signal(sig, SIG_IGN);
	failed = wait_for_keeper();
	if (failed)
		fprintf(stderr, "settings could not be put back\n");
	return failed;
}

static void at_exit(void)
{
	bench_settings_restore();
}

void bench_settings_guard(void)
{
	static const int caught[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	struct sigaction act = { .sa_handler = on_signal };
	int fds[2];

	save(MAP_COUNT);
	save_ksm();
	if (!mkdtemp(dir) || pipe2(fds, O_CLOEXEC) < 0)
		bench_die("no folder or pipe: %s", strerror(errno));
	snprintf(socket_path, sizeof(socket_path), "%s/broker.sock", dir);
	fflush(NULL);
	keeper = fork();
	if (keeper < 0)
		bench_die("fork: %s", strerror(errno));
	if (keeper == 0) {
		close(fds[1]);
		keeper_main(fds[0]);
	}
	close(fds[0]);
	keeper_pipe = fds[1];
	sigfillset(&act.sa_mask);
	for (unsigned i = 0; i < sizeof(caught) / sizeof(*caught); i++)
		sigaction(caught[i], &act, NULL);
	signal(SIGPIPE, SIG_IGN);
	atexit(at_exit);
}

const char *bench_socket(void)
{
	return socket_path;
}

void bench_settings_child(pid_t pid, bool alive)
{
	for (unsigned i = 0; i < CHILDREN_MAX; i++)
		if (children[i] == (alive ? 0 : pid)) {
			children[i] = alive ? pid : 0;
			return;
		}
}
