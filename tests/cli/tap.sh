# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# TAP for the shell tests of the samepage command. Wants $SAMEPAGE (the program).
# A test is a line of "check"; what does not hold is told with what was seen.
set -u
unset SAMEPAGE_DOMAIN SAMEPAGE_SCOPE SAMEPAGE_OFF SAMEPAGE_VERBOSE LD_PRELOAD
# Merging by itself would do what the tests want to see done; those of it say otherwise.
unset "${!SAMEPAGE_SCAN@}"
export SAMEPAGE_SCAN=off
unset SAMEPAGE_KSM SAMEPAGE_MERGE_ANY SAMEPAGE_STACK_LIMIT SAMEPAGE_LAYOUT_STACK SAMEPAGE_FAULT

tap_n=0
tap_bad=0
tmp=$(mktemp -d /tmp/samepage-test.XXXXXX) || exit 1
trap 'cleanup; rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
cleanup() { :; }
export SAMEPAGE_SOCKET=$tmp/broker.sock

# check "what" COMMAND... : ok if COMMAND succeeds
check() {
	local what=$1
	shift
	tap_n=$((tap_n + 1))
	if "$@" >"$tmp/check" 2>&1; then
		echo "ok $tap_n - $what"
	else
		tap_bad=1
		echo "not ok $tap_n - $what"
		echo "# failed: $*"
		sed 's/^/# /' "$tmp/check"
		show_last | head -n 60 | sed 's/^/#   /'
	fi
}

skip() {
	tap_n=$((tap_n + 1))
	echo "ok $tap_n - $1 # SKIP $2"
}

# try COMMAND... : keeps its $status, $tmp/out and $tmp/err
status=0
try() {
	"$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	status=$?
}

show_last() {
	echo "status $status"
	sed 's/^/out: /' "$tmp/out"
	sed 's/^/err: /' "$tmp/err"
}

status_is() { [ "$status" -eq "$1" ]; }
err_has() { grep -q -e "$1" "$tmp/err"; }
out_has() { grep -q -e "$1" "$tmp/out"; }
err_is_one_line() { [ "$(wc -l <"$tmp/err")" -eq 1 ]; }
err_is_empty() { ! [ -s "$tmp/err" ]; }
# json EXPRESSION : is it true of the JSON object d in $tmp/out?
json() {
	python3 -c 'import json, sys
with open(sys.argv[1]) as f:
    d = json.load(f)
sys.exit(not eval("(" + sys.argv[2] + ")"))' "$tmp/out" "$1"
}

finish() {
	echo "1..$tap_n"
	exit "$tap_bad"
}
