/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The two maps that our programs in PHP share with the hooks: an object that has no
 * others can make none of them anew where somebody removed a pin.
 */
#ifndef GUARD_PHP_H
#define GUARD_PHP_H

#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, u32);
	__type(value, u64);
} counters SEC(".maps");

/* A request that PHP is at, written by bpf/php.bpf.c. */
struct request {
	u64 start_ns; /* of its process */
	u64 since_ns; /* when it began; 0: it is being written */
	u64 exec_id;  /* another program since: not its own request any more */
	u32 flags;    /* of enum event_flag */
	u32 len;
	char text[REQUEST_LEN];
};

/* By thread: tgid << 32 | pid. A row is 0.6 KB, and there while a request is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct request);
} requests SEC(".maps");

#endif
