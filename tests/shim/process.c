/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every way to make a process, and what must hold in the child: the memory lock is
 * free, the bookkeeping is a true copy (or, after vfork, the parent's own and still
 * right), the signal mask is the caller's. Also the stack limit that goes with a
 * shared address layout, AT_SECURE, and whose the process's signals are.
 *
 * If this failed, children would hang in their first mmap, a setuid program would be
 * influenced by its caller, or a program would wait for a signal that our thread took.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "shimtest.h"

#define CHILD_STACK_BYTES (256u << 10)
#define NORMAL_LIMIT (6u << 20)
#define RAISED_LIMIT (48u << 20)

static size_t page;
static uint8_t *kept; /* owned by the parent before */
static struct rlimit early_limit;

__attribute__((constructor(101))) static void look_early(void)
{
	getrlimit(RLIMIT_STACK, &early_limit);
}

/* In a child: 0 if all is well. */
static int child_checks(void)
{
	uint8_t *p = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigset_t mask;

	if (p == MAP_FAILED || !owned_now(p, 4 * page))
		return 1;
	memset(p, 1, 4 * page);
	if (munmap(p, 4 * page) < 0 || any_owned_now(p, 4 * page))
		return 2;
	if (!owned_now(kept, page) || kept[0] != 0x5a)
		return 3;
	if (sys_raw(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8) < 0 ||
	    !sigismember(&mask, SIGUSR2) || sigismember(&mask, SIGTERM))
		return 4;
	return owned_is_real() ? 0 : 5;
}

static void assert_child_ok(pid_t pid)
{
	int status;

	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, __WALL), pid);
	assert_int_equal(status, 0);
	assert_int_equal(child_checks(), 0);
}

static int deep_fork(int depth)
{
	int status, ret = child_checks();
	pid_t pid;

	if (ret || depth == 0)
		return ret;
	pid = fork();
	if (pid == 0)
		_exit(deep_fork(depth - 1));
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 10 * depth;
}

static void forks(void **state)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(deep_fork(3));
	assert_child_ok(pid);
	pid = _Fork();
	if (pid == 0)
		_exit(deep_fork(2));
	assert_child_ok(pid);
}

static void forks_by_number(void **state)
{
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, size, tls;
	} args = { .exit_signal = SIGCHLD };
	pid_t pid = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);

	if (pid == 0)
		_exit(child_checks());
	assert_child_ok(pid);
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		_exit(child_checks());
	if (pid < 0 && errno == ENOSYS)
		skip();
	assert_child_ok(pid);
#ifdef SYS_fork
	pid = (pid_t)syscall(SYS_fork);
	if (pid == 0)
		_exit(child_checks());
	assert_child_ok(pid);
#endif
}

static int clone_main(void *arg)
{
	return arg == &kept ? child_checks() : 99;
}

static void clones(void **state)
{
	static uint8_t stack[CHILD_STACK_BYTES] __attribute__((aligned(64)));
	uint8_t *top = stack + sizeof(stack);

	assert_child_ok(clone(clone_main, top, SIGCHLD, &kept));
	assert_child_ok(clone(clone_main, top, CLONE_VM | CLONE_VFORK | SIGCHLD, &kept));
	assert_int_equal(clone(NULL, top, SIGCHLD, NULL), -1);
	assert_int_equal(errno, EINVAL);
}

/* The child's mapping is the parent's, and known to it. */
static void vforked(void **state)
{
	static uint8_t *volatile made;
	pid_t pid = vfork();

	if (pid == 0) {
		made = mmap(NULL, 2 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(made, page);
		execl("/bin/true", "true", (char *)NULL);
		_exit(9);
	}
	assert_child_ok(pid);
	assert_false(any_owned_now(made, page));
	assert_true(owned_now(made + page, page));
	munmap(made + page, page);
}

/* The list of arguments arrives whole, and the right environment with it. */
static void lists(void **state)
{
	char *envp[] = { (char *)"WORD=other", NULL };
	static const char script[] = "test \"$#$1$2\" = 2a\"b c\" && test \"$WORD\" = ";
	char mine[128], other[128];
	int status;

	setenv("WORD", "mine", 1);
	snprintf(mine, sizeof(mine), "%smine", script);
	snprintf(other, sizeof(other), "%sother", script);
	for (int how = 0; how < 3; how++) {
		pid_t pid = fork();

		if (pid == 0) {
			if (how == 0)
				execl("/bin/sh", "sh", "-c", mine, "sh", "a", "b c", (char *)NULL);
			else if (how == 1)
				execlp("sh", "sh", "-c", mine, "sh", "a", "b c", (char *)NULL);
			else
				execle("/bin/sh", "sh", "-c", other, "sh", "a", "b c",
				       (char *)NULL, envp);
			_exit(99);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
	unsetenv("WORD");
	assert_int_equal(execl("/nowhere", "x", (char *)NULL), -1);
	assert_int_equal(errno, ENOENT);
	assert_int_equal(execlp("no-such-program-here", "x", (char *)NULL), -1);
	assert_int_equal(errno, ENOENT);
	assert_int_equal(execle("/", "x", (char *)NULL, envp), -1);
	assert_int_equal(errno, EACCES);
}

static void libc_children(void **state)
{
	char *argv[] = { (char *)"true", NULL };
	char line[32] = "";
	pid_t pid;
	FILE *f;

	assert_int_equal(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ), 0);
	assert_child_ok(pid);
	assert_int_equal(posix_spawnp(&pid, "true", NULL, NULL, argv, environ), 0);
	assert_child_ok(pid);
	assert_int_equal(posix_spawn(&pid, "/nowhere", NULL, NULL, argv, environ), ENOENT);
	assert_int_equal(system("exit 3"), 3 << 8);
	f = popen("echo hello", "r");
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof(line), f));
	assert_string_equal(line, "hello\n");
	assert_int_equal(pclose(f), 0);
}

