/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of `samepage analyze` share.
 *
 * analyze.c       options, looks in a row, progress
 * analyze_text.c  the report for people
 * analyze_json.c  the report for programs, which is also what the page shows
 * analyze_html.c  the page: template, Chart.js and report, put together
 */
#ifndef SAMEPAGE_CLI_ANALYZE_H
#define SAMEPAGE_CLI_ANALYZE_H

#include <json-c/json.h>
#include <stdio.h>

#include "analyze/analyze.h"

void cli_analyze_text(const struct analyze *a);
/* One line for the look that was made last. */
void cli_analyze_text_look(const struct analyze *a, FILE *out);
/* Why this process is not in the figures, perhaps in the buffer; NULL: it is. */
#define CLI_ANALYZE_WHY_BYTES 64
const char *cli_analyze_why(const struct analyze_process *p, char *buf);
struct json_object *cli_analyze_json(const struct analyze *a);
/* Was the plotting library there when samepage was built? */
bool cli_analyze_can_html(void);
/* A page that is being written: zeros, or opened. */
struct cli_analyze_page {
	FILE *out;
	char *path;
	char *part; /* name of the file until it is whole */
};
/* 0 or -errno; "-" is standard output. */
int cli_analyze_page_open(struct cli_analyze_page *page, const char *path);
/* Writes the report and puts the page in its place; NULL: nothing comes of it. */
int cli_analyze_page_close(struct cli_analyze_page *page, struct json_object *report);

#endif
