/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DNS messages (RFC 1035). The message stands in the scratch's path area; nothing in it is believed:
 * each offset is compared with the length of what was read, and each loop ends by count.
 */
#ifndef TOCSIN_EXTRACT_DNS_H
#define TOCSIN_EXTRACT_DNS_H

#include "base/record.h"

#define DNS_HEAD_BYTES 12
#define DNS_BYTES      TOCSIN_MAX_DNS_MESSAGE
/* Above DNS_BYTES and within the path area: offsets are masked with it. */
#define DNS_MASK 2047
/* Labels of the longest name: one byte each, and a length. */
#define DNS_LABELS     127
#define DNS_LABEL_BITS 0xc0
#define DNS_LABEL_MASK 0x3f
/* Text of the longest name. */
#define DNS_TEXT_BYTES 253
/* Records of an answer that are looked at. */
#define DNS_RECORDS      16
#define DNS_RECORD_BYTES 10
#define DNS_TYPE_A       1
#define DNS_TYPE_AAAA    28
#define DNS_CLASS_IN     1

static __always_inline u32 dns_byte(struct scratch *s, u64 at)
{
	return s->path[at & DNS_MASK];
}

static __always_inline u32 dns_word(struct scratch *s, u64 at)
{
	return dns_byte(s, at) << 8 | dns_byte(s, at + 1);
}

/*
 * Writes the name of the question, as text, to `at` in the record. Returns its length, and << 16
 * where it ends in the message of `length` bytes: 0 when it is cut there, or points elsewhere,
 * which a first name cannot; then the text is what there was.
 */
__noinline u32 write_dns_name(u32 slot, u32 at, u32 length)
{
	struct scratch *s = scratch_of(slot);
	u64 offset = DNS_HEAD_BYTES, text = 0, label, to = at;

	BARRIER(to);
	if (!s || to > BODY_AT)
		return 0;
	BOUND(to, BODY_MASK);
	for (int i = 0; i <= DNS_LABELS; i++) {
		if (offset >= length)
			return text;
		label = dns_byte(s, offset);
		if (!label)
			return (offset + 1) << 16 | text;
		offset++;
		if (label & DNS_LABEL_BITS || offset + label > length ||
		    text + label + 1 > DNS_TEXT_BYTES)
			return text;
		BOUND(text, 0xff);
		if (text)
			s->record[to + text++] = '.';
		bpf_probe_read_kernel(s->record + to + text, label & DNS_LABEL_MASK,
				      s->path + (offset & DNS_MASK));
		text += label;
		offset += label;
	}
	return text;
}

/* Where the name at `offset` ends; a pointer to another name ends it. 0: it does not. */
__noinline u32 skip_dns_name(u32 slot, u32 offset, u32 length)
{
	struct scratch *s = scratch_of(slot);
	u32 label;

	if (!s)
		return 0;
	for (int i = 0; i <= DNS_LABELS; i++) {
		if (offset >= length)
			return 0;
		label = dns_byte(s, offset);
		if (!label)
			return offset + 1;
		if (label & DNS_LABEL_BITS)
			return offset + 2;
		offset += 1 + label;
	}
	return 0;
}

/*
 * Writes the address of the record at `offset` to `at` in the record of the event, with its length
 * in front, if it is of type A or AAAA. Returns how much was written, and << 16 where the record
 * ends: 0 when it is not whole. A function of its own: its results are no constants for the
 * verifier, which would follow each sequence of types.
 */
__noinline u32 write_dns_address(u32 slot, u32 at, u32 offset, u32 length)
{
	struct scratch *s = scratch_of(slot);
	u32 type, class, size, written = 0;
	u64 to = at;

	offset = skip_dns_name(slot, offset, length);
	BARRIER(to);
	if (!s || to > BODY_AT || !offset || offset + DNS_RECORD_BYTES > length)
		return 0;
	BOUND(to, BODY_MASK);
	type = dns_word(s, offset);
	class = dns_word(s, offset + 2);
	size = dns_word(s, offset + 8);
	offset += DNS_RECORD_BYTES;
	if (offset + size > length)
		return 0;
	if (class == DNS_CLASS_IN && type == DNS_TYPE_A && size == 4) {
		s->record[to] = 4;
		bpf_probe_read_kernel(s->record + to + 1, 4, s->path + (offset & DNS_MASK));
		written = 1 + 4;
	} else if (class == DNS_CLASS_IN && type == DNS_TYPE_AAAA && size == 16) {
		s->record[to] = 16;
		bpf_probe_read_kernel(s->record + to + 1, 16, s->path + (offset & DNS_MASK));
		written = 1 + 16;
	}
	return (offset + size) << 16 | written;
}

/*
 * Writes the addresses of the A and AAAA records from `offset` on to `at` in the record of the
 * event. Returns the length of them all.
 */
static __always_inline u32 write_dns_addresses(struct scratch *s, u32 at, u32 offset, u32 length)
{
	u32 records = dns_word(s, 6), used = 0, done;

	for (u32 i = 0; i < DNS_RECORDS; i++) {
		if (i >= records)
			break;
		done = write_dns_address(s->slot, at + used, offset, length);
		if (!done)
			break;
		used += done & 0xffff;
		offset = done >> 16;
	}
	return used;
}

#endif
