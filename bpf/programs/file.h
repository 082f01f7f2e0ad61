/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Files: opened for writing, made, read where watched, named, removed, changed. Told when the
 * system call has returned, with the path of the file that it got; where there is no file to ask
 * (a name that is gone, an attribute that was set by path), with the path that the process passed.
 */
#ifndef TOCSIN_PROGRAMS_FILE_H
#define TOCSIN_PROGRAMS_FILE_H

#include "extract/file.h"
#include "store/act.h"

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
#define NULL_DEVICE        3
#define LAST_MEMORY_DEVICE 4
#define DEVICE_MINOR_BITS  20
/* A name can be watched only where it and its directory's are shorter. */
#define NAME_SEARCH 64
/* Dots are sought in so much of a path that a process passed; a longer one is not ignored. */
#define DOTS_SEARCH 256
/* The chown of 32-bit processes with 16-bit ids has a lower number than chown32 and lchown32. */
#define LCHOWN32 198

#define NOTHING_KNOWN                                                                     \
	{                                                                                 \
		.directory = AT_FDCWD, .source_directory = AT_FDCWD, .uid = -1, .gid = -1 \
	}

/*
 * The verdict on the longest known beginning of the path field from `at` to `end` in the record.
 * This and those below are global functions with scalar arguments: verified once, not at each
 * call.
 */
__noinline u32 verdict_of_path(u64 at, u64 end, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u64 length = end - at - sizeof(struct long_field);
	struct path_prefix *prefix;
	u8 *verdict;

	if (!s || at > BODY_AT)
		return 0;
	BOUND(at, BODY_MASK);
	prefix = (void *)s->path;
	prefix->bits = (length < PREFIX_BYTES ? length : PREFIX_BYTES) * 8;
	bpf_probe_read_kernel(prefix->bytes, PREFIX_BYTES,
			      s->record + at + sizeof(struct long_field));
	verdict = bpf_map_lookup_elem(&path_verdicts, prefix);
	return verdict ? *verdict : 0;
}

static __always_inline u32 verdict_of_name(const void *from, u32 size)
{
	struct watched_name name = {};
	u8 *verdict;

	bpf_probe_read_kernel_str(name.bytes, size, from);
	verdict = bpf_map_lookup_elem(&name_verdicts, &name);
	return verdict ? *verdict : 0;
}

/* Where the name that ends at `end` in the record begins; NO_NAME: it is too long to be watched. */
#define NO_NAME ((u64)RECORD_BYTES)
__noinline u64 begin_of_name(u64 end, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u64 begin;

	if (!s || end < NAME_SEARCH || end > BODY_MASK)
		return NO_NAME;
	begin = end - NAME_SEARCH;
	BOUND(begin, BODY_MASK);
	for (u64 i = NAME_SEARCH - 1; i; i--)
		if (s->record[begin + i] == '/')
			return begin + i + 1;
	return NO_NAME;
}

/* Global, so that nothing is spilled between a check and its use: verifiers before 6.8 lose it there. */
__noinline u32 verdict_of_text(u64 begin, u64 end, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u64 size = end - begin + 1;

	if (!s)
		return 0;
	BARRIER(size);
	if (size > WATCHED_NAME_BYTES)
		return 0;
	BARRIER(begin);
	if (begin > BODY_AT)
		return 0;
	BOUND(begin, BODY_MASK);
	return verdict_of_name(s->record + begin, size);
}

/* The same as verdict_of_names, of a path that ends at `end` in the record. */
static __always_inline u32 verdict_of_last_names(struct scratch *s, u64 end)
{
	u64 name = begin_of_name(end, s->slot), directory;

	if (name >= NO_NAME)
		return 0;
	directory = begin_of_name(name - 1, s->slot);
	return verdict_of_text(name, end, s->slot) | verdict_of_text(directory, name - 1, s->slot);
}

