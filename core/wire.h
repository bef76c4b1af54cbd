/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Wire format between clients, control programs and the broker: one message
 * per SOCK_SEQPACKET packet, at most CORE_WIRE_BYTES_MAX bytes, host byte order
 * (both ends are the same machine), fixed-size fields, no pointers.
 *
 * Every packet starts with struct core_wire_header. core_wire_check() is the
 * only way in: it validates magic, version, type, length and every count and
 * string before anybody looks at a payload (I4). File descriptors travel beside
 * the message (SCM_RIGHTS); core_wire_fds() says how many a type carries.
 *
 * docs/protocol.md is the prose of this file.
 */
#ifndef SAMEPAGE_CORE_WIRE_H
#define SAMEPAGE_CORE_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "core/scan.h"
#include "samepage.h"

#define CORE_WIRE_MAGIC 0x47504d53u /* "SMPG" */
#define CORE_WIRE_VERSION 4
#define CORE_WIRE_BYTES_MAX 16384
#define CORE_WIRE_FDS_MAX 4
#define CORE_WIRE_NAME_BYTES 64 /* NUL-terminated domain name or command name */
#define CORE_WIRE_SUBMIT_MAX 1024
#define CORE_WIRE_TAGS_MAX 3072
#define CORE_WIRE_PIDS_MAX 2048
#define CORE_WIRE_TEXT_BYTES 200

enum core_wire_type {
	/* client or control program -> broker */
	CORE_WIRE_HELLO = 1,
	CORE_WIRE_SUBMIT,      /* promote pages from the ring; answer SLOTS */
	CORE_WIRE_SEGMENT_GET, /* answer SEGMENT with an fd, or ERROR */
	CORE_WIRE_TAGS,        /* candidate fingerprints of a look; no answer */
	CORE_WIRE_RESULT,      /* of a REQUEST */
	CORE_WIRE_OFFER,       /* + fd: a full segment of an earlier broker; no answer */
	CORE_WIRE_CTL,         /* control: do op on processes; answer CTL_ITEM*, CTL_END */
	/* broker -> client or control program */
	CORE_WIRE_WELCOME = 64, /* + fds: index, candidates, ring [, /dev/userfaultfd] */
	CORE_WIRE_ERROR,
	CORE_WIRE_SLOTS,
	CORE_WIRE_SEGMENT, /* + fd, opened read-only */
	CORE_WIRE_REQUEST, /* please do op; answer RESULT */
	CORE_WIRE_TRIM,    /* close fds of segments without a mapping; no answer */
	CORE_WIRE_CTL_ITEM,
	CORE_WIRE_CTL_END,
};

struct core_wire_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t bytes; /* of the whole packet */
	uint32_t seq;   /* answers carry the question's */
};

#define CORE_WIRE_ROLE_CLIENT 1
#define CORE_WIRE_ROLE_CONTROL 2

struct core_wire_hello {
	struct core_wire_header h;
	uint32_t role;
	uint32_t page_bytes;
	uint32_t flags; /* CORE_WIRE_HELLO_* */
	uint32_t reserved;
	char domain[CORE_WIRE_NAME_BYTES];
	char comm[CORE_WIRE_NAME_BYTES]; /* for people; the pid comes from the kernel */
};
#define CORE_WIRE_HELLO_WANT_UFFD 0x1u /* please send an open /dev/userfaultfd */

/* Clients get 3 fds, and a 4th where HAS_UFFD; control programs get none. */
struct core_wire_welcome {
	struct core_wire_header h;
	uint32_t flags;
	uint32_t ring_pages;
	uint64_t index_bytes;
	uint64_t cand_bytes;
	uint64_t layout_seed; /* random per domain: for samepage run --layout shared */
	uint64_t generation;
	uint32_t broker_pid;
	uint32_t who; /* the client's number in the standing table; control programs: 0 */
	struct core_scan_config scan; /* for background scanning; cand's fd holds two tables */
};
#define CORE_WIRE_WELCOME_HAS_UFFD 0x1u
#define CORE_WIRE_WELCOME_PAUSED 0x2u /* this domain's scanners are to rest */

struct core_wire_error {
	struct core_wire_header h;
	int32_t error; /* negative errno */
	char text[CORE_WIRE_TEXT_BYTES];
};

/* The broker copies ring page ring_page[i], in this order, to fresh slots. */
struct core_wire_submit {
	struct core_wire_header h;
	uint32_t count;
	uint32_t reserved;
	uint16_t ring_page[CORE_WIRE_SUBMIT_MAX];
};

/*
 * slot[i] answers ring_page[i]; CORE_SLOT_NONE: reason[i] says why not (enum
 * samepage_reason), else whether the page is the first of its kind.
 */
#define CORE_WIRE_SLOT_NEW 0
#define CORE_WIRE_SLOT_KNOWN 1
struct core_wire_slots {
	struct core_wire_header h;
	uint32_t count;
	uint32_t reserved;
	uint32_t slot[CORE_WIRE_SUBMIT_MAX];
	uint8_t reason[CORE_WIRE_SUBMIT_MAX];
};

