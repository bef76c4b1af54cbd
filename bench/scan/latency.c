/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A client of a redis-server that does not wait for its answers:
 *
 *   scan-latency SOCKET fill|check KEYS            writes, or reads, each key once
 *   scan-latency SOCKET load KEYS RATE SECONDS     prints one JSON object
 *
 * Requests are due at times drawn beforehand (Poisson, RATE a second), nine GETs to one
 * SET, over several connections. Latency is counted from when a request was *due*, so that
 * a server that stops for a while is charged with all that should have happened meanwhile.
 * Each answer's contents are checked: a key's value follows from its number. "late" is the
 * client's own part: the 99th percentile of how long after it was due a request was sent.
 * "blocks_p99_usec": of the requests that were due in each half of a second, one after the
 * other; what else happens on a machine falls into few of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../bench.h"

#define CONNECTIONS 16u
#define VALUE_BYTES 1000u
#define WAITING 4096u /* requests on their way, of one connection; a power of two */
#define DEPTH 200u    /* while filling */
#define BLOCK_NSEC 5e8

struct request {
	double due;
	uint32_t key;
	bool set;
};

static struct connection {
	int fd;
	struct request waiting[WAITING];
	unsigned head, tail;
	char in[65536];
	size_t have;
} connection[CONNECTIONS];

static double *latency, *late, *due_at, began; /* due_at: of what latency has */
static size_t answered, sent, room;
static unsigned long wrong;

static void value_of(uint32_t key, char value[VALUE_BYTES])
{
	uint64_t state = key * 0x9e3779b97f4a7c15ull;

	for (unsigned i = 0; i < VALUE_BYTES; i += 8) {
		uint64_t r = bench_random(&state);

		memcpy(value + i, &r, 8);
	}
}

static void connect_to(struct connection *c, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		bench_die("cannot connect to %s: %s", path, strerror(errno));
}

static void ask(struct connection *c, uint32_t key, bool set, double due)
{
	char out[VALUE_BYTES + 128], value[VALUE_BYTES];
	int n;

	if (c->head - c->tail == WAITING)
		bench_die("the server does not keep up");
	if (set) {
		value_of(key, value);
		n = sprintf(out, "*3\r\n$3\r\nSET\r\n$11\r\nkey%08u\r\n$%u\r\n", key, VALUE_BYTES);
		memcpy(out + n, value, VALUE_BYTES);
		memcpy(out + n + VALUE_BYTES, "\r\n", 2);
		n += (int)VALUE_BYTES + 2;
	} else {
		n = sprintf(out, "*2\r\n$3\r\nGET\r\n$11\r\nkey%08u\r\n", key);
	}
	if (!bench_write_all(c->fd, out, (size_t)n))
		bench_die("the server has gone");
	c->waiting[c->head++ % WAITING] = (struct request){ due, key, set };
}

/* The length of the answer that begins at in, 0 if it is not whole yet. */
static size_t answer(const struct request *r, const char *in, size_t have)
{
	char value[VALUE_BYTES], head[16];
	int n = sprintf(head, "$%u\r\n", VALUE_BYTES);

	if (r->set) {
		if (have < 5)
			return 0;
		wrong += memcmp(in, "+OK\r\n", 5) != 0;
		return 5;
	}
	if (have < (size_t)n + VALUE_BYTES + 2)
		return 0;
	value_of(r->key, value);
	wrong += memcmp(in, head, (size_t)n) != 0 || memcmp(in + n, value, VALUE_BYTES) != 0;
	return (size_t)n + VALUE_BYTES + 2;
}

static void receive(struct connection *c)
{
	ssize_t n = recv(c->fd, c->in + c->have, sizeof(c->in) - c->have, MSG_DONTWAIT);
	double now = bench_now();
	size_t at = 0, length;

	if (n == 0 || (n < 0 && errno != EAGAIN))
		bench_die("the server has gone");
	c->have += n > 0 ? (size_t)n : 0;
	while (c->tail != c->head) {
		struct request *r = &c->waiting[c->tail % WAITING];

		length = answer(r, c->in + at, c->have - at);
		if (!length)
			break;
		at += length;
		c->tail++;
		if (latency && answered < room) {
			due_at[answered] = r->due;
			latency[answered++] = now - r->due;
		}
	}
	memmove(c->in, c->in + at, c->have - at);
	c->have -= at;
}

