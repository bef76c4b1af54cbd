/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Clocks and /proc.
 *
 * CPU time of another process comes from its POSIX clock: nanoseconds, up to
 * date even while it runs, unlike the ticks of /proc/PID/stat.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "bench.h"

static double nsec(const struct timespec *t)
{
	return (double)t->tv_sec * 1e9 + (double)t->tv_nsec;
}

double bench_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return nsec(&t);
}

double bench_cpu_of(pid_t pid)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) < 0)
		bench_die("no CPU clock of process %d", (int)pid);
	return nsec(&t);
}

bool bench_file_line(const char *path, char *buf, size_t bytes)
{
	FILE *f = fopen(path, "re");
	bool ok = f && fgets(buf, (int)bytes, f);

	if (f)
		fclose(f);
	if (ok)
		buf[strcspn(buf, "\n")] = '\0';
	return ok;
}

/* "Name:   123 kB" */
static double kb_field(const char *path, const char *field)
{
	FILE *f = fopen(path, "re");
	size_t length = strlen(field);
	double bytes = 0;
	char line[256];

	if (!f)
		bench_die("cannot read %s", path);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, field, length) == 0 && line[length] == ':')
			bytes = strtod(line + length + 1, NULL) * 1024;
	fclose(f);
	return bytes;
}

double bench_meminfo(const char *field)
{
	return kb_field("/proc/meminfo", field);
}

double bench_smaps(pid_t pid, const char *field)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)pid);
	return kb_field(path, field);
}

double bench_page_tables(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	return kb_field(path, "VmPTE");
}

/* Memfds that were counted, by inode: a process may map one more than once. */
struct seen {
	ino_t inode[64];
	unsigned count;
};

static double memfd_once(pid_t pid, unsigned long long from, unsigned long long to,
			 struct seen *seen)
{
	char path[96];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)pid, from, to);
	if (stat(path, &st) < 0)
		return 0;
	for (unsigned i = 0; i < seen->count; i++)
		if (seen->inode[i] == st.st_ino)
			return 0;
	if (seen->count < 64)
		seen->inode[seen->count++] = st.st_ino;
	return (double)st.st_blocks * 512;
}

void bench_memory_of(pid_t pid, double *private_bytes, double *memfd_bytes)
{
	struct seen seen = { .count = 0 };
	char path[64], line[512];
	bool ours = false;
	FILE *f;

	*private_bytes = *memfd_bytes = 0;
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		bench_die("cannot read %s", path);
	while (fgets(line, sizeof(line), f)) {
		unsigned long long from, to;

		if (sscanf(line, "%llx-%llx ", &from, &to) == 2) {
			const char *name = strstr(line, "/memfd:samepage-");

			ours = name != NULL;
			if (ours && !strstr(name, "-store"))
				*memfd_bytes += memfd_once(pid, from, to, &seen);
		} else if (!ours && strncmp(line, "Private_", 8) == 0) {
			*private_bytes += strtod(strchr(line, ':') + 1, NULL) * 1024;
		}
	}
	fclose(f);
}

double bench_slab_of_mappings(void)
{
	static const char *const names[] = { "vm_area_struct", "maple_node", "vma_lock", NULL };
	FILE *f = fopen("/proc/slabinfo", "re");
	char line[512], name[64];
	double bytes = 0;

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		unsigned long active, total, size;

		if (sscanf(line, "%63s %lu %lu %lu", name, &active, &total, &size) != 4)
			continue;
		for (const char *const *n = names; *n; n++)
			if (strcmp(name, *n) == 0)
				bytes += (double)active * (double)size;
	}
	fclose(f);
	return bytes;
}
