// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many threads at one door: crowd ADDRESS PORT THREADS TIMES
 *
 * Every thread connects TIMES times, which must be denied (EPERM) each time.
 * Threads of one process are one identity to the guard.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in to = { .sin_family = AF_INET };
static int times;

static void *work(void *unused)
{
	for (int i = 0; i < times; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (!connect(fd, (struct sockaddr *)&to, sizeof(to)) ||
		    errno != EPERM)
			exit(1);
		close(fd);
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	int count;

	if (argc != 5 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	count = atoi(argv[3]);
	times = atoi(argv[4]);
	if (count < 1 || count > 64)
		return 2;
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], 0, work, 0))
			return 3;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], 0);
	return 0;
}
