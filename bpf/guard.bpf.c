// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The hooks, in the order in which a connection meets them:
 *
 *  guard_connect4, 6   judge; deny with EPERM, redirect, or let pass
 *  guard_sockops       add the source port before the SYN leaves, then the end
 *  guard_peername4, 6  a redirected program sees the peer it asked for
 *  guard_release       report what was let pass and never sent a SYN
 *
 * and two that user space runs by hand (BPF_PROG_TEST_RUN), attached nowhere:
 *
 *  identify            an open file as match_exe() will see it
 *  judge               the decision for a made-up caller
 *
 * Each begins with one compare of the port against control.unguarded: that is
 * all a connection to any other port pays.
 */
#include "emit.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct question question SEC(".data.question");

enum { REFUSE = 0, PASS = 1 };

static __always_inline int unguarded(u32 port)
{
	port &= 0xffff;
	return control.unguarded[port >> 6] >> (port & 63) & 1;
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
	struct who who;

	who.uid = BPF_CORE_READ(cred, euid.val);
	who.gid = BPF_CORE_READ(cred, egid.val);
	match_caller_exe(policy, slot, &who.exe);
	match_unit(policy, slot, &who.unit);
	decide(policy, slot, &who, where, decision);

	/* the host's own mail server is not in another network namespace */
	if (decision->verdict == VERDICT_REDIRECT &&
	    (!target_of(policy, where)->set ||
	     bpf_get_netns_cookie(ctx) != control.home_netns))
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

/* Judge one connect(), and report it now or once its source port is known. */
static __noinline int on_connect(struct bpf_sock_addr *ctx, struct where *where)
{
	u32 slot = control.slot & 1, burst, repeat = 0, refuse;
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

	where->direction = direction_of(where->address);
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
		if (row)
			repeat = fold_repeat(row, burst, now);
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
	if (policy->window_ns && !decision.quiet && !row)
		repeat = fold_begin(&key, conn, burst, now);

	conn->report = REPORT_SILENT;
	if (decision.quiet) {
		count(COUNT_QUIET);
	} else if (refuse && !repeat) {
		send_connect(&conn->fold.first);
	} else if (!repeat) {
		conn->report = REPORT_HELD;
		count(COUNT_HELD);
	}
out:
	if (refuse)
		return REFUSE;
	if (decision.verdict == VERDICT_REDIRECT &&
	    policy->mode != MODE_OBSERVE) {
		const struct target *target = target_of(policy, where);

		__builtin_memcpy(where->address, target->address, 16);
		where->port = target->port;
	}
	return PASS;
}

SEC("cgroup/connect4") int guard_connect4(struct bpf_sock_addr *ctx)
{
	struct where where = {};
	u32 *word = (u32 *)where.address;

	where.port = bpf_ntohs(ctx->user_port);
	if (unguarded(where.port) || ctx->type != SOCK_STREAM)
		return PASS;
	map_ipv4(where.address, ctx->user_ip4);
	if (on_connect(ctx, &where) == REFUSE)
		return REFUSE;
	ctx->user_ip4 = word[3];
	ctx->user_port = bpf_htons(where.port);
	return PASS;
}

SEC("cgroup/connect6") int guard_connect6(struct bpf_sock_addr *ctx)
{
	struct where where = {};
	u32 *word = (u32 *)where.address;

	where.port = bpf_ntohs(ctx->user_port);
	if (unguarded(where.port) || ctx->type != SOCK_STREAM)
		return PASS;
	word[0] = ctx->user_ip6[0];
	word[1] = ctx->user_ip6[1];
	word[2] = ctx->user_ip6[2];
	word[3] = ctx->user_ip6[3];
	if (on_connect(ctx, &where) == REFUSE)
		return REFUSE;
	ctx->user_ip6[0] = word[0];
	ctx->user_ip6[1] = word[1];
	ctx->user_ip6[2] = word[2];
	ctx->user_ip6[3] = word[3];
	ctx->user_port = bpf_htons(where.port);
	return PASS;
}

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
					      struct conn *conn)
{
	struct event *ev = &conn->fold.first;

