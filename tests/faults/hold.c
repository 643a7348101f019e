// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many connections that are open at the same time: hold CGROUP PORT COUNT
 *
 * It listens at 127.0.0.1:PORT, enters CGROUP ("-": stays), opens COUNT connections
 * to itself and says what became of them as connects.c does. They stay open until
 * SIGTERM; then each is closed from the client's end, and it prints "closed".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	fprintf(stderr, "hold: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void enter(const char *cgroup)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die(path);
	close(fd);
}

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	long long began, passed = 0, denied = 0, other = 0;
	int listener, count, i, last = 0, one = 1, number, *ends;
	struct rlimit files;
	sigset_t end;

	if (argc != 4) {
		fprintf(stderr, "hold CGROUP PORT COUNT\n");
		return 64;
	}
	count = atoi(argv[3]);
	ends = calloc(2 * count, sizeof(*ends));
	files.rlim_cur = files.rlim_max = 2 * count + 64;
	if (setrlimit(RLIMIT_NOFILE, &files))
		die("setrlimit");
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, 0);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	to.sin_port = htons(atoi(argv[2]));
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&to, sizeof(to)) ||
	    listen(listener, 128))
		die("listen");
	if (strcmp(argv[1], "-"))
		enter(argv[1]);
	began = now_ns();
	for (i = 0; i < count; i++) {
		ends[2 * i] = socket(AF_INET, SOCK_STREAM, 0);
		ends[2 * i + 1] = -1;
		if (!connect(ends[2 * i], (struct sockaddr *)&to, sizeof(to))) {
			ends[2 * i + 1] = accept(listener, 0, 0);
			if (ends[2 * i + 1] < 0)
				die("accept");
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
	for (i = 0; i < 2 * count; i++)
		if (ends[i] >= 0)
			close(ends[i]);
	printf("closed\n");
	return 0;
}
