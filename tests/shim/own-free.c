/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program whose free() is its own and whose malloc() is not: it never tells us of a block
 * that goes. Run by programs.sh, with and without the library.
 */
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
	for (int i = 0; i < 30; i++) {
		char *p = i % 3 ? calloc(3, 1 << 20) : malloc((size_t)(i + 1) << 20);

		if (!p)
			return 1;
		memset(p, i, 1 << 20);
		p = realloc(p, 40 << 20);
		printf("%d\n", p && p[(1 << 20) - 1] == i);
		free(p);
	}
	return 0;
}
