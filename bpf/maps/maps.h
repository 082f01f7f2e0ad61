/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map of the sensor, and what bounds it. */
#ifndef TOCSIN_MAPS_H
#define TOCSIN_MAPS_H

#include "base/acts.h"
#include "base/types.h"
#include "wire/event.h"

/* The longest record: three paths or argv of 4 KiB, two processes, one stored image, one body. */
#define RECORD_BYTES 20480
#define PATH_BYTES   4096
#define ARGV_BYTES   4096
/* What is kept of a process; all of struct image fills a kmalloc-2k object. */
#define IMAGE_BYTES     1472
#define ANCESTORS_BYTES 384
/* Of one ancestor's path; the head of a longer one is left out. */
#define ANCESTOR_BYTES 191
/* Records that one CPU can have in the making: process context, softirq, hardirq. */
#define SCRATCH_SLOTS 3
/* One more for the iterators, which sleep. */
#define SEED_SLOT       SCRATCH_SLOTS
#define EVENT_TYPES     64
#define MAX_PROCESSES   65536
#define MAX_CONNECTIONS 65536
#define MAX_LISTENERS   4096
/* Threads of one process that end at once are told apart only as long as its key is kept. */
#define MAX_ENDED 4096
/* Calls of connect under way; the oldest go first. */
#define MAX_CONNECTS 16384
/* The same of destinations of UDP sockets, and of UDP sockets. */
#define MAX_FLOWS  16384
#define MAX_OWNERS 4096

/* What a process or thread was last seen to have; compared word by word. */
struct known_credentials {
	u32 uid;
	u32 euid;
	u32 suid;
	u32 gid;
	u32 egid;
	u32 sgid;
	/* Depth of the user namespace that the capabilities count in. */
	u32 user_ns_level;
	u32 padding;
	u64 cap_effective;
	u64 cap_permitted;
};

/* Of a thread that may differ from its process. */
struct thread_credentials {
	u64 process_start_boottime_ns;
	struct known_credentials known;
};

/* A process as it is kept: the parts of its Process message that are made at fork and exec. */
struct image {
	/* 0 while a writer is at work; compared before and after a copy. */
	u64 generation;
	u64 start_boottime_ns;
	u32 length;
	/* Where the path of the executable stands in `bytes`. */
	u16 exe_at;
	u16 exe_length;
	u32 ancestors_length;
	u32 padding;
	struct known_credentials credentials;
	/* The field `ancestors`, with its head. */
	u8 ancestors[4 + ANCESTORS_BYTES];
	/* The fields from exe to image_flags, and cgroup_name. */
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

/* Whose a socket is. */
struct owner {
	/* What is_own and is_filtered said of it. */
	u8 own;
	u8 filtered;
	u8 padding[6];
	struct task_bytes process;
	struct task_bytes parent;
};

/* A TCP connection. */
struct connection {
	u64 since_boottime_ns;
	u8 direction;
	/* connect is under way: its outcome has not been told. */
	u8 pending;
	/* its end has been told. */
	u8 closed;
	u8 padding[5];
	struct owner owner;
};

/* Where a UDP socket sends to; IPv4 addresses fill the first four bytes. */
struct flow {
	u64 cookie;
	u8 address[16];
	u32 port;
	u32 padding;
};

/* What an act on files is told with. */
struct file_act {
	/* Where the path comes from: this file, else directory and address. */
	struct file *file;
	u64 path;
	u64 source;
	u64 attribute;
	u64 size;
	int directory;
	int source_directory;
	/* What the addresses are: 0 of the process's memory, COPIED of the kernel's. */
	u32 copied;
	/* Of a read: the verdict on the names of the file. */
	u32 names;
	u32 open_flags;
	u32 mode;
	u32 uid;
	u32 gid;
	u32 error;
	u32 event_flags;
	u8 type;
	/* The source is text, not a path to be made absolute. */
	u8 source_is_text;
	u8 padding[6];
};

/* An act on files that was asked for through io_uring and is not done yet. */
#define MAX_REQUESTS  4096
#define REQUEST_BYTES 1024
struct request_key {
	/* The ring's address, and the number that the process gave to what it asked for. */
	u64 ring;
	u64 user_data;
};
struct request {
	/* That of the kernel's struct io_kiocb: several may have one number. */
	u64 address;
	u32 type;
	u32 length;
	struct owner owner;
	/* The event's body. */
	u8 body[REQUEST_BYTES];
};

/* Never read or written: puts the wire structs into the object's BTF, which a test compares with
 * the schema. */
#define WIRE_MEMBER(name) struct wire_##name name;
struct wire_layout {
	TOCSIN_WIRE_STRUCTS(WIRE_MEMBER)
};

struct scratch {
	/* 64 bits: what BCC compiles exchanges nothing smaller. */
	u64 busy;
	u32 slot;
	u32 padding;
	struct image image;
	struct connection connection;
	struct owner owner;
	struct file_act file_act;
	struct request request;
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
	u64 throttled[EVENT_TYPES];
	u64 images_missing;
	u64 images_dropped;
};

/* Bits of settings.filters: which of the filters below are in use. */
enum filter {
	FILTER_UIDS = 1,
	FILTER_COMMS = 2,
	FILTER_CGROUPS = 4,
	FILTER_PATHS = 8,
};

/* Written by user space at any time. All zero: nothing is told. */
struct settings {
	/* Bit n: events of type n are wanted. */
	u64 wanted;
	/* Bit n: events of type n by the agent's own processes are not wanted. */
	u64 quiet_own;
	/* The agent's first process: it and its children are the own ones. */
	u32 own_pid;
	u32 filters;
	/* Events of a type in a second on one CPU; 0: as many as there are. */
	u32 limit[EVENT_TYPES];
	/* Bytes waiting in the ring above which a type is held back; 0: never. */
	u32 ring_limit[EVENT_TYPES];
	/* Whom sightings are for; another number: somebody who has seen none. 0: nobody. */
	u32 sightings_for;
	u32 padding;
};

/* What makes an executable another one: its place, and its content as far as can be told. */
struct sighted_file {
	u64 inode;
	u64 size;
	u64 mtime_ns;
	u32 dev;
	u32 padding;
};

/* An executable or a control group that was not seen before; agent/tocsin/enrich/sightings.py. */
struct sighting {
	/* That of an event's first field: the ring's reader leaves out other records. */
	u8 tag;
	u8 padding;
	u16 path_length;
	u32 pid;
	u64 cgroup_id;
	/* inode is 0 when only the control group is new. */
	struct sighted_file file;
	u8 path[];
};

/* What has been let through in this second. */
struct rate {
	u64 second[EVENT_TYPES];
	u32 count[EVENT_TYPES];
};

/* Whose events are not wanted; `kind` is one bit of enum filter. */
struct excluded_key {
	u32 kind;
	u8 value[TASK_COMM_LEN];
};

/* A path's beginning, for a trie. */
#define PREFIX_BYTES 128
struct path_prefix {
	u32 bits;
	u8 bytes[PREFIX_BYTES];
};

/* Verdicts on paths and on names. */
enum verdict {
	/* Acts on such files are not told. */
	VERDICT_IGNORE = 1,
	/* Reads of such files are told. */
	VERDICT_WATCH = 2,
	/* Of a name: reads are told when the path's beginning says so too. */
	VERDICT_ASK_PATH = 4,
	/* Of a name: connections to Unix sockets with it are told. */
	VERDICT_SOCKET = 8,
};

/* The last part of a path, or of its directory. */
#define WATCHED_NAME_BYTES 32
struct watched_name {
	u8 bytes[WATCHED_NAME_BYTES];
};

#define MAX_SIGHTED_FILES  16384
#define MAX_SIGHTED_GROUPS 8192

#define MAX_EXCLUDED      1024
#define MAX_PATH_PREFIXES 1024
#define MAX_WATCHED_NAMES 1024
#define SYSCALL_NUMBERS   512

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
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} sightings SEC(".maps");

