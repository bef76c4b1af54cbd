# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `make run` shows: eight Python workers, merged while they work.

    demo.py [PATH-OF-samepage] [--workers N] [--quick]

Starts the workers (worker.py), each a process of its own under `samepage run`,
waits until they are ready, has `samepage merge` merge them (by themselves they do it
later, so that is switched off here), and shows what the
kernel says about it: proportional set sizes from /proc, not samepage's counters.
Every worker checks every byte of its data before and after.

The memory in use is counted like this, so that nothing is forgotten: what the
workers have without the store (PSS minus shared memory), plus every page of the
store, index and rings whether or not anybody maps it, plus the broker's own.

Three pools are tried: with the randomisation of addresses and hashes that is
usual; with one address layout for the pool; and with one hash seed as well, which
is shown in detail. Ends by itself, with status 0 if all data was right and
memory was saved; leaves no process, socket or mapping behind, on Ctrl-C neither.

Each pool has a broker of its own, so that no other store is counted. Users whose
brokers cannot stop writers (`samepage check`) use the one of root, if it lends them
what they lack; what it uses it then tells itself, for its /proc is closed to them.
Where merging does not work at all, one line says why and what cures it: status 1.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.realpath(sys.executable)  # a launcher script would be another process
MIB = 1 << 20
POOLS = (
    # domain, what it is called, options of samepage run, environment
    ("usual", "addresses and hashes random per process", ["--layout", "private"], {}),
    ("layout", "one address layout for the pool", ["--layout", "shared"], {}),
    ("seed", "one layout, one hash seed (PYTHONHASHSEED=0)", ["--layout", "shared"],
     {"PYTHONHASHSEED": "0"}),
)


def rollup(pid):
    """(PSS, the part of it that is shared memory), in bytes."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        lines = dict(line.split(":", 1) for line in f if ":" in line[:20])
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("Pss", "Pss_Shmem"))


def memfd_bytes(pid):
    """Memory behind the broker's memfds, each counted once."""
    files = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            if os.readlink(path).startswith("/memfd:"):
                st = os.stat(path)
                files[st.st_ino] = st.st_blocks * 512
        except FileNotFoundError:
            pass
    return sum(files.values())


def is_gone(pid):
    """No such process, or one that only waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Pool:
    """Workers of one domain, and what was measured about them."""

    def __init__(self, demo, domain, options, environment, count):
        self.demo = demo
        self.workers = []
        env = dict(demo.environment(), **environment)
        for number in range(1, count + 1):
            self.workers.append(subprocess.Popen(
                [demo.samepage, "run", "--domain", demo.domain(domain), *options, "--",
                 PYTHON, os.path.join(HERE, "worker.py"), str(number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                start_new_session=True))
            demo.running.append(self.workers[-1])
        for worker in self.workers:
            demo.expect(worker, "ready")

    def pids(self):
        return [worker.pid for worker in self.workers]

    def pss(self):
        return [rollup(pid)[0] for pid in self.pids()]

    def without_store(self):
        """The workers' own memory, whatever is in memfds not included."""
        return sum(pss - shared for pss, shared in map(rollup, self.pids()))

    def in_use(self):
        """All memory of workers, store and broker: (total, store, broker's own)."""
        store = broker = 0
        if self.demo.lent:
            store, broker = self.demo.told()
            store -= self.demo.others
            return self.without_store() + store + broker, store, broker
        pid = self.demo.broker_pid()
        if pid:
            pss, shared = rollup(pid)
            broker = pss - shared
            store = memfd_bytes(pid)
        return self.without_store() + store + broker, store, broker

    def merge(self):
        return json.loads(self.demo.run("merge", "--json", *map(str, self.pids())))

    def check(self):
        """Every worker verifies all of its data: how many found it the same."""
        for worker in self.workers:
            self.demo.say(worker, "check")
        return sum(self.demo.expect(worker, "same", "DIFFERENT") == "same"
                   for worker in self.workers)


