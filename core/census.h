/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The census: which of the recorded pages of many processes are equal, what merging
 * them would save, and what that would cost. For `samepage analyze`.
 *
 * One record a page, 20 bytes, in four arrays that the caller owns (core/ allocates
 * nothing), in order of process and address. What a page belongs to is not recorded with
 * the page but with its region (one mapping); where in the mapping it lies is told by a
 * stream of (hole, pages) pairs, two bytes each as a rule.
 *
 *   hash      8 bytes: 58 bits of the fingerprint, CORE_CENSUS_* flags below them
 *   masked    4 bytes, later reused as `parent`: sets of pages that would be merged
 *   relative  4 bytes
 *   order     4 bytes: record numbers sorted by one of the three
 *
 * While pages are recorded, the look before (core_census_before_*, 4 bytes a page) is
 * still there, and `order` is not: at no time is it more than 24 bytes.
 *
 * States: recording (add_*), then core_census_finish() once, then
 * core_census_scope() for each answer wanted. Two pages are taken for equal when their
 * fingerprints are; the seed is random, so nobody can make others' pages look equal.
 */
#ifndef SAMEPAGE_CORE_CENSUS_H
#define SAMEPAGE_CORE_CENSUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORE_CENSUS_RECORD_BYTES 20
#define CORE_CENSUS_BEFORE_BYTES 4
#define CORE_CENSUS_PAGES_MAX UINT32_MAX
#define CORE_CENSUS_BUCKETS 16 /* of run lengths: 1, 2-3, 4-7 ... */
#define CORE_CENSUS_KINDS 7
#define CORE_CENSUS_MATRIX 64 /* processes in the matrix, at most */

/* What kind of mapping. */
#define CORE_CENSUS_KIND_LIST(X)                                                                   \
	X(heap) X(guest_ram) X(library_data) X(patched_text) X(jit) X(stack) X(anonymous)
enum core_census_kind {
#define CORE_CENSUS_KIND(name) CORE_CENSUS_##name,
	CORE_CENSUS_KIND_LIST(CORE_CENSUS_KIND)
#undef CORE_CENSUS_KIND
};

/* Flags of a page. */
#define CORE_CENSUS_HUGE UINT64_C(1)      /* part of a huge page */
#define CORE_CENSUS_STAYED UINT64_C(2)    /* unchanged since the look before */
#define CORE_CENSUS_LASTED UINT64_C(4)    /* unchanged since the first look */
#define CORE_CENSUS_ADDRESSES UINT64_C(8) /* has words that look like addresses */
#define CORE_CENSUS_ALMOST UINT64_C(16)   /* finish(): differs from another in those only */
#define CORE_CENSUS_SHARED UINT64_C(32)   /* scope(): the first of a set of several */
#define CORE_CENSUS_FLAGS UINT64_C(63)

/* Whom a page may be merged with. */
enum core_census_scope {
	CORE_CENSUS_ALL,     /* everybody */
	CORE_CENSUS_USER,    /* processes of its user */
	CORE_CENSUS_CGROUP,  /* of its cgroup */
	CORE_CENSUS_PROCESS, /* its own process alone */
	CORE_CENSUS_LAYOUT,  /* everybody, if replicas had one layout: an estimate */
	CORE_CENSUS_SCOPES,
};

/* How a process stands to others: equal numbers, same group. All below `processes`. */
struct core_census_groups {
	uint32_t user;
	uint32_t cgroup;
	uint32_t replica; /* CORE_CENSUS_NO_REPLICA: of nothing */
};
#define CORE_CENSUS_NO_REPLICA UINT32_MAX

/* Fair shares: of n equal pages, each saves (n - 1) / n. */
struct core_census_sums {
	uint64_t pages;     /* recorded */
	uint64_t duplicate; /* that have an equal one */
	double saved;
	uint64_t huge;      /* duplicate, in a huge page */
	uint64_t locked;    /* duplicate, in locked memory */
	uint64_t almost;    /* no equal one, but one that differs in addresses only */
};

struct core_census_process {
	struct core_census_groups group;
	struct core_census_sums sums;
	int64_t vmas_added[CORE_CENSUS_SCOPES];
	uint32_t matrix_at; /* row of the matrix + 1, 0: not in it */
	uint32_t stamp;     /* of whatever group has this number; private */
	uint32_t first;     /* likewise */
};

struct core_census_region {
	uint64_t first;     /* record number of its first page */
	uint64_t gaps;      /* where its part of the stream begins */
	uint64_t start_vpn; /* of the mapping: address / page size */
	uint32_t process;
	uint8_t kind;
	uint8_t locked;
	uint16_t reserved;
	uint64_t end_vpn;
};

