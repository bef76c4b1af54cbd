#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The samepage command with a broker and clients. If this failed, `samepage run`
# would not find or start a broker, or leave traces of it in the program; one
# layout would not be one, or the same for all; merge, unmerge and status would
# not do or not say what they promise.
# shellcheck source-path=SCRIPTDIR disable=SC2016,SC2317,SC2030,SC2031
. "$(dirname "$0")/tap.sh"

if ! [ -x "$SAMEPAGED" ]; then
	echo "1..0 # SKIP no samepaged"
	exit 0
fi
python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
workers=()
cleanup() {
	[ ${#workers[@]} -eq 0 ] || kill "${workers[@]}" 2>/dev/null
	stop_broker
}

broker_pid() {
	"$SAMEPAGE" check --json 2>/dev/null |
		python3 -c 'import json, sys; print(json.load(sys.stdin)["broker"].get("pid", 0))'
}

# Gone, or a zombie that its new parent has not collected.
is_gone() { ! [ -d "/proc/$1" ] || grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null; }

wait_for() {
	for _ in $(seq 200); do
		"$@" && return 0
		sleep 0.05
	done
	return 1
}

stop_broker() {
	local pid
	pid=$(broker_pid)
	if [ "${pid:-0}" -gt 1 ]; then
		kill "$pid"
		wait_for is_gone "$pid"
	fi
}

# On demand -------------------------------------------------------------------
try "$SAMEPAGE" run -- sh -c 'echo "$SAMEPAGE_SOCKET"; exit 5'
check "run starts a broker: the program's status" status_is 5
check "run starts a broker: nothing is said" err_is_empty
check "run starts a broker: the program is told where" out_has "^$SAMEPAGE_SOCKET\$"
pid=$(broker_pid)
check "the broker is there" test "$pid" -gt 1
check "the broker is nobody's child here" sh -c \
	'! grep -q "^PPid:	$1\$" "/proc/$2/status"' sh $$ "$pid"
check "the broker holds no pipe of ours" sh -c \
	'[ "$(readlink /proc/$1/fd/1)" = /dev/null ] && [ "$(readlink /proc/$1/fd/0)" = /dev/null ]' \
	sh "$pid"
check "the broker is not preloaded" sh -c '! grep -q samepage-preload "/proc/$1/maps"' sh "$pid"
fds='import os; print(sorted(os.listdir("/proc/self/fd")))'
try "$python" -c "$fds"
mv "$tmp/out" "$tmp/fds"
try "$SAMEPAGE" run -- "$python" -c "$fds"
check "no descriptor leaks into the program" cmp "$tmp/fds" "$tmp/out"
try "$SAMEPAGE" run -- true
check "a second run uses the same broker" test "$(broker_pid)" = "$pid"
stop_broker
for n in 1 2 3 4; do
	"$SAMEPAGE" run -- sh -c 'echo ran' >"$tmp/race$n" 2>&1 &
done
wait
check "four at once: each program runs, none complains" sh -c \
	'[ "$(cat "$1"/race?)" = "ran
ran
ran
ran" ]' sh "$tmp"
other=$tmp/other.sock
try "$SAMEPAGE" run --broker "$other" -- sh -c 'echo "$SAMEPAGE_SOCKET"'
check "--broker PATH: started there" out_has "^$other\$"
(SAMEPAGE_SOCKET=$other && stop_broker)
try env SAMEPAGE_SOCKET=/proc/no/such/folder "$SAMEPAGE" run -- sh -c 'exit 6'
check "a broker that cannot start: the program runs" status_is 6
check "a broker that cannot start: one line" err_is_one_line
check "a broker that cannot start: says so" err_has 'unmerged: samepaged could not be started'

# Layout ----------------------------------------------------------------------
libc_of() {
	"$SAMEPAGE" run "$@" -- sed -n '/libc\.so/{s/-.*//p;q}' /proc/self/maps 2>>"$tmp/layout.err"
}
a1=$(libc_of -d a -l shared) a2=$(libc_of -d a -l shared) b1=$(libc_of -d b -l shared)
if grep -q 'private layout' "$tmp/layout.err"; then
	skip "--layout shared" "$(head -1 "$tmp/layout.err")"
else
	check "one layout: libc is where it is in the other process" test -n "$a1" -a "$a1" = "$a2"
	check "one layout: another domain has another" test "$a1" != "$b1"
	limit=$(ulimit -Ss)
	try "$SAMEPAGE" run -l shared -- bash -c 'ulimit -Ss'
	check "one layout: the soft stack limit is put back" out_has "^$limit\$"
	try "$SAMEPAGE" run -d a -l shared -- "$SAMEPAGE" run -d b -l shared -- \
		sed -n '/libc\.so/{s/-.*//p;q}' /proc/self/maps
	check "run inside run: the inner layout" out_has "^$b1\$"
	try "$SAMEPAGE" run -d a -l shared -- "$SAMEPAGE" run -d b -- sh -c \
		'cat /proc/self/personality; env'
	check "run inside run: private is private" out_has '^00000000$'
	check "run inside run: no trace of the outer layout" sh -c \
		'! grep -q -e SAMEPAGE_LAYOUT -e SAMEPAGE_STACK "$1"' sh "$tmp/out"
fi
if (ulimit -Hs 200000) 2>/dev/null; then
	try bash -c 'ulimit -s 8192; ulimit -Hs 200000; exec "$1" run -l shared -- sh -c "exit 4"' \
		bash "$SAMEPAGE"
	check "one layout: a low hard limit is said" err_has 'private layout: the hard stack limit'
	check "one layout: the program runs all the same" status_is 4
fi

# Clients ---------------------------------------------------------------------
try "$SAMEPAGE" merge $$
check "merge of no client: status 3" status_is 3
check "merge of no client: it is named" err_has "process $$ is no client"
try "$SAMEPAGE" merge --json $$ 1
check "merge --json of no clients" json "set(d['not_clients']) == {$$, 1}"
try "$SAMEPAGE" status --json $$
check "status of no client: status 3" status_is 3
check "status of no client: sums all the same" json "d['pages_shared'] == 0"

if ! "$SAMEPAGE" check >/dev/null; then
	skip "merging" "samepage check: does not work here"
	
# A user's word is kept by the user's domains: without any, nothing is promised.
in_path=$(dirname "$SAMEPAGE")
if [ "$(id -u)" -ne 0 ] || ! "${other[@]}" test -x "$in_path"; then
	skip "a user without clients" "needs root, and folders open to others"
else
	mkfifo "$tmp/ready"
	chmod 755 "$tmp"
	"$SAMEPAGED" --config /dev/null --linger 1 --ready-fd 6 6>"$tmp/ready" 2>/dev/null &
	pid=$!
	head -c 1 "$tmp/ready" >/dev/null
	other=(setpriv --reuid 4711 --regid 4711 --clear-groups)
	try "${other[@]}" "$SAMEPAGE" pause --all
	check "pause --all of a user without clients: status 0" status_is 0
	check "pause --all of a user without clients: promises nothing" sh -c '! grep -q "to come" "$1"' sh "$tmp/out"
	try "$SAMEPAGE" pause --all
	check "pause --all of root: is for those to come" out_has 'in 0 processes, and in those to come'
	kill "$pid"
	wait "$pid" 2>/dev/null
fi
finish
fi
program='import mmap, random, sys
keep = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
keep.write(random.Random(1).randbytes(16 << 20))
print("ready", flush=True)
sys.stdin.read()'
mkfifo "$tmp/hold"
for n in 1 2 3; do
	"$SAMEPAGE" run -- "$python" -c "$program" <"$tmp/hold" >"$tmp/ready$n" &
	workers+=($!)
done
exec 7>"$tmp/hold"
all_ready() { [ "$(cat "$tmp"/ready? | grep -c ready)" -eq 3 ]; }
check "three programs are ready" wait_for all_ready
all_clients() {
	"$SAMEPAGE" status --json "${workers[@]}" >"$tmp/out" 2>/dev/null &&
		json "len(d['processes']) == 3"
}
check "three programs are clients" wait_for all_clients

state() { json "[p['scan']['state'] for p in d['processes']] == ['$1'] * 3"; }
# All of the merging below is done during a pause.
try "$SAMEPAGE" pause --all
check "pause --all: status 0" status_is 0
check "pause --all: says how to go on" out_has 'in 3 processes, and in those to come: .samepage resume --all'
try "$SAMEPAGE" merge --json "${workers[@]}" $$
check "merge of clients and another: status 3" status_is 3
check "merge: all clients" json "sorted(p['pid'] for p in d['processes']) == sorted([$(
	IFS=,
	echo "${workers[*]}"
)])"
check "merge: the others are named" json "d['not_clients'] == [$$]"
check "merge: no errors" json "all(p['error'] == 0 for p in d['processes'])"
pages=$(((16 << 20) / $(getconf PAGESIZE)))
check "merge: what is equal is merged" json \
	"all(p['pages_merged'] > $pages * 9 // 10 for p in d['processes'])"
