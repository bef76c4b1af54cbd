/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The maps and smaps parser. If this failed, ranges with flags that must survive
 * (dc, lo, wf ...) would be merged as if they had none (I5), file mappings would
 * be taken for anonymous memory, or a long name would shift all that follows.
 */
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "sys/maps.h"
#include "sys_test.h"

#define VMAS_MAX 8192
#define BIG (4u << 20)

struct list {
	unsigned n;
	struct sys_vma vmas[VMAS_MAX];
};

/* Static: collecting must not change what is collected. */
static struct list first, second;
static char big[BIG];
static char small[4096];
static char text[BIG];
static size_t page_bytes;

static int collect(const struct sys_vma *vma, void *arg)
{
	struct list *list = arg;

	if (list->n == VMAS_MAX)
		return -ENOBUFS;
	list->vmas[list->n++] = *vma;
	return 0;
}

static const struct sys_vma *find(const struct list *list, const void *at)
{
	for (unsigned i = 0; i < list->n; i++)
		if (list->vmas[i].start <= (uintptr_t)at && list->vmas[i].end > (uintptr_t)at)
			return &list->vmas[i];
	return NULL;
}

static void read_both(void)
{
	first.n = second.n = 0;
	assert_int_equal(sys_maps_each(0, small, sizeof(small), collect, &first), 0);
	assert_int_equal(sys_smaps_each(0, small, sizeof(small), collect, &second), 0);
}

static size_t slurp(const char *file, char *to)
{
	int fd = sys_real.open(file, O_RDONLY | O_CLOEXEC, 0);
	size_t have = 0;
	ssize_t n;

	assert_true(fd >= 0);
	while ((n = sys_real.read(fd, to + have, BIG - 1 - have)) > 0)
		have += (size_t)n;
	sys_real.close(fd);
	to[have] = '\0';
	return have;
}

/* The independent reading: sscanf, on a copy between two reads that were the same. */
static void every_line_is_as_scanf_reads_it(void **state)
{
	unsigned i = 0;
	int tries = 0;

	(void)state;
	do {
		first.n = 0;
		slurp("/proc/thread-self/maps", text);
		assert_int_equal(sys_maps_each(0, small, sizeof(small), collect, &first), 0);
		slurp("/proc/thread-self/maps", big);
		assert_true(++tries < 100);
	} while (strcmp(text, big) != 0);
	for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1, i++) {
		unsigned long long start, stop, offset, inode;
		unsigned major, minor;
		char prot[5];
		int name_at = 0;
		const struct sys_vma *vma = &first.vmas[i];

		*end = '\0';
		assert_int_equal(sscanf(line, "%llx-%llx %4s %llx %x:%x %llu %n", &start, &stop, prot,
					&offset, &major, &minor, &inode, &name_at), 7);
		assert_true(i < first.n);
		assert_true(vma->start == start && vma->end == stop && vma->offset == offset);
		assert_true(vma->dev_major == major && vma->dev_minor == minor);
		assert_true(vma->inode == inode);
		assert_int_equal(vma->prot, (prot[0] == 'r' ? PROT_READ : 0) |
						    (prot[1] == 'w' ? PROT_WRITE : 0) |
						    (prot[2] == 'x' ? PROT_EXEC : 0));
		assert_int_equal(vma->shared, prot[3] == 's');
		assert_int_equal(strncmp(vma->name, line + name_at, sizeof(vma->name) - 1), 0);
		assert_int_equal(vma->heap, strcmp(line + name_at, "[heap]") == 0);
		assert_int_equal(vma->stack, strcmp(line + name_at, "[stack]") == 0);
		if (line[name_at] == '/' || strncmp(line + name_at, "[v", 2) == 0)
			assert_false(vma->anonymous);
		if (line[name_at] == '\0' || vma->heap || vma->stack)
			assert_true(vma->anonymous);
	}
	assert_int_equal(i, first.n);
}

