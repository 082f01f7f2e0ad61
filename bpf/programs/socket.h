/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Sockets as such: that one listens, has got a local address, is raw, or was connected to a watched
 * Unix socket.
 */
#ifndef TOCSIN_PROGRAMS_SOCKET_H
#define TOCSIN_PROGRAMS_SOCKET_H

#include "base/syscall.h"
#include "extract/sockaddr.h"
#include "store/images.h"

#define EADDRINUSE   98
#define ECONNREFUSED 111

#define SOCK_RAW       3
#define SOCK_PACKET    10
#define SOCK_TYPE_MASK 0xf

/* Calls that socketcall(2) of 32-bit processes stands for. */
#define SYS_SOCKET  1
#define SYS_BIND    2
#define SYS_CONNECT 3
#define SYS_ACCEPT  5
#define SYS_ACCEPT4 18

/* What an event about a socket says. */
struct socket_facts {
	u32 event_flags;
	u32 error;
	u32 type;
	u32 protocol;
	u32 backlog;
	u32 peer_pid;
	u64 cookie;
	struct inet_address local;
	struct unix_path path;
};

static __always_inline void put_socket(struct wire_socket *w, struct socket_facts *facts)
{
	wire_socket_tags(w);
	WIRE_PUT(w, error, facts->error);
	WIRE_PUT(w, family, facts->local.family);
	WIRE_PUT(w, socket_type, facts->type);
	WIRE_PUT(w, protocol, facts->protocol);
	WIRE_PUT(w, port, facts->local.port);
	WIRE_PUT(w, backlog, facts->backlog);
	WIRE_PUT(w, socket_cookie, facts->cookie);
	WIRE_PUT(w, peer_pid, facts->peer_pid);
}

static __always_inline void tell_socket(u8 type, struct socket_facts *facts)
{
	struct scratch *s;
	u64 at, body;

	s = begin(type, &at);
	if (!s)
		return;
	flag(s, facts->event_flags);
	at = append_current(s, at);
	body = at;
	BARRIER(at);
	if (at > BODY_AT) {
		submit(s, type, RECORD_BYTES + 1);
		return;
	}
	BOUND(at, BODY_MASK);
	put_socket((void *)(s->record + at + sizeof(struct long_field)), facts);
	at += sizeof(struct long_field) + sizeof(struct wire_socket);
	if (is_inet(facts->local.family) && type != TOCSIN_EVENT_TYPE_RAW_SOCKET)
		at = append_address_bytes(s, at, TOCSIN_TAG_SOCKET_ADDRESS, facts->local.family,
					  facts->local.bytes);
	at = append_unix_path(s, at, TOCSIN_TAG_SOCKET_PATH, &facts->path);
	submit(s, type, close_body(s, body, at, BODY_TAG(type)));
}

/* What the kernel holds of a socket, its local address apart. */
static __always_inline void read_socket(struct socket_facts *facts, struct sock *sk)
{
	facts->local.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	facts->type = BPF_CORE_READ(sk, sk_type);
	facts->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (facts->local.family == AF_PACKET)
		facts->protocol = bpf_ntohs(BPF_CORE_READ((struct packet_sock *)sk, num));
	facts->cookie = cookie_of(sk);
}

/*
 * The state changes before the kernel chooses the port of a socket that was never bound: such a one
 * is told with port 0.
 */
static __always_inline void tell_listen(struct sock *sk)
{
	struct socket_facts facts = {};

	if (!wanted(TOCSIN_EVENT_TYPE_SOCKET_LISTEN, (void *)bpf_get_current_task()))
		return;
	read_socket(&facts, sk);
	facts.backlog = BPF_CORE_READ(sk, sk_max_ack_backlog);
	read_local_address(&facts.local, sk);
	tell_socket(TOCSIN_EVENT_TYPE_SOCKET_LISTEN, &facts);
}

/* read_call for a call that a 32-bit process may also make through socketcall. */
static __always_inline bool read_socket_call(struct call *call, unsigned long long *ctx)
{
	u32 words[3];

	if (!read_call(call, ctx))
		return false;
	if (call->act != ACT_SOCKETCALL)
		return true;
	if (bpf_probe_read_user(words, sizeof(words), (void *)call->argument[1]))
		return false;
	for (int i = 0; i < 3; i++)
		call->argument[i] = words[i];
	return true;
}

