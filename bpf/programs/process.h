/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Processes: exec, fork, exit. */
#ifndef TOCSIN_PROGRAMS_PROCESS_H
#define TOCSIN_PROGRAMS_PROCESS_H

#include "extract/file.h"
#include "programs/credentials.h"
#include "programs/sighting.h"

#define S_ISUID 04000
#define S_ISGID 02000

/* A file of memfd_create: outside of every directory, with a name that only that call gives. */
static __always_inline bool is_memfd(struct file *file)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	char name[8] = {};

	if (BPF_CORE_READ(dentry, d_parent) != dentry)
		return false;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(dentry, d_name.name));
	return *(u32 *)name == *(u32 *)"memf" && name[4] == 'd' && name[5] == ':';
}

static __always_inline u32 exec_flags(struct file *exe, struct linux_binprm *bprm)
{
	struct inode *inode = BPF_CORE_READ(exe, f_inode);
	u32 mode = BPF_CORE_READ(inode, i_mode), flags = 0;

	if (BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename))
		flags |= TOCSIN_EXEC_FLAG_SCRIPT;
	if (!BPF_CORE_READ(inode, i_nlink))
		flags |= TOCSIN_EXEC_FLAG_DELETED;
	if (is_memfd(exe))
		flags |= TOCSIN_EXEC_FLAG_MEMFD;
	if (mode & S_ISUID)
		flags |= TOCSIN_EXEC_FLAG_SETUID;
	if (mode & S_ISGID)
		flags |= TOCSIN_EXEC_FLAG_SETGID;
	if (BPF_CORE_READ_BITFIELD_PROBED(bprm, secureexec))
		flags |= TOCSIN_EXEC_FLAG_SECURE;
	return flags;
}

static __always_inline u64 append_exec(struct scratch *s, u64 at, struct task_struct *task,
				       u32 caller_tid, struct linux_binprm *bprm, u32 argv_bytes,
				       struct known_credentials *before)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);
	u32 flags = exec_flags(exe, bprm);
	struct short_field *body;
	struct wire_exec *w;
	u64 begin = at;

	BARRIER(at);
	if (at > RECORD_BYTES - 1024)
		return RECORD_BYTES + 1;
	w = (void *)(s->record + at + sizeof(*body));
	wire_exec_tags(w);
	WIRE_PUT(w, caller_tid, caller_tid);
	WIRE_PUT(w, exe_mode, BPF_CORE_READ(inode, i_mode));
	WIRE_PUT(w, exe_nlink, BPF_CORE_READ(inode, i_nlink));
	WIRE_PUT(w, exe_uid, BPF_CORE_READ(inode, i_uid.val));
	WIRE_PUT(w, exe_gid, BPF_CORE_READ(inode, i_gid.val));
	WIRE_PUT(w, argc, bprm->argc);
	WIRE_PUT(w, envc, bprm->envc);
	WIRE_PUT(w, argv_bytes, argv_bytes);
	WIRE_PUT(w, exec_flags, flags);
	WIRE_PUT(w, previous_euid, before->euid);
	WIRE_PUT(w, previous_egid, before->egid);
	WIRE_PUT(w, previous_cap_permitted, before->cap_permitted);
	at += sizeof(*body) + sizeof(*w);
	at = append_kernel_string(s, at, TOCSIN_TAG_EXEC_FILENAME, BPF_CORE_READ(bprm, filename));
	if (flags & TOCSIN_EXEC_FLAG_SCRIPT)
		at = append_kernel_string(s, at, TOCSIN_TAG_EXEC_INTERPRETER,
					  BPF_CORE_READ(bprm, interp));
	BARRIER(begin);
	if (begin > RECORD_BYTES - 1024)
		return RECORD_BYTES + 1;
	body = (void *)(s->record + begin);
	body->tag = TOCSIN_TAG_EVENT_EXEC;
	put_length(body->length, at - begin - sizeof(*body));
	return at;
}

