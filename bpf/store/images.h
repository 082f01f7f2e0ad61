/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * exe, cwd, argv and ancestors of every process, encoded once at fork and exec, copied into each
 * later record. Keyed by pid and checked by start time: a reused pid never gets another's image. An image is
 * kept until the process is reaped, so that what happens while it dies still has it.
 */
#ifndef TOCSIN_STORE_IMAGES_H
#define TOCSIN_STORE_IMAGES_H

#include "extract/credentials.h"
#include "extract/path.h"
#include "extract/task.h"

/* Where the parts of a new image stand in the record. */
struct image_layout {
	u64 begin;
	u64 exe;
	u64 exe_end;
	u64 argv;
	u64 end;
	/* Size of argv in the process's memory. */
	u64 argv_bytes;
};

static __always_inline struct image *find_image(u32 pid, u64 start_boottime_ns)
{
	struct image *image = bpf_map_lookup_elem(&images, &pid);

	return image && image->start_boottime_ns == start_boottime_ns ? image : NULL;
}

static __always_inline u64 append_ancestors(struct scratch *s, u64 at, struct image *image)
{
	u64 length = *(volatile u32 *)&image->ancestors_length;

	BARRIER(at);
	BARRIER(length);
	if (at > RECORD_BYTES - sizeof(image->ancestors))
		return RECORD_BYTES + 1;
	if (length > sizeof(image->ancestors))
		return at;
	bpf_probe_read_kernel(s->record + at, length, image->ancestors);
	return at + length;
}

/*
 * Appends the stored image of a process, of who acted with its ancestors; returns the record's
 * end. A record without one says so with `missing`, unless none is due. A global function with
 * scalar arguments is verified once, and leaves its callers one state to go on with.
 */
__noinline u64 put_image(u32 slot, u64 at, u32 pid, u64 start_boottime_ns, u32 missing)
{
	struct scratch *s = scratch_of(slot);
	struct image *image = find_image(pid, start_boottime_ns);
	u64 begin = at, generation, length;

	BARRIER(at);
	if (!s || at > RECORD_BYTES - IMAGE_BYTES)
		return RECORD_BYTES + 1;
	if (image) {
		generation = *(volatile u64 *)&image->generation;
		length = *(volatile u32 *)&image->length;
		BARRIER(length);
		if (generation && length <= IMAGE_BYTES &&
		    !bpf_probe_read_kernel(s->record + at, length, image->bytes)) {
			at += length;
			if (missing == TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING)
				at = append_ancestors(s, at, image);
			if (*(volatile u64 *)&image->generation == generation)
				return at;
			at = begin;
		}
	}
	if (missing) {
		flag(s, missing);
		COUNT(images_missing);
	}
	return at;
}

/* Closes the nested message `tag` that was begun at `begin`; returns the record's end. */
static __always_inline u64 close_process(struct scratch *s, u64 begin, u64 at, u8 tag)
{
	BARRIER(begin);
	if (begin > BODY_MASK)
		return RECORD_BYTES + 1;
	BOUND(begin, BODY_MASK);
	s->record[begin] = tag;
	put_length(s->record + begin + 1, at - begin - sizeof(struct short_field));
	return at;
}

/* Appends a task whose type the verifier knows, with its image, as the nested message `tag`. */
static __always_inline u64 append_process(struct scratch *s, u64 at, u8 tag, u32 missing,
					  struct task_struct *task)
{
	u64 begin = at, length;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES - ANCESTORS_BYTES - 512)
		return RECORD_BYTES + 1;
	length = fill_task(s->record + at + sizeof(struct short_field), task);
	at += sizeof(struct short_field) + length;
	if (task->flags & PF_KTHREAD)
		missing = 0;
	at = put_image(s->slot, at, task->tgid, task->group_leader->start_boottime, missing);
	return close_process(s, begin, at, tag);
}

/* The same for a task that came from a read. */
static __always_inline u64 append_probed(struct scratch *s, u64 at, u8 tag, u32 missing,
					 struct task_struct *task)
{
	u64 begin = at, length;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES - ANCESTORS_BYTES - 512)
		return RECORD_BYTES + 1;
	length = fill_task_probed(s->record + at + sizeof(struct short_field), task);
	at += sizeof(struct short_field) + length;
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		missing = 0;
	at = put_image(s->slot, at, BPF_CORE_READ(task, tgid),
		       BPF_CORE_READ(task, group_leader, start_boottime), missing);
	return close_process(s, begin, at, tag);
}