static void failing_exec(void **state)
{
	char *argv[] = { (char *)"x", NULL };

	assert_int_equal(execve("/nowhere", argv, environ), -1);
	assert_int_equal(errno, ENOENT);
	assert_int_equal(execv("/", argv), -1);
	assert_int_equal(errno, EACCES);
	assert_int_equal(execvp("no-such-program-here", argv), -1);
	assert_int_equal(errno, ENOENT);
	assert_int_equal(fexecve(-1, argv, environ), -1);
	assert_int_equal(execveat(-1, "x", argv, environ, 0), -1);
	assert_int_equal(errno, EBADF);
}

/*
 * A child that changes its identity, as daemons do: libc makes every thread of the
 * process do so by a signal (SIGSETXID), and waits for the engine's thread too.
 */
static void changes_identity(void **state)
{
	pid_t pid = fork();

	if (pid == 0) {
		alarm(10);
		_exit(setgid(getgid()) != 0 || setuid(getuid()) != 0);
	}
	assert_child_ok(pid);
}

/* --- stack limit ---------------------------------------------------------- */

static pid_t start_how(int how, const char *self, char *const argv[], char *const envp[])
{
	pid_t pid;

	if (how == 0)
		return posix_spawn(&pid, self, NULL, NULL, argv, envp) == 0 ? pid : -1;
	pid = vfork();
	if (pid == 0) {
		if (how == 1)
			execve(self, argv, envp);
		else
			execvpe(self, argv, envp);
		_exit(99);
	}
	return pid;
}

/* What the started program saw first, and sees now: 0 both as they should be. */
static int report(const char *expect_early, const char *expect_now)
{
	struct rlimit now;

	getrlimit(RLIMIT_STACK, &now);
	return (early_limit.rlim_cur != strtoull(expect_early, NULL, 10)) +
	       2 * (now.rlim_cur != strtoull(expect_now, NULL, 10));
}

/* In a program started with the layout's variables: start others. */
static int layout_main(void)
{
	static char preload[] = "LD_PRELOAD=libsamepage-is-not-here.so";
	static char limit[64], raised[64], early_text[32], now_text[32];
	char *client[] = { preload, limit, raised, NULL };
	char *stranger[] = { limit, raised, NULL };
	char *argv[] = { (char *)"process", (char *)"report", early_text, now_text, NULL };
	struct rlimit now;

	if (!shim_layout.active || getrlimit(RLIMIT_STACK, &now) < 0 ||
	    now.rlim_cur != NORMAL_LIMIT)
		return 50;
	snprintf(limit, sizeof(limit), "SAMEPAGE_STACK_LIMIT=%u", NORMAL_LIMIT);
	snprintf(raised, sizeof(raised), "SAMEPAGE_LAYOUT_STACK=%u", RAISED_LIMIT);
	for (int how = 0; how < 3; how++)
		for (int known = 0; known < 2; known++) {
			int status;
			pid_t pid;

			snprintf(early_text, sizeof(early_text), "%u",
				 known ? RAISED_LIMIT : NORMAL_LIMIT);
			snprintf(now_text, sizeof(now_text), "%u", NORMAL_LIMIT);
			pid = start_how(how, "/proc/self/exe", argv, known ? client : stranger);
			if (waitpid(pid, &status, 0) != pid || status != 0)
				return 10 + how * 2 + known;
			getrlimit(RLIMIT_STACK, &now);
			if (now.rlim_cur != NORMAL_LIMIT)
				return 60 + how;
		}
	return 0;
}

