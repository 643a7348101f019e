// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A program that connects when told to: caller ADDRESS PORT [TITLE]
 *
 * It waits for a line on standard input, connects, prints the errno (or 0) and
 * lives until its input ends. TITLE is written over its arguments first, as
 * setproctitle(3) does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	const char *address = "127.0.0.1", *port = "25";
	char line[16];
	int fd;

	if (argc > 2) {
		address = argv[1];
		port = argv[2];
	}
	to.sin_port = htons(atoi(port));
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		return 2;
	if (argc > 3 && !strncmp(argv[3], "title:", 6)) {
		char *last = argv[argc - 1];
		size_t room = last + strlen(last) + 1 - argv[0];
		char *title = strdup(argv[3] + 6);

		memset(argv[0], 0, room);
		strncpy(argv[0], title, room - 1);
	}
	if (!fgets(line, sizeof(line), stdin))
		return 3;
	fd = socket(AF_INET, SOCK_STREAM, 0);
	errno = 0;
	connect(fd, (struct sockaddr *)&to, sizeof(to));
	printf("%d\n", errno);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		;
	return 0;
}
