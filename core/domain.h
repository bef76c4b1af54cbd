/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Domain names: [A-Za-z0-9._-], 1 to 63 bytes. */
#ifndef SAMEPAGE_CORE_DOMAIN_H
#define SAMEPAGE_CORE_DOMAIN_H

#include <stdbool.h>

#define CORE_DOMAIN_NAME_MAX 63
bool core_domain_name_valid(const char *name);

#endif