/* What has been sighted, and for whom. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SIGHTED_FILES);
	__type(key, struct sighted_file);
	__type(value, u32);
} sighted_files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SIGHTED_GROUPS);
	__type(key, u64);
	__type(value, u32);
} sighted_groups SEC(".maps");

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
	__uint(max_entries, MAX_PROCESSES);
	__type(key, u32);
	__type(value, struct thread_credentials);
} thread_credentials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, u64);
	__type(value, struct connection);
} connections SEC(".maps");

/* Thread that is in connect(2) -> the socket whose state it has changed: its outcome is told by the
 * socket's state. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CONNECTS);
	__type(key, u64);
	__type(value, u64);
} connects SEC(".maps");

/* When a datagram went last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FLOWS);
	__type(key, struct flow);
	__type(value, u64);
} flows SEC(".maps");

/* Cookie of a UDP socket -> who sent through it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OWNERS);
	__type(key, u64);
	__type(value, struct owner);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_REQUESTS);
	__type(key, struct request_key);
	__type(value, struct request);
} requests SEC(".maps");

/* (network namespace << 16 | port) of listening sockets: filled and read while seeding only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_LISTENERS);
	__type(key, u64);
	__type(value, u8);
} listeners SEC(".maps");

struct process_key {
	u64 start_boottime_ns;
	u64 pid;
};

/* Processes whose end has been told, where the kernel does not say which thread is the last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_ENDED);
	__type(key, struct process_key);
	__type(value, u8);
} ended SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct drained);
} drained SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct rate);
} rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_EXCLUDED);
	__type(key, struct excluded_key);
	__type(value, u8);
} excluded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PATH_PREFIXES);
	__type(key, struct path_prefix);
	__type(value, u8);
} path_verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_WATCHED_NAMES);
	__type(key, struct watched_name);
	__type(value, u8);
} name_verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYSCALL_NUMBERS);
	__type(key, u32);
	__type(value, struct syscall_acts);
} syscalls SEC(".maps");

/* enum act -> the program that tells it; empty where nobody wants it. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, ACTS);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(u32));
} acts SEC(".maps");

#endif
