/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who owns a TCP connection: learnt when a process connects or accepts, where the kernel is in
 * that process's context; used when the connection changes, where it often is in an interrupt.
 */
#ifndef TOCSIN_STORE_CONNECTIONS_H
#define TOCSIN_STORE_CONNECTIONS_H

#include "store/owners.h"

static __always_inline struct connection *find_connection(struct sock *sk)
{
	u64 key = (u64)sk;

	return bpf_map_lookup_elem(&connections, &key);
}

static __always_inline void forget_connection(struct sock *sk)
{
	u64 key = (u64)sk;

	bpf_map_delete_elem(&connections, &key);
}

/* Makes the connection of `task` in the scratch area; store_connection puts it into the map. */
static __always_inline struct connection *new_connection(struct scratch *s,
							 struct task_struct *task, u8 direction)
{
	struct connection *connection = &s->connection;

	connection->since_boottime_ns = bpf_ktime_get_boot_ns();
	connection->direction = direction;
	connection->pending = 0;
	connection->closed = 0;
	keep_owner(&connection->owner, task);
	return connection;
}

static __always_inline bool store_connection(struct connection *connection, struct sock *sk,
					     u64 how)
{
	u64 key = (u64)sk;
	long failed = bpf_map_update_elem(&connections, &key, connection, how);

	if (failed && how == BPF_ANY)
		COUNT(images_dropped);
	return !failed;
}

#endif
