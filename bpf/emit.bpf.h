/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From an event to the ring, once for each judged connect(): now (denied), with
 * its source port (let pass), or as a repeat that is only counted. What cannot
 * be sent moves a counter; nothing is dropped without one.
 */
#ifndef GUARD_EMIT_H
#define GUARD_EMIT_H

#include "verdict.bpf.h"

static __always_inline void count_by(u32 counter, u64 n)
{
	u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value) /* atomic: connect() can be preempted on its CPU */
		__sync_fetch_and_add(value, n);
}

static __always_inline void count(u32 counter)
{
	count_by(counter, 1);
}

static __always_inline void send(struct event *ev, u32 sent, u32 lost)
{
	ev->seq = __sync_fetch_and_add(&state.seq, 1);
	if (bpf_ringbuf_output(&ring, ev, event_size(ev), 0))
		count(lost);
	else
		count(sent);
}

static __always_inline void send_connect(struct event *ev)
{
	send(ev, COUNT_EVENTS, COUNT_LOST_RING);
}

struct hashing {
	struct request *row;
	u64 hash;
};

static long hash_step(u32 i, void *ctx)
{
	struct hashing *hashing = ctx;
	unsigned char c;

	if (i >= SCRIPT_LEN)
		return 1;
	c = hashing->row->text[i];
	if (!c)
		return 1;
	hashing->hash = (hashing->hash ^ c) * 0x100000001b3; /* FNV-1a */
	return 0;
}

/* One worker of php-fpm serves many scripts: repeats fold for each. */
static __noinline u64 script_hash(u64 start_ns)
{
	struct hashing hashing;

	hashing.hash = 0xcbf29ce484222325;
	hashing.row = request_of(bpf_get_current_pid_tgid(), start_ns);
	if (!hashing.row)
		return 0;
	bpf_loop(SCRIPT_LEN, hash_step, &hashing, 0);
	return hashing.hash;
}

static __always_inline void fold_key(struct fold_key *key,
				     const struct policy *policy,
				     const struct where *where, u64 now,
				     const struct decision *decision)
{
	struct task_struct *leader =
		BPF_CORE_READ(current_task(), group_leader);

	__builtin_memset(key, 0, sizeof(*key));
	key->window = now / policy->window_ns;
	key->start_ns = BPF_CORE_READ(leader, start_boottime);
	key->exec_id = BPF_CORE_READ(current_task(), self_exec_id);
	key->pid = bpf_get_current_pid_tgid() >> 32;
	key->uid = BPF_CORE_READ(current_task(), cred, euid.val);
	key->rule = decision->rule;
	key->verdict = decision->verdict;
	key->direction = where->direction;
	key->port = where->port;
	key->script = script_hash(key->start_ns);
	__builtin_memcpy(key->address, where->address, 16);
}

/* The same for all its destinations; the port stays, rules name it. */
static __always_inline void to_anywhere(struct fold_key *key)
{
	key->direction |= FOLD_MANY;
	__builtin_memset(key->address, 0, sizeof(key->address));
}

static __always_inline void to_one(struct fold_key *key,
				   const struct where *where)
{
	key->direction = where->direction;
	__builtin_memcpy(key->address, where->address, 16);
}

/* How often this identity has tried before within the window. */
static __always_inline u64 attempts_before(const struct fold_key *key)
{
	u64 one = 1, *n = bpf_map_lookup_elem(&attempts, key);

	if (!n && !bpf_map_update_elem(&attempts, key, &one, BPF_NOEXIST))
		return 0;
	if (!n) /* another thread was quicker */
		n = bpf_map_lookup_elem(&attempts, key);
	return n ? __sync_fetch_and_add(n, 1) : 0;
}

/* Only count an attempt, in a row that is there. */
static __always_inline void fold_repeat(struct fold *row, u64 now)
{
	__sync_fetch_and_add(&row->folded, 1);
	row->last_ns = now;
	count(COUNT_FOLDED);
}

/*
 * Where an attempt is only counted; none: it is reported, unless its row is to begin
 * (*begin), by the key that is left in *key. Denied ones also have a row for many
 * destinations: who tries thousands of addresses is a finding, not thousands.
 */
static __always_inline struct fold *find_fold(struct fold_key *key,
					      const struct policy *policy,
					      const struct where *where,
					      const struct decision *decision,
					      u64 *begin)
{
	u32 burst = policy->passed_burst;
	struct fold *row = bpf_map_lookup_elem(&folds, key);

	*begin = 0;
	if (row)
		return row;
	if (decision->verdict == VERDICT_DENY) {
		burst = policy->denied_burst;
		to_anywhere(key);
		row = bpf_map_lookup_elem(&folds, key);
		if (row)
			return row;
		if (attempts_before(key) >= (u64)(burst ?: 1) * MANY_BURSTS) {
			*begin = 1;
			return 0;
		}
		to_one(key, where);
	}
	*begin = attempts_before(key) >= burst;
	return 0;
}

/* Only count an attempt, the first such; 0: no room, it makes an event. */
static __always_inline int fold_begin(struct fold_key *key, struct conn *conn,
				      u64 now)
{
	struct fold *row;
	int full;

	conn->fold.folded = 1;
	conn->fold.last_ns = now;
	if (key->direction & FOLD_MANY)
		conn->fold.first.flags |= FLAG_MANY;
	full = bpf_map_update_elem(&folds, key, &conn->fold, BPF_NOEXIST);
	conn->fold.first.flags &= ~FLAG_MANY; /* of the row, not of this one */
	if (!full) {
		count(COUNT_FOLDED);
		return 1;
	}
	row = bpf_map_lookup_elem(&folds, key); /* another thread was quicker */
	if (!row) {
		count(COUNT_NO_FOLD);
		return 0;
	}
	fold_repeat(row, now);
	return 1;
}

/* Let pass, but its socket never sent a SYN: say so before it is forgotten. */
static __always_inline void flush_held(struct conn *conn)
{
	if (conn->report != REPORT_HELD)
		return;
	conn->report = REPORT_SILENT;
	count_by(COUNT_HELD, -1);
	conn->fold.first.outcome = OUTCOME_NOT_SENT;
	send_connect(&conn->fold.first);
}

/*
 * The socket that a program of Multipath TCP holds is in front of the one that
 * connects. getpeername() and release see only that, so it carries a copy.
 */
static __always_inline struct conn *front_of(struct bpf_sock *sk, u64 flags)
{
	struct mptcp_sock *front;

	if (!bpf_core_type_exists(struct mptcp_sock))
		return 0;
	front = bpf_skc_to_mptcp_sock(sk);
	/* not for further paths, which the kernel opens by itself */
	if (!front || BPF_CORE_READ(front, first) != (void *)sk)
		return 0;
	return bpf_sk_storage_get(&conns, front, 0, flags);
}

static __always_inline void set_front(struct bpf_sock *sk, u64 report)
{
	struct conn *front = front_of(sk, 0);

	if (front)
		front->report = report;
}

static __always_inline void copy_to_front(struct bpf_sock *sk,
					  const struct conn *conn)
{
	struct conn *front = front_of(sk, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (front)
		bpf_probe_read_kernel(front, sizeof(*front), conn);
}

#endif
