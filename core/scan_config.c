/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * No pointers in the tables: they would have to be relocated in every process that has
 * the library.
 */
#include "core/scan_config.h"

#include <string.h>

static const struct {
	char name[20];
	char variable[24];
	char allowed[32];
} settings[CORE_SCAN_SETTINGS] = {
	[CORE_SCAN_SETTING_SCAN] = { "scan", "SAMEPAGE_SCAN", "on, off or auto" },
	[CORE_SCAN_SETTING_CPU] = { "scan_cpu_percent", "SAMEPAGE_SCAN_CPU", "0.1 to 100" },
	[CORE_SCAN_SETTING_MAPS] = { "scan_map_percent", "SAMEPAGE_SCAN_MAPS", "1 to 90" },
	[CORE_SCAN_SETTING_FIRST] = { "scan_first_msec", "SAMEPAGE_SCAN_FIRST", "10 to 60000" },
	[CORE_SCAN_SETTING_MOST] = { "scan_most_msec", "SAMEPAGE_SCAN_MOST", "10 to 3600000" },
	[CORE_SCAN_SETTING_TRACKER] = { "scan_tracker", "SAMEPAGE_SCAN_TRACKER",
					"auto, wp-async or checksum" },
	[CORE_SCAN_SETTING_HUGE] = { "scan_huge_percent", "SAMEPAGE_SCAN_HUGE", "1 to 101" },
};

const char *core_scan_setting_name(enum core_scan_setting setting)
{
	return settings[setting].name;
}

const char *core_scan_setting_variable(enum core_scan_setting setting)
{
	return settings[setting].variable;
}

const char *core_scan_setting_allowed(enum core_scan_setting setting)
{
	return settings[setting].allowed;
}

/* Digits, and up to `decimals` behind a point; the value is in units of the last one. */
static bool number(const char *p, unsigned decimals, uint32_t min, uint32_t max, uint32_t *value)
{
	uint64_t n = 0;
	unsigned digits = 0, behind = 0;
	bool point = false;

	for (; *p; p++) {
		if (*p == '.' && decimals && !point) {
			point = true;
			continue;
		}
		if (*p < '0' || *p > '9' || ++digits > 10 || (point && ++behind > decimals))
			return false;
		n = n * 10 + (uint64_t)(*p - '0');
	}
	if (digits == 0 || (point && behind == 0))
		return false;
	for (; behind < decimals; behind++)
		n *= 10;
	if (n < min || n > max)
		return false;
	*value = (uint32_t)n;
	return true;
}

static bool one_of(const char *text, const char *words, uint32_t *which)
{
	size_t bytes = strlen(text);

	for (*which = 0; *words; ++*which) {
		size_t word = strcspn(words, " ");

		if (word == bytes && memcmp(words, text, bytes) == 0)
			return true;
		words += word + (words[word] == ' ');
	}
	return false;
}

static bool set_scan(struct core_scan_config *c, const char *text)
{
	uint32_t which;

	if (!one_of(text, "auto on off", &which))
		return false;
	c->flags &= ~(CORE_SCAN_ON | CORE_SCAN_OFF);
	c->flags |= which == 1 ? CORE_SCAN_ON : which == 2 ? CORE_SCAN_OFF : 0;
	return true;
}

static bool set_tracker(struct core_scan_config *c, const char *text)
{
	uint32_t which;

	if (!one_of(text, "auto wp-async checksum", &which))
		return false;
	c->tracker = which;
	return true;
}

bool core_scan_setting_set(struct core_scan_config *c, enum core_scan_setting setting,
			   const char *text)
{
	switch (setting) {
	case CORE_SCAN_SETTING_SCAN:
		return set_scan(c, text);
	case CORE_SCAN_SETTING_CPU:
		return number(text, 1, 1, 1000, &c->cpu_permille);
	case CORE_SCAN_SETTING_MAPS:
		return number(text, 0, 1, 90, &c->map_percent);
	case CORE_SCAN_SETTING_FIRST:
		return number(text, 0, 10, 60000, &c->first_msec);
	case CORE_SCAN_SETTING_MOST:
		return number(text, 0, 10, 3600000, &c->most_msec);
	case CORE_SCAN_SETTING_TRACKER:
		return set_tracker(c, text);
	case CORE_SCAN_SETTING_HUGE:
		return number(text, 0, 1, 101, &c->huge_percent);
	default:
		return false;
	}
}

bool core_scan_config_fits(const struct core_scan_config *c)
{
	return (c->first_msec ? c->first_msec : CORE_SCAN_FIRST_MSEC) <=
	       (c->most_msec ? c->most_msec : CORE_SCAN_MOST_MSEC);
}

void core_scan_config_override(struct core_scan_config *c, const struct core_scan_config *from)
{
	if (from->flags & (CORE_SCAN_ON | CORE_SCAN_OFF))
		c->flags = (c->flags & ~(CORE_SCAN_ON | CORE_SCAN_OFF)) | from->flags;
	if (from->tracker)
		c->tracker = from->tracker;
	if (from->cpu_permille)
		c->cpu_permille = from->cpu_permille;
	if (from->map_percent)
		c->map_percent = from->map_percent;
	if (from->first_msec)
		c->first_msec = from->first_msec;
	if (from->most_msec)
		c->most_msec = from->most_msec;
	if (from->huge_percent)
		c->huge_percent = from->huge_percent;
}
