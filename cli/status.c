/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepage status: what is shared now, what it saves, and what we cost.
 *
 * The names are KSM's where the meaning is KSM's (the kernel's admin guide on
 * KSM): pages_shared counts the shared pages themselves, pages_sharing how many
 * *more* places map them, so pages_sharing is what is saved; pages_alone (ours: KSM would
 * drop them) shared pages that fewer than two places map; pages_unshared are
 * those that were looked at and had no second; pages_volatile those that
 * changed under the scanner's hands: what a client's scanner knows now or, where
 * there is none, what its last pass found. general_profit is what is saved minus all
 * the memory that we ourselves use, and may be negative. Zero pages given back
 * are not part of it: the program may have filled them again since.
 *
 * What clients report is their own word: the sums stop at the ends of their types.
 *
 * The sums are always over all clients that the caller may see, for a slot's
 * price is paid once; processes that are named only choose the rows.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/reason.h"
#include "sys/maps.h"
#include "sys/sys.h"

struct sums {
	uint64_t pages_shared;
	uint64_t pages_mapped; /* places that map a slot */
	uint64_t pages_sharing;
	int64_t pages_alone; /* of pages_shared; < 0: not to be told */
	uint64_t pages_unshared;
	uint64_t pages_volatile;
	uint64_t zero_pages;
	uint64_t client_bytes;
	uint64_t client_cpu_usec;
	uint64_t own_bytes;
	int64_t general_profit;
	int64_t vmas_added;
	struct samepage_result last;
	struct cli_scan scan;
};

static void usage(FILE *out)
{
	fputs("usage: samepage status [--json] [--timeout SECONDS] [PID...]\n\n"
	      "What is shared now, what it saves, what it costs, and why the rest is not.\n"
	      "Without PID, every client that you may see.\n\n"
	      "  -j, --json             print JSON\n"
	      "  -t, --timeout SECONDS  give up when the broker says nothing for so long\n"
	      "                         (default: 300)\n"
	      "  -h, --help             print this\n\n"
	      "See samepage-status(1).\n", out);
}

static int64_t profit(uint64_t pages_mapped, uint64_t slots, uint64_t own_bytes)
{
	int64_t bytes;

	if (__builtin_mul_overflow(cli_less(pages_mapped, slots), (int64_t)sys_page_bytes(), &bytes))
		bytes = pages_mapped > slots ? INT64_MAX : INT64_MIN;
	return cli_sum_signed(bytes, cli_less(0, own_bytes));
}

/* Pages that the kernel's merging keeps, on the whole machine: others' as well. */
static uint64_t kernel_pages(const struct cli_items *items)
{
	int64_t pages = 0;

	for (unsigned i = 0; i < items->count && pages <= 0; i++)
		if (items->item[i].report.flags & CORE_WIRE_REPORT_KERNEL)
			pages = sys_read_number("/sys/kernel/mm/ksm/pages_shared");
	return pages < 0 ? 0 : (uint64_t)pages;
}

static void sum_up(struct sums *s, const struct cli_items *items)
{
	const struct core_wire_ctl_end *e = &items->end;
	uint64_t shared = cli_sum(e->slots, kernel_pages(items));

	memset(s, 0, sizeof(*s));
	for (unsigned i = 0; i < items->count; i++) {
		const struct core_wire_report *r = &items->item[i].report;

		s->pages_mapped = cli_sum(s->pages_mapped, r->pages_sharing);
		s->zero_pages = cli_sum(s->zero_pages, r->zero_pages);
		s->client_bytes = cli_sum(s->client_bytes, r->own_bytes);
		s->client_cpu_usec = cli_sum(s->client_cpu_usec, r->cpu_usec);
		s->vmas_added = cli_sum_signed(s->vmas_added, r->total.vmas_added);
		cli_result_add(&s->last, &r->last);
		cli_scan_add(&s->scan, &r->scan);
		s->pages_unshared = cli_sum(s->pages_unshared, r->scan.tracker ?
			r->scan.pages_unshared_now : r->last.pages_declined[SAMEPAGE_REASON_UNIQUE]);
		s->pages_volatile = cli_sum(s->pages_volatile, r->scan.tracker ?
			r->scan.pages_volatile_now : r->last.pages_declined[SAMEPAGE_REASON_CHANGED]);
	}
	s->pages_shared = shared;
	s->pages_sharing = s->pages_mapped > shared ? s->pages_mapped - shared : 0;
	s->pages_alone = cli_alone_pages(items);
	s->own_bytes = cli_sum(cli_sum(e->index_bytes, e->broker_rss_bytes), s->client_bytes);
	/* Slots that nobody maps any more count against us here. */
	s->general_profit = profit(s->pages_mapped, shared, s->own_bytes);
}

