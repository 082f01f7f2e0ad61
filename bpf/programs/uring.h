/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Acts that a process asks for through io_uring: no system call of theirs returns. What is asked for
 * about files is kept when it is submitted, with the kernel's copies of the paths, and told with its
 * outcome when it is completed. What cannot be kept, or completes without a word, is told at once:
 * its outcome is not known. Connections are told where they change their state; here only that one
 * was accepted, and by whom.
 */
#ifndef TOCSIN_PROGRAMS_URING_H
#define TOCSIN_PROGRAMS_URING_H

#include "extract/uring.h"
#include "programs/file.h"
#include "programs/tcp.h"

/* Where a body is made that is kept: what is sought in a record reads some bytes in front. */
#define BODY_MADE    NAME_SEARCH
#define REQUEST_MASK (2 * REQUEST_BYTES - 1)
#define AT_ONCE      (TOCSIN_EVENT_FLAG_IO_URING | TOCSIN_EVENT_FLAG_OUTCOME_UNKNOWN)

/* What is told of an operation of io_uring; 0: it is no act on a file. Of opens it depends on more. */
static const u8 file_types[OPCODES] = {
	[OP_OPENAT] = TOCSIN_EVENT_TYPE_FILE_WRITE,
	[OP_OPENAT2] = TOCSIN_EVENT_TYPE_FILE_WRITE,
	[OP_RENAMEAT] = TOCSIN_EVENT_TYPE_FILE_RENAME,
	[OP_UNLINKAT] = TOCSIN_EVENT_TYPE_FILE_DELETE,
	[OP_MKDIRAT] = TOCSIN_EVENT_TYPE_DIRECTORY_CREATE,
	[OP_SYMLINKAT] = TOCSIN_EVENT_TYPE_FILE_SYMLINK,
	[OP_LINKAT] = TOCSIN_EVENT_TYPE_FILE_LINK,
	[OP_FSETXATTR] = TOCSIN_EVENT_TYPE_FILE_XATTR,
	[OP_SETXATTR] = TOCSIN_EVENT_TYPE_FILE_XATTR,
	[OP_FTRUNCATE] = TOCSIN_EVENT_TYPE_FILE_TRUNCATE,
};

/* Reads what an open asks for. */
static __always_inline void read_open(struct file_act *act, struct io_kiocb *req)
{
	struct io_open *open = (void *)req;

	act->directory = BPF_CORE_READ(open, dfd);
	act->path = KERNEL_NAME(req, io_open, filename);
	act->open_flags = BPF_CORE_READ(open, how.flags);
	judge_refusal(act);
}

/* The same of what has two names; `kind` has them as io_rename. */
#define READ_TWO_NAMES(act, req, kind)                                                  \
	do {                                                                            \
		(act)->source_directory = BPF_CORE_READ((struct kind *)(req), old_dfd); \
		(act)->source = KERNEL_NAME(req, kind, oldpath);                        \
		(act)->directory = BPF_CORE_READ((struct kind *)(req), new_dfd);        \
		(act)->path = KERNEL_NAME(req, kind, newpath);                          \
		(act)->open_flags = BPF_CORE_READ((struct kind *)(req), flags);         \
	} while (0)

static __always_inline void read_link(struct file_act *act, struct io_kiocb *req)
{
	if (bpf_core_type_exists(struct io_link))
		READ_TWO_NAMES(act, req, io_link);
	else
		READ_TWO_NAMES(act, req, io_hardlink);
}

static __always_inline void read_symlink(struct file_act *act, struct io_kiocb *req)
{
	act->source_is_text = 1;
	if (bpf_core_type_exists(struct io_link)) {
		act->directory = BPF_CORE_READ((struct io_link *)req, new_dfd);
		act->source = KERNEL_NAME(req, io_link, oldpath);
		act->path = KERNEL_NAME(req, io_link, newpath);
	} else {
		act->directory = BPF_CORE_READ((struct io_symlink *)req, new_dfd);
		act->source = KERNEL_NAME(req, io_symlink, oldpath);
		act->path = KERNEL_NAME(req, io_symlink, newpath);
	}
}

/* By path, or by a descriptor that is looked up when the request is done. */
static __always_inline void read_xattr(struct file_act *act, struct io_kiocb *req, u8 opcode)
{
	if (!bpf_core_type_exists(struct io_xattr))
		return;
	act->attribute = (u64)BPF_CORE_READ((struct io_xattr *)req, ctx.kname);
	if (opcode == OP_SETXATTR)
		act->path = KERNEL_NAME(req, io_xattr, filename);
	else
		act->file = file_to_come(req);
}

/*
 * Fills the scratch's act, whose type is known, with what is asked for; false: it names no file.
 * Global: what follows is verified once, not for each operation.
 */