/* Whether a file that is read may be watched: by its own name and its directory's. */
static __always_inline u32 verdict_of_names(struct file *file)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);

	struct dentry *parent = BPF_CORE_READ(dentry, d_parent);

	return verdict_of_name(BPF_CORE_READ(dentry, d_name.name), WATCHED_NAME_BYTES) |
	       verdict_of_name(BPF_CORE_READ(parent, d_name.name), WATCHED_NAME_BYTES);
}

/* Whether ".." stands in the path field from `at` to `end`, or could. */
__noinline u32 may_climb(u64 at, u64 end, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u32 pair, last = 0, found = 0;

	if (!s || end - at > DOTS_SEARCH || at > BODY_AT)
		return 1;
	BOUND(at, BODY_MASK);
	for (u64 i = sizeof(struct long_field); i < DOTS_SEARCH; i++) {
		BARRIER(i); /* else a pointer may be counted instead, which the verifier takes for unbounded */
		pair = (last << 8 | s->record[at + i]) & 0xffff;
		last = pair & 0xff;
		/* 1 where the pair is two dots: branches would cost the verifier a state each. */
		found |= ((pair ^ 0x2e2e) - 1) >> 31;
		if (at + i + 1 >= end)
			break;
	}
	return found;
}

/*
 * Whether acts on this path are not wanted. Not so when the path may lead elsewhere than its
 * beginning says: without its head, or with ".." in what the process passed.
 */
static __always_inline bool is_ignored(struct scratch *s, u64 at, u64 end, u32 bits, u32 flags)
{
	if (flags & (TOCSIN_PATH_FLAG_PATH_TRUNCATED | TOCSIN_PATH_FLAG_PATH_UNREADABLE) << bits ||
	    !(verdict_of_path(at, end, s->slot) & VERDICT_IGNORE))
		return false;
	return !(flags & TOCSIN_PATH_FLAG_PATH_AS_GIVEN << bits) || !may_climb(at, end, s->slot);
}

/* Whether the file that is, or was to be, read is watched. `names`: verdict on its names. */
static __always_inline bool is_watched_file(struct scratch *s, u64 at, u64 end, u32 names)
{
	return names & VERDICT_WATCH ||
	       (names & VERDICT_ASK_PATH && verdict_of_path(at, end, s->slot) & VERDICT_WATCH);
}

/* What the file has, and of what was asked for that which it does not show. */
static __always_inline void put_file_act(struct wire_file *w, struct file_act *act)
{
	wire_file_tags(w);
	WIRE_PUT(w, error, act->error);
	WIRE_PUT(w, open_flags, act->open_flags);
	WIRE_PUT(w, mode, act->mode);
	WIRE_PUT(w, inode, 0);
	WIRE_PUT(w, dev, 0);
	WIRE_PUT(w, size, act->size);
	if (act->file)
		put_file(w, act->file);
	if (act->type == TOCSIN_EVENT_TYPE_FILE_CHMOD && act->error)
		WIRE_PUT(w, mode, act->mode);
	if (!act->file || act->type == TOCSIN_EVENT_TYPE_FILE_CHOWN) {
		WIRE_PUT(w, uid, act->uid);
		WIRE_PUT(w, gid, act->gid);
	}
}

static __always_inline u64 append_path_of_act(struct scratch *s, u64 at, struct file_act *act,
					      u32 *flags)
{
	if (act->file)
		return append_file_path(s, at, TOCSIN_TAG_FILE_PATH, act->file,
					TOCSIN_PATH_FLAG_PATH_TRUNCATED, flags);
	return append_user_path(s, at, TOCSIN_TAG_FILE_PATH | act->copied, act->directory,
				act->path, PATH_BITS, flags);
}

static __always_inline u64 append_source_of_act(struct scratch *s, u64 at, struct file_act *act,
						u32 *flags)
{
	if (act->source_is_text)
		return append_user_text(s, at, TOCSIN_TAG_FILE_SOURCE | act->copied, act->source,
					SOURCE_BITS, flags);
	return append_user_path(s, at, TOCSIN_TAG_FILE_SOURCE | act->copied, act->source_directory,
				act->source, SOURCE_BITS, flags);
}

