#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# KSM's own calls, made by a program that knows of nothing else (ksm-user.c): the
# same answers as the kernel's, and memory merged, left alone and given back as they
# ask for. What is merged is proved by page frame numbers. If this failed, programs
# written for KSM would get errors, no merging, or merging that they had refused; or
# their children would; or KSM would do the same work again. TAP on stdout.
#
# usage: ksm-abi.py BUILD_DIR KSM_USER
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

build, user = sys.argv[1:3]
samepage = os.path.join(build, "samepage")
page = resource.getpagesize()
work = tempfile.mkdtemp(prefix="samepage-test.")
count = 0
failed = 0
MERGEABLE, UNMERGEABLE = 12, 13
ON, OFF, GET = "prctl 67 1 0 0 0", "prctl 67 0 0 0 0", "prctl 68 0 0 0 0"


def check(what, is_so, seen=""):
    global count, failed
    count += 1
    print(("ok" if is_so else "not ok"), count, "-", what, flush=True)
    if not is_so:
        failed = 1
        print("#  ", seen, flush=True)


def equal(what, seen, wanted):
    check(what, seen == wanted, f"seen {seen!r}, wanted {wanted!r}")


def skip(what, why):
    global count
    count += 1
    print("ok", count, "-", what, "# SKIP", why, flush=True)


