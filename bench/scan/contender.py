# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who merges: samepage, ksmd in its two ways, nobody.

    contender.prepare(programs)   settings, a broker; nothing merges yet
    contender.command(words, ...) how a program of the workload is started
    contender.go()                from here on it merges
    contender.finish()            no more
"""
import json
import os
import subprocess
import time

from machine import Failed, ksm, ksm_set, ksmd, read, slab, until


class Nothing:
    name = "nothing"
    merges = False
    pids = ()

    def prepare(self, programs):
        self.programs = programs
        ksm_set("run", 0)

    def launch(self, shared, advises):
        return ["--one-layout"] if shared else []

    def start(self, command, shared=False, advises=False, **options):
        """shared: one address layout; advises: the program itself says what may be merged."""
        return self.programs.start(command, launch=self.launch(shared, advises), **options)

    def ready(self, pids):
        pass

    def go(self):
        pass

    def sampled(self):
        return []

    def settled(self):
        """Has all been looked at often enough to be done, as far as it says itself?"""
        return True

    def counters(self):
        return {}

    def finish(self):
        pass


class Ksm(Nothing):
    """Unthrottled. What changes what is merged, rather than how fast, stays as it is."""
    name = "ksmd"
    merges = True
    scans_wanted = 3

    def settings(self):
        return {"advisor_mode": "none", "pages_to_scan": 100000, "sleep_millisecs": 0}

    def prepare(self, programs):
        super().prepare(programs)
        self.thread = ksmd()
        ksm_set("advisor_mode", "none")
        for name, value in self.settings().items():
            ksm_set(name, value)
        self.drain()

    def drain(self):
        """What ended processes left in KSM's lists goes, so that nobody pays for it later."""
        end = time.monotonic() + 15
        ksm_set("run", 1)
        while time.monotonic() < end and ksm("pages_shared") + ksm("pages_unshared") + ksm(
                "pages_volatile") > 0:
            time.sleep(0.02)
        ksm_set("run", 0)

    def launch(self, shared, advises):
        return super().launch(shared, advises) + ([] if advises else ["--merge"])

    def go(self):
        self.scans = ksm("full_scans")
        ksm_set("run", 1)

    def sampled(self):
        return ["--ksmd", str(self.thread)]

    def settled(self):
        return ksm("full_scans") - self.scans >= self.scans_wanted

    def counters(self):
        known = sum(ksm("pages_" + n) for n in ("shared", "sharing", "unshared", "volatile"))
        items, item = slab("ksm_rmap_item")
        nodes, node = slab("ksm_stable_node")
        return {"tracked_pages": known, "merged_pages": ksm("pages_sharing"),
                "others_pages": known - self.own_pages(),
                "metadata_bytes": known * (item or 64) + ksm("pages_shared") * (node or 64),
                "slab_bytes": items * item + nodes * node,
                "full_scans": ksm("full_scans") - self.scans,
                "unshared_pages": ksm("pages_unshared"), "volatile_pages": ksm("pages_volatile")}

    def own_pages(self):
        """Of what KSM knows, that of this arm's processes."""
        try:
            return sum(int(line.split()[1]) for p in self.pids
                       for line in read(f"/proc/{p}/ksm_stat").splitlines()
                       if line.startswith("ksm_rmap_items"))
        except OSError:
            return 0

    def ready(self, pids):
        self.pids = list(pids)

    def finish(self):
        ksm_set("run", 0)
        ksm_set("advisor_mode", "none")


class Advisor(Ksm):
    """As a distribution would switch it on: the kernel chooses how much to scan."""
    name = "advisor"

    def settings(self):
        return {"sleep_millisecs": 20, "pages_to_scan": 100, "advisor_mode": "scan-time"}


class Paced(Ksm):
    """So many pages a second."""
    name = "ksmd, paced"

    def __init__(self, pages_a_second):
        self.pages = pages_a_second

    def go(self):
        super().go()
        ksm_set("pages_to_scan", 100000)

    def pace(self):
        ksm_set("sleep_millisecs", 20)
        ksm_set("pages_to_scan", max(1, int(self.pages * 0.02)))


class Samepage(Nothing):
    name = "samepage"
    merges = True

    def __init__(self, build):
        self.build = build

    def prepare(self, programs):
        super().prepare(programs)
        self.socket = os.path.join(programs.folder, "broker.sock")
        self.env = {"SAMEPAGE_SOCKET": self.socket}
        self.broker = programs.start([os.path.join(self.build, "samepaged"),
                                      "--socket", self.socket], log="broker.log")
        until(5, "the broker starts", lambda: os.path.exists(self.socket))
        self.pids = []
        self.tell("pause", "--all")

    def tell(self, *words):
        done = subprocess.run([os.path.join(self.build, "samepage"), *words], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                              env=dict(os.environ, **self.env))
        if done.returncode:
            raise Failed(f"samepage {' '.join(words)}: {done.stdout.strip()}")
        return done.stdout

    def start(self, command, shared=False, advises=False, env=None, **options):
        words = [os.path.join(self.build, "samepage"), "run",
                 "--scope", "advised" if advises else "all",
                 "--layout", "shared" if shared else "private", "--", *command]
        return self.programs.start(words, env=dict(env or {}, **self.env), **options)

    def ready(self, pids):
        self.pids = list(pids)

    def go(self):
        self.tell("resume", "--all")

    def sampled(self):
        return ["--broker", str(self.broker.pid)]

    def status(self):
        return json.loads(self.tell("status", "--json"))

    def counters(self):
        return {"status": self.status()}

    def finish(self):
        """The broker ends with the other programs."""
