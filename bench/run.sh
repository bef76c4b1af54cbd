#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# bench/run.sh [BUILD_DIR] [OPTION...]: measure, and write docs/benchmarks.md.
# --quick takes a minute, the full run eight; --quick leaves the document alone, as does
# any other option of bench-merge (see its --help). bench-merge writes the document, the
# RFC's experiment (bench-codepatch) and bench-analyze append to it.
set -eu
here=$(dirname "$0")
build=$here/../build
case "${1:-}" in
'' | -*) ;;
*) build=$1; shift ;;
esac
program=$build/bench/bench-merge
test -x "$program" || program=$build/bench-merge
bench=$(dirname "$program")
sudo=
test "$(id -u)" -eq 0 || sudo=sudo
case $#:"${1:-}" in
0:)
	document=$here/../docs/benchmarks.md
	$sudo "$program" --output "$document"
	$sudo "$bench/bench-codepatch" --output "$document"
	$sudo "$bench/bench-codepatch" --forked --output "$document"
	exec $sudo "$bench/bench-analyze" --append "$document"
	;;
1:--quick)
	$sudo "$program" --quick
	exec $sudo "$bench/bench-analyze" --quick
	;;
esac
exec $sudo "$program" "$@"
