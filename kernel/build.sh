#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build the kernels of the tests:
#
#   base    BASE as it is, with config/mm.config: the control
#   plain   with the series
#   debug   with the series and config/debug.config
#   kasan   the same and config/kasan.config
#
#   kernel/build.sh [NAME]...        build these (plain); say where each image is
#   kernel/build.sh --each           each patch alone builds, in their order
#   kernel/build.sh --checkpatch     the kernel's own style checker, strict, over the series
#   kernel/build.sh --source         only the source with the series applied; say where
#   kernel/build.sh --headers        and the headers for user space that come of it
#
# Everything lies in SAMEPAGE_KERNEL_CACHE (build/kernel):
#
#   src-H/       the source, never built in. Files that the series touches are kept, as
#                they were, in src-H.pristine; what lies in src-H is made from these and
#                the patches anew each time, and written only where it differs, so what
#                did not change is not built again, and an interrupted run does no harm.
#   out-NAME-H/  the objects
#   image-NAME-H/  what came out; H is the hash of all that went in. Appears whole or not
#                at all, by rename; if it is there, nothing is built.
#
# The source is the package of BASE: where it is installed, or from apt. With
# SAMEPAGE_KERNEL_TARBALL, that file. Its hash has to be the one of BASE in any case.
set -euo pipefail
shopt -s nullglob inherit_errexit
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
cache=${SAMEPAGE_KERNEL_CACHE:-$top/build/kernel}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
jobs=${SAMEPAGE_KERNEL_JOBS:-$(nproc)}

say() { printf '%s\n' "$*" >&2; }
die() { say "kernel/build.sh: $*"; exit 1; }
base() { sed -n "s/^$1 //p" "$here/BASE"; }
digest() { sha256sum | cut -c1-16; }

# One at a time: they share the source.
exec 9>"$cache/lock"
flock 9

# Nothing of this machine or moment in the images.
export KBUILD_BUILD_USER=samepage KBUILD_BUILD_HOST=samepage
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1
export LC_ALL=C
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

patches=("$here"/patches/[0-9]*-*.patch)
# 0000 is the cover letter.
if [ "${#patches[@]}" -gt 0 ] && [[ ${patches[0]} = */0000-* ]]; then
	patches=("${patches[@]:1}")
fi
src=$cache/src-$(base sha256 | cut -c1-16)
pristine=$src.pristine

