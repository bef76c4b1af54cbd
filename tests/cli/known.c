/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process whose private memory is known to the page: no libc, no data of its own, its
 * stack and what its arguments say. Each argument adds pages to one anonymous mapping:
 *
 *   dK:N  N pages with contents K, K+1, ..., the same in every process
 *   uN    N pages that no other process and no other page has
 *   cN    the same as d900000:N, until SIGUSR1 comes; then changed, each time anew
 *   aN    N pages equal in all processes but for one address of this mapping each
 *   zN    N pages that were written and are full of zeros
 *   rN    N pages that were only read: the kernel's zero page
 *   hN    N pages that were never touched
 *   gN    N pages that are guards (Linux 6.13; else never touched)
 *   sN    N pages that are shared with a child by fork (equal in all processes as well)
 *
 * and flags of the mapping: mergeable, executable, locked, huge; patched: one page of the
 * program's text is its own; file: one page of a private file mapping is; churn: go on
 * mapping and unmapping memory for ever, each page with contents of its own; split: go on
 * changing the protection of every second stretch of 30 pages, so that mappings split and
 * grow together again; exec: begin anew every 30 ms, without a word; thread, vm: its number is printed, a thread is there or a process
 * with the same memory.
 *
 * The last argument, "its-number", is written over. Prints "ready", then "changed" each
 * time that it has changed, and ends when killed.
 */
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "sys/raw.h"

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define CHANGING 900000u

static int same(const char *a, const char *b)
{
	for (; *a && *a == *b; a++)
		b++;
	return *a == *b;
}

static uint64_t number(const char *s)
{
	uint64_t n = 0;

	for (; *s >= '0' && *s <= '9'; s++)
		n = 10 * n + (uint64_t)(*s - '0');
	return n;
}

static const char *behind_colon(const char *s)
{
	while (*s && *s != ':')
		s++;
	return *s ? s + 1 : s;
}

static uint64_t pages_of(const char *s)
{
	return s[0] == 'd' ? number(behind_colon(s)) : number(s + 1);
}

