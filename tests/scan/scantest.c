/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* scantest.h says what each is for. */
#include "scantest.h"

#include "core/scan_config.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "sys/sys.h"
#include "tests/broker/client.h"

#define BOARD_FD 200
#define SETTINGS 24u

struct st_board *st_board;

static struct bt_daemon daemon_under_test;
static struct bt_client control;
static struct {
	pid_t pid;
	bool ended;
} actors[ST_ACTORS];
static unsigned actors_count;
static const char *settings[SETTINGS];
static unsigned settings_count;
static bool open_now;

/* --- running ------------------------------------------------------------------ */

static int run_role(const struct st_role *roles, const char *name, unsigned self)
{
	/* A fault that the test has asked for may hit this one. */
	for (unsigned i = 0; i < 100; i++) {
		st_board = mmap(NULL, sizeof(*st_board), RW, MAP_SHARED, BOARD_FD, 0);
		if (st_board != MAP_FAILED)
			break;
	}
	PT_CHECK(st_board != MAP_FAILED);
	for (; roles->name; roles++)
		if (strcmp(roles->name, name) == 0) {
			roles->run(self);
			return 0;
		}
	return 96;
}

static void kill_actors(void)
{
	for (unsigned i = 0; i < actors_count; i++)
		if (!actors[i].ended) {
			kill(actors[i].pid, SIGKILL);
			waitpid(actors[i].pid, NULL, 0);
			actors[i].ended = true;
		}
}

/* After each test, also one that failed. */
static int leave(void **state)
{
	(void)state;
	kill_actors();
	if (!open_now)
		return 0;
	bt_close(&control);
	kill(daemon_under_test.pid, SIGKILL);
	waitpid(daemon_under_test.pid, NULL, 0);
	bt_daemon_clean(&daemon_under_test);
	munmap(st_board, sizeof(*st_board));
	close(BOARD_FD);
	open_now = false;
	return 0;
}

int st_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
	    size_t count, const struct st_role *roles)
{
	struct CMUnitTest mine[40];
	size_t chosen = 0;

	if (argc == 4 && strcmp(argv[1], "actor") == 0)
		return run_role(roles, argv[2], (unsigned)atoi(argv[3]));
	PT_CHECK(count <= sizeof(mine) / sizeof(mine[0]));
	for (size_t i = 0; i < count; i++) {
		if (argc > 1 && strcmp(argv[1], tests[i].name) != 0)
			continue;
		mine[chosen] = tests[i];
		mine[chosen++].teardown_func = leave;
	}
	return pt_main(name, mine, chosen);
}

/* --- the world -------------------------------------------------------------------- */

void st_open(const char *const *broker_args)
{
	const char *lib = getenv("SAMEPAGE_PRELOAD"), *broker = getenv("SAMEPAGED");
	int fd;

	if (PT_SANITIZED)
		SKIP("the shim's mmap and a sanitizer's do not mix");
	pt_skip_unless_can_merge();
	pt_skip_unless_root();
	if (!lib || access(lib, R_OK) || !broker || access(broker, X_OK))
		SKIP("no samepaged ($SAMEPAGED) or no library ($SAMEPAGE_PRELOAD)");
	fd = memfd_create("board", MFD_CLOEXEC);
	assert_true(fd >= 0 && ftruncate(fd, sizeof(*st_board)) == 0);
	assert_int_equal(dup3(fd, BOARD_FD, O_CLOEXEC), BOARD_FD);
	close(fd);
	st_board = mmap(NULL, sizeof(*st_board), RW, MAP_SHARED, BOARD_FD, 0);
	assert_true(st_board != MAP_FAILED);
	actors_count = settings_count = 0;
	bt_daemon_start(&daemon_under_test, broker_args);
	bt_control(&control, &daemon_under_test);
	open_now = true;
	st_env("SAMEPAGE_SCAN=on");
	st_env("SAMEPAGE_SCAN_FIRST=20");
	st_env("SAMEPAGE_SCAN_MOST=200");
	st_env("SAMEPAGE_SCAN_CPU=100");
	st_env("SAMEPAGE_SCOPE=advised");
}

void st_close(void)
{
	kill_actors();
	bt_close(&control);
	bt_daemon_stop(&daemon_under_test);
	munmap(st_board, sizeof(*st_board));
	close(BOARD_FD);
	open_now = false;
}

/* Of the scanner's, only those that there are: any other would set nothing. */
static void check_name(const char *setting, size_t name)
{
	bool known = strncmp(setting, "SAMEPAGE_SCAN_", 14) != 0;

	for (unsigned i = 0; i < CORE_SCAN_SETTINGS; i++) {
		const char *variable = core_scan_setting_variable(i);

		known |= strlen(variable) == name - 1 && strncmp(variable, setting, name - 1) == 0;
	}
	PT_CHECK(known);
}

