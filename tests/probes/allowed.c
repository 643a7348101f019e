// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The program that a rule allows, for the probes that want to pass as it.
 *
 *  input  connect standard input, a socket somebody else made
 *  pass   connect, and pass the connection through standard input
 *  keep   connect, tell the descriptor's number, and wait
 *  wait   tell where the destination stands in memory, wait for a byte, connect
 */
#include "probe.h"

static int input(void)
{
	return connect_by(0);
}

static int pass(void)
{
	int fd = new_socket(), error = connect_by(fd);

	if (!error)
		send_fd(0, fd);
	return error;
}

static int keep(void)
{
	int fd = new_socket(), error = connect_by(fd);

	if (!error && write(0, &fd, sizeof(fd)) == sizeof(fd))
		pause();
	return error;
}

static int wait_to_be_told(void)
{
	struct sockaddr_storage *where = &peer;
	char byte;

	if (write(0, &where, sizeof(where)) < 0 || read(0, &byte, 1) != 1)
		untried("standard input");
	return connect_by(new_socket());
}

static const struct route routes[] = {
	{ "input", input },
	{ "pass", pass },
	{ "keep", keep },
	{ "wait", wait_to_be_told },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
