# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which workloads under which contenders, how often and for how long; quick or in full."""
from contender import Advisor, Ksm, Nothing, Samepage
from guests import Guests
from workloads import Node, Redis, Set, Workers


class Plan:
    """arms: (workload, contenders, repetitions), in this order. goal_*: what to reach."""

    def __init__(self, build, image, quick):
        self.quick = quick
        some = [Nothing(), Ksm(), Samepage(build)]
        every = [*some, Advisor()]
        guests = [(Guests(image, 3, 512), some if quick else every, 1)] if image else []
        if quick:
            self.arms = [(Set(4, 64), some, 1), *guests,
                         (Workers(8, True, True), some, 1)]
            self.idle = dict(rest=15, window=12, pairs=2, patience=20, apart=10)
            self.idle_set = (4, 64)
            self.busy = dict(repeat=1, seconds=4, rate=3000, keys=30000, set=(2, 64))
            self.busy_contenders = some
            return
        self.arms = [(Set(4, 256), every, 1), (Set(4, 256), some, 2), *guests,
                     *([(Guests(image, 5, 256), some, 1)] if image else []),
                     (Workers(8, False, False), some, 3), (Workers(8, False, True), some, 3),
                     (Workers(50, True, False), some, 1), (Workers(24, True, True), some, 1),
                     # What is equal in node's replicas is another amount each time: its
                     # threads race for malloc.
                     (Node(4, False), some, 5), (Node(4, True), some, 5),
                     (Redis(3, 60000), some, 3)]
        self.idle = dict(rest=30, window=45, pairs=4, patience=60, apart=15)
        self.idle_set = (4, 256)
        self.busy = dict(repeat=10, seconds=2, rate=4000, keys=60000, set=(4, 64))
        self.busy_contenders = some