SEC("tp_btf/sys_exit")
int act_socketcall(unsigned long long *ctx)
{
	struct call call;

	if (!read_call(&call, ctx))
		return 0;
	switch (call.argument[0]) {
	case SYS_SOCKET:
		bpf_tail_call(ctx, &acts, ACT_SOCKET);
		break;
	case SYS_BIND:
		bpf_tail_call(ctx, &acts, ACT_BIND);
		break;
	case SYS_CONNECT:
		bpf_tail_call(ctx, &acts, ACT_CONNECT);
		break;
	case SYS_ACCEPT:
	case SYS_ACCEPT4:
		bpf_tail_call(ctx, &acts, ACT_ACCEPT);
	}
	return 0;
}

/* Whether binds of this family are told: not those that only name a kernel service's client. */
static __always_inline bool binds_are_told(u16 family)
{
	return is_inet(family) || family == AF_UNIX || family == AF_PACKET;
}

SEC("tp_btf/sys_exit")
int act_bind(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct socket_facts facts = {};
	struct call call;
	struct sock *sk;

	if (!read_socket_call(&call, ctx))
		return 0;
	if (call.error && call.error != EPERM && call.error != EACCES && call.error != EADDRINUSE)
		return 0;
	sk = socket_of_fd(task, call.argument[0]);
	if (!sk)
		return 0;
	read_socket(&facts, sk);
	if (!binds_are_told(facts.local.family) || !wanted(TOCSIN_EVENT_TYPE_SOCKET_BIND, task))
		return 0;
	facts.error = call.error;
	if (facts.local.family == AF_UNIX) {
		if (call.error)
			read_user_path(&facts.path, call.argument[1], call.argument[2]);
		else
			read_unix_path(&facts.path, sk);
	} else if (is_inet(facts.local.family)) {
		if (!call.error)
			read_local_address(&facts.local, sk);
		else if (!read_user_address(&facts.local, call.argument[1]))
			return 0;
	}
	tell_socket(TOCSIN_EVENT_TYPE_SOCKET_BIND, &facts);
	return 0;
}

/* Reads what socket(2) was asked for; false: neither a raw nor a packet socket. */
static __always_inline bool read_raw_socket(struct socket_facts *facts, u32 family, u32 type,
					    u32 protocol)
{
	facts->local.family = family;
	facts->type = type & SOCK_TYPE_MASK;
	facts->protocol = protocol;
	if (facts->local.family == AF_INET && facts->type == SOCK_PACKET)
		facts->local.family = AF_PACKET; /* the kernel takes it for such a one */
	if (facts->local.family == AF_PACKET)
		facts->protocol = bpf_ntohs(protocol);
	return (is_inet(facts->local.family) && facts->type == SOCK_RAW) ||
	       facts->local.family == AF_PACKET;
}

SEC("tp_btf/sys_exit")
int act_socket(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct socket_facts facts = {};
	struct call call;
	struct sock *sk;

	if (!read_socket_call(&call, ctx) || !worth_telling(call.error))
		return 0;
	if (!read_raw_socket(&facts, call.argument[0], call.argument[1], call.argument[2]) ||
	    !wanted(TOCSIN_EVENT_TYPE_RAW_SOCKET, task))
		return 0;
	facts.error = call.error;
	sk = call.error ? NULL : socket_of_fd(task, call.result);
	if (sk)
		facts.cookie = cookie_of(sk);
	tell_socket(TOCSIN_EVENT_TYPE_RAW_SOCKET, &facts);
	return 0;
}

/* Whether connections to a Unix socket with this path are told. */
static __always_inline bool is_watched(struct unix_path *path)
{
	struct watched_name name = {};
	struct scratch *s = claim();
	u8 *verdict;

	if (!s)
		return false;
	__builtin_memcpy(s->path, path->bytes, sizeof(path->bytes));
	last_part(&name, s);
	release(s);
	verdict = bpf_map_lookup_elem(&name_verdicts, &name);
	return verdict && *verdict & VERDICT_SOCKET;
}

/* connect(2) has returned for a Unix socket: the peer's name, else the one that was asked for. */
static __always_inline void tell_unix_connect(struct socket_facts *facts, struct sock *sk,
					      struct call *call)
{
	struct sock *peer;

	if (call->error && call->error != EPERM && call->error != EACCES &&
	    call->error != ECONNREFUSED)
		return;
	if (call->error) {
		read_user_path(&facts->path, call->argument[1], call->argument[2]);
	} else {
		peer = BPF_CORE_READ((struct unix_sock *)sk, peer);
		if (!peer)
			return;
		read_unix_path(&facts->path, peer);
		facts->peer_pid = BPF_CORE_READ(sk, sk_peer_pid, numbers[0].nr);
	}
	if (!is_watched(&facts->path))
		return;
	read_socket(facts, sk);
	tell_socket(TOCSIN_EVENT_TYPE_UNIX_CONNECT, facts);
}

#endif
