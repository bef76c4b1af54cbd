#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the kernels and run their tests in QEMU.
#
#   kernel/test.sh [PART]...      these parts (all but kasan and each)
#
#   harness   a guest that panics, warns, hangs or ends without a word is seen to fail
#   plain     the series: its own tests, and those of what KSM has always done
#   control   the same kernel without the series: its tests have to fail, the others to pass
#   stock     Debian's own older kernel as the control: nothing has to be built
#   debug     the series with lockdep, the debug options of mm/, and kmemleak
#   kasan     the same with KASAN and UBSAN (slow)
#   style     checkpatch --strict over the series
#   each      each patch alone builds (slow)
#   quick     plain, harness, stock, style: what CI has time for (one build)
#
# Prints TAP, and ends with "N passed, N failed, N skipped". Each boot's console and report
# stay in SAMEPAGE_KERNEL_CACHE/log-NAME/.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export SAMEPAGE_KERNEL_CACHE=${SAMEPAGE_KERNEL_CACHE:-$(dirname "$here")/build/kernel}
mkdir -p "$SAMEPAGE_KERNEL_CACHE" || exit 1
cache=$SAMEPAGE_KERNEL_CACHE
passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# Two nodes, swap, a second disk for O_DIRECT, and memory that can be taken away.
machine='numa=fake=2 samepage.swap=128 zram.num_devices=2 movablecore=512M'

broken() {
	printf 'not ok - %s\n' "$1"
	failed=$((failed + 1))
}

fine() {
	printf 'ok - %s\n' "$1"
	passed=$((passed + 1))
}

# boot NAME OPTION... IMAGE LIST
boot() {
	local name=$1 p f s
	shift
	"$here/boot.sh" -n "$name" -o "$cache/log-$name" "$@" >"$tmp/out" 2>"$tmp/err"
	cat "$tmp/out"
	if ! read -r p f s < <(sed -n -E 's/^[^ ]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' \
		"$tmp/out"); then
		cat "$tmp/err" >&2
		broken "$name: no verdict"
		return
	fi
	[ "$f" = 0 ] || cat "$tmp/err" >&2
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# image NAME : its path, built if need be
image() {
	"$here/build.sh" "$1" 2>"$tmp/build" || {
		cat "$tmp/build" >&2
		return 1
	}
	grep ': built in' "$tmp/build" >&2
	return 0
}

initrd() {
	[ -f "$tmp/initrd" ] && return
	"$here/initrd.sh" "$tmp/initrd" >"$tmp/build" 2>&1 && return
	cat "$tmp/build" >&2
	broken 'building the initramfs'
	return 1
}

# tests NAME IMAGE SECONDS MORE : the feature's tests, and the old ones
tests() {
	boot "$1" -t "$3" -a "$machine $4" "$2" "$tmp/initrd" merge
	boot "$1-ksmd" -t "$3" -a "$machine $4" "$2" "$tmp/initrd" ksmd
}

plain() {
	local kernel
	kernel=$(image plain) && initrd || { broken 'plain'; return; }
	tests plain "$kernel" 300 ''
}

control() {
	local kernel
	kernel=$(image base) && initrd || { broken 'control'; return; }
	boot control -c -t 200 -a "$machine" "$kernel" "$tmp/initrd" control
	boot control-ksmd -t 200 -a "$machine" "$kernel" "$tmp/initrd" ksmd
}

stock() {
	local kernel
	if ! kernel=$("$here/guest/stock.sh" 2>"$tmp/build"); then
		cat "$tmp/build" >&2
		printf 'ok - stock # SKIP no such kernel\n'
		skipped=$((skipped + 1))
		return
	fi
	initrd || { broken 'stock'; return; }
	boot stock -c -t 200 -a "$machine" "$kernel" "$tmp/initrd" control
}

debug() {
	local kernel
	kernel=$(image debug) && initrd || { broken 'debug'; return; }
	tests debug "$kernel" 900 'kmemleak=on'
}

kasan() {
	local kernel
	kernel=$(image kasan) && initrd || { broken 'kasan'; return; }
	tests kasan "$kernel" 1800 'kmemleak=on kasan_multi_shot'
}

harness() {
	local kernel how
	kernel=$(image plain) && initrd || { broken 'harness'; return; }
	"$here/boot.sh" -t 30 "$kernel" "$tmp/initrd" true >"$tmp/out" 2>&1
	if [ $? -eq 0 ]; then
		fine 'harness: a guest that does what it is told passes'
	else
		cat "$tmp/out"
		broken 'harness: a guest that does what it is told fails'
	fi
	for how in panic warn silent hang; do
		if "$here/boot.sh" -t 10 -a "samepage.break=$how" "$kernel" "$tmp/initrd" true \
			>"$tmp/out" 2>&1; then
			broken "harness: $how is not noticed"
		else
			fine "harness: $how is noticed"
		fi
	done
}

style() {
	if "$here/build.sh" --checkpatch >"$tmp/out" 2>&1; then
		fine "$(tail -1 "$tmp/out")"
	else
		cat "$tmp/out" >&2
		broken 'checkpatch --strict'
	fi
}

each() {
	if "$here/build.sh" --each >"$tmp/out" 2>&1; then
		fine "each patch alone builds"
	else
		cat "$tmp/out" >&2
		broken 'each patch alone builds'
	fi
}

[ $# -gt 0 ] || set -- harness plain control debug style
for part in "$@"; do
	case $part in
	quick) plain; harness; stock; style ;;
	harness | plain | control | stock | debug | kasan | style | each) "$part" ;;
	*)
		sed -n 's/^#   kernel/usage: kernel/p' "$0" >&2
		exit 2
		;;
	esac
done
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
