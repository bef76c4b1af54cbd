#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# One Debian image for the guests of the benchmark and of the test real-guests: what
# debootstrap calls minbase, of the release and from the mirror that this machine uses; the
# kernel of linux-image-cloud-amd64 with the modules that the guest loads; guest.c as
# the first program. Made once and kept, under a name that says what went into it:
#
#   image.sh FOLDER    prints FOLDER/KEY, in which are vmlinuz, initrd.img, root.img
#
# What is there is not made again; old keys are removed. Needs root (debootstrap does), and
# nothing of what it does touches the machine outside of FOLDER. Fails with one line.
set -eu
folder=$(realpath -m "${1:?folder to keep the image in}")
here=$(cd "$(dirname "$0")" && pwd)
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
	virtio_console virtio_balloon"

fail() {
	echo "image.sh: $1" >&2
	exit 1
}
[ "$(uname -m)" = x86_64 ] || fail "guests for x86-64 only"
# One that tests/real/packages.sh has unpacked does, too.
PATH=$PATH:/usr/sbin:/sbin
if ! command -v debootstrap >/dev/null && [ -n "${REAL_ROOT:-}" ]; then
	PATH=$PATH:$REAL_ROOT/usr/sbin:$REAL_ROOT/bin
	export DEBOOTSTRAP_DIR=$REAL_ROOT/usr/share/debootstrap
fi
for program in debootstrap mke2fs cc busybox apt-get dpkg-deb; do
	command -v "$program" >/dev/null || fail "no $program"
done

release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
# By the name of the package, so that a newer kernel is a newer image.
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
	sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1)
key=$({ cat "$here/image.sh" "$here/guest.c"; echo "$release $kernel"; } | sha256sum | cut -c 1-16)
image=$folder/$key
if [ -e "$image/complete" ]; then
	echo "$image"
	exit 0
fi
[ "$(id -u)" = 0 ] || fail "no image in $folder yet, and only root can make one"
[ -n "$kernel" ] || fail "apt knows no linux-image-cloud-amd64"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
	awk -v r="$release" '$2 == r { print $1; exit }')
[ -n "$mirror" ] || fail "apt has no mirror of $release"

mkdir -p "$folder"
# The test and the benchmark may want it at the same time.
exec 9>"$folder/lock"
flock 9
if [ -e "$image/complete" ]; then
	echo "$image"
	exit 0
fi
rm -rf "$folder"/[0-9a-f]???????????????
work=$image.work
mkdir -p "$work/debs"
trap 'rm -rf "$work"' EXIT
{
	debootstrap --variant=minbase "$release" "$work/root" "$mirror"
	rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/*
	mke2fs -q -t ext4 -m 0 -d "$work/root" "$work/root.img" 640M

	cd "$work/debs"
	apt-get -o APT::Sandbox::User=root download "$kernel"
	dpkg-deb -x "$kernel"_*.deb "$work/kernel"
	cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"

	mkdir -p "$work/initrd/modules"
	cc -O2 -static -o "$work/initrd/init" "$here/guest.c"
	n=10
	for module in $modules; do
		cp "$(find "$work/kernel/lib" -name "$module.ko")" "$work/initrd/modules/$n-$module.ko"
		n=$((n + 1))
	done
	cd "$work/initrd"
	find . | busybox cpio -o -H newc >"$work/initrd.img"
} >"$folder/log" 2>&1 </dev/null || {
	tail -n 5 "$folder/log" >&2
	fail "the image could not be made (see $folder/log)"
}
mkdir -p "$image"
mv "$work/vmlinuz" "$work/initrd.img" "$work/root.img" "$image/"
touch "$image/complete"
echo "$image"
