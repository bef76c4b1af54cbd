#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Programs that the library cannot serve, real ones: musl, static, Go, setuid, with
# file capabilities, of another word size. Run by `samepage run` they are left alone
# with one line that says so, and started by a client of ours they are not harmed. If
# this failed, such programs would not start, or be merged where nobody can vouch for
# their memory, or their users would not know that they are not.
# shellcheck source-path=SCRIPTDIR disable=SC2016
. "$(dirname "$0")/tap.sh"
run=("$SAMEPAGE" run --broker none --)
chmod 755 "$tmp"

# left_alone NAME WHY PROGRAM... : run by us it does what it does without us
left_alone() {
	local name=$1 why=$2
	shift 2
	"$@" >"$tmp/plain" 2>/dev/null </dev/null
	local plain=$?
	try "${run[@]}" "$@"
	check "$name: the same status" status_is "$plain"
	check "$name: the same output" cmp "$tmp/plain" "$tmp/out"
	check "$name: one line" err_is_one_line
	check "$name: says why" err_has "left alone: $why"
}

# child NAME PROGRAM : a client starts it in every way that there is
child() {
	local name=$1
	try "${run[@]}" sh -c '"$1"; echo "status $?"; exec "$1"' sh "$2"
	check "$name, child of a shell: runs" out_has "^threads 1, not preloaded, sum 7340032"
	check "$name, child of a shell: its status" out_has '^status 5'
	check "$name, exec: its status" status_is 5
	check "$name, child of a shell: not a word more" err_is_one_line
	try "${run[@]}" env "$2"
	check "$name, execvp with a path" status_is 5
	try env "PATH=$(dirname "$2"):$PATH" "${run[@]}" env "$(basename "$2")"
	check "$name, execvp: searched" status_is 5
	printf '#! %s\n' "$2" >"$tmp/child-script"
	chmod +x "$tmp/child-script"
	try "${run[@]}" env "$tmp/child-script"
	check "$name, interpreter of a script" status_is 5
	try env LD_PRELOAD=libm.so.6 "${run[@]}" python3 -c '
import os, subprocess, sys
p = sys.argv[1]
os.chdir(os.path.dirname(p))
os.environ["PATH"] = os.path.dirname(p) + ":" + os.environ["PATH"]
b = os.path.basename(p)
fd = os.open(p, os.O_RDONLY)
def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def forked(f):
    pid = os.fork()
    if pid == 0:
        f()
    return wait(pid)
print([subprocess.run([p]).returncode, subprocess.run(["./" + b]).returncode,
    wait(os.posix_spawn(p, [b], os.environ)), wait(os.posix_spawnp(b, [b], os.environ)),
    os.waitstatus_to_exitcode(os.system(p)), forked(lambda: os.execvp(b, [b])),
    forked(lambda: os.execve(fd, [b], os.environ))])' "$2"
	check "$name, started by python in all ways" out_has '^\[5, 5, 5, 5, 5, 5, 5\]$'
}

try "${run[@]}" "$PLAIN"
check "an ordinary program is not left alone" out_has '^threads 2, preloaded'
try "${run[@]}" sh -c '"$1"; exec "$1"' sh "$PLAIN"
check "nor is a client's child" test "$(grep -c '^threads 2, preloaded' "$tmp/out")" -eq 2

# musl
if command -v musl-gcc >/dev/null && musl-gcc -o "$tmp/musl" "$PLAIN_C" 2>"$tmp/err"; then
	left_alone musl 'it is linked with musl' "$tmp/musl"
	child musl "$tmp/musl"
	try "${run[@]}" sh -c '"$1" >/dev/null; "$2"' sh "$tmp/musl" "$PLAIN"
	check "musl: the next ordinary child is a client again" out_has '^threads 2, preloaded'
else
	skip musl "no musl-gcc"
fi

# static
left_alone "static" 'it is statically linked' "$STATIC" 3
busybox=$(command -v busybox || true)
if [ -n "$busybox" ] && ! readelf -l "$busybox" | grep -q INTERP; then
	left_alone "busybox, static" 'it is statically linked' \
		"$busybox" sh -c 'busybox seq 1 1000 | busybox md5sum; exit 9'
else
	skip "busybox, static" "no busybox-static"
fi

