#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# bench/run.sh [BUILD_DIR] [OPTION...]: measure, and write docs/benchmarks.md.
# --quick takes a minute, the full run seven; --quick leaves the document alone, as does
# any other option of bench-merge (see its --help). The full run ends with the RFC's
# experiment (bench-codepatch, see its --help), which adds its tables.
set -eu
here=$(dirname "$0")
build=$here/../build
case "${1:-}" in
'' | -*) ;;
*) build=$1; shift ;;
esac
program=$build/bench/bench-merge
test -x "$program" || program=$build/bench-merge
codepatch=$(dirname "$program")/bench-codepatch
sudo=
test "$(id -u)" -eq 0 || sudo=sudo
test $# -eq 0 || exec $sudo "$program" "$@"
document=$here/../docs/benchmarks.md
$sudo "$program" --output "$document"
$sudo "$codepatch" --output "$document"
$sudo "$codepatch" --forked --output "$document"
