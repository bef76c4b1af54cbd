/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the engine thread of a client stands on: a descriptor table of its own,
 * all signals blocked, futexes, clocks, a place behind others. If this failed, the
 * thread would close the program's descriptors, or open the wrong file by a right number.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include "sys_test.h"

static ino_t inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

struct own_table {
	int fd;
	ino_t outside; /* what fd is in the process */
	ino_t inside;  /* what the same number became in the thread */
	ino_t reopened;
	int ended;
};

static void *with_own_table(void *arg)
{
	struct own_table *t = arg;
	char byte;
	int fd, ro;

	t->ended = sys->close_range_unshare(0, UINT32_MAX);
	if (t->ended < 0 || sys->read(t->fd, &byte, 1) != -EBADF)
		return NULL;
	/* fill up to the same number */
	do
		fd = sys->memfd_create("inside", MFD_CLOEXEC);
	while (fd >= 0 && fd < t->fd);
	t->inside = inode_of(fd);
	ro = sys->reopen_ro(fd);
	t->reopened = inode_of(ro);
	t->ended = 1;
	return t;
}

static void a_thread_gets_a_table_of_its_own(void **state)
{
	struct own_table t = { .fd = sys->memfd_create("outside", MFD_CLOEXEC) };
	pthread_t thread;

	(void)state;
	t.outside = inode_of(t.fd);
	assert_int_equal(pthread_create(&thread, NULL, with_own_table, &t), 0);
	pthread_join(thread, NULL);
	if (t.ended == -ENOSYS) {
		sys->close(t.fd);
		SKIP("this kernel has no close_range");
	}
	assert_int_equal(t.ended, 1);
	assert_true(inode_of(t.fd) == t.outside && t.outside != 0);
	assert_true(t.inside != t.outside);
	assert_true(t.reopened == t.inside); /* through thread-self, not self */
	sys->close(t.fd);
}

static uint64_t blocked_now(void)
{
	char text[8192];
	int fd = sys->open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC, 0);
	ssize_t n = sys->read(fd, text, sizeof(text) - 1);
	char *at;

	assert_true(n > 0);
	sys->close(fd);
	text[n] = '\0';
	at = strstr(text, "SigBlk:");
	assert_non_null(at);
	return strtoull(at + 7, NULL, 16);
}

static void all_signals_are_blocked_and_come_back(void **state)
{
	uint64_t before = blocked_now();
	uint64_t all = ~(UINT64_C(1) << (SIGKILL - 1) | UINT64_C(1) << (SIGSTOP - 1));
	sigset_t old;

	(void)state;
	sys_sigmask_block_all(&old);
	assert_true(blocked_now() == all); /* 32 and 33 too, which libc would spare */
	for (int sig = 1; sig < 32; sig++)
		assert_int_equal(sigismember(&old, sig), before >> (sig - 1) & 1);
	sys_sigmask_restore(&old);
	assert_true(blocked_now() == before);
}

static void a_signal_comes_through_the_descriptor(void **state)
{
	struct signalfd_siginfo info;
	sigset_t old, set;
	int fd;

	(void)state;
	sys_sigmask_block_all(&old);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	fd = sys->signalfd(-1, &set);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(sys->read(fd, &info, sizeof(info)), -EAGAIN);
	assert_int_equal(sys->tgkill(getpid(), sys_gettid(), SIGUSR1), 0);
	assert_int_equal(sys->read(fd, &info, sizeof(info)), sizeof(info));
	assert_int_equal(info.ssi_signo, SIGUSR1);
	sys->close(fd);
	sys_sigmask_restore(&old);
}

static _Atomic uint32_t word;

static void *wake_later(void *arg)
{
	_Atomic uint32_t *w = arg;

	*w = 1;
	/* until somebody was there: the waiter may not have gone to sleep yet */
	while (sys_futex_wake(w, 1) == 0 && *w == 1)
		;
	return NULL;
}

static void futexes_wait_and_wake(void **state)
{
	pthread_t thread;

	(void)state;
	word = 0;
	assert_int_equal(sys_futex_wait(&word, 1, -1), -EAGAIN);
	assert_int_equal(sys_futex_wait(&word, 0, 0), -ETIMEDOUT);
	assert_int_equal(sys_futex_wait(&word, 0, 1), -ETIMEDOUT);
	assert_int_equal(sys_futex_wake(&word, 1), 0);
	assert_int_equal(pthread_create(&thread, NULL, wake_later, &word), 0);
	while (word == 0)
		sys_futex_wait(&word, 0, -1);
	word = 2;
	pthread_join(thread, NULL);
}

