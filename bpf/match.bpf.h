/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which rule rows the caller's executable and its place in the cgroup tree
 * satisfy. Both are read from the kernel's own trees, where a process cannot
 * put itself under another's name.
 */
#ifndef GUARD_MATCH_H
#define GUARD_MATCH_H

#include "maps.bpf.h"
#include "request.bpf.h"

struct who {
	u32 uid;
	u32 gid;
	struct mask rows; /* that its executable and cgroup satisfy */
};

/* Six or eight characters as the number they are in memory, last one on top. */
#define LAST6(a, b, c, d, e, f)                                                \
	((u64)(a) << 16 | (u64)(b) << 24 | (u64)(c) << 32 | (u64)(d) << 40 |   \
	 (u64)(e) << 48 | (u64)(f) << 56)
#define LAST8(a, b, c, d, e, f, g, h)                                          \
	((u64)(a) | (u64)(b) << 8 | LAST6(c, d, e, f, g, h))

static __always_inline u32 unit_tail(u64 last8)
{
	if (last8 == LAST8('.', 's', 'e', 'r', 'v', 'i', 'c', 'e'))
		return TAIL_SERVICE;
	if ((last8 & ~0xffffULL) == LAST6('.', 's', 'l', 'i', 'c', 'e'))
		return TAIL_SLICE;
	if ((last8 & ~0xffffULL) == LAST6('.', 's', 'c', 'o', 'p', 'e'))
		return TAIL_SCOPE;
	return TAIL_OTHER;
}

/*
 * Read a component's name into a key. Gives its length with the NUL, 0 for a
 * name too long for any rule, and in *last8 what it ends in.
 */
static __always_inline u32 read_component(struct unit_key *key,
					  const char *name, u64 *last8)
{
	long n = bpf_probe_read_kernel_str(key->name, NAME_LEN, name);
	char end = 0;

	*last8 = 0;
	if (n == NAME_LEN)
		bpf_probe_read_kernel(&end, 1, name + n - 1);
	if (n < 0 || end)
		return 0;
	if (n > 8)
		bpf_probe_read_kernel(last8, 8, name + n - 9);
	else if (n > 6)
		bpf_probe_read_kernel((char *)last8 + 2, 6, name + n - 7);
	return n;
}

/* Narrow *unit by one component of a cgroup path, see read_component(). */
static __always_inline void match_component(const struct policy *policy,
					    struct unit_key *key, u32 slot,
					    u32 depth, u32 len, u64 last8,
					    struct mask *unit)
{
	const struct mask *row = 0, *tail;
	int w;

	if (depth >= UNIT_DEPTH)
		return;
	key->prefixlen = 8 * (sizeof(*key) - sizeof(key->prefixlen));
	key->slot_depth = slot << 16 | depth;
	if (len)
		row = bpf_map_lookup_elem(&units, key);
	if (!row)
		row = &policy->any_unit[depth];
	tail = &policy->unit_tail[depth][unit_tail(last8) % UNIT_TAILS];
#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		unit->word[w] &= row->word[w] & tail->word[w];
}

static __always_inline void narrow(struct mask *mask, const struct mask *by)
{
	int w;

#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		mask->word[w] &= by->word[w];
}

/* Leave only rows whose pattern is not deeper than the path. */
static __always_inline void match_depth(const struct policy *policy, u32 depth,
					struct mask *unit)
{
	/* compare what is used: Linux 6.1 learns nothing about 32-bit copies */
	barrier_var(depth);
	if (depth > UNIT_DEPTH)
		depth = UNIT_DEPTH;
	narrow(unit, &policy->unit_ends[depth]);
}

static __always_inline void fill(struct mask *mask, const struct mask *from)
{
	int w;

#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		mask->word[w] = from->word[w];
}

struct unit_walk {
	const struct policy *policy;
	struct mask *unit;
	struct kernfs_node *kn;
	int level;
	u32 slot;
};

