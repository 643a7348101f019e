// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * binfmt_misc hands the file that the kernel opened to be executed on to the
 * program it names (flag O), and from Linux 6.7 on every user namespace may have
 * one of its own. So anybody gets an allowed program's file as execve() opened it.
 */
#include "probe.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/mount.h>

static void put(const char *path, const char *text)
{
	int fd = made(open(path, O_WRONLY), path);

	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		untried(path);
	close(fd);
}

/* In a user namespace: execute the allowed program, by way of this one. */
static void take(const char *link)
{
	char groups[32], me[PATH_MAX] = "", text[PATH_MAX + 64], *argv[] = { "allowed", 0 };

	snprintf(text, sizeof(text), "0 %d 1", geteuid());
	snprintf(groups, sizeof(groups), "0 %d 1", getegid());
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		untried("unshare");
	put("/proc/self/uid_map", text);
	put("/proc/self/setgroups", "deny");
	put("/proc/self/gid_map", groups);
	if (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) ||
	    mount("binfmt_misc", "/mnt", "binfmt_misc", 0, 0) ||
	    readlink("/proc/self/exe", me, sizeof(me) - 1) < 0)
		untried("binfmt_misc");
	snprintf(text, sizeof(text), ":probe:E::probe::%s:O", me);
	put("/mnt/register", text);
	execv(link, argv);
	untried("exec");
}

static int taken(void)
{
	char folder[] = "/tmp/smtp-guard-probe-XXXXXX", link[64], number[16];
	char *argv[] = { "spoof", number, (char *)setting("PROBE_ADDRESS"),
			 (char *)setting("PROBE_PORT"), "shared", 0 };
	int ends[2], status;
	pid_t child;

	if (!mkdtemp(folder) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		untried(folder);
	snprintf(link, sizeof(link), "%s/allowed.probe", folder);
	if (symlink(setting("PROBE_ALLOWED"), link))
		untried(link);
	child = make_child();
	if (!child) {
		dup2(ends[1], 0);
		take(link);
	}
	waitpid(child, &status, 0);
	unlink(link);
	rmdir(folder);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		_exit(UNTRIED);
	snprintf(number, sizeof(number), "fd:%d", receive_fd(ends[0]));
	child = make_child();
	if (!child) {
		execv(setting("PROBE_SPOOF"), argv);
		untried("exec");
	}
	waitpid(child, &status, 0);
	if (!WIFEXITED(status) || WEXITSTATUS(status) == 99)
		untried("spoof");
	return WEXITSTATUS(status);
}

static const struct route routes[] = {
	{ "taken", taken },
	{ 0 },
};

int main(int argc, char **argv)
{
	int file = getauxval(AT_EXECFD);

	(void)argc;
	if (!file)
		return probe(routes, argv);
	send_fd(0, file);
	return 0;
}
