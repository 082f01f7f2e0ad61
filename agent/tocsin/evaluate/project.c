// SPDX-License-Identifier: Apache-2.0
/*
 * Projection of a batch into the scan buffer: for each event whose type a rule wants, every field
 * that rules use as START value END, where the value is the text that rules see.
 *
 * What a value looks like is defined in evaluate/semantics.py, the marks in evaluate/marker.py; a
 * test compares this file with both. Which fields there are comes in as a table: nothing here knows
 * one. As in protobuf, the last value of a field counts, a message that stands twice is merged, and
 * a second body replaces the first.
 *
 * The input is hostile: every read is checked against the end of its message, every write against
 * the capacity.
 */
#include <arpa/inet.h>
#include <string.h>

#include "../records/wire.h"

/* tocsin.records.field.Presentation */
enum { PLAIN, ARGV, IP, USER, PROTOCOL, INITIATED, HEX, FLAGS };
enum { MALFORMED = -1, NO_ROOM = -2 };
enum { MARK_BYTES = 3, NUMBER_BYTES = 24 };
/* Message fields of Event have numbers below this, leaves of those messages below the second. */
enum { MAX_MESSAGES = 32, MAX_LEAVES = 64, MAX_SLOTS = 64 };

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

struct users {
	const struct user *entries; /* ordered by uid */
	size_t count;
	const uint8_t *names;
};

/* The rows of one event type: slot of (message, leaf), 0 for none, else index + 1. */
struct plan {
	const struct row *rows[MAX_SLOTS];
	unsigned count;
	uint8_t slot[MAX_MESSAGES][MAX_LEAVES];
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
		if (slot && plan->rows[slot - 1]->wire == (tag & 7))
			values[slot - 1] = value;
	}
	return 0;
}

static void clear_body(const struct plan *plan, uint32_t bodies, struct value *values)
{
	for (unsigned i = 0; i < plan->count; i++)
		if (bodies >> plan->rows[i]->message & 1)
			values[i] = (struct value){0};
}

/* Fills the values and the set of messages that the event has. */
static int read_event(const uint8_t *at, const uint8_t *end, const struct plan *plan,
		      uint32_t bodies, struct value *values, uint32_t *seen)
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
		uint32_t bit = 1u << message;
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

/* The address as text; false when the bytes are none. */
static int put_address(struct output *out, const struct value *value)
{
	char text[INET6_ADDRSTRLEN];

	if (value->number != 4 && value->number != 16)
		return 0;
	if (!inet_ntop(value->number == 4 ? AF_INET : AF_INET6, value->bytes, text, sizeof(text)))
		return 0;
	put(out, text, strlen(text));
	return 1;
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

static const struct user *find_user(const struct users *users, uint64_t uid)
{
	size_t low = 0, high = users->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (users->entries[middle].uid < uid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < users->count && users->entries[low].uid == uid ? &users->entries[low] : NULL;
}

/* A number as text: 1 written, 0 absent, NO_ROOM. The caller has made room for NUMBER_BYTES. */
static int put_number(struct output *out, const struct row *row, uint64_t number,
		      const struct users *users)
{
	const struct user *user;

	switch (row->presentation) {
	case USER:
		user = find_user(users, number);
		if (!user)
			break;
		if (!room(out, (uint64_t)user->size + MARK_BYTES))
			return NO_ROOM;
		put(out, users->names + user->offset, user->size);
		return 1;
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
	default:
		break;
	}
	put_decimal(out, number);
	return 1;
}

static int put_value(struct output *out, const struct row *row, const struct value *value,
		     const struct users *users)
{
	uint64_t need = 2 * MARK_BYTES + INET6_ADDRSTRLEN + NUMBER_BYTES +
			(row->wire == WIRE_BYTES ? value->number : 0);
	uint8_t high = (uint8_t)(row->number >> 7), low = (uint8_t)(0x80 | (row->number & 0x7f));
	uint8_t start[MARK_BYTES] = {0, (uint8_t)(0x80 | high), low},
		stop[MARK_BYTES] = {0, (uint8_t)(0xc0 | high), low};
	uint8_t *before = out->at;
	int written = 1;

	if (row->wire == WIRE_BYTES && (!value->bytes || !value->number))
		return 0;
	if (!room(out, need))
		return NO_ROOM;
	put(out, start, MARK_BYTES);
	if (row->wire != WIRE_BYTES)
		written = put_number(
			out, row,
			row->wire == WIRE_VARINT ? (uint32_t)value->number : value->number, users);
	else if (row->presentation == IP)
		written = put_address(out, value);
	else if (row->presentation == ARGV)
		put_argv(out, value);
	else
		put(out, value->bytes, value->number);
	if (written == 1)
		put(out, stop, MARK_BYTES);
	else
		out->at = before;
	return written < 0 ? written : 0;
}

/* 0, or MALFORMED when the table has more than this file can hold. */
static int make_plan(const struct row *rows, size_t row_count, unsigned type, struct plan *plan)
{
	memset(plan, 0, sizeof(*plan));
	for (size_t i = 0; i < row_count; i++) {
		const struct row *row = &rows[i];

		if (row->event_type != type)
			continue;
		if (row->message >= MAX_MESSAGES || row->leaf >= MAX_LEAVES ||
		    plan->count == MAX_SLOTS)
			return MALFORMED;
		plan->rows[plan->count++] = row;
		plan->slot[row->message][row->leaf] = (uint8_t)plan->count;
	}
	return 0;
}

/*
 * Bytes written to `buffer`; fills ends[i] with the offset behind the last byte of event i (the same
 * as before for events of no interest). `wanted[type]` says whether events of a type are of interest;
 * `bodies` is the set of field numbers of Event's oneof. MALFORMED (then *bad is the event's index)
 * or NO_ROOM otherwise. Offsets and lengths come from tocsin_batch_index for the same batch.
 */
int64_t tocsin_project(const uint8_t *batch, size_t batch_size, const uint32_t *offsets,
		       const uint32_t *lengths, const uint8_t *types, size_t count,
		       const struct row *rows, size_t row_count, const uint8_t wanted[256],
		       uint32_t bodies, const struct users *users, uint8_t *buffer, size_t capacity,
		       uint32_t *ends, uint64_t *bad)
{
	struct output out = {buffer, buffer + capacity};
	struct plan plans[8];
	int16_t plan_of[256];
	unsigned plan_count = 0;

	memset(plan_of, -1, sizeof(plan_of));
	for (size_t i = 0; i < count; i++) {
		struct value values[MAX_SLOTS];
		uint32_t seen;

		*bad = i;
		if (wanted[types[i]]) {
			if (offsets[i] > batch_size || lengths[i] > batch_size - offsets[i])
				return MALFORMED;
			if (plan_of[types[i]] < 0) {
				if (plan_count == sizeof(plans) / sizeof(plans[0]) ||
				    make_plan(rows, row_count, types[i], &plans[plan_count]))
					return MALFORMED;
				plan_of[types[i]] = (int16_t)plan_count++;
			}
			const struct plan *plan = &plans[plan_of[types[i]]];
			const uint8_t *event = batch + offsets[i];
			if (read_event(event, event + lengths[i], plan, bodies, values, &seen))
				return MALFORMED;
			for (unsigned j = 0; j < plan->count; j++) {
				if (seen >> plan->rows[j]->message & 1 &&
				    put_value(&out, plan->rows[j], &values[j], users))
					return NO_ROOM;
			}
		}
		ends[i] = (uint32_t)(out.at - buffer);
	}
	return out.at - buffer;
}
