/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looking at the private memory of running processes from outside: what would merging
 * save? Nothing is changed: no page is unshared, and none is populated or swapped in, but
 * for one that goes between being found and being read: the read brings it back.
 *
 * One look: for each process, its mappings; for each mapping, which pages are there
 * (PAGEMAP_SCAN); of those the ones that are private, mapped once and not merged by KSM
 * (pagemap) are read through /proc/PID/mem, fingerprinted, and recorded in a census
 * (core/census.h). A look that follows another one also tells which pages stayed.
 *
 * Order of calls: analyze_new(); analyze_look() as often as wanted, each followed by
 * analyze_moment(); analyze_finish(); the results are in the structure; analyze_free().
 * One thread calls; a look may use more of its own.
 */
#ifndef SAMEPAGE_ANALYZE_ANALYZE_H
#define SAMEPAGE_ANALYZE_ANALYZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/census.h"

enum analyze_state {
	ANALYZE_OK,
	ANALYZE_EXITED,    /* before or while it was read: nothing of it counts */
	ANALYZE_DENIED,    /* the kernel did not let us */
	ANALYZE_NO_MEMORY, /* a kernel thread or a zombie */
	ANALYZE_FAILED,    /* another error */
	ANALYZE_NOT_READ,  /* interrupted before its turn, or in it */
	ANALYZE_SHARES,    /* has the memory of a process that was read: shares_pid */
};

#define ANALYZE_COMMAND_BYTES 32
#define ANALYZE_CGROUP_BYTES 256

struct analyze_process {
	int pid;
	uint64_t started; /* field 22 of /proc/PID/stat: tells a number used again */
	uint64_t image;   /* the same until it executes another program */
	int shares_pid;   /* for SHARES */
	uid_t uid;        /* effective */
	enum analyze_state state;
	int error; /* errno, for DENIED and FAILED */
	char command[ANALYZE_COMMAND_BYTES];
	char cgroup[ANALYZE_CGROUP_BYTES];
	uint64_t cgroup_hash;
	uint64_t program; /* equal in replicas: executable file and first words; 0: unknown */
	bool machine;     /* a virtual machine monitor, by its name */
	uint32_t region_first, region_end;
	/* pages */
	uint64_t read;        /* private pages that were read, zero ones included */
	uint64_t zero;        /* of which full of zeros */
	uint64_t zero_mapped; /* the kernel's zero page: costs nothing, was not read */
	uint64_t ksm;         /* merged by KSM already, was not read */
	uint64_t forked;      /* shared with a parent or child since fork, was not read */
	uint64_t swapped;     /* was not read */
	uint64_t vanished;    /* gone, or not to be read, when its turn came */
	uint64_t huge;        /* of the read ones, in huge pages */
	uint64_t merged;      /* mapped from a store of samepage */
	uint64_t hugetlb;     /* in hugetlbfs mappings: never mergeable */
	uint64_t stayed, lasted; /* of the read ones, since the look before and the first */
	/* others */
	uint64_t locked_bytes; /* VmLck */
	uint64_t pinned_bytes; /* VmPin: what the kernel accounts; not each pin is */
	uint64_t vmas;
};

/* One look, in numbers: for the course of things. Pages. */
struct analyze_moment {
	uint64_t at_usec; /* since the first look began */
	uint64_t look_usec;
	uint64_t processes;
	uint64_t pages;   /* recorded */
	uint64_t zero;
	uint64_t stayed;  /* recorded ones unchanged since the look before */
	uint64_t lasted;  /* since the first */
	uint64_t saved;
	uint64_t saved_stayed; /* by pages that stayed alone */
	uint64_t saved_lasted;
};

struct analyze_options {
	const int *pid; /* these */
	unsigned pids;
	const char *cgroup; /* and what is in this one and below it */
	bool all;           /* and everybody, except the caller */
	unsigned threads;   /* 0: as many as make sense */
	/* Called now and then; non-zero: stop reading. May be NULL. */
	int (*progress)(void *arg, uint64_t pages, uint64_t of_pages, const char *command, int pid);
	void *progress_arg;
};

struct analyze_cost {
	double slot_bytes;  /* index, a slot */
	double vma_bytes;   /* the kernel's, a mapping */
	bool vma_measured;  /* from /proc/slabinfo; else assumed */
};

struct analyze {
	struct analyze_options options;
	struct analyze_process *process;
	unsigned processes;
	struct core_census census;
	bool interrupted;
	unsigned looks;
	struct analyze_moment *moment;
	unsigned moments;
	/* of analyze_finish() */
	struct core_census_answer answer[CORE_CENSUS_SCOPES];
	struct core_census_answer stayed, lasted; /* looks > 1 */
	uint32_t member[CORE_CENSUS_MATRIX];
	uint32_t members;
	uint64_t *cell; /* CORE_CENSUS_MATRIX squared */
	uint32_t groups[CORE_CENSUS_SCOPES]; /* how many users, cgroups, processes, sets of replicas */
	struct analyze_cost cost;
	int64_t ksm_run, ksm_shared, ksm_sharing; /* the kernel's word, or -errno */
	int64_t max_map_count;
	uint64_t read_usec;    /* all looks, wall clock */
	uint64_t own_bytes_max; /* memory for pages and mappings, at its peak */
	struct analyze_inner *inner;
};

/* 0, or -ENOENT (no such cgroup), -ENOSYS (no PAGEMAP_SCAN), -ENOMEM ... */
int analyze_new(struct analyze *a, const struct analyze_options *options);
/*
 * 0 or -errno; what is wrong with one process is that process's state. -ENODATA: there was
 * a look, and none of those who are to be looked at is left, or ends while it is read: the
 * results are those of the look before, finished.
 */
int analyze_look(struct analyze *a);
/* Work out and append the figures of this look. */
int analyze_moment(struct analyze *a);
int analyze_finish(struct analyze *a);
void analyze_free(struct analyze *a);

/* What a merge in this way would bring, all costs taken off; may be negative. */
double analyze_net_bytes(const struct analyze *a, const struct core_census_answer *answer);
/* Processes whose mappings would not fit below vm.max_map_count, less a tenth. */
unsigned analyze_over_limit(const struct analyze *a, enum core_census_scope scope);

#endif
