/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Numbered fault points: one per entry of SYS_OPS, in its order, counted from 1.
 *
 * sys_fault_arm() makes the nth call (counted from 1, over all threads) of a
 * point fail with an errno, `times` times from there on (0: for ever), and puts
 * sys_faulty into `sys`. Calls are counted while any fault is armed, or after
 * sys_fault_count_only(). Programs take the same from the environment,
 * SAMEPAGE_FAULT="name:nth[:errno-number[:times]][,...]", unless they run with
 * more privilege than their caller (AT_SECURE).
 */
#ifndef SAMEPAGE_SYS_FAULT_H
#define SAMEPAGE_SYS_FAULT_H

#include <stdint.h>

#include "sys/sys.h"

enum sys_fault_point {
	SYS_FAULT_NONE,
#define SYS_OPS_POINT(ret, name, params, args) SYS_FAULT_##name,
	SYS_OPS(SYS_OPS_POINT)
#undef SYS_OPS_POINT
	SYS_FAULT_COUNT
};

extern const struct sys_ops sys_faulty;

int sys_fault_arm(enum sys_fault_point point, uint64_t nth, int error, uint64_t times);
void sys_fault_count_only(void);
void sys_fault_reset(void); /* disarm all, zero the counts, back to sys_real */
uint64_t sys_fault_calls(enum sys_fault_point point);
uint64_t sys_fault_hits(enum sys_fault_point point);
const char *sys_fault_name(enum sys_fault_point point);
int sys_fault_from_env(void); /* 0, or -EINVAL for a value that means nothing */

#endif
