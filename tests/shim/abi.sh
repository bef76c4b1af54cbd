#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Programs written for madvise(MADV_MERGE) get what they ask for under `samepage run`:
# each case of abi.c, by itself and three at once with a broker in common; and the same
# calls do what a kernel without the call says when samepage is off. TAP on stdout.
#
# usage: abi.sh SAMEPAGE ABI_PROGRAM
export SAMEPAGE=${1:?the samepage command} abi=${2:?the test program}
# shellcheck source=../cli/tap.sh
. "$(dirname "$0")/../cli/tap.sh"

if ! "$SAMEPAGE" check >/dev/null; then
	skip "MADV_MERGE" "samepage check: does not work here"
	finish
fi
three_at_once() {
	local pids=() bad=0
	for _ in 1 2 3; do
		timeout -s KILL 120 "$SAMEPAGE" run -- "$abi" "$1" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid" || bad=1
	done
	return $bad
}
for name in $("$abi" list); do
	check "$name" timeout -s KILL 120 "$SAMEPAGE" run -- "$abi" "$name"
	check "$name, three at once" three_at_once "$name"
done
# A broker that is not there is no error to a program.
check "no broker: nothing is merged, and no error" \
	env SAMEPAGE_SOCKET=/nonexistent/socket LD_PRELOAD="$(dirname "$SAMEPAGE")/libsamepage-preload.so" \
	"$abi" no_broker
if ! "$abi" anonymous >/dev/null; then # this kernel does not have the call itself
	check "samepage off: the kernel's answer" \
		env SAMEPAGE_OFF=1 "$SAMEPAGE" run -- "$abi" kernel
fi
finish
