/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What `samepage top` shows, as lines of text: sums, rows, one row's details.
 *
 * Columns have fixed places, so that nothing jumps from refresh to refresh; what a wider
 * screen has more goes to names and reasons.
 */
#include "cli/top.h"

#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "core/reason.h"
#include "sys/sys.h"

#define LEAST_WIDTH 79u
#define NAMES_WIDTH_MAX 32u

static const struct {
	char process[8], domain[8];
	int width; /* negative: to the left; of names and reasons: at least */
} columns[TOP_COLUMNS] = {
	[TOP_PID] = { "PID", "PROCS", 7 },
	[TOP_COMMAND] = { "COMMAND", "USER", -12 },
	[TOP_DOMAIN] = { "DOMAIN", "DOMAIN", -8 },
	[TOP_SAVED] = { "SAVED", "SAVED", 7 },
	[TOP_MERGED] = { "MERGED", "MERGED", 7 },
	[TOP_RATE] = { "RATE/s", "RATE/s", 6 },
	[TOP_BROKEN] = { "BROKEN", "BROKEN", 6 },
	[TOP_CPU] = { "%CPU", "%CPU", 5 },
	[TOP_WHY] = { "WHY NOT", "WHY NOT", -13 },
};

const char *top_column_name(enum top_column c, bool domains)
{
	return domains ? columns[c].domain : columns[c].process;
}

/* Numbers -------------------------------------------------------------------- */

struct number {
	char text[32];
};

/* Five characters, or six: 12345, 123.4K. */
static struct number count_of(double v)
{
	static const char units[] = " KMGTPE";
	unsigned unit = 0;
	struct number n;

	while (v >= (unit ? 999.95 : 99999.5) && unit + 2 < sizeof(units)) {
		v /= 1000;
		unit++;
	}
	snprintf(n.text, sizeof(n.text), unit ? "%.1f%c" : "%.0f", v, units[unit]);
	return n;
}

/* MiB up to 99999.9, then G or T with a letter. */
static struct number mib_of(double pages)
{
	double mib = pages * (double)sys_page_bytes() / (1024.0 * 1024.0);
	struct number n;

	if (mib < 9999.95)
		snprintf(n.text, sizeof(n.text), "%.1f", mib);
	else if (mib < 9999.95 * 1024)
		snprintf(n.text, sizeof(n.text), "%.1fG", mib / 1024);
	else
		snprintf(n.text, sizeof(n.text), "%.1fT", mib / (1024.0 * 1024.0));
	return n;
}

/* Reasons -------------------------------------------------------------------- */

struct reason {
	const char *name;
	uint64_t pages;
};

static int by_pages(const void *a, const void *b)
{
	const struct reason *x = a, *y = b;

	return x->pages == y->pages ? 0 : x->pages < y->pages ? 1 : -1;
}

#define REASONS_MAX (4 + SAMEPAGE_REASON_COUNT)

/* Why pages are not merged, the largest first: as the scanner sees it now, or the last pass. */
static unsigned reasons_of(const struct top_row *row, struct reason *list)
{
	const struct core_scan_counters *c = &row->report.scan;
	unsigned n = 0;

	if (c->tracker) {
		list[n++] = (struct reason){ "unshared", c->pages_unshared_now };
		list[n++] = (struct reason){ "volatile", c->pages_volatile_now };
		list[n++] = (struct reason){ "waiting", c->pages_waiting_now };
		list[n++] = (struct reason){ "aside", cli_scan_aside(c) };
	} else {
		for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++)
			list[n++] = (struct reason){ core_reason_name(i),
						     row->report.last.pages_declined[i] };
	}
	qsort(list, n, sizeof(*list), by_pages);
	while (n > 0 && list[n - 1].pages == 0)
		n--;
	return n;
}

static const char *state_of(const struct top_row *row)
{
	if (row->error == -ETIMEDOUT)
		return "no answer";
	if (row->error < 0)
		return strerror(-row->error);
	return row->report.scan.paused ? "paused" : NULL;
}

