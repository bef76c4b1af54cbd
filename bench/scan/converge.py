# SPDX-License-Identifier: LGPL-2.1-or-later
"""One arm: a workload under a contender, from fresh processes to the last check.

The clock starts when everything is ready and merging is let go (KSM: run 1; samepage:
resume), the same for all. It ends when memory has not gone down for a while and the
contender says that it has looked at everything, or when the time is up. Programs that were
busy meanwhile are then left alone until memory does not go down any more: what each request
writes and puts back (counts of references) merges only now, but for an unthrottled ksmd.

What is saved at a moment is by how much the memory of all processes and the broker
(anonymous, shmem, page tables, mappings and all the kernel has for them; each page once, by
their control group) and of KSM's items is below that of the start: store, index,
candidates, broker, everything is in there.
"""
import shutil
import tempfile
import time

from group import Group
from machine import Programs, mappings, refresh
from sampler import Sampler


class Limits:
    """Seconds."""

    def __init__(self, quick):
        self.settle = 1.0 if quick else 2.0
        self.least = 3.0 if quick else 5.0
        self.quiet = 2.0 if quick else 3.0
        self.most = {"advisor": 30.0 if quick else 60.0}
        self.most_else = 20.0 if quick else 40.0
        self.nothing = 2.0 if quick else 4.0
        self.rest, self.rest_most = (3.0, 10.0) if quick else (4.0, 20.0)


class Result:
    """rows: samples, from the moment merging was let go; begin: that moment."""

    def __init__(self, workload, contender):
        self.workload, self.contender = workload.name, contender.name
        self.rows = []
        self.begin = 0.0
        self.busy_until = None  # requests went on up to then; None: there are none

    def saved(self, row):
        return self.rows[0].used - row.used

    @property
    def final(self):
        """Bytes saved in the end: the median of the last second."""
        return self._saved_before(self.rows[-1].time)

    @property
    def busy(self):
        """The same while requests still went on, None: there were none."""
        return self.busy_until and self._saved_before(self.busy_until)

    def _saved_before(self, end):
        last = sorted(self.saved(r) for r in self.rows if end - 1 < r.time <= end)
        return last[len(last) // 2]

    def reaches(self, target):
        """The first row at which so many bytes are saved, or None."""
        return next((r for r in self.rows if self.saved(r) >= target), None)

    def seconds(self, row):
        return row.time - self.begin

    def cpu(self, row):
        return row.cpu - self.rows[0].cpu


class Arm:
    """Context: processes of one arm in a folder of its own; all gone in the end."""

    def __init__(self, tools, workload, contender):
        self.workload, self.contender = workload, contender
        self.folder = tempfile.mkdtemp(prefix="samepage-scan-")
        self.group = Group()
        self.programs = Programs(tools, self.folder, self.group)

    def __enter__(self):
        try:
            self.contender.prepare(self.programs)
            self.workload.start(self.contender, self.programs)
            self.contender.ready(self.workload.pids())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.programs.end_all()
            self.contender.finish()
        finally:
            self.group.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def sampler(self, interval=0.02):
        return Sampler(self.programs, self.contender, self.workload.pids(), interval)


def until_quiet(sampler, least, quiet, most, meanwhile, done):
    """Returns when memory has stopped going down."""
    begin = time.monotonic()
    least_used, since = float("inf"), begin
    while time.monotonic() < begin + most:
        meanwhile()
        time.sleep(0.1)
        now, used = time.monotonic(), sampler.used()
        if used < least_used - max(1 << 20, sampler.rows[0].used * 0.001):
            least_used, since = used, now
        if now > begin + least and now > since + quiet and done():
            return


def run_down(arm, sampler, limits):
    """Requests go on meanwhile."""
    most = limits.nothing if not arm.contender.merges else limits.most.get(
        arm.contender.name, limits.most_else)
    until_quiet(sampler, limits.least, limits.quiet, most, arm.workload.load,
                lambda: arm.contender.merges and arm.contender.settled())


def calm_down(arm, sampler, limits):
    """Without requests, if there were any."""
    if arm.workload.is_busy():
        until_quiet(sampler, limits.rest, limits.rest, limits.rest_most, lambda: None,
                    lambda: True)


def converge(tools, workload, contender, limits, keep=None):
    """keep(arm, result): what else is to be measured in the end, before the check."""
    result = Result(workload, contender)
    with Arm(tools, workload, contender) as arm:
        time.sleep(limits.settle)
        pids = workload.pids()
        refresh()
        result.before = arm.programs.frames(pids)
        sampler = arm.sampler()
        time.sleep(0.3)
        own = arm.group.cpu()
        result.begin = time.monotonic()
        contender.go()
        run_down(arm, sampler, limits)
        if workload.is_busy():
            result.busy_until = time.monotonic()
        calm_down(arm, sampler, limits)
        refresh()
        time.sleep(0.3)
        result.group_cpu = None if own is None else arm.group.cpu() - own
        rows = sampler.stop()
        start = [r for r in rows if r.time < result.begin][-1:]
        result.rows = start + [r for r in rows if r.time >= result.begin]
        result.counters = contender.counters()
        result.after = arm.programs.frames(pids)
        result.vmas = [mappings(p) for p in pids]
        result.pings = list(getattr(workload, "pings", []))
        if keep:
            keep(arm, result)
        workload.check()
        result.checked = True
    return result
