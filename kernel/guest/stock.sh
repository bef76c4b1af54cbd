#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/guest/stock.sh : Debian 12's own kernel, unpacked and never installed; says where
# its image is. What is missing there (UFFDIO_MOVE, PAGEMAP_SCAN, WP_ASYNC, MADV_MERGE) has
# to be declined by the library, each page with a reason.
#
# Lies in SAMEPAGE_KERNEL_CACHE (build/kernel), and is fetched when apt has another version.
set -euo pipefail
shopt -s nullglob
here=$(cd "$(dirname "$0")" && pwd)
cache=${SAMEPAGE_KERNEL_CACHE:-$(dirname "$(dirname "$here")")/build/kernel}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# The newest 6.1 for virtual machines; unsigned, for it is the same and has no signature's name.
package=$(apt-cache pkgnames linux-image-6.1.0- | grep -E '^linux-image-6\.1\.0-[0-9]+-cloud-amd64-unsigned$' |
	sort -V | tail -n 1)
if [ -z "$package" ]; then
	echo "apt knows no linux-image-6.1.0-*-cloud-amd64-unsigned" >&2
	exit 1
fi
image=$cache/stock-$package/vmlinuz
if ! [ -f "$image" ]; then
	tmp=$(mktemp -d -p "$cache" tmp.XXXXXX)
	trap 'rm -rf "$tmp"' EXIT
	(cd "$tmp" && apt-get -o APT::Sandbox::User=root download "$package" >&2)
	debs=("$tmp"/*.deb)
	mkdir "$tmp/root" "$tmp/stock"
	dpkg-deb --fsys-tarfile "${debs[0]}" | tar -x -C "$tmp/root" --wildcards './boot/vmlinuz-*'
	mv "$tmp"/root/boot/vmlinuz-* "$tmp/stock/vmlinuz"
	mv -T "$tmp/stock" "$cache/stock-$package" 2>/dev/null || true # somebody else was first
fi
printf '%s\n' "$image"
