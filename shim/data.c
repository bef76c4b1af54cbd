/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program's own initialized data.
 *
 * What a program writes in the writable part of its file (relocations, tables that it fills
 * in, the types of an interpreter) is private memory like any other, and alike in replicas;
 * but it lies in a private mapping of the file, which no freeze can take, and once the
 * program runs nothing can replace it: a device or another process might be writing. In the
 * constructor nothing of the program's has run yet, and there is one thread. So that part
 * becomes anonymous memory with the same bytes there and then (proc_mem_home(), which loses
 * no write of a debugger's either), and owned: from there on the scanner treats it like any
 * other. All of it, for what will be written nobody knows; what is not is alike in all
 * replicas. The main program only: libraries may be unloaded, by ld.so, unseen.
 *
 * One difference could be seen: to discard such a page (MADV_DONTNEED) shows the file's
 * bytes. So a mapping of the file is kept, from which they are written back (I5).
 *
 * Not done where that cannot be had, for less than PAGES_LEAST or more than PAGES_MOST (which
 * every start would pay for), without a scanner, where only advised memory is merged, and
 * with SAMEPAGE_DATA=off.
 */
#include "shim/shim.h"

#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/rangeset.h"
#include "proc/mem.h"
#include "sys/maps.h"
#include "sys/sys.h"

#define PAGES_LEAST 32u
#define PAGES_MOST 2048u

/*
 * It became anonymous memory, and is there still, in so many pieces: what the program unmaps
 * or maps over is not its file any more. What it moves elsewhere (mremap) is forgotten, too.
 */
#define PIECES_MAX 4u
static struct core_range data[PIECES_MAX];
static unsigned pieces;
static uint64_t data_base, data_file; /* where the bytes that belong at base are kept */

struct find {
	uint64_t start, end;
	struct sys_vma vma; /* of the file, writable, in [start, end) */
	bool found;
};

static int find_mapping(const struct sys_vma *vma, void *arg)
{
	struct find *f = arg;

	if (vma->start >= f->end)
		return 1;
	if (vma->end <= f->start || vma->shared || vma->anonymous || vma->inode == 0 ||
	    vma->prot != (PROT_READ | PROT_WRITE))
		return 0;
	f->vma = *vma;
	f->found = true;
	return 1;
}

/* A mapping of the same part of the file, if the program's file is the one mapped there. */
static intptr_t keep_file(const struct sys_vma *vma)
{
	int fd = sys->open("/proc/self/exe", O_RDONLY | O_CLOEXEC, 0);
	struct stat st;
	intptr_t p = -EBADF;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) == 0 && st.st_ino == vma->inode && major(st.st_dev) == vma->dev_major &&
	    minor(st.st_dev) == vma->dev_minor)
		p = sys->mmap(NULL, vma->end - vma->start, PROT_READ, MAP_PRIVATE, fd,
			      (off_t)vma->offset);
	sys->close(fd);
	return p;
}

/* Lock held. */
static void take(const struct sys_vma *vma)
{
	intptr_t file = keep_file(vma);

	if (file < 0)
		return;
	data[pieces++] = (struct core_range){ .start = vma->start, .end = vma->end };
	data_base = vma->start;
	data_file = (uint64_t)file;
	if (proc_mem_home(vma->start, vma->end, vma->prot, NULL) == 0)
		proc_mem_own(vma->start, vma->end, shim_fresh_attr());
}

static int main_program(struct dl_phdr_info *info, size_t bytes, void *arg)
{
	uint64_t mask = sys_page_bytes() - 1;
	struct find *f = arg;

	(void)bytes;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_W) ||
		    ph->p_filesz < PAGES_LEAST * (mask + 1) ||
		    ph->p_filesz > PAGES_MOST * (mask + 1))
			continue;
		f->start = (info->dlpi_addr + ph->p_vaddr) & ~mask;
		f->end = (info->dlpi_addr + ph->p_vaddr + ph->p_filesz + mask) & ~mask;
		break;
	}
	return 1; /* the first is the program itself */
}

void shim_data_start(void)
{
	const char *off = getenv("SAMEPAGE_DATA"), *scope = getenv("SAMEPAGE_SCOPE");
	struct proc_mem_guard guard;
	struct find f = { 0 };
	char buf[4096];

	if ((off && strcmp(off, "off") == 0) || (scope && strcmp(scope, "advised") == 0))
		return;
	dl_iterate_phdr(main_program, &f);
	if (f.start == f.end)
		return;
	proc_mem_lock(&guard);
	if (sys_maps_each(0, buf, sizeof(buf), find_mapping, &f) >= 0 && f.found)
		take(&f.vma);
	proc_mem_unlock(&guard);
}

/* Through memory of our own: a file that has been cut off is an error, not a SIGBUS. */
static int copy(uint64_t from, uint64_t to, size_t bytes)
{
	char room[4096];

	while (bytes > 0) {
		size_t n = bytes < sizeof(room) ? bytes : sizeof(room);
		struct iovec here = { room, n }, src = { (void *)from, n }, dst = { (void *)to, n };

		if (sys->read_self(&here, 1, &src, 1) != (ssize_t)n ||
		    sys->write_self(&here, 1, &dst, 1) != (ssize_t)n)
			return -EAGAIN;
		from += n;
		to += n;
		bytes -= n;
	}
	return 0;
}

int shim_data_discarded(const struct shim_range *range)
{
	int err = 0;

	for (unsigned i = 0; i < pieces && err == 0; i++) {
		uint64_t start = range->start > data[i].start ? range->start : data[i].start;
		uint64_t end = range->end < data[i].end ? range->end : data[i].end;

		if (start < end)
			err = copy(data_file + (start - data_base), start, end - start);
	}
	return err;
}

void shim_data_gone(const struct shim_range *range)
{
	for (unsigned i = 0; i < pieces; i++) {
		struct core_range *d = &data[i], above = *d;

		if (range->end <= d->start || range->start >= d->end)
			continue;
		if (range->start > d->start) {
			d->end = range->start;
			above.start = range->end;
			/* No room: zeros there, if it should ever be discarded. */
			if (above.start < above.end && pieces < PIECES_MAX)
				data[pieces++] = above;
		} else if (range->end < d->end) {
			d->start = range->end;
		} else {
			*d = data[--pieces];
			i--;
		}
	}
}
