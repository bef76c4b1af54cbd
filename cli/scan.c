/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What scanners count, summed, as JSON and as text. Names are KSM's where the meaning is.
 *
 * Sums stop at the ends of their types, as all that clients say. full_scans is the
 * least of all scanners': so often has everything been looked at.
 */
#include "cli/cli.h"

#define MSEC 1000.0

/* A new counter is to be summed, and shown twice. */
_Static_assert(sizeof(struct core_scan_counters) == (1 + 26) * sizeof(uint64_t), "new counters");

static const char *tracker_name(uint32_t tracker)
{
	return tracker == CORE_SCAN_TRACKER_WP_ASYNC ? "wp-async" :
	       tracker == CORE_SCAN_TRACKER_CHECKSUM ? "checksum" : "none";
}

const char *cli_scan_state(const struct core_scan_counters *c)
{
	return c->paused ? "paused" : c->tracker ? "on" : "off";
}

void cli_scan_add(struct cli_scan *sum, const struct core_scan_counters *c)
{
	struct core_scan_counters *s = &sum->c;

	sum->paused += c->paused != 0;
	if (!c->tracker)
		return;
	if (!sum->scanners++ || c->full_scans < s->full_scans)
		s->full_scans = c->full_scans;
	sum->mixed |= sum->scanners > 1 && sum->tracker != c->tracker;
	sum->tracker = c->tracker;
#define ADD(field) s->field = cli_sum(s->field, c->field)
	ADD(pages_tracked_now);
	ADD(pages_merged_now);
	ADD(pages_unshared_now);
	ADD(pages_volatile_now);
	ADD(pages_waiting_now);
	ADD(metadata_bytes);
	ADD(pages_scanned);
	ADD(pages_changed);
	ADD(pages_hashed);
	ADD(pages_skipped);
	ADD(pages_candidate);
	ADD(pages_promoted);
	ADD(promoted_in_vain);
	ADD(pages_merged);
	ADD(pages_broken);
	ADD(broken_soon);
	ADD(broken_msec);
	ADD(huge_split);
	ADD(huge_kept);
	ADD(homecomings);
	ADD(held_cpu);
	ADD(held_maps);
	ADD(cpu_usec);
	ADD(stable_msec);
#undef ADD
	if (c->stable_msec_max > s->stable_msec_max)
		s->stable_msec_max = c->stable_msec_max;
}

double cli_ratio(uint64_t part, uint64_t whole)
{
	return whole ? (double)part / (double)whole : 0.0;
}

static uint64_t watched(const struct core_scan_counters *c)
{
	return cli_sum(c->pages_tracked_now, c->pages_merged_now);
}

/* The rest of what is watched: nobody knows whether it would merge. */
uint64_t cli_scan_aside(const struct core_scan_counters *c)
{
	uint64_t known = cli_sum(cli_sum(c->pages_unshared_now, c->pages_volatile_now),
				 c->pages_waiting_now);

	return c->pages_tracked_now > known ? c->pages_tracked_now - known : 0;
}

/* JSON -------------------------------------------------------------------- */

static void json_double(struct json_object *o, const char *key, double v)
{
	json_object_object_add(o, key, json_object_new_double(v));
}

struct json_object *cli_json_scan(const struct core_scan_counters *c)
{
	struct json_object *o = json_object_new_object();

#define FIELD(field) cli_json_u64(o, #field, c->field)
#define NOW(field) cli_json_u64(o, #field, c->field##_now)
	NOW(pages_tracked);
	cli_json_u64(o, "pages_merged", c->pages_merged_now);
	NOW(pages_unshared);
	NOW(pages_volatile);
	NOW(pages_waiting);
	cli_json_u64(o, "pages_aside", cli_scan_aside(c));
	FIELD(full_scans);
	FIELD(pages_scanned);
	FIELD(pages_skipped);
	FIELD(pages_changed);
	FIELD(pages_hashed);
	FIELD(pages_candidate);
	FIELD(pages_promoted);
	FIELD(promoted_in_vain);
	cli_json_u64(o, "pages_merged_ever", c->pages_merged);
	FIELD(pages_broken);
	FIELD(broken_soon);
	FIELD(huge_split);
	FIELD(huge_kept);
	FIELD(homecomings);
	FIELD(held_cpu);
	FIELD(held_maps);
	FIELD(cpu_usec);
	FIELD(metadata_bytes);
	FIELD(stable_msec_max);
#undef NOW
#undef FIELD
	json_double(o, "metadata_bytes_per_page", cli_ratio(c->metadata_bytes, watched(c)));
	json_double(o, "broken_msec_mean", cli_ratio(c->broken_msec, c->pages_broken));
	json_double(o, "stable_msec_mean", cli_ratio(c->stable_msec, c->pages_merged));
	return o;
}

