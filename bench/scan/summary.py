# SPDX-License-Identifier: LGPL-2.1-or-later
"""From samples to the figures of the tables: of one workload, all its contenders.

Saved is by how much memory has gone down since merging was let go. What programs need more
under samepage before anything is merged (its own start against the median start of all the
other arms) is taken off again. Mergeable is the most that any contender has saved in the end.
"""
from statistics import median

MIB = 1 << 20


class Figures:
    """One contender on one workload; medians over repetitions. None: not reached."""

    def __init__(self, name, results, more, mergeable):
        self.name, self.results, self.more = name, results, more
        self.saved = median(r.final for r in results) - more
        busy = [r.busy for r in results if r.busy is not None]
        self.busy = median(busy) - more if busy else None
        rows = [(r, r.reaches(0.9 * mergeable + more)) for r in results]
        reached = rows if all(x for _, x in rows) else []
        self.seconds = median(r.seconds(x) for r, x in reached) if reached else None
        self.cpu = median(r.cpu(x) for r, x in reached) if reached else None
        self.own = [(r, r.reaches(0.9 * r.final) or r.rows[-1]) for r in results]
        self.own_seconds = median(r.seconds(x) for r, x in self.own)
        self.own_cpu = median(r.cpu(x) for r, x in self.own)
        self.all_cpu = median(r.cpu(r.rows[-1]) for r in results)
        self.all_seconds = median(r.seconds(r.rows[-1]) for r in results)
        self.broker_cpu = median(r.rows[-1].broker - r.rows[0].broker for r in results)
        groups = [r.group_cpu for r in results if r.group_cpu is not None]
        self.group_cpu = median(groups) if groups else None
        self.merged = median(merged_pages(r) for r in results)
        self.frames = median(freed_frames(r) for r in results)
        maps = median(r.after["mappings"] - r.before["mappings"] for r in results)
        self.vmas_a_page = maps / self.merged if self.merged else 0
        self.most_vmas = max(max(r.vmas) for r in results)
        self.runs = results[-1].after["runs"]


def merged_pages(result):
    """Pages that map KSM's frames or samepage's store, by pagemap."""
    return result.after["ksm"] + result.after["store_pages"]


def freed_frames(result):
    """Frames of the processes' private memory that are not needed any more, store's off."""
    store = (result.rows[-1].memory["shmem"] - result.rows[0].memory["shmem"]) / 4096
    return result.before["frames"] - result.after["frames"] - store


class Summary:
    """of: {contender: Figures}, in the order of measuring."""

    def __init__(self, workload, results):
        self.workload = workload
        arms = {n: [r for r in results if r.contender == n]
                for n in dict.fromkeys(r.contender for r in results)}
        starts = [r.rows[0].used for r in results if r.contender != "samepage"]
        more = {n: 0.0 for n in arms}
        if starts and "samepage" in arms:
            more["samepage"] = median(r.rows[0].used for r in arms["samepage"]) - median(starts)
        self.mergeable = max(median(r.final for r in a) - more[n] for n, a in arms.items())
        self.of = {n: Figures(n, a, more[n], self.mergeable) for n, a in arms.items()}

    def ratio(self, field, other="ksmd"):
        """samepage's part of ksmd's, None where one of the two is missing."""
        a, b = self.of.get("samepage"), self.of.get(other)
        a, b = a and getattr(a, field), b and getattr(b, field)
        return a / b if a is not None and b else None
