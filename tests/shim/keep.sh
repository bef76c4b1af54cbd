#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Memory that was merged is private memory: each case of keep-*.c is a program that
# prints what it sees of its memory, once without samepage and once under `samepage run`
# while `samepage merge --all` goes on all the time. Both must print the same and end
# with the same status. A case whose memory was not merged fails (its program says so):
# it would prove nothing. With KEEP_SCAN=1 nobody says merge: the scanner of the program
# itself does it, as fast as it can be told to. If this failed, merging would be visible to programs (I5), or
# lose what they wrote (I3). TAP on stdout.
#
# usage: keep.sh BUILD_DIR PROGRAM [CASE...]
set -u
build=${1:?build folder}
program=${2:?program}
shift 2
case $program in /*) ;; *) program=$PWD/$program ;; esac
samepage=$build/samepage
unset SAMEPAGE_DOMAIN SAMEPAGE_SCOPE SAMEPAGE_OFF SAMEPAGE_VERBOSE LD_PRELOAD
unset "${!SAMEPAGE_SCAN@}"
# meson sets it: pages full of one byte would be merged, and what is written then need not
# be merged again.
unset MALLOC_PERTURB_
export SAMEPAGE_SCAN=off
if [ "${KEEP_SCAN:-0}" = 1 ]; then
	export KEEP_SCAN SAMEPAGE_SCAN=on SAMEPAGE_SCAN_FIRST=10 SAMEPAGE_SCAN_MOST=40 SAMEPAGE_SCAN_CPU=100
	export SAMEPAGE_SCAN_TRACKER=${KEEP_TRACKER:-auto}
fi
work=$(mktemp -d /tmp/samepage-test.XXXXXX) || exit 1
export SAMEPAGE_SOCKET=$work/broker.sock
broker=
merger=
stop() {
	rm -f "$work/go"
	[ -n "$merger" ] && kill "$merger" 2>/dev/null
	[ -n "$broker" ] && kill "$broker" 2>/dev/null
	wait 2>/dev/null
	rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

"$build/samepaged" --socket "$SAMEPAGE_SOCKET" >"$work/broker.log" 2>&1 &
broker=$!
for _ in $(seq 200); do
	[ -S "$SAMEPAGE_SOCKET" ] && break
	sleep 0.05
done
: >"$work/go"
while [ "$SAMEPAGE_SCAN" = off ] && [ -e "$work/go" ]; do
	timeout -s KILL 60 "$samepage" merge --all >/dev/null 2>>"$work/merge.err"
	sleep 0.03
done &
merger=$!

if [ $# -gt 0 ]; then cases=("$@"); else mapfile -t cases < <("$program"); fi
echo "1..${#cases[@]}"
number=0
failed=0
for name in "${cases[@]}"; do
	number=$((number + 1))
	mkdir -p "$work/plain" "$work/with"
	(cd "$work/plain" && exec timeout -s KILL 240 "$program" "$name") \
		>"$work/plain.out" 2>"$work/plain.err" </dev/null
	plain=$?
	(cd "$work/with" && KEEP_MERGED=1 exec timeout -s KILL 240 "$samepage" run --broker \
		"$SAMEPAGE_SOCKET" --scope all -- "$program" "$name") \
		>"$work/with.out" 2>"$work/with.err" </dev/null
	with=$?
	if [ $plain = 0 ] && grep -q '^SKIP ' "$work/plain.out"; then
		echo "ok $number - $name # $(cat "$work/plain.out")"
	elif [ $plain = "$with" ] && [ $plain != 99 ] && [ -s "$work/plain.out" ] &&
		cmp -s "$work/plain.out" "$work/with.out"; then
		echo "ok $number - $name"
	else
		failed=1
		echo "not ok $number - $name"
		echo "# exit status $plain without, $with with samepage"
		head -n 5 "$work/with.err" | sed 's/^/# /'
		diff "$work/plain.out" "$work/with.out" | head -n 20 | sed 's/^/#   /'
	fi
	rm -rf "$work/plain" "$work/with"
done
exit $failed
