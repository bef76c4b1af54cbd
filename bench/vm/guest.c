/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The first program of a guest of bench/vm, statically linked, alone in the initramfs
 * beside the kernel's modules. It loads those, mounts the Debian image (read-only; memory
 * over what has to be writable), lets its programs run and its files be read, as a machine
 * has after a while, fills memory of its own with known content, and then does as it is
 * told over a virtio port.
 *
 * States: booting (nothing answers) -> ready ("GUEST N ready" on the serial console) ->
 * serving, one line of the port at a time, one answer each:
 *
 *   ping WORD     pong WORD
 *   check         checked PAGES wrong WORDS          every word of its memory
 *   files         files COUNT BYTES HASH             contents, through the page cache
 *   turn          turned TURN                        every 16th page gets new content
 *   off           (the machine is switched off)
 *
 * With samepage.seconds=S on the kernel's command line it needs no port: it checks and
 * turns for so long, says what it found on the console and switches the machine off.
 * Memory: a third zeros, a third equal in all guests, a third this guest's own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define ROOT "/image"

static uint64_t *memory;
static unsigned long memory_pages, guest;
static unsigned memory_turn;

/* --- memory ------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ull;
	return x ^ (x >> 27);
}

static uint64_t word_of(unsigned long page, unsigned long word, unsigned turn)
{
	uint64_t seed = page * 1000003 + word;
	unsigned long kind = page / 16 % 3;

	/* Every 16th page is another one in each turn. */
	if (page % 16 == 5)
		return mix(seed + ((uint64_t)turn << 40) + (guest << 50));
	if (kind == 0)
		return 0;
	return mix(kind == 1 ? seed : seed + (guest << 50));
}

static void fill(unsigned turn)
{
	for (unsigned long p = 0; p < memory_pages; p++) {
		if (turn > 0 && p % 16 != 5)
			continue;
		for (unsigned long w = 0; w < PAGE_WORDS; w++)
			memory[p * PAGE_WORDS + w] = word_of(p, w, turn);
	}
	memory_turn = turn;
}

static unsigned long wrong_words(void)
{
	unsigned long bad = 0;

	for (unsigned long p = 0; p < memory_pages; p++)
		for (unsigned long w = 0; w < PAGE_WORDS; w++)
			bad += memory[p * PAGE_WORDS + w] != word_of(p, w, memory_turn);
	return bad;
}

/* --- files -------------------------------------------------------------------- */

struct files {
	unsigned long count, bytes;
	uint64_t hash;
};

static struct files all;

static void read_file(const char *path)
{
	static uint64_t buf[16384];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return;
	all.count++;
	while ((n = read(fd, buf, sizeof(buf))) > 0) {
		uint64_t h = 0;

		memset((char *)buf + n, 0, (8 - (size_t)n % 8) % 8);
		for (ssize_t i = 0; i < (n + 7) / 8; i++)
			h = (h ^ buf[i]) * 0x100000001b3ull;
		/* Whatever the order of the folder is. */
		all.hash += mix(h + (uint64_t)n);
		all.bytes += (unsigned long)n;
	}
	close(fd);
}

static int visit(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)where;
	if (type == FTW_F)
		read_file(path);
	return 0;
}

static void read_files(struct files *f)
{
	all = (struct files){ 0 };
	nftw("/usr", visit, 32, FTW_PHYS | FTW_MOUNT);
	nftw("/var/lib", visit, 32, FTW_PHYS | FTW_MOUNT);
	*f = all;
}

/* --- booting ------------------------------------------------------------------ */

