// SPDX-License-Identifier: GPL-2.0-or-later
/* Frames handed to the network device: netfilter's OUTPUT does not see them. */
#include "packets.h"

#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#ifndef AF_XDP
#define AF_XDP 44
#define SOL_XDP 283
#endif
#define FRAME 4096 /* bytes of an AF_XDP frame */

static unsigned char frame[ETH_HLEN + 4 + sizeof(struct packet)];
static size_t size = ETH_HLEN + sizeof(struct packet);
static unsigned int device;

static void fill_frame(void)
{
	const char *name = setting("PROBE_DEVICE");
	struct arpreq neighbour = { 0 };
	struct sockaddr_in *hop = (struct sockaddr_in *)&neighbour.arp_pa;
	struct ifreq own = { 0 };
	struct ethhdr ethernet;
	struct packet packet;
	int tries, fd;

	listen_for_answers();
	fill_packet(&packet);
	fd = made(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	hop->sin_family = AF_INET;
	inet_pton(AF_INET, setting("PROBE_HOP"), &hop->sin_addr);
	strncpy(neighbour.arp_dev, name, sizeof(neighbour.arp_dev) - 1);
	strncpy(own.ifr_name, name, sizeof(own.ifr_name) - 1);
	for (tries = 0; tries < 100; tries++) {
		if (!ioctl(fd, SIOCGARP, &neighbour) &&
		    neighbour.arp_flags & ATF_COM)
			break;
		poll(0, 0, 20);
	}
	if (!(neighbour.arp_flags & ATF_COM) || ioctl(fd, SIOCGIFHWADDR, &own))
		untried("neighbour");
	memcpy(ethernet.h_dest, neighbour.arp_ha.sa_data, ETH_ALEN);
	memcpy(ethernet.h_source, own.ifr_hwaddr.sa_data, ETH_ALEN);
	ethernet.h_proto = htons(ETH_P_IP);
	memcpy(frame, &ethernet, ETH_HLEN);
	memcpy(frame + ETH_HLEN, &packet, sizeof(packet));
	device = if_nametoindex(name);
	close(fd);
}

static int packet_socket(int bypass, int protocol)
{
	int fd = made(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP)), "AF_PACKET");
	struct sockaddr_ll to = { .sll_family = AF_PACKET };

	to.sll_protocol = htons(protocol);
	to.sll_ifindex = device;
	to.sll_halen = ETH_ALEN;
	if (bypass && setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &bypass,
				 sizeof(bypass)))
		untried("PACKET_QDISC_BYPASS");
	if (sendto(fd, frame, size, 0, (struct sockaddr *)&to,
		   sizeof(to)) < 0)
		return errno == ENOBUFS ? EPERM : errno; /* netdev egress drops */
	return answer();
}

static int packet(void)
{
	fill_frame();
	return packet_socket(0, 0);
}

static int bypass(void)
{
	fill_frame();
	return packet_socket(1, 0);
}

/* The socket says that it is ARP. */
static int disguised(void)
{
	fill_frame();
	return packet_socket(0, ETH_P_ARP);
}

/* With a tag of no VLAN, which is there for a priority alone (IEEE 802.1Q). */
static int tagged(void)
{
	const unsigned char tag[] = { 0x81, 0, 0, 0 };

	fill_frame();
	memmove(frame + 2 * ETH_ALEN + sizeof(tag), frame + 2 * ETH_ALEN,
		size - 2 * ETH_ALEN);
	memcpy(frame + 2 * ETH_ALEN, tag, sizeof(tag));
	size += sizeof(tag);
	return packet_socket(0, 0);
}

static void *ring(int fd, int option, off_t at, struct xdp_ring_offset *offsets)
{
	unsigned int entries = 8;
	void *memory;

	if (setsockopt(fd, SOL_XDP, option, &entries, sizeof(entries)))
		untried("AF_XDP ring");
	if (!offsets)
		return 0;
	memory = mmap(0, FRAME, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
	if (memory == MAP_FAILED)
		untried("mmap AF_XDP ring");
	return memory;
}

/* AF_XDP: no queueing discipline and no netdev egress hook either. */
static int xdp(void)
{
	int fd = made(socket(AF_XDP, SOCK_RAW, 0), "AF_XDP");
	struct sockaddr_xdp where = { .sxdp_family = AF_XDP,
				      .sxdp_flags = XDP_COPY };
	struct xdp_umem_reg memory = { .chunk_size = FRAME };
	struct xdp_mmap_offsets offsets;
	socklen_t len = sizeof(offsets);
	struct xdp_desc *description;
	char *frames, *sending;
	int tries;

	fill_frame();
	frames = mmap(0, 8 * FRAME, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory.addr = (unsigned long)frames;
	memory.len = 8 * FRAME;
	if (setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof(memory)) ||
	    getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &len))
		untried("XDP_UMEM_REG");
	ring(fd, XDP_UMEM_FILL_RING, 0, 0);
	ring(fd, XDP_UMEM_COMPLETION_RING, 0, 0);
	sending = ring(fd, XDP_TX_RING, XDP_PGOFF_TX_RING, &offsets.tx);
	where.sxdp_ifindex = device;
	/* a socket before this one lets go of the queue a little after its end */
	for (tries = 0; bind(fd, (struct sockaddr *)&where, sizeof(where)); tries++)
		if (errno != EBUSY || tries > 100 || poll(0, 0, 20))
			untried("bind AF_XDP");
	memcpy(frames, frame, size);
	description = (struct xdp_desc *)(sending + offsets.tx.desc);
	description->addr = 0;
	description->len = size;
	__atomic_store_n((unsigned int *)(sending + offsets.tx.producer), 1,
			 __ATOMIC_RELEASE);
	if (sendto(fd, 0, 0, MSG_DONTWAIT, 0, 0) < 0)
		return errno == ENOBUFS ? EPERM : errno;
	return answer();
}

/* The device of a virtual machine: what it sends, the host forwards. */
static int tunnel(void)
{
	struct ifreq request = { .ifr_name = "probe0",
				 .ifr_flags = IFF_TUN | IFF_NO_PI };
	struct packet packet;

	/* its name is there once the module is, which nobody loads for a name */
	if (access("/dev/net/tun", F_OK) && system("modprobe tun"))
		untried("tun");
	answers = made(open("/dev/net/tun", O_RDWR), "/dev/net/tun");
	if (ioctl(answers, TUNSETIFF, &request))
		untried("TUNSETIFF");
	disguise.s_addr = htonl(0xc63364c8); /* 198.51.100.200, RFC 5737 */
	if (system("ip link set probe0 up && ip route add 198.51.100.200 dev probe0"))
		untried("ip");
	fill_packet(&packet);
	if (write(answers, &packet, sizeof(packet)) != sizeof(packet))
		return errno;
	return answer();
}

static const struct route routes[] = {
	{ "packet", packet },
	{ "bypass", bypass },
	{ "disguised", disguised },
	{ "tagged", tagged },
	{ "xdp", xdp },
	{ "tunnel", tunnel },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
