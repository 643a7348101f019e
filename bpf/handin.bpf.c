/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who handed a message to sendmail(1): there is no connection to ask about, so the
 * files are followed that the message is in. An object of its own, which only guardd
 * holds: the guard does not need it.
 *
 *  handin_exec    what a process was started as is kept with it, for its life, and
 *                 the request of PHP's that started it, as bpf/php.bpf.c tells of it
 *  handin_file    Postfix has written a queue file and is about to close it: the
 *                 beginning of mail_stream_finish() and of mail_stream_cleanup()
 *  handin_rename  instead, where the kernel has no such probe for who is not root:
 *                 it makes a queue file, and gives it its name by rename()
 *
 * postdrop(1) makes a file in maildrop; pickup(8) opens it, and while it has it open
 * has cleanup(8) make the queue file. So the first file leads to who
 * called, and the second to the first: by what is open at that moment in the process
 * at the other end of cleanup's connection. Nothing is compared by its time.
 *
 * Not the end of a function: its probe is a system call from Linux 6.11 on, which a
 * seccomp filter that postdrop has from its caller would take for a crime.
 */
#include "php.bpf.h"
#include "queuefiles.bpf.h"
#include "request.bpf.h"
#include <bpf/bpf_tracing.h>

#define CHAIN 8	  /* processes from postdrop upwards */
#define ID_LEN 64 /* of a queue id and its NUL */

enum what {
	WHAT_DROPPED =
		1, /* postdrop has a file; `by` is a process of its chain */
	WHAT_QUEUED = 2, /* and cleanup made queue_id of it */
};

struct handin {
	u32 what;
	u32 step;   /* DROPPED: 0 postdrop, 1 its parent, ... */
	u32 whole;  /* `by` has texts: it was started while we looked */
	u32 device; /* of the file in maildrop */
	u64 inode;
	u64 time_ns;
	char name[ID_LEN]; /* of that file */
	char queue_id[ID_LEN];
	struct event by;
};

/* What each process was started as: 3.4 KB for each, freed at its end. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct handin);
} started SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} handins SEC(".maps");

/* Written by user space before the first attach, but for `lost`. */
struct {
	u64 lost;  /* samples for which the ring was full */
	u32 owner; /* uid of cleanup and pickup: mail_owner of postconf(5) */
	u32 group; /* gid of postdrop: setgid_group; 0: nothing is told */
	u64 asked; /* how often handin_rename ran: the kernel does call it */
} handin SEC(".data.handin");

static __always_inline void say(const struct handin *row, u32 size)
{
	if (bpf_ringbuf_output(&handins, (void *)row, size, 0))
		__sync_fetch_and_add(&handin.lost, 1);
}

static __noinline int begin(struct handin *row)
{
	if (!row)
		return 0;
	__builtin_memset(&row->by, 0, __builtin_offsetof(struct event, text));
	row->by.abi = GUARD_ABI;
	row->by.kind = EVENT_STARTED;
	row->by.rule = NO_RULE;
	row->by.time_ns = bpf_ktime_get_boot_ns();
	capture(&row->by);
	put_request(&row->by); /* of now: it may be over before postdrop runs */
	row->whole = 1;
	return 0;
}

/* All that any other exec() pays. */
SEC("tp_btf/sched_process_exec") int handin_exec(void *ctx)
{
	struct handin *row =
		bpf_task_storage_get(&started, bpf_get_current_task_btf(), 0,
				     BPF_LOCAL_STORAGE_GET_F_CREATE);

	begin(row); /* none: no memory; /proc is asked then */
	return 0;
}

static __always_inline void put_file(struct handin *row, struct inode *inode,
				     const void *name)
{
	row->time_ns = bpf_ktime_get_boot_ns();
	row->inode = BPF_CORE_READ(inode, i_ino);
	row->device = BPF_CORE_READ(inode, i_sb, s_dev);
	bpf_probe_read_kernel_str(row->name, ID_LEN, name);
}

