/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One address layout for all replicas: the soft stack limit at the moment of an
 * exec decides where the kernel puts mmap_base, and `samepage run --layout shared`
 * (with address randomisation off) chooses it per domain.
 *
 *   SAMEPAGE_STACK_LIMIT    the soft limit that the program is to see, in bytes or
 *                           "unlimited"; our constructor puts it back
 *   SAMEPAGE_LAYOUT_STACK   the raised one, in bytes
 *
 * Both stay in the environment. A program that starts another one through us gets
 * the limit raised just before the exec, but only if the new program will put it
 * back: its environment must carry both, LD_PRELOAD, and no SAMEPAGE_OFF. A soft
 * limit that the program changed meanwhile (ulimit -s) is passed on in a changed
 * copy of SAMEPAGE_STACK_LIMIT.
 *
 *   exec*          raised in the process that execs, put back if the exec fails. In
 *                  a child of vfork or fork the limit is the child's own
 *   posix_spawn*   the exec happens inside libc, in a child that copies the parent's
 *                  limits: raised in the parent for the time of the call. Other
 *                  threads that look at the limit meanwhile see it raised, and a
 *                  child that they fork in that window keeps it. With several
 *                  calls under way the first raises it and the last puts it back;
 *                  a changed limit is then not passed on
 *   system, popen  inside libc: that one program gets the ordinary random
 *                  layout, what it starts in turn the shared one
 *
 * Address randomisation is off for the exec only: our constructor switches it on
 * again (personality(2) belongs to the thread), so that a program which gets no
 * shared layout does not end up with fixed addresses.
 *
 * No malloc: these run in children of vfork.
 */
#include "shim/shim.h"

#include <alloca.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <unistd.h>

#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

#define LIMIT_NAME "SAMEPAGE_STACK_LIMIT="
#define RAISED_NAME "SAMEPAGE_LAYOUT_STACK="
/* A larger environment gets no shared layout: the copy has to fit on the stack. */
#define ENVIRONMENT_MAX 1024
/* What glibc takes for a thread's stack when the limit is unlimited. */
#define UNLIMITED_THREAD_STACK_BYTES (2u << 20)

struct shim_layout shim_layout;

static unsigned spawning; /* calls of posix_spawn under way; memory lock */
static rlim_t spawn_before;

static int get_limit(struct rlimit *limit)
{
	return (int)sys_raw(SYS_prlimit64, 0, RLIMIT_STACK, NULL, limit);
}

static int set_soft(rlim_t soft, rlim_t hard)
{
	struct rlimit limit = { soft, hard };

	return (int)sys_raw(SYS_prlimit64, 0, RLIMIT_STACK, &limit, NULL);
}

/* Address randomisation of what this thread execs. */
static void set_fixed(bool fixed)
{
	long now = sys_raw(SYS_personality, 0xffffffff);

	if (now < 0)
		return;
	sys_raw(SYS_personality, fixed ? now | ADDR_NO_RANDOMIZE : now & ~(long)ADDR_NO_RANDOMIZE);
}

/* --- start ---------------------------------------------------------------- */

static bool parse_limit(const char *text, rlim_t *value)
{
	char *end;

	if (!text || !*text)
		return false;
	if (strcmp(text, "unlimited") == 0) {
		*value = RLIM_INFINITY;
		return true;
	}
	*value = strtoull(text, &end, 10);
	return *end == '\0' && *value > 0;
}

/* glibc took the raised limit for the default size of threads' stacks. */
static void fix_thread_stacks(rlim_t soft)
{
	size_t mask = sys_page_bytes() - 1;
	size_t bytes = UNLIMITED_THREAD_STACK_BYTES;
	pthread_attr_t attr;

	if (soft != RLIM_INFINITY)
		bytes = soft < (rlim_t)PTHREAD_STACK_MIN ? (size_t)PTHREAD_STACK_MIN : (size_t)soft;
	if (pthread_getattr_default_np(&attr) != 0)
		return;
	if (pthread_attr_setstacksize(&attr, (bytes + mask) & ~mask) == 0)
		pthread_setattr_default_np(&attr);
	pthread_attr_destroy(&attr);
}

void shim_layout_start(void)
{
	rlim_t normal, raised;
	struct rlimit now = { 0 };

	if (!parse_limit(getenv("SAMEPAGE_STACK_LIMIT"), &normal) || get_limit(&now) < 0)
		return;
	if (now.rlim_cur != normal) {
		if (set_soft(normal, now.rlim_max) < 0)
			return;
		fix_thread_stacks(normal);
	}
	if (!parse_limit(getenv("SAMEPAGE_LAYOUT_STACK"), &raised))
		return;
	set_fixed(false);
	shim_layout = (struct shim_layout){ .active = true, .raised = raised, .normal = normal };
}

/* --- exec ----------------------------------------------------------------- */

struct exec_call {
	enum { EXEC_PATH, EXEC_AT, EXEC_SEARCH } how;
	int fd;
	int flags;
	const char *path;
	char *const *argv;
};

