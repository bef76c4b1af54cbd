/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests that link the shim's object files: the interposed functions are then
 * the program's own, and the bookkeeping can be looked at.
 */
#ifndef SAMEPAGE_TESTS_SHIMTEST_H
#define SAMEPAGE_TESTS_SHIMTEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proc/mem.h"
#include "shim/shim.h"
#include "sys/maps.h"
#include "sys/raw.h"
#include "sys/sys.h"

/* fn in a child, which must end by itself and well. */
static inline void must_do_in_child(int (*fn)(void))
{
	pid_t pid = fork();
	int status = -1;

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(fn());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static inline bool owned_now(const void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	bool ret;

	proc_mem_lock(&guard);
	ret = proc_mem_is_owned((uintptr_t)addr, (uintptr_t)addr + bytes);
	proc_mem_unlock(&guard);
	return ret;
}

/* Is any page of the range owned? */
static inline bool any_owned_now(const void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	struct core_range r;
	size_t n;

	proc_mem_lock(&guard);
	n = proc_mem_owned_copy((uintptr_t)addr, &r, 1);
	proc_mem_unlock(&guard);
	return n == 1 && r.start < (uintptr_t)addr + bytes;
}

struct owned_check {
	const struct core_range *range;
	size_t count;
	size_t at;
	uint64_t reached;
};

static inline int owned_check_vma(const struct sys_vma *vma, void *arg)
{
	struct owned_check *c = arg;

	while (c->at < c->count && vma->end > c->reached) {
		if (vma->start > c->reached)
			return 1;
		/* Store mappings stand for private anonymous memory. */
		if (vma->shared || (!vma->anonymous && !strstr(vma->name, "memfd:samepage")))
			return 1;
		if (vma->end < c->range[c->at].end) {
			c->reached = vma->end;
			return 0;
		}
		if (++c->at < c->count)
			c->reached = c->range[c->at].start;
	}
	return 0;
}

#define OWNED_CHECK_MAX 4096

/*
 * Everything that is owned is mapped, private and anonymous. Looked at under the
 * memory lock, for only then the two must agree.
 */
static inline bool owned_is_real(void)
{
	static struct core_range range[OWNED_CHECK_MAX];
	struct owned_check c = { .range = range };
	struct proc_mem_guard guard;
	char buf[8192];
	bool ok = true;

	proc_mem_lock(&guard);
	c.count = proc_mem_owned_copy(0, range, OWNED_CHECK_MAX);
	if (c.count > 0) {
		c.reached = range[0].start;
		ok = sys_maps_each(0, buf, sizeof(buf), owned_check_vma, &c) == 0 &&
		     c.at == c.count;
	}
	proc_mem_unlock(&guard);
	return ok;
}

static inline uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
