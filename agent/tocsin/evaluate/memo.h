/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Outcomes by what was looked at: the type of an event and its piece of the scan buffer.
 *
 * A table of fixed size. A piece stands in one of MEMO_PROBES places behind its hash and is compared
 * as a whole, so pieces that are made to collide cost a scan, not a wrong outcome.
 */
#ifndef TOCSIN_EVALUATE_MEMO_H
#define TOCSIN_EVALUATE_MEMO_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { MEMO_ENTRIES = 1 << 16, MEMO_PROBES = 8, MEMO_BYTES = 8 << 20 };
/* The outcome of a piece that is not known. */
#define MEMO_UNKNOWN UINT32_MAX

struct memo_entry {
	uint64_t hash; /* 0: free */
	uint32_t offset;
	uint32_t size;
	uint32_t outcome;
	uint32_t type;
};

struct memo {
	uint32_t used; /* of `bytes` */
	uint32_t full; /* a piece did not fit */
	struct memo_entry entries[MEMO_ENTRIES];
	uint8_t bytes[MEMO_BYTES];
};

static inline uint64_t memo_mix(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
	return hash ^ hash >> 32;
}

/* Never 0. */
static inline uint64_t memo_hash(uint32_t type, const uint8_t *piece, size_t size)
{
	uint64_t word, hash = memo_mix(type, size);

	for (; size >= sizeof(word); piece += sizeof(word), size -= sizeof(word)) {
		memcpy(&word, piece, sizeof(word));
		hash = memo_mix(hash, word);
	}
	word = 0;
	memcpy(&word, piece, size);
	return memo_mix(hash, word) | 1;
}

static inline struct memo_entry *memo_place(struct memo *memo, uint64_t hash, size_t probe)
{
	return &memo->entries[((hash >> 20) + probe) % MEMO_ENTRIES];
}

static inline int memo_holds(const struct memo *memo, const struct memo_entry *entry, uint64_t hash,
			     uint32_t type, const uint8_t *piece, size_t size)
{
	return entry->hash == hash && entry->type == type && entry->size == size &&
	       !memcmp(memo->bytes + entry->offset, piece, size);
}

/* What is known of a piece, or MEMO_UNKNOWN. */
static inline uint32_t memo_outcome(struct memo *memo, uint32_t type, const uint8_t *piece,
				    size_t size)
{
	uint64_t hash = memo_hash(type, piece, size);

	for (size_t probe = 0; probe < MEMO_PROBES; probe++) {
		const struct memo_entry *entry = memo_place(memo, hash, probe);

		if (!entry->hash)
			break;
		if (memo_holds(memo, entry, hash, type, piece, size))
			return entry->outcome;
	}
	return MEMO_UNKNOWN;
}

#endif
