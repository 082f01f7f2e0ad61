/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Processes: exec, fork, exit. */
#ifndef TOCSIN_PROGRAMS_PROCESS_H
#define TOCSIN_PROGRAMS_PROCESS_H

#include "store/images.h"

/* argv as the kernel holds it after exec: user space had no chance to change it yet. */
static __always_inline u64 append_argv(struct scratch *s, u64 at, struct task_struct *task,
				       struct image_layout *layout, u32 *argv_bytes)
{
	u64 start = BPF_CORE_READ(task, mm, arg_start), begin = layout->begin;
	u64 whole = BPF_CORE_READ(task, mm, arg_end) - start;
	u64 length = whole > ARGV_BYTES ? ARGV_BYTES : whole;
	struct wire_image *w;
	struct long_field *field;

	*argv_bytes = whole;
	BARRIER(at);
	BARRIER(length);
	if (at > RECORD_BYTES - ARGV_BYTES - sizeof(*field) || length > ARGV_BYTES)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	if (bpf_probe_read_user(s->record + at + sizeof(*field), length, (void *)start))
		length = 0;
	BARRIER(begin);
	if (begin > 4096)
		return RECORD_BYTES + 1;
	w = (void *)(s->record + begin);
	if (length < whole)
		w->image_flags |= TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;
	WIRE_PUT(field, tag, TOCSIN_TAG_PROCESS_ARGV);
	put_length(field->length, length);
	return at + sizeof(*field) + length;
}

static __always_inline u64 append_exec(struct scratch *s, u64 at, struct task_struct *task,
				       u32 caller_tid, struct linux_binprm *bprm, u32 argv_bytes)
{
	struct inode *inode = BPF_CORE_READ(task, mm, exe_file, f_inode);
	struct short_field *body;
	struct wire_exec *w;
	u8 *name;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	body = (void *)(s->record + at);
	w = (void *)(s->record + at + sizeof(*body));
	name = s->record + at + sizeof(*body) + sizeof(*w);
	wire_exec_tags(w);
	WIRE_PUT(w, caller_tid, caller_tid);
	WIRE_PUT(w, exe_mode, BPF_CORE_READ(inode, i_mode));
	WIRE_PUT(w, exe_nlink, BPF_CORE_READ(inode, i_nlink));
	WIRE_PUT(w, exe_uid, BPF_CORE_READ(inode, i_uid.val));
	WIRE_PUT(w, exe_gid, BPF_CORE_READ(inode, i_gid.val));
	WIRE_PUT(w, argc, bprm->argc);
	WIRE_PUT(w, envc, bprm->envc);
	WIRE_PUT(w, argv_bytes, argv_bytes);
	length = bpf_probe_read_kernel_str(name + 3, TOCSIN_MAX_EXEC_FILENAME + 1,
					   BPF_CORE_READ(bprm, filename));
	length = length > 0 ? length - 1 : 0;
	name[0] = TOCSIN_TAG_EXEC_FILENAME;
	put_length(name + 1, length);
	body->tag = TOCSIN_TAG_EVENT_EXEC;
	put_length(body->length, sizeof(*w) + 3 + length);
	return at + sizeof(*body) + sizeof(*w) + 3 + (length & TOCSIN_MAX_EXEC_FILENAME);
}

