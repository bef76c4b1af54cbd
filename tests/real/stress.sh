#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# stress-ng's stressors of memory, with its own verification: patterns over memory by all
# its methods, mappings that come, move, grow, lose their protection and go, the heap,
# forks, advice, and madvise in every flavour. Each must say what it says without
# samepage: passed. If this failed, memory would not behave like memory.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/real.sh"
real_start stress-ng
each=$(((seconds + 2) / 3))

# stress NAME SECONDS OPTION...
stress() {
	local name=$1 time=$2
	shift 2
	mkdir -p "$tmp/work"
	# The limit is where brk and stacks turn round.
	check "$name" timeout -k 10 $((time * 5 + 90)) prlimit --data=402653184 env LD_LIBRARY_PATH="$(libraries stress-ng)" \
		"$SAMEPAGE" run --scope all -- "$(command -v stress-ng)" --temp-path "$tmp/work" \
		--verify --oomable --timeout "${time}s" "$@"
	cp "$tmp/check" "$tmp/stress.log"
	check "$name: stress-ng says so" sh -c \
		'grep -q " successful run completed" "$1" || { cat "$1"; exit 1; }' sh "$tmp/stress.log"
}

check "alone" alone stress-ng --temp-path "$tmp" --vm 1 --vm-bytes 16M --vm-method all --verify -t 2s
real_merge
stress 'vm, all methods' "$seconds" --vm 2 --vm-bytes 64M --vm-method all
stress 'vm, memory kept' "$each" --vm 2 --vm-bytes 32M --vm-keep --vm-hang 1 --vm-method zero-one
stress 'mmap' "$each" --mmap 2 --mmap-bytes 32M --mmap-mprotect
stress 'mremap' "$each" --mremap 2 --mremap-bytes 16M
stress 'brk, up to its limit' "$each" --brk 2
stress 'malloc' "$each" --malloc 2 --malloc-bytes 64M --malloc-touch --malloc-pthreads 2
stress 'forks' "$each" --fork 2 --vfork 1 --vm-rw 1 --vm-rw-bytes 8M
stress 'stacks' "$each" --stack 1 --stackmmap 1
stress 'madvise' "$each" --madvise 2 --mlock 1 --munmap 1
stress 'copying' "$each" --memcpy 1 --memthrash 1 --pipe 1 --vm-splice 1
real_end 2000
