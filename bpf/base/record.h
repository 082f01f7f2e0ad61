/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A record is one serialised Event, made in a scratch area of the CPU and sent in one piece.
 * begin -> append ... -> submit. `at` is always the offset of the next byte: a u64 that is
 * compared before each append, or the verifier loses its bound.
 */
#ifndef TOCSIN_BASE_RECORD_H
#define TOCSIN_BASE_RECORD_H

#include "maps/maps.h"

static __always_inline struct counters *counters_of_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

#define COUNT(member)                                             \
	do {                                                      \
		struct counters *count_ = counters_of_cpu();      \
		if (count_)                                       \
			__sync_fetch_and_add(&count_->member, 1); \
	} while (0)

/* Claimed by exchange: an interrupt, or a task that preempts this one, takes the next slot. */
static __always_inline struct scratch *claim_slot(u32 slot)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &slot);

	if (!s || __sync_lock_test_and_set(&s->busy, 1))
		return NULL;
	s->slot = slot;
	return s;
}

static __always_inline void release(struct scratch *s)
{
	s->busy = 0;
}

static __always_inline struct scratch *claim(void)
{
	struct scratch *s = claim_slot(0);

	if (!s)
		s = claim_slot(1);
	if (!s)
		s = claim_slot(2);
	return s;
}

/* Counts the event as generated, whatever becomes of it; NULL: it is lost, and counted so. */
static __always_inline struct scratch *begin(u8 type, u64 *at)
{
	struct counters *count = counters_of_cpu();
	struct wire_header *header;
	struct scratch *s;
	u64 sequence;

	if (!count)
		return NULL;
	__sync_fetch_and_add(&count->generated[type], 1);
	sequence = __sync_fetch_and_add(&count->sequence, 1) + 1;
	s = claim();
	if (!s) {
		__sync_fetch_and_add(&count->lost_scratch_busy[type], 1);
		return NULL;
	}
	header = (void *)s->record;
	wire_header_tags(header);
	WIRE_PUT(header, boottime_ns, bpf_ktime_get_boot_ns());
	WIRE_PUT(header, cpu_sequence, sequence);
	WIRE_PUT(header, cpu, bpf_get_smp_processor_id());
	WIRE_PUT(header, flags, 0);
	WIRE_PUT(header, type, type);
	*at = sizeof(*header);
	return s;
}

static __always_inline void flag(struct scratch *s, u32 bit)
{
	((struct wire_header *)s->record)->flags |= bit;
}

/*
 * Sends without a wakeup: user space drains on a timer. A wakeup per event costs many times what
 * the event costs.
 */
static __always_inline void submit(struct scratch *s, u8 type, u64 length)
{
	BARRIER(length);
	if (length > RECORD_BYTES)
		COUNT(lost_too_big[type]);
	else if (bpf_ringbuf_output(&events, s->record, length, BPF_RB_NO_WAKEUP))
		COUNT(lost_ring_full[type]);
	release(s);
}

static __always_inline void give_up(struct scratch *s, u8 type)
{
	COUNT(lost_too_big[type]);
	release(s);
}

/* A length of two bytes, also where one would do: it can be written after what it counts. */
static __always_inline void put_length(u8 *to, u64 length)
{
	to[0] = (length & 0x7f) | 0x80;
	to[1] = (length >> 7) & 0x7f;
}

/* Head of a bytes field with a tag of two bytes. */
struct long_field {
	u16 tag;
	u8 length[2];
} __attribute__((packed));

/* Head of a bytes field with a tag of one byte. */
struct short_field {
	u8 tag;
	u8 length[2];
} __attribute__((packed));

#endif
