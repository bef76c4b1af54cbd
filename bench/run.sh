#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# bench/run.sh [BUILD_DIR] [OPTION...]: measure, and write docs/benchmarks.md.
# --quick takes a minute, the full run six; --quick leaves the document alone, as does
# any other option of bench-merge (see its --help). bench-merge writes the document,
# bench-analyze appends to it.
set -eu
here=$(dirname "$0")
build=$here/../build
case "${1:-}" in
'' | -*) ;;
*) build=$1; shift ;;
esac
program=$build/bench/bench-merge
test -x "$program" || program=$build/bench-merge
sudo=
test "$(id -u)" -eq 0 || sudo=sudo
case $#:"${1:-}" in
0:)
	document=$here/../docs/benchmarks.md
	$sudo "$program" --output "$document"
	exec $sudo "$(dirname "$program")/bench-analyze" --append "$document"
	;;
1:--quick)
	$sudo "$program" --quick
	exec $sudo "$(dirname "$program")/bench-analyze" --quick
	;;
esac
exec $sudo "$program" "$@"
