/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What KSM's calls leave in our books, and what they do when they fail half way:
 * ksm-abi.py has a real program, here are the cases that need a look inside, a call
 * that fails on demand, or a kernel that names mappings. The store is played by a memfd.
 *
 * If this failed, memory would be merged that the program had refused (or would not be
 * that it had offered), or a program would be told that memory is private when it is not.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "shimtest.h"
#include "sys/fault.h"

#define PR_SET_MERGE 67
#define PR_GET_MERGE 68
#define PR_NAME 0x53564d41
#define PAGES 8

static size_t page;
static int store;

/* 8 pages of i + 1; 3 and 4 come from the store. */
static uint8_t *merged_range(void)
{
	uint8_t *p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0), *m = p + 3 * page;
	struct proc_mem_guard guard;

	for (unsigned i = 0; i < PAGES; i++)
		memset(p + i * page, (int)i + 1, page);
	proc_mem_lock(&guard);
	assert_int_equal(proc_mem_note_merged((uintptr_t)m, (uintptr_t)m + 2 * page, 0), 0);
	assert_ptr_equal(sys->mmap(m, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
				   store, (off_t)(3 * page)), m);
	proc_mem_unlock(&guard);
	return p;
}

static void check_bytes(const uint8_t *p)
{
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(p[i * page], i + 1);
}

/* All of the range is owned, and the two bits that are meant here are these. */
static bool attr_is(const void *addr, size_t bytes, uint32_t attr)
{
	uint64_t at = (uintptr_t)addr, end = at + bytes;
	struct proc_mem_guard guard;
	struct core_range r;
	bool ret = true;

	proc_mem_lock(&guard);
	while (ret && at < end) {
		ret = proc_mem_owned_copy(at, &r, 1) == 1 && r.start == at &&
		      (r.attr & (PROC_OWN_ADVISED | PROC_OWN_REFUSED)) == attr;
		at = r.end;
	}
	proc_mem_unlock(&guard);
	return ret;
}

/* A pass that has seen it wanted must find out. */
static bool is_stale(const uint8_t *p)
{
	struct proc_mem_guard guard;
	bool ret;

	proc_mem_lock(&guard);
	ret = proc_mem_is_stale((uintptr_t)p, (uintptr_t)p + page);
	proc_mem_unlock(&guard);
	return ret;
}

static void begin_pass(void)
{
	struct proc_mem_guard guard;

	proc_mem_lock(&guard);
	proc_mem_pass_begins();
	proc_mem_pass_ends();
	proc_mem_unlock(&guard);
}

