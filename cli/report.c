/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What merge, unmerge and status have in common: process numbers of the command
 * line, results as JSON, and the list of reasons (I9).
 *
 * The JSON names are stable: new ones may come, none goes or changes its
 * meaning. They are documented in samepage-merge(1) and samepage-status(1).
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/reason.h"

int cli_parse_pids(const char *command, char **argv, int argc, int32_t **pid)
{
	int32_t *list;

	if (argc > CORE_WIRE_PIDS_MAX)
		return cli_usage_error(command, "more than %d processes named: use --all",
				       CORE_WIRE_PIDS_MAX);
	list = calloc((size_t)argc + 1, sizeof(*list));
	if (!list) {
		cli_error("out of memory");
		return CLI_FAILED;
	}
	for (int i = 0; i < argc; i++) {
		char *end;
		long v;

		errno = 0;
		v = strtol(argv[i], &end, 10);
		if (errno || end == argv[i] || *end || v <= 0 || v > INT_MAX) {
			free(list);
			return cli_usage_error(command, "'%s' is not a process number", argv[i]);
		}
		list[i] = (int32_t)v;
	}
	*pid = list;
	return CLI_DONE;
}

int cli_parse_timeout(const char *command, const char *word, unsigned *timeout_sec)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(word, &end, 10);
	if (errno || end == word || *end || v < 1 || v > INT_MAX / 1000)
		return cli_usage_error(command, "'%s' is no number of seconds", word);
	*timeout_sec = (unsigned)v;
	return CLI_DONE;
}

/* core_result_add(), but of figures that somebody else made up, perhaps. */
void cli_result_add(struct samepage_result *sum, const struct samepage_result *r)
{
	sum->pages_looked = cli_sum(sum->pages_looked, r->pages_looked);
	sum->pages_merged = cli_sum(sum->pages_merged, r->pages_merged);
	sum->pages_zeroed = cli_sum(sum->pages_zeroed, r->pages_zeroed);
	sum->pages_already = cli_sum(sum->pages_already, r->pages_already);
	for (unsigned i = 0; i < SAMEPAGE_REASON_MAX; i++)
		sum->pages_declined[i] = cli_sum(sum->pages_declined[i], r->pages_declined[i]);
	sum->pages_promoted = cli_sum(sum->pages_promoted, r->pages_promoted);
	sum->runs = cli_sum(sum->runs, r->runs);
	sum->vmas_added = cli_sum_signed(sum->vmas_added, r->vmas_added);
	sum->wall_usec = cli_sum(sum->wall_usec, r->wall_usec);
	sum->cpu_usec = cli_sum(sum->cpu_usec, r->cpu_usec);
	sum->frozen_usec = cli_sum(sum->frozen_usec, r->frozen_usec);
}

const struct core_wire_ctl_item *cli_items_find(const struct cli_items *items, int32_t pid)
{
	for (unsigned i = 0; i < items->count; i++)
		if (items->item[i].pid == pid)
			return &items->item[i];
	return NULL;
}

struct json_object *cli_json_declined(const struct samepage_result *r)
{
	struct json_object *o = json_object_new_object();

	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++)
		cli_json_u64(o, core_reason_name(i), r->pages_declined[i]);
	return o;
}

void cli_json_result(struct json_object *o, const struct samepage_result *r)
{
	cli_json_u64(o, "pages_looked", r->pages_looked);
	cli_json_u64(o, "pages_merged", r->pages_merged);
	cli_json_u64(o, "pages_zeroed", r->pages_zeroed);
	cli_json_u64(o, "pages_already", r->pages_already);
	cli_json_u64(o, "pages_promoted", r->pages_promoted);
	cli_json_u64(o, "runs", r->runs);
	json_object_object_add(o, "vmas_added", json_object_new_int64(r->vmas_added));
	cli_json_u64(o, "wall_usec", r->wall_usec);
	cli_json_u64(o, "cpu_usec", r->cpu_usec);
	cli_json_u64(o, "frozen_usec", r->frozen_usec);
	json_object_object_add(o, "pages_declined", cli_json_declined(r));
}

