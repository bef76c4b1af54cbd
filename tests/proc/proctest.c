/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The helpers of the process tests; proctest.h says what each is for. */
#define PT_PLAIN_MERGE
#include "proctest.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "sys/maps.h"
#include "sys/probe.h"
#include "sys/sys.h"

void pt_note(const char *format, ...)
{
	char line[512] = "# ";
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(line + 2, sizeof(line) - 3, format, ap);
	va_end(ap);
	n = n < 0 ? 0 : n > (int)sizeof(line) - 4 ? (int)sizeof(line) - 4 : n;
	line[2 + n] = '\n';
	if (write(STDOUT_FILENO, line, (size_t)n + 3) < 0)
		abort();
}

_Noreturn void pt_die(const char *file, int line, const char *what)
{
	pt_note("%s:%d: pid %d: not so: %s", file, line, (int)getpid(), what);
	_exit(99);
}

/*
 * ThreadSanitizer must hear of mappings that come and go: the library's raw system
 * calls would leave it with what it knew about an address's former tenant.
 */
#if defined(__SANITIZE_THREAD__)
static intptr_t heard_mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t off)
{
	int saved = errno;
	void *p;
	intptr_t r;

	/* It takes a mapping made over another for a write: here it is none. */
	if (flags & MAP_FIXED)
		return sys_real.mmap(addr, bytes, prot, flags, fd, off);
	p = mmap(addr, bytes, prot, flags, fd, off);
	r = p == MAP_FAILED ? -errno : (intptr_t)p;
	errno = saved;
	return r;
}

static int heard_munmap(void *addr, size_t bytes)
{
	int saved = errno;
	int r = munmap(addr, bytes) < 0 ? -errno : 0;

	errno = saved;
	return r;
}

static struct sys_ops heard;

__attribute__((constructor)) static void let_it_hear(void)
{
	heard = sys_real;
	heard.mmap = heard_mmap;
	heard.munmap = heard_munmap;
	sys = &heard;
}
#endif

/* --- running -------------------------------------------------------------- */

/*
 * cmocka 1.1.5 calls a skipped test "not ok N # SKIP name", which meson 1.0 takes
 * for a failure: so the tests run in a child, and what it prints is put right, with
 * the reason that SKIP() printed just before.
 */
static void filter(FILE *in)
{
	char line[1024], why[1024] = "", name[256];
	int number;

	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, "# skipped: %1023[^\n]", why) == 1)
			continue;
		if (sscanf(line, "not ok %d # SKIP %255s", &number, name) == 2)
			printf("ok %d - %s # SKIP %s\n", number, name, why);
		else
			fputs(line, stdout);
		fflush(stdout);
	}
}

