/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker asks of a client: looks, merges, unmerges, figures, trimming.
 * Each REQUEST gets exactly one RESULT, also when the pass could not be made.
 */
#include <errno.h>
#include <string.h>

#include "proc/internal.h"
#include "proc/kernel.h"

struct sharing {
	struct proc_engine *e;
	uint64_t pages;
	uint64_t vmas;
};

static int count_sharing(const struct sys_vma *v, void *arg)
{
	struct sharing *s = arg;

	s->vmas++;
	if (!proc_vma_is_run(v))
		return 0;
	/* A page of the mapping that nobody has written still is the slot's,
	 * whether it has been touched or not. */
	s->pages += ((v->end - v->start) >> s->e->page_shift) -
		    proc_pass_count_present(s->e, v->start, v->end);
	return 0;
}

static struct sharing sharing_now(struct proc_engine *e)
{
	struct sharing s = { .e = e };

	sys_maps_each(0, e->work->maps_buf, sizeof(e->work->maps_buf), count_sharing, &s);
	if (e->kernel)
		s.pages += proc_kernel_sharing(e);
	return s;
}

int64_t proc_sharing_pages(struct proc_engine *e)
{
	return (int64_t)sharing_now(e).pages;
}

/* Memory that the client side of samepage uses in this process. */
uint64_t proc_serve_own_bytes(struct proc_engine *e)
{
	return sizeof(*e) + sizeof(*e->work) + e->stack_bytes + proc_mem_own_bytes() +
	       e->segments_room * sizeof(struct proc_segment) + proc_scan_bytes(e);
}

void proc_serve_report(struct proc_engine *e, struct core_wire_report *r)
{
	struct sharing s = sharing_now(e);
	int64_t max = sys_read_number("/proc/sys/vm/max_map_count");
	struct core_range *owned = e->work->owned;
	uint64_t from = 0;
	size_t n;

	r->flags = e->kernel ? CORE_WIRE_REPORT_KERNEL : 0;
	r->vmas = (uint32_t)s.vmas;
	r->vmas_max = max < 0 ? 0 : (uint32_t)max;
	r->pages_sharing = s.pages;
	r->own_bytes = proc_serve_own_bytes(e);
	r->cpu_usec = sys_thread_cpu_usec();
	r->zero_pages = e->stats.zero_pages;
	proc_scan_count(e, &r->scan);
	r->total = e->stats.total;
	r->last = e->last;
	do {
		proc_mem_lock_engine();
		n = proc_mem_owned_copy(from, owned, PROC_OWNED_MAX);
		proc_mem_unlock_engine();
		for (size_t i = 0; i < n; i++) {
			r->pages_owned += proc_pass_count_present(e, owned[i].start, owned[i].end);
			from = owned[i].end;
		}
	} while (n == PROC_OWNED_MAX);
}

static void note_pass(struct proc_engine *e, const struct samepage_result *res)
{
	e->last = *res;
	core_result_add(&e->stats.total, res);
	e->stats.zero_pages += res->pages_zeroed;
	e->stats.merges++;
}

static int unmerge_all(struct proc_engine *e, struct samepage_result *res)
{
	uint64_t pages = (uint64_t)proc_sharing_pages(e), rest = 0;
	int err;

	/* Anonymous memory again, as far as possible, so that it can be merged again; private
	 * copies of what must stay where it is. */
	(void)proc_retreat_range(e, 0, (uint64_t)INTPTR_MAX & ~(e->page_bytes - 1));
	proc_mem_lock_engine();
	err = proc_mem_unmerge(0, (uint64_t)INTPTR_MAX & ~(e->page_bytes - 1), &rest);
	proc_mem_unlock_engine();
	if (e->kernel && err == 0) {
		err = proc_kernel_unmerge(0, (uint64_t)INTPTR_MAX & ~(e->page_bytes - 1));
		if (err == -ENOMEM) /* there are holes */
			err = 0;
	}
	res->pages_looked = res->pages_already = pages;
	return err;
}

static int64_t pss_now(void)
{
	int64_t pss = sys_pss_bytes(0);

	return pss < 0 ? 0 : pss;
}

static int carry_out(struct proc_engine *e, uint32_t op, struct core_wire_report *report)
{
	struct samepage_result res = { 0 };
	int err = 0;

	switch (op) {
	case CORE_WIRE_OP_LOOK:
		proc_pass_owned(e, PROC_MODE_LOOK, &res);
		return 0;
	case CORE_WIRE_OP_MERGE:
		proc_pass_owned(e, PROC_MODE_CANDIDATE, &res);
		note_pass(e, &res);
		if (e->uffd < 0 && !e->kernel)
			err = -ENOSYS;
		break;
	case CORE_WIRE_OP_UNMERGE:
		proc_scan_pause(e, true); /* or it would merge again */
		err = unmerge_all(e, &res);
		break;
	case CORE_WIRE_OP_PAUSE:
	case CORE_WIRE_OP_RESUME:
		proc_scan_pause(e, op == CORE_WIRE_OP_PAUSE);
		break;
	case CORE_WIRE_OP_STATS:
		break;
	default:
		return -EINVAL;
	}
	proc_serve_report(e, report);
	if (op == CORE_WIRE_OP_MERGE || op == CORE_WIRE_OP_UNMERGE)
		report->last = res;
	return err;
}

static void serve_request(struct proc_engine *e, const struct core_wire_request *q)
{
	struct core_wire_result m = { 0 };
	/* A page written since the last pass counts: PSS is what the kernel says. */
	bool changes = q->op == CORE_WIRE_OP_MERGE || q->op == CORE_WIRE_OP_UNMERGE;

	core_wire_header_init(&m.h, CORE_WIRE_RESULT, sizeof(m), q->h.seq);
	if (changes)
		m.report.pss_before_bytes = (uint64_t)pss_now();
	m.report.error = carry_out(e, q->op, &m.report);
	/* q is gone with the working memory, which would count otherwise. */
	proc_engine_rest(e);
	m.report.pss_after_bytes = (uint64_t)pss_now();
	if (!changes)
		m.report.pss_before_bytes = m.report.pss_after_bytes;
	if (e->link->connected && proc_link_broker_send(e->link, &m, sizeof(m)) < 0)
		proc_engine_lost_link(e);
}

void proc_serve(struct proc_engine *e)
{
	while (e->link->connected && proc_link_is_broker(e->link)) {
		struct core_wire_header *h = (struct core_wire_header *)e->work->packet;
		int n = proc_link_broker_recv(e->link, h, sizeof(e->work->packet));

		if (n == 0)
			return;
		if (n > 0 && proc_engine_awake(e) < 0)
			return;
		if (n > 0 && h->type == CORE_WIRE_REQUEST)
			serve_request(e, (const struct core_wire_request *)h);
		else if (n > 0 && h->type == CORE_WIRE_TRIM)
			proc_segments_trim(e);
		else
			proc_engine_lost_link(e);
	}
}
