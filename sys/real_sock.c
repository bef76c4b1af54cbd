/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Seqpacket sockets, raw. The rules are those of real.c.
 *
 * socket_listen takes over the path of a broker that died: a socket file on
 * which connect(2) is refused. "Refused" is also what a socket says between
 * bind and listen, so two brokers starting at once could remove each other's;
 * bind, look, remove and listen happen under flock(2) on the directory. Who
 * cannot get that lock in a second (somebody sits on it) still binds a free
 * path, but removes nothing.
 *
 * recv_msg takes a packet whole or not at all: when the packet or its
 * descriptors did not fit, or the peer has gone, no descriptor stays open here.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "sys/raw.h"
#include "sys/real.h"

#define FDS_MAX 253 /* the kernel's SCM_MAX_FD */
#define LOCK_TRIES 100
#define LOCK_PAUSE_NSEC 10000000L
#define RESET_TRIES 4
#define LABEL_BYTES_MAX 4096

static int fill_address(struct sockaddr_un *addr, const char *path)
{
	size_t n = strnlen(path, sizeof(addr->sun_path));

	if (n == 0)
		return -EINVAL;
	if (n == sizeof(addr->sun_path))
		return -ENAMETOOLONG;
	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(addr->sun_path, path, n + 1);
	return 0;
}

static int new_socket(int flags)
{
	return (int)sys_raw(__NR_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
}

int sys_real_socket_connect(const char *path)
{
	struct sockaddr_un addr;
	int r = fill_address(&addr, path);
	int fd;

	if (r < 0)
		return r;
	fd = new_socket(0);
	if (fd < 0)
		return fd;
	/* a Unix socket is not half connected after EINTR: begin again */
	do
		r = (int)sys_raw(__NR_connect, fd, &addr, sizeof(addr));
	while (r == -EINTR);
	if (r < 0) {
		sys_real_close(fd);
		return r;
	}
	return fd;
}

/* A socket file that nobody accepts on? Anything unclear is no. */
static bool is_stale(const struct sockaddr_un *addr)
{
	struct statx st = { 0 };
	int fd;
	int r;

	r = (int)sys_raw(__NR_statx, AT_FDCWD, addr->sun_path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st);
	if (r < 0 || !S_ISSOCK(st.stx_mode))
		return false;
	fd = new_socket(SOCK_NONBLOCK);
	if (fd < 0)
		return false;
	r = (int)sys_raw(__NR_connect, fd, addr, sizeof(*addr));
	sys_real_close(fd);
	return r == -ECONNREFUSED;
}

/* The directory of path, open and locked: a descriptor; -EBUSY; or why it did not open. */
static int lock_directory(const char *path)
{
	char dir[sizeof(((struct sockaddr_un *)NULL)->sun_path)] = ".";
	const struct timespec pause = { .tv_nsec = LOCK_PAUSE_NSEC };
	size_t n = strnlen(path, sizeof(dir) - 1);
	int fd;

	while (n > 0 && path[n - 1] != '/')
		n--;
	if (n > 0) {
		memcpy(dir, path, n);
		dir[n] = '\0';
	}
	fd = sys_real_open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (sys_raw(__NR_flock, fd, LOCK_EX | LOCK_NB) == 0)
			return fd;
		sys_raw(__NR_nanosleep, &pause, NULL);
	}
	sys_real_close(fd);
	return -EBUSY;
}

static int bind_path(int fd, const struct sockaddr_un *addr, bool may_remove)
{
	int r = (int)sys_raw(__NR_bind, fd, addr, sizeof(*addr));

	if (r != -EADDRINUSE || !may_remove || !is_stale(addr))
		return r;
	r = (int)sys_raw(__NR_unlinkat, AT_FDCWD, addr->sun_path, 0);
	if (r < 0 && r != -ENOENT)
		return r;
	return (int)sys_raw(__NR_bind, fd, addr, sizeof(*addr));
}

/*
 * The mode is set on the socket first, which bind takes (less the umask) for the
 * file: at no moment is the file more open than asked for.
 */
static int bind_and_listen(int fd, const struct sockaddr_un *addr, unsigned mode, int backlog,
			   bool may_remove)
{
	int r = sys_real_fchmod(fd, mode);

	if (r < 0)
		return r;
	r = bind_path(fd, addr, may_remove);
	if (r < 0)
		return r;
	r = (int)sys_raw(__NR_fchmodat, AT_FDCWD, addr->sun_path, mode);
	if (r == 0)
		r = (int)sys_raw(__NR_listen, fd, backlog);
	if (r < 0)
		sys_raw(__NR_unlinkat, AT_FDCWD, addr->sun_path, 0);
	return r;
}

/* The listening socket is non-blocking: accept says -EAGAIN when nobody is there. */
int sys_real_socket_listen(const char *path, unsigned mode, int backlog)
{
	struct sockaddr_un addr;
	int r = fill_address(&addr, path);
	int lock;
	int fd;

	if (r < 0)
		return r;
	fd = new_socket(SOCK_NONBLOCK);
	if (fd < 0)
		return fd;
	lock = lock_directory(path);
	r = bind_and_listen(fd, &addr, mode, backlog, lock != -EBUSY);
	if (lock >= 0)
		sys_real_close(lock);
	if (r < 0) {
		sys_real_close(fd);
		return r;
	}
	return fd;
}

