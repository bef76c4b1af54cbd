/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Messages, numbers and tables for people; json-c for programs.
 *
 * Names of processes and domains are their own word and any bytes: people get '?'
 * for what a terminal might take for a command, programs get U+FFFD for what is no
 * UTF-8. Figures are their own word too: sums of them stop at the ends of their
 * type instead of beginning anew.
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
	double mib = (double)cli_less(before_bytes, after_bytes) / (1024.0 * 1024.0);

	return mib > -0.05 && mib < 0.05 ? 0.0 : mib; /* no "-0.0" */
}

double cli_pages_mib(uint64_t pages)
{
	return (double)pages * (double)sys_page_bytes() / (1024.0 * 1024.0);
}

uint64_t cli_sum(uint64_t a, uint64_t b)
{
	uint64_t sum;

	return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

int64_t cli_sum_signed(int64_t a, int64_t b)
{
	int64_t sum;

	if (!__builtin_add_overflow(a, b, &sum))
		return sum;
	return a < 0 ? INT64_MIN : INT64_MAX;
}

int64_t cli_less(uint64_t a, uint64_t b)
{
	int64_t difference;

	if (!__builtin_sub_overflow(a, b, &difference))
		return difference;
	return a < b ? INT64_MIN : INT64_MAX;
}

const char *cli_clean(const char *text, char *buf, size_t bytes)
{
	size_t n = 0;

	for (; n + 1 < bytes && text[n]; n++)
		buf[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
	buf[n] = '\0';
	return buf;
}

/* How many bytes of a well-formed UTF-8 character stand there; 0: none does. */
static size_t utf8_bytes(const unsigned char *p)
{
	unsigned char low = 0x80, high = 0xbf; /* of the second byte */
	size_t n;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	if (p[0] == 0xe0)
		low = 0xa0; /* else it would be longer than need be */
	else if (p[0] == 0xed)
		high = 0x9f; /* surrogates */
	else if (p[0] == 0xf0)
		low = 0x90;
	else if (p[0] == 0xf4)
		high = 0x8f; /* the last is U+10FFFF */
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < n; i++)
		if (p[i] < 0x80 || p[i] > 0xbf)
			return 0;
	return n;
}

/* A copy in which each byte that belongs to no character is U+FFFD. */
static char *utf8_copy(const char *text)
{
	static const char replacement[] = "\xef\xbf\xbd";
	const unsigned char *p = (const unsigned char *)text;
	char *copy = malloc(strlen(text) * 3 + 1);
	char *to = copy;

	if (!copy)
		out_of_memory();
	while (*p) {
		size_t n = utf8_bytes(p);

		memcpy(to, n ? (const char *)p : replacement, n ? n : 3);
		to += n ? n : 3;
		p += n ? n : 1;
	}
	*to = '\0';
	return copy;
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
	char *clean = v ? utf8_copy(v) : NULL;

	json_object_object_add(o, key, clean ? json_object_new_string(clean) : NULL);
	free(clean);
}
