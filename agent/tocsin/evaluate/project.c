// SPDX-License-Identifier: Apache-2.0
/*
 * Projection of a batch into the scan buffer: for each event whose type a rule wants, every field
 * that rules use as START value END, where the value is the text that rules see.
 *
 * What a value looks like is defined in evaluate/semantics.py, the marks in evaluate/marker.py; a
 * test compares this file with both. Which fields there are comes in as a table, once for a release:
 * nothing here knows one. As in protobuf, the last value of a field counts, a message that stands
 * twice is merged, and a second body replaces the first.
 *
 * The input is hostile: every read is checked against the end of its message, every write against
 * the capacity.
 */
#include <arpa/inet.h>
#include <string.h>

#include "../records/wire.h"
#include "memo.h"

/* tocsin.records.field.Presentation */
enum { PLAIN, ARGV, IP, USER, PROTOCOL, INITIATED, HEX, FLAGS, PATH, ERRNO, ENUM, IPS, SIGNAL };
enum { MALFORMED = -1, NO_ROOM = -2 };
enum { MARK_BYTES = 3, NUMBER_BYTES = 24 };
/* An address in a list of them takes 5 bytes at least, and 16 as text with what joins it. */
enum { TEXT_PER_LISTED_BYTE = 4 };
/* Message fields of Event have numbers below the first, leaves of those messages below the second. */
enum { MAX_MESSAGES = 64, MAX_LEAVES = 64, MAX_ROWS = 128, MAX_TYPES = 256 };

/* A field that rules use. */
struct row {
	uint8_t message; /* field number in Event */
	uint8_t leaf;    /* field number in that message */
	uint8_t wire;
	uint8_t presentation;
	uint16_t number; /* in the release's list of fields, for the marks */
	uint16_t event_type;
};

struct user {
	uint32_t uid;
	uint32_t offset; /* of the name, in `names` */
	uint32_t size;
};

/* What numbers are shown as. */
struct names {
	const struct user *users; /* ordered by uid */
	size_t user_count;
	const uint8_t *user_names;
	const char *const *errors; /* by errno; NULL where there is none */
	size_t error_count;
};

/* The rows of one event type. Several may show one leaf, under different names. */
struct plan {
	struct row rows[MAX_ROWS];
	uint8_t value[MAX_ROWS]; /* where a row's value is kept: at the first row of its leaf */
	uint8_t slot[MAX_MESSAGES][MAX_LEAVES]; /* 0: no row, else the leaf's first row + 1 */
	unsigned count;
};

/* The plans of a release. */
struct plans {
	uint8_t plan_of[MAX_TYPES]; /* 0: events of no interest, else a plan + 1 */
	struct plan plans[];
};

struct value {
	const uint8_t *bytes; /* of a bytes field, NULL when it has not been seen */
	uint64_t number;      /* of the bytes, or the number itself */
};

struct output {
	uint8_t *at, *end;
};

/* Reads one field: its tag, and its number or its bytes. NULL when it does not end before `end`. */
static inline const uint8_t *read_field(const uint8_t *at, const uint8_t *end, uint32_t *tag,
					struct value *value)
{
	uint64_t size;
	uint32_t word;

	at = read_tag(at, end, tag);
	if (!at)
		return NULL;
	value->bytes = NULL;
	switch (*tag & 7) {
	case WIRE_VARINT:
		return read_varint(at, end, &value->number);
	case WIRE_FIXED64:
		if (end - at < 8)
			return NULL;
		memcpy(&value->number, at, 8);
		return at + 8;
	case WIRE_FIXED32:
		if (end - at < 4)
			return NULL;
		memcpy(&word, at, 4);
		value->number = word;
		return at + 4;
	case WIRE_BYTES:
		at = read_varint(at, end, &size);
		if (!at || size > (uint64_t)(end - at))
			return NULL;
		value->bytes = at;
		value->number = size;
		return at + size;
	default:
		return NULL;
	}
}

