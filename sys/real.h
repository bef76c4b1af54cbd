/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The functions behind sys_real, one per entry of SYS_OPS. Only the real*.c
 * files of this room include this; everybody else goes through `sys`.
 */
#ifndef SAMEPAGE_SYS_REAL_H
#define SAMEPAGE_SYS_REAL_H

#include "sys/sys.h"

#define SYS_REAL_DECLARE(ret, name, params, args) ret sys_real_##name params;
SYS_OPS(SYS_REAL_DECLARE)
#undef SYS_REAL_DECLARE

/* Room for "/proc/thread-self/fd/" and a descriptor number. */
#define SYS_FD_PATH_BYTES 40
void sys_fd_path(char path[SYS_FD_PATH_BYTES], int fd);

#endif
