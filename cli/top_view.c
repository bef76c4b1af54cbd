/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * `samepage top` on a terminal, with ncurses: where the lines go, and what keys do.
 *
 * From above: sums, the message (a broker that is gone), heads, rows, details of the
 * selected row if they are wanted, keys. Everything is drawn anew each time, and ncurses
 * sends what differs; no colours, so it looks the same everywhere. The selected row stays
 * selected when rows move.
 */
#include <curses.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/top.h"

#define MESSAGE_LINE ((int)TOP_HEADER_LINES)
#define HEADS_LINE (MESSAGE_LINE + 1)
#define FIRST_ROW (HEADS_LINE + 1)
#define ROWS_LEAST 3

static SCREEN *terminal;
static volatile sig_atomic_t stopped;

static struct {
	int32_t pid; /* of what is selected, or for a domain ... */
	unsigned nth;
	uint32_t uid;
	char domain[CORE_WIRE_NAME_BYTES];
	int at, top, page; /* its place in the list, the first that is shown, how many are */
	int move;          /* to be done with the next drawing */
	bool chosen;       /* by a key: else the first row is the selected one */
	bool details;
	bool help;
} view;

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

/* Lines ---------------------------------------------------------------------- */

static void put(int line, const char *text, int attributes)
{
	if (line < 0 || line >= LINES)
		return;
	attrset(attributes);
	move(line, 0);
	clrtoeol();
	addnstr(text, COLS);
	if ((int)strlen(text) > COLS) /* half a number would be a wrong one */
		mvaddch(line, COLS - 1, '>');
	if (attributes & A_REVERSE)
		for (int x = (int)strlen(text); x < COLS; x++)
			addch(' ' | A_REVERSE);
	attrset(A_NORMAL);
}

static unsigned line_count(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static void put_lines(int line, char *text)
{
	char *rest = NULL;

	for (char *p = strtok_r(text, "\n", &rest); p; p = strtok_r(NULL, "\n", &rest))
		put(line++, p, A_NORMAL);
}

static const char help_text[] =
	"  q, Ctrl-C          quit\n"
	"  < >                sort by the column to the left, to the right\n"
	"  p c m s t b u      sort by process, command, merged, saved, rate, broken, CPU\n"
	"  r                  the other way round\n"
	"  d, Tab             processes, or domains\n"
	"  up down, j k, ...  select; PgUp PgDn Home End\n"
	"  Enter, i           details of the selected one\n"
	"  + -                longer, shorter between refreshes\n"
	"  space              refresh now; Ctrl-L: draw all of it again\n"
	"  SAVED, MERGED      MiB: its part of what sharing saves; pages that are shared\n"
	"  RATE/s             pages merged in a second\n"
	"  BROKEN             merged by the scanner, then written\n"
	"  %CPU               of one core, the scanner's\n"
	"  WHY NOT            most pages that are not merged: why\n"
	"  any key            back\n";

/* Selecting ------------------------------------------------------------------ */

static bool is_selected(const struct top_row *row)
{
	return row->pid == view.pid && row->nth == view.nth && row->uid == view.uid &&
	       strcmp(row->domain, view.domain) == 0;
}

static void select_row(const struct top_row *rows, int n)
{
	int at = -1;

	for (int i = 0; view.chosen && i < n && at < 0; i++)
		if (is_selected(&rows[i]))
			at = i;
	if (at < 0)
		at = view.chosen ? view.at : 0; /* it is gone: whoever is there now */
	at += view.move;
	view.move = 0;
	view.at = at < 0 ? 0 : at >= n ? n - 1 : at;
	if (n == 0) {
		view.at = 0;
		return;
	}
	view.pid = rows[view.at].pid;
	view.nth = rows[view.at].nth;
	view.uid = rows[view.at].uid;
	memcpy(view.domain, rows[view.at].domain, sizeof(view.domain));
}

/* Drawing -------------------------------------------------------------------- */

/* The columns' names, that of sorting apart from the rest. */
static void draw_heads(const struct top *t)
{
	const char *name = top_column_name(t->sort, t->domains);
	char line[TOP_LINE_BYTES];
	char *at;

	top_heads(t, (unsigned)COLS, line, sizeof(line));
	put(HEADS_LINE, line, A_REVERSE);
	at = strstr(line, name);
	if (at && at - line + (int)strlen(name) <= COLS) {
		attrset(A_BOLD);
		mvaddstr(HEADS_LINE, (int)(at - line), name);
		attrset(A_NORMAL);
	}
}

static void draw_rows(const struct top *t, const struct top_row *rows, int n, int end)
{
	char line[TOP_LINE_BYTES];

	view.page = end - FIRST_ROW < 1 ? 1 : end - FIRST_ROW;
	if (view.at < view.top)
		view.top = view.at;
	if (view.at >= view.top + view.page)
		view.top = view.at - view.page + 1;
	if (view.top > n - view.page)
		view.top = n > view.page ? n - view.page : 0;
	for (int i = 0; i < view.page && view.top + i < n && FIRST_ROW + i < end; i++) {
		top_row_text(t, &rows[view.top + i], (unsigned)COLS, line, sizeof(line));
		put(FIRST_ROW + i, line, view.top + i == view.at ? A_REVERSE : A_NORMAL);
	}
	if (n == 0)
		put(FIRST_ROW, t->rounds_done ? "no clients: start programs under `samepage run`" :
						"asking ...", A_NORMAL);
}

static void draw_message(const struct top *t)
{
	char line[TOP_LINE_BYTES] = "";
	unsigned late = 0;

	for (unsigned i = 0; t->asking && i < t->count; i++)
		late += t->rows[i].round != t->round;
	if (t->message[0])
		snprintf(line, sizeof(line), "%s", t->message);
	else if (late && t->next_usec < t->asked_usec)
		snprintf(line, sizeof(line), "waiting for %u of them", late);
	put(MESSAGE_LINE, line, t->message[0] ? A_BOLD : A_NORMAL);
}

static void draw_list(const struct top *t)
{
	struct top_row *rows;
	char line[TOP_LINE_BYTES], *details = NULL;
	int n = (int)top_sorted(t, &rows), end = LINES - 1;

	for (unsigned i = 0; i < TOP_HEADER_LINES; i++) {
		top_header(t, i, line, sizeof(line));
		put((int)i, line, A_NORMAL);
	}
	draw_message(t);
	draw_heads(t);
	select_row(rows, n);
	if (view.details && n > 0)
		details = top_details(&rows[view.at]);
	if (details) {
		end -= (int)line_count(details);
		if (end < FIRST_ROW + ROWS_LEAST)
			end = FIRST_ROW + ROWS_LEAST;
	}
	draw_rows(t, rows, n, end);
	if (details) {
		attrset(A_NORMAL);
		put_lines(end, details);
	}
	free(details);
	free(rows);
	put(LINES - 1, "q quit  < > sort  r reverse  d domains  Enter details  + - delay  h help",
	    A_REVERSE);
}

static void draw(struct top *t)
{
	char text[sizeof(help_text)];

	erase();
	if (view.help) {
		memcpy(text, help_text, sizeof(text));
		put(0, "samepage top", A_BOLD);
		put_lines(2, text);
	} else {
		draw_list(t);
	}
	move(LINES - 1, 0);
	refresh();
}

/* Keys ----------------------------------------------------------------------- */

static void sort_by(struct top *t, int step)
{
	t->sort = (enum top_column)((TOP_COLUMNS + (int)t->sort + step) % TOP_COLUMNS);
}

static void change_delay(struct top *t, double times)
{
	double delay = t->delay_sec * times;
	uint64_t was_usec = (uint64_t)(t->delay_sec * 1e6);

	if (delay < 0.1 || delay > 3600)
		return;
	t->delay_sec = delay;
	if (t->next_usec > was_usec) /* else it is due anyway */
		t->next_usec += (uint64_t)(delay * 1e6) - was_usec;
}

static void select_by(int steps)
{
	view.move += steps;
	view.chosen = true;
}

static bool sort_key(struct top *t, int key)
{
	static const struct {
		char key;
		enum top_column column;
	} keys[] = { { 'p', TOP_PID },	  { 'c', TOP_COMMAND }, { 'm', TOP_MERGED },
		     { 's', TOP_SAVED },  { 't', TOP_RATE },	{ 'b', TOP_BROKEN },
		     { 'u', TOP_CPU } };

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (keys[i].key != key)
			continue;
		t->sort = keys[i].column;
		return true;
	}
	return false;
}

