/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * exe, cwd and argv of every process, encoded once at exec, copied into each later record.
 * Keyed by pid and checked by start time: a reused pid never gets another's image. An image is
 * kept until the process is reaped, so that what happens while it dies still has it.
 */
#ifndef TOCSIN_STORE_IMAGES_H
#define TOCSIN_STORE_IMAGES_H

#include "extract/path.h"
#include "extract/task.h"

/* Where the parts of a new image stand in the record. */
struct image_layout {
	u64 begin;
	u64 exe_end;
	u64 argv;
	u64 end;
};

static __always_inline struct image *find_image(u32 pid, u64 start_boottime_ns)
{
	struct image *image = bpf_map_lookup_elem(&images, &pid);

	return image && image->start_boottime_ns == start_boottime_ns ? image : NULL;
}

/* Appends a stored image; a record without one says so with `missing`, unless none is due. */
static __always_inline u64 append_image(struct scratch *s, u64 at, struct image *image, u32 missing)
{
	u64 generation, length;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES)
		return RECORD_BYTES + 1;
	if (image) {
		generation = *(volatile u64 *)&image->generation;
		length = *(volatile u32 *)&image->length;
		BARRIER(length);
		if (generation && length <= IMAGE_BYTES &&
		    !bpf_probe_read_kernel(s->record + at, length, image->bytes) &&
		    *(volatile u64 *)&image->generation == generation)
			return at + length;
	}
	if (missing) {
		flag(s, missing);
		COUNT(images_missing);
	}
	return at;
}

/* Opens the nested message `tag`; its length is written by end_process. */
static __always_inline u64 append_process(struct scratch *s, u64 at, u8 tag, u32 missing,
					  struct task_struct *task)
{
	u64 begin = at, length;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES - 512)
		return RECORD_BYTES + 1;
	length = fill_task(s->record + at + sizeof(struct short_field), task);
	at += sizeof(struct short_field) + length;
	if (task->flags & PF_KTHREAD)
		missing = 0;
	at = append_image(s, at, find_image(task->tgid, task->group_leader->start_boottime),
			  missing);
	BARRIER(begin);
	if (begin > 16384)
		return RECORD_BYTES + 1;
	s->record[begin] = tag;
	put_length(s->record + begin + 1, at - begin - sizeof(struct short_field));
	return at;
}

/* The same for a task that came from a read. */
static __always_inline u64 append_probed(struct scratch *s, u64 at, u8 tag, u32 missing,
					 struct task_struct *task)
{
	u64 begin = at, length;

	BARRIER(at);
	if (at > RECORD_BYTES - IMAGE_BYTES - 512)
		return RECORD_BYTES + 1;
	length = fill_task_probed(s->record + at + sizeof(struct short_field), task);
	at += sizeof(struct short_field) + length;
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		missing = 0;
	at = append_image(s, at,
			  find_image(BPF_CORE_READ(task, tgid),
				     BPF_CORE_READ(task, group_leader, start_boottime)),
			  missing);
	BARRIER(begin);
	if (begin > 16384)
		return RECORD_BYTES + 1;
	s->record[begin] = tag;
	put_length(s->record + begin + 1, at - begin - sizeof(struct short_field));
	return at;
}

/* The same from bytes that were kept. */
static __always_inline u64 append_kept(struct scratch *s, u64 at, u8 tag, u32 missing,
				       struct task_bytes *kept)
{
	u64 begin = at, length = kept->length;

	BARRIER(at);
	BARRIER(length);
	if (at > RECORD_BYTES - IMAGE_BYTES - 512 || length > sizeof(kept->bytes))
		return RECORD_BYTES + 1;
	bpf_probe_read_kernel(s->record + at + sizeof(struct short_field), length, kept->bytes);
	at += sizeof(struct short_field) + length;
	at = append_image(s, at, find_image(kept->pid, kept->start_boottime_ns),
			  kept->kernel_thread ? 0 : missing);
	BARRIER(begin);
	if (begin > 16384)
		return RECORD_BYTES + 1;
	s->record[begin] = tag;
	put_length(s->record + begin + 1, at - begin - sizeof(struct short_field));
	return at;
}