static int is_pages(const char *s)
{
	return s[0] && s[1] >= '0' && s[1] <= '9';
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void fill(char *page, uint64_t content)
{
	volatile uint64_t *word = (volatile uint64_t *)page;

	for (unsigned i = 0; i < PAGE / 8; i++) /* the upper bit: never an address */
		word[i] = mix(content * 512 + i + 1) | 1ull << 63;
}

static void add(char *at, const char *s, uint64_t pid, uint64_t round)
{
	uint64_t n = pages_of(s);

	for (uint64_t i = 0; i < n; i++) {
		volatile char *page = at + i * PAGE;

		switch (s[0]) {
		case 'd': fill((char *)page, number(s + 1) + i); break;
		case 's': fill((char *)page, 800000 + i); break;
		case 'c': fill((char *)page, round ? (pid << 32) + (round << 24) + i : CHANGING + i); break;
		case 'u': fill((char *)page, (pid << 32) + (uint64_t)(uintptr_t)at / PAGE + i); break;
		case 'a':
			fill((char *)page, 700000 + i);
			*(volatile uint64_t *)(page + 64) = (uint64_t)(uintptr_t)page;
			break;
		case 'z': page[0] = 1; page[0] = 0; break;
		case 'r': (void)page[0]; break;
		case 'g': sys_raw(__NR_madvise, page, PAGE, 102 /* MADV_GUARD_INSTALL */); break;
		default: break;
		}
	}
}

static void add_all(char *at, char **argv, uint64_t round)
{
	uint64_t pid = (uint64_t)sys_raw(__NR_getpid);

	for (; *argv; argv++) {
		if (!is_pages(*argv))
			continue;
		if (!round || **argv == 'c')
			add(at, *argv, pid, round);
		at += pages_of(*argv) * PAGE;
	}
}

static int has(char **argv, const char *word)
{
	for (; *argv; argv++)
		if (same(*argv, word))
			return 1;
	return 0;
}

static char *map(uint64_t bytes, int prot, int flags, int fd)
{
	return (char *)sys_raw(__NR_mmap, 0, bytes, prot, MAP_PRIVATE | flags, fd, 0);
}

/* Text that is written to, as a patching program does; not the page that runs. */
__attribute__((section(".text.patched"), aligned(4096), used)) static char patched_text[4096];

static void patch(void)
{
	sys_raw(__NR_mprotect, patched_text, PAGE, PROT_READ | PROT_WRITE);
	*(volatile char *)patched_text = 'x';
	sys_raw(__NR_mprotect, patched_text, PAGE, PROT_READ | PROT_EXEC);
}

static void file(void)
{
	long fd = sys_raw(__NR_openat, AT_FDCWD, "/proc/self/exe", O_RDONLY, 0);
	volatile char *at = map(PAGE, PROT_READ | PROT_WRITE, 0, (int)fd);

	at[8] = 'x';
}

static void churn(void)
{
	for (uint64_t i = 0;; i++) {
		char *at = map(1024 * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS, -1);

		for (uint64_t k = 0; k < 1024; k++)
			*(volatile uint64_t *)(at + k * PAGE) = mix(i * 1024 + k + 1) | 1ull << 63;
		sys_raw(__NR_madvise, at + i % 512 * PAGE, 256 * PAGE, MADV_DONTNEED);
		sys_raw(__NR_munmap, at, 1024 * PAGE);
	}
}

static void split(char *at, uint64_t bytes)
{
	for (int prot = PROT_READ;; prot ^= PROT_WRITE)
		for (uint64_t i = 0; i < bytes; i += 60 * PAGE)
			sys_raw(__NR_mprotect, at + i, bytes - i < 30 * PAGE ? bytes - i : 30 * PAGE, prot);
}

static void say(const char *text, uint64_t bytes)
{
	sys_raw(__NR_write, 1, text, bytes);
}

static void child(void)
{
	sys_raw(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	for (;;)
		sys_raw(__NR_ppoll, 0, 0, 0, 0, 8);
}

static void print_number(uint64_t n)
{
	char text[21];
	unsigned at = sizeof(text);

	text[--at] = '\n';
	for (; n; n /= 10)
		text[--at] = (char)('0' + n % 10);
	say(text + at, sizeof(text) - at);
}

/* Its stack is the parent's, where it returns to nothing: one call, for ever. */
static void share(uint64_t flags)
{
	static char stack[PAGE] __attribute__((aligned(16)));
	long n;

#if defined(__x86_64__)
	__asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n"
			 "0: mov $34, %%eax\n syscall\n jmp 0b\n1:" /* pause */
			 : "=a"(n)
			 : "a"(__NR_clone), "D"(flags), "S"(stack + sizeof(stack)), "d"(0)
			 : "rcx", "r11", "r10", "r8", "memory");
	print_number((uint64_t)n);
#else
	(void)flags, (void)stack, (void)n;
	say("0\n", 2);
#endif
}

static void again(char **argv)
{
	int64_t pause[2] = { 0, 30000000 };
	char *none = 0;

	sys_raw(__NR_nanosleep, pause, 0);
	sys_raw(__NR_execve, "/proc/self/exe", argv - 1, &none);
}

static void run(char **argv)
{
	uint64_t bytes = 0, usr1 = 1ull << (SIGUSR1 - 1), round = 0;
	int prot = PROT_READ | PROT_WRITE | (has(argv, "executable") ? PROT_EXEC : 0);
	char *at;

	for (char **a = argv; *a; a++)
		bytes += is_pages(*a) ? pages_of(*a) * PAGE : 0;
	sys_raw(__NR_rt_sigprocmask, SIG_BLOCK, &usr1, 0, 8);
	at = map(bytes + HUGE, prot, MAP_ANONYMOUS, -1);
	at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	if (!has(argv, "huge"))
		sys_raw(__NR_madvise, at, bytes, MADV_NOHUGEPAGE);
	else
		sys_raw(__NR_madvise, at, bytes, MADV_HUGEPAGE);
	if (has(argv, "mergeable"))
		sys_raw(__NR_madvise, at, bytes, MADV_MERGEABLE);
	add_all(at, argv, 0);
	if (has(argv, "locked"))
		sys_raw(__NR_mlock2, at, bytes, 1 /* MLOCK_ONFAULT */);
	if (has(argv, "patched"))
		patch();
	if (has(argv, "file"))
		file();
	for (char **a = argv; *a; a++)
		if (is_pages(*a) && **a == 's' && sys_raw(__NR_clone, SIGCHLD, 0, 0, 0, 0) == 0)
			child();
	if (has(argv, "exec"))
		again(argv);
	say("ready\n", 6);
	if (has(argv, "thread"))
		share(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD);
	if (has(argv, "vm"))
		share(CLONE_VM);
	if (has(argv, "churn"))
		churn();
	if (has(argv, "split"))
		split(at, bytes);
	for (;;) {
		sys_raw(__NR_rt_sigtimedwait, &usr1, 0, 0, 8);
		add_all(at, argv, ++round);
		say("changed\n", 8);
	}
}

__attribute__((noreturn, used)) void known_start(long *stack)
{
	volatile char *name = (char *)stack[stack[0]] + 4; /* behind "its-" */

	/* no page of the stack is like another process's: its last word becomes its number */
	for (uint64_t pid = (uint64_t)sys_raw(__NR_getpid); pid && *name; pid /= 10)
		*name++ = (char)('0' + pid % 10);
	run((char **)(stack + 2)); /* argc, argv[0], and what is behind it */
	__builtin_unreachable();
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call known_start\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x29, #0\n mov x0, sp\n and sp, x0, #-16\n bl known_start\n");
#endif
