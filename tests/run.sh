#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Build and run every test there is:
#
#   build       plain: all suites
#   build-asan  AddressSanitizer and UBSan: unit, sys, broker, proc, lib
#   build-tsan  ThreadSanitizer: unit, threads
#   build-clang clang, if it is there: builds, nothing is run
#
# All with -Werror. Ends with the line "N passed, N failed, N skipped", where
# each TAP subtest counts as a test, a build that fails counts as a failed one,
# and so does a program that crashes after its last "ok". The status is not 0
# when something failed or nothing ran.
#
#   tests/run.sh [plain] [asan] [tsan] [clang]     only these
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# One failed step that is no test of meson's.
broken() {
	printf 'FAILED: %s\n' "$1"
	failed=$((failed + 1))
}

# build DIR OPTION... : set up or set up again, and compile
build() {
	local dir=$1
	shift
	if [ -f "$dir/meson-private/coredata.dat" ]; then
		set -- --reconfigure "$@"
	fi
	if ! meson setup "$dir" --werror "$@" >"$tmp/log" 2>&1; then
		cat "$tmp/log"
		broken "meson setup $dir"
		return 1
	fi
	if ! meson compile -C "$dir" >"$tmp/log" 2>&1; then
		grep -v '^\[[0-9]*/[0-9]*\] \(Comp\|Link\)' "$tmp/log"
		broken "meson compile -C $dir"
		return 1
	fi
}

# Adds up meson's log: "passed failed skipped". A program without TAP is one test.
# What TAP programs say about their failures goes to stderr (meson keeps it to itself).
count() {
	python3 - "$1" <<'PY'
import json, re, sys

totals = {"passed": 0, "failed": 0, "skipped": 0}
line_re = re.compile(r"^(not )?ok\b(.*)$")
for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    test = json.loads(line)
    out = test.get("stdout") or ""
    here = {"passed": 0, "failed": 0, "skipped": 0}
    tap = re.search(r"^1\.\.\d+", out, re.M)
    for m in map(line_re.match, out.splitlines() if tap else []):
        if not m:
            continue
        mark = re.search(r"#\s*(skip|todo)", m.group(2), re.I)
        if mark and mark.group(1).lower() == "skip":
            here["skipped"] += 1
        elif m.group(1) and not mark:
            here["failed"] += 1
        else:
            here["passed"] += 1
    result = test["result"]
    if result in ("OK", "EXPECTEDFAIL"):
        if not any(here.values()):
            here["passed"] = 1
    elif result == "SKIP":
        if not any(here.values()):
            here["skipped"] = 1
    elif not here["failed"]:
        here["failed"] = 1
    if here["failed"] and tap:
        bad = False
        print(f"{test['name']} ({result}):", file=sys.stderr)
        for text in out.splitlines():
            bad = text.startswith("not ok") or (bad and not line_re.match(text))
            if bad:
                print("  " + text, file=sys.stderr)
    for key, n in here.items():
        totals[key] += n
print(totals["passed"], totals["failed"], totals["skipped"])
PY
}

# run DIR SECONDS ARGUMENT... : meson test, with its failures' output
run() {
	local dir=$1 seconds=$2 status p f s
	shift 2
	rm -f "$dir"/meson-logs/testlog*
	# Sanitizers of older compilers cannot live with many random address bits.
	${aslr_off:-} timeout -k 30 "$seconds" \
		meson test -C "$dir" --no-rebuild --print-errorlogs "$@"
	status=$?
	if ! [ -s "$dir/meson-logs/testlog.json" ]; then
		[ "$status" -eq 0 ] || broken "meson test -C $dir $*"
		return
	fi
	if ! read -r p f s < <(count "$dir/meson-logs/testlog.json"); then
		broken "reading the log of $dir"
		return
	fi
	[ "$status" -eq 0 ] || [ "$f" -gt 0 ] || broken "meson test -C $dir (status $status)"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '%s: %d passed, %d failed, %d skipped\n' "$dir" "$p" "$f" "$s"
}

plain() {
	build build && run build 700
}

asan() {
	local aslr_off=$no_aslr leaks=1
	# LeakSanitizer stops the program with ptrace, which containers may forbid.
	[ "$(sed -n 's/^TracerPid:\t//p' /proc/self/status)" = 0 ] || leaks=0
	build build-asan -Db_sanitize=address,undefined -Db_lundef=false || return
	export ASAN_OPTIONS=detect_leaks=$leaks:halt_on_error=1:abort_on_error=1
	export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
	run build-asan 500 --timeout-multiplier 3 --suite unit --suite sys --suite broker \
		--suite proc --suite lib
	unset ASAN_OPTIONS UBSAN_OPTIONS
}

tsan() {
	local aslr_off=$no_aslr
	build build-tsan -Db_sanitize=thread -Db_lundef=false || return
	export TSAN_OPTIONS=halt_on_error=1:abort_on_error=1
	run build-tsan 300 --timeout-multiplier 3 --suite unit --suite threads
	unset TSAN_OPTIONS
}

clang() {
	if command -v clang >/dev/null; then
		CC=clang build build-clang
	else
		echo 'clang is not there: not built with it'
	fi
}

no_aslr=
if setarch -R true 2>/dev/null; then
	no_aslr='setarch -R'
fi

for what in "${@:-all}"; do
	case $what in
	all) plain; asan; tsan; clang ;;
	plain | asan | tsan | clang) "$what" ;;
	*)
		echo "usage: tests/run.sh [plain] [asan] [tsan] [clang]" >&2
		exit 2
		;;
	esac
done

printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
