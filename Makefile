# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A thin front to meson.
#
#   make run      install what is missing, build, and show it at work
#   make test     install what is missing, build, run all tests
#   make bench    the published numbers, measured here
#   make kernel   the kernel with MADV_MERGE (kernel/README.md)
#   make kernel-test  its tests, in QEMU
#   make kernel-bench what its merging costs, in QEMU
#   make install  into $(DESTDIR)$(PREFIX)

BUILD := build
PREFIX ?= /usr/local
PACKAGES := gcc g++ libc6-dev pkg-config meson ninja-build python3 libxxhash-dev \
	libjson-c-dev libncurses-dev libsystemd-dev libcmocka-dev libjs-chart.js python3-jsonschema \
	musl-tools busybox-static
KERNEL_PACKAGES := flex bison bc libelf-dev cpio xz-utils patch perl qemu-system-x86

# The system's own interpreter first: what stands before it in PATH may be a script.
PYTHON := $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || command -v python3)

QUEUE_H = $(shell printf '\043include <sys/queue.h>' | cc -M -x c - | grep -o '[^ ]*sys/queue.h')
# What cppcheck, which reads no system headers, has to be told of them.
CPPCHECK_DEFS = --platform=unix64 -D__x86_64__ -D__SIZEOF_LONG__=8 -D__NR_mmap=9 \
	-D__GLIBC__=2 -D_GNU_SOURCE -DSAMEPAGE_VERSION='"0"' \
	-D__LP64__=1 --include=$(QUEUE_H)

.PHONY: all deps setup build products run test bench kernel kernel-test kernel-bench install \
	check-style clean

all: build

# Nothing happens where everything is there; elsewhere than on Debian, only a word.
deps:
	@command -v dpkg-query >/dev/null || { \
		echo "no Debian here: make sure that there are (by these or other names)"; \
		echo "  $(PACKAGES)"; exit 0; }; \
	missing=; \
	for p in $(PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || \
			missing="$$missing $$p"; \
	done; \
	test -n "$$missing" || exit 0; \
	echo "installing$$missing"; \
	sudo=; \
	if test "$$(id -u)" -ne 0; then \
		command -v sudo >/dev/null || { \
			echo "install these as root:$$missing" >&2; exit 1; }; \
		sudo=sudo; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	{ $$sudo apt-get install -y --no-install-recommends $$missing || { \
		$$sudo apt-get update && \
		$$sudo apt-get install -y --no-install-recommends $$missing; }; }

setup: deps
	@test -f $(BUILD)/meson-private/coredata.dat || meson setup $(BUILD) --prefix=$(PREFIX)

build: setup
	meson compile -C $(BUILD)

# What the demonstration needs: no tests, no benchmarks.
products: setup
	meson compile -C $(BUILD) samepage:executable samepaged samepage-preload

run: products
	@$(PYTHON) examples/demo.py $(BUILD)/samepage

test: PACKAGES += $(KERNEL_PACKAGES)
test: deps
	@tests/run.sh

kernel kernel-test kernel-bench: PACKAGES += $(KERNEL_PACKAGES)
kernel: deps
	kernel/build.sh plain

# Parts of kernel/test.sh, or all but the slowest.
kernel-test: deps
	kernel/test.sh $(PARTS)

kernel-bench: build
	kernel/bench.sh

# For the guests' image and the plots.
bench: PACKAGES += debootstrap gnuplot-nox
bench: build
	bench/run.sh

install: build
	meson install -C $(BUILD) --no-rebuild

check-style: build
	clang-tidy -p $(BUILD) --quiet core/*.c sys/*.c broker/*.c proc/*.c lib/*.c shim/*.c analyze/*.c cli/*.c
	cppcheck --quiet --std=c11 --enable=warning,performance,portability \
		--inline-suppr --suppress=missingIncludeSystem \
		--suppress=allocaCalled --suppress=duplicateAssignExpression --error-exitcode=1 \
		$(CPPCHECK_DEFS) -I. -Iinclude core sys broker proc lib shim analyze cli

clean:
	rm -rf $(BUILD) build-asan build-tsan build-clang
