/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looks in a row, and what they come to.
 *
 * Memory. While a look is under way there are its records (16 bytes a page: not sorted
 * yet) and of the look before its tags (4 bytes a page) and regions. When it is done, the
 * tags are dropped and `order` comes: 20 bytes. So is `index`, a quarter of a byte.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "analyze/inner.h"
#include "sys/sys.h"

#define SEGMENT_SLOTS 8192 /* of samepaged */
#define SLOT_BYTES 11.5    /* of the index, see docs/design.md */
#define VMA_BYTES_ASSUMED 192
#define VMA_TREE_BYTES 20  /* a mapping's part of the kernel's tree of them */
#define THREADS_MAX 4

/* starting --------------------------------------------------------------------- */

static unsigned threads_of(const struct analyze_options *o)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (o->threads)
		return o->threads;
	return cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : (unsigned)cpus;
}

static bool can_scan(void)
{
	struct sys_page_region none[1];
	struct sys_pm_scan_arg arg = { .size = sizeof(arg), .vec = (uintptr_t)none, .vec_len = 1,
				       .category_anyof_mask = SYS_PAGE_IS_PRESENT,
				       .return_mask = SYS_PAGE_IS_PRESENT };
	int fd = sys->open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	int n;

	if (fd < 0)
		return false;
	n = sys->pagemap_scan(fd, &arg);
	sys->close(fd);
	return n >= 0;
}

int analyze_new(struct analyze *a, const struct analyze_options *options)
{
	uint64_t seed;
	int err;

	memset(a, 0, sizeof(*a));
	a->options = *options;
	if (!can_scan())
		return -ENOSYS;
	a->inner = calloc(1, sizeof(*a->inner));
	a->cell = calloc((size_t)CORE_CENSUS_MATRIX * CORE_CENSUS_MATRIX, sizeof(*a->cell));
	if (!a->inner || !a->cell)
		return -ENOMEM;
	a->inner->kpageflags = sys->open("/proc/kpageflags", O_RDONLY | O_CLOEXEC, 0);
	err = sys->getrandom(&seed, sizeof(seed));
	if (!err)
		err = analyze_ring_start(&a->inner->ring, threads_of(options), seed);
	return err;
}

