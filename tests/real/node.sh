#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# node, three at once: compiled code, collected heaps, Buffers, threads. Their digests
# are that of a run without samepage, and their own checks hold for as long as the load
# goes on. If this failed, a JIT's code or a moving collector's heap would be damaged.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/real.sh"
real_start node
work=("$(command -v node)" "$here/node-work.js")

try alone "${work[@]}" rounds 6
check "alone" status_is 0
cp "$tmp/out" "$tmp/alone.out"
real_merge
pids=()
for i in 1 2 3; do
	under "${work[@]}" rounds 6 >"$tmp/$i.out" 2>&1 </dev/null &
	pids+=($!)
done
for i in 1 2 3; do
	wait "${pids[$((i - 1))]}"
	check "number $i ends well" test $? = 0
	check "number $i has the same digest" cmp "$tmp/alone.out" "$tmp/$i.out"
done
pids=()
for i in 1 2 3; do
	under "${work[@]}" seconds "$seconds" >"$tmp/$i.out" 2>&1 </dev/null &
	pids+=($!)
done
for i in 1 2 3; do
	wait "${pids[$((i - 1))]}"
	check "number $i, longer: its checks held" test $? = 0
	check "number $i, longer: says so" grep -qx right "$tmp/$i.out"
done
real_end 1000
