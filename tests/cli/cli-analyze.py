#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""samepage analyze against processes whose pages are known, and against KSM.

If this failed, it would promise savings that are not there, or miss some; count pages for
the wrong process, pair, kind or reason; change the processes that it looks at; take a
process that exits or denies access for an error of its own; or print a report that does
not keep to its schema, or a page that no browser shows.
"""
import atexit
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SAMEPAGE = os.environ["SAMEPAGE"]
KNOWN = os.environ["KNOWN"]
SCHEMA = os.environ["SCHEMA"]
PAGE = os.sysconf("SC_PAGESIZE")
KSM = "/sys/kernel/mm/ksm/"
ROOT = os.geteuid() == 0

count = 0
bad = False
running = []
tmp = tempfile.mkdtemp(prefix="samepage-test.")


class Skip(Exception):
    pass


def random_addresses():
    """For a child: also where the tests themselves run without, as sanitizers want it."""
    libc = ctypes.CDLL(None)
    libc.personality(libc.personality(0xffffffff) & ~0x0040000)  # ADDR_NO_RANDOMIZE


def known(*words, program=KNOWN, **options):
    """Starts a process with such memory; its number."""
    p = subprocess.Popen([program, *words, "its-number"], stdout=subprocess.PIPE, env={},
                         preexec_fn=random_addresses, **options)
    running.append(p)
    assert p.stdout.readline() == b"ready\n"
    return p


def end(*processes):
    for p in processes or list(running):
        p.kill()
        p.wait()
        p.stdout.close()
        running.remove(p)


def samepage(*words, status=0, **options):
    r = subprocess.run([SAMEPAGE, "analyze", *map(str, words)], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=240, **options)
    assert status is None or r.returncode == status, (r.returncode, r.stdout[-2000:], r.stderr)
    return r


def report(*words, status=0, **options):
    return json.loads(samepage("--json", *words, status=status, **options).stdout)


def pids(processes):
    return [p.pid for p in processes]


def pids_of(o):
    return [p["pid"] for p in o["processes"]]


def of(o, pid):
    return next(p for p in o["processes"] if p["pid"] == pid)


def test(what):
    def run(f):
        global count, bad
        count += 1
        try:
            f()
            print(f"ok {count} - {what}", flush=True)
        except Skip as why:
            print(f"ok {count} - {what} # SKIP {why}", flush=True)
        except Exception as error:  # whatever it was: the next test is another matter
            bad = True
            print(f"not ok {count} - {what}", flush=True)
            for line in f"{type(error).__name__}: {error}".splitlines()[:60]:
                print("#", line[:2000])
            line = error.__traceback__
            while line:
                print(f"#   line {line.tb_lineno}")
                line = line.tb_next
        finally:
            end()
    return run


def clean_up():
    for p in running:
        p.kill()
    shutil.rmtree(tmp, ignore_errors=True)


atexit.register(clean_up)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


# the model: what a list of known processes comes to -----------------------------------

def contents(words, pid):
    """Content of each page of the mapping: None where there is no private one; 0: zeros."""
    pages = []
    for w in words:
        m = re.fullmatch(r"([a-z])(\d+)(?::(\d+))?", w)
        if not m:
            continue
        kind, a, b = m[1], int(m[2]), int(m[3] or 0)
        if kind == "d":
            pages += [a + i + 1 for i in range(b)]
        elif kind == "c":
            pages += [900000 + i + 1 for i in range(a)]
        elif kind == "u":
            pages += [(pid, len(pages) + i) for i in range(a)]
        elif kind == "z":
            pages += [0] * a
        else:
            pages += [None] * a
    return pages


def model(world):
    """world: list of (pid, contents), in order. What merging all of it comes to."""
    where = {}
    for pid, pages in world:
        for c in pages:
            if c:
                where.setdefault(c, []).append(pid)
    many = {c for c, who in where.items() if len(who) > 1}
    slot, runs, added = {}, [], 0
    for pid, pages in world:
        state = []
        for c in pages:
            state.append(slot.setdefault(c, len(slot)) if c in many else None)
        mappings, run = 0, 0
        for i, s in enumerate(state):
            joins = i > 0 and (state[i - 1] is None if s is None else
                               state[i - 1] is not None and s == state[i - 1] + 1)
            if joins:
                run += s is not None
                continue
            mappings += 1
            runs += [run] if run else []
            run = int(s is not None)
        runs += [run] if run else []
        added += mappings - 1
    matrix = {}
    for a, _ in world:
        for b, _ in world:
            matrix[a, b] = sum(who.count(a) - 1 if a == b else b in who
                               for who in where.values() if a in who)
    return {
        "pages": sum(len(w) for w in where.values()),
        "zero": sum(p.count(0) for _, p in world),
        "duplicate": sum(len(where[c]) for c in many),
        "slots": len(many),
        "saved": sum(len(where[c]) - 1 for c in many),
        "runs": runs, "vmas_added": added, "matrix": matrix,
    }


def lengths(runs):
    buckets = {}
    for r in runs:
        first = 1 << (r.bit_length() - 1)
        n, pages = buckets.get(first, (0, 0))
        buckets[first] = (n + 1, pages + r)
    return buckets


def check_against_model(specs, report_of=report, kind="anonymous"):
    processes = sorted((known(*s) for s in specs), key=lambda p: p.pid)
    by_pid = {p.pid: p.args[1:] for p in processes}
    m = model([(p.pid, contents(by_pid[p.pid], p.pid)) for p in processes])
    o = report_of(*pids(processes))
    all_, sums = o["scopes"]["all"], o["kinds"][kind]
    assert sums["pages"] == m["pages"], (sums, m["pages"])
    assert sums["duplicate"] == m["duplicate"], (sums, m["duplicate"])
    assert abs(sums["saved"] - m["saved"]) < 0.01, (sums, m["saved"])
    # a page of a stack may be full of zeros
    assert m["zero"] <= o["pages"]["zero"] <= m["zero"] + 3 * len(processes), o["pages"]
    for key in ("duplicate", "slots", "saved", "vmas_added"):
        assert all_[key] == m[key], (key, all_[key], m[key])
    assert all_["runs"] == len(m["runs"]), (all_["runs"], m["runs"])
    found = {b["from"]: (b["runs"], b["pages"]) for b in all_["run_lengths"] if b["runs"]}
    assert found == lengths(m["runs"]), (found, lengths(m["runs"]))
    numbers = o["matrix"]["pids"]
    for i, a in enumerate(numbers):
        for k, b in enumerate(numbers):
            assert o["matrix"]["rows"][i][k] == m["matrix"][a, b], (a, b)
    assert o["matrix"]["left_out"] == 0
    net = m["saved"] * PAGE - m["slots"] * o["surroundings"]["slot_bytes"] - \
        m["vmas_added"] * o["surroundings"]["vma_bytes"]
    assert abs(all_["net_bytes"] - net) < 1, (all_["net_bytes"], net)
    return o, processes


# tests ------------------------------------------------------------------------------

@test("duplicates, zeros, holes, runs, mappings and pairs are those that are there")
def _():
    o, processes = check_against_model([
        ["d0:64", "u32", "z16", "h64", "d1000:7", "r8", "u1", "d0:3"],
        ["u5", "d32:32", "d0:32", "z3", "d1000:1", "u1", "d1001:1", "h2", "d1002:1"],
        ["d5:1", "h1", "d6:1", "u1", "d1000:7", "r8"],
        ["u10", "z10", "r10"],
    ])
    assert o["pages"]["zero_mapped"] >= 26, o["pages"]
    for p in processes:
        one = of(o, p.pid)
        assert one["state"] == "read" and one["why"] is None
    assert o["scopes"]["process"]["saved"] == 3, o["scopes"]["process"]
    assert o["scopes"]["user"]["saved"] == o["scopes"]["all"]["saved"]


@test("the same with one thread and with four")
def _():
    for n in 1, 4:
        check_against_model([["d0:500", "u500", "z100"], ["d250:500", "u300", "h7", "d0:9"]],
                            lambda *p, n=n: report("--threads", n, *p))
        end()


@test("kinds: executable anonymous, patched text, a file's data, guest RAM, stack")
def _():
    machine = os.path.join(tmp, "qemu-known")
    shutil.copy(KNOWN, machine)
    o, _p = check_against_model([["d0:64", "u8", "executable"], ["d0:64", "executable"]], kind="jit")
    end()
    a = known("u1", "patched", "file")
    b = known("d0:4500", program=machine)
    kinds = report(a.pid, b.pid)["kinds"]
    assert kinds["patched_text"]["pages"] == 1, kinds
    assert kinds["library_data"]["pages"] == 1, kinds
    assert kinds["guest_ram"]["pages"] == 4500, kinds
    assert kinds["stack"]["pages"] >= 2, kinds


@test("pages that differ in an address only: in the way, and saved by one layout")
def _():
    if open("/proc/sys/kernel/randomize_va_space", encoding="ascii").read().strip() == "0":
        raise Skip("addresses are not random here")
    a, b = known("a20", "u5"), known("a20", "u5")
    o = report(a.pid, b.pid)
    assert o["kinds"]["anonymous"]["almost"] == 40, o["kinds"]["anonymous"]
    assert o["scopes"]["all"]["saved"] == 0 and 20 <= o["scopes"]["layout"]["saved"] <= 22, o["scopes"]
    assert o["scopes"]["layout"]["estimate"] and not o["scopes"]["all"]["estimate"]
    # another program is no replica, wherever it is put
    other = os.path.join(tmp, "other")
    shutil.copy(KNOWN, other)
    c = known("a20", "u5", program=other)
    o = report(a.pid, c.pid)
    assert o["kinds"]["anonymous"]["almost"] == 40, o["kinds"]["anonymous"]
    assert o["scopes"]["layout"]["saved"] <= 2, o["scopes"]["layout"]  # of their stacks


@test("locked memory and huge pages among the duplicates")
def _():
    a, b = known("d0:40", "locked"), known("d0:40")
    o = report(a.pid, b.pid)
    assert o["obstacles"]["locked_duplicate"] == 40, o["obstacles"]
    assert of(o, a.pid)["locked_bytes"] >= 40 * PAGE
    end()
    with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as f:
        if "[never]" in f.read():
            raise Skip("no huge pages here")
    a, b = known("d0:1024", "huge"), known("d0:600")
    with open(f"/proc/{a.pid}/smaps_rollup", encoding="ascii") as f:
        huge = int(re.search(r"AnonHugePages:\s+(\d+)", f.read())[1]) * 1024 // PAGE
    if huge < 1024:
        raise Skip("the kernel gave no huge pages")
    o = report(a.pid, b.pid)
    assert of(o, a.pid)["huge"] == 1024 and o["obstacles"]["huge_duplicate"] == 600, o["obstacles"]


def picture(pid):
    """What must not change: sizes, and each page's state and frame."""
    text = open(f"/proc/{pid}/smaps_rollup", encoding="ascii").read()
    sizes = {k: v for k, v in re.findall(r"(\w+):\s+(\d+) kB", text)
             if k in ("Rss", "Pss", "Anonymous", "Private_Dirty", "Shared_Dirty", "Swap", "KSM")}
    pages = []
    with open(f"/proc/{pid}/pagemap", "rb") as f, open(f"/proc/{pid}/maps", encoding="ascii") as m:
        for line in m:
            if "vsyscall" in line:
                continue
            start, stop = (int(x, 16) for x in line.split()[0].split("-"))
            f.seek(start // PAGE * 8)
            pages.append(f.read((stop - start) // PAGE * 8))
    return sizes, pages


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return int(f.read().split()[0])


def untouched():
    """New processes, looked at in all ways: are they as before? And what was reported."""
    a = known("d0:64", "s100", "h500", "r50", "z20", "u30", "patched", "file")
    b = known("d0:64", "h100", "u9")
    who = [a.pid, child_of(a.pid), b.pid]
    before = [picture(p) for p in who]
    same = True
    for n in 1, 2:
        o = report("--threads", n, *who)
        same = same and [picture(p) for p in who] == before
    samepage("--watch", 1, "--looks", 2, *who)
    return same and [picture(p) for p in who] == before, o, who


@test("nothing is populated, unshared or moved: sizes, states and frames stay")
def _():
    # The kernel moves pages by itself now and then (compaction): not each time, though.
    for _ in range(4):
        same, o, who = untouched()
        if same:
            break
    assert same
    # all 264 were there when it forked; what the parent wrote since is its own
    assert of(o, who[1])["forked"] >= 100 and of(o, who[0])["forked"] >= 100, o["processes"]
    assert o["scopes"]["all"]["saved"] == 0, o["scopes"]["all"]


@test("pages shared since fork are one page already: not counted as savings")
def _():
    a, b = known("s100"), known("s100")
    o = report(a.pid, child_of(a.pid), b.pid, child_of(b.pid))
    assert o["scopes"]["all"]["saved"] == 0 and o["pages"]["forked"] >= 400, o["pages"]


class Ksm:
    """KSM's settings: saved, and put back however this ends."""

    def __enter__(self):
        self.saved = {}
        for name in ("run", "sleep_millisecs", "pages_to_scan", "max_page_sharing", "use_zero_pages",
                     "smart_scan", "advisor_mode"):
            if os.path.exists(KSM + name):
                value = open(KSM + name, encoding="ascii").read().strip()
                chosen = re.search(r"\[(.*?)\]", value)
                self.saved[name] = chosen[1] if chosen else value
        atexit.register(self.restore)
        return self

    def set(self, name, value):
        if name in self.saved:
            with open(KSM + name, "w", encoding="ascii") as f:
                f.write(str(value))

    def get(self, name):
        return int(open(KSM + name, encoding="ascii").read())

    def restore(self):
        for name in sorted(self.saved, key=lambda n: n == "run"):
            try:
                self.set(name, self.saved[name])
            except OSError as e:
                print(f"# {name} could not be put back: {e}")
        self.saved = {}

    def __exit__(self, *_):
        self.restore()


@test("what it promises is what KSM's pages_sharing comes to on the same processes")
def _():
    if not ROOT or not os.path.exists(KSM + "run"):
        raise Skip("needs root and a kernel with KSM")
    with Ksm() as ksm:
        for _i in range(60):
            if ksm.get("run") == 0 and ksm.get("pages_shared") == 0:
                break
            time.sleep(1)
        else:
            raise Skip("somebody else uses KSM")
        ksm.set("advisor_mode", "none")
        ksm.set("smart_scan", 0)
        ksm.set("use_zero_pages", 0)
        processes = [known("d0:300", "u50", "d100:20", "mergeable"), known("d0:200", "u20", "mergeable"),
                     known("u9", "d250:100", "mergeable")]
        who = pids(processes)
        before = report(*who)
        promised = before["scopes"]["all"]["saved"]
        assert promised == 270, promised  # 20 + 200 + 50
        ksm.set("sleep_millisecs", 0)
        ksm.set("pages_to_scan", 20000)
        ksm.set("run", 1)
        seen, scans = [], ksm.get("full_scans")
        for _i in range(600):
            seen.append((ksm.get("pages_sharing"), ksm.get("pages_shared")))
            if len(seen) > 10 and len(set(seen[-8:])) == 1 and seen[-1][0] and \
               ksm.get("full_scans") > scans + 4:
                break
            time.sleep(0.1)
        ksm.set("run", 0)
        sharing, shared = seen[-1]
        mine = sum(int(open(f"/proc/{p}/ksm_merging_pages", encoding="ascii").read()) for p in who)
        if mine != sharing + shared:
            raise Skip("somebody else began to use KSM")
        assert sharing == promised, (sharing, promised)
        assert shared == before["scopes"]["all"]["slots"], (shared, before["scopes"]["all"]["slots"])
        pictures = [picture(p) for p in who]
        after = report(*who)
        assert after["pages"]["ksm"] == sharing + shared, after["pages"]
        assert after["scopes"]["all"]["saved"] == 0, after["scopes"]["all"]
        assert [picture(p) for p in who] == pictures, "looking at merged pages changed them"
        assert (ksm.get("pages_sharing"), ksm.get("pages_shared")) == (sharing, shared)
        end()
        ksm.set("run", 2)  # unmerge what is left, so that others find it as it was


@test("a process that exits in the middle is a line in the report")
def _():
    stay = known("d0:50")
    for attempt in range(30):
        large = known("u40000")
        p = subprocess.Popen([SAMEPAGE, "analyze", "--json", "--threads", "1", str(large.pid),
                              str(stay.pid)], stdout=subprocess.PIPE, text=True)
        time.sleep(0.02 + attempt * 0.01)
        end(large)
        out = p.communicate(timeout=120)[0]
        assert p.returncode == 0, p.returncode
        o = json.loads(out)
        gone = of(o, large.pid)
        assert of(o, stay.pid)["state"] == "read"
        if gone["state"] == "exited" and gone["command"] == "cli-known":
            assert o["kinds"]["anonymous"]["pages"] == 50, o["kinds"]["anonymous"]
            return
    raise Skip("never hit it in the middle")


@test("no such process; only such: status 1")
def _():
    gone = known("u1")
    end(gone)
    stay = known("u1")
    o = report(gone.pid, stay.pid)
    assert of(o, gone.pid)["state"] == "exited" and "exited" in of(o, gone.pid)["why"]
    text = samepage(gone.pid, stay.pid).stdout
    assert f"{gone.pid} " in text and "exited before it was read" in text
    r = samepage(gone.pid, status=1)
    assert "no process could be read" in r.stderr


@test("a process that maps and unmaps all the time is read as far as it goes")
def _():
    a, b = known("d0:30", "churn"), known("d0:30")
    for _i in range(10):
        o = report(a.pid, b.pid)
        assert of(o, a.pid)["state"] == "read", of(o, a.pid)
        assert o["scopes"]["all"]["saved"] == 30, o["scopes"]["all"]


@test("mappings that split and grow together while they are listed count once")
def _():
    a = known("u6000", "split")
    for n in 1, 4:
        for _i in range(8):
            o = report("--threads", n, a.pid)
            assert o["scopes"]["all"]["saved"] == 0, o["scopes"]["all"]
            assert o["kinds"]["anonymous"]["pages"] <= 6000, o["kinds"]["anonymous"]


@test("memory that several numbers share is read once: a thread's, a vfork child's")
def _():
    a = known("u50", "thread")
    thread = int(a.stdout.readline())
    if not thread:
        raise Skip("not on this processor")
    o = report(a.pid, thread)
    assert pids_of(o) == [a.pid] and o["kinds"]["anonymous"]["pages"] == 50, o["processes"]
    assert pids_of(report(thread)) == [a.pid]
    end()
    a = known("u50", "vm", "locked")
    child = int(a.stdout.readline())
    try:
        o = report(a.pid, child)
        why = f"shares the memory of {a.pid}"
        assert of(o, child)["state"] == "shares_memory" and of(o, child)["why"] == why, o["processes"]
        assert o["scopes"]["all"]["saved"] == 0 and o["kinds"]["anonymous"]["pages"] == 50, o["scopes"]
        assert o["pages"]["locked_bytes"] == 50 * PAGE, o["pages"]
        assert why in samepage(a.pid, child).stdout
    finally:
        os.kill(child, signal.SIGKILL)


@test("a process that begins another program while it is read is read then")
def _():
    # so many pages that it is read several times as fast as it begins anew, also with sanitizers
    seconds = report("--threads", 1, known("u3000").pid)["read_seconds"]
    pages = max(50, min(3000, int(3000 * 0.006 / seconds)))
    p = subprocess.Popen([KNOWN, f"u{pages}", "exec", "its-number"], stdout=subprocess.PIPE, env={})
    running.append(p)
    time.sleep(0.1)
    states = [of(report("--threads", 1, p.pid, status=None), p.pid)["state"] for _i in range(40)]
    assert states.count("read") >= 36, (pages, states)


@test("guard pages are not swap")
def _():
    a = known("g500", "u50")
    with open(f"/proc/{a.pid}/status", encoding="utf-8") as f:
        swap = int(re.search(r"VmSwap:\s+(\d+)", f.read())[1]) * 1024 // PAGE
    o = report(a.pid)
    assert of(o, a.pid)["swapped"] <= swap and o["kinds"]["anonymous"]["pages"] == 50, o["processes"]


@test("access that is denied is a line in the report; denied everywhere: status 1")
def _():
    if not ROOT or not shutil.which("setpriv"):
        raise Skip("needs root and setpriv")
    yama = "/proc/sys/kernel/yama/ptrace_scope"
    if os.path.exists(yama) and open(yama, encoding="ascii").read().strip() != "0":
        raise Skip("ptrace_scope keeps users from their own processes")
    os.chmod(tmp, 0o755)
    names = {}
    for name, path in (("samepage", SAMEPAGE), ("known", KNOWN)):
        names[name] = shutil.copy(path, os.path.join(tmp, name))
        os.chmod(names[name], 0o755)
    mine = known("d0:20")
    command = ["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups"]
    p = subprocess.Popen([*command, names["known"], "d0:20", "its-number"], stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]})
    running.append(p)
    assert p.stdout.readline() == b"ready\n"
    def as_user(*pid):
        r = subprocess.run([*command, names["samepage"], "analyze", "--json", *map(str, pid)],
                           capture_output=True, text=True, timeout=60)
        return r.returncode, json.loads(r.stdout), r.stderr
    status, o, _err = as_user(mine.pid, p.pid)
    assert status == 0 and of(o, mine.pid)["state"] == "denied", (status, o["processes"])
    assert of(o, p.pid)["state"] == "read" and o["kinds"]["anonymous"]["pages"] == 20
    status, o, err = as_user(mine.pid)
    assert status == 1 and "no process could be read; root may" in err, (status, err)
    # two users: what trust costs
    o = report(mine.pid, p.pid)
    assert o["scopes"]["all"]["saved"] == 20 and o["scopes"]["user"]["saved"] == 0, o["scopes"]
    assert o["scopes"]["user"]["groups"] == 2


def cgroup_root():
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if os.path.exists(root + "/cgroup.procs"):
            with open("/proc/self/cgroup", encoding="ascii") as f:
                for line in f:
                    _n, name, path = line.strip().split(":", 2)
                    if name == "memory" and root.endswith("memory") or not name and "memory" not in root:
                        return root + (path if os.path.isdir(root + path) else "")
    raise Skip("no cgroups")


@test("--cgroup: what is in it and below it, by folder and by name; each by itself")
def _():
    top = f"{cgroup_root()}/samepage-test-{os.getpid()}"
    made = []
    try:
        try:
            for path in (top, top + "/one", top + "/two"):
                os.mkdir(path)
                made.append(path)
            a, b, c = known("d0:20"), known("d0:20"), known("d0:20")
            for path, p in ((top + "/one", a), (top + "/two", b)):
                with open(path + "/cgroup.procs", "w", encoding="ascii") as f:
                    f.write(str(p.pid))
        except OSError as e:
            raise Skip(f"cannot make cgroups: {e}") from e
        o = report("--cgroup", top)
        assert {p["pid"] for p in o["processes"]} == {a.pid, b.pid}, o["processes"]
        assert o["scopes"]["all"]["saved"] == 20 and o["scopes"]["cgroup"]["saved"] == 0, o["scopes"]
        name = of(o, a.pid)["cgroup"]
        assert name.endswith("/one"), name
        o = report("--cgroup", os.path.dirname(name))
        assert {p["pid"] for p in o["processes"]} == {a.pid, b.pid}, o["processes"]
        long = "x" * 130
        for path in (f"{top}/{long}", f"{top}/{long}/{long}", f"{top}/{long}/{long}/a", f"{top}/{long}/{long}/b"):
            os.mkdir(path)
            made.append(path)
        for path, p in ((made[-2], a), (made[-1], b)):
            with open(path + "/cgroup.procs", "w", encoding="ascii") as f:
                f.write(str(p.pid))
        o = report(a.pid, b.pid)  # names that differ behind what is shown of them
        assert o["scopes"]["cgroup"]["groups"] == 2 and o["scopes"]["cgroup"]["saved"] == 0, o["scopes"]
        r = samepage("--cgroup", "", status=2)
        r = samepage("--cgroup", "/no/such/cgroup", status=1)
        assert "cannot read cgroup" in r.stderr and c.pid
    finally:
        end()
        for path in reversed(made):
            for _i in range(50):
                try:
                    os.rmdir(path)
                    break
                except OSError:
                    time.sleep(0.1)


@test("--all: everybody but itself and kernel threads")
def _():
    a, b = known("d0:300"), known("d0:300")
    o = report("--all")
    assert of(o, a.pid)["state"] == "read" and of(o, b.pid)["sums"]["duplicate"] >= 300
    assert not any(p["command"] == "samepage" and p["state"] == "no_memory" for p in o["processes"])
    assert not any(p["pid"] == 2 for p in o["processes"])
    if ROOT:
        with open("/proc/2/comm", encoding="ascii") as f:
            if f.read().strip() == "kthreadd":
                r = samepage("--json", 2, a.pid)
                assert of(json.loads(r.stdout), 2)["state"] == "no_memory"


@test("--watch: which savings stay when pages change")
def _():
    a, b = known("d0:512", "c256", "u256"), known("d0:512", "c256", "u256")
    p = subprocess.Popen([SAMEPAGE, "analyze", "--watch", "1", str(a.pid), str(b.pid)],
                         stdout=subprocess.PIPE, text=True)
    lines = [p.stdout.readline()]
    assert lines[0].startswith("look 1 ") and "to save 3.0 MiB" in lines[0], lines
    for q in a, b:
        q.send_signal(signal.SIGUSR1)
        assert q.stdout.readline() == b"changed\n"
    lines.append(p.stdout.readline())
    while "to save 2.0 MiB; 2.0 MiB by pages unchanged since the look before, 2.0" not in lines[-1]:
        assert len(lines) < 5, lines  # a look may have begun before both had changed
        lines.append(p.stdout.readline())
    p.send_signal(signal.SIGINT)
    rest = p.communicate(timeout=60)[0]
    assert p.returncode == 0 and "Over " in rest and "what would last" in rest, rest
    o = report("--watch", 1, "--looks", 3, a.pid, b.pid)
    assert o["looks"] == 3 and len(o["course"]) == 3
    for m in o["course"][1:]:
        assert m["saved_stayed"] == m["saved_lasted"] == m["saved"] == 512, o["course"]
        assert m["stayed"] == m["lasted"] == m["pages"], o["course"]
    assert o["lasting"]["lasted"]["saved"] == 512 and o["own_bytes_a_page"] < 200


@test("--watch: pages that changed once are stable again, but have not lasted")
def _():
    a, b = known("d0:100", "c50"), known("d0:100", "c50")
    p = subprocess.Popen([SAMEPAGE, "analyze", "--watch", "2", "--looks", "4", "--json", str(a.pid),
                          str(b.pid)], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    a.send_signal(signal.SIGUSR1)
    a.stdout.readline()
    o = json.loads(p.communicate(timeout=120)[0])
    last = o["course"][-1]
    if o["course"][0]["saved"] != 150 or o["course"][2]["saved"] != 100:
        raise Skip("the machine is too busy for this")
    assert last["pages"] - last["stayed"] == 0, o["course"]
    # its stack may have changed, too
    assert 50 <= last["pages"] - last["lasted"] <= 52, o["course"]


def watch_until_gone(p, *words):
    """Ends the process after the first look; the report."""
    w = subprocess.Popen([SAMEPAGE, "analyze", "--watch", "1", *words], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    assert w.stdout.readline().startswith("look 1 ")
    end(p)
    return w


@test("--watch ends when nobody is left, with what the last look found")
def _():
    a = known("d0:512", "d0:512")
    w = watch_until_gone(a, str(a.pid))
    out, err = w.communicate(timeout=60)
    assert w.returncode == 0 and "nobody is left" in err, (w.returncode, err)
    assert re.search(r"^everybody +1 +2\.0 ", out, re.M), out
    top = f"{cgroup_root()}/samepage-watch-{os.getpid()}"
    try:
        os.mkdir(top)
    except OSError as e:
        raise Skip(f"cannot make cgroups: {e}") from e
    try:
        a = known("d0:512", "d0:512")
        with open(top + "/cgroup.procs", "w", encoding="ascii") as f:
            f.write(str(a.pid))
        w = watch_until_gone(a, "--cgroup", top)
    finally:
        end()
        for _i in range(50):
            try:
                os.rmdir(top)
                break
            except OSError:
                time.sleep(0.02)
    out, err = w.communicate(timeout=60)
    assert w.returncode == 0 and "nobody is left" in err, (w.returncode, err)
    assert re.search(r"^everybody +1 +2\.0 ", out, re.M), out


@test("--watch: who ends while it is read takes nothing of the look before along")
def _():
    a = known("d0:30000", "d0:30000")
    for attempt in range(8):
        w = subprocess.Popen([SAMEPAGE, "analyze", "--threads", "1", "--watch", "1", str(a.pid)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert w.stdout.readline().startswith("look 1 ")
        time.sleep(0.98 + attempt * 0.02)
        end(a)
        out, err = w.communicate(timeout=60)
        assert w.returncode == 0 and "nobody is left" in err, (w.returncode, err)
        assert re.search(r"^everybody +1 +117\.2 ", out, re.M), out
        a = known("d0:30000", "d0:30000")


@test("Ctrl-C in a single look: what was read so far")
def _():
    large = known("u60000")
    for attempt in range(20):
        p = subprocess.Popen([SAMEPAGE, "analyze", "--json", "--threads", "1", str(large.pid)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(0.03 + 0.01 * attempt)
        p.send_signal(signal.SIGINT)
        out = p.communicate(timeout=60)[0]
        if p.returncode == -signal.SIGINT:
            continue  # it had not begun
        o = json.loads(out)
        if o["interrupted"]:
            assert of(o, large.pid)["state"] == "not_read" and p.returncode == 1
            return
    raise Skip("never hit it in the middle")


@test("JSON keeps to its schema")
def _():
    try:
        import jsonschema
    except ImportError as e:
        raise Skip("python3-jsonschema is not there") from e
    with open(SCHEMA, encoding="utf-8") as f:
        schema = json.load(f)
    jsonschema.Draft7Validator.check_schema(schema)
    a, b = known("d0:20", "s5"), known("d0:20", "u3")
    gone = known("u1")
    end(gone)
    check = jsonschema.Draft7Validator(schema)
    for words in ([a.pid, b.pid, gone.pid], ["--watch", 1, "--looks", 2, a.pid, b.pid], ["--all"]):
        o = report(*words)
        errors = [f"{list(e.path)}: {e.message}" for e in check.iter_errors(o)]
        assert not errors, errors[:5]
        del o["scopes"]["user"]
        assert list(check.iter_errors(o)), "the schema allows anything"


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    if ROOT and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"],
                       env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"), timeout=240,
                       stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if shutil.which("chromium"):
            return "chromium"
    raise Skip("chromium is not there, and could not be installed")


@test("--html: one page that a browser shows, with all of its plots")
def _():
    if os.environ["PLOTS"] != "1":
        a = known("u1")
        assert "built without plots" in samepage("--html", "x.html", a.pid, status=1).stderr
        raise Skip("built without Chart.js")
    name = os.path.join(tmp, "<img src=x>")
    shutil.copy(KNOWN, name)
    processes = [known("d0:64", "u9", "a5"), known("d0:64", "z9", "a5"), known("d3:60", program=name)]
    page = os.path.join(tmp, "page.html")
    samepage("--html", page, "--watch", 1, "--looks", 2, *pids(processes))
    text = open(page, encoding="utf-8").read()
    assert "<img src=x>" not in text and "\\u003cimg src=x>" in text
    own = text[:text.index("<script>")] + text[text.rindex("<script>"):]
    assert not re.search(r"(src|href)\s*=\s*[\"']", own), "the page wants something from elsewhere"
    assert "Released under the MIT License" in text
    browser = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={tmp}/browser", "--virtual-time-budget=5000", "--window-size=1280,3000"]
    r = subprocess.run([*browser, "--dump-dom", "file://" + page], capture_output=True, text=True,
                       timeout=180, check=False)
    body = re.search(r"<body[^>]*>", r.stdout)
    assert body, (r.stdout[:500], r.stderr[-500:])
    assert 'data-plots="5"' in body[0] and "data-error" not in body[0], body[0]
    shown = re.sub(r"<script.*?</script>", "", r.stdout, flags=re.S)
    for word in ("By kind of mapping", "What trust costs", "Run lengths", "Pairs", "Over time", "In the way",
                 "&lt;img src=x&gt;"):
        assert word in shown, word
    shot = os.path.join(tmp, "shot.png")
    subprocess.run([*browser, f"--screenshot={shot}", "file://" + page], capture_output=True, timeout=180,
                   check=False)
    assert os.path.getsize(shot) > 50000, "an empty picture"


@test("--html: a file that cannot be written is an error")
def _():
    if os.environ["PLOTS"] != "1":
        raise Skip("built without Chart.js")
    a = known("u1")
    r = samepage("--html", "/no/such/folder/x", "--watch", 3600, a.pid, status=1)
    assert "cannot write" in r.stderr and "look 1" not in r.stdout, r
    page = os.path.join(tmp, "old.html")
    with open(page, "w", encoding="ascii") as f:
        f.write("old")
    os.chmod(page, 0o640)
    samepage("--html", page, "--cgroup", "/no/such/cgroup", status=1)
    assert open(page, encoding="ascii").read() == "old"
    samepage("--html", page, a.pid)
    assert open(page, encoding="utf-8").read().startswith("<!") and os.stat(page).st_mode & 0o777 == 0o640
    assert [n for n in os.listdir(tmp) if n.startswith("old.html")] == ["old.html"]
    r = samepage("--html", "-", "--watch", 1, "--looks", 2, a.pid)
    assert r.stdout.startswith("<!") and r.stdout.rstrip().endswith("</html>"), r.stdout[-200:]
    assert "look 2 " in r.stderr and "-: 1 processes" in r.stderr, r.stderr
    if os.path.exists("/dev/full"):
        assert "cannot write" in samepage("--html", "/dev/full", a.pid, status=1).stderr


@test("the report for people says the same as the one for programs")
def _():
    a, b = known("d0:2560", "z256"), known("d0:2560", "u256")
    text = samepage(a.pid, b.pid).stdout
    for pattern in (r"^2 processes, 2\d\.\d MiB of private memory", r"equal to another page +20\.0 MiB",
                    r"^everybody +1 +10\.0 ", r"^each process +2 +0\.0 ", r"^one layout \(est\.\)",
                    r"^other anonymous +21\.0 +20\.0 +10\.0 ", r"^ +2048 to 4095 +2 +20\.0 ",
                    r"Pages of zeros come on top: 1\.0 MiB", r"^  pins: "):
        assert re.search(pattern, text, re.M), (pattern, text)


print(f"1..{count}")
sys.exit(1 if bad else 0)
