/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * /proc/PID/maps and smaps, one line at a time, through the caller's buffer.
 *
 * The reader hands out lines in place and refills the buffer behind the last
 * one. A line longer than the buffer (a path may be 4095 bytes, each escaped to
 * four) is cut to what is in the buffer and the rest is skipped: everything that
 * is parsed stands in the first hundred bytes. The kernel escapes newlines in
 * names, so that a newline is always the end of a line.
 *
 * smaps: a line that begins like "7f00-" opens a mapping, "Key: value" lines
 * belong to the one that is open, and it is handed out when the next one opens
 * or the file ends. Lines of neither kind, and keys that are not known, are
 * passed over.
 *
 * Which file: /proc/thread-self rather than /proc/self, whose files are empty
 * once the first thread of the process has ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "sys/maps.h"
#include "sys/sys.h"

#define BUFFER_BYTES_MIN 4096
/* Less than smaps says of any mapping: the kernel stops at the first that fills the read. */
#define GENTLE_BYTES 512

/* reading lines ---------------------------------------------------------------- */

struct reader {
	int fd;
	char *buf;
	size_t most; /* of a read */
	size_t room; /* one byte less than the buffer: a cut line gets its NUL there */
	size_t at;   /* first byte not handed out yet */
	size_t have; /* bytes in the buffer */
	bool ended;
	bool skipping; /* the rest of a line that was cut */
};

/* Move what is left to the front and read more behind it. */
static int refill(struct reader *r)
{
	ssize_t n;

	memmove(r->buf, r->buf + r->at, r->have - r->at);
	r->have -= r->at;
	r->at = 0;
	n = r->room - r->have < r->most ? (ssize_t)(r->room - r->have) : (ssize_t)r->most;
	n = sys->read(r->fd, r->buf + r->have, (size_t)n);
	if (n < 0)
		return (int)n;
	if (n == 0)
		r->ended = true;
	r->have += (size_t)n;
	return 0;
}

/* 1 and a NUL-terminated line without its newline, 0 at the end, or -errno. */
static int next_line(struct reader *r, char **line)
{
	for (;;) {
		char *from = r->buf + r->at;
		size_t left = r->have - r->at;
		char *newline = memchr(from, '\n', left);
		size_t length = newline ? (size_t)(newline - from) : left;
		bool whole = newline != NULL;
		int error;

		if (whole || (left > 0 && (r->ended || left == r->room))) {
			bool rest_of_cut = r->skipping;

			r->at += length + (whole ? 1 : 0);
			r->skipping = !whole;
			if (rest_of_cut)
				continue;
			from[length] = '\0';
			*line = from;
			return 1;
		}
		if (r->ended)
			return 0;
		error = refill(r);
		if (error < 0)
			return error;
	}
}

/* numbers and paths ------------------------------------------------------------ */

static int digit_of(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return INT_MAX;
}

/* Reads a number, moves *s behind it; false when there is none or it is too large. */
static bool take_number(const char **s, unsigned base, uint64_t *value)
{
	const char *first = *s;

	*value = 0;
	for (; (unsigned)digit_of(**s) < base; ++*s) {
		if (__builtin_mul_overflow(*value, base, value) ||
		    __builtin_add_overflow(*value, (uint64_t)digit_of(**s), value))
			return false;
	}
	return *s != first;
}

static bool take_char(const char **s, char c)
{
	if (**s != c)
		return false;
	++*s;
	return true;
}

static void skip_spaces(const char **s)
{
	while (**s == ' ' || **s == '\t')
		++*s;
}

static int open_proc(int pid, const char *file)
{
	static const char self[] = "thread-self";
	char path[64] = "/proc/";
	char digits[12] = "";
	size_t n = 0;
	size_t at = strlen(path);

	if (pid < 0)
		return -EINVAL;
	if (pid == 0) {
		memcpy(path + at, self, sizeof(self) - 1);
		at += sizeof(self) - 1;
	}
	for (; pid > 0; pid /= 10)
		digits[n++] = (char)('0' + pid % 10);
	while (n > 0)
		path[at++] = digits[--n];
	path[at++] = '/';
	memcpy(path + at, file, strlen(file) + 1);
	return sys->open(path, O_RDONLY | O_CLOEXEC, 0);
}

/* one mapping ------------------------------------------------------------------ */

static bool take_protection(const char **s, struct sys_vma *vma)
{
	const char *p = *s;

	if (strnlen(p, 4) < 4 || !strchr("r-", p[0]) || !strchr("w-", p[1]) ||
	    !strchr("x-", p[2]) || !strchr("sp", p[3]))
		return false;
	vma->prot = (p[0] == 'r' ? PROT_READ : 0) | (p[1] == 'w' ? PROT_WRITE : 0) |
		    (p[2] == 'x' ? PROT_EXEC : 0);
	vma->shared = p[3] == 's';
	*s += 4;
	return true;
}

