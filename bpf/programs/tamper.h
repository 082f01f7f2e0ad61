/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What processes do to each other and to their own nature: ptrace, memory, signals, prctl. */
#ifndef TOCSIN_PROGRAMS_TAMPER_H
#define TOCSIN_PROGRAMS_TAMPER_H

#include "extract/pid.h"
#include "store/act.h"
#include "store/target.h"

#define EAGAIN 11

#define PTRACE_TRACEME    0
#define PTRACE_POKETEXT   4
#define PTRACE_POKEDATA   5
#define PTRACE_POKEUSER   6
#define PTRACE_SETREGS    13
#define PTRACE_SETFPREGS  15
#define PTRACE_ATTACH     16
#define PTRACE_SETFPXREGS 19
#define PTRACE_SETREGSET  0x4205
#define PTRACE_SEIZE      0x4206

#define PR_SET_DUMPABLE 4
#define PR_SET_NAME     15
#define PR_SET_SECCOMP  22

#define SECCOMP_SET_MODE_STRICT 0
#define SECCOMP_SET_MODE_FILTER 1
/* The modes as prctl has them. */
#define SECCOMP_MODE_STRICT 1
#define SECCOMP_MODE_FILTER 2
#define SECCOMP_TSYNC       0x1
#define SECCOMP_LISTENER    0x8

/* A signal of the kernel itself; 0 stands for one of the current process without more to say. */
#define SEND_SIG_PRIV              1
#define TRACE_SIGNAL_OVERFLOW_FAIL 3
/* Kernel stacks are at most that big. */
#define KERNEL_STACK_BYTES 65536

/* What an act on another process is told with. */
struct access {
	u8 type;
	/* NULL: it is gone. */
	struct task_struct *target;
	u32 error;
	u32 request;
	u32 signal;
	u64 bytes;
	u64 address;
};

static __always_inline void tell_access(struct access *access)
{
	struct wire_access *w;
	struct scratch *s;
	u64 body, at;

	s = begin_act(access->type, &at);
	if (!s)
		return;
	if (access->target)
		at = append_target(s, at, access->target);
	else
		flag(s, TOCSIN_EVENT_FLAG_TARGET_IMAGE_MISSING);
	body = at;
	BARRIER(body);
	if (body > 8192) {
		submit(s, access->type, RECORD_BYTES + 1);
		return;
	}
	w = FIXED_PART(s, body);
	at = body + sizeof(struct long_field) + sizeof(*w);
	wire_access_tags(w);
	WIRE_PUT(w, error, access->error);
	WIRE_PUT(w, request, access->request);
	WIRE_PUT(w, signal, access->signal);
	WIRE_PUT(w, bytes, access->bytes);
	WIRE_PUT(w, address, access->address);
	submit_act(s, access->type, body, at);
}

/* The requests that begin to trace, and those that change what is traced. */
static __always_inline bool is_tampering(u64 request)
{
	switch (request) {
	case PTRACE_TRACEME:
	case PTRACE_ATTACH:
	case PTRACE_SEIZE:
	case PTRACE_POKETEXT:
	case PTRACE_POKEDATA:
	case PTRACE_POKEUSER:
	case PTRACE_SETREGS:
	case PTRACE_SETFPREGS:
	case PTRACE_SETFPXREGS:
	case PTRACE_SETREGSET:
		return true;
	}
	return false;
}

SEC("tp_btf/sys_exit")
int act_ptrace(unsigned long long *ctx)
{
	struct access access = {.type = TOCSIN_EVENT_TYPE_PTRACE};
	struct task_struct *task = (void *)bpf_get_current_task();
	struct call call;
	u64 request;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	request = call.argument[0];
	if (!is_tampering(request) || !wanted(access.type, task))
		return 0;
	access.error = call.error;
	access.request = request;
	access.target = request == PTRACE_TRACEME ? task : task_of_number(call.argument[1]);
	if (request == PTRACE_POKETEXT || request == PTRACE_POKEDATA) {
		access.address = call.argument[2];
		if (!call.error)
			access.bytes = call.compat ? sizeof(u32) : sizeof(u64);
	}
	tell_access(&access);
	return 0;
}

