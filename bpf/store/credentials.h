/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The credentials that every thread is known to have. A process has them in its image; the threads
 * of one process may differ, so one that changes its own while there are others has an entry until
 * it ends. What a thread has and what is known of it differ only between a change and the moment
 * when the change is told: where no system call accounts for it, something else changed them.
 */
#ifndef TOCSIN_STORE_CREDENTIALS_H
#define TOCSIN_STORE_CREDENTIALS_H

#include "extract/credentials.h"
#include "store/images.h"

/* A thread of a process, as the maps name it. */
struct thread {
	u32 tid;
	u32 pid;
	u64 process_start_boottime_ns;
};

static __always_inline struct thread current_thread(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return (struct thread){BPF_CORE_READ(task, pid), BPF_CORE_READ(task, tgid),
			       BPF_CORE_READ(task, group_leader, start_boottime)};
}

static __always_inline struct thread_credentials *find_thread_credentials(struct thread *thread)
{
	struct thread_credentials *found = bpf_map_lookup_elem(&thread_credentials, &thread->tid);

	return found && found->process_start_boottime_ns == thread->process_start_boottime_ns ?
		       found :
		       NULL;
}

/* What is known of the thread; NULL: nothing, since its process has no image. */
static __always_inline struct known_credentials *find_credentials(struct thread *thread)
{
	struct thread_credentials *own = find_thread_credentials(thread);
	struct image *image;

	if (own)
		return &own->known;
	image = find_image(thread->pid, thread->process_start_boottime_ns);
	return image ? &image->credentials : NULL;
}

static __always_inline bool same_credentials(struct known_credentials *one,
					     struct known_credentials *other)
{
	u64 *a = (u64 *)one, *b = (u64 *)other, differences = 0;

	for (int i = 0; i < sizeof(*one) / sizeof(u64); i++)
		differences |= a[i] ^ b[i];
	return !differences;
}

static __always_inline void keep_thread_credentials(struct thread *thread,
						    struct known_credentials *known)
{
	struct thread_credentials own = {.process_start_boottime_ns =
						 thread->process_start_boottime_ns};

	own.known = *known;
	bpf_map_update_elem(&thread_credentials, &thread->tid, &own, BPF_ANY);
}

static __always_inline void forget_thread_credentials(struct thread *thread)
{
	if (find_thread_credentials(thread))
		bpf_map_delete_elem(&thread_credentials, &thread->tid);
}

/* From here on the current thread is known to have these. */
static __always_inline void learn_credentials(struct thread *thread, struct known_credentials *now)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct thread_credentials *own = find_thread_credentials(thread);
	struct image *image = find_image(thread->pid, thread->process_start_boottime_ns);

	if (!image)
		return;
	if (own)
		own->known = *now;
	else if (BPF_CORE_READ(task, signal, nr_threads) == 1)
		image->credentials = *now;
	else
		keep_thread_credentials(thread, now);
}

/* A new thread has what the one has that made it. */
static __always_inline void inherit_thread_credentials(struct thread *maker,
						       struct task_struct *child)
{
	struct thread_credentials *own = find_thread_credentials(maker);
	struct thread thread = {child->pid, maker->pid, maker->process_start_boottime_ns};

	if (own)
		keep_thread_credentials(&thread, &own->known);
}

/* What was there before the sensor: a thread that differs from its process's first. */
static __always_inline void seed_thread_credentials(struct task_struct *task)
{
	struct thread_credentials own = {.process_start_boottime_ns =
						 task->group_leader->start_boottime};
	struct known_credentials of_leader;
	u32 tid = task->pid;

	read_credentials(&own.known, task);
	read_credentials(&of_leader, task->group_leader);
	if (!same_credentials(&own.known, &of_leader))
		bpf_map_update_elem(&thread_credentials, &tid, &own, BPF_NOEXIST);
}

#endif
