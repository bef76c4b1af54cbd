/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Assumption: madvise(26) and the two prctls either are those of our kernel series
 * (kernel/), or are refused with EINVAL. An empty range is enough to ask. With the series:
 * what is equal in one scope is merged when the call returns, mappings stay as they are,
 * ksm_stat says what became of each page, and a scope with pages in it is not left.
 *
 * Leans on it: the choice of the primitive (sys/probe.c), proc/kernel.c.
 * Kernel: that with the series; every other one refuses.
 */
#include "assume.h"

#include <sys/prctl.h>

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 32

static unsigned long long stat_line(const char *name)
{
	FILE *f = fopen("/proc/self/ksm_stat", "re");
	unsigned long long value = ~0ULL;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ' ')
			value = strtoull(line + strlen(name) + 1, NULL, 10);
	if (f)
		fclose(f);
	return value;
}

static int merge(void *p, size_t bytes)
{
	return madvise(p, bytes, SYS_MADV_MERGE) ? -errno : 0;
}

static long scope(unsigned long op, unsigned long cookie)
{
	return prctl(SYS_PR_SET_MEMORY_MERGE_SCOPE, op, cookie, 0, 0) ? -errno : 0;
}

static int without(void)
{
	void *p = anon_pages(1, RW);

	fill_page(p, 1);
	CHECK(merge(p, page_bytes()) == -EINVAL, "madvise(26) is refused with EINVAL");
	CHECK(page_is(p, 1), "and changes nothing");
	CHECK(scope(SYS_PR_MEMORY_MERGE_SCOPE_USER, 1) == -EINVAL &&
	      prctl(SYS_PR_GET_MEMORY_MERGE_SCOPE, 0, 0, 0, 0) == -1 && errno == EINVAL,
	      "and so are the prctls");
	return assume_end();
}

int main(void)
{
	unsigned char *a, *b;
	unsigned long long looked, merged, unique;
	int same = 0, vmas;
	size_t bytes;

	assume_begin(60);
	CHECK(merge(NULL, 0) == 0 || merge(NULL, 0) == -EINVAL,
	      "an empty range says whether the call is known");
	if (merge(NULL, 0) != 0)
		return without();
	CHECK(prctl(SYS_PR_GET_MEMORY_MERGE_SCOPE, 0, 0, 0, 0) >= 0, "there is a scope");
	CHECK(scope(SYS_PR_MEMORY_MERGE_SCOPE_USER, 4711) == 0, "which can be set after that");
	CHECK(scope(17, 0) == -EINVAL, "to what there is");
	need_page_frames();
	bytes = PAGES * page_bytes();
	a = anon_pages(PAGES, RW);
	b = anon_pages(PAGES, RW);
	for (size_t i = 0; i < PAGES; i++) {
		fill_page(at(a, i), (unsigned int)i);
		fill_page(at(b, i), (unsigned int)i);
	}
	vmas = count_vmas(a, bytes) + count_vmas(b, bytes);
	looked = stat_line("ksm_merge_looked");
	unique = stat_line("ksm_merge_unique");
	merged = stat_line("ksm_merge_merged");
	CHECK(looked != ~0ULL && unique != ~0ULL && merged != ~0ULL, "ksm_stat has the counts");
	CHECK(merge(a, bytes) == 0 && merge(b, bytes) == 0, "two ranges are merged");
	for (size_t i = 0; i < PAGES; i++)
		same += page_frame(at(a, i)) && page_frame(at(a, i)) == page_frame(at(b, i));
	CHECK(same == PAGES, "they have one frame for each page (%d of %d)", same, PAGES);
	CHECK(stat_line("ksm_merge_looked") - looked == 2 * PAGES, "each was looked at once");
	CHECK(stat_line("ksm_merge_unique") - unique == PAGES &&
	      stat_line("ksm_merge_merged") - merged == PAGES,
	      "the first was remembered, the second merged");
	CHECK(count_vmas(a, bytes) + count_vmas(b, bytes) == vmas, "no mapping came or went");
	a[0] ^= 1;
	CHECK(page_is(b, 0) && !page_is(a, 0), "a write is one's own");
	CHECK(scope(SYS_PR_MEMORY_MERGE_SCOPE_USER, 4711) == 0, "the same scope again is fine");
	CHECK(scope(SYS_PR_MEMORY_MERGE_SCOPE_USER, 4712) == -EBUSY, "another is refused");
	CHECK(madvise(b, bytes, MADV_DONTNEED) == 0 && page_is_zero(at(b, 1)),
	      "what is discarded is zeros");
	for (size_t i = 0; i < PAGES; i++)
		fill_page(at(b, i), (unsigned int)i);
	CHECK(merge(b, bytes) == 0 && page_frame(at(a, 1)) == page_frame(at(b, 1)),
	      "with what was merged before");
	CHECK(!madvise(a, bytes, MADV_UNMERGEABLE), "KSM's own advice takes it back");
	CHECK(page_frame(at(a, 1)) != page_frame(at(b, 1)) && page_is(at(a, 1), 1) &&
	      page_is(at(b, 1), 1), "without changing a byte");
	return assume_end();
}
