#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Boot a kernel in QEMU (tcg: KVM is not to be relied on) and judge what it did.
#
#   kernel/boot.sh [OPTION]... IMAGE INITRD LIST
#
#   -n NAME     how the boot is called in what is printed (the list)
#   -o DIR      console.log and report.log go there (a temporary folder)
#   -t SECONDS  until it is ended (120)
#   -m SIZE     of memory (1G)
#   -a WORDS    more of the kernel's command line
#   -q WORDS    more arguments for QEMU
#   -c          the control: tests named "merge: ..." have to fail, all others to pass
#   -b          only whether a command of the list ended badly counts (benchmarks)
#
# The init of the guest runs the LIST of the initrd and reports on the second serial port
# (kernel/init/init.c). verdict.py reads both: the report has to be whole, and the console
# clean. Prints TAP, ends with "NAME: N passed, N failed, N skipped".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

name='' dir='' seconds=120 memory=1G more='' qemu=() how=()
while getopts n:o:t:m:a:q:cb opt; do
	case $opt in
	n) name=$OPTARG ;;
	o) dir=$OPTARG ;;
	t) seconds=$OPTARG ;;
	m) memory=$OPTARG ;;
	a) more=$OPTARG ;;
	q) read -ra qemu <<<"$OPTARG" ;;
	c) how+=(--control) ;;
	b) how+=(--bench) ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
if [ $# -ne 3 ]; then
	sed -n 's/^#   kernel/usage: kernel/p' "$0" >&2
	exit 2
fi
image=$1 initrd=$2 list=$3
name=${name:-$list}
if [ -z "$dir" ]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
fi
mkdir -p "$dir"
rm -f "$dir/console.log" "$dir/report.log"
nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')

# no_timer_check: on a busy machine the emulated timer may be late for the kernel's own test of it.
status=0
timeout -k 5 "$seconds" qemu-system-x86_64 \
	-accel tcg -cpu max -M q35 -m "$memory" -smp 2 -nodefaults -no-reboot -display none \
	-serial "file:$dir/console.log" -serial "file:$dir/report.log" \
	-kernel "$image" -initrd "$initrd" "${qemu[@]}" \
	-append "console=ttyS0 quiet loglevel=7 panic=-1 oops=panic slab_nomerge no_timer_check $more \
samepage.list=$list samepage.nonce=$nonce" </dev/null >"$dir/qemu.log" 2>&1 || status=$?

python3 "$here/verdict.py" --name "$name" --nonce "$nonce" --status "$status" "${how[@]}" \
	"$dir/console.log" "$dir/report.log" "$dir/qemu.log"
