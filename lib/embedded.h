/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A link to a store inside this process: no broker, no socket. */
#ifndef SAMEPAGE_LIB_EMBEDDED_H
#define SAMEPAGE_LIB_EMBEDDED_H

#include <stdint.h>

struct proc_link;

/* store_bytes 0: a quarter of the memory. -ENOMEM, -EINVAL. */
int lib_embedded_new(struct proc_link **out, uint64_t store_bytes);

/* As a scope of the kernel's merging: one for all of this process, known to nobody else. */
uint64_t lib_embedded_scope(void);

#endif
