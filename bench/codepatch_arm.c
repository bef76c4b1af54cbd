/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One arm: start the processes, let them patch, let them merge, count, check, end.
 *
 * The clock runs from the moment at which the gate opens for all of them at once to
 * the last return of the last process's call; memory is counted after that, with
 * everybody still there. With KSM the calls return at once and merge nothing, so the
 * clock stops when ksmd has merged all but a thousandth of what it is going to merge:
 * found afterwards, from a record of its progress that ends when two full scans
 * brought less than that.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "codepatch.h"

#define STORE_BYTES (1ull << 30)
#define POLL_NSEC 5000000
#define PATIENCE_NSEC 300e9
#define RECORDS 65536
#define ENOUGH 0.999

static void pause_a_moment(void)
{
	const struct timespec t = { .tv_nsec = POLL_NSEC };

	nanosleep(&t, NULL);
}

static struct cp_control *control_new(int *fd)
{
	void *p;

	*fd = memfd_create("codepatch", MFD_CLOEXEC);
	if (*fd < 0 || ftruncate(*fd, sizeof(struct cp_control)) < 0)
		bench_die("memfd: %s", strerror(errno));
	p = mmap(NULL, sizeof(struct cp_control), PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED)
		bench_die("mmap: %s", strerror(errno));
	return p;
}

static void become_worker(const struct cp_options *o, enum cp_mode mode, int fd, unsigned number)
{
	const char *program = mode == CP_LIBRARY ? o->worker_library : o->worker;
	char text[16];

	snprintf(text, sizeof(text), "%u", number);
	fd = fcntl(fd, F_DUPFD, 10); /* it may be CP_FD already, to be closed by exec */
	if (dup2(fd, CP_FD) < 0 || close_range(CP_FD + 1, UINT_MAX, 0) < 0)
		_exit(127);
	if (mode == CP_MADVISE) {
		setenv("LD_PRELOAD", o->preload, 1);
		setenv("SAMEPAGE_SOCKET", bench_socket(), 1);
	}
	execl(program, "codepatch-worker", text, (char *)NULL);
	_exit(127);
}

static void start(const struct cp_options *o, enum cp_mode mode, int fd, pid_t *pids)
{
	unsigned n = o->forked ? 1 : o->processes;
	pid_t self = getpid();

	for (unsigned i = 0; i < n; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			bench_die("fork: %s", strerror(errno));
		if (pids[i] == 0) {
			bench_child_prepare(self);
			become_worker(o, mode, fd, i);
		}
	}
}

static void end(pid_t *pids, unsigned processes)
{
	for (unsigned i = 0; i < processes; i++)
		if (pids[i] > 0) {
			kill(pids[i], SIGKILL);
			waitpid(pids[i], NULL, 0);
		}
}

static void wait_all(const _Atomic uint32_t *count, unsigned processes, const char *what)
{
	double until = bench_now() + PATIENCE_NSEC;

	while (atomic_load(count) < processes) {
		pause_a_moment();
		/* Nobody else is waited for but at the end: a worker or broker that died. */
		if (waitpid(-1, NULL, WNOHANG | __WNOTHREAD) > 0 || bench_now() > until)
			bench_die("%u of %u processes got %s", atomic_load(count), processes, what);
	}
}

