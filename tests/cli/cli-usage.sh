#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The command line of samepage where no broker listens. If this failed, mistakes
# would pass for success, messages would not name their cure, `samepage run`
# would keep programs from running or hide their exit status, or it would meddle
# with programs that cannot be merged.
# shellcheck source-path=SCRIPTDIR disable=SC2016,SC2013
. "$(dirname "$0")/tap.sh"

try "$SAMEPAGE"
check "no command: status 2" status_is 2
check "no command: usage on stderr" err_has '^usage:'
try "$SAMEPAGE" frobnicate
check "unknown command: status 2" status_is 2
check "unknown command: it is named" err_has frobnicate
for command in '' run merge unmerge status analyze check; do
	# shellcheck disable=SC2086
	try "$SAMEPAGE" $command --help
	check "${command:-samepage} --help: status 0" status_is 0
	check "${command:-samepage} --help: usage on stdout" out_has '^usage: samepage'
done
try "$SAMEPAGE" --version
check "--version" out_has '^samepage [0-9][0-9]*\.[0-9]'
try sh -c '"$1" --help >/dev/full' sh "$SAMEPAGE"
check "a full disk is no success" status_is 1

for words in 'merge' 'unmerge' 'merge 1 --all' 'merge x' 'merge 0' 'merge -5' 'merge 1x' \
	'merge 99999999999' 'merge --frob 1' 'merge --timeout 0 1' \
	'merge 1 --timeout' 'merge --timeout 5x --all' 'status --timeout -1' \
	'analyze' 'analyze x' 'analyze 0' 'analyze --all 1' 'analyze --all --cgroup /x' \
	'analyze --json --html x 1' 'analyze --looks 2 1' 'analyze --watch 0 1' \
	'analyze --threads 99 1' 'analyze --watch' 'analyze --frob 1' \
	'status x' 'status --all' 'check now' 'check --frob' \
	'run' 'run --' 'run --scope some -- true' 'run --layout odd -- true' 'run --domain' \
	'run --domain a/b -- true' 'run --broker rel/path -- true' 'run --frob -- true'; do
	# shellcheck disable=SC2086
	try "$SAMEPAGE" $words
	check "'$words' is a usage error" status_is 2
	check "'$words': one line on stderr" err_is_one_line
done
try "$SAMEPAGE" merge --all 1
check "merge --all 1: says that both were given" err_has '--all and process 1 were both given'
long=$(printf 'a%.0s' $(seq 64))
try "$SAMEPAGE" run --domain "$long" -- true
check "a domain name of 64 letters is a usage error" status_is 2

for words in 'merge 1' 'merge --all' 'merge --json --all' 'unmerge --all' 'status' 'status 1'; do
	# shellcheck disable=SC2086
	try "$SAMEPAGE" $words
	check "'$words' without a broker: status 1" status_is 1
	check "'$words' without a broker: one line on stderr" err_is_one_line
	check "'$words' without a broker: names socket and cure" \
		err_has "no broker listens on $SAMEPAGE_SOCKET: start samepaged, or run"
done

# run
quiet=(run --broker none --)
try "$SAMEPAGE" "${quiet[@]}" sh -c 'echo out; exit 7'
check "the program's status is ours" status_is 7
check "the program's output is ours" out_has '^out$'
check "without a broker: one line says so" err_is_one_line
check "without a broker: it is unmerged" err_has 'unmerged: no broker listens'
try "$SAMEPAGE" "${quiet[@]}" sh -c 'kill -TERM $$'
check "the program's signal is ours" status_is 143
check "the process number stays" bash -c \
	'"$1" run --broker none -- sh -c "echo \$\$" >"$2" 2>/dev/null & wait; [ "$(cat "$2")" = $! ]' \
	bash "$SAMEPAGE" "$tmp/pid"