static int read_message(const uint8_t *at, const uint8_t *end, const struct plan *plan,
			unsigned message, struct value *values)
{
	struct value value;
	uint32_t tag;

	while (at < end) {
		at = read_field(at, end, &tag, &value);
		if (!at)
			return MALFORMED;
		uint32_t leaf = tag >> 3;
		unsigned slot = leaf < MAX_LEAVES ? plan->slot[message][leaf] : 0;
		if (slot && plan->rows[slot - 1].wire == (tag & 7))
			values[slot - 1] = value;
	}
	return 0;
}

static void clear_body(const struct plan *plan, uint64_t bodies, struct value *values)
{
	for (unsigned i = 0; i < plan->count; i++)
		if (bodies >> plan->rows[i].message & 1)
			values[i] = (struct value){0};
}

/* Fills the values and the set of messages that the event has. */
static int read_event(const uint8_t *at, const uint8_t *end, const struct plan *plan,
		      uint64_t bodies, struct value *values, uint64_t *seen)
{
	struct value value;
	uint32_t tag;

	*seen = 0;
	memset(values, 0, plan->count * sizeof(*values));
	while (at < end) {
		at = read_field(at, end, &tag, &value);
		if (!at)
			return MALFORMED;
		uint32_t message = tag >> 3;
		if ((tag & 7) != WIRE_BYTES || message >= MAX_MESSAGES)
			continue;
		uint64_t bit = UINT64_C(1) << message;
		if (bodies & bit && *seen & bodies & ~bit) {
			clear_body(plan, bodies, values);
			*seen &= ~bodies;
		}
		*seen |= bit;
		if (read_message(value.bytes, value.bytes + value.number, plan, message, values))
			return MALFORMED;
	}
	return 0;
}

static inline int room(const struct output *out, uint64_t size)
{
	return size <= (uint64_t)(out->end - out->at);
}

static void put(struct output *out, const void *bytes, size_t size)
{
	memcpy(out->at, bytes, size);
	out->at += size;
}

static void put_decimal(struct output *out, uint64_t number)
{
	uint8_t text[NUMBER_BYTES];
	size_t at = sizeof(text);

	do
		text[--at] = (uint8_t)('0' + number % 10);
	while (number /= 10);
	put(out, text + at, sizeof(text) - at);
}

static void put_hex(struct output *out, uint64_t number)
{
	uint8_t text[NUMBER_BYTES];
	size_t at = sizeof(text);

	do
		text[--at] = (uint8_t) "0123456789abcdef"[number & 15];
	while (number >>= 4);
	put(out, "0x", 2);
	put(out, text + at, sizeof(text) - at);
}

/* An address of 4 or 16 bytes as text; false when it has another size. */
static int put_address(struct output *out, const uint8_t *bytes, uint64_t size)
{
	char text[INET6_ADDRSTRLEN];

	if (size != 4 && size != 16)
		return 0;
	if (!inet_ntop(size == 4 ? AF_INET : AF_INET6, bytes, text, sizeof(text)))
		return 0;
	put(out, text, strlen(text));
	return 1;
}

/* Addresses, each behind its size in one byte, joined by ';'; false when the bytes are no such list. */
static int put_addresses(struct output *out, const struct value *value)
{
	const uint8_t *at = value->bytes, *end = at + value->number;

	while (at < end) {
		uint8_t size = *at++;

		if (size > end - at || !put_address(out, at, size))
			return 0;
		at += size;
		if (at < end)
			put(out, ";", 1);
	}
	return 1;
}

/* Whether a path is shown as it is: relative, or without anything to collapse. */
static int is_plain_path(const uint8_t *at, const uint8_t *end)
{
	if (*at != '/' || end - at == 1)
		return 1;
	while (at) {
		if (++at == end || *at == '/' || *at == '.')
			return 0;
		at = memchr(at, '/', (size_t)(end - at));
	}
	return 1;
}

