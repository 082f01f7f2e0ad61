/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What was there before the sensor: iterators over processes and their sockets. They only fill
 * the maps, never over what an event has written, and may run again at any time to heal.
 */
#ifndef TOCSIN_PROGRAMS_SEED_H
#define TOCSIN_PROGRAMS_SEED_H

#include "programs/tcp.h"

static __always_inline u64 append_argv_of(struct scratch *s, u64 at, struct task_struct *task,
					  struct image_layout *layout)
{
	u64 start = BPF_CORE_READ(task, mm, arg_start), begin = layout->begin;
	u64 whole = BPF_CORE_READ(task, mm, arg_end) - start;
	u64 length = whole > ARGV_BYTES ? ARGV_BYTES : whole;
	struct long_field *field;

	BARRIER(at);
	BARRIER(length);
	if (at > RECORD_BYTES - ARGV_BYTES - sizeof(*field) || length > ARGV_BYTES)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	if (bpf_copy_from_user_task(s->record + at + sizeof(*field), length, (void *)start, task,
				    0))
		length = 0;
	BARRIER(begin);
	if (begin > 4096)
		return RECORD_BYTES + 1;
	if (length < whole)
		((struct wire_image *)(s->record + begin))->image_flags |=
			TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;
	field->tag = TOCSIN_TAG_PROCESS_ARGV;
	put_length(field->length, length);
	return at + sizeof(*field) + length;
}

/* Writes the pid of each process that it read. */
SEC("iter.s/task")
int seed_images(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct image_layout layout = {};
	struct scratch *s;
	u32 pid, slot = SEED_SLOT;
	u64 at;

	if (!task || task->pid != task->tgid || !BPF_CORE_READ(task, mm))
		return 0;
	pid = task->tgid;
	if (find_image(pid, task->start_boottime))
		return 0;
	s = bpf_map_lookup_elem(&scratches, &slot);
	if (!s)
		return 0;
	s->slot = SEED_SLOT;
	at = append_files(s, 0, task, TOCSIN_IMAGE_FLAG_SEEDED, &layout);
	at = append_argv_of(s, at, task, &layout);
	if (at > RECORD_BYTES)
		return 0;
	layout.end = at;
	store_image(s, &layout, pid, task->start_boottime, BPF_NOEXIST);
	bpf_seq_write(ctx->meta->seq, &pid, sizeof(pid));
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
	s = bpf_map_lookup_elem(&scratches, &slot);
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
