/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rows of numbers: samples to medians, medians to cells, cells to a table on the
 * terminal and the same table in Markdown.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define CELL 64
#define CELLS 256
#define WIDTH 15

void bench_set_add(struct bench_set *set, const struct bench_sample *s)
{
	if (set->count == set->room) {
		set->room = set->room ? 2 * set->room : 16;
		set->sample = realloc(set->sample, set->room * sizeof(*set->sample));
		if (!set->sample)
			bench_die("no memory");
	}
	set->sample[set->count++] = *s;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* run 0: any */
struct bench_spread bench_spread(const struct bench_set *set, enum bench_system system,
				 uint64_t bytes, uint32_t run, size_t offset, bool per_page)
{
	struct bench_spread r = { .n = 0 };
	double *v = calloc(set->count + 1, sizeof(*v));

	for (size_t i = 0; v && i < set->count; i++) {
		const struct bench_sample *s = &set->sample[i];

		if (s->system != system || s->bytes != bytes || (run && s->run != run))
			continue;
		memcpy(&v[r.n], (const char *)s + offset, sizeof(*v));
		v[r.n++] /= per_page ? s->pages : 1;
	}
	if (r.n > 0) {
		qsort(v, r.n, sizeof(*v), compare);
		r.low = v[0];
		r.high = v[r.n - 1];
		r.mid = (v[(r.n - 1) / 2] + v[r.n / 2]) / 2;
	}
	free(v);
	return r;
}

/* --- cells ---------------------------------------------------------------- */

/* A ring of texts: as many as one row needs live at the same time. */
const char *bench_cell(const char *format, ...)
{
	static char text[CELLS][CELL];
	static unsigned next;
	char *cell = text[next++ % CELLS];
	va_list args;

	va_start(args, format);
	vsnprintf(cell, CELL, format, args);
	va_end(args);
	return cell;
}

const char *bench_size(uint64_t bytes)
{
	if (bytes >= 1ull << 30 && bytes % (1ull << 30) == 0)
		return bench_cell("%llu GiB", (unsigned long long)(bytes >> 30));
	return bench_cell("%llu MiB", (unsigned long long)(bytes >> 20));
}

const char *bench_run(uint32_t run)
{
	return run == BENCH_WHOLE ? "whole" : bench_cell("%u", run);
}

const char *bench_spread_cell(struct bench_spread s, double unit)
{
	if (s.n == 0)
		return "-";
	if (s.n == 1)
		return bench_cell("%.2f", s.mid / unit);
	return bench_cell("%.2f (%.2f-%.2f)", s.mid / unit, s.low / unit, s.high / unit);
}

/* --- output --------------------------------------------------------------- */

#define FOLD 96

static void print_folded(const char *text)
{
	while (strlen(text) > FOLD) {
		const char *cut = text + FOLD;

		while (cut > text && *cut != ' ')
			cut--;
		if (cut == text)
			break;
		printf("%.*s\n", (int)(cut - text), text);
		text = cut + 1;
	}
	puts(text);
}

/* As given to the file; folded on the terminal. */
void bench_text(struct bench_out *o, const char *format, ...)
{
	char text[2048];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	print_folded(text);
	if (o->file)
		fprintf(o->file, "%s\n", text);
}

static void row(struct bench_out *o, const char *const *cells)
{
	for (unsigned i = 0; i < o->columns; i++) {
		printf(i ? "  %*s" : "%-*s", i ? WIDTH + 2 : WIDTH - 1, cells[i]);
		if (o->file)
			fprintf(o->file, "| %s ", cells[i]);
	}
	putchar('\n');
	if (o->file)
		fputs("|\n", o->file);
}

void bench_head(struct bench_out *o, unsigned columns, const char *const *names)
{
	o->columns = columns;
	row(o, names);
	for (unsigned i = 0; o->file && i < columns; i++)
		fputs(i ? "|---:" : "|---", o->file);
	if (o->file)
		fputs("|\n", o->file);
}

void bench_row(struct bench_out *o, ...)
{
	const char *cells[BENCH_COLUMNS];
	unsigned n = 0;
	const char *cell;
	va_list args;

	va_start(args, o);
	while ((cell = va_arg(args, const char *)) != NULL && n < BENCH_COLUMNS)
		cells[n++] = cell;
	va_end(args);
	while (n < o->columns)
		cells[n++] = "-";
	row(o, cells);
}
