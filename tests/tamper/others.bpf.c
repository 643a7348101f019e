// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Programs of somebody else at the hook where the guard denies: one that bears the
 * guard's own name and lets all pass, and one that takes back what others denied.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("cgroup/connect4") int guard_connect4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/connect4") int take_back(struct bpf_sock_addr *ctx)
{
	bpf_set_retval(0);
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
