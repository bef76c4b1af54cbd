/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Wire format: sizes and the one check that everything from outside goes through.
 *
 * What core_wire_check() promises about an accepted packet:
 *   - it has exactly the length of its type and count; SLOTS always has its
 *     full length, because its second array stands behind the first;
 *   - counts are 0 to the array's maximum;
 *   - reserved fields are 0, flags are ones that are known (REQUEST has none);
 *     the flags of a report are information and not checked;
 *   - roles and ops are known; LIST travels in CTL only;
 *   - every name and text is NUL-terminated inside its field; domain names are
 *     valid, except that a control program may leave its own empty;
 *   - errors are negative errno (or 0 where success is possible);
 *   - pids asked for are positive;
 *   - where a slot is CORE_SLOT_NONE its reason is below SAMEPAGE_REASON_MAX, so
 *     that it may index pages_declined[].
 * Not checked, for only the receiver knows the bounds: ring page numbers, slot
 * and segment numbers, sizes in WELCOME, page_bytes in HELLO.
 *
 * The packet may lie at any address: fields are read with memcpy.
 */
#include "core/wire.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "core/candidates.h"
#include "core/domain.h"
#include "core/index.h"

#define ERRNO_MAX 4095
#define TYPE_FROM_BROKER CORE_WIRE_WELCOME /* and above */

_Static_assert(sizeof(struct core_wire_tags) <= CORE_WIRE_BYTES_MAX, "TAGS too long");
_Static_assert(sizeof(struct core_wire_slots) <= CORE_WIRE_BYTES_MAX, "SLOTS too long");
_Static_assert(sizeof(struct core_wire_ctl) <= CORE_WIRE_BYTES_MAX, "CTL too long");
_Static_assert(sizeof(struct core_wire_submit) <= CORE_WIRE_BYTES_MAX, "SUBMIT too long");
_Static_assert(CORE_WIRE_NAME_BYTES == CORE_DOMAIN_NAME_MAX + 1, "names fit exactly");

/* A type's length: bytes, plus count times element_bytes where it has a count. */
struct layout {
	char name[14]; /* no pointer: the table stays in pages that all processes share */
	uint16_t bytes;
	uint16_t count_at; /* offset of the count, 0: none */
	uint16_t count_max;
	uint16_t element_bytes;
	uint8_t fds_min;
	uint8_t fds_max;
};

#define FIXED(NAME, type, fds) \
	{ .name = NAME, .bytes = sizeof(struct type), .fds_min = fds, .fds_max = fds }
#define ARRAY(NAME, type, array, max)                                                          \
	{ .name = NAME, .bytes = offsetof(struct type, array),                                 \
	  .count_at = offsetof(struct type, count), .count_max = max,                          \
	  .element_bytes = sizeof(((struct type *)0)->array[0]) }

static const struct layout layouts[] = {
	[CORE_WIRE_HELLO] = FIXED("hello", core_wire_hello, 0),
	[CORE_WIRE_SUBMIT] = ARRAY("submit", core_wire_submit, ring_page, CORE_WIRE_SUBMIT_MAX),
	[CORE_WIRE_SEGMENT_GET] = FIXED("segment_get", core_wire_segment, 0),
	[CORE_WIRE_TAGS] = ARRAY("tags", core_wire_tags, tag, CORE_WIRE_TAGS_MAX),
	[CORE_WIRE_RESULT] = FIXED("result", core_wire_result, 0),
	[CORE_WIRE_OFFER] = FIXED("offer", core_wire_segment, 1),
	[CORE_WIRE_CTL] = ARRAY("ctl", core_wire_ctl, pid, CORE_WIRE_PIDS_MAX),
	[CORE_WIRE_WELCOME] = { .name = "welcome", .bytes = sizeof(struct core_wire_welcome),
				.fds_min = 0, .fds_max = CORE_WIRE_FDS_MAX },
	[CORE_WIRE_ERROR] = FIXED("error", core_wire_error, 0),
	[CORE_WIRE_SLOTS] = { .name = "slots", .bytes = sizeof(struct core_wire_slots),
			      .count_at = offsetof(struct core_wire_slots, count),
			      .count_max = CORE_WIRE_SUBMIT_MAX },
	[CORE_WIRE_SEGMENT] = FIXED("segment", core_wire_segment, 1),
	[CORE_WIRE_REQUEST] = FIXED("request", core_wire_request, 0),
	[CORE_WIRE_TRIM] = FIXED("trim", core_wire_header, 0),
	[CORE_WIRE_CTL_ITEM] = FIXED("ctl_item", core_wire_ctl_item, 0),
	[CORE_WIRE_CTL_END] = FIXED("ctl_end", core_wire_ctl_end, 0),
};

