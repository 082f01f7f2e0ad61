/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One program sees every system call return and calls on the one that tells this act: a program
 * act_... of the same kind, which is not attached itself. What is not wanted stands in no table
 * and costs a lookup.
 */
#ifndef TOCSIN_PROGRAMS_DISPATCH_H
#define TOCSIN_PROGRAMS_DISPATCH_H

#include "base/syscall.h"

SEC("tp_btf/sys_exit")
int on_syscall(unsigned long long *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	bool compat;
	u32 act = act_of(syscall_number(regs), &compat);

	if (act)
		bpf_tail_call(ctx, &acts, act);
	return 0;
}

#endif