int pt_main(const char *name, const struct CMUnitTest *tests, size_t count)
{
	int out[2], status = 0;
	pid_t child;
	FILE *in;

	if (pipe2(out, O_CLOEXEC) < 0 || (child = fork()) < 0)
		abort();
	if (child == 0) {
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		setvbuf(stdout, NULL, _IOLBF, 0);
		exit(_cmocka_run_group_tests(name, tests, count, NULL, NULL));
	}
	close(out[1]);
	in = fdopen(out[0], "r");
	if (!in)
		abort();
	filter(in);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 99;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool pt_kernel_merges(void)
{
	const char *forced = getenv("SAMEPAGE_PRIMITIVE");
	struct sys_features f;

	memset(&f, 0, sizeof(f));
	sys_probe_merge(&f);
	return sys_probe_kernel_merges(&f) && !(forced && strcmp(forced, "remap") == 0);
}

void pt_skip_unless_remap(void)
{
	if (pt_kernel_merges())
		SKIP("of the remap: here the kernel merges");
}

void pt_skip_unless_can_merge(void)
{
	struct sys_features f;
	int err;

	if (pt_kernel_merges())
		return;
	sys_probe(&f);
	err = sys_probe_can_freeze(&f);
	if (err == -ENOSYS)
		SKIP("this kernel has no UFFDIO_MOVE");
	if (err < 0)
		SKIP("no userfaultfd that stops kernel-mode faults for this user");
}

void pt_skip_unless_root(void)
{
	char *p = pt_map(1);
	uint64_t pfn;

	*p = 1;
	pfn = pt_pfn(p);
	pt_unmap(p, 1);
	if (!pfn)
		SKIP("page frame numbers need CAP_SYS_ADMIN");
}

static void print_file(pid_t pid, const char *tid, const char *name)
{
	char path[320], text[2048];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/%s", (int)pid, tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return;
	text[n] = '\0';
	for (char *save, *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		pt_note("  %s %s: %s", tid, name, l);
}

static void print_stacks(pid_t pid)
{
	char path[64];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (d = readdir(dir)))
		if (d->d_name[0] != '.') {
			print_file(pid, d->d_name, "syscall");
			print_file(pid, d->d_name, "stack");
		}
	if (dir)
		closedir(dir);
}

int pt_wait(pid_t pid, unsigned seconds)
{
	const struct timespec tick = { .tv_nsec = 2000000 };
	uint64_t until = sys_now_usec() + (uint64_t)seconds * 1000000;
	int status;

	for (;;) {
		pid_t got = waitpid(pid, &status, WNOHANG);

		if (got == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		if (got < 0 && errno != EINTR)
			return 98;
		if (sys_now_usec() > until)
			break;
		nanosleep(&tick, NULL);
	}
	pt_note("process %d is not done after %u seconds:", (int)pid, seconds);
	print_stacks(pid);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return PT_HUNG;
}

void pt_die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

int pt_child(int (*fn)(void *arg), void *arg, unsigned seconds)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return 97;
	if (pid == 0) {
		pt_die_with_parent();
		_exit(fn(arg));
	}
	return pt_wait(pid, seconds);
}

/* --- memory with a known content ------------------------------------------ */

size_t pt_page(void)
{
	return sys_page_bytes();
}

uint64_t pt_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

void *pt_map_as(size_t pages, int prot, int flags)
{
	void *p = mmap(NULL, pages * pt_page(), prot, flags, -1, 0);

	PT_CHECK(p != MAP_FAILED);
	return p;
}

/* With an inaccessible page on either side, so that neighbours never become one. */
void *pt_map(size_t pages)
{
	char *p = pt_map_as(pages + 2, PROT_NONE, ANON | MAP_NORESERVE);

	PT_CHECK(mmap(p + pt_page(), pages * pt_page(), RW, ANON | MAP_FIXED, -1, 0) ==
		 p + pt_page());
	return p + pt_page();
}

void pt_unmap(void *p, size_t pages)
{
	PT_CHECK(munmap((char *)p - pt_page(), (pages + 2) * pt_page()) == 0);
}

void *pt_map_aligned(size_t bytes, size_t align)
{
	char *p = mmap(NULL, bytes + align, RW, ANON, -1, 0);
	char *at = (char *)(((uintptr_t)p + align - 1) & ~(uintptr_t)(align - 1));

	PT_CHECK(p != MAP_FAILED);
	if (at > p)
		munmap(p, (size_t)(at - p));
	if (at < p + align)
		munmap(at + bytes, (size_t)(p + align - at));
	return at;
}

static uint64_t page_state(uint64_t seed, uint64_t page)
{
	uint64_t s = seed * 0x2545f4914f6cdd1dull + page;

	return pt_random(&s);
}

void pt_fill_page(void *p, uint64_t seed, uint64_t page)
{
	uint64_t s = page_state(seed, page), *w = p;

	for (size_t i = 0; i < pt_page() / sizeof(*w); i++)
		w[i] = pt_random(&s);
}

bool pt_page_is(const void *p, uint64_t seed, uint64_t page)
{
	uint64_t s = page_state(seed, page);
	const volatile uint64_t *w = p;

	for (size_t i = 0; i < pt_page() / sizeof(*w); i++)
		if (w[i] != pt_random(&s))
			return false;
	return true;
}

void pt_fill(void *p, size_t pages, uint64_t seed)
{
	for (size_t i = 0; i < pages; i++)
		pt_fill_page((char *)p + i * pt_page(), seed, i);
}

long pt_differs(const void *p, size_t pages, uint64_t seed)
{
	for (size_t i = 0; i < pages; i++)
		if (!pt_page_is((const char *)p + i * pt_page(), seed, i))
			return (long)i;
	return -1;
}

bool pt_is_zero(const void *p, size_t pages)
{
	const volatile uint64_t *w = p;

	for (size_t i = 0; i < pages * pt_page() / sizeof(*w); i++)
		if (w[i])
			return false;
	return true;
}

int pt_temp_file(char path[PT_PATH_BYTES], size_t pages)
{
	const char *dir = getenv("TMPDIR");
	int fd, n = snprintf(path, PT_PATH_BYTES, "%s/samepage-test-XXXXXX", dir ? dir : "/tmp");

	PT_CHECK(n > 0 && n < (int)PT_PATH_BYTES);
	fd = mkostemp(path, O_CLOEXEC);
	PT_CHECK(fd >= 0 && ftruncate(fd, (off_t)(pages * pt_page())) == 0);
	return fd;
}

void pt_touch(const void *p, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		(void)*((const volatile char *)p + i * pt_page());
}

/* --- what the kernel says ------------------------------------------------- */

uint64_t pt_pagemap(const void *addr)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	PT_CHECK(fd >= 0);
	PT_CHECK(pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)addr / pt_page() * 8)) ==
		 sizeof(entry));
	close(fd);
	return entry;
}

