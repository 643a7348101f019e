// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The hooks, in the order in which a connection meets them:
 *
 *  guard_connect4, 6   judge; deny with EPERM, redirect, or let pass
 *  guard_sockops       add the source port before the SYN leaves, then the end
 *  guard_peername4, 6  a redirected program sees the peer it asked for
 *  guard_release       report what was let pass and never sent a SYN
 *
 * And beside it, for packets that no connection sends:
 *
 *  guard_create        remember who made a raw socket; guard_release, its end
 *
 * Each but the last begins with one compare of the port against
 * control.unguarded, or its like control.unfollowed: that is all a connection to
 * any other port pays. A socket that is released has no port any more; there its
 * state tells.
 */
#include "byhand.bpf.h"
#include "follow.bpf.h"
#include "makers.bpf.h"

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup/connect4") int guard_connect4(struct bpf_sock_addr *ctx)
{
	struct where where = {};
	u32 *word = (u32 *)where.address, slot = live_slot();

	where.port = bpf_ntohs(ctx->user_port);
	if (unguarded(slot, where.port) || ctx->type != SOCK_STREAM)
		return PASS;
	map_ipv4(where.address, ctx->user_ip4);
	if (on_connect(ctx, slot, &where) == REFUSE)
		return REFUSE;
	ctx->user_ip4 = word[3];
	ctx->user_port = bpf_htons(where.port);
	return PASS;
}

SEC("cgroup/connect6") int guard_connect6(struct bpf_sock_addr *ctx)
{
	struct where where = {};
	u32 *word = (u32 *)where.address, slot = live_slot();

	where.port = bpf_ntohs(ctx->user_port);
	if (unguarded(slot, where.port) || ctx->type != SOCK_STREAM)
		return PASS;
	word[0] = ctx->user_ip6[0];
	word[1] = ctx->user_ip6[1];
	word[2] = ctx->user_ip6[2];
	word[3] = ctx->user_ip6[3];
	if (on_connect(ctx, slot, &where) == REFUSE)
		return REFUSE;
	ctx->user_ip6[0] = word[0];
	ctx->user_ip6[1] = word[1];
	ctx->user_ip6[2] = word[2];
	ctx->user_ip6[3] = word[3];
	ctx->user_port = bpf_htons(where.port);
	return PASS;
}

SEC("sockops") int guard_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct conn *conn;

	if (unfollowed(bpf_ntohl(ctx->remote_port)))
		return 1;
	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    ctx->op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		return syn_about_to_leave(ctx, conn, sk);
	if (ctx->args[1] == BPF_TCP_ESTABLISHED)
		return established(conn);
	if (ctx->args[1] == BPF_TCP_CLOSE)
		return ended(ctx, conn, sk);
	return 1;
}

/* The event of a redirected socket, or none. */
static __always_inline struct event *redirected(struct bpf_sock_addr *ctx)
{
	struct conn *conn;

	if (unfollowed(bpf_ntohs(ctx->user_port)) || ctx->type != SOCK_STREAM)
		return 0;
	conn = bpf_sk_storage_get(&conns, ctx->sk, 0, 0);
	return conn && conn->fold.first.via.port ? &conn->fold.first : 0;
}

SEC("cgroup/getpeername4") int guard_peername4(struct bpf_sock_addr *ctx)
{
	struct event *ev = redirected(ctx);

	if (ev) {
		ctx->user_ip4 = ((u32 *)ev->dst.address)[3];
		ctx->user_port = bpf_htons(ev->dst.port);
	}
	return 1;
}

SEC("cgroup/getpeername6") int guard_peername6(struct bpf_sock_addr *ctx)
{
	struct event *ev = redirected(ctx);

	if (ev) {
		u32 *word = (u32 *)ev->dst.address;

		ctx->user_ip6[0] = word[0];
		ctx->user_ip6[1] = word[1];
		ctx->user_ip6[2] = word[2];
		ctx->user_ip6[3] = word[3];
		ctx->user_port = bpf_htons(ev->dst.port);
	}
	return 1;
}

/*
 * A connect() that was let pass can still fail before the SYN (no route, no
 * free port), where no sockops callback comes. SYN_SENT is a deferred TCP Fast
 * Open that was closed before its first write, LISTEN a socket that went on as a
 * server.
 */
SEC("cgroup/sock_release") int guard_release(struct bpf_sock *ctx)
{
	struct conn *conn;

	if (ctx->type == SOCK_RAW) {
		maker_closed(bpf_get_socket_cookie(ctx));
		return 1;
	}
	if (ctx->type != SOCK_STREAM ||
	    (ctx->state != BPF_TCP_CLOSE && ctx->state != BPF_TCP_SYN_SENT &&
	     ctx->state != BPF_TCP_LISTEN))
		return 1;
	conn = bpf_sk_storage_get(&conns, ctx, 0, 0);
	if (conn)
		flush_held(conn);
	return 1;
}

/* The kernel asks for every socket of IPv4 and IPv6; most end at the first test. */
SEC("cgroup/sock_create") int guard_create(struct bpf_sock *ctx)
{
	struct maker *row;

	if (ctx->type != SOCK_RAW)
		return 1;
	row = new_maker(bpf_get_socket_cookie(ctx), bpf_get_netns_cookie(ctx));
	if (row)
		socket_made(row, BPF_CORE_READ((struct sock *)ctx, sk_socket),
			    ctx->family, ctx->protocol);
	return 1;
}
