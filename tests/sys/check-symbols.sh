#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the table is made of may use from libc only what cannot be interposed
# usefully and touches no errno: string functions, and a few that read what the
# program was started with. If this failed, a system call would go through libc,
# hence through our own preload shim, and write errno while memory is frozen.
set -eu

archive=$1
allowed='^(__cmsg_nxthdr|bcmp|mem(chr|cmp|cpy|move|set)|str(chr|cmp|cspn|len|ncmp|nlen)|sysconf|getauxval|getenv|sys|sys_.*)$'
compiler='^(_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|__(asan|ubsan|tsan|sanitizer|gcov|llvm|gcc|odr).*|__.*_chk)$'
status=0
seen=0

for object in $(nm -A "$archive" 2>/dev/null | sed 's/\.o:.*/.o/; s/.*[:/]//' | sort -u); do
	case $object in
	*paths.c.o | *paths.o) continue ;; # runs before anything is frozen
	esac
	seen=$((seen + 1))
	bad=$(nm -A -u "$archive" 2>/dev/null | grep "[:/]$object:" | sed 's/.* //; s/@.*//' |
		grep -Ev "$allowed" | grep -Ev "$compiler" || true)
	if [ -n "$bad" ]; then
		printf '%s uses:\n%s\n' "$object" "$bad"
		status=1
	fi
done
if [ "$seen" -lt 6 ]; then
	echo "only $seen objects seen in $archive"
	exit 1
fi
exit $status