void analyze_free(struct analyze *a)
{
	struct analyze_inner *in = a->inner;

	if (in) {
		struct analyze_array *arrays[] = { &in->hash, &in->masked, &in->relative, &in->order,
						   &in->index, &in->region, &in->gaps, &in->tag,
						   &in->old_region, &in->old_gaps };

		analyze_ring_stop(&in->ring);
		if (in->kpageflags >= 0)
			sys->close(in->kpageflags);
		for (unsigned i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
			analyze_array_free(arrays[i]);
		free(in->old_process);
	}
	free(a->census.process);
	free(a->process);
	free(a->moment);
	free(a->cell);
	free(in);
	memset(a, 0, sizeof(*a));
}

/* one look --------------------------------------------------------------------- */

static void note_memory(struct analyze *a, bool sorted)
{
	const struct analyze_inner *in = a->inner;
	const struct core_census *c = &a->census, *old = &in->old;
	uint64_t bytes = c->pages * 16 + c->gaps_bytes + c->regions * sizeof(*c->region);

	if (sorted)
		bytes += c->pages * 4 + core_census_index_bytes(c->pages);
	bytes += old->pages * CORE_CENSUS_BEFORE_BYTES + old->gaps_bytes +
		 old->regions * sizeof(*old->region);
	if (bytes > a->own_bytes_max)
		a->own_bytes_max = bytes;
}

static void drop_before(struct analyze_inner *in)
{
	analyze_array_free(&in->tag);
	analyze_array_free(&in->old_region);
	analyze_array_free(&in->old_gaps);
	free(in->old_process);
	in->old_process = NULL;
	in->old_processes = 0;
	memset(&in->old, 0, sizeof(in->old));
}

/* This look becomes the look before; its fingerprints shrink to tags. */
static int put_behind(struct analyze *a)
{
	struct analyze_inner *in = a->inner;
	int err;

	drop_before(in);
	analyze_array_free(&in->order);
	analyze_array_free(&in->index);
	analyze_array_free(&in->masked);
	analyze_array_free(&in->relative);
	if (a->looks > 0) {
		err = analyze_array_need(&in->tag, (a->census.pages + 1) * CORE_CENSUS_BEFORE_BYTES);
		if (err)
			return err;
		core_census_to_tags(&a->census, in->tag.mem, a->looks == 1);
		in->old = a->census;
		in->old_region = in->region;
		in->old_gaps = in->gaps;
		in->region = in->gaps = (struct analyze_array){ 0 };
		in->old_process = a->process;
		in->old_processes = a->processes;
	}
	analyze_array_free(&in->hash);
	a->process = NULL;
	memset(&a->census, 0, sizeof(a->census));
	a->census.segment_slots = SEGMENT_SLOTS;
	return 0;
}

static bool any_read(const struct analyze_process *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (p[i].state == ANALYZE_OK)
			return true;
	return false;
}

/* The list for the next look. -ENODATA: there was one, and now nobody is left. */
static int next_targets(struct analyze *a, struct analyze_process **next, unsigned *n)
{
	struct analyze_process *now = a->process;
	unsigned processes = a->processes;
	bool alive = false;
	int err = analyze_targets(a);

	for (unsigned i = 0; i < a->processes && !alive; i++)
		alive = analyze_alive(a->process[i].pid);
	*next = a->process;
	*n = a->processes;
	a->process = now;
	a->processes = processes;
	if (!err && (a->looks == 0 || alive))
		return 0;
	free(*next);
	*next = NULL;
	if (a->looks == 0)
		return err;
	return !err || err == -ENOENT || err == -ENODEV ? -ENODATA : err;
}

static int read_all(struct analyze *a)
{
	int err = 0;

	a->inner->pages_before = 0;
	for (unsigned i = 0; i < a->processes && !err; i++) {
		if (a->interrupted)
			a->process[i].state = ANALYZE_NOT_READ;
		else
			err = analyze_process_look(a, i);
		a->inner->pages_before += a->process[i].read;
	}
	note_memory(a, false);
	return err;
}

/* Back to what the look before came to: its answers are there, its records are not. */
static int back(struct analyze *a, const struct core_census *census)
{
	struct analyze_inner *in = a->inner;

	free(a->process);
	a->process = in->old_process;
	a->processes = in->old_processes;
	in->old_process = NULL;
	a->census = *census;
	a->interrupted = false;
	drop_before(in);
	return -ENODATA;
}

int analyze_look(struct analyze *a)
{
	struct analyze_inner *in = a->inner;
	uint64_t began = sys_now_usec();
	struct core_census census;
	struct analyze_process *next;
	unsigned n;
	int err = a->looks ? analyze_finish(a) : 0;

	if (!err)
		err = next_targets(a, &next, &n);
	if (err)
		return err;
	census = a->census;
	err = put_behind(a);
	a->process = next;
	a->processes = n;
	if (a->looks == 0)
		in->began_usec = began;
	if (!err)
		err = read_all(a);
	if (!err && a->looks && any_read(in->old_process, in->old_processes) && !any_read(next, n))
		return back(a, &census);
	free(census.process);
	drop_before(in);
	a->looks++;
	in->look_began_usec = began;
	in->look_usec = sys_now_usec() - began;
	a->read_usec += in->look_usec;
	return err;
}

/* sums ------------------------------------------------------------------------- */

/* Does process i belong with process k? Only those count that could be read. */
static bool together(const struct analyze *a, enum core_census_scope scope, unsigned i, unsigned k)
{
	const struct analyze_process *p = &a->process[i], *q = &a->process[k];

	if (q->state != ANALYZE_OK)
		return false;
	switch (scope) {
	case CORE_CENSUS_USER: return p->uid == q->uid;
	case CORE_CENSUS_CGROUP:
		return p->cgroup_hash == q->cgroup_hash; /* of all of the name: the text is cut */
	case CORE_CENSUS_LAYOUT: return p->program && p->program == q->program;
	default: return i == k;
	}
}

/* Groups are named after the first process in them. */
static uint32_t group_in(const struct analyze *a, enum core_census_scope scope, unsigned i)
{
	for (unsigned k = 0; k < i; k++)
		if (together(a, scope, i, k))
			return k;
	return i;
}

static void set_groups(struct analyze *a)
{
	struct core_census_process *c = a->census.process;

	memset(a->groups, 0, sizeof(a->groups));
	for (unsigned i = 0; i < a->processes; i++) {
		struct core_census_groups *g = &c[i].group;

		*g = (struct core_census_groups){ i, i, CORE_CENSUS_NO_REPLICA };
		if (a->process[i].state != ANALYZE_OK)
			continue;
		g->user = group_in(a, CORE_CENSUS_USER, i);
		g->cgroup = group_in(a, CORE_CENSUS_CGROUP, i);
		a->groups[CORE_CENSUS_ALL] = 1;
		a->groups[CORE_CENSUS_PROCESS]++;
		a->groups[CORE_CENSUS_USER] += g->user == i;
		a->groups[CORE_CENSUS_CGROUP] += g->cgroup == i;
		if (a->process[i].program == 0)
			continue;
		g->replica = group_in(a, CORE_CENSUS_LAYOUT, i);
		if (g->replica != i && !c[g->replica].first++)
			a->groups[CORE_CENSUS_LAYOUT]++; /* its second member */
	}
	for (unsigned i = 0; i < a->processes; i++)
		c[i].first = 0;
}

static struct analyze_moment *new_moment(struct analyze *a)
{
	struct analyze_moment *grown = reallocarray(a->moment, a->moments + 1ul, sizeof(*grown));

	if (!grown)
		return NULL;
	a->moment = grown;
	grown += a->moments++;
	memset(grown, 0, sizeof(*grown));
	return grown;
}

static void sum_up(const struct analyze *a, struct analyze_moment *m)
{
	m->pages = a->census.pages;
	for (unsigned i = 0; i < a->processes; i++) {
		const struct analyze_process *p = &a->process[i];

		m->processes += p->state == ANALYZE_OK;
		m->zero += p->zero;
		m->stayed += p->stayed;
		m->lasted += p->lasted;
	}
	m->saved = a->answer[CORE_CENSUS_ALL].saved;
	m->saved_stayed = a->stayed.saved;
	m->saved_lasted = a->lasted.saved;
}

int analyze_moment(struct analyze *a)
{
	struct analyze_inner *in = a->inner;
	struct core_census *c = &a->census;
	struct analyze_moment *m = new_moment(a);
	int err;

	if (!m)
		return -ENOMEM;
	c->process = calloc(a->processes + 1ul, sizeof(*c->process));
	if (!c->process)
		return -ENOMEM;
	c->processes = a->processes;
	set_groups(a);
	err = analyze_array_need(&in->order, (c->pages + 1) * sizeof(*c->order));
	if (!err)
		err = analyze_array_need(&in->index, core_census_index_bytes(c->pages));
	if (err)
		return err;
	c->order = in->order.mem;
	c->index = in->index.mem;
	note_memory(a, true);
	core_census_finish(c);
	core_census_scope(c, CORE_CENSUS_ALL, 0, &a->answer[CORE_CENSUS_ALL]);
	if (a->looks > 1) {
		core_census_scope(c, CORE_CENSUS_ALL, CORE_CENSUS_STAYED, &a->stayed);
		core_census_scope(c, CORE_CENSUS_ALL, CORE_CENSUS_LASTED, &a->lasted);
	}
	sum_up(a, m);
	m->look_usec = in->look_usec;
	m->at_usec = in->look_began_usec - in->began_usec;
	return 0;
}

/* costs ------------------------------------------------------------------------ */

/* What the kernel says of its objects: readable by root alone. */
static void learn_cost(struct analyze_cost *cost)
{
	static const char word[] = "\nvm_area_struct ";
	char *text = calloc(1, 65536);
	const char *at;
	unsigned bytes = VMA_BYTES_ASSUMED;
	size_t have = 0;
	int fd = sys->open("/proc/slabinfo", O_RDONLY | O_CLOEXEC, 0);
	ssize_t n;

	while (text && fd >= 0 && have < 65535 && (n = sys->read(fd, text + have, 65535 - have)) > 0)
		have += (size_t)n;
	if (fd >= 0)
		sys->close(fd);
	at = text ? strstr(text, word) : NULL;
	cost->vma_measured = false;
	if (at) {
		const char *s = at + sizeof(word) - 1;
		char *end;

		strtoul(s, &end, 10); /* active */
		strtoul(end, &end, 10); /* all */
		bytes = (unsigned)strtoul(end, &end, 10);
		cost->vma_measured = bytes > 0;
	}
	free(text);
	cost->slot_bytes = SLOT_BYTES;
	cost->vma_bytes = (bytes ? bytes : VMA_BYTES_ASSUMED) + VMA_TREE_BYTES;
}

double analyze_net_bytes(const struct analyze *a, const struct core_census_answer *answer)
{
	return (double)answer->saved * (double)sys_page_bytes() -
	       (double)answer->slots * a->cost.slot_bytes -
	       (double)answer->vmas_added * a->cost.vma_bytes;
}

unsigned analyze_over_limit(const struct analyze *a, enum core_census_scope scope)
{
	unsigned n = 0;

	for (unsigned i = 0; i < a->processes && a->max_map_count > 0; i++)
		n += (int64_t)a->process[i].vmas + a->census.process[i].vmas_added[scope] >
		     a->max_map_count - a->max_map_count / 10;
	return n;
}

/* Within one group that everybody is in, it is the answer for everybody. */
static void answer(struct analyze *a, enum core_census_scope scope)
{
	struct core_census *c = &a->census;

	if (scope == CORE_CENSUS_LAYOUT ? a->groups[scope] > 0 : a->groups[scope] != 1) {
		core_census_scope(c, scope, 0, &a->answer[scope]);
		return;
	}
	a->answer[scope] = a->answer[CORE_CENSUS_ALL];
	for (uint32_t p = 0; p < c->processes; p++)
		c->process[p].vmas_added[scope] = c->process[p].vmas_added[CORE_CENSUS_ALL];
}

int analyze_finish(struct analyze *a)
{
	struct core_census *c = &a->census;

	a->members = core_census_matrix(c, a->member, a->cell);
	/* the estimate last: it sorts anew */
	for (int scope = CORE_CENSUS_USER; scope < CORE_CENSUS_SCOPES; scope++)
		answer(a, (enum core_census_scope)scope);
	learn_cost(&a->cost);
	a->ksm_run = sys_read_number("/sys/kernel/mm/ksm/run");
	a->ksm_shared = sys_read_number("/sys/kernel/mm/ksm/pages_shared");
	a->ksm_sharing = sys_read_number("/sys/kernel/mm/ksm/pages_sharing");
	a->max_map_count = sys_read_number("/proc/sys/vm/max_map_count");
	return 0;
}
