#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Judge a boot of the guest by its console and its report (see init/init.c).

A test is a TAP line of the report. A command that ended badly without a "not ok", that
printed fewer tests than it planned, or that printed none and failed, is one more failed
test; one that printed none and ended well is one that passed. So is the guest as a whole:
it has to report to the end, with the nonce of this boot, untainted, without a leak, and
without a word of the kernel's on the console that something is wrong.

The control (--control) is a kernel without the series: what is called "merge: ..." has to
fail there, for a test that passes without the feature tests nothing.
"""
import argparse
import re
import sys

BAD = re.compile(
    r"\bBUG\b|\bWARNING\b|\bOops\b|KASAN|KCSAN|UBSAN|Kernel panic|general protection|"
    r"possible .*(deadlock|recursive locking)|circular locking|inconsistent lock|"
    r"suspicious RCU|bad unlock|held lock freed|still has locks held|lock held when returning|"
    r"sleeping function|scheduling while atomic|soft lockup|hard LOCKUP|"
    r"blocked for more than|rcu.*(stall|detected)|Bad page|bad pmd|bad pte|Bad rss-counter|"
    r"Bad swap|ODEBUG|kernel BUG|refcount_t|list_(add|del) corruption|"
    r"Object padding|Redzone|Poison overwritten|Objects remaining|page_table_check|"
    r"unreferenced object|Call Trace|stack-protector|Unable to handle",
)
# What only announces that it will watch.
FINE = re.compile(
    r"^\[[^]]*\] (init: |kmemleak: Kernel memory leak detector initialized|"
    r".*RCU lockdep checking is enabled|.*page_table_check.*enabled)",
)
TEST = re.compile(r"^(not )?ok\b\s*(\d+)?\s*-?\s*(.*)$")
MARK = re.compile(r"#\s*(skip|todo|xfail)\b", re.I)


class Verdict:
    def __init__(self, name, control):
        self.name, self.control = name, control
        self.passed = self.failed = self.skipped = 0

    def say(self, good, what, why=""):
        n = self.passed + self.failed + self.skipped + 1
        text = f"{'ok' if good else 'not ok'} {n} - {self.name}: {what}"
        print(text + (f" ({why})" if why else ""))
        if good:
            self.passed += 1
        else:
            self.failed += 1

    def skip(self, what):
        n = self.passed + self.failed + self.skipped + 1
        print(f"ok {n} - {self.name}: {what}")
        self.skipped += 1

    def test(self, good, what):
        if self.control and what.startswith("merge: "):
            self.say(not good, what, "fails without the feature" if not good
                     else "passes without the feature")
        else:
            self.say(good, what)


class Command:
    """What one command of the list printed and how it ended."""

    def __init__(self, words):
        self.words, self.tests, self.plan, self.end = words, [], None, None
        self.lines = []

    def line(self, text):
        self.lines.append(text)
        m = re.match(r"^1\.\.(\d+)", text)
        if m:
            self.plan = int(m.group(1))
            if self.plan == 0 and MARK.search(text):
                self.tests.append(("skip", text))
            return
        m = TEST.match(text)
        if not m:
            return
        mark = MARK.search(m.group(3))
        what = m.group(3) or self.words
        if mark and mark.group(1).lower() == "skip":
            self.tests.append(("skip", what))
        elif m.group(1) and not (mark and mark.group(1).lower() == "todo"):
            self.tests.append(("bad", what))
        else:
            self.tests.append(("good", what))

    def judge(self, verdict, bench):
        bad = verdict.failed
        if bench:
            self.tests = []
        for result, what in self.tests:
            if result == "skip":
                verdict.skip(what)
            else:
                verdict.test(result == "good", what)
        ended_well = self.end == "exit 0"
        some_bad = any(result == "bad" for result, _ in self.tests)
        if self.plan and not bench and self.plan != len(self.tests):
            verdict.say(False, self.words, f"{self.plan} planned, {len(self.tests)} done")
        if self.end == "exit 4" and not some_bad:
            if not self.tests:
                verdict.skip(f"{self.words} # SKIP")
        elif not ended_well and not some_bad:
            verdict.say(False, self.words, self.end or "never ended")
        elif not ended_well and not (self.end or "").startswith("exit"):
            verdict.say(False, self.words, self.end or "never ended")
        elif not self.tests:
            verdict.say(True, self.words)
        if verdict.failed > bad:
            sys.stderr.write("".join(f"  | {text}\n" for text in self.lines[-200:]))


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return [line.rstrip("\r\n") for line in f]
    except OSError:
        return []


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="guest")
    parser.add_argument("--nonce", required=True)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--bench", action="store_true")
    parser.add_argument("console")
    parser.add_argument("report")
    parser.add_argument("qemu", nargs="?")
    args = parser.parse_args()
    verdict = Verdict(args.name, args.control)
    console, report = read(args.console), read(args.report)

    commands, current, facts = [], None, {}
    for text in report:
        m = re.match(r"^# run (.*)", text)
        if m:
            current = Command(m.group(1))
            commands.append(current)
            continue
        m = re.match(r"^# (exit \d+|signal \d+|timeout.*)$", text)
        if m and current:
            current.end, current = m.group(1), None
            continue
        m = re.match(r"^# (tainted|leaks|done) (.*)", text)
        if m and not current:
            facts[m.group(1)] = m.group(2)
            continue
        if current:
            current.line(text)
    for command in commands:
        command.judge(verdict, args.bench)

    why = []
    if facts.get("done") != f"{args.nonce} {len(commands)}":
        why.append("the report is not whole")
    if args.status:
        why.append("ended by the clock" if args.status in (124, 137)
                   else f"QEMU: status {args.status}")
    if not commands:
        why.append("nothing was run")
    if "tainted" in facts and int(facts["tainted"]):
        why.append(f"tainted: {facts['tainted']}")
    if int(facts.get("leaks", 0)):
        why.append(f"{facts['leaks']} leaks")
    bad = [text for text in console if BAD.search(text) and not FINE.search(text)]
    if not console:
        why.append("no console")
    if bad:
        why.append(f"the console: {bad[0]}")
    if why:
        first = next((i for i, text in enumerate(console) if text in bad), None)
        show = console[first:first + 80] if first is not None else console[-40:]
        sys.stderr.write("".join(f"  | {text}\n" for text in show))
        for text in read(args.qemu) if args.qemu else []:
            sys.stderr.write(f"  | qemu: {text}\n")
        for text in report:
            if text.startswith("# kmemleak:"):
                sys.stderr.write(f"  | {text}\n")
    verdict.say(not why, "reports to the end, with a clean console", "; ".join(why))
    print(f"{args.name}: {verdict.passed} passed, {verdict.failed} failed, "
          f"{verdict.skipped} skipped")
    return verdict.failed > 0


if __name__ == "__main__":
    sys.exit(main())
