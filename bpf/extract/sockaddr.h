/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Names of sockets: as the kernel holds them, and as a process passed them to a system call. */
#ifndef TOCSIN_EXTRACT_SOCKADDR_H
#define TOCSIN_EXTRACT_SOCKADDR_H

#include "extract/socket.h"

/* Address and port; IPv4 fills the first four bytes. */
struct inet_address {
	u16 family;
	u16 port;
	u8 bytes[16];
};

/* Path of a Unix socket; room for a NUL, and for a length that is masked. */
#define UNIX_PATH_BYTES 108
#define UNIX_PATH_MASK  127
struct unix_path {
	u64 length;
	char bytes[UNIX_PATH_MASK + 1];
};

static __always_inline void read_local_address(struct inet_address *local, struct sock *sk)
{
	local->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (local->family == AF_INET6)
		bpf_probe_read_kernel(
			local->bytes, 16,
			__builtin_preserve_access_index(&sk->__sk_common.skc_v6_rcv_saddr));
	else
		bpf_probe_read_kernel(
			local->bytes, 4,
			__builtin_preserve_access_index(&sk->__sk_common.skc_rcv_saddr));
}

/* A struct sockaddr_in or _in6 in the process's memory; false: it is none, or cannot be read. */
static __always_inline bool read_user_address(struct inet_address *to, u64 address)
{
	struct {
		u16 family;
		__be16 port;
		u8 ipv4[4];
	} head;

	if (bpf_probe_read_user(&head, sizeof(head), (void *)address) || !is_inet(head.family))
		return false;
	to->family = head.family;
	to->port = bpf_ntohs(head.port);
	if (head.family == AF_INET) {
		__builtin_memcpy(to->bytes, head.ipv4, 4);
		return true;
	}
	return !bpf_probe_read_user(to->bytes, 16, (void *)(address + sizeof(head)));
}

/* Ends a path of which `length` bytes were read. An abstract name, which begins with NUL and may hold
 * more, is shown with '@' for the first. */
static __always_inline void end_path(struct unix_path *path, u64 length)
{
	long read;

	if (!path->bytes[0]) {
		path->bytes[0] = '@';
		path->length = length;
		return;
	}
	read = bpf_probe_read_kernel_str(path->bytes, sizeof(path->bytes), path->bytes);
	path->length = read > 0 ? read - 1 : 0;
}

/* The name that a Unix socket is bound to; empty when it has none. */
static __always_inline void read_unix_path(struct unix_path *path, struct sock *sk)
{
	struct unix_address *name = BPF_CORE_READ((struct unix_sock *)sk, addr);
	u64 length = BPF_CORE_READ(name, len) - sizeof(u16);

	BARRIER(length);
	if (!length || length > UNIX_PATH_BYTES + 1) /* a NUL follows a path */
		return;
	BOUND(length, UNIX_PATH_MASK);
	bpf_probe_read_kernel(path->bytes, length,
			      __builtin_preserve_access_index(&name->name[0].sun_path));
	end_path(path, length);
}

/* The same from a struct sockaddr_un in the process's memory that has `size` bytes. */
static __always_inline void read_user_path(struct unix_path *path, u64 address, u64 size)
{
	u64 length = size - sizeof(u16);

	BARRIER(length);
	if (!length || length > UNIX_PATH_BYTES)
		return;
	BOUND(length, UNIX_PATH_MASK);
	if (!bpf_probe_read_user(path->bytes, length, (void *)(address + sizeof(u16))))
		end_path(path, length);
}

static __always_inline u64 append_unix_path(struct scratch *s, u64 at, u8 tag,
					    struct unix_path *path)
{
	u64 length = path->length;
	struct short_field *field;

	BARRIER(at);
	BARRIER(length);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	if (!length || length > UNIX_PATH_BYTES)
		return at;
	BOUND(at, BODY_MASK);
	BOUND(length, UNIX_PATH_MASK);
	field = (void *)(s->record + at);
	field->tag = tag;
	put_length(field->length, length);
	bpf_probe_read_kernel(s->record + at + sizeof(*field), length, path->bytes);
	return at + sizeof(*field) + length;
}

/* Where the last part of the path in the scratch's path area begins. */
__noinline u32 begin_of_last_part(u32 slot)
{
	struct scratch *s = scratch_of(slot);
	u32 begin = 0;

	if (!s)
		return 0;
	for (u32 i = 0; i < UNIX_PATH_BYTES; i++) {
		if (!s->path[i])
			break;
		if (s->path[i] == '/')
			begin = i + 1;
	}
	return begin;
}

/* Reads the last part of the path, which ends with NUL, in the scratch's path area. */
static __always_inline void last_part(struct watched_name *name, struct scratch *s)
{
	u64 begin = begin_of_last_part(s->slot);

	BOUND(begin, UNIX_PATH_MASK);
	bpf_probe_read_kernel_str(name->bytes, sizeof(name->bytes), s->path + begin);
}

#endif
