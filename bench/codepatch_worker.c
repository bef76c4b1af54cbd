/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One of the processes: a program that patches its libc and then merges.
 *
 * What the RFC's preloaded constructor did: page by page, make libc's text
 * writable, store a byte (the one that is there), make it executable again. Each
 * page is then a private copy. Then the advice, and then it sleeps.
 *
 * It does as little else as it can, for its own memory is what all arms have in
 * common: no stdio, and of malloc just so much that there is a heap, as in `sleep`. With WITH_LIBRARY it is linked to libsamepage.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "codepatch.h"
#ifdef WITH_LIBRARY
#include "samepage.h"
#endif

#define MERGEABLE 12
#define MERGE 26

static struct cp_control *control;
static struct cp_worker *self;
static void *volatile heap;

struct text {
	uint8_t *start;
	size_t pages;
	size_t page_bytes;
	const char *path;
	off_t offset;
};

static void failed(int error)
{
	int none = 0;

	atomic_compare_exchange_strong(&self->error, &none, error);
}

static void wait_gate(uint32_t gate)
{
	uint32_t now;

	while ((now = atomic_load(&control->gate)) < gate)
		syscall(SYS_futex, &control->gate, FUTEX_WAIT, now, NULL, NULL, 0);
}

/* The executable segment of the object that holds this function of libc's. */
static int each_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct text *t = arg;
	uintptr_t inside = (uintptr_t)&dl_iterate_phdr;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + p->p_vaddr, end = start + p->p_memsz;
		uintptr_t mask = t->page_bytes - 1;

		if (p->p_type != PT_LOAD || !(p->p_flags & PF_X) || inside < start || inside >= end)
			continue;
		t->start = (uint8_t *)(start & ~mask);
		t->pages = (((end + mask) & ~mask) - (start & ~mask)) / t->page_bytes;
		t->path = info->dlpi_name;
		t->offset = (off_t)(p->p_offset & ~mask);
		return 1;
	}
	return 0;
}

static void copy_on_write(const struct text *t)
{
	for (size_t i = 0; i < t->pages; i++) {
		volatile uint8_t *page = t->start + i * t->page_bytes;

		if (mprotect((void *)page, t->page_bytes, PROT_READ | PROT_WRITE | PROT_EXEC) < 0) {
			failed(errno);
			return;
		}
		*page = *page;
		if (mprotect((void *)page, t->page_bytes, PROT_READ | PROT_EXEC) < 0)
			failed(errno);
	}
}

static void advise(const struct text *t, int advice)
{
	size_t step = control->by_page ? t->page_bytes : t->pages * t->page_bytes;

	for (uint8_t *p = t->start; p < t->start + t->pages * t->page_bytes; p += step)
		if (madvise(p, step, advice) < 0)
			failed(errno);
}

static void merge_by_library(const struct text *t)
{
#ifdef WITH_LIBRARY
	struct samepage_options options = { .size = sizeof(options),
					    .socket_path = control->socket };
	struct samepage *handle;
	int err = samepage_open(&handle, &options);

	if (err == 0) {
		err = samepage_merge(handle, t->start, t->pages * t->page_bytes, 0, NULL);
		samepage_close(handle);
	}
	if (err < 0)
		failed(-err);
#else
	failed(ENOSYS);
#endif
}

static void work(const struct text *t)
{
	struct timespec now;

	switch (control->mode) {
	case CP_KSM:
		advise(t, MERGEABLE);
		break;
	case CP_MADVISE:
		advise(t, MERGE);
		break;
	case CP_LIBRARY:
		merge_by_library(t);
		break;
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	atomic_store(&self->done_nsec,
		     (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

/* Is the text still what the file says? */
static void check(const struct text *t)
{
	int fd = open(t->path, O_RDONLY | O_CLOEXEC);
	uint8_t page[4096];

	for (size_t i = 0; i < t->pages * t->page_bytes; i += sizeof(page))
		if (pread(fd, page, sizeof(page), t->offset + (off_t)i) != sizeof(page) ||
		    memcmp(page, t->start + i, sizeof(page)) != 0)
			atomic_fetch_add(&control->bad_pages, 1);
	close(fd);
}

static void one_process(unsigned number)
{
	struct text t = { .page_bytes = (size_t)sysconf(_SC_PAGESIZE) };

	self = &control->worker[number];
	heap = malloc(1000);
	atomic_store(&self->pid, getpid());
	dl_iterate_phdr(each_object, &t);
	if (!t.start)
		failed(ENOENT);
	atomic_store(&control->text_start, (uintptr_t)t.start);
	atomic_store(&control->text_pages, t.pages);
	if (control->mode != CP_PLAIN)
		copy_on_write(&t);
	atomic_fetch_add(&control->ready, 1);
	wait_gate(CP_GATE_WORK);
	work(&t);
	atomic_fetch_add(&control->done, 1);
	wait_gate(CP_GATE_CHECK);
	check(&t);
	atomic_fetch_add(&control->checked, 1);
	wait_gate(CP_GATE_END);
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t parent = getpid();
	void *p = mmap(NULL, sizeof(struct cp_control), PROT_READ | PROT_WRITE, MAP_SHARED,
		       CP_FD, 0);

	if (argc != 2 || p == MAP_FAILED)
		return 2;
	close(CP_FD);
	control = p;
	for (unsigned i = 1; i < control->children; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != parent)
				return 1;
			one_process(i);
		}
		if (pid < 0)
			return 1;
	}
	one_process((unsigned)atoi(argv[1]));
	return 0;
}
