/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A seccomp filter that is there before the program starts, from a service manager
 * or a sandbox. One that answers with errors does no harm: the library finds out what is
 * refused, as on a kernel that lacks it. One that kills would kill the program for what
 * the library does. It cannot be read from here, so a child makes each of those calls
 * once, with arguments that achieve nothing, and it is seen whether it lives.
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "sys/raw.h"

static const int calls[] = {
	SYS_userfaultfd, SYS_process_vm_readv, SYS_process_vm_writev, SYS_memfd_create,
	SYS_close_range, SYS_signalfd4, SYS_get_mempolicy, SYS_socket, SYS_connect, SYS_getsockopt,
	SYS_sendmsg, SYS_recvmsg, SYS_tgkill, SYS_ppoll, SYS_sched_yield, SYS_madvise, SYS_mremap,
	SYS_pread64, SYS_pwrite64, SYS_ioctl, SYS_clock_gettime, SYS_unshare, SYS_rt_sigprocmask,
	SYS_msync, SYS_fstatfs, SYS_shmctl, SYS_faccessat, SYS_prlimit64, SYS_rt_tgsigqueueinfo,
	SYS_getrusage, SYS_getpriority, SYS_setpriority, SYS_personality, /* -1: asks */
};

bool cli_filter_kills(void)
{
	int status = 0;
	pid_t pid;

	if (prctl(PR_GET_SECCOMP) != 2)
		return false;
	pid = fork();
	if (pid == 0) {
		signal(SIGSYS, SIG_DFL);
		prctl(PR_SET_DUMPABLE, 0); /* no core of it */
		for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
			/* -1 is no descriptor, no process, no set of flags, no address. */
			if (calls[i] == SYS_unshare || calls[i] == SYS_sched_yield)
				sys_raw(calls[i], 0);
			else
				sys_raw(calls[i], -1, -1, -1, -1, -1, -1);
		_exit(0);
	}
	/* Without children, no: the program may have to do without them, too. */
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status);
}
