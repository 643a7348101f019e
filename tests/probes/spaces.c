// SPDX-License-Identifier: GPL-2.0-or-later
/* Namespaces of one's own. */
#include "probe.h"

#include <fcntl.h>
#include <sched.h>

static int plain(void)
{
	return connect_by(new_socket());
}

/*
 * A container without a network: a program outside connects for it, as slirp and
 * pasta do. The answer to the container is the connection.
 */
static int proxied(void)
{
	int ends[2], fd, error;
	pid_t container;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		untried("socketpair");
	container = make_child();
	if (!container) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNET))
			untried("unshare");
		if (write(ends[1], "", 1) != 1 ||
		    read(ends[1], &error, sizeof(error)) != sizeof(error))
			untried("proxy");
		_exit(verdict_of(error));
	}
	if (read(ends[0], &fd, 1) != 1)
		untried("container");
	error = plain();
	if (write(ends[0], &error, sizeof(error)) != sizeof(error))
		untried("container");
	return errno_of(container);
}

/* The socket is the host's, who connects it has left for namespaces of its own. */
static int kept(void)
{
	int fd = new_socket();

	if (unshare(CLONE_NEWUSER | CLONE_NEWNET))
		untried("unshare");
	return connect_by(fd);
}

/* Another network namespace, which is there. */
static int entered(void)
{
	int space = made(open(setting("PROBE_BOX"), O_RDONLY), "PROBE_BOX");

	if (setns(space, CLONE_NEWNET))
		untried("setns");
	return plain();
}

/* Its own netfilter sends what it asks for to the server, behind the decision. */
static int translated(void)
{
	char command[512];
	int error;

	snprintf(command, sizeof(command),
		 "nft 'add table ip probe; add chain ip probe out { type nat hook "
		 "output priority -100; }; add rule ip probe out ip daddr %s tcp "
		 "dport %s dnat to %s:25'",
		 setting("PROBE_ADDRESS"), setting("PROBE_PORT"),
		 setting("PROBE_VIA"));
	if (system(command))
		untried("nft");
	error = plain();
	if (system("nft 'delete table ip probe'"))
		untried("nft");
	return error;
}

static const struct route routes[] = {
	{ "proxied", proxied },
	{ "kept", kept },
	{ "entered", entered },
	{ "translated", translated },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
