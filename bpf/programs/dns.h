/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DNS: what is sent to port 53 is a question, what comes from port 53 is an answer, over UDP and
 * TCP. Over TCP a message is told when its length (two bytes) begins a segment; of a message that
 * goes on in further segments, what stands in the first. Of several messages in one packet the first
 * is told. Other ports, and mDNS, are not looked at.
 */
#ifndef TOCSIN_PROGRAMS_DNS_H
#define TOCSIN_PROGRAMS_DNS_H

#include "extract/dns.h"
#include "extract/packet.h"
#include "store/connections.h"

#define DNS_PORT 53
/* Not below the longest name and the addresses of all records. */
#define DNS_FIELD_MASK 511
#define UDP_HEAD_BYTES 8
/* Where in TCP's head its length stands, in words of four bytes, in the upper half. */
#define TCP_LENGTH_AT 12

/* Where a message stands in its packet. */
struct dns_place {
	u32 offset;
	/* What the packet has of it. */
	u32 length;
	u32 message_bytes;
};

/* The length that begins a message over TCP; false: the segment does not begin one. */
static __always_inline bool find_in_segment(struct __sk_buff *skb, struct packet *packet,
					    struct dns_place *place)
{
	struct {
		__be16 bytes;
		__be16 id;
		__be16 flags;
		__be16 questions;
	} begin;
	u8 words;

	if (bpf_skb_load_bytes(skb, packet->transport + TCP_LENGTH_AT, &words, 1))
		return false;
	place->offset = packet->transport + (words >> 4) * 4;
	if (bpf_skb_load_bytes(skb, place->offset, &begin, sizeof(begin)))
		return false;
	place->offset += sizeof(begin.bytes);
	place->message_bytes = bpf_ntohs(begin.bytes);
	place->length = skb->len - place->offset;
	if (place->length > place->message_bytes)
		place->length = place->message_bytes;
	/* A segment from the middle of a long message looks like one, but hardly asks once. */
	return begin.questions == bpf_htons(1);
}

/* False: there is no head of a message. */
static __always_inline bool find_dns(struct __sk_buff *skb, struct packet *packet,
				     struct dns_place *place)
{
	if (packet->protocol == IPPROTO_TCP_NUMBER) {
		if (!find_in_segment(skb, packet, place))
			return false;
	} else {
		place->offset = packet->transport + UDP_HEAD_BYTES;
		if (place->offset > skb->len)
			return false;
		place->length = place->message_bytes = skb->len - place->offset;
	}
	return place->length >= DNS_HEAD_BYTES;
}

/*
 * Reads the message, which has a whole head, into the path area; returns how much of it, 0 when it
 * cannot be read.
 */
static __always_inline u64 load_dns(struct scratch *s, struct __sk_buff *skb,
				    struct dns_place *place)
{
	u64 length = place->length > DNS_BYTES ? DNS_BYTES : place->length;

	length -= DNS_HEAD_BYTES; /* so that what is left of it may be nothing */
	BOUND(length, DNS_MASK);
	length += DNS_HEAD_BYTES;
	return bpf_skb_load_bytes(skb, place->offset, s->path, length) ? 0 : length;
}

/* Ends a field with a tag of one byte whose bytes were written; one without bytes is left out. */
static __always_inline u64 end_field(struct scratch *s, u64 at, u8 tag, u64 length)
{
	struct short_field *field;

	BARRIER(at);
	BARRIER(length);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	if (!length || length > DNS_FIELD_MASK)
		return at;
	BOUND(at, BODY_MASK);
	BOUND(length, DNS_FIELD_MASK);
	field = (void *)(s->record + at);
	field->tag = tag;
	put_length(field->length, length);
	return at + sizeof(*field) + length;
}

static __always_inline u64 append_message(struct scratch *s, u64 at, u64 length)
{
	struct long_field *field;

	BARRIER(at);
	BARRIER(length);
	if (at > BODY_AT || length > DNS_BYTES)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	BOUND(length, DNS_MASK);
	field = (void *)(s->record + at);
	field->tag = TOCSIN_TAG_DNS_MESSAGE;
	put_length(field->length, length);
	bpf_probe_read_kernel(s->record + at + sizeof(*field), length, s->path);
	return at + sizeof(*field) + length;
}

