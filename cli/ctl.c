/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The conversation of a control program with the broker:
 *
 *   HELLO (control) -> WELCOME | ERROR
 *   CTL             -> CTL_ITEM per process, as they finish; then CTL_END | ERROR
 *
 * Every packet goes through core_wire_check() first. Nothing waits for ever: a
 * broker is given CONNECT_SEC to have room for us, HELLO_MSEC to say hello, and
 * the caller's timeout from each packet of an answer to the next, which has to be
 * more than a pass of well-behaved clients takes (the broker gives those 120 s a
 * step). Ctrl-C ends the wait (and not the pass).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/cli.h"
#include "core/domain.h"
#include "sys/sys.h"

#define CONNECT_SEC 5
#define HELLO_MSEC 5000
#define PROGRESS_MSEC 1000
#define PROGRESS_USEC UINT64_C(1000000)

union packet {
	struct core_wire_header h;
	struct core_wire_welcome welcome;
	struct core_wire_error error;
	struct core_wire_ctl_item item;
	struct core_wire_ctl_end end;
	uint8_t bytes[CORE_WIRE_BYTES_MAX];
};

const char *cli_domain(void)
{
	const char *name = getenv("SAMEPAGE_DOMAIN");

	return name && core_domain_name_valid(name) ? name : "default";
}

/* -ETIMEDOUT: nothing came. -ECONNRESET: the broker hung up. */
static int receive(struct cli_broker *b, union packet *p, int timeout_msec)
{
	struct pollfd pfd = { .fd = b->fd, .events = POLLIN };
	int fds[CORE_WIRE_FDS_MAX];
	unsigned nfds = CORE_WIRE_FDS_MAX;
	ssize_t n;
	int err;

	err = sys->poll(&pfd, 1, timeout_msec);
	if (err <= 0)
		return err ? err : -ETIMEDOUT;
	n = sys->recv_msg(b->fd, p, sizeof(*p), fds, &nfds, 0);
	if (n == -ECONNRESET) { /* closed with our words unread; its own may lie here */
		nfds = CORE_WIRE_FDS_MAX;
		n = sys->recv_msg(b->fd, p, sizeof(*p), fds, &nfds, MSG_DONTWAIT);
		if (n == -EAGAIN)
			n = 0;
	}
	if (n <= 0)
		return n ? (int)n : -ECONNRESET;
	for (unsigned i = 0; i < nfds; i++)
		sys->close(fds[i]); /* a control program has no use for any */
	return core_wire_check(p, (size_t)n, 0);
}

static int refused(struct cli_broker *b, const struct core_wire_error *e)
{
	memcpy(b->text, e->text, sizeof(b->text));
	b->text[sizeof(b->text) - 1] = '\0';
	return e->error < 0 ? e->error : -EPROTO;
}

static int hello(struct cli_broker *b, uint32_t role, const char *domain)
{
	struct core_wire_hello hi = {
		.role = role,
		.page_bytes = (uint32_t)sys_page_bytes(),
		.flags = role == CORE_WIRE_ROLE_CLIENT ? CORE_WIRE_HELLO_WANT_UFFD : 0,
		.comm = "samepage",
	};
	union packet p;
	ssize_t n;
	int err;

	if (strlen(domain) >= sizeof(hi.domain))
		return -EINVAL;
	strcpy(hi.domain, domain);
	core_wire_header_init(&hi.h, CORE_WIRE_HELLO, sizeof(hi), ++b->seq);
	n = sys->send_msg(b->fd, &hi, sizeof(hi), NULL, 0, 0);
	if (n < 0 && n != -EPIPE && n != -ECONNRESET) /* then it left a word why, perhaps */
		return n == -EAGAIN ? -ETIMEDOUT : (int)n;
	err = receive(b, &p, HELLO_MSEC);
	if (err < 0)
		return err;
	if (p.h.type == CORE_WIRE_ERROR)
		return refused(b, &p.error);
	if (p.h.type != CORE_WIRE_WELCOME)
		return -EPROTO;
	b->welcome = p.welcome;
	return 0;
}

/*
 * Connecting to a broker whose backlog is full blocks, as does sending to one that
 * does not read: both only for the socket's send timeout.
 */
