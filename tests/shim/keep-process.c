/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Merged memory across fork and exec, and when others look at it and write to it: gdb,
 * ptrace, process_vm_writev, /proc/PID/mem, a core dump. See keep.h.
 */
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include "keep.h"

extern char **environ;

/* --- children -------------------------------------------------------------- */

/* In a child: what it sees, what it may change, its own children. */
static void generation(char *p, unsigned gen, int depth)
{
	pid_t pid;

	show("child sees", p, PAGES, gen);
	memset(p + depth * page, 'c', page);
	madvise(p + (8 + depth) * page, page, MADV_DONTNEED);
	show("child wrote", p, PAGES, gen);
	fflush(stdout);
	if (depth == 0)
		return;
	nap(100);
	pid = fork();
	if (pid == 0) {
		generation(p, gen, depth - 1);
		exit(depth);
	}
	end_of("generation", pid);
	show("as before", p, PAGES, gen);
	fflush(stdout);
}

static int cloned(void *arg)
{
	generation(arg, 3, 1);
	fflush(stdout);
	_exit(7);
}

static void forks(void)
{
	static char stack[256 << 10] __attribute__((aligned(64)));
	char *p = merged_memory(1);
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		generation(p, 1, 3);
		exit(4);
	}
	end_of("fork", pid);
	show("parent", p, PAGES, 1);
	p = merged_memory(2);
	fflush(stdout);
	pid = _Fork();
	if (pid == 0) {
		generation(p, 2, 2);
		fflush(stdout);
		_exit(5);
	}
	end_of("_Fork", pid);
	show("parent", p, PAGES, 2);
	p = merged_memory(3);
	fflush(stdout);
	end_of("clone", clone(cloned, stack + sizeof(stack), SIGCHLD, p));
	show("parent", p, PAGES, 3);
}

static void vforks(void)
{
	char *p = merged_memory(4), *argv[] = { (char *)"true", NULL };
	pid_t pid = vfork();

	if (pid == 0) {
		/* The parent's own memory. */
		p[3 * page] = 'v';
		madvise(p + 5 * page, page, MADV_DONTNEED);
		execv("/bin/true", argv);
		_exit(9);
	}
	end_of("vfork", pid);
	show("parent", p, PAGES, 4);
	posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ);
	end_of("posix_spawn", pid);
	show("parent", p, PAGES, 4);
	printf("system: %d\n", system("exit 3") >> 8);
	show("parent", p, PAGES, 4);
}

static void execs(void)
{
	char *p = merged_memory(5);
	char *argv[] = { (char *)"keep", (char *)"vforks", NULL };

	show("before", p, PAGES, 5);
	fflush(stdout);
	execv("/proc/self/exe", argv);
}

static void fork_advice(void)
{
	char *p = merged_memory(6);
	pid_t pid;

	said("dontfork", madvise(p, 8 * page, MADV_DONTFORK));
	said("wipeonfork", madvise(p + 8 * page, 8 * page, MADV_WIPEONFORK));
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		show("child", p + 8 * page, 8, 6);
		fflush(stdout);
		_exit(*(volatile char *)p);
	}
	end_of("child", pid);
	show("parent", p, PAGES, 6);
	said("dofork", madvise(p, 8 * page, MADV_DOFORK));
	said("keeponfork", madvise(p + 8 * page, 8 * page, 19));
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		show("child", p, PAGES, 6);
		fflush(stdout);
		_exit(0);
	}
	end_of("child", pid);
}

/* --- others look and write -------------------------------------------------- */

#define TIMES 2000
#define MANY 4096u

/* Only what was frozen just then may be refused, with EIO, and then nothing was done. */
static unsigned refused;

static void expect(char *p, unsigned gen)
{
	show("bytes", p, PAGES, gen);
}

/* A child that is stopped for nothing: it merges while its parent writes to it. */
static pid_t make_victim(char **p, unsigned gen, int *go)
{
	int up[2], down[2];
	char c;
	pid_t pid;

	if (pipe(up) || pipe(down))
		_exit(95);
	fflush(stdout);
	*p = memory(gen);
	pid = fork();
	if (pid == 0) {
		close(down[1]);
		munmap(*p, PAGES * page);
		*p = mmap(*p, PAGES * page, RW, ANON | MAP_FIXED, -1, 0);
		fill(*p, PAGES, gen);
		wait_merged(*p, PAGES * page, PAGES);
		if (write(up[1], "m", 1) != 1 || read(down[0], &c, 1) < 0)
			_exit(94);
		show("victim", *p, PAGES, gen);
		fflush(stdout);
		_exit(0);
	}
	close(down[0]);
	close(up[1]);
	if (read(up[0], &c, 1) != 1)
		_exit(NEVER_MERGED);
	close(up[0]);
	*go = down[1];
	return pid;
}