# Go
try "${run[@]}" "$GO_NOTE"
check "Go with libc: runs" status_is 5
check "Go with libc: says why" err_has 'left alone: it is a Go program'
check "Go with libc: no thread of ours, no engine" out_has '^threads 1, preloaded'
try "${run[@]}" sh -c '"$1"' sh "$GO_NOTE"
check "Go with libc, child of a shell: the library sees it itself" out_has '^threads 1, preloaded'
for program in fzf gosu; do
	if ! command -v $program >/dev/null; then
		skip "$program, a Go program" "not installed"
		continue
	fi
	case $program in
	fzf) words=(-f b1) ;;
	*) words=(--version) ;;
	esac
	seq 1 3000 | sed s/^/b/ >"$tmp/lines"
	$program "${words[@]}" <"$tmp/lines" >"$tmp/plain"
	"${run[@]}" $program "${words[@]}" <"$tmp/lines" >"$tmp/out" 2>"$tmp/err"
	check "$program: the same output" cmp "$tmp/plain" "$tmp/out"
	check "$program: says why" err_has 'left alone: it is a .*Go program'
done

# Without a build id: the section tells.
if objcopy --remove-section .note.go.buildid --add-section .go.buildinfo=/etc/hostname \
	"$GO_NOTE" "$tmp/go-section" 2>"$tmp/err"; then
	try "${run[@]}" "$tmp/go-section"
	check "Go without a build id: says why" err_has 'left alone: it is a Go program'
	check "Go without a build id: not preloaded" out_has '^threads 1, not preloaded'
else
	skip "Go without a build id" "no objcopy that can"
fi

# Another libc's dynamic linker, which is not there: what exec says is what we say.
python3 - "$PLAIN" "$tmp/bionic" <<'PY'
import re, sys
b = bytearray(open(sys.argv[1], "rb").read())
m = re.search(rb"/lib[^\0]*/ld-linux[^\0]*\0", bytes(b))
b[m.start():m.end()] = b"/system/linker64\0".ljust(m.end() - m.start(), b"\0")
open(sys.argv[2], "wb").write(b)
PY
chmod +x "$tmp/bionic"
try "${run[@]}" "$tmp/bionic"
check "another libc: says why" err_has "left alone: its dynamic linker is not glibc's"

# Another word size
if printf 'int main(void) { return 5; }\n' | gcc -m32 -x c - -o "$tmp/word" 2>"$tmp/err"; then
	left_alone "32 bit" 'it is for another machine or word size' "$tmp/word"
	try "${run[@]}" sh -c '"$1"' sh "$tmp/word"
	check "32 bit, child of a shell: its status" status_is 5
	check "32 bit, child of a shell: the loader has nothing to say" err_is_one_line
else
	skip "32 bit" "no gcc -m32"
fi

# setuid and capabilities, by somebody who is not the owner
if [ "$(id -u)" -ne 0 ] || ! command -v setpriv >/dev/null; then
	skip "setuid" "needs root and setpriv"
else
	as=(setpriv --reuid 65534 --regid 65534 --clear-groups)
	cp "$PLAIN" "$tmp/setuid" && chmod 4755 "$tmp/setuid"
	cp "$SAMEPAGE" "${SAMEPAGE%/*}/libsamepage-preload.so" "$tmp" && chmod 755 "$tmp"/samepage
	cp -L "${SAMEPAGE%/*}"/libsamepage.so* "$tmp" 2>/dev/null
	run=("${as[@]}" env "LD_LIBRARY_PATH=$tmp" "$tmp/samepage" run --broker none --)
	try "${run[@]}" "$tmp/setuid"
	check "setuid: runs" out_has '^threads 1, not preloaded, sum 7340032'
	check "setuid: its status" status_is 5
	check "setuid: one line" err_is_one_line
	check "setuid: says why" err_has 'left alone: it is setuid'
	try "${run[@]}" sh -c '"$1"' sh "$tmp/setuid"
	check "setuid, child of a shell: no thread of ours" out_has '^threads 1, .*sum 7340032'
	check "setuid, child of a shell: its status" status_is 5
	try "${run[@]}" passwd -S nobody
	check "passwd: says why" err_has 'left alone: it is setuid'
	cp "$PLAIN" "$tmp/caps"
	if command -v setcap >/dev/null && setcap cap_net_raw+ep "$tmp/caps" 2>"$tmp/err"; then
		try "${run[@]}" "$tmp/caps"
		check "file capabilities: runs" out_has '^threads 1, not preloaded, sum 7340032'
		check "file capabilities: says why" err_has 'left alone: it is setuid, setgid or'
	else
		skip "file capabilities" "no setcap"
	fi
fi
finish
