/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Event.target: the process that another one acted on. */
#ifndef TOCSIN_STORE_TARGET_H
#define TOCSIN_STORE_TARGET_H

#include "store/images.h"

/* Opens and closes the nested message. `task` is read with BPF_CORE_READ. */
static __always_inline u64 append_target(struct scratch *s, u64 at, struct task_struct *task)
{
	struct long_field *field;
	u64 begin = at;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES - 512)
		return RECORD_BYTES + 1;
	at += sizeof(*field);
	at += fill_task_probed(s->record + at, task);
	at = put_image(s->slot, at, BPF_CORE_READ(task, tgid),
		       BPF_CORE_READ(task, group_leader, start_boottime),
		       BPF_CORE_READ(task, flags) & PF_KTHREAD ?
			       0 :
			       TOCSIN_EVENT_FLAG_TARGET_IMAGE_MISSING);
	BARRIER(begin);
	if (begin > 16384)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + begin);
	field->tag = TOCSIN_TAG_EVENT_TARGET;
	put_length(field->length, at - begin - sizeof(*field));
	return at;
}

#endif
