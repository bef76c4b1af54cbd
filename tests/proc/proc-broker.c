/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several processes and a real broker. If this failed, two processes with equal
 * pages would not share frames, a broker that dies would harm its clients' memory
 * or leave them without one for ever, an idle client without a broker would burn a
 * core, or a new broker would not get the full segments back (I6).
 *
 * $SAMEPAGED is the broker to run; each client is a child with a handle of its own
 * on a socket in a directory of the test's.
 */
#include "proctest.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "sys/sys.h"

#define CLIENTS 3u
#define KILLS (PT_SANITIZED ? 40u : 100u)

static char dir[64], sock[96];

/* Shared by all processes of a test. */
struct board {
	_Atomic int step;   /* the parent's */
	_Atomic int done[CLIENTS]; /* each client's last step */
	_Atomic uint64_t merges[CLIENTS], unconnected[CLIENTS];
	uint64_t pfn[CLIENTS][20480];
};
static struct board *board;

/* --- the broker ------------------------------------------------------------- */

static pid_t start_broker(void)
{
	const char *exe = getenv("SAMEPAGED");
	int ready[2];
	char fd[16], c;
	pid_t pid;

	PT_CHECK(exe);
	PT_CHECK(pipe(ready) == 0);
	fflush(NULL);
	pid = fork();
	PT_CHECK(pid >= 0);
	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);

		pt_die_with_parent();
		/* Its log is a line for each life. */
		dup2(null, STDERR_FILENO);
		close(ready[0]);
		snprintf(fd, sizeof(fd), "%d", ready[1]);
		execl(exe, exe, "--foreground", "--socket", sock, "--ready-fd", fd, (char *)NULL);
		_exit(127);
	}
	close(ready[1]);
	PT_CHECK(read(ready[0], &c, 1) == 1);
	close(ready[0]);
	return pid;
}

static void kill_broker(pid_t pid)
{
	PT_CHECK(kill(pid, SIGKILL) == 0);
	PT_CHECK(waitpid(pid, NULL, 0) == pid);
}

static void set_up(void)
{
	const char *exe = getenv("SAMEPAGED");

	pt_skip_unless_can_merge();
	pt_skip_unless_root();
	if (!exe || access(exe, X_OK))
		SKIP("no samepaged ($SAMEPAGED)");
	snprintf(dir, sizeof(dir), "/tmp/samepage-proc-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(sock, sizeof(sock), "%s/broker.sock", dir);
	board = mmap(NULL, sizeof(*board), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(board != MAP_FAILED);
}

static void tear_down(void)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	/* The socket, and what a killed broker keeps beside it. */
	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.' || (e->d_name[1] && e->d_name[1] != '.'))
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	if (rmdir(dir))
		pt_note("left in %s: %s", dir, strerror(errno));
	munmap(board, sizeof(*board));
}

/* --- clients ----------------------------------------------------------------- */

static struct samepage *open_on_socket(void)
{
	struct samepage_options o = { .size = sizeof(o), .socket_path = sock };
	struct samepage *sp = NULL;
	int err = -EAGAIN;

	/* The broker may just be dead. */
	for (unsigned i = 0; i < 2000 && err; i++) {
		err = samepage_open(&sp, &o);
		if (err)
			usleep(10000);
	}
	if (err)
		pt_note("open on %s: %s", sock, strerror(-err));
	PT_CHECK(err == 0);
	return sp;
}

static void wait_for_step(int step)
{
	while (atomic_load(&board->step) < step)
		usleep(1000);
}

static void wait_for_clients(int step, unsigned clients, const pid_t *pid)
{
	for (unsigned i = 0; i < clients; i++)
		for (unsigned long ms = 0; atomic_load(&board->done[i]) < step; ms++) {
			int status;

			if (waitpid(pid[i], &status, WNOHANG) == pid[i] || ms > 90000)
				pt_note("client %u is gone or late: %x", i, ms > 90000 ? 0 : status);
			PT_CHECK(ms <= 90000 && kill(pid[i], 0) == 0);
			usleep(1000);
		}
}

static pid_t start_client(int (*fn)(unsigned), unsigned number)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	PT_CHECK(pid >= 0);
	if (pid == 0) {
		pt_die_with_parent();
		_exit(fn(number));
	}
	return pid;
}

