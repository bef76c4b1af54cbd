/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The merge benchmark: what its files share.
 *
 *   merge.c    options, and which measurements are made in which order
 *   measure.c  one measurement from beginning to end: processes, order, reading
 *   broker.c   a broker for one measurement, on a private socket
 *   worker.c   the process whose memory is merged: does as it is told
 *   data.c     what is in that memory
 *   child.c    starting workers and talking to them
 *   ksm.c      the kernel's KSM: run it, watch it
 *   settings.c everything in the machine that is changed, and put back
 *   proc.c     reading /proc and clocks
 *   table.c    rows of numbers; report.c  what the tables say
 *
 * Figures are doubles throughout: medians of few numbers, for people.
 */
#ifndef SAMEPAGE_BENCH_H
#define SAMEPAGE_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define BENCH_WHOLE UINT32_MAX /* run length: the same order in both */
#define BENCH_RANGES 2
#define BENCH_SAMPLES 512
#define BENCH_COW_PAGES 16384
#define BENCH_PATH 512
#define BENCH_REASONS 32

enum bench_system {
	BENCH_BROKER,   /* samepage_merge() in two processes, with samepaged */
	BENCH_EMBEDDED, /* samepage_merge() in one process, no broker */
	BENCH_KSM,
};

/* One measurement. Times in nanoseconds, memory in bytes; of all pages unless said. */
struct bench_sample {
	enum bench_system system;
	uint32_t run;
	uint64_t bytes;          /* of one of the two ranges */
	double pages;            /* both ranges, as far as they were merged */
	double merged_share;     /* merged / should be */
	double wall, wall_first, wall_twin;
	double cpu, cpu_first, cpu_twin;           /* client and broker, or ksmd */
	double broker_first, broker_twin;          /* of these, the broker's */
	double frozen;
	double runs_mapped;      /* of the twin */
	double vmas;             /* added by the merge of the twin */
	double vma_bytes;        /* slab memory of mappings, of both */
	double own_client, own_broker, own_index;  /* KSM: all in own_index */
	double own;              /* the sum of the three */
	double available_saved;  /* 2 * bytes - what MemAvailable went down by */
	double pss_saved;        /* 2 * bytes - Pss of both processes */
	double read_first;       /* per page, the first read after the merge */
	double cow;              /* per page, the first write after that */
	double same_frames;      /* share of the samples */
	double full_scans;
	bool interfered;         /* not a measurement: KSM did not get there */
	uint64_t declined[BENCH_REASONS]; /* by enum samepage_reason */
};

/* --- data.c --- */

/* position -> page number: blocks of run pages, no two neighbours in order. Caller frees. */
uint32_t *bench_order(uint32_t pages, uint32_t run, uint64_t seed);
void bench_page_fill(void *page, uint64_t seed, uint32_t number);
bool bench_page_is(const void *page, uint64_t seed, uint32_t number);
uint64_t bench_random(uint64_t *state);

/* --- worker.c: orders and answers over two pipes --- */

enum bench_op {
	BENCH_OP_FILL,   /* range, pages, run, seed */
	BENCH_OP_OPEN,   /* path ("" embedded), store_bytes */
	BENCH_OP_MERGE,  /* range */
	BENCH_OP_ADVISE, /* range: MADV_MERGEABLE */
	BENCH_OP_READ,   /* range: one byte of every page */
	BENCH_OP_FRAMES, /* range: the frame numbers of the sample pages */
	BENCH_OP_WRITE,  /* range, pages: one byte each, and back */
	BENCH_OP_CHECK,  /* range: every byte */
	BENCH_OP_STALL,  /* range: merge while another thread reads; the longest wait */
	BENCH_OP_END,
};

struct bench_order {
	uint32_t op, range;
	uint32_t pages, run;
	uint64_t seed;
	uint64_t store_bytes;
	char path[108];
};

struct bench_answer {
	int32_t error;
	uint32_t bad_pages;
	double wall, cpu;
	double looked, merged, frozen, runs, vmas;
	double longest;
	uint64_t declined[BENCH_REASONS];
	uint64_t frame[BENCH_SAMPLES];
};

int bench_worker(int in, int out);

/* --- child.c --- */

struct bench_child {
	pid_t pid;
	int to, from;
};

/* All of these end the program when they cannot: there is nothing to measure then. */
void bench_child_start(struct bench_child *c);
void bench_child_ask(struct bench_child *c, const struct bench_order *o, struct bench_answer *a);
void bench_child_end(struct bench_child *c);
bool bench_read_all(int fd, void *buf, size_t bytes);
bool bench_write_all(int fd, const void *buf, size_t bytes);
/* In the child, between fork and exec: die with the driver, hold nothing of it. */
void bench_child_prepare(pid_t parent);
void bench_die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* --- broker.c --- */