static __always_inline void put_dns(struct wire_dns *w, struct scratch *s, struct packet *packet,
				    struct dns_place *place, u64 cookie, bool answer)
{
	u32 flags = dns_word(s, 2);

	wire_dns_tags(w);
	WIRE_PUT(w, protocol, packet->protocol);
	WIRE_PUT(w, id, dns_word(s, 0));
	WIRE_PUT(w, flags, flags);
	WIRE_PUT(w, response_code, flags & 0xf);
	WIRE_PUT(w, question_type, 0);
	WIRE_PUT(w, question_class, 0);
	WIRE_PUT(w, answers, dns_word(s, 6));
	WIRE_PUT(w, client_port, answer ? packet->destination_port : packet->source_port);
	WIRE_PUT(w, server_port, answer ? packet->source_port : packet->destination_port);
	WIRE_PUT(w, message_bytes, place->message_bytes);
	WIRE_PUT(w, socket_cookie, cookie);
}

static __always_inline u64 append_dns(struct scratch *s, u64 at, struct __sk_buff *skb,
				      struct packet *packet, struct dns_place *place, u64 length,
				      u64 cookie, bool answer)
{
	u32 name, end, addresses;
	struct wire_dns *w;

	BARRIER(at);
	if (at > BODY_AT)
		return RECORD_BYTES + 1;
	BOUND(at, BODY_MASK);
	w = (void *)(s->record + at);
	put_dns(w, s, packet, place, cookie, answer);
	at += sizeof(*w);
	at = append_packet_address(s, at, TOCSIN_TAG_DNS_CLIENT_IP, skb, packet, !answer);
	at = append_packet_address(s, at, TOCSIN_TAG_DNS_SERVER_IP, skb, packet, answer);
	if (!dns_word(s, 4))
		goto message;
	name = write_dns_name(s->slot, at + sizeof(struct short_field), length);
	at = end_field(s, at, TOCSIN_TAG_DNS_NAME, name & 0xffff);
	end = name >> 16;
	if (!end || end + 4 > length)
		goto message;
	WIRE_PUT(w, question_type, dns_word(s, end));
	WIRE_PUT(w, question_class, dns_word(s, end + 2));
	if (!answer || dns_word(s, 4) != 1)
		goto message;
	addresses = write_dns_addresses(s, at + sizeof(struct short_field), end + 4, length);
	at = end_field(s, at, TOCSIN_TAG_DNS_ADDRESSES, addresses);
message:
	return answer ? append_message(s, at, length) : at;
}

static __always_inline void tell_dns(struct __sk_buff *skb, struct packet *packet,
				     struct owner *owner, bool answer)
{
	u8 type = answer ? TOCSIN_EVENT_TYPE_DNS_ANSWER : TOCSIN_EVENT_TYPE_DNS_QUERY;
	struct dns_place place;
	u64 at, body, length;
	struct scratch *s;

	if (!wanted_of(type, owner) || !find_dns(skb, packet, &place))
		return;
	s = begin(type, &at);
	if (!s)
		return;
	length = load_dns(s, skb, &place);
	if (!length) {
		release(s);
		return;
	}
	at = append_owner(s, at, owner);
	body = at;
	at = append_dns(s, at + sizeof(struct long_field), skb, packet, &place, length,
			bpf_get_socket_cookie(skb), answer);
	submit(s, type,
	       close_body(s, body, at,
			  answer ? TOCSIN_TAG_EVENT_DNS_ANSWER : TOCSIN_TAG_EVENT_DNS_QUERY));
}

/* Who owns the socket of the packet; NULL when that is not known. */
static __always_inline struct owner *owner_of_packet(struct __sk_buff *skb, struct packet *packet)
{
	struct connection *connection;
	u64 cookie;

	if (packet->protocol == IPPROTO_TCP_NUMBER) {
		connection = find_connection(socket_of_packet(skb));
		return connection ? &connection->owner : NULL;
	}
	cookie = bpf_get_socket_cookie(skb);
	return bpf_map_lookup_elem(&owners, &cookie);
}

/* An answer to a socket that has not been seen to ask has no owner, and is not told. */
SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	struct packet packet;
	struct owner *owner;

	if (!read_packet(skb, &packet) || packet.source_port != DNS_PORT)
		return 1;
	owner = owner_of_packet(skb, &packet);
	if (owner)
		tell_dns(skb, &packet, owner, true);
	return 1;
}

#endif
