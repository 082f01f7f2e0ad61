/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types that the programs read, reduced to the members that they name. CO-RE moves
 * every access to where the running kernel has the member; a member that is not there is refused
 * at load. No vmlinux.h is generated: the same sources give the same object on any machine.
 */
#ifndef TOCSIN_BASE_TYPES_H
#define TOCSIN_BASE_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define AF_UNIX            1
#define AF_INET            2
#define AF_INET6           10
#define AF_PACKET          17
#define IPPROTO_TCP_NUMBER 6
#define IPPROTO_UDP_NUMBER 17
#define S_IFMT             0170000
#define S_IFSOCK           0140000
#define PF_KTHREAD         0x00200000
#define SIGNAL_GROUP_EXIT  0x4
#define TASK_COMM_LEN      16
#define MODULE_NAME_BYTES  56

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long long counter;
} atomic64_t;

typedef struct {
	u32 val;
} kuid_t;

typedef struct {
	u32 val;
} kgid_t;

/* Two u32 before 6.3, one u64 since: only its address is taken, and 8 bytes are read there. */
typedef struct {
	u64 val;
} kernel_cap_t;

struct proc_ns_operations {
	/* Until 6.18. */
	int type;
};

struct ns_common {
	u32 inum;
	/* Since 6.18. */
	u32 ns_type;
	const struct proc_ns_operations *ops;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct uts_namespace {
	struct ns_common ns;
};

struct ipc_namespace {
	struct ns_common ns;
};

struct xarray {
	void *xa_head;
};

struct xa_node {
	unsigned char shift;
	void *slots[1];
};

struct idr {
	struct xarray idr_rt;
};

struct pid_namespace {
	struct ns_common ns;
	struct idr idr;
};

struct user_namespace {
	struct ns_common ns;
	int level;
};

struct cgroup_namespace {
	struct ns_common ns;
};

struct net {
	struct ns_common ns;
};

struct nsproxy {
	struct uts_namespace *uts_ns;
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
	struct net *net_ns;
	struct cgroup_namespace *cgroup_ns;
};

struct cred {
	kuid_t uid;
	kgid_t gid;
	kuid_t suid;
	kgid_t sgid;
	kuid_t euid;
	kgid_t egid;
	kernel_cap_t cap_permitted;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
};

struct kernfs_node {
	const char *name;
	u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};

/* Its values differ between kernels: only ever read as CO-RE relocations. */
enum cgroup_subsys_id {
	pids_cgrp_id,
};

struct qstr {
	union {
		struct {
			u32 hash;
			u32 len;
		};
		u64 hash_len;
	};
	const unsigned char *name;
};

struct file_system_type {
	const char *name;
};

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	struct dentry *s_root;
	struct file_system_type *s_type;
};

struct inode {
	u16 i_mode;
	kuid_t i_uid;
	kgid_t i_gid;
	u32 i_nlink;
	u32 i_rdev;
	long long i_size;
	unsigned long i_ino;
	struct super_block *i_sb;
	void *i_private;
};

struct timespec64 {
	long long tv_sec;
	long tv_nsec;
};

/* The time of a file's last change: in two numbers since 6.11, in one struct before, which has
 * underscores since 6.7. */
struct inode___numbers {
	long long i_mtime_sec;
	u32 i_mtime_nsec;
};

struct inode___underscores {
	struct timespec64 __i_mtime;
};

struct inode___plain {
	struct timespec64 i_mtime;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns;
	const char *mnt_devname;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct fs_struct {
	struct path root;
	struct path pwd;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

/* Of its lists of tasks and a task's places in them only the first is used: of the task itself. */
struct pid {
	unsigned int level;
	struct hlist_head tasks[1];
	struct upid numbers[1];
};

struct kernel_siginfo {
	int si_code;
};

struct signal_struct {
	atomic_t live;
	int nr_threads;
	int group_exit_code;
	unsigned int flags;
};

struct thread_info {
	unsigned long flags;
	u32 status;
};

struct task_struct {
	struct thread_info thread_info;
	void *stack;
	unsigned int flags;
	int exit_code;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct hlist_node pid_links[1];
	u64 start_boottime;
	const struct cred *cred;
	char comm[TASK_COMM_LEN];
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct css_set *cgroups;
	kuid_t loginuid;
	unsigned int sessionid;
};

struct linux_binprm {
	unsigned int secureexec : 1;
	int argc;
	int envc;
	const char *filename;
	const char *interp;
};

/* There since the tracepoint tells group_dead (6.16). */
struct trace_event_raw_sched_process_exit {
	bool group_dead;
};

struct in6_addr {
	union {
		u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	int sk_err;
	u16 sk_type;
	u16 sk_protocol;
	u8 sk_shutdown;
	u32 sk_max_ack_backlog;
	struct pid *sk_peer_pid;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct tcp_sock {
	u64 bytes_received;
	u64 bytes_acked;
	u32 snd_una;
	u32 write_seq;
};

struct packet_sock {
	__be16 num;
};

struct sockaddr_un {
	char sun_path[108];
};

/* len counts the name's family too. */
struct unix_address {
	int len;
	struct sockaddr_un name[1];
};

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
};

struct sk_buff {
	struct sock *sk;
};

struct socket {
	struct sock *sk;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long bp;
	unsigned long bx;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
	u64 orig_x0;
	int syscallno;
};
#endif

struct module {
	char name[MODULE_NAME_BYTES];
	unsigned long taints;
};

struct bpf_prog_aux {
	u32 id;
	char name[BPF_OBJ_NAME_LEN];
};

struct bpf_prog {
	enum bpf_prog_type type;
	enum bpf_attach_type expected_attach_type;
	struct bpf_prog_aux *aux;
};

struct bpf_map {
	enum bpf_map_type map_type;
	u32 id;
	char name[BPF_OBJ_NAME_LEN];
};

struct bpf_link {
	struct bpf_prog *prog;
	/* Since 6.18. */
	enum bpf_attach_type attach_type;
};

struct perf_event_attr {
	u32 type;
	u64 config;
};

struct perf_event {
	struct perf_event_attr attr;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 session_id;
	u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#ifdef TOCSIN_BCC
#include "base/bcc.h"
#endif

/* Kernels from 5.12 on, by a helper that came with it; the verifier leaves out what others need. */
#define SINCE_5_12 bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_check_mtu)

/* Reads through a pointer whose type the verifier knows: checked loads, no helper calls. */
#define DIRECT(pointer, ...) ___arrow(pointer, ##__VA_ARGS__)

/* Keeps the compiler from deriving a value anew: the verifier must see the one that was compared. */
#define BARRIER(value) asm volatile("" : "+r"(value))

/*
 * Bounds a value that was compared before. Kernels before 6.7 forget what was compared when the
 * compiler has a copy on the stack. `mask` is a power of two less one, not below what was compared.
 */
#define BOUND(value, mask)              \
	do {                            \
		BARRIER(value);         \
		(value) &= (u64)(mask); \
	} while (0)

#endif