static void futexes_reach_other_processes(void **state)
{
	_Atomic uint32_t *shared = mmap(NULL, sys_page_bytes(), PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t child;

	(void)state;
	assert_ptr_not_equal(shared, MAP_FAILED);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		while (*shared == 0)
			sys_futex_wait(shared, 0, -1);
		_exit(0);
	}
	/* until one that sleeps was found: with a private futex never */
	while (sys_futex_wake(shared, 1) == 0)
		;
	*shared = 1;
	sys_futex_wake(shared, 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	munmap((void *)shared, sys_page_bytes());
}

static void clocks_go_forward(void **state)
{
	uint64_t now = sys_now_usec();
	uint64_t thread = sys_thread_cpu_usec();
	uint64_t process = sys_process_cpu_usec();
	struct timespec ts;

	(void)state;
	while (sys_thread_cpu_usec() == thread || sys_process_cpu_usec() == process)
		;
	assert_true(sys_thread_cpu_usec() > thread && sys_process_cpu_usec() > process);
	assert_true(sys_now_usec() >= now);
	clock_gettime(CLOCK_MONOTONIC, &ts);
	assert_true((uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000 >= now);
	assert_true((uint64_t)ts.tv_sec <= sys_now_usec() / 1000000);
	assert_int_equal(sys_page_bytes(), sysconf(_SC_PAGESIZE));
	assert_int_equal(sys_gettid(), gettid());
}

static void random_bytes_are_all_there(void **state)
{
	unsigned char a[600], b[600];
	unsigned same = 0;

	(void)state;
	memset(a, 0, sizeof(a));
	memset(b, 0, sizeof(b));
	assert_int_equal(sys->getrandom(a, sizeof(a)), 0);
	assert_int_equal(sys->getrandom(b, sizeof(b)), 0);
	assert_int_equal(sys->getrandom(b, 0), 0);
	for (size_t i = 0; i < sizeof(a); i++)
		same += a[i] == b[i];
	assert_true(same < 60);
	for (size_t i = sizeof(a) - 32, zeros = 0; i < sizeof(a); i++) {
		zeros += a[i] == 0;
		assert_true(zeros < 16);
	}
}

struct way {
	int policy, priority; /* to begin with */
	int nice;
	bool refused;
	int policy_then, nice_then;
};

static void *gives_way(void *arg)
{
	struct way *w = arg;
	struct sched_param param = { .sched_priority = w->priority };

	w->refused = sched_setscheduler(0, w->policy, &param) != 0 ||
		     setpriority(PRIO_PROCESS, 0, w->nice) != 0;
	if (w->refused)
		return NULL;
	sys_give_way();
	w->policy_then = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
	w->nice_then = getpriority(PRIO_PROCESS, 0);
	return NULL;
}

static struct way way_of(int policy, int priority, int nice)
{
	struct way w = { .policy = policy, .priority = priority, .nice = nice };
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, gives_way, &w), 0);
	pthread_join(thread, NULL);
	return w;
}

static void giving_way_is_this_threads_alone(void **state)
{
	int policy = sched_getscheduler(0), nice = getpriority(PRIO_PROCESS, 0);
	struct way w = way_of(SCHED_OTHER, 0, 3);

	(void)state;
	assert_int_equal(w.policy_then, SCHED_OTHER);
	assert_int_equal(w.nice_then, 8);
	assert_int_equal(way_of(SCHED_OTHER, 0, 17).nice_then, 19);
	assert_int_equal(sched_getscheduler(0), policy);
	assert_int_equal(getpriority(PRIO_PROCESS, 0), nice);
	/* Urgent threads wait for it while pages are frozen. */
	w = way_of(SCHED_FIFO, 10, 0);
	assert_true(w.refused || w.policy_then == SCHED_FIFO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_thread_gets_a_table_of_its_own),
		TEST(all_signals_are_blocked_and_come_back),
		TEST(a_signal_comes_through_the_descriptor),
		TEST(futexes_wait_and_wake),
		TEST(futexes_reach_other_processes),
		TEST(clocks_go_forward),
		TEST(giving_way_is_this_threads_alone),
		TEST(random_bytes_are_all_there),
	};

	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-thread", tests, NULL, NULL);
}
