/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The public calls: check what can be checked from outside, then inward. What
 * each promises is in include/samepage.h.
 */
#include "samepage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/domain.h"
#include "core/reason.h"
#include "lib/embedded.h"
#include "proc/engine.h"
#include "proc/mem.h"
#include "sys/fault.h"
#include "sys/sys.h"

struct samepage {
	struct proc_engine *engine;
};

/* Of the preload library, where it is (shim/uffd.c): its scanner lets go of the range. */
extern void samepage_preload_leave(void *addr, size_t bytes) __attribute__((weak));

#define KNOWN_FLAGS SAMEPAGE_EMBEDDED

static int check_options(const struct samepage_options *o)
{
	if (o->size != sizeof(*o) || (o->flags & ~KNOWN_FLAGS) || o->reserved)
		return -EINVAL;
	if (o->domain && !core_domain_name_valid(o->domain))
		return -EINVAL;
	return 0;
}

int samepage_open(struct samepage **handle, const struct samepage_options *options)
{
	static const struct samepage_options defaults = { .size = sizeof(defaults) };
	const struct samepage_options *o = options ? options : &defaults;
	struct proc_engine_params params = { 0 };
	enum proc_primitive primitive;
	const char *domain = o->domain;
	struct samepage *sp;
	int err;

	if (!handle)
		return -EINVAL;
	*handle = NULL;
	err = check_options(o);
	if (err < 0)
		return err;
	err = sys_fault_from_env();
	if (err < 0)
		return err;
	err = proc_primitive_parse(secure_getenv("SAMEPAGE_PRIMITIVE"), &primitive);
	if (err < 0)
		return err;
	if (!domain)
		domain = secure_getenv("SAMEPAGE_DOMAIN");
	sp = calloc(1, sizeof(*sp));
	if (!sp)
		return -ENOMEM;
	if (o->flags & SAMEPAGE_EMBEDDED)
		err = lib_embedded_new(&params.link, o->store_bytes);
	else
		err = proc_link_broker_new(&params.link, o->socket_path, domain);
	params.primitive = primitive;
	params.scope = o->flags & SAMEPAGE_EMBEDDED ? lib_embedded_scope() : proc_scope_of(domain);
	if (err == 0)
		err = proc_fork_install();
	if (err == 0)
		err = proc_engine_new(&sp->engine, &params, NULL);
	if (err < 0) {
		proc_link_free(params.link);
		free(sp);
		return err;
	}
	*handle = sp;
	return 0;
}

void samepage_close(struct samepage *handle)
{
	if (!handle)
		return;
	proc_engine_free(handle->engine);
	proc_mem_forget_files(); /* what the program has unmapped meanwhile */
	free(handle);
}

/* A handle, a page-aligned start, no wrap; an end beyond user addresses is cut there. */
static int check_range(const struct samepage *handle, const void *addr, size_t bytes,
		       uint64_t *start, uint64_t *end)
{
	const uint64_t page = sys_page_bytes();

	if (!handle)
		return -EINVAL;
	*start = (uintptr_t)addr;
	if (*start & (page - 1))
		return -EINVAL;
	if (bytes > UINT64_MAX - (page - 1) - *start)
		return -EINVAL;
	*end = (*start + bytes + page - 1) & ~(page - 1);
	return 0;
}

int samepage_merge(struct samepage *handle, void *addr, size_t bytes, uint32_t flags,
		   struct samepage_result *result)
{
	uint64_t start, end;
	int err;

	if (flags & ~SAMEPAGE_MERGE_QUIESCENT)
		return -EINVAL;
	err = check_range(handle, addr, bytes, &start, &end);
	if (err < 0)
		return err;
	if (result)
		memset(result, 0, sizeof(*result));
	if (start == end)
		return 0;
	if (samepage_preload_leave)
		samepage_preload_leave(addr, end - start);
	return proc_engine_merge(handle->engine, start, end,
				 PROC_WANT_CONTRACT |
					 (flags & SAMEPAGE_MERGE_QUIESCENT ? PROC_WANT_QUIET : 0),
				 result);
}

int samepage_unmerge(struct samepage *handle, void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	uint64_t start, end;
	int err;

	err = check_range(handle, addr, bytes, &start, &end);
	if (err < 0 || start == end)
		return err;
	proc_mem_lock(&guard);
	err = proc_mem_unmerge(start, end, NULL);
	if (err == 0 && proc_engine_kernel(handle->engine))
		err = proc_kernel_unmerge(start, end);
	if (err == 0 && proc_mem_has_gap(start, end))
		err = -ENOMEM;
	proc_mem_unlock(&guard);
	return err;
}

int samepage_discard(struct samepage *handle, void *addr, size_t bytes)
{
	struct proc_mem_guard guard;
	uint64_t start, end;
	int err;

	err = check_range(handle, addr, bytes, &start, &end);
	if (err < 0 || start == end)
		return err;
	proc_mem_lock(&guard);
	err = proc_mem_discard(start, end, PROC_DISCARD_ADVICE);
	proc_mem_unlock(&guard);
	return err;
}

int samepage_stats(struct samepage *handle, struct samepage_stats *stats, size_t size)
{
	struct samepage_stats all;
	int err;

	/* Programs from before there was a choice of primitives have a shorter one. */
	if (!handle || !stats ||
	    (size != sizeof(*stats) && size != offsetof(struct samepage_stats, primitive)))
		return -EINVAL;
	err = proc_engine_stats(handle->engine, &all);
	if (err == 0)
		memcpy(stats, &all, size);
	return err;
}

void samepage_fork_prepare(void)
{
	proc_fork_prepare();
}

void samepage_fork_parent(void)
{
	proc_fork_parent();
}

void samepage_fork_child(void)
{
	proc_fork_child();
}

const char *samepage_reason_name(unsigned reason)
{
	return core_reason_name(reason);
}

const char *samepage_reason_text(unsigned reason)
{
	return core_reason_text(reason);
}

const char *samepage_version(void)
{
	return SAMEPAGE_VERSION;
}
