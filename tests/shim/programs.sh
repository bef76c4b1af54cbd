#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Real programs give the same output and exit status with the preload library (and
# no broker to be reached) as without. If this failed, the library would harm
# programs merely by being there. TAP on stdout; what is not installed is skipped.
#
# usage: programs.sh PATH/libsamepage-preload.so OWN_FREE_PROGRAM
set -u
library=${1:?path of libsamepage-preload.so}
own_free=${2:?the program that has a free of its own}
case $library in /*) ;; *) library=$PWD/$library ;; esac
[ -r "$library" ] || { echo "1..0 # SKIP no $library"; exit 0; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
number=0
failed=0

# check NAME PROGRAM SCRIPT: the script, by sh, with and without the library.
check() {
	number=$((number + 1))
	if ! command -v "$2" >/dev/null 2>&1; then
		echo "ok $number - $1 # SKIP no $2"
		return
	fi
	mkdir -p "$work/plain" "$work/with"
	(cd "$work/plain" && exec timeout -s KILL 120 sh -c "$3") \
		>"$work/plain.out" 2>"$work/plain.err" </dev/null
	plain=$?
	(cd "$work/with" && exec timeout -s KILL 120 env LD_PRELOAD="$library" \
		SAMEPAGE_SOCKET=/nonexistent/samepage sh -c "$3") \
		>"$work/with.out" 2>"$work/with.err" </dev/null
	with=$?
	if [ "$plain" -eq "$with" ] && cmp -s "$work/plain.out" "$work/with.out" &&
		cmp -s "$work/plain.err" "$work/with.err"; then
		echo "ok $number - $1"
	else
		echo "not ok $number - $1"
		echo "# exit status $plain without, $with with the library"
		diff "$work/plain.out" "$work/with.out" | head -5 | sed 's/^/# out /'
		diff "$work/plain.err" "$work/with.err" | head -5 | sed 's/^/# err /'
		failed=1
	fi
	rm -rf "$work/plain" "$work/with"
}

echo "1..16"
check true true '/bin/true; echo $?'
check false false '/bin/false; echo $?'
check ls ls 'ls -lR /usr/share/doc 2>/dev/null | head -n 2000'
check 'sh pipes' sh 'seq 1 20000 | sed s/7/x/ | sort -r | uniq -c | tail -n 5 | cksum'
check 'bash pipes' bash 'bash -c "for i in 1 2 3 4 5 6 7 8; do (echo \$i | cat | tr 1-8 a-h) & wait; done; ulimit -s >/dev/null; diff <(seq 9) <(seq 9) && echo same"'
check 'python threads' python3 'python3 -c "
import threading, subprocess, mmap, os
a = []
def f(i):
    m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m[:] = bytes([i]) * len(m)
    a.append((i, sum(m[::4096])))
    m.close()
t = [threading.Thread(target=f, args=(i,)) for i in range(16)]
[x.start() for x in t]; [x.join() for x in t]
print(sorted(a))
print(subprocess.run([\"echo\", \"child\"], capture_output=True).stdout)
print(subprocess.check_output(\"echo shell | cat\", shell=True))
"'
check 'python multiprocessing' python3 'python3 -c "
import multiprocessing as m
if __name__ == \"__main__\":
    with m.get_context(\"fork\").Pool(4) as p:
        print(p.map(hex, range(200)))
"'
check 'python posix_spawn' python3 'python3 -c "
import os
for i in range(20):
    p = os.posix_spawn(\"/bin/true\", [\"true\"], os.environ)
    print(os.waitpid(p, 0)[1])
print(os.system(\"exit 3\"), os.popen(\"echo x\").read())
"'
check 'python identity in a child' python3 'timeout -s KILL 20 python3 -c "
import os
p = os.fork()
if p == 0:
    os.setgid(os.getgid()); os.setuid(os.getuid()); os._exit(5)
print(os.waitpid(p, 0)[1])
"'
check perl perl 'perl -e "my %h; \$h{\$_ % 1000} .= chr(65 + \$_ % 26) for 1..200000; print join(q(,), map { length \$h{\$_} } sort keys %h), qq(\n); print qx(echo sub); my \$p = fork // die; exit 4 if !\$p; waitpid \$p, 0; print \$? >> 8"'
check gcc gcc 'printf "#include <stdio.h>\nint main(void){puts(\"hello\");return 3;}\n" > hello.c; gcc -O2 -c hello.c -o hello.o && gcc hello.o -o hello && ./hello; echo $?; cksum < hello.o'
check node node 'node -e "
const c = require(\"child_process\"), { Worker } = require(\"worker_threads\");
const b = []; for (let i = 0; i < 200; i++) b.push(Buffer.alloc(100000, i));
console.log(b.reduce((s, x) => s + x[5], 0), c.execSync(\"echo sub\").toString());
new Worker(\"require(\\\"worker_threads\\\").parentPort.postMessage(42)\", { eval: true }).on(\"message\", m => console.log(m));
"'
check tar tar 'tar -C /usr/share -cf - doc/bash 2>/dev/null | tar -tvf - | cksum; tar -C /usr/include -czf - linux | tar -xzf - && ls -R linux | cksum'
check 'sort --parallel' sort 'seq 1 300000 | awk "{ print \$1 * 7919 % 300007 }" | sort -n --parallel=4 -S 4M | cksum'
check 'a free of its own' "$own_free" "$own_free"
check 'awk and xargs' xargs 'seq 1 200 | xargs -P 4 -n 10 echo | sort | cksum'
exit $failed
