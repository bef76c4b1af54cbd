/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table that fails on request.
 *
 * Every wrapper is made from SYS_OPS: count the call, decide, and either answer
 * -errno or forward to sys_real. A faulted call has no side effect but the one
 * that the kernel itself leaves behind when it fails:
 *
 *  - close: Linux closes the descriptor and then tells of the error (a failed
 *    write back), so the faulted call closes too; not closing would invent a
 *    leak that no caller can repair.
 *  - munmap: a real failure (ENOMEM: no VMA left to split with) leaves the
 *    mapping in place, so the faulted call does.
 *  - uffd_move of more than one page failing with EBUSY (a pinned or shared
 *    page in the middle): the first half, rounded down to pages, really moves
 *    and is reported in *moved. With any other errno nothing moves.
 *  - uffd_move, uffd_copy, uffd_api, recv_msg: what they say through a pointer
 *    when they fail (no bytes, no features, no descriptors) is said.
 *
 * Counting. A point's calls are counted from the moment that it was armed (or
 * since sys_fault_count_only() or the last reset), with relaxed atomics: exact,
 * but no order between points is promised. `sys` itself is an ordinary pointer:
 * arm and reset while no other thread is in the middle of a call that matters.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "sys/fault.h"
#include "sys/raw.h"

struct point {
	_Atomic uint64_t calls;
	_Atomic uint64_t hits;
	_Atomic uint64_t nth; /* 0: not armed; stored last */
	_Atomic uint64_t times;
	_Atomic int error;
};

/* Made by the first who arms or counts, and kept: hardly any process ever does. */
static struct point *points;

static int make_points(void)
{
	long p;

	if (points)
		return 0;
	p = sys_raw(SYS_mmap, NULL, sizeof(*points) * SYS_FAULT_COUNT, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0 && p >= -4095)
		return (int)p;
	points = (struct point *)p;
	return 0;
}

static bool valid_point(enum sys_fault_point point)
{
	return (unsigned)point > SYS_FAULT_NONE && (unsigned)point < SYS_FAULT_COUNT;
}

/* Count this call: 0 to go on, or the errno to fail with. */
static int decide(enum sys_fault_point point)
{
	struct point *p = &points[point];
	uint64_t call = atomic_fetch_add_explicit(&p->calls, 1, memory_order_relaxed) + 1;
	uint64_t nth = atomic_load_explicit(&p->nth, memory_order_acquire);
	uint64_t times;

	if (nth == 0 || call < nth)
		return 0;
	times = atomic_load_explicit(&p->times, memory_order_relaxed);
	if (times != 0 && call - nth >= times)
		return 0;
	atomic_fetch_add_explicit(&p->hits, 1, memory_order_relaxed);
	return atomic_load_explicit(&p->error, memory_order_relaxed);
}

