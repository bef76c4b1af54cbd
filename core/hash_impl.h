/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The two builds of the page hash, for hash.c and its test only. */
#ifndef SAMEPAGE_CORE_HASH_IMPL_H
#define SAMEPAGE_CORE_HASH_IMPL_H

#include <stddef.h>
#include <stdint.h>

uint64_t core_hash_page_plain(const void *page, size_t page_bytes, uint64_t seed);
/* x86-64 only, and only where the CPU has AVX2. */
uint64_t core_hash_page_avx2(const void *page, size_t page_bytes, uint64_t seed);

#endif
