"""The source `netlink`: no eBPF. The kernel's proc connector, sock_diag, and /proc for the rest; reduced."""
