/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where brokers listen, in the order in which clients try:
 *
 *   $SAMEPAGE_SOCKET                        alone, if it is set
 *   /run/samepage/broker.sock               the system's broker
 *   $XDG_RUNTIME_DIR/samepage/broker.sock   the user's, else
 *   /run/user/UID/samepage/broker.sock      where that folder exists, else
 *   /tmp/samepage-UID/broker.sock           (folder must be this user's, 0700)
 *
 * A broker found there is trusted only if the kernel says that it runs as root
 * or as this user (sys_broker_trusted): pages are submitted to it.
 */
#ifndef SAMEPAGE_SYS_PATHS_H
#define SAMEPAGE_SYS_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#define SYS_PATH_BYTES 108 /* sun_path */
#define SYS_BROKER_PATHS_MAX 2

/* Fills paths, returns how many. */
unsigned sys_broker_paths(char paths[SYS_BROKER_PATHS_MAX][SYS_PATH_BYTES]);
/* Where a broker that this user starts on demand listens: the last of the above
 * for users, the system's for root. 0 or -ENAMETOOLONG. */
int sys_broker_own_path(char path[SYS_PATH_BYTES]);
/* Make the folder of a socket path, 0755 for root, 0700 otherwise; refuses one
 * that somebody else owns (-EPERM). */
int sys_broker_make_dir(const char *path);
bool sys_broker_trusted(int fd);
/* Connect to the first that answers and is trusted. fd, -ENOENT/-ECONNREFUSED, -EPERM. */
int sys_broker_connect(const char *only_path, char used[SYS_PATH_BYTES]);

#endif
