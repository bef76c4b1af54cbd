/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of MADV_MERGE share: merging through MADV_MERGE or, for
 * comparison, through ksmd; contents; which frame is mapped where; and a runner
 * that gives each test a process of its own and sees to it that nothing stays
 * pinned after it.
 */
#ifndef KSM_MERGE_COMMON_H
#define KSM_MERGE_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "../kselftest.h"
#include "vm_util.h"

#ifndef MADV_MERGE
#define MADV_MERGE 26
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_SET_MEMORY_MERGE_SCOPE
#define PR_SET_MEMORY_MERGE_SCOPE 0x4b534d53
#define PR_GET_MEMORY_MERGE_SCOPE 0x4b534d54
#define PR_MEMORY_MERGE_SCOPE_GLOBAL 0
#define PR_MEMORY_MERGE_SCOPE_USER 1
#endif

#define KPF_HWPOISON	19
#define KPF_KSM		21
#define KPF_ZERO_PAGE	24

#define SYSFS_KSM "/sys/kernel/mm/ksm/"
#define UNMERGE_TRIES 500
#define TEST_SECONDS 120

/* How merge() merges; set from the command line. */
static bool use_ksmd;
static bool verbose;
static bool failed;
static size_t page_size;

/*
 * Reporting from within a test
 */

__printf(3, 4)
static void fail_at(int line, const char *cond, const char *fmt, ...)
{
	static int said;
	char text[400];
	va_list ap;

	failed = true;
	if (said++ >= 8)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	printf("# line %d: %s: %s\n", line, cond, text);
	fflush(stdout);
}

/* The test goes on, and has failed, if @cond does not hold. */
#define check(cond, fmt, ...) do {					\
	if (!(cond))							\
		fail_at(__LINE__, #cond, fmt, ##__VA_ARGS__);		\
} while (0)

/* The test ends if @cond does not hold. */
#define need(cond, fmt, ...) do {					\
	if (!(cond)) {							\
		fail_at(__LINE__, #cond, fmt, ##__VA_ARGS__);		\
		exit(KSFT_FAIL);					\
	}								\
} while (0)

__printf(1, 2) static void __noreturn skip(const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	printf("# skipped: %s\n", text);
	fflush(stdout);
	exit(failed ? KSFT_FAIL : KSFT_SKIP);
}

/*
 * Files
 */

static int read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		n = -errno;
	else
		buf[n] = '\0';
	close(fd);
	return (int)n;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		ret = errno ? -errno : -EIO;
	close(fd);
	return ret;
}

static inline int write_long(const char *path, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return write_text(path, text);
}

static long read_long(const char *path)
{
	char buf[64];
	int n = read_text(path, buf, sizeof(buf));

	return n < 0 ? n : atol(buf);
}

static inline long ksm_get(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), SYSFS_KSM "%s", name);
	return read_long(path);
}

static inline int ksm_set(const char *name, long value)
{
	char path[128];

	snprintf(path, sizeof(path), SYSFS_KSM "%s", name);
	return write_long(path, value);
}

/* What is refused while there are merged pages: those of the dead may take a moment. */
static inline int ksm_set_soon(const char *name, long value)
{
	int ret = -EBUSY;

	for (int i = 0; i < 100 && ret == -EBUSY; i++) {
		ret = ksm_set(name, value);
		if (ret)
			usleep(20000);
	}
	return ret;
}

/* The number after @name in a file of "name number" lines, or -1. */
static inline long read_field(const char *path, const char *name)
{
	char buf[16384], *at = buf;
	size_t len = strlen(name);

	if (read_text(path, buf, sizeof(buf)) <= 0)
		return -1;
	for (; at; at = strchr(at, '\n')) {
		at += *at == '\n';
		if (!strncmp(at, name, len) && strchr(" :\t", at[len]))
			return atol(at + len + 1);
	}
	return -1;
}

static inline long stat_field(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", (int)pid);
	return read_field(path, name);
}

