#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# lib-symbols.sh LIBRARY MAP: if this failed, the library would export something
# that is not part of its interface (and could clash with a program's own names),
# miss a function that the header promises, want an executable stack, or carry
# relocations in its text.
set -u
lib=$1
map=$2
n=0
failed=0

check() {
	n=$((n + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $n - $2"
	else
		echo "not ok $n - $2"
		failed=1
	fi
}

exported=$(nm -D --defined-only "$lib" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort)
promised=$(sed -n 's/^[[:space:]]*\(samepage_[a-z_]*\);$/\1/p' "$map" | sort)
header=$(sed -n 's/^SAMEPAGE_API .*[ *]\(samepage_[a-z_]*\)(.*/\1/p' \
	"$(dirname "$map")/../include/samepage.h" | sort)

strange=$(echo "$exported" | grep -v '^samepage_' | grep -v -e '^__asan' -e '^__odr_asan')
[ -z "$strange" ]
check $? "only samepage_* is exported"
[ -z "$strange" ] || echo "# $strange"
[ -n "$promised" ] && [ "$(echo "$exported" | grep '^samepage_')" = "$promised" ]
check $? 'all that the version script names is exported'
[ -n "$header" ] && [ "$header" = "$promised" ]
check $? 'the header declares the same functions'
nm -D --defined-only "$lib" | grep -q ' samepage_open@@SAMEPAGE_'
check $? 'symbols carry a version'
if command -v readelf >/dev/null; then
	! readelf -d "$lib" | grep -q TEXTREL
	check $? 'no relocations in the text'
	! readelf -lW "$lib" | grep GNU_STACK | grep -q E
	check $? 'no executable stack'
	readelf -d "$lib" | grep -q 'SONAME.*libsamepage\.so\.0'
	check $? 'the soname is libsamepage.so.0'
fi
echo "1..$n"
exit $failed
