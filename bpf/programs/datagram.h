/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What leaves: the first datagram of a UDP socket to a destination, and questions to DNS servers. */
#ifndef TOCSIN_PROGRAMS_DATAGRAM_H
#define TOCSIN_PROGRAMS_DATAGRAM_H

#include "extract/socket.h"
#include "programs/dns.h"

/* A destination that got nothing for so long is told anew. */
#define FLOW_IDLE_NS 60000000000ULL

/* Notes that a datagram goes; whether it is the first, or the first for long. */
static __always_inline bool begins_flow(struct __sk_buff *skb, struct packet *packet, u64 cookie)
{
	struct flow flow = {.cookie = cookie, .port = packet->destination_port};
	u64 now = bpf_ktime_get_boot_ns(), idle;
	u64 *last;

	if (!load_address(skb, packet, flow.address, false))
		return false;
	last = bpf_map_lookup_elem(&flows, &flow);
	if (!last) {
		bpf_map_update_elem(&flows, &flow, &now, BPF_ANY);
		return true;
	}
	idle = now - *last;
	*last = now;
	return idle > FLOW_IDLE_NS;
}

static __always_inline void tell_flow(struct __sk_buff *skb, struct packet *packet,
				      struct owner *owner, u64 cookie)
{
	struct connection_facts facts = {
		.direction = TOCSIN_DIRECTION_OUTBOUND,
		.outcome = TOCSIN_CONNECT_OUTCOME_ESTABLISHED,
		.protocol = IPPROTO_UDP_NUMBER,
		.source_port = packet->source_port,
		.destination_port = packet->destination_port,
		.cookie = cookie,
	};
	struct scratch *s;
	u64 at, body;

	s = begin(TOCSIN_EVENT_TYPE_UDP_FLOW, &at);
	if (!s)
		return;
	at = append_owner(s, at, owner);
	body = at;
	BARRIER(at);
	if (at > BODY_AT) {
		submit(s, TOCSIN_EVENT_TYPE_UDP_FLOW, RECORD_BYTES + 1);
		return;
	}
	BOUND(at, BODY_MASK);
	put_connection((void *)(s->record + at + sizeof(struct long_field)), &facts);
	at += sizeof(struct long_field) + sizeof(struct wire_connection);
	at = append_packet_address(s, at, TOCSIN_TAG_CONNECTION_SOURCE_IP, skb, packet, true);
	at = append_packet_address(s, at, TOCSIN_TAG_CONNECTION_DESTINATION_IP, skb, packet, false);
	submit(s, TOCSIN_EVENT_TYPE_UDP_FLOW, close_body(s, body, at, TOCSIN_TAG_EVENT_UDP_FLOW));
}

static __always_inline void see_datagram(struct __sk_buff *skb, struct packet *packet)
{
	bool asks = packet->destination_port == DNS_PORT, begins;
	u64 cookie = bpf_get_socket_cookie(skb);
	struct owner *owner;
	struct scratch *s;

	begins = begins_flow(skb, packet, cookie);
	if (!begins && !asks)
		return;
	s = claim();
	if (!s) {
		if (begins)
			COUNT_LOST(TOCSIN_EVENT_TYPE_UDP_FLOW, lost_scratch_busy);
		if (asks)
			COUNT_LOST(TOCSIN_EVENT_TYPE_DNS_QUERY, lost_scratch_busy);
		return;
	}
	owner = owner_of_sender(s, cookie);
	if (owner && begins && wanted_of(TOCSIN_EVENT_TYPE_UDP_FLOW, owner))
		tell_flow(skb, packet, owner, cookie);
	if (owner && asks)
		tell_dns(skb, packet, owner, false);
	release(s);
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	struct packet packet;
	struct owner *owner;

	if (!read_packet(skb, &packet))
		return 1;
	if (packet.protocol == IPPROTO_UDP_NUMBER) {
		see_datagram(skb, &packet);
	} else if (packet.destination_port == DNS_PORT) {
		owner = owner_of_packet(skb, &packet);
		if (owner)
			tell_dns(skb, &packet, owner, false);
	}
	return 1;
}

#endif
