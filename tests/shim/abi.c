/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program written for madvise(MADV_MERGE): what it asks, and what it sees. Run by
 * abi.sh, under samepage; two at once, which give each other something to share.
 *
 * usage: abi NAME, or abi list
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MERGE 26
#define PAGES 64
#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)

static size_t page;

static void fail(int line, const char *what)
{
	printf("%d: not so: %s (errno %d)\n", line, what, errno);
	exit(1);
}
#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x))                                                                          \
			fail(__LINE__, #x);                                                        \
	} while (0)

static void fill(char *p, size_t pages, uint64_t seed)
{
	uint64_t *w = (uint64_t *)p;

	for (size_t i = 0; i < pages * page / 8; i++)
		w[i] = (i + 1) * 0x9e3779b97f4a7c15u * (2 * seed + 1);
}

static bool filled(const char *p, size_t pages, uint64_t seed)
{
	const uint64_t *w = (const uint64_t *)p;

	for (size_t i = 0; i < pages * page / 8; i++)
		if (w[i] != (i + 1) * 0x9e3779b97f4a7c15u * (2 * seed + 1))
			return false;
	return true;
}

static bool zero(const char *p, size_t pages)
{
	for (size_t i = 0; i < pages * page; i++)
		if (p[i])
			return false;
	return true;
}

