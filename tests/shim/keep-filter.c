/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Merged memory, and a userfaultfd or a seccomp filter of the program's own; see keep.h. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "keep.h"

/* --- a userfaultfd of its own ------------------------------------------------ */

static _Atomic unsigned served;

static void *serve(void *arg)
{
	int fd = *(int *)arg;
	char *bytes = aligned_alloc(page, page);
	struct uffd_msg msg;
	struct pollfd poll_it = { fd, POLLIN, 0 };

	memset(bytes, 'u', page);
	while (poll(&poll_it, 1, 10000) > 0 && read(fd, &msg, sizeof(msg)) == sizeof(msg)) {
		struct uffdio_copy copy = { .dst = msg.arg.pagefault.address & ~(page - 1),
					    .src = (uintptr_t)bytes, .len = page };

		if (msg.event != UFFD_EVENT_PAGEFAULT)
			break;
		if (ioctl(fd, UFFDIO_COPY, &copy) == 0)
			served++;
	}
	return NULL;
}

static _Atomic bool writing = true;
static _Atomic unsigned long written;

/* Writes all the time: none of it may be lost while memory is brought home. */
static void *writer(void *arg)
{
	volatile unsigned long *at = arg;

	while (writing) {
		at[0] = at[0] + 1;
		written++;
	}
	return NULL;
}

static void own_uffd(void)
{
	char *p = merged_memory(19), *q = merged_memory(20);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, PAGES * page },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t t, w;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0) {
		puts("SKIP no userfaultfd");
		return;
	}
	p[20 * page] ^= 1; /* written after its merge */
	memset(p + 30 * page, 0, page);
	pthread_create(&w, NULL, writer, p + 30 * page);
	nap(5);
	said("register", ioctl(fd, UFFDIO_REGISTER, &reg));
	nap(5);
	writing = false;
	pthread_join(w, NULL);
	printf("lost: %lu\n", written - *(unsigned long *)(p + 30 * page));
	memset(p + 30 * page, 0, page);
	show("registered", p, PAGES, 19);
	pthread_create(&t, NULL, serve, &fd);
	said("dontneed", madvise(p + 8 * page, 24 * page, MADV_DONTNEED));
	show("served", p, PAGES, 19);
	nap(300);
	show("later", p, PAGES, 19);
	printf("served %u\n", served);
	reg.range.start = (uintptr_t)q;
	said("by number", syscall(SYS_ioctl, fd, UFFDIO_REGISTER, &reg));
	said("dontneed", syscall(SYS_madvise, q, 4 * page, (long)MADV_DONTNEED));
	show("served", q, PAGES, 20);
	reg.range.start = 1;
	said("unaligned", ioctl(fd, UFFDIO_REGISTER, &reg));
	said("no memory", ioctl(fd, UFFDIO_REGISTER, NULL));
	/* Unmapped while registered: nothing left behind. */
	said("munmap", munmap(q, PAGES * page));
}

/* The request in an int, as many wrappers of ioctl have it: it has the sign bit set. */
static void own_uffd_int(void)
{
	char *p = merged_memory(26);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), request = (int)UFFDIO_REGISTER;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)p, PAGES * page },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { .range = { (uintptr_t)p, 4 * page } };

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0) {
		puts("SKIP no userfaultfd");
		return;
	}
	said("register", ioctl(fd, request, &reg));
	printf("ioctls %llx\n", (unsigned long long)reg.ioctls);
	show("registered", p, PAGES, 26);
	said("dontneed", madvise(p, 4 * page, MADV_DONTNEED));
	/* EEXIST if something is there already, that is, if nobody would be told. */
	said("zeropage", ioctl(fd, UFFDIO_ZEROPAGE, &zero));
	show("served", p, PAGES, 26);
}

/* --- a seccomp filter of its own ---------------------------------------------- */

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF_CALL(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##n, 0, 1)
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, what)
#define ALLOW(n) IF_CALL(n), ANSWER(SECCOMP_RET_ALLOW)

