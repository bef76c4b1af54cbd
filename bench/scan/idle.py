# SPDX-License-Identifier: LGPL-2.1-or-later
"""What it costs to watch when nothing happens, and how soon something new is noticed.

The set is merged, then left alone until whoever watches has come to rest. CPU is counted
over a window in which nothing happens. Then two processes of the set each write a page that
was not there before, with the same content, one pair after the other, with a rest between
them, for who has just found something looks more often; noticed is when both map one frame
(or samepage's store), by pagemap. ksmd is given that pace at which it should notice as soon
as samepage did: a page is merged in the second or third look after it came, so 1.5 times a
scan's time after; what it took is measured like samepage's.
"""
import os
import random
import struct
import time

from converge import Arm, run_down
from contender import Paced
from machine import PAGE, Failed

PRESENT, FILE, PFN = 1 << 63, 1 << 61, (1 << 55) - 1


class Watch:
    """Results of one contender. CPU in seconds a minute and GiB."""

    def __init__(self, name):
        self.name = name
        self.cpu = self.group_cpu = 0.0
        self.notice = []
        self.missed = 0
        self.scans = 0
        self.pages_a_second = 0.0

    @property
    def mean(self):
        return sum(self.notice) / len(self.notice) if self.notice else None


def entry(pid, address):
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as f:
        return struct.unpack("Q", os.pread(f.fileno(), 8, address // PAGE * 8))[0]


def private(e):
    return e & PRESENT and not e & FILE


def merged(pids, address):
    a, b = entry(pids[0], address[0]), entry(pids[1], address[1])
    if private(a) and private(b):
        return a & PFN == b & PFN
    return not private(a) and not private(b)


def notice(workload, n, seed, patience):
    """Seconds until the pair shares, None: not in that time. Frozen pages only look so."""
    pids = [workload.processes[i].pid for i in (0, 1)]
    address = [workload.new(i, n, seed) for i in (0, 1)]
    begin = time.monotonic()
    while time.monotonic() < begin + patience:
        if merged(pids, address):
            seen = time.monotonic() - begin
            time.sleep(0.01)
            if merged(pids, address):
                return seen
        time.sleep(0.005)
    return None


def window(arm, watch, seconds, gib):
    sampler = arm.sampler(0.5)
    own = arm.group.cpu()
    time.sleep(seconds)
    group = arm.group.cpu()
    rows = sampler.stop()
    minutes = (rows[-1].time - rows[0].time) / 60
    watch.cpu = (rows[-1].cpu - rows[0].cpu) / minutes / gib
    watch.scans = rows[-1].scans - rows[0].scans
    if own is not None:
        watch.group_cpu = (group - own) / (seconds / 60) / gib


def probe(workload, watch, count, patience, apart):
    rng = random.Random(7)
    for k in range(count):
        time.sleep(rng.uniform(apart, apart * 1.5))
        seen = notice(workload, 4 * k, 777000 + k, patience)
        if seen is None:
            watch.missed += 1
        else:
            watch.notice.append(seen)


def watch_arm(tools, workload, contender, limits, times):
    """times: seconds of rest and window, number of pairs, patience."""
    watch = Watch(contender.name)
    gib = workload.count * workload.pages * PAGE / (1 << 30)
    with Arm(tools, workload, contender) as arm:
        sampler = arm.sampler()
        contender.go()
        run_down(arm, sampler, limits)
        sampler.stop()
        if isinstance(contender, Paced):
            contender.pace()
            watch.pages_a_second = contender.pages
        time.sleep(times["rest"])
        window(arm, watch, times["window"], gib)
        probe(workload, watch, times["pairs"], times["patience"], times["apart"])
        workload.check()
    return watch


def idle(tools, workload, samepage, limits, times):
    """(samepage's, ksmd's at the same time to notice)"""
    ours = watch_arm(tools, workload, samepage, limits, times)
    if not ours.notice:
        raise Failed("samepage noticed none of the new pages")
    rate = workload.count * workload.pages / (ours.mean / 1.5)
    # ksmd goes round and round: it needs no rest, only another moment each time.
    times = dict(times, rest=min(times["rest"], 5), apart=min(times["apart"], 3),
                 patience=max(times["patience"], ours.mean * 6))
    return ours, watch_arm(tools, workload, Paced(rate), limits, times)
