/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker knows about itself, for CTL_END.
 *
 * Its own memory is resident memory that is not shared: the store, the index and
 * the rings are shared, and are counted where they are made.
 *
 * And what it believes of what clients say about themselves: not that it is true,
 * only that it can be, so that sums over clients mean something. A mapped page,
 * shared or not, costs 8 bytes of page table, which is memory that cannot be
 * swapped: that bounds pages. What counts since the beginning is bounded so that
 * sums do not overflow.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/sysinfo.h>

#include "broker/broker.h"

static uint64_t private_bytes(void)
{
	unsigned long size, resident, shared;
	char text[128];
	ssize_t n;
	int fd = sys->open("/proc/self/statm", O_RDONLY | O_CLOEXEC, 0);

	if (fd < 0)
		return 0;
	n = sys->read(fd, text, sizeof(text) - 1);
	sys->close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	/* The kernel prints three numbers; a wrong one would be a wrong figure, no more. */
	if (sscanf(text, /* NOLINT(cert-err34-c) */
		   "%lu %lu %lu", &size, &resident, &shared) != 3 || shared > resident)
		return 0;
	return (resident - shared) * sys_page_bytes();
}

static void add_domain(struct core_wire_ctl_end *end, const struct broker *b,
		       const struct broker_domain *d)
{
	struct broker_store_stats stats;

	end->domains++;
	end->paused += broker_pause_holds(b, d);
	if (!d->store)
		return;
	broker_store_stats(d->store, &stats);
	end->slots += stats.slots;
	end->segments += stats.segments;
	end->segments_freed += stats.segments_freed;
	end->store_bytes += stats.store_bytes;
	end->index_bytes += stats.index_bytes;
	end->candidates += stats.candidates;
	end->standing += stats.standing;
	end->submissions += stats.submissions;
	end->submissions_known += stats.submissions_known;
	end->quota_refusals += stats.quota_refusals;
}

#define USEC_MAX (UINT64_C(10) * 366 * 24 * 3600 * BROKER_SECOND_USEC)
#define EVER_MAX (UINT64_C(1) << 48)
#define SUM_MAX (UINT64_C(1) << 58) /* of times, and of what a look costs nothing for */
#define VMAS_MAX (UINT32_C(1) << 31)
#define PTE_BYTES 8

static bool result_possible(const struct samepage_result *r, uint64_t pages_max, int64_t vmas_max)
{
	const uint64_t pages[] = { r->pages_looked, r->pages_merged, r->pages_zeroed,
				   r->pages_already, r->pages_promoted, r->runs };
	bool ok = r->wall_usec <= USEC_MAX && r->cpu_usec <= USEC_MAX &&
		  r->frozen_usec <= USEC_MAX && r->vmas_added >= -vmas_max &&
		  r->vmas_added <= vmas_max;

	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
		ok &= pages[i] <= pages_max;
	for (size_t i = 0; i < SAMEPAGE_REASON_MAX; i++)
		ok &= r->pages_declined[i] <= pages_max;
	return ok;
}

static bool scan_possible(const struct core_scan_counters *c, uint64_t bytes_max)
{
	const uint64_t now[] = { c->pages_tracked_now, c->pages_merged_now, c->pages_unshared_now,
				 c->pages_volatile_now, c->pages_waiting_now };
	const uint64_t ever[] = { c->full_scans, c->pages_changed, c->pages_hashed,
				  c->pages_candidate, c->pages_promoted, c->promoted_in_vain,
				  c->pages_merged, c->pages_broken, c->broken_soon, c->huge_split,
				  c->huge_kept, c->homecomings, c->held_cpu, c->held_maps };
	const uint64_t sums[] = { c->pages_scanned, c->pages_skipped, c->broken_msec,
				  c->stable_msec };
	bool ok = c->tracker <= CORE_SCAN_TRACKER_CHECKSUM && c->paused <= 1 &&
		  c->metadata_bytes <= bytes_max && c->cpu_usec <= USEC_MAX &&
		  c->stable_msec_max <= USEC_MAX / 1000;

	for (size_t i = 0; i < sizeof(now) / sizeof(now[0]); i++)
		ok &= now[i] <= bytes_max / PTE_BYTES;
	for (size_t i = 0; i < sizeof(ever) / sizeof(ever[0]); i++)
		ok &= ever[i] <= EVER_MAX;
	for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++)
		ok &= sums[i] <= SUM_MAX;
	return ok;
}

bool broker_report_possible(const struct core_wire_report *r)
{
	struct sysinfo machine = { 0 };
	uint64_t bytes_max = EVER_MAX;

	if (sysinfo(&machine) == 0)
		bytes_max = ((uint64_t)machine.totalram + machine.totalswap) * machine.mem_unit;
	return r->error <= 0 && r->error >= -4095 && r->vmas <= VMAS_MAX &&
	       r->vmas_max <= VMAS_MAX && r->pss_before_bytes <= bytes_max &&
	       r->pss_after_bytes <= bytes_max && r->own_bytes <= bytes_max &&
	       r->pages_sharing <= bytes_max / PTE_BYTES &&
	       r->pages_owned <= bytes_max / PTE_BYTES && r->cpu_usec <= USEC_MAX &&
	       r->zero_pages <= EVER_MAX &&
	       result_possible(&r->last, bytes_max / PTE_BYTES, VMAS_MAX) &&
	       result_possible(&r->total, EVER_MAX, (int64_t)EVER_MAX) &&
	       scan_possible(&r->scan, bytes_max);
}

void broker_report_end(const struct broker_session *asker, struct core_wire_ctl_end *end)
{
	const struct broker *b = asker->broker;
	const struct broker_domain *d;
	const struct broker_session *s;

	TAILQ_FOREACH(d, &b->domains, link) {
		if (broker_control_may_touch(asker, d->uid))
			add_domain(end, b, d);
	}
	TAILQ_FOREACH(s, &b->sessions, link) {
		if (s->state == BROKER_SESSION_CLIENT &&
		    broker_control_may_touch(asker, s->peer.uid))
			end->sessions++;
	}
	end->broker_rss_bytes = private_bytes();
	end->broker_cpu_usec = sys_process_cpu_usec();
	end->dropped_clients = b->dropped_clients;
}
