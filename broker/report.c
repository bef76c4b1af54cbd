/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker knows about itself, for CTL_END.
 *
 * Its own memory is resident memory that is not shared: the store, the index and
 * the rings are shared, and are counted where they are made.
 */
#include <fcntl.h>
#include <stdio.h>

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

static void add_domain(struct core_wire_ctl_end *end, const struct broker_domain *d)
{
	struct broker_store_stats stats;

	end->domains++;
	if (!d->store)
		return;
	broker_store_stats(d->store, &stats);
	end->slots += stats.slots;
	end->segments += stats.segments;
	end->segments_freed += stats.segments_freed;
	end->store_bytes += stats.store_bytes;
	end->index_bytes += stats.index_bytes;
	end->candidates += stats.candidates;
	end->submissions += stats.submissions;
	end->submissions_known += stats.submissions_known;
	end->quota_refusals += stats.quota_refusals;
}

void broker_report_end(const struct broker_session *asker, struct core_wire_ctl_end *end)
{
	const struct broker *b = asker->broker;
	const struct broker_domain *d;
	const struct broker_session *s;

	TAILQ_FOREACH(d, &b->domains, link) {
		if (broker_control_may_touch(asker, d->uid))
			add_domain(end, d);
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
