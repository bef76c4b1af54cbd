/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-analyze: what `samepage analyze` takes, against reading the same memory once
 * through the same interface and doing nothing with it.
 *
 * Four processes hold the memory: a quarter of the pages has an equal one in each of the
 * others, one in sixteen is full of zeros, the rest is unlike any other; an eighth of all
 * is full of addresses, every fourth word one, as in an interpreter's heap: looking those
 * up is dear. Reading is /proc/PID/mem, 64 pages a call. Both with one thread, and both with as
 * many as the program takes by default; interleaved, after one round that does not count.
 * The goal is the program as it runs by default against one reader. The program's own memory is its
 * highest resident set less that of analyzing an empty process. What it counts must be
 * what is there, or nothing is reported.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <json-c/json.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define HOLDERS 4
#define ROUNDS_MAX 9
#define BATCH_PAGES 64
#define EMPTY 4 /* the number of the process without data */
#define WAYS 2  /* one thread, as many as by default */
#define THREADS_MAX 4
#define RATIO_GOAL 1.5
#define MEMORY_GOAL 24.0

static struct {
	pid_t pid;
	char *at; /* where its memory is; the same in all, by fork */
} holder[HOLDERS + 1];
static uint64_t holder_pages;
static size_t page_bytes;

struct figure {
	double wall[ROUNDS_MAX], cpu[ROUNDS_MAX];
	unsigned n;
};

void bench_die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("bench-analyze: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	for (unsigned i = 0; i <= HOLDERS; i++)
		if (holder[i].pid > 0)
			kill(holder[i].pid, SIGKILL);
	exit(1);
}

/* --- the memory ----------------------------------------------------------- */

static bool is_common(uint64_t page)
{
	return page / 64 % 4 == 1;
}

static bool is_zero(uint64_t page)
{
	return page % 16 == 7 && !is_common(page);
}

static void fill(char *at, uint64_t page, uint64_t who)
{
	uint64_t *word = (uint64_t *)(void *)(at + page * page_bytes);
	uint64_t state = (is_common(page) ? 0 : who + 1) << 40 | page;

	if (is_zero(page)) {
		memset(word, 0, page_bytes);
		return;
	}
	for (size_t i = 0; i < page_bytes / 8; i++)
		word[i] = bench_random(&state);
	if (page / 64 % 8 == 2)
		for (size_t i = 0; i < page_bytes / 8; i += 4)
			word[i] = (uint64_t)(uintptr_t)at + word[i] % (holder_pages * page_bytes);
}