__noinline bool read_request(u64 address, u8 opcode, u32 slot)
{
	struct io_kiocb *req = (void *)address;
	struct scratch *s = scratch_of(slot);
	struct file_act *act;

	if (!s)
		return false;
	act = &s->file_act;
	switch (opcode) {
	case OP_OPENAT:
	case OP_OPENAT2:
		read_open(act, req);
		break;
	case OP_UNLINKAT:
		act->directory = BPF_CORE_READ((struct io_unlink *)req, dfd);
		act->path = KERNEL_NAME(req, io_unlink, filename);
		act->open_flags = BPF_CORE_READ((struct io_unlink *)req, flags);
		break;
	case OP_RENAMEAT:
		READ_TWO_NAMES(act, req, io_rename);
		break;
	case OP_LINKAT:
		read_link(act, req);
		break;
	case OP_SYMLINKAT:
		read_symlink(act, req);
		break;
	case OP_MKDIRAT:
		act->directory = BPF_CORE_READ((struct io_mkdir *)req, dfd);
		act->path = KERNEL_NAME(req, io_mkdir, filename);
		act->mode = BPF_CORE_READ((struct io_mkdir *)req, mode);
		break;
	case OP_SETXATTR:
	case OP_FSETXATTR:
		read_xattr(act, req, opcode);
		break;
	default: /* OP_FTRUNCATE */
		if (bpf_core_type_exists(struct io_ftrunc)) {
			act->size = BPF_CORE_READ((struct io_ftrunc *)req, len);
			act->file = file_to_come(req);
		}
	}
	return act->path || act->file;
}

/* An open that may make a file is kept where only what it makes is wanted. */
static __always_inline bool request_wanted(struct file_act *act, struct task_struct *task)
{
	return wanted(act->type, task) ||
	       (act->open_flags & O_CREAT && act->type == TOCSIN_EVENT_TYPE_FILE_WRITE &&
		wanted(TOCSIN_EVENT_TYPE_FILE_CREATE, task));
}

static __always_inline struct request_key key_of(struct io_kiocb *req)
{
	return (struct request_key){.ring = (u64)BPF_CORE_READ(req, ctx),
				    .user_data = BPF_CORE_READ(req, cqe.user_data)};
}

/*
 * Keeps the request under its ring and number. False: it has to be told at once, as another one has
 * the number, the map is full, or the body does not fit.
 */
static __always_inline bool keep_request(struct scratch *s, struct io_kiocb *req, u64 length,
					 u8 type)
{
	struct request_key key = key_of(req);
	struct request *kept = &s->request;

	BARRIER(length);
	if (length > REQUEST_BYTES)
		return false;
	BOUND(length, REQUEST_MASK);
	kept->address = (u64)req;
	kept->type = type;
	kept->length = length;
	keep_owner(&kept->owner, (void *)bpf_get_current_task());
	bpf_probe_read_kernel(kept->body, length, s->record + BODY_MADE);
	return !bpf_map_update_elem(&requests, &key, kept, BPF_NOEXIST);
}

/*
 * Whether the end of a request will be seen. Kernels before 5.19, which have no `cqe`, do not say
 * which request has ended.
 */
static __always_inline bool outcome_comes(struct io_kiocb *req)
{
	return bpf_core_field_exists(struct io_kiocb, cqe) &&
	       !(BPF_CORE_READ(req, flags) & CQE_SKIP);
}

/*
 * A request was submitted, and its act stands in the scratch. False: it has to be told at once, with
 * what then stands in `act`.
 */
static __always_inline bool is_settled(struct scratch *s, struct io_kiocb *req,
				       struct file_act *act)
{
	u64 end;

	*act = s->file_act;
	if (!request_wanted(act, (void *)bpf_get_current_task()))
		return true;
	if (!outcome_comes(req))
		return false;
	end = put_file_body(BODY_MADE, s->slot);
	return !end || keep_request(s, req, end - BODY_MADE, act->type);
}

__noinline int take_request(u64 address)
{
	struct file_act act = NOTHING_KNOWN;
	struct io_kiocb *req = (void *)address;
	u8 opcode = BPF_CORE_READ(req, opcode);
	struct scratch *s;
	bool settled;

	act.type = file_types[opcode];
	if (!act.type)
		return 0;
	s = claim();
	if (!s) {
		COUNT_LOST(type_of(&act), lost_scratch_busy);
		return 0;
	}
	act.copied = COPIED;
	act.event_flags = AT_ONCE;
	s->file_act = act;
	settled = !read_request(address, opcode, s->slot) || is_settled(s, req, &act);
	release(s);
	if (!settled)
		tell_file(&act);
	return 0;
}

