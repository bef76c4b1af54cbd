/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fork among locks that are not ours. If these failed, a program whose fork handlers
 * or allocator hold a lock under which other threads map memory (jemalloc does), or
 * whose signal handlers map memory while malloc is at work, would hang for ever in
 * fork with all signals blocked; so would a child whose libraries map memory in their handlers. And memory advice that waits for another thread of
 * the program must not hold up that thread's mmap.
 *
 * Each case runs in a child, so that a hang is a failure and not the end.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shimtest.h"

#define FORKS 1000

static pthread_mutex_t theirs = PTHREAD_MUTEX_INITIALIZER;

static void take_theirs(void)
{
	pthread_mutex_lock(&theirs);
}

static void give_theirs(void)
{
	pthread_mutex_unlock(&theirs);
}

static atomic_bool children_map;

static void map_and_unmap(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p != MAP_FAILED)
		munmap(p, 4096);
}

static void in_the_child(void)
{
	if (children_map)
		map_and_unmap();
	give_theirs();
}

/* Before any constructor, as an allocator that is used early does. */
static void early(int argc, char **argv, char **envp)
{
	(void)argc;
	(void)argv;
	(void)envp;
	pthread_atfork(take_theirs, give_theirs, in_the_child);
}
__attribute__((section(".preinit_array"), used)) static void (*run_early)(int, char **,
									  char **) = early;

static void fork_many(void)
{
	for (int i = 0; i < FORKS; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid > 0)
			waitpid(pid, NULL, 0);
	}
}

static void *map_all_the_time(void *arg)
{
	for (;;)
		map_and_unmap();
	return arg;
}

/* The parent's other thread may be in the middle of a mapping, and is not there. */
static void children_map_case(void)
{
	pthread_t thread;

	children_map = true;
	pthread_create(&thread, NULL, map_all_the_time, NULL);
	fork_many();
}

/* In a child, 30 seconds at most: did it end by itself, and well? */
static void in_child(void (*fn)(void))
{
	pid_t pid = fork();
	int status = 0;

	assert_true(pid >= 0);
	if (pid == 0) {
		fn();
		_exit(0);
	}
	for (int i = 0; i < 3000; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			assert_int_equal(status, 0);
			return;
		}
		usleep(10000);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	fail_msg("it hangs");
}

static void *map_under_their_lock(void *arg)
{
	for (;;) {
		take_theirs();
		map_and_unmap();
		give_theirs();
	}
	return arg;
}

static void handlers_case(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, map_under_their_lock, NULL);
	fork_many();
}

static void test_other_fork_handlers(void **state)
{
	(void)state;
	in_child(handlers_case);
}

static void test_childrens_handlers_map(void **state)
{
	(void)state;
	in_child(children_map_case);
}

static void on_signal(int sig)
{
	(void)sig;
	map_and_unmap();
}

static void *allocate(void *arg)
{
	void *kept[64] = { NULL };

	for (unsigned i = 0;; i++) {
		free(kept[i % 64]);
		kept[i % 64] = malloc(2000 + i % 3000);
	}
	return arg;
}

static void *pester(void *arg)
{
	for (;;) {
		pthread_kill(*(pthread_t *)arg, SIGUSR1);
		usleep(20);
	}
	return NULL;
}

static void signals_case(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	static pthread_t worker, pesterer;

	sigaction(SIGUSR1, &sa, NULL);
	pthread_create(&worker, NULL, allocate, NULL);
	pthread_create(&pesterer, NULL, pester, &worker);
	fork_many();
}

static void test_signals_in_malloc(void **state)
{
	(void)state;
	in_child(signals_case);
}

/* A thread that serves another's missing pages, and maps memory first. */
struct server {
	int fd;
	size_t page;
};

static void *serve(void *arg)
{
	const struct server *server = arg;
	struct uffd_msg msg;
	struct uffdio_copy copy = { .len = server->page };
	void *page;

	if (read(server->fd, &msg, sizeof(msg)) != sizeof(msg))
		return NULL;
	page = mmap(NULL, server->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*(char *)page = 7;
	copy.src = (uintptr_t)page;
	copy.dst = msg.arg.pagefault.address & ~(uint64_t)(server->page - 1);
	ioctl(server->fd, UFFDIO_COPY, &copy);
	return NULL;
}

static void populate_case(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct server server = { .page = (size_t)sysconf(_SC_PAGESIZE) };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;
	char *p = mmap(NULL, server.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	server.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (server.fd < 0)
		return; /* not permitted: nothing to wait for */
	reg.range.start = (uintptr_t)p;
	reg.range.len = server.page;
	if (ioctl(server.fd, UFFDIO_API, &api) < 0 || ioctl(server.fd, UFFDIO_REGISTER, &reg) < 0)
		_exit(1);
	pthread_create(&thread, NULL, serve, &server);
	madvise(p, server.page, 23 /* MADV_POPULATE_WRITE */);
	_exit(*p == 7 ? 0 : 2);
}

static void test_advice_that_waits(void **state)
{
	(void)state;
	in_child(populate_case);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_other_fork_handlers),
		cmocka_unit_test(test_childrens_handlers_map),
		cmocka_unit_test(test_signals_in_malloc),
		cmocka_unit_test(test_advice_that_waits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