static void note_frames(unsigned number, const char *p, size_t pages)
{
	pt_touch(p, pages);
	for (size_t i = 0; i < pages; i++)
		board->pfn[number][i] = pt_pfn(p + i * pt_page());
}

static size_t equal_frames(unsigned a, unsigned b, size_t pages)
{
	size_t same = 0;

	for (size_t i = 0; i < pages; i++)
		same += board->pfn[a][i] && board->pfn[a][i] == board->pfn[b][i];
	return same;
}

/* --- two processes ------------------------------------------------------------ */

#define SOME 1000u

static int sharer(unsigned number)
{
	struct samepage *sp = open_on_socket();
	struct samepage_result r;
	char *p = pt_map(SOME);

	pt_fill(p, SOME, 1);
	PT_CHECK(samepage_merge(sp, p, SOME * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_sums(&r) && pt_complete(&r));
	note_frames(number, p, SOME);
	atomic_store(&board->done[number], 1);
	wait_for_step(1);
	/* The first writes, the other still has what it had. */
	for (size_t i = 0; number == 0 && i < SOME; i += 3)
		pt_fill_page(p + i * pt_page(), 2, i);
	note_frames(number, p, SOME);
	atomic_store(&board->done[number], 2);
	wait_for_step(2);
	for (size_t i = 0; i < SOME; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), number == 0 && i % 3 == 0 ? 2 : 1, i));
	PT_CHECK(samepage_unmerge(sp, p, SOME * pt_page()) == 0);
	samepage_close(sp);
	for (size_t i = 0; i < SOME; i++)
		PT_CHECK(pt_page_is(p + i * pt_page(), number == 0 && i % 3 == 0 ? 2 : 1, i));
	return 0;
}

static void two_processes_share(void **state)
{
	pid_t broker, c[2];

	(void)state;
	set_up();
	broker = start_broker();
	for (unsigned i = 0; i < 2; i++)
		c[i] = start_client(sharer, i);
	wait_for_clients(1, 2, c);
	assert_true(equal_frames(0, 1, SOME) >= SOME - 2);
	atomic_store(&board->step, 1);
	wait_for_clients(2, 2, c);
	assert_in_range(equal_frames(0, 1, SOME), SOME - (SOME + 2) / 3 - 2, SOME - (SOME + 2) / 3);
	atomic_store(&board->step, 2);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pt_wait(c[i], 60), 0);
	kill_broker(broker);
	tear_down();
}

/* --- a broker that dies again and again ---------------------------------------- */

#define PAGES 700u

static void merge_as_can_be(struct samepage *sp, unsigned number, char *p)
{
	struct samepage_result r;
	int err = samepage_merge(sp, p, PAGES * pt_page(), 0, &r);

	if (err && err != -ENOTCONN)
		pt_note("merge: %s", strerror(-err));
	PT_CHECK(err == 0 || err == -ENOTCONN);
	PT_CHECK(pt_sums(&r));
	atomic_fetch_add(err ? &board->unconnected[number] : &board->merges[number], 1);
}