static inline double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static inline void sleep_msec(long msec)
{
	struct timespec ts = { msec / 1000, msec % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

/*
 * Memory
 */

static inline char *map_pages(size_t pages)
{
	char *p = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(p != MAP_FAILED, "mmap of %zu pages: %s", pages, strerror(errno));
	madvise(p, pages * page_size, MADV_NOHUGEPAGE);
	return p;
}

static inline void unmap_pages(void *p, size_t pages)
{
	need(!munmap(p, pages * page_size), "munmap: %s", strerror(errno));
}

/* The word at @index of the page that @seed stands for. */
static inline uint64_t word_of(uint64_t seed, size_t index)
{
	uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15ull + index;

	x ^= x >> 29;
	x *= 0xbf58476d1ce4e5b9ull;
	return x ^ x >> 32;
}

static inline void fill_page(void *page, uint64_t seed)
{
	uint64_t *p = page;

	for (size_t i = 0; i < page_size / sizeof(*p); i++)
		p[i] = word_of(seed, i);
}

static inline bool page_is(const void *page, uint64_t seed)
{
	const uint64_t *p = page;

	for (size_t i = 0; i < page_size / sizeof(*p); i++)
		if (p[i] != word_of(seed, i))
			return false;
	return true;
}

static inline void fill(char *p, size_t pages, uint64_t seed)
{
	for (size_t i = 0; i < pages; i++)
		fill_page(p + i * page_size, seed + i);
}

/* How many of the pages are not what fill() made them. */
static inline size_t differs(const char *p, size_t pages, uint64_t seed)
{
	size_t bad = 0;

	for (size_t i = 0; i < pages; i++)
		bad += !page_is(p + i * page_size, seed + i);
	return bad;
}

/* Stores and loads that the compiler leaves where they are. */
static inline void put_byte(char *p, char value)
{
	__atomic_store_n(p, value, __ATOMIC_RELAXED);
}

static inline char get_byte(const char *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void flip_byte(char *p, char bits)
{
	put_byte(p, get_byte(p) ^ bits);
}

static inline char *map_filled(size_t pages, uint64_t seed)
{
	char *p = map_pages(pages);

	fill(p, pages, seed);
	return p;
}

/* Each test wants contents that no other test has. */
static inline uint64_t new_seed(void)
{
	static uint64_t next;

	if (!next)
		next = ((uint64_t)time(NULL) << 32) ^ ((uint64_t)getpid() << 20);
	next += 1 << 20;
	return next;
}

static inline uint64_t entry_of(const void *addr)
{
	static int fd = -1;
	static pid_t of;
	uint64_t entry = 0;

	if (of != getpid()) {
		if (fd >= 0)
			close(fd);
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		of = getpid();
	}
	if (pread(fd, &entry, 8, (uintptr_t)addr / page_size * 8) != 8)
		return 0;
	return entry;
}

/* The frame that is mapped at @addr, or 0. */
static inline unsigned long pfn_of(const void *addr)
{
	uint64_t entry = entry_of(addr);

	return entry & PM_PRESENT ? (unsigned long)PAGEMAP_PFN(entry) : 0;
}

static inline long frame_mapcount(unsigned long pfn)
{
	static int fd = -1;
	uint64_t count = 0;

	if (fd < 0)
		fd = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	if (!pfn || pread(fd, &count, 8, pfn * 8) != 8)
		return -1;
	return (long)count;
}

static inline uint64_t frame_flags(unsigned long pfn)
{
	static int fd = -1;
	uint64_t flags = 0;

	if (fd < 0)
		fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (!pfn || pread(fd, &flags, 8, pfn * 8) != 8)
		return 0;
	return flags;
}

/*
 * Some kernels (6.10 to 6.12 at least) say KSM of every anonymous page: there, one that
 * is mapped more than once is taken for one. Tests that share pages by fork as well look
 * at contents and numbers only.
 */
static inline bool ksm_flag_lies(void)
{
	static int lies = -1;

	if (lies < 0) {
		char *p = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			return false;
		*p = 1;
		lies = !!(frame_flags(pfn_of(p)) & BIT_ULL(KPF_KSM));
		munmap(p, page_size);
	}
	return lies;
}

static inline bool is_ksm_frame(unsigned long pfn)
{
	if (!(frame_flags(pfn) & BIT_ULL(KPF_KSM)))
		return false;
	return !ksm_flag_lies() || frame_mapcount(pfn) > 1;
}

static inline bool is_ksm(const void *addr)
{
	return is_ksm_frame(pfn_of(addr));
}

static inline bool is_zero_page(const void *addr)
{
	return frame_flags(pfn_of(addr)) & BIT_ULL(KPF_ZERO_PAGE);
}

static inline size_t count_ksm(const char *p, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += is_ksm(p + i * page_size);
	return n;
}

static inline size_t count_zero(const char *p, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += is_zero_page(p + i * page_size);
	return n;
}

/* How many pages of both map one and the same KSM frame. */
static inline size_t count_same(const char *a, const char *b, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++) {
		unsigned long pfn = pfn_of(a + i * page_size);

		n += pfn && pfn == pfn_of(b + i * page_size) &&
		     is_ksm_frame(pfn);
	}
	return n;
}

/* Different frames among the pages that are present. */
static inline size_t count_frames(const char *p, size_t pages)
{
	unsigned long *seen = calloc(pages, sizeof(*seen));
	size_t n = 0;

	for (size_t i = 0; i < pages; i++) {
		unsigned long pfn = pfn_of(p + i * page_size);
		size_t j;

		for (j = 0; j < n && seen[j] != pfn; j++)
			;
		if (pfn && j == n)
			seen[n++] = pfn;
	}
	free(seen);
	return n;
}

/*
 * Merging
 */

struct merge_stat {
	long looked, merged, already, zero, unique, busy, skipped;
};

static inline struct merge_stat stat_of(pid_t pid)
{
	return (struct merge_stat) {
		.looked = stat_field(pid, "ksm_merge_looked"),
		.merged = stat_field(pid, "ksm_merge_merged"),
		.already = stat_field(pid, "ksm_merge_already"),
		.zero = stat_field(pid, "ksm_merge_zero"),
		.unique = stat_field(pid, "ksm_merge_unique"),
		.busy = stat_field(pid, "ksm_merge_busy"),
		.skipped = stat_field(pid, "ksm_merge_skipped"),
	};
}

static inline struct merge_stat stat_sub(struct merge_stat a, struct merge_stat b)
{
	return (struct merge_stat) {
		.looked = a.looked - b.looked,
		.merged = a.merged - b.merged,
		.already = a.already - b.already,
		.zero = a.zero - b.zero,
		.unique = a.unique - b.unique,
		.busy = a.busy - b.busy,
		.skipped = a.skipped - b.skipped,
	};
}

static inline const char *stat_text(const struct merge_stat *s)
{
	static char text[4][200];
	static int turn;
	char *out = text[turn++ & 3];

	snprintf(out, sizeof(text[0]),
		 "looked %ld merged %ld already %ld zero %ld unique %ld busy %ld skipped %ld",
		 s->looked, s->merged, s->already, s->zero, s->unique, s->busy, s->skipped);
	return out;
}

/* Let ksmd look at everything until nothing can be new to it, and stop it. */
static inline void ksmd_scan(void)
{
	long start = ksm_get("full_scans");
	double end = now() + 60;

	ksm_set("run", 1);
	/* Checksum, unstable tree, merged; and one that may have begun before. */
	while (ksm_get("full_scans") < start + 4 && now() < end)
		sleep_msec(5);
	ksm_set("run", 0);
	need(now() < end, "ksmd does not get round");
}

/*
 * Merge, by MADV_MERGE or by ksmd. What became of the pages is the difference of the
 * counters; ksmd has none.
 */
static inline int merge_at(int line, void *addr, size_t len, struct merge_stat *delta)
{
	struct merge_stat before, d = { 0 };
	int ret;

	if (use_ksmd) {
		ret = madvise(addr, len, MADV_MERGEABLE);
		if (!ret)
			ksmd_scan();
		if (delta)
			*delta = d;
		return ret;
	}
	before = stat_of(getpid());
	ret = madvise(addr, len, MADV_MERGE);
	d = stat_sub(stat_of(getpid()), before);
	if (d.looked != d.merged + d.already + d.zero + d.unique + d.busy + d.skipped)
		fail_at(line, "the counters do not add up", "%s", stat_text(&d));
	if (verbose)
		printf("# line %d: %s\n", line, stat_text(&d));
	if (delta)
		*delta = d;
	return ret;
}

#define merge(addr, len, delta) merge_at(__LINE__, addr, len, delta)

/* Merge and see that it was not refused. */
#define merge_pages(addr, pages, delta)						\
	need(!merge(addr, (pages) * page_size, delta), "%s", strerror(errno))

/* Two ranges with the same contents, merged with each other. */
static inline void merged_pair_at(int line, char **a, char **b, size_t pages, uint64_t seed)
{
	*a = map_filled(pages, seed);
	*b = map_filled(pages, seed);
	if (merge_at(line, *a, pages * page_size, NULL) ||
	    merge_at(line, *b, pages * page_size, NULL))
		fail_at(line, "merge", "%s", strerror(errno));
	else if (count_same(*a, *b, pages) != pages)
		fail_at(line, "merge", "%zu of %zu are one", count_same(*a, *b, pages), pages);
	if (failed)
		exit(KSFT_FAIL);
}

#define merged_pair(a, b, pages, seed) merged_pair_at(__LINE__, &(a), &(b), pages, seed)

/*
 * Processes
 */

/* A child with two pipes: it is told and it tells, a word (64 bits) at a time. */
struct child {
	pid_t pid;
	int to, from;
};

static inline void tell(int fd, uint64_t word)
{
	if (write(fd, &word, sizeof(word)) != sizeof(word))
		exit(KSFT_FAIL);
}

static inline uint64_t hear(int fd)
{
	uint64_t word;

	if (read(fd, &word, sizeof(word)) != sizeof(word))
		exit(failed ? KSFT_FAIL : 9);
	return word;
}

/* In the child, pid is 0. A child goes when its parent goes. */
static inline struct child spawn(void)
{
	struct child c;
	int down[2], up[2];

	need(!pipe(down) && !pipe(up), "pipe: %s", strerror(errno));
	fflush(stdout);
	c.pid = fork();
	need(c.pid >= 0, "fork: %s", strerror(errno));
	if (c.pid) {
		close(down[0]);
		close(up[1]);
		c.to = down[1];
		c.from = up[0];
	} else {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(down[1]);
		close(up[0]);
		c.to = up[1];
		c.from = down[0];
	}
	return c;
}

/* Wait for it; it must have found nothing wrong. */
static inline void reap_at(int line, struct child *c)
{
	int status = 0;

	close(c->to);
	if (waitpid(c->pid, &status, 0) != c->pid)
		fail_at(line, "waitpid", "%s", strerror(errno));
	else if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_at(line, "a child", "ended with status %#x", status);
	close(c->from);
}

#define reap(c) reap_at(__LINE__, c)

static inline void __noreturn child_exit(void)
{
	fflush(stdout);
	_exit(failed ? KSFT_FAIL : KSFT_PASS);
}

/*
 * The runner
 */

struct test {
	const char *name;
	void (*fn)(void);
	/* Of interest with ksmd as well, which has merged like this all along. */
	bool ksmd_too;
};

static inline long slab_objects(const char *name)
{
	char *buf = malloc(65536), *at;
	long n = -1;

	if (buf && read_text("/proc/slabinfo", buf, 65536) > 0) {
		at = strstr(buf, name);
		if (at)
			n = atol(at + strlen(name));
	}
	free(buf);
	return n;
}

/* Nothing of an exited process may stay, though ksmd does not run. */
static inline bool settled(char *why, size_t size)
{
	double end = now() + 10;
	long shared, sharing;

	do {
		shared = ksm_get("pages_shared");
		sharing = ksm_get("pages_sharing");
		if (!shared && !sharing)
			return true;
		sleep_msec(20);
	} while (now() < end);
	snprintf(why, size, "pages_shared %ld, pages_sharing %ld after everybody has gone",
		 shared, sharing);
	return false;
}

static inline void put_back(void)
{
	/* ksmd alone drops what it knows of the dead, when it gets round. */
	if (use_ksmd)
		ksm_set("run", 2);
	ksm_set("run", 0);
}

static inline int run_test(const struct test *t)
{
	char why[200] = "";
	double start = now();
	int status, result;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		alarm(TEST_SECONDS);
		t->fn();
		fflush(stdout);
		exit(failed ? KSFT_FAIL : KSFT_PASS);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return KSFT_FAIL;
	kill(-pid, SIGKILL);
	if (WIFEXITED(status)) {
		result = WEXITSTATUS(status);
	} else {
		printf("# ended by signal %d\n", WTERMSIG(status));
		result = KSFT_FAIL;
	}
	put_back();
	if (!settled(why, sizeof(why))) {
		printf("# %s\n", why);
		result = KSFT_FAIL;
		ksm_set("run", 2);
		ksm_set("run", 0);
	}
	if (verbose)
		printf("# %s: %.2f s\n", t->name, now() - start);
	if (result != KSFT_PASS && result != KSFT_SKIP)
		result = KSFT_FAIL;
	return result;
}

/* Found out by a child: the call settles the scope of who makes it, and of its children. */
static inline bool have_merge(void)
{
	int status = -1;
	pid_t pid = fork();

	if (!pid) {
		char *p = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		_exit(p == MAP_FAILED || madvise(p, page_size, MADV_MERGE));
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

/* A test's name on the command line may have "_" for " ". */
static inline bool is_named(const char *name, const char *arg)
{
	for (; *name && *arg; name++, arg++)
		if (*name != *arg && !(*name == ' ' && *arg == '_'))
			return false;
	return !*name && !*arg;
}

static inline int run_tests(const struct test *tests, int count, int argc, char **argv)
{
	bool force = false, *wanted;
	int opt, todo = 0;
	long old_run, old_sleep, old_pages;

	page_size = sysconf(_SC_PAGESIZE);
	while ((opt = getopt(argc, argv, "fklv")) != -1) {
		switch (opt) {
		case 'f':
			force = true;
			break;
		case 'k':
			use_ksmd = true;
			break;
		case 'v':
			verbose = true;
			break;
		case 'l':
			for (int i = 0; i < count; i++)
				printf("%s%s\n", tests[i].name,
				       tests[i].ksmd_too ? " (-k)" : "");
			return 0;
		default:
			fprintf(stderr, "usage: %s [-f] [-k] [-v] [-l] [TEST]...\n"
				"-f  run though the kernel has no MADV_MERGE (and fail)\n"
				"-k  merge by ksmd: tests of what it does as well\n",
				argv[0]);
			return KSFT_FAIL;
		}
	}

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root\n");
	if (ksm_get("run") < 0)
		ksft_exit_skip("no KSM\n");
	if (!use_ksmd && !force && !have_merge())
		ksft_exit_skip("no MADV_MERGE\n");
	if (ksm_get("pages_shared") > 0) {
		/* What others have left to ksmd, which does not run. */
		old_run = ksm_get("run");
		ksm_set("run", 2);
		ksm_set("run", old_run);
		if (ksm_get("pages_shared") > 0)
			ksft_exit_skip("KSM is in use\n");
	}

	wanted = calloc(count, sizeof(*wanted));
	for (int i = 0; i < count; i++) {
		wanted[i] = (optind == argc) && (!use_ksmd || tests[i].ksmd_too);
		for (int j = optind; j < argc; j++)
			wanted[i] |= is_named(tests[i].name, argv[j]);
		todo += wanted[i];
	}
	ksft_set_plan(todo);

	old_run = ksm_get("run");
	old_sleep = ksm_get("sleep_millisecs");
	old_pages = ksm_get("pages_to_scan");
	ksm_set("run", 0);
	ksm_set("sleep_millisecs", 0);
	ksm_set("pages_to_scan", 10000);
	ksm_set("smart_scan", 0);
	for (int i = 0; i < count; i++)
		if (wanted[i])
			ksft_test_result_report(run_test(&tests[i]), "%s: %s\n",
						use_ksmd ? "ksm" : "merge", tests[i].name);
	ksm_set("smart_scan", 1);
	ksm_set("sleep_millisecs", old_sleep);
	ksm_set("pages_to_scan", old_pages);
	ksm_set("run", old_run);
	free(wanted);
	ksft_finished();
}

#endif
