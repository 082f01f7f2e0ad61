/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel holds of a request of io_uring. It stands in struct io_kiocb, whose beginning is
 * the operation's own struct, filled when the request is submitted: the process cannot change it any more.
 */
#ifndef TOCSIN_EXTRACT_URING_H
#define TOCSIN_EXTRACT_URING_H

#include "extract/file.h"

/* IORING_OP_... of include/uapi/linux/io_uring.h */
#define OP_ACCEPT    13
#define OP_CONNECT   16
#define OP_OPENAT    18
#define OP_OPENAT2   28
#define OP_RENAMEAT  35
#define OP_UNLINKAT  36
#define OP_MKDIRAT   37
#define OP_SYMLINKAT 38
#define OP_LINKAT    39
#define OP_FSETXATTR 41
#define OP_SETXATTR  42
#define OP_SOCKET    45
#define OP_FTRUNCATE 55
#define OP_BIND      56
/* All that a byte can say. */
#define OPCODES 256

/* Bits of io_kiocb.flags which are those that the process set (IOSQE_...). */
#define FIXED_FILE 1
#define CQE_SKIP   (1 << 6)
/* Bits of a completion (IORING_CQE_F_...): more of the same request follow; it names a buffer. */
#define CQE_BUFFER 1
#define CQE_MORE   2

/* Where a table of files has a file's address, the low bits say something else. */
#define FILE_ADDRESS_MASK (~7UL)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct filename {
	const char *name;
};

/* Around the name since 7.0: the same address. */
struct delayed_filename {
	struct filename *__incomplete_filename;
};

struct open_how {
	u64 flags;
};

struct io_open {
	int dfd;
	u32 file_slot;
	struct filename *filename;
	struct open_how how;
};

struct io_open___delayed {
	struct delayed_filename filename;
};

struct io_unlink {
	int dfd;
	int flags;
	struct filename *filename;
};

struct io_unlink___delayed {
	struct delayed_filename filename;
};

struct io_rename {
	int old_dfd;
	int new_dfd;
	struct filename *oldpath;
	struct filename *newpath;
	int flags;
};

struct io_rename___delayed {
	struct delayed_filename oldpath;
	struct delayed_filename newpath;
};

struct io_mkdir {
	int dfd;
	u16 mode;
	struct filename *filename;
};

struct io_mkdir___delayed {
	struct delayed_filename filename;
};

/* Of hard and symbolic links. */
struct io_link {
	int old_dfd;
	int new_dfd;
	struct filename *oldpath;
	struct filename *newpath;
	int flags;
};

struct io_link___delayed {
	struct delayed_filename oldpath;
	struct delayed_filename newpath;
};

/* Those of links before 6.0. */
struct io_hardlink {
	int old_dfd;
	int new_dfd;
	struct filename *oldpath;
	struct filename *newpath;
	int flags;
};

struct io_hardlink___delayed {
	struct delayed_filename oldpath;
	struct delayed_filename newpath;
};

struct io_symlink {
	int new_dfd;
	struct filename *oldpath;
	struct filename *newpath;
};

struct io_symlink___delayed {
	struct delayed_filename oldpath;
	struct delayed_filename newpath;
};

struct xattr_name;

struct xattr_ctx {
	struct xattr_name *kname;
};

struct io_xattr {
	struct xattr_ctx ctx;
	struct filename *filename;
};

struct io_xattr___delayed {
	struct delayed_filename filename;
};

struct io_ftrunc {
	long long len;
};

struct io_socket {
	int domain;
	int type;
	int protocol;
	u32 file_slot;
};

struct io_rsrc_node {
	unsigned long file_ptr;
};

struct io_rsrc_data {
	unsigned int nr;
	struct io_rsrc_node **nodes;
};

struct io_fixed_file {
	unsigned long file_ptr;
};

/* `data` since 6.13, `files` before. */
struct io_file_table {
	struct io_rsrc_data data;
	struct io_fixed_file *files;
};

struct io_ring_ctx {
	struct io_file_table file_table;
	unsigned int nr_user_files;
};

struct io_uring_cqe {
	int res;
	u32 flags;
};

struct io_cqe {
	u64 user_data;
	int res;
	int fd;
};

struct io_kiocb {
	struct file *file;
	u8 opcode;
	u32 flags;
	struct io_cqe cqe;
	struct io_ring_ctx *ctx;
};

#pragma clang attribute pop

/* The name at an offset in the request. */
static __always_inline u64 name_at(struct io_kiocb *req, u64 offset)
{
	struct filename *name = NULL;

	bpf_probe_read_kernel(&name, sizeof(name), (void *)req + offset);
	return (u64)BPF_CORE_READ(name, name);
}

/* Address of the kernel's copy of a path that the request of this kind has; 0: it has none. */
#define KERNEL_NAME(req, kind, member)                                                \
	name_at(req, bpf_core_field_exists(struct kind##___delayed, member) ?         \
			     bpf_core_field_offset(struct kind##___delayed, member) : \
			     bpf_core_field_offset(struct kind, member))

/* A file in the ring's own table, which no descriptor of the process leads to. */
static __always_inline struct file *file_of_slot(struct io_ring_ctx *ring, u32 slot)
{
	struct io_fixed_file *files;
	struct io_rsrc_node **nodes, *node = NULL;
	u64 file = 0;

	if (bpf_core_field_exists(struct io_file_table, data)) {
		if (slot >= BPF_CORE_READ(ring, file_table.data.nr))
			return NULL;
		nodes = BPF_CORE_READ(ring, file_table.data.nodes);
		bpf_probe_read_kernel(&node, sizeof(node), nodes + slot);
		file = BPF_CORE_READ(node, file_ptr);
	} else if (slot < BPF_CORE_READ(ring, nr_user_files)) {
		files = BPF_CORE_READ(ring, file_table.files);
		bpf_probe_read_kernel(&file, sizeof(file), (void *)files + slot * sizeof(file));
	}
	return (struct file *)(file & FILE_ADDRESS_MASK);
}

/* The file that a request names by a descriptor or a slot; it is looked up when the request is done. */
static __always_inline struct file *file_to_come(struct io_kiocb *req)
{
	int fd = BPF_CORE_READ(req, cqe.fd);

	if (BPF_CORE_READ(req, flags) & FIXED_FILE)
		return file_of_slot(BPF_CORE_READ(req, ctx), fd);
	return file_of_fd((void *)bpf_get_current_task(), fd);
}

/*
 * The file that a request made: a descriptor, or a slot of the ring. `slot` is what was asked for: 0
 * a descriptor, else a slot's number and 1, all ones for a slot of the kernel's choice.
 */
static __always_inline struct file *file_of_result(struct io_kiocb *req, u32 slot, int result)
{
	if (!slot)
		return file_of_fd((void *)bpf_get_current_task(), result);
	return file_of_slot(BPF_CORE_READ(req, ctx), slot == -1U ? result : slot - 1);
}

#endif
