/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A futex mutex: 0 free, 1 held, 2 held and somebody waits.
 *
 * Not a pthread mutex, because a forked child must be able to put it back to
 * free whatever state it was in, and because nothing in it may live in memory
 * that could be frozen (waiters of a pthread mutex may be reported through TLS).
 */
#include "proc/internal.h"

void proc_lock(_Atomic uint32_t *word)
{
	uint32_t seen = 0;

	if (atomic_compare_exchange_strong_explicit(word, &seen, 1, memory_order_acquire,
						    memory_order_relaxed))
		return;
	if (seen != 2)
		seen = atomic_exchange_explicit(word, 2, memory_order_acquire);
	while (seen != 0) {
		sys_futex_wait(word, 2, -1);
		seen = atomic_exchange_explicit(word, 2, memory_order_acquire);
	}
}

void proc_unlock(_Atomic uint32_t *word)
{
	if (atomic_exchange_explicit(word, 0, memory_order_release) == 2)
		sys_futex_wake(word, 1);
}
