/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the background scanner is told, and what it counts: the parts that travel
 * between a client, the broker and who asks. Fixed size, no pointers (wire.h).
 */
#ifndef SAMEPAGE_CORE_SCAN_H
#define SAMEPAGE_CORE_SCAN_H

#include <stdint.h>

enum core_scan_tracker {
	CORE_SCAN_TRACKER_AUTO,     /* wp-async where the kernel has it */
	CORE_SCAN_TRACKER_WP_ASYNC, /* userfaultfd WP_ASYNC and PAGEMAP_SCAN */
	CORE_SCAN_TRACKER_CHECKSUM, /* hash again */
};

/* Everything 0: the defaults. The broker's (samepaged.conf), then the program's own. */
struct core_scan_config {
	uint32_t flags;        /* CORE_SCAN_* */
	uint32_t tracker;      /* enum core_scan_tracker */
	uint32_t cpu_permille; /* of one core, averaged over a minute (default 100) */
	uint32_t map_percent;  /* of vm.max_map_count that a process may have (default 50) */
	uint32_t first_msec;   /* shortest time between looks at a range */
	uint32_t most_msec;    /* longest */
	uint32_t huge_percent; /* a huge page is split if so much of it merges (default 12) */
	uint32_t reserved;
};
#define CORE_SCAN_FIRST_MSEC 100u /* the defaults */
#define CORE_SCAN_MOST_MSEC 10000u
#define CORE_SCAN_OFF 0x1u /* merge only when asked to */
#define CORE_SCAN_ON 0x2u  /* a program's own wish, against CORE_SCAN_OFF of the broker */

/* What a scanner knows now ("_now"), and what it has done since the process started. */
struct core_scan_counters {
	uint32_t tracker; /* in use; 0: the scanner is off */
	uint32_t paused;
	uint64_t pages_tracked_now;  /* in ranges that are watched: present, not merged ... */
	uint64_t pages_merged_now;   /* ... or merged */
	uint64_t pages_unshared_now; /* looked at, nobody has the same */
	uint64_t pages_volatile_now; /* left alone for they keep changing */
	uint64_t pages_waiting_now;  /* changed or new, not yet still for long enough */
	uint64_t metadata_bytes;     /* for all of these */
	uint64_t full_scans;         /* times that everything had been looked at */
	uint64_t pages_scanned;      /* page table entries that the tracker looked at */
	uint64_t pages_changed;      /* that it found changed, or new */
	uint64_t pages_hashed;
	uint64_t pages_skipped;      /* not scanned, because their range was not due */
	uint64_t pages_candidate;    /* fingerprints reported */
	uint64_t pages_promoted;     /* put into the store */
	uint64_t promoted_in_vain;   /* of these: not merged by the one who promoted */
	uint64_t pages_merged;
	uint64_t pages_broken;       /* merged by the scanner, then written */
	uint64_t broken_soon;        /* of these: within 10 s */
	uint64_t broken_msec;        /* sum over pages_broken: how long seen merged */
	uint64_t huge_split;         /* huge pages that were split for merging */
	uint64_t huge_kept;          /* looks at huge pages in which not enough would merge */
	uint64_t homecomings;        /* times that broken pages were brought home */
	uint64_t held_cpu;           /* looks put off: the CPU ceiling */
	uint64_t held_maps;          /* pages not merged: the mapping budget */
	uint64_t cpu_usec;           /* of the scanner */
	uint64_t stable_msec;        /* sum over pages_merged: since the page was last seen changed */
	uint64_t stable_msec_max;
};

#endif
