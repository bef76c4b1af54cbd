/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The settings of samepaged: what each is called, which values it may have, and the
 * file with them. The same names and values on the command line (options.c), with
 * hyphens there; man/samepaged.conf.5 explains them.
 *
 * The file: a line is "name = value", or empty; from a # on it is a comment. A line that
 * means nothing stops the start, with the line's number and what would be allowed: a
 * broker with other limits than its owner thinks is worse than none.
 */
#include "broker/settings.h"

#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/scan_config.h"

#define SECONDS_MAX (UINT64_C(365) * 24 * 3600)

/* The number and the text behind it, or false. */
static bool parse_number(const char *text, uint64_t max, uint64_t *value, const char **rest)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	*value = strtoull(text, &end, 10);
	*rest = end;
	return *value <= max;
}

static bool parse_plain(const char *text, uint64_t max, uint64_t *value)
{
	const char *rest;

	return parse_number(text, max, value, &rest) && *rest == '\0';
}

static bool parse_seconds(const char *text, uint64_t *usec)
{
	uint64_t seconds;

	if (!parse_plain(text, SECONDS_MAX, &seconds))
		return false;
	*usec = seconds * BROKER_SECOND_USEC;
	return true;
}

/* Bytes to slots, at least one. */
static bool parse_slots(const char *text, uint64_t *slots)
{
	static const char suffixes[] = "KMGT";
	const char *rest, *suffix;
	unsigned shift = 0;
	uint64_t n;

	if (!parse_number(text, UINT64_MAX >> 1, &n, &rest))
		return false;
	if (*rest != '\0') {
		suffix = strchr(suffixes, *rest);
		if (!suffix || rest[1] != '\0')
			return false;
		shift = 10 * (unsigned)(suffix - suffixes + 1);
	}
	if (n > (UINT64_MAX >> 1) >> shift)
		return false;
	*slots = (n << shift) / sys_page_bytes();
	if (*slots >= CORE_SLOT_NONE)
		*slots = CORE_SLOT_NONE - 1;
	return *slots > 0;
}

/* A name or a number. */
static bool parse_group(const char *text, int64_t *gid)
{
	const struct group *g = getgrnam(text);
	uint64_t n;

	if (g) {
		*gid = g->gr_gid;
		return true;
	}
	if (!parse_plain(text, UINT32_MAX - 1, &n))
		return false;
	*gid = (int64_t)n;
	return true;
}

static bool parse_lend(const char *text, int64_t *gid)
{
	if (strcmp(text, "yes") == 0)
		*gid = BROKER_LEND_ALL;
	else if (strcmp(text, "no") == 0)
		*gid = BROKER_LEND_NONE;
	else
		return parse_group(text, gid);
	return true;
}

/* In the order of enum broker_setting, but for those of scanning. */
static const struct {
	const char *name;
	const char *allowed;
} settings[BROKER_SETTING_SCAN] = {
	[BROKER_SETTING_SOCKET] = { "socket", "a path of at most 107 bytes" },
	[BROKER_SETTING_SOCKET_GROUP] = { "socket_group", "a group" },
	[BROKER_SETTING_LEND] = { "lend_userfaultfd", "yes, no or a group" },
	[BROKER_SETTING_STORE_MAX] = { "store_max", "bytes, as 4096M or 4G" },
	[BROKER_SETTING_STORE_TOTAL] = { "store_total", "bytes, as 4096M or 4G" },
	[BROKER_SETTING_CLIENT_MAX] = { "client_max", "bytes, as 4096M or 4G" },
	[BROKER_SETTING_SESSIONS_MAX] = { "sessions_max", "1 to 1000000" },
	[BROKER_SETTING_IDLE_EXIT] = { "idle_exit", "seconds" },
	[BROKER_SETTING_TRIM_INTERVAL] = { "trim_interval", "seconds, at least 1" },
	[BROKER_SETTING_LINGER] = { "linger", "seconds" },
	[BROKER_SETTING_REQUEST_TIMEOUT] = { "request_timeout", "seconds, at least 1" },
};

const char *broker_setting_name(enum broker_setting s)
{
	if (s >= BROKER_SETTING_SCAN)
		return core_scan_setting_name((enum core_scan_setting)(s - BROKER_SETTING_SCAN));
	return settings[s].name;
}

const char *broker_setting_allowed(enum broker_setting s)
{
	if (s >= BROKER_SETTING_SCAN)
		return core_scan_setting_allowed((enum core_scan_setting)(s - BROKER_SETTING_SCAN));
	return settings[s].allowed;
}

static bool set_scan(struct core_scan_config *c, enum core_scan_setting s, const char *value)
{
	if (!core_scan_setting_set(c, s, value))
		return false;
	c->flags &= CORE_SCAN_OFF; /* ON is for programs to say */
	return true;
}

