/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage analyze: what would merging save here? Changes nothing anywhere.
 *
 * A process that exits, unmaps memory or denies access is a line in the report. The
 * status is CLI_FAILED only when nothing at all could be read.
 *
 * Ctrl-C ends with the report: between two looks at once; in a look of a watch when that
 * look is done, or at the second time; in a single look at once, and the report says what
 * it does not contain.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/analyze.h"
#include "cli/cli.h"
#include "sys/sys.h"

#define PROGRESS_USEC 200000
#define SECONDS_MAX 86400
#define THREADS_MAX 8

struct choice {
	bool json;
	const char *html;
	bool all;
	const char *cgroup;
	unsigned watch_sec;
	unsigned looks; /* 0: until interrupted */
	unsigned threads;
	int32_t *pid;
	unsigned pids;
};

static volatile sig_atomic_t interrupts;

static void on_signal(int sig)
{
	(void)sig;
	interrupts++;
}

static void usage(FILE *out)
{
	fputs("usage: samepage analyze [OPTION...] PID... | --cgroup PATH | --all\n\n"
	      "What would merging save, and what would it cost? Reads private pages of running\n"
	      "processes and changes nothing.\n\n"
	      "  -a, --all            every process that may be read\n"
	      "  -c, --cgroup PATH    the processes of a cgroup and of those below it\n"
	      "  -j, --json           print JSON\n"
	      "      --html FILE      write a page with plots\n"
	      "  -w, --watch SECONDS  look again and again, so long after each look\n"
	      "  -n, --looks COUNT    with --watch: so many looks; else until Ctrl-C\n"
	      "  -t, --threads COUNT  read with so many threads\n"
	      "  -h, --help           print this\n\n"
	      "See samepage-analyze(1).\n", out);
}

/* progress --------------------------------------------------------------------- */

struct progress {
	const struct choice *choice;
	const struct analyze *analyze;
	uint64_t shown_usec;
	bool terminal; /* is somebody there to see it? */
	bool shown;
};

static int on_progress(void *arg, uint64_t pages, uint64_t of_pages, const char *command, int pid)
{
	struct progress *p = arg;
	uint64_t now = p->terminal ? sys_now_usec() : 0;
	char clean[ANALYZE_COMMAND_BYTES];

	if (p->terminal && now - p->shown_usec >= PROGRESS_USEC) {
		double share = of_pages ? (double)pages * 100.0 / (double)of_pages : 0;

		fprintf(stderr, "\r\033[Ksamepage: look %u: %.0f of about %.0f MiB (%.0f %%), %s (%d)",
			p->analyze->looks + 1, cli_pages_mib(pages), cli_pages_mib(of_pages),
			share > 100 ? 100 : share, cli_clean(command, clean, sizeof(clean)), pid);
		p->shown_usec = now;
		p->shown = true;
	}
	return interrupts > (p->choice->watch_sec ? 1 : 0);
}

static void end_progress(struct progress *p)
{
	if (p->shown)
		fputs("\r\033[K", stderr);
	p->shown = false;
}

/* looks ------------------------------------------------------------------------ */

static bool more_looks(const struct choice *c, const struct analyze *a)
{
	struct timespec left = { .tv_sec = c->watch_sec };

	if (!c->watch_sec || interrupts || (c->looks && a->looks >= c->looks))
		return false;
	while (!interrupts && nanosleep(&left, &left) < 0 && errno == EINTR)
		;
	return !interrupts;
}

/* Is the page, which must stay alone, on standard output? */
static bool to_stdout(const struct choice *c)
{
	return c->html && strcmp(c->html, "-") == 0;
}

static int look_on(const struct choice *c, struct analyze *a, struct progress *p)
{
	int err;

	do {
		err = analyze_look(a);
		end_progress(p);
		if (err == -ENODATA) {
			if (!interrupts)
				cli_error("nobody is left to look at: the watch ends");
			return 0;
		}
		if (!err)
			err = analyze_moment(a);
		if (err)
			return err;
		if (c->watch_sec && !c->json) {
			cli_analyze_text_look(a, to_stdout(c) ? stderr : stdout);
			fflush(stdout);
		}
	} while (more_looks(c, a));
	return analyze_finish(a);
}

static int report(const struct choice *c, const struct analyze *a, struct cli_analyze_page *page)
{
	struct json_object *o;
	int err = 0;

	if (!c->json && !c->html) {
		cli_analyze_text(a);
		return 0;
	}
	o = cli_analyze_json(a);
	if (c->json)
		cli_json_print(o);
	if (c->html)
		err = cli_analyze_page_close(page, o);
	if (err < 0)
		cli_error("cannot write %s: %s", c->html, strerror(-err));
	else if (c->html && !c->json)
		fprintf(to_stdout(c) ? stderr : stdout, "%s: %u processes, %.1f MiB of private memory, %.1f MiB to save\n",
		       c->html,
		       a->groups[CORE_CENSUS_PROCESS],
		       cli_pages_mib(a->moment[a->moments - 1].pages + a->moment[a->moments - 1].zero),
		       analyze_net_bytes(a, &a->answer[CORE_CENSUS_ALL]) / (1024.0 * 1024.0));
	json_object_put(o);
	return err;
}

