/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Owned memory against a model: 100,000 random calls that create, release, move
 * and change mappings in an arena of 64 pages, half of them through syscall(2).
 * After each call every page must be owned exactly if the model says so, and at
 * intervals everything owned must be mapped, private and anonymous according to the
 * kernel.
 *
 * If this failed, memory could be merged after the program gave it away: the merge
 * would overwrite whoever has the address now.
 */
#include <sys/mman.h>
#include <sys/syscall.h>


#include "shimtest.h"

#define PAGES 64
#define STEPS 100000
#define ARENA ((uint8_t *)0x100000000000) /* far below where the kernel puts mappings */

static size_t page;
static bool model[PAGES];
static uint64_t seed = 88172645463325252u;
static int memfd;

static unsigned pick(unsigned n)
{
	return (unsigned)(random_next(&seed) % n);
}

static void pick_range(unsigned *first, unsigned *count)
{
	*first = pick(PAGES);
	*count = 1 + pick(PAGES - *first < 16 ? PAGES - *first : 16);
}

static uint8_t *at(unsigned i)
{
	return ARENA + i * page;
}

static void set(unsigned first, unsigned count, bool owned)
{
	memset(&model[first], owned, count * sizeof(model[0]));
}

static bool all_owned(unsigned first, unsigned count)
{
	for (unsigned i = first; i < first + count; i++)
		if (!model[i])
			return false;
	return true;
}

static void step_map(unsigned first, unsigned count)
{
	static const struct {
		int flags;
		bool fd, owned;
	} kind[] = {
		{ MAP_PRIVATE | MAP_ANONYMOUS, false, true },
		{ MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, false, true },
		{ MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, false, false },
		{ MAP_SHARED | MAP_ANONYMOUS, false, false },
		{ MAP_PRIVATE, true, false },
		{ MAP_SHARED, true, false },
	};
	unsigned k = pick(sizeof(kind) / sizeof(kind[0]) + 4);
	int fixed = pick(4) ? MAP_FIXED : MAP_FIXED_NOREPLACE, fd;
	uint8_t *p;

	k = k < sizeof(kind) / sizeof(kind[0]) ? k : 0; /* mostly the owned kind */
	fd = kind[k].fd ? memfd : -1;
	if (pick(2))
		p = mmap(at(first), count * page - pick(2), PROT_READ | PROT_WRITE,
			 kind[k].flags | fixed, fd, 0);
	else
		p = (uint8_t *)syscall(SYS_mmap, at(first), count * page, PROT_READ | PROT_WRITE,
				       kind[k].flags | fixed, fd, 0L);
	if (p != MAP_FAILED)
		set(first, count, kind[k].owned);
}

static void step_unmap(unsigned first, unsigned count)
{
	long ret = pick(2) ? munmap(at(first), count * page) :
			     syscall(SYS_munmap, at(first), count * page);

	assert_int_equal(ret, 0);
	set(first, count, false);
}

/* After a failure less may be owned than before, never more. */
static void shrink_model(unsigned first, unsigned count)
{
	for (unsigned i = first; i < first + count && i < PAGES; i++)
		model[i] = model[i] && owned_now(at(i), page);
}

static void step_move(unsigned first, unsigned count, bool keep)
{
	unsigned to, room, old = count;
	bool moved[PAGES], all;
	void *p;

	pick_range(&to, &room);
	if (keep)
		room = count;
	if (to + room > PAGES || (to < first + count && first < to + room))
		return;
	p = mremap(at(first), old * page, room * page,
		   MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0), at(to));
	if (p == MAP_FAILED) {
		shrink_model(first, count);
		shrink_model(to, room);
		return;
	}
	/* What grew or stayed behind is owned if all of the old range was. */
	all = all_owned(first, old);
	for (unsigned i = 0; i < room; i++)
		moved[i] = i < old ? model[first + i] : all;
	set(first, old, keep && all);
	memcpy(&model[to], moved, room * sizeof(model[0]));
}