static void why(const struct top_row *row, char *buf, size_t bytes)
{
	struct reason list[REASONS_MAX];
	unsigned n = reasons_of(row, list);

	if (state_of(row))
		snprintf(buf, bytes, "%s", state_of(row));
	else if (n == 0)
		snprintf(buf, bytes, "-");
	else
		snprintf(buf, bytes, "%s %s", count_of((double)list[0].pages).text, list[0].name);
}

static void append(char *buf, size_t bytes, const char *text)
{
	size_t n = strlen(buf);

	snprintf(buf + n, bytes - n, "%s", text);
}

static void all_reasons(const struct top_row *row, char *buf, size_t bytes)
{
	struct reason list[REASONS_MAX];
	unsigned n = reasons_of(row, list);

	snprintf(buf, bytes, "not merged:%s", n ? "" : " -");
	for (unsigned i = 0; i < n && i < 5; i++) {
		append(buf, bytes, i ? ", " : " ");
		append(buf, bytes, list[i].name);
		append(buf, bytes, " ");
		append(buf, bytes, count_of((double)list[i].pages).text);
	}
	if (n)
		append(buf, bytes, " pages");
}

/* Sums ----------------------------------------------------------------------- */

static void add(struct top_row *sum, const struct top_row *row)
{
	struct core_wire_report *s = &sum->report;
	const struct core_wire_report *r = &row->report;

	sum->processes += row->nth == 0;
	s->pages_sharing = cli_sum(s->pages_sharing, r->pages_sharing);
	s->pages_owned = cli_sum(s->pages_owned, r->pages_owned);
	s->own_bytes = cli_sum(s->own_bytes, r->own_bytes);
	s->zero_pages = cli_sum(s->zero_pages, r->zero_pages);
	if (row->nth == 0)
		s->pss_after_bytes = cli_sum(s->pss_after_bytes, r->pss_after_bytes);
	cli_result_add(&s->last, &r->last);
	cli_scan_add(&sum->scan, &r->scan);
	s->scan = sum->scan.c;
	s->scan.tracker = sum->scan.tracker;
	sum->rated |= row->rated;
	sum->rate += row->rated ? row->rate : 0;
	sum->broken_rate += row->rated ? row->broken_rate : 0;
	sum->cpu_percent += row->rated ? row->cpu_percent : 0;
	sum->saved_pages += row->saved_pages;
	/* All of it, or it would hide the reasons of the others. */
	s->scan.paused = sum->scan.paused == sum->processes;
}

void top_sum(const struct top *t, struct top_row *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned i = 0; i < t->count; i++)
		add(sum, &t->rows[i]);
}

/* Rows ----------------------------------------------------------------------- */

static unsigned by_domain(const struct top *t, struct top_row *rows)
{
	unsigned n = 0, at;

	for (unsigned i = 0; i < t->count; i++) {
		const struct top_row *row = &t->rows[i];

		for (at = 0; at < n; at++)
			if (rows[at].uid == row->uid && strcmp(rows[at].domain, row->domain) == 0)
				break;
		if (at == n) {
			rows[n] = (struct top_row){ .uid = row->uid };
			memcpy(rows[n++].domain, row->domain, sizeof(row->domain));
		}
		add(&rows[at], row);
	}
	return n;
}

static int compare_doubles(double a, double b)
{
	return a < b ? 1 : a > b ? -1 : 0; /* the largest first */
}

