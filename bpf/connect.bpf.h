/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connect() to a guarded port: judge it, and report it now (denied) or leave
 * its event with the socket until the source port is known (let pass).
 */
#ifndef GUARD_CONNECT_H
#define GUARD_CONNECT_H

#include "judge.bpf.h"

enum { REFUSE = 0, PASS = 1 };

static __noinline int direction_by(struct bpf_sock_addr *ctx,
				   const struct where *where)
{
	struct bpf_sock *sk = ctx->sk;
	struct inet_sock *inet = sk ? (void *)bpf_skc_to_tcp_sock(sk) : 0;

	return source_routed(inet) ? DIRECTION_OUTBOUND :
				     direction_of(where->address);
}

/* What the socket asks for may leave less than the policy would give. */
static __noinline int judge_socket(struct bpf_sock *sk,
				   struct decision *decision)
{
	struct inet_sock *inet = sk ? (void *)bpf_skc_to_tcp_sock(sk) : 0;

	if (decision->verdict == VERDICT_REDIRECT && source_routed(inet))
		decision->verdict = VERDICT_DENY;
	if (out_of_room(sk)) {
		decision->verdict = VERDICT_DENY;
		decision->rule = NO_RULE;
		decision->quiet = 0;
	}
	return 0;
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
	fill_event(bpf_get_netns_cookie(ctx), ev, policy, where, decision);
	ev->flags |= FLAG_NO_STORAGE;
	if (out_of_room(ctx->sk))
		ev->flags |= FLAG_NO_ROOM;
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
	u32 repeat = 0, refuse;
	struct decision decision = {};
	const struct policy *policy;
	struct fold_key key;
	struct fold *row = 0;
	struct conn *conn;
	u64 now = 0, often = 0;

	policy = bpf_map_lookup_elem(&policies, &slot);
	if (!policy)
		return REFUSE;
	conn = bpf_sk_storage_get(&conns, ctx->sk, 0, 0);
	if (conn)
		flush_held(conn);
	set_front(ctx->sk, REPORT_SILENT);

	where->direction = direction_by(ctx, where);
	judge_caller(bpf_get_netns_cookie(ctx), policy, slot, where, &decision);
	judge_socket(ctx->sk, &decision);
	count_verdict(decision.verdict, policy->mode, where->direction);
	refuse = decision.verdict == VERDICT_DENY &&
		 policy->mode != MODE_OBSERVE;

	if (policy->window_ns && !decision.quiet) {
		now = bpf_ktime_get_boot_ns();
		fold_key(&key, policy, where, now, &decision);
		row = find_fold(&key, policy, where, &decision, &often);
		if (row) {
			fold_repeat(row, now);
			repeat = 1;
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
	conn->fold.folded = often; /* in memory, see report_denied() */
	fill_event(bpf_get_netns_cookie(ctx), &conn->fold.first, policy, where,
		   &decision);
	if (out_of_room(ctx->sk))
		conn->fold.first.flags |= FLAG_NO_ROOM;
	if (conn->fold.folded)
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