#define KEPT_MASK 255
_Static_assert(sizeof(((struct task_bytes *)0)->bytes) <= KEPT_MASK, "a kept task fits its mask");

/* The same from bytes that were kept. */
static __always_inline u64 append_kept(struct scratch *s, u64 at, u8 tag, u32 missing,
				       struct task_bytes *kept)
{
	u64 begin = at, length = kept->length;

	BARRIER(at);
	BARRIER(length);
	if (at > BODY_AT || length > sizeof(kept->bytes))
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	BOUND(length, KEPT_MASK);
	bpf_probe_read_kernel(s->record + at + sizeof(struct short_field), length, kept->bytes);
	at += sizeof(struct short_field) + length;
	at = put_image(s->slot, at, kept->pid, kept->start_boottime_ns,
		       kept->kernel_thread ? 0 : missing);
	return close_process(s, begin, at, tag);
}

/*
 * The parent of the task that runs now; returns the record's end. Global: the kernel looks types up
 * by name for every pointer that is followed here, which takes milliseconds; it does so once.
 */
__noinline u64 put_parent(u32 slot, u64 at)
{
	struct scratch *s = scratch_of(slot);
	struct task_struct *task;

	if (!s)
		return RECORD_BYTES + 1;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return append_process(s, at, TOCSIN_TAG_EVENT_PARENT,
				      TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
				      bpf_get_current_task_btf()->real_parent->group_leader);
	task = (void *)bpf_get_current_task();
	return append_probed(s, at, TOCSIN_TAG_EVENT_PARENT, TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			     BPF_CORE_READ(task, real_parent, group_leader));
}

/* The task that runs now. */
__noinline u64 put_process(u32 slot, u64 at)
{
	struct scratch *s = scratch_of(slot);

	if (!s)
		return RECORD_BYTES + 1;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return append_process(s, at, TOCSIN_TAG_EVENT_PROCESS,
				      TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING,
				      bpf_get_current_task_btf());
	return append_probed(s, at, TOCSIN_TAG_EVENT_PROCESS,
			     TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING,
			     (void *)bpf_get_current_task());
}

/* Who acts, and the parent of who acts. */
static __always_inline u64 append_current(struct scratch *s, u64 at)
{
	return put_parent(s->slot, put_process(s->slot, at));
}

/* The last part of the path of the task's cgroup; of the pids controller where version 2 is unused. */
static __always_inline u64 append_cgroup_name(struct scratch *s, u64 at, struct task_struct *task)
{
	struct cgroup *cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	struct css_set *css_set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *state = NULL;
	struct long_field *field;
	long length;
	u8 *to;

	BARRIER(at);
	if (at > 4096)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	to = s->record + at + sizeof(*field);
	length = bpf_probe_read_kernel_str(to, TOCSIN_MAX_PROCESS_CGROUP_NAME + 1,
					   BPF_CORE_READ(cgroup, kn, name));
	if (length <= 1 && bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id)) {
		bpf_probe_read_kernel(
			&state, sizeof(state),
			(void *)css_set + bpf_core_field_offset(struct css_set, subsys) +
				8 * bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id));
		cgroup = BPF_CORE_READ(state, cgroup);
		length = bpf_probe_read_kernel_str(to, TOCSIN_MAX_PROCESS_CGROUP_NAME + 1,
						   BPF_CORE_READ(cgroup, kn, name));
	}
	if (length <= 1)
		return at;
	WIRE_PUT(field, tag, TOCSIN_TAG_PROCESS_CGROUP_NAME);
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & TOCSIN_MAX_PROCESS_CGROUP_NAME);
}

