/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What can be done here, found by doing it once.
 *
 * Every trial works on memory, memfds and descriptors of its own and takes them
 * down again; nothing of the process is changed, so that other threads may do
 * what they like meanwhile. Trial memory is MADV_DONTFORK: a fork by another
 * thread would share its pages, and a shared page does not move. One feature
 * cannot be tried harmlessly: close_range(CLOSE_RANGE_UNSHARE) would give the
 * calling thread a descriptor table of its own. There an invalid range must be
 * refused as such; the flag is as old as the call.
 *
 * No malloc, no errno, no stdio: a client probes before it has started.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include "sys/ksm.h"
#include "sys/maps.h"
#include "sys/probe.h"
#include "sys/raw.h"
#include "sys/sys.h"

#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif

#define FILL 0x5a

/* trial memory ------------------------------------------------------------------ */

/* Not mlocked even where MCL_FUTURE is on: locked pages are filled at once. */
static void *map_page(void)
{
	size_t bytes = sys_page_bytes();
	intptr_t at = sys->mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);

	if (at < 0 && at > -4096)
		return NULL;
	sys_raw(__NR_munlock, at, bytes);
	sys->madvise((void *)at, bytes, MADV_DONTFORK);
	sys->madvise((void *)at, bytes, MADV_DONTNEED);
	return (void *)at;
}

static void unmap_page(void *page)
{
	if (page)
		sys->munmap(page, sys_page_bytes());
}

static bool close_if_open(int fd)
{
	if (fd < 0)
		return false;
	sys->close(fd);
	return true;
}

/* userfaultfd ------------------------------------------------------------------- */

static int open_from_dev(void)
{
	int dev = sys->open("/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0);
	int fd;

	if (dev < 0)
		return dev;
	fd = sys->uffd_from_dev(dev, O_CLOEXEC | O_NONBLOCK);
	sys->close(dev);
	return fd;
}

/* The strongest that there is, as the trials that follow need. */
static int open_any_uffd(const struct sys_features *f)
{
	if (f->uffd_syscall_full)
		return sys->uffd_open(O_CLOEXEC | O_NONBLOCK);
	if (f->uffd_dev)
		return open_from_dev();
	return sys->uffd_open(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

static bool move_one_page(int fd)
{
	size_t bytes = sys_page_bytes();
	unsigned char *from = map_page();
	unsigned char *to = map_page();
	size_t moved = 0;
	bool works = false;

	if (!from || !to)
		goto out;
	memset(from, FILL, bytes);
	if (sys->uffd_register(fd, to, bytes, UFFDIO_REGISTER_MODE_MISSING) < 0)
		goto out;
	/* only then is a read of `to` sure not to wait for ever */
	works = sys->uffd_move(fd, to, from, bytes, &moved) == 0 && moved == bytes &&
		to[0] == FILL && to[bytes - 1] == FILL;
	sys->uffd_unregister(fd, to, bytes);
out:
	unmap_page(from);
	unmap_page(to);
	return works;
}

static bool try_move(const struct sys_features *f)
{
	int fd = open_any_uffd(f);
	bool works = fd >= 0 && sys->uffd_api(fd, SYS_UFFD_FEATURE_MOVE, NULL) == 0 &&
		     move_one_page(fd);

	close_if_open(fd);
	return works;
}

/* Protected, then written: the write must neither wait nor fail. */
static bool protect_and_write(int fd)
{
	size_t bytes = sys_page_bytes();
	volatile unsigned char *page = map_page();
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)page, .len = bytes },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	bool works = false;

	if (!page)
		return false;
	page[0] = FILL;
	if (sys->uffd_register(fd, (const void *)page, bytes, UFFDIO_REGISTER_MODE_WP) == 0) {
		works = sys_raw(__NR_ioctl, fd, UFFDIO_WRITEPROTECT, &wp) == 0;
		page[0] = FILL + 1;
		sys->uffd_unregister(fd, (const void *)page, bytes);
	}
	unmap_page((void *)page);
	return works;
}

static bool try_wp_async(const struct sys_features *f)
{
	int fd = open_any_uffd(f);
	bool works = fd >= 0 && sys->uffd_api(fd, SYS_UFFD_FEATURE_WP_ASYNC, NULL) == 0 &&
		     protect_and_write(fd);

	close_if_open(fd);
	return works;
}

static void probe_uffd(struct sys_features *f)
{
	f->uffd_syscall_full = close_if_open(sys->uffd_open(O_CLOEXEC | O_NONBLOCK));
	f->uffd_dev = close_if_open(open_from_dev());
	f->uffd_user_only =
		f->uffd_syscall_full || f->uffd_dev ||
		close_if_open(sys->uffd_open(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
	if (f->uffd_user_only) {
		f->uffd_move = try_move(f);
		f->uffd_wp_async = try_wp_async(f);
	}
}

/* memory ------------------------------------------------------------------------ */

static bool try_pagemap_scan(int fd, const void *page)
{
	struct sys_page_region region = { 0, 0, 0 };
	struct sys_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)page,
		.end = (uintptr_t)page + sys_page_bytes(),
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
		.return_mask = SYS_PAGE_IS_PRESENT | SYS_PAGE_IS_SWAPPED,
	};

	arg.category_anyof_mask = arg.category_mask;
	arg.category_mask = 0;
	return sys->pagemap_scan(fd, &arg) == 1 && region.start == (uintptr_t)page;
}

/* Without the capability (in the first user namespace) the kernel says frame 0. */
static bool try_frame_number(int fd, const void *page)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)page / sys_page_bytes() * sizeof(entry));

	return sys->pread(fd, &entry, sizeof(entry), at) == sizeof(entry) &&
	       (entry & ((UINT64_C(1) << 55) - 1)) != 0;
}

