#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`samepage merge --all` every 100 ms, until SIGTERM; then what it did goes to a file.

usage: merger.py SAMEPAGE OUT.json
"""
import json
import signal
import subprocess
import sys
import time

PERIOD_SEC = 0.1
go_on = True


def stop(_signum, _frame):
    global go_on
    go_on = False


def one_pass(samepage, sums):
    # A session of its own: the SIGTERM that is meant for us is not meant for it.
    done = subprocess.run([samepage, "merge", "--all", "--json"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, start_new_session=True, check=False)
    sums["passes"] += 1
    try:
        report = json.loads(done.stdout)
    except ValueError:
        sums["passes_failed"] += 1
        sums["last_error"] = done.stderr.strip()
        return
    total = report["total"]
    for key in ("pages_looked", "pages_merged", "pages_zeroed", "runs", "frozen_usec", "cpu_usec"):
        sums[key] = sums.get(key, 0) + total[key]
    sums["clients_max"] = max(sums["clients_max"], len(report["processes"]))
    sums["saved_bytes_max"] = max(sums["saved_bytes_max"], total["saved_bytes"])
    for process in report["processes"]:
        if process["error"]:
            errors = sums["errors"]
            errors[str(process["error"])] = errors.get(str(process["error"]), 0) + 1
    for reason, pages in total["pages_declined"].items():
        sums["declined"][reason] = sums["declined"].get(reason, 0) + pages


def main():
    samepage, out = sys.argv[1:]
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sums = {"passes": 0, "passes_failed": 0, "clients_max": 0, "saved_bytes_max": 0,
            "errors": {}, "declined": {}}
    while go_on:
        begin = time.monotonic()
        one_pass(samepage, sums)
        time.sleep(max(0.0, begin + PERIOD_SEC - time.monotonic()))
    with open(out, "w", encoding="utf-8") as f:
        json.dump(sums, f)


main()
