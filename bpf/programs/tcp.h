/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP: connect with its outcome, accept, close; and what connect(2) does to other sockets. */
#ifndef TOCSIN_PROGRAMS_TCP_H
#define TOCSIN_PROGRAMS_TCP_H

#include "programs/socket.h"
#include "store/connections.h"

#define EINTR        4
#define ECONNABORTED 103
#define ECONNRESET   104
#define EISCONN      106
#define ETIMEDOUT    110
#define EALREADY     114
#define EINPROGRESS  115
/* The first of the codes that only the kernel knows: the call goes on after a signal. */
#define ERESTARTSYS 512

/* A tag as a constant: the body's place in the oneof. */
static __always_inline u8 tcp_tag(u8 type)
{
	if (type == TOCSIN_EVENT_TYPE_TCP_CONNECT)
		return TOCSIN_TAG_EVENT_TCP_CONNECT;
	return type == TOCSIN_EVENT_TYPE_TCP_ACCEPT ? TOCSIN_TAG_EVENT_TCP_ACCEPT :
						      TOCSIN_TAG_EVENT_TCP_CLOSE;
}

/* What differs between the events of a connection. */
struct tcp_facts {
	u8 type;
	u8 outcome;
	bool fin_written;
	u32 error;
	u32 event_flags;
};

static __always_inline u64 append_tcp(struct scratch *s, u64 at, struct sock *sk,
				      struct connection *connection, struct tcp_facts *facts)
{
	bool outbound = connection->direction == TOCSIN_DIRECTION_OUTBOUND, ipv6 = talks_ipv6(sk);
	u32 local = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	u32 remote = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	u64 now = ((struct wire_header *)s->record)->boottime_ns, begin = at;
	struct connection_facts fixed = {
		.direction = connection->direction,
		.outcome = facts->outcome,
		.protocol = IPPROTO_TCP_NUMBER,
		.error = facts->error,
		.source_port = outbound ? local : remote,
		.destination_port = outbound ? remote : local,
		.duration_ns = now - connection->since_boottime_ns,
		.cookie = cookie_of(sk),
	};
	struct short_field *body;
	struct wire_connection *w;

	BARRIER(at);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	w = (void *)(s->record + at + sizeof(*body));
	put_connection(w, &fixed);
	if (facts->type == TOCSIN_EVENT_TYPE_TCP_CLOSE) {
		WIRE_PUT(w, sent_bytes, sent_bytes(sk, outbound, facts->fin_written));
		WIRE_PUT(w, received_bytes, received_bytes(sk));
	}
	at += sizeof(*body) + sizeof(*w);
	at = append_address(s, at, TOCSIN_TAG_CONNECTION_SOURCE_IP, sk, ipv6, outbound);
	at = append_address(s, at, TOCSIN_TAG_CONNECTION_DESTINATION_IP, sk, ipv6, !outbound);
	BARRIER(begin);
	if (begin > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(begin, BODY_MASK);
	body = (void *)(s->record + begin);
	body->tag = tcp_tag(facts->type);
	put_length(body->length, at - begin - sizeof(*body));
	return at;
}

static __always_inline void tell(struct sock *sk, struct connection *connection,
				 struct tcp_facts *facts)
{
	struct scratch *s;
	u64 at;

	if (!wanted_of(facts->type, &connection->owner))
		return;
	s = begin(facts->type, &at);
	if (!s)
		return;
	flag(s, facts->event_flags);
	at = append_owner(s, at, &connection->owner);
	at = append_tcp(s, at, sk, connection, facts);
	submit(s, facts->type, at);
}

/*
 * Whether the current task is in the system call connect, not in io_uring's way to the same. Kernels
 * that cannot tell (before 5.15) say yes.
 */
static __always_inline bool is_in_connect_call(void)
{
	bool compat;
	u32 act;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return true;
	act = act_of(syscall_number((void *)bpf_task_pt_regs(bpf_get_current_task_btf())), &compat);
	return act == ACT_CONNECT || act == ACT_SOCKETCALL;
}

/* connect(2): the kernel is in the process's context, the outcome is not known yet. */
static __always_inline void begin_connect(struct sock *sk)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_CONNECT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_PENDING};
	u64 thread = bpf_get_current_pid_tgid(), address = (u64)sk;
	struct connection *connection;
	struct scratch *s = claim();

	if (is_in_connect_call())
		bpf_map_update_elem(&connects, &thread, &address, BPF_ANY);
	if (!s) {
		COUNT_LOST(TOCSIN_EVENT_TYPE_TCP_CONNECT, lost_scratch_busy);
		return;
	}
	connection = new_connection(s, (void *)bpf_get_current_task(), TOCSIN_DIRECTION_OUTBOUND);
	connection->pending = 1;
	if (!store_connection(connection, sk, BPF_ANY))
		tell(sk, connection, &facts); /* it cannot be followed: tell the attempt */
	release(s);
}

