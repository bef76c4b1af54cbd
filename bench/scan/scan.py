#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The background scanner against the kernel's ksmd: unthrottled, with its advisor, and none.

    scan-guard scan.py --build DIR [--output FILE] [--quick] [--only WORD] [--parts LIST]
                       [--keep FILE]

Run by bench/run.sh, through scan-guard, which puts KSM's settings back. Parts: arms, idle,
busy. --only: of the workloads, those whose name contains WORD. --output: docs/benchmarks.md,
of which the part between two marks is replaced; plots go to a folder beside it. Which
workloads, how long: plan.py. How one arm goes: converge.py. What the figures are: summary.py.

  machine, group, sampler   counting             contender             who merges
  workloads, guests         what is merged       idle, busy            the other two parts
  report, plots             what is written
"""
import argparse
import os
import subprocess
import sys
import time

import plots
from busy import Busy, block_p99, busy
from converge import Limits, converge
from guests import Guests
from idle import idle
from machine import PAGE, Failed, ksm, memfds, read, which
from plan import Plan
from report import Report, number, verdict
from summary import MIB, Summary
from workloads import Redis, Set

HERE = os.path.dirname(os.path.abspath(__file__))


def image(build):
    """Where the guests' image is, made if it has to be; None and why."""
    folder = os.environ.get("SAMEPAGE_BENCH_CACHE", os.path.join(build, "bench-cache"))
    os.makedirs(folder, exist_ok=True)
    done = subprocess.run([os.path.join(HERE, "..", "vm", "image.sh"), folder], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1:]
    return done.stdout.strip(), None


def tell(text):
    print(text, flush=True)


def show(result):
    f = result.rows[-1]
    tell(f"{result.workload}: {result.contender}: saved {result.final / MIB:.1f} MiB since the "
         f"start, {result.cpu(f):.2f} CPU s in {result.seconds(f):.1f} s")


