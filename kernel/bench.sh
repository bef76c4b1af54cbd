#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/bench.sh [BUILD] : what merging costs in the guest, before and after the series, as
# tables. BUILD (build) is where libsamepage was built; without it, no remap.
#
# Two boots of each kernel. One counts instructions (-icount, one CPU: an instruction is a
# nanosecond of the guest's time, so the figures are the same each time), the other is
# timed, two CPUs, as fast as the emulation is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
build=${1:-$top/build}
export SAMEPAGE_KERNEL_CACHE=${SAMEPAGE_KERNEL_CACHE:-$top/build/kernel}
cache=$SAMEPAGE_KERNEL_CACHE
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

base=$("$here/build.sh" base)
plain=$("$here/build.sh" plain)

over=$tmp/over
mkdir -p "$over/tests" "$over/lists"
cc -static -O2 -Wall -o "$over/tests/ksm_bench" "$here/bench/ksm_bench.c"
cp "$here/lists/bench-new" "$over/lists/"
so=$(find "$build" -maxdepth 2 -name 'libsamepage.so.?' 2>/dev/null | head -1)
if [ -n "$so" ]; then
	cc -O2 -Wall -DWITH_LIBRARY -I "$top/include" -o "$over/tests/ksm_bench_lib" \
		"$here/bench/ksm_bench.c" "$so"
	# Itself and whatever it needs, at the places where it looks for them.
	LD_LIBRARY_PATH=$(dirname "$so") ldd "$over/tests/ksm_bench_lib" |
		grep -o '/[^ ]*' | sort -u | while read -r lib; do
		mkdir -p "$over/lib64" "$over/usr/lib"
		case $lib in
		*/ld-linux*) cp -L "$lib" "$over/lib64/" ;;
		*) cp -L "$lib" "$over/usr/lib/" ;;
		esac
	done
	cat >>"$over/lists/bench-new" <<'L'
60 /bin/busybox env LD_LIBRARY_PATH=/usr/lib SAMEPAGE_PRIMITIVE=remap /tests/ksm_bench_lib remap 1 4096
60 /bin/busybox env LD_LIBRARY_PATH=/usr/lib SAMEPAGE_PRIMITIVE=remap /tests/ksm_bench_lib remap 64 4096
L
fi
"$here/initrd.sh" "$tmp/initrd" "$over"

# run NAME IMAGE LIST OPTION... : the lines "bench ..." of a boot
run() {
	local name=$1 image=$2 list=$3
	shift 3
	"$here/boot.sh" -b -n "$name" -t 300 -o "$cache/log-$name" "$@" "$image" "$tmp/initrd" \
		"$list" >"$tmp/out" 2>&1 || cat "$tmp/out" >&2
	sed -n "s/^bench /$name /p" "$cache/log-$name/report.log"
}

{
	run count-old "$base" bench-old -q '-icount shift=0,sleep=off -smp 1'
	run count-new "$plain" bench-new -q '-icount shift=0,sleep=off -smp 1'
	run time-old "$base" bench-old
	run time-new "$plain" bench-new
} >"$tmp/figures"

python3 - "$tmp/figures" <<'P'
import sys

have = {}
for line in open(sys.argv[1]):
    word = line.split()
    have[tuple(word[:3])] = float(word[3])


def number(*key, scale=1.0, digits=0):
    value = have.get(key)
    return "-" if value is None else f"{value / scale:,.{digits}f}"


print("| a merged page, in runs of | 1: instructions | us of CPU | us | "
      "64: instructions | us of CPU | us |")
print("|---|---|---|---|---|---|---|")
for name, boot, text in (("merge", "new", "`MADV_MERGE`"),
                         ("ksmd", "new", "ksmd, with the series"),
                         ("ksmd", "old", "ksmd, without"),
                         ("remap", "new", "libsamepage's remap")):
    cells = []
    for run in ("1", "64"):
        cells.append(number(f"count-{boot}", f"{name}-{run}", "cpu"))
        cells.append(number(f"time-{boot}", f"{name}-{run}", "cpu", scale=1e3, digits=1))
        cells.append(number(f"time-{boot}", f"{name}-{run}", "wall", scale=1e3, digits=1))
    print(f"| {text} | " + " | ".join(cells) + " |")
print()
print("| one walk, mappings of the anon_vma | before: instructions | us | "
      "after: instructions | us | after / before |")
print("|---|---|---|---|---|---|")
for vmas in ("1", "100", "1000", "20000"):
    name = f"walk-{vmas}"
    old, new = have.get(("count-old", name, "wall")), have.get(("count-new", name, "wall"))
    ratio = f"{new / old:.2%}" if old and new else "-"
    print(f"| {int(vmas):,} | " + " | ".join([
        number("count-old", name, "wall"), number("time-old", name, "wall", scale=1e3, digits=1),
        number("count-new", name, "wall"), number("time-new", name, "wall", scale=1e3, digits=1),
        ratio]) + " |")
print()
print("| after 1,000 `mmap()` of a process that has all of its memory merged | before | after |")
print("|---|---|---|")
print(f"| mappings | {number('count-old', 'vmas-1000', 'count')} | "
      f"{number('count-new', 'vmas-1000', 'count')} |")
P
