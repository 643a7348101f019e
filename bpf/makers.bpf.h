/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who made a socket that sends packets of its own making. Netfilter tells the second
 * lock of such a packet, and of its sender only a uid: who made the sockets that it
 * can have come from is kept here, from then until some time after their end.
 */
#ifndef GUARD_MAKERS_H
#define GUARD_MAKERS_H

#include "emit.bpf.h"

static __always_inline u64 socket_inode(struct socket *sock)
{
	struct inode *inode;

	inode = (void *)sock +
		bpf_core_field_offset(struct socket_alloc, vfs_inode);
	return BPF_CORE_READ(inode, i_ino);
}

/* The caller makes a socket: its cookie, and the network namespace it is in. */
static __noinline struct maker *new_maker(u64 cookie, u64 netns)
{
	const struct cred *cred = BPF_CORE_READ(current_task(), cred);
	struct maker *row;

	if (bpf_map_update_elem(&makers, &cookie, &closed.blank, BPF_NOEXIST)) {
		count(COUNT_NO_MAKER);
		return 0;
	}
	row = bpf_map_lookup_elem(&makers, &cookie);
	if (!row)
		return 0;
	row->fsuid = BPF_CORE_READ(cred, fsuid.val);
	row->fsgid = BPF_CORE_READ(cred, fsgid.val);
	row->event.abi = GUARD_ABI;
	row->event.kind = EVENT_MAKER;
	row->event.rule = NO_RULE;
	row->event.time_ns = bpf_ktime_get_boot_ns();
	row->event.netns_cookie = netns;
	if (netns != control.home_netns)
		row->event.flags |= FLAG_FOREIGN_NETNS;
	capture(&row->event);
	return row;
}

/* The socket itself; its family last, before which nobody reads the row. */
static __always_inline void socket_made(struct maker *row, struct socket *sock,
					u32 family, u32 protocol)
{
	row->protocol = protocol;
	row->socket = socket_inode(sock);
	barrier();
	row->family = family;
}

/* It was closed: kept until so many others were. */
static __noinline int maker_closed(u64 cookie)
{
	struct maker *row = bpf_map_lookup_elem(&makers, &cookie);
	u64 oldest, at;

	if (!row) /* made before the guard, or there was no room */
		return 0;
	row->event.ended_ns = bpf_ktime_get_boot_ns();
	at = __sync_fetch_and_add(&closed.count, 1) % CLOSED_KEPT;
	/* in one step: another CPU may have come round to the same place */
	oldest = __sync_lock_test_and_set(&closed.cookie[at], cookie);
	if (oldest)
		bpf_map_delete_elem(&makers, &oldest);
	return 0;
}

#endif
