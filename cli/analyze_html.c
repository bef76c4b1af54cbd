/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The page: one file that needs nothing else, no network and no server.
 *
 * Its template (analyze.html) and the plotting library (Chart.js, as the distribution
 * ships it) are put into the program when it is built; the report goes between them
 * as JSON, which the template's script turns into tables and plots. Text from
 * processes stays text: "<" is escaped in the JSON, and the script never makes markup of
 * strings.
 */
#include <errno.h>
#include <string.h>

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

int cli_analyze_html(struct json_object *report, const char *path)
{
	const char *text = json_object_to_json_string_ext(report, JSON_C_TO_STRING_PLAIN);
	bool to_stdout = strcmp(path, "-") == 0;
	FILE *out = to_stdout ? stdout : fopen(path, "we");
	int err = 0;

	if (!out)
		return -errno;
	fputs(cli_page_head, out);
	fputs(cli_page_charts, out);
	fputs(cli_page_middle, out);
	put_json(text ? text : "null", out);
	fputs(cli_page_tail, out);
	if (fflush(out) != 0 || ferror(out))
		err = errno ? -errno : -EIO;
	if (!to_stdout && fclose(out) != 0 && !err)
		err = -errno;
	return err;
}

#else

bool cli_analyze_can_html(void)
{
	return false;
}

int cli_analyze_html(struct json_object *report, const char *path)
{
	return -EOPNOTSUPP;
}

#endif
