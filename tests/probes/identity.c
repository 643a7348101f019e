// SPDX-License-Identifier: GPL-2.0-or-later
/* Programs that want to be taken for the one that a rule allows. */
#include "probe.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>

static int plain(void)
{
	return connect_by(new_socket());
}

static int run(const char *program, char *const argv[])
{
	pid_t child = make_child();

	if (!child) {
		execv(program, argv);
		untried(program);
	}
	return errno_of(child);
}

/* This program again, by another route. */
static char *again[] = { "allowed", "plain", 0, 0, 0 };

static char **myself(void)
{
	again[2] = (char *)setting("PROBE_ADDRESS");
	again[3] = (char *)setting("PROBE_PORT");
	return again;
}

/* ---- names */

static int renamed(void)
{
	if (prctl(PR_SET_NAME, "allowed"))
		untried("PR_SET_NAME");
	return plain();
}

/* Its first argument is the allowed program's path. */
static int other_arguments(void)
{
	myself()[0] = (char *)setting("PROBE_ALLOWED");
	return run("/proc/self/exe", again);
}

/* Its path is the allowed program's, in a mount namespace that it made. */
static int other_path(void)
{
	char me[PATH_MAX] = "";
	const char *path = setting("PROBE_ALLOWED");

	if (readlink("/proc/self/exe", me, sizeof(me) - 1) < 0 ||
	    unshare(CLONE_NEWUSER | CLONE_NEWNS) ||
	    mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) ||
	    mount(me, path, 0, MS_BIND, 0))
		untried("mount namespace");
	return run(path, myself());
}

/*
 * Likewise, and it is in no namespace of its own: the file comes as a descriptor from
 * one who is. The path that the kernel knows is the one that was made up there.
 */
static int borrowed_path(void)
{
	char me[PATH_MAX] = "", path[64];
	const char *there = setting("PROBE_ALLOWED");
	int ends[2];
	pid_t child;

	if (readlink("/proc/self/exe", me, sizeof(me) - 1) < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		untried("socketpair");
	child = make_child();
	if (!child) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS) ||
		    mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) ||
		    mount(me, there, 0, MS_BIND, 0))
			untried("mount namespace");
		send_fd(ends[1], made(open(there, O_RDONLY), there));
		pause();
	}
	close(ends[1]);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", receive_fd(ends[0]));
	return run(path, myself());
}

/* ---- where the code comes from */

static int copy_to(int fd)
{
	int from = made(open("/proc/self/exe", O_RDONLY), "/proc/self/exe");
	char block[65536];
	ssize_t n;

	while ((n = read(from, block, sizeof(block))) > 0)
		if (write(fd, block, n) != n)
			untried("write");
	close(from);
	return fd;
}

static int run_descriptor(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return run(path, myself());
}

/* No file at all. */
static int memory_file(void)
{
	return run_descriptor(copy_to(made(memfd_create("allowed", 0), "memfd")));
}

/* A file that is gone while it runs. */
static int deleted_file(void)
{
	char folder[] = "/tmp/smtp-guard-probe-XXXXXX", path[64];
	int fd, reader;

	if (!mkdtemp(folder))
		untried(folder);
	snprintf(path, sizeof(path), "%s/deleted", folder);
	fd = copy_to(made(open(path, O_WRONLY | O_CREAT, 0755), path));
	reader = made(open(path, O_RDONLY), path);
	close(fd); /* what is open for writing is not executed */
	unlink(path);
	rmdir(folder);
	return run_descriptor(reader);
}

static void first_line(const char *file, const char *what, char *into, size_t size)
{
	FILE *lines = fopen(file, "r");
	char line[PATH_MAX + 128], *found = 0;

	while (lines && fgets(line, sizeof(line), lines) && !found) {
		found = strchr(line, '/');
		if (!found || !strstr(found, what))
			found = 0;
		else
			snprintf(into, size, "%.*s", (int)strcspn(found, "\n"),
				 found);
	}
	if (!found)
		untried(what);
	fclose(lines);
}

