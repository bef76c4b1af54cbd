/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ends in the middle of scanning. If this failed, a broker that dies would take the
 * programs' memory or their merging with it (I6), or programs that are killed, exit or
 * exec would leave sessions, descriptors or store segments behind in the broker.
 */
#include "scantest.h"

#include <signal.h>

#define PAGES 400u
#define LIVES 8u

/* One part is the same in all; the other changes now and then, so that there is work. */
static void run_resident(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES);
	uint64_t gen = 0;

	pt_fill(p, PAGES, 11);
	st_did(self, 1);
	while (atomic_load(&st_board->step) < 2) {
		gen++;
		pt_fill(q, PAGES, 100 + gen % 7);
		for (unsigned i = 0; i < 5; i++) {
			st_nap(40);
			PT_CHECK(pt_differs(q, PAGES, 100 + gen % 7) == -1);
		}
		PT_CHECK(pt_differs(p, PAGES, 11) == -1);
		PT_CHECK(madvise(q, PAGES * pt_page(), MADV_DONTNEED) == 0);
	}
	/* Something new, which the store cannot have seen. */
	pt_fill(q, PAGES, 12);
	st_did(self, 2);
	st_wait_step(3);
	PT_CHECK(pt_differs(p, PAGES, 11) == -1 && pt_differs(q, PAGES, 12) == -1);
	st_note_pfns(self, 0, q, PAGES);
	st_did(self, 3);
}

static bool new_memory_is_merged(unsigned actors)
{
	for (unsigned i = 0; i < actors; i++)
		if (st_report(i).scan.pages_merged_now < PAGES)
			return false;
	return true;
}

static void broker_dies(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("resident");
	st_start("resident");
	st_step(1);
	for (unsigned i = 0; i < LIVES; i++) {
		st_nap(100 + i * 70);
		st_kill_broker();
		st_nap(i % 3 * 100);
		st_restart_broker(NULL);
		ST_UNTIL(st_all_connected());
	}
	st_step(2);
	/* In the last one's store as well. */
	ST_UNTIL(new_memory_is_merged(2));
	st_nap(500);
	st_step(3);
	assert_int_equal(st_same_pfns(0, 0, 1, 0, PAGES), PAGES);
	st_end(0);
	st_end(1);
	st_close();
}

static void broker_stays_away(void **state)
{
	(void)state;
	st_open(NULL);
	st_start("resident");
	st_start("resident");
	st_step(1);
	st_nap(400);
	st_kill_broker();
	st_nap(2000);
	st_tell(2);
	st_wait_did(0, 2);
	st_wait_did(1, 2);
	st_restart_broker(NULL);
	ST_UNTIL(st_all_connected());
	ST_UNTIL(new_memory_is_merged(2));
	st_step(3);
	st_close();
}

/* --- clients that end ------------------------------------------------------------------- */

/* Works until it is killed. */
static void run_mortal(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES);

	for (uint64_t gen = 0;; gen++) {
		pt_fill(p, PAGES, 2000 + gen % 50);
		pt_fill(q, PAGES, 2000 + gen % 50);
		st_did(self, 1);
		st_nap(50);
		PT_CHECK(madvise(p, PAGES * pt_page(), MADV_DONTNEED) == 0);
	}
}

static void run_leaver(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES);

	pt_fill(p, PAGES, 3000 + self);
	pt_fill(q, PAGES, 3000 + self);
	st_did(self, 1);
	st_nap(20 + self * 13 % 100);
	if (self % 3 == 0)
		_exit(0);
}

/* Becomes another program, which does the same without end. */
static void run_changer(unsigned self)
{
	char *p = st_memory(PAGES), *q = st_memory(PAGES), exe[256], number[12];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	PT_CHECK(n > 0);
	exe[n] = '\0';
	pt_fill(p, PAGES, 4000 + self);
	pt_fill(q, PAGES, 4000 + self);
	st_nap(20 + self * 17 % 100);
	snprintf(number, sizeof(number), "%u", self);
	execl(exe, exe, "actor", "mortal", number, (char *)NULL);
	_exit(94);
}