	packet_ends(ctx,
		    is_ipv4(ev->via.port ? ev->via.address : ev->dst.address),
		    ev, &conn->key);
	if (bpf_map_update_elem(&owners, &conn->key, ev, BPF_ANY))
		count(COUNT_NO_OWNER);
	if (conn->report == REPORT_HELD) {
		conn->report = REPORT_SENT;
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

	bpf_map_delete_elem(&owners, &conn->key);
	if (conn->report != REPORT_SENT)
		return 1;
	conn->report = REPORT_SILENT;
	ev->kind = EVENT_CLOSED;
	ev->ended_ns = bpf_ktime_get_boot_ns();
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

SEC("sockops") int guard_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	struct conn *conn;

	if (unguarded(bpf_ntohl(ctx->remote_port)))
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
		return syn_about_to_leave(ctx, conn);
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

	if (unguarded(bpf_ntohs(ctx->user_port)) || ctx->type != SOCK_STREAM)
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
 * Open that was closed before its first write.
 */
SEC("cgroup/sock_release") int guard_release(struct bpf_sock *ctx)
{
	struct conn *conn;

	if (ctx->type != SOCK_STREAM ||
	    (ctx->state != BPF_TCP_CLOSE && ctx->state != BPF_TCP_SYN_SENT))
		return 1;
	conn = bpf_sk_storage_get(&conns, ctx, 0, 0);
	if (conn)
		flush_held(conn);
	return 1;
}

SEC("syscall") int identify(struct identity *ctx)
{
	struct files_struct *files = BPF_CORE_READ(current_task(), files);
	u32 fd = ctx->fd, max = BPF_CORE_READ(files, fdt, max_fds);
	struct exe_key key;
	struct file **slot, *file = 0;
	struct dentry *dentry;
	struct inode *inode;

	ctx->error = -EBADF;
	if (fd >= max)
		return 0;
	slot = BPF_CORE_READ(files, fdt, fd) + fd;
	bpf_probe_read_kernel(&file, sizeof(file), slot);
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	key_by_inode(&key, 0, inode);
	ctx->inode = key;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	key_by_name(&key, 0, BPF_CORE_READ(dentry, d_parent, d_inode), dentry);
	ctx->name = key;
	ctx->uid = BPF_CORE_READ(inode, i_uid.val);
	ctx->mode = BPF_CORE_READ(inode, i_mode);
	ctx->nlink = BPF_CORE_READ(inode, i_nlink);
	ctx->error = 0;
	return 0;
}

/*
 * Not a syscall program: those sleep, and no kernel below 6.19 lets a sleeping
 * program use an LPM trie. The question stands in a map, so that it can be read
 * at a variable offset.
 */
SEC("raw_tp") int judge(void *ctx)
{
	u32 slot = question.slot & 1, depth = question.depth, i, len;
	struct decision decision = {};
	const struct policy *policy;
	struct where where = {};
	struct unit_key unit;
	struct who who;
	u64 last8;

	policy = bpf_map_lookup_elem(&policies, &slot);
	if (!policy)
		return 0;
	who.uid = question.uid;
	who.gid = question.gid;
	fill(&who.exe, &policy->any_exe);
	if (question.trusted) {
		match_exe(&question.inode, &who.exe);
		match_exe(&question.name, &who.exe);
	}
	fill(&who.unit, 0);
	match_depth(policy, depth, &who.unit);
	for (i = 0; i < UNIT_DEPTH && i < depth; i++) {
		__builtin_memset(&unit, 0, sizeof(unit));
		len = read_component(&unit, question.component[i], &last8);
		match_component(policy, &unit, slot, i, len, last8, &who.unit);
	}
	__builtin_memcpy(where.address, question.address, 16);
	where.port = question.port;
	where.direction = question.direction;
	decide(policy, slot, &who, &where, &decision);
	question.verdict = decision.verdict;
	question.rule = decision.rule;
	question.quiet = decision.quiet;
	return 0;
}