uint64_t pt_pfn(const void *addr)
{
	uint64_t entry = pt_pagemap(addr);

	return entry & PT_PM_PRESENT ? entry & ((1ull << 55) - 1) : 0;
}

static void read_pagemap(const void *addr, uint64_t *entry, size_t pages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	PT_CHECK(fd >= 0);
	PT_CHECK(pread(fd, entry, pages * 8, (off_t)((uintptr_t)addr / pt_page() * 8)) ==
		 (ssize_t)(pages * 8));
	close(fd);
}

size_t pt_same_frames(const void *a, const void *b, size_t pages)
{
	uint64_t *ea = calloc(pages, 8), *eb = calloc(pages, 8);
	size_t same = 0;

	PT_CHECK(ea && eb);
	pt_touch(a, pages);
	pt_touch(b, pages);
	read_pagemap(a, ea, pages);
	read_pagemap(b, eb, pages);
	for (size_t i = 0; i < pages; i++)
		same += (ea[i] & PT_PM_PRESENT) && (eb[i] & PT_PM_PRESENT) &&
			!((ea[i] ^ eb[i]) & ((1ull << 55) - 1));
	free(ea);
	free(eb);
	return same;
}

static size_t ksm_pages(const void *p, size_t pages)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	size_t n = 0;

	for (size_t i = 0; fd >= 0 && i < pages; i++) {
		uint64_t pfn = pt_pfn((const char *)p + i * pt_page()), flags = 0;

		n += pfn && pread(fd, &flags, 8, (off_t)(pfn * 8)) == 8 && (flags >> 21 & 1);
	}
	if (fd >= 0)
		close(fd);
	return n;
}

size_t pt_file_pages(const void *p, size_t pages)
{
	return pt_kernel_merges() ? ksm_pages(p, pages) : pt_store_pages(p, pages);
}

size_t pt_store_pages(const void *p, size_t pages)
{
	uint64_t *e = calloc(pages, 8);
	size_t n = 0;

	PT_CHECK(e);
	pt_touch(p, pages);
	read_pagemap(p, e, pages);
	for (size_t i = 0; i < pages; i++)
		n += (e[i] & PT_PM_PRESENT) && (e[i] & PT_PM_FILE);
	free(e);
	return n;
}

uint64_t pt_zero_pfn(void)
{
	char *p = pt_map(1);
	uint64_t pfn;

	pt_touch(p, 1);
	pfn = pt_pfn(p);
	pt_unmap(p, 1);
	return pfn;
}

size_t pt_vma_count(void)
{
	char buf[8192];
	int64_t n = sys_map_count(0, buf, sizeof(buf));

	PT_CHECK(n > 0);
	return (size_t)n;
}

struct find {
	uint64_t addr, flags;
	int prot;
};

static int find_vma(const struct sys_vma *v, void *arg)
{
	struct find *f = arg;

	if (f->addr < v->start || f->addr >= v->end)
		return 0;
	f->flags = v->flags;
	f->prot = v->prot;
	return 1;
}

uint64_t pt_vm_flags(const void *addr, int *prot)
{
	struct find f = { .addr = (uintptr_t)addr };
	char buf[8192];

	PT_CHECK(sys_smaps_each(0, buf, sizeof(buf), find_vma, &f) == 1);
	if (prot)
		*prot = f.prot;
	return f.flags & ~SYS_VMF(sd);
}