extern const char *bench_broker_path; /* of samepaged */
/* Listens at bench_socket() when this returns. */
pid_t bench_broker_start(uint64_t store_bytes);
void bench_broker_end(pid_t pid);

/* --- settings.c --- */

/* Save, and start the process that puts everything back when this one is gone, however. */
void bench_settings_guard(void);
/* A socket's path in a folder that is removed in the end. */
const char *bench_socket(void);
/* Children to be killed before settings are put back. */
void bench_settings_child(pid_t pid, bool alive);
/* Put everything back and see to it that it is: 0, or how many could not be. */
int bench_settings_restore(void);
/* /sys/kernel/mm/ksm/NAME */
void bench_ksm_set(const char *name, const char *value);
int64_t bench_ksm_get(const char *name);
void bench_map_count_at_least(int64_t count);

/* --- ksm.c --- */

pid_t bench_ksmd(void); /* 0: there is none */
/* Let it run unthrottled until twins pages have been merged; fills wall, cpu, pages. */
void bench_ksm_merge(struct bench_sample *s, uint64_t twins);
/* Let it forget the processes that have ended: until it knows of known pages only. */
void bench_ksm_drain(int64_t known);
int64_t bench_ksm_known(void);
/* Kernel memory for what it knows, by its counts. */
double bench_ksm_memory(void);

/* --- measure.c --- */

void bench_measure(struct bench_sample *s, enum bench_system system, uint64_t bytes, uint32_t run,
		   uint64_t seed);
struct bench_stall {
	double longest; /* nanoseconds */
	double quiet;   /* of the same reader without a merge */
	uint64_t bytes;
};
void bench_measure_stall(struct bench_stall *s, enum bench_system system, uint64_t bytes);

/* --- proc.c --- */

double bench_now(void);              /* nanoseconds */
double bench_cpu_of(pid_t pid);      /* nanoseconds, all threads */
double bench_meminfo(const char *field);                  /* bytes */
double bench_smaps(pid_t pid, const char *field);         /* smaps_rollup, bytes */
double bench_page_tables(pid_t pid);                      /* bytes */
/* Private memory but for memfds of samepage's, and those but for the store's segments. */
void bench_memory_of(pid_t pid, double *private_bytes, double *memfd_bytes);
/* Slab memory, machine-wide, of mappings and their trees; 0: not readable. */
double bench_slab_of_mappings(void);
bool bench_file_line(const char *path, char *buf, size_t bytes);

/* --- table.c --- */

struct bench_set {
	struct bench_sample *sample;
	size_t count, room;
};

void bench_set_add(struct bench_set *set, const struct bench_sample *s);

/* The median, least and most of one field (offset) among matching samples. */
struct bench_spread {
	double mid, low, high;
	unsigned n;
};

/* pages: divide by the sample's pages. */
struct bench_spread bench_spread(const struct bench_set *set, enum bench_system system,
				 uint64_t bytes, uint32_t run, size_t offset, bool per_page);
#define BENCH_SPREAD(set, system, bytes, run, field, per_page)                                     \
	bench_spread(set, system, bytes, run, offsetof(struct bench_sample, field), per_page)

/* Tables go to the terminal and, as Markdown, to the file; the same text in both. */
struct bench_out {
	FILE *file; /* NULL: the terminal only */
	unsigned columns;
};

#define BENCH_COLUMNS 12
void bench_text(struct bench_out *o, const char *format, ...) __attribute__((format(printf, 2, 3)));
void bench_head(struct bench_out *o, unsigned columns, const char *const *names);
/* Cells end with NULL. */
void bench_row(struct bench_out *o, ...) __attribute__((sentinel));
const char *bench_cell(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *bench_size(uint64_t bytes);
const char *bench_run(uint32_t run);
const char *bench_spread_cell(struct bench_spread s, double unit);

/* --- report.c --- */

struct bench_plan {
	uint64_t bytes;                /* of the main tables */
	unsigned repetitions;
	enum bench_system system;      /* BROKER or EMBEDDED */
	const uint64_t *sizes;         /* of the table by size */
	unsigned sizes_count;
	const uint32_t *runs;
	unsigned runs_count;
	bool quick;
};

void bench_report(const struct bench_set *set, const struct bench_plan *plan,
		  const struct bench_stall *stall, const char *path);

#endif
