// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The lock beside the guard, an object of its own: many kernels refuse LSM
 * programs, and the guard does not need it. It shares the guard's maps.
 *
 *  lsm_connect   connect() that no connect program will see is judged
 *  lsm_sendmsg   likewise a connection that MSG_FASTOPEN makes
 *  lsm_create    remember who made a packet socket: no cgroup program is asked
 *  lsm_free      and its end
 *  lsm_bpf       our maps and links are ours alone to change
 *  lsm_mmap      likewise through memory
 *  lsm_unlink, lsm_rmdir, lsm_rename   our pins stay
 *  lsm_umount    and what they are on
 *
 * Run by hand, attached nowhere:
 *
 *  lsm_enrol     the caller is one of our programs, which is recorded
 *  lsm_remember  an open file of the caller's is one of our things
 */
#include "makers.bpf.h"
#include "second.bpf.h"
#include <bpf/bpf_tracing.h>

#define MSG_FASTOPEN 0x20000000 /* include/linux/socket.h */
#define PROT_WRITE 0x2		/* include/uapi/asm-generic/mman-common.h */

char LICENSE[] SEC("license") = "GPL";

SEC("lsm/socket_connect")
int BPF_PROG(lsm_connect, struct socket *sock, void *address)
{
	return on_unseen(sock, address);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(lsm_sendmsg, struct socket *sock, struct msghdr *msg)
{
	if (!(BPF_CORE_READ(msg, msg_flags) & MSG_FASTOPEN))
		return 0;
	return on_unseen(sock, BPF_CORE_READ(msg, msg_name));
}

SEC("lsm/socket_post_create")
int BPF_PROG(lsm_create, struct socket *sock, int family, int type,
	     int protocol, int kern)
{
	struct sock *sk;
	struct maker *row;

	if (family != AF_PACKET || kern)
		return 0;
	sk = sock->sk;
	if (!sk)
		return 0;
	row = new_maker(bpf_get_socket_cookie(sk),
			BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie));
	if (row)
		socket_made(row, sock, AF_PACKET, bpf_ntohs(protocol));
	return 0;
}

SEC("lsm/sk_free_security") int BPF_PROG(lsm_free, struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_PACKET)
		maker_closed(BPF_CORE_READ(sk, __sk_common.skc_cookie.counter));
	return 0;
}

static __always_inline int reach(union bpf_attr *attr, u32 offset, u32 thing,
				 u32 act)
{
	struct file *file;
	u32 fd;

	if (bpf_probe_read_kernel(&fd, sizeof(fd), (void *)attr + offset))
		return 0;
	file = opened(fd);
	if (!file || !is_ours(BPF_CORE_READ(file, private_data), thing))
		return 0;
	return touch(act);
}

SEC("lsm/bpf") int BPF_PROG(lsm_bpf, int cmd, union bpf_attr *attr)
{
	switch (cmd) {
	case BPF_MAP_UPDATE_ELEM:
	case BPF_MAP_DELETE_ELEM:
	case BPF_MAP_LOOKUP_AND_DELETE_ELEM:
	case BPF_MAP_FREEZE:
		return reach(attr, __builtin_offsetof(union bpf_attr, map_fd),
			     THING_MAP, ACT_MAP);
	case BPF_MAP_LOOKUP_AND_DELETE_BATCH:
	case BPF_MAP_UPDATE_BATCH:
	case BPF_MAP_DELETE_BATCH:
		return reach(attr,
			     __builtin_offsetof(union bpf_attr, batch.map_fd),
			     THING_MAP, ACT_MAP);
	case BPF_LINK_UPDATE:
		return reach(attr,
			     __builtin_offsetof(union bpf_attr,
						link_update.link_fd),
			     THING_LINK, ACT_LINK);
	case BPF_LINK_DETACH:
		return reach(attr,
			     __builtin_offsetof(union bpf_attr,
						link_detach.link_fd),
			     THING_LINK, ACT_LINK);
	case BPF_PROG_TEST_RUN:
		__sync_fetch_and_add(&lsm.asked, 1);
	}
	return 0;
}

SEC("lsm/mmap_file")
int BPF_PROG(lsm_mmap, struct file *file, unsigned long wanted,
	     unsigned long prot)
{
	if (!file || !(prot & PROT_WRITE) ||
	    !is_ours(BPF_CORE_READ(file, private_data), THING_MAP))
		return 0;
	return touch(ACT_MAP);
}

SEC("lsm/inode_unlink") int BPF_PROG(lsm_unlink, struct inode *dir)
{
	return is_ours(dir, THING_FOLDER) ? touch(ACT_PIN) : 0;
}

SEC("lsm/inode_rmdir")
int BPF_PROG(lsm_rmdir, struct inode *dir, struct dentry *dentry)
{
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);

	return is_ours(inode, THING_FOLDER) ? touch(ACT_PIN) : 0;
}

SEC("lsm/inode_rename")
int BPF_PROG(lsm_rename, struct inode *old_dir, struct dentry *old,
	     struct inode *new_dir)
{
	struct inode *inode = BPF_CORE_READ(old, d_inode);

	if (!is_ours(old_dir, THING_FOLDER) &&
	    !is_ours(new_dir, THING_FOLDER) && !is_ours(inode, THING_FOLDER))
		return 0;
	return touch(ACT_PIN);
}

/* In the mounts of the host; who has mounts of his own takes nothing away. */
SEC("lsm/sb_umount") int BPF_PROG(lsm_umount, struct vfsmount *mnt)
{
	u64 mounts = BPF_CORE_READ(current_task(), nsproxy, mnt_ns, ns.inum);

	if (!is_ours(BPF_CORE_READ(mnt, mnt_sb), THING_FILESYSTEM) ||
	    !is_ours((void *)mounts, THING_MOUNTS))
		return 0;
	return touch(ACT_UMOUNT);
}

SEC("raw_tp") int lsm_enrol(void *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u64 start = born();

	if (protection() != PROTECTION_OFF && !is_keeper())
		tell(EVENT_KEEPER, ACT_NONE, VERDICT_ALLOW);
	return bpf_map_update_elem(&keepers, &pid, &start, BPF_ANY);
}

/* The argument of lsm_remember. */
struct memory {
	int fd;
	u32 thing;
	u64 address; /* answer; 0: no such file is open */
};

SEC("syscall") int lsm_remember(struct memory *ctx)
{
	struct file *file = opened(ctx->fd);
	struct inode *inode;
	const void *object;
	u32 thing = ctx->thing;
	u64 key;

	ctx->address = 0;
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
	if (thing == THING_FOLDER)
		object = inode;
	else if (thing == THING_FILESYSTEM)
		object = BPF_CORE_READ(inode, i_sb);
	else
		object = BPF_CORE_READ(file, private_data);
	key = (u64)object;
	if (!bpf_map_update_elem(&ours, &key, &thing, BPF_ANY))
		ctx->address = key;
	return 0;
}