static unsigned long argument(const char *line, const char *name)
{
	const char *at = strstr(line, name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

/* In the order of their names, which image.sh chose. */
static void load_modules(void)
{
	struct dirent **e;
	int n = scandir("/modules", &e, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", e[i]->d_name);
		if (e[i]->d_name[0] == '.')
			continue;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			printf("GUEST %lu: %s: %s\n", guest, path, strerror(errno));
		close(fd);
	}
}

static void enter_image(void)
{
	static const char *const memories[] = { "/tmp", "/run", "/var/log", "/var/tmp", "/root", NULL };
	char path[64];

	for (int tries = 0; access("/dev/vda", F_OK) < 0 && tries < 500; tries++)
		usleep(10000);
	if (mount("/dev/vda", ROOT, "ext4", MS_RDONLY, "noload") < 0)
		printf("GUEST %lu: the image: %s\n", guest, strerror(errno));
	for (unsigned i = 0; memories[i]; i++) {
		snprintf(path, sizeof(path), ROOT "%s", memories[i]);
		mount("tmpfs", path, "tmpfs", 0, NULL);
	}
	mount("/dev", ROOT "/dev", NULL, MS_MOVE, NULL);
	mount("/proc", ROOT "/proc", NULL, MS_MOVE, NULL);
	mount("sysfs", ROOT "/sys", "sysfs", 0, NULL);
	if (chdir(ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		printf("GUEST %lu: the root: %s\n", guest, strerror(errno));
}

/* The image's own programs: they stay, with data that is alike and data that is not. */
static void start_programs(void)
{
	static const char *const text =
		"for i in 1 2 3; do perl -e '"
		"my %t; $t{\"key $_\"} = [$_, \"value \" . $_ * 7] for 1 .. 12000;"
		"my @own = map { $$ . $_ } 1 .. 4000; sleep 1 while 1' & done;"
		"dpkg-query -W >/tmp/packages; sed -n p /var/lib/dpkg/status | sort >/tmp/status;"
		"find / -xdev >/tmp/found 2>/tmp/errors; sleep 1";
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		setenv("PATH", "/usr/bin:/usr/sbin:/bin:/sbin", 1);
		execl("/bin/sh", "sh", "-c", text, (char *)NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
		printf("GUEST %lu: the image's programs did not run\n", guest);
}

/* --- serving ------------------------------------------------------------------ */

static int open_port(void)
{
	struct dirent *e;
	char path[300];
	int fd = -1;

	for (int tries = 0; fd < 0 && tries < 300; tries++) {
		DIR *d = opendir("/dev");

		while (d && fd < 0 && (e = readdir(d)) != NULL)
			if (strncmp(e->d_name, "vport", 5) == 0) {
				snprintf(path, sizeof(path), "/dev/%s", e->d_name);
				fd = open(path, O_RDWR | O_CLOEXEC);
			}
		if (d)
			closedir(d);
		if (fd < 0)
			usleep(10000);
	}
	return fd;
}

static void answer(int fd, const char *line)
{
	char out[256];
	struct files f;

	if (strncmp(line, "ping ", 5) == 0) {
		snprintf(out, sizeof(out), "pong %.200s\n", line + 5);
	} else if (strcmp(line, "check") == 0) {
		snprintf(out, sizeof(out), "checked %lu wrong %lu\n", memory_pages, wrong_words());
	} else if (strcmp(line, "files") == 0) {
		read_files(&f);
		snprintf(out, sizeof(out), "files %lu %lu %016llx\n", f.count, f.bytes,
			 (unsigned long long)f.hash);
	} else if (strcmp(line, "turn") == 0) {
		fill(memory_turn + 1);
		snprintf(out, sizeof(out), "turned %u\n", memory_turn);
	} else if (strcmp(line, "off") == 0) {
		reboot(RB_POWER_OFF);
	} else {
		snprintf(out, sizeof(out), "what\n");
	}
	if (write(fd, out, strlen(out)) < 0)
		printf("GUEST %lu: the port: %s\n", guest, strerror(errno));
}

static void serve(void)
{
	int fd = open_port();
	char line[256];
	size_t have = 0;

	if (fd < 0)
		printf("GUEST %lu: no port\n", guest);
	while (fd >= 0) {
		ssize_t n = read(fd, line + have, 1);

		if (n <= 0) { /* nobody at the other end, as yet */
			usleep(20000);
			continue;
		}
		if (line[have] == '\n' || have == sizeof(line) - 2) {
			line[have] = '\0';
			have = 0;
			answer(fd, line);
		} else {
			have++;
		}
	}
	for (;;)
		pause();
}

static void check_and_end(unsigned long seconds)
{
	struct timespec now, end;
	unsigned long bad = 0;
	struct files first, f;

	read_files(&first);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t)seconds;
	do {
		sleep(1);
		bad += wrong_words();
		read_files(&f);
		bad += f.hash != first.hash || f.bytes != first.bytes;
		fill(memory_turn + 1);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < end.tv_sec);
	printf("GUEST %lu: %u turns over %lu pages and %lu files, %lu words wrong\n", guest,
	       memory_turn, memory_pages, first.count, bad + wrong_words());
	fflush(stdout);
	reboot(RB_POWER_OFF);
}

int main(void)
{
	char line[1024] = "";
	struct files f;
	int fd;

	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mkdir(ROOT, 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, line, sizeof(line) - 1) <= 0)
		printf("GUEST no command line\n");
	guest = argument(line, "samepage.guest=");
	memory_pages = argument(line, "samepage.mib=") * (1048576 / PAGE_BYTES);
	load_modules();
	enter_image();
	start_programs();
	read_files(&f);
	memory = mmap(NULL, memory_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory_pages == 0 || memory == MAP_FAILED) {
		printf("GUEST %lu: no memory\n", guest);
	} else {
		fill(0);
		printf("GUEST %lu ready, %lu files of %lu KiB\n", guest, f.count, f.bytes / 1024);
		fflush(stdout);
		if (argument(line, "samepage.seconds="))
			check_and_end(argument(line, "samepage.seconds="));
		else
			serve();
	}
	reboot(RB_POWER_OFF);
	return 1;
}
