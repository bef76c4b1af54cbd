/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that tells whether it was left alone: the threads that it has, whether its
 * environment names the library, and what it worked out. Ends with status 5. With
 * WITH_GO_NOTE it carries the note of the Go linker.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_GO_NOTE
__asm__(".pushsection .note.go.buildid, \"a\", %note\n"
	".balign 4\n.long 4, 8, 4\n.asciz \"Go\"\n.byte 0\n.ascii \"build-id\"\n.popsection");
#endif

int main(void)
{
	const char *preload = getenv("LD_PRELOAD");
	unsigned char *p = malloc(1 << 20);
	unsigned long sum = 0;
	int threads = 0;
	char line[256];
	FILE *f = fopen("/proc/self/status", "r");

	if (!p || !f)
		return 1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Threads: %d", &threads) == 1)
			break;
	fclose(f);
	memset(p, 7, 1 << 20);
	for (unsigned i = 0; i < 1 << 20; i++)
		sum += p[i];
	free(p);
	printf("threads %d, %s, sum %lu\n", threads,
	       preload && strstr(preload, "samepage") ? "preloaded" : "not preloaded", sum);
	return 5;
}
