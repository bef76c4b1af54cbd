#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Build and run every test there is:
#
#   build       plain: all suites, "real" last, with programs that tests/real/packages.sh
#               unpacks into build/real-root
#   build-asan  AddressSanitizer and UBSan: unit (with sys), broker, proc, lib, and what
#               of cli preloads nothing; the shim's own mmap and ASan's do not mix
#   build-tsan  ThreadSanitizer: unit, threads
#   build-clang clang, if it is there: builds, nothing is run
#   kernel      the kernel with MADV_MERGE: built, booted in QEMU (kernel/test.sh quick), and
#               the process tests in it and on Debian's own (kernel/guest/test.sh), as far as
#               there is time
#
# All with -Werror. Ends with the line "N passed, N failed, N skipped", where
# each TAP subtest counts as a test, a build that fails counts as a failed one,
# and so does a program that crashes after its last "ok". The status is not 0
# when something failed or nothing ran.
#
# Nothing here hangs for long: meson ends a test that runs out of its own time, each
# part has its time, and all of it MINUTES_MAX; what had no time left has failed.
# No test holds a descriptor of this script's, so one that leaves a child behind
# cannot keep it, or who reads its output, from ending.
#
#   tests/run.sh [plain] [asan] [tsan] [clang] [kernel]     only these
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

MINUTES_MAX=29
passed=0 failed=0 skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

# One failed step that is no test of meson's.
broken() {
	printf 'FAILED: %s\n' "$1"
	failed=$((failed + 1))
}

# Of all the time, in seconds.
left() {
	printf '%s\n' "$((MINUTES_MAX * 60 - 30 - SECONDS))"
}

# within SECONDS COMMAND... : in that time, and in what is left of all; 124, 137: it was not
within() {
	local seconds=$1 left
	left=$(left)
	shift
	[ "$left" -gt 0 ] || return 124
	timeout -k 20 "$((seconds < left ? seconds : left))" "$@" </dev/null
}

# build DIR OPTION... : set up or set up again, and compile
build() {
	local dir=$1
	shift
	if [ -f "$dir/meson-private/coredata.dat" ]; then
		set -- --reconfigure "$@"
	fi
	if ! within 120 meson setup "$dir" --werror "$@" >"$tmp/log" 2>&1; then
		cat "$tmp/log"
		broken "meson setup $dir"
		return 1
	fi
	if ! within 600 meson compile -C "$dir" >"$tmp/log" 2>&1; then
		grep -v '^\[[0-9]*/[0-9]*\] \(Comp\|Link\)' "$tmp/log"
		broken "meson compile -C $dir"
		return 1
	fi
}

# Adds up meson's log: "passed failed skipped excused". A program without TAP is one
# test. cmocka 1.1.5 calls a skipped test "not ok N # SKIP", which meson takes for a
# failure: a program with no other, that ended well, is excused. What TAP programs say
# about their failures goes to stderr (meson keeps it to itself).
count() {
	python3 - "$1" <<'PY'
import json, re, sys

totals = {"passed": 0, "failed": 0, "skipped": 0, "excused": 0}
line_re = re.compile(r"^(not )?ok\b(.*)$")
for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    test = json.loads(line)
    out = test.get("stdout") or ""
    here = {"passed": 0, "failed": 0, "skipped": 0, "excused": 0}
    odd_skip = False
    tap = re.search(r"^1\.\.\d+", out, re.M)
    for m in map(line_re.match, out.splitlines() if tap else []):
        if not m:
            continue
        mark = re.search(r"#\s*(skip|todo)", m.group(2), re.I)
        if mark and mark.group(1).lower() == "skip":
            here["skipped"] += 1
            odd_skip = odd_skip or bool(m.group(1))
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
    elif result == "FAIL" and test.get("returncode") == 0 and odd_skip and not here["failed"]:
        here["excused"] = 1
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
print(*totals.values())
PY
}