static void each(uint32_t keys, bool set)
{
	struct connection *c = &connection[0];

	for (uint32_t k = 0; k < keys; k++) {
		while (c->head - c->tail >= DEPTH) {
			struct timespec t = { .tv_nsec = 100000 };

			receive(c);
			nanosleep(&t, NULL);
		}
		ask(c, k, set, 0);
	}
	while (c->tail != c->head)
		receive(c);
}

static void await(int epoll, double until)
{
	struct epoll_event event[CONNECTIONS];
	double left = until - bench_now();
	struct timespec t = { 0 };
	int n;

	if (left > 0)
		t.tv_nsec = left < 5e8 ? (long)left : 500000000;
	n = epoll_pwait2(epoll, event, CONNECTIONS, &t, NULL);
	for (int i = 0; i < n; i++)
		receive(&connection[event[i].data.u32]);
}

static void load(uint32_t keys, double rate, double seconds)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t state = 42;
	double due, end;

	for (uint32_t i = 0; i < CONNECTIONS; i++) {
		struct epoll_event e = { .events = EPOLLIN, .data.u32 = i };

		epoll_ctl(epoll, EPOLL_CTL_ADD, connection[i].fd, &e);
	}
	began = due = bench_now();
	end = due + seconds * 1e9;
	while (due < end) {
		while (bench_now() < due)
			await(epoll, due);
		if (sent < room)
			late[sent] = bench_now() - due;
		ask(&connection[sent++ % CONNECTIONS], (uint32_t)(bench_random(&state) % keys),
		    bench_random(&state) % 10 == 0, due);
		due += -log(((double)(bench_random(&state) >> 11) + 1) * 0x1p-53) / rate * 1e9;
	}
	for (end = bench_now() + 5e9; answered < sent && answered < room && bench_now() < end;)
		await(epoll, end);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double share(const double *v, size_t n, double part)
{
	return n ? v[(size_t)((double)(n - 1) * part)] / 1e3 : 0;
}

/* Before latencies are sorted all together. */
static void report_blocks(void)
{
	double *block = calloc(answered + 1, sizeof(*block));
	const char *comma = "";
	size_t in = 0, left = answered;

	printf("{\"blocks_p99_usec\": [");
	for (unsigned b = 0; block && left > 0; b++) {
		in = 0;
		for (size_t i = 0; i < answered; i++)
			if ((unsigned)((due_at[i] - began) / BLOCK_NSEC) == b)
				block[in++] = latency[i];
		left -= in;
		qsort(block, in, sizeof(*block), compare);
		printf("%s%.1f", comma, share(block, in, 0.99));
		comma = ", ";
	}
	printf("], ");
	free(block);
}

static void report(void)
{
	size_t n = sent < room ? sent : room;

	report_blocks();
	qsort(latency, answered, sizeof(*latency), compare);
	qsort(late, n, sizeof(*late), compare);
	printf("\"requests\": %zu, \"answered\": %zu, \"wrong\": %lu, \"p50_usec\": %.1f, "
	       "\"p99_usec\": %.1f, \"p999_usec\": %.1f, \"max_usec\": %.1f, "
	       "\"late_p99_usec\": %.1f}\n",
	       sent, answered, wrong, share(latency, answered, 0.5),
	       share(latency, answered, 0.99), share(latency, answered, 0.999),
	       share(latency, answered, 1), share(late, n, 0.99));
}

int main(int argc, char **argv)
{
	bool each_once = argc == 4;

	if (!each_once && argc != 6)
		return 2;
	prctl(PR_SET_TIMERSLACK, 1);
	for (unsigned i = 0; i < (each_once ? 1 : CONNECTIONS); i++)
		connect_to(&connection[i], argv[1]);
	if (each_once) {
		each((uint32_t)atoi(argv[3]), strcmp(argv[2], "fill") == 0);
		return wrong ? 1 : 0;
	}
	room = (size_t)(atof(argv[4]) * atof(argv[5]) * 1.5) + 1000;
	latency = calloc(room, sizeof(*latency));
	late = calloc(room, sizeof(*late));
	due_at = calloc(room, sizeof(*due_at));
	if (!latency || !late || !due_at)
		return 1;
	load((uint32_t)atoi(argv[3]), atof(argv[4]), atof(argv[5]));
	report();
	return wrong || answered < sent ? 1 : 0;
}