SEC("tp_btf/sys_exit")
int act_process_write(unsigned long long *ctx)
{
	struct access access = {.type = TOCSIN_EVENT_TYPE_PROCESS_WRITE};
	struct task_struct *task = (void *)bpf_get_current_task(), *target;
	struct call call;

	if (!read_call(&call, ctx) || !worth_telling(call.error) || !wanted(access.type, task))
		return 0;
	target = task_of_number(call.argument[0]);
	if (target && BPF_CORE_READ(target, tgid) == BPF_CORE_READ(task, tgid))
		return 0; /* its own memory */
	access.target = target;
	access.error = call.error;
	access.bytes = call.error ? 0 : call.result;
	/* The first vector begins with its address. */
	bpf_probe_read_user(&access.address, call.compat ? sizeof(u32) : sizeof(u64),
			    (void *)call.argument[3]);
	tell_access(&access);
	return 0;
}

/*
 * Whether the current process sent the signal itself. A signal of the kernel (a timer, a fault)
 * may come while anybody runs. What a system call sends is described on its own stack, whatever
 * code the process made up; what the kernel queues is described elsewhere or has a code above 0.
 */
static __always_inline bool is_sent(struct task_struct *sender, u64 info_address)
{
	struct kernel_siginfo *info = (void *)info_address;
	u64 stack = (u64)BPF_CORE_READ(sender, stack);

	if (!info_address)
		return true;
	if (info_address == SEND_SIG_PRIV || BPF_CORE_READ(info, si_code) > 0)
		return false;
	return info_address - stack < KERNEL_STACK_BYTES;
}

/* The kernel has allowed it by now. (int sig, info, task, int group, int result) */
SEC("tp_btf/signal_generate")
int on_signal(unsigned long long *ctx)
{
	struct access access = {.type = TOCSIN_EVENT_TYPE_SIGNAL};
	struct task_struct *sender = (void *)bpf_get_current_task();
	struct task_struct *target = (void *)ctx[2];
	u64 info;

	if (BPF_CORE_READ(target, cred, uid.val) == BPF_CORE_READ(sender, cred, euid.val) ||
	    BPF_CORE_READ(target, tgid) == BPF_CORE_READ(sender, tgid))
		return 0;
	/* Read as a number: the verifier does not compute with a pointer that it knows. */
	bpf_probe_read_kernel(&info, sizeof(info), ctx + 1);
	if (!is_sent(sender, info) || !wanted(access.type, sender))
		return 0;
	access.target = target;
	access.signal = ctx[0];
	access.error = ctx[4] == TRACE_SIGNAL_OVERFLOW_FAIL ? EAGAIN : 0;
	tell_access(&access);
	return 0;
}

/* The name of the thread as the kernel keeps it. */
static __always_inline u64 append_comm(struct scratch *s, u64 at)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct short_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - 64)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = bpf_probe_read_kernel_str(s->record + at + sizeof(*field), TASK_COMM_LEN,
					   __builtin_preserve_access_index(&task->comm));
	if (length <= 1)
		return at;
	field->tag = TOCSIN_TAG_PRCTL_NAME;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & (TASK_COMM_LEN - 1));
}

static __always_inline void tell_prctl(u32 option, u64 argument, u32 error)
{
	u8 type = TOCSIN_EVENT_TYPE_PRCTL;
	struct wire_prctl *w;
	struct scratch *s;
	u64 body, at;

	s = begin_wanted_act(type, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	at = body + sizeof(struct long_field) + sizeof(*w);
	wire_prctl_tags(w);
	WIRE_PUT(w, error, error);
	WIRE_PUT(w, option, option);
	WIRE_PUT(w, argument, argument);
	if (option == PR_SET_NAME)
		at = append_comm(s, at);
	submit_act(s, type, body, at);
}

SEC("tp_btf/sys_exit")
int act_prctl(unsigned long long *ctx)
{
	struct call call;
	u64 option;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	option = call.argument[0];
	if (option == PR_SET_NAME)
		tell_prctl(option, 0, call.error);
	else if (option == PR_SET_DUMPABLE || option == PR_SET_SECCOMP)
		tell_prctl(option, call.argument[1], call.error);
	return 0;
}

/* Told as the prctl that does the same. */
SEC("tp_btf/sys_exit")
int act_seccomp(unsigned long long *ctx)
{
	struct call call;
	u64 flags;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	flags = call.argument[1];
	/* The id of a thread that could not follow: no filter was installed. */
	if (call.result > 0 && flags & SECCOMP_TSYNC && !(flags & SECCOMP_LISTENER))
		return 0;
	if (call.argument[0] == SECCOMP_SET_MODE_STRICT)
		tell_prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, call.error);
	else if (call.argument[0] == SECCOMP_SET_MODE_FILTER)
		tell_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, call.error);
	return 0;
}

#endif
