// SPDX-License-Identifier: Apache-2.0
/*
 * Index of a serialised Batch: where each event stands, its type, and where the header stands.
 *
 * The input is hostile. Every read is checked against the end of the buffer; nothing is written
 * beyond `capacity`. The walk is one pass and allocates nothing.
 */
#include "wire.h"

/* Field numbers of proto/tocsin/api/event/v1. */
enum { BATCH_HEADER = 2, EVENT_TYPE = 5 };
enum { MALFORMED = -1, NO_ROOM = -2, SECOND_HEADER = -3 };

/* Behind the value of a field, NULL when it does not end inside the buffer or is no known wire type. */
static const uint8_t *skip_value(const uint8_t *at, const uint8_t *end, unsigned wire)
{
	uint64_t size;

	switch (wire) {
	case WIRE_VARINT:
		return read_varint(at, end, &size);
	case WIRE_FIXED64:
		return end - at >= 8 ? at + 8 : NULL;
	case WIRE_FIXED32:
		return end - at >= 4 ? at + 4 : NULL;
	case WIRE_BYTES:
		at = read_varint(at, end, &size);
		return at && size <= (uint64_t)(end - at) ? at + size : NULL;
	default:
		return NULL;
	}
}

/* The event's type (0 when it has none or one above 255), -1 when the event is malformed. */
static int event_type(const uint8_t *at, const uint8_t *end)
{
	uint64_t value;
	uint32_t tag;
	int type = 0;

	while (at < end) {
		at = read_tag(at, end, &tag);
		if (!at)
			return MALFORMED;
		if (tag == (EVENT_TYPE << 3 | WIRE_VARINT)) {
			at = read_varint(at, end, &value);
			type = value <= 255 ? (int)value : 0;
		} else {
			at = skip_value(at, end, tag & 7);
		}
		if (!at)
			return MALFORMED;
	}
	return type;
}

/*
 * Number of events; fills offsets, lengths and types, and header[0..1] with the header's offset
 * and length (0, 0 when there is none). MALFORMED, NO_ROOM or SECOND_HEADER otherwise.
 */
int64_t tocsin_batch_index(const uint8_t *batch, size_t size, uint32_t *offsets, uint32_t *lengths,
			   uint8_t *types, size_t capacity, uint32_t header[2])
{
	const uint8_t *at = batch, *end = batch + size;
	size_t count = 0;

	header[0] = header[1] = 0;
	if (size > UINT32_MAX)
		return MALFORMED;
	while (at < end) {
		const uint8_t *value;
		uint64_t length;
		uint32_t tag;

		at = read_tag(at, end, &tag);
		if (!at)
			return MALFORMED;
		value = at;
		at = skip_value(at, end, tag & 7);
		if (!at)
			return MALFORMED;
		if ((tag & 7) != WIRE_BYTES || tag >> 3 > BATCH_HEADER)
			continue;
		value = read_varint(value, at, &length);
		if (tag >> 3 == BATCH_HEADER) {
			if (header[0])
				return SECOND_HEADER;
			header[0] = (uint32_t)(value - batch);
			header[1] = (uint32_t)length;
			continue;
		}
		if (count == capacity)
			return NO_ROOM;
		int type = event_type(value, at);
		if (type < 0)
			return MALFORMED;
		offsets[count] = (uint32_t)(value - batch);
		lengths[count] = (uint32_t)length;
		types[count++] = (uint8_t)type;
	}
	return (int64_t)count;
}
