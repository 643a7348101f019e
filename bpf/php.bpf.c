// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which request PHP is at, an object of its own: guardd attaches it to the probes
 * php:request__startup and php:request__shutdown (USDT, sys/sdt.h) of every PHP that
 * has them, and the connect programs read what it wrote. It shares the guard's maps.
 *
 *  php_startup   a request begins: its script, URI and method
 *  php_shutdown  it is over
 *
 * Where the probe has its arguments stands in the cookie of each attachment,
 * see guard/usdt.py. All of them are the process's own memory: any bytes.
 */
#include "php.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* An argument in the cookie: register, whether it points to it, and how far. */
#define ARG_BITS 21
#define ARG_REGISTER 0x3f
#define ARG_POINTS 0x40
#define ARG_OFFSET_BITS 14 /* signed, above the seven before */

/* What a row begins as. */
const struct request blank = {};

static __always_inline const void *argument(void *ctx, u64 how)
{
	long offset = (long)(how << (64 - ARG_BITS)) >> (64 - ARG_OFFSET_BITS);
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value),
			      ctx + (how & ARG_REGISTER) * sizeof(value));
	if (how & ARG_POINTS && bpf_probe_read_user(&value, sizeof(value),
						    (void *)(value + offset)))
		return 0;
	return (const void *)value;
}

static __always_inline void put_text(struct request *row, u32 limit,
				     const void *from)
{
	u32 at = row->len;
	long n;

	if (at > REQUEST_LEN - limit)
		return;
	n = bpf_probe_read_user_str(&row->text[at], limit, from);
	if (n <= 0)
		row->text[at] = 0;
	if (n <= 0 || n == limit)
		row->flags |= FLAG_REQUEST_CUT;
	row->len = at + (n <= 0 ? 1 : n);
}

static __always_inline struct request *row_of(u64 thread)
{
	struct request *row = bpf_map_lookup_elem(&requests, &thread);
	u32 counter = COUNT_NO_REQUEST;
	u64 *full;

	if (row) /* its last request had no end */
		return row;
	if (!bpf_map_update_elem(&requests, &thread, &blank, BPF_NOEXIST))
		return bpf_map_lookup_elem(&requests, &thread);
	full = bpf_map_lookup_elem(&counters, &counter);
	if (full)
		__sync_fetch_and_add(full, 1);
	return 0;
}

SEC("uprobe") int php_startup(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	u64 how = bpf_get_attach_cookie(ctx);
	struct request *row = row_of(bpf_get_current_pid_tgid());

	if (!row)
		return 0;
	row->since_ns = 0;
	barrier();
	row->flags = row->len = 0;
	put_text(row, SCRIPT_LEN, argument(ctx, how));
	put_text(row, URI_LEN, argument(ctx, how >> ARG_BITS));
	put_text(row, METHOD_LEN, argument(ctx, how >> 2 * ARG_BITS));
	row->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	row->exec_id = BPF_CORE_READ(task, self_exec_id);
	barrier();
	row->since_ns = bpf_ktime_get_boot_ns();
	return 0;
}

SEC("uprobe") int php_shutdown(void *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&requests, &thread);
	return 0;
}