static void stack_limit(void **state)
{
	static char limit[64], raised[64];
	char *argv[] = { (char *)"process", (char *)"layout", NULL };
	char *envp[] = { limit, raised, NULL };
	struct rlimit before, with;
	int status;
	pid_t pid;

	getrlimit(RLIMIT_STACK, &before);
	if (before.rlim_max != RLIM_INFINITY && before.rlim_max < RAISED_LIMIT)
		skip();
	snprintf(limit, sizeof(limit), "SAMEPAGE_STACK_LIMIT=%u", NORMAL_LIMIT);
	snprintf(raised, sizeof(raised), "SAMEPAGE_LAYOUT_STACK=%u", RAISED_LIMIT);
	pid = fork();
	if (pid == 0) {
		with = (struct rlimit){ RAISED_LIMIT, before.rlim_max };
		setrlimit(RLIMIT_STACK, &with);
		execve("/proc/self/exe", argv, envp);
		_exit(99);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* --- AT_SECURE ------------------------------------------------------------ */

static bool copy_self(const char *to)
{
	int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	char buf[65536];
	ssize_t n = -1;

	while (in >= 0 && out >= 0 && (n = read(in, buf, sizeof(buf))) > 0)
		if (write(out, buf, (size_t)n) != n)
			break;
	close(in);
	return n == 0 && fchmod(out, 04755) == 0 && close(out) == 0;
}

static void setuid_program(void **state)
{
	char dir[] = "/tmp/samepage-test-XXXXXX", path[64];
	int status = 0;
	bool copied;
	pid_t pid;

	if (geteuid() != 0 || !mkdtemp(dir))
		skip();
	chmod(dir, 0755);
	snprintf(path, sizeof(path), "%s/secure", dir);
	copied = copy_self(path);
	pid = fork();
	if (pid == 0) {
		if (sys_raw(SYS_setresgid, 65534, 65534, 65534) < 0 ||
		    sys_raw(SYS_setresuid, 65534, 65534, 65534) < 0)
			_exit(77);
		execl(path, "secure", "secure", (char *)NULL);
		_exit(77);
	}
	waitpid(pid, &status, 0);
	unlink(path);
	rmdir(dir);
	if (!copied || (WIFEXITED(status) && WEXITSTATUS(status) == 77))
		skip();
	assert_int_equal(status, 0);
}

static int secure_main(void)
{
	void *p;

	if (!getauxval(AT_SECURE))
		return 77; /* a file system without setuid */
	p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return shim_is_ready() || p == MAP_FAILED || any_owned_now(p, page);
}

/* What somebody sends to the process waits for the program, whoever else reads signals. */
static void signals_are_the_programs(void **state)
{
	const struct timespec now = { 0 }, a_moment = { .tv_nsec = 3000000 };
	union sigval value = { .sival_int = 7 };
	sigset_t all, old, one;
	siginfo_t info;

	(void)state;
	sigfillset(&all);
	assert_int_equal(sigprocmask(SIG_SETMASK, &all, &old), 0);
	for (int turn = 0; turn < 3; turn++) {
		for (int sig = 1; sig <= SIGRTMAX; sig++) {
			if (sigismember(&all, sig) != 1 || sig == SIGKILL || sig == SIGSTOP)
				continue;
			assert_int_equal(sigqueue(getpid(), sig, value), 0);
			nanosleep(&a_moment, NULL);
			sigemptyset(&one);
			sigaddset(&one, sig);
			if (sigtimedwait(&one, &info, &now) != sig)
				fail_msg("signal %d is lost", sig);
			assert_int_equal(info.si_value.sival_int, 7);
		}
	}
	assert_int_equal(sigprocmask(SIG_SETMASK, &old, NULL), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forks),	 cmocka_unit_test(forks_by_number),
		cmocka_unit_test(clones),	 cmocka_unit_test(vforked),
		cmocka_unit_test(lists),	 cmocka_unit_test(libc_children), cmocka_unit_test(failing_exec),
		cmocka_unit_test(changes_identity),
		cmocka_unit_test(signals_are_the_programs),
		cmocka_unit_test(stack_limit),	 cmocka_unit_test(setuid_program),
	};
	sigset_t mask;

	page = sys_page_bytes();
	if (argc == 4 && strcmp(argv[1], "report") == 0)
		return report(argv[2], argv[3]);
	if (argc == 2 && strcmp(argv[1], "layout") == 0)
		return layout_main();
	if (argc == 2 && strcmp(argv[1], "secure") == 0)
		return secure_main();
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	kept = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	kept[0] = 0x5a;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