static bool try_procmap_query(const void *page)
{
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = (uintptr_t)page };
	int fd = sys->open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0);
	bool works = fd >= 0 && sys->procmap_query(fd, &q) == 0 &&
		     q.vma_start <= (uintptr_t)page && q.vma_end > (uintptr_t)page;

	close_if_open(fd);
	return works;
}

static bool try_read_self(const unsigned char *page)
{
	unsigned char got = 0;
	struct iovec to = { .iov_base = &got, .iov_len = 1 };
	struct iovec from = { .iov_base = (void *)page, .iov_len = 1 };

	return sys->read_self(&to, 1, &from, 1) == 1 && got == FILL;
}

static bool has_capability(unsigned number)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

	return sys_raw(__NR_capget, &head, data) == 0 &&
	       (data[number / 32].effective >> number % 32 & 1);
}

static void probe_memory(struct sys_features *f)
{
	size_t bytes = sys_page_bytes();
	unsigned char *page = map_page();
	int fd;

	if (!page)
		return;
	f->populate = sys->madvise(page, bytes, MADV_POPULATE_READ) == 0 &&
		      sys->madvise(page, bytes, MADV_POPULATE_WRITE) == 0;
	page[0] = FILL;
	f->process_vm_readv = try_read_self(page);
	f->procmap_query = try_procmap_query(page);
	fd = sys->open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0) {
		f->pagemap_scan = try_pagemap_scan(fd, page);
		f->cap_sys_admin = has_capability(CAP_SYS_ADMIN) && try_frame_number(fd, page);
		sys->close(fd);
	}
	unmap_page(page);
}

/* MADV_MERGE --------------------------------------------------------------------- */

/*
 * By an empty range: the kernel says whether it knows the advice before it looks at the
 * length, in every version. A page of ours would become a candidate in the scope that the
 * process has by default, and stand in the way of choosing another. Somebody else's kernel
 * may come to mean something else by the number: hence the other two, which are ours alone.
 */
void sys_probe_merge(struct sys_features *f)
{
	struct sys_ksm_stat stat;
	uint64_t cookie;
	int fd = sys_ksm_stat_open();

	f->madv_merge = sys->merge(NULL, 0) == 0;
	f->merge_scope = sys->merge_scope_get(&cookie) >= 0;
	f->merge_counts = fd >= 0 && sys_ksm_stat_read(fd, &stat) == 0;
	close_if_open(fd);
}

bool sys_probe_kernel_merges(const struct sys_features *f)
{
	return f->madv_merge && f->merge_scope && f->merge_counts;
}

/* memfds ------------------------------------------------------------------------ */

#define PROBE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