/* The plain wrapper of every entry; the special ones below replace a few. */
#define FAULT_PLAIN(ret, name, params, args)                                                       \
	static __attribute__((unused)) ret plain_##name params                                     \
	{                                                                                          \
		int error = decide(SYS_FAULT_##name);                                              \
                                                                                                   \
		if (error)                                                                         \
			return (ret)-error;                                                        \
		return sys_real.name args;                                                         \
	}
SYS_OPS(FAULT_PLAIN)
#undef FAULT_PLAIN

static int special_close(int fd)
{
	int error = decide(SYS_FAULT_close);
	int r = sys_real.close(fd);

	return error ? -error : r;
}

static int special_uffd_move(int fd, void *to, const void *from, size_t bytes, size_t *moved)
{
	int error = decide(SYS_FAULT_uffd_move);
	size_t half;
	int r;

	if (!error)
		return sys_real.uffd_move(fd, to, from, bytes, moved);
	*moved = 0;
	half = bytes / sys_page_bytes() / 2 * sys_page_bytes();
	if (error != EBUSY || half == 0)
		return -error;
	r = sys_real.uffd_move(fd, to, from, half, moved);
	return r < 0 ? r : -error;
}

static int special_uffd_copy(int fd, void *to, const void *from, size_t bytes, size_t *copied)
{
	int error = decide(SYS_FAULT_uffd_copy);

	if (!error)
		return sys_real.uffd_copy(fd, to, from, bytes, copied);
	*copied = 0;
	return -error;
}

static int special_uffd_api(int fd, uint64_t features, uint64_t *have)
{
	int error = decide(SYS_FAULT_uffd_api);

	if (!error)
		return sys_real.uffd_api(fd, features, have);
	if (have)
		*have = 0;
	return -error;
}

static ssize_t special_recv_msg(int fd, void *buf, size_t room, int *fds, unsigned *nfds, int flags)
{
	int error = decide(SYS_FAULT_recv_msg);

	if (!error)
		return sys_real.recv_msg(fd, buf, room, fds, nfds, flags);
	if (nfds)
		*nfds = 0;
	return -error;
}

/* SPECIAL_<name>, where defined, shifts its function into the second place. */
#define SPECIAL_close ~, special_close
#define SPECIAL_uffd_move ~, special_uffd_move
#define SPECIAL_uffd_copy ~, special_uffd_copy
#define SPECIAL_uffd_api ~, special_uffd_api
#define SPECIAL_recv_msg ~, special_recv_msg
#define SECOND(a, b, ...) b
#define PICK(...) SECOND(__VA_ARGS__, ~)

const struct sys_ops sys_faulty = {
#define FAULT_MEMBER(ret, name, params, args) .name = PICK(SPECIAL_##name, plain_##name),
	SYS_OPS(FAULT_MEMBER)
#undef FAULT_MEMBER
};

static void use_table(const struct sys_ops *table)
{
	__atomic_store_n(&sys, table, __ATOMIC_RELEASE);
}

int sys_fault_arm(enum sys_fault_point point, uint64_t nth, int error, uint64_t times)
{
	struct point *p;

	if (!valid_point(point) || nth == 0 || error <= 0 || error > 4095)
		return -EINVAL;
	if (make_points() < 0)
		return -ENOMEM;
	p = &points[point];
	atomic_store_explicit(&p->nth, 0, memory_order_relaxed);
	atomic_store_explicit(&p->error, error, memory_order_relaxed);
	atomic_store_explicit(&p->times, times, memory_order_relaxed);
	atomic_store_explicit(&p->hits, 0, memory_order_relaxed);
	atomic_store_explicit(&p->calls, 0, memory_order_relaxed);
	atomic_store_explicit(&p->nth, nth, memory_order_release);
	use_table(&sys_faulty);
	return 0;
}

void sys_fault_count_only(void)
{
	if (make_points() == 0)
		use_table(&sys_faulty);
}

void sys_fault_reset(void)
{
	use_table(&sys_real);
	for (int i = 0; points && i < SYS_FAULT_COUNT; i++) {
		atomic_store_explicit(&points[i].nth, 0, memory_order_relaxed);
		atomic_store_explicit(&points[i].times, 0, memory_order_relaxed);
		atomic_store_explicit(&points[i].error, 0, memory_order_relaxed);
		atomic_store_explicit(&points[i].hits, 0, memory_order_relaxed);
		atomic_store_explicit(&points[i].calls, 0, memory_order_relaxed);
	}
}

uint64_t sys_fault_calls(enum sys_fault_point point)
{
	return points && valid_point(point) ? atomic_load(&points[point].calls) : 0;
}

uint64_t sys_fault_hits(enum sys_fault_point point)
{
	return points && valid_point(point) ? atomic_load(&points[point].hits) : 0;
}

const char *sys_fault_name(enum sys_fault_point point)
{
	/* No table of pointers: it would be relocated, a private copy in each process. */
	switch (point) {
	case SYS_FAULT_NONE:
		return "none";
#define FAULT_NAME(ret, name, params, args)                                                        \
	case SYS_FAULT_##name:                                                                     \
		return #name;
		SYS_OPS(FAULT_NAME)
#undef FAULT_NAME
	case SYS_FAULT_COUNT:
		break;
	}
	return NULL;
}

/* the environment -------------------------------------------------------------- */

struct order {
	uint64_t nth;
	uint64_t error;
	uint64_t times;
};

/* Digits up to ':' ',' or the end; the place after them, or NULL. */
static const char *parse_number(const char *s, uint64_t *value)
{
	const char *first = s;

	*value = 0;
	for (; *s >= '0' && *s <= '9'; s++) {
		if (__builtin_mul_overflow(*value, 10, value) ||
		    __builtin_add_overflow(*value, (uint64_t)(*s - '0'), value))
			return NULL;
	}
	if (s == first || (*s != ':' && *s != ',' && *s != '\0'))
		return NULL;
	return s;
}

static enum sys_fault_point point_of(const char *name, size_t length)
{
	for (int i = SYS_FAULT_NONE + 1; i < SYS_FAULT_COUNT; i++) {
		const char *known = sys_fault_name((enum sys_fault_point)i);

		if (strlen(known) == length && memcmp(known, name, length) == 0)
			return (enum sys_fault_point)i;
	}
	return SYS_FAULT_NONE;
}

/* One "name:nth[:errno[:times]]"; the place after it (',' or the end), or NULL. */
static const char *parse_order(const char *s, enum sys_fault_point *point, struct order *order)
{
	size_t length = strcspn(s, ":,");

	*point = point_of(s, length);
	if (*point == SYS_FAULT_NONE || s[length] != ':')
		return NULL;
	*order = (struct order){ .error = EIO, .times = 1 };
	s = parse_number(s + length + 1, &order->nth);
	if (s && *s == ':')
		s = parse_number(s + 1, &order->error);
	if (s && *s == ':')
		s = parse_number(s + 1, &order->times);
	if (!s || *s == ':' || order->nth == 0 || order->error == 0 || order->error > 4095)
		return NULL;
	return s;
}

/* Without errno-number it is EIO, without times once. All or nothing is armed. */
int sys_fault_from_env(void)
{
	struct order orders[SYS_FAULT_COUNT] = { 0 };
	const char *s = getenv("SAMEPAGE_FAULT");

	if (!s || *s == '\0' || getauxval(AT_SECURE))
		return 0;
	for (;;) {
		enum sys_fault_point point;
		struct order order;

		s = parse_order(s, &point, &order);
		if (!s || orders[point].nth)
			return -EINVAL;
		orders[point] = order;
		if (*s == '\0')
			break;
		s++;
	}
	for (int i = SYS_FAULT_NONE + 1; i < SYS_FAULT_COUNT; i++)
		if (orders[i].nth)
			sys_fault_arm((enum sys_fault_point)i, orders[i].nth, (int)orders[i].error,
				      orders[i].times);
	return 0;
}
