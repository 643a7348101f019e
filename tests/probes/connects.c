// SPDX-License-Identifier: GPL-2.0-or-later
/* Ways to ask the kernel for a connection, from an ordinary program. */
#include "probe.h"

#include <linux/net.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>


static int plain(void)
{
	return connect_by(new_socket());
}

static void *connect_thread(void *fd)
{
	return (void *)(long)connect_by((long)fd);
}

/* One thread binds, another connects. */
static int thread(void)
{
	struct sockaddr_storage any = { .ss_family = peer.ss_family };
	long fd = new_socket();
	pthread_t other;
	void *error;

	if (bind(fd, (struct sockaddr *)&any, peer_len))
		untried("bind");
	if (pthread_create(&other, 0, connect_thread, (void *)fd))
		untried("pthread_create");
	pthread_join(other, &error);
	return (long)error;
}

static void *leaderless(void *unused)
{
	char path[] = "/proc/self/status", line[64];
	FILE *status;

	(void)unused;
	do { /* until the thread that main() ran in is a zombie */
		status = fopen(path, "r");
		if (!status)
			untried(path);
		while (fgets(line, sizeof(line), status) &&
		       strncmp(line, "State:", 6))
			;
		fclose(status);
	} while (!strchr(line, 'Z'));
	exit(verdict_of(plain()));
}

/* The process's first thread has ended: /proc/PID shows a zombie. */
static int leader_gone(void)
{
	pthread_t other;

	if (pthread_create(&other, 0, leaderless, 0))
		untried("pthread_create");
	pthread_exit(0);
}

static int sendmmsg_fast_open(void)
{
	struct iovec data = { "EHLO x\r\n", 8 };
	struct mmsghdr message = { .msg_hdr = { .msg_name = PEER,
						.msg_namelen = peer_len,
						.msg_iov = &data,
						.msg_iovlen = 1 } };

	return sendmmsg(new_socket(), &message, 1, MSG_FASTOPEN) == 1 ? 0 : errno;
}

/* The shortest IPv6 address the kernel takes: without a scope id, RFC 2133. */
static int short_address(void)
{
	return connect(new_socket(), PEER, 24) ? errno : 0;
}

static volatile int racing = 1;

static void *flip(void *unused)
{
	volatile in_port_t *port = &((struct sockaddr_in *)&peer)->sin_port;
	in_port_t guarded = *port, other = htons(2525);

	while (racing) {
		*port = other;
		*port = guarded;
	}
	return unused;
}

/* A thread rewrites the port while the kernel reads it. */
static int race(void)
{
	struct sockaddr_in now;
	int fd, error, denied = 0, reached = 0;
	time_t end = time(0) + 6;
	socklen_t len;
	pthread_t other;

	if (pthread_create(&other, 0, flip, 0))
		untried("pthread_create");
	while (!reached && denied < 300 && time(0) < end) {
		fd = new_socket();
		error = connect_by(fd);
		denied += error == EPERM;
		len = sizeof(now);
		reached = !error &&
			  !getpeername(fd, (struct sockaddr *)&now, &len) &&
			  now.sin_port == htons(25);
		close(fd);
	}
	racing = 0;
	pthread_join(other, 0);
	return reached ? 0 : denied ? EPERM : ETIMEDOUT;
}

#ifdef __x86_64__
/* The 32-bit system calls, which a 64-bit program can make too. */
static int compat(int number, long first, long second, long third)
{
	int result;

	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(number), "b"(first), "c"(second), "d"(third)
		     : "memory", "r8", "r9", "r10", "r11");
	return result < 0 ? -result : 0;
}

static unsigned int *low_page(void)
{
	void *page = mmap(0, 4096, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (page == MAP_FAILED)
		untried("mmap");
	memcpy((char *)page + 64, &peer, peer_len);
	return page;
}

static int compat_result(int error)
{
	errno = error;
	return error == ENOSYS ? made(-1, "int 0x80"), 0 : error;
}

static int socketcall(void)
{
	unsigned int *page = low_page();

	page[0] = new_socket();
	page[1] = (unsigned int)(long)page + 64;
	page[2] = peer_len;
	return compat_result(compat(102, SYS_CONNECT, (long)page, 0));
}

static int compat_connect(void)
{
	long page = (long)low_page();

	return compat_result(compat(362, new_socket(), page + 64, peer_len));
}
#else
#define socketcall no_compat
#define compat_connect no_compat
static int no_compat(void)
{
	errno = ENOSYS;
	untried("no 32-bit system calls known for this machine");
}
#endif

static const struct route routes[] = {
	{ "plain", plain },
	{ "thread", thread },
	{ "leader-gone", leader_gone },
	{ "sendmmsg", sendmmsg_fast_open },
	{ "short-address", short_address },
	{ "race", race },
	{ "socketcall", socketcall },
	{ "compat-connect", compat_connect },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
