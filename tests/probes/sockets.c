// SPDX-License-Identifier: GPL-2.0-or-later
/* Sockets that are not what a program usually connects with. */
#include "probe.h"

#include <fcntl.h>

#ifndef IPV6_ADDRFORM
#define IPV6_ADDRFORM 1 /* linux/in6.h */
#endif
#define MPTCP_INFO 1 /* linux/mptcp.h */
#define SUBFLOWS 0   /* in struct mptcp_info */
#ifndef SOL_MPTCP
#define SOL_MPTCP 284
#endif
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int bound_to(const char *device)
{
	int fd = new_socket();

	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)))
		untried("SO_BINDTODEVICE");
	return fd;
}

static int device(void)
{
	return connect_by(bound_to(setting("PROBE_DEVICE")));
}

/* Towards an address that is no neighbour's: nobody has to answer. */
static int device_syn(void)
{
	int fd = bound_to(setting("PROBE_DEVICE"));

	fcntl(fd, F_SETFL, O_NONBLOCK);
	return syn_leaves(fd, 2500);
}

/* From an address that is not the host's; the answer goes elsewhere. */
static int transparent(void)
{
	struct sockaddr_in from = { .sin_family = AF_INET };
	int fd = new_socket(), one = 1;

	from.sin_addr.s_addr = htonl(0xc6336463); /* 198.51.100.99, RFC 5737 */
	if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof(one)))
		untried("IP_TRANSPARENT");
	if (bind(fd, (struct sockaddr *)&from, sizeof(from)))
		untried("bind");
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return syn_leaves(fd, 2500);
}

/* A pair of connected sockets on loopback; gives the accepted one. */
static int accepted_socket(int family)
{
	struct sockaddr_storage here = { .ss_family = family };
	socklen_t len = sizeof(here);
	int server = made(socket(family, SOCK_STREAM, 0), "socket"), client, fd;

	if (bind(server, (struct sockaddr *)&here, len) || listen(server, 1) ||
	    getsockname(server, (struct sockaddr *)&here, &len))
		untried("listen");
	client = made(socket(family, SOCK_STREAM, 0), "socket");
	if (connect(client, (struct sockaddr *)&here, len))
		untried("connect to loopback");
	fd = made(accept(server, 0, 0), "accept");
	close(server);
	close(client);
	return fd;
}

static void disconnect(int fd)
{
	struct sockaddr nobody = { .sa_family = AF_UNSPEC };

	if (connect(fd, &nobody, sizeof(nobody)))
		untried("disconnect");
}

/* A server's end of a connection, disconnected, used as a client. */
static int accepted(void)
{
	int fd = accepted_socket(peer.ss_family);

	disconnect(fd);
	return connect_by(fd);
}

/* An IPv6 socket that was turned into an IPv4 one: another table of calls. */
static int address_form(void)
{
	int fd = made(socket(AF_INET6, SOCK_STREAM, 0), "socket"), form = AF_INET;
	int server = made(socket(AF_INET, SOCK_STREAM, 0), "socket");
	struct sockaddr_in here = { .sin_family = AF_INET };
	struct sockaddr_in6 mapped = { .sin6_family = AF_INET6 };
	socklen_t len = sizeof(here);

	if (bind(server, (struct sockaddr *)&here, len) || listen(server, 1) ||
	    getsockname(server, (struct sockaddr *)&here, &len))
		untried("listen");
	mapped.sin6_port = here.sin_port;
	mapped.sin6_addr.s6_addr32[2] = htonl(0xffff);
	mapped.sin6_addr.s6_addr32[3] = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&mapped, sizeof(mapped)) ||
	    setsockopt(fd, IPPROTO_IPV6, IPV6_ADDRFORM, &form, sizeof(form)))
		untried("IPV6_ADDRFORM");
	disconnect(fd);
	return connect_by(fd);
}

/* In repair mode a socket is connected without a packet. */
static int repair(void)
{
	int fd = new_socket(), one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof(one)))
		untried("TCP_REPAIR");
	return connect_by(fd);
}

