/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fork(2) and the engines.
 *
 * A child made while pages are in staging would find holes, so whoever forks
 * holds the memory lock across the fork: nothing is frozen then, and the range
 * sets are whole. In the child every engine is without a thread; it starts a new
 * one at once (the shim) or with the next call (library handles).
 *
 * The hooks may be called twice for one fork (by pthread_atfork and by a program
 * that was told to call them): the thread that prepared is remembered, and what
 * it calls again is nothing.
 */
#include <errno.h>
#include <pthread.h>

#include "proc/internal.h"

static _Atomic int prepared_by; /* tid of the thread that forks; under the lock */
static struct proc_mem_guard fork_guard;
static bool revive_at_once;
static pthread_once_t install_once = PTHREAD_ONCE_INIT;
static int install_error;

void proc_fork_prepare(void)
{
	struct proc_mem_guard g;
	int me = sys_gettid();

	if (atomic_load(&prepared_by) == me)
		return;
	proc_mem_lock(&g);
	fork_guard = g;
	atomic_store(&prepared_by, me);
	proc_mem_lock_forking(me);
}

void proc_fork_parent(void)
{
	struct proc_mem_guard g;

	if (atomic_load(&prepared_by) != sys_gettid())
		return;
	g = fork_guard;
	atomic_store(&prepared_by, 0);
	proc_mem_lock_forking(0);
	proc_mem_unlock(&g);
}

void proc_fork_child(void)
{
	struct proc_mem_guard g = fork_guard;

	if (!atomic_load(&prepared_by))
		return;
	atomic_store(&prepared_by, 0);
	proc_mem_lock_reinit();
	for (struct proc_engine *e = proc_engines(); e; e = e->next) {
		proc_engine_forked(e);
		if (revive_at_once)
			(void)proc_engine_revive(e);
	}
	sys_sigmask_restore(&g.saved);
}

void proc_fork_revive_at_once(bool yes)
{
	revive_at_once = yes;
}

static void install(void)
{
	install_error = -pthread_atfork(proc_fork_prepare, proc_fork_parent, proc_fork_child);
}

int proc_fork_install(void)
{
	pthread_once(&install_once, install);
	return install_error;
}
