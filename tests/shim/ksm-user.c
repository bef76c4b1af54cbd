/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program written for KSM, and for nothing else: what ksm-abi.py has it do comes as
 * lines on stdin, each is answered by one line on stdout.
 *
 *   map                        a new region of 64 pages, page k + 32 like page k
 *   advise R BYTE BYTES ADVICE madvise within region R
 *   hole R PAGE PAGES          munmap
 *   protect R PAGE PAGES PROT
 *   prctl A B C D E            through libc; sysprctl: through syscall(2)
 *   shared R PAGE PAGES        how many of those 32 lie in one frame with their twin
 *   good R                     are the bytes still the right ones?
 *   mg R                       mappings of the region that the kernel's KSM would scan
 *   fork, vfork, execve, execle, spawn, system
 *                              what PR_GET_MEMORY_MERGE says in such a child; all but
 *                              fork are another program. An environment is made for
 *                              those that take one: only what the loader needs
 *   env                        our own entry, as a program sees it
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REGIONS 16
#define PAGES 64
#define TWIN 32

static unsigned char *region[REGIONS];
static unsigned regions;
static size_t page;

static void answer(long ret)
{
	printf("%ld %d\n", ret, ret == -1 ? errno : 0);
}

static void fill(unsigned char *p, unsigned r, unsigned k)
{
	for (size_t i = 0; i < page; i++)
		p[i] = (unsigned char)(i * 7 + (k % TWIN) * 13 + r * 101 + i / 251 * (k % TWIN + 1));
}

static void map_region(void)
{
	unsigned char *p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || regions == REGIONS)
		exit(3);
	for (unsigned k = 0; k < PAGES; k++)
		fill(p + k * page, regions, k);
	region[regions] = p;
	printf("%u\n", regions++);
}

static uint64_t frame(const void *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)p / page * sizeof(entry))) !=
	    sizeof(entry))
		exit(4);
	close(fd);
	return entry >> 63 ? entry & ((UINT64_C(1) << 55) - 1) : 0;
}

static void shared(const unsigned char *p, unsigned first, unsigned pages)
{
	volatile unsigned char sum = 0;
	unsigned n = 0;

	for (unsigned k = first; k < first + pages && k < TWIN; k++) {
		uint64_t one, two;

		/* What was merged and not read since has no frame yet. */
		sum = (unsigned char)(sum + p[k * page] + p[(k + TWIN) * page]);
		one = frame(p + k * page);
		two = frame(p + (k + TWIN) * page);

		n += one != 0 && one == two;
	}
	printf("%u\n", n);
}

static void good(unsigned r)
{
	unsigned char *want = malloc(page);
	unsigned bad = 0;

	for (unsigned k = 0; k < PAGES; k++) {
		fill(want, r, k);
		bad += memcmp(want, region[r] + k * page, page) != 0;
	}
	free(want);
	printf("%s\n", bad ? "no" : "yes");
}

static void count_mg(const unsigned char *p)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start, end;
	char line[512];
	int in = 0;
	unsigned n = 0;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start < (uintptr_t)p + PAGES * page && end > (uintptr_t)p;
		else if (in && strncmp(line, "VmFlags:", 8) == 0)
			n += strstr(line, " mg") != NULL;
	}
	fclose(f);
	printf("%u\n", n);
}

static char *made_env[3];

/* Nothing of ours but what makes the loader load the library. */
static void make_env(void)
{
	static char preload[4096], sock[512];
	const char *p = getenv("LD_PRELOAD"), *s = getenv("SAMEPAGE_SOCKET");

	snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", p ? p : "");
	snprintf(sock, sizeof(sock), "SAMEPAGE_SOCKET=%s", s ? s : "");
	made_env[0] = preload;
	made_env[1] = sock;
	made_env[2] = NULL;
}

static void report(pid_t pid)
{
	int status = -1;

	if (pid > 0)
		waitpid(pid, &status, 0);
	printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 99);
}

static void child(const char *how)
{
	char *argv[] = { (char *)"ksm-user", (char *)"get", NULL };
	pid_t pid;

	make_env();
	if (strcmp(how, "fork") == 0 || strcmp(how, "execve") == 0 || strcmp(how, "execle") == 0) {
		pid = fork();
		if (pid == 0 && strcmp(how, "execve") == 0)
			execve("/proc/self/exe", argv, made_env);
		if (pid == 0 && strcmp(how, "execle") == 0)
			execle("/proc/self/exe", "ksm-user", "get", (char *)NULL, made_env);
		if (pid == 0)
			_exit(prctl(68, 0, 0, 0, 0));
	} else if (strcmp(how, "vfork") == 0) {
		pid = vfork();
		if (pid == 0) {
			execve("/proc/self/exe", argv, made_env);
			_exit(98);
		}
	} else if (strcmp(how, "spawn") == 0) {
		if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, made_env) != 0)
			pid = -1;
	} else {
		char path[4096], command[4200];
		ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
		int status;

		path[n < 0 ? 0 : n] = '\0';
		snprintf(command, sizeof(command), "exec '%s' get", path);
		status = system(command);
		printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 99);
		return;
	}
	report(pid);
}

/* Room for single pages of the library's own: the kernel takes the highest that fits,
 * and a hole that a test makes is to stay one. */
static void bait(void)
{
	unsigned char *p = mmap(NULL, 2 * PAGES * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);

	for (unsigned k = 1; k < 2 * PAGES; k += 2)
		munmap(p + k * page, page);
}

static void command(const char *line)
{
	char word[32];
	long a[5] = { 0 };

	if (sscanf(line, "%31s %li %li %li %li %li", word, a, a + 1, a + 2, a + 3, a + 4) < 1)
		return;
	if (strcmp(word, "map") == 0)
		map_region();
	else if (strcmp(word, "advise") == 0)
		answer(madvise(region[a[0]] + a[1], (size_t)a[2], (int)a[3]));
	else if (strcmp(word, "hole") == 0)
		answer(munmap(region[a[0]] + a[1] * (long)page, (size_t)a[2] * page));
	else if (strcmp(word, "protect") == 0)
		answer(mprotect(region[a[0]] + a[1] * (long)page, (size_t)a[2] * page, (int)a[3]));
	else if (strcmp(word, "prctl") == 0)
		answer(prctl((int)a[0], a[1], a[2], a[3], a[4]));
	else if (strcmp(word, "sysprctl") == 0)
		answer(syscall(SYS_prctl, a[0], a[1], a[2], a[3], a[4]));
	else if (strcmp(word, "shared") == 0)
		shared(region[a[0]], (unsigned)a[1], (unsigned)a[2]);
	else if (strcmp(word, "good") == 0)
		good((unsigned)a[0]);
	else if (strcmp(word, "mg") == 0)
		count_mg(region[a[0]]);
	else if (strcmp(word, "env") == 0)
		puts(getenv("SAMEPAGE_MERGE_ANY") ? getenv("SAMEPAGE_MERGE_ANY") : "none");
	else
		child(word);
}

int main(int argc, char **argv)
{
	char line[256];

	page = (size_t)sysconf(_SC_PAGESIZE);
	if (argc == 2 && strcmp(argv[1], "get") == 0)
		return prctl(68, 0, 0, 0, 0);
	bait();
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin))
		command(line);
	return 0;
}
