/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose a socket is: learnt in the context of the process that connects, accepts or sends; used
 * where packets and states change in an interrupt, which runs on top of any process.
 */
#ifndef TOCSIN_STORE_OWNERS_H
#define TOCSIN_STORE_OWNERS_H

#include "base/wanted.h"
#include "store/images.h"

static __always_inline void keep_owner(struct owner *owner, struct task_struct *task)
{
	struct settings *settings = current_settings();

	owner->own = settings && is_own(settings, task);
	owner->filtered = settings && settings->filters && is_filtered(settings, task);
	keep_task(&owner->process, task);
	keep_task(&owner->parent, BPF_CORE_READ(task, real_parent, group_leader));
}

/* Whether events of this type by this owner are told. */
static __always_inline bool wanted_of(u8 type, struct owner *owner)
{
	struct settings *settings = current_settings();

	if (!settings || !(settings->wanted >> type & 1))
		return false;
	if (settings->quiet_own >> type & 1 && owner->own)
		return false;
	return !owner->filtered;
}

static __always_inline u64 append_owner(struct scratch *s, u64 at, struct owner *owner)
{
	at = append_kept(s, at, TOCSIN_TAG_EVENT_PROCESS, TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING,
			 &owner->process);
	return append_kept(s, at, TOCSIN_TAG_EVENT_PARENT, TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			   &owner->parent);
}

/*
 * Who sends a datagram through the socket: the current task, unless that is idle or a kernel
 * thread. Such a one may have been interrupted, or works for somebody else: then it is the process
 * that sent through this socket before; NULL where there is none and nothing to go by.
 */
static __always_inline struct owner *owner_of_sender(struct scratch *s, u64 cookie)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct owner *kept = bpf_map_lookup_elem(&owners, &cookie);
	u32 pid = BPF_CORE_READ(task, tgid);

	if (!pid || BPF_CORE_READ(task, flags) & PF_KTHREAD) {
		if (kept || !pid)
			return kept;
	}
	keep_owner(&s->owner, task);
	if (!kept || kept->process.pid != pid ||
	    kept->process.start_boottime_ns != s->owner.process.start_boottime_ns)
		bpf_map_update_elem(&owners, &cookie, &s->owner, BPF_ANY);
	return &s->owner;
}

#endif
