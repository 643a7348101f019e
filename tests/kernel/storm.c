// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many short lives: storm PORT COUNT FOLDER... 00000000
 *
 * Forks COUNT processes, a few at a time. Each takes a uid and a folder of its
 * own, writes its number over the last argument, connects to 127.0.0.1:PORT and
 * is gone. What each of them was is printed at the end, a line each:
 * number pid uid source-port folder errno.
 */
#define _GNU_SOURCE /* setresuid */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_ONCE 16
#define FIRST_UID 20000
#define UIDS 50

struct life {
	int pid, uid, port, folder, error;
};

static void live(struct life *life, int number, int port, char **folders,
		 int nr_folders, char *argument)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	socklen_t size = sizeof(to);
	char text[16];
	int fd;

	life->pid = getpid();
	life->uid = FIRST_UID + number % UIDS;
	life->folder = number % nr_folders;
	snprintf(text, sizeof(text), "%08d", number);
	memcpy(argument, text, 8);
	if (chdir(folders[life->folder]) ||
	    setresuid(life->uid, life->uid, life->uid))
		_exit(1);
	to.sin_port = htons(port);
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		life->error = errno;
	getsockname(fd, (struct sockaddr *)&to, &size);
	life->port = ntohs(to.sin_port);
	_exit(0);
}

int main(int argc, char **argv)
{
	int port, count, i, running = 0;
	struct life *lives;

	if (argc < 5 || strlen(argv[argc - 1]) != 8)
		return 2;
	port = atoi(argv[1]);
	count = atoi(argv[2]);
	lives = mmap(0, count * sizeof(*lives), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (lives == MAP_FAILED)
		return 3;
	for (i = 0; i < count; i++) {
		if (running == AT_ONCE && wait(0) > 0)
			running--;
		switch (fork()) {
		case -1:
			return 4;
		case 0:
			live(&lives[i], i, port, argv + 3, argc - 4,
			     argv[argc - 1]);
		}
		running++;
	}
	while (wait(0) > 0)
		;
	for (i = 0; i < count; i++)
		printf("%d %d %d %d %d %d\n", i, lives[i].pid, lives[i].uid,
		       lives[i].port, lives[i].folder, lives[i].error);
	return 0;
}
