/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: mremap(MREMAP_FIXED | MREMAP_MAYMOVE) of a staging mapping over an
 * existing one looks atomic to a thread that reads there: the old bytes or the
 * new, never a hole's zeros and never a fault, because both happen under the lock
 * that a page fault needs. Likewise mmap(MAP_FIXED).
 *
 * Leans on it: nothing must; it is how an unmerge or a commit without a freeze
 * (memory that nobody can write) replaces mappings under running readers.
 * Kernel: any, but per-VMA locks (6.4) changed what a fault takes.
 */
#include "assume.h"

#define RW (PROT_READ | PROT_WRITE)
#define ROUNDS 4000
#define READERS 2

static volatile unsigned char *target;
static unsigned long reads[READERS], wrong;
static bool stop;
static size_t pg;

static void faulted(int sig)
{
	static const char text[] = "FAILED a reader faulted: it saw no mapping at all\n";
	ssize_t n = write(STDOUT_FILENO, text, sizeof(text) - 1);

	_exit(n < 0 ? 2 : 1 + 0 * sig);
}

__attribute__((no_sanitize("thread"))) /* it races with mmap: the point */
static void *reader(void *arg)
{
	unsigned long *count = arg;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned char a = target[0], b = target[pg + 1];

		if ((a != 'o' && a != 'n') || (b != 'o' && b != 'n'))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static bool some(unsigned long *count)
{
	return __atomic_load_n(count, __ATOMIC_RELAXED) != 0;
}

static void run(const char *what, bool by_mmap, bool hole)
{
	unsigned char *stage = anon_pages(2, RW);
	pthread_t t[READERS];
	int fd[2];

	for (int i = 0; i < 2; i++) {
		unsigned char *p;

		fd[i] = memfd_pages(2, 0);
		p = mmap(NULL, 2 * pg, RW, MAP_SHARED, fd[i], 0);
		MUST(p != MAP_FAILED);
		memset(p, i ? 'n' : 'o', 2 * pg);
	}
	stop = false;
	wrong = 0;
	memset(stage, 'o', 2 * pg);
	target = stage;
	for (int i = 0; i < READERS; i++) {
		reads[i] = 0;
		MUST(!pthread_create(&t[i], NULL, reader, &reads[i]));
	}
	/* Until there is something to tell: a slow machine just takes longer. */
	for (int i = 0; i < ROUNDS || !some(&reads[0]) || !some(&reads[1]) ||
			(hole && !some(&wrong)); i++) {
		void *dst = (void *)(uintptr_t)target;

		if (hole) {
			MUST(mmap(dst, 2 * pg, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
			     dst);
			usleep(10);
		}
		if (by_mmap) {
			MUST(mmap(dst, 2 * pg, RW, MAP_PRIVATE | MAP_FIXED, fd[i & 1], 0) == dst);
			continue;
		}
		stage = mmap(NULL, 2 * pg, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		MUST(stage != MAP_FAILED);
		memset(stage, i & 1 ? 'n' : 'o', 2 * pg);
		MUST(mremap(stage, 2 * pg, 2 * pg, MREMAP_FIXED | MREMAP_MAYMOVE, dst) == dst);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < READERS; i++)
		MUST(!pthread_join(t[i], NULL));
	if (hole)
		CHECK(wrong > 0, "the check works: %s is noticed", what);
	else
		CHECK(wrong == 0 && reads[0] && reads[1],
		      "%s: readers see the old bytes or the new (%lu wrong)", what, wrong);
}

int main(void)
{
	assume_begin(120);
	pg = page_bytes();
	signal(SIGSEGV, faulted);
	signal(SIGBUS, faulted);
	run("a replacement in two steps", false, true);
	run("mremap over a mapping", false, false);
	run("mmap(MAP_FIXED) over a mapping", true, false);
	return assume_end();
}
