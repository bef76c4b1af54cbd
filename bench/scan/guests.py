# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU guests of one Debian image (bench/vm), by software emulation: no KVM is needed.

QEMU itself calls madvise(MADV_MERGEABLE) on guest memory. A guest is asked over a virtio
port: whether its memory, word by word, and its files, read through its page cache, are what
they were; and for a "pong", whose time says whether it is responsive.
"""
import json
import os
import socket
import time

from machine import Failed, read, until, which
from workloads import Workload


class Port:
    """Lines to a unix socket and back."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("r", encoding="ascii", errors="replace")

    def say(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def answer(self):
        line = self.file.readline().strip()
        if not line:
            raise Failed("a guest does not answer")
        return line

    def ask(self, line):
        self.say(line)
        return self.answer()


class Monitor(Port):
    """QEMU's machine protocol."""

    def __init__(self, path):
        super().__init__(path)
        self.answer()
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        self.say(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            reply = json.loads(self.answer())
            if "error" in reply:
                raise Failed(f"qemu: {reply['error']}")
            if "return" in reply:
                return reply["return"]


class Guests(Workload):
    needs = ("qemu-system-x86_64",)

    def __init__(self, image, count, mib, data_mib=64):
        self.image, self.count, self.mib, self.data_mib = image, count, mib, data_mib
        self.name = f"{count} QEMU guests of {mib} MiB"
        self.text = f"booted from one Debian image; {data_mib} MiB of each checked word by word"
        self.pings = []

    def start(self, contender, programs):
        self.folder = programs.folder
        self.turn = 0
        self.pings = []
        self.processes = [self._boot(contender, i) for i in range(self.count)]
        for i in range(self.count):
            until(120, f"guest {i} is ready", lambda i=i: self._said(i, "ready"))
            if self._said(i, f"GUEST {i}: "):
                raise Failed(read(self._path(i, "serial")))
        self.ports = [Port(self._path(i, "port")) for i in range(self.count)]
        self.monitors = [Monitor(self._path(i, "monitor")) for i in range(self.count)]
        self.files = self._all("files")

    def _path(self, i, what):
        return os.path.join(self.folder, f"guest-{i}.{what}")

    def _said(self, i, text):
        path = self._path(i, "serial")
        return os.path.exists(path) and text in read(path)

    def _boot(self, contender, i):
        def file(name):
            return os.path.join(self.image, name)

        qemu, env = which("qemu-system-x86_64")
        root = os.environ.get("REAL_ROOT", "")
        firmware = [w for d in ("qemu", "seabios") for w in ("-L", f"{root}/usr/share/{d}")]
        return contender.start(self.command([
            qemu, *(firmware if env else []), "-accel", "tcg,tb-size=32", "-M", "q35,hpet=off", "-nodefaults",
            "-no-user-config", "-m", self.mib, "-smp", 1, "-display", "none", "-no-reboot",
            "-kernel", file("vmlinuz"), "-initrd", file("initrd.img"),
            "-drive", f"file={file('root.img')},format=raw,if=virtio,readonly=on",
            "-serial", f"file:{self._path(i, 'serial')}", "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=port,path={self._path(i, 'port')},server=on,wait=off",
            "-device", "virtserialport,chardev=port,name=port",
            "-device", "virtio-balloon-pci,id=balloon",
            "-qmp", f"unix:{self._path(i, 'monitor')},server=on,wait=off",
            "-append", "console=ttyS0 quiet panic=-1 tsc=unstable nokaslr "
                       f"samepage.guest={i} samepage.mib={self.data_mib}"], i),
                               advises=True, env=env)

    def command(self, words, _):
        """What a test adds to it."""
        return words

    def pids(self):
        return [p.pid for p in self.processes]

    def _all(self, line):
        for port in self.ports:
            port.say(line)
        return [port.answer() for port in self.ports]

    def load(self):
        self.turn += 1
        begin = time.monotonic()
        if self.ports[self.turn % self.count].ask(f"ping {self.turn}") != f"pong {self.turn}":
            raise Failed("a guest answers something else")
        self.pings.append((begin, time.monotonic() - begin))

    def check(self):
        for answer in self._all("check"):
            if not answer.startswith(f"checked {self.data_mib * 256} wrong 0"):
                raise Failed(f"a guest's memory: {answer}")
        if self._all("files") != self.files:
            raise Failed("a guest reads other files than before")

    def balloon(self, mib):
        """Guests give memory back (or get it): QEMU discards it (MADV_DONTNEED)."""
        for monitor in self.monitors:
            monitor.execute("balloon", value=mib << 20)
        until(60, "the guests give memory back", lambda: all(
            abs(m.execute("query-balloon")["actual"] - (mib << 20)) < 1 << 20
            for m in self.monitors))