int sys_real_socket_accept(int fd)
{
	return (int)sys_raw(__NR_accept4, fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
}

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(FDS_MAX * sizeof(int))];
};

ssize_t sys_real_send_msg(int fd, const void *buf, size_t bytes, const int *fds, unsigned nfds,
			  int flags)
{
	union control control;
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds > FDS_MAX)
		return -EINVAL;
	if (nfds > 0) {
		size_t fd_bytes = nfds * sizeof(int);
		struct cmsghdr *cmsg = &control.align;

		memset(&control, 0, CMSG_SPACE(fd_bytes));
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(fd_bytes);
		memcpy(CMSG_DATA(cmsg), fds, fd_bytes);
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(fd_bytes);
	}
	return sys_raw(__NR_sendmsg, fd, &msg, flags | MSG_NOSIGNAL);
}

/* Copies the received descriptors out and closes those beyond room: how many came in all. */
static unsigned take_fds(struct msghdr *msg, int *fds, unsigned room, unsigned *kept)
{
	unsigned came = 0;

	*kept = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		const unsigned char *data = CMSG_DATA(c);
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
		    c->cmsg_len < CMSG_LEN(0))
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++, came++) {
			int got;

			memcpy(&got, data + i * sizeof(int), sizeof(got));
			if (*kept < room)
				fds[(*kept)++] = got;
			else
				sys_real_close(got);
		}
	}
	return came;
}

/*
 * A peer that closed with packets of ours unread makes the first receive say
 * ECONNRESET, ahead of what it had sent before; the error is told once, so asking
 * again gives that, and then the end.
 */
static long receive(int fd, struct msghdr *msg, int flags)
{
	size_t control_bytes = msg->msg_controllen;
	long r = 0;

	for (int i = 0; i < RESET_TRIES; i++) {
		msg->msg_controllen = control_bytes;
		msg->msg_flags = 0;
		r = sys_raw(__NR_recvmsg, fd, msg, flags | MSG_CMSG_CLOEXEC);
		if (r != -ECONNRESET)
			return r;
	}
	return 0;
}

ssize_t sys_real_recv_msg(int fd, void *buf, size_t room, int *fds, unsigned *nfds, int flags)
{
	union control control;
	struct iovec iov = { .iov_base = buf, .iov_len = room };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	unsigned fd_room = nfds ? *nfds : 0;
	unsigned kept = 0;
	bool cut;
	long r;

	if (fd_room > FDS_MAX)
		fd_room = FDS_MAX;
	if (nfds)
		*nfds = 0;
	if (fd_room > 0) {
		control.align = (struct cmsghdr){ 0 };
		msg.msg_control = &control;
		/* CMSG_LEN: the padding of CMSG_SPACE would be room for one more */
		msg.msg_controllen = CMSG_LEN(fd_room * sizeof(int));
	}
	r = receive(fd, &msg, flags);
	if (r < 0)
		return r;
	cut = (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
	if (msg.msg_controllen > 0 && take_fds(&msg, fds, fd_room, &kept) > kept)
		cut = true;
	if (cut || r == 0) {
		/* an empty packet is the end too: its descriptors have no reader */
		while (kept > 0)
			sys_real_close(fds[--kept]);
	}
	if (cut)
		return -EMSGSIZE;
	if (nfds)
		*nfds = kept;
	return r;
}

/* A label that does not fit: its beginning, '#', and 128 bits of hash over all of it. */
static void cut_label(char to[64], const char *label, size_t bytes)
{
	static const char hex[] = "0123456789abcdef";
	XXH128_hash_t hash;
	uint64_t words[2];
	size_t at = 30;

	if (bytes < 64) {
		memcpy(to, label, bytes);
		memset(to + bytes, 0, 64 - bytes);
		return;
	}
	hash = XXH3_128bits(label, bytes);
	words[0] = hash.high64;
	words[1] = hash.low64;
	memcpy(to, label, at);
	to[at++] = '#';
	for (int i = 0; i < 32; i++)
		to[at++] = hex[words[i / 16] >> (60 - i % 16 * 4) & 15];
	to[at] = '\0';
}

int sys_real_peer(int fd, struct sys_peer *peer)
{
	char label[LABEL_BYTES_MAX] = "";
	struct ucred cred = { 0, 0, 0 };
	int len = sizeof(cred);
	long r = sys_raw(__NR_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);

	if (r < 0)
		return (int)r;
	len = sizeof(label);
	r = sys_raw(__NR_getsockopt, fd, SOL_SOCKET, SO_PEERSEC, label, &len);
	if (r == -ENOPROTOOPT)
		len = 0; /* no security module that labels sockets */
	else if (r < 0)
		return (int)r;
	while (len > 0 && label[len - 1] == '\0')
		len--;
	*peer = (struct sys_peer){ .pid = cred.pid, .uid = cred.uid, .gid = cred.gid };
	cut_label(peer->label, label, (size_t)len);
	return 0;
}
