/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage top: the loop. What is shown: top_text.c; how: top_view.c, or, with --batch,
 * plain lines.
 *
 * A round is one question to all clients (STATS). It is asked when the delay is over and
 * the last one was answered; items come one by one, and each counts from when it came, so
 * that rates are of the time that passed for that client. One that does not answer keeps
 * its last figures. A broker that goes away is looked for again; with --batch that is the
 * end.
 */
#include "cli/top.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/sys.h"

#define USEC 1000000.0
#define AGAIN_USEC UINT64_C(1000000) /* between looks for a broker */
#define SILENT_USEC (CLI_TIMEOUT_SEC * UINT64_C(1000000))
#define WIDTH 100 /* of --batch */
#define DRAW_USEC UINT64_C(100000) /* thousands of answers are not thousands of drawings */

/* What clients say ----------------------------------------------------------- */

static struct top_row *find_row(struct top *t, int32_t pid, unsigned nth)
{
	for (unsigned i = 0; i < t->count; i++)
		if (t->rows[i].pid == pid && t->rows[i].nth == nth)
			return &t->rows[i];
	return NULL;
}

static struct top_row *add_row(struct top *t, int32_t pid, unsigned nth)
{
	struct top_row *row;

	if (t->count == t->room) {
		unsigned room = t->room ? 2 * t->room : 64;

		row = reallocarray(t->rows, room, sizeof(*row));
		if (!row)
			return NULL;
		t->rows = row;
		t->room = room;
	}
	row = &t->rows[t->count++];
	*row = (struct top_row){ .pid = pid, .nth = nth };
	return row;
}

/* Figures of a client that began anew are no rate. */
static double per_second(uint64_t before, uint64_t after, double sec)
{
	return after > before && sec > 0 ? (double)(after - before) / sec : 0.0;
}

static void take_report(struct top_row *row, const struct core_wire_report *r, uint64_t now)
{
	double sec = (double)(now - row->at_usec) / USEC;

	if (row->at_usec) {
		row->rated = true;
		row->rate = per_second(row->report.total.pages_merged, r->total.pages_merged, sec);
		row->broken_rate = per_second(row->report.scan.pages_broken,
					      r->scan.pages_broken, sec);
		row->cpu_percent = 100.0 / USEC * per_second(row->report.scan.cpu_usec,
							     r->scan.cpu_usec, sec);
	}
	row->report = *r;
	row->at_usec = now;
}

static void take_item(struct top *t, const struct core_wire_ctl_item *item)
{
	struct top_row *row;
	unsigned nth = 0;

	while ((row = find_row(t, item->pid, nth)) && row->round == t->round)
		nth++;
	/* A process of the same number that is another one begins anew. */
	if (row && (row->uid != item->uid || strcmp(row->domain, item->domain) != 0))
		*row = (struct top_row){ .pid = item->pid, .nth = nth };
	if (!row)
		row = add_row(t, item->pid, nth);
	if (!row)
		return;
	row->uid = item->uid;
	memcpy(row->domain, item->domain, sizeof(row->domain));
	memcpy(row->comm, item->comm, sizeof(row->comm));
	row->round = t->round;
	row->error = item->report.error;
	if (row->error == 0)
		take_report(row, &item->report, sys_now_usec());
	else if (row->error == -ESRCH)
		row->round = 0; /* it ended meanwhile */
	else
		row->rated = false;
}

static void drop_unseen(struct top *t)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < t->count; i++)
		if (t->rows[i].round == t->round)
			t->rows[kept++] = t->rows[i];
	t->count = kept;
}

/* Shared pages are paid for once: each has its part of what that saves. */
static void share_savings(struct top *t)
{
	uint64_t mapped = 0;
	double part;

	for (unsigned i = 0; i < t->count; i++)
		mapped = cli_sum(mapped, t->rows[i].report.pages_sharing);
	part = mapped > t->end.slots ? 1.0 - cli_ratio(t->end.slots, mapped) : 0.0;
	for (unsigned i = 0; i < t->count; i++)
		t->rows[i].saved_pages = part * (double)t->rows[i].report.pages_sharing;
}

