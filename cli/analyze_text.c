/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The report for people. What is an estimate says so; what was not read is named.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/analyze.h"
#include "cli/cli.h"
#include "sys/sys.h"

#define PROCESSES_SHOWN 30
#define PAIRS_SHOWN 10
#define MATRIX_SHOWN 8

static const char *const kind_text[CORE_CENSUS_KINDS] = {
	[CORE_CENSUS_heap] = "heap",
	[CORE_CENSUS_guest_ram] = "guest RAM",
	[CORE_CENSUS_library_data] = "library data",
	[CORE_CENSUS_patched_text] = "patched text",
	[CORE_CENSUS_jit] = "JIT code",
	[CORE_CENSUS_stack] = "stacks",
	[CORE_CENSUS_anonymous] = "other anonymous",
};

static const char *const scope_text[CORE_CENSUS_SCOPES] = {
	[CORE_CENSUS_ALL] = "everybody",
	[CORE_CENSUS_USER] = "each user",
	[CORE_CENSUS_CGROUP] = "each cgroup",
	[CORE_CENSUS_PROCESS] = "each process",
	[CORE_CENSUS_LAYOUT] = "one layout (est.)",
};

static double mib(double bytes)
{
	return bytes / (1024.0 * 1024.0);
}

static double percent(double part, double whole)
{
	return whole > 0 ? 100.0 * part / whole : 0;
}

static void heads(struct cli_table *t, const char *const *head, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		cli_table_cell(t, "%s", head[i]);
}

