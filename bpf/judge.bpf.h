/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What every lock does with one connection: is its port guarded, what does the
 * policy say of this caller, which counters move, what does its event say.
 */
#ifndef GUARD_JUDGE_H
#define GUARD_JUDGE_H

#include "socket.bpf.h"

/* Read once a connect: what is guarded and what is allowed change together. */
static __always_inline u32 live_slot(void)
{
	return *(volatile u32 *)&control.slot & 1;
}

static __always_inline int unguarded(u32 slot, u32 port)
{
	port &= 0xffff;
	return control.unguarded[slot][port >> 6] >> (port & 63) & 1;
}

static __always_inline int unfollowed(u32 port)
{
	port &= 0xffff;
	return control.unfollowed[port >> 6] >> (port & 63) & 1;
}

static __always_inline void map_ipv4(u8 address[16], u32 ip4)
{
	u32 *word = (u32 *)address;

	word[0] = word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = ip4;
}

static __always_inline int is_ipv4(const u8 address[16])
{
	const u32 *word = (const u32 *)address;

	return !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);
}

static __always_inline const struct target *target_of(
	const struct policy *policy, const struct where *where)
{
	return is_ipv4(where->address) ? &policy->redirect4 :
					 &policy->redirect6;
}

static __noinline int judge_caller(u64 netns, const struct policy *policy,
				   u32 slot, const struct where *where,
				   struct decision *decision)
{
	const struct cred *cred = BPF_CORE_READ(current_task(), cred);
	const struct target *target = target_of(policy, where);
	struct who who;

	/* Linux 6.1 rounds each frame up to 32 bytes, 512 for the whole chain */
	BPF_CORE_READ_INTO(&who.uid, cred, euid.val);
	BPF_CORE_READ_INTO(&who.gid, cred, egid.val);
	/* not root: the kernel connects where a peer of anybody's tells it to */
	if (BPF_CORE_READ(current_task(), flags) & PF_KTHREAD)
		who.uid = who.gid = ~0U;
	match_caller_exe(policy, slot, &who.rows); /* first: it adds rows */
	match_unit(policy, slot, &who.rows);
	decide(policy, slot, &who, where, decision);

	/* only to this host, which is not in another network namespace */
	if (decision->verdict == VERDICT_REDIRECT &&
	    (!target->set || direction_of(target->address) != DIRECTION_LOCAL ||
	     netns != control.home_netns))
		decision->verdict = VERDICT_DENY;
	if (decision->verdict > VERDICT_REDIRECT)
		decision->verdict = VERDICT_DENY;
	return 0;
}

static __always_inline void count_verdict(u32 verdict, u32 mode, u32 direction)
{
	count(COUNT_JUDGED);
	if (direction == DIRECTION_LOCAL)
		count(COUNT_LOCAL);
	if (verdict == VERDICT_ALLOW)
		count(COUNT_ALLOWED);
	else if (mode == MODE_OBSERVE)
		count(COUNT_WOULD_DENY);
	else
		count(verdict == VERDICT_DENY ? COUNT_DENIED :
						COUNT_REDIRECTED);
}

static __noinline int fill_event(u64 netns, struct event *ev,
				 const struct policy *policy,
				 const struct where *where,
				 const struct decision *decision)
{
	const struct target *target = target_of(policy, where);

	__builtin_memset(ev, 0, __builtin_offsetof(struct event, text));
	ev->abi = GUARD_ABI;
	ev->kind = EVENT_CONNECT;
	ev->verdict = decision->verdict;
	ev->mode = policy->mode;
	ev->direction = where->direction;
	ev->rule = decision->rule;
	ev->outcome = OUTCOME_SYN_SENT;
	if (decision->verdict == VERDICT_DENY && policy->mode != MODE_OBSERVE)
		ev->outcome = OUTCOME_DENIED;
	ev->connection = __sync_fetch_and_add(&state.connection, 1);
	ev->time_ns = bpf_ktime_get_boot_ns();
	ev->netns_cookie = netns;
	if (ev->netns_cookie != control.home_netns)
		ev->flags |= FLAG_FOREIGN_NETNS;
	__builtin_memcpy(ev->dst.address, where->address, 16);
	ev->dst.port = where->port;
	if (decision->verdict == VERDICT_REDIRECT &&
	    policy->mode != MODE_OBSERVE) {
		__builtin_memcpy(ev->via.address, target->address, 16);
		ev->via.port = target->port;
	}
	capture(ev);
	return put_request(ev);
}

#endif
