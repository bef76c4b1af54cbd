#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# CPython's own regression tests of what is made of memory: containers, buffers,
# the collector, mmap, files, threads, forks. Each single test has the same result as in
# a run without samepage. If this failed, an interpreter would behave otherwise.
# Some fail in both: children that ignore PYTHONPATH do not find tests that were unpacked.
# shellcheck source-path=SCRIPTDIR disable=SC2317
. "$(dirname "$0")/real.sh"
python=/usr/bin/python3
[ -x "$python" ] || skip_all "no $python"
real_start "$python"

modules=(test_array test_bytes test_list test_dict test_set test_mmap test_memoryview
	test_memoryio test_pickle test_weakref test_thread test_fork1 test_zlib test_json
	test_deque test_generators test_struct test_bigmem)
# These take long.
[ "$seconds" -lt 60 ] || modules+=(test_io test_gc test_threading test_subprocess test_tracemalloc
	test_multiprocessing_fork test_unicode test_bufio test_buffer test_posix)
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
mkdir -p "$tmp/lib/test"
for from in "/usr/lib/$version/test" "$root/usr/lib/$version/test"; do
	[ ! -d "$from" ] || cp -rs "$from/." "$tmp/lib/test/"
done
[ -e "$tmp/lib/test/test_dict.py" ] ||
	skip_all "CPython's tests are not there (tests/real/packages.sh fetches them)"

# regrtest NAME HOW : results in NAME.xml
regrtest() {
	mkdir -p "$tmp/$1"
	PYTHONPATH=$tmp/lib PYTHONDONTWRITEBYTECODE=1 "$2" timeout -k 10 $((seconds * 20 + 300)) \
		"$python" -m test -j2 --timeout 200 --tempdir "$tmp/$1" --junit-xml "$tmp/$1.xml" \
		"${modules[@]}" >"$tmp/$1.log" 2>&1 </dev/null
	echo $? >"$tmp/$1.status"
}
cat >"$tmp/results.py" <<'PY'
import sys, xml.etree.ElementTree as tree
for case in sorted(tree.parse(sys.argv[1]).iter("testcase"), key=lambda c: c.get("name")):
    bad = sorted({e.tag for e in case if e.tag in ("failure", "error", "skipped")})
    print(case.get("name"), *(bad or ["passed"]))
PY
results() { "$python" "$tmp/results.py" "$tmp/$1.xml" | sort >"$tmp/$1.results"; }

regrtest alone alone
check "the tests run, alone" results alone
count=$(wc -l <"$tmp/alone.results")
check "$count tests, $(grep -c 'passed$' "$tmp/alone.results") of them passed" test "$count" -gt 1000
real_merge
turn=0
end=$((SECONDS + seconds))
while :; do
	turn=$((turn + 1))
	regrtest under under
	check "turn $turn: the tests run" results under
	check "turn $turn: the same exit status ($(cat "$tmp/alone.status"))" \
		cmp "$tmp/alone.status" "$tmp/under.status"
	check "turn $turn: each test has the same result" diff "$tmp/alone.results" "$tmp/under.results"
	grep -a '^test_.* \(failed\|crashed\)' "$tmp/under.log" | sed 's/^/# /' | head -n 10
	[ "$seconds" -ge 60 ] && [ $SECONDS -lt $end ] || break
done
real_end 2000
