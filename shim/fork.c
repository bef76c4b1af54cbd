/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Copies of the process: none may be made while pages are frozen, for the child
 * would get holes.
 *
 *   fork            pthread_atfork handlers (proc_fork_install), and one more, in the child,
 *                   before anybody's: the lock is whatever it was in the parent, and handlers
 *                   that constructors registered before ours had run map memory. Not all
 *                   of ours: a new thread takes malloc, whose handlers come in between
 *   _Fork, clone without CLONE_VM, and fork, clone, clone3 through syscall(2)
 *                   run no atfork handlers: the same three steps are taken here
 *   vfork, posix_spawn, system, popen, clone with CLONE_VM
 *                   nothing to do, and vfork is not interposed at all (a function
 *                   that calls vfork could not return from it twice): the child
 *                   runs in the very same memory, so nothing is copied and a frozen
 *                   page is frozen for both. What the child maps and unmaps through
 *                   us is recorded in the shared sets, under the shared lock, which
 *                   it gives back before the call returns
 *
 * The engine thread is not started again in children made here: libc has not put
 * its malloc in order there, as it does in fork(), and pthread_create needs malloc.
 * They keep their merged memory and merge nothing new, until they fork in turn.
 *
 * A clone through syscall(2) with a stack of its own returns on that stack, where
 * no C function of ours could; it goes straight to libc's syscall. Without
 * CLONE_VM such a child may see a hole if a page was frozen at that moment; nobody
 * is known who does that.
 */
#include "shim/shim.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "proc/engine.h"
#include "sys/raw.h"
#include "sys/sys.h"

static void child_without_engine(void)
{
	proc_fork_revive_at_once(false);
	proc_fork_child();
	proc_fork_revive_at_once(true);
}

/* What every pthread_atfork comes to; ours, too. In no header of libc's. */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso);

SHIM_EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void),
				  void (*child)(void), void *dso)
{
	static atomic_bool first_is_there;

	if (!atomic_exchange(&first_is_there, true))
		(void)pthread_atfork(NULL, NULL, proc_fork_child_first);
	return shim_real()->register_atfork(prepare, parent, child, dso);
}

SHIM_EXPORT pid_t _Fork(void)
{
	const struct shim_real *real = shim_real();
	pid_t pid;
	int saved;

	if (!shim_is_ready())
		return real->fork_raw();
	proc_fork_prepare();
	pid = real->fork_raw();
	saved = errno;
	if (pid == 0)
		child_without_engine();
	else
		proc_fork_parent();
	errno = saved;
	return pid;
}

/* Another process in the same memory, while the caller goes on: that shows nowhere. */
static void shares_memory(uint64_t flags)
{
	if ((flags & CLONE_VM) && !(flags & (CLONE_THREAD | CLONE_VFORK)))
		proc_never_alone();
}

/* Without CLONE_VM the child has this in its copy of the parent's stack. */
struct clone_start {
	int (*fn)(void *arg);
	void *arg;
};

static int clone_child(void *arg)
{
	const struct clone_start *start = arg;

	child_without_engine();
	return start->fn(start->arg);
}

SHIM_EXPORT int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	const struct shim_real *real = shim_real();
	struct clone_start start = { fn, arg };
	void *parent_tid, *tls, *child_tid;
	va_list args;
	int pid, saved;

	/* The last three are there only if the flags say so; unused they do no harm. */
	va_start(args, arg);
	parent_tid = va_arg(args, void *);
	tls = va_arg(args, void *);
	child_tid = va_arg(args, void *);
	va_end(args);
	shares_memory((uint64_t)flags);
	if (!shim_is_ready() || (flags & CLONE_VM) || !fn || !stack)
		return real->clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
	proc_fork_prepare();
	pid = real->clone(clone_child, stack, flags, &start, parent_tid, tls, child_tid);
	saved = errno;
	proc_fork_parent();
	errno = saved;
	return pid;
}

int __clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
	__attribute__((alias("clone"), visibility("default"), nothrow, leaf));

/* Flags and stack of a clone3, read as the kernel would; false: it will say no. */
static bool clone3_args(const void *args, uint64_t *flags, uint64_t *stack)
{
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack;
	} a;
	struct iovec to = { &a, sizeof(a) }, from = { (void *)(uintptr_t)args, sizeof(a) };

	if (sys->read_self(&to, 1, &from, 1) != (ssize_t)sizeof(a))
		return false;
	*flags = a.flags;
	*stack = a.stack;
	return true;
}

/* As the exported syscall(2) wants it: from libc's convention to the kernel's. */
static long straight(long n, const long arg[6])
{
	long ret = shim_real()->syscall(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);

	return ret == -1 ? -errno : ret;
}

long shim_fork_raw(long n, const long arg[6])
{
	uint64_t flags = 0, stack = 0;
	long ret;

	if (n == SYS_clone) {
		flags = (uint64_t)arg[0];
		stack = (uint64_t)arg[1];
	} else if (n == SYS_clone3 && !clone3_args((const void *)arg[0], &flags, &stack)) {
		return straight(n, arg);
	}
	shares_memory(flags);
	if (stack != 0 || (flags & CLONE_VM) || !shim_is_ready())
		return straight(n, arg);
	proc_fork_prepare();
	ret = sys_raw6(n, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (ret == 0)
		child_without_engine();
	else
		proc_fork_parent();
	return ret;
}