#define TABLE(t, left, ...)                                                                        \
	static const char *const t##_heads[] = { __VA_ARGS__ };                                    \
	struct cli_table *t = cli_table_new(sizeof(t##_heads) / sizeof(*t##_heads), left);         \
	heads(t, t##_heads, sizeof(t##_heads) / sizeof(*t##_heads))

static void show(struct cli_table *t)
{
	cli_table_print(t, stdout);
	cli_table_free(t);
}

/* sums ------------------------------------------------------------------------- */

struct totals {
	uint64_t read, zero, zero_mapped, ksm, forked, swapped, vanished, huge, merged, hugetlb;
	uint64_t locked_bytes, pinned_bytes;
	unsigned ok, not_ok;
};

static void add_up(const struct analyze *a, struct totals *t)
{
	memset(t, 0, sizeof(*t));
	for (unsigned i = 0; i < a->processes; i++) {
		const struct analyze_process *p = &a->process[i];

		if (p->state == ANALYZE_OK)
			t->ok++;
		else
			t->not_ok++;
		t->read += p->read;
		t->zero += p->zero;
		t->zero_mapped += p->zero_mapped;
		t->ksm += p->ksm;
		t->forked += p->forked;
		t->swapped += p->swapped;
		t->vanished += p->vanished;
		t->huge += p->huge;
		t->merged += p->merged;
		t->hugetlb += p->hugetlb;
		t->locked_bytes += p->locked_bytes;
		t->pinned_bytes += p->pinned_bytes;
	}
}

static void line(const char *what, uint64_t pages, uint64_t of)
{
	printf("  %-44s %10.1f MiB", what, cli_pages_mib(pages));
	if (of)
		printf("  %5.1f %%", percent((double)pages, (double)of));
	putchar('\n');
}

static void line_if(const char *what, uint64_t pages)
{
	if (pages)
		line(what, pages, 0);
}

static void print_sums(const struct analyze *a, const struct totals *t)
{
	const struct core_census_sums *s = &a->census.total;

	printf("%u processes, %.1f MiB of private memory read in %.1f s%s\n\n", t->ok,
	       cli_pages_mib(t->read), (double)a->moment[a->moments - 1].look_usec / 1e6,
	       a->interrupted ? ", interrupted: not all was read" : "");
	line("equal to another page", s->duplicate, t->read);
	line("differs from another in addresses only", s->almost, t->read);
	line("unlike any other", s->pages - s->duplicate - s->almost, t->read);
	line("full of zeros", t->zero, t->read);
	if (t->ksm + t->forked + t->merged + t->zero_mapped + t->swapped + t->vanished + t->hugetlb)
		puts("\nNot read, not in the figures:");
	line_if("merged by KSM already (mapped)", t->ksm);
	line_if("merged by samepage already (mapped)", t->merged);
	line_if("shared since fork: one page already (mapped)", t->forked);
	line_if("the kernel's zero page (mapped, costs nothing)", t->zero_mapped);
	line_if("swapped out", t->swapped);
	line_if("huge pages of hugetlbfs", t->hugetlb);
	line_if("gone, or not to be read, when its turn came", t->vanished);
}

static void print_scopes(const struct analyze *a, uint64_t read, uint64_t zero)
{
	bool limit = false;
	TABLE(t, 1u, "Merged within", "GROUPS", "SAVED MiB", "OF READ", "INDEX MiB", "MAPPINGS",
	      "MiB", "NET MiB", "RUNS", "PAGES/RUN");

	for (int k = 0; k < CORE_CENSUS_SCOPES; k++) {
		const struct core_census_answer *r = &a->answer[k];

		cli_table_cell(t, "%s", scope_text[k]);
		cli_table_cell(t, "%u", a->groups[k]);
		cli_table_cell(t, "%.1f", cli_pages_mib(r->saved));
		cli_table_cell(t, "%.1f %%", percent((double)r->saved, (double)read));
		cli_table_cell(t, "%.1f", mib((double)r->slots * a->cost.slot_bytes));
		cli_table_cell(t, "%+lld", (long long)r->vmas_added);
		cli_table_cell(t, "%.1f", mib((double)r->vmas_added * a->cost.vma_bytes));
		cli_table_cell(t, "%.1f", mib(analyze_net_bytes(a, r)));
		cli_table_cell(t, "%llu", (unsigned long long)r->runs);
		cli_table_cell(t, "%.1f", r->runs ? (double)r->duplicate / (double)r->runs : 0);
		limit = limit || analyze_over_limit(a, (enum core_census_scope)k);
	}
	putchar('\n');
	show(t);
	printf("Pages of zeros come on top: %.1f MiB, given back at no cost.\n"
	       "A mapping costs the kernel %.0f bytes (%s), a slot %.1f.\n", cli_pages_mib(zero),
	       a->cost.vma_bytes, a->cost.vma_measured ? "/proc/slabinfo and its tree" : "assumed",
	       a->cost.slot_bytes);
	if (limit)
		printf("In %u processes vm.max_map_count (%lld) would stop it before all is merged.\n",
		       analyze_over_limit(a, CORE_CENSUS_ALL), (long long)a->max_map_count);
}

static void print_kinds(const struct analyze *a)
{
	TABLE(t, 1u, "Kind of mapping", "MiB", "EQUAL MiB", "SAVED MiB", "OF KIND", "ADDRESSES MiB");

	for (int k = 0; k < CORE_CENSUS_KINDS; k++) {
		const struct core_census_sums *s = &a->census.kind[k];

		if (s->pages == 0)
			continue;
		cli_table_cell(t, "%s", kind_text[k]);
		cli_table_cell(t, "%.1f", cli_pages_mib(s->pages));
		cli_table_cell(t, "%.1f", cli_pages_mib(s->duplicate));
		cli_table_cell(t, "%.1f", cli_pages_mib((uint64_t)s->saved));
		cli_table_cell(t, "%.1f %%", percent(s->saved, (double)s->pages));
		cli_table_cell(t, "%.1f", cli_pages_mib(s->almost));
	}
	putchar('\n');
	show(t);
}

static void print_runs(const struct analyze *a)
{
	const struct core_census_answer *r = &a->answer[CORE_CENSUS_ALL];
	TABLE(t, 0, "Pages in a run", "RUNS", "MiB", "OF MERGED");

	if (r->runs == 0) {
		cli_table_free(t);
		return;
	}
	for (unsigned i = 0; i < CORE_CENSUS_BUCKETS; i++) {
		unsigned long long from = core_census_bucket_first(i);

		if (r->bucket[i].runs == 0)
			continue;
		if (i == 0)
			cli_table_cell(t, "1");
		else if (i + 1 == CORE_CENSUS_BUCKETS)
			cli_table_cell(t, "%llu and more", from);
		else
			cli_table_cell(t, "%llu to %llu", from, 2 * from - 1);
		cli_table_cell(t, "%llu", (unsigned long long)r->bucket[i].runs);
		cli_table_cell(t, "%.1f", cli_pages_mib(r->bucket[i].pages));
		cli_table_cell(t, "%.1f %%",
			       percent((double)r->bucket[i].pages, (double)r->duplicate));
	}
	putchar('\n');
	show(t);
}

/* processes -------------------------------------------------------------------- */

static int by_saved(const void *x, const void *y, void *arg)
{
	const struct analyze *a = arg;
	double s = a->census.process[*(const unsigned *)x].sums.saved;
	double r = a->census.process[*(const unsigned *)y].sums.saved;

	return (s < r) - (s > r);
}

static void print_processes(const struct analyze *a)
{
	unsigned *order = calloc(a->processes + 1ul, sizeof(*order));
	unsigned n = 0, shown = 0;
	char clean[ANALYZE_COMMAND_BYTES];
	TABLE(t, 2u, "PID", "COMMAND", "UID", "MiB", "EQUAL", "SAVED", "ZERO", "KSM", "FORKED",
	      "SWAPPED", "MAPPINGS", "MORE");

	for (unsigned i = 0; order && i < a->processes; i++)
		if (a->process[i].state == ANALYZE_OK)
			order[n++] = i;
	if (n > 1)
		qsort_r(order, n, sizeof(*order), by_saved, (void *)(uintptr_t)a);
	for (; shown < n && shown < PROCESSES_SHOWN; shown++) {
		const struct analyze_process *p = &a->process[order[shown]];
		const struct core_census_process *c = &a->census.process[order[shown]];

		cli_table_cell(t, "%d", p->pid);
		cli_table_cell(t, "%s", cli_clean(p->command, clean, sizeof(clean)));
		cli_table_cell(t, "%u", (unsigned)p->uid);
		cli_table_cell(t, "%.1f", cli_pages_mib(p->read));
		cli_table_cell(t, "%.1f", cli_pages_mib(c->sums.duplicate));
		cli_table_cell(t, "%.1f", cli_pages_mib((uint64_t)c->sums.saved));
		cli_table_cell(t, "%.1f", cli_pages_mib(p->zero));
		cli_table_cell(t, "%.1f", cli_pages_mib(p->ksm));
		cli_table_cell(t, "%.1f", cli_pages_mib(p->forked));
		cli_table_cell(t, "%.1f", cli_pages_mib(p->swapped));
		cli_table_cell(t, "%llu", (unsigned long long)p->vmas);
		cli_table_cell(t, "%+lld", (long long)c->vmas_added[CORE_CENSUS_ALL]);
	}
	puts("\nProcesses, in MiB; saved: a fair share of what equal pages save");
	show(t);
	if (n > shown)
		printf("and %u more (all of them with --json)\n", n - shown);
	free(order);
}

static void print_pair(const struct analyze *a, uint32_t i, uint32_t k)
{
	const struct analyze_process *p = &a->process[a->member[i]], *q = &a->process[a->member[k]];
	char one[ANALYZE_COMMAND_BYTES], two[ANALYZE_COMMAND_BYTES];

	printf("  %10.1f MiB  %s (%d) and %s (%d)\n",
	       cli_pages_mib(a->cell[i * CORE_CENSUS_MATRIX + k]),
	       cli_clean(p->command, one, sizeof(one)), p->pid,
	       cli_clean(q->command, two, sizeof(two)), q->pid);
}

/* The largest cell above the diagonal that is not larger than the one before. */
static bool next_pair(const struct analyze *a, uint32_t *i, uint32_t *k, bool first)
{
	uint64_t last = first ? UINT64_MAX : a->cell[*i * CORE_CENSUS_MATRIX + *k];
	uint32_t at_i = *i, at_k = *k;
	uint64_t best = 0;

	for (uint32_t r = 0; r < a->members; r++)
		for (uint32_t c = r + 1; c < a->members; c++) {
			uint64_t v = a->cell[r * CORE_CENSUS_MATRIX + c];
			bool later = first || v < last || r > at_i || (r == at_i && c > at_k);

			if (v <= last && v > best && later) {
				best = v;
				*i = r;
				*k = c;
			}
		}
	return best > 0;
}

static void print_matrix(const struct analyze *a)
{
	struct cli_table *t = cli_table_new(a->members + 1, 1u);

	cli_table_cell(t, "MiB");
	for (uint32_t i = 0; i < a->members; i++)
		cli_table_cell(t, "%d", a->process[a->member[i]].pid);
	for (uint32_t i = 0; i < a->members; i++) {
		cli_table_cell(t, "%d", a->process[a->member[i]].pid);
		for (uint32_t k = 0; k < a->members; k++)
			cli_table_cell(t, "%.1f",
				       cli_pages_mib(a->cell[i * CORE_CENSUS_MATRIX + k]));
	}
	show(t);
}

static void print_pairs(const struct analyze *a)
{
	uint32_t i = 0, k = 0;

	if (a->members < 2)
		return;
	puts("\nPairs: what sharing between the two saves, beyond merging inside each");
	if (a->members <= MATRIX_SHOWN) {
		print_matrix(a);
		return;
	}
	for (unsigned n = 0; n < PAIRS_SHOWN && next_pair(a, &i, &k, n == 0); n++)
		print_pair(a, i, k);
}

/* what stands in the way, what was not read ------------------------------------ */

static void print_obstacles(const struct analyze *a, const struct totals *t)
{
	const struct core_census_sums *s = &a->census.total;
	uint64_t alone = s->pages - s->duplicate;

	puts("\nIn the way");
	printf("  pointers: %.1f %% of the pages without an equal one (%.1f MiB) differ from\n"
	       "    another one only in words that look like addresses\n",
	       percent((double)s->almost, (double)alone), cli_pages_mib(s->almost));
	printf("  huge pages: %.1f MiB of the equal pages lie in some; merging splits them\n",
	       cli_pages_mib(s->huge));
	printf("  locked memory: %.1f MiB of the equal pages; %.1f MiB locked in all\n",
	       cli_pages_mib(s->locked), cli_mib(t->locked_bytes));
	printf("  pins: %.1f MiB that the kernel accounts for; others cannot be seen from outside\n",
	       cli_mib(t->pinned_bytes));
	if (a->ksm_run > 0)
		printf("  KSM runs: it has merged %lld pages into %lld\n",
		       (long long)a->ksm_sharing + (long long)a->ksm_shared, (long long)a->ksm_shared);
}

const char *cli_analyze_why(const struct analyze_process *p, char *buf)
{
	switch (p->state) {
	case ANALYZE_OK: return NULL;
	case ANALYZE_EXITED: return "exited before it was read";
	case ANALYZE_DENIED: return "may not be read";
	case ANALYZE_NO_MEMORY: return "has no memory that could be read";
	case ANALYZE_NOT_READ: return "interrupted before it was read";
	case ANALYZE_SHARES:
		snprintf(buf, CLI_ANALYZE_WHY_BYTES, "shares the memory of %d", p->shares_pid);
		return buf;
	case ANALYZE_FAILED:
		if (p->error == EAGAIN)
			return "began other programs while it was read";
	}
	return strerror(p->error);
}

static void print_not_read(const struct analyze *a)
{
	unsigned shown = 0, denied = 0;
	char clean[ANALYZE_COMMAND_BYTES], why[CLI_ANALYZE_WHY_BYTES];

	for (unsigned i = 0; i < a->processes; i++) {
		const struct analyze_process *p = &a->process[i];

		if (p->state == ANALYZE_OK)
			continue;
		if (p->state == ANALYZE_DENIED && ++denied > PAIRS_SHOWN)
			continue;
		if (shown++ == 0)
			puts("\nNot read");
		printf("  %d %s: %s\n", p->pid, cli_clean(p->command, clean, sizeof(clean)),
		       cli_analyze_why(p, why));
	}
	if (denied > PAIRS_SHOWN)
		printf("  and %u more that may not be read\n", denied - PAIRS_SHOWN);
}

static void print_lasting(const struct analyze *a)
{
	const struct analyze_moment *m = &a->moment[a->moments - 1];

	if (a->looks < 2)
		return;
	printf("\nOver %u looks in %.1f s\n", a->looks, (double)(m->at_usec + m->look_usec) / 1e6);
	printf("  unchanged since the look before:  %5.1f %% of the pages, which save %.1f MiB\n",
	       percent((double)m->stayed, (double)m->pages), cli_pages_mib(m->saved_stayed));
	printf("  unchanged since the first look:   %5.1f %% of the pages, which save %.1f MiB: "
	       "what would last\n", percent((double)m->lasted, (double)m->pages),
	       cli_pages_mib(m->saved_lasted));
}

void cli_analyze_text_look(const struct analyze *a, FILE *out)
{
	const struct analyze_moment *m = &a->moment[a->moments - 1];

	fprintf(out, "look %u at %.1f s: %llu processes, %.1f MiB, to save %.1f MiB", a->looks,
	       (double)m->at_usec / 1e6, (unsigned long long)m->processes, cli_pages_mib(m->pages),
	       cli_pages_mib(m->saved));
	if (a->looks > 1)
		fprintf(out, "; %.1f MiB by pages unchanged since the look before, %.1f since the first",
		       cli_pages_mib(m->saved_stayed), cli_pages_mib(m->saved_lasted));
	fputc('\n', out);
}

void cli_analyze_text(const struct analyze *a)
{
	struct totals t;

	add_up(a, &t);
	if (a->looks > 1)
		putchar('\n');
	print_sums(a, &t);
	print_scopes(a, t.read, t.zero);
	print_lasting(a);
	print_kinds(a);
	print_runs(a);
	print_processes(a);
	print_pairs(a);
	print_obstacles(a, &t);
	print_not_read(a);
}
