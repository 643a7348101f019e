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

#include "match.bpf.h"

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
		       port->word[w] & to->word[w] & who->rows.word[w];
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