static const struct layout *layout_of(uint16_t type)
{
	if (type >= sizeof(layouts) / sizeof(layouts[0]) || !layouts[type].name[0])
		return NULL;
	return &layouts[type];
}

/* 0: no such type, or more elements than it holds. count is ignored where there is none. */
size_t core_wire_bytes(uint16_t type, uint32_t count)
{
	const struct layout *l = layout_of(type);

	if (!l || (l->count_at && count > l->count_max))
		return 0;
	return l->bytes + (size_t)(l->count_at ? count : 0) * l->element_bytes;
}

void core_wire_fds(uint16_t type, unsigned *min, unsigned *max)
{
	const struct layout *l = layout_of(type);

	*min = l ? l->fds_min : 0;
	*max = l ? l->fds_max : 0;
}

void core_wire_header_init(struct core_wire_header *h, uint16_t type, uint32_t bytes, uint32_t seq)
{
	*h = (struct core_wire_header){
		.magic = CORE_WIRE_MAGIC,
		.version = CORE_WIRE_VERSION,
		.type = type,
		.bytes = bytes,
		.seq = seq,
	};
}

const char *core_wire_type_name(uint16_t type)
{
	const struct layout *l = layout_of(type);

	return l ? l->name : "unknown";
}

const char *core_wire_op_name(uint32_t op)
{
	static const char *const names[] = {
		[CORE_WIRE_OP_LOOK] = "look",
		[CORE_WIRE_OP_MERGE] = "merge",
		[CORE_WIRE_OP_UNMERGE] = "unmerge",
		[CORE_WIRE_OP_STATS] = "stats",
		[CORE_WIRE_OP_LIST] = "list",
		[CORE_WIRE_OP_PAUSE] = "pause",
		[CORE_WIRE_OP_RESUME] = "resume",
	};

	return op >= CORE_WIRE_OP_LOOK && op <= CORE_WIRE_OP_LAST ? names[op] : "unknown";
}

/* Fields at any address ---------------------------------------------------- */

static uint32_t get_u32(const unsigned char *packet, size_t at)
{
	uint32_t value;

	memcpy(&value, packet + at, sizeof(value));
	return value;
}

static int32_t get_i32(const unsigned char *packet, size_t at)
{
	int32_t value;

	memcpy(&value, packet + at, sizeof(value));
	return value;
}

#define U32(packet, type, field) get_u32(packet, offsetof(struct type, field))
#define I32(packet, type, field) get_i32(packet, offsetof(struct type, field))

static bool text_ends(const unsigned char *packet, size_t at, size_t bytes)
{
	return memchr(packet + at, '\0', bytes) != NULL;
}

static bool domain_ok(const unsigned char *packet, size_t at, bool may_be_empty)
{
	const char *name = (const char *)packet + at;

	return core_domain_name_valid(name) || (may_be_empty && name[0] == '\0');
}

static bool errno_ok(int32_t error, bool may_be_zero)
{
	return error >= -ERRNO_MAX && error <= (may_be_zero ? 0 : -1);
}

/* One function per type that has something to check -------------------------- */

static bool hello_ok(const unsigned char *p)
{
	uint32_t role = U32(p, core_wire_hello, role);

	return (role == CORE_WIRE_ROLE_CLIENT || role == CORE_WIRE_ROLE_CONTROL) &&
	       (U32(p, core_wire_hello, flags) & ~CORE_WIRE_HELLO_WANT_UFFD) == 0 &&
	       U32(p, core_wire_hello, reserved) == 0 &&
	       domain_ok(p, offsetof(struct core_wire_hello, domain),
			 role == CORE_WIRE_ROLE_CONTROL) &&
	       text_ends(p, offsetof(struct core_wire_hello, comm), CORE_WIRE_NAME_BYTES);
}

static bool ctl_ok(const unsigned char *p)
{
	uint32_t op = U32(p, core_wire_ctl, op);
	uint32_t count = U32(p, core_wire_ctl, count);
	uint32_t i;

	if (op < CORE_WIRE_OP_LOOK || op > CORE_WIRE_OP_LAST ||
	    (U32(p, core_wire_ctl, flags) & ~CORE_WIRE_CTL_ALL) != 0 ||
	    U32(p, core_wire_ctl, reserved) != 0)
		return false;
	for (i = 0; i < count; i++) {
		if (get_i32(p, offsetof(struct core_wire_ctl, pid) + i * sizeof(int32_t)) <= 0)
			return false;
	}
	return true;
}