static unsigned char *mapping(size_t pages, int prot, int flags)
{
	/* between two holes, so that no neighbour joins it */
	unsigned char *at = mmap(NULL, (pages + 2) * page_bytes, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(at, MAP_FAILED);
	munmap(at, page_bytes);
	munmap(at + (pages + 1) * page_bytes, page_bytes);
	at += page_bytes;
	assert_ptr_equal(mmap(at, pages * page_bytes, prot, flags | MAP_FIXED, -1, 0), at);
	return at;
}

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void own_mappings_have_their_attributes(void **state)
{
	unsigned char *none = mapping(3, PROT_NONE, ANON);
	unsigned char *exec = mapping(1, PROT_READ | PROT_EXEC, ANON);
	unsigned char *shared = mapping(2, RW, MAP_SHARED | MAP_ANONYMOUS);
	const struct sys_vma *vma;

	(void)state;
	read_both();
	for (int pass = 0; pass < 2; pass++) {
		const struct list *list = pass ? &second : &first;

		assert_non_null(vma = find(list, none));
		assert_true(vma->start == (uintptr_t)none);
		assert_true(vma->end == (uintptr_t)none + 3 * page_bytes);
		assert_int_equal(vma->prot, PROT_NONE);
		assert_true(vma->anonymous && !vma->shared && !vma->heap && !vma->stack);
		assert_non_null(vma = find(list, exec));
		assert_int_equal(vma->prot, PROT_READ | PROT_EXEC);
		assert_non_null(vma = find(list, shared));
		assert_true(vma->shared && !vma->anonymous);
		assert_non_null(vma = find(list, (void *)&own_mappings_have_their_attributes));
		assert_true(vma->inode != 0 && !vma->anonymous && vma->name[0] == '/');
		assert_non_null(vma = find(list, &first));
	}
	munmap(none, 3 * page_bytes);
	munmap(exec, page_bytes);
	munmap(shared, 2 * page_bytes);
}

#define MLOCK (-1) /* the raw call: sanitizers make libc's do nothing */

static uint64_t flags_after(int advice)
{
	unsigned char *at = mapping(4, RW, ANON);
	const struct sys_vma *vma;
	uint64_t flags = 0;

	if ((advice == MLOCK ? syscall(SYS_mlock, at, page_bytes * 4) :
			       madvise(at, page_bytes * 4, advice)) == 0) {
		read_both();
		vma = find(&second, at);
		assert_non_null(vma);
		assert_true(vma->start == (uintptr_t)at && vma->end == (uintptr_t)at + 4 * page_bytes);
		flags = vma->flags;
		/* the plain file says nothing of flags */
		assert_true(find(&first, at)->flags == 0);
	}
	munmap(at, page_bytes * 4);
	return flags;
}

static void advice_shows_in_the_flags(void **state)
{
	static const struct {
		int advice;
		uint64_t flag;
		const char *name;
	} cases[] = {
		{ MADV_DONTFORK, SYS_VMF(dc), "dc" },	{ MADV_DONTDUMP, SYS_VMF(dd), "dd" },
		{ MADV_WIPEONFORK, SYS_VMF(wf), "wf" }, { MADV_HUGEPAGE, SYS_VMF(hg), "hg" },
		{ MADV_NOHUGEPAGE, SYS_VMF(nh), "nh" }, { MADV_MERGEABLE, SYS_VMF(mg), "mg" },
		{ MADV_RANDOM, SYS_VMF(rr), "rr" },	{ MADV_SEQUENTIAL, SYS_VMF(sr), "sr" },
		{ MLOCK, SYS_VMF(lo), "lo" },
	};
	uint64_t plain = flags_after(MADV_NORMAL);

	(void)state;
	assert_true((plain & SYS_VMF(rd)) && (plain & SYS_VMF(wr)) && (plain & SYS_VMF(mr)));
	assert_false(plain & (SYS_VMF(sh) | SYS_VMF(ex) | SYS_VMF_OTHER));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t flags = flags_after(cases[i].advice);

		if (flags == 0) {
			print_message("# %s cannot be asked for here\n", cases[i].name);
			continue;
		}
		if (!(flags & cases[i].flag) || (plain & cases[i].flag))
			fail_msg("%s: %llx, without %llx", cases[i].name, (unsigned long long)flags,
				 (unsigned long long)plain);
	}
}

static void resident_pages_are_counted(void **state)
{
	unsigned char *at = mapping(8, RW, ANON);
	const struct sys_vma *vma;

	(void)state;
	madvise(at, 8 * page_bytes, MADV_NOHUGEPAGE);
	for (int i = 0; i < 3; i++)
		at[(size_t)i * 2 * page_bytes] = 1;
	read_both();
	vma = find(&second, at);
	assert_non_null(vma);
	assert_int_equal(vma->rss_bytes, 3 * page_bytes);
	assert_int_equal(vma->pss_bytes, 3 * page_bytes);
	assert_int_equal(vma->anon_bytes, 3 * page_bytes);
	munmap(at, 8 * page_bytes);
	assert_true(sys_pss_bytes(0) > 0);
	assert_true(sys_pss_bytes(getpid()) > 0);
}

