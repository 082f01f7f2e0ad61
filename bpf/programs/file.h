/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Files: opened for writing, made, read where watched, named, removed, changed. Told when the
 * system call has returned, with the path of the file that it got; where there is no file to ask
 * (a name that is gone, an attribute that was set by path), with the path that the process passed.
 */
#ifndef TOCSIN_PROGRAMS_FILE_H
#define TOCSIN_PROGRAMS_FILE_H

#include "base/syscall.h"
#include "extract/file.h"
#include "store/images.h"

#define O_ACCMODE     03
#define O_WRONLY      01
#define O_CREAT       0100
#define O_TRUNC       01000
#define TMPFILE_BIT   020000000
#define FMODE_WRITE   0x2
#define FMODE_PATH    0x4000
#define FMODE_CREATED 0x100000

#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
/* Of the memory devices those that are memory or ports: mem, kmem, port. */
#define MEMORY_DEVICES     1
#define LAST_MEMORY_DEVICE 4
#define DEVICE_MINOR_BITS  20

/* What an act on files is told with. */
struct file_act {
	u8 type;
	/* Where the path comes from: this file, else directory and address in the process. */
	struct file *file;
	int directory;
	u64 path;
	int source_directory;
	u64 source;
	/* The source is text, not a path to be made absolute. */
	bool source_is_text;
	u64 attribute;
	u32 open_flags;
	u32 mode;
	u32 uid;
	u32 gid;
	u64 size;
	u32 error;
};

/* The verdict on the longest known beginning of the path that stands at `at` in the record. */
static __always_inline u32 verdict_of_path(struct scratch *s, u64 at)
{
	struct path_prefix *prefix = (void *)s->path;
	u8 *verdict;

	BARRIER(at);
	if (at > RECORD_BYTES - PREFIX_BYTES - sizeof(struct long_field))
		return 0;
	prefix->bits = PREFIX_BYTES * 8;
	bpf_probe_read_kernel(prefix->bytes, PREFIX_BYTES,
			      s->record + at + sizeof(struct long_field));
	verdict = bpf_map_lookup_elem(&path_verdicts, prefix);
	return verdict ? *verdict : 0;
}

static __always_inline u32 verdict_of_name(struct dentry *dentry)
{
	struct watched_name name = {};
	u8 *verdict;

	bpf_probe_read_kernel_str(name.bytes, sizeof(name.bytes),
				  BPF_CORE_READ(dentry, d_name.name));
	verdict = bpf_map_lookup_elem(&name_verdicts, &name);
	return verdict ? *verdict : 0;
}

/* Whether a file that is read may be watched: by its own name and its directory's. */
static __always_inline u32 verdict_of_names(struct file *file)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);

	return verdict_of_name(dentry) | verdict_of_name(BPF_CORE_READ(dentry, d_parent));
}

static __always_inline void tell_file(struct file_act *act, u32 path_verdict_needed)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct settings *settings = current_settings();
	u64 at, body, path, verdict;
	struct scratch *s;
	struct wire_file *w;
	u32 path_flags = 0;

	if (!settings)
		return;
	s = begin(act->type, &at);
	if (!s)
		return;
	at = append_current(s, at);
	body = at;
	BARRIER(at);
	if (at > 6144) {
		submit(s, act->type, RECORD_BYTES + 1);
		return;
	}
	w = (void *)(s->record + at + sizeof(struct long_field));
	wire_file_tags(w);
	WIRE_PUT(w, error, act->error);
	WIRE_PUT(w, open_flags, act->open_flags);
	WIRE_PUT(w, mode, act->mode);
	WIRE_PUT(w, inode, 0);
	WIRE_PUT(w, dev, 0);
	WIRE_PUT(w, uid, act->uid);
	WIRE_PUT(w, gid, act->gid);
	WIRE_PUT(w, size, act->size);
	if (act->file)
		put_file(w, act->file);
	at += sizeof(struct long_field) + sizeof(*w);
	path = at;
	if (act->file)
		at = append_file_path(s, at, TOCSIN_TAG_FILE_PATH, act->file,
				      TOCSIN_PATH_FLAG_PATH_TRUNCATED, &path_flags);
	else
		at = append_user_path(s, at, TOCSIN_TAG_FILE_PATH, task, act->directory, act->path,
				      PATH_BITS, &path_flags);
	if (settings->filters & FILTER_PATHS || path_verdict_needed) {
		verdict = verdict_of_path(s, path);
		if (verdict & VERDICT_IGNORE ||
		    (path_verdict_needed && !(verdict & path_verdict_needed))) {
			release(s);
			return;
		}
	}
	if (act->source_is_text)
		at = append_user_text(s, at, TOCSIN_TAG_FILE_SOURCE, act->source, &path_flags);
	else if (act->source)
		at = append_user_path(s, at, TOCSIN_TAG_FILE_SOURCE, task, act->source_directory,
				      act->source, SOURCE_BITS, &path_flags);
	if (act->attribute)
		at = append_user_string(s, at, TOCSIN_TAG_FILE_ATTRIBUTE, act->attribute,
					TOCSIN_MAX_FILE_ATTRIBUTE);
	WIRE_PUT(w, path_flags, path_flags);
	submit(s, act->type, close_body(s, body, at, BODY_TAG(act->type)));
}

