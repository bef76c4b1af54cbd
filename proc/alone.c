/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Is the calling thread the only one of the program?
 *
 * Then nobody can unmap what it asks us to merge, or map something else there: ld.so and
 * libc itself do that without our seeing it. (Not enough to replace pages that are
 * writable: io_uring and devices write without a thread, and process_vm_writev(2) of
 * another process pins a page and writes to it without any lock: measured, 47 of 358,000
 * such writes were lost.)
 *
 * A process that shares its memory with another *process* (clone with CLONE_VM alone)
 * looks like one with one thread: the shim declares such programs never alone.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "proc/internal.h"

static _Atomic bool never_alone;

void proc_never_alone(void)
{
	atomic_store(&never_alone, true);
}

static long threads_now(void)
{
	char text[4096];
	const char *at;
	ssize_t n;
	int fd = sys->open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	n = sys->read(fd, text, sizeof(text) - 1);
	sys->close(fd);
	text[n < 0 ? 0 : n] = '\0';
	at = strstr(text, "\nThreads:");
	return at ? strtol(at + strlen("\nThreads:"), NULL, 10) : -1;
}

/* One that is coming or going is not counted here, but by the kernel. */
static long engines_now(bool locked)
{
	long n = 0;

	if (!locked)
		proc_mem_lock_engine();
	for (struct proc_engine *e = proc_engines(); e; e = e->next)
		n += atomic_load(&e->state) == PROC_IDLE;
	if (!locked)
		proc_mem_unlock_engine();
	return n;
}

bool proc_alone(bool locked)
{
	return !atomic_load(&never_alone) && threads_now() == 1 + engines_now(locked);
}
