/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Programs that cannot have us, told before they are started or as soon as they are.
 *
 * shim_target_takes_us() looks at the file that is about to be executed. musl's
 * dynamic linker loads whatever LD_PRELOAD names and then gives up, because glibc's
 * symbols are missing: a client's child would not start. One for another word size or
 * machine complains on stderr. So our name goes out of LD_PRELOAD for those
 * (inherit.c). A script is judged by its interpreter. Whoever cannot be read or is not
 * understood gets the environment as it is.
 *
 *   Not seen: a musl program started by a program that is not a client itself (a
 *   static one, say) but hands our LD_PRELOAD on.
 *
 * shim_program_is_go() is about the program that we are in. Go gets its memory from
 * the kernel, and what it gives back it gives back with system calls of its own; with
 * cgo it asks libc for the former and not for the latter. Memory that comes where we
 * see it and goes where we do not must not be owned. It is known by the note with the
 * Go linker's build id; one that was linked without (-buildid=) and is started by a
 * client, not by `samepage run`, is not.
 *
 * No malloc, little stack: these run in children of vfork.
 */
#include "shim/shim.h"

#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/raw.h"
#include "sys/sys.h"

#define SCRIPT_DEPTH_MAX 4
#define PATH_BYTES 1024
#define INTERP_BYTES 256
#define HEADERS_MAX 32

/* Of the object that this is linked into. */
extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));

static bool read_at(int fd, void *buf, size_t bytes, uint64_t offset)
{
	return sys_raw(SYS_pread64, fd, buf, bytes, offset) == (long)bytes;
}

static bool is_glibc_linker(const char *path)
{
	const char *base = strrchr(path, '/');

	base = base ? base + 1 : path;
	return strncmp(base, "ld-linux", 8) == 0 || strncmp(base, "ld64.so", 7) == 0 ||
	       strncmp(base, "ld.so", 5) == 0;
}

static bool elf_takes_us(int fd, const ElfW(Ehdr) *eh)
{
	char interp[INTERP_BYTES];

	if (eh->e_ident[EI_CLASS] != __ehdr_start.e_ident[EI_CLASS] ||
	    eh->e_ident[EI_DATA] != __ehdr_start.e_ident[EI_DATA] ||
	    eh->e_machine != __ehdr_start.e_machine)
		return false;
	for (unsigned i = 0; i < eh->e_phnum && i < HEADERS_MAX; i++) {
		ElfW(Phdr) ph;

		if (!read_at(fd, &ph, sizeof(ph), eh->e_phoff + i * sizeof(ph)))
			return true;
		if (ph.p_type != PT_INTERP)
			continue;
		if (ph.p_filesz == 0 || ph.p_filesz > sizeof(interp) ||
		    !read_at(fd, interp, ph.p_filesz, ph.p_offset))
			return true;
		interp[ph.p_filesz - 1] = '\0';
		return is_glibc_linker(interp);
	}
	return true; /* static: loads nothing, and its children may be ordinary */
}

/* "#! /bin/sh -e": the path. text: at least two bytes. */
static bool script_interpreter(char *text, size_t bytes, char path[PATH_BYTES])
{
	size_t at = 2, n = 0;

	if (memcmp(text, "#!", 2) != 0)
		return false;
	while (at < bytes && (text[at] == ' ' || text[at] == '\t'))
		at++;
	while (at < bytes && n < PATH_BYTES - 1 && !strchr(" \t\n", text[at]) && text[at])
		path[n++] = text[at++];
	path[n] = '\0';
	return n > 0;
}

bool shim_target_takes_us(int dir, const char *path)
{
	char interpreter[PATH_BYTES];

	for (unsigned depth = 0; depth < SCRIPT_DEPTH_MAX; depth++) {
		union {
			char text[INTERP_BYTES];
			ElfW(Ehdr) eh;
		} head;
		long fd = sys_raw(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
		bool takes = true;
		long n;

		if (fd < 0)
			return true;
		memset(&head, 0, sizeof(head));
		n = sys_raw(SYS_pread64, fd, &head, sizeof(head), 0);
		if (n >= (long)sizeof(head.eh) && memcmp(head.text, ELFMAG, SELFMAG) == 0)
			takes = elf_takes_us((int)fd, &head.eh);
		sys_raw(SYS_close, fd, 0, 0);
		if (n < 3 || !script_interpreter(head.text, (size_t)n, interpreter))
			return takes;
		path = interpreter;
		dir = AT_FDCWD;
	}
	return true;
}

/* The search of execvp(3): the first that is there and may be executed. */
bool shim_search_takes_us(const char *name)
{
	const char *dirs = getenv("PATH");
	size_t name_bytes = strlen(name) + 1;
	char path[PATH_BYTES];

	if (strchr(name, '/'))
		return shim_target_takes_us(AT_FDCWD, name);
	for (const char *p = dirs ? dirs : "/bin:/usr/bin"; p;) {
		const char *colon = strchrnul(p, ':');
		size_t n = (size_t)(colon - p);

		if (n + 1 + name_bytes <= sizeof(path)) {
			memcpy(path, p, n);
			if (n > 0)
				path[n++] = '/';
			memcpy(path + n, name, name_bytes);
			if (sys_raw(SYS_faccessat, AT_FDCWD, path, X_OK) == 0)
				return shim_target_takes_us(AT_FDCWD, path);
		}
		p = *colon ? colon + 1 : NULL;
	}
	return true;
}

/* --- Go ------------------------------------------------------------------- */

/* The Go linker leaves a note of this name (its build id). */
static bool has_go_note(const uint8_t *note, size_t bytes)
{
	size_t at = 0;

	while (at + sizeof(ElfW(Nhdr)) <= bytes) {
		ElfW(Nhdr) h;

		memcpy(&h, note + at, sizeof(h));
		at += sizeof(h);
		if (h.n_namesz > bytes - at || h.n_descsz > bytes - at)
			return false;
		if (h.n_namesz == 4 && memcmp(note + at, "Go\0", 4) == 0)
			return true;
		at += ((h.n_namesz + 3u) & ~3u) + ((h.n_descsz + 3u) & ~3u);
	}
	return false;
}

static int main_program(struct dl_phdr_info *info, size_t bytes, void *arg)
{
	bool *go = arg;

	(void)bytes;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type == PT_NOTE)
			*go |= has_go_note((const uint8_t *)(info->dlpi_addr + ph->p_vaddr),
					   ph->p_memsz);
	}
	return 1; /* the first is the program itself */
}

bool shim_program_is_go(void)
{
	bool go = false;

	dl_iterate_phdr(main_program, &go);
	return go;
}
