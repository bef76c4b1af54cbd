/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * System calls without libc.
 *
 * libc's wrappers have two properties that this room cannot live with: they
 * write errno, which is thread-local memory and may be frozen at that moment,
 * and they are interposable symbols, which our own preload shim (and anybody
 * else's) replaces. So the instruction itself stands here, for the machines that
 * we know; elsewhere libc's syscall() has to do, with errno put back.
 *
 * sys_raw(number, up to six arguments) returns what the kernel returned: a
 * result, or a negative errno. Pointers and integers are widened to long as the
 * kernel's own calling convention wants them.
 */
#ifndef SAMEPAGE_SYS_RAW_H
#define SAMEPAGE_SYS_RAW_H

#include <sys/syscall.h>

#if __SIZEOF_LONG__ != 8 || !defined(__NR_mmap) || defined(__s390x__)
#error "samepage needs a 64-bit system whose mmap(2) takes its six arguments in registers"
#endif

#if defined(__x86_64__)

static inline __attribute__((always_inline)) long sys_raw6(long number, long a, long b, long c,
							    long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory", "cc");
	return result;
}

#elif defined(__aarch64__)

static inline __attribute__((always_inline)) long sys_raw6(long number, long a, long b, long c,
							    long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}

#else

#include <errno.h>
#include <unistd.h>

static inline long sys_raw6(long number, long a, long b, long c, long d, long e, long f)
{
	int saved = errno;
	long result = syscall(number, a, b, c, d, e, f);

	if (result == -1)
		result = -errno;
	errno = saved;
	return result;
}

#endif

#define SYS_RAW_PICK(n, a, b, c, d, e, f, ...)                                                     \
	sys_raw6((long)(n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys_raw(...) SYS_RAW_PICK(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

#endif
