/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What reaches into the kernel: modules, eBPF, kexec, performance events, I/O ports. */
#ifndef TOCSIN_PROGRAMS_KERNEL_H
#define TOCSIN_PROGRAMS_KERNEL_H

#include "extract/file.h"
#include "store/act.h"

#define ENOEXEC      8
#define EKEYREJECTED 129

#define PERF_FLAG_PID_CGROUP 4
/* Of struct perf_event_attr, where user space has it. */
#define PERF_CONFIG_OFFSET 8
#define NO_SINGLE_ONE      0xffffffffU

#define ANON_INODE_FS_MAGIC 0x09041934
/* The name of a file that is a program: "bpf-prog". */
#define PROGRAM_NAME 0x676f72702d667062

/* Kernel code that is refused: forbidden, not code at all, or not signed by a known key. */
static __always_inline bool is_refusal(u32 error)
{
	return error == EPERM || error == EACCES || error == ENOEXEC || error == EKEYREJECTED;
}

/* `name` is in the kernel, `user_name` in the process; at most one of them is there. */
static __always_inline void tell_module(u8 type, u32 error, struct module *module, u64 user_name)
{
	struct wire_module *w;
	struct scratch *s;
	u64 at, body;

	s = begin_wanted_act(type, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	wire_module_tags(w);
	WIRE_PUT(w, error, error);
	WIRE_PUT(w, taints, 0);
	at = body + sizeof(struct long_field) + sizeof(*w);
	if (module) {
		WIRE_PUT(w, taints, BPF_CORE_READ(module, taints));
		at = append_kernel_string(s, at, TOCSIN_TAG_MODULE_NAME,
					  __builtin_preserve_access_index(&module->name[0]));
	} else if (user_name) {
		at = append_user_string(s, at, TOCSIN_TAG_MODULE_NAME, user_name,
					TOCSIN_MAX_MODULE_NAME);
	}
	submit_act(s, type, body, at);
}

/* Before the module's own code runs. */
SEC("tp_btf/module_load")
int on_module_load(unsigned long long *ctx)
{
	tell_module(TOCSIN_EVENT_TYPE_MODULE_LOAD, 0, (void *)ctx[0], 0);
	return 0;
}

SEC("tp_btf/module_free")
int on_module_unload(unsigned long long *ctx)
{
	tell_module(TOCSIN_EVENT_TYPE_MODULE_UNLOAD, 0, (void *)ctx[0], 0);
	return 0;
}

/* What was refused: a module without a name that the kernel knows, and an unload. */
SEC("tp_btf/sys_exit")
int act_module(unsigned long long *ctx)
{
	struct call call;

	if (!read_call(&call, ctx) || !is_refusal(call.error))
		return 0;
	if (call.act == ACT_INIT_MODULE)
		tell_module(TOCSIN_EVENT_TYPE_MODULE_LOAD, call.error, NULL, 0);
	else
		tell_module(TOCSIN_EVENT_TYPE_MODULE_UNLOAD, call.error, NULL, call.argument[0]);
	return 0;
}

/* What a use of bpf() is told with. */
struct bpf_act {
	u32 command;
	u32 error;
	u32 object_type;
	u32 attach_type;
	u32 object_id;
	/* In the kernel; else in the process. */
	const char *name;
	u64 user_name;
};

static __always_inline u32 read_attribute(u64 attributes, u32 offset)
{
	u32 value = 0;

	bpf_probe_read_user(&value, sizeof(value), (void *)(attributes + offset));
	return value;
}

#define ATTRIBUTE(attributes, member) read_attribute(attributes, offsetof(union bpf_attr, member))

static __always_inline void read_program(struct bpf_act *act, struct bpf_prog *program)
{
	struct bpf_prog_aux *aux = BPF_CORE_READ(program, aux);

	if (!program)
		return;
	act->object_type = BPF_CORE_READ(program, type);
	act->attach_type = BPF_CORE_READ(program, expected_attach_type);
	act->object_id = BPF_CORE_READ(aux, id);
	act->name = __builtin_preserve_access_index(&aux->name[0]);
}

static __always_inline void read_map(struct bpf_act *act, struct bpf_map *map)
{
	act->object_type = BPF_CORE_READ(map, map_type);
	act->object_id = BPF_CORE_READ(map, id);
	act->name = __builtin_preserve_access_index(&map->name[0]);
}

/* Whether the kernel made the file for an object of its own. */
static __always_inline bool is_anonymous(struct file *file)
{
	return BPF_CORE_READ(file, f_inode, i_sb, s_magic) == ANON_INODE_FS_MAGIC;
}

static __always_inline bool is_program(struct file *file)
{
	u64 name = 0;

	bpf_probe_read_kernel(&name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	return is_anonymous(file) && name == PROGRAM_NAME;
}

/* The program behind a descriptor that the process passed. */
static __always_inline void read_passed_program(struct bpf_act *act, u32 fd)
{
	struct file *file = file_of_fd((void *)bpf_get_current_task(), fd);

	if (file && is_program(file))
		read_program(act, BPF_CORE_READ(file, private_data));
}

/* From the object behind the descriptor that the call returned. */
static __always_inline void read_made(struct bpf_act *act, struct file *file)
{
	void *object = BPF_CORE_READ(file, private_data);
	struct bpf_link *link = object;

	switch (act->command) {
	case BPF_MAP_CREATE:
		read_map(act, object);
		break;
	case BPF_PROG_LOAD:
		read_program(act, object);
		break;
	default:
		read_program(act, BPF_CORE_READ(link, prog));
	}
}

/* From what the process passed: all that there is when the kernel refused. */
static __always_inline void read_asked(struct bpf_act *act, u64 attributes)
{
	switch (act->command) {
	case BPF_MAP_CREATE:
		act->object_type = ATTRIBUTE(attributes, map_type);
		act->user_name = attributes + offsetof(union bpf_attr, map_name);
		break;
	case BPF_PROG_LOAD:
		act->object_type = ATTRIBUTE(attributes, prog_type);
		act->attach_type = ATTRIBUTE(attributes, expected_attach_type);
		act->user_name = attributes + offsetof(union bpf_attr, prog_name);
		break;
	case BPF_PROG_ATTACH:
		read_passed_program(act, ATTRIBUTE(attributes, attach_bpf_fd));
		break;
	case BPF_RAW_TRACEPOINT_OPEN:
		read_passed_program(act, ATTRIBUTE(attributes, raw_tracepoint.prog_fd));
		break;
	case BPF_LINK_CREATE:
		read_passed_program(act, ATTRIBUTE(attributes, link_create.prog_fd));
	}
}

static __always_inline void tell_bpf(struct bpf_act *act)
{
	struct wire_bpf *w;
	struct scratch *s;
	u64 at, body;

	s = begin_act(TOCSIN_EVENT_TYPE_BPF, &body);
	if (!s)
		return;
	w = FIXED_PART(s, body);
	wire_bpf_tags(w);
	WIRE_PUT(w, error, act->error);
	WIRE_PUT(w, command, act->command);
	WIRE_PUT(w, object_type, act->object_type);
	WIRE_PUT(w, attach_type, act->attach_type);
	WIRE_PUT(w, object_id, act->object_id);
	at = body + sizeof(struct long_field) + sizeof(*w);
	if (act->name)
		at = append_kernel_string(s, at, TOCSIN_TAG_BPF_NAME, act->name);
	else if (act->user_name)
		at = append_user_string(s, at, TOCSIN_TAG_BPF_NAME, act->user_name,
					TOCSIN_MAX_BPF_NAME);
	submit_act(s, TOCSIN_EVENT_TYPE_BPF, body, at);
}

static __always_inline bool is_told_command(u32 command)
{
	return command == BPF_MAP_CREATE || command == BPF_PROG_LOAD ||
	       command == BPF_PROG_ATTACH || command == BPF_RAW_TRACEPOINT_OPEN ||
	       command == BPF_LINK_CREATE;
}

SEC("tp_btf/sys_exit")
int act_bpf(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct bpf_act act = {};
	struct file *file;
	struct call call;
	u64 attributes;

	if (!read_call(&call, ctx) || !worth_telling(call.error) ||
	    !is_told_command(call.argument[0]) || !wanted(TOCSIN_EVENT_TYPE_BPF, task))
		return 0;
	act.command = call.argument[0];
	act.error = call.error;
	attributes = call.argument[1];
	file = call.error ? NULL : file_of_fd(task, call.result);
	if (file && is_anonymous(file) && act.command != BPF_PROG_ATTACH)
		read_made(&act, file);
	else
		read_asked(&act, attributes);
	/* An attach type that the program does not need to have been loaded with. */
	if (act.command == BPF_PROG_ATTACH)
		act.attach_type = ATTRIBUTE(attributes, attach_type);
	else if (act.command == BPF_LINK_CREATE)
		act.attach_type = ATTRIBUTE(attributes, link_create.attach_type);
	tell_bpf(&act);
	return 0;
}

SEC("tp_btf/sys_exit")
int act_kexec(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file *file = NULL;
	struct wire_kexec *w;
	u32 path_flags = 0;
	struct scratch *s;
	struct call call;
	u64 at, body;

	if (!read_call(&call, ctx) || (call.error && !is_refusal(call.error)) ||
	    !wanted(TOCSIN_EVENT_TYPE_KEXEC, task))
		return 0;
	if (call.act == ACT_KEXEC_FILE)
		file = file_of_fd(task, call.argument[0]);
	s = begin_act(TOCSIN_EVENT_TYPE_KEXEC, &body);
	if (!s)
		return 0;
	w = FIXED_PART(s, body);
	wire_kexec_tags(w);
	WIRE_PUT(w, error, call.error);
	WIRE_PUT(w, flags, call.argument[call.act == ACT_KEXEC_FILE ? 4 : 3]);
	at = body + sizeof(struct long_field) + sizeof(*w);
	if (file)
		at = append_file_path(s, at, TOCSIN_TAG_KEXEC_PATH, file,
				      TOCSIN_PATH_FLAG_PATH_TRUNCATED, &path_flags);
	WIRE_PUT(w, path_flags, path_flags);
	submit_act(s, TOCSIN_EVENT_TYPE_KEXEC, body, at);
	return 0;
}

/* What was asked for: from the event that was made, else from what the process passed. */
static __always_inline void put_perf_attributes(struct wire_perf *w, struct call *call)
{
	struct perf_event *event = NULL;
	struct file *file = NULL;
	u64 config = 0;
	u32 type = 0;

	if (!call->error)
		file = file_of_fd((void *)bpf_get_current_task(), call->result);
	if (file && is_anonymous(file)) {
		event = BPF_CORE_READ(file, private_data);
		type = BPF_CORE_READ(event, attr.type);
		config = BPF_CORE_READ(event, attr.config);
	} else {
		bpf_probe_read_user(&type, sizeof(type), (void *)call->argument[0]);
		bpf_probe_read_user(&config, sizeof(config),
				    (void *)(call->argument[0] + PERF_CONFIG_OFFSET));
	}
	WIRE_PUT(w, event_type, type);
	WIRE_PUT(w, config, config);
}

SEC("tp_btf/sys_exit")
int act_perf_event(unsigned long long *ctx)
{
	struct wire_perf *w;
	struct scratch *s;
	struct call call;
	u64 body;

	if (!read_call(&call, ctx) || !worth_telling(call.error) ||
	    !wanted(TOCSIN_EVENT_TYPE_PERF_EVENT_OPEN, (void *)bpf_get_current_task()))
		return 0;
	s = begin_act(TOCSIN_EVENT_TYPE_PERF_EVENT_OPEN, &body);
	if (!s)
		return 0;
	w = FIXED_PART(s, body);
	wire_perf_tags(w);
	WIRE_PUT(w, error, call.error);
	put_perf_attributes(w, &call);
	/* With this flag the number is the descriptor of a control group. */
	WIRE_PUT(w, target_pid,
		 call.argument[4] & PERF_FLAG_PID_CGROUP ? NO_SINGLE_ONE : call.argument[1]);
	WIRE_PUT(w, target_cpu, call.argument[2]);
	submit_act(s, TOCSIN_EVENT_TYPE_PERF_EVENT_OPEN, body,
		   body + sizeof(struct long_field) + sizeof(*w));
	return 0;
}

SEC("tp_btf/sys_exit")
int act_io_ports(unsigned long long *ctx)
{
	struct wire_io_ports *w;
	struct scratch *s;
	struct call call;
	bool ioperm;
	u64 body;

	if (!read_call(&call, ctx) || !worth_telling(call.error) ||
	    !wanted(TOCSIN_EVENT_TYPE_IO_PORTS, (void *)bpf_get_current_task()))
		return 0;
	s = begin_act(TOCSIN_EVENT_TYPE_IO_PORTS, &body);
	if (!s)
		return 0;
	ioperm = call.act == ACT_IOPERM;
	w = FIXED_PART(s, body);
	wire_io_ports_tags(w);
	WIRE_PUT(w, error, call.error);
	WIRE_PUT(w, level, ioperm ? 0 : call.argument[0]);
	WIRE_PUT(w, first, ioperm ? call.argument[0] : 0);
	WIRE_PUT(w, count, ioperm ? call.argument[1] : 0);
	WIRE_PUT(w, granted, !!(u32)call.argument[ioperm ? 2 : 0]);
	submit_act(s, TOCSIN_EVENT_TYPE_IO_PORTS, body,
		   body + sizeof(struct long_field) + sizeof(*w));
	return 0;
}

#endif