/* Threads that share a table are counted as often as there are; growth is growth. */
size_t pt_fd_count(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *t, *f;
	char path[300];
	size_t n = 0;

	PT_CHECK(tasks);
	while ((t = readdir(tasks))) {
		DIR *fds;

		if (t->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/fd", t->d_name);
		fds = opendir(path);
		while (fds && (f = readdir(fds)))
			n += f->d_name[0] != '.';
		if (fds)
			closedir(fds);
	}
	closedir(tasks);
	return n;
}

uint64_t pt_private_bytes(void)
{
	FILE *f = fopen("/proc/self/smaps_rollup", "re");
	char line[256];
	uint64_t kib, sum = 0;

	PT_CHECK(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Private_Clean: %lu", &kib) == 1 ||
		    sscanf(line, "Private_Dirty: %lu", &kib) == 1)
			sum += kib * 1024;
	fclose(f);
	return sum;
}

/* --- the library ---------------------------------------------------------- */

struct samepage *pt_open_sized(uint64_t store_bytes)
{
	struct samepage_options o = { .size = sizeof(o), .flags = SAMEPAGE_EMBEDDED,
				      .store_bytes = store_bytes };
	struct samepage *sp = NULL;
	int err = samepage_open(&sp, &o);

	if (err)
		pt_note("samepage_open: %s", strerror(-err));
	PT_CHECK(err == 0 && sp);
	return sp;
}

struct samepage *pt_open(void)
{
	return pt_open_sized(256u << 20);
}

#define TWIN_ROOM ((size_t)1 << 30)

/* The bytes of what is there, through a file that pins nothing and faults nothing in. */
static char *make_twin(const char *p, size_t pages)
{
	/* Too large for a hole that a test has just made. */
	char *twin = mmap(NULL, pages * pt_page() + TWIN_ROOM, RW, ANON | MAP_NORESERVE, -1, 0);
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

	PT_CHECK(twin != MAP_FAILED && map >= 0 && mem >= 0);
	for (size_t i = 0; i < pages; i++) {
		uintptr_t at = (uintptr_t)p + i * pt_page();
		uint64_t entry = 0;

		if (pread(map, &entry, 8, (off_t)(at / pt_page() * 8)) == 8 &&
		    (entry & PT_PM_PRESENT) && !(entry & PT_PM_FILE))
			(void)!pread(mem, twin + i * pt_page(), pt_page(), (off_t)at);
	}
	close(map);
	close(mem);
	return twin;
}

int pt_merge(struct samepage *sp, void *addr, size_t bytes, uint32_t flags,
	     struct samepage_result *result)
{
	size_t pages = (bytes + pt_page() - 1) / pt_page();
	char *twin = NULL;
	int err;

	if (sp && bytes && bytes <= 1u << 30 && (uintptr_t)addr % pt_page() == 0 &&
	    pt_kernel_merges()) {
		twin = make_twin(addr, pages);
		PT_CHECK(samepage_merge(sp, twin, pages * pt_page(), 0, NULL) == 0);
	}
	err = samepage_merge(sp, addr, bytes, flags, result);
	if (twin)
		munmap(twin, pages * pt_page() + TWIN_ROOM);
	return err;
}

uint64_t pt_declined(const struct samepage_result *r)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < SAMEPAGE_REASON_MAX; i++)
		n += r->pages_declined[i];
	return n;
}

bool pt_sums(const struct samepage_result *r)
{
	for (unsigned i = SAMEPAGE_REASON_COUNT; i < SAMEPAGE_REASON_MAX; i++)
		if (r->pages_declined[i])
			return false;
	return r->pages_looked ==
		       r->pages_merged + r->pages_zeroed + r->pages_already + pt_declined(r) &&
	       r->pages_promoted <= r->pages_merged + pt_declined(r);
}

bool pt_complete(const struct samepage_result *r)
{
	uint64_t declined = pt_declined(r), collided = r->pages_declined[SAMEPAGE_REASON_CHANGED];

	/* One in 256 of the same begins another page there, which wants a second of its kind. */
	if (pt_kernel_merges())
		declined -= r->pages_declined[SAMEPAGE_REASON_UNIQUE] <= 1 + r->pages_looked / 128
				    ? r->pages_declined[SAMEPAGE_REASON_UNIQUE] : 0;

	if (declined != collided || collided > 2 + r->pages_looked / 10000)
		pt_print("pages were left", r);
	return declined == collided && collided <= 2 + r->pages_looked / 10000;
}

void pt_print(const char *what, const struct samepage_result *r)
{
	pt_note("%s: looked %lu merged %lu zeroed %lu already %lu promoted %lu runs %lu vmas %ld",
		what, r->pages_looked, r->pages_merged, r->pages_zeroed, r->pages_already,
		r->pages_promoted, r->runs, r->vmas_added);
	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++)
		if (r->pages_declined[i])
			pt_note("  %s %lu", samepage_reason_name(i), r->pages_declined[i]);
}
