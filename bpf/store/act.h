/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The beginning of a record that tells what the current task did by a system call. */
#ifndef TOCSIN_STORE_ACT_H
#define TOCSIN_STORE_ACT_H

#include "base/syscall.h"
#include "store/images.h"

/* Where the body begins at the latest: behind the header and two processes. */
#define BODY_LATEST 6144

/* Head and actors; *body is where the body begins. NULL: held back or lost, and counted so. */
static __always_inline struct scratch *begin_act(u8 type, u64 *body)
{
	struct scratch *s = begin(type, body);
	u64 at;

	if (!s)
		return NULL;
	at = append_current(s, *body);
	BARRIER(at);
	if (at > BODY_LATEST) {
		submit(s, type, RECORD_BYTES + 1);
		return NULL;
	}
	*body = at;
	return s;
}

/* The same where events of this type by the current task are wanted; NULL also where they are not. */
static __always_inline struct scratch *begin_wanted_act(u8 type, u64 *body)
{
	return wanted(type, (void *)bpf_get_current_task()) ? begin_act(type, body) : NULL;
}

/* Where the fixed part of a body begins. Masked, for verifiers that lose what was compared. */
#define FIXED_MASK 0x1fff
_Static_assert(BODY_LATEST <= FIXED_MASK, "a body begins below the mask");
#define FIXED_PART(s, body) \
	((void *)((s)->record + ((body)&FIXED_MASK) + sizeof(struct long_field)))

static __always_inline void submit_act(struct scratch *s, u8 type, u64 body, u64 at)
{
	submit(s, type, close_body(s, body, at, BODY_TAG(type)));
}

#endif