static long install(struct sock_filter *code, size_t n, unsigned flags, bool by_prctl)
{
	struct sock_fprog program = { (unsigned short)n, code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (by_prctl)
		return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
	return syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, (long)flags, &program);
}

/* All that these cases themselves do under it; whatever else is called kills. */
static long lock_down(unsigned flags, bool by_prctl)
{
	struct sock_filter code[] = {
		LOAD(nr), ALLOW(write), ALLOW(madvise), ALLOW(munmap), ALLOW(mmap), ALLOW(brk),
		ALLOW(exit), ALLOW(exit_group), ALLOW(clock_nanosleep), ALLOW(nanosleep),
		ALLOW(mremap), ALLOW(mprotect), ALLOW(wait4), ALLOW(clone), ALLOW(newfstatat),
		ALLOW(rt_sigprocmask), ALLOW(set_robust_list), ALLOW(gettid), ALLOW(getpid),
		ALLOW(futex), ANSWER(SECCOMP_RET_KILL_PROCESS),
	};

	return install(code, sizeof(code) / sizeof(code[0]), flags, by_prctl);
}

static void under_filter(unsigned flags, bool by_prctl)
{
	char *p = merged_memory(21);
	pid_t pid;

	p[33 * page] ^= 1;
	show("before", p, PAGES, 21);
	said("filter", lock_down(flags, by_prctl));
	show("under it", p, PAGES, 21);
	said("dontneed", madvise(p, 8 * page, MADV_DONTNEED));
	said("dontneed written", madvise(p + 33 * page, page, MADV_DONTNEED));
	show("under it", p, PAGES, 21);
	p = mremap(p, PAGES * page, (PAGES + 8) * page, MREMAP_MAYMOVE);
	show("grown", p, PAGES + 8, 21);
	nap(1500); /* many passes */
	show("later", p, PAGES, 21);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		nap(500);
		show("child", p, PAGES, 21);
		fflush(stdout);
		_exit(3);
	}
	end_of("child", pid);
	said("munmap", munmap(p, PAGES * page));
}

static void filter_tsync(void)
{
	under_filter(SECCOMP_FILTER_FLAG_TSYNC, false);
}

static void filter_own(void)
{
	under_filter(0, true);
}

/* One that forbids what no part of us does: merging goes on. */
static void filter_harmless(void)
{
	struct sock_filter code[] = {
		LOAD(nr), IF_CALL(swapon), ANSWER(SECCOMP_RET_KILL_PROCESS),
		IF_CALL(reboot), ANSWER(SECCOMP_RET_ERRNO | 1), ANSWER(SECCOMP_RET_ALLOW),
	};
	char *p;

	said("filter", install(code, sizeof(code) / sizeof(code[0]), SECCOMP_FILTER_FLAG_TSYNC,
			       false));
	p = merged_memory(22);
	show("bytes", p, PAGES, 22);
	said("dontneed", madvise(p, 8 * page, MADV_DONTNEED));
	show("bytes", p, PAGES, 22);
	said("reboot", syscall(SYS_reboot, 0L, 0L, 0L, NULL));
}

static void napping(void)
{
	char *p = memory(24);

	nap(1000);
	show("bytes", p, PAGES, 24);
	said("mode", prctl(PR_GET_SECCOMP));
}

/* The next program is under the filter, too. */
static void filter_exec(void)
{
	struct sock_filter code[] = {
		LOAD(nr), IF_CALL(userfaultfd), ANSWER(SECCOMP_RET_KILL_PROCESS),
		IF_CALL(process_vm_readv), ANSWER(SECCOMP_RET_KILL_PROCESS),
		IF_CALL(memfd_create), ANSWER(SECCOMP_RET_TRAP), ANSWER(SECCOMP_RET_ALLOW),
	};
	char *p = merged_memory(25), *argv[] = { (char *)"keep", (char *)"napping", NULL };

	said("filter", install(code, sizeof(code) / sizeof(code[0]), 0, true));
	show("bytes", p, PAGES, 25);
	fflush(stdout);
	execv("/proc/self/exe", argv);
}

