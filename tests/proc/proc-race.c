/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lost writes. If this failed, a store made by some thread, by the kernel on a
 * thread's behalf (read, process_vm_writev, /proc/self/mem) or by a device
 * (O_DIRECT) while a merge was under way would be gone, or a page would show
 * bytes that it had earlier (I2, I3).
 *
 * One mapping, merged over and over, in which everybody writes at once. What is
 * written alternates between few values, so that pages become equal (and zero)
 * again and again. Every writer owns its words or pages, knows what it wrote last
 * and looks: right after each write, at the next visit, in sweeps, and at the end.
 *
 * What was written after it was merged stays in its store mapping and is not
 * frozen again. So between rounds, with everybody standing still for a moment, the
 * bytes go into fresh anonymous memory at the same place.
 */
#include "proctest.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/uio.h>

#define PAGES 2048u
#define WRITERS 4u
#define PATTERNS 8u
#define VALUES 4u
#define WRITES_A_VISIT 16u
#define WRITES_WANTED (PT_SANITIZED ? 10500000u : 12000000u)
#define ROUNDS_WANTED 30u

/* Which pages belong to whom; the rest is the word writers'. */
enum { DIRECT_A = 512, DIRECT_B = 640, PIPE = 1024, VM_WRITE = 1088, MEM_WRITE = 1152 };
#define DIRECT_PAGES 128u
#define KERNEL_PAGES 64u

static uint64_t *region;
static uint64_t *images; /* VALUES images of DIRECT_PAGES pages */
static uint8_t shadow[WRITERS][PAGES];
static _Atomic bool stop;
static pthread_rwlock_t still = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static _Atomic uint64_t writes, direct_pages, kernel_pages, refused;

static size_t words_a_page(void)
{
	return pt_page() / sizeof(uint64_t);
}

static bool is_word_page(size_t p)
{
	return !(p >= DIRECT_A && p < DIRECT_B + DIRECT_PAGES) &&
	       !(p >= PIPE && p < MEM_WRITE + KERNEL_PAGES);
}

/* Pattern 0 with all owners' words 0 is a zero page. */
static uint64_t base_word(size_t p, size_t w)
{
	return p % PATTERNS * (w * 0x9e3779b97f4a7c15ull + 0x123456789ull);
}

static size_t own_word(unsigned writer)
{
	return (37 + 101 * (size_t)writer) % words_a_page();
}

static _Atomic uint64_t *word(size_t p, size_t w)
{
	return (_Atomic uint64_t *)(region + p * words_a_page() + w);
}

static uint64_t value(uint8_t v)
{
	return v * 0x0101010101010101ull;
}

static bool is_owned_word(size_t w)
{
	for (unsigned k = 0; k < WRITERS; k++)
		if (w == own_word(k))
			return true;
	return false;
}

static void sweep(unsigned k)
{
	for (size_t p = 0; p < PAGES; p++)
		if (is_word_page(p))
			PT_CHECK(atomic_load(word(p, own_word(k))) == value(shadow[k][p]));
}

static void *word_writer(void *arg)
{
	unsigned k = (unsigned)(uintptr_t)arg;
	uint64_t rnd = k + 1, done = 0;

	while (!atomic_load(&stop)) {
		size_t p = pt_random(&rnd) % PAGES, other = pt_random(&rnd) % words_a_page();
		_Atomic uint64_t *w = word(p, own_word(k));

		if (!is_word_page(p))
			continue;
		pthread_rwlock_rdlock(&still);
		PT_CHECK(atomic_load(w) == value(shadow[k][p]));
		if (!is_owned_word(other))
			PT_CHECK(atomic_load(word(p, other)) == base_word(p, other));
		for (unsigned i = 0; i < WRITES_A_VISIT; i++) {
			/* Mostly back to where many pages are alike. */
			uint64_t r = pt_random(&rnd);
			uint8_t v = r % 8 ? (uint8_t)(r / 8 % VALUES) : 0;

			shadow[k][p] = v;
			atomic_store_explicit(w, value(v), memory_order_relaxed);
			PT_CHECK(atomic_load(w) == value(v));
		}
		pthread_rwlock_unlock(&still);
		atomic_fetch_add(&writes, WRITES_A_VISIT);
		if (++done % 8192 == 0) {
			pthread_rwlock_rdlock(&still);
			sweep(k);
			pthread_rwlock_unlock(&still);
		}
	}
	sweep(k);
	return NULL;
}

/* --- the kernel and devices ------------------------------------------------ */

static void make_images(void)
{
	images = pt_map(VALUES * DIRECT_PAGES);
	for (size_t v = 1; v < VALUES; v++)
		for (size_t p = 0; p < DIRECT_PAGES; p++)
			pt_fill_page((char *)images + (v * DIRECT_PAGES + p) * pt_page(), v,
				     p % PATTERNS);
}

static char *image(size_t v, size_t p)
{
	return (char *)images + (v * DIRECT_PAGES + p) * pt_page();
}

