# SPDX-License-Identifier: LGPL-2.1-or-later
"""scan-sample running beside an arm: its lines as rows, while they come."""
import subprocess
import threading
import time

USED = ("anon", "shmem", "kernel", "ksm_items")


class Row:
    """One moment. Bytes, seconds; CPU since the processes began."""

    def __init__(self, columns, line):
        value = dict(zip(columns, map(int, line.split(","))))
        self.time = value["time"] / 1e9
        self.used = sum(value[name] for name in USED)
        self.machine = value["machine"]
        self.memory = {name: value[name] for name in USED}
        self.scans = value["full_scans"]
        self.sharing = value["pages_sharing"]
        self.ksmd, self.broker, self.engines, self.sampling = (
            value[name] / 1e9 for name in ("ksmd", "broker", "engines", "sampling"))
        self.engine_count = value["engine_count"]
        self.cpu = self.ksmd + self.broker + self.engines


class Sampler:
    def __init__(self, programs, contender, pids, interval=0.02):
        words = [programs.tool("sample"), str(int(interval * 1e6))]
        if programs.group.memory:
            words += ["--group", programs.group.memory]
        words += contender.sampled() + ["--clients", *map(str, pids)]
        self.rows = []
        self.process = programs.start(words, pipes=True, outside=True)
        self.programs = programs
        self.columns = self.process.stdout.readline().strip().split(",")
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        while not self.rows:
            time.sleep(0.001)

    def _read(self):
        for line in self.process.stdout:
            self.rows.append(Row(self.columns, line))

    def last(self, seconds):
        rows = list(self.rows)
        return [r for r in rows if r.time > rows[-1].time - seconds]

    def used(self, seconds=0.5):
        """The median of the last moments."""
        values = sorted(r.used for r in self.last(seconds))
        return values[len(values) // 2]

    def stop(self):
        self.process.stdin.close()
        self.thread.join(5)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.programs.running.remove(self.process)
        return self.rows