static bool wanted(const struct core_wire_ctl_item *item, const int32_t *pid, unsigned pids)
{
	for (unsigned i = 0; i < pids; i++)
		if (pid[i] == item->pid)
			return true;
	return pids == 0;
}

/* JSON -------------------------------------------------------------------- */

static struct json_object *process_json(const struct core_wire_ctl_item *item)
{
	const struct core_wire_report *r = &item->report;
	struct json_object *o = cli_json_item(item);
	struct json_object *total = json_object_new_object();
	struct json_object *last = json_object_new_object();

	cli_json_str(o, "primitive", r->flags & CORE_WIRE_REPORT_KERNEL ? "kernel" : "remap");
	cli_json_u64(o, "pss_bytes", r->pss_after_bytes);
	cli_json_u64(o, "pages_mapped", r->pages_sharing);
	cli_json_u64(o, "pages_owned", r->pages_owned);
	cli_json_u64(o, "zero_pages", r->zero_pages);
	cli_json_u64(o, "cpu_usec", r->cpu_usec);
	cli_json_result(total, &r->total);
	cli_json_result(last, &r->last);
	json_object_object_add(o, "scan", cli_json_scan_process(&r->scan));
	json_object_object_add(o, "total", total);
	json_object_object_add(o, "last", last);
	return o;
}

static struct json_object *to_json(const struct cli_broker *b, const struct cli_items *items,
				   const struct sums *s, const int32_t *pid, unsigned pids)
{
	struct json_object *o = json_object_new_object();
	struct json_object *list = json_object_new_array();

	cli_json_str(o, "socket", b->path);
	cli_json_u64(o, "broker_pid", b->welcome.broker_pid);
	cli_json_u64(o, "page_bytes", sys_page_bytes());
	cli_json_u64(o, "pages_shared", s->pages_shared);
	cli_json_u64(o, "pages_sharing", s->pages_sharing);
	if (s->pages_alone < 0)
		cli_json_str(o, "pages_alone", NULL);
	else
		cli_json_u64(o, "pages_alone", (uint64_t)s->pages_alone);
	cli_json_u64(o, "pages_unshared", s->pages_unshared);
	cli_json_u64(o, "pages_volatile", s->pages_volatile);
	json_object_object_add(o, "general_profit", json_object_new_int64(s->general_profit));
	cli_json_u64(o, "pages_mapped", s->pages_mapped);
	cli_json_u64(o, "zero_pages", s->zero_pages);
	json_object_object_add(o, "vmas_added", json_object_new_int64(s->vmas_added));
	cli_json_u64(o, "own_bytes", s->own_bytes);
	cli_json_u64(o, "clients_bytes", s->client_bytes);
	cli_json_u64(o, "clients_cpu_usec", s->client_cpu_usec);
	json_object_object_add(o, "pages_declined", cli_json_declined(&s->last));
	json_object_object_add(o, "scan", cli_json_scan_sum(&s->scan));
	json_object_object_add(o, "store", cli_json_store(&items->end));
	for (unsigned i = 0; i < items->count; i++)
		if (wanted(&items->item[i], pid, pids))
			json_object_array_add(list, process_json(&items->item[i]));
	json_object_object_add(o, "processes", list);
	return o;
}

/* Text -------------------------------------------------------------------- */

static void line(const char *name, uint64_t pages, const char *meaning)
{
	printf("%-15s %10llu  %9.1f MiB  %s\n", name, (unsigned long long)pages,
	       cli_pages_mib(pages), meaning);
}

static void print_sums(const struct cli_broker *b, const struct cli_items *items,
		       const struct sums *s)
{
	const struct core_wire_ctl_end *e = &items->end;

	printf("broker at %s, process %u: %u clients in %u domains\n\n", b->path,
	       b->welcome.broker_pid, e->sessions, e->domains);
	line("pages_shared", s->pages_shared, "shared pages in use");
	line("pages_sharing", s->pages_sharing, "more places that map them: saved");
	if (s->pages_alone >= 0)
		line("pages_alone", (uint64_t)s->pages_alone,
		     "shared pages in one place at most: for nothing");
	line("pages_unshared", s->pages_unshared, "no second page like them");
	line("pages_volatile", s->pages_volatile, "changed while they were looked at");
	line("zero_pages", s->zero_pages, "zero pages given back, ever");
	printf("%-15s %10lld\n", "vmas_added", (long long)s->vmas_added);
	printf("%-15s %10s  %9.1f MiB  saved, minus all of our own memory\n", "general_profit", "",
	       (double)s->general_profit / (1024.0 * 1024.0));
	printf("\nour own: index %.1f MiB, broker %.1f MiB, clients %.1f MiB; "
	       "CPU: broker %.2f s, clients %.2f s\n", cli_mib(e->index_bytes),
	       cli_mib(e->broker_rss_bytes), cli_mib(s->client_bytes),
	       (double)e->broker_cpu_usec / 1e6, (double)s->client_cpu_usec / 1e6);
}

