// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The same programs for kernels before 5.12, and what stands in there for what later ones can do. */
#define BEFORE_5_12
#include "sensor.bpf.c"

/*
 * Tracepoints cannot make the cookie that a connection's events carry: it is made before they are
 * reached, when a SYN is sent and when a connection that comes in is established.
 */
SEC("sockops")
int make_cookies(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB ||
	    ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_get_socket_cookie(ops);
	return 1;
}
