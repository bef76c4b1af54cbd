# SPDX-License-Identifier: LGPL-2.1-or-later
"""A busy redis, whose own memory is merged too, beside a set that is merged at the time.

Requests come at random times, whether or not the server keeps up (scan-latency), in three
phases: before merging is let go; from that moment on; and when it has been done for a
while. The arms are interleaved and repeated; what is compared is each phase with the same
phase of the arm in which nobody merges.
"""
import json
import time

from converge import Arm
from workloads import Redis, Set, Workload

PHASES = ("before", "merging", "after")


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
