# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine: KSM's files, CPU clocks, what /proc says; starting programs.

Every program is started through scan-launch, which lets it die with us, and is known by
its own process number: nothing else is ever ended.
"""
import json
import os
import shutil
import signal
import subprocess
import time

KSM = "/sys/kernel/mm/ksm/"
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


class Failed(Exception):
    """There is nothing to measure."""


def read(path):
    with open(path, encoding="ascii", errors="replace") as f:
        return f.read()


def ksm(name):
    return int(read(KSM + name))


def ksm_set(name, value):
    with open(KSM + name, "w", encoding="ascii") as f:
        f.write(str(value))


def ksmd():
    """The kernel thread: it has no command line."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if read(f"/proc/{pid}/comm") == "ksmd\n" and not read(f"/proc/{pid}/cmdline"):
                return int(pid)
        except OSError:
            pass
    raise Failed("no ksmd: a kernel without KSM")


def cpu(pid):
    """CPU seconds of a process, all threads: its POSIX clock (clock_getcpuclockid)."""
    return time.clock_gettime(~pid << 3 | 2)


def meminfo(name):
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise Failed(f"no {name} in /proc/meminfo")


def slab(name):
    """(objects, bytes of each) of a slab cache, (0, 0) where it cannot be seen."""
    try:
        for line in read("/proc/slabinfo").splitlines():
            words = line.split()
            if words[0] == name:
                return int(words[1]), int(words[3])
    except OSError:
        pass
    return 0, 0


def refresh():
    """Counters that each CPU keeps for itself are added up."""
    try:
        read("/proc/sys/vm/stat_refresh")
    except OSError:
        pass


def mappings(pid):
    return read(f"/proc/{pid}/maps").count("\n")


def memfds(pid, but):
    """Bytes of memory in samepage's memfds of a broker, but for those of that name."""
    used = {}
    for folder in ("fd", "map_files"):
        for name in os.listdir(f"/proc/{pid}/{folder}"):
            path = f"/proc/{pid}/{folder}/{name}"
            try:
                target, st = os.readlink(path), os.stat(path)
            except OSError:
                continue
            if target.startswith("/memfd:samepage") and but not in target:
                used[st.st_ino] = st.st_blocks * 512
    return sum(used.values())


def children(pid):
    return [int(p) for t in os.listdir(f"/proc/{pid}/task")
            for p in read(f"/proc/{pid}/task/{t}/children").split()]


def until(seconds, what, condition, pause=0.05):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(pause)


def which(program, root=None):
    """(its path, the environment that it needs): the machine's, or of those that
    tests/real/packages.sh has unpacked; (None, {}) if there is none."""
    path = shutil.which(program)
    if path:
        return path, {}
    root = root or os.environ.get("REAL_ROOT", "")
    path = shutil.which(program, path=":".join(f"{root}/{d}" for d in ("usr/bin", "usr/sbin")))
    libraries = ":".join(f"{root}/{d}/{os.uname().machine}-linux-gnu" for d in ("usr/lib", "lib"))
    return path, {"LD_LIBRARY_PATH": libraries} if path else {}


class Programs:
    """Processes of one arm, in one control group; ended in the reverse order."""

    def __init__(self, tools, folder, group):
        self.tools = tools
        self.group = group
        self.folder = folder
        self.running = []

    def tool(self, name):
        return os.path.join(self.tools, "scan-" + name)

    def start(self, command, launch=(), env=None, pipes=False, log="log", outside=False):
        """command, as a child that is seen to by scan-launch; outside of the group."""
        launch = [*([] if outside else self.group.launch()), *launch]
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        with open(os.path.join(self.folder, log), "ab") as out:
            process = subprocess.Popen(
                [self.tool("launch"), *launch, *map(str, command)], stdin=pipe,
                stdout=subprocess.PIPE if pipes else out, stderr=out, text=pipes,
                env=dict(os.environ, **(env or {})), start_new_session=True)
        self.running.append(process)
        return process

    def output(self, name, *words, **options):
        """What a tool of ours prints."""
        done = subprocess.run([self.tool(name), *map(str, words)], check=False, text=True,
                              stdout=subprocess.PIPE, **options)
        if done.returncode:
            raise Failed(f"scan-{name} {words}: status {done.returncode} {done.stdout}")
        return done.stdout

    def frames(self, pids):
        return json.loads(self.output("frames", *pids))

    def end(self, process, how=signal.SIGTERM, seconds=5):
        if process not in self.running:
            return
        self.running.remove(process)
        for sign in (how, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(sign)
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                pass
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def end_all(self, how=signal.SIGTERM):
        for process in reversed(list(self.running)):
            self.end(process, how)


def say(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()


def expect(process, *words):
    line = process.stdout.readline().split()
    if not line or line[0] not in words:
        raise Failed(f"process {process.pid} ended or said {' '.join(line)!r}")
    return line