static void only_what_is_named(void **state)
{
	uint8_t *p = merged_range();

	assert_true(attr_is(p, PAGES * page, 0));
	assert_int_equal(madvise(p + page, 5 * page, MADV_MERGEABLE), 0);
	assert_true(attr_is(p, page, 0));
	assert_true(attr_is(p + page, 5 * page, PROC_OWN_ADVISED));
	begin_pass();
	assert_false(is_stale(p + 3 * page));
	assert_int_equal(madvise(p + 3 * page, page, MADV_UNMERGEABLE), 0);
	assert_true(is_stale(p + 3 * page));
	assert_true(attr_is(p + 3 * page, page, PROC_OWN_REFUSED));
	assert_true(attr_is(p + 4 * page, 2 * page, PROC_OWN_ADVISED));
	assert_true(attr_is(p + 6 * page, 2 * page, 0));
	assert_int_equal(madvise(p, PAGES * page, MADV_MERGEABLE), 0);
	assert_true(attr_is(p, PAGES * page, PROC_OWN_ADVISED));
	check_bytes(p);
	munmap(p, PAGES * page);
	/* The next one there has its own life. */
	p = mmap(p, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_true(attr_is(p, page, 0));
	munmap(p, page);
}

/* Being advised makes nothing owned: nobody says that we would see it go. */
static void not_owned(void **state)
{
	void *p = (void *)sys_raw(SYS_mmap, 0L, page, (long)PROT_READ,
				  (long)(MAP_PRIVATE | MAP_ANONYMOUS), -1L, 0L);

	assert_int_equal(madvise(p, page, MADV_MERGEABLE), 0);
	assert_false(any_owned_now(p, page));
	assert_int_equal(madvise(p, page, MADV_UNMERGEABLE), 0);
	sys_raw(SYS_munmap, p, page);
}

static void holes(void **state)
{
	uint8_t *p = merged_range();

	sys_raw(SYS_munmap, p + page, page);
	assert_int_equal(madvise(p, PAGES * page, MADV_MERGEABLE), -1);
	assert_int_equal(errno, ENOMEM);
	assert_true(attr_is(p + 2 * page, 6 * page, PROC_OWN_ADVISED));
	assert_int_equal(madvise(p, PAGES * page, MADV_UNMERGEABLE), -1);
	assert_int_equal(errno, ENOMEM);
	assert_true(attr_is(p + 2 * page, 6 * page, PROC_OWN_REFUSED));
	munmap(p, PAGES * page);
}

static void no_private_copies(void **state)
{
	uint8_t *p = merged_range();

	madvise(p, PAGES * page, MADV_MERGEABLE);
	sys_fault_arm(SYS_FAULT_madvise, 1, ENOMEM, 1);
	assert_int_equal(madvise(p, PAGES * page, MADV_UNMERGEABLE), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(sys_fault_hits(SYS_FAULT_madvise), 1);
	sys_fault_reset();
	assert_true(attr_is(p, PAGES * page, PROC_OWN_ADVISED));
	assert_int_equal(prctl(PR_SET_MERGE, 1, 0, 0, 0), 0);
	sys_fault_arm(SYS_FAULT_madvise, 1, ENOMEM, 1);
	assert_int_equal(prctl(PR_SET_MERGE, 0, 0, 0, 0), -1);
	assert_int_equal(errno, ENOMEM);
	sys_fault_reset();
	assert_int_equal(prctl(PR_GET_MERGE, 0, 0, 0, 0), 1);
	assert_int_equal(prctl(PR_SET_MERGE, 0, 0, 0, 0), 0);
	assert_int_equal(syscall(SYS_prctl, (long)PR_GET_MERGE, 0L, 0L, 0L, 0L), 0);
	assert_true(attr_is(p, PAGES * page, PROC_OWN_REFUSED));
	check_bytes(p);
	munmap(p, PAGES * page);
}

/* A mapping, its mremap, the heap that malloc grows, a child's mapping. */
static void everywhere(uint32_t attr)
{
	uint8_t *p = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *brk_before = sbrk(0), *block[64];
	struct proc_mem_guard guard;
	int status;
	pid_t pid;

	assert_true(attr_is(p, 2 * page, attr));
	p = mremap(p, 2 * page, 64 * page, MREMAP_MAYMOVE);
	assert_true(attr_is(p, 64 * page, attr));
	munmap(p, 64 * page);
	for (unsigned i = 0; i < 64; i++)
		block[i] = malloc(1 << 16);
	proc_mem_lock(&guard);
	shim_heap_refresh();
	proc_mem_unlock(&guard);
	brk_before += -(uintptr_t)brk_before & (page - 1);
	assert_true((uint8_t *)sbrk(0) > brk_before);
	assert_true(attr_is(brk_before, page, attr));
	pid = fork();
	if (pid == 0) {
		p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		_exit(!attr_is(p, page, attr));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (unsigned i = 0; i < 64; i++)
		free(block[i]);
	malloc_trim(0);
	brk_before = sbrk(0);
	assert_true(attr_is((void *)((uintptr_t)(brk_before - 1) & ~(page - 1)), page, attr));
}

static void later_memory(void **state)
{
	assert_int_equal(prctl(PR_SET_MERGE, 1, 0, 0, 0), 0);
	everywhere(PROC_OWN_ADVISED);
	assert_int_equal(prctl(PR_SET_MERGE, 0, 0, 0, 0), 0);
	everywhere(PROC_OWN_REFUSED);
	assert_int_equal(prctl(PR_SET_MERGE, 1, 0, 0, 0), 0);
	everywhere(PROC_OWN_ADVISED);
}

/* The heap is not owned while malloc_trim runs; what was said of it comes back. */
static void heap_is_trimmed(void **state)
{
	static uint8_t *block[256];
	struct proc_mem_guard guard;
	uint8_t *p;

	for (unsigned i = 0; i < 256; i++)
		block[i] = malloc(1 << 16);
	proc_mem_lock(&guard);
	shim_heap_refresh();
	proc_mem_unlock(&guard);
	p = (uint8_t *)(((uintptr_t)block[3] + page) & ~(page - 1));
	assert_int_equal(madvise(p, page, MADV_UNMERGEABLE), 0);
	assert_int_equal(madvise(p + 2 * page, page, MADV_MERGEABLE), 0);
	for (unsigned i = 4; i < 256; i++)
		free(block[i]);
	assert_int_equal(malloc_trim(0), 1);
	assert_true(attr_is(p, page, PROC_OWN_REFUSED));
	assert_true(attr_is(p + page, page, 0));
	assert_true(attr_is(p + 2 * page, page, PROC_OWN_ADVISED));
	for (unsigned i = 0; i < 4; i++)
		free(block[i]);
}

/* --- names ---------------------------------------------------------------- */

/* The calls of others, and the kernel's own answer to them. */
static void others(void **state)
{
	char name[16] = "";

	assert_int_equal(prctl(PR_GET_DUMPABLE), (int)sys_raw(SYS_prctl, (long)PR_GET_DUMPABLE, 0L));
	assert_int_equal(prctl(PR_SET_NAME, "ksm-test"), 0);
	assert_int_equal(syscall(SYS_prctl, (long)PR_GET_NAME, name), 0);
	assert_string_equal(name, "ksm-test");
	assert_int_equal(prctl(-1, 0, 0, 0, 0), -1);
	assert_int_equal(errno, EINVAL);
}

static bool install(struct sock_filter *code, unsigned short n)
{
	struct sock_fprog program = { n, code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* From here on PR_SET_VMA says EBADF for `refused` bytes, and 0 for all else: a kernel
 * that names anonymous mappings, over one that is merged in the middle. */
static bool kernel_with_names(size_t refused)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_NAME, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)refused, 2, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EBADF),
	};

	return install(code, sizeof(code) / sizeof(code[0]));
}

/* PR_SET_MM says 0 from here on, which it does for CAP_SYS_RESOURCE only. */
static bool allows_set_mm(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_MM, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return install(code, sizeof(code) / sizeof(code[0]));
}

/* Whoever moves the break by prctl gets no heap owned: what lies there is his affair. */
static void break_by_prctl(void **state)
{
	struct proc_mem_guard guard;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		uint8_t *top = sbrk(0), *p;

		proc_mem_lock(&guard);
		shim_heap_refresh();
		proc_mem_unlock(&guard);
		p = (uint8_t *)((uintptr_t)(top - 1) & ~(page - 1));
		if (!any_owned_now(p, page))
			_exit(1);
		if (!allows_set_mm() || prctl(PR_SET_MM, PR_SET_MM_BRK, top - page, 0, 0) < 0)
			_exit(77);
		proc_mem_lock(&guard);
		shim_heap_refresh();
		proc_mem_unlock(&guard);
		_exit(any_owned_now(p, page) ? 2 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

static int name(uint8_t *p, size_t bytes)
{
	return prctl(PR_NAME, 0, p, bytes, "a name") == 0 ? 0 : errno;
}

static void names(void **state)
{
	uint8_t *p = merged_range();
	int status;
	pid_t pid;

	/* Whatever this kernel says to names, it says it here too. */
	assert_int_equal(name(p, PAGES * page), name(p, page));
	pid = fork();
	if (pid == 0) {
		if (!kernel_with_names(PAGES * page))
			_exit(77);
		if (name(p, PAGES * page) != 0)
			_exit(1);
		sys_raw(SYS_munmap, p + 6 * page, page);
		_exit(name(p, PAGES * page) == ENOMEM ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
	munmap(p, PAGES * page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_is_named), cmocka_unit_test(not_owned),
		cmocka_unit_test(holes),	      cmocka_unit_test(heap_is_trimmed),
		/* From here on the switch has been moved. */
		cmocka_unit_test(no_private_copies),  cmocka_unit_test(later_memory),
		cmocka_unit_test(others),	      cmocka_unit_test(break_by_prctl),
		cmocka_unit_test(names),
	};
	uint8_t *fill;

	page = sys_page_bytes();
	store = memfd_create("samepage-store-test", MFD_CLOEXEC);
	fill = malloc(page);
	for (int i = 0; i < PAGES; i++) {
		memset(fill, i + 1, page);
		if (write(store, fill, page) != (ssize_t)page)
			return 1;
	}
	free(fill);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
