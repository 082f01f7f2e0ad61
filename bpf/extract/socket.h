/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a TCP socket tells: addresses, ports, bytes. */
#ifndef TOCSIN_EXTRACT_SOCKET_H
#define TOCSIN_EXTRACT_SOCKET_H

#include "base/record.h"

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

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP_NUMBER &&
	       (family == AF_INET || family == AF_INET6);
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
	if (at > RECORD_BYTES - 64)
		return RECORD_BYTES + 1;
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
