# SPDX-License-Identifier: LGPL-2.1-or-later
"""A control group for the processes of one arm, broker included: their memory and CPU by
the kernel's own count, each page once, whatever else runs on the machine.

Version 1 (memory and cpuacct are two hierarchies) or 2. Where there is no memory
controller, group.memory is None, and the machine's counters have to do.
"""
import os
import time

from machine import read

ROOT = "/sys/fs/cgroup"
NAME = "samepage-scan-"


class Group:
    def __init__(self):
        self.folders = []
        self.memory = self.cpu_file = None
        if os.path.exists(f"{ROOT}/cgroup.controllers"):
            folder = self._make(ROOT)
            if folder and os.path.exists(f"{folder}/memory.stat"):
                self.memory = folder
            if folder and "usage_usec" in read(f"{folder}/cpu.stat"):
                self.cpu_file = f"{folder}/cpu.stat"
        else:
            self.memory = self._make(f"{ROOT}/memory")
            cpu = self._make(f"{ROOT}/cpuacct")
            self.cpu_file = cpu and f"{cpu}/cpuacct.usage"

    def _make(self, root):
        try:
            for old in os.listdir(root):  # of a run that was killed: empty now, or not ours
                if old.startswith(NAME) and not os.path.exists(f"/proc/{old[len(NAME):]}"):
                    try:
                        os.rmdir(os.path.join(root, old))
                    except OSError:
                        pass
            folder = os.path.join(root, NAME + str(os.getpid()))
            os.mkdir(folder)
        except OSError:
            return None
        self.folders.append(folder)
        return folder

    def launch(self):
        """What tells scan-launch to enter it."""
        return [w for f in self.folders for w in ("--group", os.path.join(f, "cgroup.procs"))]

    def cpu(self):
        """CPU seconds of all that ran in it, or None."""
        if not self.cpu_file:
            return None
        text = read(self.cpu_file)
        if text.startswith("usage_usec"):
            return int(text.split()[1]) / 1e6
        return int(text) / 1e9

    def end(self):
        for folder in self.folders:
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.1)
        self.folders = []
