// SPDX-License-Identifier: GPL-2.0-or-later
/* Sockets that change hands, and processes that change places. */
#include "probe.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static int plain(void)
{
	return connect_by(new_socket());
}

/* ---- descriptors */


/* A socket that was made by one executable and is connected by another. */
static int inherited(void)
{
	char *argv[] = { "allowed", "input", (char *)setting("PROBE_ADDRESS"),
			 (char *)setting("PROBE_PORT"), 0 };

	dup2(new_socket(), 0);
	execv(setting("PROBE_ALLOWED"), argv);
	untried("exec");
}

static int forked(pid_t child)
{
	if (child < 0)
		untried("fork");
	if (!child)
		_exit(verdict_of(plain()));
	return errno_of(child);
}

static int vforked(void)
{
	return forked(vfork());
}

/* The maker of the socket hands it on unconnected; the receiver connects. */
static int passed_unconnected(void)
{
	int ends[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		untried("socketpair");
	child = make_child();
	if (!child)
		_exit(verdict_of(connect_by(receive_fd(ends[1]))));
	send_fd(ends[0], new_socket());
	return errno_of(child);
}

/* The program that a rule allows, asked for its connection. */
static pid_t ask_allowed(int *input, int keep)
{
	char *argv[] = { "allowed", keep ? "keep" : "pass",
			 (char *)setting("PROBE_ADDRESS"),
			 (char *)setting("PROBE_PORT"), 0 };
	int ends[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		untried("socketpair");
	child = make_child();
	if (!child) {
		dup2(ends[1], 0);
		execv(setting("PROBE_ALLOWED"), argv);
		untried("exec");
	}
	close(ends[1]);
	*input = ends[0];
	return child;
}

static int is_connected(int fd)
{
	struct sockaddr_storage there;
	socklen_t len = sizeof(there);

	return getpeername(fd, (struct sockaddr *)&there, &len) ? errno : 0;
}

static int passed_connected(void)
{
	int input;

	ask_allowed(&input, 0);
	return is_connected(receive_fd(input));
}

static int taken(int keep)
{
	int input, pidfd, fd, theirs;
	pid_t child;

	if (keep) {
		child = ask_allowed(&input, 1);
		if (read(input, &theirs, sizeof(theirs)) != sizeof(theirs))
			untried("read");
	} else {
		theirs = new_socket();
		child = make_child();
		if (!child)
			pause();
	}
	pidfd = made(syscall(SYS_pidfd_open, child, 0), "pidfd_open");
	fd = made(syscall(SYS_pidfd_getfd, pidfd, theirs, 0), "pidfd_getfd");
	return keep ? is_connected(fd) : connect_by(fd);
}

static int getfd_connected(void)
{
	return taken(1);
}

static int getfd_unconnected(void)
{
	return taken(0);
}

/* ---- places in the cgroup tree */

static int cgroup(char *path, size_t size, const char *name)
{
	snprintf(path, size, "%s/%s", setting("PROBE_CGROUP"), name);
	if (mkdir(path, 0755))
		untried(path);
	return made(open(path, O_RDONLY | O_DIRECTORY), path);
}

static void join(int directory)
{
	int fd = made(openat(directory, "cgroup.procs", O_WRONLY), "cgroup.procs");

	if (write(fd, "0", 1) != 1)
		untried("cgroup.procs");
	close(fd);
}

static int nested_at(const char *name)
{
	char path[4096];

	join(cgroup(path, sizeof(path), name));
	return plain();
}

/* A cgroup that has the name of a unit the policy allows. */
static int named_like_a_unit(void)
{
	return nested_at("postfix.service");
}

/* So deep that its path is not known whole any more. */
static int deep(void)
{
	char path[4096];
	int fd, level;

	fd = cgroup(path, sizeof(path), "deep");
	for (level = 0; level < 80; level++) {
		if (mkdirat(fd, "d", 0755))
			untried("mkdirat");
		fd = made(openat(fd, "d", O_RDONLY | O_DIRECTORY), "d");
	}
	join(fd);
	return plain();
}

static int home_cgroup(void)
{
	return made(open(setting("PROBE_CGROUP"), O_RDONLY | O_DIRECTORY), "cgroup");
}

/* The socket was born in a cgroup that is gone. */
static int dead_cgroup(void)
{
	char path[4096];
	int fd;

	join(cgroup(path, sizeof(path), "dead"));
	fd = new_socket();
	join(home_cgroup());
	if (rmdir(path))
		untried("rmdir");
	return connect_by(fd);
}

/* The socket was born in one cgroup, and is used in another beside it. */
static int moved(void)
{
	char path[4096];
	int fd;

	join(cgroup(path, sizeof(path), "born"));
	fd = new_socket();
	join(cgroup(path, sizeof(path), "used"));
	return connect_by(fd);
}

static int into_cgroup(void)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP,
				   .exit_signal = SIGCHLD };
	char path[4096];

	args.cgroup = cgroup(path, sizeof(path), "into");
	return forked(syscall(SYS_clone3, &args, sizeof(args)));
}

/* A thread alone in a cgroup beside its process's other threads. */
static int threaded(void)
{
	char path[4096], word[] = "threaded", tid[16];
	int directory = cgroup(path, sizeof(path), "threads"), fd;

	fd = made(openat(directory, "cgroup.type", O_WRONLY), "cgroup.type");
	if (write(fd, word, strlen(word)) < 0)
		untried("cgroup.type");
	fd = made(openat(directory, "cgroup.threads", O_WRONLY), "cgroup.threads");
	snprintf(tid, sizeof(tid), "%d", getpid());
	if (write(fd, tid, strlen(tid)) < 0)
		untried("cgroup.threads");
	return plain();
}

static const struct route routes[] = {
	{ "inherited", inherited },
	{ "vfork", vforked },
	{ "passed-unconnected", passed_unconnected },
	{ "passed-connected", passed_connected },
	{ "getfd-unconnected", getfd_unconnected },
	{ "getfd-connected", getfd_connected },
	{ "named-like-a-unit", named_like_a_unit },
	{ "deep", deep },
	{ "dead-cgroup", dead_cgroup },
	{ "moved", moved },
	{ "into-cgroup", into_cgroup },
	{ "threaded", threaded },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
