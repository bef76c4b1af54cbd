#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Programs that merge by themselves, and what is said to them meanwhile. If this failed,
# `samepage run` alone would save nothing, or pause, unmerge --all and the settings would
# not be heeded by who scans, or forgotten by those to come or with the broker.
# shellcheck source-path=SCRIPTDIR disable=SC2016,SC2317
. "$(dirname "$0")/tap.sh"

workers=()
broker=0
cleanup() {
	exec 7>&-
	[ ${#workers[@]} -eq 0 ] || kill -KILL "${workers[@]}" 2>/dev/null
	[ "$broker" -eq 0 ] || kill "$broker" 2>/dev/null
	wait 2>/dev/null
}
wait_for() {
	for _ in $(seq 300); do
		"$@" && return 0
		sleep 0.1
	done
	return 1
}
# start_broker OPTION... : as root's, or a user's own
start_broker() {
	mkfifo "$tmp/ready"
	"$SAMEPAGED" --config /dev/null --ready-fd 6 "$@" 6>"$tmp/ready" 2>/dev/null &
	broker=$!
	head -c 1 "$tmp/ready" >/dev/null
	rm "$tmp/ready"
}
python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
program='import mmap, random, sys
keep = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
dice = random.Random(1)
for _ in range(64): # not all at once: records have room for the most that there was
    keep.write(dice.randbytes(256 << 10))
sys.stdin.read()'
pages=$(((16 << 20) / $(getconf PAGESIZE)))
a=0 b=0 c=0 d=0 e=0 f=0
mkfifo "$tmp/hold"
sleep 300 >"$tmp/hold" &
workers+=($!)
holder=$!
# start NAME OPTION... : a worker under samepage run; its number in the variable NAME
start() {
	local name=$1
	shift
	env -u SAMEPAGE_SCAN "$SAMEPAGE" run --broker none "$@" -- "$python" -c "$program" <"$tmp/hold" &
	workers+=($!)
	printf -v "$name" %s $!
}
now() { try "$SAMEPAGE" status --json; }
# of PID EXPRESSION : of its p['scan'] and p
of() {
	now
	json "[p for p in d['processes'] if p['pid'] == $1 and ($2)] != []"
}
merged() { of "$1" "p['pages_mapped'] > $pages * 9 // 10"; }
apart() { of "$1" "p['pages_mapped'] == 0"; }
state() { of "$1" "p['scan']['state'] == '$2'"; }

start_broker
if ! "$SAMEPAGE" check >/dev/null; then
	skip "scanning" "samepage check: merging does not work here"
	finish
fi
start a
start b
check "two that have the same: one is merged" wait_for merged "$a"
check "... and the other" wait_for merged "$b"
now
check "status: both scan" json "d['scan']['scanners'] == 2 and d['scan']['paused'] == 0"
check "status: merged by the scanners, in time" json "d['scan']['pages_merged'] > 2 * $pages * 9 // 10
	and d['scan']['pages_promoted'] >= $pages * 9 // 10 and 0 < d['scan']['stable_msec_mean']
	<= d['scan']['stable_msec_max']"
check "status: what is watched and not merged adds up" json \
	"all(s['pages_tracked'] == sum(s['pages_' + k] for k in ('unshared', 'volatile', 'waiting',
	'aside')) for s in [d['scan']] + [p['scan'] for p in d['processes']])"
check "status: what is saved is more than it costs" json "d['general_profit'] > 0"
check "status: records of at most 12 bytes a page" json \
	"0 < d['scan']['metadata_bytes_per_page'] <= 12"
check "status: nobody has what is unshared, and the broker knows it" json \
	"d['pages_unshared'] == d['scan']['pages_unshared'] > 0 and d['store']['standing'] > 0"
# A slot that one place maps saves nothing, whoever merged with it once.
alone() { now; json "d['pages_alone'] $1 or d['processes'][0]['primitive'] == 'kernel'"; }
check "status: what both have is nowhere alone" wait_for alone "< $pages // 10"
both=$program
program=${program/Random(1)/Random(2)}
program=${program/sys.stdin/'import signal
def write(*_):
    for at in range(0, len(keep), mmap.PAGESIZE): keep[at] ^= 1
signal.signal(signal.SIGUSR1, write)
sys.stdin'}
g=0 h=0
start g
start h
program=$both
check "two more, of another kind" wait_for merged "$g"
check "... and the other" wait_for merged "$h"
check "... nothing is alone" wait_for alone "< $pages // 10"
try "$SAMEPAGE" pause "$h" # or what is written would be brought home
kill -USR1 "$h"
check "one writes: what it shared is alone, though it is still mapped" wait_for alone \
	"> $pages * 9 // 10"
kill -USR1 "$g"
check "both have written: it stays alone" wait_for alone "> $pages * 9 // 10"
kill -KILL "$g" "$h"
clients() { now; json "len(d['processes']) == $1"; }
check "both are killed, and gone" wait_for clients 2
try "$SAMEPAGE" status
check "status, as text: what is alone" out_has '^pages_alone '
check "status, as text: how many scan" out_has '^scanning: in 2 of 2 clients '
check "status, as text: broken by writes" out_has '^broken by writes '
try "$SAMEPAGE" top --batch --count 2 --delay 0.5
check "top: both" out_has '^scanning 2, paused 0; merged [0-9]'
check "top: why not" out_has "^ *$a .* [0-9.KM]* [a-z]*\$"

try "$SAMEPAGE" pause --all
start c
check "a newcomer to a pause is paused" wait_for state "$c" paused
sleep 1.5
check "... and is not merged" apart "$c"
check "those that were there: what is merged stays" merged "$a"
try "$SAMEPAGE" resume --all
check "resume --all: the newcomer is merged" wait_for merged "$c"
try "$SAMEPAGE" unmerge --all
sleep 1.5
check "unmerge --all: it stays unmerged" apart "$a"
check "... all of them" apart "$c"
try "$SAMEPAGE" resume --all
start d
check "resume --all after unmerge: newcomers merge" wait_for merged "$d"
check "... and those that were unmerged, again" wait_for merged "$a"

start e --scan off
check "run --scan off: it does not scan" wait_for state "$e" off
sleep 1
check "... nor merge" apart "$e"

# The broker goes; the next one has another setting, and knows of no pause.
try "$SAMEPAGE" pause "$a"
kill -KILL "$broker"
wait "$broker" 2>/dev/null
start_broker --scan off
check "a pause outlives the broker" wait_for state "$a" paused
check "scan = off of the new broker is heeded" wait_for state "$b" off
start f --scan on
check "run --scan on: scans all the same" wait_for state "$f" on
kill "$holder" 2>/dev/null
finish