static int direct_file(void)
{
	const char *places[] = { ".", "/var/tmp", "/tmp" };
	size_t bytes = VALUES * DIRECT_PAGES * pt_page();
	int fd = -1;

	for (size_t i = 0; i < 3 && fd < 0; i++)
		fd = open(places[i], O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	if (pwrite(fd, images, bytes, 0) != (ssize_t)bytes) {
		close(fd);
		return -1;
	}
	return fd;
}

struct direct {
	int fd;
	size_t first;
};

static void *direct_reader(void *arg)
{
	struct direct *d = arg;
	char *home = (char *)region + d->first * pt_page();
	uint8_t last[DIRECT_PAGES] = { 0 };
	uint64_t rnd = d->first;

	while (!atomic_load(&stop)) {
		size_t v = pt_random(&rnd) % VALUES;
		size_t p = pt_random(&rnd) % DIRECT_PAGES;
		size_t n = pt_random(&rnd) % 4 ? DIRECT_PAGES - p : 1;

		pthread_rwlock_rdlock(&still);
		PT_CHECK(pread(d->fd, home + p * pt_page(), n * pt_page(),
			       (off_t)((v * DIRECT_PAGES + p) * pt_page())) ==
			 (ssize_t)(n * pt_page()));
		memset(last + p, (int)v, n);
		for (size_t i = 0; i < DIRECT_PAGES; i++)
			PT_CHECK(!memcmp(home + i * pt_page(), image(last[i], i), pt_page()));
		pthread_rwlock_unlock(&still);
		atomic_fetch_add(&direct_pages, n);
	}
	return NULL;
}

enum way { BY_PIPE, BY_VM_WRITEV, BY_MEM };
struct kernel_writer {
	enum way way;
	size_t first;
};

static ssize_t kernel_write(enum way way, const int *fd, char *to, char *from)
{
	struct iovec l = { from, pt_page() }, r = { to, pt_page() };

	switch (way) {
	case BY_PIPE:
		PT_CHECK(write(fd[1], from, pt_page()) == (ssize_t)pt_page());
		return read(fd[0], to, pt_page());
	case BY_VM_WRITEV:
		return process_vm_writev(getpid(), &l, 1, &r, 1, 0);
	case BY_MEM:
		return pwrite(fd[0], from, pt_page(), (off_t)(uintptr_t)to);
	}
	return -1;
}

static void *kernel_writer(void *arg)
{
	struct kernel_writer *k = arg;
	char *home = (char *)region + k->first * pt_page();
	uint8_t last[KERNEL_PAGES] = { 0 };
	uint64_t rnd = k->first;
	int fd[2] = { -1, -1 };

	if (k->way == BY_PIPE)
		PT_CHECK(pipe2(fd, O_CLOEXEC) == 0);
	if (k->way == BY_MEM)
		PT_CHECK((fd[0] = open("/proc/self/mem", O_RDWR | O_CLOEXEC)) >= 0);
	while (!atomic_load(&stop)) {
		size_t v = pt_random(&rnd) % VALUES, p = pt_random(&rnd) % KERNEL_PAGES;
		size_t look = pt_random(&rnd) % KERNEL_PAGES;
		ssize_t n;

		pthread_rwlock_rdlock(&still);
		n = kernel_write(k->way, fd, home + p * pt_page(), image(v, p));
		/* Access by debuggers cannot wait for a frozen page: it is refused,
		 * aloud, and changed nothing. */
		if (n < 0 && errno == EIO && k->way == BY_MEM) {
			atomic_fetch_add(&refused, 1);
			v = last[p];
			n = (ssize_t)pt_page();
		}
		PT_CHECK(n == (ssize_t)pt_page());
		last[p] = (uint8_t)v;
		PT_CHECK(!memcmp(home + p * pt_page(), image(v, p), pt_page()));
		PT_CHECK(!memcmp(home + look * pt_page(), image(last[look], look), pt_page()));
		pthread_rwlock_unlock(&still);
		atomic_fetch_add(&kernel_pages, 1);
	}
	close(fd[0]);
	close(fd[1]);
	return NULL;
}

/* --- the merges ------------------------------------------------------------ */

static void add(struct samepage_result *sum, const struct samepage_result *r)
{
	sum->pages_looked += r->pages_looked;
	sum->pages_merged += r->pages_merged;
	sum->pages_zeroed += r->pages_zeroed;
	sum->pages_already += r->pages_already;
	sum->pages_promoted += r->pages_promoted;
	sum->runs += r->runs;
	sum->vmas_added += r->vmas_added;
	for (unsigned i = 0; i < SAMEPAGE_REASON_MAX; i++)
		sum->pages_declined[i] += r->pages_declined[i];
}

/* The same bytes in fresh anonymous memory, while nobody looks. */
static void bring_home(char *copy)
{
	size_t bytes = PAGES * pt_page();

	pthread_rwlock_wrlock(&still);
	memcpy(copy, region, bytes);
	PT_CHECK(mmap(region, bytes, RW, ANON | MAP_FIXED, -1, 0) == region);
	memcpy(region, copy, bytes);
	pthread_rwlock_unlock(&still);
}

static void merge_some(struct samepage *sp, size_t first, size_t pages,
		       struct samepage_result *sum)
{
	struct samepage_result r;

	PT_CHECK(samepage_merge(sp, (char *)region + first * pt_page(), pages * pt_page(), 0,
				&r) == 0);
	PT_CHECK(pt_sums(&r));
	add(sum, &r);
}

/* Odd rounds in one call, even ones in pieces of any length, each at least twice. */
static unsigned merge_round(struct samepage *sp, uint64_t round, uint64_t *rnd,
			    struct samepage_result *sum)
{
	unsigned merges = 0;

	if (round % 2) {
		merge_some(sp, 0, PAGES, sum);
		merge_some(sp, 0, PAGES, sum);
		return 2;
	}
	for (unsigned twice = 0; twice < 2; twice++)
		for (size_t p = 0, n; p < PAGES; p += n) {
			n = 1 + pt_random(rnd) % 300;
			n = n < PAGES - p ? n : PAGES - p;
			merge_some(sp, p, n, sum);
			merges++;
		}
	return merges;
}

static void merge_until_done(struct samepage *sp)
{
	struct samepage_result sum = { 0 };
	uint64_t rnd = 99, round = 0, merges = 0;
	char *copy = pt_map(PAGES);

	while (atomic_load(&writes) + atomic_load(&direct_pages) + atomic_load(&kernel_pages) <
		       WRITES_WANTED ||
	       round < ROUNDS_WANTED) {
		merges += merge_round(sp, ++round, &rnd, &sum);
		bring_home(copy);
	}
	pt_unmap(copy, PAGES);
	pt_print("sum of merges", &sum);
	pt_note("merges %lu, move-backs %lu", merges,
		sum.pages_declined[SAMEPAGE_REASON_CHANGED]);
	PT_CHECK(sum.pages_merged > 0);
	PT_CHECK(sum.pages_zeroed > 0);
}

struct job {
	void *(*fn)(void *);
	void *arg;
};

/* Nicer than the merges, which otherwise get one part in ten of a small machine. */
static void *run_job(void *arg)
{
	struct job *j = arg;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), 7);
	return j->fn(j->arg);
}

