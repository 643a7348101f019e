/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which request PHP is at, where bpf/php.bpf.c was told of one: by the caller's own
 * thread, or by what started the caller, as mail() starts a program.
 */
#ifndef GUARD_REQUEST_H
#define GUARD_REQUEST_H

#include "origin.bpf.h"

/* The row of a thread; none if it is of one that had its number before. */
static __always_inline struct request *request_of(u64 thread, u64 start_ns)
{
	struct request *row = bpf_map_lookup_elem(&requests, &thread);

	return row && row->start_ns == start_ns && row->since_ns ? row : 0;
}

/* 1: it is in the event. Another thread's row may change meanwhile. */
static __noinline int copy_request(struct event *ev, const struct request *row)
{
	u64 since_ns = *(volatile u64 *)&row->since_ns;
	u32 at = text_used(ev), flags = row->flags, len = row->len;

	if (at > TEXT_LEN - REQUEST_LEN || len > REQUEST_LEN)
		return 0;
	if (bpf_probe_read_kernel(&ev->text[at], len, row->text))
		return 0;
	if (*(volatile u64 *)&row->since_ns != since_ns)
		return 0;
	ev->request_len = len;
	ev->flags |= flags;
	return 1;
}

struct ascent {
	struct event *ev;
	u64 child_ns; /* when the one below began */
};

/* Only what began after the request did was started by it. */
static long parent_step(u32 i, void *ctx)
{
	struct ascent *ascent = ctx;
	struct event *ev = ascent->ev;
	struct ancestor *a;
	struct request *row;
	u64 start_ns;

	if (i >= ANCESTORS || i >= ev->ancestors)
		return 1;
	a = &ev->ancestor[i];
	start_ns = a->start_ns;
	row = request_of((u64)a->pid << 32 | a->pid, start_ns);
	if (row && row->since_ns <= ascent->child_ns && copy_request(ev, row)) {
		ev->flags |= FLAG_PARENT_REQUEST;
		return 1;
	}
	ascent->child_ns = start_ns;
	return 0;
}

/* The last of an event's texts; who is calling stands in it already. */
__noinline int put_request(struct event *ev)
{
	struct ascent ascent;
	struct request *row;

	if (!ev)
		return 0;
	row = request_of(bpf_get_current_pid_tgid(), ev->start_ns);
	if (row) {
		if (row->exec_id != BPF_CORE_READ(current_task(), self_exec_id))
			ev->flags |= FLAG_PARENT_REQUEST;
		return copy_request(ev, row);
	}
	ascent.ev = ev;
	ascent.child_ns = ev->start_ns;
	bpf_loop(ANCESTORS, parent_step, &ascent, 0);
	return 0;
}

#endif
