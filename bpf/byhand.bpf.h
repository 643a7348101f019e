/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two programs that user space runs by BPF_PROG_TEST_RUN; attached nowhere.
 *
 *  identify  an open file as match_caller_exe() will see it
 *  judge     the decision for a made-up caller
 */
#ifndef GUARD_BYHAND_H
#define GUARD_BYHAND_H

#include "verdict.bpf.h"

struct question question SEC(".data.question");

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
	fill(&who.rows, &policy->any_exe);
	if (question.trusted) {
		match_exe(&question.inode, &who.rows);
		match_exe(&question.name, &who.rows);
	}
	match_depth(policy, depth, &who.rows);
	for (i = 0; i < UNIT_DEPTH && i < depth; i++) {
		__builtin_memset(&unit, 0, sizeof(unit));
		len = read_component(&unit, question.component[i], &last8);
		match_component(policy, &unit, slot, i, len, last8, &who.rows);
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

#endif
