// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many connections that are open at the same time: hold CGROUP PORT COUNT
 *
 * A child of it listens at 127.0.0.1:PORT and accepts. It enters CGROUP ("-": stays),
 * opens COUNT connections and says what became of them as connects.c does. They stay
 * open until SIGTERM; then each is closed, and it prints "closed". Two processes,
 * because one may not have so many files open on every machine.
 */
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void serve(int listener)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		if (accept(listener, 0, 0) < 0)
			die("accept");
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int listener, server, count, i, fd, last = 0, one = 1, number, *open;
	long long began, passed = 0, denied = 0, other = 0;
	struct rlimit files;
	sigset_t end;

	if (argc != 4) {
		fprintf(stderr, "hold CGROUP PORT COUNT\n");
		return 64;
	}
	count = atoi(argv[3]);
	open = calloc(count, sizeof(*open));
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, 0);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons(atoi(argv[2]));
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&to, sizeof(to)) ||
	    listen(listener, 4096))
		die("listen");
	server = fork();
	if (!server)
		serve(listener);
	if (strcmp(argv[1], "-"))
		enter(argv[1]);
	began = now_ns();
	for (i = 0; i < count; i++) {
		fd = open[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0)
			die("socket");
		if (!connect(fd, (struct sockaddr *)&to, sizeof(to))) {
			passed++;
		} else if (errno == EPERM) {
			denied++;
		} else {
			last = errno;
			other++;
		}
	}
	printf("{\"tried\": %d, \"passed\": %lld, \"denied\": %lld, "
	       "\"other\": %lld, \"errno\": %d, \"ns\": %lld, "
	       "\"first_denied_ns\": 0}\n",
	       count, passed, denied, other, last, now_ns() - began);
	fflush(stdout);
	sigwait(&end, &number);
	for (i = 0; i < count; i++)
		close(open[i]);
	kill(server, SIGKILL);
	printf("closed\n");
	return 0;
}
