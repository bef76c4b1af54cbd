/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A seccomp filter of the program's own.
 *
 * A filter may kill the process for a system call that only we make: on the engine's
 * thread (SECCOMP_FILTER_FLAG_TSYNC), in our handlers on the filtered thread, in its
 * children, whose engine starts under it. So before a filter is installed it is read:
 * for each call of ours, which answers can it give? Arguments are taken for unknown,
 * so every branch over them counts as taken.
 *
 *   all of ours allowed   nothing changes
 *   otherwise             for good, and before the filter is there: nothing is owned,
 *                         all merged memory is brought home (proc/retreat.c), the
 *                         engine's thread ends, and handlers become bare system calls.
 *                         Children have no engine. What the process execs is under
 *                         the same filter: our name leaves LD_PRELOAD (inherit.c), in
 *                         whatever environment is handed over, and in `environ`
 *
 * Memory that cannot be brought home (pinned for DMA at that moment, or the kernel has
 * no memory) keeps the handlers on: wrong bytes would be worse than what the filter says
 * to /proc/self/maps being opened.
 *
 * A child of vfork that installs such a filter changes nothing here, for the memory,
 * environ and the engine are its parent's: only what that child execs goes without us.
 *
 * A filter that was there when we were loaded, a container's, is not ours to read. What
 * it refuses with an error is found out by trying, as on a kernel that lacks it.
 *
 * The reading: programs jump only forwards, so one walk through the instructions, with
 * what is known of the accumulator at each, meets every state.
 */
#include "shim/shim.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/raw.h"
#include "sys/sys.h"

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#define ARCH 0
#endif
#define THREAD_FLAGS                                                                               \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |        \
	 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* What is known of the accumulator before an instruction. */
struct state {
	uint32_t value;
	uint8_t reached;
	uint8_t known;
};

struct reading {
	struct sock_filter code[BPF_MAXINSNS];
	struct state state[BPF_MAXINSNS + 1];
	unsigned n;
};

struct call {
	long nr;
	bool first_known; /* its first argument, too */
	uint32_t first;
};

static void reach(struct reading *r, unsigned long at, struct state from)
{
	struct state *to;

	if (at >= r->n)
		return; /* the kernel will not take it */
	to = &r->state[at];
	if (!to->reached)
		*to = (struct state){ from.value, 1, from.known };
	else if (!from.known || to->value != from.value)
		to->known = 0;
}

static struct state load(const struct sock_filter *f, const struct call *call, struct state s)
{
	s.known = 0;
	if (BPF_MODE(f->code) == BPF_IMM) {
		s.known = 1;
		s.value = f->k;
	} else if (BPF_MODE(f->code) == BPF_ABS && f->k == 0) {
		s.known = 1;
		s.value = (uint32_t)call->nr;
	} else if (BPF_MODE(f->code) == BPF_ABS && f->k == 4 && ARCH != 0) {
		s.known = 1;
		s.value = ARCH;
	} else if (BPF_MODE(f->code) == BPF_ABS && call->first_known &&
		   (f->k == 16 || f->k == 20)) {
		bool low = (f->k == 16) == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

		s.known = 1;
		s.value = low ? call->first : 0;
	}
	return s;
}

static struct state compute(const struct sock_filter *f, struct state s)
{
	if (BPF_SRC(f->code) != BPF_K)
		s.known = 0;
	else if (BPF_OP(f->code) == BPF_AND)
		s.value &= f->k;
	else if (BPF_OP(f->code) == BPF_OR)
		s.value |= f->k;
	else
		s.known = 0;
	return s;
}

static void jump(struct reading *r, unsigned at, struct state s)
{
	const struct sock_filter *f = &r->code[at];
	bool yes;

	if (BPF_OP(f->code) == BPF_JA) {
		reach(r, at + 1UL + f->k, s);
		return;
	}
	if (!s.known || BPF_SRC(f->code) != BPF_K) {
		reach(r, at + 1UL + f->jt, s);
		reach(r, at + 1UL + f->jf, s);
		return;
	}
	switch (BPF_OP(f->code)) {
	case BPF_JEQ: yes = s.value == f->k; break;
	case BPF_JGT: yes = s.value > f->k; break;
	case BPF_JGE: yes = s.value >= f->k; break;
	default: yes = s.value & f->k; break; /* JSET */
	}
	reach(r, at + 1UL + (yes ? f->jt : f->jf), s);
}

