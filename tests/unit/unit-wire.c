/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * If this fails: a client can make the broker (or a broker its clients) read
 * outside of a packet, loop over a count that is not there, or use a name without
 * an end (I4); or well-formed messages are refused and nothing works at all.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/domain.h"
#include "core/index.h"
#include "core/candidates.h"
#include "core/wire.h"
#include "unit.h"

static uint64_t random_state = 6;

union packet {
	struct core_wire_header h;
	struct core_wire_hello hello;
	struct core_wire_welcome welcome;
	struct core_wire_error error;
	struct core_wire_submit submit;
	struct core_wire_slots slots;
	struct core_wire_segment segment;
	struct core_wire_tags tags;
	struct core_wire_request request;
	struct core_wire_result result;
	struct core_wire_ctl ctl;
	struct core_wire_ctl_item item;
	struct core_wire_ctl_end end;
	unsigned char raw[CORE_WIRE_BYTES_MAX + 1];
};

static const uint16_t all_types[] = {
	CORE_WIRE_HELLO, CORE_WIRE_SUBMIT, CORE_WIRE_SEGMENT_GET, CORE_WIRE_TAGS,
	CORE_WIRE_RESULT, CORE_WIRE_OFFER, CORE_WIRE_CTL, CORE_WIRE_WELCOME, CORE_WIRE_ERROR,
	CORE_WIRE_SLOTS, CORE_WIRE_SEGMENT, CORE_WIRE_REQUEST, CORE_WIRE_TRIM,
	CORE_WIRE_CTL_ITEM, CORE_WIRE_CTL_END,
};
#define TYPES (sizeof(all_types) / sizeof(all_types[0]))

static uint32_t count_max(uint16_t type)
{
	switch (type) {
	case CORE_WIRE_SUBMIT:
	case CORE_WIRE_SLOTS:
		return CORE_WIRE_SUBMIT_MAX;
	case CORE_WIRE_TAGS:
		return CORE_WIRE_TAGS_MAX;
	case CORE_WIRE_CTL:
		return CORE_WIRE_PIDS_MAX;
	default:
		return 0;
	}
}

static uint32_t *count_of(union packet *p)
{
	switch (p->h.type) {
	case CORE_WIRE_SUBMIT:
		return &p->submit.count;
	case CORE_WIRE_SLOTS:
		return &p->slots.count;
	case CORE_WIRE_TAGS:
		return &p->tags.count;
	case CORE_WIRE_CTL:
		return &p->ctl.count;
	default:
		return NULL;
	}
}

static int to_broker(uint16_t type)
{
	return type < CORE_WIRE_WELCOME;
}

/* A well-formed packet; returns its length. */
static size_t build(union packet *p, uint16_t type, uint32_t count)
{
	size_t bytes = core_wire_bytes(type, count);
	uint32_t i;

	memset(p, 0, sizeof(*p));
	core_wire_header_init(&p->h, type, (uint32_t)bytes, 77);
	if (count_of(p))
		*count_of(p) = count;
	switch (type) {
	case CORE_WIRE_HELLO:
		p->hello.role = CORE_WIRE_ROLE_CLIENT;
		p->hello.page_bytes = 4096;
		p->hello.flags = CORE_WIRE_HELLO_WANT_UFFD;
		strcpy(p->hello.domain, "default");
		strcpy(p->hello.comm, "a name for people / \xff");
		break;
	case CORE_WIRE_SUBMIT:
		for (i = 0; i < count; i++)
			p->submit.ring_page[i] = (uint16_t)i;
		break;
	case CORE_WIRE_TAGS:
		for (i = 0; i < count; i++)
			p->tags.tag[i] = ~i;
		break;
	case CORE_WIRE_CTL:
		p->ctl.op = CORE_WIRE_OP_LIST;
		p->ctl.flags = CORE_WIRE_CTL_ALL;
		for (i = 0; i < count; i++)
			p->ctl.pid[i] = (int32_t)i + 1;
		break;
	case CORE_WIRE_WELCOME:
		p->welcome.flags = CORE_WIRE_WELCOME_HAS_UFFD;
		break;
	case CORE_WIRE_ERROR:
		p->error.error = -EDQUOT;
		strcpy(p->error.text, "no more");
		break;
	case CORE_WIRE_SLOTS:
		for (i = 0; i < count; i++) {
			p->slots.slot[i] = i % 2 ? i : CORE_SLOT_NONE;
			p->slots.reason[i] = SAMEPAGE_REASON_QUOTA;
		}
		break;
	case CORE_WIRE_REQUEST:
		p->request.op = CORE_WIRE_OP_LOOK;
		break;
	case CORE_WIRE_RESULT:
		p->result.report.error = -EINTR;
		p->result.report.last.vmas_added = -3;
		break;
	case CORE_WIRE_CTL_ITEM:
		p->item.pid = 4711;
		strcpy(p->item.domain, "x");
		break;
	case CORE_WIRE_CTL_END:
		p->end.error = -ESRCH;
		break;
	default:
		break;
	}
	return bytes;
}

