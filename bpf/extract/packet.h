/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Heads of a packet that passes a cgroup hook: the packet begins with its IP head. */
#ifndef TOCSIN_EXTRACT_PACKET_H
#define TOCSIN_EXTRACT_PACKET_H

#include "base/record.h"

#define ETH_P_IP   0x0800
#define ETH_P_IPV6 0x86dd

#define IPV4_FRAGMENT_OFFSET bpf_htons(0x1fff)
#define IPV6_FRAGMENT_OFFSET bpf_htons(0xfff8)
#define IPV6_HEAD_BYTES      40
/* Heads between that of IPv6 and that of UDP or TCP which are passed over; a process can add them
 * to what it sends. More are sent by nobody. */
#define IPV6_EXTENSIONS 4
#define NEXT_HOP        0
#define NEXT_ROUTING    43
#define NEXT_FRAGMENT   44
#define NEXT_OPTIONS    60

struct ipv4_head {
	u8 version_and_length;
	u8 service;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	__be16 checksum;
	u8 source[4];
	u8 destination[4];
};

struct ipv6_head {
	__be32 version;
	__be16 payload_length;
	u8 next;
	u8 hop_limit;
	u8 source[16];
	u8 destination[16];
};

struct ipv6_extension {
	u8 next;
	u8 length;
	__be16 fragment;
};

struct packet {
	/* AF_INET or AF_INET6. */
	u16 family;
	u8 protocol;
	/* Of UDP and TCP. */
	u16 source_port;
	u16 destination_port;
	/* Where the head of UDP or TCP begins. */
	u32 transport;
};

static __always_inline bool read_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv4_head head;

	if (bpf_skb_load_bytes(skb, 0, &head, sizeof(head)) || head.fragment & IPV4_FRAGMENT_OFFSET)
		return false;
	packet->family = AF_INET;
	packet->protocol = head.protocol;
	packet->transport = (head.version_and_length & 0xf) * 4;
	return true;
}

static __always_inline bool read_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6_extension extension;
	struct ipv6_head head;

	if (bpf_skb_load_bytes(skb, 0, &head, sizeof(head)))
		return false;
	packet->family = AF_INET6;
	packet->protocol = head.next;
	packet->transport = sizeof(head);
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (packet->protocol != NEXT_HOP && packet->protocol != NEXT_ROUTING &&
		    packet->protocol != NEXT_FRAGMENT && packet->protocol != NEXT_OPTIONS)
			return true;
		if (bpf_skb_load_bytes(skb, packet->transport, &extension, sizeof(extension)))
			return false;
		if (packet->protocol != NEXT_FRAGMENT)
			packet->transport += (extension.length + 1) * 8;
		else if (extension.fragment & IPV6_FRAGMENT_OFFSET)
			return false;
		else
			packet->transport += 8;
		packet->protocol = extension.next;
	}
	return true;
}

/* False: the packet is neither UDP nor TCP, or has no head of these. */
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *packet)
{
	__be16 ports[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(skb, packet))
			return false;
	} else if (skb->protocol != bpf_htons(ETH_P_IPV6) || !read_ipv6(skb, packet)) {
		return false;
	}
	if (packet->protocol != IPPROTO_UDP_NUMBER && packet->protocol != IPPROTO_TCP_NUMBER)
		return false;
	if (bpf_skb_load_bytes(skb, packet->transport, ports, sizeof(ports)))
		return false;
	packet->source_port = bpf_ntohs(ports[0]);
	packet->destination_port = bpf_ntohs(ports[1]);
	return true;
}

/* Reads one of the two addresses, 4 or 16 bytes. */
static __always_inline bool load_address(struct __sk_buff *skb, struct packet *packet, u8 *to,
					 bool source)
{
	if (packet->family == AF_INET)
		return !bpf_skb_load_bytes(skb,
					   source ? __builtin_offsetof(struct ipv4_head, source) :
						    __builtin_offsetof(struct ipv4_head,
								       destination),
					   to, 4);
	return !bpf_skb_load_bytes(skb,
				   source ? __builtin_offsetof(struct ipv6_head, source) :
					    __builtin_offsetof(struct ipv6_head, destination),
				   to, 16);
}

/* Appends one of the two addresses as a field with a tag of one byte. */
static __always_inline u64 append_packet_address(struct scratch *s, u64 at, u8 tag,
						 struct __sk_buff *skb, struct packet *packet,
						 bool source)
{
	u64 size = packet->family == AF_INET ? 4 : 16;
	struct short_field *field;

	BARRIER(at);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	field = (void *)(s->record + at);
	if (!load_address(skb, packet, s->record + at + sizeof(*field), source))
		return at;
	field->tag = tag;
	put_length(field->length, size);
	return at + sizeof(*field) + size;
}

/* The socket of a packet: its address is the kernel's own. */
static __always_inline struct sock *socket_of_packet(struct __sk_buff *skb)
{
	return BPF_CORE_READ((struct sk_buff *)skb, sk);
}

#endif