static int worker(unsigned number)
{
	struct samepage *sp = open_on_socket();
	struct samepage_result r;
	char *p = pt_map(PAGES);
	uint64_t rnd = number, seed = 0;
	int err = -1;

	for (seed = 0; atomic_load(&board->step) == 0; seed++) {
		PT_CHECK(samepage_discard(sp, p, PAGES * pt_page()) == 0);
		PT_CHECK(pt_is_zero(p, PAGES));
		pt_fill(p, PAGES, seed % 7);
		for (unsigned k = 0; k < 3; k++) {
			merge_as_can_be(sp, number, p);
			PT_CHECK(pt_differs(p, PAGES, seed % 7) == -1);
			for (unsigned i = 0; i < 50; i++) {
				size_t page = pt_random(&rnd) % PAGES;

				pt_fill_page(p + page * pt_page(), seed % 7, page);
			}
		}
	}
	PT_CHECK(samepage_discard(sp, p, PAGES * pt_page()) == 0);
	pt_fill(p, PAGES, 99);
	for (unsigned i = 0; i < 1000 && err; i++) {
		err = samepage_merge(sp, p, PAGES * pt_page(), 0, &r);
		if (err)
			usleep(10000);
	}
	PT_CHECK(err == 0);
	PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
	PT_CHECK(pt_differs(p, PAGES, 99) == -1);
	PT_CHECK(pt_file_pages(p, PAGES) >= PAGES - 2);
	samepage_close(sp);
	return 0;
}

static void a_broker_that_dies(void **state)
{
	uint64_t rnd = 5, merges = 0, unconnected = 0;
	pid_t broker, c[CLIENTS];

	(void)state;
	set_up();
	broker = start_broker();
	for (unsigned i = 0; i < CLIENTS; i++)
		c[i] = start_client(worker, i);
	for (unsigned k = 0; k < KILLS; k++) {
		usleep((unsigned)(pt_random(&rnd) % 60000));
		kill_broker(broker);
		if (k % 4 == 0)
			usleep((unsigned)(pt_random(&rnd) % 60000));
		broker = start_broker();
		for (unsigned i = 0; i < CLIENTS; i++)
			PT_CHECK(kill(c[i], 0) == 0);
	}
	atomic_store(&board->step, 1);
	for (unsigned i = 0; i < CLIENTS; i++) {
		assert_int_equal(pt_wait(c[i], 60), 0);
		merges += atomic_load(&board->merges[i]);
		unconnected += atomic_load(&board->unconnected[i]);
	}
	pt_note("%u brokers killed, %lu merges, %lu without a broker", KILLS, merges, unconnected);
	assert_true(merges > 0);
	kill_broker(broker);
	tear_down();
}

/* --- idle without a broker ------------------------------------------------------- */

static uint64_t cpu_usec(void)
{
	return sys_process_cpu_usec();
}

static int idler(unsigned number)
{
	struct samepage *sp = open_on_socket();
	char *p = pt_map(PAGES), *q = pt_map(PAGES);
	struct samepage_result r;
	uint64_t used;

	pt_fill(p, PAGES, 1);
	pt_fill(q, PAGES, 2);
	PT_CHECK(samepage_merge(sp, p, PAGES * pt_page(), 0, &r) == 0);
	atomic_store(&board->done[number], 1);
	wait_for_step(1); /* the broker has been killed */
	PT_CHECK(samepage_merge(sp, q, PAGES * pt_page(), 0, &r) == -ENOTCONN);
	PT_CHECK(pt_sums(&r));
	used = cpu_usec();
	sleep(2);
	used = cpu_usec() - used;
	pt_note("2 seconds idle without a broker cost %lu us of CPU", used);
	PT_CHECK(used < 500000);
	PT_CHECK(pt_differs(p, PAGES, 1) == -1);
	PT_CHECK(pt_differs(q, PAGES, 2) == -1);
	PT_CHECK(samepage_discard(sp, p, PAGES * pt_page()) == 0);
	samepage_close(sp);
	return 0;
}

/* Killed in the middle of its answers: the client finds out in a merge. */
static int caught_in_a_merge(unsigned number)
{
	struct samepage *sp = open_on_socket();
	char *p = pt_map(20000);
	struct samepage_result r;
	uint64_t used;
	int err;

	pt_fill(p, 20000, 3);
	atomic_store(&board->done[number], 1);
	err = samepage_merge(sp, p, 20000 * pt_page(), 0, &r);
	PT_CHECK(err == 0 || err == -ENOTCONN);
	PT_CHECK(pt_sums(&r));
	PT_CHECK(err == 0 || r.pages_declined[SAMEPAGE_REASON_NO_BROKER] > 0);
	used = cpu_usec();
	sleep(2);
	used = cpu_usec() - used;
	pt_note("killed after %lu pages: 2 seconds idle cost %lu us of CPU", r.pages_merged, used);
	PT_CHECK(used < 500000);
	PT_CHECK(pt_differs(p, 20000, 3) == -1);
	samepage_close(sp);
	return 0;
}

