/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One address layout for a whole domain, secret to those outside it.
 *
 * Pointers are what keeps the pages of replicas apart. With ADDR_NO_RANDOMIZE
 * the kernel puts everything at the same addresses in every process, and the
 * mmap area (libraries, large allocations, thread stacks) starts at
 *
 *	TASK_SIZE - gap - constants, gap = soft stack limit, 128 MiB at least,
 *
 * page by page (mmap_base() of the kernel). So the soft limit at exec time is
 * where a per-domain random number can go in: BASE_BYTES plus a number of pages
 * made from the broker's layout_seed. What remains without randomness are the
 * bases of the executable, its heap and the stack: samepage-run(1) and
 * SECURITY.md say so.
 *
 * The library puts the soft limit back at start (SAMEPAGE_STACK_LIMIT), for it
 * is also libc's default for the size of thread stacks. If it is not loaded after
 * all, the program sees the raised limit; so this is only done for programs into
 * which it will be.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>

#include "cli/cli.h"
#include "sys/sys.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define BASE_BYTES (256 * MIB)
#define SPAN_BYTES (48 * GIB)
#define SPAN_BYTES_MIN (256 * MIB) /* less is not worth the name of random */

/* All bits of the result depend on all bits of the seed. */
static uint64_t mix(uint64_t x)
{
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	x ^= x >> 32;
	return x;
}

static int set_environment(uint64_t old_bytes, bool unlimited, uint64_t raised_bytes)
{
	char text[32];

	if (unlimited)
		strcpy(text, "unlimited");
	else
		snprintf(text, sizeof(text), "%llu", (unsigned long long)old_bytes);
	if (setenv("SAMEPAGE_STACK_LIMIT", text, 1) < 0)
		return -errno;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)raised_bytes);
	return setenv("SAMEPAGE_LAYOUT_STACK", text, 1) < 0 ? -errno : 0;
}

void cli_layout_private(void)
{
	int persona;

	if (!getenv("SAMEPAGE_LAYOUT_STACK"))
		return;
	unsetenv("SAMEPAGE_LAYOUT_STACK");
	unsetenv("SAMEPAGE_STACK_LIMIT");
	persona = personality(0xffffffff);
	if (persona >= 0)
		personality((unsigned long)persona & ~(unsigned long)ADDR_NO_RANDOMIZE);
}

int cli_layout_shared(uint64_t seed)
{
	uint64_t span = SPAN_BYTES, page = sys_page_bytes(), raised;
	struct rlimit limit, wanted;
	int persona, err;

	if (getrlimit(RLIMIT_STACK, &limit) < 0)
		return -errno;
	if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < BASE_BYTES + span) {
		if (limit.rlim_max < BASE_BYTES + SPAN_BYTES_MIN)
			return -ERANGE;
		span = limit.rlim_max - BASE_BYTES;
		cli_error("run: the hard stack limit (ulimit -Hs, %.0f MiB) leaves the shared "
			  "layout fewer than the usual %.0f GiB to choose from",
			  cli_mib(limit.rlim_max), (double)SPAN_BYTES / (double)GIB);
	}
	raised = BASE_BYTES + mix(seed) % (span / page) * page;
	persona = personality(0xffffffff);
	if (persona < 0 || personality((unsigned long)persona | ADDR_NO_RANDOMIZE) < 0)
		return -errno;
	wanted = limit;
	wanted.rlim_cur = raised;
	err = setrlimit(RLIMIT_STACK, &wanted) < 0 ? -errno : 0;
	if (err == 0)
		err = set_environment(limit.rlim_cur, limit.rlim_cur == RLIM_INFINITY, raised);
	if (err < 0) {
		/* Fixed addresses without the secret are worse than none. */
		setrlimit(RLIMIT_STACK, &limit);
		personality((unsigned long)persona);
	}
	return err;
}