static void step_resize(unsigned first, unsigned count)
{
	unsigned want = 1 + pick(16);
	void *p;

	if (first + want > PAGES)
		return;
	p = pick(2) ? mremap(at(first), count * page, want * page, 0) :
		      (void *)syscall(SYS_mremap, at(first), count * page, want * page, 0L, 0L);
	if (p == MAP_FAILED)
		return;
	assert_ptr_equal(p, at(first));
	if (want < count)
		set(first + want, count - want, false);
	if (want > count)
		set(first + count, want - count, all_owned(first, count));
}

static void step_change(unsigned first, unsigned count)
{
	static const int advice[] = { MADV_DONTNEED, MADV_FREE,	   MADV_DONTFORK, MADV_DOFORK,
				      MADV_WILLNEED, MADV_DONTDUMP, MADV_DODUMP,   MADV_MERGEABLE,
				      MADV_UNMERGEABLE, MADV_REMOVE };
	int which = advice[pick(sizeof(advice) / sizeof(advice[0]))];

	/* The arena's memfd is shorter than what is mapped of it: nothing touches it. */
	switch (pick(4)) {
	case 0:
		mprotect(at(first), count * page, PROT_READ);
		break;
	case 1:
		mprotect(at(first), count * page, PROT_READ | PROT_WRITE);
		break;
	case 2:
		madvise(at(first), count * page, which);
		break;
	default:
		syscall(SYS_madvise, at(first), count * page, (long)which);
	}
}

static void compare(unsigned step)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (owned_now(at(i), page) != model[i])
			fail_msg("step %u, page %u: owned %d, should be %d", step, i, !model[i],
				 model[i]);
}

static void random_calls(void **state)
{
	assert_true(shim_is_ready());
	for (unsigned step = 0; step < STEPS; step++) {
		unsigned first, count;

		pick_range(&first, &count);
		switch (pick(10)) {
		case 0: case 1: case 2: case 3:
			step_map(first, count);
			break;
		case 4: case 5:
			step_unmap(first, count);
			break;
		case 6:
			step_move(first, count, false);
			break;
		case 7:
			step_resize(first, count);
			break;
		case 8:
			step_move(first, count, true);
			break;
		default:
			step_change(first, count);
		}
		compare(step);
		if (step % 64 == 0 && !owned_is_real())
			fail_msg("step %u: owned memory that is not private anonymous", step);
	}
	munmap(ARENA, PAGES * page);
}

static void moved_by_kernels_choice(void **state)
{
	uint8_t *p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0), *q;

	memset(p, 7, 2 * page);
	assert_true(owned_now(p, 2 * page));
	/* Something right behind, so that it must move. */
	mmap(p + 2 * page, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	q = mremap(p, 2 * page, 512 * page, MREMAP_MAYMOVE);
	assert_ptr_not_equal(q, MAP_FAILED);
	assert_true(owned_now(q, 512 * page));
	assert_int_equal(q[2 * page - 1], 7);
	assert_int_equal(q[2 * page], 0);
	if (q != p)
		assert_false(any_owned_now(p, 2 * page));
	munmap(q, 512 * page);
	assert_false(any_owned_now(q, 512 * page));
}

static void break_moves(void **state)
{
	uint8_t *top = sbrk(0), *base;
	size_t by = 8 * page;

	base = (uint8_t *)(((uintptr_t)top + page - 1) & ~(page - 1));
	for (int i = 0; i < 1000; i++) {
		assert_ptr_equal(sbrk((intptr_t)by), top);
		assert_true(owned_now(base, by));
		top[by - 1] = 1;
		if (i % 2)
			assert_ptr_equal(sbrk(-(intptr_t)by), top + by);
		else
			assert_int_equal(brk(top), 0);
		assert_false(any_owned_now(base, by));
	}
	assert_true(owned_is_real());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_calls),
		cmocka_unit_test(moved_by_kernels_choice),
		cmocka_unit_test(break_moves),
	};

	page = sys_page_bytes();
	memfd = memfd_create("model", MFD_CLOEXEC);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
