# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the tests of suite "real" share: a broker of their own, one process that merges
# everything every 100 ms (merger.py), the programs that packages.sh unpacked, and what
# has to hold at the end whatever the program was: merging happened, every pass came to
# its end, the store is empty again and no process is left.
#
#   real_start PROGRAM...  skips the whole test where one of them is missing
#   under COMMAND...       as a client, all of its memory
#   alone COMMAND...       the same without samepage
#   real_end               after the last of the clients has been asked to end
#
# Wants $SAMEPAGE, $SAMEPAGED and $REAL_ROOT. SAMEPAGE_REAL_SECONDS is how long each
# load goes on (default 12).
# shellcheck source-path=SCRIPTDIR disable=SC2317
. "$(dirname "$0")/../cli/tap.sh"

seconds=${SAMEPAGE_REAL_SECONDS:-12}
here=$(cd "$(dirname "$0")" && pwd)
root=${REAL_ROOT:-/nonexistent}
broker=
merger=
# Who can be told by their environment as processes of this very test.
export SAMEPAGE_REAL_MARK=$tmp
export PATH=$PATH:$root/usr/bin:$root/usr/sbin:$root/usr/lib/postgresql/15/bin
export PATH=$PATH:/usr/sbin:/usr/lib/postgresql/15/bin
: >"$tmp/out"
: >"$tmp/err"

# Ends the test's own processes that are left, by number, and prints who they were.
leftovers() {
	local f pid
	for f in /proc/[0-9]*/environ; do
		pid=${f#/proc/}
		pid=${pid%/environ}
		[ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] || [ "$pid" = "$broker" ] && continue
		grep -qz "^SAMEPAGE_REAL_MARK=$tmp\$" "$f" 2>/dev/null || continue
		# The shell's children that only look like it: pipes, $( ).
		[ "$(readlink "/proc/$pid/exe")" = "$(readlink /proc/$$/exe)" ] &&
			[ "$(tr '\0' ' ' <"/proc/$pid/cmdline")" = "$(tr '\0' ' ' </proc/$$/cmdline)" ] &&
			continue
		echo "$pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
	done
}

cleanup() {
	local pid
	[ -z "$merger" ] || kill "$merger" 2>/dev/null
	[ -z "$broker" ] || kill "$broker" 2>/dev/null
	leftovers | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
}

skip_all() {
	echo "1..0 # SKIP $1"
	exit 0
}

# wait_for SECONDS COMMAND... : $pause between two tries
wait_for() {
	local end=$((SECONDS + $1))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep "${pause:-0.1}"
	done
}

real_start() {
	local program
	for program; do
		command -v "$program" >/dev/null ||
			skip_all "no $program (tests/real/packages.sh fetches it)"
	done
	"$SAMEPAGE" check >"$tmp/out" 2>&1 || skip_all "merging does not work here: samepage check"
	chmod 755 "$tmp"
	"$SAMEPAGED" --socket "$SAMEPAGE_SOCKET" --linger 1 --trim-interval 1 \
		>"$tmp/broker.log" 2>&1 </dev/null &
	broker=$!
	wait_for 10 test -S "$SAMEPAGE_SOCKET" || skip_all "the broker does not start"
}

real_merge() {
	python3 "$here/merger.py" "$SAMEPAGE" "$tmp/merges.json" 2>"$tmp/merger.err" </dev/null &
	merger=$!
}

# With the libraries that were unpacked, where the program was. Not the shell's whole
# life with them: they are no business of samepage and python3.
libraries() {
	case $(command -v "$1") in
	"$root"/*) echo "$root/usr/lib/$(uname -m)-linux-gnu:$root/lib/$(uname -m)-linux-gnu" ;;
	esac
}
# In a subshell (so in the background) they become the program: $! is its number.
become() {
	[ "$BASHPID" = $$ ] || exec env LD_LIBRARY_PATH="$lib" "$@"
	LD_LIBRARY_PATH=$lib "$@"
}
alone() {
	local lib
	lib=$(libraries "$1")
	become "$@"
}
under() {
	local lib
	lib=$(libraries "$1")
	become "$SAMEPAGE" run --scope all -- "$@"
}

# A user other than root, where root is not wanted; who is not root stays what he is.
as_another() {
	if [ "$(id -u)" = 0 ]; then
		setpriv --reuid=daemon --regid=daemon --clear-groups -- "$@"
	else
		"$@"
	fi
}

no_leftovers() {
	leftovers >"$tmp/left"
	! [ -s "$tmp/left" ]
}
store_is_empty() {
	"$SAMEPAGE" status --json >"$tmp/out" 2>"$tmp/err" </dev/null &&
		json 'not any(d["store"][k] for k in ("clients", "slots", "segments"))'
}
merges() {
	cp "$tmp/merges.json" "$tmp/out" && json "$1"
}

# The programs have ended, and so does the broker, which has nothing left.
real_gone() {
	wait_for 15 no_leftovers
	check "no process is left" sh -c '! grep . "$1"' sh "$tmp/left"
	# Who asks is there, too: seldom enough for the domain's linger time.
	pause=2.5 wait_for 30 store_is_empty
	sleep 2.5
	check "the store is empty when everybody has gone" store_is_empty
	kill -TERM "$broker"
	wait "$broker"
	check "the broker ended well" test $? -eq 0
	broker=
	finish
}

# real_end PAGES : at least so many pages were merged or found to be zero
real_end() {
	kill -TERM "$merger"
	wait "$merger"
	check "the merging process ended well" test $? -eq 0
	merger=
	check "at least $1 pages were merged" merges "d['pages_merged'] >= $1"
	check "no pass failed" merges 'd["passes_failed"] == 0 and d["passes"] > 2'
	python3 -c 'import json, sys
d = json.load(open(sys.argv[1]))
d["declined"] = {k: v for k, v in d["declined"].items() if v}
print("#", json.dumps(d))' "$tmp/merges.json"
	real_gone
}