struct core_census_bucket {
	uint64_t runs;
	uint64_t pages;
};

/* The answer for one scope. */
struct core_census_answer {
	uint64_t duplicate; /* pages that would be mapped to slots */
	uint64_t slots;     /* distinct contents among them */
	uint64_t saved;     /* duplicate - slots */
	uint64_t runs;
	int64_t vmas_added; /* more mappings, over all processes */
	struct core_census_bucket bucket[CORE_CENSUS_BUCKETS];
};

struct core_census {
	uint64_t *hash;
	uint32_t *masked;
	uint32_t *relative;
	uint32_t *order; /* wanted from core_census_finish() on */
	uint64_t pages;
	uint64_t room; /* records that there is room for */
	struct core_census_region *region;
	uint32_t regions;
	uint32_t regions_room;
	uint8_t *gaps;
	uint64_t gaps_bytes;
	uint64_t gaps_room;
	struct core_census_process *process;
	uint32_t processes;
	uint32_t segment_slots; /* a run does not cross a multiple of it */
	/* core_census_finish() and later */
	uint32_t *index; /* scratch: core_census_index_bytes() */
	uint32_t stamp;
	bool sorted_by_hash; /* is `order`: by hash, only pages with an equal one? */
	uint64_t sorted;     /* length of `order` */
	uint64_t next_vpn;   /* recording: behind the last page, or start of the open region */
	uint64_t last_gap;   /* recording: where the last (hole, pages) pair begins */
	uint64_t last_pages; /* recording: its pages */
	/* answers of core_census_finish() */
	struct core_census_sums total;
	struct core_census_sums kind[CORE_CENSUS_KINDS];
};

/* Recording. Each wants room for one more; bytes of the stream: GAP_BYTES_MAX a page. */
#define CORE_CENSUS_GAP_BYTES_MAX 16
void core_census_add_region(struct core_census *c, const struct core_census_region *region);
/* Ascending addresses within the open region. */
void core_census_add_page(struct core_census *c, uint64_t vpn, uint64_t hash, uint32_t masked,
			  uint32_t relative, uint64_t flags);
/* Forget regions (and their pages) from this one on. */
void core_census_truncate(struct core_census *c, uint32_t regions);

/* Walks the pages of regions [first, end) of a census in order of address. */
struct core_census_walk {
	const struct core_census *census;
	uint32_t region; /* of the page that it stands on */
	uint32_t end;
	uint64_t page;   /* its record number */
	uint64_t vpn;
	uint64_t left;   /* pages up to the next hole, this one included */
	uint64_t at;     /* in the stream */
};
void core_census_walk_begin(struct core_census_walk *w, const struct core_census *c, uint32_t first,
			    uint32_t end);
/* Does it stand on a page? */
bool core_census_walk_valid(const struct core_census_walk *w);
void core_census_walk_next(struct core_census_walk *w);
/* Forward to the first page at vpn or above. */
void core_census_walk_seek(struct core_census_walk *w, uint64_t vpn);

/* The look before, in place: tags (and whether they lasted) instead of fingerprints. */
void core_census_to_tags(const struct core_census *c, uint32_t *tag, bool first_look);
/* The STAYED and LASTED flags of a page that had this tag. */
uint64_t core_census_since(uint32_t tag, uint64_t hash);

/* Sorting and sums. c->index: this many bytes; about a byte for four pages. */
size_t core_census_index_bytes(uint64_t pages);
void core_census_finish(struct core_census *c);
/* which: 0 or CORE_CENSUS_STAYED or _LASTED, only pages that have the flag. */
void core_census_scope(struct core_census *c, enum core_census_scope scope, uint64_t which,
		       struct core_census_answer *answer);

/*
 * The matrix over the processes with the most duplicate pages: cell (a, b), a != b:
 * contents that both have, so what sharing between them saves; (a, a): pages that merging
 * inside a saves. Merging a and b alone saves (a,a) + (b,b) + (a,b). member[]: which
 * processes; returns how many. cell: CORE_CENSUS_MATRIX squared. After finish().
 */
uint32_t core_census_matrix(struct core_census *c, uint32_t member[CORE_CENSUS_MATRIX],
			    uint64_t *cell);

/* Which process page i belongs to. After finish(). */
uint32_t core_census_process_of(const struct core_census *c, uint64_t i);

const char *core_census_kind_name(enum core_census_kind kind);
const char *core_census_scope_name(enum core_census_scope scope);
/* First run length of a bucket. */
uint64_t core_census_bucket_first(unsigned bucket);

#endif
