#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Clients and brokers that lie, or say nothing (fake-broker.py). If this failed,
# --json would not be JSON when a process has an odd name, sums would begin anew
# at the end of their type, or a broker that hangs would hang the command.
# shellcheck source-path=SCRIPTDIR disable=SC2016
. "$(dirname "$0")/tap.sh"

# shellcheck disable=SC2317 # called by tap.sh
cleanup() { fake_end; }
fake_end() {
	exec 8>&-
	wait
	rm -f "$SAMEPAGE_SOCKET" "$tmp/hold" "$tmp/said"
}
# fake WORD : a broker of that kind, until fake_end
fake() {
	mkfifo "$tmp/hold" "$tmp/said"
	python3 "$FAKE_BROKER" "$SAMEPAGE_SOCKET" "$1" <"$tmp/hold" >"$tmp/said" &
	exec 8>"$tmp/hold"
	read -r _ <"$tmp/said"
}

fake names
for command in 'status' 'merge --all' 'unmerge 1' 'pause --all'; do
	# shellcheck disable=SC2086
	try "$SAMEPAGE" $command --json
	check "$command --json: it is UTF-8" iconv -f UTF-8 -t UTF-8 "$tmp/out"
	check "$command --json: what is no UTF-8 is U+FFFD, the rest is kept" json \
		"d['processes'][0]['command'] == '\x1b[31m\"\\\\' + '\ufffd(' + '\ufffd' * 11
		+ '\u00e4\U0001f600' + '\ufffd' * 2"
done
try "$SAMEPAGE" status
check "status: nothing that a terminal would take for a command" sh -c \
	'! LC_ALL=C grep -q "[^ -~]" "$1"' sh "$tmp/out"
fake_end

fake sums
try "$SAMEPAGE" status --json
check "status: pages stop at the largest number" json \
	"d['pages_mapped'] == 2 ** 64 - 1 and d['pages_sharing'] == 2 ** 64 - 1 - 5"
check "status: own bytes too" json "d['own_bytes'] == d['clients_bytes'] == 2 ** 64 - 1"
check "status: declined pages too" json \
	"all(n == 2 ** 64 - 1 for n in d['pages_declined'].values())"
check "status: what scanners count, too" json \
	"d['scan']['scanners'] == 2 and d['scan']['pages_scanned'] == 2 ** 64 - 1"
check "status: the smallest number is the end as well" json "d['vmas_added'] == -2 ** 63"
check "status: profit is within its type" json "-2 ** 63 <= d['general_profit'] < 2 ** 63"
try "$SAMEPAGE" merge --json --all
check "merge: sums stop at the ends" json \
	"d['total']['pages_merged'] == 2 ** 64 - 1 and d['total']['vmas_added'] == -2 ** 63
	and d['total']['saved_bytes'] == 0"
try "$SAMEPAGE" status
check "status, as text: status 0" status_is 0
fake_end

fake counts
try "$SAMEPAGE" status --json
check "status: each counter of scanners is summed once" json \
	"[k for k in d['scan'] if k not in ('scanners', 'paused') and not k.endswith(('_mean',
	'_per_page')) and d['scan'][k] != (min if k == 'full_scans' else max if k == 'stable_msec_max'
	else sum)([p['scan'][k] for p in d['processes']])] == [] and len(d['scan']) > 25"
fake_end

fake many
try timeout 60 "$SAMEPAGE" top --batch --count 2 --delay 0.1
check "top: 2000 clients, none left out" [ "$(grep -c ' d[0-9]* .* unshared$' "$tmp/out")" = 4000 ]
fake_end

fake silent
for command in 'merge --all' 'unmerge 1' 'status'; do
	# shellcheck disable=SC2086
	try timeout 60 "$SAMEPAGE" $command --timeout 1
	check "$command, a silent broker: status 1" status_is 1
	check "$command, a silent broker: one line" err_is_one_line
	check "$command, a silent broker: names time and cure" \
		err_has 'said nothing for 1 s: .*restart samepaged$'
done
fake_end

fake older
try "$SAMEPAGE" status
check "a broker of another version: status 1" status_is 1
check "a broker of another version: says so" err_has 'speaks another version of the protocol'
# A library that is sanitized itself cannot be preloaded into a program that is not.
if grep -q __asan_init "$SAMEPAGE"; then
	skip "run, a broker of another version" "sanitized"
else
	try "$SAMEPAGE" run -- /bin/echo ran
	check "run, a broker of another version: the program runs, one line says why it is unmerged" \
		sh -c 'grep -qx ran "$1/out" && [ "$(wc -l <"$1/err")" = 1 ] &&
			grep -q "run: unmerged: " "$1/err"' sh "$tmp"
fi
try "$SAMEPAGE" check
check "check, a broker of another version: it does not work" status_is 1
check "check, a broker of another version: names no other reason" out_has '^Merging does not work: .*broker'
fake_end

fake full
try timeout 60 "$SAMEPAGE" merge --all
check "a broker that accepts nobody: status 1" status_is 1
check "a broker that accepts nobody: one line" err_is_one_line
check "a broker that accepts nobody: names the cure" err_has 'does not answer: restart samepaged'
fake_end
finish
