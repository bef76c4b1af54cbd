/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The log: lines on stderr, which a service manager keeps.
 *
 * A hostile peer must not fill a disk (I4): of each kind a handful of lines per
 * interval is written, the rest counted and told when the next interval begins.
 */
#include <stdarg.h>
#include <stdio.h>

#include "broker/broker.h"

#define LOG_INTERVAL_USEC (10 * BROKER_SECOND_USEC)
#define LOG_LINES_MAX 10u

static struct {
	uint64_t since;
	uint32_t lines;
	uint32_t kept_back;
} kinds[BROKER_LOG_KINDS];

void broker_log(enum broker_log_kind kind, const char *format, ...)
{
	uint64_t now = sys_now_usec();
	char line[300];
	va_list args;

	if (kinds[kind].since == 0 || now - kinds[kind].since >= LOG_INTERVAL_USEC) {
		if (kinds[kind].kept_back > 0)
			fprintf(stderr, "samepaged: (%u more like the one before)\n",
				kinds[kind].kept_back);
		kinds[kind].since = now;
		kinds[kind].lines = kinds[kind].kept_back = 0;
	}
	if (kinds[kind].lines++ >= LOG_LINES_MAX) {
		kinds[kind].kept_back++;
		return;
	}
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	fprintf(stderr, "samepaged: %s\n", line);
}