static void move_key(int key)
{
	switch (key) {
	case KEY_UP:
	case 'k':
		select_by(-1);
		break;
	case KEY_DOWN:
	case 'j':
		select_by(1);
		break;
	case KEY_PPAGE:
		select_by(-view.page);
		break;
	case KEY_NPAGE:
		select_by(view.page);
		break;
	case KEY_HOME:
		select_by(-view.at);
		break;
	case KEY_END:
		select_by(1 << 24);
		break;
	default:
		break;
	}
}

static void key_pressed(struct top *t, int key)
{
	if (view.help && key != KEY_RESIZE && key != 'q') {
		view.help = false;
		return;
	}
	if (sort_key(t, key))
		return;
	switch (key) {
	case 'q':
		t->quit = true;
		break;
	case '<':
	case ',':
		sort_by(t, -1);
		break;
	case '>':
	case '.':
		sort_by(t, 1);
		break;
	case 'r':
		t->reverse = !t->reverse;
		break;
	case 'd':
	case '\t':
		t->domains = !t->domains;
		view.chosen = false;
		break;
	case '\r':
	case '\n':
	case KEY_ENTER:
	case 'i':
		view.details = !view.details;
		view.chosen = true;
		break;
	case '+':
		change_delay(t, 2);
		break;
	case '-':
		change_delay(t, 0.5);
		break;
	case ' ':
		t->next_usec = 0;
		break;
	case 'L' - '@': /* Ctrl-L: the screen is spoilt */
		clearok(curscr, TRUE);
		break;
	case 'h':
	case '?':
		view.help = true;
		break;
	default:
		move_key(key);
	}
}

static void input(struct top *t)
{
	int key;

	while ((key = getch()) != ERR)
		key_pressed(t, key);
	t->quit |= stopped != 0;
}

/* The terminal --------------------------------------------------------------- */

int top_view_open(struct top_screen *screen, const char **why)
{
	struct sigaction action = { .sa_handler = on_signal };

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
		*why = "this is no terminal";
		return -ENOTTY;
	}
	terminal = newterm(NULL, stdout, stdin);
	if (!terminal) {
		*why = "a terminal of this type (TERM) is not known";
		return -ENOTTY;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGQUIT, &action, NULL); /* Ctrl-\, which would leave the terminal as it is */
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	cbreak();
	noecho();
	nonl();
	curs_set(0);
	keypad(stdscr, TRUE);
	nodelay(stdscr, TRUE);
	set_escdelay(50);
	*screen = (struct top_screen){ .fd = STDIN_FILENO, .draw = draw, .input = input };
	return 0;
}

void top_view_close(void)
{
	endwin();
	delscreen(terminal);
}