struct json_object *cli_json_item(const struct core_wire_ctl_item *item)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "pid", json_object_new_int(item->pid));
	cli_json_u64(o, "uid", item->uid);
	cli_json_str(o, "domain", item->domain);
	cli_json_str(o, "command", item->comm);
	json_object_object_add(o, "error", json_object_new_int(item->report.error));
	cli_json_u64(o, "vmas", item->report.vmas);
	cli_json_u64(o, "vmas_max", item->report.vmas_max);
	cli_json_u64(o, "own_bytes", item->report.own_bytes);
	return o;
}

struct json_object *cli_json_store(const struct core_wire_ctl_end *end)
{
	struct json_object *o = json_object_new_object();

	cli_json_u64(o, "domains", end->domains);
	cli_json_u64(o, "clients", end->sessions);
	cli_json_u64(o, "slots", end->slots);
	cli_json_u64(o, "segments", end->segments);
	cli_json_u64(o, "segments_freed", end->segments_freed);
	cli_json_u64(o, "store_bytes", end->store_bytes);
	cli_json_u64(o, "index_bytes", end->index_bytes);
	cli_json_u64(o, "broker_bytes", end->broker_rss_bytes);
	cli_json_u64(o, "broker_cpu_usec", end->broker_cpu_usec);
	cli_json_u64(o, "candidates", end->candidates);
	cli_json_u64(o, "standing", end->standing);
	cli_json_u64(o, "paused_domains", end->paused);
	cli_json_u64(o, "submissions", end->submissions);
	cli_json_u64(o, "submissions_known", end->submissions_known);
	cli_json_u64(o, "dropped_clients", end->dropped_clients);
	cli_json_u64(o, "quota_refusals", end->quota_refusals);
	return o;
}

struct declined {
	unsigned reason;
	uint64_t pages;
};

static int by_pages(const void *a, const void *b)
{
	const struct declined *x = a, *y = b;

	if (x->pages != y->pages)
		return x->pages < y->pages ? 1 : -1;
	return x->reason < y->reason ? -1 : 1;
}

void cli_print_declined(const struct samepage_result *r, const char *title)
{
	struct declined list[SAMEPAGE_REASON_COUNT];
	struct cli_table *t;

	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++)
		list[i] = (struct declined){ i, r->pages_declined[i] };
	qsort(list, SAMEPAGE_REASON_COUNT, sizeof(list[0]), by_pages);
	if (list[0].pages == 0)
		return;
	printf("\n%s\n", title);
	t = cli_table_new(4, 1u << 0 | 1u << 3);
	cli_table_cell(t, "REASON");
	cli_table_cell(t, "PAGES");
	cli_table_cell(t, "MiB");
	cli_table_cell(t, "MEANING");
	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT && list[i].pages; i++) {
		cli_table_cell(t, "%s", core_reason_name(list[i].reason));
		cli_table_cell(t, "%llu", (unsigned long long)list[i].pages);
		cli_table_cell(t, "%.1f", cli_pages_mib(list[i].pages));
		cli_table_cell(t, "%s", core_reason_text(list[i].reason));
	}
	cli_table_print(t, stdout);
	cli_table_free(t);
}

unsigned cli_report_strangers(const struct cli_items *items, const int32_t *pid, unsigned count,
			      const struct cli_broker *b, struct json_object *json)
{
	struct json_object *list = json ? json_object_new_array() : NULL;
	unsigned strangers = 0;

	for (unsigned i = 0; i < count; i++) {
		if (cli_items_find(items, pid[i]))
			continue;
		strangers++;
		if (list)
			json_object_array_add(list, json_object_new_int(pid[i]));
		cli_error("process %d is no client of the broker at %s, or not yours: "
			  "start it under `samepage run`", (int)pid[i], b->path);
	}
	if (list)
		json_object_object_add(json, "not_clients", list);
	return strangers;
}