static void take_name(const char *s, struct sys_vma *vma)
{
	bool no_file = vma->inode == 0 && vma->dev_major == 0 && vma->dev_minor == 0;
	size_t n = strnlen(s, sizeof(vma->name) - 1);

	memcpy(vma->name, s, n);
	vma->name[n] = '\0';
	/* "[stack:tid]" is how kernels before 4.5 marked threads' stacks */
	vma->stack = no_file && (strcmp(s, "[stack]") == 0 || strncmp(s, "[stack:", 7) == 0);
	vma->heap = no_file && strcmp(s, "[heap]") == 0;
	vma->anonymous = no_file && (s[0] == '\0' || vma->stack || vma->heap ||
				     strncmp(s, "[anon:", 6) == 0);
}

/* "start-end prot offset major:minor inode   name": is it a whole one? */
static bool parse_mapping(const char *s, struct sys_vma *vma)
{
	uint64_t major;
	uint64_t minor;

	memset(vma, 0, sizeof(*vma));
	if (!take_number(&s, 16, &vma->start) || !take_char(&s, '-') ||
	    !take_number(&s, 16, &vma->end) || !take_char(&s, ' ') || !take_protection(&s, vma) ||
	    !take_char(&s, ' ') || !take_number(&s, 16, &vma->offset) || !take_char(&s, ' ') ||
	    !take_number(&s, 16, &major) || !take_char(&s, ':') || !take_number(&s, 16, &minor) ||
	    !take_char(&s, ' ') || !take_number(&s, 10, &vma->inode))
		return false;
	vma->dev_major = (uint32_t)major;
	vma->dev_minor = (uint32_t)minor;
	skip_spaces(&s);
	take_name(s, vma);
	return true;
}

/* smaps keys ------------------------------------------------------------------- */

#define FLAG_PAIR(a, b) ((unsigned)(unsigned char)(a) << 8 | (unsigned char)(b))

static uint64_t flag_of(const char *two)
{
	static const char table[][3] = {
#define FLAG_TEXT(f) #f,
		SYS_VMF_LIST(FLAG_TEXT)
#undef FLAG_TEXT
	};

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (FLAG_PAIR(two[0], two[1]) == FLAG_PAIR(table[i][0], table[i][1]))
			return UINT64_C(1) << i;
	return SYS_VMF_OTHER;
}

static uint64_t parse_flags(const char *s)
{
	uint64_t flags = 0;

	for (;;) {
		size_t n;

		skip_spaces(&s);
		n = strcspn(s, " \t");
		if (n == 0)
			return flags;
		flags |= n == 2 ? flag_of(s) : SYS_VMF_OTHER;
		s += n;
	}
}

/* What stands behind "key:", or NULL when the line is about something else. */
static const char *value_of(const char *line, const char *key)
{
	size_t n = strlen(key);

	if (strncmp(line, key, n) != 0 || line[n] != ':')
		return NULL;
	line += n + 1;
	skip_spaces(&line);
	return line;
}

/* "123 kB" -> bytes; left alone when it is not that */
static void take_bytes(const char *s, uint64_t *bytes)
{
	uint64_t kib;

	if (take_number(&s, 10, &kib) && strcmp(s, " kB") == 0)
		*bytes = kib * 1024;
}

static void parse_key(const char *line, struct sys_vma *vma)
{
	const char *s;
	uint64_t number;

	if ((s = value_of(line, "Rss")))
		take_bytes(s, &vma->rss_bytes);
	else if ((s = value_of(line, "Pss")))
		take_bytes(s, &vma->pss_bytes);
	else if ((s = value_of(line, "Anonymous")))
		take_bytes(s, &vma->anon_bytes);
	else if ((s = value_of(line, "KSM")))
		take_bytes(s, &vma->ksm_bytes);
	else if ((s = value_of(line, "Swap")))
		take_bytes(s, &vma->swap_bytes);
	else if ((s = value_of(line, "VmFlags")))
		vma->flags = parse_flags(s);
	else if ((s = value_of(line, "ProtectionKey")) && take_number(&s, 10, &number))
		vma->pkey = (uint32_t)number;
}

/* the walks -------------------------------------------------------------------- */

static int open_reader(struct reader *r, int pid, const char *file, char *buf, size_t buf_bytes)
{
	if (!buf || buf_bytes < BUFFER_BYTES_MIN)
		return -EINVAL;
	*r = (struct reader){ .buf = buf, .most = buf_bytes, .room = buf_bytes - 1 };
	r->fd = open_proc(pid, file);
	return r->fd < 0 ? r->fd : 0;
}

/* Both files are one grammar: maps is smaps without keys. */
static int each(int pid, const char *file, size_t most, char *buf, size_t buf_bytes,
		sys_vma_fn *fn, void *arg)
{
	struct reader r;
	struct sys_vma open = { 0 };
	struct sys_vma next;
	bool is_open = false;
	char *line;
	int more;
	int result = open_reader(&r, pid, file, buf, buf_bytes);

	if (result < 0)
		return result;
	if (r.most > most)
		r.most = most;
	while ((more = next_line(&r, &line)) > 0) {
		if (!parse_mapping(line, &next)) {
			if (is_open)
				parse_key(line, &open);
			continue;
		}
		if (is_open) {
			result = fn(&open, arg);
			if (result)
				goto out;
		}
		open = next;
		is_open = true;
	}
	result = more;
	if (result == 0 && is_open)
		result = fn(&open, arg);
out:
	sys->close(r.fd);
	return result;
}

