/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading protobuf's wire format from untrusted bytes: what framing.c and project.c share.
 * Numbers: https://protobuf.dev/programming-guides/encoding/
 */
#ifndef TOCSIN_RECORDS_WIRE_H
#define TOCSIN_RECORDS_WIRE_H

#include <stddef.h>
#include <stdint.h>

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

/* Behind the number, NULL when it is cut or longer than 10 bytes. */
static inline const uint8_t *read_varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	uint64_t result = 0;

	if (at < end && !(*at & 0x80)) {
		*value = *at;
		return at + 1;
	}
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

/* Behind a field's tag, NULL when it is cut or has number 0. */
static inline const uint8_t *read_tag(const uint8_t *at, const uint8_t *end, uint32_t *tag)
{
	uint64_t raw;

	at = read_varint(at, end, &raw);
	if (!at || raw >> 3 == 0 || raw > UINT32_MAX)
		return NULL;
	*tag = (uint32_t)raw;
	return at;
}

#endif