static int do_exec(const struct exec_call *call, char *const envp[])
{
	switch (call->how) {
	case EXEC_PATH:
		return (int)sys_raw(SYS_execve, call->path, call->argv, envp);
	case EXEC_AT:
		return (int)sys_raw(SYS_execveat, call->fd, call->path, call->argv, envp,
				    call->flags);
	default:
		shim_real()->execvpe(call->path, call->argv, envp);
		return -errno;
	}
}

static bool begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

/* Will the new program put the limit back? *count: entries, *at: the limit's. */
static bool child_is_client(char *const envp[], size_t *count, size_t *at)
{
	bool limit = false, raised = false, preload = false, off = false;
	size_t i;

	for (i = 0; envp && envp[i] && i < ENVIRONMENT_MAX; i++) {
		if (begins(envp[i], LIMIT_NAME)) {
			limit = true;
			*at = i;
		}
		raised |= begins(envp[i], RAISED_NAME);
		preload |= begins(envp[i], "LD_PRELOAD=") && strstr(envp[i], "samepage");
		off |= begins(envp[i], "SAMEPAGE_OFF=1");
	}
	*count = i;
	return limit && raised && preload && !off && i < ENVIRONMENT_MAX;
}

/* `name` and a number, without stdio. */
static void print_number(char *text, const char *name, uint64_t value)
{
	char digits[24];
	size_t n = 0, at = strlen(name);

	strcpy(text, name);
	do
		digits[n++] = (char)('0' + value % 10);
	while ((value /= 10) != 0);
	while (n > 0)
		text[at++] = digits[--n];
	text[at] = '\0';
}

static void print_limit(char text[64], rlim_t value)
{
	if (value == RLIM_INFINITY)
		strcpy(text, LIMIT_NAME "unlimited");
	else
		print_number(text, LIMIT_NAME, value);
}

static void print_fd(char text[48], int fd)
{
	print_number(text, "/proc/thread-self/fd/", fd < 0 ? 0 : (uint64_t)fd);
}

/* Could the next program load the library? Only of interest if it would be told to. */
static bool call_takes_us(const struct exec_call *call, char *const envp[])
{
	if (!shim_env_names_us(envp))
		return true;
	if (shim_filtered())
		return false;
	switch (call->how) {
	case EXEC_PATH:
		return shim_target_takes_us(AT_FDCWD, call->path);
	case EXEC_AT:
		/* fexecve: the file behind the descriptor, if it can be opened again. */
		if (call->flags & AT_EMPTY_PATH && call->path && !*call->path) {
			char name[48];

			print_fd(name, call->fd);
			return shim_target_takes_us(AT_FDCWD, name);
		}
		return shim_target_takes_us(call->fd, call->path);
	default:
		return shim_search_takes_us(call->path);
	}
}

/* 0 is never returned: the program is another one then. */
static int exec_with_layout(const struct exec_call *call, char *const envp[])
{
	char text[64], **copy;
	size_t count = 0, at = 0;
	struct shim_env_plan plan;
	struct rlimit before = { 0 };
	int ret;

	if (shim_env_plan(envp, call_takes_us(call, envp), &plan))
		envp = shim_env_make(envp, &plan, alloca(plan.entries * sizeof(*copy)),
				     alloca(plan.text_bytes));
	if (!shim_layout.active || !child_is_client(envp, &count, &at) || get_limit(&before) < 0 ||
	    set_soft(shim_layout.raised, before.rlim_max) < 0)
		return do_exec(call, envp);
	if (before.rlim_cur != shim_layout.normal && before.rlim_cur != shim_layout.raised) {
		copy = alloca((count + 1) * sizeof(*copy));
		memcpy(copy, envp, (count + 1) * sizeof(*copy));
		print_limit(text, before.rlim_cur);
		copy[at] = text;
		envp = copy;
	}
	set_fixed(true);
	ret = do_exec(call, envp);
	set_fixed(false);
	set_soft(before.rlim_cur, before.rlim_max);
	return ret;
}

int shim_execve(const char *path, char *const argv[], char *const envp[])
{
	const struct exec_call call = { .how = EXEC_PATH, .path = path, .argv = argv };

	return exec_with_layout(&call, envp);
}

int shim_execveat(int fd, const char *path, char *const argv[], char *const envp[], int flags)
{
	const struct exec_call call = { .how = EXEC_AT, .fd = fd, .flags = flags, .path = path,
					.argv = argv };

	return exec_with_layout(&call, envp);
}

SHIM_EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	return (int)shim_return(shim_execve(path, argv, envp));
}

SHIM_EXPORT int execv(const char *path, char *const argv[])
{
	return (int)shim_return(shim_execve(path, argv, environ));
}

SHIM_EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	const struct exec_call call = { .how = EXEC_SEARCH, .path = file, .argv = argv };

	return (int)shim_return(exec_with_layout(&call, envp));
}

