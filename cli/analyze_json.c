/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The report as JSON. Its schema is docs/analyze.schema.json, checked in the tests:
 * what is added here is added there.
 */
#include <errno.h>

#include "cli/analyze.h"
#include "cli/cli.h"
#include "sys/sys.h"

static void add_double(struct json_object *o, const char *key, double v)
{
	json_object_object_add(o, key, json_object_new_double(v));
}

static void add_seconds(struct json_object *o, const char *key, uint64_t usec)
{
	add_double(o, key, (double)usec / 1e6);
}

/* A number that could not be read is null. */
static void add_known(struct json_object *o, const char *key, int64_t v)
{
	json_object_object_add(o, key, v < 0 ? NULL : json_object_new_int64(v));
}

static struct json_object *sums_json(const struct core_census_sums *s)
{
	struct json_object *o = json_object_new_object();

	cli_json_u64(o, "pages", s->pages);
	cli_json_u64(o, "duplicate", s->duplicate);
	add_double(o, "saved", s->saved);
	cli_json_u64(o, "huge_duplicate", s->huge);
	cli_json_u64(o, "locked_duplicate", s->locked);
	cli_json_u64(o, "almost", s->almost);
	return o;
}

static struct json_object *answer_json(const struct analyze *a, const struct core_census_answer *r)
{
	struct json_object *o = json_object_new_object();
	struct json_object *lengths = json_object_new_array();
	double page = (double)sys_page_bytes();

	cli_json_u64(o, "duplicate", r->duplicate);
	cli_json_u64(o, "slots", r->slots);
	cli_json_u64(o, "saved", r->saved);
	add_double(o, "gross_bytes", (double)r->saved * page);
	add_double(o, "index_bytes", (double)r->slots * a->cost.slot_bytes);
	add_double(o, "vma_bytes", (double)r->vmas_added * a->cost.vma_bytes);
	add_double(o, "net_bytes", analyze_net_bytes(a, r));
	cli_json_u64(o, "runs", r->runs);
	json_object_object_add(o, "vmas_added", json_object_new_int64(r->vmas_added));
	for (unsigned i = 0; i < CORE_CENSUS_BUCKETS; i++) {
		struct json_object *b = json_object_new_object();

		cli_json_u64(b, "from", core_census_bucket_first(i));
		cli_json_u64(b, "runs", r->bucket[i].runs);
		cli_json_u64(b, "pages", r->bucket[i].pages);
		json_object_array_add(lengths, b);
	}
	json_object_object_add(o, "run_lengths", lengths);
	return o;
}

static struct json_object *scopes_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();

	for (int scope = 0; scope < CORE_CENSUS_SCOPES; scope++) {
		struct json_object *s = answer_json(a, &a->answer[scope]);

		cli_json_u64(s, "groups", a->groups[scope]);
		json_object_object_add(s, "estimate",
				       json_object_new_boolean(scope == CORE_CENSUS_LAYOUT));
		cli_json_u64(s, "processes_over_limit",
			     analyze_over_limit(a, (enum core_census_scope)scope));
		json_object_object_add(o, core_census_scope_name((enum core_census_scope)scope), s);
	}
	return o;
}

static void add_counts(struct json_object *o, const struct analyze_process *p)
{
	cli_json_u64(o, "read", p->read);
	cli_json_u64(o, "zero", p->zero);
	cli_json_u64(o, "zero_mapped", p->zero_mapped);
	cli_json_u64(o, "ksm", p->ksm);
	cli_json_u64(o, "forked", p->forked);
	cli_json_u64(o, "swapped", p->swapped);
	cli_json_u64(o, "vanished", p->vanished);
	cli_json_u64(o, "huge", p->huge);
	cli_json_u64(o, "merged", p->merged);
	cli_json_u64(o, "hugetlb", p->hugetlb);
	cli_json_u64(o, "locked_bytes", p->locked_bytes);
	cli_json_u64(o, "pinned_bytes", p->pinned_bytes);
}

static struct json_object *process_json(const struct analyze *a, unsigned i)
{
	static const char *const states[] = {
		[ANALYZE_OK] = "read", [ANALYZE_EXITED] = "exited", [ANALYZE_DENIED] = "denied",
		[ANALYZE_NO_MEMORY] = "no_memory", [ANALYZE_FAILED] = "failed",
		[ANALYZE_NOT_READ] = "not_read", [ANALYZE_SHARES] = "shares_memory",
	};
	const struct analyze_process *p = &a->process[i];
	struct json_object *o = json_object_new_object();
	char why[CLI_ANALYZE_WHY_BYTES];

	json_object_object_add(o, "pid", json_object_new_int(p->pid));
	json_object_object_add(o, "uid", json_object_new_int64(p->uid));
	cli_json_str(o, "command", p->command);
	cli_json_str(o, "cgroup", p->cgroup);
	cli_json_str(o, "state", states[p->state]);
	cli_json_str(o, "why", cli_analyze_why(p, why));
	if (p->state != ANALYZE_OK)
		return o;
	add_counts(o, p);
	cli_json_u64(o, "stayed", p->stayed);
	cli_json_u64(o, "lasted", p->lasted);
	cli_json_u64(o, "vmas", p->vmas);
	json_object_object_add(o, "vmas_added", json_object_new_int64(
				a->census.process[i].vmas_added[CORE_CENSUS_ALL]));
	json_object_object_add(o, "sums", sums_json(&a->census.process[i].sums));
	return o;
}

static struct json_object *processes_json(const struct analyze *a)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < a->processes; i++)
		json_object_array_add(list, process_json(a, i));
	return list;
}

