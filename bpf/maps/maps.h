/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map of the sensor, and what bounds it. */
#ifndef TOCSIN_MAPS_H
#define TOCSIN_MAPS_H

#include "base/types.h"
#include "wire/event.h"

/* The longest record: three paths or argv of 4 KiB, two processes, one stored image, one body. */
#define RECORD_BYTES 20480
#define PATH_BYTES   4096
#define ARGV_BYTES   4096
/* Image of a process as it is kept; with its header it fills a kmalloc-2k object. */
#define IMAGE_BYTES 1920
/* Records that one CPU can have in the making: process context, softirq, hardirq. */
#define SCRATCH_SLOTS 3
/* One more for the iterators, which sleep. */
#define SEED_SLOT       SCRATCH_SLOTS
#define EVENT_TYPES     8
#define MAX_PROCESSES   65536
#define MAX_CONNECTIONS 65536
#define MAX_LISTENERS   4096

/* exe, cwd, argv of a process: the bytes of Process's fields 16-22, as they go into a record. */
struct image {
	/* 0 while a writer is at work; compared before and after a copy. */
	u64 generation;
	u64 start_boottime_ns;
	u32 length;
	u32 padding;
	u8 bytes[IMAGE_BYTES];
};

/* A process as it was when it acted: field tags and values, comm last. */
struct task_bytes {
	u64 start_boottime_ns;
	u32 pid;
	u32 length;
	/* 1: a kernel thread, which has no image. */
	u32 kernel_thread;
	u32 padding;
	u8 bytes[sizeof(struct wire_task) + 2 + TASK_COMM_LEN];
};

/* Who owns a TCP connection. */
struct connection {
	u64 since_boottime_ns;
	u8 direction;
	/* connect is under way: its outcome has not been told. */
	u8 pending;
	/* its end has been told. */
	u8 closed;
	u8 padding[5];
	struct task_bytes process;
	struct task_bytes parent;
};

/* Never read or written: puts the wire structs into the object's BTF, which a test compares with
 * the schema. */
struct wire_layout {
	struct wire_header header;
	struct wire_task task;
	struct wire_image image;
	struct wire_exec exec;
	struct wire_fork fork;
	struct wire_exit exit;
	struct wire_tcp tcp;
};

struct scratch {
	u32 busy;
	u32 slot;
	struct image image;
	struct connection connection;
	u8 record[RECORD_BYTES];
	/* Paths are built from the end; the tail takes what a masked offset may overrun. */
	union {
		u8 path[PATH_BYTES + 256];
		struct wire_layout layout;
	};
};

struct counters {
	u64 sequence;
	u64 generated[EVENT_TYPES];
	u64 lost_ring_full[EVENT_TYPES];
	u64 lost_scratch_busy[EVENT_TYPES];
	u64 lost_too_big[EVENT_TYPES];
	u64 images_missing;
	u64 images_dropped;
};

/* Kept by user space beside the ring, so that the next sensor goes on where one was killed. */
struct drained {
	u64 position;
	u64 events;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCH_SLOTS + 1);
	__type(key, u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PROCESSES);
	__type(key, u32);
	__type(value, struct image);
} images SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, u64);
	__type(value, struct connection);
} connections SEC(".maps");

/* (network namespace << 16 | port) of listening sockets: filled and read while seeding only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_LISTENERS);
	__type(key, u64);
	__type(value, u8);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct drained);
} drained SEC(".maps");

#endif