/* A path without empty components, "." and "..", by its text alone: links are not followed. */
static void put_path(struct output *out, const struct value *value)
{
	const uint8_t *at = value->bytes, *end = at + value->number;
	uint8_t *root = out->at;

	if (is_plain_path(at, end)) {
		put(out, at, value->number);
		return;
	}
	while (at < end) { /* at a slash */
		const uint8_t *part = at + 1;
		const uint8_t *next = memchr(part, '/', (size_t)(end - part));
		size_t size = (size_t)((next ? next : end) - part);

		if (size == 2 && !memcmp(part, "..", 2))
			while (out->at > root && *--out->at != '/')
				;
		else if (size && !(size == 1 && *part == '.'))
			put(out, at, size + 1);
		at = part + size;
	}
	if (out->at == root)
		put(out, "/", 1);
}

static void put_argv(struct output *out, const struct value *value)
{
	size_t size = value->number;
	uint8_t *at = out->at;

	if (size && !value->bytes[size - 1])
		size--;
	put(out, value->bytes, size);
	while ((at = memchr(at, 0, (size_t)(out->at - at))))
		*at++ = ' ';
}

/* Bytes that are not empty, as text; false: absent. The caller has made room. */
static int put_bytes(struct output *out, const struct row *row, const struct value *value)
{
	switch (row->presentation) {
	case IP:
		return put_address(out, value->bytes, value->number);
	case IPS:
		return put_addresses(out, value);
	case ARGV:
		put_argv(out, value);
		return 1;
	case PATH:
		put_path(out, value);
		return 1;
	default:
		put(out, value->bytes, value->number);
		return 1;
	}
}