/* Appends inode, device, cgroup, exe and cwd of `task` as they are now. */
static __always_inline u64 append_files(struct scratch *s, u64 at, struct task_struct *task,
					u32 flags, struct image_layout *layout)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);
	struct wire_image *w;
	struct path path;
	bool cut;

	layout->begin = at;
	BARRIER(at);
	if (at > 4096)
		return RECORD_BYTES + 1;
	w = (void *)(s->record + at);
	wire_image_tags(w);
	WIRE_PUT(w, exe_inode, BPF_CORE_READ(inode, i_ino));
	WIRE_PUT(w, exe_dev, BPF_CORE_READ(inode, i_sb, s_dev));
	WIRE_PUT(w, exec_boottime_ns, 0);
	at = append_cgroup_name(s, at + sizeof(*w), task);

	layout->exe = at;
	bpf_probe_read_kernel(&path, sizeof(path), __builtin_preserve_access_index(&exe->f_path));
	at = append_path(s, at, TOCSIN_TAG_PROCESS_EXE, &path, &cut);
	if (cut)
		flags |= TOCSIN_IMAGE_FLAG_EXE_TRUNCATED;
	layout->exe_end = at;
	bpf_probe_read_kernel(&path, sizeof(path), __builtin_preserve_access_index(&fs->pwd));
	at = append_path(s, at, TOCSIN_TAG_PROCESS_CWD, &path, &cut);
	if (cut)
		flags |= TOCSIN_IMAGE_FLAG_CWD_TRUNCATED;
	layout->argv = at;
	WIRE_PUT(w, image_flags, flags);
	return at;
}

#define ARGV_GAP_BYTES 4
/* Of an argv that is cut: its tail, where what matters may stand behind padding. */
#define ARGV_TAIL       1024
#define IMAGE_ARGV_TAIL 256

/* Stands in the place of what was cut out of an argv: an argument "...". */
static __always_inline void put_gap(u8 *to)
{
	__builtin_memcpy(to, "...", ARGV_GAP_BYTES);
}

static __always_inline long read_argv(u8 *to, u64 length, u64 from, struct task_struct *task,
				      bool of_current)
{
	if (of_current)
		return bpf_probe_read_user(to, length, (void *)from);
	return bpf_copy_from_user_task(to, length, (void *)from, task, 0);
}

/*
 * Appends argv, of which at most ARGV_BYTES are kept: its head and its tail. `of_current` is known
 * when this is compiled; the other way to read is for programs that may sleep.
 */
static __always_inline u64 append_argv(struct scratch *s, u64 at, struct task_struct *task,
				       struct image_layout *layout, bool of_current)
{
	u64 start = BPF_CORE_READ(task, mm, arg_start), begin = layout->begin, head, kept;
	u64 whole = BPF_CORE_READ(task, mm, arg_end) - start;
	struct long_field *field;
	u8 *to;

	head = whole > ARGV_BYTES ? ARGV_BYTES - ARGV_TAIL - ARGV_GAP_BYTES : whole;
	BARRIER(at);
	BARRIER(head);
	BARRIER(begin);
	if (at > RECORD_BYTES - ARGV_BYTES - sizeof(*field) || head > ARGV_BYTES || begin > 4096)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	to = s->record + at + sizeof(*field);
	kept = read_argv(to, head, start, task, of_current) ? 0 : head;
	if (kept && whole > ARGV_BYTES) {
		to += ARGV_BYTES - ARGV_TAIL - ARGV_GAP_BYTES;
		put_gap(to);
		if (!read_argv(to + ARGV_GAP_BYTES, ARGV_TAIL, start + whole - ARGV_TAIL, task,
			       of_current))
			kept = ARGV_BYTES;
	}
	if (kept < whole)
		((struct wire_image *)(s->record + begin))->image_flags |=
			TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;
	WIRE_PUT(field, tag, TOCSIN_TAG_PROCESS_ARGV);
	put_length(field->length, kept);
	layout->argv_bytes = whole;
	layout->end = at + sizeof(*field) + kept;
	return layout->end;
}

/* The image goes without argv, and says so. */
static __always_inline u64 leave_out_argv(struct scratch *s, u64 at, struct image_layout *layout)
{
	u64 begin = layout->begin;

	BARRIER(begin);
	if (begin > 4096)
		return RECORD_BYTES + 1;
	((struct wire_image *)(s->record + begin))->image_flags |= TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;
	layout->end = at;
	return at;
}

/* argv does not fit: its head and its tail stay. */
static __always_inline u64 keep_without_middle(struct image *image, const u8 *from, u64 argv,
					       u64 length)
{
	u8 *tail = image->bytes + IMAGE_BYTES - IMAGE_ARGV_TAIL;
	struct long_field *field;

	BARRIER(argv);
	if (argv > IMAGE_BYTES - sizeof(*field))
		return 0;
	bpf_probe_read_kernel(image->bytes, IMAGE_BYTES, from);
	if (argv < IMAGE_BYTES - sizeof(*field) - 2 * IMAGE_ARGV_TAIL) {
		put_gap(tail - ARGV_GAP_BYTES);
		bpf_probe_read_kernel(tail, IMAGE_ARGV_TAIL, from + length - IMAGE_ARGV_TAIL);
	}
	field = (void *)(image->bytes + argv);
	put_length(field->length, IMAGE_BYTES - sizeof(*field) - argv);
	return IMAGE_BYTES;
}

