/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP: connect with its outcome, accept, close. */
#ifndef TOCSIN_PROGRAMS_TCP_H
#define TOCSIN_PROGRAMS_TCP_H

#include "extract/socket.h"
#include "store/connections.h"
#include "store/images.h"

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
};

static __always_inline u64 append_tcp(struct scratch *s, u64 at, struct sock *sk,
				      struct connection *connection, struct tcp_facts *facts)
{
	bool outbound = connection->direction == TOCSIN_DIRECTION_OUTBOUND, ipv6 = talks_ipv6(sk);
	u32 local = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	u32 remote = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	struct short_field *body;
	u64 begin = at;
	struct wire_connection *w;

	BARRIER(at);
	if (at > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
	w = (void *)(s->record + at + sizeof(*body));
	wire_connection_tags(w);
	WIRE_PUT(w, direction, connection->direction);
	WIRE_PUT(w, outcome, facts->outcome);
	WIRE_PUT(w, protocol, IPPROTO_TCP_NUMBER);
	WIRE_PUT(w, error, facts->error);
	WIRE_PUT(w, source_port, outbound ? local : remote);
	WIRE_PUT(w, destination_port, outbound ? remote : local);
	w->duration_ns =
		((struct wire_header *)s->record)->boottime_ns - connection->since_boottime_ns;
	WIRE_PUT(w, sent_bytes, 0);
	WIRE_PUT(w, received_bytes, 0);
	if (facts->type == TOCSIN_EVENT_TYPE_TCP_CLOSE) {
		WIRE_PUT(w, sent_bytes, sent_bytes(sk, outbound, facts->fin_written));
		WIRE_PUT(w, received_bytes, received_bytes(sk));
	}
	WIRE_PUT(w, socket_cookie, BPF_CORE_READ(sk, __sk_common.skc_cookie.counter));
	at += sizeof(*body) + sizeof(*w);
	at = append_address(s, at, TOCSIN_TAG_CONNECTION_SOURCE_IP, sk, ipv6, outbound);
	at = append_address(s, at, TOCSIN_TAG_CONNECTION_DESTINATION_IP, sk, ipv6, !outbound);
	BARRIER(begin);
	if (begin > RECORD_BYTES - 512)
		return RECORD_BYTES + 1;
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

	s = begin(facts->type, &at);
	if (!s)
		return;
	at = append_kept(s, at, TOCSIN_TAG_EVENT_PROCESS, TOCSIN_EVENT_FLAG_PROCESS_IMAGE_MISSING,
			 &connection->process);
	at = append_kept(s, at, TOCSIN_TAG_EVENT_PARENT, TOCSIN_EVENT_FLAG_PARENT_IMAGE_MISSING,
			 &connection->parent);
	at = append_tcp(s, at, sk, connection, facts);
	submit(s, facts->type, at);
}

/* connect(2): the kernel is in the process's context, the outcome is not known yet. */
static __always_inline void begin_connect(struct sock *sk)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_CONNECT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_PENDING};
	struct connection *connection;
	struct scratch *s = claim();

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

static __always_inline void end_connect(struct sock *sk, struct connection *connection, int state)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_CONNECT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED};

	if (state == TCP_CLOSE) {
		facts.error = BPF_CORE_READ(sk, sk_err);
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
	if (state == TCP_SYN_SENT || (state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV))
		bpf_get_socket_cookie(sk); /* makes the cookie that later events carry */
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

/* The socket behind a descriptor of the current task, NULL when it is none of TCP. */
static __always_inline struct sock *tcp_of_fd(struct task_struct *task, u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots, *file = NULL;
	struct socket *socket;
	struct sock *sk;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	slots = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	return sk && is_tcp(sk) ? sk : NULL;
}

/* socketcall returns descriptors of other calls too: only a connection that nobody owns is new. */
SEC("tp_btf/sys_exit")
int act_accept(unsigned long long *ctx)
{
	struct tcp_facts facts = {.type = TOCSIN_EVENT_TYPE_TCP_ACCEPT,
				  .outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED};
	struct connection *connection;
	struct task_struct *task;
	struct scratch *s;
	struct sock *sk;
	u8 state;

	if ((long)ctx[1] < 0)
		return 0;
	task = (void *)bpf_get_current_task();
	sk = tcp_of_fd(task, ctx[1]);
	if (!sk || find_connection(sk))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN || !BPF_CORE_READ(sk, __sk_common.skc_dport))
		return 0;
	s = claim();
	if (!s) {
		COUNT_LOST(TOCSIN_EVENT_TYPE_TCP_ACCEPT, lost_scratch_busy);
		return 0;
	}
	connection = new_connection(s, task, TOCSIN_DIRECTION_INBOUND);
	if (state != TCP_CLOSE) /* reset before it was accepted: there is no end to come */
		store_connection(connection, sk, BPF_ANY);
	tell(sk, connection, &facts);
	release(s);
	return 0;
}

#endif