/* Can this call end other than allowed (or, if errors do no harm, with an error)? */
static bool harms(struct reading *r, const struct call *call, bool errors_too)
{
	for (unsigned i = 0; i < r->n; i++)
		r->state[i].reached = 0;
	r->state[0] = (struct state){ 0, 1, 1 };
	for (unsigned i = 0; i < r->n; i++) {
		const struct sock_filter *f = &r->code[i];
		struct state s = r->state[i];
		uint32_t action;

		if (!s.reached)
			continue;
		switch (BPF_CLASS(f->code)) {
		case BPF_RET:
			if (BPF_RVAL(f->code) == BPF_A && !s.known)
				return true;
			action = (BPF_RVAL(f->code) == BPF_A ? s.value : f->k) &
				 SECCOMP_RET_ACTION_FULL;
			if (action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG &&
			    (errors_too || action != SECCOMP_RET_ERRNO))
				return true;
			continue;
		case BPF_JMP:
			jump(r, i, s);
			continue;
		case BPF_LD:
			s = load(f, call, s);
			break;
		case BPF_ALU:
			s = compute(f, s);
			break;
		case BPF_MISC:
			if (BPF_MISCOP(f->code) == BPF_TXA)
				s.known = 0;
			break;
		default: /* LDX, ST, STX: not the accumulator */
			break;
		}
		reach(r, i + 1UL, s);
	}
	return false;
}

/* Of handlers and of an engine at work: an error here could leave memory wrong. */
static const long vital[] = {
	SYS_read, SYS_close, SYS_openat, SYS_ioctl, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise,
	SYS_mprotect, SYS_brk, SYS_futex, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_tgkill,
	SYS_getpid, SYS_gettid, SYS_pread64, SYS_ppoll, SYS_process_vm_readv,
	SYS_process_vm_writev, SYS_sendmsg, SYS_recvmsg, SYS_clock_gettime, SYS_sched_yield,
	SYS_exit, SYS_msync, SYS_fstatfs, SYS_shmctl,
};
/* Of an engine that starts, in a child, or connects again, of handlers of exec, and of a
 * scanner at rest: they can do without. */
static const long starting[] = {
	SYS_socket, SYS_connect, SYS_getsockopt, SYS_fcntl, SYS_fstat, SYS_newfstatat, SYS_statx,
	SYS_memfd_create, SYS_close_range, SYS_unshare, SYS_signalfd4, SYS_userfaultfd,
	SYS_get_mempolicy, SYS_getrandom, SYS_set_robust_list, SYS_rseq, SYS_clone3, SYS_mlock,
	SYS_prlimit64, SYS_pwrite64, SYS_write, SYS_rt_sigaction, SYS_set_tid_address,
	SYS_faccessat, SYS_personality, SYS_rt_tgsigqueueinfo, SYS_getrusage,
	SYS_getpriority, SYS_setpriority,
};
/* What finding pinned pages takes (proc/retreat.c), besides a clone without flags. */
static const long pin_test[] = { SYS_kill, SYS_wait4, SYS_prctl, SYS_getppid, SYS_exit_group };

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static bool harms_any(struct reading *r, const long *list, size_t n, bool errors_too)
{
	for (size_t i = 0; i < n; i++) {
		struct call call = { .nr = list[i] };

		if (harms(r, &call, errors_too))
			return true;
	}
	return false;
}

static bool read_program(struct reading *r, const void *program)
{
	struct sock_fprog p;
	struct iovec to = { &p, sizeof(p) }, from = { (void *)(uintptr_t)program, sizeof(p) };

	if (sys->read_self(&to, 1, &from, 1) != (ssize_t)sizeof(p) || p.len == 0 ||
	    p.len > BPF_MAXINSNS)
		return false;
	r->n = p.len;
	to = (struct iovec){ r->code, p.len * sizeof(r->code[0]) };
	from = (struct iovec){ p.filter, p.len * sizeof(r->code[0]) };
	return sys->read_self(&to, 1, &from, 1) == (ssize_t)to.iov_len;
}