static void print_rows(const struct cli_items *items, const int32_t *pid, unsigned pids)
{
	static const char *const heads[] = { "PID", "COMMAND", "DOMAIN", "PSS MiB", "REACH MiB",
					     "MERGED MiB", "ZERO", "VMAS", "OF", "CPU s", "SCAN" };
	struct cli_table *t = cli_table_new(11, 1u << 1 | 1u << 2 | 1u << 10);
	char clean[CORE_WIRE_NAME_BYTES];

	for (unsigned i = 0; i < 11; i++)
		cli_table_cell(t, "%s", heads[i]);
	for (unsigned i = 0; i < items->count; i++) {
		const struct core_wire_ctl_item *it = &items->item[i];
		const struct core_wire_report *r = &it->report;

		if (!wanted(it, pid, pids))
			continue;
		cli_table_cell(t, "%d", (int)it->pid);
		cli_table_cell(t, "%s", cli_clean(it->comm, clean, sizeof(clean)));
		cli_table_cell(t, "%s", cli_clean(it->domain, clean, sizeof(clean)));
		cli_table_cell(t, "%.1f", cli_mib(r->pss_after_bytes));
		cli_table_cell(t, "%.1f", cli_pages_mib(r->pages_owned));
		cli_table_cell(t, "%.1f", cli_pages_mib(r->pages_sharing));
		cli_table_cell(t, "%llu", (unsigned long long)r->zero_pages);
		cli_table_cell(t, "%u", r->vmas);
		cli_table_cell(t, "%u", r->vmas_max);
		cli_table_cell(t, "%.2f", (double)r->cpu_usec / 1e6);
		cli_table_cell(t, "%s", cli_scan_state(&r->scan));
	}
	putchar('\n');
	cli_table_print(t, stdout);
	cli_table_free(t);
}

static int show(const struct cli_broker *b, const struct cli_items *items, const int32_t *pid,
		unsigned pids, bool json)
{
	struct json_object *o = NULL;
	unsigned strangers;
	struct sums s;

	sum_up(&s, items);
	if (json) {
		o = to_json(b, items, &s, pid, pids);
	} else {
		print_sums(b, items, &s);
		cli_print_scan(&s.scan, items->count, items->end.standing);
		if (items->count)
			print_rows(items, pid, pids);
		cli_print_declined(&s.last, "Not merged in each client's last pass:");
	}
	strangers = cli_report_strangers(items, pid, pids, b, o);
	if (o) {
		cli_json_print(o);
		json_object_put(o);
	}
	return strangers ? CLI_NOT_CLIENT : CLI_DONE;
}

/* ------------------------------------------------------------------------- */

static int ask(const int32_t *pid, unsigned pids, bool json, unsigned timeout_sec)
{
	struct cli_broker b;
	struct cli_items items;
	int status = CLI_FAILED;
	int err = cli_broker_open(&b, NULL, CORE_WIRE_ROLE_CONTROL, cli_domain());

	if (err == 0) {
		err = cli_ctl(&b, CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0, "asking",
			      timeout_sec, &items);
		if (err == 0) {
			status = cli_finish(show(&b, &items, pid, pids, json));
			cli_items_free(&items);
		}
		cli_broker_close(&b);
	}
	if (err < 0)
		cli_broker_explain(&b, err);
	return status;
}

int cli_status(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "timeout", required_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false;
	unsigned timeout_sec = CLI_TIMEOUT_SEC;
	int32_t *pid = NULL;
	int c, status;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":jt:h", longs, NULL)) != -1) {
		if (c == 'j')
			json = true;
		else if (c == 't') {
			status = cli_parse_timeout("status", optarg, &timeout_sec);
			if (status != CLI_DONE)
				return status;
		} else if (c == 'h') {
			usage(stdout);
			return cli_finish(CLI_DONE);
		} else if (c == ':')
			return cli_usage_error("status", "'%s' wants a value", argv[optind - 1]);
		else
			return cli_usage_error("status", "unknown option '%s'", argv[optind - 1]);
	}
	status = cli_parse_pids("status", argv + optind, argc - optind, &pid);
	if (status == CLI_DONE)
		status = ask(pid, (unsigned)(argc - optind), json, timeout_sec);
	free(pid);
	return status;
}