check "merge: the kernel sees it" json "d['total']['saved_bytes'] > 24 << 20"
check "merge: each page is counted once (I9)" json \
	"all(p['pages_looked'] == p['pages_merged'] + p['pages_zeroed'] + p['pages_already']
	+ sum(p['pages_declined'].values()) for p in [*d['processes'], d['total']])"
check "merge: no more slots than pages merged" json \
	"0 < d['store']['slots'] <= d['total']['pages_merged']"
try "$SAMEPAGE" status --json
check "status: KSM's names" json \
	"d['pages_sharing'] == d['pages_mapped'] - d['pages_shared'] > $pages"
check "status: profit" json "d['general_profit'] == (d['pages_mapped'] - d['pages_shared'])
	* d['page_bytes'] - d['own_bytes'] > 0"
mapped=$(sed -n 's/.*"pages_mapped": *\([0-9]*\).*/\1/p' "$tmp/out" | head -n 1)
try "$SAMEPAGE" analyze --json "${workers[@]}"
check "analyze sees from outside what is merged" json \
	"abs(d['pages']['merged'] - $mapped) <= $mapped // 20"
try "$SAMEPAGE" merge "${workers[@]}"
check "merge again, as text: status 0" status_is 0
check "merge again, as text: a total" out_has '^total  *3 processes'
check "merge again, as text: reasons" out_has '^unique '
check "merge: nothing on stderr that is no terminal" err_is_empty
try "$SAMEPAGE" status "${workers[0]}"
check "status of one: status 0" status_is 0
check "status of one: its row" out_has "^ *${workers[0]} "
check "status of one: no other row" sh -c '! grep -q "^ *$1 " "$2"' sh "${workers[1]}" "$tmp/out"
try "$SAMEPAGE" status --json
check "merge does not end a pause" state paused
try "$SAMEPAGE" resume --all
try "$SAMEPAGE" status --json
check "resume --all ends it" state off
try "$SAMEPAGE" unmerge --json --all
check "unmerge: status 0" status_is 0
check "unmerge: the memory is back" json "d['total']['saved_bytes'] < -(24 << 20)"
try "$SAMEPAGE" status --json
check "status after unmerge: nothing is mapped" json "d['pages_mapped'] == 0"

