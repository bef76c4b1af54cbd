/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The first and only program of the guest that qemu.sh boots. Fills memory with pages
 * that are equal in all guests, pages of this guest's own and zeros; reads all of it over
 * and over while the host merges; rewrites a part each time. Says on the console what it
 * found and switches the machine off. Its arguments come from the kernel's command line:
 * samepage.mib, samepage.seconds, samepage.guest.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

static unsigned long argument(const char *line, const char *name)
{
	const char *at = strstr(line, name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ull;
	return x ^ (x >> 27);
}

/* What page has to hold: a third is zero, a third everybody's, a third this guest's. */
static uint64_t word(unsigned long page, unsigned long word, unsigned turn, unsigned long guest)
{
	uint64_t seed = page * 1000003 + word;

	/* Every 16th page is another one in each turn. */
	if (page % 16 == 5)
		seed += (uint64_t)turn << 40;
	if (page % 3 == 0 && page % 16 != 5)
		return 0;
	return mix(page % 3 == 1 ? seed : seed + (guest << 50));
}

static void fill(uint64_t *mem, unsigned long pages, unsigned turn, unsigned long guest)
{
	for (unsigned long p = 0; p < pages; p++) {
		if (turn > 0 && p % 16 != 5)
			continue;
		for (unsigned long w = 0; w < PAGE_WORDS; w++)
			mem[p * PAGE_WORDS + w] = word(p, w, turn, guest);
	}
}

static unsigned long wrong(const uint64_t *mem, unsigned long pages, unsigned turn,
			   unsigned long guest)
{
	unsigned long bad = 0;

	for (unsigned long p = 0; p < pages; p++)
		for (unsigned long w = 0; w < PAGE_WORDS; w++)
			bad += mem[p * PAGE_WORDS + w] != word(p, w, turn, guest);
	return bad;
}

int main(void)
{
	char line[1024] = "";
	unsigned long pages, seconds, guest, bad = 0;
	unsigned turn = 0;
	uint64_t *mem;
	time_t end;
	int fd;

	mount("proc", "/proc", "proc", 0, NULL);
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, line, sizeof(line) - 1) <= 0)
		printf("GUEST no command line\n");
	pages = argument(line, "samepage.mib=") * (1048576 / PAGE_BYTES);
	seconds = argument(line, "samepage.seconds=");
	guest = argument(line, "samepage.guest=");
	mem = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == 0 || mem == MAP_FAILED) {
		printf("GUEST no memory\n");
	} else {
		end = time(NULL) + (time_t)seconds;
		do {
			fill(mem, pages, turn, guest);
			sleep(1);
			bad += wrong(mem, pages, turn, guest);
			turn++;
		} while (time(NULL) < end);
		printf("GUEST %lu: %u turns over %lu pages, %lu words wrong\n", guest, turn, pages,
		       bad);
	}
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
