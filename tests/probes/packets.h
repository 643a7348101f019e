/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A SYN of one's own making, and who answers it. */
#ifndef PACKETS_H
#define PACKETS_H

#include "probe.h"

#include <arpa/inet.h>
#include <netinet/ip.h>

struct syn {
	struct tcphdr tcp;
	unsigned char option[4]; /* maximum segment size */
};

struct packet {
	struct iphdr ip;
	struct syn syn;
};

static int answers; /* a raw socket that sees them */
static in_port_t own_port;
static struct in_addr disguise; /* a source address to use instead of one's own */

static inline unsigned short sum(const void *data, int size, unsigned int start)
{
	const unsigned char *byte = data;
	int i;

	for (i = 0; i < size; i++)
		start += i & 1 ? byte[i] : byte[i] << 8;
	while (start >> 16)
		start = (start & 0xffff) + (start >> 16);
	return htons(~start);
}

static inline void fill_syn(struct syn *syn)
{
	memset(syn, 0, sizeof(*syn));
	own_port = syn->tcp.source = htons(20000 + getpid() % 10000);
	syn->tcp.dest = ((struct sockaddr_in *)&peer)->sin_port;
	syn->tcp.seq = htonl(getpid());
	syn->tcp.doff = sizeof(*syn) / 4;
	syn->tcp.syn = 1;
	syn->tcp.window = htons(64000);
	memcpy(syn->option, (unsigned char[]){ 2, 4, 5, 180 }, 4);
}

/* The address that packets to the peer bear. */
static inline struct sockaddr_storage own_address(void)
{
	int fd = made(socket(peer.ss_family, SOCK_DGRAM, 0), "socket");
	struct sockaddr_storage here;
	socklen_t len = sizeof(here);

	if (connect(fd, PEER, peer_len) ||
	    getsockname(fd, (struct sockaddr *)&here, &len))
		untried("own address");
	send(fd, "", 1, 0); /* so that the neighbour is known as well */
	close(fd);
	return here;
}

/* An IPv4 packet with a SYN in it, checksums and all. */
static inline void fill_packet(struct packet *packet)
{
	struct sockaddr_storage here = own_address();
	struct {
		unsigned int from, to;
		unsigned short protocol, size;
	} pseudo;

	if (peer.ss_family != AF_INET)
		untried("IPv4 alone");
	memset(packet, 0, sizeof(*packet));
	packet->ip.version = 4;
	packet->ip.ihl = 5;
	packet->ip.tot_len = htons(sizeof(*packet));
	packet->ip.id = htons(getpid());
	packet->ip.ttl = 64;
	packet->ip.protocol = IPPROTO_TCP;
	pseudo.from = ((struct sockaddr_in *)&here)->sin_addr.s_addr;
	pseudo.to = ((struct sockaddr_in *)&peer)->sin_addr.s_addr;
	if (disguise.s_addr)
		pseudo.from = disguise.s_addr;
	packet->ip.saddr = pseudo.from;
	packet->ip.daddr = pseudo.to;
	pseudo.protocol = htons(IPPROTO_TCP);
	pseudo.size = htons(sizeof(packet->syn));
	packet->ip.check = sum(&packet->ip, sizeof(packet->ip), 0);
	fill_syn(&packet->syn);
	packet->syn.tcp.check =
		sum(&packet->syn, sizeof(packet->syn),
		    ntohs(~sum(&pseudo, sizeof(pseudo), 0)) & 0xffff);
}

static inline void listen_for_answers(void)
{
	answers = made(socket(peer.ss_family, SOCK_RAW, IPPROTO_TCP), "SOCK_RAW");
}

/* 0: the server shook hands; else what came instead. */
static inline int answer(void)
{
	struct pollfd ready = { answers, POLLIN, 0 };
	unsigned char data[2048];
	struct tcphdr tcp;
	ssize_t size, at;

	while (poll(&ready, 1, 2000) > 0) {
		size = read(answers, data, sizeof(data));
		at = peer.ss_family == AF_INET ? (data[0] & 15) * 4 : 0;
		if (size < at + (ssize_t)sizeof(tcp))
			continue;
		memcpy(&tcp, data + at, sizeof(tcp));
		if (tcp.dest == own_port && tcp.rst)
			return ECONNRESET;
		if (tcp.dest == own_port && tcp.syn && tcp.ack)
			return 0;
	}
	return ETIMEDOUT;
}

#endif
