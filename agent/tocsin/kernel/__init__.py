"""Kernel side: choose the source, verify and load the eBPF objects, attach them."""