void st_env(const char *setting)
{
	size_t name = strcspn(setting, "=") + 1;

	check_name(setting, name);

	for (unsigned i = 0; i < settings_count; i++)
		if (strncmp(settings[i], setting, name) == 0) {
			settings[i] = setting;
			return;
		}
	PT_CHECK(settings_count < SETTINGS);
	settings[settings_count++] = setting;
}

static void exec_actor(const char *role, unsigned self)
{
	char exe[256], number[12];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	PT_CHECK(n > 0);
	exe[n] = '\0';
	snprintf(number, sizeof(number), "%u", self);
	pt_die_with_parent();
	for (unsigned i = 0; i < settings_count; i++)
		putenv((char *)(uintptr_t)settings[i]);
	setenv("SAMEPAGE_SOCKET", daemon_under_test.path, 1);
	setenv("LD_PRELOAD", getenv("SAMEPAGE_PRELOAD"), 1);
	unsetenv("SAMEPAGE_DOMAIN");
	fcntl(BOARD_FD, F_SETFD, 0);
	execl(exe, exe, "actor", role, number, (char *)NULL);
	_exit(95);
}

unsigned st_start(const char *role)
{
	unsigned self = actors_count++;

	PT_CHECK(self < ST_ACTORS);
	fflush(NULL);
	actors[self].ended = false;
	actors[self].pid = fork();
	PT_CHECK(actors[self].pid >= 0);
	if (actors[self].pid == 0)
		exec_actor(role, self);
	return self;
}

pid_t st_pid(unsigned actor)
{
	return actors[actor].pid;
}