/*
 * Fires when the new program stands; execve's own exit does not tell success
 * everywhere. The image is stored also where the event itself is not wanted: later ones need it.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int caller_tid, struct linux_binprm *bprm)
{
	struct known_credentials before;
	u64 at, process, image_begin;
	struct image_layout layout = {};
	struct wire_image *w;
	struct image *image;
	struct scratch *s;

	credentials_before_exec(&before, caller_tid);
	s = begin_unlimited(TOCSIN_EVENT_TYPE_EXEC, &at);
	if (!s) {
		forget_image(task); /* it would be that of the program before */
		return 0;
	}
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
	at = append_argv(s, at, task, &layout, true);
	if (at > RECORD_BYTES) {
		submit(s, TOCSIN_EVENT_TYPE_EXEC, RECORD_BYTES + 1);
		return 0;
	}
	store_image(s, &layout, task);
	sight(s->slot, layout.exe + sizeof(struct long_field), layout.exe_end);
	image = find_image(task->tgid, task->group_leader->start_boottime);
	if (image)
		at = append_ancestors(s, at, image);
	if (!wanted(TOCSIN_EVENT_TYPE_EXEC, task) || held_back(TOCSIN_EVENT_TYPE_EXEC)) {
		release(s);
		return 0;
	}
	s->record[process] = TOCSIN_TAG_EVENT_PROCESS;
	put_length(s->record + process + 1, at - process - sizeof(struct short_field));
	at = put_parent(s->slot, at);
	at = append_exec(s, at, task, caller_tid, bprm, layout.argv_bytes, &before);
	submit(s, TOCSIN_EVENT_TYPE_EXEC, at);
	return 0;
}

/* Runs in the task that makes the other, before that one runs. */
SEC("tp_btf/task_newtask")
int BPF_PROG(on_fork, struct task_struct *child, u64 clone_flags)
{
	struct thread maker = current_thread();
	struct short_field *body;
	struct wire_fork *w;
	struct scratch *s;
	u64 at;

	compare_credentials(&maker);
	if (child->pid != child->tgid) {
		inherit_thread_credentials(&maker, child);
		return 0;
	}
	inherit_image(child);
	if (!wanted(TOCSIN_EVENT_TYPE_FORK, (void *)bpf_get_current_task()))
		return 0;
	s = begin(TOCSIN_EVENT_TYPE_FORK, &at);
	if (!s)
		return 0;
	at = append_current(s, at);
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
	WIRE_PUT(w, clone_flags, clone_flags);
	body->tag = TOCSIN_TAG_EVENT_FORK;
	put_length(body->length, sizeof(*w));
	submit(s, TOCSIN_EVENT_TYPE_FORK, at + sizeof(*body) + sizeof(*w));
	return 0;
}

/*
 * Before 6.16 the count of live threads tells. It falls before this tracepoint is reached, so two
 * threads that end at once can both see 0: the first one tells.
 */
static __always_inline bool group_is_dead(unsigned long long *ctx, struct task_struct *task)
{
	struct process_key key = {.pid = task->tgid};
	u8 yes = 1;

	if (bpf_core_field_exists(struct trace_event_raw_sched_process_exit, group_dead))
		return ctx[1] & 1;
	if (task->signal->live.counter != 0)
		return false;
	key.start_boottime_ns = task->group_leader->start_boottime;
	return bpf_map_update_elem(&ended, &key, &yes, BPF_NOEXIST) == 0;
}

SEC("tp_btf/sched_process_exit")
int on_exit(unsigned long long *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct signal_struct *signal = task->signal;
	struct short_field *body;
	struct wire_exit *w;
	struct scratch *s;
	struct thread thread = current_thread();
	u32 status;
	u64 at;

	compare_credentials(&thread);
	forget_thread_credentials(&thread);
	if (!group_is_dead(ctx, task) || !wanted(TOCSIN_EVENT_TYPE_EXIT, task))
		return 0;
	s = begin(TOCSIN_EVENT_TYPE_EXIT, &at);
	if (!s)
		return 0;
	at = append_current(s, at);
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
