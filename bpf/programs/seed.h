/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What was there before the sensor: iterators over processes and their sockets. They only fill
 * the maps, never over what an event has written, and may run again at any time to heal.
 */
#ifndef TOCSIN_PROGRAMS_SEED_H
#define TOCSIN_PROGRAMS_SEED_H

#include "programs/tcp.h"
#include "store/credentials.h"

/* Says the pid of a process of which it learnt something. */
static __always_inline void seed_image(struct bpf_iter__task *ctx, bool may_sleep)
{
	struct task_struct *task = ctx->task;
	struct image_layout layout = {};
	struct image *image;
	struct scratch *s;
	u32 pid, slot = SEED_SLOT;
	u64 at;

	if (!task || !BPF_CORE_READ(task, mm))
		return;
	if (task->pid != task->tgid) {
		seed_thread_credentials(task);
		return;
	}
	pid = task->tgid;
	image = find_image(pid, task->start_boottime);
	if (image) {
		if (complete_ancestors(image, task))
			bpf_seq_write(ctx->meta->seq, &pid, sizeof(pid));
		return;
	}
	s = scratch_of(slot);
	if (!s)
		return;
	s->slot = SEED_SLOT;
	at = append_files(s, 0, task, TOCSIN_IMAGE_FLAG_SEEDED, &layout);
	if (may_sleep)
		at = append_argv(s, at, task, &layout, false);
	else
		at = leave_out_argv(s, at, &layout);
	if (at > RECORD_BYTES)
		return;
	store_new_image(s, &layout, task, BPF_NOEXIST);
	bpf_seq_write(ctx->meta->seq, &pid, sizeof(pid));
}

/* Run until it learns no more. */
SEC("iter.s/task")
int seed_images(struct bpf_iter__task *ctx)
{
	seed_image(ctx, true);
	return 0;
}

/* Before 5.18 an iterator cannot read the memory of processes. */
SEC("iter/task")
int seed_images_without_argv(struct bpf_iter__task *ctx)
{
	seed_image(ctx, false);
	return 0;
}

static __always_inline u64 listener_key(struct sock *sk)
{
	u64 net_ns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);

	return net_ns << 16 | BPF_CORE_READ(sk, __sk_common.skc_num);
}

/*
 * Runs twice: the first pass learns the listening ports, the second finds connections and takes
 * those on such a port for inbound ones. The kernel does not keep who initiated a connection.
 */
SEC("iter/task_file")
int seed_connections(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct connection *connection;
	u32 slot = SEED_SLOT;
	struct socket *socket;
	struct scratch *s;
	struct sock *sk;
	u8 state, one = 1;
	u64 key;

	if (!task || !file || task->pid != task->tgid ||
	    (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || !is_tcp(sk))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	key = listener_key(sk);
	if (state == TCP_LISTEN) {
		bpf_map_update_elem(&listeners, &key, &one, BPF_ANY);
		return 0;
	}
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return 0;
	s = scratch_of(slot);
	if (!s || find_connection(sk))
		return 0;
	connection = new_connection(s, task,
				    bpf_map_lookup_elem(&listeners, &key) ?
					    TOCSIN_DIRECTION_INBOUND :
					    TOCSIN_DIRECTION_OUTBOUND);
	store_connection(connection, sk, BPF_NOEXIST);
	return 0;
}

#endif