/* Loaded by the dynamic loader, which is what the kernel executes. */
static int loader(void)
{
	char path[PATH_MAX], me[PATH_MAX] = "";
	char *argv[] = { "allowed", me, "plain", 0, 0, 0 };

	first_line("/proc/self/maps", "ld-linux", path, sizeof(path));
	if (readlink("/proc/self/exe", me, sizeof(me) - 1) < 0)
		untried("/proc/self/exe");
	argv[3] = myself()[2];
	argv[4] = myself()[3];
	return run(path, argv);
}

/* A library of one's own in the allowed program. */
static int preload(void)
{
	char *argv[] = { "allowed", "wait", myself()[2], myself()[3], 0 };

	setenv("LD_PRELOAD", setting("PROBE_LIBRARY"), 1);
	return run(setting("PROBE_ALLOWED"), argv);
}

/* ---- into the allowed program while it runs */

/* Its memory is written: it connects where this probe wants it to. */
static int memory(void)
{
	char *argv[] = { "allowed", "wait", "127.0.0.1", "1", 0 };
	struct sockaddr_storage *where;
	char path[64];
	int ends[2], fd;
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
	if (read(ends[0], &where, sizeof(where)) != sizeof(where))
		untried("read");
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	fd = made(open(path, O_WRONLY), path);
	if (pwrite(fd, &peer, sizeof(peer), (off_t)where) != sizeof(peer))
		untried(path);
	if (write(ends[0], "", 1) != 1)
		untried("write");
	return errno_of(child);
}

#ifdef __x86_64__
static long remote(pid_t child, long number, long a, long b, long c)
{
	struct user_regs_struct before, now;
	int status;

	if (ptrace(PTRACE_GETREGS, child, 0, &before))
		untried("PTRACE_GETREGS");
	now = before;
	now.rax = number;
	now.rdi = a;
	now.rsi = b;
	now.rdx = c;
	ptrace(PTRACE_POKETEXT, child, before.rip, 0x050fL); /* syscall */
	if (ptrace(PTRACE_SETREGS, child, 0, &now) ||
	    ptrace(PTRACE_SINGLESTEP, child, 0, 0) ||
	    waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_GETREGS, child, 0, &now) ||
	    ptrace(PTRACE_SETREGS, child, 0, &before))
		untried("PTRACE_SINGLESTEP");
	return now.rax;
}

/* A debugger makes the system calls in its place. */
static int debugger(void)
{
	char *argv[] = { "allowed", "wait", "127.0.0.1", "1", 0 };
	struct user_regs_struct regs;
	long fd, result, at;
	pid_t child;
	size_t i;

	child = make_child();
	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execv(setting("PROBE_ALLOWED"), argv);
		untried("exec");
	}
	if (waitpid(child, 0, 0) != child ||
	    ptrace(PTRACE_GETREGS, child, 0, &regs))
		untried("ptrace");
	at = (regs.rsp - 1024) & ~15L;
	for (i = 0; i < peer_len; i += sizeof(long))
		ptrace(PTRACE_POKEDATA, child, at + i, *(long *)((char *)&peer + i));
	fd = remote(child, SYS_socket, peer.ss_family, SOCK_STREAM, 0);
	result = remote(child, SYS_connect, fd, at, peer_len);
	kill(child, SIGKILL);
	waitpid(child, 0, 0);
	return -result;
}
#else
static int debugger(void)
{
	errno = ENOSYS;
	untried("no registers known for this machine");
}
#endif

static const struct route routes[] = {
	{ "plain", plain },
	{ "renamed", renamed },
	{ "other-arguments", other_arguments },
	{ "other-path", other_path },
	{ "borrowed-path", borrowed_path },
	{ "memory-file", memory_file },
	{ "deleted-file", deleted_file },
	{ "loader", loader },
	{ "preload", preload },
	{ "memory", memory },
	{ "debugger", debugger },
	{ 0 },
};

int main(int argc, char **argv)
{
	(void)argc;
	return probe(routes, argv);
}