/* Where the fields of the paths stand in the record; without a source the second is empty. */
struct file_fields {
	u64 path;
	u64 source;
	u64 end;
};

/*
 * Whether the filters on paths let it through. What is brought into an ignored place, or out of it,
 * is told.
 */
static __always_inline bool passes(struct scratch *s, struct file_act *act,
				   struct file_fields *fields, u32 flags)
{
	struct settings *settings = current_settings();
	u64 path_end = fields->source;

	if (act->type == TOCSIN_EVENT_TYPE_FILE_READ &&
	    !is_watched_file(s, fields->path, path_end,
			     act->file ? act->names : verdict_of_last_names(s, path_end)))
		return false;
	if (!settings || !(settings->filters & FILTER_PATHS) ||
	    !is_ignored(s, fields->path, path_end, PATH_BITS, flags))
		return true;
	return act->source && !act->source_is_text &&
	       !is_ignored(s, fields->source, fields->end, SOURCE_BITS, flags);
}

/*
 * Writes the body that the scratch's act describes; returns the record's end, 0: the act is one that
 * is not told. Global, like walk_path, so that it is verified once.
 */
__noinline u64 put_file_body(u64 body, u32 slot)
{
	struct scratch *s = scratch_of(slot);
	struct file_fields fields;
	struct file_act *act;
	struct wire_file *w;
	u32 path_flags = 0;

	if (!s || body > BODY_LATEST)
		return RECORD_BYTES + 1;
	BOUND(body, FIXED_MASK);
	act = &s->file_act;
	w = FIXED_PART(s, body);
	put_file_act(w, act);
	fields.path = body + sizeof(struct long_field) + sizeof(*w);
	fields.source = append_path_of_act(s, fields.path, act, &path_flags);
	fields.end = fields.source;
	if (act->source)
		fields.end = append_source_of_act(s, fields.source, act, &path_flags);
	if (!passes(s, act, &fields, path_flags))
		return 0;
	if (act->attribute)
		fields.end = append_user_string(s, fields.end,
						TOCSIN_TAG_FILE_ATTRIBUTE | act->copied,
						act->attribute, TOCSIN_MAX_FILE_ATTRIBUTE);
	WIRE_PUT(w, path_flags, path_flags);
	return close_body(s, body, fields.end, BODY_TAG(act->type));
}

/* The act's type, with a bound for the verifier, who does not know what stands in memory. */
static __always_inline u8 type_of(struct file_act *act)
{
	u64 type = act->type;

	BARRIER(type);
	return type & (EVENT_TYPES - 1);
}

/* Ends a record with the act's body; an act that is not told gives it up. */
static __always_inline void end_file(struct scratch *s, u64 body, struct file_act *act)
{
	u64 end;

	flag(s, act->event_flags);
	s->file_act = *act;
	end = put_file_body(body, s->slot);
	if (end)
		submit(s, type_of(act), end);
	else
		release(s);
}

static __always_inline void tell_file(struct file_act *act)
{
	u64 body;
	struct scratch *s = begin_act(type_of(act), &body);

	if (s)
		end_file(s, body, act);
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
	       (device & ((1 << DEVICE_MINOR_BITS) - 1)) != NULL_DEVICE;
}

/* Sets the type of an open that succeeded; false: it is of no interest. */
static __always_inline bool judge_open(struct file_act *act)
{
	struct file *file = act->file;
	u32 mode = BPF_CORE_READ(file, f_mode);

	if (mode & FMODE_PATH || !holds_data(BPF_CORE_READ(file, f_inode)))
		return false;
	if (mode & FMODE_CREATED || BPF_CORE_READ(file, f_flags) & TMPFILE_BIT) {
		act->type = TOCSIN_EVENT_TYPE_FILE_CREATE;
		return true;
	}
	/* O_TRUNC empties a file that is opened for reading only, too. */
	if (mode & FMODE_WRITE || act->open_flags & O_TRUNC) {
		act->type = TOCSIN_EVENT_TYPE_FILE_WRITE;
		return true;
	}
	act->type = TOCSIN_EVENT_TYPE_FILE_READ;
	act->names = verdict_of_names(file);
	return act->names;
}

