#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Three QEMU guests (TCG) of one Debian image under `samepage run --scope advised`, merged by
# their own scanners: QEMU itself advises guest memory. While that goes on each guest is
# asked to rewrite a part of its memory, to verify all of it, word by word, and to read all
# of its files again, and answers in time. Then the guests give memory back (virtio-balloon:
# QEMU discards it): each page that QEMU says it was given reads zeros, whatever it was
# merged with. If this failed, a guest would find other bytes than it wrote.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/real.sh"
real_start qemu-system-x86_64 cc busybox
[ "$(uname -m)" = x86_64 ] || skip_all "guests for x86-64 only"
export REAL_ROOT=$root
image=$("$here/../../bench/vm/image.sh" "${SAMEPAGE_BENCH_CACHE:-$root/../bench-cache}" 2>"$tmp/err") ||
	skip_all "$(tail -n 1 "$tmp/err")"

# The scanners run as `samepage run` lets them, whatever the other tests want.
unset SAMEPAGE_SCAN
export SAMEPAGE SAMEPAGE_SOCKET
python3 "$here/guests.py" "$image" "$tmp" "$seconds" >"$tmp/guests.tap" 2>&1 </dev/null
ended=$?
while read -r result; do
	case $result in
	'right '*) check "${result#right }" true ;;
	'wrong '*) check "${result#wrong }" sh -c 'cat "$@"; false' sh "$tmp/guests.tap" "$tmp/log" ;;
	*) echo "# $result" ;;
	esac
done <"$tmp/guests.tap"
check "the guests came to their end" test $ended = 0
real_gone
