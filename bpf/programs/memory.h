/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Memory that code can be put into and run from: files without a name, pages to write and execute. */
#ifndef TOCSIN_PROGRAMS_MEMORY_H
#define TOCSIN_PROGRAMS_MEMORY_H

#include "extract/file.h"
#include "store/act.h"

#define WRITE_AND_EXECUTE 6
/* What the kernel puts in front of the name of such a file. */
#define MEMFD_PREFIX_BYTES 6

/* What an act on memory is told with. */
struct memory_act {
	u64 address;
	u64 length;
	u32 protection;
	u32 flags;
};

static __always_inline void put_memory(struct wire_memory *w, struct memory_act *act, u32 error)
{
	wire_memory_tags(w);
	WIRE_PUT(w, error, error);
	WIRE_PUT(w, address, act->address);
	WIRE_PUT(w, length, act->length);
	WIRE_PUT(w, protection, act->protection);
	WIRE_PUT(w, flags, act->flags);
	WIRE_PUT(w, inode, 0);
}

static __always_inline void tell_memory_executable(struct memory_act *act, u32 error)
{
	u8 type = TOCSIN_EVENT_TYPE_MEMORY_EXECUTABLE;
	struct wire_memory *w;
	struct scratch *s;
	u64 body, at;

	s = begin_wanted_act(type, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	at = body + sizeof(struct long_field) + sizeof(*w);
	put_memory(w, act, error);
	submit_act(s, type, body, at);
}

/* mmap and mprotect have the protection in the same place: most calls are decided by it. */
SEC("tp_btf/sys_exit")
int act_memory_protect(unsigned long long *ctx)
{
	struct memory_act act = {};
	struct call call;

	if ((third_argument((void *)ctx[0]) & WRITE_AND_EXECUTE) != WRITE_AND_EXECUTE)
		return 0;
	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	act.address = call.argument[0];
	act.length = call.argument[1];
	act.protection = call.argument[2];
	if (call.act == ACT_MMAP) {
		act.flags = call.argument[3];
		if (!call.error)
			act.address = call.result;
	}
	tell_memory_executable(&act, call.error);
	return 0;
}

/* The mmap of old 32-bit programs: one argument, the address of all of them. */
SEC("tp_btf/sys_exit")
int act_memory_map_old(unsigned long long *ctx)
{
	struct memory_act act = {};
	u32 arguments[4] = {};
	struct call call;

	if (!read_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	bpf_probe_read_user(arguments, sizeof(arguments), (void *)call.argument[0]);
	if ((arguments[2] & WRITE_AND_EXECUTE) != WRITE_AND_EXECUTE)
		return 0;
	act.address = call.error ? arguments[0] : call.result;
	act.length = arguments[1];
	act.protection = arguments[2];
	act.flags = arguments[3];
	tell_memory_executable(&act, call.error);
	return 0;
}

/* The name that the kernel keeps: the process may have changed its own copy. */
static __always_inline u64 append_memfd_name(struct scratch *s, u64 at, struct file *file)
{
	const unsigned char *name = BPF_CORE_READ(file, f_path.dentry, d_name.name);
	struct short_field *field;
	long length;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	field = (void *)(s->record + at);
	length = bpf_probe_read_kernel_str(s->record + at + sizeof(*field),
					   TOCSIN_MAX_MEMORY_NAME + 1, name + MEMFD_PREFIX_BYTES);
	if (length <= 1)
		return at;
	field->tag = TOCSIN_TAG_MEMORY_NAME;
	put_length(field->length, length - 1);
	return at + sizeof(*field) + ((length - 1) & 0xff);
}

SEC("tp_btf/sys_exit")
int act_memfd_create(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	u8 type = TOCSIN_EVENT_TYPE_MEMFD_CREATE;
	struct memory_act act = {};
	struct file *file = NULL;
	struct wire_memory *w;
	struct scratch *s;
	struct call call;
	u64 body, at;

	if (!read_call(&call, ctx) || !worth_telling(call.error) || !wanted(type, task))
		return 0;
	if (!call.error)
		file = file_of_fd(task, call.result);
	act.flags = call.argument[1];
	s = begin_act(type, &body);
	if (!s)
		return 0;
	w = FIXED_PART(s, body);
	at = body + sizeof(struct long_field) + sizeof(*w);
	put_memory(w, &act, call.error);
	if (file) {
		WIRE_PUT(w, inode, BPF_CORE_READ(file, f_inode, i_ino));
		at = append_memfd_name(s, at, file);
	} else {
		at = append_user_string(s, at, TOCSIN_TAG_MEMORY_NAME, call.argument[0],
					TOCSIN_MAX_MEMORY_NAME);
	}
	submit_act(s, type, body, at);
	return 0;
}

#endif