/* Who acted, and the parent of who acted. */
static __always_inline u64 append_actors(struct scratch *s, u64 at, struct task_struct *task)
{
	at = append_process(s, at, TOCSIN_TAG_EVENT_PROCESS,
			    TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING, task);
	return append_process(s, at, TOCSIN_TAG_EVENT_PARENT,
			      TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			      task->real_parent->group_leader);
}

/* The same for the task that runs now. */
static __always_inline u64 append_current(struct scratch *s, u64 at)
{
	struct task_struct *task;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return append_actors(s, at, bpf_get_current_task_btf());
	task = (void *)bpf_get_current_task();
	at = append_probed(s, at, TOCSIN_TAG_EVENT_PROCESS, TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING,
			   task);
	return append_probed(s, at, TOCSIN_TAG_EVENT_PARENT, TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			     BPF_CORE_READ(task, real_parent, group_leader));
}

/* Appends inode, device, exe and cwd of `task` as they are now. */
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
	at += sizeof(*w);

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

/* What is left of an image that is larger than its slot: argv goes first, the tail of exe stays. */
static __always_inline void shrink_image(struct image *image, const u8 *from,
					 struct image_layout *layout)
{
	u64 argv = layout->argv - layout->begin, exe_end = layout->exe_end - layout->begin;
	struct wire_image *w = (void *)image->bytes;
	u64 length = IMAGE_BYTES, skipped;
	struct long_field *field;
	u32 flags;

	if (argv <= IMAGE_BYTES - sizeof(*field)) {
		bpf_probe_read_kernel(image->bytes, IMAGE_BYTES, from);
		flags = TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED;
		BARRIER(argv);
		if (argv > IMAGE_BYTES - sizeof(*field))
			return;
		field = (void *)(image->bytes + argv);
		put_length(field->length, IMAGE_BYTES - sizeof(*field) - argv);
	} else if (exe_end <= IMAGE_BYTES) {
		flags = TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED | TOCSIN_IMAGE_FLAG_CWD_TRUNCATED;
		BARRIER(exe_end);
		if (exe_end > IMAGE_BYTES)
			return;
		bpf_probe_read_kernel(image->bytes, exe_end, from);
		length = exe_end;
	} else {
		flags = TOCSIN_IMAGE_FLAG_ARGV_TRUNCATED | TOCSIN_IMAGE_FLAG_CWD_TRUNCATED |
			TOCSIN_IMAGE_FLAG_EXE_TRUNCATED;
		bpf_probe_read_kernel(image->bytes, sizeof(*w) + sizeof(*field), from);
		skipped = exe_end - IMAGE_BYTES;
		BARRIER(skipped);
		if (skipped > PATH_BYTES)
			return;
		bpf_probe_read_kernel(image->bytes + sizeof(*w) + sizeof(*field),
				      IMAGE_BYTES - sizeof(*w) - sizeof(*field),
				      from + sizeof(*w) + sizeof(*field) + skipped);
		field = (void *)(image->bytes + sizeof(*w));
		put_length(field->length, IMAGE_BYTES - sizeof(*w) - sizeof(*field));
	}
	w->image_flags |= flags;
	image->length = length;
}

/* Stores the image that stands in the record. `how` is BPF_ANY or BPF_NOEXIST. */
static __always_inline void store_image(struct scratch *s, struct image_layout *layout, u32 pid,
					u64 start_boottime_ns, u64 how)
{
	u64 begin = layout->begin, length = layout->end - layout->begin;
	struct image *image = &s->image;

	image->length = 0;
	image->start_boottime_ns = start_boottime_ns;
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
	image->generation = bpf_ktime_get_boot_ns() | 1;
	if (bpf_map_update_elem(&images, &pid, image, how) && how == BPF_ANY)
		COUNT(images_dropped);
}

/* A child runs its parent's program until it executes another. */
static __always_inline void inherit_image(struct task_struct *parent, struct task_struct *child)
{
	struct image *of_parent = find_image(parent->tgid, parent->group_leader->start_boottime);
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