struct core_wire_segment { /* SEGMENT_GET, SEGMENT and OFFER */
	struct core_wire_header h;
	uint32_t segment;
	uint32_t slots; /* OFFER: slots in it; SEGMENT: slots in every segment */
};

struct core_wire_tags {
	struct core_wire_header h;
	uint32_t count;
	uint32_t flags;
	uint32_t tag[CORE_WIRE_TAGS_MAX];
};
#define CORE_WIRE_TAGS_STANDING 0x1u /* of a scanner, for the second table */
/* With STANDING: the round that they are meant for, 16 bits of it. In another one they would
 * be reported twice, and count as two pages. */
#define CORE_WIRE_TAGS_ROUND_SHIFT 16

enum core_wire_op {
	CORE_WIRE_OP_LOOK = 1, /* hash everything, report TAGS, merge nothing */
	CORE_WIRE_OP_MERGE,    /* merge what is in the store or a candidate twice */
	CORE_WIRE_OP_UNMERGE,  /* and the scanner rests, or it would merge again */
	CORE_WIRE_OP_STATS,
	CORE_WIRE_OP_LIST, /* control only: sessions, without asking them */
	CORE_WIRE_OP_PAUSE,  /* the scanner rests; what is merged stays */
	CORE_WIRE_OP_RESUME, /* and goes on */
	CORE_WIRE_OP_LAST = CORE_WIRE_OP_RESUME,
};

struct core_wire_request {
	struct core_wire_header h;
	uint32_t op;
	uint32_t flags;
};

/* A client's answer, and the body of a CTL_ITEM. */
struct core_wire_report {
	int32_t error; /* 0 or negative errno of the pass */
	uint32_t vmas; /* mappings of the process now */
	uint32_t vmas_max; /* vm.max_map_count */
	uint32_t flags; /* CORE_WIRE_REPORT_* */
	uint64_t pss_before_bytes;
	uint64_t pss_after_bytes;
	uint64_t pages_sharing;  /* map a slot now */
	uint64_t pages_owned;    /* private anonymous pages in reach */
	uint64_t own_bytes;      /* memory of the library itself */
	uint64_t cpu_usec;       /* of the service thread, ever */
	uint64_t zero_pages;     /* ever */
	struct samepage_result last;  /* this pass, or the last one (STATS) */
	struct samepage_result total; /* since the client started */
	struct core_scan_counters scan;
};

#define CORE_WIRE_REPORT_KERNEL 0x1u /* merges with the kernel's MADV_MERGE */

struct core_wire_result {
	struct core_wire_header h;
	struct core_wire_report report;
};

#define CORE_WIRE_CTL_ALL 0x1u /* every process that the caller may touch */
struct core_wire_ctl {
	struct core_wire_header h;
	uint32_t op;
	uint32_t flags;
	uint32_t count; /* of pid[] */
	uint32_t reserved;
	int32_t pid[CORE_WIRE_PIDS_MAX];
};

struct core_wire_ctl_item {
	struct core_wire_header h;
	int32_t pid;
	uint32_t uid;
	char domain[CORE_WIRE_NAME_BYTES];
	char comm[CORE_WIRE_NAME_BYTES];
	struct core_wire_report report;
};

/* What the broker itself knows, summed over the domains that the caller may see. */
struct core_wire_ctl_end {
	struct core_wire_header h;
	int32_t error; /* -ESRCH: none of the processes is a client */
	uint32_t items;
	uint32_t domains;
	uint32_t sessions;
	uint64_t slots;           /* published */
	uint64_t segments;
	uint64_t segments_freed;
	uint64_t store_bytes;
	uint64_t index_bytes;     /* memory of index and candidates, in use */
	uint64_t broker_rss_bytes; /* private memory of the broker, the store not included */
	uint64_t broker_cpu_usec;
	uint64_t candidates;
	uint64_t submissions;     /* pages */
	uint64_t submissions_known; /* of them: were in the store already */
	uint64_t dropped_clients; /* for malformed messages */
	uint64_t quota_refusals;  /* pages */
	uint64_t standing;        /* fingerprints in the scanners' tables */
	uint32_t paused;          /* domains */
	uint32_t reserved;
};

/* The part of a packet before its array, and a whole packet of count elements. */
size_t core_wire_bytes(uint16_t type, uint32_t count);
/* How many fds may come with this type: min and max. */
void core_wire_fds(uint16_t type, unsigned *min, unsigned *max);
/* Fill in the header. bytes from core_wire_bytes(). */
void core_wire_header_init(struct core_wire_header *h, uint16_t type, uint32_t bytes, uint32_t seq);
/*
 * Is this a well-formed packet that may travel in this direction?
 * to_broker: 1 = client to broker, 0 = broker to client.
 * -EPROTO malformed, -EPROTONOSUPPORT another version.
 */
int core_wire_check(const void *packet, size_t bytes, int to_broker);
const char *core_wire_type_name(uint16_t type);
const char *core_wire_op_name(uint32_t op);

#endif
