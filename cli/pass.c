/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage pause and resume: have scanners rest or go on. Nothing is merged or unmerged.
 *
 * samepage merge and samepage unmerge: have the broker ask clients for one
 * pass, wait, and say what came of it, process by process.
 *
 * "Saved" is what the kernel says (proportional set size before minus after),
 * not what we counted. A slot's own page is part of the proportional set sizes of
 * those that map it, so sums over all clients are true; a single process may
 * well show more or less than its pages. One process's merge changes the size of
 * the others, so all are asked before the first one begins and after the last one
 * has ended.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "core/reason.h"

struct pass {
	const char *command; /* "merge" */
	const char *doing;
	uint32_t op;
	bool all;
	bool json;
	unsigned timeout_sec;
	int32_t *pid;
	unsigned pids;
};

/* Nothing is merged or unmerged, so there is nothing to measure. */
static bool quick(const struct pass *p)
{
	return p->op == CORE_WIRE_OP_PAUSE || p->op == CORE_WIRE_OP_RESUME;
}

struct sums {
	struct samepage_result r;
	uint64_t before_bytes;
	uint64_t after_bytes;
	unsigned failed;
};

static void usage(FILE *out, const struct pass *p)
{
	fprintf(out, "usage: samepage %s PID... | --all [--json] [--timeout SECONDS]\n\n", p->command);
	fputs(p->op == CORE_WIRE_OP_MERGE ?
	      "Merge identical pages of running clients now, and say what it brought.\n" :
	      p->op == CORE_WIRE_OP_UNMERGE ?
	      "Give every merged page of running clients a private copy again. Their scanners\n"
	      "pause, or they would merge them again: `samepage resume` ends that.\n" :
	      p->op == CORE_WIRE_OP_PAUSE ?
	      "Let the scanners of running clients rest. What is merged stays merged.\n" :
	      "Let the scanners of running clients go on after `samepage pause`, or `unmerge`.\n",
	      out);
	fputs("\n"
	      "  -a, --all              every client of the broker that you may touch; what pauses or\n"
	      "                         resumes does so for those to come as well\n"
	      "  -j, --json             print JSON\n"
	      "  -t, --timeout SECONDS  give up when the broker says nothing for so long\n"
	      "                         (default: 300)\n"
	      "  -h, --help             print this\n\n", out);
	fprintf(out, "See samepage-%s(1).\n", p->command);
}

/* -1: go on; else an exit status. */
static int parse(struct pass *p, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "json", no_argument, NULL, 'j' },
		{ "timeout", required_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c, status;

	opterr = 0;
	p->timeout_sec = CLI_TIMEOUT_SEC;
	while ((c = getopt_long(argc, argv, ":ajt:h", longs, NULL)) != -1) {
		if (c == 'a')
			p->all = true;
		else if (c == 'j')
			p->json = true;
		else if (c == 't') {
			status = cli_parse_timeout(p->command, optarg, &p->timeout_sec);
			if (status != CLI_DONE)
				return status;
		} else if (c == 'h') {
			usage(stdout, p);
			return cli_finish(CLI_DONE);
		} else if (c == ':')
			return cli_usage_error(p->command, "'%s' wants a value", argv[optind - 1]);
		else
			return cli_usage_error(p->command, "unknown option '%s'", argv[optind - 1]);
	}
	if (p->all && optind < argc)
		return cli_usage_error(p->command, "--all and process %s were both given: "
						   "one or the other", argv[optind]);
	if (!p->all && optind == argc)
		return cli_usage_error(p->command, "name processes, or say --all");
	status = cli_parse_pids(p->command, argv + optind, argc - optind, &p->pid);
	p->pids = (unsigned)(argc - optind);
	return status == CLI_DONE ? -1 : status;
}

const char *cli_pass_error(int err)
{
	switch (err) {
	case -ESRCH:
		return "it ended meanwhile";
	case -ETIMEDOUT:
		return "it did not answer (stopped?)";
	case -ENOSYS:
	case -EPERM:
		return "merging does not work for it: `samepage check`, as its user, says why";
	default:
		return strerror(-err);
	}
}

static void sum_up(struct sums *sum, const struct cli_items *items)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned i = 0; i < items->count; i++) {
		const struct core_wire_report *r = &items->item[i].report;

		if (r->error < 0) {
			sum->failed++;
			cli_error("process %d: %s", (int)items->item[i].pid, cli_pass_error(r->error));
		}
		cli_result_add(&sum->r, &r->last);
		if (cli_items_find(items, items->item[i].pid) != &items->item[i])
			continue; /* another handle of a process that was counted */
		sum->before_bytes = cli_sum(sum->before_bytes, r->pss_before_bytes);
		sum->after_bytes = cli_sum(sum->after_bytes, r->pss_after_bytes);
	}
}