static void start(pthread_t *t, unsigned *n, void *(*fn)(void *), void *arg)
{
	static struct job jobs[16];

	jobs[*n] = (struct job){ fn, arg };
	PT_CHECK(pthread_create(&t[*n], NULL, run_job, &jobs[*n]) == 0);
	(*n)++;
}

static void no_write_is_lost(void **state)
{
	static struct kernel_writer kernel[] = {
		{ BY_PIPE, PIPE }, { BY_VM_WRITEV, VM_WRITE }, { BY_MEM, MEM_WRITE }
	};
	struct direct direct[2] = { { -1, DIRECT_A }, { -1, DIRECT_B } };
	struct samepage *sp;
	pthread_t threads[16];
	unsigned n = 0;

	(void)state;
	pt_skip_unless_can_merge();
	region = pt_map(PAGES);
	for (size_t p = 0; p < PAGES; p++)
		for (size_t w = 0; is_word_page(p) && w < words_a_page(); w++)
			if (!is_owned_word(w))
				*word(p, w) = base_word(p, w);
	make_images();
	sp = pt_open();
	for (unsigned k = 0; k < WRITERS; k++)
		start(threads, &n, word_writer, (void *)(uintptr_t)k);
	for (unsigned k = 0; k < 3; k++)
		start(threads, &n, kernel_writer, &kernel[k]);
	for (unsigned k = 0; k < 2; k++) {
		direct[k].fd = direct_file();
		if (direct[k].fd >= 0)
			start(threads, &n, direct_reader, &direct[k]);
		else
			pt_note("no O_DIRECT here: %s", strerror(errno));
	}
	merge_until_done(sp);
	atomic_store(&stop, true);
	for (unsigned k = 0; k < n; k++)
		pthread_join(threads[k], NULL);
	for (size_t p = 0; p < PAGES; p++)
		for (size_t w = 0; is_word_page(p) && w < words_a_page(); w++)
			if (!is_owned_word(w))
				PT_CHECK(*word(p, w) == base_word(p, w));
	pt_note("checked: %lu words, %lu pages by O_DIRECT, %lu by the kernel (%lu refused aloud)",
		atomic_load(&writes), atomic_load(&direct_pages), atomic_load(&kernel_pages),
		atomic_load(&refused));
	samepage_close(sp);
	for (unsigned k = 0; k < 2; k++)
		if (direct[k].fd >= 0)
			close(direct[k].fd);
	pt_unmap(images, VALUES * DIRECT_PAGES);
	pt_unmap(region, PAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_write_is_lost),
	};

	return PT_MAIN("proc-race", tests);
}
