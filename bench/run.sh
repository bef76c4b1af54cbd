#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# bench/run.sh [BUILD_DIR] [OPTION...]: measure, and write docs/benchmarks.md.
# --quick takes a minute, the full run five; --quick leaves the document alone, as does
# any other option of bench-merge (see its --help).
set -eu
here=$(dirname "$0")
build=$here/../build
case "${1:-}" in
'' | -*) ;;
*) build=$1; shift ;;
esac
program=$build/bench/bench-merge
test -x "$program" || program=$build/bench-merge
test $# -gt 0 || set -- --output "$here/../docs/benchmarks.md"
if test "$(id -u)" -ne 0; then
	exec sudo "$program" "$@"
fi
exec "$program" "$@"
