/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Files of a process: behind a descriptor, and by a path that the process passed. */
#ifndef TOCSIN_EXTRACT_FILE_H
#define TOCSIN_EXTRACT_FILE_H

#include "extract/path.h"

#define AT_FDCWD (-100)

/* The file behind a descriptor of the task, NULL when there is none. */
static __always_inline struct file *file_of_fd(struct task_struct *task, int fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots, *file = NULL;

	if (fd < 0 || (u32)fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	slots = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return file;
}

/* Appends the path of an open file; sets `cut` in *flags when its head is missing. */
static __always_inline u64 append_file_path(struct scratch *s, u64 at, u16 tag, struct file *file,
					    u32 cut, u32 *flags)
{
	struct path path;
	bool headless;

	bpf_probe_read_kernel(&path, sizeof(path), __builtin_preserve_access_index(&file->f_path));
	at = append_path(s, at, tag, &path, &headless);
	if (headless)
		*flags |= cut;
	return at;
}

/* Where a relative path of the task begins. */
static __always_inline bool start_of_path(struct task_struct *task, int dirfd, struct path *path)
{
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct file *file;

	if (dirfd == AT_FDCWD)
		return !bpf_probe_read_kernel(path, sizeof(*path),
					      __builtin_preserve_access_index(&fs->pwd));
	file = file_of_fd(task, dirfd);
	return file && !bpf_probe_read_kernel(path, sizeof(*path),
					      __builtin_preserve_access_index(&file->f_path));
}

/* What the bits of path_flags are called for this path. */
struct path_bits {
	u32 truncated;
	u32 as_given;
	u32 unreadable;
};

#define PATH_BITS                                                                            \
	((struct path_bits){TOCSIN_PATH_FLAG_PATH_TRUNCATED, TOCSIN_PATH_FLAG_PATH_AS_GIVEN, \
			    TOCSIN_PATH_FLAG_PATH_UNREADABLE})
#define SOURCE_BITS                                                                              \
	((struct path_bits){TOCSIN_PATH_FLAG_SOURCE_TRUNCATED, TOCSIN_PATH_FLAG_SOURCE_AS_GIVEN, \
			    TOCSIN_PATH_FLAG_SOURCE_UNREADABLE})

/*
 * Appends a path that the task passed to a system call, as a field with a tag of two bytes:
 * absolute as it is, relative behind the directory where it begins, "" as that directory itself
 * (AT_EMPTY_PATH). What the process named is kept: links and dots stay. A path that does not fit
 * PATH_BYTES is cut.
 */
static __always_inline u64 append_user_path(struct scratch *s, u64 at, u16 tag,
					    struct task_struct *task, int dirfd, u64 address,
					    struct path_bits bits, u32 *flags)
{
	u64 begin = at, used = 0;
	struct long_field *field;
	struct path path;
	long length;
	u8 *to, first = 0;
	bool cut;

	if (address && bpf_probe_read_user(&first, 1, (void *)address)) {
		*flags |= bits.unreadable;
		return at;
	}
	if (first != '/') {
		if (!start_of_path(task, dirfd, &path)) {
			*flags |= bits.unreadable;
			return at;
		}
		at = append_path(s, at, tag, &path, &cut);
		if (cut)
			*flags |= bits.truncated;
		if (!first)
			return at;
		used = at - begin - sizeof(*field);
	}
	*flags |= bits.as_given;
	BARRIER(used);
	BARRIER(begin);
	if (used > PATH_BYTES - 2 || begin > RECORD_BYTES - 2 * PATH_BYTES - sizeof(*field))
		return RECORD_BYTES + 1;
	field = (void *)(s->record + begin);
	to = s->record + begin + sizeof(*field) + used;
	if (used > 1)
		*to++ = '/', used++;
	length = bpf_probe_read_user_str(to, PATH_BYTES, (void *)address);
	if (length < 0) {
		*flags |= bits.unreadable;
		return begin;
	}
	used += length ? length - 1 : 0;
	if (used > PATH_BYTES - 1) {
		*flags |= bits.truncated;
		used = PATH_BYTES - 1;
	}
	field->tag = tag;
	put_length(field->length, used);
	return begin + sizeof(*field) + (used & (2 * PATH_BYTES - 1));
}

/* Appends text that the task passed where a path could stand: what a symbolic link says. */
static __always_inline u64 append_user_text(struct scratch *s, u64 at, u16 tag, u64 address,
					    u32 *flags)
{
	struct long_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - PATH_BYTES - sizeof(*field))
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = bpf_probe_read_user_str(s->record + at + sizeof(*field), PATH_BYTES,
					 (void *)address);
	if (length < 1) {
		*flags |= TOCSIN_PATH_FLAG_SOURCE_UNREADABLE;
		return at;
	}
	field->tag = tag;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & (PATH_BYTES - 1));
}

/* Appends a string of the task as a field with a tag of one byte and at most 127 bytes. */
static __always_inline u64 append_user_string(struct scratch *s, u64 at, u8 tag, u64 address,
					      u32 most)
{
	struct short_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length =
		bpf_probe_read_user_str(s->record + at + sizeof(*field), most + 1, (void *)address);
	if (length <= 1)
		return at;
	field->tag = tag;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & 0x1ff);
}

static __always_inline void put_file(struct wire_file *w, struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	WIRE_PUT(w, mode, BPF_CORE_READ(inode, i_mode));
	WIRE_PUT(w, inode, BPF_CORE_READ(inode, i_ino));
	WIRE_PUT(w, dev, BPF_CORE_READ(inode, i_sb, s_dev));
	WIRE_PUT(w, uid, BPF_CORE_READ(inode, i_uid.val));
	WIRE_PUT(w, gid, BPF_CORE_READ(inode, i_gid.val));
}

#endif
