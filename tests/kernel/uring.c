// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Connect through io_uring: uring inline|worker|thread ADDRESS PORT
 *
 * inline: in the caller's own io_uring_enter(); worker: in a kernel worker
 * (IOSQE_ASYNC); thread: in the thread that polls the queue (SQPOLL). The exit
 * status is the errno, or 0; 255 says that the ring itself did not work.
 */
#include <arpa/inet.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
	struct sockaddr *to = (struct sockaddr *)&v4;
	unsigned int flags = 0, size = sizeof(v4);
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	int fd;

	if (argc != 4)
		return 255;
	if (!strcmp(argv[1], "thread"))
		flags = IORING_SETUP_SQPOLL;
	v4.sin_port = v6.sin6_port = htons(atoi(argv[3]));
	if (inet_pton(AF_INET6, argv[2], &v6.sin6_addr) == 1) {
		to = (struct sockaddr *)&v6;
		size = sizeof(v6);
	} else if (inet_pton(AF_INET, argv[2], &v4.sin_addr) != 1) {
		return 255;
	}
	fd = socket(to->sa_family, SOCK_STREAM, 0);
	if (fd < 0 || io_uring_queue_init(4, &ring, flags))
		return 255;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_connect(sqe, fd, to, size);
	if (!strcmp(argv[1], "worker"))
		sqe->flags |= IOSQE_ASYNC;
	if (io_uring_submit(&ring) < 0 || io_uring_wait_cqe(&ring, &cqe))
		return 255;
	return -cqe->res;
}
