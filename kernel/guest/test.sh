#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Run the project's own process tests (suites proc, lib and shim) in guests:
#
#   kernel/guest/test.sh [--long] BUILD [PART]...
#
#   kernel    the series, SAMEPAGE_PRIMITIVE=kernel
#   remap     the series, SAMEPAGE_PRIMITIVE=remap
#   control   the same source without the series: what the library finds there by itself
#   stock     Debian 12's own 6.1: what is missing is declined, tests skip and never fail
#
# BUILD is the build folder of the project. --long: also what takes minutes under emulation,
# and so is run by hand: races, fault injection, programs while they are merged (about an
# hour). Prints TAP, and ends with "N passed, N failed, N skipped".
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel=$(dirname "$here")
export SAMEPAGE_KERNEL_CACHE=${SAMEPAGE_KERNEL_CACHE:-$(dirname "$kernel")/build/kernel}
mkdir -p "$SAMEPAGE_KERNEL_CACHE" || exit 1
suffix='' seconds=900
if [ "${1:-}" = --long ]; then
	suffix=-long seconds=7200
	shift
fi
if [ $# -lt 1 ]; then
	sed -n 's/^#   kernel/usage: kernel/p' "$0" >&2
	exit 2
fi
build=$1
shift
[ $# -gt 0 ] || set -- kernel remap control stock
passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

broken() {
	printf 'not ok - %s\n' "$1"
	failed=$((failed + 1))
}

if ! { "$here/fill.sh" "$build" "$tmp/tree" &&
	gcc -static -O2 -o "$tmp/tree/init" "$kernel/init/init.c" &&
	"$here/fill.sh" --pack "$tmp/tree" "$tmp/initrd"; } >"$tmp/out" 2>&1; then
	cat "$tmp/out" >&2
	broken 'building the initramfs'
	set --
fi

# boot PART IMAGE LIST
boot() {
	local p f s
	"$kernel/boot.sh" -n "library-$1" -o "$SAMEPAGE_KERNEL_CACHE/log-library-$1" -t "$seconds" \
		-m 2G "$2" "$tmp/initrd" "$3$suffix" >"$tmp/out" 2>"$tmp/err"
	cat "$tmp/out"
	if ! read -r p f s < <(sed -n -E 's/^[^ ]+: ([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' \
		"$tmp/out"); then
		cat "$tmp/err" >&2
		broken "$1: no verdict"
		return
	fi
	[ "$f" = 0 ] || cat "$tmp/err" >&2
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

for part in "$@"; do
	case $part in
	kernel) image=$("$kernel/build.sh" plain) list=samepage-kernel ;;
	remap) image=$("$kernel/build.sh" plain) list=samepage-remap ;;
	control) image=$("$kernel/build.sh" base) list=samepage-auto ;;
	stock) image=$("$here/stock.sh") list=samepage-auto ;;
	*)
		sed -n 's/^#   kernel/usage: kernel/p' "$0" >&2
		exit 2
		;;
	esac
	if [ -f "$image" ]; then
		boot "$part" "$image" "$list"
	else
		broken "$part: no kernel"
	fi
done
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
