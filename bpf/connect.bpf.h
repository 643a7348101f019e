/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connect() to a guarded port: judge it, and report it now (denied) or leave
 * its event with the socket until the source port is known (let pass).
 */
#ifndef GUARD_CONNECT_H
#define GUARD_CONNECT_H

#include "socket.bpf.h"

enum { REFUSE = 0, PASS = 1 };

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

static __noinline int judge_caller(struct bpf_sock_addr *ctx,
				   const struct policy *policy, u32 slot,
				   const struct where *where,
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

	/* only to this host, not by way of others or from another netns */
	if (decision->verdict == VERDICT_REDIRECT &&
	    (!target->set || source_routed(ctx->sk) ||
	     direction_of(target->address) != DIRECTION_LOCAL ||
	     bpf_get_netns_cookie(ctx) != control.home_netns))
		decision->verdict = VERDICT_DENY;
	if (decision->verdict > VERDICT_REDIRECT)
		decision->verdict = VERDICT_DENY;
	if (out_of_room(ctx->sk)) {
		decision->verdict = VERDICT_DENY;
		decision->rule = NO_RULE;
		decision->quiet = 0;
	}
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

static __noinline int fill_event(struct bpf_sock_addr *ctx, struct event *ev,
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
	ev->netns_cookie = bpf_get_netns_cookie(ctx);
	if (ev->netns_cookie != control.home_netns)
		ev->flags |= FLAG_FOREIGN_NETNS;
	if (out_of_room(ctx->sk))
		ev->flags |= FLAG_NO_ROOM;
	__builtin_memcpy(ev->dst.address, where->address, 16);
	ev->dst.port = where->port;
	if (decision->verdict == VERDICT_REDIRECT &&
	    policy->mode != MODE_OBSERVE) {
		__builtin_memcpy(ev->via.address, target->address, 16);
		ev->via.port = target->port;
	}
	return capture(ev);
}

/* The socket cannot carry the event: send what is known, now. */
static __noinline int report_without_storage(struct bpf_sock_addr *ctx,
					     const struct policy *policy,
					     const struct where *where,
					     const struct decision *decision)
{
	struct event *ev = bpf_ringbuf_reserve(&ring, sizeof(*ev), 0);

	count(COUNT_NO_STORAGE);
	if (!ev) {
		count(COUNT_LOST_RING);
		return 0;
	}
	fill_event(ctx, ev, policy, where, decision);
	ev->flags |= FLAG_NO_STORAGE;
	ev->seq = __sync_fetch_and_add(&state.seq, 1);
	bpf_ringbuf_submit(ev, 0);
	count(COUNT_EVENTS);
	return 0;
}

/*
 * Tell netfilter that this socket was judged and let pass. Only for what leaves
 * this host: a connection that claims to be local and leaves all the same, and one
 * from another network namespace, whose mark ends at its veth, carry none.
 */
static __noinline int mark_judged(struct bpf_sock_addr *ctx,
				  const struct policy *policy, u32 direction)
{
	struct bpf_sock *sk = ctx->sk;
	u32 mark, bits;

	if (!policy || !sk)
		return 0;
	bits = policy->mark;
	if (!bits || direction != DIRECTION_OUTBOUND ||
	    bpf_get_netns_cookie(ctx) != control.home_netns)
		return 0;
	mark = sk->mark;
	if ((mark & bits) == bits)
		return 0;
	mark |= bits; /* others keep theirs: policy routing, VPN */
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		count(COUNT_NO_MARK);
	return 0;
}

/* Judge one connect(), and report it now or once its source port is known. */
static __noinline int on_connect(struct bpf_sock_addr *ctx, u32 slot,
				 struct where *where)
{
	u32 burst, often = 0, repeat = 0, refuse;
	struct decision decision = {};
	const struct policy *policy;
	struct fold_key key;
	struct fold *row = 0;
	struct conn *conn;
	u64 now;

	policy = bpf_map_lookup_elem(&policies, &slot);
	if (!policy)
		return REFUSE;
	conn = bpf_sk_storage_get(&conns, ctx->sk, 0, 0);
	if (conn)
		flush_held(conn);
	set_front(ctx->sk, REPORT_SILENT);

	where->direction = direction_by(ctx, where);
	judge_caller(ctx, policy, slot, where, &decision);
	count_verdict(decision.verdict, policy->mode, where->direction);
	refuse = decision.verdict == VERDICT_DENY &&
		 policy->mode != MODE_OBSERVE;

	burst = decision.verdict == VERDICT_DENY ? policy->denied_burst :
						   policy->passed_burst;
	if (policy->window_ns && !decision.quiet) {
		now = bpf_ktime_get_boot_ns();
		fold_key(&key, policy, where, now, &decision);
		row = bpf_map_lookup_elem(&folds, &key);
		if (row) {
			fold_repeat(row, now);
			repeat = 1;
		} else {
			often = attempts_before(&key) >= burst;
		}
		if (repeat && refuse)
			return REFUSE;
	}

	conn = bpf_sk_storage_get(&conns, ctx->sk, 0,
				  BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!conn) {
		if (decision.quiet)
			count(COUNT_QUIET);
		else if (!repeat)
			report_without_storage(ctx, policy, where, &decision);
		goto out;
	}
	fill_event(ctx, &conn->fold.first, policy, where, &decision);
	if (often)
		repeat = fold_begin(&key, conn, now);

	conn->report = REPORT_SILENT;
	if (decision.quiet) {
		count(COUNT_QUIET);
	} else if (refuse && !repeat) {
		send_connect(&conn->fold.first);
	} else if (!repeat) {
		conn->report = REPORT_HELD;
		count(COUNT_HELD);
	}
	copy_to_front(ctx->sk, conn);
out:
	if (refuse)
		return REFUSE;
	if (decision.verdict == VERDICT_REDIRECT &&
	    policy->mode != MODE_OBSERVE) {
		const struct target *target = target_of(policy, where);

		__builtin_memcpy(where->address, target->address, 16);
		where->port = target->port;
		return PASS;
	}
	mark_judged(ctx, policy, where->direction);
	return PASS;
}

#endif