/* Checks a copy that ends where the packet ends, so that ASan sees one byte more. */
static int check_exact(const union packet *p, size_t bytes, int direction)
{
	unsigned char *copy = malloc(bytes ? bytes : 1);
	int err;

	assert_non_null(copy);
	memcpy(copy, p, bytes);
	err = core_wire_check(copy, bytes, direction);
	free(copy);
	return err;
}

/* check_exact() in the packet's own direction. */
static int check(const union packet *p, size_t bytes)
{
	return check_exact(p, bytes, to_broker(p->h.type));
}

static void test_round_trip(void **state)
{
	static union packet p;
	unsigned k;

	for (k = 0; k < TYPES; k++) {
		uint16_t type = all_types[k];
		uint32_t max = count_max(type);
		const uint32_t counts[] = { 0, max ? 1 : 0, max / 2, max };
		unsigned i;

		for (i = 0; i < 4; i++) {
			size_t bytes = build(&p, type, counts[i]);

			assert_in_range(bytes, sizeof(p.h), CORE_WIRE_BYTES_MAX);
			assert_int_equal(check_exact(&p, bytes, to_broker(type)), 0);
			assert_int_equal(check_exact(&p, bytes, !to_broker(type)), -EPROTO);
			assert_int_equal(p.h.seq, 77);
		}
	}
}

/* Every length but the right one, both with the header telling the truth and not. */
static void test_truncated_and_padded(void **state)
{
	static union packet p;
	unsigned k, i;

	for (k = 0; k < TYPES; k++) {
		uint16_t type = all_types[k];
		const uint32_t counts[] = { 0, 3, count_max(type) };

		for (i = 0; i < (count_max(type) ? 3 : 1); i++) {
			size_t bytes = build(&p, type, counts[i]);
			size_t n;

			for (n = 0; n < bytes + 9 && n <= sizeof(p); n++) {
				if (n == bytes)
					continue;
				p.h.bytes = (uint32_t)bytes;
				assert_int_equal(check(&p, n), -EPROTO);
				p.h.bytes = (uint32_t)n;
				assert_int_equal(check(&p, n), -EPROTO);
			}
		}
	}
}

static void test_counts(void **state)
{
	static union packet p;
	unsigned k;

	for (k = 0; k < TYPES; k++) {
		uint16_t type = all_types[k];
		uint32_t max = count_max(type);
		size_t bytes;

		if (max == 0) {
			assert_int_equal(core_wire_bytes(type, 0), core_wire_bytes(type, 9));
			continue;
		}
		assert_int_equal(core_wire_bytes(type, max + 1), 0);
		assert_int_equal(core_wire_bytes(type, UINT32_MAX), 0);
		bytes = build(&p, type, max);
		*count_of(&p) = max + 1;
		assert_int_equal(check(&p, bytes), -EPROTO);
		*count_of(&p) = UINT32_MAX;
		assert_int_equal(check(&p, bytes), -EPROTO);
		/* Counts that wrap around when multiplied by the element size. */
		*count_of(&p) = max + 0x80000000u;
		assert_int_equal(check(&p, bytes), -EPROTO);
		*count_of(&p) = max + 0x40000000u;
		assert_int_equal(check(&p, bytes), -EPROTO);
		bytes = build(&p, type, 0);
		*count_of(&p) = UINT32_MAX;
		assert_int_equal(check(&p, bytes), -EPROTO);
	}
}

