// SPDX-License-Identifier: GPL-2.0-or-later
/* Programs that do nothing: what any program at these hooks costs. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup/connect4") int empty_connect4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/sock_create") int empty_create(struct bpf_sock *ctx)
{
	return 1;
}

SEC("sockops") int empty_sockops(struct bpf_sock_ops *ctx)
{
	return 1;
}