/* Files and block devices, and memory as a device; no terminals, pipes, sockets and the like. */
static __always_inline bool holds_data(struct inode *inode)
{
	u32 type = BPF_CORE_READ(inode, i_mode) & S_IFMT, device;

	if (type == S_IFREG || type == S_IFBLK)
		return true;
	if (type != S_IFCHR)
		return false;
	device = BPF_CORE_READ(inode, i_rdev);
	return device >> DEVICE_MINOR_BITS == MEMORY_DEVICES &&
	       (device & ((1 << DEVICE_MINOR_BITS) - 1)) <= LAST_MEMORY_DEVICE &&
	       (device & ((1 << DEVICE_MINOR_BITS) - 1)) != 3; /* null */
}

/* Sets the type of an open that succeeded; false: it is of no interest. */
static __always_inline bool judge_open(struct file_act *act, u32 *path_verdict)
{
	struct file *file = act->file;
	u32 mode = BPF_CORE_READ(file, f_mode), names;

	if (mode & FMODE_PATH || !holds_data(BPF_CORE_READ(file, f_inode)))
		return false;
	if (mode & FMODE_CREATED || act->open_flags & TMPFILE_BIT) {
		act->type = TOCSIN_EVENT_TYPE_FILE_CREATE;
		return true;
	}
	if (mode & FMODE_WRITE) {
		act->type = TOCSIN_EVENT_TYPE_FILE_WRITE;
		return true;
	}
	act->type = TOCSIN_EVENT_TYPE_FILE_READ;
	names = verdict_of_names(file);
	if (names & VERDICT_ASK_PATH)
		*path_verdict = VERDICT_WATCH;
	return names & (VERDICT_WATCH | VERDICT_ASK_PATH);
}

SEC("tp_btf/sys_exit")
int act_file_open(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file_act act = {.directory = AT_FDCWD};
	u32 path_verdict = 0;
	struct call call;
	u64 how = 0;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	act.error = call.error;
	switch (call.act) {
	case ACT_OPEN:
		act.path = call.argument[0];
		act.open_flags = call.argument[1];
		break;
	case ACT_CREAT:
		act.path = call.argument[0];
		act.open_flags = O_CREAT | O_WRONLY | O_TRUNC;
		break;
	case ACT_OPENAT:
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.open_flags = call.argument[2];
		break;
	default: /* ACT_OPENAT2 */
		act.directory = call.argument[0];
		act.path = call.argument[1];
		bpf_probe_read_user(&how, sizeof(how), (void *)call.argument[2]);
		act.open_flags = how;
	}
	if (act.error) {
		act.type = TOCSIN_EVENT_TYPE_FILE_WRITE;
		if (!(act.open_flags & (O_ACCMODE | O_CREAT))) {
			act.type = TOCSIN_EVENT_TYPE_FILE_READ;
			path_verdict = VERDICT_WATCH;
		}
	} else {
		act.file = file_of_fd(task, call.result);
		if (!act.file || !judge_open(&act, &path_verdict))
			return 0;
	}
	if (wanted(act.type, task))
		tell_file(&act, path_verdict);
	return 0;
}