static void take_end(struct top *t)
{
	uint64_t now = sys_now_usec();

	if (t->rounds_done && t->heard_usec)
		t->broker_cpu_percent = 100.0 / USEC *
			per_second(t->end.broker_cpu_usec, t->items.end.broker_cpu_usec,
				   (double)(now - t->heard_usec) / USEC);
	t->end = t->items.end;
	t->heard_usec = now;
	t->rounds_done++;
	t->asking = false;
	drop_unseen(t);
	share_savings(t);
	cli_items_free(&t->items);
}

/* Rounds --------------------------------------------------------------------- */

static void lost(struct top *t, int err)
{
	cli_broker_reason(&t->b, err, t->message, sizeof(t->message));
	cli_items_free(&t->items);
	cli_broker_close(&t->b);
	t->asking = false;
	t->heard_usec = 0;
	t->next_usec = sys_now_usec() + AGAIN_USEC;
}

static int begin_round(struct top *t)
{
	int err = 0;

	if (t->b.fd < 0)
		err = cli_broker_open(&t->b, NULL, CORE_WIRE_ROLE_CONTROL, cli_domain());
	if (err == 0)
		err = cli_ctl_begin(&t->b, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0,
				    &t->items);
	if (err < 0)
		return err;
	t->asking = true;
	t->taken = 0;
	t->round++;
	t->asked_usec = sys_now_usec();
	t->next_usec = t->asked_usec + (uint64_t)(t->delay_sec * USEC);
	return 0;
}

/* What has come; 1: the round is over. */
static int go_on(struct top *t)
{
	int r;

	do {
		r = cli_ctl_step(&t->b, &t->items, 0);
		if (r >= 0)
			t->asked_usec = sys_now_usec(); /* it is alive */
		while (t->taken < t->items.count)
			take_item(t, &t->items.item[t->taken++]);
	} while (r == 0);
	if (r == 1) {
		take_end(t);
		t->message[0] = '\0';
		return 1;
	}
	if (r != -ETIMEDOUT && r != -EINTR)
		return r;
	if (sys_now_usec() - t->asked_usec < SILENT_USEC)
		return 0;
	t->b.silent_sec = CLI_TIMEOUT_SEC;
	return -ETIMEDOUT;
}