static void test_header(void **state)
{
	static union packet p;
	size_t bytes = build(&p, CORE_WIRE_HELLO, 0);
	uint32_t type;

	p.h.magic ^= 0x100;
	assert_int_equal(check(&p, bytes), -EPROTO);
	bytes = build(&p, CORE_WIRE_HELLO, 0);
	p.h.version++;
	assert_int_equal(check(&p, bytes), -EPROTONOSUPPORT);
	/* A later version may know types that we do not, and lengths. */
	p.h.type = 63;
	assert_int_equal(check(&p, sizeof(p.h)), -EPROTONOSUPPORT);
	for (type = 0; type <= UINT16_MAX; type++) {
		unsigned min, max, k;
		bool known = false;

		for (k = 0; k < TYPES; k++)
			known |= all_types[k] == type;
		core_wire_fds((uint16_t)type, &min, &max);
		assert_true(min <= max && max <= CORE_WIRE_FDS_MAX);
		if (known) {
			assert_string_not_equal(core_wire_type_name((uint16_t)type), "unknown");
			continue;
		}
		assert_int_equal(max, 0);
		assert_int_equal(core_wire_bytes((uint16_t)type, 0), 0);
		assert_string_equal(core_wire_type_name((uint16_t)type), "unknown");
		core_wire_header_init(&p.h, (uint16_t)type, sizeof(p.h), 0);
		assert_int_equal(check_exact(&p, sizeof(p.h), 0), -EPROTO);
		assert_int_equal(check_exact(&p, sizeof(p.h), 1), -EPROTO);
	}
}

static void test_fds(void **state)
{
	unsigned min, max;

	core_wire_fds(CORE_WIRE_WELCOME, &min, &max);
	assert_int_equal(min, 0); /* control programs */
	assert_int_equal(max, 4);
	core_wire_fds(CORE_WIRE_SEGMENT, &min, &max);
	assert_true(min == 1 && max == 1);
	core_wire_fds(CORE_WIRE_OFFER, &min, &max);
	assert_true(min == 1 && max == 1);
	core_wire_fds(CORE_WIRE_SEGMENT_GET, &min, &max);
	assert_true(min == 0 && max == 0);
}

#define REFUSED(type, count, change)                                      \
	do {                                                              \
		size_t bytes_ = build(&p, type, count);                   \
		assert_int_equal(check(&p, bytes_), 0);                   \
		change;                                                   \
		assert_int_equal(check(&p, bytes_), -EPROTO);             \
	} while (0)
#define ACCEPTED(type, count, change)                                     \
	do {                                                              \
		size_t bytes_ = build(&p, type, count);                   \
		change;                                                   \
		assert_int_equal(check(&p, bytes_), 0);                   \
	} while (0)

static void test_names(void **state)
{
	static union packet p;

	REFUSED(CORE_WIRE_HELLO, 0, memset(p.hello.domain, 'a', CORE_WIRE_NAME_BYTES));
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.domain[0] = '\0');
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.domain[2] = '/');
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.domain[2] = '\n');
	REFUSED(CORE_WIRE_HELLO, 0, memset(p.hello.comm, 'a', CORE_WIRE_NAME_BYTES));
	ACCEPTED(CORE_WIRE_HELLO, 0, memset(p.hello.domain, 'a', CORE_WIRE_NAME_BYTES - 1));
	ACCEPTED(CORE_WIRE_HELLO, 0, p.hello.comm[0] = '\0');
	REFUSED(CORE_WIRE_CTL_ITEM, 0, memset(p.item.domain, 'a', CORE_WIRE_NAME_BYTES));
	REFUSED(CORE_WIRE_CTL_ITEM, 0, p.item.domain[0] = '\0');
	REFUSED(CORE_WIRE_CTL_ITEM, 0, memset(p.item.comm, 'a', CORE_WIRE_NAME_BYTES));
	REFUSED(CORE_WIRE_ERROR, 0, memset(p.error.text, 'a', CORE_WIRE_TEXT_BYTES));
	ACCEPTED(CORE_WIRE_ERROR, 0, memset(p.error.text, 'a', CORE_WIRE_TEXT_BYTES - 1));
	/* A control program is in no domain, or names one. */
	ACCEPTED(CORE_WIRE_HELLO, 0, p.hello.role = CORE_WIRE_ROLE_CONTROL);
	ACCEPTED(CORE_WIRE_HELLO, 0,
		 (p.hello.role = CORE_WIRE_ROLE_CONTROL, p.hello.domain[0] = '\0'));
	REFUSED(CORE_WIRE_HELLO, 0,
		(p.hello.role = CORE_WIRE_ROLE_CONTROL, p.hello.domain[0] = ' '));
}