/* cleanup has the queue file: which one in maildrop has its client open? */
static __always_inline void queued(const void *queue_id)
{
	struct search search = { 0, MAILDROP };
	char head[__builtin_offsetof(struct handin, by)] = {};
	struct handin *row = (void *)head;
	struct task_struct *peer;
	struct dentry *dentry;

	bpf_loop(FILES, peer_step, &search, 0);
	dentry = search.found;
	peer = search.task;
	if (!dentry || BPF_CORE_READ(peer, cred, euid.val) != handin.owner)
		return; /* by SMTP, or a bounce */
	put_file(row, BPF_CORE_READ(dentry, d_inode),
		 BPF_CORE_READ(dentry, d_name.name));
	row->what = WHAT_QUEUED;
	bpf_probe_read_kernel_str(row->queue_id, ID_LEN, queue_id);
	say(row, sizeof(head));
}

/* Of a process that was started before, or only forked: /proc has the rest. */
static __always_inline void put_who(struct event *ev, struct task_struct *task)
{
	__builtin_memset(ev, 0, __builtin_offsetof(struct event, text));
	ev->abi = GUARD_ABI;
	ev->kind = EVENT_STARTED;
	ev->rule = NO_RULE;
	put_numbers(ev, task);
	BPF_CORE_READ_STR_INTO(&ev->comm, task, comm);
}

static __always_inline u32 handin_size(const struct handin *row)
{
	return __builtin_offsetof(struct handin, by) + event_size(&row->by);
}

/* postdrop has its file: tell of it once for each process that led to it. */
static __always_inline void dropped(struct task_struct *task,
				    struct inode *inode, const void *name)
{
	struct handin *theirs, *row;

	row = bpf_task_storage_get(&started, task, 0,
				   BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!row)
		return;
	if (!row->whole || row->what) /* or a second file: `by` was sent away */
		begin(row);
	put_file(row, inode, name);
	row->what = WHAT_DROPPED;
	/* postdrop's own row is what the others are sent in, it has but one thread */
	for (u32 step = 0; step < CHAIN; step++) {
		row->step = step;
		say(row, handin_size(row));
		task = task->real_parent;
		if (!task)
			return;
		task = task->group_leader;
		if (!task || task->tgid <= 1)
			return;
		theirs = bpf_task_storage_get(&started, task, 0, 0);
		row->whole = theirs ? theirs->whole : 0;
		if (row->whole)
			bpf_probe_read_kernel(&row->by, sizeof(row->by),
					      &theirs->by);
		else
			put_who(&row->by, task);
	}
}

/* Is the caller postdrop, or one of Postfix's own? Anybody may load its library. */
static __always_inline u64 folder_of(void)
{
	const struct cred *cred = BPF_CORE_READ(current_task(), cred);

	if (!handin.group)
		return 0;
	if (BPF_CORE_READ(cred, egid.val) == handin.group)
		return MAILDROP;
	return BPF_CORE_READ(cred, euid.val) == handin.owner ? INCOMING : 0;
}

static __always_inline void made(u64 folder, struct inode *inode,
				 const void *name)
{
	if (folder == MAILDROP)
		dropped(bpf_get_current_task_btf(), inode, name);
	else
		queued(name);
}

/* The caller's open file in a folder of that name, or none. */
static __always_inline struct dentry *open_in(u64 folder)
{
	struct search mine = { current_task(), folder };

	bpf_loop(FILES, file_step, &mine, 0);
	return mine.found;
}

SEC("uprobe") int handin_file(void *ctx)
{
	u64 folder = folder_of();
	struct dentry *dentry;

	if (!folder)
		return 0;
	dentry = open_in(folder);
	if (!dentry &&
	    folder == INCOMING) /* it may have been put there since */
		dentry = open_in(HOLD);
	if (dentry)
		made(folder, BPF_CORE_READ(dentry, d_inode),
		     BPF_CORE_READ(dentry, d_name.name));
	return 0;
}

SEC("lsm/inode_rename")
int BPF_PROG(handin_rename, struct inode *old_dir, struct dentry *old,
	     struct inode *new_dir, struct dentry *new)
{
	u64 folder = folder_of();

	__sync_fetch_and_add(&handin.asked, 1);
	if (folder && is_in(new, folder))
		made(folder, BPF_CORE_READ(old, d_inode),
		     BPF_CORE_READ(new, d_name.name));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
