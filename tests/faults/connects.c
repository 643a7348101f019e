// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Makes TCP connects to 127.0.0.1 and says what became of them:
 *
 *   connects CGROUP UID PORT COUNT PAUSE_US
 *
 * It first enters CGROUP ("-": stays where it is) and becomes UID. COUNT 0 goes on
 * until SIGTERM. Each connect has a socket of its own, closed at once, by a reset if
 * it was accepted, so that no port is used up by TIME_WAIT. Prints one JSON object;
 * ns is the time of the whole loop. A refusal by the peer is a connect that the guard
 * let pass: nobody needs to listen.
 */
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t enough;

static void on_signal(int number)
{
	(void)number;
	enough = 1;
}

int main(int argc, char **argv)
{
	const struct linger reset = { 1, 0 };
	struct sockaddr_in to = { .sin_family = AF_INET };
	long long began, count, tried = 0, passed = 0, denied = 0, other = 0,
		  first_denied = 0;
	useconds_t pause;
	int fd, last = 0;

	if (argc != 6) {
		fprintf(stderr, "connects CGROUP UID PORT COUNT PAUSE_US\n");
		return 64;
	}
	if (strcmp(argv[1], "-"))
		enter(argv[1]);
	if (atoi(argv[2]) && setuid(atoi(argv[2])))
		die("setuid");
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons(atoi(argv[3]));
	count = atoll(argv[4]);
	pause = atoi(argv[5]);
	signal(SIGTERM, on_signal);
	began = now_ns();
	while (!enough && (!count || tried < count)) {
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0)
			die("socket");
		tried++;
		if (!connect(fd, (struct sockaddr *)&to, sizeof(to))) {
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset,
				   sizeof(reset));
			passed++;
		} else if (errno == ECONNREFUSED) {
			passed++;
		} else if (errno == EPERM) {
			if (!denied++)
				first_denied = now_ns();
		} else {
			last = errno;
			other++;
		}
		close(fd);
		if (pause)
			usleep(pause);
	}
	printf("{\"tried\": %lld, \"passed\": %lld, \"denied\": %lld, "
	       "\"other\": %lld, \"errno\": %d, \"ns\": %lld, "
	       "\"first_denied_ns\": %lld}\n",
	       tried, passed, denied, other, last, now_ns() - began,
	       first_denied);
	return 0;
}