/* vm.memfd_noexec=2 refuses those without the seal, old kernels those with it. */
static int new_memfd(bool *noexec_seal)
{
	int fd = sys->memfd_create("samepage-probe",
				   MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	*noexec_seal = fd >= 0;
	if (fd < 0)
		fd = sys->memfd_create("samepage-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

/*
 * As a store asks: `given` stands for the descriptor that clients have and map,
 * `own` for the one to ask with. Both answers must come out right.
 */
static bool try_lease(int memfd)
{
	size_t bytes = sys_page_bytes();
	int own = sys->reopen_ro(memfd);
	int given = sys->reopen_ro(memfd);
	intptr_t at = -1;
	bool works = false;

	if (own < 0 || given < 0 || sys->lease_try(own) != 0)
		goto out;
	at = sys->mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, given, 0);
	if (at < 0 && at > -4096)
		goto out;
	sys->close(given);
	given = -1;
	works = sys->lease_try(own) == 0;
	sys->munmap((void *)at, bytes);
	works = works && sys->lease_try(own) == 1;
out:
	close_if_open(own);
	close_if_open(given);
	return works;
}

static void probe_memfd(struct sys_features *f)
{
	int fd = new_memfd(&f->memfd_noexec_seal);

	if (fd < 0)
		return;
	if (sys->ftruncate(fd, (off_t)sys_page_bytes()) == 0) {
		int have;

		f->memfd_lease = try_lease(fd);
		f->memfd_seals = sys->add_seals(fd, PROBE_SEALS) == 0 &&
				 (have = sys->get_seals(fd)) >= 0 &&
				 (have & PROBE_SEALS) == PROBE_SEALS;
	}
	sys->close(fd);
}

/* the system -------------------------------------------------------------------- */

/* "always [madvise] never": the word in brackets */
static void read_thp(char to[16])
{
	char text[64];
	int fd = sys->open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC, 0);
	ssize_t n = fd < 0 ? fd : sys->read(fd, text, sizeof(text) - 1);
	const char *open;
	const char *end;

	close_if_open(fd);
	if (n <= 0)
		return;
	text[n] = '\0';
	open = strchr(text, '[');
	end = open ? strchr(open, ']') : NULL;
	if (end && end - open <= 16) {
		memcpy(to, open + 1, (size_t)(end - open - 1));
		to[end - open - 1] = '\0';
	}
}

static void probe_system(struct sys_features *f)
{
	struct utsname uts = { 0 };
	struct sysinfo info = { 0 };

	if (sys_raw(__NR_uname, &uts) == 0)
		memcpy(f->release, uts.release, strnlen(uts.release, sizeof(f->release) - 1));
	if (sys_raw(__NR_sysinfo, &info) == 0)
		f->memory_bytes = (uint64_t)info.totalram * info.mem_unit;
	f->pidfd = close_if_open((int)sys_raw(__NR_pidfd_open, sys_raw(__NR_getpid), 0));
	f->close_range_unshare = sys->close_range_unshare(1, 0) == -EINVAL;
	f->cap_sys_ptrace = has_capability(CAP_SYS_PTRACE);
	f->ksm_run = sys_read_number("/sys/kernel/mm/ksm/run");
	f->ksm = f->ksm_run >= 0;
	f->max_map_count = sys_read_number("/proc/sys/vm/max_map_count");
	f->overcommit_memory = sys_read_number("/proc/sys/vm/overcommit_memory");
	f->unprivileged_userfaultfd = sys_read_number("/proc/sys/vm/unprivileged_userfaultfd");
	read_thp(f->thp);
}

void sys_probe(struct sys_features *f)
{
	memset(f, 0, sizeof(*f));
	probe_system(f);
	probe_memory(f);
	sys_probe_merge(f);
	probe_memfd(f);
	probe_uffd(f);
}

/*
 * 0, or negative: -ENOSYS, this kernel has no userfaultfd or no UFFDIO_MOVE;
 * -EPERM, it has, but this process may only stop user-mode faults, or none.
 */
int sys_probe_can_freeze(const struct sys_features *f)
{
	if (f->uffd_move)
		return f->uffd_syscall_full || f->uffd_dev ? 0 : -EPERM;
	if (f->uffd_user_only)
		return -ENOSYS;
	/* the sysctl file is there exactly where userfaultfd is built in */
	return f->unprivileged_userfaultfd < 0 ? -ENOSYS : -EPERM;
}
