/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Merged memory under calls in random order, compared with a copy that nobody merges.
 * KEEP_SEED chooses another order. See keep.h.
 */
#include "keep.h"

#define ARENA ((char *)0x200000000000)

static uint64_t random_state;

static unsigned pick(unsigned n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(random_state >> 33) % n;
}

static char shadow[PAGES * 65536] __attribute__((aligned(16)));
static bool there[PAGES];
static int prot[PAGES];
static size_t store_seen;

static void random_step(unsigned gen)
{
	unsigned first = pick(PAGES), n = 1 + pick(PAGES - first < 12 ? PAGES - first : 12), to;
	char *at = ARENA + first * page;

	switch (pick(12)) {
	case 0:
		munmap(at, n * page);
		memset(there + first, 0, n);
		break;
	case 1:
		if (mmap(at, n * page, RW, ANON | MAP_FIXED, -1, 0) != at)
			_exit(97);
		memset(shadow + first * page, 0, n * page);
		for (unsigned i = first; i < first + n; i++)
			there[i] = true, prot[i] = RW;
		break;
	case 2:
		/* Whatever is there: in a gap the rest is done all the same. */
		(void)(pick(2) ? madvise(at, n * page, MADV_DONTNEED) :
				 syscall(SYS_madvise, at, n * page, (long)MADV_DONTNEED));
		memset(shadow + first * page, 0, n * page);
		break;
	case 3:
		to = (unsigned[]){ PROT_NONE, PROT_READ, RW }[pick(3)];
		for (unsigned i = first; i < first + n; i++)
			if (there[i] && mprotect(ARENA + i * page, page, (int)to) == 0)
				prot[i] = (int)to;
		break;
	case 4:
		to = pick(PAGES - n + 1);
		if (to < first + n && first < to + n)
			break;
		for (unsigned i = 0; i < n; i++)
			if (!there[first + i] || prot[first + i] != prot[first])
				return;
		if (mremap(at, n * page, n * page, MREMAP_MAYMOVE | MREMAP_FIXED,
			   ARENA + to * page) == MAP_FAILED) {
			/* Mappings that the program did make apart: nothing must have moved. */
			if (errno != EFAULT)
				_exit(96);
			memset(there + to, 0, n); /* the target is gone */
			munmap(ARENA + to * page, n * page);
			break;
		}
		memmove(shadow + to * page, shadow + first * page, n * page);
		for (unsigned i = 0; i < n; i++) {
			there[to + i] = true;
			prot[to + i] = prot[first + i];
			there[first + i] = false;
		}
		break;
	case 5:
		madvise(at, n * page, (int[]){ MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP,
				MADV_NOHUGEPAGE, MADV_WILLNEED, 12, 13 }[pick(7)]);
		break;
	case 6:
		mlock(at, n * page);
		munlock(at, n * page);
		break;
	case 7:
	case 8:
		for (unsigned i = first; i < first + n; i++)
			if (there[i] && prot[i] == RW) {
				char *b = ARENA + i * page + pick((unsigned)page);

				*b = (char)pick(256);
				shadow[b - ARENA] = *b;
			}
		break;
	default:
		for (unsigned i = first; i < first + n; i++)
			if (there[i] && prot[i] == RW) {
				fill_page(ARENA + i * page, i, gen % 2);
				fill_page(shadow + i * page, i, gen % 2);
			}
	}
}

/* Every so often some that can be merged for sure. */
static void make_twins(unsigned gen)
{
	for (unsigned i = 0; i < PAGES; i++) {
		char *at = ARENA + i * page;

		if (i % (PAGES / 2) >= 12)
			continue;
		if (mmap(at, page, RW, ANON | MAP_FIXED, -1, 0) != at)
			_exit(97);
		there[i] = true;
		prot[i] = RW;
		fill_page(at, i, gen);
		fill_page(shadow + i * page, i, gen);
	}
}

static unsigned compare(void)
{
	unsigned wrong = 0;

	for (unsigned i = 0; i < PAGES; i++)
		if (there[i] && (prot[i] & PROT_READ))
			wrong += memcmp(ARENA + i * page, shadow + i * page, page) != 0;
	return wrong;
}

static void random_order(void)
{
	const char *seed = getenv("KEEP_SEED");
	unsigned steps = 12000, wrong = 0;

	random_state = seed ? strtoull(seed, NULL, 10) : 20250221;
	if (page > 65536)
		return;
	for (unsigned step = 0; step < steps && !wrong; step++) {
		random_step(step);
		if (step % 16 == 0) {
			wrong = compare();
			if (wrong)
				fprintf(stderr, "step %u, seed %s\n", step, seed ? seed : "-");
		}
		if (step % 200 == 199) {
			make_twins(step);
			for (unsigned i = 0; with_samepage() && i < 100; i++) {
				nap(10);
				if (merged_pages(ARENA, PAGES * page))
					break;
			}
			store_seen += merged_pages(ARENA, PAGES * page);
			wrong += compare();
		}
	}
	printf("wrong %u\n", wrong);
	/* The scanner lets mappings that are in flux be. */
	if (with_samepage() && store_seen < (getenv("KEEP_SCAN") ? 10 : 300)) {
		fprintf(stderr, "only %zu merged pages seen\n", store_seen);
		_exit(NEVER_MERGED);
	}
}

int main(int argc, char **argv)
{
	static const struct keep_case cases[] = { { "random_order", random_order } };

	return keep_main(argc, argv, cases, 1);
}
