/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of `samepage top` share.
 *
 * top.c       asks the broker again and again, and keeps what it answered
 * top_text.c  lines of text from that: for a terminal and for --batch alike
 * top_view.c  a terminal: keys, places, attributes (ncurses)
 *
 * Nothing is waited for but in the one poll(2) of the loop, so keys work while a client
 * is slow to answer; what it said last is shown until it does.
 */
#ifndef SAMEPAGE_CLI_TOP_H
#define SAMEPAGE_CLI_TOP_H

#include "cli/cli.h"

enum top_column {
	TOP_PID, /* of domains: how many processes */
	TOP_COMMAND, /* of domains: the user */
	TOP_DOMAIN,
	TOP_SAVED,
	TOP_MERGED,
	TOP_RATE,
	TOP_BROKEN,
	TOP_CPU,
	TOP_WHY,
	TOP_COLUMNS,
};

/* A client, or in the other view a domain. */
struct top_row {
	int32_t pid;
	uint32_t uid;
	unsigned nth;       /* of the clients with this pid */
	unsigned processes; /* of a domain; 0: this is a process */
	char domain[CORE_WIRE_NAME_BYTES];
	char comm[CORE_WIRE_NAME_BYTES];
	struct core_wire_report report; /* of a domain: sums */
	struct cli_scan scan;           /* of a domain */
	int error;
	uint64_t at_usec; /* the report's age */
	bool rated;       /* there are two reports to tell rates from */
	double rate;      /* pages merged in a second */
	double broken_rate;
	double cpu_percent; /* of the scanner */
	double saved_pages;
	uint64_t round; /* in which it was seen last */
};

struct top {
	struct cli_broker b; /* fd -1: no connection */
	struct cli_items items; /* of the answer that is coming in */
	unsigned taken;         /* of them */
	bool asking;
	uint64_t round, rounds_done;
	uint64_t asked_usec, heard_usec, next_usec;
	struct core_wire_ctl_end end;
	double broker_cpu_percent;
	struct top_row *rows;
	unsigned count, room;
	char message[256]; /* why nothing new comes */

	/* How it is to be shown. */
	double delay_sec;
	uint64_t rounds_max; /* 0: for ever */
	bool domains;
	bool reverse;
	enum top_column sort;
	bool quit;
};

/* What shows it: fd is watched for input; both may set t->quit. */
struct top_screen {
	int fd; /* -1: none */
	void (*draw)(struct top *t);
	void (*input)(struct top *t);
};

/* top_text.c; lines have no newline, and are as long as is good: cut them. */
#define TOP_HEADER_LINES 4u
#define TOP_LINE_BYTES 512
const char *top_column_name(enum top_column c, bool domains);
void top_header(const struct top *t, unsigned line, char *buf, size_t bytes);
void top_heads(const struct top *t, unsigned width, char *buf, size_t bytes);
void top_row_text(const struct top *t, const struct top_row *row, unsigned width, char *buf,
		  size_t bytes);
/* All that is known of one: several lines, to be freed; NULL: no memory. */
char *top_details(const struct top_row *row);
/* The rows of the chosen view, sorted; *rows to be freed. How many. */
unsigned top_sorted(const struct top *t, struct top_row **rows);
/* The sums over all. */
void top_sum(const struct top *t, struct top_row *sum);

/* top_view.c: 0, or -errno and *why. Opened, it is to be closed. */
int top_view_open(struct top_screen *screen, const char **why);
void top_view_close(void);

#endif
