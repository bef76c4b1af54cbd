/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mailbox of an engine: the caller's side, and the thread's.
 *
 * One call at a time. A caller holds call_lock from posting it to its answer; then comes
 * the memory lock (mem.h), if anything. The engine's thread takes the calls between looks
 * and requests, and never takes call_lock.
 */
#include <errno.h>
#include <string.h>

#include "proc/internal.h"
#include "proc/kernel.h"

/* --- the thread ------------------------------------------------------------ */

static void call_merge(struct proc_engine *e, struct proc_call *call)
{
	bool gap = false;

	/* The kernel needs no store; the session is for those who ask what we do. */
	if (proc_engine_connect(e) < 0 && !e->kernel) {
		call->error = -ENOTCONN;
		return;
	}
	proc_pass_range(e, call->start, call->end, PROC_MODE_SYNC, call, &call->result, &gap);
	core_result_add(&e->stats.total, &call->result);
	e->stats.zero_pages += call->result.pages_zeroed;
	e->stats.merges++;
	if (!e->link->connected && !e->kernel)
		call->error = -ENOTCONN;
	else if (gap)
		call->error = -ENOMEM;
}

static void call_stats(struct proc_engine *e, struct proc_call *call)
{
	call->stats = e->stats;
	call->stats.pages_sharing = (uint64_t)proc_sharing_pages(e);
	call->stats.own_bytes = proc_serve_own_bytes(e);
	call->stats.primitive = e->kernel ? SAMEPAGE_PRIMITIVE_KERNEL : SAMEPAGE_PRIMITIVE_REMAP;
	if (e->link->connected)
		call->stats.store_pages = atomic_load(&e->link->index.header->slots_published);
}

void proc_call_take(struct proc_engine *e)
{
	if (!atomic_exchange(&e->call_posted, 0))
		return;
	(void)proc_engine_awake(e); /* a lost link is tried again, or told of */
	switch (e->call.kind) {
	case PROC_CALL_MERGE:
		call_merge(e, &e->call);
		break;
	case PROC_CALL_STATS:
		call_stats(e, &e->call);
		break;
	case PROC_CALL_STOP_FREEZING:
		e->no_freeze = true;
		proc_freeze_teardown(e);
		break;
	case PROC_CALL_HOME:
		proc_scan_leave(e, e->call.start, e->call.end);
		e->call.error = proc_retreat_range(e, e->call.start, e->call.end);
		if (e->kernel && e->call.error == 0)
			e->call.error = proc_kernel_home(e->call.start, e->call.end);
		break;
	case PROC_CALL_LEAVE:
		proc_scan_leave(e, e->call.start, e->call.end);
		break;
	case PROC_CALL_NONE:
		break;
	}
	atomic_store(&e->call.done, 1);
	sys_futex_wake(&e->call.done, 1);
}

/* --- the caller ------------------------------------------------------------ */

/* Post a call and wait for its answer; call_lock held. */
static int post(struct proc_engine *e, enum proc_call_kind kind)
{
	int err;

	if (e->retired)
		return -ECANCELED;
	if (proc_fork_under_way())
		return -EAGAIN;
	if (atomic_load(&e->state) == PROC_DEAD) {
		/* The shim starts threads at fork only, where libc has put itself in order. */
		if (e->params.owned_only)
			return -ENOTCONN;
		err = proc_engine_revive(e);
		if (err < 0)
			return err;
	}
	e->call.kind = kind;
	e->call.error = 0;
	memset(&e->call.stats, 0, sizeof(e->call.stats));
	atomic_store(&e->call.done, 0);
	atomic_store(&e->call_posted, 1);
	err = proc_engine_wake(e);
	/* Not to be reached (a seccomp filter?): take the call back, if it is still there. */
	if (err < 0 && atomic_exchange(&e->call_posted, 0))
		return err;
	while (!atomic_load(&e->call.done) && atomic_load(&e->state) != PROC_DEAD)
		sys_futex_wait(&e->call.done, 0, -1);
	return atomic_load(&e->state) == PROC_DEAD ? e->start_error : e->call.error;
}

/* Around every call. With signals blocked: a handler that made a call of its own would
 * wait for this very thread. */
void proc_call_enter(struct proc_engine *e, sigset_t *saved)
{
	sys_sigmask_block_most(saved);
	proc_lock(&e->call_lock);
}

void proc_call_leave(struct proc_engine *e, const sigset_t *saved)
{
	proc_unlock(&e->call_lock);
	sys_sigmask_restore(saved);
}

int proc_engine_merge(struct proc_engine *e, uint64_t start, uint64_t end, uint32_t want,
		      struct samepage_result *result)
{
	sigset_t saved;
	int err;

	proc_call_enter(e, &saved);
	e->call.start = start;
	e->call.end = end;
	e->call.want = want;
	err = post(e, PROC_CALL_MERGE);
	if (result)
		*result = e->call.result;
	proc_call_leave(e, &saved);
	return err;
}

int proc_engine_stats(struct proc_engine *e, struct samepage_stats *stats)
{
	sigset_t saved;
	int err;

	proc_call_enter(e, &saved);
	err = post(e, PROC_CALL_STATS);
	*stats = e->call.stats;
	proc_call_leave(e, &saved);
	return err;
}

void proc_engine_stop_freezing(struct proc_engine *e)
{
	sigset_t saved;

	if (!e)
		return;
	proc_call_enter(e, &saved);
	/* Without a thread (a forked child) there is no staging either. */
	if (atomic_load(&e->state) == PROC_DEAD || post(e, PROC_CALL_STOP_FREEZING) < 0)
		e->no_freeze = true;
	proc_call_leave(e, &saved);
}

void proc_engine_forbid_freezing(struct proc_engine *e)
{
	if (e)
		e->no_freeze = true;
}

static int range_call(struct proc_engine *e, enum proc_call_kind kind, uint64_t start, uint64_t end)
{
	sigset_t saved;
	int err;

	if (!e)
		return -ECANCELED;
	proc_call_enter(e, &saved);
	e->call.start = start;
	e->call.end = end;
	/* No new thread for that: malloc may not work in such a child (shim/fork.c). */
	err = atomic_load(&e->state) == PROC_DEAD ? -ECANCELED : post(e, kind);
	proc_call_leave(e, &saved);
	return err;
}

int proc_engine_home(struct proc_engine *e, uint64_t start, uint64_t end)
{
	return range_call(e, PROC_CALL_HOME, start, end);
}

int proc_engine_leave(struct proc_engine *e, uint64_t start, uint64_t end)
{
	return range_call(e, PROC_CALL_LEAVE, start, end);
}
