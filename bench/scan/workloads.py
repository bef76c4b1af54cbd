# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is merged. Each workload:

    start(contender, programs)   its processes, up to the moment that they are ready
    pids()                       of those whose memory counts
    load()                       one small round of what it is there for, checked
    check()                      all of its data is right, or Failed

All data follows from numbers, so that each process can be asked at the end.
"""
import http.client
import os
import socket
import subprocess
import sys

from machine import Failed, children, expect, read, say, until, which

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.realpath(sys.executable)


class Workload:
    shared = False      # one address layout for all
    needs = ()          # programs

    def start(self, contender, programs):
        raise NotImplementedError

    def load(self):
        pass

    def is_busy(self):
        """Does load() do anything?"""
        return type(self).load is not Workload.load


class Set(Workload):
    """Known pages: of COUNT processes half the pages are alike in all, a quarter in two."""

    def __init__(self, count, mib, run=8):
        self.count, self.pages, self.run = count, mib * 256, run
        self.name = f"set of {count * mib} MiB" if mib * count < 1024 else (
            f"set of {count * mib // 1024} GiB")
        self.text = (f"{count} processes of {mib} MiB; of each, half the pages are in all, "
                     f"a quarter in one other, in runs of {run}")

    def start(self, contender, programs):
        self.processes = [
            contender.start([programs.tool("set"), i, self.pages, self.run], pipes=True)
            for i in range(self.count)]
        self.where = [int(expect(p, "ready")[1], 16) for p in self.processes]

    def pids(self):
        return [p.pid for p in self.processes]

    def check(self):
        for p in self.processes:
            say(p, "check")
        for p in self.processes:
            if expect(p, "right", "wrong")[0] != "right":
                raise Failed("a set has other contents than it was given")

    def new(self, process, n, seed):
        say(self.processes[process], f"new {n} {seed}")
        return int(expect(self.processes[process], "new")[1], 16)


class Workers(Workload):
    """Python workers behind sockets, separate or forked by one, answering requests."""

    def __init__(self, count, forked, shared):
        self.count, self.forked, self.shared = count, forked, shared
        self.name = f"{count} Python workers, {'forked' if forked else 'separate'}, " + (
            "one layout" if shared else "random layout")
        self.text = "each with its application's tables, loaded by itself" + (
            " after the fork, as gunicorn does" if forked else "") + "; requests go on"

    def start(self, contender, programs):
        self.folder = programs.folder
        self.turn = 0
        words = [PYTHON, os.path.join(HERE, "worker.py"), self.folder]
        # One hash seed: else the content differs from arm to arm, and with it what can merge.
        env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
        if self.forked:
            master = contender.start([*words, "fork", self.count], self.shared, env=env)
            self._wait()
            self.processes = [master.pid, *children(master.pid)]
        else:
            for i in range(self.count):
                contender.start([*words, "one", i], self.shared, env=env)
            self._wait()
            self.processes = [p.pid for p in programs.running if self._is_worker(p.pid)]

    def _is_worker(self, pid):
        return "worker.py" in read(f"/proc/{pid}/cmdline")

    def _socket(self, i):
        return os.path.join(self.folder, f"worker-{i}.sock")

    def _wait(self):
        until(120, "the workers are ready",
              lambda: all(os.path.exists(self._socket(i)) for i in range(self.count)))

    def pids(self):
        return self.processes

    def _get(self, i, path):
        c = http.client.HTTPConnection("localhost")
        c.sock = socket.socket(socket.AF_UNIX)
        c.sock.settimeout(60)
        c.sock.connect(self._socket(i))
        c.request("GET", path)
        text = c.getresponse().read().decode()
        c.close()
        return text

    def load(self):
        self.turn += 1
        number = self.turn * 7919 % 10000
        text = self._get(self.turn % self.count, f"/row/{number}")
        if f'"id": {number},' not in text:
            raise Failed(f"a worker answered {text[:80]!r}")

    def check(self):
        answers = {self._get(i, "/check") for i in range(self.count)}
        if answers != {"same"}:
            raise Failed("a worker has other data than in the beginning")


class Node(Workload):
    """Replicas of a node service."""
    needs = ("node",)

    def __init__(self, count, shared):
        self.count, self.shared = count, shared
        self.name = f"{count} node replicas, {'one layout' if shared else 'random layout'}"
        self.text = "each with a table of 20000 rows, 200 templates of 64 KiB and its heap"

    def start(self, contender, programs):
        self.processes = [
            contender.start([which("node")[0], os.path.join(HERE, "replica.js"), i],
                            self.shared, pipes=True)
            for i in range(self.count)]
        for p in self.processes:
            expect(p, "ready")

    def pids(self):
        return [p.pid for p in self.processes]

    def _all(self, word, wanted):
        for p in self.processes:
            say(p, word)
        for p in self.processes:
            if expect(p, "right", "wrong")[0] != wanted:
                raise Failed("a node replica has other data than in the beginning")

    def load(self):
        self._all("request", "right")

    def check(self):
        self._all("check", "right")


class Redis(Workload):
    """One server and its replicas, of which each loads the dump by itself."""
    needs = ("redis-server", "redis-cli")

    def __init__(self, count, keys):
        self.count, self.keys = count, keys
        self.name = f"redis and {count - 1} replicas"
        self.text = f"{keys} keys of 1000 bytes"

    def start(self, contender, programs):
        self.programs, self.processes = programs, []
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        for i in range(self.count):
            folder = os.path.join(programs.folder, f"redis-{i}")
            os.mkdir(folder)
            server, env = which("redis-server")
            words = [server, "--port", port if i == 0 else 0, "--unixsocket",
                     self.socket(i), "--dir", folder, "--save", "", "--loglevel", "warning",
                     "--bind", "127.0.0.1", "--repl-diskless-sync-delay", 0]
            if i:
                words += ["--replicaof", f"127.0.0.1 {port}"]
            self.processes.append(contender.start(words, self.shared, env=env))
            until(20, "redis answers", lambda i=i: self._cli(i, "PING") == "PONG")
            if i == 0:
                programs.output("latency", self.socket(0), "fill", self.keys)
        until(60, "the replicas are in step", self._in_step)

    def socket(self, i):
        return os.path.join(self.programs.folder, f"redis-{i}.sock")

    def _cli(self, i, *words):
        cli, env = which("redis-cli")
        return subprocess.run([cli, "-s", self.socket(i), *words], text=True, check=False,
                              env=dict(os.environ, **env), stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout.strip()

    def _in_step(self):
        return all("master_link_status:up" in self._cli(i, "INFO", "replication") and
                   self._cli(i, "DBSIZE") == str(self.keys) for i in range(1, self.count))

    def pids(self):
        return [p.pid for p in self.processes]

    def check(self):
        """Reads by the client that knows each value."""
        for i in range(self.count):
            self.programs.output("latency", self.socket(i), "check", self.keys)
