/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the next program finds in its environment, when this one is a client.
 *
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
 * And where the next program cannot have us (target.c), or is under a filter that could
 * kill it for what we do (seccomp.c), our name leaves LD_PRELOAD. For system and popen
 * that happens in the entry of `environ` itself: what is left is never longer.
 *
 * The copy has to fit on the caller's stack, because these run in children of vfork:
 * an environment of more than ENVIRONMENT_MAX entries goes as it is.
 */
#include "shim/shim.h"

#include <alloca.h>
#include <string.h>
#include <unistd.h>

#include "sys/sys.h"

#define NAME "SAMEPAGE_MERGE_ANY="
#define PRELOAD "LD_PRELOAD="
#define LIBRARY "libsamepage-preload"
#define ENVIRONMENT_MAX 1024

static bool begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static const char *entry_text(void)
{
	return shim_merge_any() ? NAME "1" : NAME "0";
}

/* Cheap, so that the file is looked at only if it matters. */
bool shim_env_names_us(char *const envp[])
{
	for (size_t i = 0; envp && envp[i]; i++)
		if (begins(envp[i], PRELOAD) && strstr(envp[i], LIBRARY))
			return true;
	return false;
}

bool shim_env_plan(char *const envp[], bool takes_us, struct shim_env_plan *plan)
{
	bool preload = false, off = false, found = false, right = false;
	size_t i;

	*plan = (struct shim_env_plan){ 0 };
	for (i = 0; envp && envp[i]; i++) {
		if (i == ENVIRONMENT_MAX)
			return false;
		if (begins(envp[i], PRELOAD) && strstr(envp[i], LIBRARY)) {
			preload = true;
			plan->text_bytes += strlen(envp[i]) + 1;
		}
		off |= strcmp(envp[i], "SAMEPAGE_OFF=1") == 0;
		/* getenv() in the next program takes the first of several. */
		if (begins(envp[i], NAME) && !found) {
			found = true;
			right = strcmp(envp[i], entry_text()) == 0;
		}
	}
	plan->entries = i + 2;
	plan->drop = preload && !takes_us;
	plan->mark = preload && takes_us && shim_is_ready() && !off &&
		     (found ? !right : shim_merge_any());
	return plan->drop || plan->mark;
}

/* LD_PRELOAD, a list with blanks and colons between, without us; false: nothing is left. */
static bool preload_without_us(const char *entry, char *text)
{
	const char *p = entry + strlen(PRELOAD);
	size_t n = strlen(PRELOAD);

	memcpy(text, PRELOAD, n);
	while (*p) {
		size_t len = strcspn(p, " :"), base = len;

		while (base > 0 && p[base - 1] != '/')
			base--;
		if (len > 0 && !begins(p + base, LIBRARY)) {
			if (n > strlen(PRELOAD))
				text[n++] = ':';
			memcpy(text + n, p, len);
			n += len;
		}
		p += len + (p[len] != '\0');
	}
	text[n] = '\0';
	return n > strlen(PRELOAD);
}

char *const *shim_env_make(char *const envp[], const struct shim_env_plan *plan, char **copy,
			   char *text)
{
	size_t n = 0;

	if (plan->mark)
		copy[n++] = (char *)entry_text();
	for (size_t i = 0; envp[i]; i++) {
		if (plan->mark && begins(envp[i], NAME))
			continue;
		if (plan->drop && begins(envp[i], PRELOAD) && strstr(envp[i], LIBRARY)) {
			if (preload_without_us(envp[i], text)) {
				copy[n++] = text;
				text += strlen(text) + 1;
			}
			continue;
		}
		copy[n++] = envp[i];
	}
	copy[n] = NULL;
	return copy;
}

void shim_inherit_changed(void)
{
	for (size_t i = 0; environ && environ[i]; i++)
		if (begins(environ[i], NAME) && strlen(environ[i]) == strlen(NAME) + 1)
			environ[i][strlen(NAME)] = shim_merge_any() ? '1' : '0';
}

/* By way of the kernel: an entry may be a constant of the program's. */
static void cut_in_place(char *entry)
{
	size_t bytes = strlen(entry) + 1;
	char *text = alloca(bytes);
	struct iovec from = { text, bytes }, to = { entry, bytes };

	memset(text, 0, bytes);
	preload_without_us(entry, text);
	(void)sys->write_self(&from, 1, &to, 1);
}

void shim_inherit_nothing(void)
{
	for (size_t i = 0; environ && environ[i]; i++)
		if (begins(environ[i], PRELOAD) && strstr(environ[i], LIBRARY))
			cut_in_place(environ[i]);
}