/* JSON -------------------------------------------------------------------- */

static void json_pss(struct json_object *o, uint64_t before_bytes, uint64_t after_bytes)
{
	cli_json_u64(o, "pss_before_bytes", before_bytes);
	cli_json_u64(o, "pss_after_bytes", after_bytes);
	json_object_object_add(o, "saved_bytes",
			       json_object_new_int64(cli_less(before_bytes, after_bytes)));
}

static struct json_object *to_json(const struct pass *p, const struct cli_items *items,
				   const struct sums *sum)
{
	struct json_object *o = json_object_new_object();
	struct json_object *list = json_object_new_array();
	struct json_object *total = quick(p) ? NULL : json_object_new_object();

	cli_json_str(o, "op", p->command);
	for (unsigned i = 0; i < items->count; i++) {
		const struct core_wire_report *r = &items->item[i].report;
		struct json_object *item = cli_json_item(&items->item[i]);

		if (!quick(p)) {
			json_pss(item, r->pss_before_bytes, r->pss_after_bytes);
			cli_json_result(item, &r->last);
		}
		json_object_object_add(item, "scan", cli_json_scan_process(&r->scan));
		json_object_array_add(list, item);
	}
	json_object_object_add(o, "processes", list);
	if (total) {
		json_pss(total, sum->before_bytes, sum->after_bytes);
		cli_json_result(total, &sum->r);
		json_object_object_add(o, "total", total);
	}
	json_object_object_add(o, "store", cli_json_store(&items->end));
	return o;
}

/* Text -------------------------------------------------------------------- */

static void row(struct cli_table *t, uint64_t before_bytes, uint64_t after_bytes,
		const struct samepage_result *r)
{
	cli_table_cell(t, "%.1f", cli_mib(before_bytes));
	cli_table_cell(t, "%.1f", cli_mib(after_bytes));
	cli_table_cell(t, "%.1f", cli_mib_less(before_bytes, after_bytes));
	cli_table_cell(t, "%llu", (unsigned long long)r->pages_merged);
	cli_table_cell(t, "%llu", (unsigned long long)r->pages_zeroed);
	cli_table_cell(t, "%llu", (unsigned long long)r->pages_already);
	cli_table_cell(t, "%lld", (long long)r->vmas_added);
	cli_table_cell(t, "%.1f", (double)r->wall_usec / 1000.0);
}

static void print_table(const struct cli_items *items, const struct sums *sum)
{
	static const char *const heads[] = { "PID", "COMMAND", "PSS MiB", "AFTER", "SAVED",
					     "MERGED", "ZERO", "ALREADY", "VMAS+", "ms" };
	struct cli_table *t = cli_table_new(10, 1u << 1);
	char clean[CORE_WIRE_NAME_BYTES];

	for (unsigned i = 0; i < 10; i++)
		cli_table_cell(t, "%s", heads[i]);
	for (unsigned i = 0; i < items->count; i++) {
		const struct core_wire_ctl_item *it = &items->item[i];

		cli_table_cell(t, "%d", (int)it->pid);
		cli_table_cell(t, "%s", cli_clean(it->comm, clean, sizeof(clean)));
		row(t, it->report.pss_before_bytes, it->report.pss_after_bytes, &it->report.last);
	}
	cli_table_rule(t);
	cli_table_cell(t, "total");
	cli_table_cell(t, "%u processes", items->count);
	row(t, sum->before_bytes, sum->after_bytes, &sum->r);
	cli_table_print(t, stdout);
	cli_table_free(t);
}

/*
 * Those of --all hold for processes that are not there yet; a user's, as long as there is
 * a domain of the user to remember it by. (Without a client there is one, too, for a
 * moment: this command's.)
 */
static void print_pause(const struct pass *p, const struct cli_items *items)
{
	bool coming = p->all && (geteuid() == 0 || items->count > 0);
	unsigned scanners = 0, done = 0;

	for (unsigned i = 0; i < items->count; i++) {
		scanners += items->item[i].report.scan.tracker != 0;
		done += items->item[i].report.error == 0;
	}
	if (p->op == CORE_WIRE_OP_RESUME)
		printf("scanning goes on in %u processes%s\n", done,
		       coming ? ", and in those to come" : "");
	else if (coming)
		printf("scanning pauses in %u processes, and in those to come: "
		       "`samepage resume --all` ends that\n", done);
	else if (p->op == CORE_WIRE_OP_PAUSE || scanners)
		printf("scanning pauses in %u processes: `samepage resume` ends that\n", done);
}

