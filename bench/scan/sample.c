/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the machine uses and what merging costs, over time: a line of numbers every
 * INTERVAL until standard input ends.
 *
 *   scan-sample INTERVAL_USEC [--group FOLDER] [--ksmd PID] [--broker PID] [--clients PID...]
 *
 * The first line names the columns. Memory, in bytes: anonymous, shmem, and the kernel's for
 * them (page tables, mappings, stacks), of a control group with a memory controller of
 * either version; ksm_items is what KSM keeps in mind, which no group is charged for.
 * Without a group they are the machine's, KSM's among the kernel's. "machine" is their sum
 * by the machine's counters in any case. CPU
 * times are nanoseconds: ksmd's and the broker's by their POSIX clocks; "engines" is the
 * sum over the clients' engine threads. Those are told from the program's own threads by
 * their descriptor table, which is not the program's (kcmp). Files are opened once and
 * read again and again; what the sampling itself costs is the last column.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ENGINES_MAX 512
#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static const char *const ksm[] = { "pages_shared", "pages_sharing", "pages_unshared",
				   "pages_volatile", "full_scans", "pages_scanned" };
static int meminfo, group_stat = -1, group_kernel = -1;
static int ksm_file[COUNT(ksm)], engine_file[ENGINES_MAX];
static unsigned engines;
static unsigned long long item_bytes, node_bytes;

static uint64_t nsec_of(clockid_t clock)
{
	struct timespec t = { 0 };

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t cpu_of(pid_t pid)
{
	clockid_t clock;

	return pid && clock_getcpuclockid(pid, &clock) == 0 ? nsec_of(clock) : 0;
}

static const char *again(int fd)
{
	static char buf[8192];
	ssize_t n = fd < 0 ? 0 : pread(fd, buf, sizeof(buf) - 1, 0);

	buf[n < 0 ? 0 : n] = '\0';
	return buf;
}

/* The number behind a name that begins a line. */
static unsigned long long field(const char *text, const char *name)
{
	size_t length = strlen(name);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (strncmp(text, name, length) == 0)
			return strtoull(text + length, NULL, 10);
	}
	return 0;
}

struct memory {
	unsigned long long anon, shmem, kernel, ksm_items;
};

static struct memory of_machine(void)
{
	const char *text = again(meminfo);

	return (struct memory){
		.anon = field(text, "AnonPages:") * 1024,
		.shmem = field(text, "Shmem:") * 1024,
		.kernel = (field(text, "PageTables:") + field(text, "SUnreclaim:") +
			   field(text, "KernelStack:")) * 1024,
	};
}

static struct memory of_group(void)
{
	const char *text = again(group_stat);
	struct memory m = { .shmem = field(text, "shmem ") };

	if (group_kernel < 0) {
		m.anon = field(text, "anon ");
		m.kernel = field(text, "kernel ");
	} else {
		m.anon = field(text, "rss ");
		m.kernel = strtoull(again(group_kernel), NULL, 10);
	}
	return m;
}

static void open_group(const char *folder)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/memory.stat", folder);
	group_stat = open(path, O_RDONLY | O_CLOEXEC);
	/* Version 1; in version 2 it is in memory.stat. */
	snprintf(path, sizeof(path), "%s/memory.kmem.usage_in_bytes", folder);
	group_kernel = open(path, O_RDONLY | O_CLOEXEC);
}

static unsigned long long slab_bytes(const char *cache)
{
	unsigned long long bytes;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/slab_size", cache);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	bytes = strtoull(again(fd), NULL, 10);
	close(fd);
	return bytes ? bytes : 64; /* as on x86-64, where slabs cannot be read */
}

/* The thread whose descriptors are not those of the first thread. */
static void find_engine(pid_t pid)
{
	char path[64];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	while (d && (e = readdir(d)) != NULL) {
		int tid = atoi(e->d_name);

		if (tid <= 0 || syscall(SYS_kcmp, pid, tid, KCMP_FILES, 0, 0) <= 0 ||
		    engines == ENGINES_MAX)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", (int)pid, tid);
		engine_file[engines] = open(path, O_RDONLY | O_CLOEXEC);
		engines += engine_file[engines] >= 0;
	}
	if (d)
		closedir(d);
}

static void line(pid_t ksmd, pid_t broker)
{
	struct memory machine = of_machine(), m = machine;
	long long count[COUNT(ksm)];
	uint64_t sum = 0;

	for (unsigned i = 0; i < COUNT(ksm); i++)
		count[i] = strtoll(again(ksm_file[i]), NULL, 10);
	if (group_stat >= 0) {
		m = of_group();
		m.ksm_items = (unsigned long long)(count[0] + count[1] + count[2] + count[3]) *
				      item_bytes + (unsigned long long)count[0] * node_bytes;
	}
	printf("%llu,%llu,%llu,%llu,%llu,%llu", (unsigned long long)nsec_of(CLOCK_MONOTONIC),
	       m.anon, m.shmem, m.kernel, m.ksm_items,
	       machine.anon + machine.shmem + machine.kernel);
	for (unsigned i = 0; i < COUNT(ksm); i++)
		printf(",%lld", count[i]);
	for (unsigned i = 0; i < engines; i++)
		sum += strtoull(again(engine_file[i]), NULL, 10);
	printf(",%llu,%llu,%llu,%u,%llu\n", (unsigned long long)cpu_of(ksmd),
	       (unsigned long long)cpu_of(broker), (unsigned long long)sum, engines,
	       (unsigned long long)nsec_of(CLOCK_PROCESS_CPUTIME_ID));
	fflush(stdout);
}

static void head(void)
{
	printf("time,anon,shmem,kernel,ksm_items,machine");
	for (unsigned i = 0; i < COUNT(ksm); i++)
		printf(",%s", ksm[i]);
	printf(",ksmd,broker,engines,engine_count,sampling\n");
}

int main(int argc, char **argv)
{
	pid_t ksmd = 0, broker = 0;
	struct pollfd end = { .fd = STDIN_FILENO };
	struct timespec next;
	char path[128];
	long interval;

	if (argc < 2 || (interval = strtol(argv[1], NULL, 10) * 1000) <= 0)
		return 2;
	for (int i = 2; i < argc; i++)
		if (strcmp(argv[i], "--ksmd") == 0 && i + 1 < argc)
			ksmd = atoi(argv[++i]);
		else if (strcmp(argv[i], "--broker") == 0 && i + 1 < argc)
			broker = atoi(argv[++i]);
		else if (strcmp(argv[i], "--group") == 0 && i + 1 < argc)
			open_group(argv[++i]);
		else if (strcmp(argv[i], "--clients") != 0)
			find_engine(atoi(argv[i]));
	prctl(PR_SET_TIMERSLACK, 1);
	meminfo = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	for (unsigned i = 0; i < COUNT(ksm); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", ksm[i]);
		ksm_file[i] = open(path, O_RDONLY | O_CLOEXEC);
	}
	item_bytes = slab_bytes("ksm_rmap_item");
	node_bytes = slab_bytes("ksm_stable_node");
	head();
	clock_gettime(CLOCK_MONOTONIC, &next);
	do {
		line(ksmd, broker);
		next.tv_nsec += interval;
		next.tv_sec += next.tv_nsec / 1000000000;
		next.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	} while (poll(&end, 1, 0) == 0);
	return 0;
}
