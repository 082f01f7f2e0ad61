/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a process is cut off from, or what it breaks out of: namespaces, mounts, root directories. */
#ifndef TOCSIN_PROGRAMS_ISOLATION_H
#define TOCSIN_PROGRAMS_ISOLATION_H

#include "extract/file.h"
#include "store/act.h"

/* The flags of unshare and setns that stand for namespaces: time, mount, cgroup, UTS, IPC, user, pid, net. */
#define NAMESPACE_FLAGS 0x7e020080
#define NSFS_MAGIC      0x6e736673

#define MS_REMOUNT   0x20
#define MS_BIND      0x1000
#define MS_MOVE      0x2000
#define MS_MGC_VALUE 0xc0ed0000
#define MS_MGC_MASK  0xffff0000

/* The flag that stands for the namespace behind a descriptor; 0: there is none. */
static __always_inline u32 type_of_namespace(struct task_struct *task, int fd)
{
	struct file *file = file_of_fd(task, fd);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct ns_common *ns;

	if (!file || BPF_CORE_READ(inode, i_sb, s_magic) != NSFS_MAGIC)
		return 0;
	ns = BPF_CORE_READ(inode, i_private);
	if (bpf_core_field_exists(struct ns_common, ns_type))
		return BPF_CORE_READ(ns, ns_type);
	return BPF_CORE_READ(ns, ops, type);
}

SEC("tp_btf/sys_exit")
int act_namespace(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct wire_namespace *w;
	struct scratch *s;
	struct call call;
	u32 flags;
	u64 body;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	flags = call.argument[call.act == ACT_SETNS] & NAMESPACE_FLAGS;
	if (call.act == ACT_UNSHARE && !flags)
		return 0; /* files, semaphores and the like */
	if (!wanted(TOCSIN_EVENT_TYPE_NAMESPACE, task))
		return 0;
	if (!flags)
		flags = type_of_namespace(task, call.argument[0]);
	s = begin_act(TOCSIN_EVENT_TYPE_NAMESPACE, &body);
	if (!s)
		return 0;
	w = FIXED_PART(s, body);
	wire_namespace_tags(w);
	WIRE_PUT(w, error, call.error);
	WIRE_PUT(w, entered, call.act == ACT_SETNS);
	WIRE_PUT(w, clone_flags, flags);
	submit_act(s, TOCSIN_EVENT_TYPE_NAMESPACE, body,
		   body + sizeof(struct long_field) + sizeof(*w));
	return 0;
}

/* What an act on mounts is told with. */
struct mount_act {
	u8 type;
	/* The source is a path, to be made absolute; else it is text. */
	bool source_is_path;
	u32 error;
	int directory;
	int source_directory;
	u64 flags;
	u64 path;
	u64 source;
	u64 filesystem;
	/* What is mounted, where it came as a descriptor. */
	struct file *mounted;
};

static __always_inline void read_mount(struct mount_act *act, struct call *call)
{
	u64 flags = call->argument[3];

	if ((flags & MS_MGC_MASK) == MS_MGC_VALUE)
		flags &= ~(u64)MS_MGC_MASK; /* a mark of Linux 2.4, which the kernel drops too */
	act->type = TOCSIN_EVENT_TYPE_MOUNT;
	act->source = call->argument[0];
	act->path = call->argument[1];
	act->filesystem = call->argument[2];
	act->flags = flags;
	act->source_is_path = flags & (MS_BIND | MS_MOVE) && !(flags & MS_REMOUNT);
}

static __always_inline void read_move_mount(struct mount_act *act, struct call *call)
{
	act->type = TOCSIN_EVENT_TYPE_MOUNT;
	act->source_directory = call->argument[0];
	act->source = call->argument[1];
	act->source_is_path = true;
	act->directory = call->argument[2];
	act->path = call->argument[3];
	act->flags = call->argument[4];
	if (is_nameless(act->source))
		act->mounted = file_of_fd((void *)bpf_get_current_task(), act->source_directory);
}

static __always_inline void read_mount_act(struct mount_act *act, struct call *call)
{
	switch (call->act) {
	case ACT_MOUNT:
		read_mount(act, call);
		break;
	case ACT_MOVE_MOUNT:
		read_move_mount(act, call);
		break;
	case ACT_UMOUNT:
	case ACT_UMOUNT_OLD:
		act->type = TOCSIN_EVENT_TYPE_UMOUNT;
		act->path = call->argument[0];
		act->flags = call->act == ACT_UMOUNT ? call->argument[1] : 0;
		break;
	case ACT_PIVOT_ROOT:
		act->type = TOCSIN_EVENT_TYPE_PIVOT_ROOT;
		act->path = call->argument[0];
		act->source = call->argument[1];
		act->source_is_path = true;
		break;
	default: /* ACT_CHROOT */
		act->type = TOCSIN_EVENT_TYPE_CHROOT;
		act->path = call->argument[0];
	}
}

