/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PR_SET_MEMORY_MERGE over exec: the kernel's switch stays on in the program that
 * comes next, and so must ours. It travels as an environment entry,
 *
 *   SAMEPAGE_MERGE_ANY=0 or =1
 *
 * which `samepage run` puts there and our constructor reads.
 *
 *   exec*, posix_spawn*   the entry is put right, or added, in a copy of whatever
 *                         environment the program hands over, if the next program
 *                         will be a client at all (LD_PRELOAD names us)
 *   system, popen         inside libc, with `environ`: the digit is changed there in
 *                         place when the switch changes. No malloc, and a program
 *                         that threw the entry away loses the inheritance here only
 *
 * The copy has to fit on the caller's stack, because these run in children of vfork:
 * an environment of ENVIRONMENT_MAX entries goes as it is.
 */
#include "shim/shim.h"

#include <string.h>
#include <unistd.h>

#define NAME "SAMEPAGE_MERGE_ANY="
#define ENVIRONMENT_MAX 1024

static bool is_entry(const char *text)
{
	return strncmp(text, NAME, strlen(NAME)) == 0;
}

static const char *entry_text(void)
{
	return shim_merge_any() ? NAME "1" : NAME "0";
}

size_t shim_inherit_room(char *const envp[])
{
	bool preload = false, off = false, found = false, right = false;
	size_t i;

	if (!shim_is_ready() || !envp)
		return 0;
	for (i = 0; envp[i]; i++) {
		if (i == ENVIRONMENT_MAX)
			return 0;
		preload |= strncmp(envp[i], "LD_PRELOAD=", 11) == 0 && strstr(envp[i], "samepage");
		off |= strcmp(envp[i], "SAMEPAGE_OFF=1") == 0;
		/* getenv() in the next program takes the first of several. */
		if (is_entry(envp[i]) && !found) {
			found = true;
			right = strcmp(envp[i], entry_text()) == 0;
		}
	}
	if (!preload || off || (found ? right : !shim_merge_any()))
		return 0;
	return i + 2;
}

char *const *shim_inherit(char *const envp[], char **copy)
{
	size_t n = 0;

	copy[n++] = (char *)entry_text();
	for (size_t i = 0; envp[i]; i++)
		if (!is_entry(envp[i]))
			copy[n++] = envp[i];
	copy[n] = NULL;
	return copy;
}

void shim_inherit_changed(void)
{
	for (size_t i = 0; environ && environ[i]; i++)
		if (is_entry(environ[i]) && strlen(environ[i]) == strlen(NAME) + 1)
			environ[i][strlen(NAME)] = shim_merge_any() ? '1' : '0';
}
