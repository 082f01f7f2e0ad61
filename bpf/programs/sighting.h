/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Executables and control groups that are seen for the first time: told once, in a ring of their
 * own, to who looks at them more closely. What did not fit the ring is not taken for seen.
 */
#ifndef TOCSIN_PROGRAMS_SIGHTING_H
#define TOCSIN_PROGRAMS_SIGHTING_H

#include "base/record.h"

#define SIGHTING_TAG 9
#define SECOND_NS    1000000000

static __always_inline u64 mtime_ns(struct inode *inode)
{
	struct inode___underscores *underscores = (void *)inode;
	struct inode___numbers *numbers = (void *)inode;
	struct inode___plain *plain = (void *)inode;

	if (bpf_core_field_exists(struct inode___numbers, i_mtime_sec))
		return BPF_CORE_READ(numbers, i_mtime_sec) * SECOND_NS +
		       BPF_CORE_READ(numbers, i_mtime_nsec);
	if (bpf_core_field_exists(struct inode___underscores, __i_mtime))
		return BPF_CORE_READ(underscores, __i_mtime.tv_sec) * SECOND_NS +
		       BPF_CORE_READ(underscores, __i_mtime.tv_nsec);
	return BPF_CORE_READ(plain, i_mtime.tv_sec) * SECOND_NS +
	       BPF_CORE_READ(plain, i_mtime.tv_nsec);
}

static __always_inline void read_sighted(struct sighted_file *file, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);

	file->inode = BPF_CORE_READ(inode, i_ino);
	file->size = BPF_CORE_READ(inode, i_size);
	file->mtime_ns = mtime_ns(inode);
	file->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	file->padding = 0;
}

/* Writes the record where paths are built; whether the ring took it. Few come: each wakes the reader. */
static __always_inline bool send_sighting(struct scratch *s, struct sighted_file *file, bool known,
					  u64 group, u64 path, u64 path_end)
{
	u64 length = known ? 0 : path_end - path;
	struct sighting *w = (void *)s->path;

	BARRIER(path);
	BARRIER(length);
	if (path > BODY_AT || length > PATH_BYTES - 1)
		return false;
	w->tag = SIGHTING_TAG;
	w->padding = 0;
	w->path_length = length;
	w->pid = bpf_get_current_pid_tgid() >> 32;
	w->cgroup_id = group;
	w->file = *file;
	if (known)
		w->file.inode = 0;
	BOUND(path, BODY_MASK);
	BOUND(length, PATH_BYTES - 1);
	bpf_probe_read_kernel(w->path, length, s->record + path);
	return !bpf_ringbuf_output(&sightings, w, sizeof(*w) + length, 0);
}

/*
 * Tells of the current task's executable and control group where one of them is new. Its path
 * stands in the record from `path` to `path_end`. Global: verified once, with one state after it.
 */
__noinline int sight(u32 slot, u64 path, u64 path_end)
{
	struct scratch *s = scratch_of(slot);
	struct task_struct *task = (void *)bpf_get_current_task();
	struct settings *settings = current_settings();
	struct sighted_file file;
	bool known_file, known_group;
	u32 whom, *seen;
	u64 group;

	whom = settings ? settings->sightings_for : 0;
	if (!s || !whom)
		return 0;
	read_sighted(&file, task);
	group = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	seen = bpf_map_lookup_elem(&sighted_files, &file);
	known_file = seen && *seen == whom;
	seen = bpf_map_lookup_elem(&sighted_groups, &group);
	known_group = seen && *seen == whom;
	if (known_file && known_group)
		return 0;
	if (!send_sighting(s, &file, known_file, group, path, path_end))
		return 0;
	bpf_map_update_elem(&sighted_files, &file, &whom, BPF_ANY);
	bpf_map_update_elem(&sighted_groups, &group, &whom, BPF_ANY);
	return 0;
}

#endif