struct json_object *cli_json_scan_process(const struct core_scan_counters *c)
{
	struct json_object *o = cli_json_scan(c);

	cli_json_str(o, "state", cli_scan_state(c));
	cli_json_str(o, "tracker", tracker_name(c->tracker));
	return o;
}

struct json_object *cli_json_scan_sum(const struct cli_scan *s)
{
	struct json_object *o = cli_json_scan(&s->c);

	cli_json_u64(o, "scanners", s->scanners);
	cli_json_u64(o, "paused", s->paused);
	return o;
}

/* Text -------------------------------------------------------------------- */

static unsigned long long n(uint64_t v)
{
	return v;
}

static void pages_line(FILE *out, const char *name, uint64_t pages, const char *meaning)
{
	fprintf(out, "%-15s %10llu  %9.1f MiB  %s\n", name, n(pages), cli_pages_mib(pages),
		meaning);
}

/* No more than 79 columns each, so that `samepage top` can show them. */
void cli_print_scan_counters(FILE *out, const struct core_scan_counters *c)
{
	pages_line(out, "pages_tracked", c->pages_tracked_now, "watched, not merged");
	pages_line(out, "pages_merged", c->pages_merged_now, "merged by scanners");
	pages_line(out, "pages_unshared", c->pages_unshared_now, "nobody has the same");
	pages_line(out, "pages_volatile", c->pages_volatile_now, "left alone: they keep changing");
	pages_line(out, "pages_waiting", c->pages_waiting_now, "changed or new, not yet still");
	pages_line(out, "pages_aside", cli_scan_aside(c), "cannot be merged now, or broken");
	fprintf(out, "full_scans %llu: pages_scanned %llu, pages_skipped %llu\n", n(c->full_scans),
		n(c->pages_scanned), n(c->pages_skipped));
	fprintf(out, "pages_changed %llu, pages_hashed %llu, pages_candidate %llu\n",
		n(c->pages_changed), n(c->pages_hashed), n(c->pages_candidate));
	fprintf(out, "merged %llu ever, %.1f s after they became still (at most %.1f s)\n",
		n(c->pages_merged), cli_ratio(c->stable_msec, c->pages_merged) / MSEC,
		(double)c->stable_msec_max / MSEC);
	fprintf(out, "broken by writes %llu (%.1f %%), %llu within 10 s; after %.1f s; "
		"homecomings %llu\n",
		n(c->pages_broken), 100.0 * cli_ratio(c->pages_broken, c->pages_merged),
		n(c->broken_soon), cli_ratio(c->broken_msec, c->pages_broken) / MSEC,
		n(c->homecomings));
	fprintf(out, "promoted %llu, in vain %llu; huge pages split %llu, kept %llu\n",
		n(c->pages_promoted), n(c->promoted_in_vain), n(c->huge_split), n(c->huge_kept));
	fprintf(out, "put off: looks %llu (CPU ceiling), pages %llu (mapping budget)\n",
		n(c->held_cpu), n(c->held_maps));
	fprintf(out, "cost: CPU %.2f s, records %.1f MiB, %.1f bytes a page\n",
		(double)c->cpu_usec / 1e6, cli_mib(c->metadata_bytes),
		cli_ratio(c->metadata_bytes, watched(c)));
}

void cli_print_scan(const struct cli_scan *s, unsigned clients, uint64_t standing)
{
	if (!s->scanners && !s->paused) {
		printf("\nscanning: off in all clients (`samepage merge` merges)\n");
		return;
	}
	printf("\nscanning: in %u of %u clients", s->scanners, clients);
	if (s->scanners)
		printf(" (%s)", s->mixed ? "wp-async and checksum" : tracker_name(s->tracker));
	if (s->paused)
		printf(", paused in %u (`samepage resume` goes on)", s->paused);
	printf("; candidates: %llu\n", n(standing));
	if (s->scanners)
		cli_print_scan_counters(stdout, &s->c);
}