/* Until something is to be done, but not for ever. True: a key, or a signal. */
static bool wait_for(struct top *t, const struct top_screen *screen)
{
	struct pollfd p[2] = { { .fd = screen->fd, .events = POLLIN },
			       { .fd = t->asking ? t->b.fd : -1, .events = POLLIN } };
	uint64_t now = sys_now_usec(), msec = 1000;

	if (!t->asking)
		msec = t->next_usec > now ? (t->next_usec - now) / 1000 + 1 : 0;
	if (poll(p, 2, (int)(msec > 1000 ? 1000 : msec)) < 0)
		return true;
	t->quit |= (p[0].revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
	return p[0].revents != 0;
}

static bool watch(struct top *t, const struct top_screen *screen)
{
	bool lasting = screen->fd >= 0, touched = true;
	uint64_t draw_usec = 0;
	int err;

	while (!t->quit) {
		err = 0;
		if (!t->asking && sys_now_usec() >= t->next_usec)
			err = begin_round(t);
		if (err == 0 && t->asking)
			err = go_on(t);
		if (err < 0)
			lost(t, err);
		if (err < 0 && !lasting)
			return false;
		if (err || (lasting && (touched || sys_now_usec() >= draw_usec))) {
			screen->draw(t);
			draw_usec = sys_now_usec() + DRAW_USEC;
		}
		if (err == 1 && t->rounds_done == t->rounds_max)
			break;
		touched = wait_for(t, screen);
		if (lasting)
			screen->input(t);
	}
	return true;
}

/* --batch ---------------------------------------------------------------------- */

static void draw_batch(struct top *t)
{
	struct top_row *rows;
	char line[TOP_LINE_BYTES];
	unsigned n = top_sorted(t, &rows);

	if (t->rounds_done > 1)
		putchar('\n');
	for (unsigned i = 0; i < TOP_HEADER_LINES; i++) {
		top_header(t, i, line, sizeof(line));
		puts(line);
	}
	top_heads(t, WIDTH, line, sizeof(line));
	puts(line);
	for (unsigned i = 0; i < n; i++) {
		top_row_text(t, &rows[i], WIDTH, line, sizeof(line));
		puts(line);
	}
	free(rows);
	if (fflush(stdout) != 0)
		t->quit = true; /* cli_finish() says it */
}

/* The command line ------------------------------------------------------------- */

static void usage(FILE *out)
{
	fputs("usage: samepage top [OPTION...]\n\n"
	      "What is shared, what it saves and what it costs, live.\n\n"
	      "  -d, --delay SECONDS  between refreshes (default 2)\n"
	      "  -s, --sort COLUMN    by this column (default SAVED)\n"
	      "  -r, --reverse        the other way round\n"
	      "  -D, --domains        domains instead of processes\n"
	      "  -n, --count N        end after N refreshes\n"
	      "  -b, --batch          plain text, for files and programs\n"
	      "  -h, --help           print this; in the program, h does\n\n"
	      "See samepage-top(1).\n", out);
}

static bool set_sort(struct top *t, const char *name)
{
	for (unsigned c = 0; c < TOP_COLUMNS; c++) {
		t->sort = (enum top_column)c;
		if (strcasecmp(name, top_column_name(t->sort, false)) == 0 ||
		    strcasecmp(name, top_column_name(t->sort, true)) == 0)
			return true;
	}
	return false;
}

static bool set_delay(struct top *t, const char *text)
{
	char *end;

	t->delay_sec = strtod(text, &end);
	return end != text && !*end && t->delay_sec >= 0.1 && t->delay_sec <= 3600;
}

static bool set_count(struct top *t, const char *text)
{
	char *end;

	errno = 0;
	t->rounds_max = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && !*end && !errno && t->rounds_max > 0;
}

static bool set_option(struct top *t, int c, const char *arg)
{
	switch (c) {
	case 'd':
		return set_delay(t, arg);
	case 'n':
		return set_count(t, arg);
	case 's':
		return set_sort(t, arg);
	case 'r':
		t->reverse = true;
		return true;
	default:
		t->domains = true;
		return true;
	}
}

/* -1: go on; else an exit status. */
static int parse(struct top *t, bool *batch, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "delay", required_argument, NULL, 'd' },
		{ "sort", required_argument, NULL, 's' },
		{ "reverse", no_argument, NULL, 'r' },
		{ "domains", no_argument, NULL, 'D' },
		{ "count", required_argument, NULL, 'n' },
		{ "batch", no_argument, NULL, 'b' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":d:s:rDn:bh", longs, NULL)) != -1) {
		if (c == 'h') {
			usage(stdout);
			return cli_finish(CLI_DONE);
		}
		if (c == ':')
			return cli_usage_error("top", "'%s' wants a value", argv[optind - 1]);
		if (c == '?')
			return cli_usage_error("top", "unknown option '%s'", argv[optind - 1]);
		if (c == 'b')
			*batch = true;
		else if (!set_option(t, c, optarg))
			return cli_usage_error("top", "'%s' is no value for %s", optarg,
					       c == 'd' ? "--delay (0.1 to 3600 seconds)" :
					       c == 'n' ? "--count" : "--sort (a column's name)");
	}
	if (optind < argc)
		return cli_usage_error("top", "what is '%s'?", argv[optind]);
	return -1;
}

static int show(struct top *t, bool batch)
{
	struct top_screen screen = { .fd = -1, .draw = draw_batch };
	const char *why = "it was built without ncurses";
	bool done;
	int err = -ENOSYS;

#ifdef CLI_CURSES
	if (!batch)
		err = top_view_open(&screen, &why);
#endif
	if (!batch && err < 0) {
		cli_error("top: no screen to show it on: %s; --batch prints plain text", why);
		return CLI_FAILED;
	}
	done = watch(t, &screen);
#ifdef CLI_CURSES
	if (!batch)
		top_view_close();
#endif
	if (!done)
		cli_error("%s", t->message);
	return done ? CLI_DONE : CLI_FAILED;
}

int cli_top(int argc, char **argv)
{
	struct top t = { .b.fd = -1, .delay_sec = 2, .sort = TOP_SAVED };
	bool batch = false;
	int status = parse(&t, &batch, argc, argv);
	int err;

	if (status >= 0)
		return status;
	err = cli_broker_open(&t.b, NULL, CORE_WIRE_ROLE_CONTROL, cli_domain());
	if (err < 0) {
		cli_broker_explain(&t.b, err);
		return CLI_FAILED;
	}
	status = cli_finish(show(&t, batch));
	cli_items_free(&t.items);
	cli_broker_close(&t.b);
	free(t.rows);
	return status;
}
