/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The absolute path of a file, over mount points, as its mount namespace has it. */
#ifndef TOCSIN_EXTRACT_PATH_H
#define TOCSIN_EXTRACT_PATH_H

#include "base/record.h"

/* Components of one path. Each costs the verifier some 3,000 instructions; deeper paths lose
 * their head, and say so. */
#define PATH_DEPTH 48
#define NAME_BYTES 255
/* Set in walk_path's result when the head of the path is missing. */
#define PATH_CUT 0x80000000U

/*
 * Puts "/" and the name in front of what stands at `offset` in the path area. A global function
 * with scalar arguments is verified once, not at each call.
 */
__noinline u32 put_name(u64 dentry_address, u32 offset, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	struct dentry *dentry = (void *)dentry_address;
	struct qstr name;
	u64 length;

	if (!s)
		return offset | PATH_CUT;
	bpf_probe_read_kernel(&name, sizeof(name),
			      __builtin_preserve_access_index(&dentry->d_name));
	length = name.len & NAME_BYTES;
	if (offset < length + 1)
		return offset | PATH_CUT;
	offset -= length + 1;
	offset &= PATH_BYTES - 1;
	s->path[offset] = '/';
	bpf_probe_read_kernel(&s->path[(offset + 1) & (PATH_BYTES - 1)], length, name.name);
	return offset;
}

/*
 * Builds the path at the end of the scratch's path area; returns the offset of its first byte
 * (PATH_BYTES: the root), with PATH_CUT. Names of pseudo files (memfd:x) have no parent and no mount point.
 * A mount that was taken out of its namespace does not say where it was. Without a mount: the path
 * in its file system, behind the name of that one's root, which is a slash.
 */
__noinline u32 walk_path(u64 vfsmount, u64 dentry_address, u32 slot)
{
	struct vfsmount *vfs = (void *)vfsmount;
	struct dentry *dentry = (void *)dentry_address, *parent, *root;
	struct mount *mount, *mount_parent;
	u32 offset = PATH_BYTES;

	mount = (void *)(vfsmount - bpf_core_field_offset(struct mount, mnt));
	root = BPF_CORE_READ(vfs, mnt_root);
	for (int i = 0; i < PATH_DEPTH; i++) {
		parent = BPF_CORE_READ(dentry, d_parent);
		if (dentry == root) {
			mount_parent = BPF_CORE_READ(mount, mnt_parent);
			if (mount_parent == mount)
				return BPF_CORE_READ(mount, mnt_ns) ? offset : offset | PATH_CUT;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = mount_parent;
			root = BPF_CORE_READ(mount, mnt.mnt_root);
			continue;
		}
		offset = put_name((u64)dentry, offset, slot);
		if (offset & PATH_CUT || dentry == parent)
			return offset;
		dentry = parent;
	}
	return offset | PATH_CUT;
}

/* Appends the path as a field with a tag of two bytes; returns the record's end, with PATH_CUT. */
__noinline u64 put_path(u64 vfsmount, u64 dentry, u64 at, u32 tag, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u32 walked = walk_path(vfsmount, dentry, slot);
	u64 offset = walked & ~PATH_CUT, length;
	struct long_field *field;
	u8 *to;

	if (!vfsmount && !(walked & PATH_CUT))
		offset += 2; /* the name of the file system's root, and its slash */
	length = PATH_BYTES - offset;
	if (!s || at > BODY_MASK - sizeof(*field))
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	field = (void *)(s->record + at);
	to = s->record + at + sizeof(*field);
	BARRIER(length);
	length &= PATH_BYTES - 1;
	offset &= PATH_BYTES - 1;
	if (length == 0) {
		to[0] = '/';
		length = 1;
	} else {
		bpf_probe_read_kernel(to, length, s->path + offset);
	}
	field->tag = tag;
	put_length(field->length, length);
	return (at + sizeof(*field) + length) | (walked & PATH_CUT);
}

/* The same; sets *cut when the head of the path is missing. */
static __always_inline u64 append_path(struct scratch *s, u64 at, u16 tag, struct path *path,
				       bool *cut)
{
	at = put_path((u64)path->mnt, (u64)path->dentry, at, tag, s->slot);
	*cut = at & PATH_CUT;
	return at & ~(u64)PATH_CUT;
}

#endif
