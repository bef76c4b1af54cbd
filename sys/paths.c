/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See paths.h for the search order and for whom a client trusts. */
#include "sys/paths.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/sys.h"

#define SYSTEM_SOCKET "/run/samepage/broker.sock"

static bool is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int user_path(char path[SYS_PATH_BYTES])
{
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	char run_user[40];
	int n;

	snprintf(run_user, sizeof(run_user), "/run/user/%u", (unsigned)geteuid());
	if (runtime && runtime[0] == '/')
		n = snprintf(path, SYS_PATH_BYTES, "%s/samepage/broker.sock", runtime);
	else if (is_dir(run_user))
		n = snprintf(path, SYS_PATH_BYTES, "%s/samepage/broker.sock", run_user);
	else
		n = snprintf(path, SYS_PATH_BYTES, "/tmp/samepage-%u/broker.sock",
			     (unsigned)geteuid());
	return n < SYS_PATH_BYTES ? 0 : -ENAMETOOLONG;
}

unsigned sys_broker_paths(char paths[SYS_BROKER_PATHS_MAX][SYS_PATH_BYTES])
{
	const char *only = secure_getenv("SAMEPAGE_SOCKET");
	unsigned n = 0;

	if (only && only[0]) {
		if (strlen(only) >= SYS_PATH_BYTES)
			return 0;
		strcpy(paths[0], only);
		return 1;
	}
	strcpy(paths[n++], SYSTEM_SOCKET);
	if (geteuid() != 0 && user_path(paths[n]) == 0)
		n++;
	return n;
}

int sys_broker_own_path(char path[SYS_PATH_BYTES])
{
	const char *only = secure_getenv("SAMEPAGE_SOCKET");

	if (only && only[0]) {
		if (strlen(only) >= SYS_PATH_BYTES)
			return -ENAMETOOLONG;
		strcpy(path, only);
		return 0;
	}
	if (geteuid() == 0) {
		strcpy(path, SYSTEM_SOCKET);
		return 0;
	}
	return user_path(path);
}

int sys_broker_make_dir(const char *path)
{
	char dir[SYS_PATH_BYTES];
	struct stat st;
	char *slash;

	if (strlen(path) >= sizeof(dir))
		return -ENAMETOOLONG;
	strcpy(dir, path);
	slash = strrchr(dir, '/');
	if (!slash || slash == dir)
		return 0;
	*slash = '\0';
	if (mkdir(dir, geteuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST)
		return -errno;
	/* In a folder that somebody else may write, that somebody could put a
	 * socket of their own where ours is expected. */
	if (lstat(dir, &st) < 0)
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return -ENOTDIR;
	if ((st.st_uid != geteuid() && st.st_uid != 0) ||
	    ((st.st_mode & 022) && !(st.st_mode & S_ISVTX)))
		return -EPERM;
	return 0;
}

bool sys_broker_trusted(int fd)
{
	struct sys_peer peer;

	if (sys->peer(fd, &peer) < 0)
		return false;
	return peer.uid == 0 || peer.uid == geteuid();
}

int sys_broker_connect(const char *only_path, char used[SYS_PATH_BYTES])
{
	char paths[SYS_BROKER_PATHS_MAX][SYS_PATH_BYTES];
	unsigned n = 1;
	int err = -ENOENT;

	if (only_path) {
		if (strlen(only_path) >= SYS_PATH_BYTES)
			return -ENAMETOOLONG;
		strcpy(paths[0], only_path);
	} else {
		n = sys_broker_paths(paths);
	}
	for (unsigned i = 0; i < n; i++) {
		int fd = sys->socket_connect(paths[i]);

		if (fd < 0) {
			if (err == -ENOENT)
				err = fd;
			continue;
		}
		if (!sys_broker_trusted(fd)) {
			sys->close(fd);
			err = -EPERM;
			continue;
		}
		if (used)
			strcpy(used, paths[i]);
		return fd;
	}
	return err;
}
