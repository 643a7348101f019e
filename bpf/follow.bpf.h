/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A connection that was let pass, from its SYN to its end: who owns it while it is
 * open, and what became of it.
 */
#ifndef GUARD_FOLLOW_H
#define GUARD_FOLLOW_H

#include "connect.bpf.h"

/* Source and destination as in the packets; IPv4 mapped on either family. */
static __always_inline void packet_ends(struct bpf_sock_ops *ctx, int ip4,
					struct event *ev, struct owner_key *key)
{
	u32 *src = (u32 *)key->src.address, *dst = (u32 *)key->dst.address;

	__builtin_memset(key, 0, sizeof(*key));
	key->netns_cookie = ev->netns_cookie;
	if (ip4) {
		map_ipv4(key->src.address, ctx->local_ip4);
		map_ipv4(key->dst.address, ctx->remote_ip4);
	} else {
		src[0] = ctx->local_ip6[0];
		src[1] = ctx->local_ip6[1];
		src[2] = ctx->local_ip6[2];
		src[3] = ctx->local_ip6[3];
		dst[0] = ctx->remote_ip6[0];
		dst[1] = ctx->remote_ip6[1];
		dst[2] = ctx->remote_ip6[2];
		dst[3] = ctx->remote_ip6[3];
	}
	key->src.port = ctx->local_port;
	key->dst.port = bpf_ntohl(ctx->remote_port);
	ev->src = key->src;
}

static __always_inline int syn_about_to_leave(struct bpf_sock_ops *ctx,
					      struct conn *conn,
					      struct bpf_sock *sk)
{
	struct event *ev = &conn->fold.first;

	packet_ends(ctx,
		    is_ipv4(ev->via.port ? ev->via.address : ev->dst.address),
		    ev, &conn->key);
	if (bpf_map_update_elem(&owners, &conn->key, ev, BPF_ANY))
		count(COUNT_NO_OWNER);
	if (conn->report == REPORT_HELD) {
		conn->report = REPORT_SENT;
		set_front(sk, REPORT_SENT);
		count_by(COUNT_HELD, -1);
		send_connect(ev);
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

static __always_inline int established(struct conn *conn)
{
	struct event *row = bpf_map_lookup_elem(&owners, &conn->key);

	/* the other end has let go of an earlier connection of these ends */
	bpf_map_delete_elem(&departed, &conn->key);
	conn->fold.first.established_ns = bpf_ktime_get_boot_ns();
	if (row) {
		row->established_ns = conn->fold.first.established_ns;
		row->outcome = OUTCOME_ESTABLISHED;
	}
	return 1;
}

static __always_inline int ended(struct bpf_sock_ops *ctx, struct conn *conn,
				 struct bpf_sock *sk)
{
	struct event *ev = &conn->fold.first;
	struct tcp_sock *tcp = (void *)bpf_skc_to_tcp_sock(sk);

	ev->ended_ns = bpf_ktime_get_boot_ns();
	/* first: who asks for it finds it in one of the two at any time */
	if (ev->established_ns &&
	    (ev->direction == DIRECTION_LOCAL || ev->via.port))
		bpf_map_update_elem(&departed, &conn->key, ev, BPF_ANY);
	bpf_map_delete_elem(&owners, &conn->key);
	if (conn->report != REPORT_SENT)
		return 1;
	conn->report = REPORT_SILENT;
	ev->kind = EVENT_CLOSED;
	ev->bytes_received = ctx->bytes_received;
	if (tcp) {
		ev->error = BPF_CORE_READ((struct sock *)tcp, sk_err);
		ev->bytes_sent = BPF_CORE_READ(tcp, bytes_sent) -
				 BPF_CORE_READ(tcp, bytes_retrans);
		/* the peer's FIN is counted as a byte */
		if (BPF_CORE_READ((struct sock *)tcp, __sk_common.skc_flags) &
		    1 << SOCK_DONE)
			ev->bytes_received--;
	}
	if (ev->established_ns)
		ev->outcome = OUTCOME_CLOSED;
	else if (ev->error == ECONNREFUSED)
		ev->outcome = OUTCOME_REFUSED;
	else if (ev->error == ETIMEDOUT)
		ev->outcome = OUTCOME_TIMED_OUT;
	else
		ev->outcome = OUTCOME_FAILED;
	send(ev, COUNT_CLOSED, COUNT_LOST_CLOSED);
	return 1;
}

#endif