/* Whether this thread is in connect(2) for the socket, which changed its state; forgets it then. */
static __always_inline bool take_connect(struct sock *sk)
{
	u64 thread = bpf_get_current_pid_tgid();
	u64 *address = bpf_map_lookup_elem(&connects, &thread);
	bool same = address && *address == (u64)sk;

	if (same)
		bpf_map_delete_elem(&connects, &thread);
	return same;
}

static __always_inline void end_connect(struct sock *sk, struct connection *connection, int state)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_CONNECT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED};

	if (state == TCP_CLOSE) {
		facts.error = BPF_CORE_READ(sk, sk_err);
		if (!facts.error && take_connect(sk))
			return; /* the call fails, and tells: act_connect */
		facts.outcome = facts.error ? TOCSIN_CONNECT_OUTCOME_FAILED :
					      TOCSIN_CONNECT_OUTCOME_ABANDONED;
	}
	connection->pending = 0;
	tell(sk, connection, &facts);
}

/*
 * A connection ends for its owner when the socket is closed or reset, or both directions are
 * shut: then the owner's image is still there. The rest of the handshake is the kernel's.
 */
static __always_inline bool ends_for_owner(struct sock *sk, int state)
{
	if (state == TCP_FIN_WAIT1)
		return BPF_CORE_READ_BITFIELD_PROBED(sk, sk_shutdown) == SHUTDOWN_BOTH;
	return state == TCP_LAST_ACK || state == TCP_CLOSE;
}

static __always_inline void end_connection(struct sock *sk, struct connection *connection,
					   int old_state, int state)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_CLOSE,
				  .outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED};

	/* On the way to FIN_WAIT1 and LAST_ACK the state changes before the FIN is queued. */
	facts.fin_written = state == TCP_CLOSE &&
			    (old_state == TCP_FIN_WAIT1 || old_state == TCP_FIN_WAIT2 ||
			     old_state == TCP_CLOSING || old_state == TCP_LAST_ACK);
	connection->closed = 1;
	tell(sk, connection, &facts);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_tcp_state, struct sock *sk, int old_state, int state)
{
	struct connection *connection;

	if (!is_tcp(sk))
		return 0;
	if (state == TCP_SYN_SENT || state == TCP_LISTEN ||
	    (state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV))
		MAKE_COOKIE(sk);
	if (state == TCP_LISTEN) {
		tell_listen(sk);
		return 0;
	}
	if (state == TCP_SYN_SENT) {
		begin_connect(sk);
		return 0;
	}
	connection = find_connection(sk);
	if (!connection)
		return 0;
	if (connection->pending && (state == TCP_ESTABLISHED || state == TCP_CLOSE))
		end_connect(sk, connection, state);
	else if (!connection->closed && ends_for_owner(sk, state))
		end_connection(sk, connection, old_state, state);
	if (state == TCP_CLOSE)
		forget_connection(sk);
	return 0;
}

/*
 * The current task has got this socket by accept, if it is a connection that nobody has. Global, so
 * that it is verified once.
 */
__noinline int tell_accept(u64 address, u32 event_flags)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_ACCEPT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED,
				  .event_flags = event_flags};
	struct sock *sk = (void *)address;
	struct connection *connection;
	struct scratch *s;
	u8 state;

	if (!sk || !is_tcp(sk) || find_connection(sk))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN || !BPF_CORE_READ(sk, __sk_common.skc_dport))
		return 0;
	s = claim();
	if (!s) {
		COUNT_LOST(TOCSIN_EVENT_TYPE_TCP_ACCEPT, lost_scratch_busy);
		return 0;
	}
	connection = new_connection(s, (void *)bpf_get_current_task(), TOCSIN_DIRECTION_INBOUND);
	if (state != TCP_CLOSE) /* reset before it was accepted: there is no end to come */
		store_connection(connection, sk, BPF_ANY);
	tell(sk, connection, &facts);
	release(s);
	return 0;
}

