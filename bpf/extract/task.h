/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of a Process that is read from the task when the event happens. */
#ifndef TOCSIN_EXTRACT_TASK_H
#define TOCSIN_EXTRACT_TASK_H

#include "base/record.h"

#define NO_LOGIN 0xffffffffU

/* READ is DIRECT where the verifier knows the task's type, BPF_CORE_READ elsewhere. */
#define FILL_TASK(w, task, READ)                                                          \
	do {                                                                              \
		WIRE_PUT(w, pid, READ(task, tgid));                                       \
		WIRE_PUT(w, tid, READ(task, pid));                                        \
		WIRE_PUT(w, start_boottime_ns, READ(task, group_leader, start_boottime)); \
		WIRE_PUT(w, ppid, READ(task, real_parent, tgid));                         \
		WIRE_PUT(w, uid, READ(task, cred, uid.val));                              \
		WIRE_PUT(w, euid, READ(task, cred, euid.val));                            \
		WIRE_PUT(w, gid, READ(task, cred, gid.val));                              \
		WIRE_PUT(w, egid, READ(task, cred, egid.val));                            \
		WIRE_PUT(w, suid, READ(task, cred, suid.val));                            \
		WIRE_PUT(w, sgid, READ(task, cred, sgid.val));                            \
		WIRE_PUT(w, cgroup_id, READ(task, cgroups, dfl_cgrp, kn, id));            \
		WIRE_PUT(w, mnt_ns, READ(task, nsproxy, mnt_ns, ns.inum));                \
		WIRE_PUT(w, net_ns, READ(task, nsproxy, net_ns, ns.inum));                \
		WIRE_PUT(w, pid_ns, READ(task, nsproxy, pid_ns_for_children, ns.inum));   \
		WIRE_PUT(w, uts_ns, READ(task, nsproxy, uts_ns, ns.inum));                \
		WIRE_PUT(w, ipc_ns, READ(task, nsproxy, ipc_ns, ns.inum));                \
		WIRE_PUT(w, cgroup_ns, READ(task, nsproxy, cgroup_ns, ns.inum));          \
		WIRE_PUT(w, user_ns, READ(task, cred, user_ns, ns.inum));                 \
		WIRE_PUT(w, login_uid, NO_LOGIN);                                         \
		WIRE_PUT(w, session_id, NO_LOGIN);                                        \
		if (bpf_core_field_exists(struct task_struct, loginuid)) {                \
			WIRE_PUT(w, login_uid, READ(task, loginuid.val));                 \
			WIRE_PUT(w, session_id, READ(task, sessionid));                   \
		}                                                                         \
	} while (0)

/* What has no scalar type everywhere: capabilities (8 bytes in every version) and the name. */
static __always_inline u64 fill_rest(u8 *to, struct task_struct *task)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);
	struct wire_task *w = (void *)to;
	u8 *comm = to + sizeof(*w);
	u64 effective = 0, permitted = 0;
	long length;

	bpf_probe_read_kernel(&effective, sizeof(effective),
			      __builtin_preserve_access_index(&cred->cap_effective));
	bpf_probe_read_kernel(&permitted, sizeof(permitted),
			      __builtin_preserve_access_index(&cred->cap_permitted));
	WIRE_PUT(w, cap_effective, effective);
	WIRE_PUT(w, cap_permitted, permitted);
	length = bpf_probe_read_kernel_str(comm + 2, TASK_COMM_LEN,
					   __builtin_preserve_access_index(&task->comm));
	length = length > 0 ? length - 1 : 0;
	comm[0] = TOCSIN_TAG_PROCESS_COMM;
	comm[1] = length;
	return sizeof(*w) + 2 + (length & (TASK_COMM_LEN - 1));
}

/* Writes tags and values at `to`; returns their length. The task's type is known (tp_btf). */
static __always_inline u64 fill_task(u8 *to, struct task_struct *task)
{
	struct wire_task *w = (void *)to;

	wire_task_tags(w);
	FILL_TASK(w, task, DIRECT);
	return fill_rest(to, task);
}

/* The same for a task that came from a read. */
static __always_inline u64 fill_task_probed(u8 *to, struct task_struct *task)
{
	struct wire_task *w = (void *)to;

	wire_task_tags(w);
	FILL_TASK(w, task, BPF_CORE_READ);
	return fill_rest(to, task);
}

static __always_inline void keep_task(struct task_bytes *kept, struct task_struct *task)
{
	kept->length = fill_task_probed(kept->bytes, task);
	kept->pid = BPF_CORE_READ(task, tgid);
	kept->start_boottime_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	kept->kernel_thread = !!(BPF_CORE_READ(task, flags) & PF_KTHREAD);
}

#endif
