/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few kernel structures the guard reads, with only the fields it reads.
 * CO-RE finds their real offsets in the running kernel's BTF when the object
 * is loaded, so no generated vmlinux.h is needed to compile it and one object
 * fits all kernels.
 */
#ifndef GUARD_KERNEL_H
#define GUARD_KERNEL_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define FMODE_EXEC 0x20	      /* include/linux/fs.h: opened to be executed */
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
#define AF_INET 2
#define AF_PACKET 17
#define SOCK_STREAM 1
#define SOCK_RAW 3
#define ECONNREFUSED 111
#define ETIMEDOUT 110
#define EBADF 9
#define SOL_SOCKET 1 /* include/uapi/asm-generic/socket.h */
#define SO_MARK 36
#define SOCK_DONE 1 /* enum sock_flags, include/net/sock.h: a FIN has come */

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

typedef struct {
	u32 val;
} kuid_t;

struct qstr {
	const unsigned char *name;
};

struct super_block {
	u32 s_dev;
};

struct inode {
	u16 i_mode;
	kuid_t i_uid;
	struct super_block *i_sb;
	unsigned long i_ino;
	u32 i_nlink;
	u32 i_generation;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

struct user_namespace {
	int level; /* 0: the initial one */
};

struct ns_common {
	unsigned int inum;
};

struct mnt_namespace {
	struct ns_common ns;
	struct user_namespace *user_ns;
};

struct mount {
	struct mnt_namespace *mnt_ns;
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_flags;
	const struct cred *f_cred; /* of who opened it */
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct fs_struct {
	struct path pwd;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
	struct file *exe_file;
};

struct cred {
	struct user_namespace *user_ns;
	kuid_t uid;
	kuid_t gid; /* a kgid_t: one number as well */
	kuid_t euid;
	kuid_t egid;
	kuid_t fsuid;
	kuid_t fsgid;
};

struct kernfs_node {
	struct kernfs_node *parent;
	const char *name;
	u64 id;
};

/* From 6.15 on; goes when no kernel below is supported any more. */
struct kernfs_node___v6_15 {
	struct kernfs_node *__parent;
};

struct bpf_prog;

struct bpf_prog_array_item {
	struct bpf_prog *prog;
};

struct bpf_prog_array {
	struct bpf_prog_array_item items[1]; /* up to one without prog */
};

enum cgroup_bpf_attach_type {
	CGROUP_INET4_CONNECT = 1, /* the kernel's own numbers are asked for */
	CGROUP_INET6_CONNECT = 2,
};

struct cgroup_bpf {
	struct bpf_prog_array *effective[1];
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup_bpf bpf;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct net {
	struct ns_common ns;
	u64 net_cookie;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
};

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	u64 start_boottime;
	u64 self_exec_id;
	const struct cred *cred;
	char comm[COMM_LEN];
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	kuid_t loginuid;
	unsigned int sessionid;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	long counter;
} atomic64_t;

struct sock_common {
	u16 skc_family;
	unsigned long skc_flags;
	possible_net_t skc_net;
	atomic64_t skc_cookie; /* 0: none was asked for */
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

typedef struct {
	int counter;
} atomic_t;

struct sock {
	struct sock_common __sk_common;
	atomic_t sk_omem_alloc; /* its own options, filters, keys */
	int sk_err;
	u16 sk_protocol;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

struct socket {
	short type;
	struct sock *sk;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct msghdr {
	void *msg_name;
	unsigned int msg_flags;
};

struct tcp_sock {
	u64 bytes_sent;
	u64 bytes_retrans;
};

struct ip_options {
	unsigned char srr; /* where the source route stands; 0: none */
};

struct ip_options_rcu {
	struct ip_options opt;
};

struct ipv6_txoptions {
	void *srcrt; /* a routing header */
};

struct ipv6_pinfo {
	struct ipv6_txoptions *opt;
};

struct inet_sock {
	struct ipv6_pinfo *pinet6; /* CONFIG_IPV6 */
	struct ip_options_rcu *inet_opt;
};

struct mptcp_sock {
	struct sock *first;
};

#pragma clang attribute pop

#endif