static void explain(const struct choice *c, int err)
{
	if (err == -ENOSYS)
		cli_error("this kernel cannot tell which pages are there (PAGEMAP_SCAN); "
			  "Linux 6.7 or newer can");
	else if (c->cgroup && (err == -ENOENT || err == -ENOTDIR || err == -EACCES))
		cli_error("cannot read cgroup %s: %s", c->cgroup, strerror(-err));
	else
		cli_error("cannot analyze: %s", strerror(-err));
}

static int analyze(const struct choice *c)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct analyze a;
	struct progress progress = { .choice = c, .analyze = &a,
				     .terminal = isatty(STDERR_FILENO) };
	struct analyze_options options = {
		.pid = c->pid,
		.pids = c->pids,
		.cgroup = c->cgroup,
		.all = c->all,
		.threads = c->threads,
		.progress = on_progress,
		.progress_arg = &progress,
	};
	struct cli_analyze_page page = { 0 };
	int status = CLI_FAILED;
	int err;

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	err = c->html ? cli_analyze_page_open(&page, c->html) : 0;
	if (err < 0) {
		cli_error("cannot write %s: %s", c->html, strerror(-err));
		return CLI_FAILED;
	}
	err = analyze_new(&a, &options);
	if (!err)
		err = look_on(c, &a, &progress);
	if (err < 0) {
		explain(c, err);
	} else if (report(c, &a, &page) == 0) {
		status = a.groups[CORE_CENSUS_PROCESS] ? CLI_DONE : CLI_FAILED;
		if (status == CLI_FAILED)
			cli_error("no process could be read%s", geteuid() ?
				  "; root may read everybody's, others their own" : "");
	}
	cli_analyze_page_close(&page, NULL); /* unless it has been written */
	analyze_free(&a);
	return cli_finish(status);
}

/* options ---------------------------------------------------------------------- */

static int take_number(const char *name, const char *word, unsigned max, unsigned *value)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(word, &end, 10);
	if (*word < '0' || *word > '9' || *end != '\0' || errno || v < 1 || v > max)
		return cli_usage_error("analyze", "'%s' is no value for %s (1 to %u)", word, name, max);
	*value = (unsigned)v;
	return CLI_DONE;
}

static int check(const struct choice *c)
{
	if (!c->all && !c->cgroup && c->pids == 0)
		return cli_usage_error("analyze", "name processes, --cgroup or --all");
	if (c->all && (c->cgroup || c->pids))
		return cli_usage_error("analyze", "--all and %s were both given",
				       c->cgroup ? "--cgroup" : "processes");
	if (c->cgroup && !*c->cgroup)
		return cli_usage_error("analyze", "--cgroup wants a name");
	if (c->json && c->html)
		return cli_usage_error("analyze", "--json and --html were both given");
	if (c->looks && !c->watch_sec)
		return cli_usage_error("analyze", "--looks wants --watch");
	if (c->html && !cli_analyze_can_html()) {
		cli_error("built without plots (Chart.js was not there): --html cannot be had, "
			  "--json can");
		return CLI_FAILED;
	}
	return CLI_DONE;
}

/* One option; CLI_DONE: go on. */
static int take_option(int option, const char *word, struct choice *c)
{
	switch (option) {
	case 'j': c->json = true; return CLI_DONE;
	case 'a': c->all = true; return CLI_DONE;
	case 'c': c->cgroup = optarg; return CLI_DONE;
	case 'H': c->html = optarg; return CLI_DONE;
	case 'w': return take_number("--watch", optarg, SECONDS_MAX, &c->watch_sec);
	case 'n': return take_number("--looks", optarg, 1000000, &c->looks);
	case 't': return take_number("--threads", optarg, THREADS_MAX, &c->threads);
	case ':': return cli_usage_error("analyze", "'%s' wants a value", word);
	default: return cli_usage_error("analyze", "unknown option '%s'", word);
	}
}

int cli_analyze(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "cgroup", required_argument, NULL, 'c' },
		{ "html", required_argument, NULL, 'H' },
		{ "json", no_argument, NULL, 'j' },
		{ "looks", required_argument, NULL, 'n' },
		{ "threads", required_argument, NULL, 't' },
		{ "watch", required_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct choice choice = { 0 };
	int c, status = CLI_DONE;

	opterr = 0;
	while (status == CLI_DONE &&
	       (c = getopt_long(argc, argv, ":ac:jn:t:w:h", longs, NULL)) != -1) {
		if (c == 'h') {
			usage(stdout);
			return cli_finish(CLI_DONE);
		}
		status = take_option(c, argv[optind - 1], &choice);
	}
	if (status == CLI_DONE)
		status = cli_parse_pids("analyze", argv + optind, argc - optind, &choice.pid);
	choice.pids = (unsigned)(argc - optind);
	if (status == CLI_DONE)
		status = check(&choice);
	if (status == CLI_DONE)
		status = analyze(&choice);
	free(choice.pid);
	return status;
}
