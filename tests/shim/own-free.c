/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program whose free() is its own and whose malloc() is not: it never tells us of a block
 * that goes. Run by programs.sh, with and without the library: where large blocks begin in
 * their page shows whose they are. If the two differed, memory would be merged that comes and
 * goes unseen.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void __libc_free(void *p);

void free(void *p)
{
	__libc_free(p);
}

int main(void)
{
	for (int i = 0; i < 3; i++) {
		char *p = i == 1 ? calloc(3, 1 << 20) : malloc((size_t)(i + 1) << 20);

		if (!p)
			return 1;
		memset(p, i, 1 << 20);
		printf("%u\n", (unsigned)((uintptr_t)p & 4095));
		free(p);
	}
	return 0;
}