/* The executable's path alone does not fit: its tail stays. */
static __always_inline u64 keep_tail_of_exe(struct image *image, const u8 *from, u64 exe,
					    u64 exe_end)
{
	u64 kept = IMAGE_BYTES - 512, skipped = exe_end - exe - sizeof(struct long_field) - kept;
	struct long_field *field;

	BARRIER(exe);
	BARRIER(skipped);
	if (exe > 256 || skipped > PATH_BYTES)
		return 0;
	bpf_probe_read_kernel(image->bytes, exe + sizeof(*field), from);
	field = (void *)(image->bytes + exe);
	bpf_probe_read_kernel(image->bytes + exe + sizeof(*field), kept,
			      from + exe + sizeof(*field) + skipped);
	put_length(field->length, kept);
	image->exe_length = kept;
	return exe + sizeof(*field) + kept;
}

/* What is left of an image that is larger than its slot: argv goes first, the tail of exe stays. */
static __always_inline void shrink_image(struct image *image, const u8 *from,
					 struct image_layout *layout)
{
	u64 argv = layout->argv - layout->begin, exe_end = layout->exe_end - layout->begin;
	u32 flags = TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;

	if (argv <= IMAGE_BYTES - sizeof(struct long_field)) {
		image->length = keep_without_middle(image, from, argv, layout->end - layout->begin);
	} else if (exe_end <= IMAGE_BYTES) {
		flags |= TOCSIN_IMAGE_FLAG_CWD_TRUNCATED;
		BARRIER(exe_end);
		if (exe_end > IMAGE_BYTES)
			return;
		bpf_probe_read_kernel(image->bytes, exe_end, from);
		image->length = exe_end;
	} else {
		flags |= TOCSIN_IMAGE_FLAG_CWD_TRUNCATED | TOCSIN_IMAGE_FLAG_EXE_TRUNCATED;
		image->length = keep_tail_of_exe(image, from, layout->exe - layout->begin, exe_end);
	}
	((struct wire_image *)image->bytes)->image_flags |= flags;
}

/* Writes the image that stands in the record. */
static __always_inline void write_image(struct image *image, struct scratch *s,
					struct image_layout *layout)
{
	u64 begin = layout->begin, length = layout->end - layout->begin;

	image->length = 0;
	image->exe_at = layout->exe - begin + sizeof(struct long_field);
	image->exe_length = layout->exe_end - layout->exe - sizeof(struct long_field);
	BARRIER(begin);
	if (begin > 4096)
		return;
	BARRIER(length);
	if (length <= IMAGE_BYTES) {
		bpf_probe_read_kernel(image->bytes, length, s->record + begin);
		image->length = length;
	} else {
		shrink_image(image, s->record + begin, layout);
	}
}

/* How long `ancestors` is when it holds this parent and that one's ancestors. */
static __always_inline u32 ancestors_length(struct image *of_parent)
{
	u32 head = sizeof(struct long_field), length = of_parent->exe_length,
	    rest = of_parent->ancestors_length;

	length = length > ANCESTOR_BYTES ? ANCESTOR_BYTES : length;
	rest = rest > head ? rest - head : 0;
	if (rest > ANCESTORS_BYTES - ANCESTOR_BYTES - 1)
		rest = ANCESTORS_BYTES - ANCESTOR_BYTES - 1;
	return head + length + 1 + rest;
}