/* Tells a request that was kept: with the file that it opened, if that is known, else as asked for. */
static __always_inline void tell_request(struct request *kept, struct file_act *opened, u32 error,
					 u32 flags)
{
	u8 type = opened->file ? type_of(opened) : kept->type & (EVENT_TYPES - 1);
	u64 at, length = kept->length;
	struct wire_file *w;
	struct scratch *s;

	if (!wanted_of(type, &kept->owner))
		return;
	s = begin(type, &at);
	if (!s)
		return;
	flag(s, flags);
	at = append_owner(s, at, &kept->owner);
	if (opened->file) {
		end_file(s, at, opened);
		return;
	}
	BARRIER(at);
	BARRIER(length);
	if (at > BODY_LATEST || length > REQUEST_BYTES) {
		submit(s, type, RECORD_BYTES + 1);
		return;
	}
	BOUND(at, FIXED_MASK);
	BOUND(length, REQUEST_MASK);
	bpf_probe_read_kernel(s->record + at, length, kept->body);
	BARRIER(at); /* or the compiler leaves out the mask */
	w = FIXED_PART(s, at);
	WIRE_PUT(w, error, error);
	submit(s, type, at + length);
}

/* Reads the file that an open got; false: it is of no interest. */
static __always_inline bool read_opened(struct file_act *act, struct io_kiocb *req, int result)
{
	struct io_open *open = (void *)req;

	act->open_flags = BPF_CORE_READ(open, how.flags);
	act->event_flags = TOCSIN_EVENT_FLAG_IO_URING;
	act->file = file_of_result(req, BPF_CORE_READ(open, file_slot), result);
	return !act->file /* another thread has closed it */ || judge_open(act);
}

/*
 * A request ended. An open to write was kept, or told, when it was submitted; whether a file that is
 * read is watched may show only now.
 */
__noinline int end_file_request(u64 address, u8 opcode, int result)
{
	struct io_kiocb *req = (void *)address;
	struct file_act opened = NOTHING_KNOWN;
	u32 error = result < 0 ? -result : 0;
	bool told = worth_telling(error);
	struct request_key key;
	struct request *kept;

	if (!bpf_core_field_exists(struct io_kiocb, cqe))
		return 0;
	key = key_of(req);
	kept = bpf_map_lookup_elem(&requests, &key);
	if (!error && (opcode == OP_OPENAT || opcode == OP_OPENAT2))
		told = read_opened(&opened, req, result);
	if (kept && kept->address == (u64)req) {
		if (told)
			tell_request(kept, &opened, error, TOCSIN_EVENT_FLAG_IO_URING);
		bpf_map_delete_elem(&requests, &key);
	} else if (told && opened.type == TOCSIN_EVENT_TYPE_FILE_READ &&
		   wanted(opened.type, (void *)bpf_get_current_task())) {
		tell_file(&opened);
	}
	return 0;
}

/* A connection that was accepted, as a descriptor or in a slot of the ring. */
static __always_inline void end_accept(struct io_ring_ctx *ring, int result)
{
	struct sock *sk = socket_of_fd((void *)bpf_get_current_task(), result);

	if (!sk || !is_tcp(sk))
		sk = socket_of_file(file_of_slot(ring, result));
	tell_accept((u64)sk, TOCSIN_EVENT_FLAG_IO_URING);
}

/* A socket was made, or refused; told if it is a raw one. */
static __always_inline void end_socket(struct socket_facts *facts, struct io_kiocb *req, int result)
{
	struct io_socket *asked = (void *)req;
	struct sock *sk;

	if (!bpf_core_type_exists(struct io_socket) || !worth_telling(facts->error) ||
	    !read_raw_socket(facts, BPF_CORE_READ(asked, domain), BPF_CORE_READ(asked, type),
			     BPF_CORE_READ(asked, protocol)))
		return;
	sk = facts->error ?
		     NULL :
		     socket_of_file(file_of_result(req, BPF_CORE_READ(asked, file_slot), result));
	if (sk)
		facts->cookie = cookie_of(sk);
	if (wanted(TOCSIN_EVENT_TYPE_RAW_SOCKET, (void *)bpf_get_current_task()))
		tell_socket(TOCSIN_EVENT_TYPE_RAW_SOCKET, facts);
}

/* The socket has its name. */
static __always_inline void end_bind(struct socket_facts *facts, struct sock *sk)
{
	read_socket(facts, sk);
	if (!binds_are_told(facts->local.family) ||
	    !wanted(TOCSIN_EVENT_TYPE_SOCKET_BIND, (void *)bpf_get_current_task()))
		return;
	if (facts->local.family == AF_UNIX)
		read_unix_path(&facts->path, sk);
	else if (is_inet(facts->local.family))
		read_local_address(&facts->local, sk);
	tell_socket(TOCSIN_EVENT_TYPE_SOCKET_BIND, facts);
}