bool sys_name_is_store(const char *name)
{
	static const char store[] = "/memfd:samepage-store";

	return strncmp(name, store, sizeof(store) - 1) == 0;
}

int sys_maps_each(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg)
{
	return each(pid, "maps", SIZE_MAX, buf, buf_bytes, fn, arg);
}

int sys_smaps_each(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg)
{
	return each(pid, "smaps", SIZE_MAX, buf, buf_bytes, fn, arg);
}

int sys_smaps_each_gently(int pid, char *buf, size_t buf_bytes, sys_vma_fn *fn, void *arg)
{
	return each(pid, "smaps", GENTLE_BYTES, buf, buf_bytes, fn, arg);
}

int sys_vma_query(int fd, uint64_t addr, uint64_t query_flags, struct sys_vma *vma)
{
	char name[256] = "";
	struct sys_procmap_query q = {
		.size = sizeof(q),
		.query_flags = query_flags,
		.query_addr = addr,
		.vma_name_addr = (uintptr_t)name,
		.vma_name_size = sizeof(name),
	};
	int err = sys->procmap_query(fd, &q);

	if (err == -ENAMETOOLONG) {
		q.vma_name_addr = q.vma_name_size = 0;
		strcpy(name, "/");
		err = sys->procmap_query(fd, &q);
	}
	if (err < 0)
		return err;
	memset(vma, 0, sizeof(*vma));
	vma->start = q.vma_start;
	vma->end = q.vma_end;
	vma->offset = q.vma_offset;
	vma->inode = q.inode;
	vma->dev_major = q.dev_major;
	vma->dev_minor = q.dev_minor;
	vma->prot = (q.vma_flags & SYS_PROCMAP_QUERY_VMA_READABLE ? PROT_READ : 0) |
		    (q.vma_flags & SYS_PROCMAP_QUERY_VMA_WRITABLE ? PROT_WRITE : 0) |
		    (q.vma_flags & SYS_PROCMAP_QUERY_VMA_EXECUTABLE ? PROT_EXEC : 0);
	vma->shared = q.vma_flags & SYS_PROCMAP_QUERY_VMA_SHARED;
	take_name(name, vma);
	return 0;
}

int64_t sys_map_count(int pid, char *buf, size_t buf_bytes)
{
	struct reader r;
	int64_t count = 0;
	char *line;
	int more = open_reader(&r, pid, "maps", buf, buf_bytes);

	if (more < 0)
		return more;
	while ((more = next_line(&r, &line)) > 0)
		count++;
	sys->close(r.fd);
	return more < 0 ? more : count;
}

int64_t sys_pss_bytes(int pid)
{
	char buf[1024];
	struct reader r = { .buf = buf, .most = sizeof(buf), .room = sizeof(buf) - 1 };
	uint64_t bytes = UINT64_MAX;
	char *line;
	int more = 0;

	r.fd = open_proc(pid, "smaps_rollup");
	if (r.fd < 0)
		return r.fd;
	while (bytes == UINT64_MAX && (more = next_line(&r, &line)) > 0) {
		const char *s = value_of(line, "Pss");

		if (s)
			take_bytes(s, &bytes);
	}
	sys->close(r.fd);
	if (bytes != UINT64_MAX)
		return (int64_t)bytes;
	return more < 0 ? more : -ENODATA;
}

int sys_read_text(const char *path, char *text, size_t room)
{
	int fd = sys->open(path, O_RDONLY | O_CLOEXEC, 0);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = sys->read(fd, text, room - 1);
	sys->close(fd);
	if (n < 0)
		return (int)n;
	text[n] = '\0';
	return 0;
}

int64_t sys_anonymous_pages(void)
{
	char text[128];
	const char *s = text;
	uint64_t number[3] = { 0 }; /* size, resident, of files */
	int err = sys_read_text("/proc/thread-self/statm", text, sizeof(text));

	if (err < 0)
		return err;
	for (unsigned i = 0; i < 3; i++) {
		skip_spaces(&s);
		if (!take_number(&s, 10, &number[i]))
			return -EINVAL;
	}
	return number[1] < number[2] ? 0 : (int64_t)(number[1] - number[2]);
}

int64_t sys_read_number(const char *path)
{
	char text[64];
	const char *s = text;
	uint64_t value;
	bool negative;
	int err = sys_read_text(path, text, sizeof(text));

	if (err < 0)
		return err;
	skip_spaces(&s);
	negative = take_char(&s, '-');
	if (!take_number(&s, 10, &value) || (*s != '\n' && *s != '\0'))
		return -EINVAL;
	if (value > INT64_MAX)
		return -ERANGE;
	return negative ? -(int64_t)value : (int64_t)value;
}
