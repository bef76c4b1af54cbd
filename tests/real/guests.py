#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Three guests and what guests.sh wants to know of them, a line each: "right WHAT" or
"wrong WHAT"; anything else is a remark.

usage: guests.py IMAGE FOLDER SECONDS      (SAMEPAGE, SAMEPAGE_SOCKET in the environment)
"""
import json
import os
import re
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench", "scan"))
# pylint: disable=wrong-import-position
from guests import Guests  # noqa: E402
from machine import PAGE, Failed, until  # noqa: E402

COUNT, MIB, DATA_MIB, BALLOON_MIB = 3, 256, 32, 128
ENOUGH_PAGES = 20000  # of a guest's some 40000, whose kernels and files are alike


class Traced(Guests):
    """QEMU tells which pages the balloon takes."""

    def command(self, words, i):
        return [*words, "-d", "trace:virtio_balloon_handle_output", "-D",
                os.path.join(self.folder, f"guest-{i}.trace")]


class Client:
    """As a contender of the benchmark, but nothing is measured: programs are clients."""

    def __init__(self):
        self.running = []

    def start(self, command, advises=False, env=None):
        words = [os.environ["SAMEPAGE"], "run", "--scope", "advised" if advises else "all", "--"]
        with open(os.path.join(sys.argv[2], "log"), "ab") as log:
            process = subprocess.Popen([*words, *map(str, command)], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, env=dict(os.environ, **env))
        self.running.append(process)
        return process

    def end(self):
        statuses = []
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                statuses.append(process.wait(20))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        self.running = []
        return statuses


def result(right, what):
    print("right" if right else "wrong", what, flush=True)


def merged_pages():
    done = subprocess.run([os.environ["SAMEPAGE"], "status", "--json"], check=True, text=True,
                          stdout=subprocess.PIPE)
    return json.loads(done.stdout)["pages_sharing"]


def checked(guests):
    try:
        guests.check()
        return True
    except Failed as why:
        print(why)
        return False


def work(guests, seconds):
    """Rewriting, checking, asking, while memory is merged."""
    end, rounds, right = time.monotonic() + seconds, 0, True
    while right and time.monotonic() < end:
        right = checked(guests)
        for k, port in enumerate(guests.ports):
            right &= port.ask("turn") == f"turned {rounds + 1}"
            right &= port.ask(f"ping {k}") == f"pong {k}"
        rounds += 1
    result(right, f"{COUNT} guests found what they wrote, {rounds} times, while memory was merged")


def taken(guests, i):
    """Guest addresses of the pages that are in the balloon, by QEMU's trace."""
    with open(os.path.join(guests.folder, f"guest-{i}.trace"), encoding="ascii") as f:
        return {int(m.group(1), 16) for m in re.finditer(r"gpa: (?:0x)?([0-9a-f]+)", f.read())}


def base_of(monitor):
    """Where the guest's memory begins in QEMU."""
    text = monitor.execute("human-monitor-command", **{"command-line": "gpa2hva 0x100000"})
    return int(re.search(r"is (0x[0-9a-f]+)", text).group(1), 16) - 0x100000


def not_zero(pid, base, pages):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return sum(os.pread(memory.fileno(), PAGE, base + gpa) != bytes(PAGE) for gpa in pages)


def balloon(guests):
    guests.balloon(MIB - BALLOON_MIB)
    count = bad = 0
    for i, monitor in enumerate(guests.monitors):
        pages = taken(guests, i)
        count += len(pages)
        bad += not_zero(guests.processes[i].pid, base_of(monitor), pages)
    print(f"{count} pages in balloons, {bad} of them not zero")
    result(count * PAGE >= COUNT * (BALLOON_MIB - 1) << 20 and bad == 0,
           f"memory that was given back reads zeros ({count * PAGE >> 20} MiB)")
    result(checked(guests), "the guests are right without it")
    guests.balloon(MIB)
    result(checked(guests), "and when they have it again")


def main():
    client = Client()
    guests = Traced(sys.argv[1], COUNT, MIB, DATA_MIB)
    guests.folder = sys.argv[2]
    try:
        guests.start(client, guests)
        result(True, f"{COUNT} guests of one image boot, merged meanwhile")
        work(guests, float(sys.argv[3]))
        until(30, "the guests are merged", lambda: merged_pages() >= ENOUGH_PAGES, 0.5)
        print(merged_pages(), "pages saved")
        result(checked(guests), "merged, they are right")
        balloon(guests)
    except (Failed, OSError, subprocess.CalledProcessError) as why:
        result(False, str(why))
    statuses = client.end()
    result(statuses == [0] * COUNT, f"qemu ended well: {statuses}")


main()