static char *map(size_t pages)
{
	char *p = mmap(NULL, pages * page, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

/* Is it the kernel's own call that answers, in the place of samepage's? */
static bool kernel_merges(void)
{
	const char *forced = getenv("SAMEPAGE_PRIMITIVE");
	FILE *f = fopen("/proc/self/ksm_stat", "re");
	char line[128];
	bool has = false;

	while (f && fgets(line, sizeof(line), f))
		has |= strncmp(line, "ksm_merge_looked", 16) == 0;
	if (f)
		fclose(f);
	return has && !(forced && strcmp(forced, "remap") == 0);
}

/*
 * Pages that are of a file or of the store, or that the kernel has merged: not the process's
 * own any more.
 */
static size_t shared_pages(const char *p, size_t pages)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int flags_fd = kernel_merges() ? open("/proc/kpageflags", O_RDONLY | O_CLOEXEC) : -1;
	uint64_t entry, flags;
	size_t n = 0;

	CHECK(fd >= 0);
	for (size_t i = 0; i < pages; i++) {
		(void)*(volatile const char *)(p + i * page);
		CHECK(pread(fd, &entry, 8, (off_t)((uintptr_t)p / page + i) * 8) == 8);
		flags = 0;
		if (flags_fd >= 0)
			(void)!pread(flags_fd, &flags, 8, (off_t)(entry << 9 >> 9) * 8);
		n += (entry >> 61 & 1) || (flags >> 21 & 1);
	}
	close(fd);
	if (flags_fd >= 0)
		close(flags_fd);
	return n;
}

/*
 * madvise(MADV_MERGE). The kernel merges what there is twice, where samepage begins a store
 * with the first: so there everything has a twin for a moment.
 */
static int merge(char *p, size_t bytes)
{
	size_t pages = (bytes + page - 1) / page;
	char *twin = NULL;
	int fd, map_fd, ret, saved;

	if (kernel_merges() && pages > 0 && bytes < SIZE_MAX / 2 && (uintptr_t)p % page == 0) {
		twin = map(pages);
		fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
		map_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		for (size_t i = 0; i < pages; i++) {
			uint64_t entry = 0;

			if (pread(map_fd, &entry, 8, (off_t)((uintptr_t)p / page + i) * 8) == 8 &&
			    entry >> 63 && !(entry >> 61 & 1))
				(void)!pread(fd, twin + i * page, page, (off_t)(uintptr_t)p +
									(off_t)(i * page));
		}
		close(fd);
		close(map_fd);
		CHECK(madvise(twin, pages * page, MERGE) == 0);
	}
	ret = madvise(p, bytes, MERGE);
	saved = errno;
	if (twin)
		munmap(twin, pages * page);
	errno = saved;
	return ret;
}

/* --- the call itself -------------------------------------------------------------- */

static void anonymous(void)
{
	char *p = map(PAGES);

	fill(p, PAGES, 1);
	CHECK(merge(p, PAGES * page) == 0);
	CHECK(shared_pages(p, PAGES) == PAGES);
	CHECK(filled(p, PAGES, 1));
	fill(p, PAGES, 2);
	CHECK(filled(p, PAGES, 2));
	CHECK(shared_pages(p, PAGES) == 0);
}

static void by_number(void)
{
	char *p = map(PAGES), *q = map(PAGES);

	fill(p, PAGES, 3);
	fill(q, PAGES, 3);
	CHECK(syscall(SYS_madvise, q, PAGES * page, MERGE) == 0);
	CHECK(syscall(SYS_madvise, p, PAGES * page, MERGE) == 0);
	CHECK(shared_pages(p, PAGES) == PAGES);
	CHECK(filled(p, PAGES, 3));
}

static void arguments(void)
{
	char *p = map(PAGES);

	fill(p, PAGES, 4);
	errno = 0;
	CHECK(merge(p + 1, page) == -1 && errno == EINVAL);
	CHECK(merge(p, 0) == 0);
	errno = 0;
	CHECK(merge(p, (size_t)-1) == -1 && errno == EINVAL);
	CHECK(shared_pages(p, PAGES) == 0);
	/* A length is rounded up. */
	CHECK(merge(p, 1) == 0);
	CHECK(shared_pages(p, PAGES) == 1);
	CHECK(filled(p, PAGES, 4));
}

static void gaps(void)
{
	char *p = map(PAGES);

	fill(p, PAGES, 5);
	CHECK(munmap(p + 20 * page, 10 * page) == 0);
	errno = 0;
	CHECK(merge(p, PAGES * page) == -1 && errno == ENOMEM);
	CHECK(shared_pages(p, 20) == 20);
	CHECK(shared_pages(p + 30 * page, PAGES - 30) == PAGES - 30);
	errno = 0;
	CHECK(merge(p + 20 * page, page) == -1 && errno == ENOMEM);
}

static void other_mappings(void)
{
	char *s = mmap(NULL, 4 * page, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *n = mmap(NULL, 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *l = map(4);

	CHECK(s != MAP_FAILED && n != MAP_FAILED);
	fill(s, 4, 6);
	fill(l, 4, 6);
	CHECK(mlock(l, 4 * page) == 0);
	CHECK(merge(s, 4 * page) == 0);
	CHECK(merge(n, 4 * page) == 0);
	CHECK(merge(l, 4 * page) == 0);
	CHECK(shared_pages(l, 4) == 0);
	CHECK(filled(s, 4, 6) && filled(l, 4, 6));
}

/* --- text ------------------------------------------------------------------------- */

static char *text;
static size_t text_pages;

static int find_libc(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size;
	(void)arg;
	if (!strstr(info->dlpi_name, "libc.so"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + h->p_vaddr;

		if (h->p_type != PT_LOAD || !(h->p_flags & PF_X))
			continue;
		text = (char *)(start & ~(page - 1));
		text_pages = (start + h->p_memsz - (uintptr_t)text + page - 1) / page;
	}
	return 1;
}

static void copy_text(void)
{
	dl_iterate_phdr(find_libc, NULL);
	CHECK(text);
	for (size_t i = 0; i < text_pages; i++) {
		volatile char *at = text + i * page;

		CHECK(mprotect(text + i * page, page, RW | PROT_EXEC) == 0);
		*at = *at;
		CHECK(mprotect(text + i * page, page, RX) == 0);
	}
}

static uint64_t sum(const char *p, size_t bytes)
{
	uint64_t s = 0;

	for (size_t i = 0; i < bytes; i++)
		s = (s ^ (unsigned char)p[i]) * 0x100000001b3u;
	return s;
}

static size_t mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	size_t n = 0;
	int c;

	CHECK(f);
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

static void libc_text(void)
{
	size_t before;
	uint64_t was;
	char *heap;

	dl_iterate_phdr(find_libc, NULL);
	was = sum(text, text_pages * page);
	copy_text();
	CHECK(shared_pages(text, text_pages) == 0);
	before = mappings();
	CHECK(merge(text, text_pages * page) == 0);
	CHECK(shared_pages(text, text_pages) == text_pages);
	CHECK(sum(text, text_pages * page) == was);
	printf("# %zu pages, %zu mappings before, %zu after\n", text_pages, before, mappings());
	CHECK(mappings() <= before + 4);
	/* It still runs, and can be patched again, and once more merged. */
	heap = malloc(1000000);
	CHECK(heap && strlen(strcpy(heap, "still works")) == 11);
	free(heap);
	CHECK(mprotect(text, page, RW | PROT_EXEC) == 0);
	*(volatile char *)text = *(volatile char *)text;
	CHECK(mprotect(text, page, RX) == 0);
	CHECK(shared_pages(text, 1) == 0);
	CHECK(merge(text, page) == 0);
	CHECK(shared_pages(text, 1) == 1);
	/* MADV_DONTNEED: the file's text again, which is the same here. */
	CHECK(madvise(text, text_pages * page, MADV_DONTNEED) == 0);
	CHECK(sum(text, text_pages * page) == was);
}

/* Each patch merged by itself, as by a library that patches code. */
static void libc_text_page_by_page(void)
{
	uint64_t was;

	dl_iterate_phdr(find_libc, NULL);
	was = sum(text, text_pages * page);
	for (size_t i = 0; i < text_pages; i++) {
		volatile char *at = text + i * page;

		CHECK(mprotect(text + i * page, page, RW | PROT_EXEC) == 0);
		*at = *at;
		CHECK(mprotect(text + i * page, page, RX) == 0);
		CHECK(merge(text + i * page, page) == 0);
	}
	CHECK(shared_pages(text, text_pages) == text_pages);
	CHECK(sum(text, text_pages * page) == was);
}

/* --- files ------------------------------------------------------------------------ */

static char *map_file(int prot)
{
	char path[] = "/tmp/samepage-abi-XXXXXX";
	int fd = mkstemp(path);
	char *p = map(PAGES), *m;

	CHECK(fd >= 0);
	unlink(path);
	fill(p, PAGES, 70);
	CHECK(write(fd, p, PAGES * page) == (ssize_t)(PAGES * page));
	m = mmap(NULL, PAGES * page, prot, MAP_PRIVATE, fd, 0);
	CHECK(m != MAP_FAILED);
	close(fd);
	munmap(p, PAGES * page);
	return m;
}

static void file_pages(void)
{
	char *p = map_file(RW), *q;

	fill(p, PAGES, 71);
	CHECK(mprotect(p, PAGES * page, PROT_READ) == 0);
	CHECK(merge(p, PAGES * page) == 0);
	CHECK(shared_pages(p, PAGES) == PAGES);
	CHECK(filled(p, PAGES, 71));
	errno = 0;
	CHECK(madvise(p, page, MADV_FREE) == -1 && errno == EINVAL);
	CHECK(filled(p, PAGES, 71));
	errno = 0;
	CHECK(madvise(p, page, MADV_REMOVE) == -1 && errno == EACCES);
	/* A move keeps both: the bytes, and the file behind them. */
	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, map(PAGES));
	CHECK(q != MAP_FAILED && q != p);
	CHECK(filled(q, PAGES, 71));
	CHECK(merge(q, PAGES * page) == 0);
	CHECK(filled(q, PAGES, 71));
	CHECK(shared_pages(q, PAGES) == PAGES);
	/* Also when it is writable again, or has no access, and to grow. */
	CHECK(mprotect(q, PAGES * page, RW) == 0);
	p = mremap(q, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, map(PAGES));
	CHECK(p != MAP_FAILED && filled(p, PAGES, 71));
	CHECK(mprotect(p, PAGES * page, PROT_READ) == 0);
	CHECK(merge(p, PAGES * page) == 0);
	CHECK(mprotect(p, PAGES * page, PROT_NONE) == 0);
	q = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, map(PAGES));
	CHECK(q != MAP_FAILED && mprotect(q, PAGES * page, PROT_READ) == 0);
	CHECK(filled(q, PAGES, 71));
	CHECK(merge(q, PAGES * page) == 0);
	CHECK(shared_pages(q, PAGES) == PAGES);
	CHECK(madvise(q, 10 * page, MADV_DONTNEED) == 0);
	CHECK(mprotect(q, PAGES * page, RW) == 0);
	CHECK(madvise(q, PAGES * page, MADV_DONTNEED) == 0);
	CHECK(filled(q, PAGES, 70));
	CHECK(munmap(q, PAGES * page) == 0);
}

/* New anonymous memory where a file's pages were merged: its zeros, not the file. */
static void a_file_went(void)
{
	char *p = map_file(RW), *q;

	fill(p, PAGES, 72);
	CHECK(mprotect(p, PAGES * page, PROT_READ) == 0);
	CHECK(merge(p, PAGES * page) == 0);
	CHECK(shared_pages(p, PAGES) == PAGES);
	q = mmap(p, PAGES * page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(q == p);
	fill(q, PAGES, 73);
	CHECK(merge(q, PAGES * page) == 0);
	CHECK(shared_pages(q, PAGES) == PAGES);
	CHECK(madvise(q, PAGES * page, MADV_DONTNEED) == 0);
	CHECK(zero(q, PAGES));
}

/*
 * Data of the program, and what was written since its merge: nothing could hold writers
 * off, so both stay as they are, and that is no error.
 */
static char initialised[32 * 4096] = { 1 };

static void writable(void)
{
	char *p = initialised + page - (uintptr_t)initialised % page, *q = map(PAGES);

	fill(p, 16, 80);
	CHECK(merge(p, 16 * page) == 0);
	/* The kernel itself can. */
	CHECK(shared_pages(p, 16) == (kernel_merges() ? 16 : 0));
	CHECK(filled(p, 16, 80));
	fill(q, PAGES, 81);
	CHECK(merge(q, PAGES * page) == 0);
	fill(q, PAGES, 82);
	CHECK(merge(q, PAGES * page) == 0);
	CHECK(shared_pages(q, PAGES) == (kernel_merges() ? PAGES : 0));
	CHECK(filled(q, PAGES, 82));
}

/* Patch what is merged and merge again, over and over. */
static void again_and_again(void)
{
	char *p = map_file(RW);

	for (unsigned round = 0; round < 50; round++) {
		CHECK(mprotect(p, PAGES * page, RW) == 0);
		fill(p, PAGES, 100 + round);
		CHECK(mprotect(p, PAGES * page, PROT_READ) == 0);
		CHECK(merge(p, PAGES * page) == 0);
		CHECK(shared_pages(p, PAGES) == PAGES);
		CHECK(filled(p, PAGES, 100 + round));
	}
}

/*
 * One thread merges the data of libraries, another loads and unloads some all the time:
 * what the loader maps there next must not be overwritten.
 */
static _Atomic bool stop_loading;

static void *load_and_unload(void *arg)
{
	static const char *const names[] = { "libm.so.6", "libresolv.so.2", "libnss_files.so.2" };

	(void)arg;
	for (unsigned i = 0; !stop_loading; i++) {
		void *h = dlopen(names[i % 3], RTLD_NOW);

		if (h)
			dlclose(h);
	}
	return NULL;
}

static void unloading(void)
{
	void *h = dlopen("libresolv.so.2", RTLD_NOW);
	char *at = h ? (char *)((uintptr_t)dlsym(h, "ns_get16") & ~(page - 1)) : NULL;
	pthread_t t;

	CHECK(at);
	dlclose(h);
	CHECK(pthread_create(&t, NULL, load_and_unload, NULL) == 0);
	for (unsigned i = 0; i < 3000; i++)
		(void)madvise(at - 8 * page, 64 * page, MERGE);
	stop_loading = true;
	pthread_join(t, NULL);
}

/* A handler that asks in the middle of a fork is not left waiting for the fork. */
static char *from_handler;

static void ask(int sig)
{
	int saved = errno;

	(void)sig;
	(void)madvise(from_handler, page, MERGE);
	errno = saved;
}

static void in_handlers(void)
{
	struct sigaction act = { .sa_handler = ask, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };

	from_handler = map(1);
	fill(from_handler, 1, 9);
	CHECK(sigaction(SIGALRM, &act, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < 300; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		CHECK(pid > 0);
		while (waitpid(pid, NULL, 0) < 0)
			CHECK(errno == EINTR);
	}
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(filled(from_handler, 1, 9));
}

/* --- not under samepage, or not in reach of a broker -------------------------------- */

static void no_broker(void)
{
	char *p = map(PAGES);

	fill(p, PAGES, 5);
	CHECK(merge(p, PAGES * page) == 0);
	CHECK(munmap(p + 20 * page, page) == 0);
	errno = 0;
	CHECK(merge(p, PAGES * page) == -1 && errno == ENOMEM);
	errno = 0;
	CHECK(merge(p + 1, page) == -1 && errno == EINVAL);
	CHECK(filled(p, 20, 5));
}

static void kernel(void)
{
	char *p = map(1);

	errno = 0;
	CHECK(madvise(p, page, MERGE) == -1 && errno == EINVAL);
}

static const struct {
	const char *name;
	void (*fn)(void);
} cases[] = {
	{ "anonymous", anonymous },
	{ "by_number", by_number },
	{ "arguments", arguments },
	{ "gaps", gaps },
	{ "other_mappings", other_mappings },
	{ "libc_text", libc_text },
	{ "libc_text_page_by_page", libc_text_page_by_page },
	{ "file_pages", file_pages },
	{ "a_file_went", a_file_went },
	{ "writable", writable },
	{ "again_and_again", again_and_again },
	{ "unloading", unloading },
	{ "in_handlers", in_handlers },
#define LISTED 13
	{ "no_broker", no_broker },
	{ "kernel", kernel },
};

int main(int argc, char **argv)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	for (size_t i = 0; argc > 1 && i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (strcmp(argv[1], "list") == 0) {
			if (i < LISTED)
				puts(cases[i].name);
		} else if (strcmp(argv[1], cases[i].name) == 0) {
			cases[i].fn();
			return 0;
		}
	}
	return argc > 1 && strcmp(argv[1], "list") == 0 ? 0 : 2;
}