static void a_named_mapping_is_anonymous_still(void **state)
{
	unsigned char *at = mapping(2, RW, ANON);
	const struct sys_vma *vma;

	(void)state;
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, 2 * page_bytes, "two words") < 0) {
		munmap(at, 2 * page_bytes);
		SKIP("this kernel names no anonymous mappings");
	}
	read_both();
	vma = find(&first, at);
	assert_non_null(vma);
	assert_string_equal(vma->name, "[anon:two words]");
	assert_true(vma->anonymous);
	munmap(at, 2 * page_bytes);
}

/* 10 folders of 255 newlines, each escaped to four bytes: a line of ten thousand. */
static void a_line_longer_than_the_buffer_is_skipped_safely(void **state)
{
	char dir[64] = "/tmp/sys maps XXXXXX";
	static char path[4096];
	char component[256];
	unsigned char *file_page;
	unsigned char *after;
	const struct sys_vma *vma;
	struct stat st;
	size_t at;
	int fd;

	(void)state;
	assert_non_null(mkdtemp(dir));
	strcpy(path, dir);
	at = strlen(path);
	memset(component, '\n', 255);
	component[0] = '/';
	for (int i = 0; i < 10; i++, at += 255) {
		memcpy(path + at, component, 255);
		path[at + 255] = '\0';
		assert_int_equal(mkdir(path, 0700), 0);
	}
	strcpy(path + at, "/f\n7f00-8000 rw-p 0 0:0 0");
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)page_bytes * 4), 0);
	assert_int_equal(fstat(fd, &st), 0);
	file_page = mmap(NULL, page_bytes * 4, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(file_page, MAP_FAILED);
	/* split in four: long lines one after another */
	mprotect(file_page + page_bytes, page_bytes, PROT_NONE);
	mprotect(file_page + 3 * page_bytes, page_bytes, PROT_NONE);
	after = mapping(2, PROT_NONE, ANON);
	slurp("/proc/thread-self/maps", text);
	assert_non_null(strstr(text, "\\012\\012\\012")); /* the kernel escapes them */

	read_both();
	for (int pass = 0; pass < 2; pass++) {
		const struct list *list = pass ? &second : &first;

		for (int i = 0; i < 4; i++) {
			vma = find(list, file_page + (size_t)i * page_bytes);
			assert_non_null(vma);
			assert_true(vma->end - vma->start == page_bytes);
			assert_true(vma->offset == (uint64_t)i * page_bytes);
			assert_true(vma->inode == st.st_ino && !vma->anonymous);
			assert_int_equal(strncmp(vma->name, dir, strlen(dir)), 0);
			assert_int_equal(strlen(vma->name), sizeof(vma->name) - 1);
			assert_int_equal(vma->prot, i % 2 ? PROT_NONE : PROT_READ);
		}
		vma = find(list, after);
		assert_non_null(vma);
		assert_true(vma->anonymous && vma->prot == PROT_NONE);
		/* in order and without gaps in the middle of a line */
		for (unsigned i = 1; i < list->n; i++)
			assert_true(list->vmas[i - 1].end <= list->vmas[i].start);
		assert_null(find(list, (void *)0x7f00));
	}
	assert_int_equal(first.n, second.n);

	munmap(file_page, 4 * page_bytes);
	munmap(after, 2 * page_bytes);
	close(fd);
	unlink(path);
	for (int i = 0; i < 10; i++, at -= 255) {
		path[at] = '\0';
		assert_int_equal(rmdir(path), 0);
	}
	assert_int_equal(rmdir(dir), 0);
}

