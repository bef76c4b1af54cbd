/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The settings of background scanning as text: lines of samepaged.conf, options of
 * samepaged and `samepage run`, variables of a program's environment. One meaning for
 * all of them. man/samepaged.conf.5 is the prose.
 */
#ifndef SAMEPAGE_CORE_SCAN_CONFIG_H
#define SAMEPAGE_CORE_SCAN_CONFIG_H

#include <stdbool.h>

#include "core/scan.h"

enum core_scan_setting {
	CORE_SCAN_SETTING_SCAN,
	CORE_SCAN_SETTING_CPU,
	CORE_SCAN_SETTING_MAPS,
	CORE_SCAN_SETTING_FIRST,
	CORE_SCAN_SETTING_MOST,
	CORE_SCAN_SETTING_TRACKER,
	CORE_SCAN_SETTING_HUGE,
	CORE_SCAN_SETTINGS,
};

/* As options of samepaged and of `samepage run`: X(name, setting). */
#define CORE_SCAN_OPTIONS(X)                                                                       \
	X("scan", CORE_SCAN_SETTING_SCAN),                                                         \
	X("scan-cpu-percent", CORE_SCAN_SETTING_CPU),                                              \
	X("scan-map-percent", CORE_SCAN_SETTING_MAPS),                                             \
	X("scan-first-msec", CORE_SCAN_SETTING_FIRST),                                             \
	X("scan-most-msec", CORE_SCAN_SETTING_MOST),                                               \
	X("scan-tracker", CORE_SCAN_SETTING_TRACKER),                                              \
	X("scan-huge-percent", CORE_SCAN_SETTING_HUGE)

/* "scan_cpu_percent", "SAMEPAGE_SCAN_CPU", "0.1 to 100". */
const char *core_scan_setting_name(enum core_scan_setting setting);
const char *core_scan_setting_variable(enum core_scan_setting setting);
const char *core_scan_setting_allowed(enum core_scan_setting setting);
/* False: the text is not allowed, and nothing has changed. */
bool core_scan_setting_set(struct core_scan_config *c, enum core_scan_setting setting,
			   const char *text);
/* The shortest time is no longer than the longest, defaults for what is not set. */
bool core_scan_config_fits(const struct core_scan_config *c);
/* Settings of `from` that are not the default replace those of c. */
void core_scan_config_override(struct core_scan_config *c, const struct core_scan_config *from);

#endif
