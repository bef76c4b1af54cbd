/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page: one file that needs nothing else, no network and no server.
 *
 * Its template (analyze.html) and the plotting library (Chart.js, as the distribution
 * ships it) are put into the program when it is built; the report goes between them
 * as JSON, which the template's script turns into tables and plots. Text from
 * processes stays text: "<" is escaped in the JSON, and the script never makes markup of
 * strings.
 *
 * It is opened before the first look, which may be hours before there is something to
 * write, beside the file of that name, and takes its place when it is whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/analyze.h"

#ifdef CLI_CHARTS

/* From cli/embed.py: cut at the marks in the template. */
extern const char cli_page_head[], cli_page_middle[], cli_page_tail[];
extern const char cli_page_charts[];

bool cli_analyze_can_html(void)
{
	return true;
}

static void put_json(const char *text, FILE *out)
{
	for (; *text; text++) {
		size_t n = strcspn(text, "<");

		fwrite(text, 1, n, out);
		text += n;
		if (!*text)
			break;
		fputs("\\u003c", out);
	}
}

static void put_page(struct json_object *report, FILE *out)
{
	const char *text = json_object_to_json_string_ext(report, JSON_C_TO_STRING_PLAIN);

	fputs(cli_page_head, out);
	fputs(cli_page_charts, out);
	fputs(cli_page_middle, out);
	put_json(text ? text : "null", out);
	fputs(cli_page_tail, out);
}

/* A new file beside it, with the rights that it has or would get. */
static int open_beside(struct cli_analyze_page *page, mode_t mode)
{
	int err = 0;
	int fd;

	if (asprintf(&page->part, "%s.XXXXXX", page->path) < 0) {
		page->part = NULL;
		return -ENOMEM;
	}
	fd = mkostemp(page->part, O_CLOEXEC);
	if (fd >= 0 && fchmod(fd, mode) == 0)
		page->out = fdopen(fd, "w");
	if (page->out)
		return 0;
	err = -errno;
	if (fd >= 0) {
		unlink(page->part);
		close(fd);
	}
	free(page->part);
	page->part = NULL;
	return err;
}

int cli_analyze_page_open(struct cli_analyze_page *page, const char *path)
{
	mode_t mask = umask(022);
	struct stat st = { .st_mode = S_IFREG | (0666 & ~mask) };
	int err;

	umask(mask);
	*page = (struct cli_analyze_page){ 0 };
	if (strcmp(path, "-") == 0) {
		page->out = stdout;
		return 0;
	}
	/* behind a link, not in its place */
	page->path = stat(path, &st) == 0 ? realpath(path, NULL) : strdup(path);
	if (!page->path)
		return -errno;
	if (S_ISREG(st.st_mode)) {
		err = open_beside(page, st.st_mode & 0777);
	} else { /* a pipe, a device: nothing to lose */
		page->out = fopen(path, "we");
		err = page->out ? 0 : -errno;
	}
	if (err)
		cli_analyze_page_close(page, NULL);
	return err;
}

int cli_analyze_page_close(struct cli_analyze_page *page, struct json_object *report)
{
	int err = 0;

	if (page->out && report) {
		put_page(report, page->out);
		if (fflush(page->out) != 0 || ferror(page->out))
			err = errno ? -errno : -EIO;
	}
	if (page->out && page->out != stdout && fclose(page->out) != 0 && !err)
		err = -errno;
	if (page->part && report && !err && rename(page->part, page->path) != 0)
		err = -errno;
	if (page->part && (err || !report))
		unlink(page->part);
	free(page->part);
	free(page->path);
	*page = (struct cli_analyze_page){ 0 };
	return err;
}

#else

bool cli_analyze_can_html(void)
{
	return false;
}

int cli_analyze_page_open(struct cli_analyze_page *page, const char *path)
{
	return -EOPNOTSUPP;
}

int cli_analyze_page_close(struct cli_analyze_page *page, struct json_object *report)
{
	return 0;
}

#endif