static void hold(unsigned number, int ready)
{
	char *at = holder[number].at;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (uint64_t i = 0; number != EMPTY && i < holder_pages; i++)
		fill(at, i, number);
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void start_holders(void)
{
	char *at = mmap(NULL, holder_pages * page_bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int ready[2];
	char byte;

	if (at == MAP_FAILED || pipe(ready) != 0)
		bench_die("no memory");
	for (unsigned i = 0; i <= HOLDERS; i++) {
		holder[i].at = at;
		holder[i].pid = fork();
		if (holder[i].pid == 0)
			hold(i, ready[1]);
		if (holder[i].pid < 0)
			bench_die("cannot fork");
	}
	for (unsigned i = 0; i <= HOLDERS; i++)
		if (read(ready[0], &byte, 1) != 1)
			bench_die("a process did not get ready");
	close(ready[0]);
	close(ready[1]);
}

/* --- reading alone -------------------------------------------------------- */

struct reader {
	unsigned first, step; /* which of the processes */
};

static void *read_all(void *arg)
{
	const struct reader *r = arg;
	char *buffer = aligned_alloc(page_bytes, BATCH_PAGES * page_bytes);

	for (unsigned i = r->first; buffer && i < HOLDERS; i += r->step) {
		const char *path = bench_cell("/proc/%d/mem", (int)holder[i].pid);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		for (uint64_t page = 0; page < holder_pages; page += BATCH_PAGES)
			if (pread(fd, buffer, BATCH_PAGES * page_bytes,
				  (off_t)(uintptr_t)(holder[i].at + page * page_bytes)) !=
			    (ssize_t)(BATCH_PAGES * page_bytes))
				bench_die("cannot read the memory of a process");
		close(fd);
	}
	free(buffer);
	return NULL;
}

static double own_cpu(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void measure_reading(struct figure *f, unsigned threads, bool counts)
{
	struct reader r[THREADS_MAX];
	pthread_t thread[THREADS_MAX];
	double wall = bench_now(), cpu = own_cpu();

	for (unsigned i = 0; i < threads; i++) {
		r[i] = (struct reader){ i, threads };
		if (pthread_create(&thread[i], NULL, read_all, &r[i]) != 0)
			bench_die("no thread");
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	if (!counts)
		return;
	f->wall[f->n] = bench_now() - wall;
	f->cpu[f->n++] = own_cpu() - cpu;
}

/* --- samepage analyze ----------------------------------------------------- */

static double json_number(struct json_object *o, const char *a, const char *b, const char *c)
{
	const char *path[] = { a, b, c };

	for (unsigned i = 0; i < 3 && path[i]; i++)
		if (!json_object_object_get_ex(o, path[i], &o))
			bench_die("the report has no %s", path[i]);
	return json_object_get_double(o);
}

static struct json_object *parse(int fd)
{
	struct json_object *o = json_object_from_fd(fd);

	close(fd);
	if (!o)
		bench_die("samepage analyze printed no report");
	return o;
}

/* Runs it on processes [first, end); what it reports, and what it took. */
static struct json_object *analyze(const char *program, unsigned threads, unsigned first,
				   unsigned end, struct rusage *use, double *wall)
{
	const char *argv[HOLDERS + 8] = { program, "analyze", "--json", "--threads",
					  bench_cell("%u", threads) };
	struct json_object *o;
	int out[2], status, n = 5;
	double began = bench_now();
	pid_t pid;

	for (unsigned i = first; i < end; i++)
		argv[n++] = bench_cell("%d", (int)holder[i].pid);
	if (pipe(out) != 0)
		bench_die("no pipe");
	pid = fork();
	if (pid == 0) {
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		execv(program, (char **)(uintptr_t)argv);
		_exit(127);
	}
	close(out[1]);
	o = parse(out[0]);
	if (pid < 0 || wait4(pid, &status, 0, use) != pid || status != 0)
		bench_die("%s analyze failed", program);
	*wall = bench_now() - began;
	return o;
}

static void check(struct json_object *o)
{
	uint64_t common = 0, zero = 0;
	double saved, found;

	for (uint64_t i = 0; i < holder_pages; i++) {
		common += is_common(i);
		zero += is_zero(i);
	}
	saved = json_number(o, "scopes", "all", "saved");
	found = json_number(o, "pages", "zero", NULL);
	/* the programs themselves have a few pages, equal ones among them */
	if (saved < (double)common * (HOLDERS - 1) || saved > (double)common * (HOLDERS - 1) + 1000 ||
	    found < (double)zero * HOLDERS || found > (double)zero * HOLDERS + 1000)
		bench_die("counted %.0f pages to save and %.0f of zeros, not %llu and %llu", saved, found,
			  (unsigned long long)(common * (HOLDERS - 1)),
			  (unsigned long long)(zero * HOLDERS));
}

static double seconds(struct timeval t)
{
	return (double)t.tv_sec * 1e9 + (double)t.tv_usec * 1e3;
}

static double measure_analyze(struct figure *f, const char *program, unsigned threads, bool counts)
{
	struct rusage use, none;
	double wall, unused, pages;
	struct json_object *o = analyze(program, threads, EMPTY, EMPTY + 1, &none, &unused);

	json_object_put(o);
	o = analyze(program, threads, 0, HOLDERS, &use, &wall);
	check(o);
	pages = json_number(o, "pages", "sums", "pages");
	json_object_put(o);
	if (counts) {
		f->wall[f->n] = wall;
		f->cpu[f->n++] = seconds(use.ru_utime) + seconds(use.ru_stime);
	}
	return (double)(use.ru_maxrss - none.ru_maxrss) * 1024 / pages;
}

/* --- the report ----------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct bench_spread spread(double *v, unsigned n)
{
	qsort(v, n, sizeof(*v), compare);
	return (struct bench_spread){ .mid = (v[(n - 1) / 2] + v[n / 2]) / 2, .low = v[0],
				      .high = v[n - 1], .n = n };
}

static void report(struct bench_out *out, const unsigned threads[WAYS], struct figure reading[WAYS], struct figure analyzing[WAYS],
		   double bytes_a_page)
{
	static const char *const heads[] = { "threads", "analyze, s", "one reader, s", "ratio",
					     "as many, s", "ratio", "analyze, CPU s",
					     "reading, CPU s" };
	struct bench_spread one = spread(reading[0].wall, reading[0].n);
	double ratio = 0;
	uint64_t bytes = HOLDERS * holder_pages * page_bytes;

	bench_text(out, "\n## samepage analyze: %s of private memory\n", bench_size(bytes));
	bench_text(out,
		   "Four processes; a quarter of the pages equal to one in each of the others, one in "
		   "sixteen zero, an eighth full of addresses. Reading: the same memory once through "
		   "the same interface (/proc/PID/mem), by one thread or by as many, and nothing done "
		   "with it. Wall clock, start and end of the program included.\n");
	bench_head(out, 8, heads);
	for (unsigned i = 0; i < WAYS; i++) {
		struct bench_spread a = spread(analyzing[i].wall, analyzing[i].n);
		struct bench_spread r = spread(reading[i].wall, reading[i].n);

		ratio = a.mid / one.mid;
		bench_row(out, bench_cell("%u%s", threads[i], i ? " (default)" : ""),
			  bench_spread_cell(a, 1e9), bench_spread_cell(one, 1e9),
			  bench_cell("%.2f", ratio), bench_spread_cell(r, 1e9),
			  bench_cell("%.2f", a.mid / r.mid),
			  bench_spread_cell(spread(analyzing[i].cpu, analyzing[i].n), 1e9),
			  bench_spread_cell(spread(reading[i].cpu, reading[i].n), 1e9),
			  (const char *)NULL);
	}
	bench_text(out,
		   "\nAs it runs by default, against one reader: %.2f; to reach: <= %.2f: %s. With one "
		   "thread, and with as many readers, it is the ratios above.", ratio, RATIO_GOAL,
		   ratio <= RATIO_GOAL ? "reached" : "NOT REACHED");
	bench_text(out, "\nIts own memory at its highest: %.1f bytes a page recorded; to reach: <= %.0f: %s.",
		   bytes_a_page, MEMORY_GOAL, bytes_a_page <= MEMORY_GOAL ? "reached" : "NOT REACHED");
}

static void usage(void)
{
	puts("usage: bench-analyze [--mib N] [--rounds N] [--quick] [--append FILE]\n"
	     "  --mib N        private memory in all, 8192 by default\n"
	     "  --rounds N     measurements of each, 3 by default\n"
	     "  --quick        1024 MiB, one round\n"
	     "  --append FILE  write the table behind what is there, too");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "mib", required_argument, NULL, 'm' },    { "rounds", required_argument, NULL, 'r' },
		{ "append", required_argument, NULL, 'a' }, { "quick", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },         { 0 },
	};
	struct figure reading[WAYS] = { 0 }, analyzing[WAYS] = { 0 };
	struct bench_out out = { 0 };
	char program[BENCH_PATH] = "";
	uint64_t mib = 8192;
	unsigned rounds = 3;
	double bytes_a_page = 0;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	const unsigned threads[WAYS] = { 1, cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : (unsigned)cpus };
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'm')
			mib = strtoull(optarg, NULL, 10);
		else if (c == 'r')
			rounds = (unsigned)strtoul(optarg, NULL, 10);
		else if (c == 'q')
			mib = 1024, rounds = 1;
		else if (c == 'a') {
			out.file = fopen(optarg, "ae");
			if (!out.file)
				bench_die("cannot write %s", optarg);
		} else
			usage();
	}
	page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	if (rounds < 1 || rounds > ROUNDS_MAX || mib < 64)
		bench_die("1 to %d rounds, at least 64 MiB", ROUNDS_MAX);
	if (bench_meminfo("MemAvailable") < (double)(mib + 1024) * 1048576)
		bench_die("%llu MiB and one more GiB are not available here", (unsigned long long)mib);
	if (readlink("/proc/self/exe", program, sizeof(program) - 32) < 0 || !strrchr(program, '/'))
		bench_die("where am I?");
	strcpy(strrchr(program, '/'), "/../samepage");
	holder_pages = (mib << 20) / HOLDERS / page_bytes / BATCH_PAGES * BATCH_PAGES;
	start_holders();
	for (unsigned round = 0; round <= rounds; round++)
		for (unsigned i = 0; i < WAYS; i++) {
			double bytes;

			measure_reading(&reading[i], threads[i], round > 0);
			bytes = measure_analyze(&analyzing[i], program, threads[i], round > 0);
			bytes_a_page = bytes > bytes_a_page ? bytes : bytes_a_page;
		}
	for (unsigned i = 0; i <= HOLDERS; i++) {
		kill(holder[i].pid, SIGKILL);
		waitpid(holder[i].pid, NULL, 0);
	}
	report(&out, threads, reading, analyzing, bytes_a_page);
	if (out.file && fclose(out.file) != 0)
		bench_die("cannot write the table");
	return 0;
}