SHIM_EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

/* Arguments of execl() and the like, up to and with the NULL. */
static size_t count_list(const char *arg, va_list args)
{
	size_t n = 1;

	for (; arg; n++)
		arg = va_arg(args, const char *);
	return n;
}

/* The list as an array; of execle, the environment that follows it as well. */
static char *const *copy_list(char **argv, const char *arg, va_list args, bool with_envp)
{
	size_t n = 0;

	argv[n++] = (char *)arg;
	while (argv[n - 1])
		argv[n++] = va_arg(args, char *);
	return with_envp ? va_arg(args, char *const *) : environ;
}

#define LIST_TO_ARRAY(argv, envp, arg, with_envp)                                                  \
	do {                                                                                       \
		va_list args_;                                                                     \
		va_start(args_, arg);                                                              \
		(argv) = alloca(count_list(arg, args_) * sizeof(*(argv)));                         \
		va_end(args_);                                                                     \
		va_start(args_, arg);                                                              \
		(envp) = copy_list(argv, arg, args_, with_envp);                                   \
		va_end(args_);                                                                     \
	} while (0)

SHIM_EXPORT int execl(const char *path, const char *arg, ...)
{
	char **argv, *const *envp;

	LIST_TO_ARRAY(argv, envp, arg, false);
	return execve(path, argv, envp);
}

SHIM_EXPORT int execle(const char *path, const char *arg, ...)
{
	char **argv, *const *envp;

	LIST_TO_ARRAY(argv, envp, arg, true);
	return execve(path, argv, envp);
}

SHIM_EXPORT int execlp(const char *file, const char *arg, ...)
{
	char **argv, *const *envp;

	LIST_TO_ARRAY(argv, envp, arg, false);
	return execvpe(file, argv, envp);
}

SHIM_EXPORT int execveat(int fd, const char *path, char *const argv[], char *const envp[],
			 int flags)
{
	return (int)shim_return(shim_execveat(fd, path, argv, envp, flags));
}

SHIM_EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	if (fd < 0) {
		errno = EINVAL;
		return -1;
	}
	return (int)shim_return(shim_execveat(fd, "", argv, envp, AT_EMPTY_PATH));
}

/* --- posix_spawn ---------------------------------------------------------- */

/* The memory lock serves here too: two system calls at most under it. */
static bool spawn_begins(char *const envp[])
{
	struct proc_mem_guard guard;
	size_t count, at;
	struct rlimit now = { 0 };
	bool raised = true;

	if (!shim_layout.active || !child_is_client(envp, &count, &at))
		return false;
	proc_mem_lock(&guard);
	if (spawning == 0) {
		raised = get_limit(&now) == 0 && now.rlim_cur == shim_layout.normal &&
			 set_soft(shim_layout.raised, now.rlim_max) == 0;
		spawn_before = now.rlim_cur;
	}
	if (raised)
		spawning++;
	proc_mem_unlock(&guard);
	return raised;
}

static void spawn_ends(void)
{
	struct proc_mem_guard guard;
	struct rlimit now = { 0 };

	proc_mem_lock(&guard);
	/* Somebody else's new limit meanwhile: his. */
	if (--spawning == 0 && get_limit(&now) == 0 && now.rlim_cur == shim_layout.raised)
		set_soft(spawn_before, now.rlim_max);
	proc_mem_unlock(&guard);
}

SHIM_EXPORT int posix_spawn(pid_t *pid, const char *path,
			    const posix_spawn_file_actions_t *actions,
			    const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	const struct exec_call call = { .how = EXEC_PATH, .path = path };
	struct shim_env_plan plan;
	bool raised;
	int ret;

	if (shim_env_plan(envp, call_takes_us(&call, envp), &plan))
		envp = shim_env_make(envp, &plan, alloca(plan.entries * sizeof(*envp)),
				     alloca(plan.text_bytes));
	raised = spawn_begins(envp);
	if (raised)
		set_fixed(true);
	ret = shim_real()->posix_spawn(pid, path, actions, attr, argv, envp);
	if (raised) {
		set_fixed(false);
		spawn_ends();
	}
	return ret;
}

SHIM_EXPORT int posix_spawnp(pid_t *pid, const char *file,
			     const posix_spawn_file_actions_t *actions,
			     const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	const struct exec_call call = { .how = EXEC_SEARCH, .path = file };
	struct shim_env_plan plan;
	bool raised;
	int ret;

	if (shim_env_plan(envp, call_takes_us(&call, envp), &plan))
		envp = shim_env_make(envp, &plan, alloca(plan.entries * sizeof(*envp)),
				     alloca(plan.text_bytes));
	raised = spawn_begins(envp);
	if (raised)
		set_fixed(true);
	ret = shim_real()->posix_spawnp(pid, file, actions, attr, argv, envp);
	if (raised) {
		set_fixed(false);
		spawn_ends();
	}
	return ret;
}
