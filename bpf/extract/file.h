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

/* Where a path of the task begins: at its own root, its directory, or a descriptor's. */
static __always_inline bool start_of_path(struct task_struct *task, int dirfd, bool absolute,
					  struct path *path)
{
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct file *file;

	if (absolute)
		return !bpf_probe_read_kernel(path, sizeof(*path),
					      __builtin_preserve_access_index(&fs->root));
	if (dirfd == AT_FDCWD)
		return !bpf_probe_read_kernel(path, sizeof(*path),
					      __builtin_preserve_access_index(&fs->pwd));
	file = file_of_fd(task, dirfd);
	return file && !bpf_probe_read_kernel(path, sizeof(*path),
					      __builtin_preserve_access_index(&file->f_path));
}

/* Whether a system call was given no name: then its descriptor is what it acts on. */
static __always_inline bool is_nameless(u64 address)
{
	u8 first = 0;

	return !address || (!bpf_probe_read_user(&first, 1, (void *)address) && !first);
}

/* How far the bits of path_flags for this path are shifted. */
#define PATH_BITS   0
#define SOURCE_BITS 3
_Static_assert(TOCSIN_PATH_FLAG_PATH_TRUNCATED << SOURCE_BITS == TOCSIN_PATH_FLAG_SOURCE_TRUNCATED,
	       "cut");
_Static_assert(TOCSIN_PATH_FLAG_PATH_AS_GIVEN << SOURCE_BITS == TOCSIN_PATH_FLAG_SOURCE_AS_GIVEN,
	       "as given");
_Static_assert(TOCSIN_PATH_FLAG_PATH_UNREADABLE << SOURCE_BITS ==
		       TOCSIN_PATH_FLAG_SOURCE_UNREADABLE,
	       "unreadable");

/* An offset in the record and bits of path_flags in one number: what a global function returns. */
#define WITH_FLAGS(at, flags) ((u64)(flags) << 32 | (u32)(at))

/* Beside a tag: the address is that of the kernel's own copy of what the process passed. */
#define COPIED 0x10000

/* Text in the memory of the process, or the kernel's copy of it; the result is the helpers'. */
static __always_inline long read_text(void *to, u32 size, u64 address, u32 tag)
{
	return tag & COPIED ? bpf_probe_read_kernel_str(to, size, (void *)address) :
			      bpf_probe_read_user_str(to, size, (void *)address);
}

/* Moves the last PATH_BYTES - 1 of `used` bytes to the front. */
static __always_inline void keep_tail(struct scratch *s, u64 text, u64 used)
{
	u64 excess = used - (PATH_BYTES - 1);

	BARRIER(text);
	BARRIER(excess);
	if (text > RECORD_BYTES - 2 * PATH_BYTES || excess > PATH_BYTES)
		return;
	BOUND(text, BODY_MASK);
	bpf_probe_read_kernel(s->path, PATH_BYTES - 1, s->record + text + excess);
	bpf_probe_read_kernel(s->record + text, PATH_BYTES - 1, s->path);
}

/*
 * Appends a path that the current task passed to the kernel, as a field with a tag of two bytes:
 * behind the directory where it begins, "" as that directory itself (AT_EMPTY_PATH). What the
 * process named is kept: links and dots stay. A path that does not fit PATH_BYTES loses its head.
 * Returns WITH_FLAGS. Global, like walk_path, so that it is verified once.
 */
__noinline u64 put_user_path(u64 begin, u64 address, int dirfd, u32 tag, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u32 flags = TOCSIN_PATH_FLAG_PATH_AS_GIVEN;
	struct long_field *field;
	struct path path;
	long length;
	u8 *to, first[2] = {};
	u64 at, used;
	bool cut;

	if (!s || begin > RECORD_BYTES - 2 * PATH_BYTES - sizeof(*field))
		return RECORD_BYTES + 1;
	if ((address && read_text(first, sizeof(first), address, tag) < 0) ||
	    !start_of_path((void *)bpf_get_current_task(), dirfd, *first == '/', &path))
		return WITH_FLAGS(begin, TOCSIN_PATH_FLAG_PATH_UNREADABLE);
	at = append_path(s, begin, tag, &path, &cut);
	if (!*first)
		return WITH_FLAGS(at, cut ? TOCSIN_PATH_FLAG_PATH_TRUNCATED : 0);
	if (cut)
		flags |= TOCSIN_PATH_FLAG_PATH_TRUNCATED;
	used = at - begin - sizeof(*field);
	if (used == 1) /* the root: its slash is the path's own, or comes below */
		used = 0;
	BARRIER(used);
	if (used > PATH_BYTES - 1)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + begin);
	to = s->record + begin + sizeof(*field) + used;
	if (*first != '/')
		*to++ = '/', used++;
	length = read_text(to, PATH_BYTES, address, tag);
	if (length < 0)
		return WITH_FLAGS(begin, TOCSIN_PATH_FLAG_PATH_UNREADABLE);
	used += length ? length - 1 : 0;
	if (used > PATH_BYTES - 1) {
		flags |= TOCSIN_PATH_FLAG_PATH_TRUNCATED;
		keep_tail(s, begin + sizeof(*field), used);
		used = PATH_BYTES - 1;
	}
	field->tag = tag;
	put_length(field->length, used);
	return WITH_FLAGS(begin + sizeof(*field) + used, flags);
}

/* The same, as append functions go; `bits`: PATH_BITS or SOURCE_BITS. */
static __always_inline u64 append_user_path(struct scratch *s, u64 at, u32 tag, int dirfd,
					    u64 address, u32 bits, u32 *flags)
{
	u64 end = put_user_path(at, address, dirfd, tag, s->slot);

	*flags |= (end >> 32) << bits;
	return (u32)end;
}

/* Appends text of the task where a path could stand: what a symbolic link says, a device. */
static __always_inline u64 append_user_text(struct scratch *s, u64 at, u32 tag, u64 address,
					    u32 bits, u32 *flags)
{
	struct long_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - PATH_BYTES - sizeof(*field))
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = read_text(s->record + at + sizeof(*field), PATH_BYTES, address, tag);
	if (length < 1) {
		*flags |= TOCSIN_PATH_FLAG_PATH_UNREADABLE << bits;
		return at;
	}
	field->tag = tag;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & (PATH_BYTES - 1));
}

/* Appends a string of the kernel where a path could stand. */
static __always_inline u64 append_kernel_text(struct scratch *s, u64 at, u16 tag, const char *from)
{
	struct long_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - PATH_BYTES - sizeof(*field))
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = bpf_probe_read_kernel_str(s->record + at + sizeof(*field), PATH_BYTES, from);
	if (length < 1)
		return at;
	field->tag = tag;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & (PATH_BYTES - 1));
}

/* Appends a string of the task as a field with a tag of one byte and at most 255 bytes. */
static __always_inline u64 append_user_string(struct scratch *s, u64 at, u32 tag, u64 address,
					      u32 most)
{
	struct short_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = read_text(s->record + at + sizeof(*field), most + 1, address, tag);
	if (length <= 1)
		return at;
	field->tag = tag;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & 0xff);
}

/* Appends a string of the kernel as a field with a tag of one byte: at most 255 bytes. */
static __always_inline u64 append_kernel_string(struct scratch *s, u64 at, u8 tag, const char *text)
{
	long length;
	u8 *to;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	to = s->record + at;
	length = bpf_probe_read_kernel_str(to + sizeof(struct short_field), 256, text);
	length = length > 0 ? length - 1 : 0;
	to[0] = tag;
	put_length(to + 1, length);
	return at + sizeof(struct short_field) + (length & 0xff);
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