try "$SAMEPAGE" "${quiet[@]}" /no/such/program
check "no such program: 127" status_is 127
try "$SAMEPAGE" "${quiet[@]}" no-such-program-anywhere
check "not in PATH: 127" status_is 127
check "not in PATH: one line" err_is_one_line
printf 'echo "script $*"\n' >"$tmp/script"
try "$SAMEPAGE" "${quiet[@]}" "$tmp/script"
check "not executable: 126" status_is 126
try "$SAMEPAGE" "${quiet[@]}" "$tmp"
check "a folder: 126" status_is 126
chmod +x "$tmp/script"
try "$SAMEPAGE" "${quiet[@]}" "$tmp/script" a 'b c'
check "a script without #!" out_has '^script a b c$'
printf '#!/bin/sh\necho "script2 $*"\n' >"$tmp/script2"
chmod +x "$tmp/script2"
try env "PATH=$tmp:$PATH" "$SAMEPAGE" "${quiet[@]}" script2 x
check "a script in PATH" out_has '^script2 x$'
try env LD_PRELOAD=libm.so.6 "$SAMEPAGE" "${quiet[@]}" env
check "LD_PRELOAD: what was there stays" out_has '^LD_PRELOAD=libm.so.6:/.*/libsamepage-preload.so$'
try "$SAMEPAGE" run --broker none --domain d1 --scope advised -- env
check "--domain goes on" out_has '^SAMEPAGE_DOMAIN=d1$'
check "--scope goes on" out_has '^SAMEPAGE_SCOPE=advised$'
try "$SAMEPAGE" run --broker none -- env
check "without --ksm nothing is said of KSM" test "$(grep -c SAMEPAGE_KSM "$tmp/out")" -eq 0
check "the switch of PR_SET_MEMORY_MERGE is off" out_has '^SAMEPAGE_MERGE_ANY=0$'
try env SAMEPAGE_MERGE_ANY=1 "$SAMEPAGE" run --broker none --ksm -- env
check "--ksm goes on" out_has '^SAMEPAGE_KSM=1$'
check "the switch that was inherited stays" out_has '^SAMEPAGE_MERGE_ANY=1$'
try env -u SAMEPAGE_SCAN "$SAMEPAGE" run --broker none -- env
check "scanning is left to the broker" out_has '^SAMEPAGE_SCAN=auto$'
check "nothing is said of how" test "$(grep -c SAMEPAGE_SCAN_ "$tmp/out")" -eq 0
try env SAMEPAGE_SCAN=off SAMEPAGE_SCAN_CPU=2.5 SAMEPAGE_SCAN_MAPS=20 "$SAMEPAGE" run --broker none -- env
check "what the environment says of scanning stays" out_has '^SAMEPAGE_SCAN=off$'
check "... and how" out_has '^SAMEPAGE_SCAN_CPU=2.5$'
try env SAMEPAGE_SCAN=off SAMEPAGE_SCAN_CPU=2.5 "$SAMEPAGE" run --broker none --scan on \
	--scan-cpu-percent 7 --scan-map-percent 20 --scan-first-msec 50 --scan-most-msec 5000 \
	--scan-tracker checksum --scan-huge-percent 99 -- env
grep '^SAMEPAGE_SCAN' "$tmp/out" | LC_ALL=C sort >"$tmp/scan"
printf 'SAMEPAGE_SCAN%s\n' =on _CPU=7 _FIRST=50 _HUGE=99 _MAPS=20 _MOST=5000 _TRACKER=checksum |
	LC_ALL=C sort >"$tmp/scan-wanted"
check "options of scanning go on, and win" cmp "$tmp/scan" "$tmp/scan-wanted"
try env SAMEPAGE_SCAN=perhaps "$SAMEPAGE" run --broker none -- env
check "what means nothing is told" err_has 'SAMEPAGE_SCAN=perhaps means nothing; allowed: on, off or auto'
check "... and does not go on" out_has '^SAMEPAGE_SCAN=auto$'
try env SAMEPAGE_VERBOSE=1 SAMEPAGE_SCAN=auto SAMEPAGE_SCAN_CPU=much \
	LD_PRELOAD="${SAMEPAGE%/*}/libsamepage-preload.so" /bin/true
check "... and the library takes it as not set" err_has '^samepage: SAMEPAGE_SCAN_CPU (.*), taken as not set$'
for bad in '--scan maybe' '--scan-cpu-percent 0' '--scan-cpu-percent 0.05' '--scan-map-percent 95' \
	'--scan-first-msec soon' '--scan-most-msec 1' '--scan-tracker guess' '--scan-huge-percent 0'; do
	# shellcheck disable=SC2086
	try "$SAMEPAGE" run $bad -- true
	check "run $bad: status 2" status_is 2
	check "run $bad: names option and values" err_has "is no value for ${bad% *} ("
