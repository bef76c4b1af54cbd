/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Four threads that map, write, move, discard and unmap, a signal every 100 us
 * whose handler maps and unmaps, forks in between. Every byte must be what its
 * thread wrote, everything owned must be real at any moment, and at the end nothing
 * of it may be owned or locked.
 *
 * If this failed: a deadlock between handler and interrupted call, lost updates of
 * the sets, or a child that inherits a held lock. Memory is reused by other threads
 * at once, so a range that is owned by mistake shows.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "shimtest.h"

#define THREADS 4
#define ROUNDS 2000
#define FORKS 40

static size_t page;
static atomic_uint failures, handled;

static void fail_if(bool bad)
{
	if (bad)
		atomic_fetch_add(&failures, 1);
}

static void on_alarm(int sig)
{
	uint8_t *p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	fail_if(p == MAP_FAILED);
	if (p == MAP_FAILED)
		return;
	p[0] = p[page] = 1;
	fail_if(munmap(p, 2 * page) != 0);
	atomic_fetch_add(&handled, 1);
}

static void *work(void *arg)
{
	uint64_t seed = 0x9e3779b97f4a7c15u * ((uintptr_t)arg + 1);

	for (int i = 0; i < ROUNDS; i++) {
		size_t n = 1 + random_next(&seed) % 16, m = 1 + random_next(&seed) % 16;
		uint8_t tag = (uint8_t)(seed >> 32) | 1;
		uint8_t *p = mmap(NULL, n * page, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q;

		if (p == MAP_FAILED)
			return arg;
		fail_if(!owned_now(p, n * page));
		memset(p, tag, n * page);
		q = mremap(p, n * page, m * page, MREMAP_MAYMOVE);
		fail_if(q == MAP_FAILED);
		if (q == MAP_FAILED)
			return arg;
		fail_if(!owned_now(q, m * page));
		for (size_t k = 0; k < m; k++)
			fail_if(q[k * page] != (k < n ? tag : 0));
		if (i % 3 == 0) {
			fail_if(madvise(q, m * page, MADV_DONTNEED) != 0);
			fail_if(q[0] != 0);
		}
		fail_if(munmap(q, m * page) != 0);
	}
	return NULL;
}

static void *forker(void *arg)
{
	for (int i = 0; i < FORKS; i++) {
		pid_t pid = fork();
		int status;

		if (pid == 0)
			_exit(work((void *)(uintptr_t)(100 + i)) != NULL || !owned_is_real() ||
			      atomic_load(&failures) != 0);
		fail_if(waitpid(pid, &status, 0) != pid || status != 0);
	}
	return NULL;
}

static void all_at_once(void **state)
{
	struct itimerval often = { { 0, 100 }, { 0, 100 } }, never = { 0 };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	pthread_t thread[THREADS], forks;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, work, (void *)i), 0);
	assert_int_equal(pthread_create(&forks, NULL, forker, NULL), 0);
	for (int i = 0; i < 200; i++)
		fail_if(!owned_is_real());
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	pthread_join(forks, NULL);
	setitimer(ITIMER_REAL, &never, NULL);
	assert_int_equal(atomic_load(&failures), 0);
	assert_true(atomic_load(&handled) > 0);
	assert_true(owned_is_real());
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(all_at_once) };

	page = sys_page_bytes();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