/*
 * A request about a socket has ended. Of bind and connect only success is told: the kernel's copy of
 * the address is gone.
 */
__noinline int end_socket_request(u64 address, u8 opcode, int result)
{
	struct socket_facts facts = {.event_flags = TOCSIN_EVENT_FLAG_IO_URING};
	struct io_kiocb *req = (void *)address;
	struct call call = {};
	struct sock *sk;

	facts.error = result < 0 ? -result : 0;
	if (opcode == OP_SOCKET) {
		end_socket(&facts, req, result);
		return 0;
	}
	sk = facts.error ? NULL : socket_of_file(BPF_CORE_READ(req, file));
	if (!sk)
		return 0;
	if (opcode == OP_BIND)
		end_bind(&facts, sk);
	else if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_UNIX &&
		 wanted(TOCSIN_EVENT_TYPE_UNIX_CONNECT, (void *)bpf_get_current_task()))
		tell_unix_connect(&facts, sk, &call);
	return 0;
}

/*
 * A request has ended, or, without its address, a part of one: those of accept, which go on, have no mark
 * of their own; what they give is told where it is a connection that nobody has.
 */
static __always_inline int end_request(u64 ring, u64 address, int result, u32 flags)
{
	struct io_kiocb *req = (void *)address;
	u8 opcode = BPF_CORE_READ(req, opcode);

	if (address && file_types[opcode])
		end_file_request(address, opcode, result);
	else if (address && (opcode == OP_SOCKET || opcode == OP_BIND || opcode == OP_CONNECT))
		end_socket_request(address, opcode, result);
	else if (result >= 0 &&
		 (address ? opcode == OP_ACCEPT : (flags & (CQE_MORE | CQE_BUFFER)) == CQE_MORE))
		end_accept((void *)ring, result);
	return 0;
}

/*
 * An argument as a number: global functions take no pointers of types that the verifier knows, and
 * these arguments are such on some kernels only.
 */
static __always_inline u64 number_of(unsigned long long *argument)
{
	u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), argument);
	return number;
}

/* (struct io_kiocb *req), since 6.4 */
SEC("tp_btf/io_uring_submit_req")
int on_uring_submit(unsigned long long *ctx)
{
	return take_request(number_of(&ctx[0]));
}

/* (struct io_kiocb *req, bool force_nonblock), from 6.0 on */
SEC("tp_btf/io_uring_submit_sqe")
int on_uring_sqe(unsigned long long *ctx)
{
	return take_request(number_of(&ctx[0]));
}

/* (void *ctx, void *req, u8 opcode, ...), before 6.0; completions do not tell the request there */
SEC("tp_btf/io_uring_submit_sqe")
int on_uring_sqe_5(unsigned long long *ctx)
{
	return take_request(number_of(&ctx[1]));
}

/* (struct io_ring_ctx *ctx, void *req, struct io_uring_cqe *cqe) */
SEC("tp_btf/io_uring_complete")
int on_uring_complete(unsigned long long *ctx)
{
	struct io_uring_cqe *cqe = (void *)ctx[2];

	return end_request(number_of(&ctx[0]), ctx[1], BPF_CORE_READ(cqe, res),
			   BPF_CORE_READ(cqe, flags));
}

/* (void *ctx, void *req, u64 user_data, int res, unsigned int cflags, ...), from 6.0 on */
SEC("tp_btf/io_uring_complete")
int on_uring_complete_6(unsigned long long *ctx)
{
	return end_request(ctx[0], ctx[1], ctx[3], ctx[4]);
}

/* (void *ctx, u64 user_data, int res, unsigned int cflags), before: any result may be a connection */
SEC("tp_btf/io_uring_complete")
int on_uring_complete_5(unsigned long long *ctx)
{
	return end_request(ctx[0], 0, ctx[2], CQE_MORE);
}

/*
 * (void *ctx, unsigned long long user_data, s32 res, ...): the process has left no room for a completion, and
 * no other word of it comes. Another request with the same number may have ended.
 */
SEC("tp_btf/io_uring_cqe_overflow")
int on_uring_overflow(unsigned long long *ctx)
{
	struct request_key key = {.ring = ctx[0], .user_data = ctx[1]};
	struct request *kept = bpf_map_lookup_elem(&requests, &key);
	struct file_act unknown = {};

	if (kept) {
		tell_request(kept, &unknown, 0, AT_ONCE);
		bpf_map_delete_elem(&requests, &key);
	} else if ((int)ctx[2] >= 0) {
		end_accept((void *)ctx[0], ctx[2]);
	}
	return 0;
}

#endif