done
try "$SAMEPAGE" run --scan-first-msec 2000 --scan-most-msec 1000 -- true
check "run, the first look later than the last: status 2" status_is 2
check "run, the first look later than the last: says so" err_has 'first-msec is more than --scan-most-msec'
try "$SAMEPAGE" run --broker none --layout shared -- true
check "--layout shared without a broker runs the program" status_is 0
check "--layout shared without a broker says private" err_has 'private layout: '

# What cannot be merged
try "$SAMEPAGE" "${quiet[@]}" "$STATIC" 5
check "static program: runs" status_is 5
check "static program: one line" err_is_one_line
check "static program: says why" err_has 'left alone: it is statically linked'
printf '#!%s\n' "$STATIC" >"$tmp/script3"
chmod +x "$tmp/script3"
try "$SAMEPAGE" "${quiet[@]}" "$tmp/script3"
check "script of a static interpreter: says why" err_has 'left alone: it is statically linked'

# An ELF file with another interpreter, class or machine, out of this one.
patched() {
	python3 - "$SAMEPAGE" "$tmp/$1" "$1" <<'PY'
import re, sys
b = bytearray(open(sys.argv[1], "rb").read())
if sys.argv[3] == "musl":
    m = re.search(rb"/lib[^\0]*/ld-linux[^\0]*\0", bytes(b))
    new = b"/lib/ld-musl.so.1\0"
    b[m.start():m.end()] = new.ljust(m.end() - m.start(), b"\0")
elif sys.argv[3] == "word":
    b[4] = 3 - b[4]
else:
    b[18] ^= 0x55
open(sys.argv[2], "wb").write(b)
PY
	chmod +x "$tmp/$1"
}
patched musl
try "$SAMEPAGE" "${quiet[@]}" "$tmp/musl"
check "musl program: says why" err_has 'left alone: it is linked with musl'
patched word
try "$SAMEPAGE" "${quiet[@]}" "$tmp/word"
check "other word size: says why" err_has 'left alone: it is for another machine'
patched machine
try "$SAMEPAGE" "${quiet[@]}" "$tmp/machine"
check "other machine: says why" err_has 'left alone: it is for another machine'
for n in 3 16 63 64 100; do
	head -c $n "$SAMEPAGE" >"$tmp/cut"
	chmod +x "$tmp/cut"
	try "$SAMEPAGE" "${quiet[@]}" "$tmp/cut"
	check "an ELF file of $n bytes is no crash of ours" test "$status" -gt 0 -a "$status" -lt 128
done
if [ "$(id -u)" -eq 0 ]; then
	cp "$(command -v env)" "$tmp/setuid"
	chown 65534 "$tmp/setuid"
	chmod 4755 "$tmp/setuid"
	try "$SAMEPAGE" "${quiet[@]}" "$tmp/setuid"
	check "setuid program: runs" status_is 0
	check "setuid program: says why" err_has 'left alone: it is setuid'
	check "setuid program: nothing preloaded" sh -c '! grep -q PRELOAD "$1"' sh "$tmp/out"
else
	skip "setuid program" "needs root"
fi

# check
try "$SAMEPAGE" check
check "check: a verdict" out_has '^Merging \(works\|does not work\)'
if [ "$status" -eq 0 ]; then
	check "check: the verdict is the status" out_has '^Merging works'
else
	check "check: status 1" status_is 1
	check "check: the verdict is the status" out_has '^Merging does not work'
fi
verdict=$status
try "$SAMEPAGE" check --json
check "check --json: the same status" status_is "$verdict"
check "check --json: works says the status" json "d['works'] == ($status == 0)"
check "check --json: no broker is reachable" json "d['broker']['reachable'] is False"
# Nothing that is probed may be kept from the user.
fields=$(sed -n 's/^\tbool \([a-z_]*\);.*/\1/p' "$PROBE_H")
check "check --json: fields were found" test "$(echo "$fields" | wc -w)" -gt 10
for field in $fields; do
	check "check --json: feature $field" json "type(d['features']['$field']['present']) is bool"
done
for field in $(sed -n 's/^\t\(int64_t\|char\|uint64_t\) \([a-z_]*\).*/\2/p' "$PROBE_H" |
	grep -v release); do
	check "check --json: setting $field" json "'$field' in d['settings']"
done
check "check --json: a cost and a cure for what is missing" json \
	"all(f['present'] or f['cost'] and f['cure'] for f in d['features'].values())"
finish
