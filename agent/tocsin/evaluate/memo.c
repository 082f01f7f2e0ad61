// SPDX-License-Identifier: Apache-2.0
/* Filling the table of memo.h; project.c reads it. */
#include "memo.h"

/* Bytes that a memo takes. All zero, it is empty. */
size_t tocsin_memo_size(void)
{
	return sizeof(struct memo);
}

static void remember(struct memo *memo, uint32_t type, const uint8_t *piece, size_t size,
		     uint32_t outcome)
{
	uint64_t hash = memo_hash(type, piece, size);
	/* Replaced when every place is taken. */
	struct memo_entry *entry = memo_place(memo, hash, 0);

	if (size > MEMO_BYTES - memo->used) {
		memo->full = 1;
		return;
	}
	for (size_t probe = 0; probe < MEMO_PROBES; probe++) {
		struct memo_entry *place = memo_place(memo, hash, probe);

		if (memo_holds(memo, place, hash, type, piece, size))
			return;
		if (!place->hash) {
			entry = place;
			break;
		}
	}
	*entry = (struct memo_entry){hash, memo->used, (uint32_t)size, outcome, type};
	memcpy(memo->bytes + memo->used, piece, size);
	memo->used += (uint32_t)size;
}

/*
 * Keeps what was found out about the events that tocsin_project wrote to `text`; they are those with a
 * piece there. An outcome that is still MEMO_UNKNOWN becomes 0: nothing was found. Returns whether the
 * memo is full: what does not fit is not kept.
 */
int tocsin_memo_remember(struct memo *memo, const uint8_t *types, size_t count, const uint8_t *text,
			 const uint32_t *ends, uint32_t *outcomes)
{
	uint32_t start = 0;

	for (size_t i = 0; i < count; i++) {
		if (outcomes[i] == MEMO_UNKNOWN)
			outcomes[i] = 0;
		if (ends[i] > start)
			remember(memo, types[i], text + start, ends[i] - start, outcomes[i]);
		start = ends[i];
	}
	return memo->full != 0;
}
