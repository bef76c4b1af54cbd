#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Two redis-servers, one a replica of the other, loaded by redis-benchmark and by a
# client that knows what each key holds; background saves (fork) go on meanwhile. Then:
# each key's contents, the digest of both data sets, and of what a server without
# samepage reads from the dump. If this failed, a data base in memory would lose data.
# shellcheck source-path=SCRIPTDIR disable=SC2317
. "$(dirname "$0")/real.sh"
real_start redis-server redis-cli redis-benchmark

keys=8000
# server NAME under|alone OPTION... ; small dumps, no append-only file
server() {
	local name=$1 how=$2
	shift 2
	mkdir -p "$tmp/$name"
	"$how" redis-server --port 0 --unixsocket "$tmp/$name.sock" --dir "$tmp/$name" \
		--enable-debug-command local --save "" --rdbcompression no --loglevel notice \
		"$@" >"$tmp/$name.log" 2>&1 </dev/null &
	wait_for 20 cli "$name" PING
}
cli() {
	local name=$1
	shift
	alone redis-cli -s "$tmp/$name.sock" "$@"
}
digest() { cli "$1" DEBUG DIGEST | tr -d '\r'; }
in_step() { cli two INFO replication | grep -q master_link_status:up; }
same_digest() { [ "$(digest "$1")" = "$(digest "$2")" ]; }
saving_over() { cli "$1" INFO persistence | grep -q rdb_bgsave_in_progress:0; }
saved_well() { cli "$1" INFO persistence | grep -q rdb_last_bgsave_status:ok; }

check "a server starts" server one under --port 0
# Replication wants TCP; a port that was free a moment ago.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cli one CONFIG SET port "$port" >/dev/null
real_merge
check "keys are written" python3 "$here/redis-check.py" write "$tmp/one.sock" $keys
check "a replica starts" server two under --replicaof "127.0.0.1 $port"
check "the replica is in step" wait_for 30 in_step

python3 "$here/redis-check.py" churn "$tmp/one.sock" $keys "$seconds" >"$tmp/churn" 2>&1 &
churn=$!
end=$((SECONDS + seconds))
saves=0 bad_load=0 bad_save=0
while [ $SECONDS -lt $end ]; do
	cli one BGSAVE >/dev/null
	alone redis-benchmark -s "$tmp/one.sock" -q -n 4000 -c 20 -r 20000 -d 500 -P 8 \
		-t set,get,lpush,lrange_100,sadd,zadd,hset,mset >"$tmp/bench" 2>&1 || bad_load=1
	grep -qi 'error' "$tmp/bench" && bad_load=1
	wait_for 30 saving_over one
	saved_well one || bad_save=1
	saves=$((saves + 1))
done
check "redis-benchmark met no error" test $bad_load = 0
check "$saves background saves went well" test $bad_save = 0
wait "$churn"
check "each key held what it should, all the time" test $? = 0
check "and at the end" python3 "$here/redis-check.py" verify "$tmp/one.sock" $keys
check "on the replica too" wait_for 20 python3 "$here/redis-check.py" verify "$tmp/two.sock" $keys
check "both servers have one digest" wait_for 20 same_digest one two

check "the dump is written" sh -c '[ "$1" = OK ]' sh "$(cli one SAVE)"
mkdir -p "$tmp/three" && cp "$tmp/one/dump.rdb" "$tmp/three/"
check "a server without samepage reads it" server three alone
check "and has the same digest" same_digest one three
for name in two one three; do cli $name SHUTDOWN NOSAVE >/dev/null 2>&1; done
check "no server complained" sh -c '! grep -i "bug\|crash\|stack trace\|corrupt" "$@"' sh \
	"$tmp/one.log" "$tmp/two.log" "$tmp/three.log"
real_end 2000
