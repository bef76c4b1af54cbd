/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What would be executed under a name, and can the library be loaded into it?
 *
 * The search is that of execvp(3). A script is judged by its interpreter. What
 * cannot be read or understood counts as ordinary: exec will say what is wrong
 * with it, and the dynamic linker ignores what it cannot preload.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cli/cli.h"

#define SCRIPT_DEPTH_MAX 4
#define HEADERS_MAX 128
#define NOTE_BYTES_MAX 4096

#if __SIZEOF_POINTER__ == 8
#define OWN_CLASS ELFCLASS64
#else
#define OWN_CLASS ELFCLASS32
#endif

/* Search ------------------------------------------------------------------ */

static int try_path(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return errno == EACCES ? -EACCES : -ENOENT;
	if (!S_ISREG(st.st_mode) || access(path, X_OK) < 0)
		return -EACCES;
	return 0;
}

static int search(const char *name, char path[PATH_MAX])
{
	const char *dirs = getenv("PATH");
	int worst = -ENOENT;

	if (strchr(name, '/')) {
		if (snprintf(path, PATH_MAX, "%s", name) >= PATH_MAX)
			return -ENOENT;
		return try_path(path);
	}
	if (!*name)
		return -ENOENT;
	for (const char *p = dirs ? dirs : "/bin:/usr/bin"; p;) {
		const char *colon = strchrnul(p, ':');
		int len = (int)(colon - p);
		int err = -ENOENT;

		if (snprintf(path, PATH_MAX, "%.*s/%s", len ? len : 1, len ? p : ".", name) <
		    PATH_MAX)
			err = try_path(path);
		if (err == 0)
			return 0;
		if (err == -EACCES)
			worst = err;
		p = *colon ? colon + 1 : NULL;
	}
	return worst;
}

/* ELF --------------------------------------------------------------------- */

struct look {
	int fd;
	ElfW(Ehdr) eh;
	ElfW(Phdr) ph[HEADERS_MAX];
	unsigned nph;
	char interp[PATH_MAX]; /* "": none */
	bool go;
};

static bool read_at(int fd, void *buf, size_t bytes, uint64_t offset)
{
	return pread(fd, buf, bytes, (off_t)offset) == (ssize_t)bytes;
}

/* The Go linker leaves a note with the name "Go" (its build id). */
static bool is_go_note(int fd, const ElfW(Phdr) *ph)
{
	uint8_t buf[NOTE_BYTES_MAX];
	size_t bytes = ph->p_filesz < sizeof(buf) ? ph->p_filesz : sizeof(buf);
	size_t at = 0;

	if (!read_at(fd, buf, bytes, ph->p_offset))
		return false;
	while (at + sizeof(ElfW(Nhdr)) <= bytes) {
		ElfW(Nhdr) note;
		size_t name = at + sizeof(note);

		memcpy(&note, buf + at, sizeof(note));
		if (note.n_namesz == 4 && name + 4 <= bytes && memcmp(buf + name, "Go\0", 4) == 0)
			return true;
		if (note.n_namesz > bytes || note.n_descsz > bytes)
			return false;
		at = name + ((note.n_namesz + 3u) & ~3u) + ((note.n_descsz + 3u) & ~3u);
	}
	return false;
}

/* Not all have a build id (-buildid= of the linker); this section tells the rest. */
static bool has_go_section(int fd, const ElfW(Ehdr) *eh)
{
	static const char name[] = ".go.buildinfo";
	ElfW(Shdr) names, sh;

	if (eh->e_shentsize != sizeof(sh) || eh->e_shstrndx >= eh->e_shnum ||
	    eh->e_shnum > HEADERS_MAX ||
	    !read_at(fd, &names, sizeof(names), eh->e_shoff + eh->e_shstrndx * sizeof(sh)))
		return false;
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		char seen[sizeof(name)];

		if (read_at(fd, &sh, sizeof(sh), eh->e_shoff + i * sizeof(sh)) &&
		    read_at(fd, seen, sizeof(seen), names.sh_offset + sh.sh_name) &&
		    memcmp(seen, name, sizeof(name)) == 0)
			return true;
	}
	return false;
}

/* What glibc's dynamic linker is called on one machine or another. */
static bool is_glibc_linker(const char *path)
{
	const char *base = strrchr(path, '/');

	base = base ? base + 1 : path;
	return strncmp(base, "ld-linux", 8) == 0 || strncmp(base, "ld64.so", 7) == 0 ||
	       strncmp(base, "ld.so", 5) == 0;
}

static void look_at_headers(struct look *l)
{
	for (unsigned i = 0; i < l->nph; i++) {
		const ElfW(Phdr) *ph = &l->ph[i];

		if (ph->p_type == PT_INTERP && ph->p_filesz > 0 &&
		    ph->p_filesz < sizeof(l->interp)) {
			if (!read_at(l->fd, l->interp, ph->p_filesz, ph->p_offset))
				l->interp[0] = '\0';
			l->interp[ph->p_filesz] = '\0';
		} else if (ph->p_type == PT_NOTE && is_go_note(l->fd, ph)) {
			l->go = true;
		}
	}
}

