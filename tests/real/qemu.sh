#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Two QEMU guests (TCG: no KVM is needed) that boot Debian's kernel and verify their
# memory, word by word, while the host merges it: qemu-guest.c. If this failed, a guest
# would find other bytes in its memory than it wrote, or would not boot.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/real.sh"
real_start qemu-system-x86_64 cc busybox
kernel=$(compgen -G "$root/boot/vmlinuz-*" | head -n 1)
[ -n "$kernel" ] || skip_all "no kernel for a guest (tests/real/packages.sh fetches it)"
[ "$(uname -m)" = x86_64 ] || skip_all "a guest for x86-64 only"

mib=40
mkdir -p "$tmp/initrd/proc" "$tmp/initrd/dev"
try cc -O2 -static -o "$tmp/initrd/init" "$here/qemu-guest.c"
check "the guest's program compiles" status_is 0
(cd "$tmp/initrd" && find . | busybox cpio -o -H newc 2>/dev/null) >"$tmp/initrd.img"

# guest HOW NUMBER SECONDS
guest() {
	"$1" qemu-system-x86_64 -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
		-accel tcg,tb-size=32 -M pc,hpet=off -nodefaults -no-user-config -m 128 -smp 1 \
		-display none -serial "file:$tmp/serial.$2" -kernel "$kernel" -initrd "$tmp/initrd.img" \
		-no-reboot -append "console=ttyS0 quiet panic=-1 tsc=unstable nokaslr \
		samepage.mib=$mib samepage.seconds=$3 samepage.guest=$2" \
		>"$tmp/qemu.$2" 2>&1 </dev/null
}
right() {
	cat "$tmp/serial.$1" "$tmp/qemu.$1"
	grep -q "GUEST $1: [1-9][0-9]* turns over $((mib * 256)) pages, 0 words wrong" "$tmp/serial.$1"
}

guest alone 1 1 &
pid=$!
wait $pid
check "a guest boots and is right, alone" right 1
real_merge
pids=()
for i in 2 3; do
	guest under $i $((seconds + 6)) &
	pids+=($!)
done
for i in 2 3; do
	wait "${pids[$((i - 2))]}"
	check "guest $i: qemu ends well" test $? = 0
	check "guest $i found its memory as it wrote it" right $i
	grep -a GUEST "$tmp/serial.$i" | tr -d '\r' | sed 's/^/# /'
done
# A third of each is zero, a third is the other's too; the kernels are alike.
real_end 8000
