#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A PostgreSQL cluster of its own with checksums, loaded by pgbench: the bank's
# transfers, and sorts and hash joins in the backends' memory whose result is known.
# Then: the bank's books balance, the sorts said what they say without samepage,
# amcheck and the checksums find nothing. If this failed, a data base would be damaged.
# Its shared memory is MAP_SHARED and no business of ours; the backends' own is.
# shellcheck source-path=SCRIPTDIR disable=SC2317
. "$(dirname "$0")/real.sh"
real_start initdb postgres pgbench psql pg_amcheck pg_checksums pg_ctl
for file in "$SAMEPAGE" "$(dirname "$SAMEPAGE")/libsamepage-preload.so" "$(command -v postgres)"; do
	as_another test -r "$file" || skip_all "user daemon cannot read $file"
done

data=$tmp/pg/data
mkdir -p "$tmp/pg"
[ "$(id -u)" != 0 ] || chown daemon:daemon "$tmp/pg"
export PGHOST=$tmp/pg PGPORT=5432 PGUSER=bank PGDATABASE=postgres
# As its user, with the libraries of where it comes from.
pg() { as_another env LD_LIBRARY_PATH="$(libraries "$1")" "$@"; }
stopped() { ! [ -e "$data/postmaster.pid" ]; }
# start alone|under
start() {
	local by=()
	[ "$1" = alone ] || by=("$SAMEPAGE" run --scope all --)
	(
		LD_LIBRARY_PATH=$(libraries postgres)
		export LD_LIBRARY_PATH
		exec setpriv "${as[@]}" -- "${by[@]}" "$(command -v postgres)" -D "$data" -k "$tmp/pg" \
			-c listen_addresses= -c shared_buffers=16MB -c fsync=off -c jit=off \
			-c max_parallel_workers_per_gather=2 -c work_mem=16MB -c log_min_messages=warning
	) >>"$tmp/postgres.log" 2>&1 </dev/null &
	server=$!
	wait_for 30 pg psql -qc 'SELECT 1'
}
stop_server() {
	kill -INT "$server"
	wait "$server"
}
as=()
[ "$(id -u)" != 0 ] || as=(--reuid=daemon --regid=daemon --clear-groups)

cat >"$tmp/sorts.sql" <<'SQL'
SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
SELECT md5(string_agg(v, ',' ORDER BY v)) FROM
	(SELECT md5((i % 9000)::text) v FROM generate_series(1, 60000) i) x;
SELECT count(*), sum(hashtext(a.filler || b.aid)::bigint) FROM pgbench_accounts a
	JOIN pgbench_accounts b ON b.aid = 100001 - a.aid WHERE a.aid % 3 = 0 AND a.bid = 1;
SELECT md5(array_agg(d ORDER BY d DESC)::text) FROM
	(SELECT aid % 777 d, count(*) FROM pgbench_accounts GROUP BY 1) y;
SQL
sorts() { pg psql -qXAtf - <"$tmp/sorts.sql"; }
books='SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM
	pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM
	pgbench_history), (SELECT count(*) FROM pgbench_history)'

check "initdb" pg initdb -k -D "$data" -U bank -A trust -E UTF8 --no-locale --no-sync
check "the server starts, alone" start alone
check "pgbench fills the tables" pg pgbench -q -i -s 2
sorts >"$tmp/sorts.alone" 2>&1
check "sorts and joins, alone" test "$(wc -l <"$tmp/sorts.alone")" = 3
check "the server stops" stop_server

check "the server starts, as a client" start under
real_merge
(
	n=0
	end=$((SECONDS + seconds))
	while [ $SECONDS -lt $end ]; do
		sorts >"$tmp/sorts.$((n % 2))" 2>&1
		cmp "$tmp/sorts.alone" "$tmp/sorts.$((n % 2))" || exit 1
		n=$((n + 1))
	done
	echo "$n times"
) >"$tmp/sorts.log" 2>&1 &
sorter=$!
# Connections that stay (twins that lie still for a while), and one for each transaction.
check "pgbench, connections that stay" pg pgbench -n -c 6 -j 2 -T "$((seconds * 2 / 3))"
cp "$tmp/check" "$tmp/pgbench.log"
check "pgbench, one connection each" pg pgbench -n -C -c 3 -j 1 -T "$((seconds / 3))"
cat "$tmp/check" >>"$tmp/pgbench.log"
wait "$sorter"
check "sorts and joins said the same ($(tail -n 1 "$tmp/sorts.log"))" test $? = 0
check "pgbench says that no transaction failed" sh -c \
	'[ "$(grep -c "failed transactions: 0 " "$1")" = 2 ]' sh "$tmp/pgbench.log"
count=$(awk '/actually processed/ { split($NF, n, "/"); all += n[1] } END { print all }' \
	"$tmp/pgbench.log")
pg psql -qXAtc "$books" >"$tmp/books" 2>&1
check "the books balance: $(cat "$tmp/books"), $count done" awk -F'|' -v n="$count" \
	'{ exit !($1 == $2 && $2 == $3 && $3 == $4 && $5 == n && n > 20) }' "$tmp/books"
check "amcheck finds nothing" pg pg_amcheck --install-missing --heapallindexed --all
check "the server stops well" stop_server
check "no checksum is wrong" pg pg_checksums --check -D "$data"
# FATAL alone is also what a client hears that comes too early or stays too long.
check "no backend crashed" sh -c \
	'! grep -E "terminated by signal|PANIC|TRAP|server process .* exited|corrupt|invalid" "$1"' \
	sh "$tmp/postgres.log"
real_end 1000