class Demo:
    def __init__(self, samepage, folder, lent):
        self.samepage = samepage
        self.folder = folder
        self.lent = lent  # the socket of root's broker, "" for brokers of our own
        self.socket = lent
        self.pools = 0
        self.running = []
        self.broker = 0
        self.others = 0

    def next_broker(self):
        """A fresh one, so that no other pool's store is counted."""
        self.end()
        self.broker = 0
        self.pools += 1
        if self.lent:
            # What earlier pools left there lingers for some seconds; what is there
            # after that is other programs' of ours, and not to be counted.
            for _ in range(75):
                self.others, _ = self.told()
                if not self.others:
                    break
                time.sleep(0.2)
            return
        self.socket = os.path.join(self.folder, f"broker-{self.pools}.sock")

    def environment(self):
        # Else the workers have merged by themselves before anybody could measure.
        return dict(os.environ, SAMEPAGE_SOCKET=self.socket, SAMEPAGE_SCAN="off")

    def domain(self, name):
        """Root's broker outlives us: nobody else's domain, nor an earlier one of ours."""
        return f"demo-{os.getpid()}-{name}" if self.lent else name

    def run(self, *words):
        done = subprocess.run([self.samepage, *words], text=True, stdout=subprocess.PIPE,
                              env=self.environment(), check=False)
        if done.returncode:
            sys.exit(f"samepage {words[0]} failed with status {done.returncode}")
        return done.stdout

    def told(self):
        """Bytes of our stores and indexes in root's broker, and its own."""
        store = json.loads(self.run("status", "--json"))["store"]
        return (store["store_bytes"] + store["index_bytes"] if store["slots"] else 0,
                store["broker_bytes"])

    def broker_pid(self):
        """The broker that was started on demand, 0 if there is none (yet)."""
        if not self.broker and not self.lent and os.path.exists(self.socket):
            self.broker = check(self.samepage, self.environment())["broker"].get("pid", 0)
        return self.broker

    @staticmethod
    def say(worker, word):
        worker.stdin.write(word + "\n")
        worker.stdin.flush()

    @staticmethod
    def expect(worker, *words):
        line = worker.stdout.readline().split()
        if not line or line[0] not in words:
            sys.exit(f"worker {worker.pid} ended or said {' '.join(line)!r}")
        return line[0]

    def stop(self, worker):
        try:
            worker.stdin.close()
        except OSError:
            pass
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()
        if worker in self.running:
            self.running.remove(worker)

    def end(self):
        """Workers and broker; whatever happened, nothing stays behind."""
        for worker in list(self.running):
            worker.terminate()
        for worker in list(self.running):
            self.stop(worker)
        if not self.broker_pid() or is_gone(self.broker):
            return True
        # Started on demand, it ends by itself when nobody has needed it for a while;
        # the demonstration does not wait that long.
        try:
            os.kill(self.broker, signal.SIGTERM)
        except ProcessLookupError:
            return True
        for _ in range(100):
            if is_gone(self.broker):
                return True
            time.sleep(0.05)
        return False


def check(samepage, environment):
    done = subprocess.run([samepage, "check", "--json"], text=True, stdout=subprocess.PIPE,
                          env=environment, check=False)
    return json.loads(done.stdout)


def find_help(samepage, folder):
    """The socket of the broker to use, "" for brokers of our own; ends where neither helps."""
    own = check(samepage, dict(os.environ, SAMEPAGE_SOCKET=os.path.join(folder, "none.sock")))
    if own["works"]:
        return ""
    there = check(samepage, dict(os.environ))
    if there["works"] and there["broker"]["lends_userfaultfd"]:
        return there["broker"]["socket"]
    missing = [f"{name}: {f['cure']}" for name, f in own["features"].items()
               if f["needed"] and not f["present"]]
    return sys.exit(f"demo: merging {own['verdict']}: " + (
        "; ".join(missing) or "run this as root, or let root start a broker that lends one: "
        f"sudo {os.path.join(os.path.dirname(samepage), 'samepaged')}"))


def table(rows, left=()):
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(w) if c in left else cell.rjust(w)
                               for c, (cell, w) in enumerate(zip(row, widths))).rstrip())


