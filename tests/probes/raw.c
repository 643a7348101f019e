// SPDX-License-Identifier: GPL-2.0-or-later
/* Raw IP sockets: no connect(), and the packets pass netfilter's OUTPUT. */
#include "packets.h"

static int sent_by(int fd)
{
	struct sockaddr_storage to = peer;
	int offset = 16; /* of the checksum in a TCP header */
	struct packet packet;

	listen_for_answers();
	if (peer.ss_family == AF_INET6) {
		if (setsockopt(fd, IPPROTO_IPV6, IPV6_CHECKSUM, &offset,
			       sizeof(offset)))
			untried("IPV6_CHECKSUM");
		fill_syn(&packet.syn);
	} else {
		fill_packet(&packet);
	}
	((struct sockaddr_in *)&to)->sin_port = 0;
	if (sendto(fd, &packet.syn, sizeof(packet.syn), 0, (struct sockaddr *)&to,
		   peer_len) < 0)
		return errno;
	return answer();
}

static int raw_socket(int protocol)
{
	return made(socket(peer.ss_family, SOCK_RAW, protocol), "SOCK_RAW");
}

static int syn(void)
{
	return sent_by(raw_socket(IPPROTO_TCP));
}

/* With every mark there is, the second lock's among them. */
static int marked(void)
{
	unsigned int mark = ~0U;
	int fd = raw_socket(IPPROTO_TCP);

	if (setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		untried("SO_MARK");
	return sent_by(fd);
}

/* Likewise, and no setsockopt(): the mark comes with the message. */
static int message_marked(void)
{
	char space[CMSG_SPACE(sizeof(unsigned int))] = "";
	struct cmsghdr *header = (struct cmsghdr *)space;
	struct msghdr message = { .msg_name = PEER, .msg_namelen = peer_len };
	int fd = raw_socket(IPPROTO_TCP);
	unsigned int mark = ~0U;
	struct packet packet;
	struct iovec data = { &packet.syn, sizeof(packet.syn) };

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SO_MARK;
	header->cmsg_len = CMSG_LEN(sizeof(mark));
	memcpy(CMSG_DATA(header), &mark, sizeof(mark));
	message.msg_control = space;
	message.msg_controllen = sizeof(space);
	message.msg_iov = &data;
	message.msg_iovlen = 1;
	listen_for_answers();
	fill_packet(&packet);
	if (sendmsg(fd, &message, 0) < 0)
		return errno;
	return answer();
}

static int send_part(int fd, struct packet *packet, int at, int size, int more)
{
	unsigned char data[64];

	packet->ip.tot_len = htons(sizeof(packet->ip) + size);
	packet->ip.frag_off = htons(at / 8 | (more ? IP_MF : 0));
	memcpy(data, &packet->ip, sizeof(packet->ip));
	memcpy(data + sizeof(packet->ip), (char *)&packet->syn + at, size);
	if (sendto(fd, data, sizeof(packet->ip) + size, 0, PEER, peer_len) < 0)
		return errno;
	return 0;
}

/* The ports in a first fragment of eight bytes, the flags in the second. */
static int fragments(void)
{
	int fd = raw_socket(IPPROTO_RAW), error;
	struct packet packet;

	listen_for_answers();
	fill_packet(&packet);
	error = send_part(fd, &packet, 0, 8, 1);
	if (!error)
		error = send_part(fd, &packet, 8, sizeof(packet.syn) - 8, 0);
	return error ? error : answer();
}

/* The second fragment goes first. */
static int fragments_turned(void)
{
	int fd = raw_socket(IPPROTO_RAW), error;
	struct packet packet;

	listen_for_answers();
	fill_packet(&packet);
	error = send_part(fd, &packet, 8, sizeof(packet.syn) - 8, 0);
	if (!error)
		error = send_part(fd, &packet, 0, 8, 1);
	return error ? error : answer();
}

static const struct route routes[] = {
	{ "syn", syn },
	{ "marked", marked },
	{ "message-marked", message_marked },
	{ "fragments", fragments },
	{ "fragments-turned", fragments_turned },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