static void print_text(const struct pass *p, const struct cli_items *items, const struct sums *sum)
{
	const struct core_wire_ctl_end *e = &items->end;

	if (p->op != CORE_WIRE_OP_MERGE && (items->count || p->all))
		print_pause(p, items);
	if (items->count == 0 || quick(p))
		return;
	print_table(items, sum);
	printf("broker: store %.1f MiB in %llu slots (part of the PSS above), index %.1f MiB, "
	       "own %.1f MiB\n", cli_mib(e->store_bytes), (unsigned long long)e->slots,
	       cli_mib(e->index_bytes), cli_mib(e->broker_rss_bytes));
	if (p->op == CORE_WIRE_OP_MERGE)
		cli_print_declined(&sum->r, "Not merged:");
}

/* ------------------------------------------------------------------------- */

static int show(const struct pass *p, const struct cli_broker *b, const struct cli_items *items)
{
	struct sums sum;
	struct json_object *o = NULL;
	unsigned strangers;

	sum_up(&sum, items);
	if (p->json)
		o = to_json(p, items, &sum);
	else
		print_text(p, items, &sum);
	strangers = cli_report_strangers(items, p->pid, p->pids, b, o);
	if (o) {
		cli_json_print(o);
		json_object_put(o);
	}
	if (p->all && items->count == 0 && !quick(p))
		cli_error("the broker at %s has no clients that you may touch", b->path);
	if (strangers)
		return CLI_NOT_CLIENT;
	if (items->end.error < 0 && items->end.error != -ESRCH) {
		cli_error("%s: %s", p->command, strerror(-items->end.error));
		return CLI_FAILED;
	}
	return sum.failed ? CLI_FAILED : CLI_DONE;
}

static int ask(struct cli_broker *b, const struct pass *p, uint32_t op, const char *doing,
	       struct cli_items *items)
{
	return cli_ctl(b, op, p->all ? CORE_WIRE_CTL_ALL : 0, p->pid, p->pids, doing,
		       p->timeout_sec, items);
}

/* Who came or went in between keeps what it measured itself around its own part. */
static void take_sizes(struct cli_items *items, const struct cli_items *before,
		       const struct cli_items *after)
{
	for (unsigned i = 0; i < items->count; i++) {
		struct core_wire_report *r = &items->item[i].report;
		const struct core_wire_ctl_item *b = cli_items_find(before, items->item[i].pid);
		const struct core_wire_ctl_item *a = cli_items_find(after, items->item[i].pid);

		if (r->error < 0 || !a || a->report.error < 0 || !b || b->report.error < 0)
			continue;
		r->pss_before_bytes = b->report.pss_after_bytes;
		r->pss_after_bytes = a->report.pss_after_bytes;
	}
}

static int ask_all(struct cli_broker *b, const struct pass *p, struct cli_items *items)
{
	struct cli_items before = { 0 }, after = { 0 };
	int err;

	if (quick(p))
		return ask(b, p, p->op, p->doing, items);
	err = ask(b, p, CORE_WIRE_OP_STATS, "asking", &before);
	if (err == 0)
		err = ask(b, p, p->op, p->doing, items);
	if (err == 0) {
		/* The operation is over: what it did is told even if this fails. */
		if (ask(b, p, CORE_WIRE_OP_STATS, "asking", &after) == 0)
			take_sizes(items, &before, &after);
		cli_items_free(&after);
	}
	cli_items_free(&before);
	return err;
}

static int pass(struct pass *p, int argc, char **argv)
{
	struct cli_broker b;
	struct cli_items items;
	int status = parse(p, argc, argv);
	int err;

	if (status >= 0)
		return status;
	err = cli_broker_open(&b, NULL, CORE_WIRE_ROLE_CONTROL, cli_domain());
	if (err == 0) {
		err = ask_all(&b, p, &items);
		if (err == 0) {
			status = cli_finish(show(p, &b, &items));
			cli_items_free(&items);
		}
		cli_broker_close(&b);
	}
	if (err < 0) {
		cli_broker_explain(&b, err);
		status = CLI_FAILED;
	}
	free(p->pid);
	return status;
}

int cli_merge(int argc, char **argv)
{
	struct pass p = { .command = "merge", .doing = "merging", .op = CORE_WIRE_OP_MERGE };

	return pass(&p, argc, argv);
}

int cli_unmerge(int argc, char **argv)
{
	struct pass p = { .command = "unmerge", .doing = "unmerging", .op = CORE_WIRE_OP_UNMERGE };

	return pass(&p, argc, argv);
}

int cli_pause(int argc, char **argv)
{
	struct pass p = { .command = "pause", .doing = "pausing", .op = CORE_WIRE_OP_PAUSE };

	return pass(&p, argc, argv);
}

int cli_resume(int argc, char **argv)
{
	struct pass p = { .command = "resume", .doing = "resuming", .op = CORE_WIRE_OP_RESUME };

	return pass(&p, argc, argv);
}
