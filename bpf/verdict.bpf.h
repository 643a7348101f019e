/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pure decision: (who, where) -> verdict and rule number.
 *
 * Every dimension of a rule (uid, gid, executable, unit, destination, port) is
 * one lookup that yields a mask of the rule rows this value satisfies; their
 * AND is the set of rows that match whole, and its lowest bit is the first rule
 * (Lakshman & Stiliadis 1998). The cost does not grow with the rules.
 *
 * A missing row means "rows that do not name this dimension", a missing policy
 * means deny: nothing that is absent or zero can allow.
 */
#ifndef GUARD_VERDICT_H
#define GUARD_VERDICT_H

#include "origin.bpf.h"

struct who {
	u32 uid;
	u32 gid;
	struct mask exe;  /* rows its executable satisfies */
	struct mask unit; /* rows its place in the cgroup tree satisfies */
};

struct where {
	u8 address[16];
	u16 port;
	u8 direction;
};

struct decision {
	u32 verdict;
	u32 rule;
	u32 quiet;
};

static __always_inline int is_loopback(const u8 address[16])
{
	const u32 *word = (const u32 *)address;

	if (word[0] || word[1])
		return 0;
	if (word[2] == bpf_htonl(0xffff)) /* ::ffff:127/8, ::ffff:0.0.0.0 */
		return address[12] == 127 || !word[3];
	return !word[2] && (!word[3] || word[3] == bpf_htonl(1)); /* ::, ::1 */
}

/* Connecting to the any-address reaches the host itself (tcp_v4_connect). */
static __always_inline u8 direction_of(const u8 address[16])
{
	if (is_loopback(address) || bpf_map_lookup_elem(&hosts, address))
		return DIRECTION_LOCAL;
	return DIRECTION_OUTBOUND;
}

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

/* Leave only rows whose pattern is not deeper than the path. */
static __always_inline void match_depth(const struct policy *policy, u32 depth,
					struct mask *unit)
{
	const struct mask *ends;
	int w;

	if (depth > UNIT_DEPTH)
		depth = UNIT_DEPTH;
	ends = &policy->unit_ends[depth];
#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		unit->word[w] &= ends->word[w];
}

static __always_inline void fill(struct mask *mask, const struct mask *from)
{
	int w;

#pragma unroll
	for (w = 0; w < MASK_WORDS; w++)
		mask->word[w] = from ? from->word[w] : ~0ULL;
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

/* The rows the caller's cgroup path satisfies: only systemd makes its units. */
__noinline int match_unit(const struct policy *policy, u32 slot,
			  struct mask *unit)
{
	struct cgroup *cgrp = BPF_CORE_READ(current_task(), cgroups, dfl_cgrp);
	struct unit_walk walk = { policy, unit, BPF_CORE_READ(cgrp, kn),
				  BPF_CORE_READ(cgrp, level), slot };

	if (!policy || !unit)
		return 0;
	fill(unit, 0);
	match_depth(policy, walk.level, unit);
	bpf_loop(PATH_STEPS, unit_step, &walk, 0);
	if (walk.level >
	    0) /* deeper than we walk: what is above is not known */
		fill(unit, &policy->any_unit[0]);
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
	if (!file || !only_root_writes(BPF_CORE_READ(file, f_inode)))
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

static __always_inline const struct mask *number_row(u32 slot, u32 dimension,
						     u32 number,
						     const struct mask *any)
{
	struct number_key key = { slot, dimension, number };
	const struct mask *row = bpf_map_lookup_elem(&numbers, &key);

	return row ?: any;
}

/* The number of the lowest set bit; bits is not 0. BPF has no instruction. */
static __always_inline u32 lowest(u64 bits)
{
	u32 n = 0;

	if (!(bits & 0xffffffff))
		n += 32, bits >>= 32;
	if (!(bits & 0xffff))
		n += 16, bits >>= 16;
	if (!(bits & 0xff))
		n += 8, bits >>= 8;
	if (!(bits & 0xf))
		n += 4, bits >>= 4;
	if (!(bits & 3))
		n += 2, bits >>= 2;
	return n + !(bits & 1);
}

__noinline int decide(const struct policy *policy, u32 slot,
		      const struct who *who, const struct where *where,
		      struct decision *decision)
{
	const struct mask *uid, *gid, *to, *port, *direction;
	struct prefix_key key = { 8 * (sizeof(key) - sizeof(u32)), slot, {} };
	const struct rule *rule;
	u64 bits;
	u32 w, i;

	if (!policy || !who || !where || !decision)
		return 0;
	decision->rule = NO_RULE;
	decision->verdict = VERDICT_DENY;
	decision->quiet = 0;
	if (where->direction == DIRECTION_LOCAL) {
		decision->verdict = policy->local_default;
		decision->quiet = policy->local_quiet;
	}
	uid = number_row(slot, DIMENSION_UID, who->uid, &policy->any_uid);
	gid = number_row(slot, DIMENSION_GID, who->gid, &policy->any_gid);
	port = number_row(slot, DIMENSION_PORT, where->port, &policy->any_port);
	__builtin_memcpy(key.address, where->address, 16);
	to = bpf_map_lookup_elem(&prefixes, &key);
	if (!to)
		to = &policy->any_to;
	direction = &policy->direction[where->direction & 1];
	for (w = 0; w < MASK_WORDS; w++) {
		bits = direction->word[w] & uid->word[w] & gid->word[w] &
		       port->word[w] & to->word[w] & who->exe.word[w] &
		       who->unit.word[w];
		if (!bits)
			continue;
		i = (slot & 1) * MAX_ROWS + w * 64 + lowest(bits);
		rule = bpf_map_lookup_elem(&rules, &i);
		decision->verdict = rule ? rule->verdict : VERDICT_DENY;
		decision->rule = rule ? rule->number : NO_RULE;
		decision->quiet = rule ? rule->quiet : 0;
		break;
	}
	return 0;
}

#endif