static void test_fields(void **state)
{
	static union packet p;

	REFUSED(CORE_WIRE_HELLO, 0, p.hello.role = 0);
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.role = 3);
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.flags = 2);
	REFUSED(CORE_WIRE_HELLO, 0, p.hello.reserved = 1);
	REFUSED(CORE_WIRE_SUBMIT, 4, p.submit.reserved = 1);
	REFUSED(CORE_WIRE_TAGS, 4, p.tags.flags = 2);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.reserved = 1);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.op = 0);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.op = CORE_WIRE_OP_LAST + 1);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.flags = 2);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.pid[3] = 0);
	REFUSED(CORE_WIRE_CTL, 4, p.ctl.pid[0] = -1);
	REFUSED(CORE_WIRE_WELCOME, 0, p.welcome.flags = 4);
	REFUSED(CORE_WIRE_WELCOME, 0, p.welcome.who = CORE_CAND_WHO_MAX + 1);
	REFUSED(CORE_WIRE_REQUEST, 0, p.request.op = 0);
	REFUSED(CORE_WIRE_REQUEST, 0, p.request.op = CORE_WIRE_OP_LIST); /* control only */
	REFUSED(CORE_WIRE_REQUEST, 0, p.request.flags = 1);
	REFUSED(CORE_WIRE_RESULT, 0, p.result.report.error = 1);
	REFUSED(CORE_WIRE_RESULT, 0, p.result.report.error = INT32_MIN);
	ACCEPTED(CORE_WIRE_RESULT, 0, p.result.report.error = 0);
	REFUSED(CORE_WIRE_ERROR, 0, p.error.error = 0);
	REFUSED(CORE_WIRE_ERROR, 0, p.error.error = EPERM);
	REFUSED(CORE_WIRE_ERROR, 0, p.error.error = -4096);
	REFUSED(CORE_WIRE_CTL_ITEM, 0, p.item.pid = -1);
	REFUSED(CORE_WIRE_CTL_ITEM, 0, p.item.report.error = 5);
	REFUSED(CORE_WIRE_CTL_END, 0, p.end.error = 5);
	REFUSED(CORE_WIRE_SLOTS, 4, p.slots.reserved = 1);
	/* A reason matters where there is no slot (even elements of build()'s). */
	REFUSED(CORE_WIRE_SLOTS, 4, p.slots.reason[2] = SAMEPAGE_REASON_MAX);
	ACCEPTED(CORE_WIRE_SLOTS, 4, p.slots.reason[2] = SAMEPAGE_REASON_MAX - 1);
	ACCEPTED(CORE_WIRE_SLOTS, 4, p.slots.reason[1] = 255);
	ACCEPTED(CORE_WIRE_SLOTS, 4, (p.slots.slot[4] = CORE_SLOT_NONE, p.slots.reason[4] = 255));
}

static void test_op_names(void **state)
{
	assert_string_equal(core_wire_op_name(CORE_WIRE_OP_LOOK), "look");
	assert_string_equal(core_wire_op_name(CORE_WIRE_OP_LIST), "list");
	assert_string_equal(core_wire_op_name(0), "unknown");
	assert_string_equal(core_wire_op_name(CORE_WIRE_OP_LAST + 1), "unknown");
	assert_string_equal(core_wire_op_name(UINT32_MAX), "unknown");
}

/* Any address will do (UBSan). */
static void test_unaligned(void **state)
{
	static union packet p;
	static unsigned char shifted[sizeof(p) + 8];
	unsigned k, offset;

	for (k = 0; k < TYPES; k++) {
		size_t bytes = build(&p, all_types[k], count_max(all_types[k]));

		for (offset = 1; offset < 8; offset++) {
			memcpy(shifted + offset, &p, bytes);
			assert_int_equal(core_wire_check(shifted + offset, bytes,
							 to_broker(all_types[k])), 0);
		}
	}
}

