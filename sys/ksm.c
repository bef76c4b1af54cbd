/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading ksm_stat: by the names of its lines, in whatever order, so that a kernel may
 * add some. A number that does not fit counts as the line not being there.
 */
#include "sys/ksm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "sys/sys.h"

static const struct line {
	char name[24];
	uint8_t at; /* in struct sys_ksm_stat */
} lines[] = {
#define LINE(name, member) { name, offsetof(struct sys_ksm_stat, member) }
	LINE("ksm_merging_pages", merging_pages),
	LINE("ksm_merge_looked", looked),
	LINE("ksm_merge_merged", merged),
	LINE("ksm_merge_already", already),
	LINE("ksm_merge_zero", zero),
	LINE("ksm_merge_unique", unique),
	LINE("ksm_merge_busy", busy),
	LINE("ksm_merge_skipped", skipped),
#undef LINE
};

#define LINES (sizeof(lines) / sizeof(lines[0]))

/* Decimal digits up to the end of the line, nothing else. */
static bool number(const char *at, const char *end, uint64_t *value)
{
	uint64_t n = 0;

	if (at == end)
		return false;
	for (; at < end; at++) {
		if (*at < '0' || *at > '9' || n > (UINT64_MAX - 9) / 10)
			return false;
		n = n * 10 + (uint64_t)(*at - '0');
	}
	*value = n;
	return true;
}

static unsigned parse_line(const char *at, const char *end, struct sys_ksm_stat *stat)
{
	const char *space = memchr(at, ' ', (size_t)(end - at));
	size_t bytes = space ? (size_t)(space - at) : 0;
	uint64_t value;

	for (unsigned i = 0; bytes && i < LINES; i++) {
		if (strlen(lines[i].name) != bytes || memcmp(lines[i].name, at, bytes) != 0)
			continue;
		if (!number(space + 1, end, &value))
			return 0;
		memcpy((char *)stat + lines[i].at, &value, sizeof(value));
		return 1u << i;
	}
	return 0;
}

bool sys_ksm_stat_parse(const char *text, size_t bytes, struct sys_ksm_stat *stat)
{
	const char *at = text, *end = text + bytes;
	unsigned found = 0;

	memset(stat, 0, sizeof(*stat));
	while (at < end) {
		const char *newline = memchr(at, '\n', (size_t)(end - at));
		const char *stop = newline ? newline : end;

		found |= parse_line(at, stop, stat);
		at = stop + 1;
	}
	return found == (1u << LINES) - 1;
}

int sys_ksm_stat_read(int fd, struct sys_ksm_stat *stat)
{
	char text[2048];
	ssize_t got = sys->pread(fd, text, sizeof(text), 0);

	if (got < 0)
		return (int)got;
	return sys_ksm_stat_parse(text, (size_t)got, stat) ? 0 : -ENODATA;
}

int sys_ksm_stat_open(void)
{
	return sys->open("/proc/thread-self/ksm_stat", O_RDONLY | O_CLOEXEC, 0);
}