static void open_gate(struct cp_control *c, uint32_t gate)
{
	atomic_store(&c->gate, gate);
	syscall(SYS_futex, &c->gate, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static double cpu_of_workers(const struct cp_control *c, unsigned processes)
{
	double sum = 0;

	for (unsigned i = 0; i < processes; i++)
		sum += bench_cpu_of(atomic_load(&c->worker[i].pid));
	return sum;
}

/* --- KSM -------------------------------------------------------------------- */

struct record {
	double now, cpu, cpu_machine, sharing;
};

static size_t watch_ksmd(struct record *record, pid_t ksmd)
{
	double until = bench_now() + PATIENCE_NSEC, mark = 0;
	int64_t scans_at_mark = bench_ksm_get("full_scans");
	size_t n = 0;

	while (n < RECORDS && bench_now() < until) {
		int64_t scans = bench_ksm_get("full_scans");
		struct record *r = &record[n++];

		*r = (struct record){ .now = bench_now(), .cpu = bench_cpu_of(ksmd),
				      .cpu_machine = cp_machine_cpu(),
				      .sharing = (double)bench_ksm_get("pages_sharing") };
		if (r->sharing * ENOUGH > mark || r->sharing <= 0) {
			mark = r->sharing;
			scans_at_mark = scans;
		} else if (scans > scans_at_mark + 2) {
			return n;
		}
		pause_a_moment();
	}
	bench_die("KSM found no end");
}

static void ksm_until_converged(struct cp_result *r, double began, double cpu, double cpu_machine)
{
	struct record *record = calloc(RECORDS, sizeof(*record));
	size_t n, k = 0;

	if (!record)
		bench_die("no memory");
	n = watch_ksmd(record, bench_ksmd());
	while (record[k].sharing < ENOUGH * record[n - 1].sharing)
		k++;
	r->seconds = (record[k].now - began) / 1e9;
	r->cpu_broker = (record[k].cpu - cpu) / 1e9;
	r->cpu_machine = record[k].cpu_machine - cpu_machine;
	free(record);
}

static void unthrottle(void)
{
	bench_ksm_set("advisor_mode", "none");
	bench_ksm_set("pages_to_scan", "1000000");
	bench_ksm_set("sleep_millisecs", "0");
	bench_ksm_set("run", "1");
}

/* --- the measurement -------------------------------------------------------- */

static double last_return(const struct cp_control *c, unsigned processes)
{
	uint64_t last = 0;

	for (unsigned i = 0; i < processes; i++)
		if (atomic_load(&c->worker[i].done_nsec) > last)
			last = atomic_load(&c->worker[i].done_nsec);
	return (double)last;
}

static void merge(struct cp_control *c, unsigned processes, pid_t broker, struct cp_result *r)
{
	pid_t other = c->mode == CP_KSM ? bench_ksmd() : broker;
	double cpu = cpu_of_workers(c, processes), began;
	double cpu_other = other ? bench_cpu_of(other) : 0, machine = cp_machine_cpu();

	began = bench_now();
	if (c->mode == CP_KSM)
		unthrottle();
	open_gate(c, CP_GATE_WORK);
	wait_all(&c->done, processes, "their calls done");
	if (c->mode == CP_KSM) {
		ksm_until_converged(r, began, cpu_other, machine);
	} else {
		r->seconds = (last_return(c, processes) - began) / 1e9;
		r->cpu_broker = other ? (bench_cpu_of(other) - cpu_other) / 1e9 : 0;
		r->cpu_machine = cp_machine_cpu() - machine;
	}
	r->cpu_seconds = (cpu_of_workers(c, processes) - cpu) / 1e9 + r->cpu_broker;
}

static void note_errors(const struct cp_control *c, unsigned processes, struct cp_result *r)
{
	r->bad_pages = atomic_load(&c->bad_pages);
	for (unsigned i = 0; i < processes; i++)
		if (atomic_load(&c->worker[i].error)) {
			r->errors++;
			r->error = atomic_load(&c->worker[i].error);
		}
}

void cp_arm(const struct cp_options *o, enum cp_mode mode, struct cp_result *r)
{
	int64_t known = bench_ksm_known();
	bool ours = mode == CP_MADVISE || mode == CP_LIBRARY;
	pid_t *pids = calloc(o->processes, sizeof(*pids));
	pid_t broker = ours ? bench_broker_start(STORE_BYTES) : 0;
	int fd;
	struct cp_control *c = control_new(&fd);

	if (!pids)
		bench_die("no memory");
	*r = (struct cp_result){ 0 };
	c->mode = mode;
	c->by_page = o->by_page;
	c->children = o->forked ? o->processes : 0;
	snprintf(c->socket, sizeof(c->socket), "%s", bench_socket());
	start(o, mode, fd, pids);
	wait_all(&c->ready, o->processes, "ready");
	merge(c, o->processes, broker, r);
	cp_count(c, o->processes, broker, &r->memory);
	open_gate(c, CP_GATE_CHECK);
	wait_all(&c->checked, o->processes, "their text checked");
	note_errors(c, o->processes, r);
	open_gate(c, CP_GATE_END);
	if (mode == CP_KSM)
		bench_ksm_set("run", "0");
	end(pids, o->processes);
	if (broker)
		bench_broker_end(broker);
	if (mode == CP_KSM)
		bench_ksm_drain(known);
	munmap(c, sizeof(*c));
	close(fd);
	free(pids);
}
