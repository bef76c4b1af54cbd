# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of docs/benchmarks.md that is about the background scanner.

It stands between two marks, so that it can be made again without the rest.
"""
import os
import pickle
import platform
import re
from statistics import median

from busy import PHASES, block_p99, interval, ratios
from machine import KSM, PAGE, meminfo, read

BEGIN, END = "<!-- SCAN -->", "<!-- /SCAN -->"
MIB = 1 << 20


def number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def verdict(value, goal, most=True):
    """Against a goal: at most, or at least."""
    if value is None:
        return "not measured"
    return "reached" if (value <= goal if most else value >= goal) else "NOT REACHED"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |",
                      "|---|" + "---:|" * (len(head) - 1),
                      *("| " + " | ".join(map(str, r)) + " |" for r in rows)]) + "\n"


class Report:
    """Everything that was measured, as Markdown; what was not measured is not in it."""

    def __init__(self, plan, kept=None):
        self.plan = plan
        self.kept = kept
        self.arms = {}         # {row of the plan: results}, of those that are complete
        self.summaries = []
        self.idle = None
        self.busy = None       # {contender: [{phase: figures}]}
        self.metadata = []     # rows
        self.balloon = None
        self.plots = []
        self.skipped = []
        if kept and os.path.exists(kept):
            with open(kept, "rb") as f:
                for name, value in pickle.load(f).items():
                    setattr(self, name, value)

    KEPT = ("arms", "idle", "busy", "metadata", "balloon")

    def keep(self):
        """What has been measured, should somebody stop it: the whole takes half an hour."""
        if self.kept:
            with open(self.kept, "wb") as f:
                pickle.dump({n: getattr(self, n) for n in self.KEPT}, f)

    # --- the parts -----------------------------------------------------------

    def machine(self):
        model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
        kept = ", ".join(f"{n} {read(KSM + n).strip()}" for n in (
            "merge_across_nodes", "use_zero_pages", "smart_scan", "max_page_sharing"))
        load = read("/proc/loadavg").split()[0]
        return (
            f"- {model.group(1) if model else platform.machine()}, {os.cpu_count()} CPUs, "
            f"{meminfo('MemTotal') / (1 << 30):.1f} GiB, pages of {PAGE} bytes; Linux "
            f"{platform.release()}; load average at the end {load}\n"
            f"- ksmd: run 1, sleep_millisecs 0, pages_to_scan 100000, advisor none. advisor: the "
            f"kernel's scan-time advisor as it is by default (sleep_millisecs 20, target "
            f"{read(KSM + 'advisor_target_scan_time').strip()} s). Left alone: {kept}\n"
            "- samepage: as it is by default; programs under `samepage run`, scope all, QEMU "
            "scope advised\n"
            "- programs get KSM by PR_SET_MEMORY_MERGE, QEMU by its own madvise. Every arm: fresh "
            "processes, an empty store, KSM's lists empty. The clock starts when merging is let "
            "go, everything being ready (KSM: run 1; samepage: `samepage resume`)\n"
            "- memory and programs' CPU by a control group of the arm's own: anonymous, shmem, "
            "page tables, mappings and the kernel's other memory for them, each page once, broker "
            "and store included; KSM's items (which no group is charged for) by their count\n")

    def goals(self):
        rows = []
        for s in self.summaries:
            ours, ksm = s.of.get("samepage"), s.of.get("ksmd")
            if not ours or not ksm:
                continue
            cpu = s.ratio("cpu")
            goal = 0.4 if "guests" in s.workload else 0.5
            saved = s.ratio("saved")
            later = (ours.seconds is not None and
                     (ksm.seconds is None or ours.seconds <= ksm.seconds))
            rows.append([s.workload, number(ours.seconds), number(ksm.seconds),
                         "reached" if later else "NOT REACHED", number(cpu),
                         f"<= {goal}: {verdict(cpu, goal)}", number(saved),
                         f">= 0.95: {verdict(saved, 0.95, False)}",
                         number(s.ratio("busy"))])
        text = table(["workload", "seconds to 90 %", "ksmd", "no later", "CPU, of ksmd's",
                      "to reach", "saved, of ksmd's", "to reach", "while busy"], rows)
        for s in self.summaries:
            if s.workload == "set of 1 GiB" and "samepage" in s.of:
                value = s.of["samepage"].seconds
                text += (f"\n1 GiB: {number(value)} s to 90 %; to reach: <= 1: "
                         f"{verdict(value if value is not None else 1e9, 1)}.\n")
        return text

    def workload(self, s):
        rows = []
        for name, f in s.of.items():
            part = 100 * f.saved / s.mergeable if s.mergeable > 0 else None
            rows.append([name, number(f.saved / MIB, 1), number(part, 1),
                         number(f.busy and f.busy / MIB, 1),
                         number(f.seconds), number(f.cpu), number(f.own_seconds),
                         number(f.own_cpu), number(f.all_cpu), number(f.all_seconds, 1),
                         number(f.group_cpu), number(f.more / MIB, 1),
                         number(f.frames * PAGE / MIB, 1), number(f.vmas_a_page, 3),
                         f.most_vmas])
        return table(["", "saved, MiB", "% of the most", "while busy", "s to 90 %", "CPU s until then",
                      "s to 90 % of its own", "CPU s", "CPU s in all", "in s", "CPU of group",
                      "more at the start, MiB", "frames, MiB", "VMAs a merged page",
                      "most VMAs"], rows)

    def pings(self, s):
        rows = []
        for name, f in s.of.items():
            times = sorted(t * 1e3 for r in f.results for _, t in r.pings)
            if times:
                rows.append([name, len(times), number(median(times), 1),
                             number(times[int(len(times) * 0.9)], 1), number(times[-1], 1)])
        return rows and ("\nA guest asked for an answer, ms:\n\n" + table(
            ["", "times", "median", "90th percentile", "longest"], rows))

    def idle_text(self):
        ours, ksm = self.idle
        if not ksm.notice:
            return "ksmd noticed nothing in time.\n"
        equal = ksm.cpu * ksm.mean / ours.mean
        ratio = ours.cpu / equal if equal else None
        rows = [[w.name, number(w.cpu * 1e3, 2), number(w.group_cpu * 1e3, 2),
                 number(w.mean), number(min(w.notice)), number(max(w.notice)), len(w.notice),
                 w.missed, w.scans] for w in self.idle]
        return table(["", "CPU, ms a minute and GiB", "of the group", "noticed after s (mean)",
                      "least", "most", "pairs", "not noticed", "scans in the window"], rows) + (
            f"\nksmd's CPU at samepage's time to notice (in proportion): {equal * 1e3:.1f} ms; "
            f"samepage's part of that: {number(ratio, 4)}; to reach: <= 0.02: "
            f"{verdict(ratio, 0.02)}.\n")

    def busy_text(self):
        rows, text = [], ""
        busy = {name: runs for name, runs in self.busy.items() if runs}
        fields = ("p50_usec", "p99_usec", "p999_usec")
        nothing = busy.get("nothing", [])
        for phase in PHASES:
            for name, runs in busy.items():
                of = ratios(runs, nothing, phase)
                where = interval(of)
                shown = f"{where[0]:.2f}-{where[1]:.2f}" if where else "-"
                rows.append([f"{phase}: {name}",
                             *(number(median(r[phase][f] for r in runs), 0) for f in fields),
                             number(median(block_p99(r, phase) for r in runs), 0),
                             number(median(of)) if of else "-", shown,
                             number(median(r[phase]["late_p99_usec"] for r in runs), 0)])
                if name != "nothing" and phase != "before" and of:
                    text += (f"\n{phase}: {name}: p99 {median(of):.2f} of no merging ({shown})"
                             f"{self.p99_goal(where) if name == 'samepage' else ''}.\n")
        return table(["microseconds", "p50", "p99", "p99.9", "p99 of blocks, median",
                      "of nothing's", "95 % of that", "client late, p99"], rows) + text

    @staticmethod
    def p99_goal(where):
        if not where or where[0] <= 1.05 < where[1]:
            return "; to reach: <= 1.05: not decided"
        return f"; to reach: <= 1.05: {verdict(where[1], 1.05)}"

    # --- all of it -----------------------------------------------------------

    def text(self):
        parts = [BEGIN, "## The background scanner beside ksmd\n", self.machine()]
        if self.skipped:
            parts.append("".join(f"- not measured: {s}\n" for s in self.skipped))
        parts += ["### In short\n",
                  "Saved: by how much memory has gone down since merging was let go; what programs "
                  "need more under samepage before anything is merged is taken off. Mergeable: the "
                  "most that any contender has saved in the end. To 90 % of that; CPU: of ksmd's "
                  "thread, or of the engines' threads and the broker, until then. Saved is taken when "
                  "requests, if there are any, have stopped and memory does not go down any more; "
                  "while busy: the same before they stopped.\n", self.goals()]
        for s in self.summaries:
            workload = next(w for w, _, _ in self.plan.arms if w.name == s.workload)
            parts.append(f"### {s.workload[:1].upper() + s.workload[1:]}\n")
            parts.append(f"{workload.text[:1].upper() + workload.text[1:]}. Mergeable: "
                         f"{s.mergeable / MIB:.1f} MiB. Every byte was checked in the end.\n")
            parts.append(self.workload(s) + (self.pings(s) or ""))
            parts += [f"![{title}]({path})\n" for of, title, path in self.plots
                      if of == s.workload]
        if self.balloon:
            parts.append(self.balloon)
        if self.metadata:
            parts += ["### Metadata\n",
                      "Bytes for each page that is tracked, of the sets. Scanner: as the scanner "
                      "counts (KSM: its items and nodes). Own: from outside, the broker's "
                      "anonymous memory, its memfds but the store (index, candidates, rings) and "
                      "what clients have grown by. In all: by how much less was saved than the "
                      "content allows, the kernel's page tables and mappings and pages not merged "
                      "yet included.\n",
                      table(["", "pages tracked", "scanner", "own", "to reach", "in all"],
                            self.metadata)]
        if self.idle:
            parts += ["### Idle\n", "A set, merged, and nothing happens. New: two processes each "
                      "write a page that the other has, too.\n", self.idle_text()]
        if self.busy:
            b = self.plan.busy
            parts += ["### A busy redis beside it\n",
                      f"{b['rate']} requests a second at random times, {b['keys']} keys of 1000 "
                      f"bytes, in phases of {b['seconds']} s; its own memory is merged too, and "
                      f"that of {b['set'][0]} processes of {b['set'][1]} MiB beside it. "
                      f"{b['repeat']} repetitions, interleaved; medians. Compared are the medians of "
                      "p99 in blocks of half a second, with those of nothing in the same "
                      "repetition.\n", self.busy_text()]
        parts.append(END)
        return "\n".join(parts) + "\n"

    def write(self, path):
        old = read(path) if os.path.exists(path) else ""
        text = self.text()
        if BEGIN in old:
            text = re.sub(re.escape(BEGIN) + ".*" + re.escape(END) + "\n", lambda _: text, old,
                          flags=re.S)
        elif old:
            text = old.rstrip("\n") + "\n\n" + text
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