static void vm_writev(void)
{
	char *p, text[64], got[64];
	struct iovec local = { text, sizeof(text) }, back = { got, sizeof(got) }, remote;
	unsigned bad = 0;
	int go;
	pid_t pid = make_victim(&p, 10, &go);

	for (unsigned i = 0; i < TIMES; i++) {
		memset(text, (int)i, sizeof(text));
		remote = (struct iovec){ p + (i % PAGES) * page + 64 * (i % 7), sizeof(text) };
		bad += process_vm_writev(pid, &local, 1, &remote, 1, 0) != sizeof(text);
		bad += process_vm_readv(pid, &back, 1, &remote, 1, 0) != sizeof(text);
		bad += memcmp(text, got, sizeof(text)) != 0;
	}
	printf("bad: %u\n", bad);
	fflush(stdout);
	close(go);
	end_of("victim", pid);
}

static void traced(void)
{
	unsigned bad = 0;
	char *p;
	int go, status;
	pid_t pid = make_victim(&p, 11, &go);

	said("seize", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
	said("interrupt", ptrace(PTRACE_INTERRUPT, pid, NULL, NULL));
	waitpid(pid, &status, __WALL);
	for (unsigned i = 0; i < TIMES; i++) {
		char *at = p + (i % PAGES) * page + 8 * (i % 11);
		unsigned tries = 0;

		while (ptrace(PTRACE_POKEDATA, pid, at, (void *)(uintptr_t)(i + 1)) < 0) {
			refused++;
			if (errno != EIO || ++tries > 1000) {
				bad++;
				break;
			}
		}
		for (tries = 0; tries < 1000; tries++) {
			long word;

			errno = 0;
			word = ptrace(PTRACE_PEEKDATA, pid, at, NULL);
			if (errno == 0) {
				bad += word != (long)(i + 1);
				break;
			}
			refused++;
		}
	}
	said("detach", ptrace(PTRACE_DETACH, pid, NULL, NULL));
	printf("bad: %u\n", bad);
	fprintf(stderr, "refused %u\n", refused);
	fflush(stdout);
	close(go);
	end_of("victim", pid);
}

/* Its own /proc/self/mem while all of it is merged over and over. */
static void self_mem_by(int (*open_mem)(void))
{
	char *p = merged_memory(12), text[32], got[32];
	unsigned bad = 0, failed = 0;
	int fd = open_mem();

	expect(p, 12);
	for (unsigned turn = 0; turn < 10; turn++) {
		char *q = mmap(NULL, MANY * page, RW, ANON, -1, 0);

		fill(q, MANY, 13 + turn % 2);
		for (unsigned i = 0; i < 60000; i++) {
			/* The same to each page in turn, so that they go on being alike. */
			char *at = q + (size_t)(i * 7 % MANY) * page + i / MANY;

			memset(text, (int)(i / MANY), sizeof(text));
			failed += pwrite(fd, text, sizeof(text), (off_t)(uintptr_t)at) !=
				  sizeof(text);
			failed += pread(fd, got, sizeof(got), (off_t)(uintptr_t)at) != sizeof(got);
			bad += memcmp(at, text, sizeof(text)) != 0 ||
			       memcmp(got, text, sizeof(text)) != 0;
		}
		munmap(q, MANY * page);
	}
	printf("bad %u failed %u\n", bad, failed);
	said("write", pwrite(fd, "hello", 5, (off_t)(uintptr_t)(p + 5 * page)));
	mprotect(p, PAGES * page, PROT_READ);
	said("write protected", pwrite(fd, "hello", 5, (off_t)(uintptr_t)(p + 6 * page)));
	said("read", pread(fd, got, 5, (off_t)(uintptr_t)(p + 7 * page)));
	expect(p, 12);
}

static int by_open(void)
{
	return open("/proc/self/mem", O_RDWR | O_CLOEXEC);
}

static int by_openat2(void)
{
	struct open_how how = { .flags = O_RDWR | O_CLOEXEC };

	return (int)syscall(SYS_openat2, AT_FDCWD, "/proc/self/mem", &how, sizeof(how));
}

static int by_freopen(void)
{
	FILE *f = freopen("/proc/self/mem", "r+", stdin);

	return f ? fileno(f) : -1;
}

static void self_mem(void)
{
	self_mem_by(by_open);
}

static void self_mem_openat2(void)
{
	self_mem_by(by_openat2);
}

static void self_mem_freopen(void)
{
	self_mem_by(by_freopen);
}

/* What gdb is to do with us, with our addresses in place of the %p. */
static int debug(const char *script, const char *p)
{
	char text[1024], line[64], pid[16];
	pid_t child;
	int status, fd;

	snprintf(text, sizeof(text), script, p + 3 * page, p + 4 * page + 100, p + 50 * page);
	snprintf(pid, sizeof(pid), "%d", getpid());
	snprintf(line, sizeof(line), "gdb.%d", getpid());
	fd = open(line, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(93);
	close(fd);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	fflush(stdout);
	child = fork();
	if (child == 0) {
		unsetenv("LD_PRELOAD");
		fd = open("gdb.out", O_CREAT | O_TRUNC | O_WRONLY, 0600);
		dup2(fd, 1);
		dup2(fd, 2);
		execlp("gdb", "gdb", "-q", "-nx", "-batch", "-p", pid, "-x", line, (char *)NULL);
		_exit(127);
	}
	waitpid(child, &status, 0);
	return WEXITSTATUS(status);
}

static void show_lines(const char *file, const char *with)
{
	char line[512];
	FILE *f = fopen(file, "re");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, with, strlen(with)) == 0)
			fputs(line, stdout);
	if (f)
		fclose(f);
}

