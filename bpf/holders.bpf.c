/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which processes hold which sockets: a record for each descriptor that is one.
 * /proc/PID/fd says the same, but only to who may read every user's files.
 */
#include "kernel.h"

#define S_IFMT 00170000 /* include/uapi/linux/stat.h */
#define S_IFSOCK 0140000

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop

struct holder {
	u64 inode;
	u32 pid;
	u32 pad;
};

SEC("iter/task_file") int holders(struct bpf_iter__task_file *ctx)
{
	struct holder holder = {};
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	if (!task || !file || (file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	holder.inode = file->f_inode->i_ino;
	holder.pid = task->tgid;
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