# run DIR SECONDS ARGUMENT... : meson test, with its failures' output
run() {
	local dir=$1 seconds=$2 status p f s excused
	shift 2
	rm -f "$dir"/meson-logs/testlog*
	# Sanitizers of older compilers cannot live with many random address bits.
	# shellcheck disable=SC2086 # two words, or none
	within "$seconds" ${aslr_off:-} \
		meson test -C "$dir" --no-rebuild --print-errorlogs "$@"
	status=$?
	if ! [ -s "$dir/meson-logs/testlog.json" ]; then
		[ "$status" -eq 0 ] || broken "meson test -C $dir $*"
		return
	fi
	if ! read -r p f s excused < <(count "$dir/meson-logs/testlog.json"); then
		broken "reading the log of $dir"
		return
	fi
	# meson's status is the number of programs that failed.
	if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
		broken "meson test -C $dir: not done in time"
	elif [ "$status" -ne "$excused" ] && [ "$f" -eq 0 ]; then
		broken "meson test -C $dir (status $status)"
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '%s: %d passed, %d failed, %d skipped\n' "$dir" "$p" "$f" "$s"
}

plain() {
	build build || return
	run build 900 --no-suite real
	# Programs of others: each loaded for a few seconds here, see CONTRIBUTING.md.
	within 120 tests/real/packages.sh "$PWD/build/real-root"
	# The guests' image, once; without it their test skips, and says why.
	[ "$(id -u)" != 0 ] || REAL_ROOT=$PWD/build/real-root \
		within 180 bench/vm/image.sh "${SAMEPAGE_BENCH_CACHE:-$PWD/build/bench-cache}" >/dev/null
	SAMEPAGE_REAL_SECONDS=${SAMEPAGE_REAL_SECONDS:-6} run build 420 --suite real
}

asan() {
	local aslr_off=$no_aslr leaks=1
	# LeakSanitizer stops the program with ptrace, which containers may forbid.
	[ "$(sed -n 's/^TracerPid:\t//p' /proc/self/status)" = 0 ] || leaks=0
	build build-asan -Db_sanitize=address,undefined -Db_lundef=false || return
	export ASAN_OPTIONS=detect_leaks=$leaks:halt_on_error=1:abort_on_error=1
	export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
	run build-asan 500 --timeout-multiplier 3 --suite unit --suite broker --suite proc \
		--suite lib --suite sanitized
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

# skip TEXT : one skipped test
skip() {
	printf 'skipped: %s\n' "$1"
	skipped=$((skipped + 1))
}

# tap NAME SECONDS COMMAND... : its last line counts, as meson's tests do
tap() {
	local name=$1 seconds=$2 p f s
	shift 2
	within "$seconds" "$@" 2>&1 | tee "$tmp/tap" | grep -v '^ok'
	if ! read -r p f s < <(sed -n -E \
		'$s/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$tmp/tap"); then
		broken "$name: not done in time"
		return
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '%s: %d passed, %d failed, %d skipped\n' "$name" "$p" "$f" "$s"
}

# It comes last: where the time that it takes is not left any more, it says so and skips.
KERNEL_BUILD_SECONDS=420 KERNEL_BOOT_SECONDS=300 GUEST_SECONDS=240

kernel() {
	local what cache need=$KERNEL_BOOT_SECONDS
	for what in qemu-system-x86_64 flex bison bc cpio patch; do
		command -v "$what" >/dev/null || { skip "kernel: no $what here"; return; }
	done
	cache=${SAMEPAGE_KERNEL_CACHE:-$PWD/build/kernel}
	compgen -G "$cache/image-plain-*/bzImage" >/dev/null || need=$((need + KERNEL_BUILD_SECONDS))
	if [ "$(left)" -lt "$need" ]; then
		skip "kernel: $(left) s left, $need needed"
		return
	fi
	if ! kernel/build.sh --source >/dev/null 2>"$tmp/log"; then
		cat "$tmp/log"
		skip 'kernel: no source to build it from'
		return
	fi
	tap kernel 780 kernel/test.sh quick
	for what in kernel remap stock; do
		if [ "$(left)" -lt "$GUEST_SECONDS" ] || ! [ -d build/tests ]; then
			skip "process tests in a guest ($what): $(left) s left, or not built"
		else
			tap "guest, $what" "$GUEST_SECONDS" kernel/guest/test.sh build "$what"
		fi
	done
}

no_aslr=
if setarch -R true 2>/dev/null; then
	no_aslr='setarch -R'
fi

for what in "${@:-all}"; do
	case $what in
	all) plain; asan; tsan; clang; kernel ;;
	plain | asan | tsan | clang | kernel) "$what" ;;
	*)
		echo "usage: tests/run.sh [plain] [asan] [tsan] [clang] [kernel]" >&2
		exit 2
		;;
	esac
done

printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
