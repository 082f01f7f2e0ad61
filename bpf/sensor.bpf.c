// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The sensor's programs. Events are written as finished protobuf; wire/event.h is generated from
 * proto/. Order of reading: base, extract, store, programs.
 */
#include "programs/datagram.h"
#include "programs/dispatch.h"
#include "programs/credentials.h"
#include "programs/file.h"
#include "programs/isolation.h"
#include "programs/kernel.h"
#include "programs/memory.h"
#include "programs/process.h"
#include "programs/seed.h"
#include "programs/tamper.h"
#include "programs/tcp.h"
#include "programs/uring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
