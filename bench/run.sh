#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# bench/run.sh [BUILD_DIR] [OPTION...]: measure, and write docs/benchmarks.md.
# The full run takes half an hour: bench-merge writes the document, the RFC's experiment
# (bench-codepatch) and bench-analyze append to it, and so does the part that takes longest,
# the background scanner beside ksmd (scan/scan.py). --quick takes six minutes and leaves the
# document alone, as does any option of bench-merge (see its --help).
#
# bench/run.sh [BUILD_DIR] scan [OPTION...]: the scanner's part alone. In the document it is
# replaced; with SAMEPAGE_BENCH_QUICK=1 (four minutes) or an option it is only shown.
# SAMEPAGE_BENCH_CACHE: where the guests' image is kept (default: BUILD_DIR/bench-cache).
set -eu
here=$(dirname "$0")
build=$here/../build
case "${1:-}" in
'' | -* | scan) ;;
*) build=$1; shift ;;
esac
program=$build/bench/bench-merge
test -x "$program" || program=$build/bench-merge
bench=$(dirname "$program")
sudo=
test "$(id -u)" -eq 0 || sudo="sudo -E"
document=$here/../docs/benchmarks.md
# Programs of Debian's that are not installed are unpacked into the build folder.
scan() {
	REAL_ROOT=$(realpath -m "$build/real-root")
	export REAL_ROOT
	"$here/../tests/real/packages.sh" "$REAL_ROOT"
	$sudo "$bench/scan-guard" /usr/bin/python3 "$here/scan/scan.py" --build "$build" "$@"
}

if test "${1:-}" = scan; then
	shift
	test $# -gt 0 || test -n "${SAMEPAGE_BENCH_QUICK:-}" || set -- --output "$document"
	scan "$@"
	exit
fi
case $#:"${1:-}" in
0:)
	$sudo "$program" --output "$document"
	$sudo "$bench/bench-codepatch" --output "$document"
	$sudo "$bench/bench-codepatch" --forked --output "$document"
	$sudo "$bench/bench-analyze" --append "$document"
	scan --output "$document"
	exit
	;;
1:--quick)
	$sudo "$program" --quick
	$sudo "$bench/bench-analyze" --quick
	scan --quick
	exit
	;;
esac
exec $sudo "$program" "$@"