def ideal_pages(workload):
    """What a set's content allows: half is in all, a quarter in two."""
    half, quarter = workload.pages // 2, workload.pages // 4
    return half * (workload.count - 1) + quarter * (workload.count // 2)


def own_bytes(arm, result):
    """From outside: the broker's anonymous memory, its memfds but the store's, and what the
    clients' private memory has grown by beyond their data."""
    broker = read(f"/proc/{arm.contender.broker.pid}/smaps_rollup")
    private = sum(int(line.split()[1]) * 1024 for line in broker.splitlines()
                  if line.startswith("Anonymous:"))
    clients = (result.after["anonymous"] + result.after["store_pages"] -
               result.before["anonymous"]) * PAGE
    return private + memfds(arm.contender.broker.pid, "-store") + clients


def metadata(arm, result):
    workload = arm.workload
    c = result.counters
    in_all = (ideal_pages(workload) * PAGE - result.final) / (workload.count * workload.pages)
    if "status" in c:
        scan = c["status"]["scan"]
        tracked = scan["pages_tracked"] + scan["pages_merged"]
        scanner, own = scan["metadata_bytes"], own_bytes(arm, result)
    else:
        tracked, scanner = c["tracked_pages"], c["metadata_bytes"]
        own = scanner
    if tracked:
        ours = "status" in c
        result.metadata = [f"{result.contender}, {workload.name}", tracked,
                           number(scanner / tracked, 1), number(own / tracked, 1),
                           f"<= 12: {verdict(own / tracked, 12)}" if ours else "",
                           number(in_all, 1)]


def balloon(arm, result):
    """Guests give half of their memory back, or what they can do without; they are checked
    afterwards anyway."""
    workload = arm.workload
    before = arm.programs.frames(workload.pids())
    workload.balloon(max(workload.mib // 2, workload.data_mib + 128))
    time.sleep(1)
    after = arm.programs.frames(workload.pids())
    workload.balloon(workload.mib)
    result.balloon = (before, after)


def in_the_end(arm, result):
    """What is measured only of some, before the last check."""
    result.balloon = result.metadata = None
    if isinstance(arm.workload, Guests) and arm.contender.name == "samepage":
        balloon(arm, result)
    if isinstance(arm.workload, Set) and arm.contender.name in ("samepage", "ksmd"):
        metadata(arm, result)


def balloon_text(result):
    before, after = result.balloon
    return ("### Ballooning\n\nMerged guests were asked for half of their memory, and given it "
            f"back ({result.contender}): pages mapped from the store {before['store_pages']} -> "
            f"{after['store_pages']}, anonymous {before['anonymous']} -> {after['anonymous']}; "
            "their memory and files were right afterwards. That what was given back reads zeros "
            "is shown by the test real-guests.\n")


def is_missing(workload, report):
    for program in workload.needs:
        if not which(program)[0]:
            report.skipped.append(f"{workload.name} (no {program})")
            return True
    return False


def undisturbed(tools, workload, contender, limits, report):
    """Once more where ksmd had to look at much memory of others (that of other tests)."""
    for left in (1, 0):
        result = converge(tools, workload, contender, limits, in_the_end)
        others = result.counters.get("others_pages", 0)
        if others <= 0.05 * result.before["anonymous"]:
            break
        tell(f"{workload.name}: {contender.name}: KSM knew {others} pages of other programs")
        if not left:
            report.skipped.append(f"{workload.name}, {contender.name}, without others: KSM knew "
                                  f"{others} pages of other programs")
    return result


def run_workload(tools, plan_row, limits, report, results):
    workload, contenders, times = plan_row
    for _ in range(times):
        for contender in contenders:
            result = undisturbed(tools, workload, contender, limits, report)
            show(result)
            if result.balloon and not report.balloon:
                report.balloon = balloon_text(result)
            if result.metadata and contender.name not in {r.contender for r in results}:
                report.metadata.append(result.metadata)
            results.append(result)


def run_arms(tools, plan, limits, only, report):
    by_name = {}
    for i, row in enumerate(plan.arms):
        name = row[0].name
        if only not in name or is_missing(row[0], report):
            continue
        of = by_name.setdefault(name, [])
        if i in report.arms:
            of += report.arms[i]
        else:
            try:
                run_workload(tools, row, limits, report, of)
                report.arms[i] = of[len(of) - row[2] * len(row[1]):]
                report.keep()
            except Failed as why:
                report.skipped.append(f"{name}: {why}")
                tell(f"{name}: {why}")
        # So far, should somebody stop it.
        report.summaries = [Summary(n, r) for n, r in by_name.items()
                            if {"nothing", "ksmd", "samepage"} <= {x.contender for x in r}]


def run_idle(tools, plan, limits, _, report):
    if report.idle:
        return
    samepage = next(c for c in plan.busy_contenders if c.name == "samepage")
    report.idle = idle(tools, Set(*plan.idle_set), samepage, limits, plan.idle)
    tell("idle: CPU ms a minute and GiB, seconds to notice: " + ", ".join(
        f"{w.name} {w.cpu * 1e3:.1f}, {number(w.mean)}" for w in report.idle))


def run_busy(tools, plan, _, __, report):
    b = plan.busy
    if is_missing(Redis(1, 1), report):
        return
    report.busy = report.busy or {c.name: [] for c in plan.busy_contenders}
    for i in range(min(map(len, report.busy.values())), b["repeat"]):
        turn = i % len(plan.busy_contenders)
        for contender in plan.busy_contenders[turn:] + plan.busy_contenders[:turn]:
            phases = busy(tools, Busy(b["keys"], *b["set"]), contender, b["rate"], b["seconds"])
            report.busy[contender.name].append(phases)
            tell(f"busy redis: {contender.name}: p99 " + ", ".join(
                f"{p} {block_p99(phases, p):.0f} us" for p in phases))


def draw(report, output):
    folder = os.path.join(os.path.dirname(os.path.abspath(output)), "plots")
    os.makedirs(folder, exist_ok=True)
    for old in os.listdir(folder):
        if old.startswith("scan-"):
            os.unlink(os.path.join(folder, old))
    for s in report.summaries:
        report.plots += plots.draw(s, folder, "plots")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--output")
    parser.add_argument("--quick", action="store_true",
                        default=os.environ.get("SAMEPAGE_BENCH_QUICK", "") not in ("", "0"))
    parser.add_argument("--only", default="")
    parser.add_argument("--parts", default="arms,idle,busy")
    parser.add_argument("--keep", help="a file: results so far, to go on from there")
    args = parser.parse_args()
    build = os.path.abspath(args.build)
    tools = os.path.join(build, "bench")
    begin = time.monotonic()
    os.environ.setdefault("REAL_ROOT", os.path.join(build, "real-root"))
    if ksm("run"):
        raise Failed("KSM is in use on this machine: its settings are somebody's")
    where, why = image(build)
    plan, limits = Plan(build, where, args.quick), Limits(args.quick)
    report = Report(plan, args.keep)
    if why:
        report.skipped.append("QEMU guests (" + " ".join(why) + ")")
    parts = {"idle": run_idle, "busy": run_busy, "arms": run_arms}
    try:
        for name, run in parts.items():
            if name in args.parts:
                try:
                    run(tools, plan, limits, args.only, report)
                    report.keep()
                except Failed as failure:
                    report.skipped.append(f"{name}: {failure}")
                    tell(f"{name}: {failure}")
    finally:
        if args.output:
            if plots.have():
                draw(report, args.output)
            report.write(args.output)
        tell(report.text())
    tell(f"scan: {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except Failed as why_not:
        sys.exit(f"scan: {why_not}")