static void a_small_buffer_reads_the_same(void **state)
{
	enum { N = 3000 };
	unsigned char *at = mapping(N, RW, ANON);
	int64_t count;
	unsigned found = 0;

	(void)state;
	for (size_t i = 0; i < N; i += 2)
		assert_int_equal(mprotect(at + i * page_bytes, page_bytes, PROT_READ), 0);
	for (int smaps = 0; smaps < 2; smaps++) {
		first.n = second.n = 0;
		if (smaps) {
			assert_int_equal(sys_smaps_each(0, small, sizeof(small), collect, &first), 0);
			assert_int_equal(sys_smaps_each(getpid(), big, BIG, collect, &second), 0);
		} else {
			assert_int_equal(sys_maps_each(0, small, sizeof(small), collect, &first), 0);
			assert_int_equal(sys_maps_each(getpid(), big, BIG, collect, &second), 0);
		}
		found = 0;
		for (size_t i = 0; i < N; i++) {
			const struct sys_vma *a = find(&first, at + i * page_bytes);
			const struct sys_vma *b = find(&second, at + i * page_bytes);

			assert_true(a && b && a->start == (uintptr_t)at + i * page_bytes);
			assert_memory_equal(a, b, sizeof(*a));
			assert_int_equal(a->prot, i % 2 ? RW : PROT_READ);
			found++;
		}
		assert_int_equal(found, N);
	}
	count = sys_map_count(0, small, sizeof(small));
	assert_true(count >= N && count <= first.n + 16 && count + 16 >= first.n);
	munmap(at, N * page_bytes);
}

/* What PROCMAP_QUERY says of each mapping is what its line in maps says. */
static void one_mapping_by_query(void **state)
{
	struct sys_procmap_query q = { .size = sizeof(q), .query_addr = (uintptr_t)small };
	int fd = sys->open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC, 0);
	struct sys_vma vma;
	unsigned n = 0;

	(void)state;
	assert_true(fd >= 0);
	if (sys->procmap_query(fd, &q) < 0) {
		sys->close(fd);
		skip();
	}
	read_both();
	for (unsigned i = 0; i < first.n; i++) {
		const struct sys_vma *v = &first.vmas[i];

		/* Not a mapping of this process, though it is listed. */
		if (strcmp(v->name, "[vsyscall]") == 0)
			continue;
		assert_int_equal(sys_vma_query(fd, v->start, 0, &vma), 0);
		assert_memory_equal(&vma, v, sizeof(vma));
		n++;
	}
	assert_true(n > 5);
	assert_int_equal(sys_vma_query(fd, 0, 0, &vma), -ENOENT);
	sys->close(fd);
}

static int stop_at_third(const struct sys_vma *vma, void *arg)
{
	(void)vma;
	return ++*(int *)arg == 3 ? 42 : 0;
}

static void the_callback_ends_the_walk(void **state)
{
	int calls = 0;

	(void)state;
	assert_int_equal(sys_maps_each(0, small, sizeof(small), stop_at_third, &calls), 42);
	assert_int_equal(calls, 3);
	calls = 0;
	assert_int_equal(sys_smaps_each(0, small, sizeof(small), stop_at_third, &calls), 42);
	assert_int_equal(calls, 3);
}

static void refusals(void **state)
{
	(void)state;
	first.n = 0;
	assert_int_equal(sys_maps_each(0, small, 4095, collect, &first), -EINVAL);
	assert_int_equal(sys_maps_each(0, NULL, 4096, collect, &first), -EINVAL);
	assert_int_equal(sys_maps_each(-1, small, 4096, collect, &first), -EINVAL);
	assert_int_equal(sys_maps_each(0x3fffffff, small, 4096, collect, &first), -ENOENT);
	assert_int_equal(sys_map_count(0x3fffffff, small, 4096), -ENOENT);
	assert_int_equal(sys_pss_bytes(0x3fffffff), -ENOENT);
	/* the descriptor is closed when reading fails: teardown counts */
	sys_fault_arm(SYS_FAULT_read, 2, EIO, 0);
	assert_int_equal(sys_smaps_each(0, small, 4096, collect, &first), -EIO);
	sys_fault_arm(SYS_FAULT_read, 1, EIO, 0);
	assert_int_equal(sys_map_count(0, small, 4096), -EIO);
	assert_int_equal(sys_pss_bytes(0), -EIO);
	assert_int_equal(sys_read_number("/proc/sys/vm/max_map_count"), -EIO);
	sys_fault_arm(SYS_FAULT_open, 1, EMFILE, 0);
	assert_int_equal(sys_maps_each(0, small, 4096, collect, &first), -EMFILE);
}

static unsigned most_in_a_read;

