#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The programs that suite "real" runs, as Debian ships them, unpacked into one folder:
# nothing is installed, no service starts, no package of this machine is upgraded.
# What is missing afterwards is a test that skips, so this ends well in any case and
# says on one line what it could not have.
#
# Not taken from there: the C library, which has to fit the machine's own loader. The
# guest's kernel and CPython's tests depend on what no test needs, so they come alone;
# the tests by the version of the interpreter that is there, if Debian still has it.
#
# usage: packages.sh FOLDER
set -u
root=$(realpath -m "${1:?folder to unpack into}") || exit 0
packages=(redis-server redis-tools postgresql-15 nginx-light apache2-utils busybox-static
	qemu-system-x86 seabios stress-ng debootstrap)
cache=$root.debs
export DEBIAN_FRONTEND=noninteractive

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
	echo 'no Debian here: suite real runs what is installed'
	exit 0
}
[ "$(cat "$root/complete" 2>/dev/null)" = "${packages[*]}" ] && exit 0
mkdir -p "$root" "$cache/partial" "$cache/lists/partial" || exit 0

options=(-q -y -o "Dir::Cache::archives=$cache" -o Debug::NoLocking=1
	-o APT::Sandbox::User=root --no-install-recommends)
# What is installed already is not downloaded again, unless it is one of ours.
download() {
	apt-get "${options[@]}" --download-only install "${packages[@]}" &&
		apt-get "${options[@]}" --download-only --reinstall install "${packages[@]}"
}
alone() {
	local kernel python tests=libpython3.11-testsuite
	kernel=$(apt-cache "${options[@]:2:6}" depends linux-image-cloud-amd64 |
		sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1)
	python=$(dpkg-query -W -f='${Version}' libpython3.11-stdlib 2>/dev/null)
	cd "$cache" || return
	apt-get "${options[@]:2:6}" download "${kernel:-linux-image-cloud-amd64}"
	apt-get "${options[@]:2:6}" download "$tests=$python" ||
		apt-get "${options[@]:2:6}" download "$tests"
}

{
	download || {
		# Lists of our own: who is not root may not renew the machine's.
		options=("${options[@]}" -o "Dir::State::lists=$cache/lists")
		apt-get "${options[@]}" update && download
	}
	alone
} >"$cache/log" 2>&1 </dev/null

for deb in "$cache"/*.deb; do
	case ${deb##*/} in libc6_* | libc-bin_* | '*.deb') continue ;; esac
	dpkg-deb -x "$deb" "$root" || echo "cannot unpack ${deb##*/}"
done
missing=
for file in usr/bin/redis-server usr/lib/postgresql/15/bin/postgres usr/sbin/nginx usr/bin/ab \
	bin/busybox usr/bin/qemu-system-x86_64 usr/bin/stress-ng usr/sbin/debootstrap 'boot/vmlinuz-*' \
	usr/lib/python3.11/test/test_dict.py; do
	compgen -G "$root/$file" >/dev/null || missing="$missing $file"
done
if [ -z "$missing" ]; then
	echo "${packages[*]}" >"$root/complete"
	rm -rf "$cache"
else
	echo "not to be had:$missing"
	tail -n 5 "$cache/log"
fi
exit 0
