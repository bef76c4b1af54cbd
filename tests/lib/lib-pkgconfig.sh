#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# lib-pkgconfig.sh BUILDDIR VERSION SOURCE CC...: if this failed, what "meson
# install" leaves could not be found by pkg-config, included, linked or run.
set -u
build=$1
version=$2
shift 3
stage=$(mktemp -d) || exit 99
trap 'rm -rf "$stage"' EXIT

skip() {
	echo "1..0 # SKIP $1"
	exit 0
}

DESTDIR=$stage meson install -C "$build" --no-rebuild --quiet >"$stage/log" 2>&1 ||
	skip 'not everything is built, nothing to install'
pc=$(find "$stage" -name samepage.pc)
[ -n "$pc" ] || { echo '1..1'; echo 'not ok 1 - samepage.pc is installed'; exit 1; }
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR="$stage"

cat >"$stage/use.c" <<'C'
#include <samepage.h>
#include <stdio.h>

int main(void)
{
	return puts(samepage_version()) < 0;
}
C
echo '1..3'
failed=0
if [ "$(pkg-config --modversion samepage)" = "$version" ]; then
	echo 'ok 1 - the version'
else
	echo 'not ok 1 - the version'
	failed=1
fi
# shellcheck disable=SC2046
if "$@" -std=c11 -pedantic -Wall -Wextra -Werror "$stage/use.c" -o "$stage/use" \
	$(pkg-config --cflags --libs samepage) >"$stage/log" 2>&1; then
	echo 'ok 2 - a program compiles and links'
else
	sed 's/^/# /' "$stage/log"
	echo 'not ok 2 - a program compiles and links'
	failed=1
fi
libdir=$(dirname "$(find "$stage" -name 'libsamepage.so.0')")
if [ "$(LD_LIBRARY_PATH=$libdir "$stage/use")" = "$version" ]; then
	echo 'ok 3 - and runs'
else
	echo 'not ok 3 - and runs'
	failed=1
fi
exit $failed