/* The parent's executable and its ancestors: nothing when they are being written. */
static __always_inline void write_ancestors(struct image *image, struct image *of_parent)
{
	u64 at, length, rest, skipped, generation;
	struct long_field *field = (void *)image->ancestors;
	u8 *to = image->ancestors + sizeof(*field);

	image->ancestors_length = 0;
	if (!of_parent)
		return;
	generation = *(volatile u64 *)&of_parent->generation;
	length = of_parent->exe_length;
	skipped = length > ANCESTOR_BYTES ? length - ANCESTOR_BYTES : 0;
	at = of_parent->exe_at + skipped;
	length -= skipped;
	rest = ancestors_length(of_parent) - sizeof(*field) - length - 1;
	BARRIER(at);
	BARRIER(length);
	BARRIER(rest);
	if (at > IMAGE_BYTES - ANCESTOR_BYTES || length > ANCESTOR_BYTES ||
	    rest > ANCESTORS_BYTES - ANCESTOR_BYTES - 1)
		return;
	bpf_probe_read_kernel(to, length, of_parent->bytes + at);
	to[length] = 0;
	bpf_probe_read_kernel(to + length + 1, rest, of_parent->ancestors + sizeof(*field));
	if (!generation || *(volatile u64 *)&of_parent->generation != generation)
		return;
	WIRE_PUT(field, tag, TOCSIN_TAG_PROCESS_ANCESTORS);
	put_length(field->length, length + 1 + rest);
	image->ancestors_length = sizeof(*field) + length + 1 + rest;
}

static __always_inline struct image *image_of_parent(struct task_struct *task)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent, group_leader);

	return find_image(BPF_CORE_READ(parent, tgid), BPF_CORE_READ(parent, start_boottime));
}

/* Stores the image that stands in the record for a process that has none. */
static __always_inline void store_new_image(struct scratch *s, struct image_layout *layout,
					    struct task_struct *task, u64 how)
{
	struct image *image = &s->image;
	u32 pid = task->tgid;

	image->start_boottime_ns = task->group_leader->start_boottime;
	write_image(image, s, layout);
	write_ancestors(image, image_of_parent(task));
	read_credentials(&image->credentials, task);
	image->generation = bpf_ktime_get_boot_ns() | 1;
	if (bpf_map_update_elem(&images, &pid, image, how) && how == BPF_ANY)
		COUNT(images_dropped);
}

/*
 * The ancestors of a process that was there before the sensor, once its parent's are known. True
 * when they changed: then its children's may.
 */
static __always_inline bool complete_ancestors(struct image *image, struct task_struct *task)
{
	struct image *of_parent = image_of_parent(task);
	struct wire_image *w = (void *)image->bytes;
	u64 generation = image->generation;

	if (!of_parent)
		return false;
	BARRIER(of_parent);
	if (!generation || !(w->image_flags & TOCSIN_IMAGE_FLAG_SEEDED) ||
	    image->ancestors_length == ancestors_length(of_parent))
		return false;
	*(volatile u64 *)&image->generation = 0;
	write_ancestors(image, of_parent);
	*(volatile u64 *)&image->generation = generation + 2;
	return true;
}

/* Stores the image that stands in the record. Where there is one it is written in its place. */
static __always_inline void store_image(struct scratch *s, struct image_layout *layout,
					struct task_struct *task)
{
	struct image *image = find_image(task->tgid, task->group_leader->start_boottime);

	if (!image) {
		store_new_image(s, layout, task, BPF_ANY);
		return;
	}
	*(volatile u64 *)&image->generation = 0;
	write_image(image, s, layout);
	read_credentials(&image->credentials, task);
	*(volatile u64 *)&image->generation = bpf_ktime_get_boot_ns() | 1;
}

/* A child of the task that runs now: it has that one's program until it executes another. */
static __always_inline void inherit_image(struct task_struct *child)
{
	struct task_struct *parent = (void *)bpf_get_current_task();
	struct image *of_parent = find_image(BPF_CORE_READ(parent, tgid),
					     BPF_CORE_READ(parent, group_leader, start_boottime));
	u32 pid = child->tgid;
	u64 generation;
	struct image *image;

	if (!of_parent)
		return;
	generation = *(volatile u64 *)&of_parent->generation;
	if (bpf_map_update_elem(&images, &pid, of_parent, BPF_ANY)) {
		COUNT(images_dropped);
		return;
	}
	image = bpf_map_lookup_elem(&images, &pid);
	if (!image)
		return;
	image->start_boottime_ns = child->start_boottime;
	read_credentials(&image->credentials, child);
	write_ancestors(image, of_parent);
	/* Another thread of the parent executed meanwhile: the copy may be torn. */
	if (of_parent->generation != generation)
		image->generation = 0;
}

static __always_inline void forget_image(struct task_struct *task)
{
	u32 pid = task->tgid;

	if (find_image(pid, task->start_boottime))
		bpf_map_delete_elem(&images, &pid);
}

#endif
