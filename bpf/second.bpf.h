/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The second lock: a connection that guard_connect4 or 6 will not see is judged
 * before it is made, by address, whatever the socket's protocol. One that they
 * will see is none of ours, so each is judged, counted and reported once.
 */
#ifndef GUARD_SECOND_H
#define GUARD_SECOND_H

#include "ours.bpf.h"

#define AF_INET6 10
#define AF_SMC 43
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define PROGRAMS_MAX 64 /* BPF_CGROUP_MAX_PROGS, kernel/bpf/cgroup.c */

/* struct sockaddr_in, and sockaddr_in6 with its flow in place of ip4 */
struct peer {
	u16 family;
	u16 port;
	u32 ip4;
	u32 ip6[4];
};

/* Room for an event that is folded; a task connects once at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct conn);
} drafts SEC(".maps");

struct search {
	struct bpf_prog_array *array;
	u32 found;
};

static long search_step(u32 i, void *ctx)
{
	struct search *search = ctx;
	struct bpf_prog_array_item *item;
	struct bpf_prog *prog;

	item = (void *)search->array +
	       bpf_core_field_offset(struct bpf_prog_array, items) +
	       i * bpf_core_type_size(struct bpf_prog_array_item);
	prog = BPF_CORE_READ(item, prog);
	search->found = prog && is_ours(prog, THING_PROGRAM);
	return !prog || search->found;
}

/*
 * Will the kernel ask our connect program about this socket? It asks for TCP and
 * what is carried by TCP, and the programs that are in effect at its cgroup.
 */
static __noinline int seen_by_cgroup(struct sock *sk, u32 family)
{
	struct cgroup *cgrp = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	u32 protocol = BPF_CORE_READ(sk, sk_protocol), number;
	struct search search = {};

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP &&
	    BPF_CORE_READ(sk, __sk_common.skc_family) != AF_SMC)
		return 0;
	if (family == AF_INET)
		number = bpf_core_enum_value(enum cgroup_bpf_attach_type,
					     CGROUP_INET4_CONNECT);
	else
		number = bpf_core_enum_value(enum cgroup_bpf_attach_type,
					     CGROUP_INET6_CONNECT);
	bpf_probe_read_kernel(&search.array, sizeof(search.array),
			      (void *)cgrp +
				      bpf_core_field_offset(struct cgroup,
							    bpf.effective) +
				      number * sizeof(search.array));
	bpf_loop(PROGRAMS_MAX, search_step, &search, 0);
	return search.found;
}

struct rise {
	struct kernfs_node *kn;
	u32 found;
};

static long rise_step(u32 i, void *ctx)
{
	struct rise *rise = ctx;
	struct kernfs_node *kn = rise->kn;

	if (!kn)
		return 1;
	rise->found = BPF_CORE_READ(kn, id) == lsm.cgroup;
	rise->kn = kernfs_parent(kn);
	return rise->found;
}

/* Is it a socket of the guarded cgroup, or of one below? */
static __noinline int is_guarded(struct sock *sk)
{
	struct rise rise = { BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn), 0 };

	bpf_loop(PATH_STEPS, rise_step, &rise, 0);
	return rise.found;
}

/* Nobody's row and no storage can carry it: it goes out now, or is counted. */
static __noinline int report_denied(u64 netns, const struct policy *policy,
				    const struct where *where,
				    const struct decision *decision)
{
	struct fold_key key;
	struct conn *draft;
	struct fold *row;
	u64 often = 0, now = bpf_ktime_get_boot_ns();

	if (policy->window_ns) {
		fold_key(&key, policy, where, now, decision);
		row = find_fold(&key, policy, where, decision, &often);
		if (row) {
			fold_repeat(row, now);
			return 0;
		}
	}
	draft = bpf_task_storage_get(&drafts, bpf_get_current_task_btf(), 0,
				     BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!draft) {
		count(COUNT_LOST_RING);
		return 0;
	}
	/*
	 * kept in memory, not on the stack: Linux 6.1 takes a 0 or 1 that was kept
	 * over fill_event() for 0, and leaves out what it takes for dead
	 */
	draft->fold.folded = often;
	fill_event(netns, &draft->fold.first, policy, where, decision);
	draft->fold.first.flags |= FLAG_LSM;
	if (!draft->fold.folded || !fold_begin(&key, draft, now))
		send_connect(&draft->fold.first);
	return 0;
}

static __noinline int judge_unseen(struct sock *sk, u32 slot,
				   struct where *where)
{
	u64 netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	struct decision decision = {};
	const struct policy *policy = bpf_map_lookup_elem(&policies, &slot);

	if (!policy)
		return -EPERM;
	where->direction = direction_of(where->address);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_SMC &&
	    source_routed((void *)sk))
		where->direction = DIRECTION_OUTBOUND;
	judge_caller(netns, policy, slot, where, &decision);
	if (decision.verdict == VERDICT_ALLOW || policy->mode == MODE_OBSERVE)
		return 0;
	decision.verdict = VERDICT_DENY; /* it cannot be redirected from here */
	count_verdict(VERDICT_DENY, policy->mode, where->direction);
	if (decision.quiet)
		count(COUNT_QUIET);
	else
		report_denied(netns, policy, where, &decision);
	return -EPERM;
}

/* A connection that is about to be made to the address at `to`. */
static __noinline int on_unseen(struct socket *sock, const void *to)
{
	u32 *word, slot = live_slot();
	struct where where = {};
	struct peer peer;
	struct sock *sk;

	if (bpf_probe_read_kernel(&peer, sizeof(peer), to))
		return 0;
	where.port = bpf_ntohs(peer.port);
	if ((peer.family != AF_INET && peer.family != AF_INET6) ||
	    unguarded(slot, where.port) ||
	    BPF_CORE_READ(sock, type) != SOCK_STREAM)
		return 0;
	word = (u32 *)where.address;
	if (peer.family == AF_INET) {
		map_ipv4(where.address, peer.ip4);
	} else {
		word[0] = peer.ip6[0];
		word[1] = peer.ip6[1];
		word[2] = peer.ip6[2];
		word[3] = peer.ip6[3];
	}
	sk = BPF_CORE_READ(sock, sk);
	if (!is_guarded(sk) || seen_by_cgroup(sk, peer.family))
		return 0;
	return judge_unseen(sk, slot, &where);
}

#endif