static ssize_t counting_read(int fd, void *buf, size_t bytes)
{
	ssize_t n = sys_real.read(fd, buf, bytes);
	unsigned found = 0;

	for (char *at = buf, *end = at + (n < 0 ? 0 : n);
	     (at = memmem(at, (size_t)(end - at), "VmFlags:", 8)); at++)
		found++;
	if (found > most_in_a_read)
		most_in_a_read = found;
	return n;
}

/* The kernel's lock is held for as long as a read walks: over one mapping, not some. */
static void one_mapping_at_a_time(void **state)
{
	struct sys_ops table = sys_real;

	(void)state;
	first.n = second.n = most_in_a_read = 0;
	table.read = counting_read;
	sys = &table;
	assert_int_equal(sys_smaps_each(0, big, BIG, collect, &first), 0);
	assert_true(most_in_a_read > 1);
	most_in_a_read = 0;
	assert_int_equal(sys_smaps_each_gently(0, big, BIG, collect, &second), 0);
	assert_int_equal(most_in_a_read, 1);
	sys = &sys_real;
	assert_int_equal(first.n, second.n);
	for (unsigned i = 0; i < first.n; i++) {
		assert_int_equal(first.vmas[i].start, second.vmas[i].start);
		assert_int_equal(first.vmas[i].flags, second.vmas[i].flags);
		assert_string_equal(first.vmas[i].name, second.vmas[i].name);
	}
}

/* canned files --------------------------------------------------------------- */

static const char *canned;
static size_t canned_at;
static size_t canned_step;

static ssize_t canned_read(int fd, void *buf, size_t bytes)
{
	size_t left = strlen(canned) - canned_at;

	(void)fd;
	if (bytes > canned_step)
		bytes = canned_step;
	if (bytes > left)
		bytes = left;
	memcpy(buf, canned + canned_at, bytes);
	canned_at += bytes;
	return (ssize_t)bytes;
}

static void read_canned(const char *file, size_t step)
{
	struct sys_ops table = sys_real;

	table.read = canned_read;
	canned = file;
	canned_at = 0;
	canned_step = step;
	sys = &table;
	first.n = 0;
	assert_int_equal(sys_smaps_each(0, small, sizeof(small), collect, &first), 0);
	sys = &sys_real;
}

static void other_kernels_files_are_understood(void **state)
{
	static const char file[] =
		"Rss: 5 kB\n" /* belongs to nothing */
		"00400000-00401000 r-xp 00000000 fd:1f 123456789012 /bin/name  with spaces\n"
		"Size:                  4 kB\n"
		"Rss:                   4 kB\n"
		"Pss:                   2 kB\n"
		"Pss_Dirty:             1 kB\n"
		"Anonymous:             0 kB\n"
		"AnonHugePages:        99 kB\n"
		"SomethingNew:   abc def\n"
		"VmFlags: rd ex mr mw me zz gd \n"
		"\n"
		"garbage\n"
		"00401000-00402000 rw-p 00000000 00:00 0 \n"
		"Rss:    nonsense\n"
		"Anonymous:            12 kB\n"
		"KSM:                   8 kB\n"
		"Swap:                  4 kB\n"
		"SwapPss:              99 kB\n"
		"ProtectionKey:         7\n"
		"7fffff000-80000000g rw-p 00000000 00:00 0 \n"
		"00500000-00501000 rw-p 00000000 00:00 0 [stack:123]\n"
		"00501000-00502000 rw-p 00000000 00:00 0 [stack]\n"
		"00502000-00503000 r-xp 00000000 00:00 0 [vdso]\n"
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
		"VmFlags: ex de";

	(void)state;
	for (size_t step = 1; step <= sizeof(file); step += step < 20 ? 1 : 100) {
		const struct sys_vma *v = first.vmas;

		read_canned(file, step);
		assert_int_equal(first.n, 6);
		assert_true(v[0].start == 0x400000 && v[0].end == 0x401000);
		assert_true(v[0].dev_major == 0xfd && v[0].dev_minor == 0x1f);
		assert_true(v[0].inode == 123456789012);
		assert_string_equal(v[0].name, "/bin/name  with spaces");
		assert_true(v[0].rss_bytes == 4096 && v[0].pss_bytes == 2048 && v[0].anon_bytes == 0);
		assert_true(v[0].flags == (SYS_VMF(rd) | SYS_VMF(ex) | SYS_VMF(mr) | SYS_VMF(mw) |
					   SYS_VMF(me) | SYS_VMF(gd) | SYS_VMF_OTHER));
		assert_true(!v[0].anonymous && v[0].pkey == 0);
		assert_true(v[1].anonymous && v[1].pkey == 7 && v[1].flags == 0);
		assert_true(v[1].rss_bytes == 0 && v[1].anon_bytes == 12 * 1024);
		assert_true(v[1].ksm_bytes == 8 * 1024 && v[1].swap_bytes == 4 * 1024);
		assert_true(v[0].ksm_bytes == 0 && v[0].swap_bytes == 0);
		assert_true(v[2].stack && v[2].anonymous && v[3].stack && !v[3].heap);
		assert_true(!v[4].anonymous && !v[4].stack);
		assert_true(v[5].start == 0xffffffffff600000 && v[5].prot == PROT_EXEC);
		assert_true(v[5].flags == (SYS_VMF(ex) | SYS_VMF(de)));
	}
	read_canned("", 10);
	assert_int_equal(first.n, 0);
}

