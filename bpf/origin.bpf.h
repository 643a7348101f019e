/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who is calling: everything is read from the caller's own task_struct while
 * it is inside connect(), so a process that exits a microsecond later is as
 * fully known as a daemon, and nothing it can write to /proc is believed.
 *
 * capture() fills the origin part of an event. Paths are stored as components,
 * leaf first with a NUL after each, because that is the order in which the
 * kernel's trees are walked; user space turns them round.
 */
#ifndef GUARD_ORIGIN_H
#define GUARD_ORIGIN_H

#include "kernel.h"

#define PATH_STEPS 64 /* components and mounts of a path, levels of a cgroup */

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *kn)
{
	struct kernfs_node___v6_15 *new = (void *)kn;

	if (bpf_core_field_exists(new->__parent))
		return BPF_CORE_READ(new, __parent);
	return BPF_CORE_READ(kn, parent);
}

/*
 * Bytes of text[] in use. The lengths are read from memory each time, never kept
 * in a register: what comes from memory has no history, so the verifier sees
 * one iteration of a walk where it would else see every sum of lengths.
 */
static __always_inline u32 text_used(const volatile struct event *ev)
{
	return ev->exe_len + ev->cwd_len + ev->cgroup_len + ev->args_len +
	       ev->request_len;
}

/* Append one component to the text that *len measures; 0: it does not fit. */
static __always_inline int put_name(struct event *ev, volatile u16 *len,
				    u32 limit, const void *name)
{
	u32 at = text_used(ev), had = *len;
	long n;

	if (at > TEXT_LEN)
		return 0;
	n = bpf_probe_read_kernel_str(&ev->text[at], COMPONENT_LEN, name);
	if (n <= 0 || had + n > limit)
		return 0;
	*len = had + n;
	return 1;
}

struct walk {
	struct event *ev;
	volatile u16 *len;
	u32 limit;
	u32 whole; /* set when the walk came to its end */
	struct dentry *dentry;
	struct mount *mnt;
};

static long path_step(u32 i, void *ctx)
{
	struct walk *walk = ctx;
	struct dentry *up, *dentry = walk->dentry;
	struct mount *above, *mnt = walk->mnt;

	if (dentry != BPF_CORE_READ(mnt, mnt.mnt_root)) {
		if (!put_name(walk->ev, walk->len, walk->limit,
			      BPF_CORE_READ(dentry, d_name.name)))
			return 1;
		up = BPF_CORE_READ(dentry, d_parent);
		if (dentry != up) {
			walk->dentry = up;
			return 0;
		} /* else a file without a folder: a memfd */
	}
	above = BPF_CORE_READ(mnt, mnt_parent);
	if (!above || above == mnt) {
		walk->whole = 1;
		return 1;
	}
	walk->dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
	walk->mnt = above;
	return 0;
}

/*
 * Walk a path up to the root of its mount tree; 0: not the whole of it fits. A
 * descriptor of a user namespace's, where anybody may mount, leads to any path.
 */
static __always_inline int put_path(struct event *ev, volatile u16 *len,
				    u32 limit, struct path *path)
{
	struct walk walk = { ev, len, limit };
	struct vfsmount *vfs = BPF_CORE_READ(path, mnt);
	struct mount *mnt;

	walk.dentry = BPF_CORE_READ(path, dentry);
	mnt = (void *)vfs - bpf_core_field_offset(struct mount, mnt);
	walk.mnt = mnt;
	if (BPF_CORE_READ(mnt, mnt_ns, user_ns, level) >
	    BPF_CORE_READ(current_task(), cred, user_ns, level))
		ev->flags |= FLAG_FOREIGN_MOUNTS;
	bpf_loop(PATH_STEPS, path_step, &walk, 0);
	return walk.whole;
}

/*
 * The executable of a process is the file that execve() opened, which no open() can
 * be taken for, unless PR_SET_MM_MAP put another in its place. In a user namespace
 * binfmt_misc gives away what execve() opened there; nobody comes back from it.
 */
static __always_inline int was_executed(struct file *exe)
{
	return BPF_CORE_READ(exe, f_flags) & FMODE_EXEC &&
	       BPF_CORE_READ(exe, f_cred, user_ns, level) <=
		       BPF_CORE_READ(current_task(), cred, user_ns, level);
}

static __noinline int put_exe(struct event *ev, struct file *exe)
{
	struct inode *inode = BPF_CORE_READ(exe, f_inode);

	ev->exe_inode = BPF_CORE_READ(inode, i_ino);
	ev->exe_device = BPF_CORE_READ(inode, i_sb, s_dev);
	ev->exe_generation = BPF_CORE_READ(inode, i_generation);
	ev->exe_nlink = BPF_CORE_READ(inode, i_nlink);
	if (!was_executed(exe))
		ev->flags |= FLAG_EXE_SET;
	if (!put_path(ev, &ev->exe_len, EXE_LEN, &exe->f_path))
		ev->flags |= FLAG_EXE_CUT;
	return 0;
}

static __noinline int put_cwd(struct event *ev, struct fs_struct *fs)
{
	if (!put_path(ev, &ev->cwd_len, CWD_LEN, &fs->pwd))
		ev->flags |= FLAG_CWD_CUT;
	if (!BPF_CORE_READ(fs, pwd.dentry, d_inode, i_nlink))
		ev->flags |= FLAG_CWD_GONE;
	return 0;
}

