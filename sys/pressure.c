/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How short memory is: /proc/meminfo and /proc/pressure/memory (PSI). */
#include <string.h>

#include "sys/maps.h"

/* What stands behind key, or NULL. */
static const char *behind(const char *text, const char *key)
{
	size_t length = strlen(key);

	for (; *text; text++)
		if (strncmp(text, key, length) == 0)
			return text + length;
	return NULL;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool number_behind(const char *text, const char *key, uint64_t *value)
{
	const char *at = behind(text, key);

	*value = 0;
	while (at && *at == ' ')
		at++;
	if (!at || !is_digit(*at))
		return false;
	for (unsigned digits = 0; is_digit(*at) && digits < 18; digits++)
		*value = *value * 10 + (uint64_t)(*at++ - '0');
	return true;
}

/* "some avg10=1.23 ..." in hundredths: 123 */
static uint32_t hundredths_behind(const char *text, const char *key)
{
	const char *at = behind(text, key);
	uint32_t n = 0;

	for (; at && is_digit(*at) && n < 1000; at++)
		n = n * 10 + (uint32_t)(*at - '0');
	n *= 100;
	if (at && at[0] == '.' && is_digit(at[1]) && is_digit(at[2]))
		n += (uint32_t)(at[1] - '0') * 10 + (uint32_t)(at[2] - '0');
	return n;
}

void sys_memory_state(uint32_t *available_permille, uint32_t *pressure)
{
	char text[512];
	uint64_t total = 0, available = 0;

	*available_permille = UINT32_MAX;
	*pressure = 0;
	if (sys_read_text("/proc/meminfo", text, sizeof(text)) == 0 &&
	    number_behind(text, "MemTotal:", &total) &&
	    number_behind(text, "MemAvailable:", &available) && total > 0)
		*available_permille = available >= total ? 1000 : (uint32_t)(available * 1000 / total);
	if (sys_read_text("/proc/pressure/memory", text, sizeof(text)) == 0)
		*pressure = hundredths_behind(text, "some avg10=");
}