/* Every length around the buffer's end, so that no boundary is special. */
static void every_line_length_around_the_buffer(void **state)
{
	(void)state;
	for (size_t length = 4000; length < 4200; length++) {
		int n = snprintf(text, BIG, "00400000-00401000 r--p 00000000 00:01 7 /");

		memset(text + n, 'x', length - (size_t)n);
		strcpy(text + length, "\n00401000-00402000 rw-p 00000000 00:00 0 \nVmFlags: dc\n");
		for (size_t step = 1; step < 6000; step = step * 9 + 1) {
			read_canned(text, step);
			assert_int_equal(first.n, 2);
			assert_true(first.vmas[0].inode == 7 && first.vmas[0].flags == 0);
			assert_true(first.vmas[1].start == 0x401000 && first.vmas[1].anonymous);
			assert_true(first.vmas[1].flags == SYS_VMF(dc));
		}
	}
}

static int64_t number_in(const char *content)
{
	char path[] = "/tmp/sys-number-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);
	int64_t value;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)), strlen(content));
	close(fd);
	value = sys_read_number(path);
	unlink(path);
	return value;
}

static void numbers(void **state)
{
	(void)state;
	assert_true(number_in("65530\n") == 65530);
	assert_true(number_in("0") == 0);
	assert_true(number_in("\t-3\n") == -3);
	assert_true(number_in("9223372036854775807\n") == INT64_MAX);
	assert_true(number_in("9223372036854775808\n") == -ERANGE);
	assert_true(number_in("99999999999999999999999\n") == -EINVAL);
	assert_true(number_in("") == -EINVAL);
	assert_true(number_in("12 34\n") == -EINVAL);
	assert_true(number_in("x\n") == -EINVAL);
	assert_true(sys_read_number("/nonexistent/file") == -ENOENT);
	assert_true(sys_read_number("/tmp") == -EISDIR);
	assert_true(sys_read_number("/proc/sys/vm/max_map_count") > 0);
}

static void another_process_is_read_too(void **state)
{
	unsigned char *at = mapping(5, PROT_READ, ANON);
	int go[2];
	pid_t child;
	char c;

	(void)state;
	assert_int_equal(pipe2(go, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(go[1]);
		_exit(read(go[0], &c, 1) == 0 ? 0 : 1);
	}
	close(go[0]);
	munmap(at, 5 * page_bytes); /* it has it, we have not */
	first.n = 0;
	assert_int_equal(sys_smaps_each(child, small, sizeof(small), collect, &first), 0);
	assert_non_null(find(&first, at));
	assert_int_equal(find(&first, at)->prot, PROT_READ);
	close(go[1]);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_line_is_as_scanf_reads_it),
		TEST(own_mappings_have_their_attributes),
		TEST(advice_shows_in_the_flags),
		TEST(resident_pages_are_counted),
		TEST(a_named_mapping_is_anonymous_still),
		TEST(a_line_longer_than_the_buffer_is_skipped_safely),
		TEST(a_small_buffer_reads_the_same),
		TEST(one_mapping_by_query),
		TEST(the_callback_ends_the_walk),
		TEST(one_mapping_at_a_time),
		TEST(refusals),
		TEST(other_kernels_files_are_understood),
		TEST(every_line_length_around_the_buffer),
		TEST(numbers),
		TEST(another_process_is_read_too),
	};

	page_bytes = sys_page_bytes();
	test_put_skips_right();
	return cmocka_run_group_tests_name("sys-maps", tests, NULL, NULL);
}
