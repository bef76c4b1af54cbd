# SPDX-License-Identifier: LGPL-2.1-or-later
"""A busy redis, whose own memory is merged too, beside a set that is merged at the time.

Requests come at random times, whether or not the server keeps up (scan-latency), in three
phases: before merging is let go; from that moment on; and when it has been done for a
while. The arms are interleaved and repeated, in another order each time. An arm's figure
is the median of its p99 in blocks of half a second; what is compared is each phase with the
same phase of the arm in which nobody merges, of the same repetition. Of these ratios the
median is shown, and where it lies with 95 % (by order statistics, which know nothing of
how the ratios are distributed): only when all of that is on one side of the goal is there
a verdict.
"""
import json
import math
import time
from statistics import median

from converge import Arm
from workloads import Redis, Set, Workload

PHASES = ("before", "merging", "after")


def interval(values):
    """(low, high): where the median lies with at least 95 %; None: too few values."""
    n, below, k = len(values), 0.0, 0
    while (below + math.comb(n, k) / 2 ** n) * 2 <= 0.05:
        below += math.comb(n, k) / 2 ** n
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else None


def block_p99(run, phase):
    return median(run[phase]["blocks_p99_usec"])


def ratios(runs, nothing, phase):
    """Of each repetition, to the one in which nobody merged."""
    return [block_p99(r, phase) / block_p99(n, phase) for r, n in zip(runs, nothing)]


class Busy(Workload):
    shared = False

    def __init__(self, keys, count, mib):
        self.redis, self.set = Redis(1, keys), Set(count, mib)
        self.name = "busy redis"

    def start(self, contender, programs):
        self.redis.start(contender, programs)
        self.set.start(contender, programs)

    def pids(self):
        return self.redis.pids() + self.set.pids()

    def check(self):
        self.redis.check()
        self.set.check()


def busy(tools, workload, contender, rate, seconds):
    """{phase: what scan-latency says}"""
    phases = {}
    with Arm(tools, workload, contender) as arm:
        time.sleep(1)
        for phase in PHASES:
            if phase == "merging":
                contender.go()
            phases[phase] = json.loads(arm.programs.output(
                "latency", workload.redis.socket(0), "load", workload.redis.keys, rate, seconds))
        workload.check()
    return phases
