/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fork(2) and the engines.
 *
 * A child made while pages are in staging would find holes, so from prepare on no
 * engine gets the memory lock, until the parent says that the fork is over. The
 * lock itself is not held meanwhile: other handlers and libc take locks of their own
 * during a fork, and whoever holds one of those may be waiting for ours in mmap.
 * In the child every engine is without a thread; it starts a new one at once (the
 * shim) or with the next call (library handles).
 *
 * A signal handler that runs between the hooks may call us: no engine would answer before
 * its own thread has gone on, so it is told to come again (proc_fork_under_way()).
 *
 * The hooks may be called twice for one fork (by pthread_atfork and by a program
 * that was told to call them): each thread knows whether it has prepared.
 */
#include <errno.h>
#include <pthread.h>

#include "proc/internal.h"

/* Initial-exec: reading it must not allocate. */
static __thread bool prepared __attribute__((tls_model("initial-exec")));
static __thread bool lock_in_order __attribute__((tls_model("initial-exec")));
static bool revive_at_once;
static pthread_once_t install_once = PTHREAD_ONCE_INIT;
static int install_error;

void proc_fork_prepare(void)
{
	if (prepared)
		return;
	prepared = true;
	proc_mem_fork_begins();
}

void proc_fork_parent(void)
{
	if (!prepared)
		return;
	/* A handler in between is refused, not left waiting. */
	proc_mem_fork_ends();
	prepared = false;
}

void proc_fork_child_first(void)
{
	if (!prepared || lock_in_order)
		return;
	proc_mem_fork_child();
	lock_in_order = true;
}

void proc_fork_child(void)
{
	if (!prepared)
		return;
	proc_fork_child_first();
	lock_in_order = false;
	for (struct proc_engine *e = proc_engines(); e; e = e->next) {
		proc_engine_forked(e);
		if (revive_at_once)
			(void)proc_engine_revive(e);
	}
	prepared = false;
}

bool proc_fork_under_way(void)
{
	return prepared;
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
