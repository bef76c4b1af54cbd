/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * samepaged: how the broker gets started and told of.
 *
 *   by hand           stays in the foreground, logs to stderr
 *   service manager   may inherit the listening socket, tells READY and STOPPING
 *   on demand         started by a client's command with fork and exec: leaves the
 *                     session and the directory of who happened to start it,
 *                     closes what it inherited, writes a byte to --ready-fd
 *
 * A broker is nobody's client: started from a program that runs preloaded, it
 * starts itself again without the library.
 *
 * It stays dumpable: without that, a user's own broker could still reopen its
 * files, but its user could not see its memory and fds in /proc, which tests and
 * benchmarks measure. What is published is not writable here either way (I1).
 *
 * Two commands may start a broker on demand at the same moment. One of the two
 * gets the socket; the other says that a broker is ready, which is true, and exits.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef HAVE_LIBSYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "broker/broker.h"
#include "sys/fault.h"

#define PRELOAD "libsamepage-preload"
#define AGAIN "SAMEPAGED_STARTED_AGAIN" /* so that this happens once */

static void tell_manager(const char *state)
{
#ifdef HAVE_LIBSYSTEMD
	sd_notify(0, state);
#else
	(void)state;
#endif
}

/* The socket that the service manager listens on for us; -1: none; -EINVAL: a wrong one. */
static int inherited_listener(void)
{
#ifdef HAVE_LIBSYSTEMD
	int n = sd_listen_fds(1);
	int fd = SD_LISTEN_FDS_START;

	if (n <= 0)
		return -1;
	if (n > 1 || sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
		return -EINVAL;
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return -EINVAL;
	return fd;
#else
	return -1;
#endif
}

/* Each session is a descriptor, each segment another: half for each. */
static void raise_limits(struct broker_config *config)
{
	struct rlimit limit;

	config->sessions_max = 256;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur / 2 > config->sessions_max)
		config->sessions_max = limit.rlim_cur / 2 > UINT32_MAX / 2 ?
					       UINT32_MAX / 2 :
					       (uint32_t)(limit.rlim_cur / 2);
}

static void close_inherited(int keep)
{
	if (keep < 3) {
		close_range(3, ~0u, 0);
		return;
	}
	if (keep > 3)
		close_range(3, (unsigned)keep - 1, 0);
	close_range((unsigned)keep + 1, ~0u, 0);
}

/* Nothing of who started us is held on to, but stderr. */
static void leave_home(int ready_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	setsid(); /* fails for a group leader, who is in a group of its own anyway */
	if (chdir("/") < 0)
		broker_log(BROKER_LOG_LIFE, "chdir: %s", strerror(errno));
	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
	}
	close_inherited(ready_fd);
}

static void tell_ready(int *fd)
{
	if (*fd < 0)
		return;
	if (write(*fd, "R", 1) != 1)
		broker_log(BROKER_LOG_LIFE, "nobody waits for us to be ready");
	close(*fd);
	*fd = -1;
}

static int serve(struct broker_config *config)
{
	struct broker *b;
	int r = broker_new(&b, config);

	if (r == -EADDRINUSE && config->on_demand) {
		tell_ready(&config->ready_fd);
		return EXIT_SUCCESS;
	}
	if (r < 0) {
		broker_log(BROKER_LOG_LIFE, "cannot listen on %s: %s", config->socket_path,
			   strerror(-r));
		return EXIT_FAILURE;
	}
	tell_ready(&config->ready_fd);
	tell_manager("READY=1");
	broker_log(BROKER_LOG_LIFE, "ready on %s", config->socket_path);
	r = broker_run(b);
	tell_manager("STOPPING=1");
	broker_free(b);
	if (r < 0)
		broker_log(BROKER_LOG_LIFE, "stopped: %s", strerror(-r));
	r = r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
	if (!broker_undertaker_end())
		_exit(r); /* whatever they wait for, the end does not */
	return r;
}

/* Drop our library from the list in LD_PRELOAD. True: it was there. */
static bool strip_preload(char *list)
{
	char *out = list, *in = list;
	bool found = false;

	while (*in) {
		size_t blank = strspn(in, " :");
		size_t name = strcspn(in + blank, " :");
		char *end = in + blank + name;
		char *ours = memmem(in + blank, name, PRELOAD, strlen(PRELOAD));

		found |= ours != NULL;
		if (!ours) {
			memmove(out, in, blank + name);
			out += blank + name;
		}
		in = end;
	}
	*out = '\0';
	return found;
}

static void leave_preload(char **argv)
{
	const char *value = getenv("LD_PRELOAD");
	char *list = value ? strdup(value) : NULL;

	if (list && strip_preload(list) && !getenv(AGAIN)) {
		setenv("LD_PRELOAD", list, 1);
		setenv(AGAIN, "1", 1);
		execv("/proc/self/exe", argv);
		fprintf(stderr, "samepaged: runs preloaded: %s\n", strerror(errno));
	}
	unsetenv(AGAIN);
	free(list);
}

int main(int argc, char **argv)
{
	struct broker_config config;
	int r;

	leave_preload(argv);
	r = broker_options(&config, argc, argv);
	if (r != 0)
		return r > 0 ? EXIT_SUCCESS : 2;
	if (sys_fault_from_env() < 0) {
		fprintf(stderr, "samepaged: SAMEPAGE_FAULT means nothing\n");
		return 2;
	}
	if (config.on_demand)
		leave_home(config.ready_fd);
	else
		config.listen_fd = inherited_listener();
	if (config.listen_fd < -1) {
		fprintf(stderr, "samepaged: the inherited socket is not a seqpacket listener\n");
		return 2;
	}
	raise_limits(&config);
	sys_give_way();
	return serve(&config);
}
