/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ids and capabilities of a task, as they are compared with those that are known of it. */
#ifndef TOCSIN_EXTRACT_CREDENTIALS_H
#define TOCSIN_EXTRACT_CREDENTIALS_H

#include "maps/maps.h"

/* READ is DIRECT where the verifier knows the task's type, BPF_CORE_READ elsewhere. */
#define FILL_CREDENTIALS(to, task, READ)                                \
	do {                                                            \
		(to)->uid = READ(task, cred, uid.val);                  \
		(to)->euid = READ(task, cred, euid.val);                \
		(to)->suid = READ(task, cred, suid.val);                \
		(to)->gid = READ(task, cred, gid.val);                  \
		(to)->egid = READ(task, cred, egid.val);                \
		(to)->sgid = READ(task, cred, sgid.val);                \
		(to)->user_ns_level = READ(task, cred, user_ns, level); \
		(to)->padding = 0;                                      \
		fill_capabilities(to, BPF_CORE_READ(task, cred));       \
	} while (0)

static __always_inline void fill_capabilities(struct known_credentials *to, const struct cred *cred)
{
	to->cap_effective = to->cap_permitted = 0;
	bpf_probe_read_kernel(&to->cap_effective, sizeof(to->cap_effective),
			      __builtin_preserve_access_index(&cred->cap_effective));
	bpf_probe_read_kernel(&to->cap_permitted, sizeof(to->cap_permitted),
			      __builtin_preserve_access_index(&cred->cap_permitted));
}

/* Of a task whose type is known (tp_btf). */
static __always_inline void read_credentials(struct known_credentials *to, struct task_struct *task)
{
	FILL_CREDENTIALS(to, task, DIRECT);
}

static __always_inline void read_own_credentials(struct known_credentials *to)
{
	struct task_struct *task;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
		read_credentials(to, bpf_get_current_task_btf());
		return;
	}
	task = (void *)bpf_get_current_task();
	FILL_CREDENTIALS(to, task, BPF_CORE_READ);
}

#endif