static void debugged(void)
{
	char *p = merged_memory(15);
	int ret = debug("printf \"SAW %%lx\\n\", *(long *)%p\n"
			"set var *(long *)%p = 0x1122334455667788\n"
			"printf \"SAW %%lx\\n\", *(long *)%p\ndetach\n", p);

	if (ret == 127) {
		puts("SKIP no gdb");
		return;
	}
	printf("gdb: %d\n", ret);
	show_lines("gdb.out", "SAW");
	expect(p, 15);
}

/* --- core dumps -------------------------------------------------------------- */

/* The line that show() would print, of memory in a core file by gdb's. */
static void show_core(const char *core, const char *p, unsigned gen)
{
	char command[512];
	FILE *f;
	char *copy = calloc(PAGES, page);

	snprintf(command, sizeof(command),
		 "gdb -q -nx -batch -ex 'dump binary memory core.bin %p %p' /proc/self/exe %s "
		 ">dump.out 2>&1", p, p + PAGES * page, core);
	unsetenv("LD_PRELOAD");
	unlink("core.bin");
	printf("dumped: %d\n", system(command));
	f = fopen("core.bin", "re");
	printf("read: %zu\n", f ? fread(copy, page, PAGES, f) : 0);
	show("core", copy, PAGES, gen);
	if (f)
		fclose(f);
	free(copy);
}

static void gcore(void)
{
	char *p = merged_memory(16);
	int ret;

	p[9 * page] ^= 1;
	ret = debug("generate-core-file core.gdb\ndetach\n", p);
	if (ret == 127) {
		puts("SKIP no gdb");
		return;
	}
	printf("gdb: %d\n", ret);
	show_lines("gdb.out", "warning: Memory read failed");
	show_core("core.gdb", p, 16);
}

/* One that the kernel writes, where its pattern is a file of the current folder. */
static void kernel_core(void)
{
	char pattern[128] = "", name[64], *p, *q;
	struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	FILE *f = fopen("/proc/sys/kernel/core_pattern", "re");
	pid_t pid;

	if (!f || !fgets(pattern, sizeof(pattern), f) || strcmp(pattern, "core\n") != 0 ||
	    setrlimit(RLIMIT_CORE, &all) < 0 || system("gdb --version >gdb.v 2>&1") != 0) {
		puts("SKIP no core files here, or no gdb");
		return;
	}
	fclose(f);
	p = merged_memory(17);
	q = merged_memory(18);
	p[9 * page] ^= 1;
	madvise(q, 8 * page, MADV_DONTDUMP);
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		abort();
	end_of("child", pid);
	snprintf(name, sizeof(name), "core.%d", pid);
	if (access(name, R_OK) < 0)
		strcpy(name, "core");
	show_core(name, p, 17);
	show_core(name, q, 18); /* incomplete: gdb refuses */
}

int main(int argc, char **argv)
{
	static const struct keep_case cases[] = {
		{ "forks", forks },	{ "vforks", vforks },	  { "execs", execs },
		{ "fork_advice", fork_advice }, { "vm_writev", vm_writev },
		{ "traced", traced },	{ "self_mem", self_mem },
		{ "self_mem_openat2", self_mem_openat2 },
		{ "self_mem_freopen", self_mem_freopen }, { "debugged", debugged },
		{ "gcore", gcore },	{ "kernel_core", kernel_core },
	};

	return keep_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