# Pausing
check "unmerge --all pauses: the processes" state paused
check "unmerge --all pauses: the domain" json "d['store']['paused_domains'] >= 1"
try "$SAMEPAGE" unmerge --all
check "unmerge --all says so, and how to go on" out_has 'samepage resume --all'
try "$SAMEPAGE" resume --all
check "resume --all: status 0" status_is 0
check "resume --all: says what it did" out_has '^scanning goes on in 3 processes, and in those to come$'
try "$SAMEPAGE" status --json
check "resume --all: the processes" state off
check "resume --all: the domain" json "d['store']['paused_domains'] == 0"
check "status: what scanners count, named as in KSM where it is that" json \
	"all(k in d['scan'] and k in d['processes'][0]['scan'] for k in ('full_scans', 'pages_scanned',
	'pages_skipped', 'pages_volatile', 'pages_unshared', 'metadata_bytes_per_page',
	'broken_msec_mean', 'stable_msec_mean', 'cpu_usec'))"
check "status: nobody scans here" json "d['scan']['scanners'] == 0"
try "$SAMEPAGE" pause "${workers[0]}" $$
check "pause of one and a stranger: status 3" status_is 3
check "pause of one: says how to go on" out_has '^scanning pauses in 1 processes: .samepage resume. ends that$'
try "$SAMEPAGE" status --json
check "pause of one: it and no other" json "{p['pid']: p['scan']['state'] for p in d['processes']} ==
	{${workers[0]}: 'paused', ${workers[1]}: 'off', ${workers[2]}: 'off'}"
