/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libc's own versions of interposed functions, for those that are more than a
 * system call: brk and sbrk keep __curbrk, _Fork and clone switch stacks and set
 * up thread state, exec*p search the path, posix_spawn does all that.
 *
 * Looked up by the constructor, so that later calls (from signal handlers, from
 * children of vfork) find the table filled. Whoever comes before the constructor
 * fills it itself; two threads doing so write the same values.
 */
#include "shim/shim.h"

#include <dlfcn.h>
#include <elf.h>
#include <gnu/libc-version.h>
#include <link.h>

static struct shim_real real_table;
static atomic_bool real_known;

#define LOOK_UP(member, name) (real_table.member = (__typeof__(real_table.member))dlsym(RTLD_NEXT, name))

const struct shim_real *shim_real(void)
{
	if (atomic_load_explicit(&real_known, memory_order_acquire))
		return &real_table;
	LOOK_UP(brk, "brk");
	LOOK_UP(sbrk, "sbrk");
	LOOK_UP(mallopt, "mallopt");
	LOOK_UP(malloc_trim, "malloc_trim");
	LOOK_UP(fork_raw, "_Fork");
	LOOK_UP(register_atfork, "__register_atfork");
	LOOK_UP(clone, "clone");
	LOOK_UP(syscall, "syscall");
	LOOK_UP(open, "open");
	LOOK_UP(open64, "open64");
	LOOK_UP(openat, "openat");
	LOOK_UP(openat64, "openat64");
	LOOK_UP(fortified_open, "__open_2");
	LOOK_UP(fortified_open64, "__open64_2");
	LOOK_UP(fortified_openat, "__openat_2");
	LOOK_UP(fortified_openat64, "__openat64_2");
	LOOK_UP(fopen, "fopen");
	LOOK_UP(fopen64, "fopen64");
	LOOK_UP(freopen, "freopen");
	LOOK_UP(freopen64, "freopen64");
	LOOK_UP(execvpe, "execvpe");
	LOOK_UP(posix_spawn, "posix_spawn");
	LOOK_UP(posix_spawnp, "posix_spawnp");
	atomic_store_explicit(&real_known, true, memory_order_release);
	return &real_table;
}

/*
 * Does malloc, after ours (big.c), come from the object of a function that only libc has? In a
 * program that is not position independent, "the" address of malloc is its own
 * PLT entry, an undefined symbol with a value; then the next object's counts.
 */
bool shim_malloc_is_glibc(void)
{
	void *malloc_addr = dlsym(RTLD_DEFAULT, "malloc"), *entry = NULL;
	Dl_info of_malloc, of_libc, of_us;
	const ElfW(Sym) *symbol;

	if (!malloc_addr || !dladdr1(malloc_addr, &of_malloc, &entry, RTLD_DL_SYMENT))
		return false;
	symbol = entry;
	if (!dladdr(&real_table, &of_us))
		return false;
	if ((symbol && symbol->st_shndx == SHN_UNDEF) || of_malloc.dli_fbase == of_us.dli_fbase) {
		malloc_addr = dlsym(RTLD_NEXT, "malloc");
		if (!malloc_addr || !dladdr(malloc_addr, &of_malloc))
			return false;
	}
	return dladdr((void *)gnu_get_libc_version, &of_libc) &&
	       of_malloc.dli_fbase == of_libc.dli_fbase;
}