static const struct user *find_user(const struct names *names, uint64_t uid)
{
	size_t low = 0, high = names->user_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (names->users[middle].uid < uid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < names->user_count && names->users[low].uid == uid ? &names->users[low] : NULL;
}

/* A name and room for the mark behind it: 1 or NO_ROOM. */
static int put_name(struct output *out, const void *name, size_t size)
{
	if (!room(out, (uint64_t)size + MARK_BYTES))
		return NO_ROOM;
	put(out, name, size);
	return 1;
}

/* A number as text: 1 written, 0 absent, NO_ROOM. The caller has made room for NUMBER_BYTES. */
static int put_number(struct output *out, const struct row *row, uint64_t number,
		      const struct names *names)
{
	const struct user *user;

	switch (row->presentation) {
	case USER:
		user = find_user(names, number);
		if (!user)
			break;
		return put_name(out, names->user_names + user->offset, user->size);
	case PROTOCOL:
		if (number != 6 && number != 17)
			break;
		put(out, number == 6 ? "tcp" : "udp", 3);
		return 1;
	case INITIATED:
		if (number == 1)
			put(out, "true", 4);
		else if (number == 2)
			put(out, "false", 5);
		return number == 1 || number == 2;
	case HEX:
		put_hex(out, number);
		return 1;
	case ERRNO:
		if (number >= names->error_count || !names->errors[number])
			break;
		return put_name(out, names->errors[number], strlen(names->errors[number]));
	default:
		break;
	}
	put_decimal(out, number);
	return 1;
}

/* The most bytes that a value can take with its marks, names not counted. */
static uint64_t most_bytes(const struct row *row, const struct value *value)
{
	uint64_t size = row->wire == WIRE_BYTES ? value->number : 0;

	return 2 * MARK_BYTES + INET6_ADDRSTRLEN + NUMBER_BYTES +
	       (row->presentation == IPS ? TEXT_PER_LISTED_BYTE * size : size);
}

static int put_value(struct output *out, const struct row *row, const struct value *value,
		     const struct names *names)
{
	uint8_t high = (uint8_t)(row->number >> 7), low = (uint8_t)(0x80 | (row->number & 0x7f));
	uint8_t start[MARK_BYTES] = {0, (uint8_t)(0x80 | high), low},
		stop[MARK_BYTES] = {0, (uint8_t)(0xc0 | high), low};
	uint8_t *before = out->at;
	int written;

	if (row->wire == WIRE_BYTES && (!value->bytes || !value->number))
		return 0;
	if (!room(out, most_bytes(row, value)))
		return NO_ROOM;
	put(out, start, MARK_BYTES);
	if (row->wire == WIRE_BYTES)
		written = put_bytes(out, row, value);
	else
		written = put_number(
			out, row,
			row->wire == WIRE_VARINT ? (uint32_t)value->number : value->number, names);
	if (written == 1)
		put(out, stop, MARK_BYTES);
	else
		out->at = before;
	return written < 0 ? written : 0;
}

static int add_row(struct plan *plan, const struct row *row)
{
	if (row->message >= MAX_MESSAGES || row->leaf >= MAX_LEAVES || plan->count == MAX_ROWS)
		return NO_ROOM;
	uint8_t *slot = &plan->slot[row->message][row->leaf];
	unsigned i = plan->count++;
	plan->rows[i] = *row;
	if (!*slot)
		*slot = (uint8_t)(i + 1);
	plan->value[i] = (uint8_t)(*slot - 1);
	return 0;
}

/* Bytes that the plans of so many event types take. */
size_t tocsin_plans_size(size_t type_count)
{
	return sizeof(struct plans) + type_count * sizeof(struct plan);
}

/*
 * Fills the plans, which have room for `type_count`: 0, or NO_ROOM when a row has a number, or a type
 * has more rows, than a plan can hold. Rows of other types are left out. At most 255 types.
 */
int tocsin_make_plans(const struct row *rows, size_t row_count, const uint8_t *types,
		      size_t type_count, struct plans *plans)
{
	memset(plans, 0, tocsin_plans_size(type_count));
	for (size_t i = 0; i < type_count; i++)
		plans->plan_of[types[i]] = (uint8_t)(i + 1);
	for (size_t i = 0; i < row_count; i++) {
		if (rows[i].event_type >= MAX_TYPES || !plans->plan_of[rows[i].event_type])
			continue;
		if (add_row(&plans->plans[plans->plan_of[rows[i].event_type] - 1], &rows[i]))
			return NO_ROOM;
	}
	return 0;
}

/* Writes what rules look at in one event: 0, MALFORMED or NO_ROOM. */
static int put_event(struct output *out, const uint8_t *at, const uint8_t *end,
		     const struct plan *plan, uint64_t bodies, const struct names *names)
{
	struct value values[MAX_ROWS];
	uint64_t seen;

	if (read_event(at, end, plan, bodies, values, &seen))
		return MALFORMED;
	for (unsigned i = 0; i < plan->count; i++)
		if (seen >> plan->rows[i].message & 1 &&
		    put_value(out, &plan->rows[i], &values[plan->value[i]], names))
			return NO_ROOM;
	return 0;
}

/*
 * Bytes written to `buffer`. Fills ends[i] with the offset behind the last byte of event i, and
 * outcomes[i] with what `memo` knows of it, else with MEMO_UNKNOWN; an event without a plan has outcome
 * 0. Only what is not known stays in the buffer; others end where the one before does. `bodies` is the
 * set of field numbers of Event's oneof. MALFORMED (then *bad is the event's index) or NO_ROOM
 * otherwise. Offsets and lengths come from tocsin_batch_index for the same batch.
 */
int64_t tocsin_project(const uint8_t *batch, size_t batch_size, const uint32_t *offsets,
		       const uint32_t *lengths, const uint8_t *types, size_t count,
		       const struct plans *plans, uint64_t bodies, const struct names *names,
		       struct memo *memo, uint8_t *buffer, size_t capacity, uint32_t *ends,
		       uint32_t *outcomes, uint64_t *bad)
{
	struct output out = {buffer, buffer + capacity};

	for (size_t i = 0; i < count; i++) {
		unsigned plan = plans->plan_of[types[i]];
		uint8_t *piece = out.at;

		*bad = i;
		outcomes[i] = 0;
		if (plan) {
			if (offsets[i] > batch_size || lengths[i] > batch_size - offsets[i])
				return MALFORMED;
			int problem = put_event(&out, batch + offsets[i],
						batch + offsets[i] + lengths[i],
						&plans->plans[plan - 1], bodies, names);
			if (problem)
				return problem;
			outcomes[i] = memo_outcome(memo, types[i], piece, (size_t)(out.at - piece));
			if (outcomes[i] != MEMO_UNKNOWN)
				out.at = piece;
		}
		ends[i] = (uint32_t)(out.at - buffer);
	}
	return out.at - buffer;
}
