/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench-codepatch: what the driver and its workers share.
 *
 *   codepatch.c         options, arms, the table
 *   codepatch_arm.c     one arm: 1000 processes from start to end
 *   codepatch_count.c   what memory they and samepage use
 *   codepatch_worker.c  a process whose libc text is patched and then merged
 */
#ifndef SAMEPAGE_BENCH_CODEPATCH_H
#define SAMEPAGE_BENCH_CODEPATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CP_FD 3 /* of the control page, in a worker */
#define CP_WORKERS_MAX 4000

enum cp_mode {
	CP_PLAIN,   /* nothing */
	CP_COPIES,  /* every page of libc's text copied on write */
	CP_KSM,     /* ... then MADV_MERGEABLE */
	CP_MADVISE, /* ... then MADV_MERGE, under the preload library */
	CP_LIBRARY, /* ... then samepage_open(), samepage_merge(), samepage_close() */
	CP_MODES,
};

enum cp_gate { CP_GATE_WORK = 1, CP_GATE_CHECK, CP_GATE_END };

/* The control page: everybody's. */
struct cp_worker {
	_Atomic int32_t pid;
	_Atomic int32_t error; /* errno of whatever failed first */
	_Atomic uint64_t done_nsec;
};

struct cp_control {
	uint32_t mode;      /* enum cp_mode */
	uint32_t by_page;   /* merge with one call a page */
	uint32_t children;  /* 0: each worker is executed; else forked by the first */
	_Atomic uint32_t gate; /* futex: highest enum cp_gate that is open */
	_Atomic uint32_t ready, done, checked;
	_Atomic uint32_t bad_pages; /* that are not what the file says */
	_Atomic uint64_t text_start, text_pages; /* of the worker that came last */
	char socket[108];
	struct cp_worker worker[CP_WORKERS_MAX];
};

/* Memory in pages, as sums over the processes (and the broker) unless said. */
struct cp_count {
	double anon;       /* private copies; KSM's counted once */
	double shmem;      /* of the broker's memfds, segments included */
	double tables;
	double vma_slab;
	double sum;
	double vmas;       /* a process, on average */
	double vmas_max;
	double kernel_stacks;
	double ksm_items;  /* KSM's own slab memory, by its counts */
	double whole_anon, whole_shmem, whole_tables; /* of the machine (/proc/meminfo) */
	double frames;     /* distinct frames behind a few text pages of everybody, a page */
};

struct cp_result {
	struct cp_count memory;
	double seconds;      /* from the gate's opening to the last return */
	double cpu_seconds;  /* processes, broker, ksmd */
	double cpu_broker;   /* of these: the broker or ksmd */
	double cpu_machine;  /* of everything (/proc/stat) */
	unsigned bad_pages, errors;
	int error;
};

struct cp_options {
	unsigned processes;
	bool forked, by_page;
	const char *worker, *worker_library, *preload;
};

/* codepatch_arm.c */
void cp_arm(const struct cp_options *o, enum cp_mode mode, struct cp_result *r);

/* codepatch_count.c; broker 0: none */
void cp_count(const struct cp_control *c, unsigned processes, pid_t broker, struct cp_count *n);
double cp_machine_cpu(void); /* seconds */

#endif
