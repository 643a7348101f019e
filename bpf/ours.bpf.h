/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is ours in the kernel, which processes are ours, and what becomes of any
 * other that reaches for it.
 *
 * Things are known by their address: our pins hold them, so no address is used
 * again. A process is ours because it said so, by running lsm_enrol, which is
 * pinned where only root comes to and is recorded before anything else can be
 * done: root cannot be kept out, but cannot come in unseen.
 */
#ifndef GUARD_OURS_H
#define GUARD_OURS_H

#include "judge.bpf.h"

#define EPERM 1

/* Written by user space: the guarded cgroup. By lsm_bpf: how often it was asked. */
struct {
	u64 cgroup; /* id; 0: none yet */
	u64 asked; /* BPF_PROG_TEST_RUN seen: the kernel does call LSM programs */
} lsm SEC(".data.lsm");

enum thing {
	THING_MAP = 1,
	THING_PROGRAM = 2,
	THING_LINK = 3,
	THING_FOLDER = 4,     /* of pins: its inode */
	THING_FILESYSTEM = 5, /* of pins: its superblock */
	THING_MOUNTS = 6,     /* a mount namespace: by its number */
};

/* Address to enum thing, see lsm_remember; user space deletes what is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, u64);
	__type(value, u32);
} ours SEC(".maps");

/* Process to the time of its start: a number that is used again is nobody's. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u64);
} keepers SEC(".maps");

static __always_inline int is_ours(const void *object, u32 thing)
{
	u64 key = (u64)object;
	u32 *is = bpf_map_lookup_elem(&ours, &key);

	return is && *is == thing;
}

static __always_inline u64 born(void)
{
	return BPF_CORE_READ(current_task(), group_leader, start_boottime);
}

static __always_inline int is_keeper(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u64 *start = bpf_map_lookup_elem(&keepers, &pid);

	return start && *start == born();
}

/* The caller's open file, or none. */
static __always_inline struct file *opened(u32 fd)
{
	struct files_struct *files = BPF_CORE_READ(current_task(), files);
	struct file *file = 0;

	if (fd < BPF_CORE_READ(files, fdt, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file),
				      BPF_CORE_READ(files, fdt, fd) + fd);
	return file;
}

static __noinline int tell(u32 kind, u32 act, u32 verdict)
{
	struct event *ev = bpf_ringbuf_reserve(&ring, sizeof(*ev), 0);

	if (!ev) {
		count(COUNT_LOST_TOUCHED);
		return 0;
	}
	__builtin_memset(ev, 0, __builtin_offsetof(struct event, text));
	ev->abi = GUARD_ABI;
	ev->kind = kind;
	ev->act = act;
	ev->verdict = verdict;
	ev->rule = NO_RULE;
	ev->time_ns = bpf_ktime_get_boot_ns();
	capture(ev);
	ev->seq = __sync_fetch_and_add(&state.seq, 1);
	bpf_ringbuf_submit(ev, 0);
	count(COUNT_TOUCHED);
	return 0;
}

static __always_inline u32 protection(void)
{
	u32 slot = live_slot();
	const struct policy *policy = bpf_map_lookup_elem(&policies, &slot);

	return policy ? policy->protection : PROTECTION_DENY;
}

/* Somebody reaches for what is ours: 0, or why not. */
static __noinline int touch(u32 act)
{
	u32 how = protection();

	if (how == PROTECTION_OFF || is_keeper())
		return 0;
	if (how == PROTECTION_RECORD) {
		tell(EVENT_TAMPER, act, VERDICT_ALLOW);
		return 0;
	}
	tell(EVENT_TAMPER, act, VERDICT_DENY);
	return -EPERM;
}

#endif