static uint16_t own_machine(void)
{
	static uint16_t machine;
	ElfW(Ehdr) eh;
	int fd;

	if (machine)
		return machine;
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return EM_NONE;
	if (read_at(fd, &eh, sizeof(eh), 0))
		machine = eh.e_machine;
	close(fd);
	return machine;
}

static enum cli_program_kind judge_elf(struct look *l, const char *path)
{
	const char *base = strrchr(path, '/');
	bool bare;

	/* Both word sizes have ident and e_machine at the same places. */
	if (l->eh.e_ident[EI_CLASS] != OWN_CLASS || l->eh.e_machine != own_machine())
		return CLI_PROGRAM_FOREIGN;
	if (l->eh.e_phentsize != sizeof(l->ph[0]) || l->eh.e_phnum > HEADERS_MAX)
		return CLI_PROGRAM_ORDINARY;
	l->nph = l->eh.e_phnum;
	if (!read_at(l->fd, l->ph, l->nph * sizeof(l->ph[0]), l->eh.e_phoff))
		return CLI_PROGRAM_ORDINARY;
	look_at_headers(l);
	bare = !l->go && has_go_section(l->fd, &l->eh);
	if (strstr(l->interp, "ld-musl"))
		return CLI_PROGRAM_MUSL;
	if (l->interp[0] && !is_glibc_linker(l->interp))
		return CLI_PROGRAM_OTHER_LIBC;
	if (l->interp[0])
		return l->go ? CLI_PROGRAM_GO : bare ? CLI_PROGRAM_GO_BARE : CLI_PROGRAM_ORDINARY;
	if (base && strncmp(base, "/ld-linux", 9) == 0)
		return CLI_PROGRAM_ORDINARY; /* the dynamic linker itself, run by hand */
	return l->go || bare ? CLI_PROGRAM_GO_STATIC : CLI_PROGRAM_STATIC;
}

/* Does exec change privileges, so that the dynamic linker ignores LD_PRELOAD? */
static bool is_secure(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	if ((st.st_mode & S_ISUID) && st.st_uid != getuid())
		return true;
	if ((st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid())
		return true;
	return getuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0;
}

/* "#! /bin/sh -e" -> "/bin/sh" */
static bool script_interpreter(int fd, char path[PATH_MAX])
{
	char line[257];
	ssize_t n = pread(fd, line, sizeof(line) - 1, 0);
	char *p = line + 2;
	size_t len;

	if (n < 3 || memcmp(line, "#!", 2) != 0)
		return false;
	line[n] = '\0';
	p += strspn(p, " \t");
	len = strcspn(p, " \t\n");
	p[len] = '\0';
	strcpy(path, p);
	return len > 0;
}

static enum cli_program_kind judge(char path[PATH_MAX], unsigned depth)
{
	enum cli_program_kind kind = CLI_PROGRAM_ORDINARY;
	struct look *l = calloc(1, sizeof(*l));

	if (!l)
		return kind;
	l->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (l->fd < 0)
		goto out;
	if (read_at(l->fd, &l->eh, sizeof(l->eh), 0) &&
	    memcmp(l->eh.e_ident, ELFMAG, SELFMAG) == 0)
		kind = is_secure(l->fd) ? CLI_PROGRAM_SECURE : judge_elf(l, path);
	else if (depth < SCRIPT_DEPTH_MAX && script_interpreter(l->fd, path))
		kind = judge(path, depth + 1);
	close(l->fd);
out:
	free(l);
	return kind;
}

/* ------------------------------------------------------------------------- */

int cli_program_look(const char *name, char *path, enum cli_program_kind *kind)
{
	char judged[PATH_MAX];
	int err = search(name, path);

	if (err == 0) {
		strcpy(judged, path);
		*kind = judge(judged, 0);
	}
	return err;
}

const char *cli_program_why(enum cli_program_kind kind)
{
	switch (kind) {
	case CLI_PROGRAM_ORDINARY:
		break;
	case CLI_PROGRAM_STATIC:
		return "it is statically linked, so no library can be loaded into it";
	case CLI_PROGRAM_GO_STATIC:
		return "it is a statically linked Go program, so no library can be loaded into it";
	case CLI_PROGRAM_GO:
	case CLI_PROGRAM_GO_BARE:
		return "it is a Go program, whose heap comes from the kernel and not from libc";
	case CLI_PROGRAM_MUSL:
		return "it is linked with musl, and the library needs glibc";
	case CLI_PROGRAM_OTHER_LIBC:
		return "its dynamic linker is not glibc's, which the library needs";
	case CLI_PROGRAM_SECURE:
		return "it is setuid, setgid or has capabilities, so the dynamic linker loads "
		       "nothing foreign";
	case CLI_PROGRAM_FOREIGN:
		return "it is for another machine or word size than the library";
	}
	return NULL;
}

/*
 * In a static program the variable does no harm, and its children may be ordinary
 * ones; in a Go program that libc is part of, the library itself sees where it is and
 * does nothing. A setuid program's linker removes it; musl's linker would refuse to
 * start the program, and that of another word size would complain on stderr.
 */
bool cli_program_may_preload(enum cli_program_kind kind)
{
	switch (kind) {
	case CLI_PROGRAM_ORDINARY:
	case CLI_PROGRAM_STATIC:
	case CLI_PROGRAM_GO_STATIC:
	case CLI_PROGRAM_GO:
		return true;
	default:
		return false;
	}
}