/*
 * Nobody left: no session, no more descriptors than before, and no segment is mapped, for
 * those that were full have been freed and none is counted as in use by anybody.
 */
static void nothing_is_left(unsigned fds)
{
	ST_UNTIL(st_totals().sessions <= 1);
	ST_UNTIL(st_broker_fds() <= fds);
	ST_UNTIL(st_totals().segments - st_totals().segments_freed <= 1);
}

static unsigned fds_at_rest(void)
{
	/* The first client makes its domain: what that takes stays. */
	unsigned first = st_start("leaver");

	st_end(first);
	ST_UNTIL(st_totals().sessions <= 1);
	st_nap(200);
	return st_broker_fds() + 2;
}

static void clients_are_killed(void **state)
{
	unsigned fds, actor[4];

	(void)state;
	st_open(NULL);
	fds = fds_at_rest();
	for (unsigned turn = 0; turn < 4; turn++) {
		for (unsigned i = 0; i < 4; i++)
			actor[i] = st_start(i % 2 ? "mortal" : "changer");
		for (unsigned i = 0; i < 4; i++)
			st_wait_did(actor[i], 1);
		st_nap(turn * 130);
		for (unsigned i = 0; i < 4; i++)
			st_kill(actor[i]);
	}
	nothing_is_left(fds);
	st_close();
}

static void clients_exit(void **state)
{
	unsigned fds, actor[20];

	(void)state;
	st_open(NULL);
	fds = fds_at_rest();
	for (unsigned i = 0; i < 20; i++) {
		actor[i] = st_start("leaver");
		st_nap(i % 4 * 20);
	}
	for (unsigned i = 0; i < 20; i++)
		st_end(actor[i]);
	nothing_is_left(fds);
	st_close();
}

/* --- what is given up ------------------------------------------------------------ */

static bool both_have(uint64_t pages)
{
	return st_report(0).pages_sharing >= pages && st_report(1).pages_sharing >= pages;
}

#define SEGMENT 8192u /* slots; full ones can be freed */

static void run_discarder(unsigned self)
{
	char *p = st_memory(SEGMENT + 100);

	pt_fill(p, SEGMENT + 100, 77);
	st_did(self, 1);
	st_wait_step(2);
	PT_CHECK(madvise(p, (SEGMENT + 100) * pt_page(), MADV_DONTNEED) == 0);
	st_did(self, 2);
	st_wait_step(3);
	st_did(self, 3);
}

/* Slots that nobody maps any more are freed, also when that was asked before in vain. */
static void discarded_pages_leave_the_store(void **state)
{
	static const char *const args[] = { "--trim-interval", "1", NULL };

	(void)state;
	st_open(args);
	st_start("discarder");
	st_start("discarder");
	st_step(1);
	ST_UNTIL(both_have(SEGMENT + 100));
	st_nap(2500);
	assert_in_range(st_totals().slots, SEGMENT, 3 * SEGMENT);
	st_step(2);
	ST_UNTIL(st_totals().slots < SEGMENT);
	st_step(3);
	st_end(0);
	st_end(1);
	st_close();
}

int main(int argc, char **argv)
{
	static const struct st_role roles[] = { { "resident", run_resident },
						{ "discarder", run_discarder },
						{ "mortal", run_mortal },
						{ "leaver", run_leaver },
						{ "changer", run_changer },
						{ NULL, NULL } };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(broker_dies),
		cmocka_unit_test(broker_stays_away),
		cmocka_unit_test(clients_are_killed),
		cmocka_unit_test(clients_exit),
		cmocka_unit_test(discarded_pages_leave_the_store),
	};

	return ST_MAIN("scan-life", tests, roles);
}