/* Fires when the new program stands; execve's own exit does not tell success everywhere. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int caller_tid, struct linux_binprm *bprm)
{
	u64 at, process, image_begin, start = task->group_leader->start_boottime;
	struct image_layout layout = {};
	struct wire_image *w;
	struct scratch *s;
	u32 argv_bytes = 0;

	s = begin(TOCSIN_EVENT_TYPE_EXEC, &at);
	if (!s)
		return 0;
	process = at;
	at += sizeof(struct short_field);
	at += fill_task(s->record + at, task);
	at = append_files(s, at, task, 0, &layout);
	image_begin = layout.begin;
	BARRIER(image_begin);
	if (image_begin > 4096 || at > RECORD_BYTES) {
		submit(s, TOCSIN_EVENT_TYPE_EXEC, RECORD_BYTES + 1);
		return 0;
	}
	w = (void *)(s->record + image_begin);
	WIRE_PUT(w, exec_boottime_ns, ((struct wire_header *)s->record)->boottime_ns);
	at = append_argv(s, at, task, &layout, &argv_bytes);
	if (at > RECORD_BYTES) {
		submit(s, TOCSIN_EVENT_TYPE_EXEC, RECORD_BYTES + 1);
		return 0;
	}
	layout.end = at;
	s->record[process] = TOCSIN_TAG_EVENT_PROCESS;
	put_length(s->record + process + 1, at - process - sizeof(struct short_field));
	store_image(s, &layout, task->tgid, start, BPF_ANY);
	at = append_process(s, at, TOCSIN_TAG_EVENT_PARENT, TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			    task->real_parent->group_leader);
	at = append_exec(s, at, task, caller_tid, bprm, argv_bytes);
	submit(s, TOCSIN_EVENT_TYPE_EXEC, at);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct short_field *body;
	struct wire_fork *w;
	struct scratch *s;
	u64 at;

	if (child->pid != child->tgid)
		return 0; /* a thread */
	inherit_image(parent, child);
	s = begin(TOCSIN_EVENT_TYPE_FORK, &at);
	if (!s)
		return 0;
	at = append_actors(s, at, parent);
	BARRIER(at);
	if (at > RECORD_BYTES - 512) {
		submit(s, TOCSIN_EVENT_TYPE_FORK, RECORD_BYTES + 1);
		return 0;
	}
	body = (void *)(s->record + at);
	w = (void *)(s->record + at + sizeof(*body));
	wire_fork_tags(w);
	WIRE_PUT(w, child_pid, child->tgid);
	WIRE_PUT(w, child_start_boottime_ns, child->start_boottime);
	body->tag = TOCSIN_TAG_EVENT_FORK;
	put_length(body->length, sizeof(*w));
	submit(s, TOCSIN_EVENT_TYPE_FORK, at + sizeof(*body) + sizeof(*w));
	return 0;
}

/* Before 6.16 the count of live threads tells; two that end at once can both see 0. */
static __always_inline bool group_is_dead(unsigned long long *ctx, struct task_struct *task)
{
	if (bpf_core_field_exists(struct trace_event_raw_sched_process_exit, group_dead))
		return ctx[1] & 1;
	return task->signal->live.counter == 0;
}

SEC("tp_btf/sched_process_exit")
int on_exit(unsigned long long *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct signal_struct *signal = task->signal;
	struct short_field *body;
	struct wire_exit *w;
	struct scratch *s;
	u32 status;
	u64 at;

	if (!group_is_dead(ctx, task))
		return 0;
	s = begin(TOCSIN_EVENT_TYPE_EXIT, &at);
	if (!s)
		return 0;
	at = append_actors(s, at, task);
	BARRIER(at);
	if (at > RECORD_BYTES - 512) {
		submit(s, TOCSIN_EVENT_TYPE_EXIT, RECORD_BYTES + 1);
		return 0;
	}
	/* What wait(2) tells: the group's code, else the leader's. */
	status = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code :
						     task->group_leader->exit_code;
	body = (void *)(s->record + at);
	w = (void *)(s->record + at + sizeof(*body));
	wire_exit_tags(w);
	WIRE_PUT(w, code, (status >> 8) & 0xff);
	WIRE_PUT(w, signal, status & 0x7f);
	WIRE_PUT(w, core_dumped, (status >> 7) & 1);
	w->run_time_ns =
		((struct wire_header *)s->record)->boottime_ns - task->group_leader->start_boottime;
	body->tag = TOCSIN_TAG_EVENT_EXIT;
	put_length(body->length, sizeof(*w));
	submit(s, TOCSIN_EVENT_TYPE_EXIT, at + sizeof(*body) + sizeof(*w));
	return 0;
}

/* The process has been reaped: nothing can name it any more. */
SEC("tp_btf/sched_process_free")
int BPF_PROG(on_free, struct task_struct *task)
{
	if (task->pid == task->tgid)
		forget_image(task);
	return 0;
}

#endif