static int compare_by(enum top_column c, const struct top_row *a, const struct top_row *b)
{
	char x[64], y[64];

	switch (c) {
	case TOP_PID:
		return a->processes ? compare_doubles(a->processes, b->processes) :
				      (a->pid > b->pid) - (a->pid < b->pid);
	case TOP_COMMAND:
		return a->processes ? (a->uid > b->uid) - (a->uid < b->uid) : strcmp(a->comm, b->comm);
	case TOP_DOMAIN:
		return strcmp(a->domain, b->domain);
	case TOP_SAVED:
		return compare_doubles(a->saved_pages, b->saved_pages);
	case TOP_MERGED:
		return compare_doubles((double)a->report.pages_sharing,
				       (double)b->report.pages_sharing);
	case TOP_RATE:
		return compare_doubles(a->rate, b->rate);
	case TOP_BROKEN:
		return compare_doubles((double)a->report.scan.pages_broken,
				       (double)b->report.scan.pages_broken);
	case TOP_CPU:
		return compare_doubles(a->cpu_percent, b->cpu_percent);
	default:
		why(a, x, sizeof(x));
		why(b, y, sizeof(y));
		return strcmp(x, y);
	}
}

static int compare(const void *one, const void *other, void *arg)
{
	const struct top_row *a = one, *b = other;
	const struct top *t = arg;
	int r = compare_by(t->sort, a, b);

	if (r)
		return t->reverse ? -r : r;
	if (a->pid != b->pid)
		return a->pid < b->pid ? -1 : 1;
	r = strcmp(a->domain, b->domain);
	return r ? r : (int)a->nth - (int)b->nth;
}

unsigned top_sorted(const struct top *t, struct top_row **rows)
{
	unsigned n = t->count;

	*rows = calloc(n + 1, sizeof(**rows));
	if (!*rows)
		return 0;
	if (t->domains)
		n = by_domain(t, *rows);
	else if (n)
		memcpy(*rows, t->rows, n * sizeof(**rows));
	qsort_r(*rows, n, sizeof(**rows), compare, (void *)(uintptr_t)t);
	return n;
}

/* Lines ---------------------------------------------------------------------- */

/* Half of what is left over to each of the names; reasons are never short. */
static int width_of(enum top_column c, unsigned width)
{
	unsigned more = width > LEAST_WIDTH ? width - LEAST_WIDTH : 0;
	unsigned least;

	if (c != TOP_COMMAND && c != TOP_DOMAIN)
		return columns[c].width;
	least = (unsigned)-columns[c].width;
	more = least + more / 3;
	return -(int)(more > NAMES_WIDTH_MAX ? NAMES_WIDTH_MAX : more);
}

static void cell(char *buf, size_t bytes, enum top_column c, unsigned width, const char *text)
{
	int w = width_of(c, width);
	char padded[TOP_LINE_BYTES];

	if (c == TOP_WHY)
		snprintf(padded, sizeof(padded), " %s", text);
	else if (w < 0)
		snprintf(padded, sizeof(padded), " %-*.*s", -w, -w, text);
	else
		snprintf(padded, sizeof(padded), "%s%*s", c ? " " : "", w, text);
	append(buf, bytes, padded);
}

void top_heads(const struct top *t, unsigned width, char *buf, size_t bytes)
{
	buf[0] = '\0';
	for (unsigned c = 0; c < TOP_COLUMNS; c++)
		cell(buf, bytes, (enum top_column)c, width,
		     top_column_name((enum top_column)c, t->domains));
}

static void name_of_user(uint32_t uid, char *buf, size_t bytes)
{
	const struct passwd *p = getpwuid(uid);

	if (p)
		cli_clean(p->pw_name, buf, bytes);
	else
		snprintf(buf, bytes, "%u", (unsigned)uid);
}

static struct number rated(const struct top_row *row, double v, const char *format)
{
	struct number n;

	if (!row->rated)
		strcpy(n.text, "-");
	else if (format)
		snprintf(n.text, sizeof(n.text), "%.1f", v);
	else
		n = count_of(v);
	return n;
}

