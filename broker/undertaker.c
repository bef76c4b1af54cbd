/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Closing what should not have come.
 *
 * close(2) calls the file system's flush, and a user can bring a file system of
 * their own (FUSE) that answers when it likes. So an fd that a client sent and
 * that is no memfd is closed by a thread that has nothing else to do. A few of
 * those may hang; beyond that no fds are received at all, which costs nobody
 * anything but adoption (I4, I6). The threads touch no state of the broker's.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "broker/broker.h"

#define UNDERTAKERS_MAX 16
#define UNDERTAKER_STACK_BYTES ((size_t)64 << 10)

static _Atomic int busy;

bool broker_undertaker_free(void)
{
	return atomic_load(&busy) < UNDERTAKERS_MAX;
}

static void *undertaker_run(void *arg)
{
	sys->close((int)(intptr_t)arg);
	atomic_fetch_sub(&busy, 1);
	return NULL;
}

void broker_undertaker_take(int fd)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (pthread_attr_init(&attr) != 0)
		return; /* an fd less is better than a broker that hangs */
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, UNDERTAKER_STACK_BYTES);
	atomic_fetch_add(&busy, 1);
	r = pthread_create(&thread, &attr, undertaker_run, (void *)(intptr_t)fd);
	/* Without a thread it stays open, and counted, so that this is bounded too. */
	if (r != 0)
		broker_log(BROKER_LOG_SYSTEM, "no thread to close a client's file");
	pthread_attr_destroy(&attr);
}