class User:
    """ksm-user: alone (options None), or under samepage run with options."""

    def __init__(self, options=None, **env):
        run = [] if options is None else [samepage, "run", *options, "--"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SAMEPAGE")}
        clean["SAMEPAGE_SOCKET"] = work + "/broker.sock"
        self.p = subprocess.Popen(
            [*run, user], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**clean, **env})

    def __call__(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        return self.p.stdout.readline().strip()

    def advise(self, region, advice, first=0, pages=64):
        return self(f"advise {region} {first * page} {pages * page} {advice}")

    def shared(self, region, first=0, pages=32):
        return int(self(f"shared {region} {first} {pages}"))

    def merge(self):
        # Status 3: it has only just started, and the broker does not know it yet.
        for _ in range(200):
            r = subprocess.run([samepage, "merge", str(self.p.pid)], capture_output=True,
                               text=True,
                               env={**os.environ, "SAMEPAGE_SOCKET": work + "/broker.sock"})
            if r.returncode != 3:
                break
            time.sleep(0.05)
        if r.returncode != 0:
            print("# merge:", r.returncode, r.stderr.strip(), flush=True)

    def end(self):
        self.p.stdin.close()
        return self.p.wait(timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.p.stdin.close()
        self.p.kill()
        self.p.wait()


# The same answers as without samepage, with nothing merged and with all of it merged.
SAME = f"""map
map
map
advise 0 0 {64 * page} {MERGEABLE}
advise 0 0 {64 * page} {MERGEABLE}
advise 0 1 {page} {MERGEABLE}
advise 0 1 {page} {UNMERGEABLE}
advise 0 0 0 {MERGEABLE}
advise 0 1 0 {MERGEABLE}
advise 0 0 -1 {MERGEABLE}
advise 0 0 {-2 * page} {UNMERGEABLE}
advise 0 0 {page - 1} {UNMERGEABLE}
MERGE
good 0
hole 1 8 1
advise 1 0 {16 * page} {MERGEABLE}
advise 1 0 {16 * page} {UNMERGEABLE}
advise 1 {8 * page} {page} {MERGEABLE}
{ON}
{GET}
MERGE
prctl 67 1 1 0 0
prctl 67 1 0 1 0
prctl 67 1 0 0 1
prctl 67 0 0 0 1
prctl 68 1 0 0 0
prctl 68 0 1 0 0
prctl 68 0 0 1 0
prctl 68 0 0 0 1
sysprctl 68 0 0 0 0
sysprctl 67 0 1 0 0
{OFF}
sysprctl 68 0 0 0 0
{OFF}
prctl 67 77 0 0 0
sysprctl 68 0 0 0 0
fork
vfork
execve
execle
spawn
system
sysprctl 67 0 0 0 0
fork
vfork
execve
execle
spawn
system
prctl 99999 0 0 0 0
prctl 0x53564d41 0 0 0 0
prctl 0x53564d41 1 0 0 0
advise 2 0 {64 * page} {UNMERGEABLE}
good 2""".split("\n")


def replies(options):
    with User(options) as u:
        out = []
        for line in SAME:
            if line == "MERGE":
                if options is not None:
                    u.merge()
                continue
            out.append((line, u(line)))
        return out


def same_answers():
    plain = replies(None)
    if (GET, "1 0") not in plain:
        skip("the kernel's answers", "a kernel without KSM's prctl")
        return
    for options in [], ["--scope", "advised"], ["--ksm"]:
        seen = replies(options)
        differ = [(p[0], p[1], s[1]) for p, s in zip(plain, seen) if p != s]
        check(f"answers as without samepage, {' '.join(options) or 'scope all'}", not differ,
              f"(call, plain, with): {differ}")


def by_madvise(scope):
    with User(["--scope", scope]) as u:
        one, other = u("map"), u("map")
        u.advise(one, MERGEABLE)
        u.merge()
        equal(f"{scope}: what was advised is merged", u.shared(one), 32)
        equal(f"{scope}: what was not advised", u.shared(other), 32 if scope == "all" else 0)
        equal(f"{scope}: UNMERGEABLE of some pages", u.advise(one, UNMERGEABLE, 4, 6), "0 0")
        equal(f"{scope}: those are private when it returns", u.shared(one, 4, 6), 0)
        equal(f"{scope}: their neighbours are as they were", u.shared(one), 26)
        u.merge()
        u.merge()
        equal(f"{scope}: and they stay private", u.shared(one, 4, 6), 0)
        equal(f"{scope}: all bytes are right", u("good " + one), "yes")
        u.advise(one, MERGEABLE)
        equal(f"{scope}: KSM was not asked to do it again", u("mg " + one), "0")
        equal(f"{scope}: UNMERGEABLE with a gap", (u(f"hole {one} 40 1"),
              u.advise(one, UNMERGEABLE)), ("0 0", "-1 12"))
        equal(f"{scope}: behind the gap as well", u.shared(one, 0, 8) + u.shared(one, 9, 23), 0)


def not_writable():
    """What cannot be written now: private when the call returns 0, untouched if EAGAIN."""
    with User([]) as u:
        one = u("map")
        u.merge()
        before = u.shared(one)
        u(f"protect {one} 0 64 1")
        ret = u.advise(one, UNMERGEABLE)
        check("read-only memory: private, or EAGAIN and as it was",
              (ret, u.shared(one)) in (("0 0", 0), ("-1 11", before)), ret)
        u(f"protect {one} 0 64 3")
        equal("and private when it can be written again",
              (u.advise(one, UNMERGEABLE), u.shared(one), u("good " + one)), ("0 0", 0, "yes"))


def in_the_middle_of_a_pass():
    """UNMERGEABLE comes while merge after merge is under way: none may finish behind it."""
    with User([]) as u:
        going = True

        def merges():
            while going:
                u.merge()

        thread = threading.Thread(target=merges)
        thread.start()
        at_once = later = seen = 0
        try:
            for _ in range(14):
                r = u("map")
                for _ in range(50):
                    if u.shared(r) > 0:
                        seen += 1
                        break
                u.advise(r, UNMERGEABLE)
                at_once += u.shared(r)
                time.sleep(0.02)
                later += u.shared(r)
        finally:
            going = False
            thread.join()
        check("merges were under way", seen > 0, seen)
        equal("refused in the middle of a pass: private at once, and later", (at_once, later),
              (0, 0))


def refused_before():
    with User([]) as u:
        one = u("map")
        u.advise(one, UNMERGEABLE)
        u.merge()
        equal("scope all: refused before the first merge", u.shared(one), 0)
        u.advise(one, MERGEABLE)
        u.merge()
        equal("and wanted after all", u.shared(one), 32)


def by_prctl():
    with User(["--scope", "advised"]) as u:
        before = u("map")
        equal("the switch is off at first", u(GET), "0 0")
        equal("and goes on", (u(ON), u(GET)), ("0 0", "1 0"))
        after = u("map")
        u.advise(after, UNMERGEABLE, 0, 4)
        u.merge()
        equal("memory from before is merged", u.shared(before), 32)
        equal("memory from after is, but not what madvise took out", u.shared(after), 28)
        equal("clearing", (u(OFF), u(GET)), ("0 0", "0 0"))
        equal("unmerges before it returns", u.shared(before) + u.shared(after), 0)
        third = u("map")
        u.merge()
        equal("nothing is merged from there on",
              u.shared(before) + u.shared(after) + u.shared(third), 0)
        u.advise(third, MERGEABLE)
        u.merge()
        equal("except what is advised", u.shared(third), 32)
        u(OFF)
        equal("which stays, for the switch was off", u.shared(third), 32)
        check("all bytes are right", all(u("good " + r) == "yes" for r in (before, after, third)))


def off_in_scope_all():
    with User([]) as u:
        one, two = u("map"), u("map")
        u.advise(two, MERGEABLE)
        u.merge()
        equal("scope all: all is merged", u.shared(one) + u.shared(two), 64)
        equal("cleared, though never set", u(OFF), "0 0")
        equal("leaves what was advised, unmerges the rest", (u.shared(one), u.shared(two)), (0, 32))
        three = u("map")
        u.merge()
        equal("and holds for later passes and mappings", u.shared(one) + u.shared(three), 0)
        u(ON)
        u.merge()
        # What was merged once and is private again (one) is not merged a second time.
        equal("until it is set", u.shared(three), 32)
        u(OFF)
        equal("clearing what was set takes all back",
              sum(u.shared(r) for r in (one, two, three)), 0)


def inheritance():
    ways = "fork", "vfork", "execve", "execle", "spawn", "system"
    with User([]) as u:
        equal("children before", [u(w) for w in ways], ["0"] * 6)
        u(ON)
        equal("children of one that set it", [u(w) for w in ways], ["1"] * 6)
        u(OFF)
        equal("children of one that cleared it", [u(w) for w in ways], ["0"] * 6)
    with User([], SAMEPAGE_MERGE_ANY="1") as u:
        equal("born with it", (u(GET), u("execve")), ("1 0", "1"))
        equal("and its own entry follows", (u(OFF), u("env")), ("0 0", "0"))


def to_the_kernel():
    with User(None) as u:
        one = u("map")
        u.advise(one, MERGEABLE)
        if u("mg " + one) == "0":
            skip("--ksm", "a kernel without KSM")
            return
    with User(["--ksm", "--scope", "advised"]) as u:
        one = u("map")
        equal("--ksm: madvise goes to the kernel", (u.advise(one, MERGEABLE), u("mg " + one)),
              ("0 0", "1"))
        u.merge()
        equal("--ksm: and to us", u.shared(one), 32)
        equal("--ksm: and back from both", (u.advise(one, UNMERGEABLE), u("mg " + one),
                                            u.shared(one)), ("0 0", "0", 0))
        two = u("map")
        u(ON)
        check("--ksm: prctl goes to the kernel", int(u("mg " + two)) > 0)
        u(OFF)
        equal("--ksm: and is cleared there", u("mg " + two), "0")
    with User([], SAMEPAGE_OFF="1") as u:
        one = u("map")
        u.advise(one, MERGEABLE)
        equal("SAMEPAGE_OFF: straight to the kernel", u("mg " + one), "1")
        u(ON)
        equal("SAMEPAGE_OFF: prctl too", (u(GET), u("execve")), ("1 0", "1"))
    # As a service manager does it: the kernel's own switch, before our time.
    code = ("import ctypes, os, sys; ctypes.CDLL(None).prctl(67, 1, 0, 0, 0);"
            "os.execv(sys.argv[1], sys.argv[1:])")
    with User([]) as u:
        u.end()
        u.p = subprocess.Popen(
            ["python3", "-c", code, samepage, "run", "--scope", "advised", "--", user],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "SAMEPAGE_SOCKET": work + "/broker.sock"})
        one = u("map")
        u.merge()
        equal("the kernel's switch from outside is ours as well", (u(GET), u.shared(one)),
              ("1 0", 32))
        equal("and is cleared with ours", (u(OFF), u("mg " + one), u.shared(one)), ("0 0", "0", 0))


def main():
    log = open(work + "/broker.log", "w")
    broker = subprocess.Popen([os.path.join(build, "samepaged"), "--socket",
                               work + "/broker.sock"], stdout=log, stderr=log)
    for name in ("SAMEPAGE_SCOPE", "SAMEPAGE_OFF", "SAMEPAGE_KSM", "SAMEPAGE_MERGE_ANY",
                 "SAMEPAGE_DOMAIN", "LD_PRELOAD"):
        os.environ.pop(name, None)
    try:
        for _ in range(100):
            if os.path.exists(work + "/broker.sock"):
                break
            time.sleep(0.05)
        same_answers()
        if os.geteuid() != 0:
            skip("merging", "page frame numbers need root")
        else:
            by_madvise("all")
            by_madvise("advised")
            refused_before()
            not_writable()
            in_the_middle_of_a_pass()
            by_prctl()
            off_in_scope_all()
            to_the_kernel()
        inheritance()
        print(f"1..{count}")
    finally:
        broker.send_signal(signal.SIGTERM)
        try:
            broker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            broker.kill()
        shutil.rmtree(work)
    sys.exit(failed)


main()
