/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the samepage command share.
 *
 * main.c    picks the subcommand
 * run.c     samepage run; program.c looks at what is to be run, layout.c gives
 *           a domain one address layout, start.c starts a broker on demand
 * pass.c    samepage merge, unmerge, pause, resume
 * status.c  samepage status; scan.c what scanners count, alone.c what nobody shares
 * top.c     samepage top; the rest of it is in top.h
 * check.c   samepage check
 * analyze.c samepage analyze; the rest of it is in analyze.h
 * ctl.c     conversation with the broker
 * report.c  results as JSON and as text; fmt.c tables, numbers, messages
 *
 * Functions that return int and are not subcommands return 0 or a negative
 * errno; subcommands return an exit status.
 */
#ifndef SAMEPAGE_CLI_CLI_H
#define SAMEPAGE_CLI_CLI_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/wire.h"
#include "sys/paths.h"

/* Exit statuses. `samepage run` has those of the program, and 126 and 127. */
enum {
	CLI_DONE = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_NOT_CLIENT = 3,
	CLI_CANNOT_RUN = 126,
	CLI_NOT_FOUND = 127,
};

int cli_run(int argc, char **argv);
int cli_merge(int argc, char **argv);
int cli_unmerge(int argc, char **argv);
int cli_pause(int argc, char **argv);
int cli_resume(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_top(int argc, char **argv);
int cli_check(int argc, char **argv);
int cli_analyze(int argc, char **argv);

/* fmt.c ------------------------------------------------------------------- */

/* One line on stderr, "samepage: ..." */
void cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, for a mistake on the command line of `samepage COMMAND`; returns CLI_USAGE. */
int cli_usage_error(const char *command, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Flush stdout: status, or CLI_FAILED (and a message) if it could not be written. */
int cli_finish(int status);

/* Text cells in columns: numbers to the right, LEFT columns to the left. */
struct cli_table;
struct cli_table *cli_table_new(unsigned columns, unsigned left_mask);
void cli_table_cell(struct cli_table *t, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void cli_table_rule(struct cli_table *t); /* a line of dashes as the next row */
void cli_table_print(struct cli_table *t, FILE *out);
void cli_table_free(struct cli_table *t);

double cli_mib(uint64_t bytes);
double cli_mib_less(uint64_t before_bytes, uint64_t after_bytes); /* may be negative */
double cli_pages_mib(uint64_t pages);
/* a + b and a - b, or the end of the type that they would run over. */
uint64_t cli_sum(uint64_t a, uint64_t b);
int64_t cli_sum_signed(int64_t a, int64_t b);
int64_t cli_less(uint64_t a, uint64_t b);
/* Foreign text (command names): control and non-ASCII bytes become '?'. */
const char *cli_clean(const char *text, char *buf, size_t bytes);
void cli_json_print(struct json_object *o);
void cli_json_u64(struct json_object *o, const char *key, uint64_t v);
/* NULL: null. What is no UTF-8 in v becomes U+FFFD. */
void cli_json_str(struct json_object *o, const char *key, const char *v);

/* ctl.c ------------------------------------------------------------------- */

struct cli_broker {
	int fd;
	uint32_t seq;
	char path[SYS_PATH_BYTES]; /* where it listens, or was looked for */
	char text[CORE_WIRE_TEXT_BYTES]; /* its own words for an error, or "" */
	unsigned silent_sec; /* an operation was given up after that; 0: none was */
	struct core_wire_welcome welcome;
};

struct cli_items {
	struct core_wire_ctl_item *item;
	unsigned count;
	struct core_wire_ctl_end end;
};

/* The domain of this environment. */
const char *cli_domain(void);
/*
 * Connect and say hello. path NULL: the usual places. On failure b->path and
 * b->text are fit for cli_broker_explain(), and nothing is to be closed.
 */
int cli_broker_open(struct cli_broker *b, const char *path, uint32_t role, const char *domain);
void cli_broker_close(struct cli_broker *b);
/* Print what was wrong and what cures it. */
void cli_broker_explain(const struct cli_broker *b, int err);
/* The same without "samepage: ", for those who print it elsewhere. */
void cli_broker_reason(const struct cli_broker *b, int err, char *buf, size_t bytes);
/*
 * Ask for op on processes; doing ("merging") is shown on a terminal if it takes long.
 * -ETIMEDOUT: no packet in timeout_sec.
 */
#define CLI_TIMEOUT_SEC 300u
int cli_ctl(struct cli_broker *b, uint32_t op, uint32_t flags, const int32_t *pid, uint32_t count,
	    const char *doing, unsigned timeout_sec, struct cli_items *items);
/*
 * The same in steps, for who has something else to do meanwhile. step: 1 when all has
 * come, 0 when something has, -ETIMEDOUT when nothing came in time; other -errno.
 */
int cli_ctl_begin(struct cli_broker *b, uint32_t op, uint32_t flags, const int32_t *pid,
		  uint32_t count, struct cli_items *items);
int cli_ctl_step(struct cli_broker *b, struct cli_items *items, int timeout_msec);
void cli_items_free(struct cli_items *items);

/* report.c ---------------------------------------------------------------- */

/* The pids of a command line; *pid is the caller's to free. CLI_DONE or CLI_USAGE. */
int cli_parse_pids(const char *command, char **argv, int argc, int32_t **pid);
/* The value of --timeout. CLI_DONE or CLI_USAGE. */
int cli_parse_timeout(const char *command, const char *word, unsigned *timeout_sec);
/* sum += r, each field up to the end of its type. */
void cli_result_add(struct samepage_result *sum, const struct samepage_result *r);
const struct core_wire_ctl_item *cli_items_find(const struct cli_items *items, int32_t pid);
struct json_object *cli_json_item(const struct core_wire_ctl_item *item);
void cli_json_result(struct json_object *o, const struct samepage_result *r);
struct json_object *cli_json_declined(const struct samepage_result *r);
struct json_object *cli_json_store(const struct core_wire_ctl_end *end);
/* Why pages were not merged: names, pages, MiB, texts; largest first. */
void cli_print_declined(const struct samepage_result *r, const char *title);
/* Complain about the named processes that are no clients; how many there were. */
unsigned cli_report_strangers(const struct cli_items *items, const int32_t *pid, unsigned count,
			      const struct cli_broker *b, struct json_object *json);

/* Why a process could not do what it was asked, in words. */
const char *cli_pass_error(int err);

/* scan.c ------------------------------------------------------------------ */

/* Of several clients. */
struct cli_scan {
	struct core_scan_counters c;
	unsigned scanners; /* that are on, paused or not */
	unsigned paused;
	uint32_t tracker;
	bool mixed; /* not all the same tracker */
};

void cli_scan_add(struct cli_scan *sum, const struct core_scan_counters *c);
uint64_t cli_scan_aside(const struct core_scan_counters *c);
const char *cli_scan_state(const struct core_scan_counters *c);
double cli_ratio(uint64_t part, uint64_t whole); /* 0 of nothing */
struct json_object *cli_json_scan(const struct core_scan_counters *c);
struct json_object *cli_json_scan_process(const struct core_scan_counters *c);
struct json_object *cli_json_scan_sum(const struct cli_scan *s);
void cli_print_scan_counters(FILE *out, const struct core_scan_counters *c);
void cli_print_scan(const struct cli_scan *s, unsigned clients, uint64_t standing);

/* alone.c ----------------------------------------------------------------- */

/* Slots that fewer than two places in these processes map; -errno: not to be told. */
int64_t cli_alone_pages(const struct cli_items *items);

/* program.c --------------------------------------------------------------- */

enum cli_program_kind {
	CLI_PROGRAM_ORDINARY, /* dynamically linked with glibc, or not to be told */
	CLI_PROGRAM_STATIC,
	CLI_PROGRAM_GO_STATIC,
	CLI_PROGRAM_GO, /* linked dynamically, but its heap bypasses libc */
	CLI_PROGRAM_GO_BARE, /* the same without the note by which the library knows it */
	CLI_PROGRAM_MUSL,
	CLI_PROGRAM_OTHER_LIBC,
	CLI_PROGRAM_SECURE, /* setuid, setgid or file capabilities */
	CLI_PROGRAM_FOREIGN, /* for another machine or word size */
};

/* What execvp(3) would run for this name: PATH_MAX bytes of path, and its kind.
 * -ENOENT, -EACCES: as execvp(3). */
int cli_program_look(const char *name, char *path, enum cli_program_kind *kind);
/* "it is statically linked ...", NULL for ordinary ones. */
const char *cli_program_why(enum cli_program_kind kind);
/* May the library be put into the environment without harm to the program? */
bool cli_program_may_preload(enum cli_program_kind kind);

/* layout.c ---------------------------------------------------------------- */

/* Give this process, and so what it executes next, the domain's layout. */
int cli_layout_shared(uint64_t seed);
/* Take back what a `samepage run` above us did; else nothing. */
bool cli_filter_kills(void); /* for what the library does in a program (filter.c) */
void cli_layout_private(void);

/* start.c ----------------------------------------------------------------- */

/* Path of a file beside this program. */
int cli_beside(const char *name, char *path, size_t bytes);
/* Start samepaged and wait until it listens. why: the reason of a failure. */
int cli_broker_start(const char *socket_path, char *why, size_t why_bytes);

#endif
