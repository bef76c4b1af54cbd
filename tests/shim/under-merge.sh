#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Real programs, each several at once, give the same output under `samepage run` as
# without it while `samepage merge --all` goes over them again and again, and once
# more while the broker is killed and started in between. If this failed, merging
# would change, lose or hold up what programs compute. TAP on stdout.
#
# usage: under-merge.sh BUILD_DIR
set -u
build=${1:?build folder}
samepage=$build/samepage
command -v python3 >/dev/null || { echo "1..0 # SKIP no python3"; exit 0; }
work=$(mktemp -d /tmp/samepage-test.XXXXXX) || exit 1
export SAMEPAGE_SOCKET=$work/broker.sock
broker=
merger=
stop() {
	[ -n "$merger" ] && kill "$merger" 2>/dev/null
	[ -n "$broker" ] && kill "$broker" 2>/dev/null
	wait 2>/dev/null
	rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

start_broker() {
	# Its own SIGKILL would otherwise be told of on stderr.
	"$build/samepaged" --socket "$SAMEPAGE_SOCKET" >>"$work/broker.log" 2>&1 &
	broker=$!
	disown "$broker"
	for _ in $(seq 100); do
		[ -S "$SAMEPAGE_SOCKET" ] && return
		sleep 0.05
	done
}

# merge for as long as the file $work/go is there
merge_loop() {
	while [ -e "$work/go" ]; do
		"$samepage" merge --all --json >>"$work/merge.json" 2>>"$work/merge.err"
		echo >>"$work/passes"
		sleep 0.05
	done
}

number=0
failed=0
ok() {
	number=$((number + 1))
	echo "ok $number - $1"
}
not_ok() {
	number=$((number + 1))
	failed=1
	echo "not ok $number - $1"
}

# under NAME PROGRAM KILL SCRIPT: three at once, with the same result as alone
under() {
	local name=$1 kill_it=$3 script=$4 i pids=() bad=0 passes
	if ! command -v "$2" >/dev/null 2>&1; then
		number=$((number + 1))
		echo "ok $number - $name # SKIP no $2"
		return
	fi
	mkdir -p "$work/alone" && (cd "$work/alone" && timeout 120 sh -c "$script") \
		>"$work/alone.out" 2>&1 </dev/null
	echo "status $?" >>"$work/alone.out"
	: >"$work/go"
	: >"$work/passes"
	merge_loop &
	merger=$!
	for i in 1 2 3; do
		mkdir -p "$work/$i"
		(
			cd "$work/$i" || exit 1
			timeout 240 "$samepage" run --layout shared -- sh -c "$script"
			echo "status $?"
		) >"$work/$i.out" 2>&1 </dev/null &
		pids+=($!)
	done
	if [ "$kill_it" = kill ]; then
		for _ in 1 2 3 4 5 6 7 8; do
			sleep 0.4
			kill -KILL "$broker"
			rm -f "$SAMEPAGE_SOCKET"
			start_broker
		done
	fi
	wait "${pids[@]}"
	rm -f "$work/go"
	wait "$merger"
	merger=
	passes=$(wc -l <"$work/passes")
	for i in 1 2 3; do
		cmp -s "$work/alone.out" "$work/$i.out" && continue
		bad=1
		echo "# number $i differs:"
		diff "$work/alone.out" "$work/$i.out" | head -8 | sed 's/^/#   /'
	done
	rm -rf "$work/alone" "$work"/[123]
	if [ $bad = 0 ]; then ok "$name ($passes passes)"; else not_ok "$name ($passes passes)"; fi
}

python_work='exec python3 -c "
import hashlib, json, re, random, gc, zlib
random.seed(7)
data = {i: (str(i) * 40, [i] * 50) for i in range(20000)}
zero = bytearray(8 << 20)
text = json.dumps({str(k): v[0] for k, v in data.items()})
total = hashlib.sha256()
for turn in range(12):
    for k in random.sample(sorted(data), 2000):
        data[k] = (data[k][0][::-1], [turn] * 50)
    zero[turn << 19] = turn
    total.update(zlib.compress(json.dumps(data, sort_keys=True).encode(), 1))
    total.update(zero)
    gc.collect()
    assert len(re.findall(r\"19+\", text)) == 3440 or True
print(total.hexdigest())
"'
fork_work='exec python3 -c "
import os, sys
data = [bytes([i % 251]) * 4096 for i in range(4000)]
def tree(depth, name):
    for i in range(3000):
        assert data[i] == bytes([i % 251]) * 4096, (name, i)
    data[depth * 7] = b\"x\" * 4096
    if depth == 3:
        return
    for child in range(2):
        pid = os.fork()
        if pid == 0:
            data[depth * 7] = bytes([depth * 7 % 251]) * 4096
            tree(depth + 1, name + str(child))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, name
    data[depth * 7] = bytes([depth * 7 % 251]) * 4096
for turn in range(6):
    tree(0, str(turn))
print(\"tree stands\")
"'
thread_work='exec python3 -c "
import threading, mmap, os
def work(n, out):
    m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    sums = 0
    for turn in range(60):
        for p in range(0, 8 << 20, 4096):
            m[p:p + 8] = (p // 8192 + turn).to_bytes(8, \"little\")
        for p in range(0, 8 << 20, 4096):
            v = int.from_bytes(m[p:p + 8], \"little\")
            assert v == p // 8192 + turn, (n, p, v)
            sums += v
        if turn % 7 == 0:
            m.close()
            m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            assert m[::4096] == bytes(2048)
    out[n] = sums
out = {}
threads = [threading.Thread(target=work, args=(n, out)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(out.items()))
"'

echo 1..9
start_broker
under 'python, data in flux' python3 - "$python_work"
under 'python, a tree of forks' python3 - "$fork_work"
under 'python, threads and mmap' python3 - "$thread_work"
under 'sort' sort - 'seq 1 400000 | sort -r --parallel=2 -S 32M | cksum'
under 'perl' perl - 'perl -e "my %h; for \$t (1..6) { \$h{\$_} = \$_ x 3 . \$t for 1..60000; } my \$s = 0; \$s += length \$h{\$_} for keys %h; print \"\$s\n\""'
under 'a compiler' gcc - 'for i in 1 2 3 4; do printf "int f%d(int x) { return x * %d; }\n" $i $i; done > a.c; for i in 1 2 3 4 5 6; do gcc -O2 -c a.c -o a.o; done; cksum < a.o'
under 'node' node - 'node -e "let m=new Map();for(let t=0;t<8;t++)for(let i=0;i<80000;i++)m.set(i,String(i*t));let s=0;for(const v of m.values())s+=v.length;console.log(s)"'
under 'python, the broker killed 8 times' python3 kill "$python_work"
# All of the above would pass if nothing had ever been merged.
merged=$(grep -o '"pages_merged":[0-9]*' "$work/merge.json" | cut -d: -f2 | awk '{ n += $1 } END { print n }')
if [ "${merged:-0}" -gt 10000 ]; then ok "pages were merged meanwhile ($merged)"; else
	not_ok "pages were merged meanwhile (${merged:-0})"
fi
exit $failed
