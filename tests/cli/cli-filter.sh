# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# samepage run under a seccomp filter of a service manager's or a container's: one that
# kills for what the library does leaves the program alone and says so; one that answers
# with an error does not. If this failed, `samepage run` would kill programs. TAP.
# shellcheck source=tests/cli/tap.sh
. "$(dirname "$0")/tap.sh"
broker=
cleanup() { [ -n "$broker" ] && kill "$broker" 2>/dev/null; }
"$SAMEPAGED" --socket "$SAMEPAGE_SOCKET" >/dev/null 2>&1 &
broker=$!
for _ in $(seq 100); do [ -S "$SAMEPAGE_SOCKET" ] && break; sleep 0.05; done

try "$FILTER" errno true
if [ "$status" -eq 77 ]; then
	skip "filters" "no filter can be installed here"
	finish
fi
show='echo "[${LD_PRELOAD-}]"; exit 5'
try "$FILTER" kill "$SAMEPAGE" run --broker "$SAMEPAGE_SOCKET" -- sh -c "$show"
check "a filter that kills: the program runs" status_is 5
check "without the library" out_has '^\[\]$'
check "and that is said in one line" err_is_one_line
check "which names the filter" err_has 'is left alone: a seccomp filter'
try "$FILTER" errno "$SAMEPAGE" run --broker "$SAMEPAGE_SOCKET" -- sh -c "$show"
check "a filter that refuses: the program runs" status_is 5
check "with the library" out_has 'libsamepage-preload'
check "and nothing is said" err_is_empty
finish
