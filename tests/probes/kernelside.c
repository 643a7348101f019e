// SPDX-License-Identifier: GPL-2.0-or-later
/* Connections that the kernel makes when a program asks for something else. */
#include "probe.h"

#include <sched.h>
#include <sys/mount.h>

/* Whether /proc/net/tcp knows an open connection to the guarded port. */
static int established(void)
{
	FILE *table = fopen("/proc/self/net/tcp", "r");
	int port = ntohs(((struct sockaddr_in *)&peer)->sin_port), found = 0;
	unsigned int to, state;
	char line[256];

	while (table && fgets(line, sizeof(line), table))
		found |= sscanf(line, " %*d: %*x:%*x %*x:%x %x", &to, &state) == 2 &&
			 (int)to == port && state == 1;
	if (!table || fclose(table))
		untried("/proc/net/tcp");
	return found;
}

/* A file server of Plan 9's, said to listen at the guarded port. */
static int file_system(void)
{
	char options[64];
	int status, tries;
	pid_t child;

	snprintf(options, sizeof(options), "trans=tcp,port=%s", setting("PROBE_PORT"));
	if (established())
		untried("there is such a connection already");
	child = make_child();
	if (!child) {
		if (unshare(CLONE_NEWNS) || mount(0, "/", 0, MS_REC | MS_PRIVATE, 0))
			untried("mount namespace");
		if (mount(setting("PROBE_ADDRESS"), "/mnt", "9p", 0, options) &&
		    errno != EPERM)
			untried("9p");
		_exit(verdict_of(errno));
	}
	for (tries = 0; tries < 200; tries++) {
		if (established()) {
			kill(child, SIGKILL);
			return 0;
		}
		if (waitpid(child, &status, WNOHANG) == child) {
			if (!WIFEXITED(status) || WEXITSTATUS(status) != DENIED)
				_exit(UNTRIED);
			return EPERM;
		}
		poll(0, 0, 20);
	}
	return ETIMEDOUT;
}

static const struct route routes[] = {
	{ "file-system", file_system },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