static int connect_bounded(const char *path)
{
	const struct timeval limit = { .tv_sec = CONNECT_SEC };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, err = 0;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
		err = -errno;
	while (err == 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		if (errno != EINTR) /* stopped and continued, say */
			err = errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (err < 0) {
		close(fd);
		return err;
	}
	return fd;
}

/* The search and the check of the peer are sys_broker_connect()'s. */
static int connect_broker(const char *path, char used[SYS_PATH_BYTES])
{
	const struct sys_ops *before = sys;
	struct sys_ops bounded = *sys;
	int fd;

	bounded.socket_connect = connect_bounded;
	sys = &bounded;
	fd = sys_broker_connect(path, used);
	sys = before;
	return fd;
}

int cli_broker_open(struct cli_broker *b, const char *path, uint32_t role, const char *domain)
{
	int err;

	memset(b, 0, sizeof(*b));
	/* For the message, should there be none anywhere. */
	if (path)
		snprintf(b->path, sizeof(b->path), "%s", path);
	else if (sys_broker_own_path(b->path) < 0)
		snprintf(b->path, sizeof(b->path), "$SAMEPAGE_SOCKET");
	b->fd = connect_broker(path, b->path);
	if (b->fd < 0)
		return b->fd;
	err = hello(b, role, domain);
	if (err < 0)
		cli_broker_close(b);
	return err;
}

void cli_broker_close(struct cli_broker *b)
{
	if (b->fd >= 0)
		sys->close(b->fd);
	b->fd = -1;
}

void cli_broker_reason(const struct cli_broker *b, int err, char *buf, size_t bytes)
{
	char clean[CORE_WIRE_TEXT_BYTES];

	if (b->text[0])
		snprintf(buf, bytes, "the broker at %s refuses: %s", b->path,
			 cli_clean(b->text, clean, sizeof(clean)));
	else if (err == -ENOENT || err == -ECONNREFUSED)
		snprintf(buf, bytes,
			 "no broker listens on %s: start samepaged, or run the program under "
			 "`samepage run`", b->path);
	else if (err == -EPERM)
		snprintf(buf, bytes,
			 "what listens on %s belongs to neither root nor you, so it is not trusted: "
			 "remove that socket, or set SAMEPAGE_SOCKET", b->path);
	else if (err == -EACCES)
		snprintf(buf, bytes, "no permission to connect to the broker at %s: "
				     "ask whoever runs it, or set SAMEPAGE_SOCKET", b->path);
	else if (err == -EPROTONOSUPPORT)
		snprintf(buf, bytes, "the broker at %s speaks another version of the protocol than "
			 "this program (%s): restart samepaged, if it is the older one", b->path,
			 SAMEPAGE_VERSION);
	else if (err == -EPROTO)
		snprintf(buf, bytes, "what listens on %s is no broker of this version (%s): "
				     "restart samepaged", b->path, SAMEPAGE_VERSION);
	else if (err == -ETIMEDOUT && b->silent_sec)
		snprintf(buf, bytes,
			 "the broker at %s said nothing for %u s: if `samepage check` finds it alive, "
			 "be more patient (--timeout), else restart samepaged", b->path,
			 b->silent_sec);
	else if (err == -ETIMEDOUT)
		snprintf(buf, bytes, "the broker at %s does not answer: restart samepaged",
			 b->path);
	else if (err == -ECONNRESET || err == -EPIPE)
		snprintf(buf, bytes, "the broker at %s hung up: see its log", b->path);
	else
		snprintf(buf, bytes, "broker at %s: %s", b->path, strerror(-err));
}

void cli_broker_explain(const struct cli_broker *b, int err)
{
	char line[512];

	cli_broker_reason(b, err, line, sizeof(line));
	cli_error("%s", line);
}

/* Progress ---------------------------------------------------------------- */

struct progress {
	const char *doing;
	uint64_t since_usec;
	uint32_t of; /* 0: not known */
	bool shown;
	bool tty;
};

static void progress_show(struct progress *p, unsigned done)
{
	uint64_t usec = sys_now_usec() - p->since_usec;

	if (!p->tty || usec < PROGRESS_USEC)
		return;
	if (p->of)
		fprintf(stderr, "\r\033[K%s: %u of %u processes, %u s", p->doing, done, p->of,
			(unsigned)(usec / 1000000));
	else
		fprintf(stderr, "\r\033[K%s: %u processes done, %u s", p->doing, done,
			(unsigned)(usec / 1000000));
	p->shown = true;
}

static void progress_end(struct progress *p)
{
	if (p->shown)
		fputs("\r\033[K", stderr);
}

/* Control ----------------------------------------------------------------- */

/* The broker's answer for a named process that is no client (of ours). */
static bool is_stranger(const struct core_wire_ctl_item *item)
{
	return item->report.error == -ESRCH && item->uid == UINT32_MAX;
}

static int add_item(struct cli_items *items, const struct core_wire_ctl_item *item)
{
	if (is_stranger(item))
		return 0; /* cli_report_strangers() finds out who is missing */
	if (items->count % 64 == 0) {
		struct core_wire_ctl_item *grown =
			reallocarray(items->item, items->count + 64, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		items->item = grown;
	}
	items->item[items->count] = *item;
	items->item[items->count].comm[CORE_WIRE_NAME_BYTES - 1] = '\0';
	items->item[items->count].domain[CORE_WIRE_NAME_BYTES - 1] = '\0';
	items->count++;
	return 0;
}

/* 1: that was the end. 0: more to come. */
static int take_answer(struct cli_broker *b, const union packet *p, struct cli_items *items)
{
	switch (p->h.type) {
	case CORE_WIRE_CTL_ITEM:
		return add_item(items, &p->item);
	case CORE_WIRE_CTL_END:
		items->end = p->end;
		return 1;
	case CORE_WIRE_ERROR:
		return refused(b, &p->error);
	default:
		return -EPROTO;
	}
}

static int send_ctl(struct cli_broker *b, uint32_t op, uint32_t flags, const int32_t *pid,
		    uint32_t count)
{
	struct core_wire_ctl *ctl = calloc(1, sizeof(*ctl));
	size_t bytes = core_wire_bytes(CORE_WIRE_CTL, count);
	ssize_t n;

	if (!ctl)
		return -ENOMEM;
	core_wire_header_init(&ctl->h, CORE_WIRE_CTL, (uint32_t)bytes, ++b->seq);
	ctl->op = op;
	ctl->flags = flags;
	ctl->count = count;
	if (count)
		memcpy(ctl->pid, pid, count * sizeof(*pid));
	n = sys->send_msg(b->fd, ctl, bytes, NULL, 0, 0);
	free(ctl);
	if (n == -EAGAIN)
		return -ETIMEDOUT;
	return n < 0 ? (int)n : 0;
}

int cli_ctl_begin(struct cli_broker *b, uint32_t op, uint32_t flags, const int32_t *pid,
		  uint32_t count, struct cli_items *items)
{
	memset(items, 0, sizeof(*items));
	return count > CORE_WIRE_PIDS_MAX ? -E2BIG : send_ctl(b, op, flags, pid, count);
}

int cli_ctl_step(struct cli_broker *b, struct cli_items *items, int timeout_msec)
{
	union packet *p = malloc(sizeof(*p));
	int err;

	if (!p)
		return -ENOMEM;
	err = receive(b, p, timeout_msec);
	if (err == 0)
		err = take_answer(b, p, items);
	free(p);
	return err;
}

int cli_ctl(struct cli_broker *b, uint32_t op, uint32_t flags, const int32_t *pid, uint32_t count,
	    const char *doing, unsigned timeout_sec, struct cli_items *items)
{
	struct progress progress = { .doing = doing, .since_usec = sys_now_usec(), .of = count,
				     .tty = isatty(STDERR_FILENO) };
	uint64_t heard_usec = sys_now_usec();
	int err = cli_ctl_begin(b, op, flags, pid, count, items);

	while (err == 0) {
		err = cli_ctl_step(b, items, PROGRESS_MSEC);
		if (err >= 0) {
			heard_usec = sys_now_usec();
		} else if (err == -EINTR) {
			err = 0;
		} else if (err == -ETIMEDOUT) {
			if (sys_now_usec() - heard_usec < timeout_sec * UINT64_C(1000000))
				err = 0;
			else
				b->silent_sec = timeout_sec;
		}
		if (err == 0)
			progress_show(&progress, items->count);
	}
	progress_end(&progress);
	if (err < 0)
		cli_items_free(items);
	return err < 0 ? err : 0;
}

void cli_items_free(struct cli_items *items)
{
	free(items->item);
	items->item = NULL;
	items->count = 0;
}
