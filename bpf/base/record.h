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

static __always_inline struct settings *current_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/*
 * Before 5.12 there are no atomic instructions that give the old value, and an object that has one
 * is refused whole: it is compiled without for those kernels. There programs are not preempted, and
 * an interrupt that comes between two instructions ends before the second.
 */
#ifdef BEFORE_5_12
static __always_inline u64 take(u64 *busy)
{
	u64 before = *(volatile u64 *)busy;

	*(volatile u64 *)busy = 1;
	return before;
}

static __always_inline u64 next_number(u64 *last)
{
	return ++*last;
}
#else
static __always_inline u64 take(u64 *busy)
{
	return __sync_lock_test_and_set(busy, 1);
}

static __always_inline u64 next_number(u64 *last)
{
	return __sync_fetch_and_add(last, 1) + 1;
}
#endif

/* Claimed by exchange: an interrupt, or a task that preempts this one, takes the next slot. */
static __always_inline struct scratch *claim_slot(u32 slot)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &slot);

	if (!s || take(&s->busy))
		return NULL;
	s->slot = slot;
	return s;
}

static __always_inline void release(struct scratch *s)
{
	s->busy = 0;
}

/* For a global function, which takes no pointers: the slot that its caller has claimed. */
static __always_inline struct scratch *scratch_of(u32 slot)
{
	return bpf_map_lookup_elem(&scratches, &slot);
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

/* Whether this type has used up its share of the second, or of a ring that is filling. */
static __always_inline bool over_limit(struct settings *settings, u8 type)
{
	u32 limit = settings->limit[type], ring_limit = settings->ring_limit[type], zero = 0;
	struct rate *rate;
	u64 second;

	if (ring_limit && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > ring_limit)
		return true;
	if (!limit)
		return false;
	rate = bpf_map_lookup_elem(&rates, &zero);
	if (!rate)
		return false;
	second = bpf_ktime_get_boot_ns() / 1000000000;
	if (rate->second[type] != second) {
		rate->second[type] = second;
		rate->count[type] = 0;
	}
	return ++rate->count[type] > limit;
}

/* Counts an event that was to be told; its number on this CPU. */
static __always_inline u64 count_generated(struct counters *count, u8 type)
{
	__sync_fetch_and_add(&count->generated[type], 1);
	return next_number(&count->sequence);
}

/* For an event that is lost before its record was begun. */
#define COUNT_LOST(type, member)                                       \
	do {                                                           \
		struct counters *lost_ = counters_of_cpu();            \
		if (lost_) {                                           \
			count_generated(lost_, type);                  \
			__sync_fetch_and_add(&lost_->member[type], 1); \
		}                                                      \
	} while (0)

/* Whether the event has to be held back; then it is counted so. */
static __always_inline bool held_back(u8 type)
{
	struct settings *settings = current_settings();

	if (!settings || !over_limit(settings, type))
		return false;
	COUNT_LOST(type, throttled);
	return true;
}

/* Begins a record, whatever the limits. NULL: the event is lost, and counted so. */
static __always_inline struct scratch *begin_unlimited(u8 type, u64 *at)
{
	struct wire_header *header;
	struct scratch *s;

	s = claim();
	if (!s) {
		COUNT_LOST(type, lost_scratch_busy);
		return NULL;
	}
	header = (void *)s->record;
	wire_header_tags(header);
	WIRE_PUT(header, boottime_ns, bpf_ktime_get_boot_ns());
	WIRE_PUT(header, cpu, bpf_get_smp_processor_id());
	WIRE_PUT(header, flags, 0);
	WIRE_PUT(header, type, type);
	*at = sizeof(*header);
	return s;
}

/* NULL: the event is held back or lost, and counted so. */
static __always_inline struct scratch *begin(u8 type, u64 *at)
{
	return held_back(type) ? NULL : begin_unlimited(type, at);
}

static __always_inline void flag(struct scratch *s, u32 bit)
{
	((struct wire_header *)s->record)->flags |= bit;
}

/*
 * Sends without a wakeup: user space drains on a timer. A wakeup per event costs many times what
 * the event costs. A record that was begun and is released without this was never generated.
 */
static __always_inline void submit(struct scratch *s, u8 type, u64 length)
{
	struct counters *count = counters_of_cpu();

	BARRIER(length);
	if (count) {
		WIRE_PUT((struct wire_header *)s->record, cpu_sequence,
			 count_generated(count, type));
		if (length > RECORD_BYTES)
			__sync_fetch_and_add(&count->lost_too_big[type], 1);
		else if (bpf_ringbuf_output(&events, s->record, length, BPF_RB_NO_WAKEUP))
			__sync_fetch_and_add(&count->lost_ring_full[type], 1);
	}
	release(s);
}

/* Where a field behind the two processes may begin at most, and the mask that says so. */
#define BODY_AT   12288
#define BODY_MASK 16383

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

/* Tag of the body that an event of a type from THROTTLED on has: they have the same order. */
#define BODY_NUMBER(type) ((u32)(type) + 9)
#define BODY_TAG(type)                                        \
	((u16)(((BODY_NUMBER(type) << 3 | 2) & 0x7f) | 0x80 | \
	       (BODY_NUMBER(type) << 3 | 2) >> 7 << 8))
_Static_assert(BODY_TAG(TOCSIN_EVENT_TYPE_THROTTLED) == TOCSIN_TAG_EVENT_THROTTLED, "first body");
_Static_assert(BODY_TAG(TOCSIN_EVENT_TYPE_DNS_ANSWER) == TOCSIN_TAG_EVENT_DNS_ANSWER, "last body");

/*
 * Closes a body that was begun at `begin` with room for a long_field in front; `at` is its end.
 * Returns the end of the record, past RECORD_BYTES where the body did not fit.
 */
static __always_inline u64 close_body(struct scratch *s, u64 begin, u64 at, u16 tag)
{
	struct long_field *body;

	BARRIER(begin);
	if (begin > BODY_AT || at > RECORD_BYTES)
		return RECORD_BYTES + 1;
	BOUND(begin, BODY_MASK);
	body = (void *)(s->record + begin);
	body->tag = tag;
	put_length(body->length, at - begin - sizeof(*body));
	return at;
}

#endif
