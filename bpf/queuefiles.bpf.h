/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which file of Postfix's queue the caller has open, or a process that the caller is
 * connected to by a socket: files in a folder of that name, whatever leads to it.
 */
#ifndef GUARD_QUEUEFILES_H
#define GUARD_QUEUEFILES_H

#include "origin.bpf.h"

#define S_IFMT 00170000 /* include/uapi/linux/stat.h */
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define PIDTYPE_TGID 1 /* enum pid_type, include/linux/pid_types.h */

#define FILES 64      /* descriptors that are looked at; Postfix has some 20 */
#define HASH_LEVELS 3 /* hash_queue_depth of postconf(5), and the queue */

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define in_memory(x) __builtin_bswap64(x)
#else
#define in_memory(x) (x)
#endif
/* names of queues, of at most eight letters each, without the NUL */
#define MAILDROP in_memory(0x6d61696c64726f70ULL)
#define INCOMING in_memory(0x696e636f6d696e67ULL)
#define HOLD in_memory(0x686f6c6400000000ULL)

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct pid {
	struct hlist_head tasks[4];
};

struct task_struct___linked {
	struct hlist_node pid_links[4];
};

struct sock___peer {
	struct pid *sk_peer_pid;
};

#pragma clang attribute pop

struct search {
	struct task_struct *task;
	u64 folder;
	struct dentry *found;
};

static __always_inline struct file *file_of(struct task_struct *task, u32 fd)
{
	struct files_struct *files = BPF_CORE_READ(task, files);
	struct file *file = 0;

	if (files && fd < BPF_CORE_READ(files, fdt, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file),
				      BPF_CORE_READ(files, fdt, fd) + fd);
	return file;
}

static __always_inline u32 kind_of(struct file *file)
{
	return file ? BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT : 0;
}

static __always_inline int is_in(struct dentry *dentry, u64 folder)
{
	char name[16];

	for (int i = 0; i < HASH_LEVELS; i++) {
		dentry = BPF_CORE_READ(dentry, d_parent);
		__builtin_memset(name, 0, sizeof(name));
		bpf_probe_read_kernel_str(name, sizeof(name),
					  BPF_CORE_READ(dentry, d_name.name));
		if (*(u64 *)name == folder && !name[8])
			return 1;
	}
	return 0;
}

static long file_step(u32 fd, void *ctx)
{
	struct search *search = ctx;
	struct file *file = file_of(search->task, fd);
	struct dentry *dentry;

	if (kind_of(file) != S_IFREG)
		return 0;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	if (!is_in(dentry, search->folder))
		return 0;
	search->found = dentry;
	return 1;
}

/* The process at the other end of a socket: who it was when they were connected. */
static __always_inline struct task_struct *peer_of(struct file *file)
{
	struct socket *sock = BPF_CORE_READ(file, private_data);
	struct sock___peer *sk = (void *)BPF_CORE_READ(sock, sk);
	struct pid *pid = BPF_CORE_READ(sk, sk_peer_pid);
	void *first;

	if (!pid)
		return 0;
	first = BPF_CORE_READ(pid, tasks[PIDTYPE_TGID].first);
	if (!first)
		return 0;
	return first - bpf_core_field_offset(struct task_struct___linked,
					     pid_links[PIDTYPE_TGID]);
}

static long peer_step(u32 fd, void *ctx)
{
	struct search *search = ctx;
	struct file *file = file_of(current_task(), fd);

	if (kind_of(file) != S_IFSOCK)
		return 0;
	search->task = peer_of(file);
	if (!search->task)
		return 0;
	bpf_loop(FILES, file_step, search, 0);
	return search->found ? 1 : 0;
}

#endif
