/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a program did to its socket before it connects, where that decides: a way by
 * other hosts is never local, and who leaves no room for its record is denied.
 */
#ifndef GUARD_SOCKET_H
#define GUARD_SOCKET_H

#include "emit.bpf.h"

/*
 * Whether the socket asks for a way by other hosts, as anybody may (IP_OPTIONS,
 * IPV6_RTHDR): then the packets leave for the first of these, whatever the address.
 */
static __always_inline int source_routed(struct inet_sock *inet)
{
	struct ip_options_rcu *options;

	if (!inet)
		return 0;
	options = BPF_CORE_READ(inet, inet_opt);
	if (options && BPF_CORE_READ(options, opt.srr))
		return 1;
	return bpf_core_field_exists(inet->pinet6) &&
	       BPF_CORE_READ(inet, pinet6, opt, srcrt);
}

/*
 * Whether a program filled its socket's option memory (keys, filters), where the
 * guard's record has to stand: it would connect without being known by its port.
 * Linux below 6.8 gives a socket 20 KB of it, of which this leaves the record 12.
 */
#define OPTION_MEMORY 8192

static __always_inline int out_of_room(struct bpf_sock *sk)
{
	struct sock *full = sk ? (void *)bpf_skc_to_tcp_sock(sk) : 0;

	return full &&
	       BPF_CORE_READ(full, sk_omem_alloc.counter) > OPTION_MEMORY;
}

#endif
