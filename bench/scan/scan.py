#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The background scanner against the kernel's ksmd: unthrottled, with its advisor, and none.

    scan-guard scan.py --build DIR [--output FILE] [--quick] [--only WORD] [--parts LIST]

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
from busy import Busy, busy
from converge import Limits, converge
from idle import idle
from machine import PAGE, Failed, ksm, which
from plan import Plan
from report import Report, number, verdict
from summary import MIB, Summary
from workloads import Set

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


def metadata_row(workload, result):
    pages = workload.count * workload.pages
    in_all = (ideal_pages(workload) * PAGE - result.final) / pages
    if "status" in result.counters:
        scan = result.counters["status"]["scan"]
        store = result.counters["status"]["store"]
        tracked = scan["pages_tracked_now"] + scan["pages_merged_now"]
        own = (scan["metadata_bytes"] + store["index_bytes"]) / tracked if tracked else None
        return [f"samepage, {workload.name}", tracked, number(own, 1),
                f"<= 12: {verdict(own, 12)}", number(in_all, 1)]
    c = result.counters
    own = c["metadata_bytes"] / c["tracked_pages"] if c["tracked_pages"] else None
    return [f"{result.contender}, {workload.name}", c["tracked_pages"], number(own, 1), "",
            number(in_all, 1)]


def balloon(arm, result):
    """Guests give half of their memory back; they are checked afterwards anyway."""
    workload = arm.workload
    before = arm.programs.frames(workload.pids())
    workload.balloon(workload.mib // 2)
    time.sleep(1)
    after = arm.programs.frames(workload.pids())
    workload.balloon(workload.mib)
    result.balloon = (before, after)


def balloon_text(result):
    before, after = result.balloon
    return ("### Ballooning\n\nMerged guests were asked for half of their memory and given it "
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


def run_arms(tools, plan, limits, only, report):
    by_name = {}
    for workload, contenders, times in plan.arms:
        if only not in workload.name or is_missing(workload, report):
            continue
        results = by_name.setdefault(workload.name, [])
        for _ in range(times):
            for contender in contenders:
                guests = "guests" in workload.name and contender.name == "samepage"
                result = converge(tools, workload, contender, limits,
                                  balloon if guests else None)
                show(result)
                if guests and not report.balloon:
                    report.balloon = balloon_text(result)
                if isinstance(workload, Set) and contender.name in ("samepage", "ksmd") and not (
                        any(r.contender == contender.name for r in results)):
                    report.metadata.append(metadata_row(workload, result))
                results.append(result)
    report.summaries = [Summary(n, r) for n, r in by_name.items()]


def run_busy(tools, plan, report):
    b = plan.busy
    report.busy = {c.name: [] for c in plan.busy_contenders}
    for _ in range(b["repeat"]):
        for contender in plan.busy_contenders:
            phases = busy(tools, Busy(b["keys"], *b["set"]), contender, b["rate"], b["seconds"])
            report.busy[contender.name].append(phases)
            tell(f"busy redis: {contender.name}: p99 " + ", ".join(
                f"{p} {v['p99_usec']:.0f} us" for p, v in phases.items()))


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
    args = parser.parse_args()
    build = os.path.abspath(args.build)
    tools = os.path.join(build, "bench")
    begin = time.monotonic()
    os.environ.setdefault("REAL_ROOT", os.path.join(build, "real-root"))
    if ksm("run"):
        raise Failed("KSM is in use on this machine: its settings are somebody's")
    where, why = image(build)
    plan, limits = Plan(build, where, args.quick), Limits(args.quick)
    report = Report(plan)
    if why:
        report.skipped.append("QEMU guests (" + " ".join(why) + ")")
    if "arms" in args.parts:
        run_arms(tools, plan, limits, args.only, report)
    if "idle" in args.parts:
        samepage = next(c for c in plan.busy_contenders if c.name == "samepage")
        report.idle = idle(tools, Set(*plan.idle_set), samepage, limits, plan.idle)
    if "busy" in args.parts and not is_missing(Busy(1, 1, 1).redis, report):
        run_busy(tools, plan, report)
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
