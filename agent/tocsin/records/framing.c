// SPDX-License-Identifier: Apache-2.0
/*
 * Index of a serialised Batch: where each event stands, its type, and where the header stands.
 *
 * The input is hostile. Every read is checked against the end of the buffer; nothing is written
 * beyond `capacity`. The walk is one pass and allocates nothing.
 */
#include <stddef.h>
#include <stdint.h>

/* Numbers of the wire format; the messages themselves are in proto/tocsin/api/event/v1. */
enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum { BATCH_EVENTS = 1, BATCH_HEADER = 2, EVENT_TYPE = 5 };
enum { MALFORMED = -1, NO_ROOM = -2, SECOND_HEADER = -3 };

/* At most 10 bytes; 0 when it is cut or longer. */
static inline const uint8_t *read_varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	uint64_t result = 0;

	for (unsigned shift = 0; shift < 70 && at < end; shift += 7) {
		uint8_t byte = *at++;

		result |= (uint64_t)(byte & 0x7f) << (shift & 63);
		if (!(byte & 0x80)) {
			*value = result;
			return at;
		}
	}
	return NULL;
}

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
	uint64_t tag, value;
	int type = 0;

	while (at < end) {
		at = read_varint(at, end, &tag);
		if (!at || tag >> 3 == 0 || tag > UINT32_MAX)
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
		uint64_t tag, length;
		const uint8_t *value;

		at = read_varint(at, end, &tag);
		if (!at || tag >> 3 == 0 || tag > UINT32_MAX)
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