bool broker_setting_set(struct broker_config *c, enum broker_setting s, const char *value)
{
	uint64_t n;

	switch (s) {
	case BROKER_SETTING_SOCKET:
		if (strlen(value) == 0 || strlen(value) >= sizeof(c->socket_path))
			return false;
		strcpy(c->socket_path, value);
		return true;
	case BROKER_SETTING_SESSIONS_MAX:
		if (!parse_plain(value, 1000000, &n) || n == 0)
			return false;
		c->sessions_per_uid_max = (uint32_t)n;
		return true;
	case BROKER_SETTING_STORE_MAX:
		return parse_slots(value, &c->store_max_slots);
	case BROKER_SETTING_STORE_TOTAL:
		return parse_slots(value, &c->store_total_slots);
	case BROKER_SETTING_CLIENT_MAX:
		return parse_slots(value, &c->client_max_slots);
	case BROKER_SETTING_LEND:
		return parse_lend(value, &c->lend_gid);
	case BROKER_SETTING_SOCKET_GROUP:
		return parse_group(value, &c->socket_gid);
	case BROKER_SETTING_IDLE_EXIT:
		return parse_seconds(value, &c->idle_exit_usec);
	case BROKER_SETTING_TRIM_INTERVAL:
		return parse_seconds(value, &c->trim_interval_usec) && c->trim_interval_usec > 0;
	case BROKER_SETTING_LINGER:
		return parse_seconds(value, &c->linger_usec);
	case BROKER_SETTING_REQUEST_TIMEOUT:
		return parse_seconds(value, &c->request_timeout_usec) &&
		       c->request_timeout_usec > 0;
	default:
		return set_scan(&c->scan, (enum core_scan_setting)(s - BROKER_SETTING_SCAN), value);
	}
}

/* The file ------------------------------------------------------------------- */

struct place {
	const char *path;
	unsigned line;
	bool of_machine; /* BROKER_CONFIG_PATH: for the brokers of all users */
};

static void complain(const struct place *at, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void complain(const struct place *at, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "samepaged: %s:%u: ", at->path, at->line);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static void complain_of_name(const struct place *at, const char *name)
{
	fprintf(stderr, "samepaged: %s:%u: '%s' is no setting; there are", at->path, at->line,
		name);
	for (unsigned s = 0; s < BROKER_SETTINGS; s++)
		fprintf(stderr, "%s %s", s ? "," : "", broker_setting_name((enum broker_setting)s));
	fputc('\n', stderr);
}

/* Without the blanks at both ends. */
static char *trim(char *text)
{
	static const char blanks[] = " \t\r\n\v\f";
	size_t n;

	text += strspn(text, blanks);
	n = strlen(text);
	while (n > 0 && strchr(blanks, text[n - 1]))
		n--;
	text[n] = '\0';
	return text;
}

static bool take_setting(struct broker_config *c, const struct place *at, const char *name,
			 const char *value)
{
	unsigned s = 0;

	while (s < BROKER_SETTINGS && strcmp(name, broker_setting_name((enum broker_setting)s)) != 0)
		s++;
	if (s == BROKER_SETTINGS) {
		complain_of_name(at, name);
		return false;
	}
	/* Of the machine's one socket: a user's own broker has another. */
	if (at->of_machine && geteuid() != 0 &&
	    (s == BROKER_SETTING_SOCKET || s == BROKER_SETTING_SOCKET_GROUP))
		return true;
	if (broker_setting_set(c, (enum broker_setting)s, value))
		return true;
	complain(at, "%s cannot be '%s'; allowed: %s", name, value,
		 broker_setting_allowed((enum broker_setting)s));
	return false;
}

static bool take_line(struct broker_config *c, const struct place *at, char *line, size_t bytes)
{
	char *value, *name;

	if (strlen(line) != bytes) {
		complain(at, "this is no text");
		return false;
	}
	line[strcspn(line, "#")] = '\0';
	name = trim(line);
	if (*name == '\0')
		return true;
	value = strchr(name, '=');
	if (!value) {
		complain(at, "'%s' is not of the form: name = value", name);
		return false;
	}
	*value++ = '\0';
	return take_setting(c, at, trim(name), trim(value));
}

bool broker_settings_read(struct broker_config *c, const char *path)
{
	struct place at = { .path = path ? path : BROKER_CONFIG_PATH, .of_machine = !path };
	FILE *f = fopen(at.path, "re");
	char *line = NULL;
	size_t room = 0;
	bool ok = true;
	ssize_t n;

	if (!f && errno == ENOENT && !path)
		return true;
	while (f && ok && (n = getline(&line, &room, f)) >= 0) {
		at.line++;
		ok = take_line(c, &at, line, (size_t)n);
	}
	if (!f || (ok && ferror(f))) {
		fprintf(stderr, "samepaged: %s: %s\n", at.path, strerror(errno));
		ok = false;
	}
	free(line);
	if (f)
		fclose(f);
	return ok;
}
