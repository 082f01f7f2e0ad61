/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket tells: its kind, addresses, ports, bytes, names. */
#ifndef TOCSIN_EXTRACT_SOCKET_H
#define TOCSIN_EXTRACT_SOCKET_H

#include "extract/file.h"

#define IPV4_MAPPED bpf_htonl(0xffff)
/* Bit of skc_flags: the peer's FIN has come. */
#define SOCK_DONE_BIT 1

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT    2
#define TCP_SYN_RECV    3
#define TCP_FIN_WAIT1   4
#define TCP_FIN_WAIT2   5
#define TCP_CLOSE       7
#define TCP_CLOSE_WAIT  8
#define TCP_LAST_ACK    9
#define TCP_LISTEN      10
#define TCP_CLOSING     11
#define SHUTDOWN_BOTH   3
#define SEND_SHUTDOWN   2

static __always_inline bool is_inet(u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP_NUMBER && is_inet(family);
}

/* The socket of a file, NULL when it is none. */
static __always_inline struct sock *socket_of_file(struct file *file)
{
	struct socket *socket;

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* The socket behind a descriptor of the task, NULL when there is none. */
static __always_inline struct sock *socket_of_fd(struct task_struct *task, int fd)
{
	return socket_of_file(file_of_fd(task, fd));
}

/*
 * Makes the cookie that later events carry; the socket is a tracepoint's argument. Kernels before
 * 5.12 make none for such programs: there a socket has one once it was asked for otherwise.
 */
#define MAKE_COOKIE(sk)                            \
	do {                                       \
		if (SINCE_5_12)                    \
			bpf_get_socket_cookie(sk); \
	} while (0)

static __always_inline u64 cookie_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

/* What differs between the fixed parts of a connection's events. */
struct connection_facts {
	u8 direction;
	u8 outcome;
	u8 protocol;
	u32 error;
	u32 source_port;
	u32 destination_port;
	u64 duration_ns;
	u64 cookie;
};

static __always_inline void put_connection(struct wire_connection *w,
					   struct connection_facts *facts)
{
	wire_connection_tags(w);
	WIRE_PUT(w, direction, facts->direction);
	WIRE_PUT(w, outcome, facts->outcome);
	WIRE_PUT(w, protocol, facts->protocol);
	WIRE_PUT(w, error, facts->error);
	WIRE_PUT(w, source_port, facts->source_port);
	WIRE_PUT(w, destination_port, facts->destination_port);
	WIRE_PUT(w, duration_ns, facts->duration_ns);
	WIRE_PUT(w, sent_bytes, 0);
	WIRE_PUT(w, received_bytes, 0);
	WIRE_PUT(w, socket_cookie, facts->cookie);
}

/* Bytes of an address in a record: an IPv4 address in an IPv6 one (::ffff:) is told as IPv4. */
static __always_inline u32 address_bytes(u16 family, const u8 *address)
{
	const __be32 *words = (const void *)address;

	return family == AF_INET6 && (words[0] || words[1] || words[2] != IPV4_MAPPED) ? 16 : 4;
}

/* Appends an address, 4 or 16 bytes by its family, as a field with a tag of one byte. */
static __always_inline u64 append_address_bytes(struct scratch *s, u64 at, u8 tag, u16 family,
						const u8 *address)
{
	u32 size = address_bytes(family, address);
	struct short_field *field;
	u8 *to;

	BARRIER(at);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	field = (void *)(s->record + at);
	to = s->record + at + sizeof(*field);
	field->tag = tag;
	put_length(field->length, size);
	if (size == 16) {
		__builtin_memcpy(to, address, 16);
		return at + sizeof(*field) + 16;
	}
	__builtin_memcpy(to, family == AF_INET6 ? address + 12 : address, 4);
	return at + sizeof(*field) + 4;
}

/* An IPv6 socket that talks to an IPv4 peer keeps both addresses also as IPv4. */
static __always_inline bool talks_ipv6(struct sock *sk)
{
	__be32 head[3];

	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_INET6)
		return false;
	bpf_probe_read_kernel(head, sizeof(head),
			      __builtin_preserve_access_index(&sk->__sk_common.skc_v6_daddr));
	return head[0] || head[1] || head[2] != IPV4_MAPPED;
}

/* Appends an address as a field with a tag of one byte: 4 or 16 bytes. */
static __always_inline u64 append_address(struct scratch *s, u64 at, u8 tag, struct sock *sk,
					  bool ipv6, bool local)
{
	struct short_field *field;
	__be32 ipv4;
	u8 *to;

	BARRIER(at);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	field = (void *)(s->record + at);
	to = s->record + at + sizeof(*field);
	field->tag = tag;
	if (ipv6) {
		put_length(field->length, 16);
		if (local)
			bpf_probe_read_kernel(
				to, 16,
				__builtin_preserve_access_index(&sk->__sk_common.skc_v6_rcv_saddr));
		else
			bpf_probe_read_kernel(
				to, 16,
				__builtin_preserve_access_index(&sk->__sk_common.skc_v6_daddr));
		return at + sizeof(*field) + 16;
	}
	put_length(field->length, 4);
	ipv4 = local ? BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr) :
		       BPF_CORE_READ(sk, __sk_common.skc_daddr);
	__builtin_memcpy(to, &ipv4, 4);
	return at + sizeof(*field) + 4;
}

/*
 * Payload that this side wrote: acknowledged, and still in the queue. An initiator's SYN counts
 * as a byte that was acknowledged, a FIN as one that was written.
 */
static __always_inline u64 sent_bytes(struct sock *sk, bool initiator, bool fin_written)
{
	struct tcp_sock *tcp = (void *)sk;
	u32 queued = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_una);
	u64 sent = BPF_CORE_READ(tcp, bytes_acked) + queued, overhead = initiator + fin_written;

	return sent > overhead ? sent - overhead : 0;
}

/* Payload that came in order; the peer's FIN counts as a byte. */
static __always_inline u64 received_bytes(struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;
	u64 received = BPF_CORE_READ(tcp, bytes_received);
	u64 fin = (BPF_CORE_READ(sk, __sk_common.skc_flags) >> SOCK_DONE_BIT) & 1;

	return received > fin ? received - fin : 0;
}

#endif
