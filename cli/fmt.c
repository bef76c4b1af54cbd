/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Messages, numbers and tables for people; json-c for programs.
 *
 * Running out of memory while formatting ends the command: it has no state that
 * anybody would miss.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "sys/sys.h"

struct cli_table {
	unsigned columns;
	unsigned left_mask;
	unsigned count;
	unsigned room;
	char **cell; /* NULL: a rule across the row */
};

static void out_of_memory(void)
{
	cli_error("out of memory");
	exit(CLI_FAILED);
}

void cli_error(const char *format, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("samepage: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int cli_usage_error(const char *command, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "samepage %s: ", command);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, "; try 'samepage %s --help'\n", command);
	return CLI_USAGE;
}

int cli_finish(int status)
{
	bool bad = ferror(stdout);

	if (fflush(stdout) == 0 && !bad)
		return status;
	cli_error("cannot write to standard output: %m");
	return CLI_FAILED;
}

struct cli_table *cli_table_new(unsigned columns, unsigned left_mask)
{
	struct cli_table *t = calloc(1, sizeof(*t));

	if (!t)
		out_of_memory();
	t->columns = columns;
	t->left_mask = left_mask;
	return t;
}

static void table_add(struct cli_table *t, char *cell)
{
	if (t->count == t->room) {
		unsigned room = t->room ? 2 * t->room : 64;
		char **grown = reallocarray(t->cell, room, sizeof(*grown));

		if (!grown)
			out_of_memory();
		t->cell = grown;
		t->room = room;
	}
	t->cell[t->count++] = cell;
}

void cli_table_cell(struct cli_table *t, const char *format, ...)
{
	char *cell = NULL;
	va_list ap;

	va_start(ap, format);
	if (vasprintf(&cell, format, ap) < 0)
		cell = NULL;
	va_end(ap);
	if (!cell)
		out_of_memory();
	table_add(t, cell);
}

void cli_table_rule(struct cli_table *t)
{
	while (t->count % t->columns)
		cli_table_cell(t, "%s", "");
	for (unsigned c = 0; c < t->columns; c++)
		table_add(t, NULL);
}

static void print_row(const struct cli_table *t, char *const *row, const int *width, FILE *out)
{
	for (unsigned c = 0; c < t->columns; c++) {
		const char *gap = c ? "  " : "";
		bool left = t->left_mask & (1u << c);

		if (!row[c]) {
			fputs(gap, out);
			for (int i = 0; i < width[c]; i++)
				fputc('-', out);
		} else if (!left) {
			fprintf(out, "%s%*s", gap, width[c], row[c]);
		} else if (c + 1 == t->columns) {
			fprintf(out, "%s%s", gap, row[c]); /* no blanks at the end */
		} else {
			fprintf(out, "%s%-*s", gap, width[c], row[c]);
		}
	}
	fputc('\n', out);
}

void cli_table_print(struct cli_table *t, FILE *out)
{
	int width[32] = { 0 };

	while (t->count % t->columns)
		cli_table_cell(t, "%s", "");
	for (unsigned i = 0; i < t->count; i++) {
		int len = t->cell[i] ? (int)strlen(t->cell[i]) : 0;

		if (len > width[i % t->columns])
			width[i % t->columns] = len;
	}
	for (unsigned i = 0; i < t->count; i += t->columns)
		print_row(t, t->cell + i, width, out);
}

void cli_table_free(struct cli_table *t)
{
	for (unsigned i = 0; i < t->count; i++)
		free(t->cell[i]);
	free(t->cell);
	free(t);
}

double cli_mib(uint64_t bytes)
{
	return (double)bytes / (1024.0 * 1024.0);
}

double cli_mib_less(uint64_t before_bytes, uint64_t after_bytes)
{
	double mib = (double)(int64_t)(before_bytes - after_bytes) / (1024.0 * 1024.0);

	return mib > -0.05 && mib < 0.05 ? 0.0 : mib; /* no "-0.0" */
}

double cli_pages_mib(uint64_t pages)
{
	return cli_mib(pages * sys_page_bytes());
}

const char *cli_clean(const char *text, char *buf, size_t bytes)
{
	size_t n = 0;

	for (; n + 1 < bytes && text[n]; n++)
		buf[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
	buf[n] = '\0';
	return buf;
}

void cli_json_print(struct json_object *o)
{
	const char *text;

	if (!o)
		out_of_memory();
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
						 JSON_C_TO_STRING_NOSLASHESCAPE);
	if (!text)
		out_of_memory();
	puts(text);
}

void cli_json_u64(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

void cli_json_str(struct json_object *o, const char *key, const char *v)
{
	json_object_object_add(o, key, v ? json_object_new_string(v) : NULL);
}