void top_row_text(const struct top *t, const struct top_row *row, unsigned width, char *buf,
		  size_t bytes)
{
	char name[CORE_WIRE_NAME_BYTES], text[128];
	struct number first;

	buf[0] = '\0';
	snprintf(first.text, sizeof(first.text), "%d",
		 t->domains ? (int)row->processes : (int)row->pid);
	cell(buf, bytes, TOP_PID, width, first.text);
	if (t->domains)
		name_of_user(row->uid, name, sizeof(name));
	else
		cli_clean(row->comm, name, sizeof(name));
	cell(buf, bytes, TOP_COMMAND, width, name);
	cell(buf, bytes, TOP_DOMAIN, width, cli_clean(row->domain, name, sizeof(name)));
	cell(buf, bytes, TOP_SAVED, width, mib_of(row->saved_pages).text);
	cell(buf, bytes, TOP_MERGED, width, mib_of((double)row->report.pages_sharing).text);
	cell(buf, bytes, TOP_RATE, width, rated(row, row->rate, NULL).text);
	cell(buf, bytes, TOP_BROKEN, width, count_of((double)row->report.scan.pages_broken).text);
	cell(buf, bytes, TOP_CPU, width, rated(row, row->cpu_percent, "%").text);
	why(row, text, sizeof(text));
	cell(buf, bytes, TOP_WHY, width, text);
}

void top_header(const struct top *t, unsigned line, char *buf, size_t bytes)
{
	const struct core_wire_ctl_end *e = &t->end;
	struct top_row sum;
	uint64_t mapped;

	top_sum(t, &sum);
	mapped = sum.report.pages_sharing;
	switch (line) {
	case 0:
		snprintf(buf, bytes, "samepage top: %u clients, %u domains; by %s%s, every %g s; "
			 "broker %u", t->count, e->domains, t->reverse ? "-" : "",
			 top_column_name(t->sort, t->domains), t->delay_sec,
			 t->b.welcome.broker_pid);
		break;
	case 1:
		snprintf(buf, bytes, "saved %s MiB: merged %s in a store of %s; our own %.1f; "
			 "candidates %s",
			 mib_of(mapped > e->slots ? (double)(mapped - e->slots) : 0).text,
			 mib_of((double)mapped).text, mib_of((double)e->slots).text,
			 cli_mib(cli_sum(cli_sum(e->index_bytes, e->broker_rss_bytes),
					 sum.report.own_bytes)),
			 count_of((double)e->standing).text);
		break;
	case 2:
		snprintf(buf, bytes, "scanning %u, paused %u; merged %s/s, broken %s/s; "
			 "%%CPU: scanners %s, broker %.1f", sum.scan.scanners,
			 sum.scan.paused, rated(&sum, sum.rate, NULL).text,
			 rated(&sum, sum.broken_rate, NULL).text,
			 rated(&sum, sum.cpu_percent, "%").text, t->broker_cpu_percent);
		break;
	default:
		all_reasons(&sum, buf, bytes);
	}
}

/* Details -------------------------------------------------------------------- */

char *top_details(const struct top_row *row)
{
	const struct core_wire_report *r = &row->report;
	char name[CORE_WIRE_NAME_BYTES], domain[CORE_WIRE_NAME_BYTES], line[TOP_LINE_BYTES];
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	if (!out)
		return NULL;
	cli_clean(row->domain, domain, sizeof(domain));
	if (row->processes)
		fprintf(out, "domain %s of uid %u, %u processes", domain, (unsigned)row->uid,
			row->processes);
	else
		fprintf(out, "%d %s, uid %u, domain %s, scanning %s, %u mappings", (int)row->pid,
			cli_clean(row->comm, name, sizeof(name)), (unsigned)row->uid, domain,
			cli_scan_state(&r->scan), r->vmas);
	fprintf(out, "\nPSS %.1f MiB, in reach %.1f, zero pages %.1f ever; our own %.1f MiB\n",
		cli_mib(r->pss_after_bytes), cli_pages_mib(r->pages_owned),
		cli_pages_mib(r->zero_pages), cli_mib(r->own_bytes));
	if (r->scan.tracker) {
		cli_print_scan_counters(out, &r->scan);
	} else {
		all_reasons(row, line, sizeof(line));
		fprintf(out, "%s\n", line);
	}
	if (fclose(out) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
