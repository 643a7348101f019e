/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What every probe has: PROGRAM ROUTE ADDRESS PORT
 *
 * A probe takes one route to a server that listens, and its exit status is what
 * became of it. A row of tests/matrix.toml says what must.
 */
#ifndef PROBE_H
#define PROBE_H

#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum verdict {
	ALLOWED = 0,   /* connected, or its SYN left */
	DENIED = 1,    /* by the guard */
	UNTRIED = 2,   /* standard error says why */
	OTHERWISE = 3, /* stopped, and not by the guard */
};

struct route {
	const char *name;
	int (*take)(void); /* 0: it worked; else the errno */
};

/* Who is to be reached. */
static struct sockaddr_storage peer;
static socklen_t peer_len;
#define PEER ((struct sockaddr *)&peer)

__attribute__((noreturn)) static inline void untried(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(UNTRIED);
}

/*
 * The server listens (the control shows it), so what resets a connection stands in
 * between: the guard's second lock.
 */
static inline int verdict_of(int error)
{
	if (!error)
		return ALLOWED;
	fprintf(stderr, "%s\n", strerror(error));
	if (error == EPERM || error == ECONNREFUSED || error == ECONNRESET)
		return DENIED;
	return OTHERWISE;
}

static inline int made(int fd, const char *what)
{
	if (fd < 0)
		untried(what);
	return fd;
}

static inline int new_socket(void)
{
	return made(socket(peer.ss_family, SOCK_STREAM, 0), "socket");
}

static inline int connect_by(int fd)
{
	return connect(fd, PEER, peer_len) ? errno : 0;
}

/* Answer of a child that ended in verdict_of(), as an errno again. */
static inline int errno_of(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) < 0)
		untried("waitpid");
	if (!WIFEXITED(status) || WEXITSTATUS(status) == UNTRIED)
		_exit(UNTRIED);
	return WEXITSTATUS(status) == ALLOWED ? 0 :
	       WEXITSTATUS(status) == DENIED  ? EPERM :
						EIO;
}

/* A child that does not outlive the probe. */
static inline pid_t make_child(void)
{
	pid_t child = fork();

	if (child < 0)
		untried("fork");
	if (!child)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return child;
}

static inline const char *setting(const char *name)
{
	const char *value = getenv(name);

	if (!value) {
		fprintf(stderr, "%s is not set\n", name);
		_exit(UNTRIED);
	}
	return value;
}

static inline void send_fd(int to, int fd)
{
	char byte = 0, space[CMSG_SPACE(sizeof(int))] = "";
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
	struct cmsghdr *header = (struct cmsghdr *)space;

	message.msg_control = space;
	message.msg_controllen = sizeof(space);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	if (sendmsg(to, &message, 0) < 0)
		untried("sendmsg SCM_RIGHTS");
}

static inline int receive_fd(int from)
{
	char byte, space[CMSG_SPACE(sizeof(int))] = "";
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
	int fd = -1;

	message.msg_control = space;
	message.msg_controllen = sizeof(space);
	if (recvmsg(from, &message, 0) < 0 || !CMSG_FIRSTHDR(&message))
		untried("recvmsg SCM_RIGHTS");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

/*
 * Connect without waiting for longer than `ms`. A SYN that nobody answers has
 * left all the same, where the socket says that it sent one.
 */
static inline int syn_leaves(int fd, int ms)
{
	struct pollfd ready = { fd, POLLOUT, 0 };
	struct tcp_info info;
	int error = connect_by(fd);
	socklen_t len = sizeof(error);

	if (error != EINPROGRESS)
		return error;
	if (poll(&ready, 1, ms) > 0 &&
	    !getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len))
		return error;
	len = sizeof(info);
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len))
		untried("TCP_INFO");
	return info.tcpi_state == TCP_SYN_SENT && info.tcpi_total_retrans ? 0 :
									    ETIMEDOUT;
}

static void took_too_long(int signal)
{
	(void)signal;
	_exit(OTHERWISE);
}

static inline int probe(const struct route *route, char **argv)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
				  .ai_socktype = SOCK_STREAM };
	struct addrinfo *found;

	if (!argv[1] || !argv[2] || !argv[3] ||
	    getaddrinfo(argv[2], argv[3], &hints, &found)) {
		fprintf(stderr, "usage: %s ROUTE ADDRESS PORT\n", argv[0]);
		return UNTRIED;
	}
	memcpy(&peer, found->ai_addr, found->ai_addrlen);
	peer_len = found->ai_addrlen;
	freeaddrinfo(found);
	signal(SIGALRM, took_too_long);
	signal(SIGPIPE, SIG_IGN);
	alarm(15);
	for (; route->name; route++)
		if (!strcmp(route->name, argv[1]))
			return verdict_of(route->take());
	fprintf(stderr, "%s: no such route: %s\n", argv[0], argv[1]);
	return UNTRIED;
}

#endif
