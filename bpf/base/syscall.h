/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A system call that has returned. Numbers differ between architectures and between 64-bit and
 * 32-bit processes: user space fills a table that says which act a number stands for
 * (agent/tocsin/kernel/acts.py has the same numbers; a test compares them).
 */
#ifndef TOCSIN_BASE_SYSCALL_H
#define TOCSIN_BASE_SYSCALL_H

#include "base/wanted.h"

#define EPERM  1
#define EACCES 13

struct call {
	u64 argument[6];
	long result;
	/* errno, 0 when it succeeded. */
	u32 error;
	u32 number;
	u16 act;
	bool compat;
};

#if defined(__TARGET_ARCH_x86)
#define TS_COMPAT 2
/* Of a 32-bit process: the argument where a 64-bit value behind one other begins. */
#define SPLIT_ARGUMENT 1
/* The bit that marks a call of the x32 ABI, whose numbers below 512 are the native ones. */
#define X32_BIT 0x40000000

static __always_inline u32 syscall_number(struct pt_regs *regs)
{
	return regs->orig_ax & ~X32_BIT;
}

/* Also of a 64-bit process that uses int 0x80. */
static __always_inline bool is_compat(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, thread_info.status) & TS_COMPAT;
}

/* The third argument, also of a 32-bit process: for what is decided by it alone. */
static __always_inline u32 third_argument(struct pt_regs *regs)
{
	return regs->dx;
}

static __always_inline void read_arguments(struct call *call, struct pt_regs *regs)
{
	if (call->compat) {
		call->argument[0] = (u32)regs->bx;
		call->argument[1] = (u32)regs->cx;
		call->argument[2] = (u32)regs->dx;
		call->argument[3] = (u32)regs->si;
		call->argument[4] = (u32)regs->di;
		call->argument[5] = (u32)regs->bp;
		return;
	}
	call->argument[0] = regs->di;
	call->argument[1] = regs->si;
	call->argument[2] = regs->dx;
	call->argument[3] = regs->r10;
	call->argument[4] = regs->r8;
	call->argument[5] = regs->r9;
}
#elif defined(__TARGET_ARCH_arm64)
#define TIF_32BIT      22
/* Of a 32-bit process: the halves of a 64-bit value begin at an even register. */
#define SPLIT_ARGUMENT 2

static __always_inline u32 syscall_number(struct pt_regs *regs)
{
	return regs->syscallno;
}

static __always_inline bool is_compat(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, thread_info.flags) >> TIF_32BIT & 1;
}

static __always_inline u32 third_argument(struct pt_regs *regs)
{
	return regs->regs[2];
}

/* The first register holds the result by now; the kernel keeps what it was. */
static __always_inline void read_arguments(struct call *call, struct pt_regs *regs)
{
	call->argument[0] = regs->orig_x0;
	call->argument[1] = regs->regs[1];
	call->argument[2] = regs->regs[2];
	call->argument[3] = regs->regs[3];
	call->argument[4] = regs->regs[4];
	call->argument[5] = regs->regs[5];
}
#endif

/* What this call stands for. Most numbers mean nothing in either table and are decided at once. */
static __always_inline u16 act_of(u32 number, bool *compat)
{
	struct syscall_acts *acts_of_number = bpf_map_lookup_elem(&syscalls, &number);

	*compat = false;
	if (!acts_of_number || !*(u64 *)acts_of_number)
		return ACT_NONE;
	*compat = is_compat();
	return *compat ? acts_of_number->compat : acts_of_number->native;
}

/* Acts that fail for another reason changed nothing and tried nothing forbidden. */
static __always_inline bool worth_telling(u32 error)
{
	return !error || error == EPERM || error == EACCES;
}

/* For a program that on_syscall called: ctx is that of tp_btf/sys_exit. */
static __always_inline bool read_call(struct call *call, unsigned long long *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];

	call->number = syscall_number(regs);
	call->act = act_of(call->number, &call->compat);
	if (!call->act)
		return false;
	call->result = ctx[1];
	call->error = call->result < 0 && call->result >= -4095 ? -call->result : 0;
	read_arguments(call, regs);
	return true;
}

#endif
