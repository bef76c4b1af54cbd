#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/initrd.sh FILE : the guest's initramfs, of static programs: the init, the
# selftests of the series, a shell, and the lists of what to run (kernel/lists).
#
# SAMEPAGE_KERNEL_SELFTESTS: a folder like tools/testing/selftests to take instead of the
# series' own, while they are being written. More can be laid over the whole: each further
# argument is a folder that is copied into it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
file=$1
shift
src=$("$here/build.sh" --source)
headers=$("$here/build.sh" --headers)
selftests=${SAMEPAGE_KERNEL_SELFTESTS:-$src/tools/testing/selftests}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

chmod 755 "$tmp"
mkdir -p "$tmp"/{bin,tests,lists,proc,sys,dev,tmp,run,etc}
cc=(gcc -static -O2 -Wall -Wno-unused-function -U_FORTIFY_SOURCE)
"${cc[@]}" -Wextra -o "$tmp/init" "$here/init/init.c"
for name in ksm_merge_tests ksm_merge_mm ksm_merge_scope ksm_rmap_tests ksm_vma_tests \
	ksm_functional_tests; do
	from=$selftests/mm/$name.c
	[ -f "$from" ] || from=$src/tools/testing/selftests/mm/$name.c
	[ -f "$from" ] || continue
	"${cc[@]}" -isystem "$headers" -I "$src/tools/testing/selftests" \
		-I "$src/tools/testing/selftests/mm" -o "$tmp/tests/$name" \
		"$from" "$src/tools/testing/selftests/mm/vm_util.c" -lpthread
done
cp /bin/busybox "$tmp/bin/busybox"
for name in sh cat grep sleep echo ls mount; do
	ln -s busybox "$tmp/bin/$name"
done
cp "$here"/lists/* "$tmp/lists/"
for more in "$@"; do
	cp -a "$more/." "$tmp/"
done
(cd "$tmp" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$file.tmp"
mv "$file.tmp" "$file"