def mib(count):
    return f"{count / MIB:.1f}"


def measure(demo, domain, options, environment, count):
    demo.next_broker()
    pool = Pool(demo, domain, options, environment, count)
    m = {"same": pool.check(), "count": count}
    m["before_each"] = pool.pss()
    m["before"] = pool.without_store()
    start = time.monotonic()
    m["merge"] = pool.merge()
    m["seconds"] = time.monotonic() - start
    m["after_each"] = pool.pss()
    m["after"], m["store"], m["broker"] = pool.in_use()
    m["same"] = min(m["same"], pool.check())
    m["worked"], _, _ = pool.in_use()
    m["pids"] = pool.pids()
    return m


def show(m):
    by_pid = {p["pid"]: p for p in m["merge"]["processes"]}
    rows = [("worker", "PSS MiB", "after", "saved", "pages merged", "zero", "VMAs added", "ms")]
    for i, pid in enumerate(m["pids"]):
        p = by_pid[pid]
        before, after = m["before_each"][i], m["after_each"][i]
        rows.append((str(pid), mib(before), mib(after), mib(before - after),
                     str(p["pages_merged"]), str(p["pages_zeroed"]), str(p["vmas_added"]),
                     f"{p['wall_usec'] / 1000:.0f}"))
    total = m["merge"]["total"]
    rows.append(("all", mib(sum(m["before_each"])), mib(sum(m["after_each"])),
                 mib(sum(m["before_each"]) - sum(m["after_each"])), str(total["pages_merged"]),
                 str(total["pages_zeroed"]), str(total["vmas_added"]),
                 f"{m['seconds'] * 1000:.0f}"))
    table(rows)
    print(f"\n  with everything counted (store and index {mib(m['store'])} MiB, broker "
          f"{mib(m['broker'])} MiB):\n"
          f"  {mib(m['before'])} MiB before, {mib(m['after'])} MiB after: "
          f"{mib(m['before'] - m['after'])} MiB saved "
          f"({100 * (m['before'] - m['after']) / m['before']:.0f} %)")
    print(f"  every byte checked, before and after, by {m['same']} of {m['count']} workers: "
          + ("the same" if m["same"] == m["count"] else "DIFFERENT"))
    print(f"  {mib(m['before'] - m['worked'])} MiB still saved after that check: Python counts "
          "references, so it writes to\n  every object that it reads; a page written "
          "after its merge stays private")


def demonstrate(demo, args):
    name, title, options, environment = POOLS[-1]
    print(f"{args.workers} Python workers under samepage: {title}", flush=True)
    detail = measure(demo, name, options, environment, args.workers)
    show(detail)
    results = [(title, detail)]
    if not args.quick:
        for name, title, options, environment in reversed(POOLS[:-1]):
            results.append((title, measure(demo, name, options, environment, args.workers)))
        print("\nWhat each setting brings:\n")
        table([("setting", "MiB", "after", "saved", "seconds")]
              + [(title, mib(m["before"]), mib(m["after"]),
                  f"{100 * (m['before'] - m['after']) / m['before']:.0f} %",
                  f"{m['seconds']:.2f}") for title, m in reversed(results)], left=(0,))
    return (all(m["same"] == m["count"] for _, m in results)
            and detail["before"] > detail["after"])


def main():
    parser = argparse.ArgumentParser(description="samepage at work on Python workers")
    parser.add_argument("samepage", nargs="?", default="build/samepage")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="only the last of the three pools")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    samepage = os.path.abspath(args.samepage)
    with tempfile.TemporaryDirectory(prefix="samepage-demo-") as folder:
        demo = Demo(samepage, folder, find_help(samepage, folder))
        try:
            good = demonstrate(demo, args)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # nobody reads on: nor is there a last flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            gone = demo.end()
    if not gone:
        print(f"broker {demo.broker} did not end", file=sys.stderr)
    return 0 if good and gone else 1


if __name__ == "__main__":
    sys.exit(main())
