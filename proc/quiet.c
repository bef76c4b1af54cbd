/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Is nobody but the calling thread there, and does nothing write behind its back?
 *
 * Asked for pages that can be neither frozen nor checked for pins. The caller's thread
 * waits with all signals blocked; so if the process has no other thread than that one
 * and our engines', what could still write are requests that the kernel carries out by
 * itself: io_uring, Linux AIO, devices that were given the memory. Each of these is an
 * open file or a mapping that shows. What is not known to be harmless is taken for
 * harmful, sockets included (AF_XDP).
 *
 * A process that shares its memory with another *process* (clone with CLONE_VM alone)
 * looks like one with one thread: the shim declares such programs never quiet.
 */
#include <stdlib.h>
#include <string.h>

#include <fcntl.h>

#include "proc/internal.h"

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

static _Atomic bool never_quiet;

void proc_quiet_never(void)
{
	atomic_store(&never_quiet, true);
}

/* --- threads -------------------------------------------------------------------- */

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
static long engines_now(void)
{
	long n = 0;

	proc_mem_lock_engine();
	for (struct proc_engine *e = proc_engines(); e; e = e->next)
		n += atomic_load(&e->state) == PROC_IDLE;
	proc_mem_unlock_engine();
	return n;
}

/* --- files ---------------------------------------------------------------------- */

/* Can nothing be written into memory through this file but by a call that waits? */
static bool harmless(const char *link)
{
	static const char *const prefixes[] = {
		"pipe:", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[timerfd]",
		"anon_inode:[signalfd]", "anon_inode:inotify", "anon_inode:[pidfd]", "/memfd:",
		"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
		"/dev/pts/", "/dev/ptmx", "/dev/shm/", "/dev/console",
	};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (strncmp(link, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	return link[0] == '/' && strncmp(link, "/dev/", 5) != 0 && strncmp(link, "/[", 2) != 0;
}

static size_t put_number(char *at, unsigned value)
{
	char digits[12];
	size_t n = 0, length;

	do
		digits[n++] = (char)('0' + value % 10);
	while ((value /= 10) != 0);
	length = n;
	while (n > 0)
		*at++ = digits[--n];
	return length;
}

static bool link_is_harmless(char *path, size_t at, const char *name)
{
	char link[64];
	size_t length = strlen(name);
	ssize_t n;

	if (length > 12)
		return false;
	path[at] = '/';
	memcpy(path + at + 1, name, length + 1);
	n = sys->readlink(path, link, sizeof(link) - 1);
	path[at] = '\0';
	if (n < 0)
		return false;
	link[n] = '\0';
	return harmless(link);
}

static bool names_are_harmless(int fd, char *path, size_t at)
{
	_Alignas(8) char room[1024];
	ssize_t n;

	while ((n = sys->getdents(fd, room, sizeof(room))) > 0) {
		for (ssize_t k = 0; k < n;) {
			const struct dirent64 *d = (const struct dirent64 *)(room + k);

			k += d->reclen;
			if (d->name[0] != '.' && !link_is_harmless(path, at, d->name))
				return false;
		}
	}
	return n == 0;
}

/* The caller's table: the engine has one of its own. */
static bool files_are_harmless(pid_t caller)
{
	static const char prefix[] = "/proc/thread-self/../";
	char path[sizeof(prefix) + 40];
	size_t at = sizeof(prefix) - 1;
	bool yes;
	int fd;

	memcpy(path, prefix, at);
	at += put_number(path + at, (unsigned)caller);
	memcpy(path + at, "/fd", 4);
	at += 3;
	fd = sys->open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return false;
	yes = names_are_harmless(fd, path, at);
	sys->close(fd);
	return yes;
}

/* A ring that was closed but is still mapped goes on working. */
static int find_ring(const struct sys_vma *vma, void *arg)
{
	if (vma->anonymous || vma->inode == 0 || vma->name[0] == '[')
		return 0;
	return !harmless(vma->name);
}

bool proc_quiet(struct proc_engine *e, pid_t caller)
{
	if (caller <= 0 || atomic_load(&never_quiet) || threads_now() != 1 + engines_now())
		return false;
	return files_are_harmless(caller) &&
	       sys_maps_each(0, e->work->count_buf, sizeof(e->work->count_buf), find_ring, NULL) == 0;
}