static void idle_without_a_broker(void **state)
{
	pid_t broker, c;

	(void)state;
	pt_skip_unless_remap(); /* the kernel needs no broker */
	set_up();
	for (unsigned k = 0; k < 3; k++) {
		atomic_store(&board->step, 0);
		atomic_store(&board->done[0], 0);
		broker = start_broker();
		c = start_client(k ? caught_in_a_merge : idler, 0);
		wait_for_clients(1, 1, &c);
		usleep(k * 8000);
		kill_broker(broker);
		atomic_store(&board->step, 1);
		assert_int_equal(pt_wait(c, 60), 0);
	}
	tear_down();
}

/* --- the full segments go to the next broker -------------------------------------- */

#define MANY 20000u
#define FULL 16384u /* of them are in full segments */

static int holder(unsigned number)
{
	struct samepage *sp = open_on_socket();
	struct samepage_stats st;
	char *p = pt_map(MANY), *q = pt_map(1);

	pt_fill(p, MANY, 4);
	PT_CHECK(samepage_merge(sp, p, MANY * pt_page(), 0, NULL) == 0);
	note_frames(number, p, MANY);
	atomic_store(&board->done[number], 1);
	wait_for_step(1); /* there is a new broker: the next merge finds it */
	pt_fill(q, 1, 5);
	for (unsigned i = 0; i < 500 && samepage_merge(sp, q, pt_page(), 0, NULL); i++)
		usleep(10000);
	PT_CHECK(samepage_stats(sp, &st, sizeof(st)) == 0);
	PT_CHECK(st.reconnects == 1);
	/* The broker takes what it was given as it comes; ask until it has. */
	for (unsigned i = 0; i < 500 && st.store_pages < FULL; i++) {
		usleep(10000);
		PT_CHECK(samepage_stats(sp, &st, sizeof(st)) == 0);
	}
	pt_note("the new broker has %lu pages", st.store_pages);
	atomic_store(&board->done[number], 2);
	wait_for_step(2);
	PT_CHECK(pt_differs(p, MANY, 4) == -1);
	samepage_close(sp);
	return 0;
}

static int latecomer(unsigned number)
{
	struct samepage *sp = open_on_socket();
	struct samepage_result r;
	char *p = pt_map(MANY);

	pt_fill(p, MANY, 4);
	PT_CHECK(samepage_merge(sp, p, MANY * pt_page(), 0, &r) == 0);
	pt_print("under the new broker", &r);
	note_frames(number, p, MANY);
	PT_CHECK(pt_differs(p, MANY, 4) == -1);
	samepage_close(sp);
	return 0;
}

static void full_segments_come_back(void **state)
{
	pid_t broker, c, d;
	size_t same;

	(void)state;
	pt_skip_unless_remap(); /* the kernel needs no broker */
	set_up();
	broker = start_broker();
	c = start_client(holder, 0);
	wait_for_clients(1, 1, &c);
	kill_broker(broker);
	broker = start_broker();
	atomic_store(&board->step, 1);
	wait_for_clients(2, 1, &c);
	d = start_client(latecomer, 1);
	assert_int_equal(pt_wait(d, 60), 0);
	same = equal_frames(0, 1, MANY);
	pt_note("%zu of %u pages have the frames that they had under the old broker", same, MANY);
	assert_true(same >= FULL - 8);
	atomic_store(&board->step, 2);
	assert_int_equal(pt_wait(c, 60), 0);
	kill_broker(broker);
	tear_down();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_processes_share),
		cmocka_unit_test(a_broker_that_dies),
		cmocka_unit_test(idle_without_a_broker),
		cmocka_unit_test(full_segments_come_back),
	};

	return PT_MAIN("proc-broker", tests);
}
