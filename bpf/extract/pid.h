/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The task that a number stands for where the caller is: a process names others by the numbers of
 * its own pid namespace. Kernels before 6.2 have no function for it, so the namespace's tree is
 * read here: nodes of 64 slots, each level six bits of the number.
 */
#ifndef TOCSIN_EXTRACT_PID_H
#define TOCSIN_EXTRACT_PID_H

#include "base/types.h"

/* Pids have at most 22 bits (PID_MAX_LIMIT). */
#define PID_TREE_LEVELS 4
#define NODE_SLOTS      64
/* Low bits of a pointer in the tree: 2 marks a further node. */
#define ENTRY_MASK 3
#define ENTRY_NODE 2

/* The number and namespace of `pid` at a depth of namespaces. */
static __always_inline struct upid *number_at(struct pid *pid, u32 level)
{
	return (void *)pid + bpf_core_field_offset(struct pid, numbers) +
	       level * bpf_core_type_size(struct upid);
}

static __always_inline struct pid *find_pid(struct pid_namespace *ns, u32 number)
{
	void *entry = BPF_CORE_READ(ns, idr.idr_rt.xa_head);
	struct xa_node *node;
	u64 slot;

	for (int i = 0; i < PID_TREE_LEVELS; i++) {
		if (((u64)entry & ENTRY_MASK) != ENTRY_NODE)
			break;
		node = entry - ENTRY_NODE;
		slot = number >> BPF_CORE_READ(node, shift) & (NODE_SLOTS - 1);
		entry = NULL;
		bpf_probe_read_kernel(&entry, sizeof(entry),
				      (void *)node + bpf_core_field_offset(struct xa_node, slots) +
					      slot * sizeof(entry));
	}
	return entry;
}

/* The task, NULL when there is none any more. Its members are read with BPF_CORE_READ. */
static __always_inline struct task_struct *task_of_number(u32 number)
{
	struct task_struct *caller = (void *)bpf_get_current_task();
	struct pid *own = BPF_CORE_READ(caller, thread_pid), *pid;
	u32 level = BPF_CORE_READ(own, level);
	struct upid *upid = number_at(own, level);
	struct hlist_node *first;

	pid = find_pid(BPF_CORE_READ(upid, ns), number);
	upid = number_at(pid, level);
	/* A number that is too big for the tree ends at another's slot. */
	if (!pid || BPF_CORE_READ(upid, nr) != number)
		return NULL;
	first = BPF_CORE_READ(pid, tasks[0].first);
	return first ? (void *)first - bpf_core_field_offset(struct task_struct, pid_links) : NULL;
}

#endif