/* --- whose filter it is ---------------------------------------------------- */

#define CHILDREN_MAX 16 /* of vfork, between their filter and their exec at one time */

static pid_t owner; /* of this memory; children of vfork run in it, too */
static atomic_bool stepped_back;
static _Atomic pid_t children[CHILDREN_MAX];
static atomic_uint children_seen;

static void forked(void)
{
	/* Once stepped back nobody asks any more, and the call may be one that kills. */
	if (!atomic_load(&stepped_back))
		owner = (pid_t)sys_raw(SYS_getpid, 0);
}

int shim_filter_start(void)
{
	owner = (pid_t)sys_raw(SYS_getpid, 0);
	/* _Fork and clone run no such handlers: their children count as those of vfork,
	 * and have no engine either (fork.c). */
	return -pthread_atfork(NULL, NULL, forked);
}

bool shim_filtered(void)
{
	unsigned seen = atomic_load(&children_seen);
	pid_t pid;

	if (atomic_load(&stepped_back) || seen == 0)
		return atomic_load(&stepped_back);
	pid = (pid_t)sys_raw(SYS_getpid, 0);
	for (unsigned i = 0; i < seen && i < CHILDREN_MAX; i++)
		if (atomic_load(&children[i]) == pid)
			return true;
	return false;
}

/* In a child of vfork. */
static void note_child(pid_t pid, bool may_ask_pid)
{
	/* Who cannot be told apart takes the others along: merging is lost, no more. */
	if (!may_ask_pid)
		atomic_store(&stepped_back, true);
	else
		atomic_store(&children[atomic_fetch_add(&children_seen, 1) % CHILDREN_MAX], pid);
}

/* Nothing of ours is made any more that the program does not make itself. */
static void step_back(bool may_ask_pid)
{
	pid_t pid = (pid_t)sys_raw(SYS_getpid, 0);
	struct proc_mem_guard guard;
	int err;

	if (pid != owner) {
		note_child(pid, may_ask_pid);
		return;
	}
	atomic_store(&stepped_back, true);
	shim_inherit_nothing();
	if (!proc_engine_is_here(shim_engine()))
		return;
	proc_mem_lock(&guard);
	shim_stop_owning();
	proc_mem_unlock(&guard);
	err = proc_engine_home(shim_engine(), 0, UINT64_MAX & ~(uint64_t)(sys_page_bytes() - 1));
	proc_engine_retire(shim_engine());
	if (err == 0)
		atomic_store_explicit(&shim_ready, false, memory_order_release);
}

void shim_filter_coming(const void *program)
{
	const struct call thread = { SYS_clone, true, THREAD_FLAGS }, copy = { SYS_clone, true, CLONE_FILES };
	const struct call ask_pid = { .nr = SYS_getpid };
	const struct call scope = { SYS_prctl, true, SYS_PR_SET_MEMORY_MERGE_SCOPE };
	const struct call ask_scope = { SYS_prctl, true, SYS_PR_GET_MEMORY_MERGE_SCOPE };
	struct reading *r;

	if (!shim_is_ready())
		return;
	r = (struct reading *)sys->mmap(NULL, sizeof(*r), PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if ((intptr_t)r < 0) {
		step_back(false);
		return;
	}
	/* One that cannot be read is not a filter to the kernel either. */
	if (read_program(r, program)) {
		if (harms_any(r, vital, COUNT(vital), true) ||
		    harms_any(r, starting, COUNT(starting), false) || harms(r, &thread, false) ||
		    (proc_engine_kernel(shim_engine()) &&
		     (harms(r, &scope, false) || harms(r, &ask_scope, false))))
			step_back(!harms(r, &ask_pid, true));
		else if (harms_any(r, pin_test, COUNT(pin_test), true) || harms(r, &copy, true))
			proc_engine_without_fork();
	}
	sys->munmap(r, sizeof(*r));
}

long shim_seccomp(long operation, long flags, long args)
{
	if (operation == SECCOMP_SET_MODE_FILTER)
		shim_filter_coming((const void *)args);
	return sys_raw(SYS_seccomp, operation, flags, args);
}
