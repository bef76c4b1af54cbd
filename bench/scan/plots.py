# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plots by gnuplot: memory and CPU over time, run lengths. Without gnuplot there are none."""
import re
import shutil
import subprocess

MIB = 1 << 20
COLOUR = {"nothing": "#777777", "ksmd": "#d95f02", "advisor": "#e7a900", "samepage": "#1b6ca8"}
HEAD = ("set terminal svg size 900,360 font 'sans,12' background '#ffffff'\n"
        "set output '{path}'\nset grid lc rgb '#dddddd'\nset key outside right\n")


def have():
    return shutil.which("gnuplot") is not None


def _draw(script):
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def _block(name, rows):
    return f"${name} << END\n" + "".join(f"{x:.4f} {y:.4f}\n" for x, y in rows) + "END\n"


def _thin(rows, most=400):
    """Of many samples as many as can be seen; the beginning in full."""
    return [r for i, r in enumerate(rows) if i < most // 2 or i % max(1, len(rows) // most) == 0]


def _lines(path, title, label, series, end):
    script = HEAD.format(path=path) + (
        f"set title '{title}'\nset xlabel 'seconds'\nset ylabel '{label}'\n"
        f"set xrange [0:{end:.2f}]\nset yrange [0:*]\n")
    parts = []
    for i, (name, rows) in enumerate(series):
        script += _block(f"d{i}", rows)
        parts.append(f"$d{i} with lines lw 2 lc rgb '{COLOUR[name]}' title '{name}'")
    _draw(script + "plot " + ", ".join(parts) + "\n")


def _runs(path, title, summary):
    """How many merged pages lie in runs of which length."""
    names = [n for n in ("ksmd", "samepage") if n in summary.of and summary.of[n].runs]
    lengths = sorted({int(k) for n in names for k in summary.of[n].runs})
    script = HEAD.format(path=path) + (
        f"set title '{title}'\nset xlabel 'length of the run, pages (at least)'\n"
        "set ylabel 'runs'\nset logscale y\nset style data histograms\n"
        "set style fill solid 0.8 border -1\n$d << END\n")
    for length in lengths:
        script += f"{length} " + " ".join(
            str(summary.of[n].runs.get(str(length), 0) or "NaN") for n in names) + "\n"
    script += "END\nplot " + ", ".join(
        f"$d using {i + 2}:xtic(1) lc rgb '{COLOUR[n]}' title '{n}'"
        for i, n in enumerate(names)) + "\n"
    if names:
        _draw(script)
    return bool(names)


def draw(summary, folder, relative):
    """[(workload, title, path)] of one workload's plots."""
    slug = re.sub(r"[^a-z0-9]+", "-", summary.workload.lower()).strip("-")
    out = []
    series = {n: f.results[0] for n, f in summary.of.items()}
    # Long enough for everybody but the advisor, whose curve goes on for a minute.
    end = max((f.results[0].seconds(f.results[0].rows[-1]) for n, f in summary.of.items()
               if n != "advisor"), default=10)
    for what, label, value in (
            ("memory", "MiB", lambda r, row: row.used / MIB),
            ("cpu", "CPU seconds of who merges", lambda r, row: r.cpu(row))):
        name = f"scan-{slug}-{what}.svg"
        _lines(f"{folder}/{name}", f"{summary.workload}: {what}", label, [
            (n, [(r.seconds(x), value(r, x)) for x in _thin(r.rows)])
            for n, r in series.items()], end)
        out.append((summary.workload, f"{summary.workload}: {what} over time",
                    f"{relative}/{name}"))
    name = f"scan-{slug}-runs.svg"
    if _runs(f"{folder}/{name}", f"{summary.workload}: run lengths", summary):
        out.append((summary.workload, f"{summary.workload}: run lengths", f"{relative}/{name}"))
    return out
