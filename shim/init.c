/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Start: the constructor of libsamepage-preload.so.
 *
 *   AT_SECURE set       nothing at all (the loader would hardly have taken us)
 *   always otherwise    the stack limit that the launcher raised goes back (layout.c)
 *   SAMEPAGE_OFF=1      nothing more, nor in a Go program (target.c)
 *   else                core dumps get bit 2 of coredump_filter, without which they would
 *                       lack what is merged; an engine that looks for its broker later, then the
 *                       handlers are switched on, fork handlers, the heap
 *
 * SAMEPAGE_DOMAIN, SAMEPAGE_SOCKET   as samepage_open()
 * SAMEPAGE_SCOPE                     "all" (default): everything owned; "advised":
 *                                    what the program asked MADV_MERGEABLE for
 * SAMEPAGE_PRIMITIVE                 what merges: auto, kernel, remap (proc/kernel.h)
 * SAMEPAGE_MERGE_ANY, SAMEPAGE_KSM   inherit.c, prctl.c
 * SAMEPAGE_FAULT                     sys/fault.h
 * SAMEPAGE_VERBOSE                   a line on stderr when there will be no merging
 *
 * Handlers are on before the engine runs, so that its first pass finds the sets in
 * order. Memory that was there before us is not owned, except the heap. LD_PRELOAD
 * stays in the environment: children are clients too. Nothing here may fail the
 * program: what goes wrong leaves it running unmerged.
 */
#include "shim/shim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "core/scan_config.h"
#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/fault.h"
#include "sys/raw.h"
#include "sys/sys.h"

static struct proc_engine *engine;

struct proc_engine *shim_engine(void)
{
	return engine;
}

static void tell(const char *what, int err, const char *then)
{
	char text[160];
	int n;

	if (!getenv("SAMEPAGE_VERBOSE"))
		return;
	n = snprintf(text, sizeof(text), "samepage: %s (%s), %s\n", what, strerrordesc_np(-err), then);
	if (n > 0)
		sys_raw(SYS_write, 2, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

static void complain(const char *what, int err)
{
	tell(what, err, "running unmerged");
}

/* The program's own wishes as to background scanning. False: there is to be none. */
static bool scan_settings(struct core_scan_config *c)
{
	const char *scan = getenv("SAMEPAGE_SCAN");

	*c = (struct core_scan_config){ 0 };
	if (!scan || !*scan)
		return false;
	for (unsigned i = 0; i < CORE_SCAN_SETTINGS; i++) {
		const char *text = getenv(core_scan_setting_variable(i));

		if (text && *text && !core_scan_setting_set(c, i, text))
			tell(core_scan_setting_variable(i), -EINVAL, "taken as not set");
	}
	return !(c->flags & CORE_SCAN_OFF);
}

/*
 * What merges, for good: who uses the kernel's has no bit in his coredump_filter for store
 * mappings, so none may come in its place later.
 */
static int choose_primitive(enum proc_primitive *primitive)
{
	int ret = proc_primitive_parse(getenv("SAMEPAGE_PRIMITIVE"), primitive);

	if (ret < 0 || *primitive == PROC_PRIMITIVE_REMAP)
		return ret;
	if (proc_kernel_available()) {
		*primitive = PROC_PRIMITIVE_KERNEL;
		return 0;
	}
	if (*primitive == PROC_PRIMITIVE_KERNEL)
		return -ENOSYS;
	*primitive = PROC_PRIMITIVE_REMAP;
	return 0;
}

static int start_engine(enum proc_primitive primitive)
{
	const char *domain = getenv("SAMEPAGE_DOMAIN"), *scope = getenv("SAMEPAGE_SCOPE");
	struct proc_engine_params params = { .owned_only = true, .connect_later = true };
	struct core_scan_config scan;
	int ret;

	if (scope && strcmp(scope, "advised") == 0)
		params.advised_only = true;
	else if (scope && *scope && strcmp(scope, "all") != 0)
		return -EINVAL;
	params.primitive = primitive;
	domain = domain && *domain ? domain : "default";
	params.scope = proc_scope_of(domain);
	ret = proc_link_broker_new(&params.link, getenv("SAMEPAGE_SOCKET"), domain);
	if (ret < 0)
		return ret;
	ret = proc_engine_new(&engine, &params, scan_settings(&scan) ? &scan : NULL);
	if (ret < 0)
		proc_link_free(params.link);
	return ret;
}

/*
 * A page that is merged and was never written is one of a private file mapping, which
 * core dumps have only if they are told so. Children and what they exec inherit it.
 */
static void dump_merged(void)
{
	char text[24];
	int fd = sys->open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC, 0), n;
	ssize_t got = fd < 0 ? -1 : sys->read(fd, text, sizeof(text) - 1);
	unsigned long filter;

	if (got > 0) {
		text[got] = '\0';
		filter = strtoul(text, NULL, 16);
		n = snprintf(text, sizeof(text), "0x%lx", filter | 1u << 2);
		if (!(filter & 1u << 2))
			sys_raw(SYS_pwrite64, fd, text, (size_t)n, 0);
	}
	if (fd >= 0)
		sys->close(fd);
}

static void start(void)
{
	enum proc_primitive primitive;
	int ret = sys_fault_from_env();

	if (ret < 0) {
		complain("SAMEPAGE_FAULT", ret);
		return;
	}
	ret = choose_primitive(&primitive);
	if (ret < 0) {
		complain("SAMEPAGE_PRIMITIVE", ret);
		return;
	}
	if (primitive == PROC_PRIMITIVE_REMAP)
		dump_merged();
	proc_mem_set_before_pass(shim_heap_refresh);
	proc_fork_revive_at_once(true);
	ret = proc_fork_install();
	if (ret == 0)
		ret = shim_filter_start();
	if (ret < 0) {
		complain("fork handlers", ret);
		return;
	}
	shim_prctl_start();
	atomic_store_explicit(&shim_ready, true, memory_order_release);
	ret = start_engine(primitive);
	if (ret < 0) {
		atomic_store_explicit(&shim_ready, false, memory_order_release);
		complain("no engine", ret);
		return;
	}
	shim_heap_start();
}

__attribute__((constructor)) static void shim_start(void)
{
	const char *off = getenv("SAMEPAGE_OFF");
	int saved = errno;

	if (getauxval(AT_SECURE))
		return;
	shim_real();
	shim_layout_start();
	if (off && strcmp(off, "1") == 0)
		goto out;
	if (shim_program_is_go())
		complain("Go program", -ENOTSUP);
	else
		start();
out:
	errno = saved;
}