static bool has_died(unsigned actor)
{
	siginfo_t info = { 0 };

	return waitid(P_PID, (id_t)actors[actor].pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       info.si_pid != 0;
}

void st_wait_did(unsigned actor, unsigned step)
{
	for (unsigned i = 0; atomic_load(&st_board->did[actor]) < step; i++) {
		if (has_died(actor)) {
			if (atomic_load(&st_board->did[actor]) >= step)
				return;
			fail_msg("actor %u ended before step %u: %d", actor, step, st_status(actor));
		}
		if (i > 2 * ST_LIMIT * 100) {
			int status = pt_wait(actors[actor].pid, 0); /* prints its stacks */

			actors[actor].ended = true;
			fail_msg("actor %u did not come to step %u: %d", actor, step, status);
		}
		st_nap(10);
	}
}

void st_tell(unsigned step)
{
	atomic_store(&st_board->step, step);
}

void st_step(unsigned step)
{
	st_tell(step);
	for (unsigned i = 0; i < actors_count; i++)
		if (!actors[i].ended)
			st_wait_did(i, step);
}

int st_status(unsigned actor)
{
	actors[actor].ended = true;
	return pt_wait(actors[actor].pid, 2 * ST_LIMIT);
}

void st_end(unsigned actor)
{
	assert_int_equal(st_status(actor), 0);
}

void st_kill(unsigned actor)
{
	kill(actors[actor].pid, SIGKILL);
	actors[actor].ended = true;
	waitpid(actors[actor].pid, NULL, 0);
}

/* --- what the broker says ------------------------------------------------------------ */

/* One question; items are given to keep(), the end is returned. */
static struct core_wire_ctl_end ask(uint32_t op, uint32_t flags, const int32_t *pid, uint32_t pids,
				    struct core_wire_report *first)
{
	bt_ctl(&control, op, flags, pid, pids);
	for (;;) {
		int type = bt_receive(&control, 2 * (int)ST_LIMIT * 1000);

		if (type == CORE_WIRE_CTL_END)
			return *(const struct core_wire_ctl_end *)control.packet;
		assert_int_equal(type, CORE_WIRE_CTL_ITEM);
		if (first)
			*first = ((const struct core_wire_ctl_item *)control.packet)->report;
		first = NULL;
	}
}

bool st_try_report(unsigned actor, struct core_wire_report *r)
{
	int32_t pid = actors[actor].pid;

	memset(r, 0, sizeof(*r));
	if (has_died(actor))
		fail_msg("actor %u has ended: %d", actor, st_status(actor));
	return ask(CORE_WIRE_OP_STATS, 0, &pid, 1, r).items == 1 && r->error == 0;
}

struct core_wire_report st_report(unsigned actor)
{
	struct core_wire_report r;

	ST_UNTIL(st_try_report(actor, &r));
	return r;
}

struct core_wire_ctl_end st_totals(void)
{
	return ask(CORE_WIRE_OP_STATS, CORE_WIRE_CTL_ALL, NULL, 0, NULL);
}

unsigned st_broker_fds(void)
{
	return bt_daemon_fds(&daemon_under_test);
}

unsigned st_all(uint32_t op)
{
	return ask(op, CORE_WIRE_CTL_ALL, NULL, 0, NULL).items;
}

unsigned st_one(uint32_t op, unsigned actor)
{
	int32_t pid = actors[actor].pid;

	return ask(op, 0, &pid, 1, NULL).items;
}

void st_kill_broker(void)
{
	bt_close(&control);
	kill(daemon_under_test.pid, SIGKILL);
	waitpid(daemon_under_test.pid, NULL, 0);
	unlink(daemon_under_test.path);
}

void st_restart_broker(const char *const *broker_args)
{
	bt_daemon_restart(&daemon_under_test, broker_args);
	bt_control(&control, &daemon_under_test);
}

bool st_all_connected(void)
{
	struct core_wire_report r;

	for (unsigned i = 0; i < actors_count; i++)
		if (!actors[i].ended && !st_try_report(i, &r))
			return false;
	return true;
}

void st_nap(unsigned msec)
{
	struct timespec t = { msec / 1000, msec % 1000 * 1000000L };

	nanosleep(&t, NULL);
}

void st_show(unsigned actor)
{
	struct core_wire_report r;
	const struct core_scan_counters *n = &r.scan;

	if (!st_try_report(actor, &r)) {
		pt_note("actor %u: no report", actor);
		return;
	}
	pt_note("actor %u: sharing %lu vmas %u; tracker %u paused %u tracked %lu merged %lu "
		"unshared %lu volatile %lu waiting %lu metadata %lu", actor, r.pages_sharing,
		r.vmas, n->tracker, n->paused, n->pages_tracked_now, n->pages_merged_now,
		n->pages_unshared_now, n->pages_volatile_now, n->pages_waiting_now,
		n->metadata_bytes);
	pt_note("  full %lu scanned %lu changed %lu hashed %lu skipped %lu candidate %lu promoted "
		"%lu vain %lu merged %lu broken %lu soon %lu", n->full_scans, n->pages_scanned,
		n->pages_changed, n->pages_hashed, n->pages_skipped, n->pages_candidate,
		n->pages_promoted, n->promoted_in_vain, n->pages_merged, n->pages_broken,
		n->broken_soon);
	pt_note("  split %lu kept %lu held cpu %lu held maps %lu cpu %lu us stable %lu most %lu",
		n->huge_split, n->huge_kept, n->held_cpu, n->held_maps, n->cpu_usec,
		n->stable_msec, n->stable_msec_max);
	for (unsigned i = 0; i < SAMEPAGE_REASON_COUNT; i++)
		if (r.total.pages_declined[i])
			pt_note("  declined %s: %lu", samepage_reason_name(i),
				r.total.pages_declined[i]);
}

void st_show_all(void)
{
	struct core_wire_ctl_end end = st_totals();

	for (unsigned i = 0; i < actors_count; i++)
		if (!actors[i].ended)
			st_show(i);
	pt_note("broker: sessions %u slots %lu segments %lu standing %lu", end.sessions, end.slots,
		end.segments, end.standing);
}

size_t st_same_pfns(unsigned a, size_t first_a, unsigned b, size_t first_b, size_t pages)
{
	size_t same = 0;

	for (size_t i = 0; i < pages; i++) {
		uint64_t pfn = st_board->pfn[a][first_a + i];

		same += pfn && pfn == st_board->pfn[b][first_b + i];
	}
	return same;
}

/* --- an actor -------------------------------------------------------------------------- */

void st_did(unsigned self, unsigned step)
{
	atomic_store(&st_board->did[self], step);
}

void st_wait_step(unsigned step)
{
	while (atomic_load(&st_board->step) < step)
		st_nap(5);
}

char *st_memory(size_t pages)
{
	char *p = pt_map(pages);

	PT_CHECK(madvise(p, pages * pt_page(), MADV_MERGEABLE) == 0);
	return p;
}

void st_note_pfns(unsigned self, size_t at, const char *p, size_t pages)
{
	PT_CHECK(at + pages <= ST_PFNS);
	pt_touch(p, pages);
	for (size_t i = 0; i < pages; i++)
		st_board->pfn[self][at + i] = pt_pfn(p + i * pt_page());
}

bool st_has_flag(const char *two_letters)
{
	char line[512];
	bool has = false;
	FILE *f = fopen("/proc/self/smaps", "re");

	PT_CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		bool here = false, ours = false;

		if (strncmp(line, "VmFlags:", 8))
			continue;
		for (char *save, *w = strtok_r(line + 8, " \n", &save); w;
		     w = strtok_r(NULL, " \n", &save)) {
			here |= strcmp(w, two_letters) == 0;
			ours |= strcmp(w, "dd") == 0; /* staging: registered all the time */
		}
		has |= here && !ours;
	}
	fclose(f);
	return has;
}

size_t st_store_pages(const char *p, size_t pages)
{
	uintptr_t lo = (uintptr_t)p, hi = lo + pages * pt_page(), start, end;
	char line[512];
	size_t n = 0;
	FILE *f = fopen("/proc/self/maps", "re");

	PT_CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		if (!strstr(line, "/memfd:samepage-store") ||
		    sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		start = start < lo ? lo : start;
		end = end > hi ? hi : end;
		n += start < end ? (end - start) / pt_page() : 0;
	}
	fclose(f);
	return n;
}
