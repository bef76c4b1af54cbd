/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* prctl: PR_SET_SECCOMP is of interest (seccomp.c), the rest is the kernel's. */
#include "shim/shim.h"

#include <linux/seccomp.h>
#include <stdarg.h>
#include <sys/prctl.h>

#include "sys/raw.h"

long shim_prctl(int option, const long arg[4])
{
	if (option == PR_SET_SECCOMP && arg[0] == SECCOMP_MODE_FILTER)
		shim_filter_coming((const void *)arg[1]);
	return sys_raw(SYS_prctl, option, arg[0], arg[1], arg[2], arg[3]);
}

SHIM_EXPORT int prctl(int option, ...)
{
	long a[4];
	va_list args;

	va_start(args, option);
	for (int i = 0; i < 4; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	return (int)shim_return(shim_prctl(option, a));
}