/* What a receiver relies on, asked of a packet that was accepted. */
static void rely_on(const union packet *p, size_t bytes)
{
	union packet *q = (union packet *)(uintptr_t)p;
	uint32_t i;

	assert_int_equal(p->h.bytes, bytes);
	if (count_of(q)) {
		assert_true(*count_of(q) <= count_max(p->h.type));
		assert_int_equal(core_wire_bytes(p->h.type, *count_of(q)), bytes);
	}
	switch (p->h.type) {
	case CORE_WIRE_HELLO:
		assert_true(core_domain_name_valid(p->hello.domain) ||
			    p->hello.role == CORE_WIRE_ROLE_CONTROL);
		assert_true(strnlen(p->hello.comm, CORE_WIRE_NAME_BYTES) < CORE_WIRE_NAME_BYTES);
		break;
	case CORE_WIRE_CTL:
		assert_in_range(p->ctl.op, 1, CORE_WIRE_OP_LAST);
		for (i = 0; i < p->ctl.count; i++)
			assert_true(p->ctl.pid[i] > 0);
		break;
	case CORE_WIRE_SLOTS:
		for (i = 0; i < p->slots.count; i++)
			assert_true(p->slots.slot[i] != CORE_SLOT_NONE ||
				    p->slots.reason[i] < SAMEPAGE_REASON_MAX);
		break;
	case CORE_WIRE_REQUEST:
		assert_in_range(p->request.op, 1, CORE_WIRE_OP_STATS);
		break;
	case CORE_WIRE_ERROR:
		assert_true(p->error.error < 0);
		assert_true(strnlen(p->error.text, CORE_WIRE_TEXT_BYTES) < CORE_WIRE_TEXT_BYTES);
		break;
	case CORE_WIRE_CTL_ITEM:
		assert_true(core_domain_name_valid(p->item.domain));
		assert_true(strnlen(p->item.comm, CORE_WIRE_NAME_BYTES) < CORE_WIRE_NAME_BYTES);
		break;
	default:
		break;
	}
}

static void fuzz_one(const union packet *p, size_t bytes)
{
	unsigned direction;

	for (direction = 0; direction < 2; direction++) {
		if (check_exact(p, bytes, (int)direction) == 0)
			rely_on(p, bytes);
	}
}

static void test_fuzz(void **state)
{
	static union packet p;
	unsigned round, k;
	size_t bit;

	/* Each bit of the first 128 bytes alone ... */
	for (k = 0; k < TYPES; k++) {
		size_t bytes = build(&p, all_types[k], count_max(all_types[k]) ? 5 : 0);

		for (bit = 0; bit < bytes * 8 && bit < 1024; bit++) {
			p.raw[bit / 8] ^= (unsigned char)(1u << bit % 8);
			fuzz_one(&p, bytes);
			p.raw[bit / 8] ^= (unsigned char)(1u << bit % 8);
		}
	}
	/* ... and a few at random, with a random length for some. */
	for (round = 0; round < 200000; round++) {
		uint64_t r = unit_random(&random_state);
		uint16_t type = all_types[r % TYPES];
		uint32_t count = count_max(type) ? (uint32_t)(r >> 8) % 40 : 0;
		size_t bytes = build(&p, type, count);
		unsigned flips = 1 + (unsigned)(r >> 32) % 6;

		while (flips--) {
			uint64_t f = unit_random(&random_state);
			size_t span = f & 1 ? bytes : sizeof(p.h) + 16;

			if (span > bytes)
				span = bytes;
			p.raw[(f >> 8) % span] ^= (unsigned char)(1u << (f >> 4) % 8);
		}
		if (r >> 60 == 0) {
			bytes = (r >> 40) % 300;
			p.h.bytes = (uint32_t)bytes;
		}
		fuzz_one(&p, bytes);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_truncated_and_padded),
		cmocka_unit_test(test_counts),
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_fds),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_op_names),
		cmocka_unit_test(test_unaligned),
		cmocka_unit_test(test_fuzz),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