/* Simultaneous open, with itself: from the guarded port to the guarded port. */
static int self(void)
{
	struct linger reset = { 1, 0 }; /* leave no TIME_WAIT for the next run */
	int fd = new_socket();

	if (bind(fd, PEER, peer_len) ||
	    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		untried("bind");
	return connect_by(fd);
}

static int other_protocol(int family, int protocol)
{
	int fd = made(socket(family, SOCK_STREAM, protocol), "socket");

	return connect_by(fd);
}

static int sctp(void)
{
	return other_protocol(AF_INET, IPPROTO_SCTP);
}

static int smc(void)
{
	return other_protocol(43, 0); /* AF_SMC, linux/socket.h */
}

static int smc_internet(void)
{
	return other_protocol(AF_INET, 256); /* IPPROTO_SMC, linux/in.h */
}

/*
 * By another host, which stands first in the packet; `peer` is where the option
 * says that it goes on to. Both options ask for no capability.
 */
static int source_routed(void)
{
	struct sockaddr_storage final = peer;
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST }, *via;
	unsigned char option[7 + 1] = { 131, 7, 4 }; /* LSRR, RFC 791 */
	unsigned char header[24] = { 0, 2, 4 };      /* RFC 8754 section 2 */
	int fd = new_socket();

	if (getaddrinfo(setting("PROBE_VIA"), 0, &hints, &via))
		untried("PROBE_VIA");
	if (final.ss_family == AF_INET) {
		memcpy(option + 3,
		       &((struct sockaddr_in *)via->ai_addr)->sin_addr, 4);
		if (setsockopt(fd, IPPROTO_IP, IP_OPTIONS, option, sizeof(option)))
			untried("IP_OPTIONS");
	} else {
		memcpy(header + 8,
		       &((struct sockaddr_in6 *)via->ai_addr)->sin6_addr, 16);
		if (setsockopt(fd, IPPROTO_IPV6, IPV6_RTHDR, header,
			       sizeof(header)))
			untried("IPV6_RTHDR");
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return syn_leaves(fd, 2500);
}

/*
 * Multipath TCP to a port that is not guarded; the server announces an address
 * with a port that is, and the kernel connects there by itself.
 */
static int announced(void)
{
	int fd = made(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP), "MPTCP");
	unsigned char info[64] = "";
	socklen_t len;
	int tries;

	if (connect_by(fd) || send(fd, "x", 1, 0) != 1)
		untried("MPTCP");
	for (tries = 0; tries < 200; tries++) {
		len = sizeof(info);
		if (getsockopt(fd, SOL_MPTCP, MPTCP_INFO, info, &len))
			untried("MPTCP_INFO");
		if (info[SUBFLOWS])
			return 0;
		poll(0, 0, 20);
	}
	return ETIMEDOUT;
}

/*
 * A socket whose option memory is used up, by keys for hosts that it never meets:
 * what the guard would keep there has no room.
 */
static int full(void)
{
	struct tcp_md5sig key = { .tcpm_keylen = 1, .tcpm_key = "x" };
	struct sockaddr_in *host = (struct sockaddr_in *)&key.tcpm_addr;
	int fd = new_socket();
	unsigned int i;

	host->sin_family = AF_INET;
	for (i = 1; i < 65536; i++) {
		host->sin_addr.s_addr = htonl(0xcb007100 - i); /* not 203.0.113/24 */
		if (setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof(key)))
			break;
	}
	if (errno != ENOMEM)
		untried("TCP_MD5SIG");
	return connect_by(fd);
}

static const struct route routes[] = {
	{ "device", device },
	{ "device-syn", device_syn },
	{ "transparent", transparent },
	{ "accepted", accepted },
	{ "address-form", address_form },
	{ "repair", repair },
	{ "self", self },
	{ "sctp", sctp },
	{ "smc", smc },
	{ "smc-internet", smc_internet },
	{ "source-routed", source_routed },
	{ "announced", announced },
	{ "full", full },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