# The source package's tarball, checked; its path.
tarball() {
	local file=${SAMEPAGE_KERNEL_TARBALL:-/$(base tarball)}
	if ! matches "$file"; then
		file=$cache/$(basename "$(base tarball)")
	fi
	if ! matches "$file"; then
		local dir deb
		dir=$(mktemp -d -p "$cache" tmp.XXXXXX)
		chmod 755 "$dir"
		say "fetching $(base package) $(base version)"
		(cd "$dir" && apt-get -o APT::Sandbox::User=root download \
			"$(base package)=$(base version)" >&2) || {
			rm -rf "$dir"
			die "apt has no $(base package) $(base version)"
		}
		deb=("$dir"/*.deb)
		dpkg-deb --fsys-tarfile "${deb[0]}" |
			tar -x -C "$dir" --strip-components=3 "./$(base tarball)"
		mv "$dir/$(basename "$file")" "$file"
		rm -rf "$dir"
	fi
	matches "$file" || die "$file is not what BASE says"
	printf '%s\n' "$file"
}

matches() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$(base sha256)" ]; }

# The source tree. Other machines' parts and the largest headers that no guest needs
# stay packed.
unpack() {
	[ -d "$src" ] && return
	local file tmp
	file=$(tarball)
	tmp=$(mktemp -d -p "$cache" tmp.XXXXXX)
	say "unpacking $(basename "$file")"
	tar -x -f "$file" -C "$tmp" --strip-components=1 --wildcards \
		--exclude='*/arch/*/boot/dts' \
		--exclude='*/drivers/gpu/drm/amd/include/asic_reg' \
		--exclude='*/arch/arm*/*.[cS]' --exclude='*/arch/mips/*.[cS]' \
		--exclude='*/arch/powerpc/*.[cS]' --exclude='*/arch/m68k/*.[cS]'
	rm -rf "$pristine"
	mv "$tmp" "$src"
}

# Paths that a patch touches, from its own headers.
touched() { sed -n -E 's@^(---|\+\+\+) [ab]/([^\t]*).*@\2@p' "$@" | sort -u; }

# source_with N : the source with the first N patches
source_with() {
	unpack
	local scratch path p
	mkdir -p "$pristine"
	# First seen: keep it as it is.
	if [ "${#patches[@]}" -gt 0 ]; then
		while read -r path; do
			[ -e "$pristine/$path" ] || [ -e "$pristine/$path.absent" ] && continue
			mkdir -p "$pristine/$(dirname "$path")"
			if [ -e "$src/$path" ]; then
				cp "$src/$path" "$pristine/$path.tmp"
				mv "$pristine/$path.tmp" "$pristine/$path"
			else
				: >"$pristine/$path.absent"
			fi
		done < <(touched "${patches[@]}")
	fi
	scratch=$(mktemp -d -p "$cache" tmp.XXXXXX)
	cp -r "$pristine/." "$scratch"
	find "$scratch" -name '*.absent' -delete
	for p in "${patches[@]:0:$1}"; do
		patch -d "$scratch" -p1 -s -f --fuzz=0 --no-backup-if-mismatch <"$p" >&2 ||
			die "$(basename "$p") does not apply"
	done
	while read -r path; do
		path=${path%.absent}
		if ! [ -e "$scratch/$path" ]; then
			rm -f "$src/$path"
		elif ! cmp -s "$scratch/$path" "$src/$path"; then
			mkdir -p "$src/$(dirname "$path")"
			cp "$scratch/$path" "$src/$path"
			case $path in *.sh) chmod +x "$src/$path" ;; esac
		fi
	done < <(cd "$pristine" && find . -type f | sed 's@^\./@@')
	rm -rf "$scratch"
}

fragments() {
	printf '%s\n' "$here/config/mm.config"
	case $1 in debug | kasan) printf '%s\n' "$here/config/debug.config" ;; esac
	case $1 in kasan) printf '%s\n' "$here/config/kasan.config" ;; esac
}

# Patches that an image is made of: the others are tests and words.
building() {
	local p
	for p in "${patches[@]}"; do
		if touched "$p" | grep -qvE '^(tools|Documentation)/|^dev/null'; then
			printf '%s\n' "$p"
		fi
	done
}

# The hash of all that goes into NAME.
key() {
	local files=("$here/BASE" "$here/build.sh")
	[ "$1" = base ] || mapfile -t -O 2 files < <(building)
	# shellcheck disable=SC2046 # names without spaces
	{
		cc --version | head -1
		cat "${files[@]}" $(fragments "$1")
	} | digest
}

# configure NAME : an object folder for it; its path
configure() {
	local out fragment lost
	# shellcheck disable=SC2046
	out=$cache/out-$1-$(cat "$here/BASE" $(fragments "$1") | digest)
	if ! [ -e "$out/configured" ]; then
		rm -rf "$out"
		mkdir -p "$out"
		make -s -C "$src" O="$out" tinyconfig >&2
		# shellcheck disable=SC2046
		(cd "$out" && "$src/scripts/kconfig/merge_config.sh" -m -O "$out" .config \
			$(fragments "$1") >/dev/null)
		make -s -C "$src" O="$out" olddefconfig >&2
		lost=
		# shellcheck disable=SC2046
		while read -r fragment; do
			grep -qxF "$fragment" "$out/.config" || lost="$lost $fragment"
		done < <(cat $(fragments "$1") | awk -F= '/=y$/ { v[$1] = $0 } /=n$/ { delete v[$1] }
			END { for (k in v) print v[k] }')
		[ -z "$lost" ] || say "$1: not in the configuration that came out:$lost"
		: >"$out/configured"
	fi
	printf '%s\n' "$out"
}

# compile NAME OUT TARGET... : quiet unless it fails or warns
compile() {
	local name=$1 out=$2 log
	shift 2
	log=$out/build.log
	make -s -C "$src" O="$out" -j"$jobs" "$@" >"$log" 2>&1 || {
		cat "$log" >&2
		die "$name does not build"
	}
	# Debugging makes large frames elsewhere.
	if grep 'warning:' "$log" | grep -qv Wframe-larger-than; then
		cat "$log" >&2
		die "$name builds with warnings"
	fi
}

# image NAME : build it unless it is there; the path of the image
image() {
	local name=$1 dir out tmp start
	case $name in base | plain | debug | kasan) ;; *) die "no kernel is called $name" ;; esac
	dir=$cache/image-$name-$(key "$name")
	if ! [ -f "$dir/bzImage" ]; then
		start=$SECONDS
		if [ "$name" = base ]; then source_with 0; else source_with "${#patches[@]}"; fi
		out=$(configure "$name")
		say "building $name"
		compile "$name" "$out" bzImage
		tmp=$(mktemp -d -p "$cache" tmp.XXXXXX)
		cp "$out/arch/x86/boot/bzImage" "$tmp/bzImage"
		cp "$out/System.map" "$tmp/System.map"
		cp "$out/.config" "$tmp/config"
		# Older images of this name are not looked at again.
		rm -rf "$cache/image-$name-"*
		mv "$tmp" "$dir"
		say "$name: built in $((SECONDS - start)) s"
	fi
	printf '%s\n' "$dir/bzImage"
}

each() {
	local n out
	unpack
	out=$(configure plain)
	for ((n = 0; n <= ${#patches[@]}; n++)); do
		source_with "$n"
		compile "the series up to patch $n" "$out" bzImage
		[ "$n" -eq 0 ] || printf 'builds: %s\n' "$(basename "${patches[n - 1]}")"
	done
}

checkpatch() {
	local bad=0 p out
	unpack
	source_with 0
	for p in "${patches[@]}"; do
		# In the tree, as a maintainer would run it. New files are where MAINTAINERS has the
		# whole folder. Trace events are laid out as all of them are, which checkpatch
		# does not know.
		out=$(cd "$src" && scripts/checkpatch.pl --strict --no-summary --terse --showfile \
			--show-types --ignore FILE_PATH_CHANGES "$p" 2>&1 |
			grep -v '^include/trace/events/') || true
		if [ -n "$out" ]; then
			printf '%s:\n%s\n' "$(basename "$p")" "$out"
			bad=1
		fi
	done
	[ "$bad" = 0 ] && printf 'checkpatch --strict: %d patches clean\n' "${#patches[@]}"
	return "$bad"
}

# Headers for user space, made anew when the series is another.
headers() {
	local out tmp
	out=$cache/headers-$(cat "$here/BASE" "${patches[@]}" /dev/null | digest)
	if ! [ -d "$out" ]; then
		source_with "${#patches[@]}"
		tmp=$(mktemp -d -p "$cache" tmp.XXXXXX)
		compile headers "$tmp" headers
		rm -rf "$cache"/headers-*
		mv "$tmp/usr/include" "$out"
		rm -rf "$tmp"
	fi
	printf '%s\n' "$out"
}

rm -rf "$cache"/tmp.*
case ${1:-plain} in
--each) each ;;
--checkpatch) checkpatch ;;
--source)
	source_with "${#patches[@]}"
	printf '%s\n' "$src"
	;;
--headers) headers ;;
-*) die "usage: kernel/build.sh [base|plain|debug|kasan]... | --each | --checkpatch | --source | --headers" ;;
*) for name in "${@:-plain}"; do image "$name"; done ;;
esac
