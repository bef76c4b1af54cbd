/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs that open /proc/self/mem.
 *
 * The kernel lets whoever reads or writes memory that way not wait: a page that is
 * frozen just then is EIO (measured: one access in 26 while all of it is merged all
 * the time). A debugger is told to try again, but a program that writes to itself so (a
 * just-in-time compiler, over pages that it may not write otherwise) knows nothing of
 * that. So from the first time that such a file is opened nothing is owned any more,
 * and nothing frozen (NOT_OWNED and NO_FREEZE are counted). What is merged stays merged: over that
 * both reading and writing work.
 *
 * Told by the name: the last part is "mem" and what was opened lies in a proc file
 * system. A debugger that opens another process's is taken for one that opens its own,
 * and merges nothing any more itself.
 *
 * All of these are libc's own functions but for the look at the name: they are
 * cancellation points. Not seen: descriptors that a program inherits or is sent, and a
 * symbolic link of another name (to ask about every file would cost each open a call).
 */
/* meson sets it, and libc's headers would turn the name open into open64. */
#undef _FILE_OFFSET_BITS
#include "shim/shim.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

#define PROC_MAGIC 0x9fa0

/* The exported ones that only libc's headers with fortification declare. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

static bool is_called_mem(const char *path)
{
	size_t n = path ? strlen(path) : 0;

	return n >= 3 && strcmp(path + n - 3, "mem") == 0 && (n == 3 || path[n - 4] == '/');
}

int shim_opened(const char *path, int fd)
{
	struct proc_mem_guard guard;
	struct statfs fs = { 0 };

	if (fd < 0 || !shim_is_ready() || !is_called_mem(path) ||
	    sys_raw(SYS_fstatfs, fd, &fs) < 0 || fs.f_type != PROC_MAGIC)
		return fd;
	/* Whoever has the lock freezes nothing, and nothing is owned when we let go of it. */
	proc_mem_lock(&guard);
	shim_stop_owning();
	proc_engine_forbid_freezing(shim_engine());
	proc_mem_unlock(&guard);
	return fd;
}

static unsigned mode_of(int flags, va_list args)
{
	return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(args, unsigned) : 0;
}

#define OPEN(name)                                                                                 \
	SHIM_EXPORT int name(const char *path, int flags, ...)                                     \
	{                                                                                          \
		va_list args;                                                                      \
		unsigned mode;                                                                     \
                                                                                                   \
		va_start(args, flags);                                                             \
		mode = mode_of(flags, args);                                                       \
		va_end(args);                                                                      \
		return shim_opened(path, shim_real()->name(path, flags, mode));                    \
	}
#define OPENAT(name)                                                                               \
	SHIM_EXPORT int name(int dir, const char *path, int flags, ...)                            \
	{                                                                                          \
		va_list args;                                                                      \
		unsigned mode;                                                                     \
                                                                                                   \
		va_start(args, flags);                                                             \
		mode = mode_of(flags, args);                                                       \
		va_end(args);                                                                      \
		return shim_opened(path, shim_real()->name(dir, path, flags, mode));               \
	}
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

SHIM_EXPORT int __open_2(const char *path, int flags)
{
	return shim_opened(path, shim_real()->fortified_open(path, flags));
}

SHIM_EXPORT int __open64_2(const char *path, int flags)
{
	return shim_opened(path, shim_real()->fortified_open64(path, flags));
}

SHIM_EXPORT int __openat_2(int dir, const char *path, int flags)
{
	return shim_opened(path, shim_real()->fortified_openat(dir, path, flags));
}

SHIM_EXPORT int __openat64_2(int dir, const char *path, int flags)
{
	return shim_opened(path, shim_real()->fortified_openat64(dir, path, flags));
}

SHIM_EXPORT FILE *fopen(const char *path, const char *mode)
{
	FILE *f = shim_real()->fopen(path, mode);

	if (f)
		shim_opened(path, fileno(f));
	return f;
}

SHIM_EXPORT FILE *fopen64(const char *path, const char *mode)
{
	FILE *f = shim_real()->fopen64(path, mode);

	if (f)
		shim_opened(path, fileno(f));
	return f;
}

/* Without a path only the mode changes, of what was looked at before. */
SHIM_EXPORT FILE *freopen(const char *path, const char *mode, FILE *old)
{
	FILE *f = shim_real()->freopen(path, mode, old);

	if (f)
		shim_opened(path, fileno(f));
	return f;
}

SHIM_EXPORT FILE *freopen64(const char *path, const char *mode, FILE *old)
{
	FILE *f = shim_real()->freopen64(path, mode, old);

	if (f)
		shim_opened(path, fileno(f));
	return f;
}
