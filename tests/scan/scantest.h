/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tests of background scanning share: a broker of their own, programs under the
 * preload library ("actors"), and what the broker and the kernel say about them.
 *
 * An actor is this program once more, started with the name of a role. It and the driver
 * see one board: steps, parameters, frame numbers. Nothing here merges: that is what the
 * scanner is to do by itself. No test asserts a time; limits are there so that a
 * scanner that never does it fails the test and does not hang it.
 */
#ifndef SAMEPAGE_TESTS_SCANTEST_H
#define SAMEPAGE_TESTS_SCANTEST_H

#include "tests/proc/proctest.h"

#include <stdatomic.h>

#include "core/scan.h"
#include "core/wire.h"

#define ST_ACTORS 24u
#define ST_VALUES 24u
#define ST_PFNS 8192u
#define ST_LIMIT 60u /* seconds, for what takes one or two */

struct st_board {
	_Atomic unsigned step;             /* the driver's */
	_Atomic unsigned did[ST_ACTORS];   /* each actor's last step */
	_Atomic uint64_t in[ST_ACTORS][ST_VALUES];  /* what the driver tells an actor */
	_Atomic uint64_t out[ST_ACTORS][ST_VALUES]; /* and is told */
	uint64_t pfn[ST_ACTORS][ST_PFNS];
};
extern struct st_board *st_board;

struct st_role {
	const char *name;
	void (*run)(unsigned self); /* ends the program with 0 by returning */
};

/* As main. */
int st_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
	    size_t count, const struct st_role *roles);
#define ST_MAIN(name, tests, roles)                                                                \
	st_main(argc, argv, name, tests, sizeof(tests) / sizeof((tests)[0]), roles)

/* --- the driver ------------------------------------------------------------- */

/* Broker and board; skips where merging is not possible. More arguments, NULL at the end. */
void st_open(const char *const *broker_args);
/* All actors have ended (those left are killed); the broker ends well. */
void st_close(void);
/* For every actor from now on: "NAME=value", in place of what there was. */
void st_env(const char *setting);
/* A new actor: its number. */
unsigned st_start(const char *role);
pid_t st_pid(unsigned actor);
/* All living actors have done this step. */
void st_step(unsigned step);
void st_tell(unsigned step); /* does not wait */
void st_wait_did(unsigned actor, unsigned step);
void st_end(unsigned actor);  /* must end by itself, with 0 */
int st_status(unsigned actor); /* as pt_wait() */
void st_kill(unsigned actor); /* SIGKILL */

/* What an actor's library says. False: it is no client. */
bool st_try_report(unsigned actor, struct core_wire_report *r);
struct core_wire_report st_report(unsigned actor);
struct core_wire_ctl_end st_totals(void);
unsigned st_broker_fds(void);
/* PAUSE, RESUME, UNMERGE, MERGE, of all. How many answered. */
unsigned st_all(uint32_t op);
unsigned st_one(uint32_t op, unsigned actor);
void st_kill_broker(void);
void st_restart_broker(const char *const *broker_args);
bool st_all_connected(void);

void st_nap(unsigned msec);
/* is(arg) within ST_LIMIT; polled. */
#define ST_UNTIL(expression)                                                                       \
	do {                                                                                       \
		unsigned st_tries = 0;                                                             \
		while (!(expression)) {                                                            \
			if (++st_tries > ST_LIMIT * 50) {                                          \
				st_show_all();                                                     \
				fail_msg("not within %u s: %s", ST_LIMIT, #expression);            \
			}                                                                          \
			st_nap(20);                                                                \
		}                                                                                  \
	} while (0)
void st_show(unsigned actor); /* all counters, as a comment */
void st_show_all(void);
/* Pages first.. first+pages of two actors' notes: how many have the same frame. */
size_t st_same_pfns(unsigned a, size_t first_a, unsigned b, size_t first_b, size_t pages);

/* --- an actor ------------------------------------------------------------------ */

void st_did(unsigned self, unsigned step);
void st_wait_step(unsigned step);
/* Memory that is advised (so that nothing else is merged with SAMEPAGE_SCOPE=advised). */
char *st_memory(size_t pages);
/* Note the frames of pages, from place `at` of the board. Touches them. */
void st_note_pfns(unsigned self, size_t at, const char *p, size_t pages);
/* smaps: any mapping with this VmFlag ("uw") in the whole process, the library's own left out? */
bool st_has_flag(const char *two_letters);
/* Pages of [p, p + pages) in mappings of a store. */
size_t st_store_pages(const char *p, size_t pages);

#endif