SEC("tp_btf/sys_exit")
int act_accept(unsigned long long *ctx)
{
	if ((long)ctx[1] < 0)
		return 0;
	return tell_accept((u64)socket_of_fd((void *)bpf_get_current_task(), ctx[1]), 0);
}

/* A connect that ended before the socket's state changed, or changed back without an error in it. */
static __always_inline void tell_failed_connect(struct sock *sk, struct call *call)
{
	struct inet_address peer = {};
	struct connection_facts facts = {
		.direction = TOCSIN_DIRECTION_OUTBOUND,
		.outcome = TOCSIN_CONNECT_OUTCOME_FAILED,
		.protocol = IPPROTO_TCP_NUMBER,
		.error = call->error,
		.source_port = BPF_CORE_READ(sk, __sk_common.skc_num),
		.cookie = cookie_of(sk),
	};
	struct short_field *body;
	struct scratch *s;
	u64 at, begun;

	if (!read_user_address(&peer, call->argument[1]))
		return;
	facts.destination_port = peer.port;
	s = begin(TOCSIN_EVENT_TYPE_TCP_CONNECT, &at);
	if (!s)
		return;
	at = append_current(s, at);
	begun = at;
	BARRIER(at);
	if (at > BODY_AT) {
		submit(s, TOCSIN_EVENT_TYPE_TCP_CONNECT, RECORD_BYTES + 1);
		return;
	}
	BOUND(at, BODY_MASK);
	put_connection((void *)(s->record + at + sizeof(*body)), &facts);
	at += sizeof(*body) + sizeof(struct wire_connection);
	at = append_address(s, at, TOCSIN_TAG_CONNECTION_SOURCE_IP, sk,
			    address_bytes(peer.family, peer.bytes) == 16, true);
	at = append_address_bytes(s, at, TOCSIN_TAG_CONNECTION_DESTINATION_IP, peer.family,
				  peer.bytes);
	BARRIER(begun);
	if (begun > BODY_AT) {
		submit(s, TOCSIN_EVENT_TYPE_TCP_CONNECT, RECORD_BYTES + 1);
		return;
	}
	BOUND(begun, BODY_MASK);
	body = (void *)(s->record + begun);
	body->tag = TOCSIN_TAG_EVENT_TCP_CONNECT;
	put_length(body->length, at - begun - sizeof(*body));
	submit(s, TOCSIN_EVENT_TYPE_TCP_CONNECT, at);
}

/*
 * Whether connect(2) failed by itself. What the peer or a timer decides changes the socket's state,
 * and a second call may only be told of it; other errors say that a connect is under way or done.
 */
static __always_inline bool connect_failed(u32 error)
{
	switch (error) {
	case 0:
	case EINTR:
	case EISCONN:
	case EALREADY:
	case EINPROGRESS:
	case ECONNREFUSED:
	case ECONNABORTED:
	case ECONNRESET:
	case ETIMEDOUT:
		return false;
	}
	return error < ERESTARTSYS;
}

SEC("tp_btf/sys_exit")
int act_connect(unsigned long long *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct socket_facts facts = {};
	struct call call;
	struct sock *sk;

	if (!read_socket_call(&call, ctx))
		return 0;
	sk = socket_of_fd(task, call.argument[0]);
	if (!sk)
		return 0;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_UNIX) {
		facts.error = call.error;
		if (wanted(TOCSIN_EVENT_TYPE_UNIX_CONNECT, task))
			tell_unix_connect(&facts, sk, &call);
	} else if (is_tcp(sk) && !take_connect(sk) && connect_failed(call.error) &&
		   wanted(TOCSIN_EVENT_TYPE_TCP_CONNECT, task)) {
		tell_failed_connect(sk, &call);
	}
	return 0;
}

#endif
