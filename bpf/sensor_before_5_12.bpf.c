// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The same programs for kernels before 5.12, and what stands in there for what later ones can do. */
#define BEFORE_5_12
#include "sensor.bpf.c"

/*
 * Tracepoints cannot make the cookie that a socket's events carry: it is made before they are
 * reached, when a socket is created; of one that was there before, when a SYN is sent; of a
 * connection that comes in, when it is established.
 */
SEC("cgroup/sock_create")
int make_cookie_of_new(struct bpf_sock *sk)
{
	bpf_get_socket_cookie(sk);
	return 1;
}

SEC("sockops")
int make_cookies(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB ||
	    ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_get_socket_cookie(ops);
	return 1;
}
