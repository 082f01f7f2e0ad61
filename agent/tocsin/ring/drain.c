// SPDX-License-Identifier: Apache-2.0
/*
 * Drains a BPF ring buffer in bulk: each record becomes an `events` field of a Batch. Reading and
 * freeing are two steps, so that a record is freed only when it has been handed on.
 *
 * The layout is the kernel's (BPF_MAP_TYPE_RINGBUF): a page with the consumer's position, a page
 * with the producer's, the data twice in a row. A record is a length word (bit 31: being written,
 * bit 30: discarded), a word for the kernel, the data, padded to 8.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUSY          (1U << 31)
#define DISCARDED     (1U << 30)
#define RECORD_HEADER 8
/* Tag of Batch.events and the longest varint of a record's length. */
#define FRAME_TAG   0x0a
#define FRAME_BYTES 6
/* An Event begins with boottime_ns, a fixed64 in field 1, and has a header of 29 bytes at least. */
#define EVENT_TAG 0x09
#define EVENT_MIN 29

struct tocsin_ring {
	uint64_t *consumer;
	const uint64_t *producer;
	const uint8_t *data;
	uint64_t size;
	long page;
};

struct tocsin_drained {
	uint64_t end;
	uint64_t length;
	uint32_t count;
	uint32_t malformed;
};

/* Maps the ring; NULL with errno when the kernel refuses. `size` is the map's max_entries. */
struct tocsin_ring *tocsin_ring_open(int fd, uint64_t size)
{
	long page = sysconf(_SC_PAGESIZE);
	struct tocsin_ring *ring = calloc(1, sizeof(*ring));
	uint8_t *pages;

	if (!ring)
		return NULL;
	ring->consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ring->consumer == MAP_FAILED) {
		free(ring);
		return NULL;
	}
	pages = mmap(NULL, page + 2 * size, PROT_READ, MAP_SHARED, fd, page);
	if (pages == MAP_FAILED) {
		munmap(ring->consumer, page);
		free(ring);
		return NULL;
	}
	ring->producer = (const uint64_t *)pages;
	ring->data = pages + page;
	ring->size = size;
	ring->page = page;
	return ring;
}

void tocsin_ring_close(struct tocsin_ring *ring)
{
	munmap((void *)ring->producer, ring->page + 2 * ring->size);
	munmap(ring->consumer, ring->page);
	free(ring);
}

uint64_t tocsin_ring_consumer(const struct tocsin_ring *ring)
{
	return __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
}

uint64_t tocsin_ring_producer(const struct tocsin_ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
}

/* Gives everything before `position` back to the kernel. */
void tocsin_ring_commit(struct tocsin_ring *ring, uint64_t position)
{
	__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
}

static size_t frame(uint8_t *to, const uint8_t *record, uint32_t length)
{
	uint8_t *at = to;
	uint32_t rest = length;

	*at++ = FRAME_TAG;
	for (; rest > 0x7f; rest >>= 7)
		*at++ = rest | 0x80;
	*at++ = rest;
	memcpy(at, record, length);
	return at + length - to;
}

/*
 * Copies whole records from position `from` on, until `capacity` is used, a record is still being
 * written, or there are no more. Records that are no event are left out and counted.
 */
void tocsin_ring_drain(const struct tocsin_ring *ring, uint64_t from, uint8_t *out,
		       uint64_t capacity, struct tocsin_drained *drained)
{
	uint64_t producer = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE), at = from;

	memset(drained, 0, sizeof(*drained));
	while (at < producer) {
		const uint8_t *record = ring->data + (at & (ring->size - 1));
		uint32_t header = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t length = header & ~(BUSY | DISCARDED);

		if (header & BUSY || length > ring->size ||
		    drained->length + length + FRAME_BYTES > capacity)
			break;
		record += RECORD_HEADER;
		if (header & DISCARDED) {
			/* nothing was sent */
		} else if (length < EVENT_MIN || record[0] != EVENT_TAG) {
			drained->malformed++;
		} else {
			drained->length += frame(out + drained->length, record, length);
			drained->count++;
		}
		at += ((uint64_t)length + RECORD_HEADER + 7) & ~7ULL;
	}
	drained->end = at;
}
