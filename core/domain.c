/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Domain names. Reads at most CORE_DOMAIN_NAME_MAX + 1 bytes, so a buffer of
 * CORE_WIRE_NAME_BYTES may be passed before it is known to be terminated. No
 * locale: ASCII only.
 */
#include "core/domain.h"

#include <stddef.h>

static bool name_char_valid(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '_' || c == '-';
}

bool core_domain_name_valid(const char *name)
{
	size_t n;

	if (!name)
		return false;
	for (n = 0; n <= CORE_DOMAIN_NAME_MAX; n++) {
		if (name[n] == '\0')
			return n > 0;
		if (!name_char_valid(name[n]))
			return false;
	}
	return false;
}