static long unit_step(u32 i, void *ctx)
{
	struct unit_walk *walk = ctx;
	struct kernfs_node *kn = walk->kn;
	struct unit_key key = {};
	u64 last8;
	u32 len;

	if (walk->level <= 0)
		return 1;
	if (walk->level <= UNIT_DEPTH) {
		len = read_component(&key, BPF_CORE_READ(kn, name), &last8);
		match_component(walk->policy, &key, walk->slot, walk->level - 1,
				len, last8, walk->unit);
	}
	walk->kn = kernfs_parent(kn);
	walk->level--;
	return 0;
}

/*
 * Leave only rows the caller's cgroup path satisfies: only systemd makes its
 * units. Deeper than we walk what is above is not known: rows without a unit.
 */
__noinline int match_unit(const struct policy *policy, u32 slot,
			  struct mask *unit)
{
	struct cgroup *cgrp = BPF_CORE_READ(current_task(), cgroups, dfl_cgrp);
	struct unit_walk walk = { policy, unit, BPF_CORE_READ(cgrp, kn),
				  BPF_CORE_READ(cgrp, level), slot };

	if (!policy || !unit)
		return 0;
	match_depth(policy, walk.level, unit);
	bpf_loop(PATH_STEPS, unit_step, &walk, 0);
	if (walk.level > 0)
		narrow(unit, &policy->any_unit[0]);
	return 0;
}

/*
 * An executable is known by its inode, or by its name in a directory. User space
 * makes both keys from what only root can write; the caller's file and folder
 * are checked for the same again, so a reused inode number is no attacker's.
 */
static __always_inline int only_root_writes(struct inode *inode)
{
	return !BPF_CORE_READ(inode, i_uid.val) &&
	       !(BPF_CORE_READ(inode, i_mode) & 022);
}

static __always_inline void key_by_inode(struct exe_key *key, u32 slot,
					 struct inode *inode)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->slot = slot;
	key->inode = BPF_CORE_READ(inode, i_ino);
	key->device = BPF_CORE_READ(inode, i_sb, s_dev);
	key->generation = BPF_CORE_READ(inode, i_generation);
}

/* A name longer than fits is cut, and no key is made of one. */
static __always_inline void key_by_name(struct exe_key *key, u32 slot,
					struct inode *dir,
					struct dentry *dentry)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->slot = slot;
	key->inode = BPF_CORE_READ(dir, i_ino);
	key->device = BPF_CORE_READ(dir, i_sb, s_dev);
	bpf_probe_read_kernel_str(key->name, NAME_LEN,
				  BPF_CORE_READ(dentry, d_name.name));
}

static __always_inline void match_exe(const struct exe_key *key,
				      struct mask *exe)
{
	const struct mask *row = bpf_map_lookup_elem(&exes, key);
	int w;

	if (!row)
		return;
#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		exe->word[w] |= row->word[w];
}

/*
 * In a user namespace of its own anybody may say which file is its executable
 * (PR_SET_MM_MAP wants no more than that namespace's CAP_CHECKPOINT_RESTORE), also
 * for a process outside that shares its memory. So no rule that names one matches
 * there, nor where the file was not opened to be executed.
 */
__noinline int match_caller_exe(const struct policy *policy, u32 slot,
				struct mask *exe)
{
	struct mm_struct *mm = BPF_CORE_READ(current_task(), mm);
	struct file *file = mm ? BPF_CORE_READ(mm, exe_file) : 0;
	struct dentry *dentry;
	struct exe_key key;
	struct inode *dir;

	if (!policy || !exe)
		return 0;
	fill(exe, &policy->any_exe);
	if (!file || !was_executed(file) ||
	    !only_root_writes(BPF_CORE_READ(file, f_inode)) ||
	    BPF_CORE_READ(current_task(), cred, user_ns, level))
		return 0;
	key_by_inode(&key, slot, BPF_CORE_READ(file, f_inode));
	match_exe(&key, exe);
	dentry = BPF_CORE_READ(file, f_path.dentry);
	dir = BPF_CORE_READ(dentry, d_parent, d_inode);
	if (!only_root_writes(dir))
		return 0;
	key_by_name(&key, slot, dir, dentry);
	match_exe(&key, exe);
	return 0;
}

#endif
