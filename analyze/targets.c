/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which processes, and who they are.
 *
 * Named ones, those of a cgroup and of everything below it, or all of them but the one
 * that asks. Each look asks again, so that with a cgroup or all of them new ones come in.
 * Kernel threads have no memory: named, that is said; else they are left out.
 *
 * A thread's number stands for its process. Processes that share their memory (vfork, clone
 * with CLONE_VM) are found with kcmp(2), where the kernel has it and lets us: one of them is
 * read, the others are named. Whom to ask about is told by where stack and arguments begin,
 * which nobody moves but an exec.
 *
 * Replicas are processes that execute the same file and whose command lines begin with
 * the same two words: a guess, good enough for what is marked as an estimate.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "analyze/inner.h"
#include "core/hash.h"
#include "sys/raw.h"
#include "sys/sys.h"

#define PF_KTHREAD 0x00200000u
/* Fields of /proc/PID/stat, numbered as proc(5) does. */
#define STAT_STATE 3
#define STAT_FLAGS 9
#define STAT_STARTED 22
#define STAT_START_STACK 28
#define STAT_ARG_START 48
#define REPLICA_WORDS 2
#define CGROUP_DEPTH_MAX 32

/* Text of /proc/PID/file, cut to the buffer and terminated; its length or -errno. */
static ssize_t read_proc(int pid, const char *file, char *buf, size_t bytes)
{
	char path[64];
	size_t have = 0;
	ssize_t n = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	fd = sys->open(path, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	while (have + 1 < bytes && (n = sys->read(fd, buf + have, bytes - 1 - have)) > 0)
		have += (size_t)n;
	sys->close(fd);
	buf[have] = '\0';
	return n < 0 ? n : (ssize_t)have;
}

/* /proc/PID/stat: "pid (name) state ppid ... flags ... starttime": what of it is wanted. */
struct stat_line {
	char name[ANALYZE_COMMAND_BYTES];
	char state;
	unsigned flags;
	uint64_t started;
	uint64_t image; /* of where its stack and arguments begin: another one after exec */
};

static int read_stat(int pid, struct stat_line *s)
{
	char buf[2048];
	ssize_t n = read_proc(pid, "stat", buf, sizeof(buf));
	char *open, *close, *rest, *field;

	if (n < 0)
		return (int)n;
	open = strchr(buf, '(');
	close = strrchr(buf, ')');
	if (n == 0 || !open || !close || close < open)
		return -ESRCH;
	*close = '\0';
	snprintf(s->name, sizeof(s->name), "%s", open + 1);
	rest = close + 1;
	s->started = s->image = 0;
	for (unsigned i = 2; i <= STAT_ARG_START && (field = strsep(&rest, " ")); i++) {
		if (i == STAT_STATE)
			s->state = *field;
		else if (i == STAT_FLAGS)
			s->flags = (unsigned)strtoul(field, NULL, 10);
		else if (i == STAT_STARTED)
			s->started = strtoull(field, NULL, 10);
		else if (i == STAT_START_STACK || i == STAT_ARG_START)
			s->image = s->image * 0x9e3779b97f4a7c15 + strtoull(field, NULL, 10);
	}
	return s->started ? 0 : -EPROTO;
}

/* What is wanted of /proc/PID/status. */
struct status {
	int tgid;
	uid_t uid; /* effective */
	uint64_t locked_kib, pinned_kib, anon_kib;
};

static void take_status(struct status *s, const char *line)
{
	unsigned long long value;
	unsigned uid;

	if (sscanf(line, "Tgid: %llu", &value) == 1)
		s->tgid = (int)value;
	else if (sscanf(line, "Uid: %*u %u", &uid) == 1)
		s->uid = uid;
	else if (sscanf(line, "VmLck: %llu", &value) == 1)
		s->locked_kib = value;
	else if (sscanf(line, "VmPin: %llu", &value) == 1)
		s->pinned_kib = value;
	else if (sscanf(line, "RssAnon: %llu", &value) == 1)
		s->anon_kib = value;
}

/* By lines, however long: the list of groups may have 65536. */
static int read_status(int pid, struct status *s)
{
	char path[64];
	char *line = NULL;
	size_t room = 0;
	FILE *f;

	memset(s, 0, sizeof(*s));
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (getline(&line, &room, f) > 0)
		take_status(s, line);
	free(line);
	fclose(f);
	return s->tgid > 0 ? 0 : -ESRCH;
}

/*
 * Of the hierarchy that accounts for memory: its own in v1, the only one in v2. The hash is
 * of all of the path, which is shown cut.
 */
static void read_cgroup(struct analyze_process *p)
{
	char path[64];
	char *line = NULL;
	size_t room = 0;
	bool memory = false;
	FILE *f;

	p->cgroup_hash = 0;
	snprintf(path, sizeof(path), "/proc/%d/cgroup", p->pid);
	f = fopen(path, "re");
	while (f && !memory && getline(&line, &room, f) > 0) {
		const char *found = strstr(line, ":memory:");

		memory = found != NULL;
		if (!memory && strncmp(line, "0::", 3) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		found = memory ? found + strlen(":memory:") : line + strlen("0::");
		p->cgroup_hash = core_hash_page(found, strlen(found), 0);
		snprintf(p->cgroup, sizeof(p->cgroup), "%s", found);
	}
	free(line);
	if (f)
		fclose(f);
}

static uint64_t program_of(int pid)
{
	char words[512];
	uint64_t inode = 0;
	ssize_t n = read_proc(pid, "cmdline", words, sizeof(words));
	size_t length = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	fd = sys->open(path, O_PATH | O_CLOEXEC, 0);
	if (fd < 0 || n <= 0) {
		if (fd >= 0)
			sys->close(fd);
		return 0;
	}
	sys->inode(fd, &inode);
	sys->close(fd);
	for (unsigned i = 0; i < REPLICA_WORDS && length < (size_t)n; i++)
		length += strnlen(words + length, (size_t)n - length) + 1;
	if (length > (size_t)n)
		length = (size_t)n;
	return core_hash_page(words, length, inode) | 1;
}

static bool is_machine(const char *command)
{
	static const char *const names[] = { "qemu", "kvm", "cloud-hyper", "firecracker", "crosvm",
					     "lkvm", "VBoxHeadless", "VirtualBoxVM" };

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strncmp(command, names[i], strlen(names[i])) == 0)
			return true;
	return false;
}

bool analyze_same(const struct analyze_process *p)
{
	struct stat_line s;

	return read_stat(p->pid, &s) == 0 && s.started == p->started && s.state != 'Z' &&
	       s.state != 'X';
}

bool analyze_alive(int pid)
{
	struct stat_line s;

	return read_stat(pid, &s) == 0 && s.state != 'Z' && s.state != 'X';
}

bool analyze_other_image(const struct analyze_process *p)
{
	struct stat_line s;

	return read_stat(p->pid, &s) == 0 && s.started == p->started && s.image != p->image;
}

int analyze_shares_with(const struct analyze *a, unsigned number)
{
	const struct analyze_process *p = &a->process[number];

	for (unsigned i = 0; i < number; i++) {
		const struct analyze_process *q = &a->process[i];

		if (q->state == ANALYZE_OK && q->image == p->image &&
		    sys_raw(__NR_kcmp, p->pid, q->pid, KCMP_VM, 0, 0) == 0)
			return q->pid;
	}
	return 0;
}

/* There, but not to be seen: /proc may be mounted so (hidepid). */
static bool hidden(int pid)
{
	return kill(pid, 0) < 0 && errno == EPERM;
}

void analyze_identify(struct analyze_process *p)
{
	struct status status;
	struct stat_line s;
	int err = read_stat(p->pid, &s);

	if (err == 0)
		err = read_status(p->pid, &status);
	if (err < 0) {
		p->state = err == -EACCES || err == -EPERM || hidden(p->pid) ?
			   ANALYZE_DENIED : ANALYZE_EXITED;
		p->error = -err;
		return;
	}
	p->started = s.started;
	p->image = s.image;
	memcpy(p->command, s.name, sizeof(p->command));
	p->machine = is_machine(s.name);
	p->uid = status.uid;
	p->locked_bytes = status.locked_kib * 1024;
	p->pinned_bytes = status.pinned_kib * 1024;
	read_cgroup(p);
	p->program = program_of(p->pid);
	if (s.flags & PF_KTHREAD || s.state == 'Z' || s.state == 'X' || p->pid == getpid())
		p->state = ANALYZE_NO_MEMORY;
}

/* the list --------------------------------------------------------------------- */

static int add(struct analyze *a, unsigned *room, int pid, bool named)
{
	struct status status;
	struct stat_line s;

	if (read_status(pid, &status) == 0)
		pid = status.tgid;
	for (unsigned i = 0; i < a->processes; i++)
		if (a->process[i].pid == pid)
			return 0;
	/* who is neither named nor has memory is not worth a word */
	if (!named && (pid == getpid() || read_stat(pid, &s) < 0 || s.flags & PF_KTHREAD ||
		       s.state == 'Z'))
		return 0;
	if (a->processes == *room) {
		unsigned more = *room ? 2 * *room : 64;
		struct analyze_process *grown = reallocarray(a->process, more, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		a->process = grown;
		*room = more;
	}
	a->process[a->processes++] = (struct analyze_process){ .pid = pid };
	a->inner->pages_expected += status.anon_kib * 1024 / sys_page_bytes();
	return 0;
}

static int add_all(struct analyze *a, unsigned *room)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;
	int err = 0;

	if (!dir)
		return -errno;
	while (!err && (e = readdir(dir))) {
		char *end;
		long pid = strtol(e->d_name, &end, 10);

		if (pid > 0 && *end == '\0')
			err = add(a, room, (int)pid, false);
	}
	closedir(dir);
	return err;
}

static int add_cgroup_procs(struct analyze *a, unsigned *room, const char *path)
{
	char name[4096];
	char *line = NULL;
	size_t line_room = 0;
	FILE *f;
	int err = 0;

	snprintf(name, sizeof(name), "%s/cgroup.procs", path);
	f = fopen(name, "re");
	if (!f)
		return -errno;
	while (!err && getline(&line, &line_room, f) > 0) {
		long pid = strtol(line, NULL, 10);

		if (pid > 0) /* 0: of another pid namespace */
			err = add(a, room, (int)pid, false);
	}
	free(line);
	fclose(f);
	return err;
}

static int add_cgroup(struct analyze *a, unsigned *room, const char *path, unsigned depth)
{
	int err = add_cgroup_procs(a, room, path);
	struct dirent *e;
	DIR *dir;

	if (err == -EOPNOTSUPP) /* a threaded cgroup */
		err = 0;
	if (err || depth > CGROUP_DEPTH_MAX)
		return err;
	dir = opendir(path);
	while (dir && !err && (e = readdir(dir))) {
		char below[4096];

		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		if ((size_t)snprintf(below, sizeof(below), "%s/%s", path, e->d_name) >= sizeof(below))
			continue;
		err = add_cgroup(a, room, below, depth + 1);
		if (err == -ENOENT || err == -ENODEV)
			err = 0; /* removed meanwhile */
	}
	if (dir)
		closedir(dir);
	return err;
}

/* A folder, or a name as in /proc/PID/cgroup. */
static int find_cgroup(struct analyze *a, unsigned *room, const char *name)
{
	static const char *const roots[] = { "", "/sys/fs/cgroup/", "/sys/fs/cgroup/memory/",
					     "/sys/fs/cgroup/unified/" };

	for (unsigned i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		char path[4096];
		int err;

		snprintf(path, sizeof(path), "%s%s", roots[i], name);
		err = add_cgroup(a, room, path, 0);
		if (err != -ENOENT && err != -ENOTDIR)
			return err;
	}
	return -ENOENT;
}

static int by_pid(const void *a, const void *b)
{
	const struct analyze_process *x = a, *y = b;

	return (x->pid > y->pid) - (x->pid < y->pid);
}

int analyze_targets(struct analyze *a)
{
	unsigned room = 0;
	int err = 0;

	a->process = NULL;
	a->processes = 0;
	a->inner->pages_expected = 0;
	for (unsigned i = 0; i < a->options.pids && !err; i++)
		err = add(a, &room, a->options.pid[i], true);
	if (!err && a->options.cgroup)
		err = find_cgroup(a, &room, a->options.cgroup);
	if (!err && a->options.all)
		err = add_all(a, &room);
	if (!err && a->processes > 1)
		qsort(a->process, a->processes, sizeof(*a->process), by_pid);
	return err;
}