struct climb {
	struct event *ev;
	struct kernfs_node *kn;
	int level; /* 0 is the root, which has no name */
};

static long cgroup_step(u32 i, void *ctx)
{
	struct climb *climb = ctx;
	struct kernfs_node *kn = climb->kn;

	if (climb->level <= 0 || !put_name(climb->ev, &climb->ev->cgroup_len,
					   CGROUP_LEN, BPF_CORE_READ(kn, name)))
		return 1;
	climb->kn = kernfs_parent(kn);
	climb->level--;
	return 0;
}

static __noinline int put_cgroup(struct event *ev, struct cgroup *cgrp)
{
	struct kernfs_node *kn = BPF_CORE_READ(cgrp, kn);
	struct climb climb = { ev, kn, BPF_CORE_READ(cgrp, level) };

	ev->cgroup_id = BPF_CORE_READ(kn, id);
	bpf_loop(PATH_STEPS, cgroup_step, &climb, 0);
	if (climb.level > 0)
		ev->flags |= FLAG_CGROUP_CUT;
	return 0;
}

static __noinline int put_args(struct event *ev, struct mm_struct *mm)
{
	unsigned long start = BPF_CORE_READ(mm, arg_start);
	unsigned long len = BPF_CORE_READ(mm, arg_end) - start;
	u32 at = text_used(ev);

	if (len > ARGS_LEN) {
		ev->flags |= FLAG_ARGS_CUT;
		len = ARGS_LEN;
	}
	if (at > EXE_LEN + CWD_LEN + CGROUP_LEN)
		return 0;
	if (bpf_probe_read_user(&ev->text[at], len, (void *)start))
		ev->flags |= FLAG_NO_ARGS;
	else
		ev->args_len = len;
	return 0;
}

struct descent {
	struct event *ev;
	struct task_struct *task;
};

static long ancestor_step(u32 i, void *ctx)
{
	struct descent *descent = ctx;
	struct task_struct *parent, *task = descent->task;
	struct ancestor *a;

	parent = BPF_CORE_READ(task, real_parent, group_leader);
	if (!parent || !BPF_CORE_READ(parent, tgid))
		return 1;
	if (i >= ANCESTORS) {
		descent->ev->flags |= FLAG_ANCESTORS_CUT;
		return 1;
	}
	a = &descent->ev->ancestor[i];
	a->pid = BPF_CORE_READ(parent, tgid);
	a->uid = BPF_CORE_READ(parent, cred, euid.val);
	a->start_ns = BPF_CORE_READ(parent, start_boottime);
	BPF_CORE_READ_STR_INTO(&a->comm, parent, comm);
	descent->ev->ancestors = i + 1;
	descent->task = parent;
	return 0;
}

static __noinline int put_ancestors(struct event *ev, struct task_struct *task)
{
	struct descent descent = { ev, task };

	bpf_loop(ANCESTORS + 1, ancestor_step, &descent, 0);
	return 0;
}

static __always_inline void put_numbers(struct event *ev,
					struct task_struct *task)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);

	ev->pid = BPF_CORE_READ(task, tgid);
	ev->tid = BPF_CORE_READ(task, pid);
	ev->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	ev->uid = BPF_CORE_READ(cred, euid.val);
	ev->gid = BPF_CORE_READ(cred, egid.val);
	ev->real_uid = BPF_CORE_READ(cred, uid.val);
	ev->real_gid = BPF_CORE_READ(cred, gid.val);
	ev->loginuid = ev->session = ~0U;
	if (bpf_core_field_exists(task->loginuid)) /* CONFIG_AUDIT */
		ev->loginuid = BPF_CORE_READ(task, loginuid.val);
	if (bpf_core_field_exists(task->sessionid))
		ev->session = BPF_CORE_READ(task, sessionid);
	ev->netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	bpf_get_current_comm(ev->comm, sizeof(ev->comm));
}

/* Everything about the caller; the event's texts are empty before. */
__noinline int capture(struct event *ev)
{
	struct task_struct *task = current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = mm ? BPF_CORE_READ(mm, exe_file) : 0;
	struct fs_struct *fs = BPF_CORE_READ(task, fs);

	if (!ev)
		return 0;
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		ev->flags |= FLAG_KTHREAD;
	if (BPF_CORE_READ(task, cred, user_ns, level))
		ev->flags |= FLAG_FOREIGN_USERNS;
	put_numbers(ev, task);
	put_ancestors(ev, task);
	if (exe)
		put_exe(ev, exe);
	else
		ev->flags |= FLAG_NO_EXE;
	if (fs)
		put_cwd(ev, fs);
	put_cgroup(ev, BPF_CORE_READ(task, cgroups, dfl_cgrp));
	if (mm)
		put_args(ev, mm);
	return 0;
}

/* Bytes of an event that are in use: the texts end where they end. */
static __always_inline u32 event_size(const struct event *ev)
{
	u32 text = text_used(ev);

	if (text > TEXT_LEN)
		text = TEXT_LEN;
	return __builtin_offsetof(struct event, text) + text;
}

#endif