check "pause of one: not the domain" json "d['store']['paused_domains'] == 0"
try "$SAMEPAGE" status
check "status, as text: who is paused" out_has 'paused in 1 (`samepage resume` goes on)'
check "status, as text: its row" out_has "^ *${workers[0]} .* paused\$"
try "$SAMEPAGE" resume --json "${workers[0]}"
check "resume --json" json "d['op'] == 'resume' and d['processes'][0]['scan']['state'] == 'off'"
kill "${workers[1]}"
wait "${workers[1]}" 2>/dev/null
check "a client that ended is one no more" wait_for sh -c \
	'"$1" status "$2" >/dev/null 2>&1; [ $? -eq 3 ]' sh "$SAMEPAGE" "${workers[1]}"
exec 7>&-
wait "${workers[@]}" 2>/dev/null
workers=()
pid=$(broker_pid)
check "the broker ends by itself when nobody needs it" wait_for is_gone "$pid"
check "and leaves no socket" test ! -e "$SAMEPAGE_SOCKET"

# As a user calls it, without a word about scanning.
try env -u SAMEPAGE_SCAN "$python" "$DEMO" --quick --workers 2 "$SAMEPAGE"
check "the demonstration: status 0" status_is 0
check "the demonstration: nobody had merged before" out_has 'saved ([23456][0-9] %)'
check "the demonstration: all data is right" out_has 'by 2 of 2 workers: the same'
try timeout -s INT 1 "$python" "$DEMO" --quick --workers 2 "$SAMEPAGE"
check "the demonstration, interrupted: no traceback" sh -c '! grep -q Traceback "$1"' sh "$tmp/err"
# Somebody who has no userfaultfd, nor a broker that lends one.
other=(setpriv --reuid 4711 --regid 4711 --clear-groups env "SAMEPAGE_SOCKET=$tmp/none.sock")
if [ "$(id -u)" -ne 0 ] || ! "${other[@]}" /usr/bin/python3 -c pass 2>/dev/null ||
	! "${other[@]}" "$SAMEPAGE" --version >/dev/null 2>&1 ||
	! "${other[@]}" test -r "$DEMO"; then
	skip "the demonstration of a user without help" "needs root, and folders open to others"
elif "${other[@]}" "$SAMEPAGE" check >/dev/null 2>&1; then
	skip "the demonstration of a user without help" "merging works for every user here"
else
	try "${other[@]}" /usr/bin/python3 "$DEMO" --quick --workers 2 "$SAMEPAGE"
	check "the demonstration of a user without help: status 1" status_is 1
	check "the demonstration of a user without help: one line" err_is_one_line
	check "the demonstration of a user without help: cure" err_has 'run this as root, or let root'
fi
finish
