/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Credentials that changed: by a system call, or by nothing that accounts for it. The kernel has
 * no hook where credentials change, so they are compared with what is known whenever a process
 * sets them, forks, executes or ends.
 */
#ifndef TOCSIN_PROGRAMS_CREDENTIALS_H
#define TOCSIN_PROGRAMS_CREDENTIALS_H

#include "store/act.h"
#include "store/credentials.h"

#define CAP_SETGID 6
#define CAP_SETUID 7
/* Threads that the kernel makes for its own work in a process: without the tracepoints of a thread. */
#define PF_IO_WORKER   0x10
#define PF_USER_WORKER 0x4000

static __always_inline void tell_credentials(u32 cause, struct known_credentials *previous,
					     u32 number, u32 error)
{
	u8 type = TOCSIN_EVENT_TYPE_CREDENTIALS;
	struct wire_credentials *w;
	struct scratch *s;
	u64 body, at;

	s = begin_wanted_act(type, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	at = body + sizeof(struct long_field) + sizeof(*w);
	wire_credentials_tags(w);
	WIRE_PUT(w, cause, cause);
	WIRE_PUT(w, error, error);
	WIRE_PUT(w, syscall, number);
	WIRE_PUT(w, previous_uid, previous->uid);
	WIRE_PUT(w, previous_euid, previous->euid);
	WIRE_PUT(w, previous_suid, previous->suid);
	WIRE_PUT(w, previous_gid, previous->gid);
	WIRE_PUT(w, previous_egid, previous->egid);
	WIRE_PUT(w, previous_sgid, previous->sgid);
	WIRE_PUT(w, previous_cap_effective, previous->cap_effective);
	WIRE_PUT(w, previous_cap_permitted, previous->cap_permitted);
	submit_act(s, type, body, at);
}

static __always_inline bool is_one_of(u32 id, u32 first, u32 second, u32 third)
{
	return id == first || id == second || id == third;
}

static __always_inline bool uids_are_shuffled(struct known_credentials *was,
					      struct known_credentials *now)
{
	return is_one_of(now->uid, was->uid, was->euid, was->suid) &&
	       is_one_of(now->euid, was->uid, was->euid, was->suid) &&
	       is_one_of(now->suid, was->uid, was->euid, was->suid);
}

static __always_inline bool gids_are_shuffled(struct known_credentials *was,
					      struct known_credentials *now)
{
	return is_one_of(now->gid, was->gid, was->egid, was->sgid) &&
	       is_one_of(now->egid, was->gid, was->egid, was->sgid) &&
	       is_one_of(now->sgid, was->gid, was->egid, was->sgid);
}

/* unshare and setns give other capabilities in a deeper user namespace, and only there. */
static __always_inline bool went_deeper(struct known_credentials *was,
					struct known_credentials *now)
{
	return now->user_ns_level > was->user_ns_level;
}

/*
 * Whether calls that set credentials can have led from the one to the other: nobody gets a
 * capability that was not permitted, and without the capability to set ids one can only exchange
 * those that one has. An exploit that made itself root and then calls setuid(0) is seen by that.
 */
static __always_inline bool is_explained(struct known_credentials *was,
					 struct known_credentials *now)
{
	if (went_deeper(was, now))
		return true;
	if (now->user_ns_level != was->user_ns_level ||
	    (now->cap_permitted | now->cap_effective) & ~was->cap_permitted)
		return false;
	return (was->cap_effective >> CAP_SETUID & 1 || uids_are_shuffled(was, now)) &&
	       (was->cap_effective >> CAP_SETGID & 1 || gids_are_shuffled(was, now));
}

/* Where no system call has set anything: tells when the current thread has not what is known. */
static __always_inline void compare_credentials(struct thread *thread)
{
	struct known_credentials *known = find_credentials(thread), was, now;
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!known || BPF_CORE_READ(task, flags) & (PF_IO_WORKER | PF_USER_WORKER))
		return;
	was = *known;
	read_own_credentials(&now);
	if (same_credentials(&was, &now))
		return;
	learn_credentials(thread, &now);
	if (!went_deeper(&was, &now))
		tell_credentials(TOCSIN_CREDENTIALS_CAUSE_UNEXPLAINED, &was, 0, 0);
}

/*
 * Before the image of an executed program is stored: the credentials before. The program may
 * bring others with it; but no execution changes real ids. Where changes by system calls are not
 * wanted, nothing learns of them: then what is known is what the last fork or execution gave.
 */
static __always_inline void credentials_before_exec(struct known_credentials *was, u32 caller_tid)
{
	struct thread caller = current_thread();
	struct known_credentials *known, now;

	caller.tid = caller_tid;
	known = find_credentials(&caller);
	read_own_credentials(&now);
	*was = known ? *known : now;
	forget_thread_credentials(&caller);
	if (was->uid != now.uid || was->gid != now.gid)
		tell_credentials(TOCSIN_CREDENTIALS_CAUSE_UNEXPLAINED, was, 0, 0);
}

/* All calls that set ids or capabilities. One that fails has changed nothing. */
SEC("tp_btf/sys_exit")
int act_credentials(unsigned long long *ctx)
{
	struct thread thread = current_thread();
	struct known_credentials *known, was, now;
	struct call call;
	u32 cause;

	if (!read_call(&call, ctx))
		return 0;
	read_own_credentials(&now);
	known = find_credentials(&thread);
	was = known ? *known : now;
	if (!same_credentials(&was, &now)) {
		learn_credentials(&thread, &now);
		cause = !call.error && is_explained(&was, &now) ?
				TOCSIN_CREDENTIALS_CAUSE_SYSCALL :
				TOCSIN_CREDENTIALS_CAUSE_UNEXPLAINED;
		tell_credentials(cause, &was,
				 cause == TOCSIN_CREDENTIALS_CAUSE_SYSCALL ? call.number : 0, 0);
	}
	if (call.error && worth_telling(call.error))
		tell_credentials(TOCSIN_CREDENTIALS_CAUSE_SYSCALL, &now, call.number, call.error);
	return 0;
}

#endif
