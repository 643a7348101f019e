// SPDX-License-Identifier: GPL-2.0-or-later
/* io_uring, beyond the plain connect that tests/kernel/uring.c makes. */
#include "probe.h"

#include <liburing.h>

static struct io_uring ring;

/* One request, and its answer. */
static int ask(struct io_uring_sqe *(*prepare)(void))
{
	struct io_uring_cqe *cqe;
	int result;

	prepare();
	errno = -io_uring_submit_and_wait(&ring, 1);
	if (errno > 0 || io_uring_wait_cqe(&ring, &cqe))
		untried("io_uring");
	result = cqe->res;
	io_uring_cqe_seen(&ring, cqe);
	return result;
}

static void new_ring(void)
{
	errno = -io_uring_queue_init(8, &ring, 0);
	if (errno)
		untried("io_uring_queue_init");
}

static struct io_uring_sqe *make_slot(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	io_uring_prep_socket_direct(sqe, peer.ss_family, SOCK_STREAM, 0, 0, 0);
	return sqe;
}

static struct io_uring_sqe *connect_slot(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	io_uring_prep_connect(sqe, 0, PEER, peer_len);
	sqe->flags |= IOSQE_FIXED_FILE;
	return sqe;
}

/* A socket that no descriptor table ever holds. */
static int no_descriptor(void)
{
	int none = -1;

	new_ring();
	errno = -io_uring_register_files(&ring, &none, 1);
	if (errno)
		untried("io_uring_register_files");
	errno = -ask(make_slot);
	if (errno)
		untried("IORING_OP_SOCKET");
	return -ask(connect_slot);
}

static struct iovec data = { "EHLO x\r\n", 8 };
static struct msghdr message;
static int fd;

static struct io_uring_sqe *send_message(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	io_uring_prep_sendmsg(sqe, fd, &message, MSG_FASTOPEN);
	return sqe;
}

/* TCP Fast Open by IORING_OP_SENDMSG. */
static int fast_open(void)
{
	int result;

	new_ring();
	message.msg_name = PEER;
	message.msg_namelen = peer_len;
	message.msg_iov = &data;
	message.msg_iovlen = 1;
	fd = new_socket();
	result = ask(send_message);
	return result < 0 ? -result : 0;
}

/* The ring is its parent's, who polls it: a thread of the parent's connects. */
static int parents_ring(void)
{
	struct io_uring_cqe *cqe;
	pid_t child;

	fd = new_socket();
	errno = -io_uring_queue_init(8, &ring, IORING_SETUP_SQPOLL);
	if (errno)
		untried("io_uring_queue_init");
	child = make_child();
	if (child)
		return errno_of(child);
	io_uring_prep_connect(io_uring_get_sqe(&ring), fd, PEER, peer_len);
	if (io_uring_submit(&ring) < 0)
		untried("io_uring_submit");
	if (io_uring_wait_cqe(&ring, &cqe))
		untried("io_uring_wait_cqe");
	_exit(verdict_of(-cqe->res));
}

static const struct route routes[] = {
	{ "no-descriptor", no_descriptor },
	{ "fast-open", fast_open },
	{ "parents-ring", parents_ring },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
