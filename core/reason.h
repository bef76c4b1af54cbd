/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of the reasons (I9) and sums over results. */
#ifndef SAMEPAGE_CORE_REASON_H
#define SAMEPAGE_CORE_REASON_H

#include "samepage.h"

const char *core_reason_name(unsigned reason);
const char *core_reason_text(unsigned reason);
void core_result_decline(struct samepage_result *r, enum samepage_reason why, uint64_t pages);
void core_result_add(struct samepage_result *sum, const struct samepage_result *r);
uint64_t core_result_declined(const struct samepage_result *r);

#endif