static struct json_object *kinds_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();

	for (int k = 0; k < CORE_CENSUS_KINDS; k++)
		json_object_object_add(o, core_census_kind_name((enum core_census_kind)k),
				       sums_json(&a->census.kind[k]));
	return o;
}

static struct json_object *matrix_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();
	struct json_object *pids = json_object_new_array();
	struct json_object *rows = json_object_new_array();
	uint64_t with = 0;

	for (unsigned i = 0; i < a->processes; i++)
		with += a->census.process[i].sums.duplicate > 0;
	for (uint32_t i = 0; i < a->members; i++) {
		struct json_object *row = json_object_new_array();

		json_object_array_add(pids, json_object_new_int(a->process[a->member[i]].pid));
		for (uint32_t k = 0; k < a->members; k++)
			json_object_array_add(row, json_object_new_uint64(
						a->cell[i * CORE_CENSUS_MATRIX + k]));
		json_object_array_add(rows, row);
	}
	json_object_object_add(o, "pids", pids);
	cli_json_u64(o, "left_out", with - a->members);
	json_object_object_add(o, "rows", rows);
	return o;
}

static struct json_object *pages_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();
	struct analyze_process sum = { 0 };

	for (unsigned i = 0; i < a->processes; i++) {
		const struct analyze_process *p = &a->process[i];

		sum.read += p->read;
		sum.zero += p->zero;
		sum.zero_mapped += p->zero_mapped;
		sum.ksm += p->ksm;
		sum.forked += p->forked;
		sum.swapped += p->swapped;
		sum.vanished += p->vanished;
		sum.huge += p->huge;
		sum.merged += p->merged;
		sum.hugetlb += p->hugetlb;
		sum.locked_bytes += p->locked_bytes;
		sum.pinned_bytes += p->pinned_bytes;
	}
	add_counts(o, &sum);
	json_object_object_add(o, "sums", sums_json(&a->census.total));
	return o;
}

static struct json_object *obstacles_json(const struct analyze *a)
{
	const struct core_census_sums *s = &a->census.total;
	struct json_object *o = json_object_new_object();
	uint64_t alone = s->pages - s->duplicate;

	cli_json_u64(o, "huge_duplicate", s->huge);
	cli_json_u64(o, "locked_duplicate", s->locked);
	cli_json_u64(o, "almost", s->almost);
	add_double(o, "almost_share", alone ? (double)s->almost / (double)alone : 0);
	return o;
}

static struct json_object *course_json(const struct analyze *a)
{
	struct json_object *list = json_object_new_array();

	for (unsigned i = 0; i < a->moments; i++) {
		const struct analyze_moment *m = &a->moment[i];
		struct json_object *o = json_object_new_object();

		add_seconds(o, "at_seconds", m->at_usec);
		add_seconds(o, "look_seconds", m->look_usec);
		cli_json_u64(o, "processes", m->processes);
		cli_json_u64(o, "pages", m->pages);
		cli_json_u64(o, "zero", m->zero);
		cli_json_u64(o, "stayed", m->stayed);
		cli_json_u64(o, "lasted", m->lasted);
		cli_json_u64(o, "saved", m->saved);
		cli_json_u64(o, "saved_stayed", m->saved_stayed);
		cli_json_u64(o, "saved_lasted", m->saved_lasted);
		json_object_array_add(list, o);
	}
	return list;
}

static struct json_object *surroundings_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();

	add_double(o, "slot_bytes", a->cost.slot_bytes);
	add_double(o, "vma_bytes", a->cost.vma_bytes);
	json_object_object_add(o, "vma_bytes_measured",
			       json_object_new_boolean(a->cost.vma_measured));
	add_known(o, "max_map_count", a->max_map_count);
	add_known(o, "ksm_run", a->ksm_run);
	add_known(o, "ksm_pages_shared", a->ksm_shared);
	add_known(o, "ksm_pages_sharing", a->ksm_sharing);
	return o;
}

struct json_object *cli_analyze_json(const struct analyze *a)
{
	struct json_object *o = json_object_new_object();
	struct json_object *lasting = NULL;
	uint64_t pages = a->census.pages;

	cli_json_str(o, "report", "samepage analyze");
	cli_json_u64(o, "schema", 1);
	cli_json_str(o, "version", SAMEPAGE_VERSION);
	cli_json_u64(o, "page_bytes", sys_page_bytes());
	json_object_object_add(o, "interrupted", json_object_new_boolean(a->interrupted));
	cli_json_u64(o, "looks", a->looks);
	add_seconds(o, "read_seconds", a->read_usec);
	cli_json_u64(o, "own_bytes_max", a->own_bytes_max);
	add_double(o, "own_bytes_a_page", pages ? (double)a->own_bytes_max / (double)pages : 0);
	json_object_object_add(o, "pages", pages_json(a));
	json_object_object_add(o, "kinds", kinds_json(a));
	json_object_object_add(o, "scopes", scopes_json(a));
	json_object_object_add(o, "matrix", matrix_json(a));
	json_object_object_add(o, "obstacles", obstacles_json(a));
	json_object_object_add(o, "surroundings", surroundings_json(a));
	json_object_object_add(o, "course", course_json(a));
	if (a->looks > 1) {
		lasting = json_object_new_object();
		json_object_object_add(lasting, "stayed", answer_json(a, &a->stayed));
		json_object_object_add(lasting, "lasted", answer_json(a, &a->lasted));
	}
	json_object_object_add(o, "lasting", lasting);
	json_object_object_add(o, "processes", processes_json(a));
	return o;
}
