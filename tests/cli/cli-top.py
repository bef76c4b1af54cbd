#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""samepage top, on a terminal that is a few lines of Python, and as plain text.

If this failed, it would show other figures than `samepage status`, hang while a client
does not answer or a broker is gone, or leave a terminal as it must not.
"""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

SAMEPAGE, SAMEPAGED = os.environ["SAMEPAGE"], os.environ["SAMEPAGED"]
WAIT = 30
WORKER = """import mmap, random, sys
keep = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
keep.write(random.Random(1).randbytes(8 << 20))
print("ready", flush=True)
sys.stdin.read()"""


class Tap:
    def __init__(self):
        self.n, self.bad = 0, 0

    def check(self, what, ok, seen=""):
        self.n += 1
        print("ok" if ok else "not ok", self.n, "-", what, flush=True)
        if not ok:
            self.bad += 1
            print("\n".join("# " + line for line in str(seen).split("\n")), flush=True)

    def skip(self, what, why):
        self.n += 1
        print(f"ok {self.n} - {what} # SKIP {why}", flush=True)


class Terminal:
    """What a vt100 would show."""

    def __init__(self, rows, columns):
        self.resize(rows, columns)
        self.rest = ""

    def resize(self, rows, columns):
        self.rows, self.columns, self.y, self.x = rows, columns, 0, 0
        self.wrap, self.first, self.last = False, 0, rows - 1
        self.cells = [[" "] * columns for _ in range(rows)]

    def text(self):
        return ["".join(row).rstrip() for row in self.cells]

    def control(self, kind, numbers):
        n = numbers[0] if numbers and numbers[0] else 1
        self.wrap = False
        if kind in "Hf":
            self.y = min(n, self.rows) - 1
            self.x = min(numbers[1] if len(numbers) > 1 and numbers[1] else 1, self.columns) - 1
        elif kind == "A":
            self.y = max(self.y - n, 0)
        elif kind == "B":
            self.y = min(self.y + n, self.rows - 1)
        elif kind == "C":
            self.x = min(self.x + n, self.columns - 1)
        elif kind == "D":
            self.x = max(self.x - n, 0)
        elif kind in "JK":
            how = numbers[0] if numbers else 0
            first, last = (self.x, self.columns) if how == 0 else (0, self.x + 1) if how == 1 \
                else (0, self.columns)
            self.cells[self.y][first:last] = [" "] * (last - first)
            if kind == "J":
                rows = range(self.y + 1, self.rows) if how == 0 else range(self.y) if how == 1 \
                    else range(self.rows)
                for row in rows:
                    self.cells[row] = [" "] * self.columns

        elif kind == "r":
            self.first = n - 1
            self.last = (numbers[1] if len(numbers) > 1 and numbers[1] else self.rows) - 1
            self.y, self.x = 0, 0

    def line(self, down):
        """To the next line, or the one before; the region scrolls at its ends."""
        self.wrap = False
        if self.y == (self.last if down else self.first):
            del self.cells[self.first if down else self.last]
            self.cells.insert(self.last if down else self.first, [" "] * self.columns)
        else:
            self.y = min(max(self.y + (1 if down else -1), 0), self.rows - 1)

    def put(self, c):
        if self.wrap:
            self.x = 0
            self.line(True)
        self.cells[self.y][self.x] = c
        if self.x + 1 == self.columns:
            self.wrap = True
        else:
            self.x += 1

    def feed(self, data):
        data = self.rest + data.decode("latin-1")
        self.rest = ""
        i = 0
        while i < len(data):
            c = data[i]
            if c == "\x1b":
                m = re.compile(r"\x1b(?:\[([0-9;?]*)([A-Za-z])|([()].)|([=>78MDEcH]))").match(data, i)
                if not m:
                    if len(data) - i < 16:
                        self.rest = data[i:]
                        return
                    raise ValueError(repr(data[i:i + 16]))
                if m.group(2) and not m.group(1).startswith("?"):
                    self.control(m.group(2), [int(n or 0) for n in m.group(1).split(";")])
                elif m.group(4) in ("M", "D"):
                    self.line(m.group(4) == "D")
                i = m.end()
                continue
            if c == "\r":
                self.x, self.wrap = 0, False
            elif c == "\n":
                self.line(True)
            elif c == "\b":
                self.x, self.wrap = max(self.x - 1, 0), False
            elif c == "\t":
                self.x = min(self.x // 8 * 8 + 8, self.columns - 1)
            elif c >= " ":
                self.put(c)
            i += 1


class Top:
    """samepage top on a terminal."""

    def __init__(self, env, *args, rows=24, columns=80):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(SAMEPAGE, ["samepage", "top", *args], {**env, "TERM": "vt100"})
        self.screen = Terminal(rows, columns)
        self.status = None

    def read(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                return
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return
            if not data:
                return
            self.screen.feed(data)

    def until(self, true, seconds=WAIT):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read(0.05)
            if true(self.screen.text()):
                return True
        return False

    def has(self, pattern):
        return self.until(lambda text: any(re.search(pattern, line) for line in text))

    def keys(self, text):
        os.write(self.fd, text.encode())

    def resize(self, rows, columns):
        self.read(0.1)
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self, seconds=WAIT):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)
        return None

    def shown(self):
        return "\n".join(self.screen.text())


def rows_of(text):
    """pid -> fields, of the lines that are rows."""
    return {int(m.group(1)): line.split() for line in text
            if (m := re.match(r" *(\d+) \S+ +\S+ +[\d.]+[GT]? +[\d.]+[GT]? +\S+ +\S+ +\S+ ", line))}


def pids_in_order(text):
    return list(rows_of(text))


def run(env, *args, **more):
    return subprocess.run([SAMEPAGE, *args], env=env, text=True, capture_output=True,
                          timeout=120, stdin=subprocess.DEVNULL, check=False, **more)


class World:
    def __init__(self, folder):
        self.path = folder + "/broker.sock"
        self.env = {k: v for k, v in os.environ.items()
                    if not k.startswith("SAMEPAGE_") and k != "LD_PRELOAD"}
        self.env |= {"SAMEPAGE_SOCKET": self.path, "SAMEPAGE_SCAN": "off"}
        self.broker, self.workers = None, []

    def start_broker(self):
        r, w = os.pipe()
        # pylint: disable-next=consider-using-with
        self.broker = subprocess.Popen(
            [SAMEPAGED, "--config", "/dev/null", "--socket", self.path, "--request-timeout", "2",
             "--ready-fd", str(w)], env=self.env, pass_fds=[w], stderr=subprocess.DEVNULL)
        os.close(w)
        ready = select.select([r], [], [], WAIT)[0] and os.read(r, 1)
        os.close(r)
        return bool(ready)

    def kill_broker(self):
        self.broker.kill()
        self.broker.wait()

    def start_worker(self, *options):
        # pylint: disable-next=consider-using-with
        p = subprocess.Popen([SAMEPAGE, "run", "--broker", "none", *options, "--",
                              sys.executable, "-c", WORKER], env=self.env, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.workers.append(p)
        return p.stdout.readline() == "ready\n"

    def status(self):
        return json.loads(run(self.env, "status", "--json").stdout)

    def end(self):
        for p in self.workers:
            p.kill()
            p.wait()
        if self.broker and self.broker.poll() is None:
            self.broker.terminate()
            self.broker.wait()


def test_usage(tap, world):
    for bad in (["--delay", "0"], ["--delay", "soon"], ["--count", "0"], ["--sort", "beauty"],
                ["--unknown"], ["17"], ["--count"]):
        r = run(world.env, "top", *bad)
        tap.check(f"top {' '.join(bad)}: status 2, one line", r.returncode == 2
                  and r.stderr.count("\n") == 1, r)
    r = run(world.env, "top", "--batch")
    tap.check("no broker: status 1 and the cure", r.returncode == 1
              and "no broker listens on" in r.stderr, r)


def test_no_client(tap, world):
    r = run(world.env, "top", "--batch", "--count", "1")
    tap.check("no client, as text: sums only", r.returncode == 0
              and "0 clients" in r.stdout and not rows_of(r.stdout.split("\n")), r.stdout)
    r = run(world.env, "top")
    tap.check("no terminal: status 1, names --batch", r.returncode == 1 and "--batch" in r.stderr, r)
    top = Top({**world.env})
    tap.check("no client, on a terminal: says what to do", top.has("no clients: start"), top.shown())
    top.keys("jkjd\r\r\t<>r")
    tap.check("no client: keys do no harm", top.has("by -"), top.shown())
    top.keys("q")
    tap.check("no client: q quits", top.end() == 0)


def test_batch(tap, world):
    pids = sorted(p.pid for p in world.workers)
    r = run(world.env, "top", "-b", "-n", "2", "-d", "0.3", "--sort", "pid")
    blocks = r.stdout.split("\n\n")
    tap.check("--batch -n 2: two blocks, status 0", r.returncode == 0 and len(blocks) == 2, r)
    rows = [rows_of(b.split("\n")) for b in blocks]
    tap.check("a row for each, by pid", list(rows[0]) == list(rows[1]) == pids, r.stdout)
    tap.check("rates are told from the second on", all(f[5] == "-" for f in rows[0].values())
              and all(f[5] == "0" for f in rows[1].values()), r.stdout)
    status = world.status()
    saved = sum(float(f[3]) for f in rows[1].values())
    wanted = status["pages_sharing"] * status["page_bytes"] / 2 ** 20
    tap.check("the parts make up what status says is saved", abs(saved - wanted) < 0.3 and saved > 7,
              f"{saved} {wanted}\n{r.stdout}")
    merged = {p["pid"]: p["pages_mapped"] * status["page_bytes"] / 2 ** 20
              for p in status["processes"]}
    tap.check("merged is what status says", all(abs(float(f[4]) - merged[pid]) < 0.2
                                                for pid, f in rows[1].items()), r.stdout)
    tap.check("why not", all(re.match(r"\d", f[8]) and f[9] for f in rows[1].values()), r.stdout)
    r = run(world.env, "top", "-b", "-n", "1", "-s", "PID", "-r")
    tap.check("--reverse", pids_in_order(r.stdout.split("\n")) == pids[::-1], r.stdout)
    r = run(world.env, "top", "-b", "-n", "1", "--domains", "-s", "procs")
    found = re.findall(r"^ +(\d+) \S+ +(other|default) +([\d.]+)", r.stdout, re.M)
    tap.check("--domains: how many processes each", [f[:2] for f in found] ==
              [("2", "default"), ("1", "other")], r.stdout)


def test_screen(tap, world):
    pids = sorted(p.pid for p in world.workers)
    top = Top(world.env, "--delay", "0.5")
    tap.check("80x24: the clients", top.until(lambda t: sorted(rows_of(t)) == pids), top.shown())
    tap.check("80x24: keys in the last line", top.screen.text()[23].startswith("q quit"), top.shown())
    tap.check("80x24: heads above the first row", top.screen.text()[5].split()[:3] ==
              ["PID", "COMMAND", "DOMAIN"], top.shown())
    tap.check("80x24: nothing is cut", not any(line.endswith(">") for line in top.screen.text()),
              top.shown())
    top.keys("p")
    tap.check("p: by process", top.has("by PID") and
              top.until(lambda t: pids_in_order(t) == pids), top.shown())
    top.keys("r")
    tap.check("r: the other way round", top.has("by -PID") and
              top.until(lambda t: pids_in_order(t) == pids[::-1]), top.shown())
    top.keys("r>")
    tap.check(">: by the next column", top.has("by COMMAND"), top.shown())
    top.keys("<<")
    tap.check("< from the first: the last column", top.has("by WHY NOT"), top.shown())
    top.keys("p-")
    tap.check("-: half the delay", top.has("every 0.25 s"), top.shown())
    top.keys("++")
    tap.check("+: twice the delay", top.has("every 1 s"), top.shown())
    top.keys("-j\r")
    tap.check("j, Enter: details of the second", top.has(rf"^{pids[1]} python.*, domain \w+, scanning off")
              and top.has("^PSS "), top.shown())
    tap.check("details: rows are left, keys too", len(rows_of(top.screen.text())) == 3
              and top.screen.text()[23].startswith("q quit"), top.shown())
    top.keys("d")
    tap.check("d: domains", top.has(r"^ +2 \S+ +default") and top.has(r"^ +1 \S+ +other"), top.shown())
    tap.check("d: details of a domain", top.has(r"^domain \w+ of uid \d+, \d processes"), top.shown())
    top.keys("\t\r")
    tap.check("Tab, Enter: back", top.until(lambda t: sorted(rows_of(t)) == pids and
                                            not any(x.startswith("PSS ") for x in t)), top.shown())
    top.keys("h")
    tap.check("h: help", top.has("any key +back"), top.shown())
    top.keys("x")
    tap.check("any key: back", top.has("^q quit"), top.shown())
    return top


def test_resize(tap, world, top):
    pids = sorted(p.pid for p in world.workers)
    for rows, columns in ((50, 132), (12, 40), (4, 20), (1, 1), (24, 80)):
        top.resize(rows, columns)
        if rows < 10:
            top.read(1.2)
            tap.check(f"{columns}x{rows}: lives", os.waitpid(top.pid, os.WNOHANG) == (0, 0))
            continue
        tap.check(f"{columns}x{rows}: keys in the last line",
                  top.until(lambda t, last=rows - 1: t[last].startswith("q quit")), top.shown())
        if columns >= 80:
            tap.check(f"{columns}x{rows}: all rows", top.until(
                lambda t: sorted(rows_of(t)) == pids), top.shown())
        else:
            tap.check(f"{columns}x{rows}: what is cut is marked", top.until(
                lambda t: t[0].endswith(">")), top.shown())


def test_silent(tap, world, top):
    stopped = world.workers[0].pid
    top.keys(" -")
    tap.check("space and - at once", top.has("every 0.25 s"), top.shown())
    os.kill(stopped, signal.SIGSTOP)
    tap.check("a client that does not answer: so it says", top.has(rf"^ *{stopped} .*no answer"),
              top.shown())
    top.keys("sj")
    tap.check("... and keys work meanwhile", top.until(lambda t: "by SAVED" in t[0], 1.5),
              top.shown())
    os.kill(stopped, signal.SIGCONT)
    tap.check("... and it is back", top.until(
        lambda t: stopped in rows_of(t) and not any("no answer" in x for x in t)), top.shown())


def test_broker_gone(tap, world, top):
    batch = subprocess.Popen([SAMEPAGE, "top", "-b", "-d", "0.2"], env=world.env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    batch.stdout.readline()
    world.kill_broker()
    _, said = batch.communicate(timeout=WAIT)
    tap.check("--batch, the broker goes: status 1, and why", batch.returncode == 1
              and said.count("\n") == 1 and world.path in said, said)
    tap.check("the broker goes: the message says so",
              top.has("(hung up|no broker listens)"), top.shown())
    top.keys("p")
    tap.check("no broker: keys work", top.has("by PID"), top.shown())
    world.start_broker()
    pids = sorted(p.pid for p in world.workers)
    tap.check("a new broker: no message, the clients again", top.until(
        lambda t: not t[4].strip() and sorted(rows_of(t)) == pids), top.shown())
    world.workers[0].stdin.close()
    world.workers[0].wait()
    tap.check("a client that ended: its row is gone", top.until(
        lambda t: sorted(rows_of(t)) == [p for p in pids if p != world.workers[0].pid]), top.shown())


def test_end(tap, world, top):
    before = termios.tcgetattr(top.fd)
    top.keys("q")
    tap.check("q: status 0", top.end() == 0)
    tap.check("there it was no line editor's terminal", not before[3] & termios.ICANON)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        top = Top(world.env)
        top.has("^q quit")
        os.kill(top.pid, number)
        tap.check(f"{number.name}: ends as q does", top.end() == 0)
    top = Top(world.env, "--count", "2", "--delay", "0.2")
    tap.check("--count on a terminal", top.end() == 0)
    # A shell around it sees the terminal as it was.
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(world.env)
        os.environ["TERM"] = "vt100"
        os.execlp("sh", "sh", "-c", f"a=$(stty -g); '{SAMEPAGE}' top -n 1; "
                  '[ "$a" = "$(stty -g)" ]')
    while True:
        try:
            if not os.read(fd, 65536):
                break
        except OSError:
            break
    tap.check("the terminal is left as it was",
              os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0)
    env = {**world.env}
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(SAMEPAGE, ["samepage", "top"], {**env, "TERM": "no-such-terminal"})
    said = b""
    while True:
        try:
            said += os.read(fd, 65536)
        except OSError:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tap.check("a terminal that nobody knows: status 1, names --batch",
              status == 1 and b"--batch" in said, (status, said))


def main():
    tap = Tap()
    with tempfile.TemporaryDirectory(prefix="samepage-test.") as folder:
        world = World(folder)
        try:
            test_usage(tap, world)
            if not world.start_broker():
                raise RuntimeError("samepaged does not start")
            curses = os.environ.get("CURSES") == "1"
            if curses:
                test_no_client(tap, world)
            if run(world.env, "check").returncode != 0:
                tap.skip("clients", "samepage check: merging does not work here")
            else:
                ready = [world.start_worker(*o) for o in ((), (), ("-d", "other"))]
                tap.check("three clients", all(ready))
                run(world.env, "merge", "--all")
                test_batch(tap, world)
                if curses:
                    top = test_screen(tap, world)
                    test_resize(tap, world, top)
                    test_silent(tap, world, top)
                    test_broker_gone(tap, world, top)
                    test_end(tap, world, top)
            if not curses:
                tap.skip("on a terminal", "built without ncurses")
        finally:
            world.end()
    print(f"1..{tap.n}")
    return tap.bad > 0


if __name__ == "__main__":
    sys.exit(main())
