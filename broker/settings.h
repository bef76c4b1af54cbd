/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names and values of samepaged's settings: settings.c; the command line: options.c. */
#ifndef SAMEPAGE_BROKER_SETTINGS_H
#define SAMEPAGE_BROKER_SETTINGS_H

#include "broker/broker.h"
#include "core/scan_config.h"

#define BROKER_CONFIG_PATH "/etc/samepaged.conf"

enum broker_setting {
	BROKER_SETTING_SOCKET,
	BROKER_SETTING_SOCKET_GROUP,
	BROKER_SETTING_LEND,
	BROKER_SETTING_STORE_MAX,
	BROKER_SETTING_STORE_TOTAL,
	BROKER_SETTING_CLIENT_MAX,
	BROKER_SETTING_SESSIONS_MAX,
	BROKER_SETTING_IDLE_EXIT,
	BROKER_SETTING_TRIM_INTERVAL,
	BROKER_SETTING_LINGER,
	BROKER_SETTING_REQUEST_TIMEOUT,
	BROKER_SETTING_SCAN, /* and as many more as there are of enum core_scan_setting */
	BROKER_SETTINGS = BROKER_SETTING_SCAN + CORE_SCAN_SETTINGS,
};

const char *broker_setting_name(enum broker_setting s);    /* with underscores */
const char *broker_setting_allowed(enum broker_setting s); /* in words */
/* False: not allowed. */
bool broker_setting_set(struct broker_config *c, enum broker_setting s, const char *value);
/* path NULL: BROKER_CONFIG_PATH, if there is such a file. False: it was said why. */
bool broker_settings_read(struct broker_config *c, const char *path);

#endif
