/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The samepage command: picks the subcommand. Exit statuses: cli.h.
 */
#include <string.h>

#include "cli/cli.h"

static const struct {
	const char *name;
	int (*fn)(int argc, char **argv);
	const char *text;
} commands[] = {
	{ "run", cli_run, "run a program so that its memory can be merged" },
	{ "merge", cli_merge, "merge identical pages of running programs now" },
	{ "unmerge", cli_unmerge, "give merged pages private copies again" },
	{ "pause", cli_pause, "let background scanning rest" },
	{ "resume", cli_resume, "let it go on" },
	{ "status", cli_status, "what is shared, what it saves and what it costs" },
	{ "top", cli_top, "the same, live" },
	{ "analyze", cli_analyze, "what would merging save, of programs as they are" },
	{ "check", cli_check, "does merging work on this machine, and if not, why" },
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void usage(FILE *out)
{
	fputs("usage: samepage COMMAND [OPTION...]\n\n"
	      "Merge identical memory pages of many processes, now.\n\n", out);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].text);
	fputs("\n"
	      "  -h, --help      print this; `samepage COMMAND --help` says more\n"
	      "  -V, --version   print the version\n\n"
	      "See samepage(1).\n", out);
}

int main(int argc, char **argv)
{
	const char *word = argc > 1 ? argv[1] : NULL;

	if (!word) {
		usage(stderr);
		return CLI_USAGE;
	}
	for (size_t i = 0; i < COMMANDS; i++)
		if (strcmp(word, commands[i].name) == 0)
			return commands[i].fn(argc - 1, argv + 1);
	if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
		usage(stdout);
		return cli_finish(CLI_DONE);
	}
	if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
		puts("samepage " SAMEPAGE_VERSION);
		return cli_finish(CLI_DONE);
	}
	fprintf(stderr, "samepage: '%s' is no command; try 'samepage --help'\n", word);
	return CLI_USAGE;
}
