#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# nginx with four workers, loaded by ab and by clients that compare each response with
# the file: as it is, compressed, and through a proxy that buffers it in memory. Its
# workers are replaced twice meanwhile (HUP). If this failed, a server would send bytes
# that are not in the file.
# shellcheck source-path=SCRIPTDIR disable=SC2016
. "$(dirname "$0")/real.sh"
real_start nginx ab

mkdir -p "$tmp/www" "$tmp/run"
python3 - "$tmp/www" <<'PY'
import hashlib, sys
for i in range(24):
    with open(f"{sys.argv[1]}/{i}.txt", "wb") as f:
        f.write(hashlib.shake_128(b"%d" % i).hexdigest(1000 * (i + 1)).encode() * (i % 5 + 1))
PY
ports=$(python3 -c '
import socket
two = [socket.socket() for _ in range(2)]
for s in two: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in two))')
read -r port back <<<"$ports"
cat >"$tmp/nginx.conf" <<CONF
daemon off; worker_processes 4; pid $tmp/run/pid; error_log $tmp/error.log warn;
$([ "$(id -u)" = 0 ] && echo 'user root;')
events { worker_connections 200; }
http {
	access_log off; sendfile off; output_buffers 4 64k; keepalive_requests 50;
	client_body_temp_path $tmp/run/1; proxy_temp_path $tmp/run/2; fastcgi_temp_path $tmp/run/3;
	uwsgi_temp_path $tmp/run/4; scgi_temp_path $tmp/run/5;
	proxy_buffers 16 64k; proxy_buffer_size 64k;
	gzip_types text/plain; gzip_min_length 100; gzip_buffers 64 16k;
	server { listen 127.0.0.1:$port; root $tmp/www;
		location /plain/ { alias $tmp/www/; }
		location /gzip/ { gzip on; types { text/plain txt; } alias $tmp/www/; }
		location /proxy/ { proxy_pass http://127.0.0.1:$back/; } }
	server { listen 127.0.0.1:$back; root $tmp/www; }
}
CONF
cat >"$tmp/client.py" <<'PY'
import gzip, http.client, os, sys, threading, time
port, www, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
files = {n: open(os.path.join(www, n), "rb").read() for n in sorted(os.listdir(www))}
good, bad = [0], []
end = time.monotonic() + seconds

def client(number):
    n = number
    while time.monotonic() < end and not bad:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for turn in range(40):
            n += 1
            name = list(files)[n % len(files)]
            kind = ("plain", "gzip", "proxy")[n // 3 % 3]
            try:
                link.request("GET", f"/{kind}/{name}", headers={"Accept-Encoding": "gzip"})
                answer = link.getresponse()
            except ConnectionError:
                # A worker that is replaced closes connections that wait for the next.
                if turn == 0:
                    raise
                break
            body = answer.read()
            if answer.getheader("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            elif kind == "gzip":
                bad.append(f"{name}: not compressed")
            if answer.status != 200 or body != files[name]:
                bad.append(f"{kind} {name}: status {answer.status}, {len(body)} bytes")
            good[0] += 1
            if answer.will_close or answer.getheader("Connection") == "close":
                break
        link.close()

def guarded(number):
    try:
        client(number)
    except Exception as e:
        bad.append(repr(e))

threads = [threading.Thread(target=guarded, args=(i * 7,)) for i in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
print(good[0], "right")
print(*bad[:5], sep="\n")
sys.exit(bool(bad) or good[0] < 50)
PY
# started under|alone
started() {
	"$1" nginx -p "$tmp/run" -c "$tmp/nginx.conf" >"$tmp/nginx.log" 2>&1 </dev/null &
	nginx=$!
	wait_for 20 python3 "$tmp/client.py" "$port" "$tmp/www" 0.3
}
ended() {
	kill -QUIT "$nginx"
	wait "$nginx"
}
load() {
	timeout $((seconds * 3 + 60)) python3 "$tmp/client.py" "$port" "$tmp/www" "$seconds"
}

check "nginx starts, alone" started alone
check "and ends" ended
check "nginx starts, as a client" started under
real_merge
(
	for _ in 1 2; do
		sleep $((seconds / 3))
		kill -HUP "$nginx"
	done
) &
reloads=$!
LD_LIBRARY_PATH=$(libraries ab) timeout $((seconds * 3 + 60)) bash -c 'while [ $SECONDS -lt $1 ]; do
	"$2" -q -n 2000 -c 8 "http://127.0.0.1:$3/proxy/23.txt" || exit 1; done' \
	sh "$seconds" "$(command -v ab)" "$port" >"$tmp/ab" 2>&1 &
bench=$!
check "each response is what the file holds" load
sed 's/^/# /' "$tmp/check"
wait $bench
check "ab ends well" test $? = 0
wait $reloads
check "ab saw no failed request" sh -c 'grep -q "^Complete" "$1" && ! grep "^Failed requests: *[1-9]\|^Non-2xx" "$1"' \
	sh "$tmp/ab"
check "nginx ends well" ended
check "nothing crashed" sh -c '! grep -E "exited on signal|alert|emerg" "$1"' sh "$tmp/error.log"
real_end 200
