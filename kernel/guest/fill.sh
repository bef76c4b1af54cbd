#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Fill the folder of an initrd with the project's own process tests: suites proc, lib and
# shim as built in BUILD, with the shared libraries that they need, a shell and a few tools,
# and the lists by which the guest's init runs them:
#
#   samepage-PRIMITIVE        what is run in CI: PRIMITIVE is auto, kernel or remap
#   samepage-PRIMITIVE-long   everything that can run in a guest
#
#   kernel/guest/fill.sh BUILD TREE
#   kernel/guest/fill.sh --pack TREE INITRD     (the tree has a program /init)
#
# Programs lie in the guest where they do here below /build and /src, and see a root user.
# What a guest has not: Python, a compiler, the programs of tests/shim/programs.sh. Those
# tests are run on the machine itself, in "meson test".
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$(dirname "$here")")

if [ "${1:-}" = --pack ]; then
	[ -x "$2/init" ] || { echo "no program $2/init" >&2; exit 1; }
	# Compressed it would take longer to unpack than to read.
	(cd "$2" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$3.tmp"
	mv "$3.tmp" "$3"
	exit 0
fi
if [ $# -ne 2 ]; then
	sed -n 's/^#   kernel/usage: kernel/p' "$0" >&2
	exit 2
fi
build=$(cd "$1" && pwd)
tree=$2
mkdir -p "$tree"/{bin,etc,proc,sys,dev,tmp,run,root,lists,guest,build/tests,src/tests}
tree=$(cd "$tree" && pwd)
chmod 1777 "$tree/tmp"
[ -e "$tree/usr" ] || ln -s / "$tree/usr"

# Each object once, stripped: the guest's memory holds them all.
with_libraries() {
	local file=$1 to=$2 lib
	install -D -m 755 -s --strip-program=strip "$file" "$to" 2>/dev/null ||
		install -D -m 755 "$file" "$to"
	while read -r lib; do
		[ -e "$tree$lib" ] || install -D -m 755 "$(readlink -f "$lib")" "$tree$lib"
	done < <(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*' | grep -v "^$build" | sort -u)
}

busybox=$(command -v busybox) || { echo "busybox is missing" >&2; exit 1; }
install -m 755 "$(readlink -f "$busybox")" "$tree/bin/busybox"
while read -r name; do
	[ -e "$tree/bin/$name" ] || ln -s busybox "$tree/bin/$name"
done < <("$busybox" --list)
# The scripts are written for these.
for name in bash sed timeout; do
	rm -f "$tree/bin/$name"
	with_libraries "$(readlink -f "$(command -v "$name")")" "$tree/bin/$name"
done
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$tree/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$tree/etc/group"

for name in samepage samepaged libsamepage-preload.so libsamepage.so.0; do
	with_libraries "$(readlink -f "$build/$name")" "$tree/build/$name"
done
for dir in assume proc lib shim scan; do
	for program in "$build/tests/$dir"/*; do
		if ! [ -f "$program" ] || ! [ -x "$program" ]; then
			continue
		fi
		with_libraries "$program" "$tree/build/tests/$dir/$(basename "$program")"
	done
done
# Loaded and unloaded by tests while their data is merged.
for name in libm.so.6 libresolv.so.2 libnss_files.so.2; do
	path=$(ldconfig -p | sed -n "s@^[[:space:]]*$name (libc6,x86-64) => @@p" | head -n 1)
	[ -z "$path" ] || with_libraries "$path" "$tree/lib/x86_64-linux-gnu/$name"
done
for script in cli/tap.sh shim/keep.sh shim/abi.sh; do
	install -D -m 755 "$top/tests/$script" "$tree/src/tests/$script"
done
install -m 755 "$here/run" "$tree/guest/run"

# SECONDS NAME COMMAND... ; under emulation everything takes ten to twenty times as long, and
# three times that on a machine with other work. In CI: what takes half a minute in all.
quick() {
	local name
	cat <<'END'
60 assume-madv-merge /build/tests/assume/assume-madv-merge
120 lib-api /build/tests/lib/lib-api
60 lib-cxx /build/tests/lib/lib-cxx
120 proc-merge /build/tests/proc/proc-merge
120 proc-kinds /build/tests/proc/proc-kinds
120 proc-pin /build/tests/proc/proc-pin
120 proc-kernel /build/tests/proc/proc-kernel
120 shim-arguments /build/tests/shim/shim-arguments
120 shim-heap /build/tests/shim/shim-heap
120 shim-merged /build/tests/shim/shim-merged
120 shim-process /build/tests/shim/shim-process
END
	for name in anonymous by_number arguments gaps other_mappings libc_text file_pages; do
		echo "60 abi-$name /build/tests/shim/shim-abi $name"
	done
}
# By hand: a quarter of an hour for each primitive, and more for what is raced.
long() {
	quick
	cat <<'END'
400 proc-fork /build/tests/proc/proc-fork
240 proc-discard /build/tests/proc/proc-discard
400 proc-own /build/tests/proc/proc-own
400 proc-broker /build/tests/proc/proc-broker
900 abi /src/tests/shim/abi.sh /build/samepage /build/tests/shim/shim-abi
600 proc-fault /build/tests/proc/proc-fault
600 proc-home /build/tests/proc/proc-home
600 proc-limit /build/tests/proc/proc-limit
600 proc-race /build/tests/proc/proc-race
600 proc-still /build/tests/proc/proc-still
600 proc-threads /build/tests/proc/proc-threads
600 shim-ksm /build/tests/shim/shim-ksm
600 shim-forklocks /build/tests/shim/shim-forklocks
600 shim-model /build/tests/shim/shim-model
600 shim-threads /build/tests/shim/shim-threads
900 keep-memory /src/tests/shim/keep.sh /build /build/tests/shim/keep-memory
900 keep-process /src/tests/shim/keep.sh /build /build/tests/shim/keep-process
900 keep-filter /src/tests/shim/keep.sh /build /build/tests/shim/keep-filter
900 keep-random /src/tests/shim/keep.sh /build /build/tests/shim/keep-random
600 scan-merge /build/tests/scan/scan-merge
900 keep-memory-scan /src/tests/shim/keep.sh /build /build/tests/shim/keep-memory
900 keep-random-scan /src/tests/shim/keep.sh /build /build/tests/shim/keep-random
END
}
for primitive in auto kernel remap; do
	for which in quick long; do
		suffix=''
		[ $which = quick ] || suffix=-long
		$which | while read -r seconds name command; do
			echo "$seconds /guest/run $primitive $name $command"
		done >"$tree/lists/samepage-$primitive$suffix"
	done
done