/* Names that come, go and change. */
SEC("tp_btf/sys_exit")
int act_file_name(unsigned long long *ctx)
{
	struct file_act act = {.directory = AT_FDCWD, .source_directory = AT_FDCWD};
	struct call call;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	act.error = call.error;
	switch (call.act) {
	case ACT_UNLINK:
	case ACT_RMDIR:
		act.type = TOCSIN_EVENT_TYPE_FILE_DELETE;
		act.path = call.argument[0];
		break;
	case ACT_UNLINKAT:
		act.type = TOCSIN_EVENT_TYPE_FILE_DELETE;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.open_flags = call.argument[2];
		break;
	case ACT_RENAME:
	case ACT_LINK:
		act.type = call.act == ACT_RENAME ? TOCSIN_EVENT_TYPE_FILE_RENAME :
						    TOCSIN_EVENT_TYPE_FILE_LINK;
		act.source = call.argument[0];
		act.path = call.argument[1];
		break;
	case ACT_RENAMEAT:
	case ACT_LINKAT:
		act.type = call.act == ACT_RENAMEAT ? TOCSIN_EVENT_TYPE_FILE_RENAME :
						      TOCSIN_EVENT_TYPE_FILE_LINK;
		act.source_directory = call.argument[0];
		act.source = call.argument[1];
		act.directory = call.argument[2];
		act.path = call.argument[3];
		break;
	case ACT_SYMLINK:
	case ACT_SYMLINKAT:
		act.type = TOCSIN_EVENT_TYPE_FILE_SYMLINK;
		act.source_is_text = true;
		act.source = call.argument[0];
		act.path = call.argument[1];
		if (call.act == ACT_SYMLINKAT) {
			act.directory = call.argument[1];
			act.path = call.argument[2];
		}
		break;
	case ACT_MKDIR:
		act.type = TOCSIN_EVENT_TYPE_DIRECTORY_CREATE;
		act.path = call.argument[0];
		act.mode = call.argument[1];
		break;
	case ACT_MKDIRAT:
		act.type = TOCSIN_EVENT_TYPE_DIRECTORY_CREATE;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.mode = call.argument[2];
		break;
	case ACT_MKNOD:
		act.type = TOCSIN_EVENT_TYPE_FILE_CREATE;
		act.path = call.argument[0];
		act.mode = call.argument[1];
		break;
	default: /* ACT_MKNODAT */
		act.type = TOCSIN_EVENT_TYPE_FILE_CREATE;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.mode = call.argument[2];
	}
	if (wanted(act.type, (void *)bpf_get_current_task()))
		tell_file(&act, 0);
	return 0;
}

/* Attributes: bits, owner, extended attributes, size, times. By descriptor or by path. */
SEC("tp_btf/sys_exit")
int act_file_attribute(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file_act act = {.directory = AT_FDCWD, .uid = -1, .gid = -1};
	struct call call;
	int fd = -1;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	act.error = call.error;
	act.path = call.argument[0];
	switch (call.act) {
	case ACT_CHMOD:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHMOD;
		act.mode = call.argument[1];
		break;
	case ACT_FCHMOD:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHMOD;
		act.mode = call.argument[1];
		fd = call.argument[0];
		break;
	case ACT_FCHMODAT:
	case ACT_FCHMODAT2:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHMOD;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.mode = call.argument[2];
		break;
	case ACT_CHOWN:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.uid = call.argument[1];
		act.gid = call.argument[2];
		break;
	case ACT_FCHOWN:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.uid = call.argument[1];
		act.gid = call.argument[2];
		fd = call.argument[0];
		break;
	case ACT_FCHOWNAT:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.uid = call.argument[2];
		act.gid = call.argument[3];
		break;
	case ACT_SETXATTR:
	case ACT_REMOVEXATTR:
		act.type = TOCSIN_EVENT_TYPE_FILE_XATTR;
		act.attribute = call.argument[1];
		break;
	case ACT_FSETXATTR:
	case ACT_FREMOVEXATTR:
		act.type = TOCSIN_EVENT_TYPE_FILE_XATTR;
		act.attribute = call.argument[1];
		fd = call.argument[0];
		break;
	case ACT_SETXATTRAT:
	case ACT_REMOVEXATTRAT:
		act.type = TOCSIN_EVENT_TYPE_FILE_XATTR;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.attribute = call.argument[3];
		break;
	case ACT_TRUNCATE:
	case ACT_FTRUNCATE:
		act.type = TOCSIN_EVENT_TYPE_FILE_TRUNCATE;
		act.size = call.argument[1];
		if (call.act == ACT_FTRUNCATE)
			fd = call.argument[0];
		break;
	case ACT_TRUNCATE64:
	case ACT_FTRUNCATE64: /* of 32-bit processes: in two halves */
		act.type = TOCSIN_EVENT_TYPE_FILE_TRUNCATE;
		act.size = call.argument[1] | call.argument[2] << 32;
		if (call.act == ACT_FTRUNCATE64)
			fd = call.argument[0];
		break;
	case ACT_UTIME:
		act.type = TOCSIN_EVENT_TYPE_FILE_TIMES;
		break;
	default: /* ACT_UTIMENSAT: without a path the descriptor's file */
		act.type = TOCSIN_EVENT_TYPE_FILE_TIMES;
		act.directory = call.argument[0];
		act.path = call.argument[1];
	}
	if (!wanted(act.type, task))
		return 0;
	if (fd >= 0) {
		act.file = file_of_fd(task, fd);
		if (!act.file)
			return 0;
	}
	tell_file(&act, 0);
	return 0;
}

#endif