static bool slots_ok(const unsigned char *p)
{
	uint32_t count = U32(p, core_wire_slots, count);
	uint32_t i;

	if (U32(p, core_wire_slots, reserved) != 0)
		return false;
	for (i = 0; i < count; i++) {
		size_t slot_at = offsetof(struct core_wire_slots, slot) + i * sizeof(uint32_t);

		if (get_u32(p, slot_at) == CORE_SLOT_NONE &&
		    p[offsetof(struct core_wire_slots, reason) + i] >= SAMEPAGE_REASON_MAX)
			return false;
	}
	return true;
}

static bool welcome_ok(const unsigned char *p)
{
	return (U32(p, core_wire_welcome, flags) &
		~(CORE_WIRE_WELCOME_HAS_UFFD | CORE_WIRE_WELCOME_PAUSED)) == 0 &&
	       U32(p, core_wire_welcome, who) <= CORE_CAND_WHO_MAX;
}

static bool request_ok(const unsigned char *p)
{
	uint32_t op = U32(p, core_wire_request, op);

	return op >= CORE_WIRE_OP_LOOK && op <= CORE_WIRE_OP_LAST && op != CORE_WIRE_OP_LIST &&
	       U32(p, core_wire_request, flags) == 0;
}

static bool ctl_item_ok(const unsigned char *p)
{
	return I32(p, core_wire_ctl_item, pid) >= 0 &&
	       domain_ok(p, offsetof(struct core_wire_ctl_item, domain), false) &&
	       text_ends(p, offsetof(struct core_wire_ctl_item, comm), CORE_WIRE_NAME_BYTES) &&
	       errno_ok(I32(p, core_wire_ctl_item, report.error), true);
}

static bool tags_ok(uint32_t flags)
{
	return flags == 0 || (flags & ((1u << CORE_WIRE_TAGS_ROUND_SHIFT) - 1)) == CORE_WIRE_TAGS_STANDING;
}

static bool payload_ok(uint16_t type, const unsigned char *p)
{
	switch (type) {
	case CORE_WIRE_HELLO:
		return hello_ok(p);
	case CORE_WIRE_SUBMIT:
		return U32(p, core_wire_submit, reserved) == 0;
	case CORE_WIRE_TAGS:
		return tags_ok(U32(p, core_wire_tags, flags));
	case CORE_WIRE_RESULT:
		return errno_ok(I32(p, core_wire_result, report.error), true);
	case CORE_WIRE_CTL:
		return ctl_ok(p);
	case CORE_WIRE_WELCOME:
		return welcome_ok(p);
	case CORE_WIRE_ERROR:
		return errno_ok(I32(p, core_wire_error, error), false) &&
		       text_ends(p, offsetof(struct core_wire_error, text), CORE_WIRE_TEXT_BYTES);
	case CORE_WIRE_SLOTS:
		return slots_ok(p);
	case CORE_WIRE_REQUEST:
		return request_ok(p);
	case CORE_WIRE_CTL_ITEM:
		return ctl_item_ok(p);
	case CORE_WIRE_CTL_END:
		return errno_ok(I32(p, core_wire_ctl_end, error), true);
	default: /* SEGMENT_GET, SEGMENT, OFFER, TRIM: any numbers */
		return true;
	}
}

int core_wire_check(const void *packet, size_t bytes, int to_broker)
{
	const unsigned char *p = packet;
	const struct layout *l;
	struct core_wire_header h;
	size_t expected;

	if (bytes < sizeof(h) || bytes > CORE_WIRE_BYTES_MAX)
		return -EPROTO;
	memcpy(&h, p, sizeof(h));
	if (h.magic != CORE_WIRE_MAGIC)
		return -EPROTO;
	if (h.version != CORE_WIRE_VERSION)
		return -EPROTONOSUPPORT;
	l = layout_of(h.type);
	if (!l || (to_broker != 0) != (h.type < TYPE_FROM_BROKER))
		return -EPROTO;
	/* The fixed part is there before the count is read from it. */
	if (h.bytes != bytes || bytes < l->bytes)
		return -EPROTO;
	expected = core_wire_bytes(h.type, l->count_at ? get_u32(p, l->count_at) : 0);
	if (bytes != expected || !payload_ok(h.type, p))
		return -EPROTO;
	return 0;
}