/* Appends a path as it was passed, not made absolute. */
static __always_inline u64 append_as_passed(struct scratch *s, u64 at, u16 tag, u64 address,
					    u32 bits, u32 *flags)
{
	*flags |= TOCSIN_PATH_FLAG_PATH_AS_GIVEN << bits;
	return append_user_text(s, at, tag, address, bits, flags);
}

/* chroot: the kernel holds the new root. pivot_root: what stood before the path has moved. */
static __always_inline u64 append_mount_path(struct scratch *s, u64 at, struct mount_act *act,
					     u32 *flags)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct path root;
	bool cut = false;

	if (act->type == TOCSIN_EVENT_TYPE_PIVOT_ROOT && !act->error)
		return append_as_passed(s, at, TOCSIN_TAG_MOUNT_PATH, act->path, PATH_BITS, flags);
	if (act->type == TOCSIN_EVENT_TYPE_CHROOT && !act->error &&
	    start_of_path(task, AT_FDCWD, true, &root)) {
		at = append_path(s, at, TOCSIN_TAG_MOUNT_PATH, &root, &cut);
		*flags |= cut ? TOCSIN_PATH_FLAG_PATH_TRUNCATED : 0;
		return at;
	}
	return append_user_path(s, at, TOCSIN_TAG_MOUNT_PATH, act->directory, act->path, PATH_BITS,
				flags);
}

/* What a mount that came as a descriptor shows: a directory inside a file system, else its device. */
static __always_inline u64 append_mounted(struct scratch *s, u64 at, struct file *file, u32 *flags)
{
	struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);
	struct mount *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	struct super_block *sb = BPF_CORE_READ(mnt, mnt_sb);
	struct dentry *root = BPF_CORE_READ(mnt, mnt_root);

	if (root == BPF_CORE_READ(sb, s_root)) {
		at = append_kernel_text(s, at, TOCSIN_TAG_MOUNT_SOURCE,
					BPF_CORE_READ(mount, mnt_devname));
	} else {
		at = put_path(0, (u64)root, at, TOCSIN_TAG_MOUNT_SOURCE, s->slot);
		if (at & PATH_CUT)
			*flags |= TOCSIN_PATH_FLAG_SOURCE_TRUNCATED;
		at &= ~(u64)PATH_CUT;
	}
	return append_kernel_string(s, at, TOCSIN_TAG_MOUNT_FILESYSTEM,
				    BPF_CORE_READ(sb, s_type, name));
}

static __always_inline u64 append_mount_source(struct scratch *s, u64 at, struct mount_act *act,
					       u32 *flags)
{
	if (act->mounted)
		return append_mounted(s, at, act->mounted, flags);
	if (!act->source)
		return at;
	if (!act->source_is_path)
		return append_user_text(s, at, TOCSIN_TAG_MOUNT_SOURCE, act->source, SOURCE_BITS,
					flags);
	if (act->type == TOCSIN_EVENT_TYPE_PIVOT_ROOT && !act->error)
		return append_as_passed(s, at, TOCSIN_TAG_MOUNT_SOURCE, act->source, SOURCE_BITS,
					flags);
	return append_user_path(s, at, TOCSIN_TAG_MOUNT_SOURCE, act->source_directory, act->source,
				SOURCE_BITS, flags);
}

static __always_inline void tell_mount(struct mount_act *act)
{
	struct wire_mount *w;
	u32 path_flags = 0;
	struct scratch *s;
	u64 at, body;

	s = begin_act(act->type, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	wire_mount_tags(w);
	WIRE_PUT(w, error, act->error);
	WIRE_PUT(w, flags, act->flags);
	at = body + sizeof(struct long_field) + sizeof(*w);
	at = append_mount_path(s, at, act, &path_flags);
	at = append_mount_source(s, at, act, &path_flags);
	if (act->filesystem)
		at = append_user_string(s, at, TOCSIN_TAG_MOUNT_FILESYSTEM, act->filesystem,
					TOCSIN_MAX_MOUNT_FILESYSTEM);
	WIRE_PUT(w, path_flags, path_flags);
	submit_act(s, act->type, body, at);
}

SEC("tp_btf/sys_exit")
int act_mount(unsigned long long *ctx)
{
	struct mount_act act = {.directory = AT_FDCWD, .source_directory = AT_FDCWD};
	struct call call;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	act.error = call.error;
	read_mount_act(&act, &call);
	if (wanted(act.type, (void *)bpf_get_current_task()))
		tell_mount(&act);
	return 0;
}

#endif