extern char **environ;

static struct sock_filter no_userfaultfd[] = {
	LOAD(nr), IF_CALL(userfaultfd), ANSWER(SECCOMP_RET_KILL_PROCESS),
	ANSWER(SECCOMP_RET_ALLOW),
};

/* With an environment from before the filter, and by way of libc's own `environ`. */
static void filter_exec_saved(void)
{
	char *p = merged_memory(27), *saved[512], *argv[] = { (char *)"keep", (char *)"napping", NULL };
	size_t n = 0;
	pid_t pid;

	for (; environ[n] && n < 511; n++)
		saved[n] = strdup(environ[n]);
	saved[n] = NULL;
	said("filter", install(no_userfaultfd, 4, 0, true));
	show("bytes", p, PAGES, 27);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		execve("/proc/self/exe", argv, saved);
		_exit(9);
	}
	end_of("saved environment", pid);
	printf("spawn %d\n", posix_spawnp(&pid, "sleep", NULL, NULL,
		(char *[]){ (char *)"sleep", (char *)"0.5", NULL }, saved));
	end_of("spawned", pid);
	printf("system %d\n", system("sleep 0.5"));
}

/* Calls that only handlers make, in place of what the program called. */
static void filter_handlers(void)
{
	struct sock_filter code[] = {
		LOAD(nr), IF_CALL(msync), ANSWER(SECCOMP_RET_KILL_PROCESS),
		IF_CALL(fstatfs), ANSWER(SECCOMP_RET_KILL_PROCESS),
		IF_CALL(faccessat), ANSWER(SECCOMP_RET_KILL_PROCESS), ANSWER(SECCOMP_RET_ALLOW),
	};
	char *p = merged_memory(30), *argv[] = { (char *)"true", NULL };

	said("filter", install(code, sizeof(code) / sizeof(code[0]), 0, false));
	said("mergeable", madvise(p, page, MADV_MERGEABLE));
	printf("mem %d\n", open("/proc/self/mem", O_RDONLY | O_CLOEXEC) >= 0);
	show("bytes", p, PAGES, 30);
	fflush(stdout);
	execvp("true", argv);
}

/* A child of vfork has a filter of its own: its parent goes on as before. */
static void filter_vfork(void)
{
	char *argv[] = { (char *)"sleep", (char *)"0.5", NULL }, *p;
	pid_t pid = vfork();

	if (pid == 0) {
		install(no_userfaultfd, 4, 0, false);
		execv("/bin/sleep", argv);
		_exit(9);
	}
	end_of("child", pid);
	printf("off: %s\n", getenv("SAMEPAGE_OFF") ? "yes" : "no");
	p = merged_memory(28);
	pid = vfork();
	if (pid == 0) {
		install(no_userfaultfd, 4, 0, true);
		execvp("sleep", argv);
		_exit(9);
	}
	end_of("child", pid);
	show("parent", p, PAGES, 28);
	merged_memory(29); /* new memory of the parent is merged still */
}

static void filter_wrong(void)
{
	struct sock_filter code[] = { LOAD(nr) };
	char *p = merged_memory(23);

	said("no return", install(code, 1, SECCOMP_FILTER_FLAG_TSYNC, false));
	said("no program", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL));
	said("odd flags", install(code, 1, 1u << 30, false));
	said("mode", prctl(PR_GET_SECCOMP));
	show("bytes", p, PAGES, 23);
}

int main(int argc, char **argv)
{
	static const struct keep_case cases[] = {
		{ "own_uffd", own_uffd }, { "own_uffd_int", own_uffd_int },
		{ "filter_tsync", filter_tsync }, { "filter_own", filter_own },
		{ "filter_harmless", filter_harmless }, { "filter_exec", filter_exec },
		{ "filter_exec_saved", filter_exec_saved }, { "filter_vfork", filter_vfork },
		{ "filter_handlers", filter_handlers },
		{ "filter_wrong", filter_wrong }, { "napping", napping },
	};

	return keep_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
