/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every map, all pinned by name: first what user space writes, then what the
 * kernel writes. Nothing else holds state.
 */
#ifndef GUARD_MAPS_H
#define GUARD_MAPS_H

#include "php.bpf.h"

/* Written by user space alone. All zero: every port guarded, slot 0. */
struct control control SEC(".data.control");

/* Written by the kernel alone, from user space once before the first attach. */
struct {
	u64 seq;	/* of the next event */
	u64 connection; /* number of the next connection */
} state SEC(".data.state");

#define SLOTS 2

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS *MAX_ROWS);
	__type(key, u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exe_key);
	__type(value, struct mask);
} exes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct number_key);
	__type(value, struct mask);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct unit_key);
	__type(value, struct mask);
} units SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, struct mask);
} prefixes SEC(".maps");

struct address {
	u8 byte[16];
};

/* The host's own addresses, kept current from netlink. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, u32);
} hosts SEC(".maps");

/* One record of user space for user space (JSON): who loaded what, when. */
struct about {
	char json[4096];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct about);
} about SEC(".maps");

/* Sized when it is loaded, see usual_ring_bytes() in guard/kernel.py. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} ring SEC(".maps");

/* A row is 3.8 KB, made only for a connection that is open: 62 MB when full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct owner_key);
	__type(value, struct event);
} owners SEC(".maps");

/*
 * Likewise of the last local connections that have ended. A client may send all of
 * a mail, quit and close before the mail server has read the first of it, so who
 * asks by address and port may come late. 7.8 MB, taken when it is loaded.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct owner_key);
	__type(value, struct event);
} departed SEC(".maps");

/*
 * How often an identity has tried within a window. One that is pushed out by
 * others begins at 0 again: more events than need be, none the less.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fold_key);
	__type(value, u64);
} attempts SEC(".maps");

/*
 * A row for each that tried too often; 3.8 KB, two windows at most. Room for two
 * windows of 8,000: what has no row makes events, which keep guardd from emptying
 * this in time, a storm that feeds itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fold_key);
	__type(value, struct fold);
} folds SEC(".maps");

/*
 * Who made a socket that needs no connect(), by its cookie: those that are open, and
 * the last that were closed. A row is 3.8 KB and stands for a socket: most hosts
 * have none or two.
 */
#define CLOSED_KEPT 256
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024 + CLOSED_KEPT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct maker);
} makers SEC(".maps");

/* Written by the kernel alone. */
struct {
	u64 count;		 /* sockets that were closed */
	u64 cookie[CLOSED_KEPT]; /* of the last of them: number % CLOSED_KEPT */
	struct maker blank;	 /* what a row begins as; never written */
} closed SEC(".data.closed");

/* Whether a connection's EVENT_CONNECT went out. */
enum report {
	REPORT_NONE = 0,
	REPORT_HELD = 1, /* let pass, waits for its source port */
	REPORT_SENT = 2,
	REPORT_SILENT = 3, /* folded or quiet: its end makes no event either */
};

/*
 * What a socket carries from connect() to its end. The kernel runs the hooks that
 * change it with the socket locked (and its release with nobody else left), so it
 * needs no lock of its own and, unlike a per-CPU scratch, survives preemption.
 */
struct conn {
	u64 report;
	struct owner_key key;
	struct fold fold; /* fold.first is the event */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct conn);
} conns SEC(".maps");

#endif