/* The same of an open that failed. */
static __always_inline void judge_refusal(struct file_act *act)
{
	act->type = act->open_flags & (O_ACCMODE | O_CREAT | O_TRUNC) ?
			    TOCSIN_EVENT_TYPE_FILE_WRITE :
			    TOCSIN_EVENT_TYPE_FILE_READ;
}

SEC("tp_btf/sys_exit")
int act_file_open(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file_act act = NOTHING_KNOWN;
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
		judge_refusal(&act);
	} else {
		act.file = file_of_fd(task, call.result);
		if (!act.file || !judge_open(&act))
			return 0;
	}
	if (wanted(act.type, task))
		tell_file(&act);
	return 0;
}

/* Names that come, go and change. */
SEC("tp_btf/sys_exit")
int act_file_name(unsigned long long *ctx)
{
	struct file_act act = NOTHING_KNOWN;
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
	case ACT_RENAMEAT2:
	case ACT_LINKAT:
		act.type = call.act == ACT_LINKAT ? TOCSIN_EVENT_TYPE_FILE_LINK :
						    TOCSIN_EVENT_TYPE_FILE_RENAME;
		act.open_flags = call.act == ACT_RENAMEAT ? 0 : call.argument[4];
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
		tell_file(&act);
	return 0;
}

/* A user or group id that was passed: old calls of 32-bit processes have 16 bits, of which all ones is -1. */
static __always_inline u32 id_argument(struct call *call, u32 id)
{
	if (!call->compat || call->number >= LCHOWN32)
		return id;
	id &= 0xffff;
	return id == 0xffff ? -1 : id;
}

/* Attributes: bits, owner, extended attributes, size, times. By descriptor or by path. */
SEC("tp_btf/sys_exit")
int act_file_attribute(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file_act act = NOTHING_KNOWN;
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
		act.open_flags = call.act == ACT_FCHMODAT2 ? call.argument[3] : 0;
		break;
	case ACT_CHOWN:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.uid = id_argument(&call, call.argument[1]);
		act.gid = id_argument(&call, call.argument[2]);
		break;
	case ACT_FCHOWN:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.uid = id_argument(&call, call.argument[1]);
		act.gid = id_argument(&call, call.argument[2]);
		fd = call.argument[0];
		break;
	case ACT_FCHOWNAT:
		act.type = TOCSIN_EVENT_TYPE_FILE_CHOWN;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.uid = call.argument[2];
		act.gid = call.argument[3];
		act.open_flags = call.argument[4];
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
		act.open_flags = call.argument[2];
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
		act.size = call.argument[SPLIT_ARGUMENT] | call.argument[SPLIT_ARGUMENT + 1] << 32;
		if (call.act == ACT_FTRUNCATE64)
			fd = call.argument[0];
		break;
	case ACT_UTIME:
		act.type = TOCSIN_EVENT_TYPE_FILE_TIMES;
		break;
	default: /* ACT_UTIMENSAT, ACT_FUTIMESAT */
		act.type = TOCSIN_EVENT_TYPE_FILE_TIMES;
		act.directory = call.argument[0];
		act.path = call.argument[1];
		act.open_flags = call.act == ACT_UTIMENSAT ? call.argument[3] : 0;
	}
	if (!wanted(act.type, task))
		return 0;
	if (act.directory != AT_FDCWD && is_nameless(act.path))
		fd = act.directory;
	if (fd >= 0) {
		act.file = file_of_fd(task, fd);
		if (!act.file)
			return 0;
	}
	tell_file(&act);
	return 0;
}

#endif
