/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What user space wants to be told. Asked before anything is read: what is not wanted costs little. */
#ifndef TOCSIN_BASE_WANTED_H
#define TOCSIN_BASE_WANTED_H

#include "base/record.h"

static __always_inline bool is_own(struct settings *settings, struct task_struct *task)
{
	u32 own = settings->own_pid;

	return own &&
	       (BPF_CORE_READ(task, tgid) == own || BPF_CORE_READ(task, real_parent, tgid) == own);
}

static __always_inline bool is_excluded(u32 kind, const void *value, u32 size)
{
	struct excluded_key key = {.kind = kind};

	__builtin_memcpy(key.value, value, size);
	return bpf_map_lookup_elem(&excluded, &key);
}

static __always_inline bool is_filtered(struct settings *settings, struct task_struct *task)
{
	u32 filters = settings->filters;
	char comm[TASK_COMM_LEN] = {};
	u64 cgroup;
	u32 uid;

	if (filters & FILTER_UIDS) {
		uid = BPF_CORE_READ(task, cred, uid.val);
		if (is_excluded(FILTER_UIDS, &uid, sizeof(uid)))
			return true;
	}
	if (filters & FILTER_COMMS) {
		bpf_probe_read_kernel_str(comm, sizeof(comm),
					  __builtin_preserve_access_index(&task->comm));
		if (is_excluded(FILTER_COMMS, comm, sizeof(comm)))
			return true;
	}
	if (filters & FILTER_CGROUPS) {
		cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
		if (is_excluded(FILTER_CGROUPS, &cgroup, sizeof(cgroup)))
			return true;
	}
	return false;
}

/* Whether events of this type by this task are told. */
static __always_inline bool wanted(u8 type, struct task_struct *task)
{
	struct settings *settings = current_settings();

	if (!settings || !(settings->wanted >> type & 1))
		return false;
	if (settings->quiet_own >> type & 1 && is_own(settings, task))
		return false;
	return !settings->filters || !is_filtered(settings, task);
}

#endif
